"""Gram matrices of the NTK, in pieces that fit into memory, with gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.engine.capabilities import has_float64, total_bytes
from ddbench.errors import ConfigError
from ddbench.ntk.architectures import architecture, resolutions
from ddbench.ntk.blocks import Blocks, TorchBlocks
from ddbench.ntk.kernel import HIGH, WIDE

# For one chunk and its gradient: larger ones leave the caches of a CPU and are no faster. On a GPU each program keeps
# its memory: a kernel with and without a gradient an eighth each, and a regression, which holds all first images.
CPU_MEMORY = 1 << 28
GPU_SHARE = 1 / 8
GPU_SHARE_OF_REGRESSION = 3 / 8


class Gram:
    """The NTK of many images with many, chunk by chunk on both sides, differentiable in the first images.

    A gradient takes the chunks one by one: their kernels are computed again, with a graph each, so that no more than
    one chunk's graph is ever in memory. A regression knows the gradient of its error as soon as it has predicted a
    chunk, and computes no kernel twice, where a chunk holds all first images. All chunks of a call have one shape.
    `memory` is in bytes, and `memory_of_regression` that of a regression's chunk.
    """

    def __init__(self, blocks: Blocks, memory: int, memory_of_regression: int | None = None) -> None:
        self._blocks = blocks
        self._pairs = max(1, memory // blocks.bytes_per_pair)
        self._memory_of_regression = memory if memory_of_regression is None else memory_of_regression

    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """[n1, n2]; without x2 the symmetric kernel of x1, differentiable as such. x2 is a constant."""
        return _Gram.apply(x1, x2, self)

    def value(self, x1: Tensor, x2: Tensor | None) -> Tensor:
        """The kernel, without a graph."""
        rows, columns = self._cut(x1, x2)
        out: list[list[Tensor]] = []
        for i, a in enumerate(rows):
            line: list[Tensor] = []
            for j, b in enumerate(columns):
                if x2 is None and j < i:
                    line.append(out[j][i].T)
                else:
                    line.append(self._blocks.value(a, b, x2 is None and i == j))
            out.append(line)
        whole = torch.cat([torch.cat(line, dim=1) for line in out])
        return whole[: len(x1), : len(x1 if x2 is None else x2)]

    def slope(self, x1: Tensor, x2: Tensor | None, weights: Tensor) -> Tensor:
        """The gradient in x1 of the sum of weights [n1, n2] times kernel."""
        if x2 is None:
            weights = weights + weights.T  # the kernel is symmetric: its derivative on one side tells that on both
        rows, columns = self._cut(x1, x2)
        high, wide = len(rows[0]), len(columns[0])
        weights = F.pad(weights, (0, wide * len(columns) - weights.shape[1], 0, high * len(rows) - len(weights)))
        grads = []
        for i, a in enumerate(rows):
            blocks = weights[i * high : (i + 1) * high].split(wide, dim=1)
            line = [(b, block, x2 is None and i == j) for j, (b, block) in enumerate(zip(columns, blocks, strict=True))]
            grads.append(self._blocks.row(a, line))
        return torch.cat(grads)[: len(x1)]

    def regression(self, x1: Tensor, x2: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel regression by `weights` on x1: half the mean squared error of its predictions for x2, and these.

        The error is differentiable in x1 and in the weights; x2 and the targets are constants.
        Shapes: weights [n1, C], targets [n2, C]; returns a scalar and [n2, C], in the dtype of the weights.
        """
        targets = targets.to(weights.dtype)
        rows = self._rows_at_once(x1, len(x2))
        if rows is None:
            predicted = self(x1, x2).T.to(weights.dtype) @ weights
            return (predicted - targets).square().mean() / 2, predicted.detach()
        return _Regression.apply(x1, weights, x2, targets, rows, self._blocks)

    def _rows_at_once(self, x1: Tensor, n2: int) -> tuple[int, int] | None:
        """Images of a first and of a second chunk so that the graphs of all first chunks fit; None where none do."""
        blocks, memory = self._blocks, self._memory_of_regression
        held, worked = blocks.held_per_pair, blocks.bytes_per_pair - blocks.held_per_pair
        n1 = len(x1)
        wide = min(_whole(memory // (n1 * held + min(n1, HIGH) * worked), WIDE), n2)
        if wide < min(blocks.lanes, n2):
            return None
        filled = math.ceil(wide / blocks.lanes) * blocks.lanes
        most = (memory - n1 * filled * held) // (filled * worked)
        return (min(_whole(most, HIGH), n1), wide) if most >= min(n1, HIGH) else None

    def _cut(self, x1: Tensor, x2: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        if x2 is None:
            side, lanes = math.isqrt(self._pairs), self._blocks.lanes
            # A side that fills no whole number of lanes takes as much memory as one that does.
            side = max(1, min(side, self._pairs // (math.ceil(side / lanes) * lanes)))
            rows = _pieces(x1, _whole(side, WIDE))
            return rows, rows
        # Chunks are four times as wide as high, as the blocks of the GPU kernels are.
        high = max(math.isqrt(self._pairs // 4), self._pairs // len(x2), 1)
        rows = _pieces(x1, _whole(high, HIGH))
        return rows, _pieces(x2, _whole(self._pairs // len(rows[0]), WIDE))


def _whole(n: int, block: int) -> int:
    """n, rounded down to whole blocks where it has one."""
    return n - n % block if n > block else n


def _pieces(x: Tensor, most: int) -> list[Tensor]:
    """Pieces of one length, at most that; the last is filled up with its last image."""
    count = math.ceil(len(x) / most)
    size = math.ceil(len(x) / count)
    missing = count * size - len(x)
    return list((torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x).split(size))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor | None, gram: Gram) -> Tensor:
        ctx.gram = gram
        ctx.save_for_backward(x1, x2)
        return gram.value(x1, x2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        x1, x2 = ctx.saved_tensors
        return ctx.gram.slope(x1, x2, weights), None, None


class _Regression(torch.autograd.Function):
    """The gradients come with the value: whatever the error is used for only scales them."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, weights: Tensor, x2: Tensor, targets: Tensor, sizes: tuple[int, int], blocks: Blocks
    ) -> tuple[Tensor, Tensor]:
        high, wide = sizes
        rows, columns = _pieces(x1.detach(), high), _pieces(x2, wide)
        padded = len(rows) * len(rows[0]) - len(x1), len(columns) * len(columns[0]) - len(x2)
        share = torch.full((len(x2), 1), 1 / targets.numel(), dtype=weights.dtype, device=weights.device)
        # What fills a chunk up has no weight on the one side, and no share in the error on the other.
        each = [F.pad(t, (0, 0, 0, padded[1])).split(len(columns[0])) for t in (targets, share)]
        by = F.pad(weights.detach(), (0, 0, 0, padded[0]))
        predictions, of_x1, of_weights = blocks.regression(rows, list(zip(columns, *each, strict=True)), by)
        predicted = torch.cat(predictions)[: len(x2)]
        ctx.save_for_backward(of_x1[: len(x1)], of_weights[: len(x1)])
        ctx.mark_non_differentiable(predicted)
        return (predicted - targets).square().mean() / 2, predicted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_x1, of_weights = ctx.saved_tensors
        return up.to(of_x1.dtype) * of_x1, up * of_weights, None, None, None, None


def gram(
    name: str,
    shape: Sequence[int],
    device: torch.device,
    *,
    backend: str = "torch",
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    calls: int = 1,
) -> Gram:
    """The chunked kernel of a network for images of shape (C, H, W).

    `calls` is how often a chunk will be computed. `memory` in bytes for one chunk and its gradient; by default 256 MiB
    on a CPU, and an eighth of a GPU, or three for a regression.
    Raises: ConfigError for an unknown network or backend, for images too small, and where the backend cannot be used.
    """
    network = architecture(name)
    if not network.flat:
        resolutions(network, *shape[1:])
    if dtype == torch.float64 and not has_float64(device):
        raise ConfigError(
            f"device {str(device)!r} has no double precision, which kernels in float64 need; use --device cpu, or "
            "kernels in float32."
        )
    of_regression = memory
    if memory is None:
        memory = of_regression = CPU_MEMORY
        if (whole := total_bytes(device)) is not None:
            memory, of_regression = int(GPU_SHARE * whole), int(GPU_SHARE_OF_REGRESSION * whole)
    match backend:
        case "torch":
            return Gram(TorchBlocks(network, shape, device, dtype, calls), memory, of_regression)
        case "neural-tangents":
            from ddbench.ntk.neural_tangents import NeuralTangentsBlocks

            return Gram(NeuralTangentsBlocks(network, shape, dtype), memory, of_regression)
    raise ConfigError(f"there is no kernel backend {backend!r}; there are torch and neural-tangents.")
