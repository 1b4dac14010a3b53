"""Somebody's module before it is a function of its tensors: made, its tensors found, what hides them refused."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ddbench.backbones.variables import Shape
from ddbench.errors import ConfigError
from ddbench.plugins import raise_stop, said
from ddbench.rng import Rng


def construct(factory: Callable[[], nn.Module], name: str, shape: Shape, rng: Rng) -> nn.Module:
    """A fresh module in training mode, on the CPU, whose tensors are all parameters or buffers.

    torch's generator is seeded and put back. Tensors that are plain attributes become buffers, so that they follow
    their network; lazy layers get their shapes.
    Raises: ConfigError for what is no module, or keeps tensors where nobody finds them.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed the generators of all GPUs, which are not put back.
        torch.default_generator.manual_seed(rng.key)
        try:
            module = factory()
        except BaseException as error:
            raise_stop(error)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"backbone {name!r} cannot be made: {said(error)}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"backbone {name!r} must make a torch.nn.Module, not a {type(module).__name__}.")
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
            raise ConfigError(
                f"backbone {name!r} is compiled by torch.jit, which fixes its tensors. Give it as it was before."
            )
        if any(tensor.is_meta for tensor in _tensors(module)):
            raise ConfigError(f"backbone {name!r} is made on the meta device, without numbers. Make it on the CPU.")
        module = module.cpu()
        if _is_lazy(module):
            _give_shapes(module, name, shape)
    _adopt_attributes(module, name)
    _check_parameters(module, name)
    return module.train()


def without_numbers(module: nn.Module, name: str) -> nn.Module:
    """A copy on the meta device, in which tensors that are shared stay shared; `module.to` would part them.

    Raises: ConfigError where the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(module):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ConfigError(
            f"backbone {name!r} cannot be copied, which training and testing apart needs: {said(error)}"
        ) from error


def settings(module: nn.Module) -> dict[str, Any]:
    """The numbers and names that a module and its submodules keep as plain attributes."""
    return {
        f"{path}.{key}".lstrip("."): value
        for path, layer in module.named_modules()
        for key, value in vars(layer).items()
        if value is None or isinstance(value, bool | int | float | str)
    }


def generators() -> list[Any]:
    """The states of the global generators of torch, Python and numpy; two of these lists are equal or not."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [torch.get_rng_state().tolist(), random.getstate(), kind, np.asarray(keys).tolist(), rest]


def _give_shapes(module: nn.Module, name: str, shape: Shape) -> None:
    # In evaluation mode, so that no statistics are counted before the first batch.
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise ConfigError(does_not_take(name, shape, error)) from error
    if _is_lazy(module):
        raise ConfigError(
            f"backbone {name!r} has lazy layers that its forward pass does not reach in evaluation mode, and that have "
            "no numbers therefore. Give them their sizes, or leave them out."
        )


def _is_lazy(module: nn.Module) -> bool:
    return any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def does_not_take(name: str, shape: Shape, error: BaseException) -> str:
    """The sentence for a module that fails on images."""
    return f"backbone {name!r} does not take images of shape {'x'.join(map(str, shape))}: {said(error)}"


def _adopt_attributes(module: nn.Module, name: str) -> None:
    registered = set(module.modules())
    known = {id(tensor) for tensor in _tensors(module)}
    for path, layer in list(module.named_modules()):
        for key, value in list(vars(layer).items()):
            place = f"{path}.{key}".lstrip(".")
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor):
                _adopt(layer, key, value, place, name)
                continue
            for part in _inside(value):
                if isinstance(part, nn.Module) and part not in registered and any(True for _ in part.parameters()):
                    raise ConfigError(
                        f"backbone {name!r} keeps layers in {place}, where torch does not see them: they would never "
                        "be trained. Put them into a torch.nn.ModuleList or ModuleDict."
                    )
                if isinstance(part, Tensor) and id(part) not in known:
                    raise ConfigError(
                        f"backbone {name!r} keeps tensors in {place}, which belong to no seed and stay on one device. "
                        "Register them: torch.nn.ParameterList, or register_buffer for each."
                    )


def _adopt(layer: nn.Module, key: str, value: Tensor, place: str, name: str) -> None:
    try:
        delattr(layer, key)
        # What was computed from parameters, as the old weight_norm does, is computed again in the forward pass.
        if value.grad_fn is None:
            layer.register_buffer(key, value.detach().cpu(), persistent=False)
    except Exception as error:
        raise ConfigError(
            f"backbone {name!r} keeps a tensor in {place} that is neither a parameter nor a buffer: {said(error)}. "
            "Register it by register_buffer."
        ) from error


def _inside(value: Any, depth: int = 3) -> Iterator[Any]:
    """What lists, tuples and dicts hold."""
    if depth and isinstance(value, list | tuple | set | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield part
            yield from _inside(part, depth - 1)


def _check_parameters(module: nn.Module, name: str) -> None:
    places: dict[int, str] = {}
    for key, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"backbone {name!r} has {key} in {str(parameter.dtype).removeprefix('torch.')}. Make it in float32: "
                "students train in that, and --precision says how their steps are rounded."
            )
        if not parameter.numel():
            continue
        other = places.setdefault(parameter.untyped_storage().data_ptr(), key)
        if other != key:
            raise ConfigError(
                f"backbone {name!r} has {key} and {other} in one memory, as two parameters: a step on one would move "
                f"the other. Share the parameter itself, as in self.b.weight = self.a.weight."
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"backbone {name!r} has no parameters to train.")
