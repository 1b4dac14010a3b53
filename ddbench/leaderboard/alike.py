"""Which methods of a column the data tells apart: paired differences, corrected for how many there are, as letters.

Two methods that share a letter do not differ at that level. A rank would say more than the accuracies do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from ddbench.leaderboard.comparison import LEVEL, holm, p_value
from ddbench.leaderboard.statistics import Group


def letters(groups: Sequence[Group]) -> list[str]:
    """The letters of each method, "a" for those among which the best is; "" for one without an accuracy.

    Every pair is compared as `comparison.compare` does it, and Holm's correction holds for all pairs together, at 5 %.
    Source: the letters are those of Piepho, 2004 (J. Computational and Graphical Statistics 13, 456-466).
    """
    measured = [i for i, group in enumerate(groups) if group.accuracies]
    measured.sort(key=lambda i: (-float(groups[i].set_means.mean()), i))
    pairs = list(combinations(measured, 2))
    corrected = holm([_p_value(groups[a], groups[b]) for a, b in pairs])
    columns = _columns(measured, [pair for pair, p in zip(pairs, corrected, strict=True) if p < LEVEL])
    return ["".join(_letter(k) for k, column in enumerate(columns) if i in column) for i in range(len(groups))]


def _p_value(ours: Group, other: Group) -> float:
    gap, interval = ours.difference(other)
    p = p_value(interval, abs(gap))
    return 1.0 if math.isnan(p) else p


def _columns(order: Sequence[int], apart: Iterable[tuple[int, int]]) -> list[frozenset[int]]:
    """The largest sets in which no two are apart, that of the first in the order first."""
    columns = [frozenset(order)] if order else []
    for a, b in apart:
        parted = [part for column in columns for part in _parted(column, a, b)]
        columns = [c for k, c in enumerate(parted) if not any(c < d for d in parted) and c not in parted[:k]]
    place = {member: k for k, member in enumerate(order)}
    return sorted(columns, key=lambda column: sorted(place[member] for member in column))


def _parted(column: frozenset[int], a: int, b: int) -> list[frozenset[int]]:
    return [column - {a}, column - {b}] if {a, b} <= column else [column]


def _letter(k: int) -> str:
    return chr(ord("a") + k % 26) + (str(k // 26) if k >= 26 else "")
