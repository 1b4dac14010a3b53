"""Which of several methods, runs or sets is better, paired by student, and whether the difference matters.

Student k starts from the same seed on every set, so that what a student brings to two sets cancels in their difference.
Sets are the units and students lie across them: the intervals are those of boards (`statistics.half_width`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.data.catalogue import canonical
from ddbench.errors import RunError
from ddbench.evaluation.meant import as_recorded, ids_of, is_any, is_protocol
from ddbench.evaluation.protocol import protocol
from ddbench.leaderboard.observations import NO_STUDENT, collect
from ddbench.leaderboard.references import Shelf, labelled
from ddbench.leaderboard.statistics import TABLE, UPPER, VARIANT, Group
from ddbench.text import some_of

if TYPE_CHECKING:
    from pandas import DataFrame

MARGIN = 0.005  # half a point: what the field reads as equal
LEVEL = 2 * (1 - UPPER)
_CELL = (*TABLE, "judge")
_HALVINGS = 40
SHOWN = 8  # cells of a sentence
COLUMNS = (
    *_CELL, "first", "second", "first_mean", "second_mean", "first_sets", "second_sets", "students", "paired",
    "difference", "ci95", "p", "p_holm", "p_equal", "p_equal_holm", "verdict", "provisional", "left_out",
)  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Which parts of boards are compared; what is empty is open. Protocols and judges are said as `evaluation.meant`
    takes them: of any version, by a file, by their family."""

    dataset: str | None = None
    ipc: int | None = None
    protocols: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()

    def fits(self, row: Mapping[Any, Any]) -> bool:
        """Whether a row of observations lies in one of them."""
        return (
            (self.dataset is None or canonical(self.dataset) == canonical(str(row["dataset"])))
            and self.ipc in (None, row["ipc"])
            and (not self.protocols or any(is_protocol(str(row["protocol"]), said) for said in self.protocols))
            and is_any(str(row["judge"]), self.judges, str(row["train_backbone"]))
        )

    def without_files(self) -> Cells:
        """The same, where files are called what records call them. Raises: ConfigError for a file that is none."""
        return replace(self, protocols=tuple(ids_of(self.protocols)), judges=tuple(as_recorded(self.judges)))

    def refuse_unknown(self, frame: DataFrame) -> None:
        """Raises: ConfigError for a protocol that neither these observations nor ddbench know."""
        there = set(frame["protocol"])
        for said in self.protocols:
            if not any(is_protocol(str(ref), said) for ref in there):
                protocol(said)


@dataclass(frozen=True, eq=False)
class Entry:
    """One side of comparisons in one cell: what was said, how its row is called, its runs, and its accuracies.

    `set_runs` are the runs of each set, and `left_out` those of sets that were left out.
    """

    ref: str
    name: str
    runs: frozenset[str]
    group: Group
    set_runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def without(self, sets: Iterable[str]) -> Entry:
        """The same without these sets, which its name says."""
        gone = frozenset(sets)
        left = {name: row for name, row in self.group.accuracies.items() if name not in gone}
        runs = tuple(sorted({run for name in gone for run in self.set_runs.get(name, ())}))
        group = replace(self.group, accuracies=left)
        name = f"{self.name} without {some_of(runs, SHOWN)}"
        return replace(self, name=name, runs=self.runs - set(runs), group=group, left_out=runs)


def compare(refs: Sequence[str], shelf: Shelf, cells: Cells | None = None) -> DataFrame:
    """Every pair of what two of `refs` name, in every cell (data, ipc, protocol, judge) that has both.

    A row's `verdict` is of its `first`, after Holm's correction over all rows, at 5 % in all: "equal" where the
    difference is shown to lie within half a point (two one-sided tests), else "better" or "worse" where it is shown not
    to be nil, else "undecided". `difference`, `ci95` (half of a 95 % interval, not corrected) and the
    means are fractions; `p` is that of the interval, the level at which it would end at nil, and nan where nothing is
    known. `provisional` rows rest on one set on either side: they are of those sets, and not of their methods. A set
    that both sides have is left out as `apart` says, and `left_out` names its runs.
    Raises: RunError or ConfigError where a reference means nothing, or nothing can be compared.
    """
    import pandas as pd

    paths = {ref: shelf.find(ref) for ref in dict.fromkeys(refs)}
    frame = labelled(collect(dict.fromkeys(path for found in paths.values() for path in found)))
    wanted = (cells or Cells()).without_files()
    wanted.refuse_unknown(frame)
    chosen = frame[[wanted.fits(row) for row in frame.to_dict("records")]]
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for ref, files in paths.items():
        for key, entry in _entries(ref, files, chosen):
            found.setdefault(key, []).append(entry)
    rows = [
        dict(zip(_CELL, key, strict=True)) | _pair(first, second)
        for key, entries in sorted(found.items(), key=lambda item: [str(part) for part in item[0]])
        for first, second in _pairs(entries)
    ]
    if not rows:
        raise RunError(_nothing_in_common(paths, chosen if len(chosen) else frame, any_left=bool(len(chosen))))
    _judge(rows)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _pairs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """What two references name in one cell, in pairs that share no set, each once."""
    known: set[frozenset[frozenset[str]]] = set()
    for one, other in combinations(entries, 2):
        pair = frozenset((one.runs, other.runs))
        if one.ref == other.ref or len(pair) < 2 or pair in known:
            continue
        known.add(pair)
        first, second = apart(one, other)
        if first.group.accuracies and second.group.accuracies:
            yield first, second


def apart(one: Entry, other: Entry) -> tuple[Entry, Entry]:
    """Two entries without the sets that come from runs of both.

    Such a set would be held against itself, and its two sides are not independent, as intervals take them to be. A run
    that is part of a row is compared with the rest of the row; where neither is part of the other, both lose it.
    """
    if not one.runs & other.runs:
        return one, other
    ours, theirs = one.group.accuracies.keys(), other.group.accuracies.keys()
    both = ours & theirs
    return (
        one if both == ours != theirs else one.without(both),
        other if both == theirs else other.without(both),
    )


def holm(values: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected so that one error in all of them is as likely as the level; nan stays.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.
    """
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    corrected, so_far = [math.nan] * len(values), 0.0
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - place) * values[i]))
        corrected[i] = so_far
    return corrected


def verdict(p: float, p_equal: float, difference: float) -> str:
    """What two corrected p values say of a difference."""
    if p_equal < LEVEL:
        return "equal"
    if p < LEVEL:
        return "better" if difference > 0 else "worse"
    return "undecided"


def _entries(ref: str, files: Sequence[Path], frame: DataFrame) -> Iterator[tuple[tuple[Any, ...], Entry]]:
    runs = {file: run for file, run in zip(files, _ids(files), strict=True)}
    rows = frame[frame["run"].isin(set(runs.values()))]
    for _, part in rows.groupby([*_CELL, "method", *VARIANT], sort=True):
        group = Group.of(part)
        if group.accuracies:
            first = part.iloc[0]
            members = frozenset(str(run) for run in part["run"])
            name = str(first["label"]) if len(files) > 1 else f"{first['label']}, {first['run']}"
            by_set = {str(name): tuple(sorted(set(map(str, rows["run"])))) for name, rows in part.groupby("set")}
            yield tuple(group.key[name] for name in _CELL), Entry(ref, name, members, group, by_set)


def _ids(files: Sequence[Path]) -> list[str]:
    from ddbench.runs.record import read_record

    return [read_record(file).run.id for file in files]


def _pair(first: Entry, second: Entry) -> dict[str, Any]:
    a, b = first.group, second.group
    gap, interval = a.difference(b)
    half = interval(UPPER)
    students = len(a.common & b.common)
    return {
        "first": first.name,
        "second": second.name,
        "first_mean": float(a.set_means.mean()),
        "second_mean": float(b.set_means.mean()),
        "first_sets": len(a.accuracies),
        "second_sets": len(b.accuracies),
        "students": students,
        "paired": students > 1,
        "difference": gap,
        "ci95": half,
        "p": p_value(interval, abs(gap)),
        # The larger of the two one-sided tests: that of the nearer end of the margin.
        "p_equal": p_value(interval, MARGIN - abs(gap)) / 2,
        "provisional": min(len(a.accuracies), len(b.accuracies)) < 2,
        "left_out": [*first.left_out, *second.left_out],
    }


def p_value(half: Callable[[float], float], distance: float) -> float:
    """The two-sided level at which the interval is just as wide as a distance: the p value that belongs to it."""
    if math.isnan(half(UPPER)):
        return math.nan
    if distance <= 0:
        return 1.0
    # Intervals narrow as the level grows. Halved in its logarithm, because small levels are the ones to tell apart.
    low, high = math.log(1e-9), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if half(1 - math.exp(middle) / 2) > distance else (low, middle)
    return math.exp(high)


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    for name in ("p", "p_equal"):
        for row, corrected in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = corrected
    for row in rows:
        row["verdict"] = verdict(row["p_holm"], row["p_equal_holm"], row["difference"])


def _nothing_in_common(paths: Mapping[str, Sequence[Path]], frame: DataFrame, *, any_left: bool) -> str:
    if not any_left:
        there = sorted({f"{row['protocol']} with {row['judge']}" for row in frame.to_dict("records")})
        return (
            "None of them has a result in the cells that were asked for. Leave out --protocol or --judge, or name what "
            f"there is: {some_of(there, SHOWN)}."
        )
    if len({frozenset(_ids(files)) for files in paths.values()}) == 1:
        return f"{' and '.join(paths)} are the same result, so there is nothing to compare. Name another one."
    frame = frame[frame["student"] != NO_STUDENT]
    has = []
    for ref, files in paths.items():
        rows = frame[frame["run"].isin(_ids(files))]
        cells = sorted({f"{r['dataset']} ipc {r['ipc']} {r['protocol']}/{r['judge']}" for r in rows.to_dict("records")})
        has.append(f"{ref}: {some_of(cells, 4) or 'no accuracy'}")
    return (
        f"Nothing can be compared: no two of them were judged alike ({'; '.join(has)}). `ddbench evaluate RUN "
        "--protocol NAME --judge NAME` adds what is missing."
    )
