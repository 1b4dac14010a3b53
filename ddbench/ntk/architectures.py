"""Architectures of infinitely wide networks: their names, layers and resolutions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ddbench.errors import ConfigError, closest

WEIGHT_VARIANCE = 2.0
BIAS_VARIANCE = 0.01

Layer = Literal["conv", "relu", "pool", "flatten", "gap", "dense"]


@dataclass(frozen=True)
class Architecture:
    """A network without its widths: layers in order, the read-out included."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def pools(self) -> int:
        """How often the resolution is halved."""
        return self.layers.count("pool")

    @property
    def banded(self) -> bool:
        """Whether a band of offsets is enough: no layer averages over all pixels."""
        return "gap" not in self.layers

    @property
    def flat(self) -> bool:
        """Whether it sees an image as one vector."""
        return self.layers[0] == "flatten"


EXAMPLES = ("fc1", "fc3", "convvec3", "convvec8", "convnet3", "convnet", "myrtle5", "myrtle7", "myrtle10")
_BLOCK: tuple[Layer, ...] = ("conv", "relu")
_MYRTLE = {"myrtle5": (1, 1, 1), "myrtle7": (1, 2, 2), "myrtle10": (2, 3, 3)}


def architecture(name: str) -> Architecture:
    """The network of a name: fc<depth>, convvec<depth>, convnet3, convnet or myrtle5, 7, 10.

    Raises: ConfigError for any other name.
    """
    plain = name.lower()
    if found := re.fullmatch(r"(fc|convvec)([1-9]\d?)", plain):
        depth = int(found[2])
        if found[1] == "fc":
            return Architecture(plain, ("flatten", *(("dense", "relu") * depth), "dense"))
        return Architecture(plain, (*(_BLOCK * depth), "flatten", "dense"))
    if plain in ("convnet", "convnet3"):
        first = _BLOCK if plain == "convnet" else ()
        return Architecture(plain, (*first, *((*_BLOCK, "pool") * 3), "flatten", "dense"))
    if plain in _MYRTLE:
        one, two, three = _MYRTLE[plain]
        return Architecture(
            plain,
            (*(_BLOCK * (1 + one)), "pool", *(_BLOCK * two), "pool", *(_BLOCK * three), "gap", "dense"),
        )
    raise ConfigError(
        f"there is no kernel {name!r}. {closest(plain, EXAMPLES)}There are fc<depth>, convvec<depth>, convnet3, "
        "convnet, myrtle5, myrtle7 and myrtle10; depths up to 99."
    )


def resolutions(network: Architecture, height: int, width: int) -> list[tuple[int, int]]:
    """Height and width before the first pooling, and after each. Raises: ConfigError where nothing would be left."""
    sizes = [(height >> k, width >> k) for k in range(network.pools + 1)]
    if min(sizes[-1]) < 1:
        raise ConfigError(
            f"kernel {network.name} halves images {network.pools} times, and {height}x{width} leaves nothing. "
            f"Images of {2**network.pools}x{2**network.pools} are the smallest."
        )
    return sizes
