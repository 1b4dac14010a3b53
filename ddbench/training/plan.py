"""What training a network on images is: steps drawn block by block, for many networks in lockstep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.engine.augment import Draw, draw_many, join, one_after_another
from ddbench.engine.capabilities import pins
from ddbench.engine.mixing import Mix, flip_crop_mix, shuffle_crop_flip_mix
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.training.options import SGDOptions

# A block of this many images is drawn at once: large enough that drawing costs nothing beside training, small enough
# for a whole dataset. Part of the definition of a student: another value gives other draws.
BLOCK_IMAGES = 1 << 16

MIXINGS = {"mixing": flip_crop_mix, "mixing@2": shuffle_crop_flip_mix}
"""The augmentation of RDED, whose images only a teacher can label: an earlier reading of it, and that of its code. On
images that are no mosaics both are the same."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""The loss of a batch, from logits [B, K] and targets [B] or [B, ...]. It outlives its plan in compiled steps, so that
it must not hold it; equal ones compare as equal."""


Labeller = Callable[[Tensor, Tensor], Tensor]
"""Targets of augmented images [S, B, C, H, W], given their labels [S, B] or [S, B, K]: what a teacher says of them."""


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

    Shapes: indices [S, T, B]; step t uses the first sizes[t] of B. Each of `draws`, which apply one after another, has
    S * T groups. lrs and restarts have T entries. first is the number of the first step, and `before` says how many
    steps of what was drawn at once come before it. rngs are the S students' own.
    """

    indices: Tensor
    sizes: tuple[int, ...]
    draws: tuple[Draw, ...]
    lrs: tuple[float, ...]
    restarts: tuple[bool, ...]
    first: int
    rng: Rng
    rngs: tuple[Rng, ...]
    legacy: Callable[[Tensor, Rng], Tensor] | None = None
    before: int = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> Block:
        """The block with its draws on a device: one copy for all its steps."""
        draws = tuple(draw.to(device) for draw in self.draws)
        return replace(self, indices=self.indices.to(device, non_blocking=pins(device)), draws=draws)

    def steps(self) -> Iterator[Step]:
        """The steps one by one."""
        for t, size in enumerate(self.sizes):
            yield Step(self.indices[:, t, :size], self.lrs[t], self.restarts[t], self._transform(t), self.rng_at(t))

    def rng_at(self, t: int) -> Rng:
        """Where step t draws what its students share."""
        return self.rng.fold("step", self.before + t)

    def epochs(self, steps: int) -> Iterator[Block]:
        """Parts of so many steps each, which see what the whole block does."""
        students = len(self.indices)
        for first in range(0, len(self), steps):
            some = slice(first, first + steps)
            draws = []
            for draw in self.draws:
                ops, numbers = (value.unflatten(0, (students, -1))[:, some] for value in (draw.ops, draw.numbers))
                draws.append(replace(draw, ops=ops.flatten(), numbers=numbers.flatten(0, 1)))
            yield replace(
                self,
                indices=self.indices[:, some],
                sizes=self.sizes[some],
                draws=tuple(draws),
                lrs=self.lrs[some],
                restarts=self.restarts[some],
                first=self.first + first,
                before=self.before + first,
            )

    def _transform(self, t: int) -> Callable[[Tensor], Tensor]:
        if self.draws:
            return partial(_augmented, [draw[t :: len(self)] for draw in self.draws])
        if self.legacy is not None:
            legacy, rngs = self.legacy, [rng.fold("augment", self.before + t) for rng in self.rngs]
            return lambda images: torch.stack([legacy(x, rng) for x, rng in zip(images, rngs, strict=True)])
        return unchanged


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All that training a student needs, besides the student.

    `strategy` is one of DiffAugment, several of which one after another joined by "+", or "none".
    `passes` are those over the images, unless the options count steps; in the schedule "step" the step size falls after
    `passes_before_drop` of them. A `labeller` makes the targets where labels alone do not say them.
    Shapes: images [N, C, H, W] on the device, in the pixel space or raw uint8; labels [N] int64, or [N, K] soft.
    """

    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    options: SGDOptions
    strategy: str
    legacy: str
    passes: int
    rng: Rng
    passes_before_drop: int = field(default=0, kw_only=True)
    criterion: Criterion = field(default=F.cross_entropy, kw_only=True)
    labeller: Labeller | None = field(default=None, kw_only=True)

    @property
    def steps_per_epoch(self) -> int:
        if self.options.sampling == "subset":
            return 1  # a pass that ends after its first batch
        return math.ceil(len(self.images) / self.batch)

    @property
    def steps(self) -> int:
        """How many steps a student trains."""
        if self.options.forwards is not None:
            return self.options.steps_of_forwards(len(self.images))
        return self._written_steps

    @property
    def _written_steps(self) -> int:
        """How many it would train without a budget of images."""
        return self.options.steps or self.passes * self.steps_per_epoch

    @property
    def student_forwards(self) -> int:
        """Images that a student trains on, repeats counted."""
        return self.options.student_forwards(len(self.images), self.passes)

    @property
    def static(self) -> bool:
        """Whether every step is the same program on other numbers. A subclass with its own targets says so itself."""
        own_targets = type(self).targets is not TrainingPlan.targets
        return self.legacy == "none" and self.labeller is None and not own_targets

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
        labels = self.labels[indices]
        return labels if self.labeller is None else self.labeller(x, labels)

    def seen(self, step: Step, classes: int) -> tuple[Tensor, Tensor]:
        """What students see in a step: images [S, B, C, H, W] and their targets [S, B, ...]."""
        x = step.transform(self.take(step.indices))
        y = self.targets(x, step.indices, step.rng)
        mix = self.mix(step.rng, x.shape[1], (x.shape[3], x.shape[4]))
        if mix is None:
            return x, y
        mix = mix.to(x.device)
        return mix.images(x), mix.targets(as_probabilities(y, classes, x.dtype))

    def mix(self, rng: Rng, count: int, sides: tuple[int, int]) -> Mix | None:
        """How a step with that rng mixes its `count` images of so many rows and columns; None where it does not."""
        rng = rng.fold("cutmix")
        if not self.options.cutmix or rng.numpy().random() >= self.options.cutmix:
            return None
        return Mix.draw(count, *sides, rng.fold("box"))

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
                draws=self._draws(rngs, per_block * per_epoch, steps),
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
                at = self._start_of_pass(step) if options.schedule_by == "pass" else step
                rise = round(options.warmup * self.steps)
                if at < rise:
                    return options.lr * (at + 1) / rise
                done = (at - rise) / max(1, self.steps - rise)
                return options.lr * 0.5 * (1 + math.cos(math.pi * done / options.stretch))
            case "milestones":
                passed = sum(step >= self._after(milestone) for milestone in options.milestones)
                return options.lr * options.factor**passed

    @property
    def _drop(self) -> int:
        if self.options.steps or self.options.epochs is None:
            return self.steps // 2
        return self._after(self.passes_before_drop)

    def _after(self, passes: int) -> int:
        """The step after which so many passes are made; of a budget of images, as far into the training as without."""
        steps = passes * self.steps_per_epoch
        if self.options.forwards is None or self.options.epochs is None:
            return steps
        return round(steps * self.steps / self._written_steps)

    def _start_of_pass(self, step: int) -> float:
        """Where the pass began that a step lies in; of a budget of images, as far into the training as without."""
        total, written = self.steps, self._written_steps
        passes = step * written // (total * self.steps_per_epoch)
        return passes * self.steps_per_epoch * total / written

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

    def _draws(self, rngs: Sequence[Rng], drawn: int, used: int) -> tuple[Draw, ...]:
        draws, corners = [], self.options.align_corners
        for number, strategy in enumerate(one_after_another(self.strategy)):
            # The first one draws as it did before there were others.
            own = [rng.fold("augment", number) if number else rng.fold("augment") for rng in rngs]
            each = [draw_many(strategy, drawn, self.batch, rng, align_corners=corners) for rng in own]
            draws.append(join([draw[:used] for draw in each]))
        return tuple(draws)

    def _legacy(self) -> Callable[[Tensor, Rng], Tensor] | None:
        if self.legacy == "none":
            return None
        if self.legacy in MIXINGS:
            return MIXINGS[self.legacy]
        from ddbench.engine.legacy_augment import legacy

        return lambda images, rng: legacy(self.legacy, images, rng)


def on_real_images(problem: Problem, options: SGDOptions, *, passes: int, augment: str, rng: Rng) -> TrainingPlan:
    """The plan of training on all of a problem's training images; `augment` is a strategy, as of the plan."""
    pixels = problem.pixels
    # A whitened copy of the images is made once, in parts; others are transformed batch by batch.
    images = (
        problem.train.images.to(problem.device) if pixels.cheap else problem.real.take(torch.arange(len(problem.train)))
    )
    return TrainingPlan(
        images=images,
        labels=problem.train.labels.to(problem.device),
        forward=pixels.forward if pixels.cheap else unchanged,
        options=options,
        strategy=augment,
        legacy="none",
        passes=passes,
        rng=rng,
    )


def _sizes(n: int, batch: int) -> tuple[int, ...]:
    full, rest = divmod(n, batch)
    return (batch,) * full + ((rest,) if rest else ())


def unchanged(images: Tensor) -> Tensor:
    return images


def _augmented(draws: Sequence[Draw], images: Tensor) -> Tensor:
    for draw in draws:
        images = draw(images)
    return images


def as_probabilities(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Targets [...] of classes as probabilities [..., K]; probabilities as they are."""
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).to(dtype)
