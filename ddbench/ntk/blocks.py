"""Blocks of a kernel matrix, their gradients and their regressions, and what computes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ddbench.engine.program import Program, fusible, layers_ran
from ddbench.ntk.architectures import Architecture, resolutions
from ddbench.ntk.kernel import kernel, one_pass, read_out, variances
from ddbench.ntk.layouts import all_is_less, convolution_layouts, layouts_of


class Blocks(ABC):
    """What computes the NTK of one chunk of pairs. x1 is [n1, C, H, W], x2 [n2, C, H, W]."""

    # Bytes that a pair of images takes while its gradient is computed, and of these what is held from its value on;
    # second images are filled up to whole lanes.
    bytes_per_pair: int
    held_per_pair: int
    lanes: int = 1

    @abstractmethod
    def value(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        """[n1, n2], without a graph. `same`: x1 is x2."""

    @abstractmethod
    def slope(self, x1: Tensor, x2: Tensor, weights: Tensor, same: bool) -> Tensor:
        """The gradient of the sum of weights [n1, n2] times kernel, in x1 as first argument alone: [n1, C, H, W]."""

    def row(self, x1: Tensor, columns: Sequence[tuple[Tensor, Tensor, bool]]) -> Tensor:
        """The sum of slopes over second chunks, each with its weights and whether it is x1."""
        total = torch.zeros_like(x1)
        for x2, weights, same in columns:
            total += self.slope(x1, x2, weights, same)
        return total

    def regression(
        self, rows: Sequence[Tensor], columns: Sequence[tuple[Tensor, Tensor, Tensor]], weights: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Predictions by `weights` [n1, C] for second chunks, each with its targets [n2, C] and the share [n2, 1] of
        each of its images in the error; and the gradients, in the first images and in the weights, of half the sum of
        squared errors by their shares.
        """
        predictions, of_images, of_weights = [], torch.zeros_like(torch.cat(list(rows))), torch.zeros_like(weights)
        for x2, targets, share in columns:
            value = torch.cat([self.value(x1, x2, False) for x1 in rows])
            predicted, pull, part = _pull_back(value, weights, targets, share)
            predictions.append(predicted)
            of_weights += part
            slopes = [self.slope(x1, x2, some, False) for x1, some in zip(rows, _like(rows, pull), strict=True)]
            of_images += torch.cat(slopes)
        return predictions, of_images, of_weights


def _pull_back(value: Tensor, weights: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions [n2, C] by a kernel's values [n1, n2], and the gradients of the error in values and weights."""
    exact = value.to(weights.dtype)
    predicted = exact.T @ weights
    errors = (predicted - targets) * share
    return predicted, (weights @ errors.T).to(value.dtype), exact @ errors


def _like(rows: Sequence[Tensor], whole: Tensor) -> Sequence[Tensor]:
    return whole.split([len(x1) for x1 in rows])


class TorchBlocks(Blocks):
    """The kernels of this module: one program for each shape of chunk, forward and backward.

    Our own GPU kernels take variances as they take images. They are computed once for a chunk, and their gradient is
    taken once for a row of chunks.
    """

    def __init__(
        self, network: Architecture, shape: Sequence[int], device: torch.device, dtype: torch.dtype, calls: int
    ) -> None:
        self._network, self._device, self._calls, self._dtype = network, device, calls, dtype
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._fused = one_pass(network, shape[0], device, dtype)
        self.lanes = 1 if self._fused is None else int(self._fused.LANES.value)
        self._variances = WeakTensorKeyDictionary()  # of a call's chunks, which are new tensors every time
        held, worked = _numbers_per_pair(network, shape, self._fused is not None)
        self.held_per_pair = held * torch.finfo(dtype).bits // 8
        self.bytes_per_pair = self.held_per_pair + worked * torch.finfo(dtype).bits // 8

    def value(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        if self._fused is None:
            return self._run("value", same, x1, x2)
        return self._run("value", same, x1, x2, self._maps(x1), self._maps(x2))

    def slope(self, x1: Tensor, x2: Tensor, weights: Tensor, same: bool) -> Tensor:
        if self._fused is None:
            return self._run("slope", same, x1, x2, weights)
        return self.row(x1, [(x2, weights, same)])

    def row(self, x1: Tensor, columns: Sequence[tuple[Tensor, Tensor, bool]]) -> Tensor:
        if self._fused is None:
            return super().row(x1, columns)
        own, totals = self._maps(x1), None
        for x2, weights, same in columns:
            grads = self._run("slope", same, x1, x2, own, self._maps(x2), weights)
            totals = grads if totals is None else torch._foreach_add(totals, grads)
        assert totals is not None
        return totals[0] + self._run("maps' slope", False, x1, totals[1:])

    def regression(
        self, rows: Sequence[Tensor], columns: Sequence[tuple[Tensor, Tensor, Tensor]], weights: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        own = [] if self._fused is None else [self._maps(x1) for x1 in rows]
        predictions, totals = [], None
        for x2, targets, share in columns:
            maps = [] if self._fused is None else self._maps(x2)
            predicted, *sums = self._run("regression", False, list(rows), x2, own, maps, weights, targets, share)
            predictions.append(predicted)
            totals = sums if totals is None else torch._foreach_add(totals, sums)
        assert totals is not None
        of_weights, *grads = totals
        each = len(grads) // len(rows)  # of a row of chunks: in its images, then in each of their maps
        of_images = [
            grads[k * each] + self._run("maps' slope", False, x1, grads[k * each + 1 : (k + 1) * each])
            if each > 1
            else grads[k]
            for k, x1 in enumerate(rows)
        ]
        return predictions, torch.cat(of_images), of_weights

    def _maps(self, x: Tensor) -> list[Tensor]:
        if x not in self._variances:
            self._variances[x] = self._run("maps", False, x)
        return self._variances[x]

    @torch.no_grad()
    def _run(self, what: str, same: bool, *given: Any) -> Any:
        key = (what, same, *(len(x) for x in _pytree.tree_leaves(given)))
        if key not in self._programs:
            step = (self._in_torch if self._fused is None else self._in_kernels)(what, same)
            self._programs[key] = Program(step, self._device, calls=self._calls)
        return self._programs[key](*given)

    def _in_torch(self, what: str, same: bool) -> Callable[..., Any]:
        @fusible
        def ntk(x1: Tensor, x2: Tensor) -> Tensor:
            return kernel(self._network, x1.to(self._dtype), x2.detach().to(self._dtype), same=same).ntk

        def value(x1: Tensor, x2: Tensor) -> Tensor:
            with torch.no_grad():
                return ntk(x1, x2)

        def slope(x1: Tensor, x2: Tensor, weights: Tensor) -> Tensor:
            leaf = x1.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(ntk(leaf, x2), leaf, weights)
            return grad

        programs: dict[str, Callable[..., Any]] = {
            "value": value,
            "slope": slope,
            "regression": partial(_regression, lambda x1, x2, *_: ntk(x1, x2)),
        }
        return programs[what]

    def _in_kernels(self, what: str, same: bool) -> Callable[..., Any]:
        network, fused = self._network, self._fused
        assert fused is not None

        def maps(x: Tensor) -> list[Tensor]:
            layers_ran(in_kernels=True)
            # Cloned, because they are views of whole bands.
            return [q.clone() for q in variances(network, x.to(self._dtype).permute(1, 2, 3, 0))]

        def ntk(x1: Tensor, x2: Tensor, q1: list[Tensor], q2: list[Tensor]) -> Tensor:
            layers_ran(in_kernels=True)
            layouts = layouts_of(network, resolutions(network, *x1.shape[-2:]), False)
            first, second = (x.to(self._dtype).permute(1, 2, 3, 0) for x in (x1, x2))
            s, theta = fused.stages(first, second, q1, q2, convolution_layouts(network, layouts), same)
            return read_out(network, layouts[-1], s, theta).ntk

        def slope(x1: Tensor, x2: Tensor, q1: list[Tensor], q2: list[Tensor], weights: Tensor) -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in (x1, *q1)]
            with torch.enable_grad():
                return list(torch.autograd.grad(ntk(leaves[0], x2, leaves[1:], q2), leaves, weights))

        def slope_of_maps(x: Tensor, grads: list[Tensor]) -> Tensor:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(maps(leaf), leaf, grads)
            return grad

        programs: dict[str, Callable[..., Any]] = {
            "value": ntk,
            "slope": slope,
            "regression": partial(_regression, ntk),
            "maps": maps,
            "maps' slope": slope_of_maps,
        }
        return programs[what]


def _regression(
    ntk: Callable[..., Tensor],
    rows: Sequence[Tensor],
    x2: Tensor,
    own: Sequence[Sequence[Tensor]],
    maps: Sequence[Tensor],
    weights: Tensor,
    targets: Tensor,
    share: Tensor,
) -> list[Tensor]:
    """Regression on a second chunk: predictions, the gradient in the weights, those in each first chunk and its maps.

    The graphs of all first chunks are held, and go one by one.
    """
    given = [(x1, *more) for x1, more in zip(rows, own or [()] * len(rows), strict=True)]
    leaves = [[t.detach().requires_grad_() for t in some] for some in given]
    with torch.enable_grad():
        values = [ntk(some[0], x2, some[1:], maps) for some in leaves]
    predicted, pull, of_weights = _pull_back(torch.cat([v.detach() for v in values]), weights, targets, share)
    grads: list[Tensor] = []
    for some, part in zip(leaves, _like(rows, pull), strict=True):
        grads += torch.autograd.grad(values.pop(0), some, part)
    return [predicted, of_weights, *grads]


def _numbers_per_pair(network: Architecture, shape: Sequence[int], fused: bool) -> tuple[int, int]:
    """Numbers held for a pair until its gradient is computed: two for each ReLU; and what one layer works on."""
    if network.flat:
        return 2 * network.layers.count("relu"), 10
    sizes = resolutions(network, *shape[1:])
    layouts = layouts_of(network, sizes, full=not fused and all_is_less(network, sizes))
    if fused:
        # What stages write, and the gradients of one and of the one after it; images have one, covariances two.
        plan = convolution_layouts(network, layouts)
        kept = sum(2 * (after or here).entries for here, after in plan)
        grads = [here.entries * (1 if k == 0 else 2) for k, (here, _) in enumerate(plan)]
        return kept, max(map(sum, zip(grads, [*grads[1:], 0], strict=True)))
    level, kept = 0, 0
    for layer in network.layers:
        level += layer == "pool"
        kept += 2 * layouts[level].entries * (layer == "relu")
    return kept, 10 * layouts[0].entries
