"""Fresh students on images held out of the training set, for methods that have to choose."""

from __future__ import annotations

from ddbench.data.tensors import RealImages
from ddbench.evaluation.evaluate import tested_together
from ddbench.evaluation.protocol import Protocol
from ddbench.evaluation.trainer import trainer_of
from ddbench.problem import Problem
from ddbench.synthetic import Choice, SyntheticSet

# Networks of validation are numbered from here on, so that none of them is a student that judges the final set.
VALIDATION = 1_000_000


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
