"""Programs of static shape: on a GPU captured once as a CUDA graph and replayed, elsewhere simply called.

A step of a small network is a hundred kernels of a few microseconds each; launching them one by one from Python takes
longer than running them. Compilation fuses the kernels between the convolutions, which are memory traffic. Both cost
time up front, so that both have to be worth it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from ddbench.engine.capabilities import has_graphs

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

# What compiling a step of a small network takes where nothing is in torch's cache on disk, and what share of an eager
# graph's time it saves; measured on an H100 (docs/pages/concepts/engine.md).
COMPILE_SECONDS = 16.0
COMPILE_SAVES = 0.6

# Past this many shapes torch stops compiling without a word and runs eagerly; a benchmark sees many shapes.
RECOMPILE_LIMIT = 256


def worth_compiling(seconds: float, device: torch.device) -> bool:
    """Whether compiling pays for work that takes so many seconds without it, done or to come.

    Nobody knows how much more of the same will come. Compiling once as much time could have been saved as it takes is
    never more than twice as slow as knowing.
    """
    return has_graphs(device) and seconds * COMPILE_SAVES > COMPILE_SECONDS


def compiled(function: F) -> F:
    """The function through torch.compile, for fixed shapes. Runs eagerly, with one log line, where that fails."""
    import torch._dynamo as dynamo

    for limit in ("recompile_limit", "cache_size_limit"):  # the name changed with torch 2.7
        if hasattr(dynamo.config, limit):
            setattr(dynamo.config, limit, max(getattr(dynamo.config, limit), RECOMPILE_LIMIT))
            break
    fast = torch.compile(function, dynamic=False)
    broken = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal broken
        if not broken:
            try:
                return fast(*args, **kwargs)
            except dynamo.exc.TorchDynamoException as error:
                broken = True
                logger.info("torch.compile does not support this program (%s); running it eagerly.", _first_line(error))
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """ddbench's GPU kernels of layers, as a module; None, with one log line, where Triton is missing."""
    try:
        from ddbench.engine.gpu import layers
    except ImportError as error:
        logger.warning("no GPU kernels of ddbench without Triton (%s); torch's are slower.", _first_line(error))
        return None
    return layers


class _Running:
    """What holds in the step that is running. No context variables: autograd runs backward functions in its threads."""

    compiling = False
    layers: set[bool] | None = None


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Inside, what is `fusible` is compiled."""
    before, _Running.compiling = _Running.compiling, on
    try:
        yield
    finally:
        _Running.compiling = before


def fusible(function: F) -> F:
    """Mark a function of tensors alone, which changes nothing: it is compiled where that pays, and else simply called.

    Compiled once in a process, whichever runs and programs call it.
    """
    fast: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        # In a function that is being compiled this one is a part of it.
        if torch.compiler.is_compiling() or not _Running.compiling:
            return function(*args)
        if not fast:
            fast.append(compiled(function))
        return fast[0](*args)

    return call  # type: ignore[return-value]


def layers_ran(*, in_kernels: bool) -> None:
    """Said by a network as it is applied: whether its layers are GPU kernels of ddbench, or a compiler could join them.

    A step that saw nothing but such kernels is not compiled.
    """
    if _Running.layers is not None and not torch.compiler.is_compiling():
        _Running.layers.add(in_kernels)


def channels_last(x: Tensor) -> Tensor:
    """Images [B, C, H, W] in the memory layout that a GPU's convolutions want; on a CPU as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def weights_laid_out(weight: Tensor) -> Tensor:
    """A parameter in the memory layout that a GPU's convolutions want, unless few channels go in: that of the first
    layer is read by a GPU kernel of ddbench."""
    wide = weight.is_cuda and weight.dim() == 4 and weight.shape[1] >= 8
    return weight.contiguous(memory_format=torch.channels_last) if wide else weight


class Program:
    """A step of fixed shapes, which may change tensors that it closes over.

    `calls` is how often the step will be taken, or a function that says how often it still will. Arguments and results
    may be nested (dicts, Variables, Draw); tensors that are passed in may lie on the host and are copied to the device.

    Every call takes exactly one step. On a GPU the first runs as it is, so that kernels are chosen and optimisers make
    their buffers; the second is captured as a CUDA graph, the third is timed, and where compiling will pay the same
    begins again with the parts compiled that are `fusible`. Where capturing fails the step is simply called, with one
    log line.
    """

    def __init__(self, step: Callable[..., Any], device: torch.device, *, calls: int | Callable[[], float]) -> None:
        self._step, self._device, self._calls, self._taken = step, device, calls, 0
        self._compiled = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Any] = []
        self._result: Any = None
        self._warm = self._decided = False
        self._eager = not has_graphs(device)
        self._stream = None if self._eager else torch.cuda.Stream(device)

    @property
    def captured(self) -> bool:
        """Whether a call replays a graph."""
        return self._graph is not None

    def __call__(self, *args: Any) -> Any:
        self._taken += 1
        if self._eager:
            return self._step(*_pytree.tree_map(lambda leaf: _there(leaf, self._device), args))
        leaves, shape = _pytree.tree_flatten(args)
        if not self._inputs:
            self._inputs = [_own(leaf, self._device) for leaf in leaves]
        else:
            _check_same(self._inputs, leaves)
            _fill(self._inputs, leaves)
        if self._graph is None:
            static = _pytree.tree_unflatten(self._inputs, shape)
            if not self._warm or not self._capture(static):
                self._warm = True
                return self._on_stream(static)
            assert self._graph is not None
            self._graph.replay()
        elif self._decided:
            self._graph.replay()
        else:
            self._time_and_decide()
        # Cloned, because the next replay writes to the same place.
        return _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self._result)

    def _time_and_decide(self) -> None:
        assert self._graph is not None
        torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        self._graph.replay()
        torch.cuda.synchronize(self._device)
        left = self._calls - self._taken if isinstance(self._calls, int) else self._calls()
        seconds = (time.perf_counter() - started) * left
        self._decided = True
        if worth_compiling(seconds, self._device):
            self._compiled, self._graph, self._warm = True, None, False

    def _run(self, *args: Any) -> Any:
        with compiling(self._compiled):
            return self._step(*args)

    def _on_stream(self, args: Any) -> Any:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        seen: set[bool] = set()
        before, _Running.layers = _Running.layers, seen
        try:
            with torch.cuda.stream(self._stream):
                result = self._run(*args)
        finally:
            _Running.layers = before
        self._decided = self._decided or seen == {True}
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return result

    def _capture(self, args: Any) -> bool:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self._run(*args)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            self._eager = True
            logger.warning("a step cannot be captured as a CUDA graph (%s): it will be slower.", _first_line(error))
            return False
        self._graph = graph
        return True


class Programs:
    """One step as a program for each shape of its arguments. It lives as long as the tensors that it changes.

    `calls` is how often it will be taken in all; how many of those left have a shape follows from those so far.
    """

    def __init__(self, step: Callable[..., Any], device: torch.device, *, calls: int) -> None:
        self._step, self._device, self._calls = step, device, calls
        self.programs: dict[tuple[object, ...], Program] = {}
        self._taken: Counter[tuple[object, ...]] = Counter()

    def __call__(self, *args: Any) -> Any:
        key = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in _pytree.tree_leaves(args))
        self._taken[key] += 1
        if key not in self.programs:
            left = functools.partial(self._left, key)
            self.programs[key] = Program(self._step, self._device, calls=left)
        return self.programs[key](*args)

    def _left(self, key: tuple[object, ...]) -> float:
        taken = self._taken.total()
        return (self._calls - taken) * self._taken[key] / taken


def _own(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf


def _there(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _fill(static: list[Any], leaves: list[Any]) -> None:
    on_device = [(a, b) for a, b in zip(static, leaves, strict=True) if isinstance(a, Tensor) and b.is_cuda]
    if on_device:
        torch._foreach_copy_([a for a, _ in on_device], [b for _, b in on_device])
    for a, b in zip(static, leaves, strict=True):
        if isinstance(a, Tensor) and not b.is_cuda:
            a.copy_(b.pin_memory(), non_blocking=True)


def _check_same(static: list[Any], leaves: list[Any]) -> None:
    for a, b in zip(static, leaves, strict=True):
        same = a.shape == b.shape and a.dtype == b.dtype if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        if not same:
            raise ValueError(
                f"a program's arguments keep their shapes and plain values; one changed from {a!r} to {b!r}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# Names of the C library: above which size a piece of memory is mapped for itself, and how much that is free at the end
# the process keeps.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MAPPED_APART = 1 << 30
KEPT = (1 << 31) - 1


def keep_memory(device: torch.device) -> None:
    """Before work on a CPU: let this process use freed memory again instead of returning it. Only glibc needs it."""
    if device.type == "cpu":
        _adjust()


@functools.cache
def _adjust() -> None:
    # Otherwise every activation is mapped anew, page by page, and filled with zeros by the system: 120 000 page faults
    # a step of ConvNet-D3 on 100 images, a third of its time.
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, MAPPED_APART)
        adjust(M_TRIM_THRESHOLD, KEPT)
