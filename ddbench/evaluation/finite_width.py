"""Finite networks on regression targets, at the largest step size that their own tangent kernel allows.

Nguyen et al., NeurIPS 2021 (arXiv 2107.13034): how KIP's images train a wide network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.variables import Variables
from ddbench.engine.decode import decode
from ddbench.errors import DivergedError
from ddbench.evaluation.krr import regression_targets
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import FiniteWidthOptions
from ddbench.evaluation.selection import VALIDATION
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Job, Predictor
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

    def plan(self, job: Job) -> TrainingPlan:
        options = job.protocol.options
        # Any step size will do until one is chosen: whoever counts steps should not wait for the right one. And the
        # common plan asks for classes; its labels are replaced.
        lr = options.lr or job.chose.get("lr", 1.0)
        common = job.protocol.model_copy(
            update={"options": options.model_copy(update={"lr": lr}), "labels": "hard"},
        )
        usual = plan(job.synthetic, common, job.problem, job.rng)
        targets = regression_targets(job.synthetic, job.problem.classes, hard=job.protocol.labels == "hard")
        _, targets = decode(job.synthetic.decode, job.synthetic.images, targets)
        return replace(usual, labels=targets.to(job.problem.device), criterion=half_mean_square)

    def trials(self, job: Job) -> int:
        options: FiniteWidthOptions = job.protocol.options
        decided = options.lr is not None or job.chose or len(options.lr_factors) == 1
        return 0 if decided else len(options.lr_factors)

    def choose(self, job: Job, tick: Callable[[int], None]) -> dict[str, float]:
        """The step size, and its share of the largest. Raises: DivergedError where training diverges with all."""
        options: FiniteWidthOptions = job.protocol.options
        if options.lr is not None or job.chose:
            return dict(job.chose)
        largest = self._largest_lr(job)
        choices = [{"lr_factor": factor, "lr": factor * largest} for factor in options.lr_factors]
        if not self.trials(job):
            return choices[0]
        images, labels = job.problem.real.batch(options.validation, job.rng.fold("validation"))
        accuracies = [self._accuracy(replace(job, chose=choice), images, labels, tick) for choice in choices]
        best = accuracies.index(max(accuracies))
        if accuracies[best] < 0:
            raise DivergedError(
                f"{job.protocol.id}: training on this set diverges even with {min(options.lr_factors):g} of the "
                "largest stable step size. The numbers of the set are too large, which `ddbench inspect` shows."
            )
        return choices[best]

    def train(self, job: Job, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
        assert job.chose or job.protocol.options.lr is not None, "a step size is chosen before students are trained"
        return super().train(job, students, tick)

    def _accuracy(self, job: Job, images: Tensor, labels: Tensor, tick: Callable[[int], None]) -> float:
        """Of a network of validation that is trained like this; -1 where its outputs are not finite."""
        scores = self.train(job, [VALIDATION], tick)(images)[0]
        return float((scores.argmax(dim=1) == labels).float().mean()) if bool(torch.isfinite(scores).all()) else -1.0

    def _largest_lr(self, job: Job) -> float:
        net, problem = job.problem.backbone, job.problem
        known = _LARGEST_LR.setdefault(problem, {})
        if job.protocol.digest not in known:
            fresh = net.init(job.rng.fold("student", 0, "network"), problem.device)
            images, _ = problem.real.batch(PROBES, job.rng.fold("probes"))
            known[job.protocol.digest] = largest_lr(net, fresh, images, job.rng.fold("power"))
        return known[job.protocol.digest]


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
