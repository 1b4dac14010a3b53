# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What the kernels of layers share: how a map lies in tiles, its statistics, and how many threads it takes.

Import this module only where Triton is.
"""

from __future__ import annotations

from typing import Literal

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

Pooling = Literal["none", "avg", "max"]

Rounding = Literal["fp32", "tf32", "bf16"]

# Measured on an H100 (docs/pages/concepts/engine.md).
# Numbers of a map in one thread block: few, so that few threads have to agree on a mean; more where the map is large,
# so that a block still reads whole lines of memory.
SMALL_TILE, LARGE_TILE, LARGE_MAP = 4096, 8192, 256
# Larger maps leave too few channels a block for whole sectors of memory.
MOST_PIXELS = 4096

POOLINGS: tuple[Pooling, ...] = ("none", "avg", "max")


# Below, a map [H, W] is four tiles: the pixels of even and odd rows and columns, so that a 2x2 window is the same
# position in all four.


@triton.jit
def load_tiles(x, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The four tiles of a map [H, W, C] at some positions and channels."""
    x += image * (H * W * C)
    at = ((2 * i * W + 2 * j) * C)[:, None] + channels[None, :]
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + C, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(x + at + W * C, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(x + at + (W + 1) * C, mask=inside, other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def map_statistics(a, b, c, d, inside, pixels: tl.constexpr, eps):
    mean = tl.sum(a + b + c + d, 0) / pixels
    a = tl.where(inside, a - mean[None, :], 0.0)
    b = tl.where(inside, b - mean[None, :], 0.0)
    c = tl.where(inside, c - mean[None, :], 0.0)
    d = tl.where(inside, d - mean[None, :], 0.0)
    variance = tl.sum(a * a + b * b + c * c + d * d, 0) / pixels
    scale = tl.rsqrt(variance + eps)
    return a * scale[None, :], b * scale[None, :], c * scale[None, :], d * scale[None, :], mean, scale


@triton.jit
def affine(x, weight, bias, RELU: tl.constexpr):
    y = x * weight[None, :] + bias[None, :]
    if RELU:
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def put_pooled(out, a, b, c, d, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
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
def pooled_slope(a, b, c, d, weight, bias, grad, image, channels, i, j, inside, C: tl.constexpr, H: tl.constexpr,
           W: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):  # fmt: skip
    """The gradient at the norm's output, from that at the pooling's. a to d are normalised."""
    if POOL == 0:
        ga, gb, gc, gd = load_tiles(grad, image, channels, i, j, inside, C, H, W)
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
            ya = affine(a, weight, bias, RELU)
            yb = affine(b, weight, bias, RELU)
            yc = affine(c, weight, bias, RELU)
            yd = affine(d, weight, bias, RELU)
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
        ga = tl.where(affine(a, weight, bias, False) > 0, ga, 0.0)
        gb = tl.where(affine(b, weight, bias, False) > 0, gb, 0.0)
        gc = tl.where(affine(c, weight, bias, False) > 0, gc, 0.0)
        gd = tl.where(affine(d, weight, bias, False) > 0, gd, 0.0)
    return ga, gb, gc, gd


def fits(channels: int, height: int, width: int) -> bool:
    """Whether the kernels take maps of this shape."""
    return height % 2 == 0 and width % 2 == 0 and 0 < height * width <= MOST_PIXELS and channels % 8 == 0


def tile_of(channels: int, pixels: int) -> tuple[int, int]:
    """Positions and channels of a block for a map of so many pixels."""
    positions = triton.next_power_of_2(pixels // 4)
    tile = LARGE_TILE if pixels >= LARGE_MAP else SMALL_TILE
    return positions, max(8, min(triton.next_power_of_2(channels), tile // (4 * positions), 128))


def warps_of(numbers: int, each: int) -> int:
    """Warps for a tile of so many numbers, with `each` of them in a thread."""
    return max(1, min(16, numbers // (32 * each)))
