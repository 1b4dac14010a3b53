# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""GPU kernels for what lies between convolutions, which is memory traffic: one pass where a chain of layers takes many.

Instance norm (Ulyanov et al., arXiv 1607.08022), activation and 2x2 pooling are one kernel, forward and backward: a
map of one image and a few channels is read once and stays in registers. The first convolution sees three channels, so
that computing it costs less than writing it down; it joins the kernel, and its output is computed again for the
gradient.

Gradients are first-order: whoever differentiates twice uses the plain layers. Import this module only where CUDA and
Triton are.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from ddbench.engine.gpu.tiles import (
    POOLINGS,
    Pooling,
    Rounding,
    affine,
    fits,
    load_tiles,
    map_statistics,
    pooled_slope,
    put_pooled,
    tile_of,
    warps_of,
)

# What follows was measured on an H100 (docs/pages/concepts/engine.md).
# Numbers in a thread.
NUMBERS = 64
# The first layer: channels and warps of a block; channels, positions at once and warps in its gradient.
FIRST = 32, 8
FIRST_BACK = 64, 32, 8
# Blocks that fill the device, and images that one goes through at most, so that partial sums are few.
FILLING_BLOCKS, MOST_IMAGES = 132, 4
# Numbers that the first convolution reads for a pixel, and the constant one.
MOST_INPUTS = 32


@triton.jit
def _norm_forward(x, weight, bias, out, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
                  BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d = load_tiles(x, image, channels, i, j, inside, C, H, W)
    a, b, c, d, _, _ = map_statistics(a, b, c, d, inside, H * W, eps)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    put_pooled(out, affine(a, w, s, RELU), affine(b, w, s, RELU), affine(c, w, s, RELU), affine(d, w, s, RELU),
         image, channels, i, j, inside, C, H, W, POOL)  # fmt: skip


@triton.jit
def _norm_backward(x, weight, bias, grad, out, partial, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                   P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d = load_tiles(x, image, channels, i, j, inside, C, H, W)
    a, b, c, d, _, scale = map_statistics(a, b, c, d, inside, H * W, eps)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    ga, gb, gc, gd = pooled_slope(a, b, c, d, w, s, grad, image, channels, i, j, inside, C, H, W, RELU, POOL)
    of_bias = tl.sum(ga + gb + gc + gd, 0)
    of_weight = tl.sum(ga * a + gb * b + gc * c + gd * d, 0)
    tl.store(partial + image * 2 * C + channels, of_weight, mask=channels < C)
    tl.store(partial + image * 2 * C + C + channels, of_bias, mask=channels < C)
    m, q, k = (of_bias / (H * W))[None, :], (of_weight / (H * W))[None, :], (w * scale)[None, :]
    put_pooled(out, k * (ga - m - a * q), k * (gb - m - b * q), k * (gc - m - c * q), k * (gd - m - d * q),
         image, channels, i, j, inside, C, H, W, 0)  # fmt: skip


@triton.jit
def _columns(x, image, rows, columns, valid, K: tl.constexpr, IN: tl.constexpr, SIDE: tl.constexpr, PAD: tl.constexpr,
             HI: tl.constexpr, WI: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
             SHORT: tl.constexpr):  # fmt: skip
    """What a convolution reads for some pixels: [P, K], the K inputs of each."""
    k = tl.arange(0, K)
    r = rows[:, None] + ((k % (SIDE * SIDE)) // SIDE)[None, :] - PAD
    s = columns[:, None] + (k % SIDE)[None, :] - PAD
    ok = valid[:, None] & (k < IN * SIDE * SIDE)[None, :] & (r >= 0) & (r < HI) & (s >= 0) & (s < WI)
    at = (k // (SIDE * SIDE))[None, :] * XC + r * XH + s * XW
    value = tl.load(x + image * (IN * HI * WI) + at, mask=ok, other=0.0)
    # One more reading that is always 1; the weights for it are 0.
    value = tl.where((k == IN * SIDE * SIDE)[None, :] & valid[:, None], 1.0, value)
    return value.to(tl.bfloat16) if SHORT else value.to(tl.float32)


@triton.jit
def _convolved(x, wk, image, i, j, valid, K: tl.constexpr, IN: tl.constexpr, SIDE: tl.constexpr, PAD: tl.constexpr,
               HI: tl.constexpr, WI: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
               SHORT: tl.constexpr, ROUND: tl.constexpr):  # fmt: skip
    """The four tiles of a convolution's output."""
    a = _columns(x, image, 2 * i, 2 * j, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
    a = tl.dot(a, wk, input_precision=ROUND)
    b = _columns(x, image, 2 * i, 2 * j + 1, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
    b = tl.dot(b, wk, input_precision=ROUND)
    c = _columns(x, image, 2 * i + 1, 2 * j, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
    c = tl.dot(c, wk, input_precision=ROUND)
    d = _columns(x, image, 2 * i + 1, 2 * j + 1, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
    d = tl.dot(d, wk, input_precision=ROUND)
    return a, b, c, d


@triton.jit
def _weights(kernel, channels, K: tl.constexpr, INPUTS: tl.constexpr, C: tl.constexpr, SHORT: tl.constexpr):
    k = tl.arange(0, K)
    ok = (k < INPUTS)[:, None] & (channels < C)[None, :]
    value = tl.load(kernel + channels[None, :] * INPUTS + k[:, None], mask=ok, other=0.0)
    return value.to(tl.bfloat16) if SHORT else value.to(tl.float32)


@triton.jit
def _first_forward(x, kernel, weight, bias, out, statistics, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                   P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr, IN: tl.constexpr,
                   SIDE: tl.constexpr, PAD: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, XC: tl.constexpr,
                   XH: tl.constexpr, XW: tl.constexpr, K: tl.constexpr,
                   SHORT: tl.constexpr, ROUND: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    valid = p < H * W // 4
    inside = valid[:, None] & (channels < C)[None, :]
    wk = _weights(kernel, channels, K, IN * SIDE * SIDE, C, SHORT)
    a, b, c, d = _convolved(x, wk, image, i, j, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT, ROUND)
    a, b, c, d, mean, scale = map_statistics(a, b, c, d, inside, H * W, eps)
    tl.store(statistics + image * 2 * C + channels, mean, mask=channels < C)
    tl.store(statistics + image * 2 * C + C + channels, scale, mask=channels < C)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    put_pooled(out, affine(a, w, s, RELU), affine(b, w, s, RELU), affine(c, w, s, RELU), affine(d, w, s, RELU),
         image, channels, i, j, inside, C, H, W, POOL)  # fmt: skip


@triton.jit
def _first_backward(x, kernel, weight, bias, statistics, grad, partial, images, C: tl.constexpr, H: tl.constexpr,
                    W: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
                    IN: tl.constexpr, SIDE: tl.constexpr, PAD: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr,
                    XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr, K: tl.constexpr, SHORT: tl.constexpr,
                    ROUND: tl.constexpr, EACH: tl.constexpr):  # fmt: skip
    """With y = normalised output, g its gradient and r what the convolution reads, the gradient of the kernel is
    scale * sum(r (g - mean(g) - y mean(g y))). The means are known only after all pixels, so that sum(r g), sum(r) and
    sum(r y) are summed apart; sum(g) is sum(r g) for a reading that is always 1, and sum(g y) follows from it."""
    group = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exist = channels < C
    rows = tl.arange(0, K)
    inputs: tl.constexpr = IN * SIDE * SIDE
    wk = _weights(kernel, channels, K, inputs, C, SHORT)
    full = _weights(kernel, channels, K, inputs, C, False)
    w = tl.load(weight + channels, mask=exist, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=exist, other=0.0).to(tl.float32)
    of_kernel = tl.zeros((K, BLOCK), tl.float32)
    of_weight = tl.zeros((BLOCK,), tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    for each in range(EACH):
        image = (group * EACH + each).to(tl.int64)
        here = tl.where(image < images, H * W // 4, 0)
        known = channels < tl.where(image < images, C, 0)
        mean = tl.load(statistics + image * 2 * C + channels, mask=known, other=0.0)
        scale = tl.load(statistics + image * 2 * C + C + channels, mask=known, other=0.0)
        read_g = tl.zeros((K, BLOCK), tl.float32)
        read_y = tl.zeros((K, BLOCK), tl.float32)
        read = tl.zeros((P, K), tl.float32)
        for first in range(0, H * W // 4, P):
            p = first + tl.arange(0, P)
            i, j = p // (W // 2), p % (W // 2)
            valid = p < here
            inside = valid[:, None] & exist[None, :]
            ra = _columns(x, image, 2 * i, 2 * j, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
            rb = _columns(x, image, 2 * i, 2 * j + 1, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
            rc = _columns(x, image, 2 * i + 1, 2 * j, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
            rd = _columns(x, image, 2 * i + 1, 2 * j + 1, valid, K, IN, SIDE, PAD, HI, WI, XC, XH, XW, SHORT)
            a = tl.where(inside, (tl.dot(ra, wk, input_precision=ROUND) - mean[None, :]) * scale[None, :], 0.0)
            b = tl.where(inside, (tl.dot(rb, wk, input_precision=ROUND) - mean[None, :]) * scale[None, :], 0.0)
            c = tl.where(inside, (tl.dot(rc, wk, input_precision=ROUND) - mean[None, :]) * scale[None, :], 0.0)
            d = tl.where(inside, (tl.dot(rd, wk, input_precision=ROUND) - mean[None, :]) * scale[None, :], 0.0)
            ga, gb, gc, gd = pooled_slope(a, b, c, d, w, s, grad, image, channels, i, j, inside, C, H, W, RELU, POOL)
            if SHORT:
                a, b, c, d = a.to(tl.bfloat16), b.to(tl.bfloat16), c.to(tl.bfloat16), d.to(tl.bfloat16)
                ga, gb, gc, gd = ga.to(tl.bfloat16), gb.to(tl.bfloat16), gc.to(tl.bfloat16), gd.to(tl.bfloat16)
            read_g = tl.dot(tl.trans(ra), ga, read_g, input_precision=ROUND)
            read_g = tl.dot(tl.trans(rb), gb, read_g, input_precision=ROUND)
            read_g = tl.dot(tl.trans(rc), gc, read_g, input_precision=ROUND)
            read_g = tl.dot(tl.trans(rd), gd, read_g, input_precision=ROUND)
            read_y = tl.dot(tl.trans(ra), a, read_y, input_precision=ROUND)
            read_y = tl.dot(tl.trans(rb), b, read_y, input_precision=ROUND)
            read_y = tl.dot(tl.trans(rc), c, read_y, input_precision=ROUND)
            read_y = tl.dot(tl.trans(rd), d, read_y, input_precision=ROUND)
            read += ra.to(tl.float32) + rb.to(tl.float32) + rc.to(tl.float32) + rd.to(tl.float32)
        bias_here = tl.sum(tl.where((rows == inputs)[:, None], read_g, 0.0), 0)
        weight_here = (tl.sum(full * read_g, 0) - mean * bias_here) * scale
        m, q = (bias_here / (H * W))[None, :], (weight_here / (H * W))[None, :]
        of_kernel += (w * scale)[None, :] * (read_g - m * tl.sum(read, 0)[:, None] - q * read_y)
        of_bias += bias_here
        of_weight += weight_here
    sums = partial + group.to(tl.int64) * (K + 2) * C
    tl.store(sums + rows[:, None] * C + channels[None, :], of_kernel, mask=exist[None, :] & (rows < K)[:, None])
    tl.store(sums + K * C + channels, of_weight, mask=exist)
    tl.store(sums + (K + 1) * C + channels, of_bias, mask=exist)


def first_fits(inputs: int, channels: int, height: int, width: int) -> bool:
    """Whether the first convolution, with so many inputs a pixel, joins the kernel that makes maps of this shape."""
    return inputs < MOST_INPUTS and channels % 16 == 0 and height * width <= 1024 and fits(channels, height, width)


class _Shape:
    """A convolution's output, and how a kernel reads its input."""

    def __init__(self, x: Tensor, kernel: Tensor, padding: int) -> None:
        _, channels_in, hi, wi = x.shape
        self.channels, _, side, _ = kernel.shape[-4:]
        self.height, self.width = hi + 2 * padding - side + 1, wi + 2 * padding - side + 1
        self.inputs = channels_in * side * side
        if x.stride(0) != x[0].numel():
            raise ValueError("images must follow one another in memory without gaps")
        # At least one more than the inputs; and products have at least 16.
        self.padded = max(16, triton.next_power_of_2(self.inputs + 1))
        self.reading = (channels_in, side, padding, hi, wi, *x.stride()[1:], self.padded)


def _one(kernel: Tensor) -> Tensor:
    """The kernel, of which there may be one copy a class."""
    return kernel[0] if kernel.ndim == 5 else kernel


def _products(rounding: str) -> tuple[bool, str]:
    """Whether inputs become bfloat16, and Triton's word for the precision of products."""
    # Three products of TF32 parts are as exact as float32 and much faster.
    return rounding == "bf16", "tf32" if rounding == "tf32" else "tf32x3"


def _pooled(x: Tensor, channels: int, height: int, width: int, pool: str, short: bool) -> Tensor:
    half = 1 if pool == "none" else 2
    return torch.empty(
        (len(x), channels, height // half, width // half), device=x.device, memory_format=torch.channels_last,
        dtype=torch.bfloat16 if short else torch.float32,
    )  # fmt: skip


@torch.library.custom_op("ddbench::norm_act_pool", mutates_args=())
def _norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: str, short: bool) -> Tensor:
    n, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = _pooled(x, channels, height, width, pool, short)
    positions, block = tile_of(channels, height * width)
    _norm_forward[(n, triton.cdiv(channels, block))](
        x, weight, bias, out, eps, channels, height, width, positions, block, relu, POOLINGS.index(pool),
        num_stages=1, num_warps=warps_of(4 * positions * block, NUMBERS),
    )  # fmt: skip
    return out


@_norm_act_pool.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: str, short: bool) -> Tensor:
    _, channels, height, width = x.shape
    return _pooled(x, channels, height, width, pool, short)


@torch.library.custom_op("ddbench::norm_act_pool_backward", mutates_args=())
def _norm_act_pool_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: str
) -> tuple[Tensor, Tensor]:
    n, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    partial = torch.empty((n, 2, channels), device=x.device)
    positions, block = tile_of(channels, height * width)
    _norm_backward[(n, triton.cdiv(channels, block))](
        x, weight, bias, grad, out, partial, eps, channels, height, width, positions, block, relu,
        POOLINGS.index(pool), num_stages=1, num_warps=warps_of(4 * positions * block, NUMBERS),
    )  # fmt: skip
    return out, partial.sum(0)


@_norm_act_pool_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: str
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.channels_last)
    return out, x.new_empty((2, x.shape[1]), dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, ctx.eps, ctx.relu, ctx.pool, _ = inputs
    ctx.save_for_backward(x, weight, bias)


def _norm_gradients(ctx, grad: Tensor):
    x, weight, bias = ctx.saved_tensors
    of_x, rest = _norm_act_pool_backward(grad, x, weight, bias, ctx.eps, ctx.relu, ctx.pool)
    return of_x, rest[0].to(weight.dtype), rest[1].to(bias.dtype), None, None, None, None


_norm_act_pool.register_autograd(_norm_gradients, setup_context=_keep)


def norm_act_pool(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, relu: bool, pool: Pooling, short: bool
) -> Tensor:
    """Instance norm, ReLU and 2x2 pooling of maps [N, C, H, W] in channels-last layout, on a GPU.

    `short` returns bfloat16, else float32. Differentiable once.
    """
    out: Tensor = _norm_act_pool(x, weight, bias, eps, relu, pool, short)
    return out


@torch.library.custom_op("ddbench::first_layer", mutates_args=())
def _first_layer(
    x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, padding: int, eps: float, relu: bool, pool: str,
    short: bool, rounding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and mean and inverse deviation [N, 2, C] of the convolution's."""
    shape, kernel = _Shape(x, kernel, padding), _one(kernel)
    out = _pooled(x, shape.channels, shape.height, shape.width, pool, short)
    statistics = torch.empty((len(x), 2, shape.channels), device=x.device)
    positions = triton.next_power_of_2(shape.height * shape.width // 4)
    block, warps = FIRST
    _first_forward[(len(x), triton.cdiv(shape.channels, block))](
        x, kernel.contiguous(), weight, bias, out, statistics, eps, shape.channels, shape.height, shape.width,
        positions, block, relu, POOLINGS.index(pool), *shape.reading, *_products(rounding),
        num_stages=1, num_warps=warps,
    )  # fmt: skip
    return out, statistics


@_first_layer.register_fake
def _(
    x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, padding: int, eps: float, relu: bool, pool: str,
    short: bool, rounding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = _Shape(x, kernel, padding)
    statistics = x.new_empty((len(x), 2, shape.channels), dtype=torch.float32)
    return _pooled(x, shape.channels, shape.height, shape.width, pool, short), statistics


@torch.library.custom_op("ddbench::first_layer_backward", mutates_args=())
def _first_layer_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, padding: int,
    relu: bool, pool: str, rounding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = _Shape(x, kernel, padding)
    classes = len(kernel) if kernel.ndim == 5 else 1
    block, positions, warps = FIRST_BACK
    across = triton.cdiv(shape.channels, block)
    each = max(1, min(MOST_IMAGES, len(x) * across // FILLING_BLOCKS))
    if classes > 1:  # no block has images of two classes
        each = math.gcd(each, len(x) // classes)
    groups = triton.cdiv(len(x), each)
    partial = torch.empty((groups, shape.padded + 2, shape.channels), device=x.device)
    _first_backward[(groups, across)](
        x, _one(kernel).contiguous(), weight, bias, statistics, grad.contiguous(memory_format=torch.channels_last),
        partial, len(x), shape.channels, shape.height, shape.width, positions, block, relu, POOLINGS.index(pool),
        *shape.reading, *_products(rounding), each,
        num_stages=1, num_warps=warps,
    )  # fmt: skip
    total = partial.unflatten(0, (classes, -1)).sum(1)
    of_kernel = total[:, : shape.inputs].mT.reshape(classes, *kernel.shape[-4:]).contiguous()
    return of_kernel.view(kernel.shape), total[:, shape.padded :].sum(0)


@_first_layer_backward.register_fake
def _(
    grad: Tensor, x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, padding: int,
    relu: bool, pool: str, rounding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_norm = kernel.new_empty((2, kernel.shape[-4]), dtype=torch.float32)
    return kernel.new_empty(kernel.shape, dtype=torch.float32), of_norm


def _keep_first(ctx, inputs, output) -> None:
    x, kernel, weight, bias, ctx.padding, _, ctx.relu, ctx.pool, _, ctx.rounding = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, kernel, weight, bias, output[1])


def _first_gradients(ctx, grad: Tensor, _: Tensor | None):
    x, kernel, weight, bias, statistics = ctx.saved_tensors
    if ctx.needs_input_grad[0]:
        raise RuntimeError("first_layer has no gradient for its images; use a convolution and norm_act_pool")
    of_kernel, rest = _first_layer_backward(
        grad, x, kernel, weight, bias, statistics, ctx.padding, ctx.relu, ctx.pool, ctx.rounding
    )
    return None, of_kernel.to(kernel.dtype), rest[0].to(weight.dtype), rest[1].to(bias.dtype), *[None] * 6


_first_layer.register_autograd(_first_gradients, setup_context=_keep_first)


def first_layer(
    x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, *, padding: int, eps: float, relu: bool, pool: Pooling,
    short: bool, rounding: Rounding,
) -> Tensor:  # fmt: skip
    """Convolution, instance norm, ReLU and 2x2 pooling of images [N, C, H, W], on a GPU.

    The convolution's own shift is left out: the norm takes it away again. `rounding` is that of the inputs of
    products; `short` returns bfloat16, else float32. Differentiable once, in kernel, weight and bias. K copies of one
    kernel, [K, out, in, side, side], get the gradients of K classes, whose images follow one another.
    """
    out: Tensor = _first_layer(x, kernel, weight, bias, padding, eps, relu, pool, short, rounding)[0]
    return out
