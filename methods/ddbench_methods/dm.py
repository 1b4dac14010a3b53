"""DM: match class means of random embeddings.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, arXiv 2110.04181.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, optim

from ddbench import Backbone, Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet, Variables
from ddbench.engine.augment import Draw, resolve_strategy, siamese
from ddbench.engine.distance import class_mean_distance
from ddbench.engine.program import channels_last, fusible
from ddbench.initial import Initial, starting_images

# Ten classes of 256 CIFAR images are 2.6 million pixels and take 9 GB with a ConvNet of width 128.
PIXELS_PER_PASS = 4_000_000


class DMConfig(MethodConfig):
    """Options of DM."""

    # One more than the paper's 20 000: the reference loop counts from 0 up to and including it.
    iterations: int = Field(20_001, ge=0, description="Outer iterations; each draws one random network.")
    lr_images: float = Field(1.0, gt=0, description="SGD step size on synthetic pixels.")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on synthetic pixels.")
    batch_real: int = Field(256, ge=1, description="Real images per class and iteration.")
    augment: str = Field("auto", description="Siamese augmentation; 'auto' fits the dataset, 'none' turns it off.")
    classes_per_pass: int | None = Field(
        None,
        ge=1,
        description="Classes in one forward, for small memories; the result is the same. none: by image size.",
    )
    initial: Initial = Field("real", description="What the synthetic images start from: real, noise, or a saved set.")


@dataclass
class DMState(State):
    """Shapes: images [K * ipc, C, H, W], class by class."""

    images: Tensor
    optimizer: optim.Optimizer


class DM(Method[DMState]):
    """Distribution matching."""

    name = "dm"
    info = MethodInfo(
        title="Distribution Matching",
        venue="WACV",
        year=2023,
        arxiv="2110.04181",
        learns=("images",),
        native="dsa@1",
        advice="A smaller step size usually helps: --set lr_images=0.1",
    )
    Config = DMConfig
    config: DMConfig

    def start(self, problem: Problem) -> DMState:
        images = starting_images(self.config.initial, problem, problem.rng.fold("start")).requires_grad_()
        return DMState(images, optim.SGD([images], self.config.lr_images, momentum=self.config.momentum))

    def draw(self, problem: Problem, state: DMState, rng: Rng) -> tuple[Variables, Draw, Tensor]:
        strategy = resolve_strategy(self.config.augment, problem.info.digits)
        network = problem.backbone.init(rng.fold("network"), problem.device, on_device=True)
        rows = problem.real.class_indices(self.config.batch_real, rng.fold("real"))
        return network, siamese(strategy, problem.classes, rng.fold("view")), rows

    def update(self, problem: Problem, state: DMState, network: Variables, view: Draw, rows: Tensor) -> Metrics:
        losses = []
        state.optimizer.zero_grad()
        for some in self.passes(problem):
            with torch.no_grad():
                real = embed(problem.fast_backbone, network, view[some], problem.real.take(rows[some]))
            loss = class_mean_distance(
                embed(problem.fast_backbone, network, view[some], problem.by_class(state.images)[some]), real
            )
            loss.backward()
            losses.append(loss.detach())
        state.optimizer.step()
        return {"loss": torch.stack(losses).sum()}

    def export(self, problem: Problem, state: DMState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().cpu().clone(), problem.class_labels())

    def passes(self, problem: Problem) -> list[slice]:
        """Which classes share a forward. One step on the sum is the same however it is cut, without batch statistics;
        with them all classes go together, as in the paper."""
        if not problem.backbone.per_sample:
            return [slice(0, problem.classes)]
        fitting = max(1, PIXELS_PER_PASS // (self.config.batch_real * problem.pixel_count))
        return problem.class_runs(self.config.classes_per_pass or fitting)


@fusible
def embed(backbone: Backbone, network: Variables, view: Draw, images: Tensor) -> Tensor:
    """[K, n, C, H, W] -> [K, n, D]."""
    embedded = backbone.embed(network, channels_last(view(images).flatten(0, 1)))
    return embedded.unflatten(0, images.shape[:2]).float()
