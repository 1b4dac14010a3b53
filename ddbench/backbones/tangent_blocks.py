"""How fast a network's outputs change as its weights go along given directions, and the gradient of that.

Second derivatives enter matching methods only along directions: as Hessian-vector products, and as the slope, in the
images, of inner products with gradients. Both are the gradient of the change of a loss along a direction, so that
carrying tangents forward and differentiating once in reverse is all there is to do (Pearlmutter, Neural Computation
1994). For chains of convolution, instance norm, ReLU and pooling this is written out here: maps and their tangents lie
behind one another as one batch, a convolution of both is one convolution, and what lies between convolutions is one
kernel on a GPU (`tangent_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.engine.program import channels_last, gpu_kernels, layers_ran

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Block:
    """A convolution, instance norm, and perhaps ReLU and 2x2 pooling; by the names of the first two.

    `maps` is the shape [C, H, W] of what is normalised.
    """

    conv: str
    norm: str
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    eps: float
    relu: bool
    pool: str
    maps: tuple[int, int, int]


@dataclass(frozen=True)
class Linearised:
    """A chain of blocks that ends in a linear layer, together with its tangent."""

    blocks: Sequence[Block]
    linear: str

    @property
    def in_kernels(self) -> bool:
        """Whether the GPU kernels take all of its maps."""
        if gpu_kernels() is None:
            return False
        from ddbench.engine.gpu.tangent_layers import jvp_fits

        return all(jvp_fits(*block.maps) for block in self.blocks)

    def __call__(self, params: Tensors, directions: Tensors, images: Tensor) -> Tensor:
        """The logits, and behind them their change along the directions: [2N, K]. Differentiable once, in parameters
        and images, whose tangent is zero.

        Directions of norms and of the linear layer that are missing are zero. A direction of K copies of a
        convolution's or of the linear layer's weight, [K, *shape], belongs to K classes, whose images follow one
        another.
        """
        layers_ran(in_kernels=images.is_cuda and self.in_kernels)
        pair = images
        for number, block in enumerate(self.blocks):
            weight, of_norm, shift = (
                params[n] for n in (f"{block.conv}.weight", f"{block.norm}.weight", f"{block.norm}.bias")
            )
            pair = _Block.apply(
                block, number == 0, pair, weight, of_norm, shift, directions[f"{block.conv}.weight"],
                directions.get(f"{block.norm}.weight"), directions.get(f"{block.norm}.bias"),
            )  # fmt: skip
        names = f"{self.linear}.weight", f"{self.linear}.bias"
        out: Tensor = _Linear.apply(
            pair.flatten(1), *(params[name] for name in names), *(directions.get(name) for name in names)
        )
        return out


def cross_entropy_jvp(pair: Tensor, labels: Tensor, n: int) -> Tensor:
    """The change of the cross-entropy, summed over images and divided by n. Differentiable once, by soft labels too.

    Shapes: pair [2N, K], logits and their tangents behind them; labels [N] int64, or [N, K].
    """
    if labels.ndim == 2:
        logits, tangents = pair.chunk(2)
        return plain_cross_entropy_jvp(logits, tangents, labels, n)
    change: Tensor = _CrossEntropy.apply(pair, labels, n)
    return change


def plain_cross_entropy_jvp(logits: Tensor, change: Tensor, labels: Tensor, n: int) -> Tensor:
    """The change of the cross-entropy from logits [N, K] and their tangents, in operations that a compiler joins.

    Shapes: labels [N] int64, or [N, K]. By hand, because torch 2.15 cannot differentiate the tangent of a log-softmax.
    """
    if labels.ndim == 2:
        wrong = logits.softmax(dim=1) * labels.sum(dim=1, keepdim=True) - labels
    else:
        wrong = logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])
    return (wrong * change).sum() / n


class _Block(torch.autograd.Function):
    """A block of images, or of a pair. Keeps what the norm reads; all else is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        block: Block,
        first: bool,
        given: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        direction: Tensor,
        dscale: Tensor | None,
        dshift: Tensor | None,
    ) -> Tensor:
        # The convolution's own shift is left out: the norm takes it and its change away again.
        if first:
            given = channels_last(given)
            x, dx = _convolved(given, weight, block), _convolved(given, direction, block)
        else:
            x, dx = _convolved(given, weight, block).chunk(2)
            dx += _convolved(given[: len(x)], direction, block)
        ctx.save_for_backward(given, weight, scale, shift, direction, dscale, x, dx)
        ctx.block, ctx.first = block, first
        forward, _ = _norms(x)
        return forward(x, dx, scale, shift, dscale, dshift, block.eps, block.relu, block.pool)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given, weight, scale, shift, direction, dscale, x, dx = ctx.saved_tensors
        block: Block = ctx.block
        _, backward = _norms(x)
        pair, of_norm = backward(grad, x, dx, scale, shift, dscale, block.eps, block.relu, block.pool)
        g, h = pair.chunk(2)
        back = _Back(block)
        of_weight = of_given = None
        if ctx.first:
            # The images have no tangent, so that only the values' part depends on the weight.
            if ctx.needs_input_grad[3]:
                of_weight = back.weight(g, given, weight)
            if ctx.needs_input_grad[2]:
                of_given = back.images(g, given, weight) + back.images(h, given, direction)
        else:
            if ctx.needs_input_grad[3]:
                of_weight = back.weight(pair, given, weight)
            of_given = back.images(pair, given, weight)
            of_given[: len(x)] += back.images(h, given[: len(x)], direction)
        return None, None, of_given, of_weight, of_norm[0], of_norm[1], None, None, None


def _convolved(x: Tensor, weight: Tensor, block: Block) -> Tensor:
    if weight.ndim == 4:
        return channels_last(F.conv2d(channels_last(x), weight, None, block.stride, block.padding))
    parts = zip(x.chunk(len(weight)), weight, strict=True)
    return torch.cat([_convolved(part, w, block) for part, w in parts])


@dataclass(frozen=True)
class _Back:
    """The transposes of a convolution, for `slope` at its output."""

    block: Block

    def images(self, slope: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if weight.ndim == 4:
            return self._one(slope, x, weight, [True, False, False])[0]
        parts = zip(slope.chunk(len(weight)), x.chunk(len(weight)), weight, strict=True)
        return torch.cat([self._one(*part, [True, False, False])[0] for part in parts])

    def weight(self, slope: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._one(slope, x, weight, [False, True, False])[1]

    def _one(self, slope: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        block = self.block
        found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            slope, x, weight, None, block.stride, block.padding, (1, 1), False, (0, 0), 1, wanted
        )
        return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pair: Tensor, weight: Tensor, bias: Tensor, direction: Tensor | None, dbias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(pair, weight, direction)
        out = pair @ weight.T
        values, change = out.chunk(2)
        values += bias
        if direction is not None:
            change += _by_class(pair[: len(values)], direction.mT)
        if dbias is not None:
            change += dbias
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pair, weight, direction = ctx.saved_tensors
        g, h = grad.chunk(2)
        of_pair = grad @ weight
        if direction is not None:
            of_pair[: len(g)] += _by_class(h, direction)
        of_weight = grad.T @ pair if ctx.needs_input_grad[1] else None
        return of_pair, of_weight, g.sum(0), None, None


def _by_class(x: Tensor, matrix: Tensor) -> Tensor:
    """[N, A] times [A, B], or images of K classes times [K, A, B]."""
    return x @ matrix if matrix.ndim == 2 else (x.unflatten(0, (len(matrix), -1)) @ matrix).flatten(0, 1)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pair: Tensor, labels: Tensor, n: int) -> Tensor:
        logits, change = pair.chunk(2)
        chances = logits.softmax(dim=1)
        wrong = (chances - F.one_hot(labels, logits.shape[1])) / n
        ctx.save_for_backward(chances, change, wrong)
        ctx.n = n
        return (wrong * change).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        chances, change, wrong = ctx.saved_tensors
        of_logits = chances * (change - (chances * change).sum(1, keepdim=True)) / ctx.n
        return grad * torch.cat([of_logits, wrong]), None, None


Forward = Callable[..., Tensor]
Backward = Callable[..., tuple[Tensor, Tensor]]


def _norms(x: Tensor) -> tuple[Forward, Backward]:
    """Norm, ReLU and pooling of a pair, and the gradients: GPU kernels where they can be used."""
    if x.is_cuda and gpu_kernels() is not None:
        from ddbench.engine.gpu import tangent_layers as tangent_kernels

        if x.dtype == torch.float32 and tangent_kernels.jvp_fits(*x.shape[1:]):
            return tangent_kernels.norm_act_pool_jvp, tangent_kernels.norm_act_pool_jvp_gradients
    return _norm_forward, _norm_backward


# The same by torch: on a CPU, and for maps that the kernels do not take. y are normalised maps, t their tangents.


def _norm_forward(
    x: Tensor,
    dx: Tensor,
    scale: Tensor,
    shift: Tensor,
    dscale: Tensor | None,
    dshift: Tensor | None,
    eps: float,
    relu: bool,
    pool: str,
) -> Tensor:
    y, t, _, _ = _normalised(x, dx, eps)
    out, change = _channels(scale) * y + _channels(shift), _channels(scale) * t
    if dscale is not None:
        change = change + _channels(dscale) * y
    if dshift is not None:
        change = change + _channels(dshift)
    if relu:
        change = change.where(out > 0, 0.0)
        out = out.relu()
    match pool:
        case "avg":
            out, change = F.avg_pool2d(out, 2), F.avg_pool2d(change, 2)
        case "max":
            out, chosen = F.max_pool2d(out, 2, return_indices=True)
            change = change.flatten(2).gather(2, chosen.flatten(2)).view_as(out)
    return torch.cat([out, change])


def _norm_backward(
    grad: Tensor,
    x: Tensor,
    dx: Tensor,
    scale: Tensor,
    shift: Tensor,
    dscale: Tensor | None,
    eps: float,
    relu: bool,
    pool: str,
) -> tuple[Tensor, Tensor]:
    y, t, s, along = _normalised(x, dx, eps)
    out = _channels(scale) * y + _channels(shift)
    g, h = _unpooled(grad, out.relu() if relu else out, pool).chunk(2)
    if relu:
        g, h = (v.where(out > 0, 0.0) for v in (g, h))
    r = h - _mean(h) - y * _mean(h * y)
    a = g - _mean(g) - y * (_mean(g * y) + _mean(h * t)) - t * _mean(h * y)
    w = _channels(scale)
    turned = -w * s * along if dscale is None else _channels(dscale) - w * s * along
    sums = torch.stack([(g * y + h * t).sum((0, 2, 3)), g.sum((0, 2, 3))])
    return torch.cat([s * (w * a + turned * r), s * w * r]), sums


def _normalised(x: Tensor, dx: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, t, the inverse deviation s and mean(y dx)."""
    x, dx = x - _mean(x), dx - _mean(dx)
    s = (_mean(x * x) + eps).rsqrt()
    y = x * s
    along = _mean(y * dx)
    return y, s * (dx - y * along), s, along


def _unpooled(grad: Tensor, out: Tensor, pool: str) -> Tensor:
    """The gradient at the norm's output, [2N, C, H, W], from that at the pooling's."""
    match pool:
        case "avg":
            return grad.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
        case "max":
            _, chosen = F.max_pool2d(out, 2, return_indices=True)
            wide = grad.new_zeros(len(grad), out.shape[1], out.shape[2] * out.shape[3])
            wide.scatter_(2, torch.cat([chosen, chosen]).flatten(2), grad.flatten(2))
            return wide.unflatten(2, out.shape[2:])
    return grad


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _channels(x: Tensor) -> Tensor:
    return x[:, None, None]
