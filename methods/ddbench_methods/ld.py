"""LD: fixed real images, learned soft labels.

Bohdal, Yang and Hospedales, "Flexible Dataset Distillation: Learn Labels Instead of Images", 2020, arXiv 2006.08572.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, optim
from torch.func import jvp

from ddbench import (
    Backbone,
    Method,
    MethodConfig,
    MethodInfo,
    Metrics,
    Problem,
    Recipe,
    Rng,
    Selection,
    State,
    SyntheticSet,
    Variables,
    transient,
)
from ddbench.engine.capabilities import has_graphs, home_of_float64, in_float64
from ddbench.engine.program import channels_last, fusible
from ddbench.engine.regression import ridge_map, with_ones
from ddbench.errors import ConfigError
from ddbench.initial import real_indices

AVERAGED = 3
# More than any error, in per cent.
ABOVE = 101.0

Tensors = dict[str, Tensor]


class LDConfig(MethodConfig):
    """Options of LD."""

    variant: Literal["second-order", "ridge"] = Field(
        "second-order", description="Labels by the gradient through one step, or through a ridge regression head."
    )
    iterations: int = Field(17_600, ge=0, description="Label updates; each sees one batch of real images.")
    lr_labels: float = Field(1e-3, gt=0, description="Adam step size on labels.")
    lr_network: float = Field(1e-3, gt=0, description="Adam step size on the network.")
    lr_ahead: float = Field(0.01, gt=0, description="Step size of the SGD step that is looked ahead (second-order).")
    ridge: float = Field(1.0, gt=0, description="Regularisation of the head (ridge).")
    head_rate: float = Field(0.01, gt=0, le=1, description="Share of a new solution in the running head (ridge).")
    lr_scale: float = Field(0.01, gt=0, description="Adam step size on the factor of the head (ridge).")
    batch_real: int = Field(1024, ge=1, description="Real images per step; the last batch of a pass is what is left.")
    batch_base: int | None = Field(
        None, ge=1, description="Labelled images per step. none: half of them, but from 10 to 50."
    )
    window: int | None = Field(
        None, ge=1, description="Steps of the moving mean error. After more than as many without a better one the "
        "network is drawn anew. none: 200 for more than 100 images, else 50.",
    )  # fmt: skip


@dataclass
class LDState(State):
    """Shapes: rows [n] of the training set; labels [n, K]; head: weight [D + 1, K] and scale [], none if second-order.

    recent: errors [w] are the last ones of this network, in per cent; lowest is the least sum of w of them so far,
    since counts the steps after it, taken all of this network.
    drawn is the step at which this network was drawn, due the first at which it may have to be drawn anew, lengths
    those of the last restarts.
    """

    rows: Tensor
    labels: Tensor
    label_optimizer: optim.Optimizer
    network: Variables
    head: Tensors
    network_optimizer: optim.Optimizer
    recent: Tensors
    drawn: int
    due: int
    lengths: list[int]
    images: Tensor = transient()


class LD(Method[LDState]):
    """Label distillation."""

    name = "ld"
    info = MethodInfo(
        title="Label Distillation",
        venue="NeurIPS workshop",
        year=2020,
        arxiv="2006.08572",
        learns=("labels",),
        native="ld@1",
        advice="A smaller step size usually helps: --set lr_network=1e-4",
    )
    Config = LDConfig
    config: LDConfig
    # As in the paper: after every fifth pass one new network decides on a tenth of the images.
    selection = Selection(on=True, heldout=0.1, every="5p", students=1, fresh=True)

    def prepare(self, problem: Problem) -> None:
        if self.config.variant == "ridge" and not problem.backbone.per_sample:
            raise ConfigError(
                f"variant=ridge solves for a head on embeddings that batch norm would change from batch to batch, and "
                f"{problem.backbone.name} has batch norm. Use another backbone, or variant=second-order."
            )

    def start(self, problem: Problem) -> LDState:
        config, device, rng = self.config, problem.device, problem.rng.fold("start")
        # From all training images, as in the paper, be some of them held out.
        rows = real_indices(problem.whole, rng.fold("base")).flatten()
        images = problem.pixels.forward(problem.whole.train.images[rows].to(device))
        labels = torch.full((len(rows), problem.classes), 1 / problem.classes, dtype=images.dtype, device=device)
        network = problem.backbone.init(rng.fold("network"), device).clone()
        for value in network.params.values():
            value.requires_grad_()
        groups: list[dict[str, Any]] = [{"params": list(network.params.values()), "lr": config.lr_network}]
        head: Tensors = {}
        if config.variant == "ridge":
            width = problem.backbone.embed(network, images[:1]).shape[1] + 1
            scale = labels.new_ones(()).requires_grad_()
            head = {"weight": labels.new_zeros(width, problem.classes), "scale": scale}
            groups.append({"params": [scale], "lr": config.lr_scale})
        # Without this flag Adam counts its steps on the host, where a graph does not see them.
        capturable = has_graphs(device)
        window, home = self.window_for(len(rows)), home_of_float64(device)
        return LDState(
            rows=rows,
            labels=labels,
            label_optimizer=optim.Adam([labels], config.lr_labels, capturable=capturable),
            network=network,
            head=head,
            network_optimizer=optim.Adam(groups, capturable=capturable),
            recent={
                "errors": torch.zeros(window, dtype=torch.float64, device=home),
                "lowest": torch.full((), ABOVE * window, dtype=torch.float64, device=home),
                "since": torch.zeros((), dtype=torch.int64, device=home),
                "taken": torch.zeros((), dtype=torch.int64, device=home),
            },
            drawn=0,
            due=earliest(window),
            lengths=[],
            images=images,
        )

    def step(self, problem: Problem, state: LDState, rng: Rng) -> Metrics:
        metrics, done = super().step(problem, state, rng), state.step + 1
        # The counter of the restart rule grows by one a step at most, so that there is a step before which it need not
        # be looked at; reading it every time would make the host wait for the device in every step.
        if done >= state.due:
            self.restart_if_settled(problem, state, rng.fold("network"), done)
        return metrics

    def draw(self, problem: Problem, state: LDState, rng: Rng) -> tuple[Tensor, Tensor]:
        """Rows of the base images, and of the real ones."""
        n, real = len(state.rows), problem.real
        base = torch.randperm(n, generator=rng.fold("base").torch())[: self.batch_for(n)]
        return base, real.epoch_indices(self.config.batch_real, state.step, problem.rng.fold("real"))

    def update(self, problem: Problem, state: LDState, base: Tensor, rows: Tensor) -> Metrics:
        real = problem.real
        x, y = state.images.index_select(0, base), real.labels.index_select(0, rows)
        step = self.look_ahead if self.config.variant == "second-order" else self.ridge
        loss, error = step(problem, state, base, x, real.take(rows), y)
        with torch.no_grad():
            note(state, error)
        return {"loss": loss, "error": error}

    def look_ahead(
        self, problem: Problem, state: LDState, base: Tensor, x: Tensor, real: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Labels by the gradient through one SGD step of the network.

        The inner loss is linear in the labels, so that their gradient is a directional derivative of log-probabilities,
        along the outer gradient, and no graph has to be differentiated twice.
        """
        net, network, lr = problem.backbone, state.network, self.config.lr_ahead
        loss, buffers = inner_loss(net, network, x, state.labels.index_select(0, base))
        slopes = torch.autograd.grad(loss, list(network.params.values()))
        ahead = Variables(
            {
                name: (value.detach() - lr * slope).requires_grad_()
                for (name, value), slope in zip(network.params.items(), slopes, strict=True)
            },
            {name: value.detach() for name, value in buffers.items()},
        )
        target, missed = outer_loss(net, ahead, real, y)
        direction = torch.autograd.grad(target, list(ahead.params.values()))
        with torch.no_grad():
            # Not every layer has a forward derivative in short precision, and these are few images.
            with torch.autocast(problem.device.type, enabled=False):
                slope = along(net, network.detach(), dict(zip(network.params, direction, strict=True)), x)
            move_labels(state, base, slope * (lr / len(base)))
            for name, value in buffers.items():
                network.buffers[name].copy_(value)
            move_network(state, slopes)
        return target.detach(), in_float64(missed) / len(y)

    def ridge(
        self, problem: Problem, state: LDState, base: Tensor, x: Tensor, real: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Labels by the gradient through a running head, into which ridge regression on embeddings is mixed.

        The head is linear in the labels, so that one solution gives both the head and the gradient.
        """
        config, weight, scale = self.config, state.head["weight"], state.head["scale"]
        inside = embed(problem.backbone, state.network, x)
        solution = ridge_map(inside, config.ridge)
        # The network learns through the solution too, which is one of labels before this update.
        local = solution.T @ in_float64(state.labels.index_select(0, base))
        mixed = weight.lerp(local.to(weight), config.head_rate)
        with torch.no_grad():
            outside = embed(problem.backbone, state.network, real)
            weight.copy_(mixed)
        head = (scale * mixed).detach().requires_grad_()
        logits = outside @ head
        target = F.cross_entropy(logits, y)
        (slope,) = torch.autograd.grad(target, head)
        with torch.no_grad():
            slope = in_float64(config.head_rate * scale) * (solution @ in_float64(slope))
            move_labels(state, base, slope.to(state.labels))
        loss = F.cross_entropy(inside @ (scale * mixed), state.labels.index_select(0, base))
        # The last layer of the network takes no part: zero gradients leave it where it is.
        moved = [*state.network.params.values(), scale]
        slopes = torch.autograd.grad(loss, moved, materialize_grads=True)
        with torch.no_grad():
            move_network(state, slopes)
        return target.detach(), in_float64(misses(logits, y)) / len(y)

    def restart_if_settled(self, problem: Problem, state: LDState, rng: Rng, done: int) -> None:
        """Draw a fresh network once the mean error has had no new minimum for a whole window of steps and one more."""
        window, since = len(state.recent["errors"]), int(state.recent["since"])
        if since <= window:
            state.due = done + window + 1 - since
            return
        state.lengths = [*state.lengths, done - state.drawn - since][-AVERAGED:]
        state.drawn, state.due = done, done + earliest(window)
        fresh = problem.backbone.init(rng, problem.device)
        with torch.no_grad():
            for old, new in ((state.network.params, fresh.params), (state.network.buffers, fresh.buffers)):
                for name, value in new.items():
                    old[name].copy_(value)
            for moments in state.network_optimizer.state.values():
                for value in moments.values():
                    value.zero_()
            if state.head:
                state.head["weight"].zero_()
                state.head["scale"].fill_(1)
            state.recent["lowest"].fill_(ABOVE * window)
            state.recent["since"].zero_()
            state.recent["taken"].zero_()

    def length(self, state: LDState, done: int) -> int:
        """How long a network should train: the mean of the last restarts without its fraction, as in the authors' code,
        or the age of the first network."""
        return int(mean(state.lengths)) if state.lengths else done - state.drawn

    def export(self, problem: Problem, state: LDState) -> SyntheticSet:
        """The base images with these labels, and how long to train on them."""
        steps = max(1, self.length(state, state.step))
        lr = torch.tensor(self.config.lr_network)
        return SyntheticSet(
            problem.whole.train.images[state.rows].clone(),
            state.labels.float().cpu().clone(),
            recipe=Recipe(optimizer="adam", lr=lr, steps=steps, batch=self.batch_for(len(state.labels))),
            label_kind="probability",
            source_indices=state.rows.clone(),
        )

    @property
    def native(self) -> str:
        return "ld@1" if self.config.variant == "second-order" else "ld-ridge@2"

    def steps_per_pass(self, problem: Problem) -> int:
        return -(-len(problem.train) // self.config.batch_real)

    def batch_for(self, n: int) -> int:
        """Labelled images per step."""
        return min(n, self.config.batch_base or min(50, max(10, n // 2)))

    def window_for(self, n: int) -> int:
        """Steps in the moving mean of the restart rule."""
        return self.config.window or (200 if n > 100 else 50)


@fusible
def inner_loss(net: Backbone, network: Variables, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
    """The loss of the base images on their labels, and the buffers after them."""
    logits, buffers = net(network, channels_last(x))
    return F.cross_entropy(logits, y), buffers


@fusible
def outer_loss(net: Backbone, network: Variables, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of real images, and how many are classified wrongly."""
    logits, _ = net(network, channels_last(x))
    return F.cross_entropy(logits, y), misses(logits, y)


@fusible
def along(net: Backbone, network: Variables, direction: Tensors, x: Tensor) -> Tensor:
    """[B, K]: how fast the log-probabilities change as the parameters go along a direction."""

    def log_probabilities(params: Tensors) -> Tensor:
        logits, _ = net(Variables(params, network.buffers), channels_last(x))
        return logits.log_softmax(dim=1, dtype=x.dtype)

    slope: Tensor = jvp(log_probabilities, (network.params,), (direction,))[1]
    return slope


@fusible
def embed(net: Backbone, network: Variables, x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, D + 1]."""
    return with_ones(net.embed(network, channels_last(x)))


def earliest(window: int) -> int:
    """The first step at which a network may have to be drawn anew: its first mean is one of `window` steps, and as many
    and one more without a better one must follow."""
    return 2 * window + 1


def misses(logits: Tensor, classes: Tensor) -> Tensor:
    """How many of a batch are classified wrongly."""
    return (logits.argmax(dim=1) != classes).sum()


def project(labels: Tensor) -> Tensor:
    """Rows clipped to [0, 1] and divided by their sum; a row of which nothing is left becomes uniform."""
    labels = labels.clamp(0, 1)
    total = labels.sum(dim=1, keepdim=True)
    return torch.where(total > 0, labels / total, 1 / labels.shape[1])


def move_labels(state: LDState, chosen: Tensor, slope: Tensor) -> None:
    """An Adam step on all labels, those without a gradient too: their moments still move them."""
    state.labels.grad = torch.zeros_like(state.labels).index_copy_(0, chosen, slope)
    state.label_optimizer.step()
    state.labels.copy_(project(state.labels))


def move_network(state: LDState, slopes: Sequence[Tensor]) -> None:
    """An Adam step on the network, and on the factor of its head."""
    moved = [value for group in state.network_optimizer.param_groups for value in group["params"]]
    for value, slope in zip(moved, slopes, strict=True):
        value.grad = slope
    state.network_optimizer.step()


def note(state: LDState, error: Tensor) -> None:
    """Take one more error, a fraction, into the moving sum of the restart rule."""
    recent = state.recent
    errors, lowest, since, taken = (recent[name] for name in ("errors", "lowest", "since", "taken"))
    # Of numbers this short the sum in float64 is exact, so that a tie is one in whichever order they lie.
    errors.index_copy_(0, (taken % len(errors)).view(1), (100 * error).float().double().view(1))
    taken.add_(1)
    total, full = errors.sum(), taken >= len(errors)
    better = full & (total < lowest)
    lowest.copy_(torch.where(better, total, lowest))
    since.copy_(torch.where(full & ~better, since + 1, 0))
