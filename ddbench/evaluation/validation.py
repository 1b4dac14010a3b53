"""Fresh students on images held out of the training set, for methods that have to choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddbench.data.tensors import RealImages
from ddbench.evaluation.evaluate import tested_together, trainer_of
from ddbench.evaluation.trainer import Job

# Networks of validation are numbered from here on, so that none of them is a student that judges the final set.
VALIDATION = 1_000_000


def misclassified(job: Job, numbers: Sequence[int], part: RealImages) -> Tensor:
    """How many held-out images each network of validation gets wrong: int64 [S], on the device."""
    predict = trainer_of(job.protocol).train(job, [VALIDATION + number for number in numbers], lambda _: None)
    return torch.stack(
        [(predict(x).argmax(dim=-1) != y).sum(dim=-1) for x, y in part.chunks(tested_together(part.shape))]
    ).sum(dim=0)
