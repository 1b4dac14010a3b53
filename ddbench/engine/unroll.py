"""Gradient descent as a function that can be differentiated, with the memory of one step.

What T steps lead to depends on where they start, on the images they see and on their step sizes. The derivative is that
of the unrolled loop, taken by its reverse recursion: parameters are kept from step to step, graphs are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import grad, jvp

from ddbench.engine.program import Fuse

Params = dict[str, Tensor]
Loss = Callable[[Params, Tensor, Tensor], Tensor]
"""Parameters, images and targets -> a scalar. Twice differentiable through torch.func, and free of random draws."""


def _plain(function: Any) -> Any:
    return function


class Descent:
    """w[t + 1] = w[t] - lr[t] * d loss(w[t], x[t], y[t]) / dw, for T steps.

    The result is differentiable once with respect to w[0], x and lr. In reverse, with v the derivative by w[t + 1], one
    derivative of (d loss / dw, d loss / dx) along v gives all that a step needs: no second reverse pass, whose
    convolutions have kernels as large as the images.
    Nothing here runs under autocast. `fuse` decorates the two functions of tensors that steps consist of.
    Source: Wang et al., arXiv 1811.10959, whose gradient this is.
    """

    def __init__(self, loss: Loss, fuse: Fuse[Any] = _plain) -> None:
        self._forth, self._back = fuse(_forth(loss)), fuse(_back(loss))

    def __call__(self, params: Params, x: Tensor, y: Tensor, lr: Tensor) -> Params:
        """The parameters after T steps. Shapes: x and y [T, B, ...], lr [T]."""
        reached = _Steps.apply(self._forth, self._back, tuple(params), x, y, lr, *params.values())
        return dict(zip(params, reached, strict=True))


def _forth(loss: Loss) -> Callable[[Params, Tensor, Tensor, Tensor], Params]:
    slope_of = grad(loss)

    def forth(params: Params, x: Tensor, y: Tensor, lr: Tensor) -> Params:
        return _minus(params, lr, slope_of(params, x, y))

    return forth


def _back(loss: Loss) -> Callable[[Params, Params, Tensor, Tensor, Tensor], tuple[Params, Tensor, Tensor]]:
    slopes_of = grad(loss, argnums=(0, 1))

    def back(params: Params, v: Params, x: Tensor, y: Tensor, lr: Tensor) -> tuple[Params, Tensor, Tensor]:
        """From the derivative by a step's result to those by its parameters, its x and its lr."""
        both: Any = jvp(lambda w: slopes_of(w, x, y), (params,), (v,))
        (slope, _), (curved, mixed) = both
        along = torch.stack([(slope[name] * v[name]).sum() for name in v]).sum()
        return _minus(v, lr, curved), -lr * mixed, -along

    return back


def _minus(a: Params, lr: Tensor, b: Params) -> Params:
    moves = torch._foreach_mul([b[name] for name in a], lr)
    return dict(zip(a, torch._foreach_sub(list(a.values()), moves), strict=True))


def _no_autocast(x: Tensor) -> torch.autocast:
    # Products of second derivatives amplify rounding; and autocast does not reach through two nested transforms.
    return torch.autocast(x.device.type, enabled=False)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forth: Any, back: Any, names: tuple[str, ...], x: Tensor, y: Tensor, lr: Tensor, *start: Tensor
    ) -> tuple[Tensor, ...]:
        params, kept = dict(zip(names, start, strict=True)), list(start)
        with _no_autocast(x):
            for t in range(len(lr)):
                params = forth(params, x[t], y[t], lr[t])
                kept += params.values()
        ctx.back, ctx.names = back, names
        # What was reached is not kept: nothing is differentiated there.
        ctx.save_for_backward(x, y, lr, *kept[: len(lr) * len(names)])
        return tuple(params.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, y, lr, *kept = ctx.saved_tensors
        names = ctx.names
        v = dict(zip(names, slopes, strict=True))
        by_x, by_lr = [], []
        with _no_autocast(x):
            for t in reversed(range(len(lr))):
                params = dict(zip(names, kept[t * len(names) :], strict=False))
                v, dx, dlr = ctx.back(params, v, x[t], y[t], lr[t])
                by_x.append(dx)
                by_lr.append(dlr)
        return (None, None, None, torch.stack(by_x[::-1]), None, torch.stack(by_lr[::-1]), *v.values())
