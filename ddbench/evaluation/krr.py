"""Kernel regression as a student: the set is the support, and nothing is trained.

Nguyen et al., ICLR 2021 (arXiv 2011.00050) and NeurIPS 2021 (arXiv 2107.13034).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.engine.capabilities import back_on, in_float64
from ddbench.engine.regression import centred, ridge_weights
from ddbench.errors import DivergedError
from ddbench.evaluation.plan import on_device
from ddbench.evaluation.protocol import KRROptions
from ddbench.evaluation.trainer import Predictor, Progress, Trainer
from ddbench.ntk.gram import gram
from ddbench.synthetic import SyntheticSet


class KRRTrainer(Trainer):
    """Ridge regression with the NTK of an infinitely wide network. All students are one."""

    Options = KRROptions
    uses_backbone: ClassVar[bool] = False

    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        problem, options = self.problem, self.protocol.options
        labels = partial(regression_targets, classes=problem.classes, hard=self.protocol.labels == "hard")
        images, targets, forward = on_device(self.synthetic, problem, labels)
        images = forward(images)
        dtype = getattr(torch, options.dtype)
        kernel = gram(options.kernel, problem.shape, problem.device, dtype=dtype)
        weights = ridge_weights(kernel(images), targets, options.ridge)
        if not bool(torch.isfinite(weights).all()):
            finer = "" if dtype == torch.float64 else 'dtype = "float64" or '
            raise DivergedError(
                f"{self.protocol.id}: the kernel of the set's images is not positive definite in {options.dtype}, so "
                "that there is no regression on it. Some of its images may be equal, or their numbers too large. A "
                f"protocol of your own with {finer}a larger ridge may judge it."
            )
        progress(len(students))

        def predict(x: Tensor) -> Tensor:
            scores = in_float64(kernel(images, x)).T @ weights
            return back_on(scores, problem.device).expand(len(students), -1, -1)

        return predict

    @property
    def steps(self) -> int:
        return 1

    @property
    def student_forwards(self) -> int:
        return 0

    @property
    def deterministic(self) -> bool:
        return True


def regression_targets(synthetic: SyntheticSet, classes: int, *, hard: bool) -> Tensor:
    """float32 [N, K], centred: the set's own regression targets, or its labels as probabilities minus 1 / K."""
    if hard or not synthetic.soft:
        return centred(synthetic.hard_labels, classes)
    match synthetic.label_kind:
        case "regression":
            return synthetic.labels
        case "logit":
            return synthetic.labels.softmax(dim=1) - 1 / classes
        case _:
            return synthetic.labels - 1 / classes
