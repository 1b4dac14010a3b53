"""Infinite-width kernels of networks: NNGP and NTK, exact, differentiable in the images, chunk by chunk.

Jacot et al., NeurIPS 2018 (the NTK); Arora et al., NeurIPS 2019 and Novak et al., ICLR 2019 (convolutional networks);
the architectures are those of Nguyen et al., NeurIPS 2021 (arXiv 2107.13034). NTK parameterisation, ReLU.

A network with pooling needs the covariance S of every pixel p of one image with every pixel p' of the other. But
convolution and ReLU keep the offset p' - p, and a network that ends in a flatten reads offset 0 alone. Each 2x2 pooling
on the way back widens the offsets that count from R to 2R + 1, so that a band of offsets is all there is to compute.

Shapes: images [n, C, H, W]. Inside, covariances are [H, W, A, B, n1, n2]: a pixel of the first image, then its partner
in the second (as an offset in a band, else as a pixel), then the pair; maps of one image are [H, W, n].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import pi
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.engine.capabilities import in_float64, runs_triton
from ddbench.engine.program import gpu_kernels
from ddbench.ntk.architectures import BIAS_VARIANCE, WEIGHT_VARIANCE, Architecture, resolutions
from ddbench.ntk.layouts import POLE, Layout, all_is_less, convolution_layouts, layouts_of

# Channels of images that the GPU kernels take.
MOST_CHANNELS = 4

# Pairs of images that the GPU kernels are cut into where it matters, on the first and on the second side.
HIGH, WIDE = 16, 64


class Kernel(NamedTuple):
    """Both kernels of pairs of images. Shapes: [n1, n2]."""

    nngp: Tensor
    ntk: Tensor


def kernel(
    network: Architecture, x1: Tensor, x2: Tensor | None = None, *, same: bool = False, full: bool | None = None
) -> Kernel:
    """NNGP and NTK of all pairs, in one piece, in the dtype of the images, differentiable once.

    Without x2, or with `same`, image i of both sides is one image: coincident directions are then known, and not left
    to rounding. `full` computes every pair of pixels also where a band is enough; by default where that is less.
    Raises: ConfigError for images too small for the network.
    """
    same = same or x2 is None
    constant = x2 is not None and not x2.requires_grad
    x2 = x1 if x2 is None else x2
    if network.flat:
        return _flat(network, x1, x2, same)
    first, second = (x.permute(1, 2, 3, 0) for x in (x1, x2))
    maps = [variances(network, x, full=bool(full)) for x in ((first,) if x2 is x1 else (first, second))]
    fused = one_pass(network, x1.shape[1], x1.device, x1.dtype) if constant and not full else None
    sizes = resolutions(network, *x1.shape[-2:])
    if full is None:
        full = fused is None and all_is_less(network, sizes)
    layouts = layouts_of(network, sizes, full)
    relus = iter(zip(maps[0], maps[-1], strict=True))
    if fused is not None:
        s, theta = _in_stages(fused, first, second, relus, convolution_layouts(network, layouts), same)
    else:
        s, theta = _layer_by_layer(network, first, second, relus, layouts, same)
    return read_out(network, layouts[-1], s, theta)


def read_out(network: Architecture, layout: Layout, s: Tensor, theta: Tensor) -> Kernel:
    """The flatten or the average over all pixels, and the dense layer."""
    read: Callable[[Tensor], Tensor] = layout.trace if network.banded else _mean_of_all
    nngp = WEIGHT_VARIANCE * read(s) + BIAS_VARIANCE
    return Kernel(nngp, WEIGHT_VARIANCE * read(theta) + nngp)


Maps = Iterator[tuple[Tensor, Tensor]]
"""The variances of both sides before each ReLU."""


def _layer_by_layer(
    network: Architecture, x1: Tensor, x2: Tensor, relus: Maps, layouts: Sequence[Layout], same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after the last layer before the flatten or the average."""
    s = layouts[0].conv(layouts[0].cross(x1, x2), BIAS_VARIANCE)
    theta, level = s, 0  # nothing before the first layer has weights
    for layer in network.layers[1:-2]:
        here = layouts[level]
        if layer == "conv":
            s = here.conv(s, BIAS_VARIANCE)
            theta = here.conv(theta, 0.0) + s
        elif layer == "relu":
            q1, q2 = next(relus)
            coincide = here.coincide(q1.shape[-1], s.device) if same else None
            s, theta = _Relu.apply(s, theta, here.own(q1)[..., None], here.partner(q2)[..., None, :], coincide)
        else:
            level += 1
            s, theta = here.pool(s, layouts[level]), here.pool(theta, layouts[level])
    return s, theta


def _in_stages(
    fused: Any, x1: Tensor, x2: Tensor, relus: Maps, plan: Sequence[tuple[Any, Any]], same: bool
) -> tuple[Tensor, Tensor]:
    """The covariances by kernels that take convolution, ReLU and pooling in one pass; x2 is a constant."""
    s, theta = fused.first_stage(x1, x2, *next(relus), *plan[0], same)
    for here, after in plan[1:]:
        s, theta = fused.next_stage(s, theta, *next(relus), here, after, same)
    return s, theta


def one_pass(network: Architecture, channels: int, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module of GPU kernels, where it can be used."""
    fits = network.banded and not network.flat and dtype == torch.float32 and channels <= MOST_CHANNELS
    if not runs_triton(device) or not fits or gpu_kernels() is None:
        return None
    from ddbench.ntk import gpu as kernels_fused

    return kernels_fused


def _mean_of_all(s: Tensor) -> Tensor:
    return s.mean((0, 1, 2, 3))


def _flat(network: Architecture, x1: Tensor, x2: Tensor, same: bool) -> Kernel:
    # The product in float64: TF32 and autocast leave that alone, and coincident images stay coincident.
    a, b = in_float64(x1.flatten(1)), in_float64(x2.flatten(1))
    s = (a @ b.T / a.shape[1]).to(x1)
    q1, q2 = ((torch.linalg.vector_norm(x, dim=1).square() / x.shape[1]).to(x1) for x in (a, b))
    theta = torch.zeros_like(s)
    coincide = torch.eye(len(x1), dtype=torch.bool, device=s.device) if same else None
    for layer in network.layers[1:]:
        if layer == "dense":
            s = WEIGHT_VARIANCE * s + BIAS_VARIANCE
            theta = WEIGHT_VARIANCE * theta + s
            q1, q2 = (WEIGHT_VARIANCE * q + BIAS_VARIANCE for q in (q1, q2))
        else:
            s, theta = _Relu.apply(s, theta, q1[:, None], q2, coincide)
            q1, q2 = q1 / 2, q2 / 2
    return Kernel(s, theta)


def variances(network: Architecture, x: Tensor, *, full: bool = False) -> list[Tensor]:
    """The maps [H, W, n] of S[p, p] before each ReLU, of images [C, H, W, n] with themselves.

    A pooled variance needs the covariance of neighbours, so that a band is carried here too: a narrower one, because
    nothing after the last ReLU counts.
    """
    last = len(network.layers) - network.layers[::-1].index("relu")
    front = replace(network, layers=network.layers[:last])
    levels = layouts_of(front, resolutions(front, x.shape[1], x.shape[2]), full)
    s = levels[0].cross_self(x)
    maps, level = [], 0
    for layer in front.layers:
        here = levels[level]
        match layer:
            case "conv":
                s = here.conv(s, BIAS_VARIANCE)
            case "relu":
                q = here.centre(s)
                maps.append(q)
                s, _ = _Relu.apply(s, None, here.own(q), here.partner(q), here.on_itself(s.device))
            case _:
                s = here.pool(s, levels[level + 1])
                level += 1
    return maps


class _Relu(torch.autograd.Function):
    """ReLU on S and Theta, given the variances on both sides (Cho and Saul, NeurIPS 2009), with explicit derivatives.

    With r the square root of q1 q2 - S^2 and t = atan2(r, S):
    S' = (r + (pi - t) S) / 2 pi, Theta' = Theta (pi - t) / 2 pi.
    """

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, theta: Tensor | None, q1: Tensor, q2: Tensor, coincide: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(s, theta, q1, q2, coincide)
        r = _sine(s, q1, q2, coincide)
        slope = _slope(r, s)
        return torch.addcmul(r / (2 * pi), slope, s), None if theta is None else slope * theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_s: Tensor, to_theta: Tensor | None) -> tuple[Tensor | None, ...]:
        s, theta, q1, q2, coincide = ctx.saved_tensors
        r = _sine(s, q1, q2, coincide)
        slope = _slope(r, s)
        grad_s = slope * to_s
        by_q = r * to_s  # both variances' derivatives are this over 4 pi q
        grad_theta = None
        if theta is not None and to_theta is not None:
            grad_theta = slope * to_theta
            pull = torch.where(r > 0, theta * to_theta / r, 0)
            grad_s = torch.add(grad_s, pull, alpha=1 / (2 * pi))
            by_q = torch.addcmul(by_q, pull, s, value=-1)
        grads_q = [
            by_q.sum_to_size(q.shape) * torch.where(q > 0, 1 / (4 * pi * q), 0) if wanted else None
            for q, wanted in zip((q1, q2), ctx.needs_input_grad[2:4], strict=True)
        ]
        return grad_s, grad_theta, *grads_q, None


def _sine(s: Tensor, q1: Tensor, q2: Tensor, coincide: Tensor | None) -> Tensor:
    """sqrt(q1 q2 - S^2), exactly 0 where that is rounding."""
    both = q1 * q2
    square = torch.addcmul(both, s, s, value=-1)
    r = torch.where(square > POLE * torch.finfo(s.dtype).eps * both, square, 0).sqrt()
    return r if coincide is None else r.masked_fill(coincide, 0)


def _slope(r: Tensor, s: Tensor) -> Tensor:
    return torch.atan2(r, s).mul_(-1 / (2 * pi)).add_(0.5)
