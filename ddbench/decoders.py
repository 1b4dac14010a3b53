"""Names of decoders, which sets and records have: how stored images become training images.

What a decoder does is in engine/decode.py, which needs torch; boards read names without it.
"""

from __future__ import annotations

import re

from ddbench.errors import ConfigError, DataError

NONE = "none"
_TILES = re.compile(r"tiles\(factor=([1-9]\d*)\)")
_SAID = re.compile(r"tiles(?::|\(factor=)([1-9]\d{0,2})\)?")


def tiles(factor: int) -> str:
    """The decoder that cuts each image into F x F tiles, by the name that sets have it under."""
    return NONE if factor == 1 else f"tiles(factor={factor})"


def factor_of(name: str) -> int:
    """How many tiles a side a decoder cuts an image into; 1 of "none". Raises: DataError for an unknown decoder."""
    if name == NONE:
        return 1
    match = _TILES.fullmatch(name)
    if not match:
        raise DataError(f"there is no decoder {name!r}; known are 'none' and 'tiles(factor=F)'.")
    return int(match[1])


def canonical_decoder(text: str) -> str:
    """The one spelling of a decoder: "tiles:2" and "tiles(factor=2)" are both "tiles(factor=2)".

    Raises: ConfigError where there is no such decoder.
    """
    said = text.strip().lower().replace(" ", "")
    if said == NONE:
        return NONE
    match = _SAID.fullmatch(said)
    if not match:
        raise ConfigError(
            f"no decoder is called {text!r}. Known are none, and tiles:F for sets that store F x F smaller images in "
            "each, such as tiles:2 of IDC, DREAM, IDM, DANCE and NCFM."
        )
    return tiles(int(match[1]))
