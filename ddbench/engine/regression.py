"""Ridge regression in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_ones(features: Tensor) -> Tensor:
    """Features [B, D] with a last column of ones, for the bias: [B, D + 1]."""
    return F.pad(features, (0, 1), value=1.0)


def ridge_map(features: Tensor, ridge: float) -> Tensor:
    """The linear map from targets to the weights of ridge regression: weights = map.T @ targets, for any targets.

    Shapes: features [n, D]; returns float64 [n, D], which is (Z Zᵀ + ridge I)⁻¹ Z. Waits for no device, and so does not
    notice features that are not finite: its numbers then are not finite either.
    """
    # Autocast leaves float64 alone, and n is small.
    z = features.double()
    gram = z @ z.T + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(z, factor)
