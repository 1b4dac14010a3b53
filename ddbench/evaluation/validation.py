"""Fresh students on images held out of the training set, for methods that have to choose."""

from __future__ import annotations

from ddbench.data.tensors import RealImages
from ddbench.evaluation.evaluate import tested_together, trainer_of
from ddbench.evaluation.trainer import Job
from ddbench.synthetic import Choice

# Networks of validation are numbered from here on, so that none of them is a student that judges the final set.
VALIDATION = 1_000_000


def validate(job: Job, part: RealImages, step: int, *, students: int = 1, first: int = 0) -> Choice:
    """How well networks of validation that train on a job's set do on held-out images; waits for the device.

    `step` is that after which the set was taken, `first` the number of the first of the networks.
    """
    numbers = [VALIDATION + first + number for number in range(students)]
    trainer, tick = trainer_of(job.protocol), lambda _: None
    predict = trainer.train(trainer.decided(job, tick), numbers, tick)
    right = sum((predict(x).argmax(dim=-1) == y).sum() for x, y in part.chunks(tested_together(part.shape)))
    return Choice(step, int(right) / (students * len(part)), len(part), students, job.protocol.id)
