"""DATM: MTT with learned labels, on a stretch of the experts' training that fits the number of images.

Guo, Wang, Cazenavette, Li, Zhang and You, "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
Matching", ICLR 2024, arXiv 2310.05773.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddbench import MethodInfo, Problem, Rng, SyntheticSet, Variables
from ddbench.config import later
from ddbench.initial import starting_images
from ddbench.training.experts import Trajectories, expert_of, logits_of
from ddbench_methods.mtt import MTT, MTTConfig, MTTState


class DATMConfig(MTTConfig):
    """Options of DATM: those of MTT, with other defaults, and its own."""

    iterations: int = Field(10_000, ge=0, description="Outer iterations; each follows one expert for a while.")
    inner_steps: int = Field(80, ge=1, description="Student steps on the synthetic set in an iteration.")
    lr_images: float = Field(100.0, gt=0, description="SGD step size on synthetic pixels.")
    lr_labels: float = Field(2.0, ge=0, description="SGD step size on the logits of labels. 0: they stay as they are.")
    momentum_labels: float = Field(0.9, ge=0, lt=1, description="SGD momentum on the logits.")
    first_epoch: int = Field(0, ge=0, description="T-: an expert is followed from this epoch on.")
    start_epochs: int = Field(20, ge=1, description="T+: and from an epoch below this one.")
    early_epochs: int | None = Field(None, ge=1, description="T: T+ is this many at first. none: T+ from the start.")
    growth: int = Field(1000, ge=1, description="Iterations in which T grows to T+, linearly.")
    threshold: float | None = Field(
        1.0, gt=0, description="An iteration whose loss is above this one changes nothing. none: all change the set."
    )
    confident: bool = Field(
        True,
        description="Whether real starting images are such as an expert gets right, each labelled by the experts that "
        "do. Otherwise, and for images that are not real, the first expert labels them.",
    )
    label_experts: int = Field(10, ge=1, description="How many of the experts label the first images.")
    label_epochs: int = Field(100, ge=1, description="Epochs that these have trained.")
    teacher_labels: Literal[False] = later(False, description="For MTT alone: DATM learns its labels.")


@dataclass
class DATMState(MTTState):
    """Shapes: logits [K * ipc, K], whose softmax is the labels."""

    logits: Tensor = field(kw_only=True)

    def targets(self) -> Tensor:
        return self.logits.softmax(dim=1)

    def learned(self) -> list[Tensor]:
        return [self.images, self.logits]


class DATM(MTT):
    """Difficulty-aligned trajectory matching."""

    name = "datm"
    info = MethodInfo(
        title="Difficulty-Aligned Trajectory Matching",
        venue="ICLR",
        year=2024,
        arxiv="2310.05773",
        learns=("images", "labels", "step size"),
        native="datm@1",
        advice=MTT.info.advice,
        memory_advice=MTT.info.memory_advice,
    )
    Config = DATMConfig
    config: DATMConfig

    def prepare(self, problem: Problem) -> None:
        super().prepare(problem)
        self.labellers(problem)

    def start(self, problem: Problem) -> DATMState:
        images, logits = self.first_images(problem, problem.rng.fold("start"))
        state = self.begin(problem, images)
        logits.requires_grad_()
        state.optimizer.add_param_group(
            {"params": [logits], "lr": self.config.lr_labels, "momentum": self.config.momentum_labels}
        )
        return DATMState(
            state.images, state.lr, state.optimizer, state.experts, state.student, state.like, state.labels,
            logits=logits, averages=[*state.averages, logits.detach().clone()] if state.averages else [],
        )  # fmt: skip

    def export(self, problem: Problem, state: MTTState) -> SyntheticSet:
        """Raises: DivergedError where the step size is not positive."""
        assert isinstance(state, DATMState)
        _, logits = state.exported()
        return replace(super().export(problem, state), labels=logits, label_kind="logit")

    def start_epoch(self, step: int, drawn: np.random.Generator) -> int:
        config, below = self.config, self.config.start_epochs
        if config.early_epochs is not None:
            grown = (config.start_epochs - config.early_epochs) * step // config.growth
            below = min(config.start_epochs, config.early_epochs + grown)
        return int(drawn.integers(config.first_epoch, max(below, config.first_epoch + 1)))

    def labellers(self, problem: Problem) -> Trajectories:
        """The experts that label the first images, at the end of a longer training than the others need."""
        return self.trained(problem, self.config.label_experts, self.config.label_epochs)

    def first_images(self, problem: Problem, rng: Rng) -> tuple[Tensor, Tensor]:
        """Images [K * ipc, C, H, W] in the pixel space, class by class, and the logits [K * ipc, K] of their labels."""
        networks = self.networks(problem)
        if not (self.config.initial == "real" and self.config.confident):
            images = starting_images(self.config.initial, problem, rng)
            return images, logits_of(problem, next(networks), images)
        labellers, classes = list(networks), range(problem.classes)
        rows = torch.cat([seen_rightly(problem, labellers, k, rng.fold("class", k)) for k in classes])
        images = problem.real.take(rows)
        logits = torch.stack([logits_of(problem, network, images) for network in labellers])  # [E, N, K]
        right = logits.argmax(dim=2) == problem.class_labels().to(logits.device)
        right |= ~right.any(dim=0)  # by all where none is right
        return images, (logits * right[..., None]).sum(dim=0) / right.sum(dim=0)[:, None]

    def networks(self, problem: Problem) -> Iterator[Variables]:
        """The labelling experts, one after another, on the device."""
        experts = self.labellers(problem)
        for k in range(self.config.label_experts):
            yield expert_of(problem, experts, k, self.config.label_epochs)


def seen_rightly(problem: Problem, networks: Sequence[Variables], label: int, rng: Rng) -> Tensor:
    """[ipc] rows of one class in random order: those that the first network gets right; where they are too few, of the
    others those that the second does, and so on; at last those that none does."""
    first, count = int(problem.train.offsets[label]), int(problem.train.counts[label])
    left, chosen = first + torch.randperm(count, generator=rng.torch()), torch.empty(0, dtype=torch.int64)
    for network in networks:
        if len(chosen) >= problem.ipc:
            break
        right = (logits_of(problem, network, problem.real.take(left)).argmax(dim=1) == label).cpu()
        chosen, left = torch.cat([chosen, left[right]]), left[~right]
    return torch.cat([chosen, left])[: problem.ipc]
