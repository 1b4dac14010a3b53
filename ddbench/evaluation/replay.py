"""The trainer for sets that say what each step is: a student takes exactly the stored steps, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ddbench.backbones.variables import Variables
from ddbench.errors import ConfigError
from ddbench.evaluation.plan import on_device, training_labels
from ddbench.evaluation.protocol import Protocol, ReplayOptions
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Block, TrainingPlan


@dataclass(frozen=True, eq=False)
class ReplayPlan(TrainingPlan):
    """T steps of gradient descent that are the same for every student. Shapes: schedule [T, B] int64, lrs [T]."""

    schedule: Tensor
    lrs: tuple[float, ...]

    @property
    def student_forwards(self) -> int:
        return self.schedule.numel()

    @property
    def static(self) -> bool:
        return True

    def lr(self, step: int) -> float:
        return self.lrs[step]

    def blocks(self, students: Sequence[int]) -> Iterator[Block]:
        rngs = tuple(self.rng.fold("student", k) for k in students)
        yield Block(
            indices=self.schedule.expand(len(students), -1, -1),
            sizes=(self.schedule.shape[1],) * len(self.lrs),
            draws=(),
            lrs=self.lrs,
            restarts=(False,) * len(self.lrs),
            first=0,
            rng=self.rng,
            rngs=rngs,
        )


class ReplayTrainer(SGDTrainer):
    """The set's own steps on whole batches, without momentum, weight decay or augmentation.

    Students start from fresh networks, or all from the one that the set stores: then there is one student.
    Source: Wang et al., arXiv 1811.10959.
    """

    Options = ReplayOptions

    @cached_property
    def plan(self) -> ReplayPlan:
        schedule, lrs = _steps(self.synthetic, self.protocol)
        labels = partial(training_labels, protocol=self.protocol)
        return ReplayPlan(
            **on_device(self.synthetic, self.problem, labels)._asdict(),
            options=SGDOptions(
                epochs=None, steps=len(lrs), lr=1.0, momentum=0.0, weight_decay=0.0, batch=schedule.shape[1],
                schedule="constant",
            ),
            strategy="none",
            legacy="none",
            passes=1,
            rng=self.rng,
            schedule=schedule,
            lrs=lrs,
        )  # fmt: skip

    def fresh(self, student: int) -> Variables:
        fresh, start = super().fresh(student), self.synthetic.start
        if not start:
            return fresh
        shapes = {name: value.shape for name, value in fresh.params.items()}
        if shapes != {name: value.shape for name, value in start.items()}:
            raise ConfigError(
                f"the set stores the network that its steps start from, and that is no {self.problem.backbone.name}. "
                "Judge it with the backbone that it was made with, or under a protocol with fresh ones, such as dsa."
            )
        return Variables({name: start[name].to(value) for name, value in fresh.params.items()}, fresh.buffers)

    @property
    def deterministic(self) -> bool:
        return bool(self.synthetic.start)


def _steps(synthetic: SyntheticSet, protocol: Protocol) -> tuple[Tensor, tuple[float, ...]]:
    recipe = synthetic.recipe
    if recipe.schedule is None or recipe.lr is None:
        raise ConfigError(
            f"protocol {protocol.id} takes the steps that a set has stored, and this set has no "
            f"{'schedule' if recipe.schedule is None else 'step sizes'}. Use a protocol with its own, such as dsa."
        )
    if (recipe.loss, recipe.optimizer) != ("cross_entropy", "sgd"):
        raise ConfigError(
            f"protocol {protocol.id} descends the cross-entropy by plain steps, and this set asks for "
            f"{recipe.optimizer} on {recipe.loss}. Use a protocol with a recipe of its own, such as dsa."
        )
    lrs = torch.as_tensor(recipe.lr).expand(len(recipe.schedule))
    return recipe.schedule, tuple(lrs.tolist())
