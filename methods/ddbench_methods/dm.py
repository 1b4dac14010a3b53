"""DM: match class means of random embeddings.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, arXiv 2110.04181.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, optim

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet
from ddbench.engine.augment import resolve_strategy, siamese
from ddbench.engine.distance import class_mean_distance
from ddbench.initial import INITIALS


class DMConfig(MethodConfig):
    """Options of DM."""

    # One more than the paper's 20 000: the reference loop counts from 0 up to and including it.
    iterations: int = Field(20_001, ge=0, description="Outer iterations; each draws one random network.")
    lr_images: float = Field(1.0, gt=0, description="SGD step size on synthetic pixels.")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on synthetic pixels.")
    batch_real: int = Field(256, ge=1, description="Real images per class and iteration.")
    augment: str = Field("auto", description="Siamese augmentation; 'auto' fits the dataset, 'none' turns it off.")
    initial: Literal["real", "noise"] = Field("real", description="What the synthetic images start from.")


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
        images = INITIALS[self.config.initial](problem, problem.rng.fold("start")).requires_grad_()
        return DMState(images, optim.SGD([images], self.config.lr_images, momentum=self.config.momentum))

    def step(self, problem: Problem, state: DMState, rng: Rng) -> Metrics:
        network = problem.backbone.init(rng.fold("network"), problem.device, on_device=True)
        strategy = resolve_strategy(self.config.augment, problem.info.digits)
        view = siamese(strategy, problem.classes, rng.fold("view"))

        def embed(images: Tensor) -> Tensor:  # [K, n, C, H, W] -> [K, n, D]
            embedded = problem.backbone.embed(network, view(images).flatten(0, 1))
            return embedded.unflatten(0, images.shape[:2])

        # All classes share a forward: exact for networks without batch statistics, and what the paper does with them.
        with torch.no_grad():
            real = embed(problem.real.class_batches(self.config.batch_real, rng.fold("real")))
        loss = class_mean_distance(embed(problem.by_class(state.images)), real)

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        return {"loss": loss.detach()}

    def export(self, problem: Problem, state: DMState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().cpu().clone(), problem.class_labels())
