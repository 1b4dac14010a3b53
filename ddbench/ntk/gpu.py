# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""GPU kernels for bands of covariances: convolution, ReLU and pooling in one pass over memory.

A stage reads the covariances before it and writes those after it, and nothing between is written down. The first stage
reads images, which are a thousandth of their covariances, so that it only writes. Gradients compute the stage again.

Convolution and ReLU keep the offset between two pixels. A program holds one image on the first side, a block of images
on the second and one offset (where there is pooling, the nine that an offset after it averages), and walks down the
rows: the sums of a row serve three convolutions. Sums over pairs are made in a fixed order.

Inside, covariances are [n1, blocks, H, W, A, B, LANES]: second images come in blocks of a warp's width, so that a load
is whole lines and the way from one entry to the next is known when a kernel is compiled. First images are
[n1, C, H, W], second ones [blocks, H, C, W, LANES]; their variances have no C.

float32 alone. Import this module only where Triton is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.ntk.architectures import BIAS_VARIANCE, WEIGHT_VARIANCE
from ddbench.ntk.kernel import HIGH, WIDE
from ddbench.ntk.layouts import POLE, Band

# Second images of a block, and cells of two columns of pixels that a program takes at most: a warp has one of each.
LANES, CELLS = tl.constexpr(32), 8

# Products in the gradient of images take three passes of TF32, which keep 22 bits.
PRODUCT = "tf32x3"

TOLERANCE = POLE * torch.finfo(torch.float32).eps


@triton.jit
def _line(x1, x2, s, t, row, dy, dx, x, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
          C: tl.constexpr, IMAGES: tl.constexpr):  # fmt: skip
    """Sums over three columns of one row, of S and then of Theta, for pixels x and x + 1 and partners dx further.

    Both pixels move; what is outside an image counts as 0.
    """
    j = tl.arange(0, LANES)[None, :]
    s0 = tl.zeros((x.shape[0], LANES), tl.float32)
    s1, t0, t1 = s0, s0, s0
    # Columns whose partners are inside; none in a row whose partners are outside.
    left = tl.maximum(0, -dx)
    right = tl.where((row >= 0) & (row < H) & (row + dy >= 0) & (row + dy < H), tl.minimum(W, W - dx), 0)
    size: tl.constexpr = (2 * RY + 1) * (2 * RX + 1) * LANES
    at = row * W * size + ((dy + RY) * (2 * RX + 1) + dx + RX) * LANES + (x * size + j)
    one = x1 + row * W + x
    two = x2 + ((row + dy) * C * W + dx) * LANES + (x * LANES + j)
    for e in tl.static_range(-1, 3):
        inside = (x + e >= left) & (x + e < right)
        if IMAGES:
            a = tl.zeros((x.shape[0], LANES), tl.float32)
            for c in tl.static_range(C):
                first = tl.load(one + (c * H * W + e), mask=inside, other=0.0)
                a += first * tl.load(two + (c * W + e) * LANES, mask=inside, other=0.0)
            b = a
        else:
            a = tl.load(s + at + e * size, mask=inside, other=0.0)
            b = tl.load(t + at + e * size, mask=inside, other=0.0)
        if e < 2:
            s0 += a
            t0 += b
        if e >= 0:
            s1 += a
            t1 += b
    return s0, s1, t0, t1


@triton.jit
def _lines(x1, x2, s, t, row, dy, dx, x, live, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
           C: tl.constexpr, IMAGES: tl.constexpr):  # fmt: skip
    """`_line` for the pairs of pixels x + a and x + dx + b, (a, b) = (1, 0), (0, 0), (1, 1), (0, 1).

    x and dx are even. Where `live`, x + 1 and x + dx + 1 are inside.
    """
    j = tl.arange(0, LANES)[None, :]
    zero = tl.zeros((x.shape[0], LANES), tl.float32)
    s0, s1, s2, s3 = zero, zero, zero, zero
    t0, t1, t2, t3 = zero, zero, zero, zero
    v = x + dx
    here = live & (x < tl.where((row >= 0) & (row < H) & (row + dy >= 0) & (row + dy < H), W, 0))
    left, right, before, behind = here & (x >= 1), here & (x + 2 < W), here & (v >= 1), here & (v + 2 < W)
    if IMAGES:
        one = x1 + row * W + x
        two = x2 + ((row + dy) * C * W + dx) * LANES + (x * LANES + j)
        for c in tl.static_range(C):
            u0 = tl.load(one + (c * H * W - 1), mask=left, other=0.0)
            u1 = tl.load(one + c * H * W, mask=here, other=0.0)
            u2 = tl.load(one + (c * H * W + 1), mask=here, other=0.0)
            u3 = tl.load(one + (c * H * W + 2), mask=right, other=0.0)
            v0 = tl.load(two + (c * W - 1) * LANES, mask=before, other=0.0)
            v1 = tl.load(two + c * W * LANES, mask=here, other=0.0)
            v2 = tl.load(two + (c * W + 1) * LANES, mask=here, other=0.0)
            v3 = tl.load(two + (c * W + 2) * LANES, mask=behind, other=0.0)
            s0 += u1 * v0 + u2 * v1 + u3 * v2
            s1 += u0 * v0 + u1 * v1 + u2 * v2
            s2 += u1 * v1 + u2 * v2 + u3 * v3
            s3 += u0 * v1 + u1 * v2 + u2 * v3
    else:
        size: tl.constexpr = (2 * RY + 1) * (2 * RX + 1) * LANES
        at = row * W * size + ((dy + RY) * (2 * RX + 1) + dx + RX) * LANES + (x * size + j)
        for e in tl.static_range(-1, 3):
            # Pixel x + e and its partners at dx, dx - 1 and dx + 1.
            both = here
            if e == -1:
                both = left & before
            if e == 2:
                both = right & behind
            a = tl.load(s + at + e * size, mask=both, other=0.0)
            b = tl.load(t + at + e * size, mask=both, other=0.0)
            if e < 2:
                s1 += a
                t1 += b
            if e >= 0:
                s2 += a
                t2 += b
                both = here
                if e == 0:
                    both = before
                if e == 2:
                    both = right
                s0 += tl.load(s + at + (e * size - LANES), mask=both, other=0.0)
                t0 += tl.load(t + at + (e * size - LANES), mask=both, other=0.0)
            if e < 2:
                both = here
                if e == -1:
                    both = left
                if e == 1:
                    both = behind
                s3 += tl.load(s + at + (e * size + LANES), mask=both, other=0.0)
                t3 += tl.load(t + at + (e * size + LANES), mask=both, other=0.0)
    return s0, s1, s2, s3, t0, t1, t2, t3


@triton.jit
def _after(s, t, SCALE: tl.constexpr, BIAS: tl.constexpr, IMAGES: tl.constexpr):
    """S and Theta after the convolution, from the sums over its window."""
    after = s * SCALE + BIAS
    if IMAGES:
        return after, after
    return after, t * SCALE + after


@triton.jit
def _angle(a, q1, q2, py, px, vy, vx, live, i, j, W: tl.constexpr, SAME: tl.constexpr, TOL: tl.constexpr):
    """r, 1 / r or 0 at a pole, and (pi - t) / 2 pi, for the covariance of pixel (py, px) with its partner (vy, vx).

    With z the cosine, t = acos(z) / sqrt(1 - z^2) r / sqrt(q1 q2). The first factor over 2 pi is smooth on [0, 1]; our
    own polynomial is right to 1.2e-8 of it. Two inverse roots and no division.
    """
    own = tl.load(q1 + py * W + px, mask=live, other=1.0)
    other = tl.load(q2 + (vy * W + vx) * LANES + tl.arange(0, LANES)[None, :], mask=live, other=1.0)
    both = own * other
    square = tl.fma(-a, a, both)
    there = square > TOL * both
    if SAME:
        there = there & ((i != j) | (py != vy) | (px != vx))
    over = tl.where(there, tl.rsqrt(tl.where(there, square, 1.0)), 0.0)
    r = square * over
    scale = tl.rsqrt(both)
    z = tl.abs(a) * scale
    p = -0.0018075871048495173 * z + 0.010943347588181496
    p = p * z - 0.030841853469610214
    p = p * z + 0.05572207272052765
    p = p * z - 0.07665655016899109
    p = p * z + 0.09179719537496567
    p = p * z - 0.1058269813656807
    p = p * z + 0.1249796524643898
    p = p * z - 0.15915435552597046
    p = p * z + 0.25
    turn = r * scale * p
    return r, over, tl.where(a < 0, turn, 0.5 - turn)


@triton.jit
def _place(blocks, OFFSETS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr):
    """A program's place: its offset, its cells, its first image, its block of second images. Offsets change fastest."""
    count: tl.constexpr = (COLUMNS + CELLS - 1) // CELLS
    x = tl.program_id(0) // OFFSETS % count * CELLS + tl.arange(0, CELLS)[:, None]
    pair = tl.program_id(0) // (OFFSETS * count)
    return tl.program_id(0) % OFFSETS, x, pair // blocks, pair % blocks


@triton.jit(do_not_specialize=["blocks"])
def _forward(x1, x2, s, t, q1, q2, out_s, out_t, blocks, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr,
             RX: tl.constexpr, C: tl.constexpr, IMAGES: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr,
             BIAS: tl.constexpr, TOL: tl.constexpr, CELLS: tl.constexpr):  # fmt: skip
    """Convolution and ReLU."""
    offsets: tl.constexpr = (2 * RY + 1) * (2 * RX + 1)
    offset, cell, i, block = _place(blocks, offsets, (W + 1) // 2, CELLS)
    dy, dx, x = offset // (2 * RX + 1) - RY, offset % (2 * RX + 1) - RX, 2 * cell
    lanes = tl.arange(0, LANES)[None, :]
    j = block * LANES + lanes
    x1 += i * C * H * W
    x2 += block * H * C * W * LANES
    q1 += i * H * W
    q2 += block * H * W * LANES
    start = (i * blocks + block).to(tl.int64) * (H * W * offsets * LANES)
    s += start
    t += start
    spot = start + offset * LANES
    lane = x * (offsets * LANES) + lanes
    zero = tl.zeros((CELLS, LANES), tl.float32)
    # Rows whose partners are inside.
    low, high = tl.maximum(0, -dy), tl.minimum(H, H - dy)
    before = (zero, zero, zero, zero)
    here = _line(x1, x2, s, t, low, dy, dx, x, H, W, RY, RX, C, IMAGES)
    for y in range(low, high):
        below = _line(x1, x2, s, t, y + 1, dy, dx, x, H, W, RY, RX, C, IMAGES)
        for k in tl.static_range(2):
            u, v = x + k, x + dx + k
            valid = (u < W) & (v >= 0) & (v < W)
            a, b = _after(before[k] + here[k] + below[k], before[k + 2] + here[k + 2] + below[k + 2], SCALE, BIAS,
                          IMAGES)  # fmt: skip
            r, _, slope = _angle(a, q1, q2, y, u, y + dy, v, valid, i, j, W, SAME, TOL)
            at = spot + y * (W * offsets * LANES) + (lane + k * offsets * LANES)
            tl.store(out_s + at, tl.where(valid, r * 0.15915494309189535 + slope * a, 0.0), mask=u < W)
            tl.store(out_t + at, tl.where(valid, slope * b, 0.0), mask=u < W)
        before = here
        here = below
    for m in range(H - high + low):
        y = tl.where(m < low, m, m - low + high)
        for k in tl.static_range(2):
            at = spot + y * (W * offsets * LANES) + (lane + k * offsets * LANES)
            tl.store(out_s + at, zero, mask=x + k < W)
            tl.store(out_t + at, zero, mask=x + k < W)


@triton.jit
def _four(above, here, below, q1, q2, py, vy, x, v, live, i, j, W: tl.constexpr, IMAGES: tl.constexpr,
          SAME: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, TOL: tl.constexpr):  # fmt: skip
    """S and Theta after convolution and ReLU, averaged over pooling's sixteen, of which `_lines` has four."""
    sum_s = tl.zeros((x.shape[0], LANES), tl.float32)
    sum_t = sum_s
    for k in tl.static_range(4):
        a, b = _after(above[k] + here[k] + below[k], above[k + 4] + here[k + 4] + below[k + 4], SCALE, BIAS, IMAGES)
        r, _, slope = _angle(a, q1, q2, py, x + (1 - k % 2), vy, v + k // 2, live, i, j, W, SAME, TOL)
        sum_s += r * 0.15915494309189535 + slope * a
        sum_t += slope * b
    return sum_s * 0.0625, sum_t * 0.0625


@triton.jit(do_not_specialize=["blocks"])
def _forward_pooled(x1, x2, s, t, q1, q2, out_s, out_t, blocks, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr,
                    RX: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, RYO: tl.constexpr, RXO: tl.constexpr,
                    C: tl.constexpr, IMAGES: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr,
                    TOL: tl.constexpr, CELLS: tl.constexpr):  # fmt: skip
    """Convolution, ReLU and 2x2 pooling of both images.

    Pixels 2y + a and partners 2(y + dy) + b are averaged, so that the offsets 2dy - 1, 2dy and 2dy + 1 count: the
    first for odd rows, the last for even rows, that between for both. They are taken one after the other, and what is
    written is their sum so far: a third of the registers.
    """
    offsets: tl.constexpr = (2 * RYO + 1) * (2 * RXO + 1)
    offset, x, i, block = _place(blocks, offsets, WO, CELLS)
    dy, dx = offset // (2 * RXO + 1) - RYO, offset % (2 * RXO + 1) - RXO
    lanes = tl.arange(0, LANES)[None, :]
    j = block * LANES + lanes
    x1 += i * C * H * W
    x2 += block * H * C * W * LANES
    q1 += i * H * W
    q2 += block * H * W * LANES
    start = (i * blocks + block).to(tl.int64) * (H * W * (2 * RY + 1) * (2 * RX + 1) * LANES)
    s += start
    t += start
    spot = (i * blocks + block).to(tl.int64) * (HO * WO * offsets * LANES) + offset * LANES
    lane = x * (offsets * LANES) + lanes
    live = (x < WO) & (x + dx >= 0) & (x + dx < WO)
    u, v = 2 * x, 2 * (x + dx)
    # Two, because Triton compares values to see what a loop changes: with one, the rows above would stay what they are.
    zero, nought = tl.zeros((CELLS, LANES), tl.float32), tl.zeros((CELLS, LANES), tl.float32)
    low, high = tl.maximum(0, -dy), tl.minimum(HO, HO - dy)
    for y in range(HO):
        tl.store(out_s + spot + y * (WO * offsets * LANES) + lane, zero, mask=x < WO)
        tl.store(out_t + spot + y * (WO * offsets * LANES) + lane, zero, mask=x < WO)
    tl.debug_barrier()  # below, sums are read back by the thread that wrote them
    for k in range(-1, 2):
        # The smallest of one program is the largest of the next: in turns, they read it at the same time.
        m = tl.where((dy + RYO) % 2 == 0, k, -k)
        d = 2 * dy + m
        above = (zero, zero, zero, zero, zero, zero, zero, zero)
        here = (nought, nought, nought, nought, nought, nought, nought, nought)
        for row in range(2 * low - 1, 2 * high + 1):
            below = _lines(x1, x2, s, t, row, d, 2 * dx, u, live, H, W, RY, RX, C, IMAGES)
            y = row - 1
            if (y >= 2 * low) & ((m == 0) | (y % 2 == (1 - m) // 2)):
                a, b = _four(above, here, below, q1, q2, y, y + d, u, v, live, i, j, W, IMAGES, SAME, SCALE, BIAS,
                             TOL)  # fmt: skip
                at = spot + y // 2 * (WO * offsets * LANES) + lane
                tl.store(out_s + at, tl.load(out_s + at, mask=live) + a, mask=live)
                tl.store(out_t + at, tl.load(out_t + at, mask=live) + b, mask=live)
            above = here
            here = below


@triton.jit(do_not_specialize=["blocks"])
def _backward(x1, x2, s, t, q1, q2, to_s, to_t, out_s, out_t, of_q, blocks, H: tl.constexpr, W: tl.constexpr,
              RY: tl.constexpr, RX: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, RYO: tl.constexpr,
              RXO: tl.constexpr, C: tl.constexpr, IMAGES: tl.constexpr, POOL: tl.constexpr, WINDOW: tl.constexpr,
              SAME: tl.constexpr, SCALE: tl.constexpr, UP: tl.constexpr, BIAS: tl.constexpr, TOL: tl.constexpr,
              CELLS: tl.constexpr):  # fmt: skip
    """The gradients between convolution and ReLU, where the partner is inside, and r to_s - S Theta to_t / r.

    `out_s` collects all that reaches S there, also through Theta, which the convolution adds S to. The other is summed
    over a block's second images: over 4 pi q it is the gradient of the first variance q.
    `to_s` and `to_t` are after pooling with POOL, and after the next convolution with WINDOW.
    """
    offsets: tl.constexpr = (2 * RY + 1) * (2 * RX + 1)
    offset, cell, i, block = _place(blocks, offsets, (W + 1) // 2, CELLS)
    dy, dx, x = offset // (2 * RX + 1) - RY, offset % (2 * RX + 1) - RX, 2 * cell
    lanes = tl.arange(0, LANES)[None, :]
    j = block * LANES + lanes
    x1 += i * C * H * W
    x2 += block * H * C * W * LANES
    q1 += i * H * W
    q2 += block * H * W * LANES
    pair = (i * blocks + block).to(tl.int64)
    start = pair * (H * W * offsets * LANES)
    s += start
    t += start
    to_s += pair * (HO * WO * (2 * RYO + 1) * (2 * RXO + 1) * LANES)
    to_t += pair * (HO * WO * (2 * RYO + 1) * (2 * RXO + 1) * LANES)
    of_q += pair * (H * W * offsets) + offset
    spot = start + offset * LANES
    lane = x * (offsets * LANES) + lanes
    zero = tl.zeros((CELLS, LANES), tl.float32)
    low, high = tl.maximum(0, -dy), tl.minimum(H, H - dy)
    before = (zero, zero, zero, zero)
    here = _line(x1, x2, s, t, low, dy, dx, x, H, W, RY, RX, C, IMAGES)
    if WINDOW:
        up0 = (zero, zero, zero, zero)
        up1 = _line(x1, x2, to_s, to_t, low, dy, dx, x, H, W, RY, RX, C, False)
    for y in range(low, high):
        below = _line(x1, x2, s, t, y + 1, dy, dx, x, H, W, RY, RX, C, IMAGES)
        if WINDOW:
            up2 = _line(x1, x2, to_s, to_t, y + 1, dy, dx, x, H, W, RY, RX, C, False)
        for k in tl.static_range(2):
            u, v = x + k, x + dx + k
            valid = (u < W) & (v >= 0) & (v < W)
            at = y * (W * offsets * LANES) + (lane + k * offsets * LANES)
            if WINDOW:
                up_s = tl.where(valid, (up0[k] + up1[k] + up2[k]) * UP, 0.0)
                up_t = tl.where(valid, (up0[k + 2] + up1[k + 2] + up2[k + 2]) * UP, 0.0)
            elif POOL:
                py, vy, vx = y // 2, (y + dy) // 2, v // 2
                # Rows that pooling drops, and offsets that nothing after it reads, have no gradient.
                reached = (vy - py >= -RYO) & (vy - py <= RYO) & (vy < HO) & (py < HO)
                wide = tl.where(reached, WO, 0)
                read = valid & (cell < wide) & (vx < wide) & (vx - cell >= -RXO) & (vx - cell <= RXO)
                row = (py * WO * (2 * RYO + 1) + vy - py + RYO) * (2 * RXO + 1) + RXO
                those = (row + cell * ((2 * RYO + 1) * (2 * RXO + 1)) + vx - cell) * LANES + lanes
                up_s = tl.load(to_s + those, mask=read, other=0.0) * 0.0625
                up_t = tl.load(to_t + those, mask=read, other=0.0) * 0.0625
            else:
                up_s = tl.load(to_s + offset * LANES + at, mask=valid, other=0.0)
                up_t = tl.load(to_t + offset * LANES + at, mask=valid, other=0.0)
            a, b = _after(before[k] + here[k] + below[k], before[k + 2] + here[k + 2] + below[k + 2], SCALE, BIAS,
                          IMAGES)  # fmt: skip
            r, over, slope = _angle(a, q1, q2, y, u, y + dy, v, valid, i, j, W, SAME, TOL)
            pull = b * up_t * over
            down_t = slope * up_t
            tl.store(out_s + spot + at, slope * up_s + pull * 0.15915494309189535 + down_t, mask=valid)
            if not IMAGES:
                tl.store(out_t + spot + at, down_t, mask=valid)
            by_q = tl.sum(r * up_s - pull * a, 1)[:, None] + zero
            # One lane writes; adding the others keeps their layout, and thus the sum in its warp.
            tl.store(of_q + y * (W * offsets) + (u * offsets + lanes), by_q, mask=valid & (lanes == 0))
        before = here
        here = below
        if WINDOW:
            up0 = up1
            up1 = up2


@triton.jit
def _window(x, out, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SCALE: tl.constexpr,
            ENTRIES: tl.constexpr):  # fmt: skip
    """The transpose of a convolution: the sum over a 3x3 window that moves both pixels, where both are inside."""
    offsets: tl.constexpr = (2 * RY + 1) * (2 * RX + 1)
    count: tl.constexpr = (H * W * offsets + ENTRIES - 1) // ENTRIES
    entry = tl.program_id(0) % count * ENTRIES + tl.arange(0, ENTRIES)[:, None]
    px = entry // offsets % W
    py = entry // (offsets * W)
    vy, vx = py + entry // (2 * RX + 1) % (2 * RY + 1) - RY, px + entry % (2 * RX + 1) - RX
    valid = (py < H) & (vy >= 0) & (vy < H) & (vx >= 0) & (vx < W)
    start = (tl.program_id(0) // count).to(tl.int64) * (H * W * offsets * LANES)
    at = start + (entry * LANES + tl.arange(0, LANES)[None, :])
    total = tl.zeros((ENTRIES, LANES), tl.float32)
    for m in tl.static_range(9):
        dy, dx = m // 3 - 1, m % 3 - 1
        inside = valid & (py + dy >= 0) & (py + dy < H) & (px + dx >= 0) & (px + dx < W)
        inside = inside & (vy + dy >= 0) & (vy + dy < H) & (vx + dx >= 0) & (vx + dx < W)
        total += tl.load(x + at + (dy * W + dx) * offsets * LANES, mask=inside, other=0.0)
    tl.store(out + at, total * SCALE, mask=py < H)


@triton.jit(do_not_specialize=["n1", "blocks"])
def _pull(x2, g, out, n1, blocks, scale, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
          C: tl.constexpr, WIDTH: tl.constexpr, PRODUCT: tl.constexpr, N1: tl.constexpr,
          N2: tl.constexpr):  # fmt: skip
    """The gradient of the 3x3 patch at one pixel of the first images: over all partners, theirs times g.

    Shapes: out [n1, 3 * 3 * C, H * W].
    """
    offsets: tl.constexpr = (2 * RY + 1) * (2 * RX + 1)
    pixel = tl.program_id(0)
    py, px = pixel // W, pixel % W
    i = tl.program_id(1) * N1 + tl.arange(0, N1)[:, None]
    k = tl.arange(0, WIDTH)[None, :]
    ky, kx, c = k // (3 * C) - 1, k // C % 3 - 1, k % C
    total = tl.zeros((N1, WIDTH), tl.float32)
    for vy in range(tl.maximum(py - RY, 0), tl.minimum(py + RY + 1, H)):
        for vx in range(tl.maximum(px - RX, 0), tl.minimum(px + RX + 1, W)):
            entry = pixel * offsets + (vy - py + RY) * (2 * RX + 1) + vx - px + RX
            uy, ux = vy + ky, vx + kx
            inside = (k < 9 * C) & (uy >= 0) & (uy < H) & (ux >= 0) & (ux < W)
            for start in range(0, blocks * LANES, N2):
                j = start + tl.arange(0, N2)
                block, lane = j // LANES, j % LANES
                at = (i * blocks + block[None, :]).to(tl.int64) * (H * W * offsets * LANES) + lane[None, :]
                known = (block < blocks)[None, :]
                grad = tl.load(g + at + entry * LANES, mask=(i < n1) & known, other=0.0)
                at = (block * H * C * W * LANES + lane)[:, None] + ((uy * C + c) * W + ux) * LANES
                patch = tl.load(x2 + at, mask=inside & (block < blocks)[:, None], other=0.0)
                total += tl.dot(grad, patch, input_precision=PRODUCT)
    tl.store(out + (i * 9 * C + k) * H * W + pixel, total * scale, mask=(i < n1) & (k < 9 * C))


Stage = tuple[Band, Band | None]
"""The band of a convolution and its ReLU, and the band after pooling where it is pooled."""


def first_stage(
    x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after the first convolution and ReLU, and pooling into `after`; differentiable in x1 and q1.

    Shapes: images [C, H, W, n]; variances before the ReLU [H, W, n].
    """
    return stages(x1, x2, [q1], [q2], [(band, after)], same)


def next_stage(
    s: Tensor, theta: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after a convolution and ReLU, and pooling into `after`; differentiable in S, Theta and q1."""
    seconds = [_in_blocks(q2, 1.0)]
    found = _Stages.apply(_packed(s), _packed(theta), None, seconds, [(band, after)], same, q1.movedim(-1, 0))
    return _unpacked(found[0], q2.shape[-1]), _unpacked(found[1], q2.shape[-1])


def stages(
    x1: Tensor, x2: Tensor, q1: Sequence[Tensor], q2: Sequence[Tensor], plan: Sequence[Stage], same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after all stages of a network; differentiable in x1 and the first variances.

    Between two stages without pooling a gradient is read as it is before the convolution, which spares a pass.
    Shapes: images [C, H, W, n]; for each stage the variances before its ReLU, [H, W, n].
    """
    # Images that fill a block up have variances of 1, and gradients of 0.
    seconds = [_in_blocks(q, 1.0) for q in q2]
    firsts = (q.movedim(-1, 0) for q in q1)
    images = _in_blocks(x2.transpose(0, 1), 0.0)
    s, theta = _Stages.apply(x1.movedim(-1, 0), None, images, seconds, plan, same, *firsts)
    return _unpacked(s, x2.shape[-1]), _unpacked(theta, x2.shape[-1])


class _Stages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        theta: Tensor | None,
        x2: Tensor | None,
        q2: list[Tensor],
        plan: Sequence[Stage],
        same: bool,
        *q1: Tensor,
    ) -> tuple[Tensor | None, ...]:
        firsts = [q.contiguous() for q in q1]
        s, t = given.contiguous(), theta
        kept: list[Tensor | None] = []
        for k, (own, other, (band, after)) in enumerate(zip(firsts, q2, plan, strict=True)):
            kept += [s, t]
            s, t = _ahead(s, t, x2 if k == 0 else None, own, other, band, after, same)
        ctx.save_for_backward(*kept, *firsts)
        ctx.x2, ctx.q2, ctx.plan, ctx.same = x2, q2, plan, same
        return s, t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_s: Tensor, to_theta: Tensor) -> tuple[Tensor | None, ...]:
        x2, q2, plan = ctx.x2, ctx.q2, ctx.plan
        saved, count = ctx.saved_tensors, len(plan)
        up, window = [to_s.contiguous(), to_theta.contiguous()], False
        of_q = []
        for k in reversed(range(count)):
            band, after = plan[k]
            if window and after is not None:
                up, window = [_spread(grad, after) for grad in up], False
            images = x2 if k == 0 else None
            s, t, own = saved[2 * k], saved[2 * k + 1], saved[2 * count + k]
            up, grad = _back(s, t, images, own, q2[k], up, band, after, window, ctx.same)
            of_q.append(grad)
            window = True
        band = plan[0][0]
        grads = [_spread(grad, band) for grad in up] if x2 is None else [_images(up[0], x2, band), None]
        return *grads, *(None,) * 4, *reversed(of_q)


def _ahead(
    given: Tensor,
    theta: Tensor | None,
    x2: Tensor | None,
    q1: Tensor,
    q2: Tensor,
    band: Band,
    after: Band | None,
    same: bool,
) -> tuple[Tensor, Tensor]:
    """S and Theta after a stage."""
    out = after or band
    n1, blocks = len(q1), len(q2)
    s, t = (given.new_empty(n1, blocks, out.height, out.width, *out.partners, LANES.value) for _ in range(2))
    columns = out.width if after else math.ceil(out.width / 2)
    cells = min(CELLS, triton.next_power_of_2(columns))
    grid = (math.prod(out.partners) * math.ceil(columns / cells) * n1 * blocks,)
    (_forward_pooled if after else _forward)[grid](
        *_inputs(given, theta, x2), q1, q2, s, t, blocks, *_sizes(band), *(_sizes(after) if after else ()),
        *_options(given, x2), same, _scale(given, x2), BIAS_VARIANCE, TOLERANCE, cells, num_warps=cells,
    )  # fmt: skip
    return s, t


def _back(
    given: Tensor,
    theta: Tensor | None,
    x2: Tensor | None,
    q1: Tensor,
    q2: Tensor,
    up: Sequence[Tensor],
    band: Band,
    after: Band | None,
    window: bool,
    same: bool,
) -> tuple[list[Tensor], Tensor]:
    """The gradients of S and Theta between a stage's convolution and ReLU, and of the first variances."""
    n1, blocks = len(q1), len(q2)
    full = (n1, blocks, band.height, band.width, *band.partners)
    grads = [given.new_empty(*full, LANES.value) for _ in range(1 if x2 is not None else 2)]
    of_q = given.new_zeros(full)
    columns = math.ceil(band.width / 2)
    cells = min(CELLS, triton.next_power_of_2(columns))
    grid = (math.prod(band.partners) * math.ceil(columns / cells) * n1 * blocks,)
    _backward[grid](
        *_inputs(given, theta, x2), q1, q2, *up, grads[0], grads[-1], of_q, blocks, *_sizes(band),
        *_sizes(after or band), *_options(given, x2), after is not None, window, same, _scale(given, x2),
        WEIGHT_VARIANCE / 9, BIAS_VARIANCE, TOLERANCE, cells, num_warps=cells,
    )  # fmt: skip
    return grads, of_q.sum((1, 4, 5)) / (4 * math.pi * q1)


def _spread(grad: Tensor, band: Band) -> Tensor:
    """A gradient after a convolution as one before it; 0 where the partner is outside."""
    spread = torch.empty_like(grad)
    grid = (math.ceil(band.entries / CELLS) * grad.shape[0] * grad.shape[1],)
    _window[grid](grad, spread, *_sizes(band), WEIGHT_VARIANCE / 9, CELLS, num_warps=CELLS)
    return spread


def _images(grad: Tensor, x2: Tensor, band: Band) -> Tensor:
    """The gradient of the first images, [n1, C, H, W], from that after the first convolution."""
    blocks, height, channels, width, _ = x2.shape
    n1 = len(grad)
    patches = x2.new_empty(n1, 3, 3, channels, height, width)
    _pull[(height * width, math.ceil(n1 / HIGH))](
        x2, grad, patches, n1, blocks, WEIGHT_VARIANCE / (9 * channels), *_sizes(band), channels,
        max(16, triton.next_power_of_2(9 * channels)), PRODUCT, HIGH, WIDE, num_warps=4,
    )  # fmt: skip
    # A pixel is in nine patches.
    padded = F.pad(patches, (1, 1, 1, 1))
    parts = (padded[:, a, b, :, 2 - a :, 2 - b :][..., :height, :width] for a in range(3) for b in range(3))
    return torch.stack(list(parts)).sum(0)


def _in_blocks(x: Tensor, fill: float) -> Tensor:
    """[..., n] -> [blocks, ..., LANES]."""
    padded = F.pad(x, (0, -x.shape[-1] % LANES.value), value=fill)
    return padded.unflatten(-1, (-1, LANES.value)).movedim(-2, 0).contiguous()


def _packed(s: Tensor) -> Tensor:
    """[H, W, A, B, n1, n2] -> [n1, blocks, H, W, A, B, LANES]."""
    return _in_blocks(s, 0.0).movedim(-2, 0).contiguous()


def _unpacked(s: Tensor, n2: int) -> Tensor:
    """[n1, blocks, H, W, A, B, LANES] -> [H, W, A, B, n1, n2]."""
    return s.permute(2, 3, 4, 5, 0, 1, 6).flatten(-2)[..., :n2]


def _inputs(given: Tensor, theta: Tensor | None, x2: Tensor | None) -> tuple[Tensor, ...]:
    """Images and covariances, of which a stage reads one kind."""
    return given, given if x2 is None else x2, given, given if theta is None else theta


def _sizes(band: Band) -> tuple[int, ...]:
    return band.height, band.width, band.up, band.along


def _options(given: Tensor, x2: Tensor | None) -> tuple[int, bool]:
    return (1, False) if x2 is None else (given.shape[1], True)


def _scale(given: Tensor, x2: Tensor | None) -> float:
    return WEIGHT_VARIANCE / (9 if x2 is None else 9 * given.shape[1])
