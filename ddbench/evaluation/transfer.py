"""Finite networks on regression targets, at the largest step size that their own tangent kernel allows.

Nguyen et al., NeurIPS 2021 (arXiv 2107.13034): how KIP's images train a wide network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ddbench.backbones.base import Backbone, Variables
from ddbench.engine.decode import decode
from ddbench.evaluation.krr import regression_targets
from ddbench.evaluation.plan import TrainingPlan, plan
from ddbench.evaluation.protocol import FiniteWidthOptions
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Job
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
    """Minibatch descent on the squared error."""

    Options = FiniteWidthOptions

    def plan(self, job: Job) -> TrainingPlan:
        options = job.protocol.options
        lr = options.lr or options.lr_factor * self._largest_lr(job)
        # The common plan asks for classes; its labels are replaced.
        common = job.protocol.model_copy(
            update={"options": options.model_copy(update={"lr": lr}), "labels": "hard"},
        )
        usual = plan(job.synthetic, common, job.problem, job.rng)
        targets = regression_targets(job.synthetic, job.problem.classes, hard=job.protocol.labels == "hard")
        _, targets = decode(job.synthetic.decode, job.synthetic.images, targets)
        return replace(usual, labels=targets.to(job.problem.device), criterion=half_mean_square)

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
