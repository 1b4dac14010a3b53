"""The distributions that fresh parameters are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ddbench.errors import ConfigError
from ddbench.rng import Rng

Initialiser = Literal["torch", "xavier", "kip", "he"]


class Draw(NamedTuple):
    """How one parameter is drawn: uniform in ±scale, normal with that deviation, or that constant."""

    kind: Literal["uniform", "normal", "constant"]
    scale: float


def draws_of(module: nn.Module, initialiser: Initialiser) -> dict[str, Draw]:
    """What each parameter of a module is drawn from.

    Raises: ConfigError for a layer whose initialisation is not known here.
    """
    draws = {}
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        draws[name] = _draw_of(module.get_submodule(owner), leaf, parameter, initialiser)
    return draws


def draw(
    draws: Mapping[str, Draw],
    shapes: Mapping[str, torch.Size],
    rngs: Sequence[Rng],
    source: torch.device,
    device: torch.device,
) -> dict[str, Tensor]:
    """One set of parameters for each of S generators, drawn on `source` and returned on `device`.

    Shapes: a leading S on every tensor, float32.
    """
    noise = {}
    for kind in ("uniform", "normal"):
        sizes = [shapes[name].numel() for name in draws if draws[name].kind == kind]
        # One long draw a network instead of one a layer: on a GPU the launches would cost more than the numbers.
        noise[kind] = iter(_noise(kind, sum(sizes), rngs, source).to(device).split(sizes, dim=1))
    drawn = {}
    for name, (kind, scale) in draws.items():
        shape = (len(rngs), *shapes[name])
        if kind == "constant":
            drawn[name] = torch.full(shape, scale, device=device, dtype=torch.float32)
        else:
            drawn[name] = (next(noise[kind]) * scale).view(shape)
    return drawn


def _noise(kind: str, numbers: int, rngs: Sequence[Rng], source: torch.device) -> Tensor:
    noise = torch.empty(len(rngs), numbers, device=source, dtype=torch.float32)
    for row, rng in zip(noise, rngs, strict=True):
        generator = rng.fold(kind).torch(source)
        if kind == "uniform":
            row.uniform_(-1, 1, generator=generator)
        else:
            row.normal_(generator=generator)
    return noise


def _draw_of(layer: nn.Module, leaf: str, parameter: Tensor, initialiser: Initialiser) -> Draw:
    match layer:
        case _ConvNd() | nn.Linear():
            fan_in, fan_out = _fans(layer.weight)
            if initialiser == "he" and (leaf != "weight" or isinstance(layer, nn.Linear)):
                # Bohdal et al. draw convolutions like this, by fan-out, and leave the rest to torch.
                initialiser = "torch"
            return _draw_of_weighted(leaf, fan_in, fan_out, initialiser)
        case _NormBase() | nn.GroupNorm() | nn.LayerNorm() | nn.RMSNorm():
            return Draw("constant", 1.0 if leaf == "weight" else 0.0)
        case nn.Embedding(padding_idx=None):
            return Draw("normal", 1.0)
    raise ConfigError(
        f"the initialiser {initialiser!r} does not know how to draw {leaf!r} of a {type(layer).__name__} "
        f"(shape {tuple(parameter.shape)}). Leave the initialiser out to keep the one that the module brings."
    )


def _draw_of_weighted(leaf: str, fan_in: int, fan_out: int, initialiser: Initialiser) -> Draw:
    match initialiser, leaf:
        case "torch", _:
            # Kaiming-uniform with a = sqrt(5) comes to the same bound as the bias has.
            return Draw("uniform", 1 / math.sqrt(fan_in))
        case "xavier", "weight":
            return Draw("normal", math.sqrt(2 / (fan_in + fan_out)))
        case "xavier", _:
            return Draw("constant", 0.0)
        case "he", _:
            return Draw("normal", math.sqrt(2 / fan_out))
        case _, "weight":
            return Draw("normal", math.sqrt(2 / fan_in))
        case _:
            return Draw("normal", 0.1)


def _fans(weight: Tensor) -> tuple[int, int]:
    window = weight[0, 0].numel()
    return weight.shape[1] * window, weight.shape[0] * window
