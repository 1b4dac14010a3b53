# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The GPU kernel of augmentation: one pass over the images."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from ddbench.engine import augment as plain


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
