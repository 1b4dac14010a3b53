"""Networks that others built: any torch module as a backbone, after a probe of what it does."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from ddbench.backbones import initialisers, modules, probe
from ddbench.backbones.backbone import Backbone
from ddbench.backbones.dropout import DRAWS, SeededDraws, fresh_draws, stepped
from ddbench.backbones.initialisers import Initialiser
from ddbench.backbones.tangent_blocks import Linearised
from ddbench.backbones.tangent_layers import Tangents
from ddbench.backbones.variables import Shape, Variables
from ddbench.errors import ConfigError
from ddbench.plugins import said
from ddbench.rng import Rng

logger = logging.getLogger(__name__)


class ForeignBackbone(Backbone):
    """A backbone around a module that knows nothing of ddbench; see `from_module`."""

    def __init__(
        self,
        name: str,
        factory: Callable[[], nn.Module],
        shape: Shape,
        classes: int,
        initialiser: Initialiser | None = None,
        *,
        known: bool = False,
    ) -> None:
        self._make = functools.partial(modules.construct, factory, name, shape)
        module = self._make(Rng(0))
        self._trained = frozenset(key for key, parameter in module.named_parameters() if parameter.requires_grad)
        first = self._split(module).detach().clone()  # before the probe, whose batch counts in statistics
        found = probe.run(module, name, shape, classes)
        self.stochastic, self._head, self._training = found.stochastic, found.head, False
        if self.stochastic:
            first.buffers[DRAWS] = fresh_draws(Rng(0))
        ends = ("embed", "logits") if self._head is not None else ("logits",)
        taps = dict.fromkeys((*(tap for tap in found.taps if tap not in ends), *ends))
        self._own_draws = initialiser is None
        self._draws = initialisers.draws_of(module, initialiser) if initialiser is not None else {}
        self._set(name, modules.without_numbers(module, name), shape, classes, taps, first.buffers)
        self.parameters = first.numel
        if not known:
            probe.check_draws(name, first, *(self._variables(self._make(rng), rng) for rng in (Rng(0), Rng(1))))
            self.per_sample &= probe.check_function(self.in_training(), self._make(Rng(2)), self._split)

    def first_order(self, device: torch.device) -> Backbone:
        # Nobody knows what its forward does between its layers.
        return self

    @functools.cached_property
    def linearised(self) -> Linearised | None:
        return None

    @functools.cached_property
    def tangents(self) -> Tangents | None:
        return None

    @functools.cached_property
    def vmappable(self) -> bool:
        if self.stochastic:
            return False  # its draws are made below the transforms of torch.func, where networks are not told apart
        networks, x = self.init(Rng(0), copies=2), torch.zeros(2, 2, *self.shape)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an operation that is slow under vmap
                vmap(self)(networks, x)
        except Exception as error:
            logger.debug("%s cannot be computed for many at once: %s", self.name, error)
            return False
        return True

    @functools.cached_property
    def capturable(self) -> bool:
        nowhere = self.init(Rng(0)).to("meta")
        try:
            self.in_training()(nowhere, torch.empty(2, *self.shape, device="meta"))
        except Exception as error:
            logger.debug("%s cannot be computed without numbers: %s", self.name, error)
            return False
        return True

    def in_training(self) -> Backbone:
        if not self.stochastic or self._training:
            return self
        form = copy.copy(self)
        form._training = True
        return form

    def _split(self, module: nn.Module) -> Variables:
        """The tensors of a module: what is trained, and what is kept. Frozen parameters are kept."""
        tensors: dict[str, Tensor] = dict(module.named_parameters())
        trained = {key: tensor for key, tensor in tensors.items() if key in self._trained}
        kept = {key: tensor for key, tensor in tensors.items() if key not in self._trained}
        return Variables(trained, {**kept, **dict(module.named_buffers())})

    def _variables(self, module: nn.Module, rng: Rng) -> Variables:
        found = self._split(module).detach().clone()
        if self.stochastic:
            found.buffers[DRAWS] = fresh_draws(rng)
        return found

    def _no_such_tap(self, tap: str) -> str:
        if tap == "embed":
            return (
                f"{self.name} has no embedding: its logits do not come straight from a torch.nn.Linear. "
                "Give it one as last layer, or use a method that needs no embedding."
            )
        return super()._no_such_tap(tap)

    def _draw(self, rngs: Sequence[Rng], device: torch.device, source: torch.device) -> Variables:
        if self._own_draws:
            return Variables.stack([self._variables(self._make(rng), rng) for rng in rngs]).to(device)
        drawn = super()._draw(rngs, device, source)
        frozen = {key: drawn.params.pop(key) for key in list(drawn.params) if key not in self._trained}
        draws = {DRAWS: torch.stack([fresh_draws(rng) for rng in rngs]).to(device)} if self.stochastic else {}
        return Variables(drawn.params, {**drawn.buffers, **frozen, **draws})

    def _apply(
        self, v: Variables, x: Tensor, train: bool, taps: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs: dict[str, Tensor] = {}
        handles = [self._watch(self._modules[train], tap, outputs) for tap in taps if tap != "logits"]
        try:
            outputs["logits"], buffers = self._call(v, train, (x,))
        finally:
            for handle in handles:
                handle.remove()
        for tap in taps:
            if tap not in outputs:
                raise ConfigError(f"{self.name} did not reach {tap!r} in {'training' if train else 'evaluation'} mode.")
        return outputs, buffers

    def _call(self, v: Variables, train: bool, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
        if torch.compiler.is_compiling():
            return self._computed(v, train, arguments)
        try:
            return self._computed(v, train, arguments)
        except (ValueError, RuntimeError) as error:
            reason = self._reason(error, len(arguments[0]))
            if not reason:
                raise
            raise ConfigError(reason) from error

    def _computed(self, v: Variables, train: bool, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
        # Of the kernels for attention only the one that is written in torch's operations has second derivatives and
        # forward mode.
        with sdpa_kernel(SDPBackend.MATH):
            if not self.stochastic:
                return super()._call(v, train, arguments)
            state = v.buffers[DRAWS]
            plain = Variables(v.params, {key: tensor for key, tensor in v.buffers.items() if key != DRAWS})
            if not train:
                output, buffers = super()._call(plain, train, arguments)
                return output, {**buffers, DRAWS: state}
            output, buffers = self._call_with_draws(plain, state, arguments)
            return output, {**buffers, DRAWS: stepped(state)}

    def _reason(self, error: Exception, images: int) -> str:
        """What is to be said of an error that a network makes although its probe went well; nothing of others."""
        if "more than 1 value per channel" in str(error) and images == 1:
            return (
                f"{self.name} has batch norm that cannot train on one image alone, and here is a batch of one. "
                "Use another ipc, another batch, or another backbone."
            )
        if "on the same device" in str(error) or "same device type" in str(error):
            return (
                f"{self.name} makes tensors in its forward pass that stay on the CPU ({said(error)}). Make them "
                "where the images are, as in torch.arange(n, device=x.device), or use --device cpu."
            )
        return ""

    def _call_with_draws(
        self, v: Variables, state: Tensor, arguments: tuple[Any, ...]
    ) -> tuple[Any, dict[str, Tensor]]:
        if not self._training:
            raise ConfigError(
                f"{self.name} draws random numbers when it trains (dropout or stochastic depth), and here a network is "
                "needed that is a function of its parameters and images alone. It can be a judge; here use one "
                "without, such as convnet or torchvision:vgg11(dropout=0)."
            )
        with SeededDraws(self.name, state):
            return super()._call(v, True, arguments)

    def _watch(self, module: nn.Module, tap: str, outputs: dict[str, Tensor]) -> RemovableHandle:
        if tap == "embed":
            assert self._head is not None
            return module.get_submodule(self._head).register_forward_pre_hook(
                lambda _, args: outputs.__setitem__(tap, args[0].clone())
            )
        # Cloned, because the next layer may work in place.
        return module.get_submodule(tap).register_forward_hook(
            lambda _, args, output: outputs.__setitem__(tap, output.clone())
        )


# What torch says of an operation without the derivative that was asked for.
_LACKING = ("derivative for", "forward AD", "forward-mode AD", "autograd.Function", "once_differentiable", "vmap")


@contextlib.contextmanager
def derivatives_explained(net: Backbone) -> Iterator[None]:
    """Inside, an operation of somebody's network without the derivative that a method takes is a sentence.

    Raises: ConfigError in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(net, ForeignBackbone) or not any(words in str(error) for words in _LACKING):
            raise
        reason = said(error).partition("\n")[0]
        raise ConfigError(
            f"{net.name} has an operation without the derivatives that this method takes ({reason}). Use a network "
            "without it, or a method that takes first derivatives alone, such as dm."
        ) from error


def from_module(
    name: str,
    factory: Callable[[], nn.Module],
    shape: Shape,
    classes: int,
    *,
    initialiser: Initialiser | None = None,
    known: bool = False,
) -> Backbone:
    """A backbone from anybody's module. Taps are the names of its submodules, "embed" and "logits".

    Each network is drawn by calling `factory` on the CPU with torch's generator seeded and put back, so that the
    initialisation that its author wrote is kept. `initialiser` draws known layers from a built-in one, which is faster.
    Frozen parameters stay as they are drawn. Dropout draws from the seed of each network. A `known` one, of a library,
    is not checked for what only a factory of one's own gets wrong.
    Raises: ConfigError if it cannot take the images, does not return logits, draws random numbers otherwise than
    dropout does, or is no function of its parameters, buffers and images; with an initialiser, also for layers that are
    not known.
    """
    return ForeignBackbone(name, factory, shape, classes, initialiser, known=known)
