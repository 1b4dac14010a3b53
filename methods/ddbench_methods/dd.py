"""DD: learn images and step sizes by differentiating through the training of a network.

Wang, Zhu, Torralba and Efros, "Dataset Distillation", arXiv 1811.10959.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, optim

from ddbench import (
    Method,
    MethodConfig,
    MethodInfo,
    Metrics,
    Problem,
    Recipe,
    Rng,
    State,
    SyntheticSet,
    Variables,
    transient,
)
from ddbench.engine.capabilities import has_graphs
from ddbench.engine.crop import crop, draw_crops
from ddbench.errors import ConfigError
from ddbench.initial import Initial, starting_images
from ddbench.training.unroll import Descent, descent, network_loss

BETAS = (0.5, 0.999)
MOST_BATCHES = 10


class DDConfig(MethodConfig):
    """Options of DD."""

    iterations: int = Field(19_600, ge=0, description="Outer iterations; each sees one batch of real images.")
    batches: int | None = Field(
        None,
        ge=1,
        description="Batches that the images make, seen in this order. none: the largest divisor of ipc up to 10.",
    )
    passes: int = Field(3, ge=1, description="How often a network goes through the batches; each step has its own lr.")
    lr_network: float = Field(0.02, gt=0, description="What the learned step sizes start from.")
    lr_images: float = Field(0.01, gt=0, description="Adam step size on synthetic pixels and on raw step sizes.")
    halve_every: int = Field(40, ge=1, description="Passes over the real images after which lr_images is halved.")
    batch_real: int = Field(1024, ge=1, description="Real images per iteration; a last, smaller batch is kept.")
    networks: int = Field(1, ge=1, description="Networks per iteration, whose gradients are averaged.")
    initial_network: Literal["random", "fixed"] = Field(
        "random", description="random: new networks in each iteration. fixed: always the same, which the set stores."
    )
    augment_real: bool = Field(False, description="Crop (padded by reflection) and mirror the real images at random.")
    initial: Initial = Field("noise", description="What the synthetic images start from: real, noise, or a saved set.")


@dataclass
class DDState(State):
    """Shapes: images [N, C, H, W], batch by batch, in each class by class; raw [T], step sizes before softplus.

    `first` is the one network of a fixed initialisation, `train` the training that is differentiated, `labels` [T, B]
    what its steps see.
    """

    images: Tensor
    raw: Tensor
    optimizer: optim.Optimizer
    first: Variables = transient()
    train: Descent = transient()
    labels: Tensor = transient()


class DD(Method[DDState]):
    """Dataset distillation."""

    name = "dd"
    info = MethodInfo(
        title="Dataset Distillation",
        venue="arXiv",
        year=2018,
        arxiv="1811.10959",
        learns=("images", "step sizes"),
        native="dd@1",
        advice="A smaller step size usually helps: --set lr_images=0.001",
    )
    Config = DDConfig
    config: DDConfig

    def start(self, problem: Problem) -> DDState:
        self.check(problem)
        config, batches = self.config, self.batches(problem)
        images = problem.by_class(starting_images(config.initial, problem, problem.rng.fold("start")))
        images = images.unflatten(1, (batches, -1)).transpose(0, 1).flatten(0, 2).requires_grad_()
        steps = batches * config.passes
        inverse = config.lr_network + math.log(-math.expm1(-config.lr_network))  # of softplus
        raw = torch.full((steps,), inverse, device=problem.device).requires_grad_()
        capturable = has_graphs(problem.device)
        optimizer = optim.Adam([images, raw], config.lr_images, betas=BETAS, capturable=capturable)
        first = problem.backbone.init(problem.rng.fold("start", "network"), problem.device, copies=1)
        labels = self.labels(problem)[: len(images) // batches].to(problem.device).expand(steps, -1)
        train = descent(problem.backbone, first.copy(0))
        return DDState(images, raw, optimizer, first, train, labels)

    def draw(self, problem: Problem, state: DDState, rng: Rng) -> tuple[Variables, Tensor, Tensor | None, Tensor]:
        config = self.config
        rows = problem.real.epoch_indices(config.batch_real, state.step, problem.rng.fold("real"))
        crops = draw_crops(len(rows), rng.fold("crops")) if config.augment_real else None
        epoch = state.step // math.ceil(len(problem.train) / config.batch_real)
        lr = torch.tensor(config.lr_images * 0.5 ** (epoch // config.halve_every))
        if config.initial_network == "fixed":
            return state.first, rows, crops, lr
        fresh = problem.backbone.init(rng.fold("networks"), problem.device, config.networks, on_device=True)
        return fresh, rows, crops, lr

    def update(
        self, problem: Problem, state: DDState, networks: Variables, rows: Tensor, crops: Tensor | None, lr: Tensor
    ) -> Metrics:
        config, batches = self.config, self.batches(problem)
        x, y = problem.real.take(rows), problem.real.labels.index_select(0, rows)
        x = x if crops is None else crop(x, crops)

        losses = []
        state.optimizer.zero_grad()
        for k in range(config.networks):
            network = networks.copy(k)
            seen = state.images.unflatten(0, (batches, -1)).repeat(config.passes, 1, 1, 1, 1)
            trained = state.train(network.params, seen, state.labels, F.softplus(state.raw))
            loss = network_loss(problem.backbone, Variables(trained, network.buffers), x, y) / config.networks
            loss.backward()
            losses.append(loss.detach())
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        return {"loss": torch.stack(losses).sum(), "lr": F.softplus(state.raw.detach()).mean()}

    def export(self, problem: Problem, state: DDState) -> SyntheticSet:
        schedule = torch.arange(len(state.images)).unflatten(0, (self.batches(problem), -1))
        fixed = state.first.copy(0).params if self.config.initial_network == "fixed" else {}
        return SyntheticSet(
            state.images.detach().cpu().clone(),
            self.labels(problem),
            Recipe(lr=F.softplus(state.raw.detach()).cpu(), schedule=schedule.repeat(self.config.passes, 1)),
            start={name: value.cpu().clone() for name, value in fixed.items()},
        )

    def check(self, problem: Problem) -> None:
        """Raises: ConfigError where the network or the options cannot be used."""
        if not problem.backbone.per_sample:
            raise ConfigError(
                f"dd treats training as a function of parameters, and {problem.backbone.name} has batch norm, whose "
                "running statistics it would miss. Use a backbone without, such as convnet or lenet."
            )
        if self.config.initial_network == "fixed" and self.config.networks > 1:
            raise ConfigError(
                f"dd: networks is {self.config.networks}, and with initial_network=fixed there is only one. Leave "
                "networks out, or use initial_network=random."
            )

    def batches(self, problem: Problem) -> int:
        """M, in how many batches the images are seen. Raises: ConfigError where they do not divide ipc."""
        if self.config.batches is None:
            return max(m for m in range(1, MOST_BATCHES + 1) if problem.ipc % m == 0)
        if problem.ipc % self.config.batches:
            raise ConfigError(
                f"dd: batches is {self.config.batches}, which does not divide ipc {problem.ipc}, and every batch holds "
                f"as many images of each class. Give a divisor of {problem.ipc}, or leave batches out."
            )
        return self.config.batches

    def labels(self, problem: Problem) -> Tensor:
        """int64 [N] on the host, in the order of the images."""
        batches = self.batches(problem)
        return problem.class_labels().unflatten(0, (problem.classes, batches, -1)).transpose(0, 1).flatten()
