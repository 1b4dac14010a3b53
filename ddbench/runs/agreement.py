"""How far students that were trained a second time on a set may lie from those of its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from ddbench.text import number_of, percent

CONFIDENCE = 0.99
MOST = 0.03  # more than students of one set lie apart, however little a few of them say of it


def tolerance(accuracy: Sequence[float], again: int, test_images: int) -> float:
    """How far the mean of students that were trained again may lie from their recorded mean, as a fraction.

    With the same seed on the same machine and software it is the same accuracy. Elsewhere rounding sends training
    another way, so that at worst a student is as far from itself as from another one: the bound is that of 99 % of the
    differences of two means of so many students, by Student's t on the spread of all students of the record. Where the
    record has one student, by the normal distribution on what so many test images leave to chance. It is at least two
    images and at most three points.
    """
    from scipy import special

    if len(accuracy) > 1:
        spread = stdev(accuracy)
        quantile = float(special.stdtrit(len(accuracy) - 1, (1 + CONFIDENCE) / 2))
    else:
        spread = math.sqrt(accuracy[0] * (1 - accuracy[0]) / max(1, test_images))
        quantile = float(special.ndtri((1 + CONFIDENCE) / 2))
    return min(MOST, max(quantile * spread * math.sqrt(2 / again), 2 / max(1, test_images)))


def difference(recorded: Sequence[float], again: Sequence[float]) -> float:
    """The mean of students as they came out again less their recorded mean, as a fraction."""
    return fmean(again) - fmean(recorded)


def agrees(recorded: Sequence[float], again: Sequence[float], within: float) -> bool:
    """Whether students that were trained again say what the record says; `within` is what `tolerance` allows."""
    return abs(difference(recorded, again)) <= within


def compared(recorded: Sequence[float], again: Sequence[float], within: float) -> str:
    """The two means in words, and whether they agree."""
    said = f"{number_of(len(again), 'student')}: recorded {percent(fmean(recorded))} %, again {percent(fmean(again))} %"
    if tuple(again) == tuple(recorded):
        return f"{said}: equal"
    word = "agrees" if agrees(recorded, again, within) else "DIFFERS"
    return f"{said}: {word} ({100 * difference(recorded, again):+.2f} points, where {100 * within:.2f} are allowed)"
