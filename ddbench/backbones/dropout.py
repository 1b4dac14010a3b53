"""Dropout and stochastic depth of a network that trains, drawn from its own seed and step rather than from a global
generator.

Numbers are a hash of the network's seed, the step, the place in the network and the position: in integers, so that all
devices draw the same; without a state outside the buffers, so that a step that is captured as a graph draws anew at
every replay, and that a student draws the same alone as beside others.
Source of the hash: SplitMix64; Steele, Lea and Flood, OOPSLA 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddbench.errors import ConfigError
from ddbench.rng import Rng

DRAWS = ".draws"
"""The buffer of a network that draws: int64 [2], its seed and how many training passes it has made. No module can have
one of that name."""

# SplitMix64's, as torch's int64 writes them.
_GOLDEN, *_FACTORS = (number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 24  # as many as a float32 in [0, 1) has


def fresh_draws(rng: Rng) -> Tensor:
    """What `DRAWS` is before the first training pass."""
    return torch.tensor([rng.fold("draws").key, 0], device="cpu")


class SeededDraws(TorchDispatchMode):
    """One training pass, in which dropout and its relatives draw by the state of a network, which stays as it is.

    Covered are operations that draw from a uniform distribution, whichever function of torch, layer or library asks for
    them: dropout in all its forms, that inside attention, stochastic depth, `torch.rand_like(x) < p`.
    Raises: ConfigError for an operation that draws in another way.
    """

    def __init__(self, name: str, state: Tensor) -> None:
        super().__init__()
        self._name, self._state = name, state
        self.draws = 0
        """How often it has drawn so far."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping imports torch's compiler, which takes seconds, and nothing that draws is compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None:
            return rule(self.uniform, *args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and func not in _HARMLESS:
            raise ConfigError(
                f"backbone {self._name!r} draws random numbers in its forward pass by {func.overloadpacket}, which no "
                "seed of a run would reach. Dropout, stochastic depth and what draws by torch.rand_like can be seeded; "
                "make it without the rest."
            )
        return func(*args, **kwargs)

    def uniform(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1), float32, others at every call."""
        seed, step = self._state.unbind()
        place = (_GOLDEN * self.draws + 2**63) % 2**64 - 2**63
        key = _mixed(_mixed(seed + _GOLDEN * step) + place)
        self.draws += 1
        numbers = torch.arange(1, math.prod(size) + 1, device=device).mul_(_GOLDEN).add_(key)
        return (_shifted(_mixed(numbers), 64 - _BITS) * 2.0**-_BITS).view(torch.Size(size))


def stepped(state: Tensor) -> Tensor:
    """The state after a training pass."""
    return torch.stack([state[0], state[1] + 1])


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FACTORS[0]
    z = (z ^ _shifted(z, 27)) * _FACTORS[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


Uniform = Callable[[Sequence[int], torch.device], Tensor]


def _fill_bernoulli(uniform: Uniform, x: Tensor, p: float | Tensor = 0.5, *, generator: None = None) -> Tensor:
    return x.copy_(uniform(x.shape, x.device) < p)


def _bernoulli(uniform: Uniform, p: Tensor, *, generator: None = None) -> Tensor:
    return (uniform(p.shape, p.device) < p).to(p.dtype)


def _bernoulli_like(uniform: Uniform, x: Tensor, p: float = 0.5, *, generator: None = None) -> Tensor:
    return (uniform(x.shape, x.device) < p).to(x.dtype)


def _dropout(uniform: Uniform, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = uniform(x.shape, x.device) < 1 - p
    return x * kept * (0.0 if p == 1 else 1 / (1 - p)), kept


def _fill_uniform(
    uniform: Uniform, x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: None = None
) -> Tensor:
    return x.copy_(uniform(x.shape, x.device) * (high - low) + low)


def _rand(uniform: Uniform, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    # Somebody's `torch.rand(n)` without a device lies on the CPU wherever the network is.
    where = torch.device("cpu" if device is None else device)
    return uniform(size, where).to(dtype or torch.get_default_dtype())


def _rand_like(uniform: Uniform, x: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return uniform(x.shape, x.device if device is None else device).to(dtype or x.dtype)


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., Any]] = {
    _aten.bernoulli_.float: _fill_bernoulli,
    _aten.bernoulli_.Tensor: _fill_bernoulli,
    _aten.bernoulli.default: _bernoulli,
    _aten.bernoulli.p: _bernoulli_like,
    _aten.native_dropout.default: _dropout,
    _aten.uniform_.default: _fill_uniform,
    _aten.rand.default: _rand,
    _aten.rand_like.default: _rand_like,
}
# Asks which kernel will compute attention, and draws nothing.
_HARMLESS = frozenset({_aten._fused_sdp_choice.default})
