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

from ddbench.backbones.base import Backbone, Variables
from ddbench.engine.decode import decode
from ddbench.errors import DivergedError
from ddbench.evaluation.krr import regression_targets
from ddbench.evaluation.plan import TrainingPlan, plan
from ddbench.evaluation.protocol import FiniteWidthOptions
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Job, Predictor
from ddbench.evaluation.validation import VALIDATION
from ddbench.problem import Problem
from ddbench.rng import Rng

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

    def __init__(self) -> None:
        super().__init__()
        self._chose: tuple[Job, dict[str, float]] | None = None

    def plan(self, job: Job) -> TrainingPlan:
        options = job.protocol.options
        # Any step size will do until training begins: whoever counts steps should not wait for the right one. And the
        # common plan asks for classes; its labels are replaced.
        common = job.protocol.model_copy(
            update={"options": options.model_copy(update={"lr": options.lr or 1.0}), "labels": "hard"},
        )
        usual = plan(job.synthetic, common, job.problem, job.rng)
        targets = regression_targets(job.synthetic, job.problem.classes, hard=job.protocol.labels == "hard")
        _, targets = decode(job.synthetic.decode, job.synthetic.images, targets)
        return replace(usual, labels=targets.to(job.problem.device), criterion=half_mean_square)

    def trials(self, job: Job) -> int:
        options: FiniteWidthOptions = job.protocol.options
        return len(options.lr_factors) if options.lr is None and len(options.lr_factors) > 1 else 0

    def chose(self, job: Job) -> dict[str, float]:
        return self._chose[1] if self._chose is not None and self._chose[0] is job else {}

    def train(self, job: Job, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
        if job.protocol.options.lr is None and (self._chose is None or self._chose[0] is not job):
            self._choose(job, tick)
        return super().train(job, students, tick)

    def _choose(self, job: Job, tick: Callable[[int], None]) -> None:
        """Plan with the step size that does best. Raises: DivergedError where training diverges with all."""
        options: FiniteWidthOptions = job.protocol.options
        usual, largest = self._plan_once(job), self._largest_lr(job)
        plans = [
            replace(usual, options=options.model_copy(update={"lr": factor * largest})) for factor in options.lr_factors
        ]
        best = 0
        if self.trials(job):
            images, labels = job.problem.real.batch(options.validation, job.rng.fold("validation"))
            accuracies = [self._accuracy(job, at_it, images, labels, tick) for at_it in plans]
            best = accuracies.index(max(accuracies))
            if accuracies[best] < 0:
                raise DivergedError(
                    f"{job.protocol.id}: training on this set diverges even with {min(options.lr_factors):g} of the "
                    "largest stable step size. The numbers of the set are too large, which `ddbench inspect` shows."
                )
        self._planned = (job, plans[best])
        self._chose = (job, {"lr_factor": options.lr_factors[best], "lr": options.lr_factors[best] * largest})

    def _accuracy(
        self, job: Job, at_it: TrainingPlan, images: Tensor, labels: Tensor, tick: Callable[[int], None]
    ) -> float:
        """Of a network of validation that is trained by this plan; -1 where its outputs are not finite."""
        self._planned = (job, at_it)
        scores = super().train(job, [VALIDATION], tick)(images)[0]
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
