# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""GPU kernels for bands of covariances: convolution, ReLU and pooling in one pass over memory.

A stage reads the covariances before it and writes those after it, and nothing between is written down. The first stage
reads images, which are a thousandth of their covariances, so that it only writes. Gradients compute the stage again.

A program holds one pixel, one offset and a block of pairs of images, which lie side by side in memory: every load is a
few whole lines, and what is outside an image is so for the whole block. Sums over pairs are made in a fixed order.

float32 alone. Import this module only where Triton is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.engine.kernels import BIAS_VARIANCE, HIGH, MOST_CHANNELS, POLE, WEIGHT_VARIANCE, WIDE, Band

WARPS = 4


@triton.jit
def _atan2(y, x):
    """For y >= 0, within two units in the last place; 0 where both are 0. Our own polynomial on [0, tan(pi / 8)]."""
    size = tl.abs(x)
    most = tl.maximum(size, y)
    z = tl.where(most > 0, tl.minimum(size, y) / tl.where(most > 0, most, 1.0), 0.0)
    far = z > 0.41421356
    z = tl.where(far, (z - 1.0) / (z + 1.0), z)
    w = z * z
    p = -0.06083401535722346 * w + 0.1059598222959495
    p = p * w - 0.1424384628719875
    p = p * w + 0.19998489316065007
    p = p * w - 0.3333331550345227
    angle = z + z * w * p
    angle = tl.where(far, angle + 0.7853981633974483, angle)
    angle = tl.where(y > size, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, 3.141592653589793 - angle, angle)


@triton.jit
def _before(x1, x2, s, t, py, px, vy, vx, valid, i, j, n1, n2, H: tl.constexpr, W: tl.constexpr,
            RY: tl.constexpr, RX: tl.constexpr, C: tl.constexpr, IMAGES: tl.constexpr, WEIGHT: tl.constexpr,
            BIAS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):  # fmt: skip
    """S and Theta after the convolution, for pixel (py, px) and partner (vy, vx)."""
    sum_s = tl.zeros((N1, N2), tl.float32)
    sum_t = tl.zeros((N1, N2), tl.float32)
    for k in range(9):
        dy, dx = k // 3 - 1, k % 3 - 1
        inside = valid & (py + dy >= 0) & (py + dy < H) & (px + dx >= 0) & (px + dx < W)
        inside = inside & (vy + dy >= 0) & (vy + dy < H) & (vx + dx >= 0) & (vx + dx < W)
        if IMAGES:
            for c in range(C):
                a = x1 + ((c * H + py + dy) * W + px + dx) * n1 + i
                b = x2 + ((c * H + vy + dy) * W + vx + dx) * n2 + j
                first = tl.load(a, mask=i < tl.where(inside, n1, 0), other=0.0)
                second = tl.load(b, mask=j < tl.where(inside, n2, 0), other=0.0)
                sum_s += first[:, None] * second[None, :]
        else:
            rows: tl.constexpr = 2 * RY + 1
            columns: tl.constexpr = 2 * RX + 1
            entry = (((py + dy) * W + px + dx) * rows + vy - py + RY) * columns + vx - px + RX
            at = entry.to(tl.int64) * n1 * n2 + i[:, None] * n2 + j[None, :]
            those = (i < tl.where(inside, n1, 0))[:, None] & (j < n2)[None, :]
            sum_s += tl.load(s + at, mask=those, other=0.0)
            sum_t += tl.load(t + at, mask=those, other=0.0)
    here = tl.where(valid, 1.0, 0.0)
    if IMAGES:
        after = (sum_s * (WEIGHT / (9 * C)) + BIAS) * here
        return after, after
    after = (sum_s * (WEIGHT / 9) + BIAS) * here
    return after, sum_t * (WEIGHT / 9) * here + after


@triton.jit
def _angles(s, q1, q2, py, px, vy, vx, valid, i, j, n1, n2, W: tl.constexpr, SAME: tl.constexpr, TOL: tl.constexpr):
    """r, (pi - t) / 2 pi, and both variances."""
    own = tl.load(q1 + (py * W + px) * n1 + i, mask=i < tl.where(valid, n1, 0), other=0.0)
    other = tl.load(q2 + (vy * W + vx) * n2 + j, mask=j < tl.where(valid, n2, 0), other=0.0)
    both = own[:, None] * other[None, :]
    square = both - s * s
    r = tl.where(square > TOL * both, tl.sqrt(tl.maximum(square, 0.0)), 0.0)
    if SAME:
        r = tl.where((i[:, None] == j[None, :]) & (py == vy) & (px == vx), 0.0, r)
    return r, 0.5 - _atan2(r, s) * 0.15915494309189535, own, other


@triton.jit
def _forward(x1, x2, s, t, q1, q2, out_s, out_t, n1, n2, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr,
             RX: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, RYO: tl.constexpr, RXO: tl.constexpr,
             C: tl.constexpr, IMAGES: tl.constexpr, POOL: tl.constexpr, SAME: tl.constexpr, WEIGHT: tl.constexpr,
             BIAS: tl.constexpr, TOL: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):  # fmt: skip
    entry = tl.program_id(0)
    rows: tl.constexpr = 2 * RYO + 1
    columns: tl.constexpr = 2 * RXO + 1
    dx = entry % columns - RXO
    dy = entry // columns % rows - RYO
    x = entry // (columns * rows) % WO
    y = entry // (columns * rows * WO)
    blocks = (n2 + N2 - 1) // N2
    i = tl.program_id(1) // blocks * N1 + tl.arange(0, N1)
    j = tl.program_id(1) % blocks * N2 + tl.arange(0, N2)
    known = (i < n1)[:, None] & (j < n2)[None, :]
    there = (y + dy >= 0) & (y + dy < HO) & (x + dx >= 0) & (x + dx < WO)
    sum_s = tl.zeros((N1, N2), tl.float32)
    sum_t = tl.zeros((N1, N2), tl.float32)
    # The sixteen pairs of pixels that pooling averages, or the one that there is.
    for k in range(16 if POOL else 1):
        if POOL:
            py, px = 2 * y + k // 8, 2 * x + k // 4 % 2
            vy, vx = 2 * (y + dy) + k // 2 % 2, 2 * (x + dx) + k % 2
        else:
            py, px, vy, vx = y, x, y + dy, x + dx
        a, b = _before(x1, x2, s, t, py, px, vy, vx, there, i, j, n1, n2, H, W, RY, RX, C, IMAGES, WEIGHT, BIAS, N1,
                       N2)  # fmt: skip
        r, slope, _, _ = _angles(a, q1, q2, py, px, vy, vx, there, i, j, n1, n2, W, SAME, TOL)
        sum_s += r * 0.15915494309189535 + slope * a
        sum_t += slope * b
    if POOL:
        sum_s *= 0.0625
        sum_t *= 0.0625
    at = entry.to(tl.int64) * n1 * n2 + i[:, None] * n2 + j[None, :]
    tl.store(out_s + at, sum_s, mask=known)
    tl.store(out_t + at, sum_t, mask=known)


@triton.jit
def _backward(x1, x2, s, t, q1, q2, to_s, to_t, out_s, out_t, of_q, n1, n2, H: tl.constexpr, W: tl.constexpr,
              RY: tl.constexpr, RX: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, RYO: tl.constexpr,
              RXO: tl.constexpr, C: tl.constexpr, IMAGES: tl.constexpr, POOL: tl.constexpr, SAME: tl.constexpr,
              WEIGHT: tl.constexpr, BIAS: tl.constexpr, TOL: tl.constexpr, N1: tl.constexpr,
              N2: tl.constexpr):  # fmt: skip
    """The gradients between convolution and ReLU, and that of the first variance, summed over a block's second images.

    `out_s` collects all that reaches S there, also through Theta, which the convolution adds S to.
    """
    entry = tl.program_id(0)
    rows: tl.constexpr = 2 * RY + 1
    columns: tl.constexpr = 2 * RX + 1
    px = entry // (columns * rows) % W
    py = entry // (columns * rows * W)
    vy, vx = py + entry // columns % rows - RY, px + entry % columns - RX
    valid = (vy >= 0) & (vy < H) & (vx >= 0) & (vx < W)
    blocks = (n2 + N2 - 1) // N2
    i = tl.program_id(1) // blocks * N1 + tl.arange(0, N1)
    j = tl.program_id(1) % blocks * N2 + tl.arange(0, N2)
    known = (i < n1)[:, None] & (j < n2)[None, :]
    if POOL:
        y, x, v, u = py // 2, px // 2, vy // 2, vx // 2
        # Rows that pooling drops, and offsets that nothing after it reads, have no gradient.
        read = valid & (y < HO) & (v < HO) & (x < WO) & (u < WO)
        share = 0.0625
    else:
        y, x, v, u = py, px, vy, vx
        read = valid
        share = 1.0
    read = read & (v - y >= -RYO) & (v - y <= RYO) & (u - x >= -RXO) & (u - x <= RXO)
    after = ((y * WO + x) * (2 * RYO + 1) + v - y + RYO) * (2 * RXO + 1) + u - x + RXO
    block = i[:, None] * n2 + j[None, :]
    at = after.to(tl.int64) * n1 * n2 + block
    those = (i < tl.where(read, n1, 0))[:, None] & (j < n2)[None, :]
    up_s = tl.load(to_s + at, mask=those, other=0.0) * share
    up_t = tl.load(to_t + at, mask=those, other=0.0) * share
    a, b = _before(x1, x2, s, t, py, px, vy, vx, valid, i, j, n1, n2, H, W, RY, RX, C, IMAGES, WEIGHT, BIAS,
                   N1, N2)  # fmt: skip
    r, slope, own, _ = _angles(a, q1, q2, py, px, vy, vx, valid, i, j, n1, n2, W, SAME, TOL)
    pull = tl.where(r > 0, b * up_t / tl.where(r > 0, r, 1.0), 0.0)
    down_t = slope * up_t
    down_s = slope * up_s + pull * 0.15915494309189535 + down_t
    by_q = tl.sum(tl.where(known, r * up_s - pull * a, 0.0), 1)
    by_q = tl.where(own > 0, by_q * 0.07957747154594767 / tl.where(own > 0, own, 1.0), 0.0)
    at = entry.to(tl.int64) * n1 * n2 + block
    tl.store(out_s + at, down_s, mask=known)
    if not IMAGES:
        tl.store(out_t + at, down_t, mask=known)
    tl.store(of_q + (entry.to(tl.int64) * blocks + tl.program_id(1) % blocks) * n1 + i, by_q, mask=i < n1)


@triton.jit
def _window(x, out, n1, n2, scale, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """The transpose of a convolution: the sum over a 3x3 window that moves both pixels, where both are inside."""
    entry = tl.program_id(0)
    rows: tl.constexpr = 2 * RY + 1
    columns: tl.constexpr = 2 * RX + 1
    px = entry // (columns * rows) % W
    py = entry // (columns * rows * W)
    vy, vx = py + entry // columns % rows - RY, px + entry % columns - RX
    valid = (vy >= 0) & (vy < H) & (vx >= 0) & (vx < W)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pairs = n1 * n2
    total = tl.zeros((BLOCK,), tl.float32)
    for m in range(9):
        dy, dx = m // 3 - 1, m % 3 - 1
        inside = valid & (py + dy >= 0) & (py + dy < H) & (px + dx >= 0) & (px + dx < W)
        at = (entry + (dy * W + dx) * rows * columns).to(tl.int64) * pairs + k
        total += tl.load(x + at, mask=k < tl.where(inside, pairs, 0), other=0.0)
    tl.store(out + entry.to(tl.int64) * pairs + k, total * scale, mask=k < pairs)


@triton.jit
def _pull(x2, g, out, n1, n2, scale, H: tl.constexpr, W: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
          C: tl.constexpr, CHANNELS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):  # fmt: skip
    """The gradient of one pixel of the first images: over all partners, the window's sum times the partner's pixel."""
    pixel = tl.program_id(0)
    py, px = pixel // W, pixel % W
    i = tl.program_id(1) * N1 + tl.arange(0, N1)
    c = tl.arange(0, CHANNELS)
    rows: tl.constexpr = 2 * RY + 1
    columns: tl.constexpr = 2 * RX + 1
    total = tl.zeros((N1, CHANNELS), tl.float32)
    for offset in range(rows * columns):
        vy, vx = py + offset // columns - RY, px + offset % columns - RX
        valid = (vy >= 0) & (vy < H) & (vx >= 0) & (vx < W)
        for start in range(0, n2, N2):
            j = start + tl.arange(0, N2)
            sums = tl.zeros((N1, N2), tl.float32)
            for m in range(9):
                dy, dx = m // 3 - 1, m % 3 - 1
                inside = valid & (py + dy >= 0) & (py + dy < H) & (px + dx >= 0) & (px + dx < W)
                entry = ((py + dy) * W + px + dx) * rows * columns + offset
                at = entry.to(tl.int64) * n1 * n2 + i[:, None] * n2 + j[None, :]
                those = (i < tl.where(inside, n1, 0))[:, None] & (j < n2)[None, :]
                sums += tl.load(g + at, mask=those, other=0.0)
            there = (j < tl.where(valid, n2, 0))[:, None] & (c < C)[None, :]
            partner = tl.load(x2 + ((c[None, :] * H + vy) * W + vx) * n2 + j[:, None], mask=there, other=0.0)
            total += tl.dot(sums, partner, input_precision="ieee")
    at = (c[None, :] * H * W + pixel) * n1 + i[:, None]
    tl.store(out + at, total * scale, mask=(i < n1)[:, None] & (c < C)[None, :])


def first_stage(
    x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after the first convolution and ReLU, and pooling into `after`; differentiable in x1 and q1.

    Shapes: images [C, H, W, n]; variances before the ReLU [H, W, n].
    """
    return _Stage.apply(x1, None, q1, x2.contiguous(), q2.contiguous(), band, after, same)


def next_stage(
    s: Tensor, theta: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after a convolution and ReLU, and pooling into `after`; differentiable in S, Theta and q1."""
    return _Stage.apply(s, theta, q1, None, q2.contiguous(), band, after, same)


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        theta: Tensor | None,
        q1: Tensor,
        x2: Tensor | None,
        q2: Tensor,
        band: Band,
        after: Band | None,
        same: bool,
    ) -> tuple[Tensor, Tensor]:
        given, q1 = given.contiguous(), q1.contiguous()
        theta = None if theta is None else theta.contiguous()
        ctx.save_for_backward(given, theta, q1, x2, q2)
        ctx.band, ctx.after, ctx.same = band, after, same
        out = after or band
        n1, n2 = q1.shape[-1], q2.shape[-1]
        results = [given.new_empty(out.height, out.width, *out.partners, n1, n2) for _ in range(2)]
        a, b = (given, x2) if x2 is not None else (given, given)
        s, t = (given, given) if theta is None else (given, theta)
        _forward[(out.entries, _blocks(n1, n2))](
            a, b, s, t, q1, q2, *results, n1, n2, *_sizes(band, out), *_options(given, x2, after, same),
            num_warps=WARPS,
        )  # fmt: skip
        return results[0], results[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_s: Tensor, to_theta: Tensor) -> tuple[Tensor | None, ...]:
        given, theta, q1, x2, q2 = ctx.saved_tensors
        band, after, same = ctx.band, ctx.after, ctx.same
        out = after or band
        n1, n2 = q1.shape[-1], q2.shape[-1]
        columns = triton.cdiv(n2, WIDE)
        full = (band.height, band.width, *band.partners)
        grads = [given.new_empty(*full, n1, n2) for _ in range(1 if theta is None else 2)]
        of_q = given.new_empty(*full, columns, n1)
        a, b = (given, x2) if x2 is not None else (given, given)
        s, t = (given, given) if theta is None else (given, theta)
        _backward[(band.entries, _blocks(n1, n2))](
            a, b, s, t, q1, q2, to_s.contiguous(), to_theta.contiguous(), grads[0], grads[-1], of_q, n1, n2,
            *_sizes(band, out), *_options(given, x2, after, same), num_warps=WARPS,
        )  # fmt: skip
        grad_q = of_q.sum((2, 3, 4))
        shape = (band.height, band.width, band.up, band.along)
        if x2 is not None:
            grad = torch.empty_like(given)
            channels = len(given)
            _pull[(band.height * band.width, triton.cdiv(n1, HIGH))](
                x2, grads[0], grad, n1, n2, WEIGHT_VARIANCE / (9 * channels), *shape, channels, MOST_CHANNELS, HIGH,
                WIDE, num_warps=WARPS,
            )  # fmt: skip
            return grad, None, grad_q, *(None,) * 5
        done = []
        for grad in grads:
            spread, block = torch.empty_like(grad), 1024
            _window[(band.entries, triton.cdiv(n1 * n2, block))](
                grad, spread, n1, n2, WEIGHT_VARIANCE / 9, *shape, block, num_warps=WARPS
            )
            done.append(spread)
        return done[0], done[1], grad_q, *(None,) * 5


def _blocks(n1: int, n2: int) -> int:
    return int(triton.cdiv(n1, HIGH) * triton.cdiv(n2, WIDE))


def _sizes(band: Band, out: Band) -> tuple[int, ...]:
    return (
        *(band.height, band.width, band.up, band.along),
        *(out.height, out.width, out.up, out.along),
    )


def _options(given: Tensor, x2: Tensor | None, after: Band | None, same: bool) -> tuple[Any, ...]:
    images = x2 is not None
    tolerance = POLE * torch.finfo(torch.float32).eps
    channels = len(given) if images else 1
    return channels, images, after is not None, same, WEIGHT_VARIANCE, BIAS_VARIANCE, tolerance, HIGH, WIDE
