"""DD: learn images and step sizes by differentiating through the training of a network.

Wang, Zhu, Torralba and Efros, "Dataset Distillation", arXiv 1811.10959.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
from ddbench.engine.crop import crop, draw_crops
from ddbench.engine.program import Fuse, Program, channels_last
from ddbench.errors import ConfigError
from ddbench.initial import INITIALS
from ddbench.training.unroll import Descent, written_out

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
    initial: Literal["real", "noise"] = Field("noise", description="What the synthetic images start from.")


@dataclass
class DDState(State):
    """Shapes: images [N, C, H, W], batch by batch, in each class by class; raw [T], step sizes before softplus.

    `first` is the one network of a fixed initialisation.
    """

    images: Tensor
    raw: Tensor
    optimizer: optim.Optimizer
    first: Variables = transient()
    programs: dict[int, Program] = transient()


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
        images = problem.by_class(INITIALS[config.initial](problem, problem.rng.fold("start")))
        images = images.unflatten(1, (batches, -1)).transpose(0, 1).flatten(0, 2).requires_grad_()
        steps = batches * config.passes
        inverse = config.lr_network + math.log(-math.expm1(-config.lr_network))  # of softplus
        raw = torch.full((steps,), inverse, device=problem.device).requires_grad_()
        on_gpu = problem.device.type == "cuda"
        optimizer = optim.Adam([images, raw], config.lr_images, betas=BETAS, capturable=on_gpu)
        first = problem.backbone.init(problem.rng.fold("start", "network"), problem.device, copies=1)
        labels = self.labels(problem)[: len(images) // batches].to(problem.device).expand(steps, -1)

        def make(fuse: Fuse[Any]) -> Callable[..., tuple[Tensor, Tensor]]:
            def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
                logits, _ = problem.backbone(Variables(params, first.copy(0).buffers), channels_last(x))
                return F.cross_entropy(logits.float(), y)

            written = written_out(problem.backbone, problem.device, fuse)
            train, test = Descent(loss, fuse, written=written), fuse(loss)

            def condense(networks: Variables, rows: Tensor, crops: Tensor | None, lr: Tensor) -> tuple[Tensor, Tensor]:
                x, y = problem.real.take(rows), problem.real.labels.index_select(0, rows)
                x = x if crops is None else crop(x, crops)
                optimizer.zero_grad()
                losses = []
                for k in range(config.networks):
                    seen = images.unflatten(0, (batches, -1)).repeat(config.passes, 1, 1, 1, 1)
                    trained = train(networks.copy(k).params, seen, labels, F.softplus(raw))
                    outer = test(trained, x, y) / config.networks
                    outer.backward()
                    losses.append(outer.detach())
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                return torch.stack(losses).sum(), F.softplus(raw.detach()).mean()

            return condense

        # The last batch of a pass has another shape, and so a program of its own.
        full, rest = divmod(len(problem.train), config.batch_real)
        share = config.iterations / (full + bool(rest))
        in_kernels = problem.backbone.second_order(problem.device) is not None
        programs = {
            size: Program(make, problem.device, calls=math.ceil(share * count), fused=in_kernels)
            for size, count in ((config.batch_real, full), (rest, 1))
            if size and count
        }
        return DDState(images, raw, optimizer, first, programs)

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

    def step(self, problem: Problem, state: DDState, rng: Rng) -> Metrics:
        config = self.config
        rows = problem.real.epoch_indices(config.batch_real, state.step, problem.rng.fold("real"))
        epoch = state.step // math.ceil(len(problem.train) / config.batch_real)
        lr = config.lr_images * 0.5 ** (epoch // config.halve_every)
        crops = draw_crops(len(rows), rng.fold("crops")) if config.augment_real else None
        networks = state.first
        if config.initial_network == "random":
            networks = problem.backbone.init(rng.fold("networks"), problem.device, config.networks, on_device=True)
        loss, mean_lr = state.programs[len(rows)](networks, rows, crops, torch.tensor(lr))
        return {"loss": loss, "lr": mean_lr}

    def export(self, problem: Problem, state: DDState) -> SyntheticSet:
        schedule = torch.arange(len(state.images)).unflatten(0, (self.batches(problem), -1))
        fixed = state.first.copy(0).params if self.config.initial_network == "fixed" else {}
        return SyntheticSet(
            state.images.detach().cpu().clone(),
            self.labels(problem),
            Recipe(lr=F.softplus(state.raw.detach()).cpu(), schedule=schedule.repeat(self.config.passes, 1)),
            start={name: value.cpu().clone() for name, value in fixed.items()},
        )
