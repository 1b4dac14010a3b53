"""The trainer of the common protocols: minibatch gradient descent from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import ClassVar

from ddbench.backbones.variables import Variables
from ddbench.evaluation.plan import plan
from ddbench.evaluation.trainer import Predictor, Progress, Trainer
from ddbench.training.options import SGDOptions, TrainerOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import footprint, predict, students_together, train_students


class SGDTrainer(Trainer):
    """Fresh networks, seeded by protocol, backbone and number; last epoch only."""

    Options: ClassVar[type[TrainerOptions]] = SGDOptions

    @cached_property
    def plan(self) -> TrainingPlan:
        """How students are trained. A trainer with other targets overrides this."""
        return plan(self.synthetic, self.protocol, self.problem, self.rng)

    def fresh(self, student: int) -> Variables:
        """What a student starts from. Drawn on the host, so that it is the same on every device."""
        return self.problem.backbone.init(self.rng.fold("student", student, "network"), self.problem.device)

    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        return self._train(self.plan, students, progress)

    def _train(self, schedule: TrainingPlan, students: Sequence[int], progress: Progress) -> Predictor:
        net = self.problem.backbone
        fresh = Variables.stack([self.fresh(k) for k in students])
        to_come = 0 if self.deterministic else max(0, self.students - len(students))
        trained = train_students(net, fresh, schedule, students, to_come=to_come, tick=progress)
        return partial(predict, net, trained)

    @property
    def outline(self) -> TrainingPlan:
        """The plan, or what of it can be known at once where making it takes minutes: steps and batches."""
        return self.plan

    @property
    def steps(self) -> int:
        return self.outline.steps

    @property
    def student_forwards(self) -> int:
        return self.outline.student_forwards

    @property
    def together(self) -> int:
        return students_together(self.outline.batch, self.problem.device, footprint(self.problem.backbone))
