"""Training towards flat minima: a step follows the gradient that parameters have a little above where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# So that nothing is divided by zero where a gradient vanishes.
TINY = 1e-12


@dataclass(frozen=True)
class Sharpness:
    """How steps of gradient descent become sharpness-aware.

    With g the gradient at the parameters w, the loss is climbed to w + ρ w² ⊙ g / ‖w ⊙ g‖, a distance that is relative
    to each parameter (Kwon et al., ICML 2021, arXiv 2102.11600). With g' the gradient there, the step follows
    g' − α v, v being the part of g that is at right angles to g' (Zhuang et al., ICLR 2022, arXiv 2203.08065). Norms
    and products are those of all parameters as one vector. With ρ = 0 all of that is plain descent.
    """

    rho: float
    alpha: float

    def climbed(self, params: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
        """The parameters at which the second gradient is taken; those that are given stay as they are."""
        scaled = torch._foreach_mul(list(params), list(slopes))
        length = _norm(scaled) + TINY
        climbs = torch._foreach_mul(torch._foreach_mul(scaled, list(params)), self.rho / length)
        return list(torch._foreach_add(list(params), climbs))

    def combined(self, slopes: Sequence[Tensor], above: Sequence[Tensor]) -> list[Tensor]:
        """What a step follows, from the gradients at the parameters and `above`, in the order of the parameters."""
        along = _inner(slopes, above) / (_inner(above, above) + TINY)
        kept = torch._foreach_mul(list(above), 1 + self.alpha * along)
        return list(torch._foreach_sub(kept, list(slopes), alpha=self.alpha))


def _norm(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(values))).norm()


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
