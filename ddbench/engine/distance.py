"""Distances between what real and synthetic images cause: features, gradients, parameters."""

from __future__ import annotations

from torch import Tensor


def class_mean_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Squared distance of class means, summed over classes and features: DM's step size is calibrated to the sum.

    Shapes: synthetic [K, n, D], real [K, m, D]; returns a scalar.
    Source: Zhao and Bilen, WACV 2023, equation 4.
    """
    return (synthetic.mean(dim=1) - real.mean(dim=1)).square().sum()
