"""Soft labels on real images: the control of every method that learns labels, or is judged with a teacher's.

Qin, Deng and Alvarez-Melis, "A Label is Worth a Thousand Images in Dataset Distillation", NeurIPS 2024,
arXiv 2406.10485: nothing is condensed. Real images get what a network says of them that stopped training early.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet, transient
from ddbench.initial import Initial, check_start, starting_images
from ddbench.training.experts import ExpertTrajectories, Trajectories, expert_of, logits_of
from ddbench_methods.coresets import Coreset, EmbeddedConfig, Herding, KCenter, KMeans, Random


class SoftLabelsConfig(MethodConfig):
    """Options of soft labels on real images."""

    initial: Initial = Field("real", description="Which images get labels: real, noise, or those of a saved set.")
    chosen: Literal["random", "herding", "k-center", "k-means"] = Field(
        "random", description="How real images are chosen: at random, or by this coreset method."
    )
    epoch: int = Field(20, ge=0, description="Epochs that the network has trained whose labels are taken.")
    expert: int = Field(0, ge=0, description="Which of the experts of MTT that network is.")
    lr_experts: float = Field(0.01, gt=0, description="Step size of their training.")
    experts_seed: int = Field(0, ge=0, description="Seed of the experts, which runs of all seeds share.")
    augment: str = Field("auto", description="Augmentation of the experts; 'auto' fits the dataset.")


@dataclass
class Labelled(State):
    """Shapes: labels [N, K], probabilities; images [N, C, H, W] in the pixel space, class by class; indices [N], rows
    of the training set, where the images are real ones."""

    labels: Tensor
    experts: Trajectories = transient()
    images: Tensor = transient()
    indices: Tensor | None = transient()


class SoftLabels(Method[Labelled]):
    """Real images with the labels of a network. Step e takes those after e epochs, so that a run can select among
    them by images held out (`--select`)."""

    name = "soft-labels"
    info = MethodInfo(
        title="Soft labels on real images",
        venue="NeurIPS",
        year=2024,
        arxiv="2406.10485",
        learns=("labels",),
        native="soft-labels@1",
        advice="A smaller step size of the experts usually helps: --set lr_experts=0.001",
    )
    Config = SoftLabelsConfig
    config: SoftLabelsConfig

    def total_steps(self, problem: Problem) -> int:
        return self.config.epoch

    def prepare(self, problem: Problem) -> None:
        check_start(self.config.initial, problem)
        if self.config.initial == "real":
            self.chooser().prepare(problem)
        self.experts(problem)

    def start(self, problem: Problem) -> Labelled:
        rng, indices = problem.rng.fold("start"), None
        if self.config.initial == "real":
            indices = self.chooser().choose(problem, rng)
            images = problem.real.take(indices)
        else:
            images = starting_images(self.config.initial, problem, rng)
        experts = self.experts(problem)
        return Labelled(self.labels(problem, experts, images, 0), experts, images, indices)

    def step(self, problem: Problem, state: Labelled, rng: Rng) -> Metrics:
        state.labels = self.labels(problem, state.experts, state.images, state.step + 1)
        right = state.labels.argmax(dim=1) == problem.class_labels().to(problem.device)
        return {
            "entropy": torch.special.entr(state.labels).sum(dim=1).mean(),
            "agreement": right.float().mean(),
        }

    def export(self, problem: Problem, state: Labelled) -> SyntheticSet:
        rows = None if state.indices is None else state.indices.cpu()
        images = state.images.cpu() if rows is None else problem.train.images[rows]
        return SyntheticSet(
            images.clone(),
            state.labels.cpu().clone(),
            label_kind="probability",
            source_indices=None if rows is None else problem.source_rows(rows).clone(),
        )

    def chooser(self) -> Coreset:
        """The coreset method that chooses real images, with its usual options."""
        match self.config.chosen:
            case "random":
                return Random(Random.Config())
            case "herding":
                return Herding(EmbeddedConfig())
            case "k-center":
                return KCenter(EmbeddedConfig())
            case "k-means":
                return KMeans(EmbeddedConfig())

    def experts(self, problem: Problem) -> Trajectories:
        """The networks trained on the real data, which are made where they are missing."""
        config = self.config
        wanted = ExpertTrajectories.of(
            problem,
            experts=config.expert + 1,
            epochs=config.epoch,
            lr=config.lr_experts,
            augment=config.augment,
            seed=config.experts_seed,
        )
        return problem.artifacts.get(wanted, problem)

    def labels(self, problem: Problem, experts: Trajectories, images: Tensor, epoch: int) -> Tensor:
        """[N, K]: what the expert says of images [N, C, H, W] as they are, after so many epochs."""
        network = expert_of(problem, experts, self.config.expert, epoch)
        return logits_of(problem, network, images).softmax(dim=1)
