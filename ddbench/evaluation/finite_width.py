"""Finite networks on regression targets, at the largest step size that their own tangent kernel allows.

Nguyen et al., NeurIPS 2021 (arXiv 2107.13034): how KIP's images train a wide network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.foreign import derivatives_explained
from ddbench.backbones.variables import Variables
from ddbench.errors import DivergedError
from ddbench.evaluation.krr import regression_targets
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import FiniteWidthOptions
from ddbench.evaluation.selection import VALIDATION
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor, Progress
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.training.plan import TrainingPlan

# Real images that the step size is computed from, and steps of the power iteration: two digits are enough.
PROBES, ITERATIONS = 50, 30

# By problem and protocol. It takes seconds for a wide network, and every trainer of a set or a snapshot asks for it.
_LARGEST_LR: WeakKeyDictionary[Problem, dict[str, float]] = WeakKeyDictionary()


def half_mean_square(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the mean over all numbers of the squared error: both [B, K]."""
    return (logits - targets).square().mean() / 2


class FiniteWidthTrainer(SGDTrainer):
    """Minibatch descent on the squared error.

    The step size is a share of the largest that the tangent kernel of real images allows. Sets whose images or targets
    are larger than real ones need less of it, so that the share is chosen, as in the paper: one network is trained with
    each, and the best on training images wins.
    """

    Options = FiniteWidthOptions

    @property
    def plan(self) -> TrainingPlan:
        """How students are trained; at the step size 1 until one is chosen, so that counting steps waits for none."""
        return self._at(self.protocol.options.lr or self.chosen.get("lr", 1.0))

    @cached_property
    def _at_one(self) -> TrainingPlan:
        labels = partial(regression_targets, classes=self.problem.classes, hard=self.protocol.labels == "hard")
        return plan(
            self.synthetic, self.protocol, self.problem, self.rng,
            options=self.protocol.options.model_copy(update={"lr": 1.0}), labels=labels, criterion=half_mean_square,
        )  # fmt: skip

    @property
    def trials(self) -> int:
        factors = self.protocol.options.lr_factors
        return 0 if self._decided or len(factors) == 1 else len(factors)

    def choose(self, progress: Progress) -> Mapping[str, float]:
        """The step size, and its share of the largest. Raises: DivergedError where training diverges with all."""
        if not self._decided:
            self.chosen = self._best(progress)
        return self.chosen

    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        assert self._decided, "a step size is chosen before students are trained"
        return super().train(students, progress)

    @property
    def _decided(self) -> bool:
        return self.protocol.options.lr is not None or bool(self.chosen)

    def _at(self, lr: float) -> TrainingPlan:
        options = self._at_one.options
        assert options.lr is not None  # below 1 for large images, where the protocol says so
        return replace(self._at_one, options=options.model_copy(update={"lr": lr * options.lr}))

    def _best(self, progress: Progress) -> dict[str, float]:
        options: FiniteWidthOptions = self.protocol.options
        largest = self._largest_lr()
        choices = [{"lr_factor": factor, "lr": factor * largest} for factor in options.lr_factors]
        if len(choices) == 1:
            return choices[0]
        images, labels = self.problem.real.batch(options.validation, self.rng.fold("validation"))
        accuracies = [self._accuracy(choice["lr"], images, labels, progress) for choice in choices]
        best = accuracies.index(max(accuracies))
        if accuracies[best] < 0:
            raise DivergedError(
                f"{self.protocol.id}: training on this set diverges even with {min(options.lr_factors):g} of the "
                "largest stable step size. The numbers of the set are too large, which `ddbench inspect` shows."
            )
        return choices[best]

    def _accuracy(self, lr: float, images: Tensor, labels: Tensor, progress: Progress) -> float:
        """Validation accuracy of one network trained with this step size; -1 where its outputs are not finite."""
        scores = self._train(self._at(lr), [VALIDATION], progress)(images)[0]
        return float((scores.argmax(dim=1) == labels).float().mean()) if bool(torch.isfinite(scores).all()) else -1.0

    def _largest_lr(self) -> float:
        net, problem = self.problem.backbone, self.problem
        known = _LARGEST_LR.setdefault(problem, {})
        if self.protocol.digest not in known:
            fresh = net.init(self.rng.fold("student", 0, "network"), problem.device)
            images, _ = problem.real.batch(PROBES, self.rng.fold("probes"))
            with derivatives_explained(net):
                known[self.protocol.digest] = largest_lr(net, fresh, images, self.rng.fold("power"))
        return known[self.protocol.digest]


def largest_lr(net: Backbone, variables: Variables, images: Tensor, rng: Rng) -> float:
    """2 m C over the largest eigenvalue of the tangent kernel of m images, for half the mean squared error over m C
    numbers. The kernel is that of the logits' sum over the root of C, as in the authors' code."""

    def outputs(params: dict[str, Tensor]) -> Tensor:
        logits, _ = net(Variables(params, variables.buffers), images, train=True)
        return logits.sum(dim=1) / math.sqrt(logits.shape[1])

    pull = vjp(outputs, variables.params)[1]
    v = torch.randn(len(images), generator=rng.torch()).to(images.device)
    for _ in range(ITERATIONS):
        v = v / v.norm()
        (back,) = pull(v)
        v = jvp(outputs, (variables.params,), (back,))[1]
    return float(2 * len(images) * net.classes / v.norm())
