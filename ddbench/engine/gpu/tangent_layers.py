# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""GPU kernels for what lies between convolutions and for its tangent, which a Hessian-vector product differentiates.

Reverse-over-forward differentiation carries maps x and their tangents dx through a network and then back. With mean m
and inverse deviation s of a map and y = (x - m) s, the tangent of y is t = s (dx - mean(dx) - y mean(y dx)). For
gradients g of the norm's output w y + b, and h of its tangent w t + dw y + db, and with q = mean(y dx), the gradients
are

    of dx    s w r,  where r = h - mean(h) - y mean(h y)
    of x     s (w (g - mean(g) - y (mean(g y) + mean(h t)) - t mean(h y)) + (dw - s w q) r)
    of w     sum(g y) + sum(h t)
    of b     sum(g)

whatever eps is. As in `fused`, a block keeps the pixels of one image and a few channels in registers, here with their
tangents. Import this module only where CUDA and Triton are.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from ddbench.engine.gpu.tiles import (
    POOLINGS,
    Pooling,
    affine,
    fits,
    load_tiles,
    map_statistics,
    pooled_slope,
    put_pooled,
    tile_of,
    warps_of,
)

# Values and tangents in a thread; their gradients are as many again without pooling.
NUMBERS = 32
# Larger maps do not stay in the registers of a block.
MOST_PIXELS = 1024


@triton.jit
def _centred(a, b, c, d, inside, pixels: tl.constexpr):
    mean = (tl.sum(a + b + c + d, 0) / pixels)[None, :]
    a = tl.where(inside, a - mean, 0.0)
    b = tl.where(inside, b - mean, 0.0)
    c = tl.where(inside, c - mean, 0.0)
    d = tl.where(inside, d - mean, 0.0)
    return a, b, c, d


@triton.jit
def _normalised(x, dx, image, channels, i, j, inside, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Normalised values and their tangents, four tiles each; the scale; and how fast its logarithm shrinks."""
    a, b, c, d = load_tiles(x, image, channels, i, j, inside, C, H, W)
    ta, tb, tc, td = load_tiles(dx, image, channels, i, j, inside, C, H, W)
    a, b, c, d, _, scale = map_statistics(a, b, c, d, inside, H * W, eps)
    ta, tb, tc, td = _centred(ta, tb, tc, td, inside, H * W)
    along = tl.sum(a * ta + b * tb + c * tc + d * td, 0) / (H * W)
    s, q = scale[None, :], along[None, :]
    ta, tb, tc, td = s * (ta - a * q), s * (tb - b * q), s * (tc - c * q), s * (td - d * q)
    return a, b, c, d, ta, tb, tc, td, scale, scale * along


@triton.jit
def _vector(x, channels, C: tl.constexpr):
    """One number a channel; 0 where there is no vector."""
    if x is None:
        return tl.zeros(channels.shape, tl.float32)
    else:
        return tl.load(x + channels, mask=channels < C, other=0.0).to(tl.float32)


@triton.jit
def _affine_tangent(x, t, weight, bias, dweight, dbias, RELU: tl.constexpr):
    change = t * weight[None, :] + x * dweight[None, :] + dbias[None, :]
    if RELU:
        change = tl.where(affine(x, weight, bias, False) > 0, change, 0.0)
    return change


@triton.jit
def _jvp_forward(x, dx, weight, bias, dweight, dbias, out, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                    P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    image, images = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d, ta, tb, tc, td, _, _ = _normalised(x, dx, image, channels, i, j, inside, eps, C, H, W)
    w, s = _vector(weight, channels, C), _vector(bias, channels, C)
    dw, ds = _vector(dweight, channels, C), _vector(dbias, channels, C)
    ta, tb = _affine_tangent(a, ta, w, s, dw, ds, RELU), _affine_tangent(b, tb, w, s, dw, ds, RELU)
    tc, td = _affine_tangent(c, tc, w, s, dw, ds, RELU), _affine_tangent(d, td, w, s, dw, ds, RELU)
    a, b, c, d = (
        affine(a, w, s, RELU),
        affine(b, w, s, RELU),
        affine(c, w, s, RELU),
        affine(d, w, s, RELU),
    )
    put_pooled(out, a, b, c, d, image, channels, i, j, inside, C, H, W, POOL)
    if POOL == 2:
        # The tangent of the first of the largest, which is then the largest of four equal ones.
        most = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
        ta = tl.where(a == most, ta, tl.where(b == most, tb, tl.where(c == most, tc, td)))
        tb = ta
        tc = ta
        td = ta
    put_pooled(out, ta, tb, tc, td, image + images, channels, i, j, inside, C, H, W, POOL)


@triton.jit
def _jvp_backward(x, dx, weight, bias, dweight, grad, out, partial, eps, C: tl.constexpr, H: tl.constexpr,
                     W: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr,
                     POOL: tl.constexpr):  # fmt: skip
    image, images = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d, ta, tb, tc, td, scale, turn = _normalised(x, dx, image, channels, i, j, inside, eps, C, H, W)
    w, s, dw = _vector(weight, channels, C), _vector(bias, channels, C), _vector(dweight, channels, C)
    # Both at once: the block waits for memory only twice.
    ga, gb, gc, gd = pooled_slope(a, b, c, d, w, s, grad, image, channels, i, j, inside, C, H, W, RELU, POOL)
    ha, hb, hc, hd = pooled_slope(a, b, c, d, w, s, grad, image + images, channels, i, j, inside, C, H, W, RELU, POOL)
    of_bias = tl.sum(ga + gb + gc + gd, 0)
    of_weight = tl.sum(ga * a + gb * b + gc * c + gd * d + ha * ta + hb * tb + hc * tc + hd * td, 0)
    along = (tl.sum(ha * a + hb * b + hc * c + hd * d, 0) / (H * W))[None, :]
    ha, hb, hc, hd = _centred(ha, hb, hc, hd, inside, H * W)
    ha, hb, hc, hd = ha - a * along, hb - b * along, hc - c * along, hd - d * along
    tl.store(partial + image * 2 * C + channels, of_weight, mask=channels < C)
    tl.store(partial + image * 2 * C + C + channels, of_bias, mask=channels < C)
    m, q, r = (of_bias / (H * W))[None, :], (of_weight / (H * W))[None, :], (w * scale)[None, :]
    v = (scale * (dw - w * turn))[None, :]
    ga, gb = r * (ga - m - a * q - ta * along) + v * ha, r * (gb - m - b * q - tb * along) + v * hb
    gc, gd = r * (gc - m - c * q - tc * along) + v * hc, r * (gd - m - d * q - td * along) + v * hd
    put_pooled(out, ga, gb, gc, gd, image, channels, i, j, inside, C, H, W, 0)
    put_pooled(out, r * ha, r * hb, r * hc, r * hd, image + images, channels, i, j, inside, C, H, W, 0)


def _pair_tile(channels: int, pixels: int) -> tuple[int, int, int]:
    """Positions and channels of a block, and its warps."""
    positions, block = tile_of(channels, pixels)
    # With tangents, half the channels are as many numbers; 8 are the least that fill a sector of memory.
    block = max(8, block // 2)
    return positions, block, warps_of(8 * positions * block, NUMBERS)


def jvp_fits(channels: int, height: int, width: int) -> bool:
    """Whether the kernels take maps of this shape."""
    return height * width <= MOST_PIXELS and fits(channels, height, width)


def norm_act_pool_jvp(
    x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor, dweight: Tensor | None, dbias: Tensor | None, eps: float,
    relu: bool, pool: Pooling,
) -> Tensor:  # fmt: skip
    """Instance norm, ReLU and 2x2 pooling of maps, and of their tangents behind them, on a GPU. Not differentiable.

    Shapes: x and dx [N, C, H, W] float32 in channels-last layout; weight and bias [C], and their tangents, which are
    zero if None. Returns [2N, C, H', W'] in the same layout.
    """
    dweight, dbias = (None if v is None else v.contiguous() for v in (dweight, dbias))
    n, channels, height, width = x.shape
    half = 1 if pool == "none" else 2
    shape = (2 * n, channels, height // half, width // half)
    pair = torch.empty(shape, device=x.device, memory_format=torch.channels_last)
    positions, block, warps = _pair_tile(channels, height * width)
    _jvp_forward[(n, triton.cdiv(channels, block))](
        x, dx, weight, bias, dweight, dbias, pair, eps, channels, height, width, positions, block, relu,
        POOLINGS.index(pool), num_stages=1, num_warps=warps,
    )  # fmt: skip
    return pair


def norm_act_pool_jvp_gradients(
    grad: Tensor, x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor, dweight: Tensor | None, eps: float, relu: bool,
    pool: Pooling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x and dx, [2N, C, H, W], and those of weight and bias, [2, C]; `grad` is that of the pair."""
    dweight = None if dweight is None else dweight.contiguous()
    n, channels, height, width = x.shape
    out = torch.empty((2 * n, *x.shape[1:]), device=x.device, memory_format=torch.channels_last)
    partial = torch.empty((n, 2, channels), device=x.device)
    positions, block, warps = _pair_tile(channels, height * width)
    _jvp_backward[(n, triton.cdiv(channels, block))](
        x, dx, weight, bias, dweight, grad.contiguous(memory_format=torch.channels_last), out, partial, eps, channels,
        height, width, positions, block, relu, POOLINGS.index(pool), num_stages=1, num_warps=warps,
    )  # fmt: skip
    return out, partial.sum(0)
