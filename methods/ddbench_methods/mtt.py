"""MTT: learn images and a step size with which a student goes where networks trained on the real data went.

Cazenavette, Wang, Torralba, Efros and Zhu, "Dataset Distillation by Matching Training Trajectories", CVPR 2022,
arXiv 2203.11932. Options add what two later papers changed. FTD, Du, Jiang, Tan, Zhou and Li, CVPR 2023,
arXiv 2211.11004: flat experts (`rho_experts`) and an average of the images (`ema`). TESLA, Cui, Wang, Si and Hsieh,
ICML 2023, arXiv 2211.10586: an approximate gradient (`grad`) and labels of the experts (`teacher_labels`).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, optim
from torch.nn.functional import one_hot

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
from ddbench.config import later
from ddbench.engine.augment import Draw, draw_many, resolve_strategy
from ddbench.engine.program import fusible, weights_laid_out
from ddbench.errors import DivergedError
from ddbench.initial import Initial, check_start, starting_images
from ddbench.training.experts import ExpertTrajectories, Trajectories, flatten, logits_of, unflatten
from ddbench.training.unroll import Descent, descent, exact_form


class MTTConfig(MethodConfig):
    """Options of MTT."""

    iterations: int = Field(5000, ge=0, description="Outer iterations; each follows one expert for a while.")
    inner_steps: int = Field(30, ge=1, description="Student steps on the synthetic set in an iteration.")
    expert_span: int = Field(2, ge=1, description="Epochs of the expert that the student has to match.")
    start_epochs: int = Field(20, ge=1, description="An expert is followed from an epoch below this one.")
    batch_syn: int | None = Field(None, ge=1, description="Synthetic images per student step. none: all of them.")
    lr_images: float = Field(1000.0, gt=0, description="SGD step size on synthetic pixels.")
    lr_lr: float = Field(1e-5, gt=0, description="SGD step size on the student's step size.")
    lr_network: float = Field(0.01, gt=0, description="What the student's step size starts from.")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on pixels and step size.")
    augment: str = Field("auto", description="Augmentation of experts and students; 'auto' fits the dataset.")
    initial: Initial = Field("real", description="What the synthetic images start from: real, noise, or a saved set.")
    experts: int = Field(100, ge=1, description="Networks trained on the real data.")
    lr_experts: float = Field(0.01, gt=0, description="Step size of their training.")
    experts_seed: int = Field(0, ge=0, description="Seed of the experts, which runs of all seeds share.")
    grad: Literal["auto", "adjoint", "full", "tesla"] = Field(
        "auto",
        description="adjoint: exact, with the memory of one step. full: exact, by the graph of all steps. auto: "
        "adjoint where kernels of ddbench make it faster, else full where that fits. tesla: an approximation, which "
        "drops how later parameters depend on earlier images.",
    )  # fmt: skip
    rho_experts: float = later(
        0.0, ge=0, description="How far their training looks for a higher loss (FTD: 0.01). 0: plain SGD."
    )
    alpha_experts: float = later(
        0.0, ge=0, description="How much it avoids what lowers the loss here and not there (FTD: 0.3 or 1); with rho."
    )
    ema: float = later(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the images that becomes the set (FTD). 0: the last.",
    )
    threshold: float | None = later(
        None, gt=0, description="An iteration whose loss is above this one changes nothing (DATM: 1). none: all do."
    )
    teacher_labels: bool = later(
        False,
        description="Whether each iteration gives images the labels that the expert gives them where the student has "
        "to arrive (TESLA).",
    )


@dataclass
class MTTState(State):
    """Shapes: images [K * ipc, C, H, W], class by class; lr [], the student's step size.

    `student` is training as a function that can be differentiated, of parameters that are named and shaped as `like`,
    in a network with those `buffers`. `averages` are those of what is learned, where there are any; `assigned`
    [K * ipc, K] probabilities that an expert has given.
    """

    images: Tensor
    lr: Tensor
    optimizer: optim.Optimizer
    experts: Trajectories = transient()
    student: Descent = transient()
    like: Mapping[str, Tensor] = transient()
    labels: Tensor = transient()
    buffers: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True, metadata={"saved": False})
    averages: list[Tensor] = field(default_factory=list, kw_only=True)
    assigned: Tensor | None = field(default=None, kw_only=True)

    def targets(self) -> Tensor:
        """What students learn of the images: classes [K * ipc], or probabilities [K * ipc, K]."""
        return self.labels if self.assigned is None else self.assigned

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        # Checkpoints from before these were there are of runs without them.
        super().load_state_dict({"averages": [], "assigned": None, **saved})

    def learned(self) -> list[Tensor]:
        """What belongs to images and is learned, images first."""
        return [self.images]

    def exported(self) -> list[Tensor]:
        """The same as the set has it, on the host: the averages where there are any."""
        return [value.detach().cpu().clone() for value in self.averages or self.learned()]

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Let the averages follow what is learned, as they do after each iteration."""
        for average, value in zip(self.averages, self.learned(), strict=bool(self.averages)):
            average.lerp_(value, 1 - decay)


class MTT(Method[MTTState]):
    """Matching of training trajectories."""

    name = "mtt"
    info = MethodInfo(
        title="Matching Training Trajectories",
        venue="CVPR",
        year=2022,
        arxiv="2203.11932",
        learns=("images", "step size"),
        native="mtt@1",
        advice="The step size lr is learned and must stay positive; log_lr is its logarithm. "
        "Smaller values usually help: --set lr_lr=..., --set lr_images=...; and so does --set threshold=1.2, by which "
        "inner loops that diverge are left out",
        memory_advice="--set grad=adjoint needs the memory of one inner step, --set batch_syn=100 that of 100 images",
    )
    Config = MTTConfig
    config: MTTConfig

    @property
    def native(self) -> str:
        # The same students, on soft labels.
        return "datm@1" if self.config.teacher_labels else self.info.native

    def prepare(self, problem: Problem) -> None:
        check_start(self.config.initial, problem)  # before the experts, which may take hours
        self.experts(problem)

    def start(self, problem: Problem) -> MTTState:
        return self.begin(problem, starting_images(self.config.initial, problem, problem.rng.fold("start")))

    def begin(self, problem: Problem, images: Tensor) -> MTTState:
        """The state before the first step, from the images [K * ipc, C, H, W]."""
        config, experts = self.config, self.experts(problem)
        images.requires_grad_()
        lr = torch.tensor(config.lr_network, device=problem.device).requires_grad_()
        optimizer = optim.SGD(
            [{"params": [images], "lr": config.lr_images}, {"params": [lr], "lr": config.lr_lr}],
            momentum=config.momentum,
        )
        network = problem.backbone.init(Rng(0), problem.device)
        form = config.grad
        if form == "auto":
            form = exact_form(problem.backbone, network, sum(self.sizes(len(images))))
        student = descent(problem.backbone, network, form)
        labels = problem.class_labels().to(problem.device)
        state = MTTState(images, lr, optimizer, experts, student, network.params, labels, buffers=network.buffers)
        if config.ema:
            state.averages = [images.detach().clone()]
        if config.teacher_labels:
            state.assigned = one_hot(labels.long(), problem.classes).float()
        return state

    def draw(self, problem: Problem, state: MTTState, rng: Rng) -> tuple[Tensor, Tensor, Tensor, Draw | None]:
        config, drawn = self.config, rng.fold("expert").numpy()
        expert, epoch = int(drawn.integers(config.experts)), self.start_epoch(state.step, drawn)
        start, target = (state.experts.params(expert, at) for at in (epoch, epoch + config.expert_span))
        rows, view = self.rows(len(state.images), rng.fold("rows")), None
        strategy = resolve_strategy(config.augment, problem.info.digits)
        if strategy != "none":
            view = draw_many(strategy, len(rows), rows.shape[1], rng.fold("views"), align_corners=True)
        return start, target, rows, view

    def update(
        self, problem: Problem, state: MTTState, start: Tensor, target: Tensor, rows: Tensor, view: Draw | None
    ) -> Metrics:
        if state.assigned is not None:
            expert = Variables(unflatten(target, state.like), dict(state.buffers))
            state.assigned.copy_(logits_of(problem, expert, state.images).softmax(dim=1))
        loss = mismatch(state, start, target, rows, view, self.sizes(len(state.images)))
        state.optimizer.zero_grad()
        loss.backward()
        told = {}
        if self.config.threshold is None:
            state.optimizer.step()
        else:
            near = loss.detach() <= self.config.threshold
            step_where(near, state.optimizer)
            told["taken"] = near.float()
        state.average(self.config.ema)
        lr = state.lr.detach().clone()
        # Not a number where the step size is not positive, which stops the run.
        return {"loss": loss.detach(), "lr": lr, "log_lr": lr.log(), **told}

    def export(self, problem: Problem, state: MTTState) -> SyntheticSet:
        """Raises: DivergedError where the step size is not positive."""
        lr = state.lr.detach().cpu().clone()
        if not float(lr) > 0:
            raise DivergedError(f"the learned step size became {float(lr):.3g}; no student can train with it.")
        images, *_ = state.exported()
        if state.assigned is None:
            return SyntheticSet(images, problem.class_labels(), Recipe(lr=lr))
        return SyntheticSet(images, state.assigned.cpu().clone(), Recipe(lr=lr), label_kind="probability")

    def start_epoch(self, step: int, drawn: np.random.Generator) -> int:
        """The epoch from which an expert is followed at a step."""
        return int(drawn.integers(self.config.start_epochs))

    def experts(self, problem: Problem) -> Trajectories:
        """The networks that students follow, as far as they are followed."""
        config = self.config
        return self.trained(problem, config.experts, config.start_epochs - 1 + config.expert_span)

    def trained(self, problem: Problem, count: int, epochs: int) -> Trajectories:
        """The first networks trained on the real data, which are made where they are missing."""
        config = self.config
        wanted = ExpertTrajectories.of(
            problem,
            experts=count,
            epochs=epochs,
            lr=config.lr_experts,
            augment=config.augment,
            seed=config.experts_seed,
            rho=config.rho_experts,
            alpha=config.alpha_experts,
        )
        return problem.artifacts.get(wanted, problem)

    def sizes(self, n: int) -> list[int]:
        """Images in each student step. A batch smaller than the others comes first in its pass, as in the authors'
        code."""
        batch = min(n, self.config.batch_syn or n)
        one_pass = ([n % batch] if n % batch else []) + [batch] * (n // batch)
        return list(itertools.islice(itertools.cycle(one_pass), self.config.inner_steps))

    def rows(self, n: int, rng: Rng) -> Tensor:
        """int64 [N, B]: which images each student step sees, in passes over all n without repeats. Short rows are
        filled up; `sizes` says how much of them counts."""
        batch = min(n, self.config.batch_syn or n)
        first, filling = n % batch, -n % batch
        generator, passes = rng.torch(), math.ceil(self.config.inner_steps / math.ceil(n / batch))
        orders = [torch.randperm(n, generator=generator) for _ in range(passes)]
        filled = [torch.cat([order[:first], order.new_zeros(filling), order[first:]]) for order in orders]
        return torch.cat(filled).unflatten(0, (-1, batch))[: self.config.inner_steps]


def mismatch(
    state: MTTState, start: Tensor, target: Tensor, rows: Tensor, view: Draw | None, sizes: Sequence[int]
) -> Tensor:
    """|θ̂_N - θ*_{t+M}|² / |θ*_t - θ*_{t+M}|²: 0 where the student arrives, 1 where it stays.

    Shapes: θ* `start` and `target` [P]; rows [N, B], of which step n uses the first sizes[n]; the augmentation has N
    groups of B, or is None.
    Source: Cazenavette et al., CVPR 2022, equation 2.
    """
    # All augmentations at once: few kernels, and no memory to speak of beside the networks' activations.
    x, y = seen(state.images, rows, view), state.targets()[rows]
    # Copies, because compilers refuse forward derivatives at views.
    origin = {name: weights_laid_out(value.clone()) for name, value in unflatten(start, state.like).items()}
    reached = flatten(state.student(origin, x, y, state.lr.expand(len(rows)), sizes))
    return (reached - target).square().sum() / (start - target).square().sum()


@fusible
def seen(images: Tensor, rows: Tensor, view: Draw | None) -> Tensor:
    """[n, C, H, W] -> [N, B, C, H, W]: what each student step sees."""
    x = images.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return x if view is None else view(x)


@torch.no_grad()
def step_where(wanted: Tensor, optimizer: optim.Optimizer) -> None:
    """Take a step of SGD if the scalar `wanted` says so, else leave parameters and momenta as they are; nothing waits
    for the device to know."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    momentum = [optimizer.state[param].get("momentum_buffer") for param in params]
    before = [(param.clone(), None if v is None else v.clone()) for param, v in zip(params, momentum, strict=True)]
    optimizer.step()
    for param, (value, velocity) in zip(params, before, strict=True):
        param.copy_(torch.where(wanted, param, value))
        moved = optimizer.state[param].get("momentum_buffer")
        if moved is not None:  # there is none without momentum
            moved.copy_(torch.where(wanted, moved, torch.zeros_like(moved) if velocity is None else velocity))
