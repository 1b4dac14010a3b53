"""Ridge regression in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.engine.capabilities import in_float64


def with_ones(features: Tensor) -> Tensor:
    """Features [B, D] with a last column of ones, for the bias: [B, D + 1]."""
    return F.pad(features, (0, 1), value=1.0)


def ridge_map(features: Tensor, ridge: float) -> Tensor:
    """The linear map from targets to the weights of ridge regression: weights = map.T @ targets, for any targets.

    Shapes: features [n, D]; returns float64 [n, D], which is (Z Zᵀ + ridge I)⁻¹ Z; on the host where the device has
    no double precision. Waits for no other device, and so does not notice features that are not finite: its numbers
    then are not finite either.
    """
    # Autocast leaves float64 alone, and n is small.
    z = in_float64(features)
    gram = z @ z.T + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(z, factor)


RIDGE = 1e-6


def ridge_weights(k_ss: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """(K_ss + ridge tr(K_ss) / n I)^-1 targets, float64 [n, C]; differentiable in both. On the host where their
    device has no double precision, as all of this module.

    Not a number where K_ss is not positive definite, without waiting for the device to say so.
    """
    kernel = in_float64(k_ss)
    n = len(kernel)
    shift = ridge * kernel.diagonal().sum() / n
    kernel = (kernel + kernel.T) / 2 + shift * torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    root, failed = torch.linalg.cholesky_ex(kernel)
    root = torch.where(failed == 0, root, torch.nan)
    return torch.cholesky_solve(in_float64(targets), root)


def centred(labels: Tensor, classes: int) -> Tensor:
    """Regression targets of classes: one-hot minus 1 / C. float32 [n, C]."""
    return torch.nn.functional.one_hot(labels, classes).float() - 1 / classes


def reduced(rows: Tensor, targets: Tensor, before: Tensor | None = None) -> Tensor:
    """A least-squares problem as a triangle, to which more rows can be added: float64 [n + C, n + C].

    Shapes: rows [m, n]; targets [m, C]; `before` is what an earlier call returned.
    """
    more = torch.cat([in_float64(rows), in_float64(targets)], dim=1)
    stack = more if before is None else torch.cat([before, more])
    missing = max(0, stack.shape[1] - len(stack))
    return torch.linalg.qr(torch.nn.functional.pad(stack, (0, 0, 0, missing)), mode="r").R


def least_squares(triangle: Tensor, unknowns: int) -> Tensor:
    """The least-norm solution of a `reduced` problem: float64 [n, C], with n unknowns."""
    return torch.linalg.pinv(triangle[:unknowns, :unknowns]) @ triangle[:unknowns, unknowns:]
