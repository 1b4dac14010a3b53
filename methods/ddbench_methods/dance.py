"""DANCE: match class means of embeddings by networks between their start and their end, and keep images classifiable.

Zhang, Li, Lin, Wang, Qian and Ge, "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024,
arXiv 2406.01063. Images are mosaics, as in Kim et al., ICML 2022, arXiv 2205.14959.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddbench import (
    Backbone,
    Method,
    MethodConfig,
    MethodInfo,
    Metrics,
    Problem,
    Rng,
    State,
    SyntheticSet,
    Variables,
    transient,
)
from ddbench.config import later
from ddbench.decoders import tiles
from ddbench.engine.augment import Draw, siamese
from ddbench.engine.decode import check_factor, decode
from ddbench.engine.distance import class_mean_distance
from ddbench.engine.program import channels_last, fusible
from ddbench.errors import ConfigError
from ddbench.initial import check_budget, real_mosaics
from ddbench.training.experts import ExpertEnds, ExpertTrajectories, Trajectories, unflatten

# As for DM: what a network of width 128 takes in 9 GB.
PIXELS_PER_PASS = 4_000_000


class DANCEConfig(MethodConfig):
    """Options of DANCE."""

    iterations: int = Field(10_000, ge=0, description="Outer iterations; each draws one network.")
    factor: int = Field(2, ge=1, description="An image is a mosaic of F x F smaller ones, which students see enlarged.")
    lr_images: float | None = Field(None, gt=0, description="Step size on pixels in [0, 1]. none: 0.01 for each ipc.")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on synthetic pixels.")
    batch_real: int = Field(128, ge=1, description="Real images per class and iteration.")
    batch_syn: int | None = Field(200, ge=1, description="Enlarged synthetic images per class at most. none: all.")
    calibration: float = Field(1.0, ge=0, description="Weight of the cross-entropy of the trained network. 0: without.")
    per_class_steps: bool = Field(
        True,
        description="Whether the optimiser steps on all images for each class, as the authors' code does: with no "
        "gradient but that class's, so that momentum and weight decay act as often as there are classes.",
    )
    in_turn: bool = later(
        False,
        description="Whether a class's gradient is that of its images when its step comes, which momentum has moved on "
        "by then, as in the authors' code; else that of the images before all these steps.",
    )
    networks: int = Field(5, ge=1, description="Networks trained on the real data.")
    networks_trained: Literal["plain", "authors"] = later(
        "plain",
        description="plain: as MTT's experts. authors: with momentum, weight decay, falling step sizes and CutMix.",
    )
    batch_networks: int = later(128, ge=1, description="Images per step of the authors' training; plain takes 256.")
    epochs: int = Field(60, ge=1, description="Epochs of their training.")
    lr_networks: float = Field(0.01, gt=0, description="Step size of that training.")
    networks_seed: int = Field(0, ge=0, description="Seed of these networks, which runs of all seeds share.")
    augment: tuple[str, ...] = Field(
        ("color", "crop", "cutout"), description="Siamese augmentations, all of them, one after another."
    )
    classes_per_pass: int | None = Field(
        None,
        ge=1,
        description="Classes in one forward, for small memories; the result is the same. none: by image size.",
    )


@dataclass
class DANCEState(State):
    """Shapes: images [K * ipc, C, H, W], class by class, pixels in [0, 1]; lr []. `width` is that of embeddings."""

    images: Tensor
    moments: list[Tensor]
    lr: Tensor
    width: int
    networks: Trajectories = transient()
    like: Mapping[str, Tensor] = transient()


Views = tuple[Draw, ...]


class DANCE(Method[DANCEState]):
    """Dual-view distribution alignment."""

    name = "dance"
    info = MethodInfo(
        title="Dual-View Distribution Alignment",
        venue="IJCAI",
        year=2024,
        arxiv="2406.01063",
        learns=("images",),
        native="dance@2",
        advice="A smaller step size usually helps: --set lr_images=0.01",
        memory_advice="--set classes_per_pass=1 takes one class at a time",
    )
    Config = DANCEConfig
    config: DANCEConfig

    def prepare(self, problem: Problem) -> None:
        # Before the networks, which may take minutes.
        check_budget(problem)
        check_factor(self.config.factor, *problem.shape[1:])
        if not problem.pixels.cheap:
            raise ConfigError(
                f"{self.name} keeps pixels between 0 and 1, and in the space {problem.pixels.name} none of them has a "
                "value of its own. Use --pixels standard."
            )
        self.trained(problem)

    def start(self, problem: Problem) -> DANCEState:
        starting = real_mosaics(problem, self.config.factor, problem.rng.fold("start"))
        images = (starting.float() / 255).to(problem.device)
        rate = 0.01 * problem.ipc if self.config.lr_images is None else self.config.lr_images
        lr = torch.tensor(rate, device=problem.device)
        network = problem.backbone.init(Rng(0), problem.device)
        width = problem.backbone.embed(network, images[:1]).shape[1]
        return DANCEState(images, self.first_moments(images), lr, width, self.trained(problem), network.params)

    def first_moments(self, images: Tensor) -> list[Tensor]:
        """What the optimiser keeps of the past: the velocity."""
        return [torch.zeros_like(images)]

    def draw(self, problem: Problem, state: DANCEState, rng: Rng) -> tuple[Any, ...]:
        drawn = rng.fold("network").numpy()
        number, share = int(drawn.integers(self.config.networks)), float(drawn.random())
        first, last = (state.networks.params(number, epoch) for epoch in (0, self.config.epochs))
        rows = self.rows(problem, rng)
        views, again = (self.views(problem, rng.fold(name)) for name in ("view", "calibration"))
        return share * first + (1 - share) * last, last, rows, self.chosen(problem, rng), views, again

    def update(
        self, problem: Problem, state: DANCEState, between: Tensor, last: Tensor, rows: Tensor, chosen: Tensor,
        views: Views, again: Views, *extra: Tensor,
    ) -> Metrics:  # fmt: skip
        state.images.clamp_(0, 1)
        network, judge = (Variables(unflatten(flat, state.like)) for flat in (between, last))

        def match(images: Tensor, some: slice) -> Tensor:
            seen = tuple(view[some] for view in views)
            with torch.no_grad():
                real = embed(problem.fast_backbone, network, seen, problem.real.take(rows[some]))
            ours = embed(problem.fast_backbone, network, seen, self.enlarged(problem, images, chosen[some]))
            return self.distance(ours, real, *extra)

        def classify(images: Tensor, some: slice) -> Tensor:
            ours = self.enlarged(problem, images, chosen[some])
            seen = tuple(view[some] for view in again)
            return cross_entropies(problem.fast_backbone, judge, seen, ours, some.start)

        metrics = {"loss": self.descend(problem, state, match)}
        if self.config.calibration:
            metrics["calibration"] = self.descend(problem, state, classify, self.config.calibration)
        self.adapt(state, metrics)
        return metrics

    def rows(self, problem: Problem, rng: Rng) -> Tensor:
        """[K, n]: the real images of an iteration."""
        return problem.real.class_indices(self.config.batch_real, rng.fold("real"))

    def distance(self, synthetic: Tensor, real: Tensor) -> Tensor:
        """Between embeddings [K, n, D] and [K, m, D], summed over classes."""
        return class_mean_distance(synthetic, real)

    def descend(
        self, problem: Problem, state: DANCEState, of: Callable[[Tensor, slice], Tensor], weight: float = 1.0
    ) -> Tensor:
        """One step, or one for each class, on a loss that falls into one for each class. Returns the loss."""
        in_turn = self.config.in_turn and self.config.per_class_steps
        seen = self.at_their_turns(problem, state) if in_turn else state.images.clone()
        leaf, losses = seen.requires_grad_(), []
        for some in self.passes(problem):
            loss = of(problem.by_class(leaf)[some], some)
            (weight * loss).backward()
            losses.append(loss.detach())
        gradient = leaf.grad
        assert gradient is not None
        if not self.config.per_class_steps:
            self.move(state, gradient)
        else:
            for own in self.owned(problem):
                self.move(state, gradient * own)
        return torch.stack(losses).sum()

    def at_their_turns(self, problem: Problem, state: DANCEState) -> Tensor:
        """Images of class k after k steps without a gradient, which are those before its own."""
        ahead = copy.copy(state)
        ahead.images, ahead.moments = state.images.clone(), [moment.clone() for moment in state.moments]
        seen, still = torch.zeros_like(ahead.images), torch.zeros_like(ahead.images)
        for own in self.owned(problem):
            seen = torch.where(own, ahead.images, seen)
            self.move(ahead, still)
        return seen

    def owned(self, problem: Problem) -> list[Tensor]:
        """Which images are of class k, for each k: [K * ipc, 1, 1, 1] booleans."""
        labels = torch.arange(problem.classes * problem.ipc, device=problem.device) // problem.ipc
        return [(labels == k)[:, None, None, None] for k in range(problem.classes)]

    def move(self, state: DANCEState, gradient: Tensor) -> None:
        """One step of the optimiser: SGD with momentum."""
        (velocity,) = state.moments
        velocity.mul_(self.config.momentum).add_(gradient)
        state.images.sub_(state.lr * velocity)

    def adapt(self, state: DANCEState, metrics: Metrics) -> None:
        """Change the step size, given the losses of an iteration. Here it stays."""

    def export(self, problem: Problem, state: DANCEState) -> SyntheticSet:
        images = problem.pixels.forward(state.images.clamp(0, 1)).cpu()
        return SyntheticSet(images, problem.class_labels(), decode=self.decoder)

    def views(self, problem: Problem, rng: Rng) -> Views:
        """Augmentations that are applied one after another, one draw a class, for real and synthetic images."""
        return tuple(siamese(name, problem.classes, rng.fold(name)) for name in self.config.augment)

    def chosen(self, problem: Problem, rng: Rng) -> Tensor:
        """[K, n]: which of its enlarged images each class shows."""
        count = problem.ipc * self.config.factor**2
        orders = torch.rand(problem.classes, count, generator=rng.fold("chosen").torch()).argsort(dim=1)
        return orders[:, : self.config.batch_syn]

    def enlarged(self, problem: Problem, images: Tensor, chosen: Tensor) -> Tensor:
        """[k, ipc, C, H, W] in [0, 1] -> [k, n, C, H, W] in the pixel space: what students see of k classes."""
        full, _ = decode(self.decoder, images.flatten(0, 1), chosen.flatten()[:1])
        full = full.unflatten(0, (len(images), -1))
        classes = torch.arange(len(images), device=full.device)[:, None]
        return problem.pixels.forward(full[classes, chosen])

    @property
    def decoder(self) -> str:
        """What sets name as the way from stored images to those that students see."""
        return tiles(self.config.factor)

    def passes(self, problem: Problem) -> list[slice]:
        """Which classes share a forward. The result is the same however it is cut."""
        fitting = max(1, PIXELS_PER_PASS // (self.config.batch_real * problem.pixel_count))
        return problem.class_runs(self.config.classes_per_pass or fitting)

    def trained(self, problem: Problem) -> Trajectories:
        """The networks trained on the real data, which are made where they are missing."""
        config = self.config
        asked: dict[str, Any] = {"experts": config.networks, "epochs": config.epochs}
        asked |= {"lr": config.lr_networks, "seed": config.networks_seed}
        if config.networks_trained == "plain":
            return problem.artifacts.get(ExpertTrajectories.of(problem, **asked, lr_option="lr_networks"), problem)
        return problem.artifacts.get(ExpertEnds.of(problem, **asked, batch=config.batch_networks), problem)


@fusible
def embed(backbone: Backbone, network: Variables, views: Views, images: Tensor) -> Tensor:
    """[K, n, C, H, W] -> [K, n, D]."""
    for view in views:
        images = view(images)
    embedded = backbone.embed(network, channels_last(images.flatten(0, 1)))
    return embedded.unflatten(0, images.shape[:2]).float()


@fusible
def cross_entropies(backbone: Backbone, network: Variables, views: Views, images: Tensor, first: int) -> Tensor:
    """The mean cross-entropy of each of K classes, from class `first` on, summed. Shapes: images [K, n, C, H, W]."""
    for view in views:
        images = view(images)
    logits, _ = backbone(network, channels_last(images.flatten(0, 1)))
    classes = torch.arange(first, first + len(images), device=images.device).repeat_interleave(images.shape[1])
    return F.cross_entropy(logits.float(), classes, reduction="sum") / images.shape[1]
