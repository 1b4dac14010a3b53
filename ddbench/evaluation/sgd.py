"""The trainer of the common protocols: minibatch gradient descent from scratch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from ddbench.backbones.variables import Variables
from ddbench.evaluation.plan import plan
from ddbench.evaluation.trainer import Job, Predictor, Trainer
from ddbench.training.options import SGDOptions, TrainerOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import footprint, predict, students_together, train_students


class SGDTrainer(Trainer):
    """Fresh networks, seeded by protocol, backbone and number; last epoch only."""

    Options: ClassVar[type[TrainerOptions]] = SGDOptions

    def __init__(self) -> None:
        self._planned: tuple[Job, TrainingPlan] | None = None

    def plan(self, job: Job) -> TrainingPlan:
        """How students of a job are trained. A trainer with other targets overrides this."""
        return plan(job.synthetic, job.protocol, job.problem, job.rng)

    def fresh(self, job: Job, student: int) -> Variables:
        """What a student starts from. Drawn on the host, so that it is the same on every device."""
        return job.problem.backbone.init(job.rng.fold("student", student, "network"), job.problem.device)

    def train(self, job: Job, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
        net = job.problem.backbone
        fresh = Variables.stack([self.fresh(job, k) for k in students])
        schedule = self._plan_once(job)
        to_come = max(0, job.students - len(students))
        trained = train_students(net, fresh, schedule, students, to_come=to_come, tick=tick)
        return partial(predict, net, trained)

    def steps(self, job: Job) -> int:
        return self._plan_once(job).steps

    def together(self, job: Job) -> int:
        return students_together(self._plan_once(job).batch, job.problem.device, footprint(job.problem.backbone))

    def _plan_once(self, job: Job) -> TrainingPlan:
        if self._planned is None or self._planned[0] is not job:
            self._planned = (job, self.plan(job))
        return self._planned[1]
