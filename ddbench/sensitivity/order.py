"""Whether the order of methods survives a change of recipe: ranks, Kendall's tau and W, pairs that change places."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ddbench.leaderboard.comparison import MARGIN, holm, p_value, verdict
from ddbench.leaderboard.statistics import UPPER, Group, half_width
from ddbench.sensitivity.results import (
    AgreementPart,
    CellPart,
    FlipPart,
    OrderPart,
    PairPart,
    RowPart,
    ScorePart,
    SetPart,
)
from ddbench.text import percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Means = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Statistic = Callable[["Drawn"], float | None]

RESAMPLES = 1000
_SEED = 0


Tables = Mapping["tuple[str, str]", "Means"]
"""Accuracies [sets, students] by method and recipe."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Accuracies of which some sets (by method) and students (by recipe) are drawn, with repeats; else all of them."""

    tables: Tables
    sets: Mapping[str, Indices] = field(default_factory=dict)
    students: Mapping[str, Indices] = field(default_factory=dict)

    def mean(self, row: str, recipe: str) -> float:
        """Mean over sets of the mean over students."""
        table = self.tables[row, recipe]
        if row in self.sets:
            table = table[self.sets[row]]
        return float((table[:, self.students[recipe]] if recipe in self.students else table).mean())

    def means(self, rows: Sequence[str], recipe: str) -> list[float]:
        """That of several methods under one recipe."""
        return [self.mean(row, recipe) for row in rows]


def order_of(
    sets: Sequence[SetPart], cells: Sequence[CellPart], recipes: Sequence[str], *, resamples: int = RESAMPLES
) -> OrderPart:
    """What the cells of a section say of the order of its methods; the first of the recipes is the base.

    Intervals, differences and verdicts are those of boards and of `ddbench compare`, with Holm's correction over all
    pairs of methods and all recipes of the section. Intervals of tau and W are percentiles of a bootstrap in which the
    students of every recipe are drawn anew, the same for all methods, and so are the sets of a method that has several,
    the same for all recipes.
    """
    groups = _groups(sets, cells)
    rows = list(dict.fromkeys(part.row for part in sets))
    pairs = _pairs(groups, rows, recipes)
    tables = {key: group.table(group.common) for key, group in groups.items()}
    w, w_low, w_high = concordance(tables, rows, recipes, resamples)
    return OrderPart(
        rows=_rows(groups, rows, recipes),
        agreement=tuple(_agreement(tables, rows, recipes[0], recipe, resamples) for recipe in recipes[1:]),
        taus=tuple((a, b, _tau(Drawn(tables), _common(tables, rows, a, b), a, b)) for a, b in combinations(recipes, 2)),
        w=w,
        w_low=w_low,
        w_high=w_high,
        pairs=pairs,
        flips=flips(pairs),
        resamples=resamples,
    )


def tau(ours: Sequence[float], others: Sequence[float]) -> float | None:
    """Kendall's tau-b of two orders of the same methods; None where one of them is no order."""
    from scipy import stats

    if len(ours) < 2 or len(set(ours)) == 1 or len(set(others)) == 1:
        return None
    return _tidy(float(stats.kendalltau(ours, others).statistic))


def kendalls_w(means: Means) -> float | None:
    """Kendall's W of a table [recipes, methods], corrected for ties: 1 is one order, 0 none in common.

    It is Friedman's statistic over its largest value. None below three methods, where Friedman has no test, or two
    recipes, or where no recipe has an order.
    """
    from scipy import stats

    recipes, methods = means.shape
    if methods < 3 or recipes < 2 or bool((means == means[:, :1]).all()):
        return None
    return _tidy(float(stats.friedmanchisquare(*means.T).statistic) / (recipes * (methods - 1)))


def concordance(
    tables: Tables, rows: Sequence[str], recipes: Sequence[str], resamples: int
) -> tuple[float | None, float | None, float | None]:
    """Kendall's W of all recipes over the methods that all have, and its bootstrap interval."""
    kept = [recipe for recipe in recipes if any((row, recipe) in tables for row in rows)]
    whole = [row for row in rows if all((row, recipe) in tables for recipe in kept)]
    if not whole or not kept:
        return None, None, None
    return _with_interval(partial(_w, rows=whole, recipes=kept), tables, whole, kept, resamples)


def _w(drawn: Drawn, rows: Sequence[str], recipes: Sequence[str]) -> float | None:
    return kendalls_w(np.array([drawn.means(rows, recipe) for recipe in recipes]))


def _tau(drawn: Drawn, rows: Sequence[str], first: str, second: str) -> float | None:
    return tau(drawn.means(rows, first), drawn.means(rows, second))


def flips(pairs: Sequence[PairPart]) -> tuple[FlipPart, ...]:
    """Pairs of methods of which the first is shown to be better under one recipe, and worse under another one."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for pair in pairs:
        found.setdefault((pair.first, pair.second), {}).setdefault(pair.verdict, []).append(pair.recipe)
    return tuple(
        FlipPart(first=first, second=second, better=tuple(said["better"]), worse=tuple(said["worse"]))
        for (first, second), said in found.items()
        if "better" in said and "worse" in said
    )


def _groups(sets: Sequence[SetPart], cells: Sequence[CellPart]) -> dict[tuple[str, str], Group]:
    """The accuracies of every method under every recipe that has some for each of its sets."""
    row_of = {part.sha256: part.row for part in sets}
    several: dict[tuple[str, str], list[CellPart]] = {}
    for cell in cells:
        several.setdefault((row_of[cell.sha256], cell.recipe), []).append(cell)
    return {
        key: Group({}, {cell.sha256: dict(enumerate(cell.accuracy)) for cell in found}, {})
        for key, found in several.items()
        if all(cell.accuracy for cell in found)
    }


def _rows(groups: Mapping[tuple[str, str], Group], rows: Sequence[str], recipes: Sequence[str]) -> tuple[RowPart, ...]:
    from scipy import stats

    ranks: dict[tuple[str, str], int] = {}
    for recipe in recipes:
        there = [row for row in rows if (row, recipe) in groups]
        # As boards have it: equal where the printed means are.
        printed = [-float(percent(groups[row, recipe].set_means.mean())) for row in there]
        for row, rank in zip(there, stats.rankdata(printed, method="min") if there else [], strict=True):
            ranks[row, recipe] = int(rank)
    found = []
    for row in rows:
        known = [recipe for recipe in recipes if (row, recipe) in ranks]
        scores = [_score(groups[row, recipe], recipe, ranks[row, recipe]) for recipe in known]
        if scores:
            count = max(len(groups[row, score.recipe].accuracies) for score in scores)
            found.append(RowPart(row=row, sets=count, scores=tuple(scores)))
    return tuple(found)


def _score(group: Group, recipe: str, rank: int) -> ScorePart:
    half = half_width(group.table(group.common))
    return ScorePart(recipe=recipe, mean=float(group.set_means.mean()), ci95=_number(half), rank=rank)


def _pairs(
    groups: Mapping[tuple[str, str], Group], rows: Sequence[str], recipes: Sequence[str]
) -> tuple[PairPart, ...]:
    found: list[dict[str, Any]] = []
    for recipe in recipes:
        for first, second in combinations([row for row in rows if (row, recipe) in groups], 2):
            gap, interval = groups[first, recipe].difference(groups[second, recipe])
            found.append(
                {
                    "recipe": recipe, "first": first, "second": second, "difference": gap, "ci95": interval(UPPER),
                    "p": p_value(interval, abs(gap)), "p_equal": p_value(interval, MARGIN - abs(gap)) / 2,
                }
            )  # fmt: skip
    for name in ("p", "p_equal"):
        for pair, corrected in zip(found, holm([pair[name] for pair in found]), strict=True):
            pair[f"{name}_holm"] = corrected
    for pair in found:
        pair["verdict"] = verdict(pair["p_holm"], pair["p_equal_holm"], pair["difference"])
    return tuple(PairPart(**{k: _number(v) if isinstance(v, float) else v for k, v in one.items()}) for one in found)


def _common(tables: Tables, rows: Sequence[str], first: str, second: str) -> list[str]:
    """The methods that two recipes have."""
    return [row for row in rows if (row, first) in tables and (row, second) in tables]


def _agreement(tables: Tables, rows: Sequence[str], base: str, recipe: str, resamples: int) -> AgreementPart:
    both = _common(tables, rows, base, recipe)
    of = partial(_tau, rows=both, first=base, second=recipe)
    found, low, high = _with_interval(of, tables, both, [base, recipe], resamples)
    all_of_them = Drawn(tables)
    ours, others = all_of_them.means(both, base), all_of_them.means(both, recipe)
    pairs = list(combinations(range(len(both)), 2))
    swapped = sum((ours[i] - ours[j]) * (others[i] - others[j]) < 0 for i, j in pairs)
    return AgreementPart(recipe=recipe, tau=found, low=low, high=high, pairs=len(pairs), swapped=swapped)


def _with_interval(
    of: Statistic, tables: Tables, rows: Sequence[str], recipes: Sequence[str], resamples: int
) -> tuple[float | None, float | None, float | None]:
    """A statistic of the means, and its bootstrap interval over students and, where methods have several, over sets."""
    from scipy import stats

    found = of(Drawn(tables))
    if found is None:
        return None, None, None
    # A sample of one has nothing to draw, and is left as it is.
    sets = {row: len(tables[row, recipes[0]]) for row in rows if len(tables[row, recipes[0]]) > 1}
    trained = {recipe: min(tables[row, recipe].shape[1] for row in rows) for recipe in recipes}
    students = {recipe: count for recipe, count in trained.items() if count > 1}
    if not sets and not students:
        return found, None, None

    def statistic(*samples: Means) -> float:
        drawn = [sample.astype(np.int64) for sample in samples]
        chosen = Drawn(
            tables, dict(zip(sets, drawn, strict=False)), dict(zip(students, drawn[len(sets) :], strict=True))
        )
        value = of(chosen)
        return math.nan if value is None else value

    with warnings.catch_warnings():
        # Where every drawing is the same, scipy says so: the interval is that one value.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            [np.arange(count) for count in (*sets.values(), *students.values())], statistic, n_resamples=resamples,
            vectorized=False, method="percentile", rng=np.random.default_rng(_SEED),
        )  # fmt: skip
    values = result.bootstrap_distribution
    # A drawing without an order has no tau; the interval is that of the others.
    low, high = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (math.nan, math.nan)
    return found, _tidy(float(low)), _tidy(float(high))


def _tidy(value: float) -> float | None:
    """A number as a file keeps it, without what rounding adds; None where it is none."""
    return None if math.isnan(value) else min(1.0, max(-1.0, round(value, 12))) + 0.0


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
