"""What a trainer is: it turns a set into students that can be asked for their predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from ddbench.evaluation.protocol import Protocol
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import TrainerOptions

Predictor = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in the pixel space -> scores [S, B, K] of S students; the arg-max is the prediction."""


@dataclass(frozen=True, eq=False)
class Job:
    """One set to train on, under one protocol, with one backbone. The problem holds no test data.

    `students` is how many will be trained in all, in one call or in several. `chose` is what trials have chosen, by
    the names of options.
    """

    synthetic: SyntheticSet
    protocol: Protocol
    problem: Problem
    students: int = 1
    chose: Mapping[str, float] = field(default_factory=dict)

    @property
    def rng(self) -> Rng:
        """Depends on protocol and backbone alone, so that student k is the same one for every set that it judges."""
        return Rng(0, ("students", self.protocol.digest, self.problem.backbone.name))


class Trainer(ABC):
    """One way of training students. Register the class in the entry point group `ddbench.trainers`."""

    Options: ClassVar[type[TrainerOptions]] = TrainerOptions

    @abstractmethod
    def train(self, job: Job, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
        """Train the numbered students of a decided job.

        `tick` is told how many student-steps were taken since its last call.
        Raises: ConfigError or DataError where the set cannot be judged like this.
        """

    @abstractmethod
    def steps(self, job: Job) -> int:
        """Steps of one student, for progress and estimates."""

    def trials(self, job: Job) -> int:
        """How many networks `choose` will train."""
        return 0

    def choose(self, job: Job, tick: Callable[[int], None]) -> dict[str, float]:
        """What a job's students should be told in `chose`. What the job was told already stands.

        `tick` hears the steps of trials. Raises: as `train`.
        """
        return dict(job.chose)

    def decided(self, job: Job, tick: Callable[[int], None]) -> Job:
        """The job as `train` wants it, with what trials have chosen."""
        return replace(job, chose=self.choose(job, tick))

    def alike(self, job: Job) -> bool:
        """Whether all students are one and the same, because the set leaves nothing to chance. Then one is trained."""
        return False

    def stored_bytes(self, job: Job) -> int:
        """Bytes that a receiver must store beside the set to train like this, such as a teacher."""
        return 0

    def together(self, job: Job) -> int:
        """How many students are worth training in one call."""
        return 1
