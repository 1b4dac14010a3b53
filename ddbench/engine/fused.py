# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""GPU kernels for what lies between convolutions, which is memory traffic: one pass where a chain of layers takes many.

Instance norm (Ulyanov et al., arXiv 1607.08022), activation and 2x2 pooling are one kernel, forward and backward: a
map of one image and a few channels is read once and stays in registers. The first convolution sees three channels, so
that computing it costs less than writing it down; it joins the kernel, and its output is computed again for the
gradient. Augmentation is one kernel too.

Gradients are first-order: whoever differentiates twice uses the plain layers. Import this module only where CUDA and
Triton are.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from ddbench.engine import augment as plain

Pooling = Literal["none", "avg", "max"]

Rounding = Literal["fp32", "tf32", "bf16"]

# What follows was measured on an H100 (docs/pages/concepts/engine.md).
# Numbers of a map in one thread block: few, so that few threads have to agree on a mean; more where the map is large,
# so that a block still reads whole lines of memory.
SMALL_TILE, LARGE_TILE, LARGE_MAP = 4096, 8192, 256
# Numbers in a thread.
NUMBERS = 64
# The first layer: channels and warps of a block; channels, positions at once and warps in its gradient.
FIRST = 32, 8
FIRST_BACK = 64, 32, 8
# Blocks that fill the device, and images that one goes through at most, so that partial sums are few.
FILLING_BLOCKS, MOST_IMAGES = 132, 4
# Larger maps leave too few channels a block for whole sectors of memory.
MOST_PIXELS = 4096
# Numbers that the first convolution reads for a pixel, and the constant one.
MOST_INPUTS = 32

_POOLINGS: tuple[Pooling, ...] = ("none", "avg", "max")


# Below, a map [H, W] is four tiles: the pixels of even and odd rows and columns, so that a 2x2 window is the same
# position in all four.


@triton.jit
def _tiles(x, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The four tiles of a map [H, W, C] at some positions and channels."""
    x += image * (H * W * C)
    at = ((2 * i * W + 2 * j) * C)[:, None] + channels[None, :]
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + C, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(x + at + W * C, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(x + at + (W + 1) * C, mask=inside, other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _statistics(a, b, c, d, inside, pixels: tl.constexpr, eps):
    mean = tl.sum(a + b + c + d, 0) / pixels
    a = tl.where(inside, a - mean[None, :], 0.0)
    b = tl.where(inside, b - mean[None, :], 0.0)
    c = tl.where(inside, c - mean[None, :], 0.0)
    d = tl.where(inside, d - mean[None, :], 0.0)
    variance = tl.sum(a * a + b * b + c * c + d * d, 0) / pixels
    scale = tl.rsqrt(variance + eps)
    return a * scale[None, :], b * scale[None, :], c * scale[None, :], d * scale[None, :], mean, scale


@triton.jit
def _affine(x, weight, bias, RELU: tl.constexpr):
    y = x * weight[None, :] + bias[None, :]
    if RELU:
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def _put(out, a, b, c, d, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
         POOL: tl.constexpr):  # fmt: skip
    if POOL == 0:
        out += image * (H * W * C)
        at = ((2 * i * W + 2 * j) * C)[:, None] + channels[None, :]
        tl.store(out + at, a, mask=inside)
        tl.store(out + at + C, b, mask=inside)
        tl.store(out + at + W * C, c, mask=inside)
        tl.store(out + at + (W + 1) * C, d, mask=inside)
    else:
        if POOL == 1:
            pooled = (a + b + c + d) * 0.25
        else:
            pooled = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
        out += image * (H * W * C // 4)
        at = ((i * (W // 2) + j) * C)[:, None] + channels[None, :]
        tl.store(out + at, pooled, mask=inside)


@triton.jit
def _slope(a, b, c, d, weight, bias, grad, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr,
           W: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    """The gradient at the norm's output, from that at the pooling's. a to d are normalised."""
    if POOL == 0:
        ga, gb, gc, gd = _tiles(grad, image, channels, i, j, inside, C, H, W)
    else:
        grad += image * (H * W * C // 4)
        at = ((i * (W // 2) + j) * C)[:, None] + channels[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if POOL == 1:
            ga = g * 0.25
            gb = ga
            gc = ga
            gd = ga
        else:
            # The first of the largest, as torch has it.
            ya = _affine(a, weight, bias, RELU)
            yb = _affine(b, weight, bias, RELU)
            yc = _affine(c, weight, bias, RELU)
            yd = _affine(d, weight, bias, RELU)
            most = tl.maximum(tl.maximum(ya, yb), tl.maximum(yc, yd))
            isa = ya == most
            isb = (yb == most) & (ya != most)
            isc = (yc == most) & (ya != most) & (yb != most)
            isd = (ya != most) & (yb != most) & (yc != most)
            ga = tl.where(isa, g, 0.0)
            gb = tl.where(isb, g, 0.0)
            gc = tl.where(isc, g, 0.0)
            gd = tl.where(isd, g, 0.0)
    if RELU:
        ga = tl.where(_affine(a, weight, bias, False) > 0, ga, 0.0)
        gb = tl.where(_affine(b, weight, bias, False) > 0, gb, 0.0)
        gc = tl.where(_affine(c, weight, bias, False) > 0, gc, 0.0)
        gd = tl.where(_affine(d, weight, bias, False) > 0, gd, 0.0)
    return ga, gb, gc, gd


@triton.jit
def _norm_forward(x, weight, bias, out, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
                  BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d = _tiles(x, image, channels, i, j, inside, C, H, W)
    a, b, c, d, _, _ = _statistics(a, b, c, d, inside, H * W, eps)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    _put(out, _affine(a, w, s, RELU), _affine(b, w, s, RELU), _affine(c, w, s, RELU), _affine(d, w, s, RELU),
         image, channels, i, j, inside, C, H, W, POOL)  # fmt: skip


@triton.jit
def _norm_backward(x, weight, bias, grad, out, partial, eps, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                   P: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, P)
    i, j = p // (W // 2), p % (W // 2)
    inside = (p < H * W // 4)[:, None] & (channels < C)[None, :]
    a, b, c, d = _tiles(x, image, channels, i, j, inside, C, H, W)
    a, b, c, d, _, scale = _statistics(a, b, c, d, inside, H * W, eps)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    ga, gb, gc, gd = _slope(a, b, c, d, w, s, grad, image, channels, i, j, inside, C, H, W, RELU, POOL)
    of_bias = tl.sum(ga + gb + gc + gd, 0)
    of_weight = tl.sum(ga * a + gb * b + gc * c + gd * d, 0)
    tl.store(partial + image * 2 * C + channels, of_weight, mask=channels < C)
    tl.store(partial + image * 2 * C + C + channels, of_bias, mask=channels < C)
    m, q, k = (of_bias / (H * W))[None, :], (of_weight / (H * W))[None, :], (w * scale)[None, :]
    _put(out, k * (ga - m - a * q), k * (gb - m - b * q), k * (gc - m - c * q), k * (gd - m - d * q),
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
    a, b, c, d, mean, scale = _statistics(a, b, c, d, inside, H * W, eps)
    tl.store(statistics + image * 2 * C + channels, mean, mask=channels < C)
    tl.store(statistics + image * 2 * C + C + channels, scale, mask=channels < C)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    _put(out, _affine(a, w, s, RELU), _affine(b, w, s, RELU), _affine(c, w, s, RELU), _affine(d, w, s, RELU),
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
            ga, gb, gc, gd = _slope(a, b, c, d, w, s, grad, image, channels, i, j, inside, C, H, W, RELU, POOL)
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


@triton.jit
def _at(x, base, r, s, inside, H: tl.constexpr, W: tl.constexpr):
    ok = inside & (r >= 0) & (r < H) & (s >= 0) & (s < W)
    return tl.load(x + base + r * W + s, mask=ok, other=0.0)


@triton.jit
def _augment(x, out, ops, numbers, share_op, share_numbers, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
             BLOCK: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, TALL_BOX: tl.constexpr,
             WIDE_BOX: tl.constexpr, TALLNESS: tl.constexpr, MOST: tl.constexpr, RADIANS: tl.constexpr):  # fmt: skip
    """One image a block. The order of operations is that of `augment.OPS`."""
    image = tl.program_id(0).to(tl.int64)
    op = tl.load(ops + image // share_op)
    row = numbers + image // share_numbers * 3
    u0, u1, u2 = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    base = image * (C * H * W)
    if op == 0:
        total = 0.0
        for first in range(0, C * H * W, BLOCK):
            at = first + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x + base + at, mask=at < C * H * W, other=0.0), 0)
        add = u0 - 0.5
        mean = total / (C * H * W) + add
        for first in range(0, H * W, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < H * W
            grey = tl.zeros((BLOCK,), tl.float32)
            for channel in tl.static_range(C):
                grey += tl.load(x + base + channel * H * W + at, mask=inside, other=0.0)
            grey = grey / C + add
            for channel in tl.static_range(C):
                value = tl.load(x + base + channel * H * W + at, mask=inside, other=0.0) + add
                value = (value - grey) * (2 * u1) + grey
                tl.store(out + base + channel * H * W + at, (value - mean) * (u2 + 0.5) + mean, mask=inside)
    else:
        low = 1.0 / MOST
        angle = tl.where(op == 5, (u0 - 0.5) * RADIANS, 0.0)
        grow_rows = tl.where(op == 4, low + u1 * (MOST - low), tl.cos(angle))
        grow_columns = tl.where(op == 4, low + u0 * (MOST - low), tl.cos(angle))
        grow_columns = tl.where((op == 3) & (u0 < 0.5), -grow_columns, grow_columns)
        move_rows = tl.where(op == 1, (u0 * (2 * DOWN + 1)).to(tl.int32) - DOWN, 0).to(tl.float32)
        move_columns = tl.where(op == 1, (u1 * (2 * RIGHT + 1)).to(tl.int32) - RIGHT, 0).to(tl.float32)
        turn = tl.sin(angle)
        top = (u0 * (H + 1 - TALL_BOX % 2)).to(tl.int32) - TALL_BOX // 2
        left = (u1 * (W + 1 - WIDE_BOX % 2)).to(tl.int32) - WIDE_BOX // 2
        for first in range(0, H * W, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < H * W
            r, s = at // W, at % W
            y, z = r - (H - 1) / 2, s - (W - 1) / 2
            r_from = grow_rows * y + turn / TALLNESS * z + (H - 1) / 2 + move_rows
            s_from = grow_columns * z - turn * TALLNESS * y + (W - 1) / 2 + move_columns
            upper, first_column = tl.floor(r_from), tl.floor(s_from)
            down, right = r_from - upper, s_from - first_column
            r0, s0 = upper.to(tl.int32), first_column.to(tl.int32)
            hidden = (op == 2) & (r >= top) & (r < top + TALL_BOX) & (s >= left) & (s < left + WIDE_BOX)
            for channel in tl.static_range(C):
                plane = base + channel * H * W
                value = _at(x, plane, r0, s0, inside, H, W) * ((1 - down) * (1 - right))
                value += _at(x, plane, r0, s0 + 1, inside, H, W) * ((1 - down) * right)
                value += _at(x, plane, r0 + 1, s0, inside, H, W) * (down * (1 - right))
                value += _at(x, plane, r0 + 1, s0 + 1, inside, H, W) * (down * right)
                tl.store(out + plane + at, tl.where(hidden, 0.0, value), mask=inside)


def fits(channels: int, height: int, width: int) -> bool:
    """Whether the kernels take maps of this shape."""
    return height % 2 == 0 and width % 2 == 0 and 0 < height * width <= MOST_PIXELS and channels % 8 == 0


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


def _tile(channels: int, pixels: int) -> tuple[int, int]:
    """Positions and channels of a block for a map of so many pixels."""
    positions = triton.next_power_of_2(pixels // 4)
    tile = LARGE_TILE if pixels >= LARGE_MAP else SMALL_TILE
    return positions, max(8, min(triton.next_power_of_2(channels), tile // (4 * positions), 128))


def _warps(numbers: int, each: int) -> int:
    """Warps for a tile of so many numbers, with `each` of them in a thread."""
    return max(1, min(16, numbers // (32 * each)))


@torch.library.custom_op("ddbench::norm_act_pool", mutates_args=())
def _norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: str, short: bool) -> Tensor:
    n, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = _pooled(x, channels, height, width, pool, short)
    positions, block = _tile(channels, height * width)
    _norm_forward[(n, triton.cdiv(channels, block))](
        x, weight, bias, out, eps, channels, height, width, positions, block, relu, _POOLINGS.index(pool),
        num_stages=1, num_warps=_warps(4 * positions * block, NUMBERS),
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
    positions, block = _tile(channels, height * width)
    _norm_backward[(n, triton.cdiv(channels, block))](
        x, weight, bias, grad, out, partial, eps, channels, height, width, positions, block, relu,
        _POOLINGS.index(pool), num_stages=1, num_warps=_warps(4 * positions * block, NUMBERS),
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
        positions, block, relu, _POOLINGS.index(pool), *shape.reading, *_products(rounding),
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
        partial, len(x), shape.channels, shape.height, shape.width, positions, block, relu, _POOLINGS.index(pool),
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


def augment(images: Tensor, ops: Tensor, numbers: Tensor, align_corners: bool = False) -> Tensor:
    """What `augment.apply` computes, in one kernel, without a gradient.

    Shapes: images [G, n, C, H, W] float32, ops [G] int64, numbers [G, 1, 3] or [G, n, 3].
    """
    groups, n, channels, height, width = images.shape
    images, out = images.contiguous(), torch.empty(images.shape, device=images.device)
    _augment[(groups * n,)](
        images, out, ops, numbers.contiguous(), n, n // numbers.shape[1], channels, height, width,
        min(1024, triton.next_power_of_2(height * width)), plain.reach(height), plain.reach(width),
        plain.box_side(height), plain.box_side(width), plain.tallness(height, width, align_corners), plain.SCALE_MOST,
        plain.MOST_TURN, num_stages=1, num_warps=4,
    )  # fmt: skip
    return out
