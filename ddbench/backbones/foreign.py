"""Networks that others built: any torch module as a backbone, after a probe of what it does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddbench.backbones import initialisers
from ddbench.backbones.backbone import Backbone
from ddbench.backbones.initialisers import Initialiser
from ddbench.backbones.tangent_blocks import Linearised
from ddbench.backbones.tangent_layers import Tangents
from ddbench.backbones.variables import Shape, Variables
from ddbench.errors import ConfigError
from ddbench.rng import Rng


class ForeignBackbone(Backbone):
    """A backbone around a module that knows nothing of ddbench; see `from_module`."""

    def __init__(
        self,
        name: str,
        factory: Callable[[], nn.Module],
        shape: Shape,
        classes: int,
        initialiser: Initialiser | None = None,
    ) -> None:
        self._factory = factory
        module = self._construct(Rng(0), name)
        buffers = {key: tensor.detach().clone() for key, tensor in module.named_buffers()}
        self._head, inner = _probe(module, name, shape, classes)
        ends = ("embed", "logits") if self._head is not None else ("logits",)
        taps = dict.fromkeys((*(tap for tap in inner if tap not in ends), *ends))
        self._own_draws = initialiser is None
        self._draws = initialisers.plan(module, initialiser) if initialiser is not None else {}
        self._set(name, module.to("meta"), shape, classes, taps, buffers)

    def first_order(self, device: torch.device) -> Backbone:
        # Nobody knows what its forward does between its layers.
        return self

    @functools.cached_property
    def linearised(self) -> Linearised | None:
        return None

    @functools.cached_property
    def tangents(self) -> Tangents | None:
        return None

    def _construct(self, rng: Rng, name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # torch.manual_seed would also seed the generators of all GPUs, which are not put back.
            torch.default_generator.manual_seed(rng.key)
            try:
                module = self._factory()
            except Exception as error:
                raise ConfigError(f"backbone {name!r} cannot be made: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"backbone {name!r} must make a torch.nn.Module, not a {type(module).__name__}.")
        return module.cpu()

    def _no_such_tap(self, tap: str) -> str:
        if tap == "embed":
            return (
                f"{self.name} has no embedding: its logits do not come straight from a torch.nn.Linear. "
                "Give it one as last layer, or use a method that needs no embedding."
            )
        return super()._no_such_tap(tap)

    def _draw(self, rngs: Sequence[Rng], device: torch.device, source: torch.device) -> Variables:
        if not self._own_draws:
            return super()._draw(rngs, device, source)
        modules = [self._construct(rng, self.name) for rng in rngs]
        return Variables.stack(
            [Variables(dict(module.named_parameters()), dict(module.named_buffers())).detach() for module in modules]
        ).to(device)

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


def from_module(
    name: str,
    factory: Callable[[], nn.Module],
    shape: Shape,
    classes: int,
    *,
    initialiser: Initialiser | None = None,
) -> Backbone:
    """A backbone from anybody's module. Taps are the names of its submodules, "embed" and "logits".

    Each network is drawn by calling `factory` on the CPU with torch's generator seeded and put back, so that the
    initialisation that its author wrote is kept. `initialiser` draws known layers from a built-in one, which is faster.
    Raises: ConfigError if it cannot take the images, does not return logits, or draws random numbers in its forward
    pass; with an initialiser, also for layers that are not known.
    """
    return ForeignBackbone(name, factory, shape, classes, initialiser)


def _probe(module: nn.Module, name: str, shape: Shape, classes: int) -> tuple[str | None, list[str]]:
    """The linear layer that makes the logits, and the submodules whose output is one tensor. Runs the module once."""
    seen: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, output, key=key: seen.__setitem__(key, output))
        for key, layer in module.named_modules()
        if key
    ]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        try:
            logits = module.train()(torch.zeros(2, *shape, device="cpu"))
        except Exception as error:
            size = "x".join(map(str, shape))
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"backbone {name!r} does not take images of shape {size}: {reason}") from error
        finally:
            for handle in handles:
                handle.remove()
        random = not torch.equal(before, torch.get_rng_state())
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"backbone {name!r} must return logits of shape (2, {classes}) for 2 images, not {found}.")
    if random:
        raise ConfigError(
            f"backbone {name!r} draws random numbers in its forward pass (dropout, say), which no seed of a run would "
            "reach. Give a factory that makes it without, such as FILE.py:FACTORY with dropout=0."
        )
    heads = [key for key, output in seen.items() if output is logits and type(module.get_submodule(key)) is nn.Linear]
    return (heads[-1] if heads else None), [key for key, output in seen.items() if isinstance(output, Tensor)]
