"""The trainer of knowledge distillation: soft labels at a temperature, and the class beside them.

Where the soft labels are from makes three tracks, which boards never mix: the set's own; a teacher's, one for each
image; a teacher's, for each augmented image that a student sees.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.backbones import names as backbones
from ddbench.backbones.variables import Variables
from ddbench.decoders import NONE
from ddbench.errors import ConfigError
from ddbench.evaluation.plan import on_device, plan, training_labels
from ddbench.evaluation.protocol import DistillOptions
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.problem import Problem
from ddbench.synthetic import SyntheticSet
from ddbench.training.networks import TrainedNetwork, as_seen
from ddbench.training.plan import TrainingPlan

Teacher = Callable[[Tensor], Tensor]


def distillation_loss(
    logits: Tensor, soft: Tensor, classes: Tensor, *, temperature: float, hard_weight: float, scaled: bool = True
) -> Tensor:
    """w CE(z, y) + (1 - w) T^2 CE(softmax(z / T), p), the mean over a batch; without T^2 where it is not `scaled`.

    Shapes: logits, soft (probabilities at the temperature) and classes (one-hot) [B, K]. T^2 keeps the gradients of
    the soft part as large as those of the hard one. Source: Hinton et al., 2015, section 2.
    """
    at_temperature = -(soft * (logits / temperature).log_softmax(-1)).sum(-1).mean()
    of_class = -(classes * logits.log_softmax(-1)).sum(-1).mean()
    scale = temperature**2 if scaled else 1.0
    return hard_weight * of_class + (1 - hard_weight) * scale * at_temperature


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., K] as their logits divided by the temperature would give them."""
    return (probabilities.log() / temperature).softmax(-1)


@dataclass(frozen=True)
class Distillation:
    """The distillation loss of a batch: logits [B, K]; targets [B, 2K], soft labels at the temperature and then the
    class, one-hot."""

    temperature: float
    hard_weight: float
    scaled: bool = True

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        soft, classes = targets.chunk(2, dim=-1)
        return distillation_loss(
            logits, soft, classes, temperature=self.temperature, hard_weight=self.hard_weight, scaled=self.scaled
        )


@dataclass(frozen=True, eq=False)
class FromTeacher:
    """Targets [S, B, 2K]: the teacher's soft labels at the temperature, then the class [S, B, K], one-hot."""

    teacher: Teacher
    temperature: float

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        # Labelled as the student sees them, after augmentation.
        soft = (self.teacher(x.flatten(0, 1)) / self.temperature).softmax(-1)
        return torch.cat([soft.unflatten(0, x.shape[:2]), classes], dim=-1)


class DistillTrainer(SGDTrainer):
    """Students that learn from soft labels: those of a teacher trained on the real images, or those of the set."""

    Options = DistillOptions

    @cached_property
    def plan(self) -> TrainingPlan:
        options: DistillOptions = self.protocol.options
        planned = partial(
            plan, protocol=self.protocol, problem=self.problem, rng=self.rng,
            criterion=Distillation(options.temperature, options.hard_weight, options.scaled),
        )  # fmt: skip
        # A teacher labels hard and soft sets alike.
        match options.targets:
            case "given":
                return planned(self.synthetic, labels=self._given)
            case "fixed":
                return planned(self._decoded, labels=self._fixed)
            case "teacher":
                teacher = FromTeacher(_teacher(self.problem, options), options.temperature)
                return planned(self.synthetic, labels=self._classes, labeller=teacher)

    @cached_property
    def outline(self) -> TrainingPlan:
        # Whoever counts steps needs no teacher, which takes minutes to train.
        if self.protocol.options.targets != "fixed":
            return self.plan
        return plan(self._decoded, self.protocol, self.problem, self.rng, labels=self._classes)

    @property
    def extra_bytes(self) -> int:
        options: DistillOptions = self.protocol.options
        if options.targets == "given":
            return 0
        if options.targets == "fixed":
            return len(self._decoded) * self.problem.classes * torch.float32.itemsize
        weights = _weights(self.problem, options)
        return sum(v.numel() * v.element_size() for part in (weights.params, weights.buffers) for v in part.values())

    def _given(self, synthetic: SyntheticSet) -> Tensor:
        """The set's own soft labels at the temperature, then the likeliest class: [N, 2K]."""
        if not synthetic.soft:
            raise ConfigError(
                f"protocol {self.protocol.id} trains on the soft labels of a set, and this one has classes. Use a "
                "protocol with hard labels, such as dsa, or one with a teacher, such as distill."
            )
        soft = training_labels(synthetic, self.protocol)
        return torch.cat([tempered(soft, self.protocol.options.temperature), self._one_hot(soft.argmax(dim=1))], dim=-1)

    @cached_property
    def _decoded(self) -> SyntheticSet:
        """The set with the images that students see, each of which gets labels of its own."""
        own = self.synthetic
        images, classes = own.images, own.hard_labels
        if own.decode != NONE:  # bytes have to be brought to the pixel space for it
            images, classes, _ = on_device(own, self.problem, lambda one: one.hard_labels)
        return replace(
            own, images=images.cpu(), labels=classes.cpu(), label_kind="class", decode="none", source_indices=None
        )

    def _fixed(self, synthetic: SyntheticSet) -> Tensor:
        """What the teacher says of each image as it is, at the temperature, then the class: [N, 2K]."""
        options = self.protocol.options
        teacher = _teacher(self.problem, options)
        soft = [teacher(part).cpu() for part in as_seen(synthetic.images, self.problem)]
        return torch.cat([(torch.cat(soft) / options.temperature).softmax(-1), self._classes(synthetic)], dim=-1)

    def _classes(self, synthetic: SyntheticSet) -> Tensor:
        return self._one_hot(synthetic.hard_labels)

    def _one_hot(self, classes: Tensor) -> Tensor:
        return F.one_hot(classes, self.problem.classes).to(torch.float32)


def _problem(problem: Problem, options: DistillOptions) -> Problem:
    return problem.with_backbone(backbones.canonical(options.teacher, problem.shape))


def _weights(problem: Problem, options: DistillOptions) -> Variables:
    """The teacher, trained once for each dataset and pixel space."""
    own = _problem(problem, options)
    wanted = TrainedNetwork.of(own, epochs=options.teacher_epochs, lr=options.teacher_lr, seed=0)
    return own.artifacts.get(wanted, own)


def _teacher(problem: Problem, options: DistillOptions) -> Teacher:
    own = _problem(problem, options)

    @functools.cache
    def trained() -> Variables:
        # Only when it is asked for the first time: whoever counts steps needs no teacher.
        return _weights(problem, options).to(own.device)

    def label(images: Tensor) -> Tensor:
        weights = trained()  # outside of no_grad, for it may be training
        with torch.no_grad():
            logits: Tensor = own.backbone(weights, images, train=False)[0]
        return logits

    return label
