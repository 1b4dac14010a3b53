"""What else the maker of a foreign file wrote in it, as far as a record can hold it: words and numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddbench.errors import DataError
from ddbench.foreign.values import tensor_of
from ddbench.text import MOST_COUNT, printable

MOST_CLAIM = 2000  # characters of a claim that are kept
MOST_CLAIMS = 100
MOST_DEPTH = 8  # of values inside values in a claim
MOST_VALUES = 10_000  # in a claim, however deep


def claims_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What else a file says, as far as it is words and numbers."""
    found = {}
    for name, value in list(values.items())[:MOST_CLAIMS]:
        plain = _plain(value, MOST_DEPTH, itertools.count())
        if plain is not None:
            text = json.dumps(plain)
            kept = plain if len(text) <= MOST_CLAIM else text[:MOST_CLAIM] + " …"
            found[printable(str(name), 200)] = kept
    return found


def _plain(value: Any, depth: int, seen: Iterator[int]) -> Any:
    # A list can hold itself a hundred times.
    if depth < 0 or next(seen) > MOST_VALUES:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return printable(value, MOST_CLAIM, lines=True)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) <= MOST_COUNT else f"{value:.3g}" if isinstance(value, float) else "a huge number"
    if isinstance(value, Tensor | np.ndarray):
        few = value.ndim <= 4 and int(np.prod(value.shape)) < 64
        return _plain(tensor_of(Path(), value).tolist(), depth, seen) if few and _readable(value) else None
    if isinstance(value, list | tuple):
        parts = [_plain(part, depth - 1, seen) for part in value[:MOST_CLAIMS]]
        return parts if all(part is not None for part in parts) else None
    if isinstance(value, Mapping):
        return {
            printable(str(name), 200): _plain(part, depth - 1, seen) for name, part in list(value.items())[:MOST_CLAIMS]
        }
    return None


def _readable(value: Tensor | np.ndarray) -> bool:
    try:
        return not tensor_of(Path(), value).is_complex()
    except DataError:
        return False
