"""The best of a run's sets: by networks that train on each and are tested on images held out of the training set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddbench.config import Selection
from ddbench.data.tensors import RealImages
from ddbench.errors import ConfigError
from ddbench.evaluation.evaluate import tested_together
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.evaluation.trainer import trainer_of
from ddbench.method import Method
from ddbench.problem import Problem
from ddbench.synthetic import Choice, SyntheticSet, assemble, header_of, tensors_of

# Networks of validation are numbered from here on, so that none of them is a student that judges the final set.
VALIDATION = 1_000_000


@dataclass
class Selector:
    """Looks at a run's sets now and then, every so many `steps`, and keeps the best.

    `problem` is the one without the held-out images `part`; `best` brings its `choice` along.
    """

    rule: Selection
    protocol: Protocol
    problem: Problem
    part: RealImages
    steps: int
    best: SyntheticSet | None = None

    @classmethod
    def of(cls, rule: Selection, method: Method[Any], problem: Problem) -> Selector | None:
        """The one that a rule asks for; None where it asks for none. Hold on to its `problem`: the run's is without.

        Raises: ConfigError where a rule counts in passes and the method does not.
        """
        if not rule.on:
            return None
        rest, part = problem.heldout(rule.heldout)
        if rule.passes is None:
            steps = int(rule.every)
        elif per_pass := method.steps_per_pass(rest):
            steps = rule.passes * per_pass
        else:
            raise no_passes(rule, method.name)
        return cls(rule, protocol(method.native), rest, part, steps)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to look after this step."""
        return last or step % self.steps == 0

    def look(self, synthetic: SyntheticSet, step: int) -> Choice:
        """Keep the set of this step if it does best so far. Returns how well it does; waits for the device."""
        first = step if self.rule.fresh else 0
        students = self.rule.students
        found = validate(synthetic, self.protocol, self.problem, self.part, step, students=students, first=first)
        before = self.best.choice.accuracy if self.best is not None and self.best.choice is not None else -1.0
        if found.accuracy > before or (self.rule.fresh and found.accuracy == before):
            self.best = replace(synthetic, choice=found)
        return found

    def state_dict(self) -> dict[str, Any] | None:
        """The best set as values that a checkpoint keeps."""
        return None if self.best is None else {"header": header_of(self.best), "tensors": tensors_of(self.best)}

    def load_state_dict(self, saved: Mapping[str, Any] | None) -> None:
        """Put back what `state_dict` gave."""
        self.best = None if saved is None else assemble(saved["header"], saved["tensors"], "the best set so far")


def no_passes(rule: Selection, method: str) -> ConfigError:
    """The error of a rule that counts in passes, for a method that goes over the real images in none."""
    return ConfigError(
        f"--select every={rule.every} counts passes over the real images, and {method} does not go over them in "
        "passes. Give a number of steps, such as every=500."
    )


def validate(
    synthetic: SyntheticSet,
    protocol: Protocol,
    problem: Problem,
    part: RealImages,
    step: int,
    *,
    students: int = 1,
    first: int = 0,
) -> Choice:
    """How well networks of validation that train on a set do on held-out images; waits for the device.

    `problem` is the one without these images, `step` that after which the set was taken, `first` the number of the
    first of the networks.
    """
    numbers = [VALIDATION + first + number for number in range(students)]
    trainer = trainer_of(synthetic, protocol, problem, students=students)
    trainer.choose(_unheard)
    predict = trainer.train(numbers, _unheard)
    right = sum((predict(x).argmax(dim=-1) == y).sum() for x, y in part.chunks(tested_together(part.shape)))
    return Choice(step, int(right) / (students * len(part)), len(part), students, protocol.id)


def _unheard(steps: int) -> None:
    """Progress of networks of validation, which nobody waits for by themselves."""
