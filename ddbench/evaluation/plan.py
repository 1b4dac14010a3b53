"""A set and a protocol become a training plan: which images, which step size, which targets, at each step.

The only reader of `Recipe` beside the trainer `replay`. A plan is drawn on the host from the students' own generators,
so that a student is the same whoever made the set, on whichever device it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.backbones.backbone import Backbone
from ddbench.engine.augment import Draw, draw_many, join, resolve_strategy
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, DataError
from ddbench.evaluation.protocol import PROTOCOLS, Protocol, SGDOptions
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet

# A block of this many images is drawn at once: large enough that drawing costs nothing beside training, small enough
# for a whole dataset. Part of the definition of a student: another value gives other draws.
BLOCK_IMAGES = 1 << 16

# What the network is called here that DC's code calls ConvNetBN, at whatever size of images.
CONVNET_BN = "convnet-d3-bn"


Criterion = Callable[[Tensor, Tensor], Tensor]
"""The loss of a batch, from logits [B, K] and targets [B] or [B, ...]. It outlives its plan in compiled steps, so that
it must not hold it; equal ones compare as equal."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of S students in lockstep.

    Shapes: indices [S, B]; transform maps images [S, B, C, H, W] to the same. `restart` drops the momentum before the
    step. `rng` depends on the step alone, not on the student. Whatever a transform and its targets must draw alike
    (CutMix mixes both) each draws from it, and so finds the same.
    """

    indices: Tensor
    lr: float
    restart: bool
    transform: Callable[[Tensor], Tensor]
    rng: Rng


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of T steps for S students, all drawn at once.

    Shapes: indices [S, T, B]; step t uses the first sizes[t] of B. draw has S * T groups, or is None. lrs and restarts
    have T entries. first is the number of the first step. rngs are the S students' own.
    """

    indices: Tensor
    sizes: tuple[int, ...]
    draw: Draw | None
    lrs: tuple[float, ...]
    restarts: tuple[bool, ...]
    first: int
    rng: Rng
    rngs: tuple[Rng, ...]
    legacy: Callable[[Tensor, Rng], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> Block:
        """The same block with its draws on a device: one copy for all its steps."""
        draw = self.draw.to(device) if self.draw is not None else None
        return replace(self, indices=self.indices.to(device, non_blocking=True), draw=draw)

    def steps(self) -> Iterator[Step]:
        """The steps one by one."""
        for t, size in enumerate(self.sizes):
            yield Step(
                self.indices[:, t, :size], self.lrs[t], self.restarts[t], self._transform(t), self.rng.fold("step", t)
            )

    def _transform(self, t: int) -> Callable[[Tensor], Tensor]:
        if self.draw is not None:
            return self.draw[t :: len(self)]
        if self.legacy is not None:
            legacy, rngs = self.legacy, [rng.fold("augment", t) for rng in self.rngs]
            return lambda images: torch.stack([legacy(x, rng) for x, rng in zip(images, rngs, strict=True)])
        return _same


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All that training a student needs, besides the student.

    Shapes: images [N, C, H, W] on the device, in the pixel space or raw uint8; labels [N] int64, or [N, K] soft.
    """

    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    options: SGDOptions
    strategy: str
    legacy: str
    epochs: int
    rng: Rng
    criterion: Criterion = field(default=F.cross_entropy, kw_only=True)

    @property
    def steps_per_epoch(self) -> int:
        if self.options.sampling == "subset":
            return 1  # a pass that ends after its first batch
        return math.ceil(len(self.images) / self.batch)

    @property
    def steps(self) -> int:
        """How many steps a student trains."""
        return self.options.steps or (self.epochs + 1) * self.steps_per_epoch

    @property
    def static(self) -> bool:
        """Whether every step is the same program on other numbers. A subclass with its own targets says so itself."""
        return self.legacy == "none" and type(self).targets is TrainingPlan.targets

    @property
    def batch(self) -> int:
        """Images in a full step."""
        assert self.options.batch is not None
        return min(self.options.batch, len(self.images))

    def take(self, indices: Tensor) -> Tensor:
        """Images of any index shape [...] as float32 [..., C, H, W] in the pixel space."""
        return self.forward(self.images[indices])

    def targets(self, x: Tensor, indices: Tensor, rng: Rng) -> Tensor:
        """The targets of augmented images x [S, B, ...]: [S, B] classes or [S, B, K] probabilities."""
        return self.labels[indices]

    def blocks(self, students: Sequence[int]) -> Iterator[Block]:
        """The whole training of the given students, drawn block by block."""
        per_epoch, total = self.steps_per_epoch, self.steps
        per_block = max(1, min(1024, BLOCK_IMAGES // len(self.images)))
        sizes = _sizes(len(self.images), self.batch)[:per_epoch]
        for number, first in enumerate(range(0, math.ceil(total / per_epoch), per_block)):
            rngs = [self.rng.fold("student", k, "block", number) for k in students]
            count = min(per_block, math.ceil(total / per_epoch) - first)
            start = first * per_epoch
            steps = min(count * per_epoch, total - start)
            yield Block(
                indices=torch.stack([self._orders(rng.fold("order"), per_block)[:steps] for rng in rngs]),
                sizes=(sizes * count)[:steps],
                draw=self._draws(rngs, per_block * per_epoch, steps),
                lrs=tuple(self.lr(start + t) for t in range(steps)),
                restarts=tuple(self._restarts(start + t) for t in range(steps)),
                first=start,
                rng=self.rng.fold("block", number),
                rngs=tuple(rngs),
                legacy=self._legacy(),
            )

    def lr(self, step: int) -> float:
        """The step size at a step."""
        options = self.options
        assert options.lr is not None
        match options.schedule:
            case "constant":
                return options.lr
            case "step":
                return options.lr * (0.1 if step >= self._drop else 1.0)
            case "cosine":
                rise = round(options.warmup * self.steps)
                if step < rise:
                    return options.lr * (step + 1) / rise
                done = (step - rise) / max(1, self.steps - rise)
                return options.lr * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def _drop(self) -> int:
        if self.options.steps:
            return self.options.steps // 2
        return (self.epochs // 2 + 2) * self.steps_per_epoch

    def _restarts(self, step: int) -> bool:
        return self.options.schedule == "step" and step == self._drop

    def _orders(self, rng: Rng, epochs: int) -> Tensor:
        """[epochs * steps_per_epoch, batch] indices: each epoch is a permutation, cut into batches."""
        n, batch = len(self.images), self.batch
        order = rng.numpy().permuted(np.broadcast_to(np.arange(n), (epochs, n)), axis=1)
        order = order[:, : self.steps_per_epoch * batch]
        short = self.steps_per_epoch * batch - order.shape[1]
        # A short last batch is filled up so that all steps have one shape; `sizes` says how much of it counts.
        padded = np.pad(order, ((0, 0), (0, short)), mode="edge") if short else order
        return torch.from_numpy(padded.reshape(epochs * self.steps_per_epoch, batch))

    def _draws(self, rngs: Sequence[Rng], drawn: int, used: int) -> Draw | None:
        if self.strategy == "none":
            return None
        corners = self.options.align_corners
        draws = [
            draw_many(self.strategy, drawn, self.batch, rng.fold("augment"), align_corners=corners) for rng in rngs
        ]
        return join([draw[:used] for draw in draws])

    def _legacy(self) -> Callable[[Tensor, Rng], Tensor] | None:
        if self.legacy == "none":
            return None
        from ddbench.engine.legacy_augment import legacy

        return lambda images, rng: legacy(self.legacy, images, rng)


def plan(synthetic: SyntheticSet, protocol: Protocol, problem: Problem, rng: Rng) -> TrainingPlan:
    """The training plan of a protocol whose trainer is `sgd`.

    Raises: ConfigError where the protocol asks for what the set does not have, DataError where the set does not fit
    the problem.
    """
    options = protocol.options
    fit(synthetic, problem)
    if options.lr is None:
        options = options.model_copy(update={"lr": _learned_lr(synthetic, protocol)})
    if options.epochs is None and options.steps is None:
        options = options.model_copy(update={"steps": _own(synthetic, "steps", protocol)})
    if options.batch is None:
        options = options.model_copy(update={"batch": _own(synthetic, "batch", protocol)})
    if options.lr_pixels is not None:
        share = options.lr_pixels / math.prod(problem.shape[1:])
        options = options.model_copy(update={"lr": options.lr * min(1.0, share)})
    strategy, legacy = _augment(protocol, problem)
    epochs = options.epochs or 0
    if legacy != "none" and options.epochs_augmented is not None:
        epochs = options.epochs_augmented
    images, labels = decode(synthetic.decode, synthetic.images, _labels(synthetic, protocol))
    images = images.to(problem.device)
    if images.dtype == torch.uint8 and not problem.pixels.cheap:
        images = problem.pixels.forward(images)  # once, and not at every step
    return TrainingPlan(
        images=images,
        labels=labels.to(problem.device),
        forward=problem.pixels.forward if images.dtype == torch.uint8 else _same,
        options=options,
        strategy=strategy,
        legacy=legacy,
        epochs=epochs,
        rng=rng,
    )


def fit(synthetic: SyntheticSet, problem: Problem) -> None:
    """Check that a set belongs to a problem. Raises: DataError saying what differs."""
    if tuple(synthetic.images.shape[1:]) != problem.shape:
        raise DataError(
            f"the set's images are {tuple(synthetic.images.shape[1:])} and those of {problem.info.name} are "
            f"{problem.shape}; it was made for another dataset or resolution."
        )
    classes = synthetic.labels.shape[1] if synthetic.soft else int(synthetic.labels.max()) + 1
    if classes > problem.classes or (synthetic.soft and classes != problem.classes):
        raise DataError(f"the set has labels for {classes} classes and {problem.info.name} has {problem.classes}.")
    if not synthetic.finite():
        raise DataError("the set holds numbers that are not finite; the run that made it has diverged.")
    if synthetic.pixels and synthetic.pixels != problem.pixels.name:
        raise DataError(
            f"the set lives in pixel space {synthetic.pixels} and is judged in {problem.pixels.name}; accuracies would "
            "be near chance. Judge it in its own."
        )


def _labels(synthetic: SyntheticSet, protocol: Protocol) -> Tensor:
    if protocol.labels == "hard" or not synthetic.soft:
        return synthetic.hard_labels
    match synthetic.label_kind:
        case "logit":
            return synthetic.labels.softmax(dim=1)
        case "probability":
            return synthetic.labels
        case _:
            raise ConfigError(
                f"protocol {protocol.id} trains on probabilities, and this set has {synthetic.label_kind} targets, "
                "which are none. Use a protocol with hard labels, such as dsa."
            )


def _learned_lr(synthetic: SyntheticSet, protocol: Protocol) -> float:
    lr = synthetic.recipe.lr
    if lr is None or lr.numel() != 1:
        raise ConfigError(
            f"protocol {protocol.id} trains with the set's own step size, and this set has "
            f"{'none' if lr is None else f'{lr.numel()} of them'}. Use a protocol with a fixed one, such as dsa."
        )
    if synthetic.recipe.optimizer != protocol.options.optimizer:
        raise ConfigError(
            f"the set's own step size is one of {synthetic.recipe.optimizer}, and protocol {protocol.id} trains with "
            f"{protocol.options.optimizer}. Use a protocol with a fixed step size, such as dsa."
        )
    if not float(lr) > 0:
        raise ConfigError(f"the set's learned step size is {float(lr)}; no student can train with it.")
    return float(lr)


def _own(synthetic: SyntheticSet, wish: Literal["steps", "batch"], protocol: Protocol) -> int:
    value: int | None = getattr(synthetic.recipe, wish)
    if value is None:
        missing = "neither epochs nor steps" if wish == "steps" else "no batch size"
        raise ConfigError(
            f"protocol {protocol.id} sets {missing} and takes the set's own number, and this set has none. Use a "
            "protocol with a fixed one, such as dsa."
        )
    if value < 1:
        raise ConfigError(f"the set asks for {value} as its recipe's {wish}; no student can train with it.")
    return value


def _augment(protocol: Protocol, problem: Problem) -> tuple[str, str]:
    """DiffAugment strategy and legacy strategy; at most one of them is not "none"."""
    if protocol.augment not in ("dc", "dc@2"):
        return resolve_strategy(protocol.augment, problem.info.digits), "none"
    net, mnist = problem.backbone, problem.info.name == "mnist"
    # The code of DC and CAFE augments students that are its ConvNetBN, and those on MNIST; nothing else.
    found = "crop_noise" if net.name == CONVNET_BN else "crop_scale_rotate" if mnist else "none"
    if protocol.augment == "dc":
        _refuse_what_was_mistaken(protocol, net, found)
    return "none", found


def _refuse_what_was_mistaken(protocol: Protocol, net: Backbone, found: str) -> None:
    """Rule "dc" took every ConvNet with batch norm for ConvNetBN, and put scaled images of MNIST beside their place.

    Raises: ConfigError where it would train otherwise than "dc@2".
    """
    what = ""
    if net.name.startswith("convnet") and not net.per_sample and found != "crop_noise":
        what = f"{net.name} was augmented, and in DC's code only {CONVNET_BN} is"
    elif found == "crop_scale_rotate":
        what = "images of MNIST that it scaled were often one pixel beside their place"
    if what:
        instead = f"Use {protocol.name}@2" if protocol.id in PROTOCOLS else 'Use augment = "dc@2"'
        raise ConfigError(
            f"protocol {protocol.id} is kept for what was measured under it, where its augmentation is that of DC's "
            f"code. Here it is not: {what}. {instead} instead."
        )


def _sizes(n: int, batch: int) -> tuple[int, ...]:
    full, rest = divmod(n, batch)
    return (batch,) * full + ((rest,) if rest else ())


def _same(images: Tensor) -> Tensor:
    return images
