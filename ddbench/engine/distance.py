"""Distances between what real and synthetic images cause: features, gradients, parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Added to products of norms; it matters where gradients are tiny, as in dead filters.
COSINE_EPS = 1e-6


def class_mean_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Squared distance of class means, summed over classes and features: DM's step size is calibrated to the sum.

    Shapes: synthetic [K, n, D], real [K, m, D]; returns a scalar.
    Source: Zhao and Bilen, WACV 2023, equation 4.
    """
    return (synthetic.mean(dim=1) - real.mean(dim=1)).square().sum()


def filter_cosine_distance(synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> Tensor:
    """One minus the cosine of gradients, summed over output units, layers and classes, as DC's step size expects.

    Biases and other parameters of one axis do not count.
    Shapes: both {name: [K, out, ...]}, the gradients of K classes; returns a scalar.
    Source: Zhao, Mopuri and Bilen, ICLR 2021, the distance of the method; units are rows along a tensor's first axis.
    """
    units = [
        (s.flatten(0, 1).flatten(1), real[name].flatten(0, 1).flatten(1)) for name, s in synthetic.items() if s.ndim > 2
    ]
    return torch.stack([(1 - _cosines(s, r)).sum() for s, r in units]).sum()


def gradient_cosine_distance(synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> Tensor:
    """One minus the cosine of whole gradients, biases included, summed over classes. Shapes as above."""
    return (1 - _cosines(_joined(synthetic), _joined(real))).sum()


def squared_gradient_distance(synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> Tensor:
    """The squared difference of whole gradients, biases included, summed over classes. Shapes as above."""
    return (_joined(synthetic) - _joined(real)).square().sum()


# By the names of the authors' code.
GRADIENT_DISTANCES: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]] = {
    "ours": filter_cosine_distance,
    "mse": squared_gradient_distance,
    "cos": gradient_cosine_distance,
}


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of every row: [R, P] and [R, P] give [R]."""
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + COSINE_EPS)


def _joined(gradients: dict[str, Tensor]) -> Tensor:
    """Each class's gradient as one row: [K, P]."""
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)
