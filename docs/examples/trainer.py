"""Two ways of training students: the common one with smoothed labels, and no training at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddbench.evaluation.plan import on_device, plan
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor, Progress, Trainer
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan


class SmoothOptions(SGDOptions):
    smoothing: float = Field(0.1, ge=0, lt=1, description="Share of each label that all classes have in common.")


@dataclass(frozen=True)
class Smoothed:
    """Cross-entropy on smoothed labels. A frozen dataclass: equal ones share what was compiled for a GPU."""

    smoothing: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)


class SmoothTrainer(SGDTrainer):
    """Minibatch training on smoothed labels (Szegedy et al., CVPR 2016)."""

    Options = SmoothOptions

    @cached_property
    def plan(self) -> TrainingPlan:
        criterion = Smoothed(self.protocol.options.smoothing)
        return plan(self.synthetic, self.protocol, self.problem, self.rng, criterion=criterion)


class NearestTrainer(Trainer):
    """The class of the nearest image of the set, in its pixel space: nothing is trained."""

    uses_backbone = False

    @property
    def steps(self) -> int:
        return 1

    @property
    def deterministic(self) -> bool:
        return True

    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        images, labels, forward = on_device(self.synthetic, self.problem, classes_of)
        support, answers = forward(images).flatten(1), F.one_hot(labels, self.problem.classes).float()

        def predict(x: Tensor) -> Tensor:
            nearest = torch.cdist(x.flatten(1), support).argmin(dim=1)
            return answers[nearest].expand(len(students), -1, -1)

        progress(len(students))
        return predict


def classes_of(synthetic: SyntheticSet) -> Tensor:
    return synthetic.hard_labels
