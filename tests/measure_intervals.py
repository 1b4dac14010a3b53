"""How often the board's 95 % intervals hold what they promise, and how wide they are: docs/measured/intervals.json.

python tests/measure_intervals.py --output docs/measured/intervals.json

Accuracies are drawn as share of the set + share of the student + rest, all normal. The variances of the two shares,
in units of the rest's, span what the records have: sets up to 46 (random images at ipc 1), students up to 22 (DC under
its own protocol). Beside the board's interval stand two others: one t on Satterthwaite's degrees of freedom, which the
board had before, and the fiducial (generalised) one, by simulation of the mean squares.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ddbench.files import write_json
from ddbench.leaderboard.statistics import half_width

Table = NDArray[np.float64]

SHAPES = [(2, 5), (2, 10), (2, 20), (3, 5), (3, 10), (3, 20), (5, 5), (5, 10), (10, 5), (10, 10)]
OF_SETS = (0.0, 0.1, 0.5, 2.0, 10.0, 50.0)
OF_STUDENTS = (0.0, 0.5, 4.0, 20.0)
FIDUCIAL_DRAWS = 400
FIDUCIAL_TRIALS = 500


@click.command()
@click.option("--trials", default=4000, show_default=True, help="Tables of each kind.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(trials: int, output: Path) -> None:
    """Simulate tables of accuracies, and count how often an interval has the true mean."""
    found: dict[str, Any] = {
        "nominal": 95.0,
        "trials": trials,
        "variance_of_sets": OF_SETS,
        "variance_of_students": OF_STUDENTS,
        "note": "coverage in %, least and greatest over all pairs of variances; width: mean over them of the median "
        "half width, in half widths of an interval that knows the variances",
        "sets x students": {},
    }
    for sets, students in SHAPES:
        rng = np.random.default_rng([sets, students])
        kinds: dict[str, list[tuple[float, float]]] = {}
        for a, b in product(OF_SETS, OF_STUDENTS):
            student = math.sqrt(b) * rng.normal(size=(trials, 1, students))
            tables = draw(rng, trials, sets, students, math.sqrt(a)) + student
            known = 1.96 * math.sqrt(a / sets + b / students + 1 / (sets * students))
            means = tables.mean(axis=(1, 2))
            halves = {
                "board": np.array([half_width(table) for table in tables]),
                "satterthwaite": satterthwaite(tables),
            }
            for kind, half in halves.items():
                kinds.setdefault(kind, []).append(held(means, half, known))
            if (sets, students) in ((2, 5), (2, 20), (3, 5)):
                few = tables[:FIDUCIAL_TRIALS]
                kinds.setdefault("fiducial", []).append(held(means[:FIDUCIAL_TRIALS], fiducial(few, rng), known))
            # The difference to a method whose sets hardly differ, with the same students.
            others = draw(rng, trials, sets, students, math.sqrt(0.1)) + student
            gaps = np.array([half_width(x, y) for x, y in zip(tables, others, strict=True)])
            known = 1.96 * math.sqrt((a + 0.1) / sets + 2 / (sets * students))
            kinds.setdefault("board, difference", []).append(held(means - others.mean(axis=(1, 2)), gaps, known))
        found["sets x students"][f"{sets} x {students}"] = {
            kind: {
                "least": round(min(c for c, _ in values), 1),
                "greatest": round(max(c for c, _ in values), 1),
                "width": round(float(np.mean([w for _, w in values])), 2),
            }
            for kind, values in kinds.items()
        }
        click.echo(f"{sets} x {students}: {found['sets x students'][f'{sets} x {students}']}")
        write_json(output, found)


def draw(rng: np.random.Generator, trials: int, sets: int, students: int, of_set: float) -> Table:
    """Shares of sets and the rest, [trials, sets, students], of mean zero."""
    return of_set * rng.normal(size=(trials, sets, 1)) + rng.normal(size=(trials, sets, students))


def held(means: Table, halves: Table, known: float) -> tuple[float, float]:
    """Coverage in %, and the median width."""
    return 100 * float((np.abs(means) <= halves).mean()), float(np.median(halves)) / known


def mean_squares(tables: Table) -> tuple[Table, Table, Table]:
    """What sets, students and the rest bring to the variance of each table's mean."""
    _, sets, students = tables.shape
    rows, columns = tables.mean(axis=2), tables.mean(axis=1)
    residual = tables - rows[:, :, None] - columns[:, None, :] + tables.mean(axis=(1, 2))[:, None, None]
    rest = (residual**2).sum(axis=(1, 2)) / ((sets - 1) * (students - 1)) / (sets * students)
    return rows.var(axis=1, ddof=1) / sets, columns.var(axis=1, ddof=1) / students, rest


def satterthwaite(tables: Table) -> Table:
    """One t for the sum and difference of the mean squares, on degrees of freedom by Satterthwaite (1946)."""
    _, sets, students = tables.shape
    a, b, rest = mean_squares(tables)
    total, largest = a + b - rest, np.maximum(a, b)
    freedom = total**2 / (a**2 / (sets - 1) + b**2 / (students - 1) + rest**2 / ((sets - 1) * (students - 1)))
    freedom = np.maximum(freedom, min(sets, students) - 1)
    negative = total <= largest
    freedom = np.where(negative, np.where(a >= b, sets - 1, students - 1), freedom)
    return np.asarray(stats.t.ppf(0.975, freedom) * np.sqrt(np.where(negative, largest, total)))


def fiducial(tables: Table, rng: np.random.Generator) -> Table:
    """The half width that holds 95 % of what the mean can be, mean squares over chi squares being variances."""
    _, sets, students = tables.shape
    freedoms = sets - 1, students - 1, (sets - 1) * (students - 1)
    drawn = [
        part[:, None] * freedom / rng.chisquare(freedom, FIDUCIAL_DRAWS)
        for part, freedom in zip(mean_squares(tables), freedoms, strict=True)
    ]
    a, b, rest = drawn
    spread = np.sqrt(np.maximum(a, rest) + np.maximum(b, rest) - rest)
    low, high = np.zeros(len(tables)), 10 * spread.max(axis=1)
    for _ in range(40):
        middle = (low + high) / 2
        below = stats.norm.cdf(middle[:, None] / spread).mean(axis=1) < 0.975
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(high)


if __name__ == "__main__":
    main()
