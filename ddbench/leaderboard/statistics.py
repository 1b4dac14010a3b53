"""Means, intervals, differences and ranks: what a board says, computed from single accuracies.

Sets and students are crossed: student k has the same seed whichever set it is trained on. So the accuracies of a
method form a table, sets by students, with a share of each set, a share of each student and a rest. An interval over
set means alone would leave out the share of the students, which all sets have in common.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ddbench.leaderboard.tracks import control_of
from ddbench.text import percent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    Accuracies = NDArray[np.float64]
    HalfWidth = Callable[[float], float]  # of an interval, by its upper quantile

TABLE = ("dataset", "data_title", "fingerprint", "ipc", "protocol", "digest", "track")
VARIANT = ("package", "method_sha256", "preset", "precision", "train_backbone", "pixels", "labels", "config")
DESCRIPTION = ("title", "kind", "original", "train", "test", "published")


def summarise(frame: DataFrame) -> DataFrame:
    """One row per table (data, ipc, protocol, track), judge and variant of a method, from the rows of `collect`.

    `mean` is over sets of the mean over students; `sd` over all students of all sets, as the field reports;
    `sd_between` is that of the set means and `sd_within` the root mean square of those inside the sets, so that
    sd² = sd_between² + sd_within² for equally many students (all with ddof 0). `ci95` is half the width of the 95 %
    interval. All are fractions. `provisional` rows rest on one set or one student. A set counts once however many
    runs made it. `rank` is by mean, equal where the printed means are equal, and 0 without a mean. `control` says which
    rows are real images under the same labels, `controls` which such there are for the judge of a row, `forwards` how
    many images a student trains on, and `forwards_random` and `forwards_coreset` how many times as many as on the
    controls that its differences are to: those that students train on as often, where there are such; `best_coreset` is
    the label of the one. `recognised` is the mean over those sets that it was measured of, which `recognised_sets`
    counts: the fraction of images whose class a network says that was trained on real ones; `correlation` likewise the
    rank correlation of the method's loss and the test loss.
    """
    import pandas as pd

    groups = [group for group, _ in groups_of(frame)]
    rows = [group.row() for group in groups]
    _label(rows)
    _compare(groups, rows)
    _rank(rows)
    rows.sort(key=lambda row: [row[name] for name in (*TABLE, "judge", "label")])
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = (
    *TABLE, "judge", "method", "label", *DESCRIPTION, *VARIANT, "variant", "overridden", "sets", "students_min",
    "students_max", "mean", "ci95", "sd", "sd_between", "sd_within", "provisional", "rank", "difference_random",
    "difference_random_ci95", "difference_random_provisional", "best_coreset", "difference_coreset",
    "difference_coreset_ci95", "difference_coreset_provisional", "control", "controls", "forwards", "forwards_random",
    "forwards_coreset", "recognised", "recognised_sets", "correlation", "correlation_sets", "bytes", "images_bytes",
    "labels_bytes", "seconds", "cost", "failed_sets", "failed", "verified_sets", "verified_students", "differs",
)  # fmt: skip


def groups_of(frame: DataFrame) -> list[tuple[Group, DataFrame]]:
    """All accuracies of each row of `summarise`, and the rows of `collect` that they are from."""
    return [(Group.of(part), part) for _, part in frame.groupby([*TABLE, "judge", "method", *VARIANT], sort=True)]


def to_records(summary: DataFrame) -> list[dict[str, Any]]:
    """The rows of a summary as values that JSON can hold: null where there is no number, settings unfolded."""
    rows = [{str(name): _plain(value) for name, value in row.items()} for row in summary.to_dict("records")]
    for row in rows:
        row |= {name: None for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
        row |= {"config": json.loads(row["config"]), "cost": json.loads(row["cost"])}
    return rows


UPPER = 0.975  # the quantile of a two-sided interval of 95 %


def half_width(ours: Accuracies, reference: Accuracies | None = None) -> float:
    """Half the 95 % interval of the mean of a table [sets, students], or of the difference of two tables' means.

    Two tables share their columns: the same students, so that what a student brings to both cancels. One set leaves
    the interval to the students, and says nothing of other sets; one student leaves it to the sets; nan where a single
    accuracy says nothing of either.
    Source: two-way crossed random effects without replication. The squares of the half widths for sets and for
    students, each by Student's t on its own degrees of freedom, are added, as Cochran did for two means of unequal
    variance (Cochran and Cox, Experimental Designs, 1957); the rest, which is in both, is taken off once. One t for the
    sum, on Satterthwaite's degrees of freedom, covers 88 % with two sets: their mean square is often far too small, and
    then it counts for little where it should have counted most (docs/measured/intervals.json).
    """
    return half_widths(ours, reference)(UPPER)


def half_widths(ours: Accuracies, reference: Accuracies | None = None) -> HalfWidth:
    """`half_width` for an interval of any level, said by its upper quantile: 0.975 for 95 %."""
    tables = [ours] if reference is None else [ours, reference]
    students = ours.shape[1]
    per_student = ours.mean(axis=0) - (0 if reference is None else reference.mean(axis=0))
    from_students = [(per_student.var(ddof=1) / students, students - 1)] if students > 1 else []
    from_sets = [term for table in tables for term in _of_sets(table)]
    return partial(_combined, from_sets, from_students, sum(map(_rest, tables)))


def _of_sets(table: Accuracies) -> list[tuple[float, int]]:
    """What sets bring to the variance of a table's mean, with its degrees of freedom; nothing of one set."""
    sets = len(table)
    return [(table.mean(axis=1).var(ddof=1) / sets, sets - 1)] if sets > 1 else []


def _rest(table: Accuracies) -> float:
    """The part of the variance of a table's mean that the shares of sets and of students have in common."""
    sets, students = table.shape
    if sets < 2 or students < 2:
        return 0.0
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((residual**2).sum()) / ((sets - 1) * (students - 1)) / table.size


def _combined(
    from_sets: Sequence[tuple[float, int]], from_students: Sequence[tuple[float, int]], rest: float, upper: float
) -> float:
    """Half the interval from variances and their degrees of freedom; nan of nothing."""
    if not (from_sets or from_students):
        return math.nan
    both = [[_t(freedom, upper) ** 2 * variance for variance, freedom in terms] for terms in (from_sets, from_students)]
    least = min(_t(freedom, upper) ** 2 for _, freedom in (*from_sets, *from_students))
    # A share that comes out negative is taken as none.
    return math.sqrt(max(sum(map(sum, both)) - least * rest, *map(sum, both)))


@lru_cache(4096)
def _t(freedom: int, upper: float) -> float:
    from scipy import special

    return float(special.stdtrit(freedom, upper))


@dataclass(frozen=True, eq=False)
class Group:
    """All accuracies of one variant of a method under one judge, by set, then by student. `verified` are sets, with how
    many students of each were trained again; `differs` is what checks say against the records."""

    key: dict[str, Any]
    accuracies: dict[str, dict[int, float]]
    failed: dict[str, str]
    verified: Mapping[str, int] = field(default_factory=dict)
    differs: str = ""

    @classmethod
    def of(cls, part: DataFrame) -> Group:
        from ddbench.leaderboard.observations import NO_STUDENT

        rows = part.sort_values(["set", "student", "run"]).to_dict("records")
        accuracies: dict[str, dict[int, float]] = {}
        failed: dict[str, str] = {}
        unverified: set[str] = set()
        again: dict[str, int] = {}
        differs: dict[str, None] = {}
        for row in rows:
            name, student = row["set"], row["student"]
            if student == NO_STUDENT:
                failed.setdefault(name, row["failed"])
            elif student not in (students := accuracies.setdefault(name, {})):
                students[int(student)] = float(row["accuracy"])
                unverified |= set() if row["verified"] is True else {name}
                again[name] = max(again.get(name, 0), row["again"])
                differs |= {row["differs"]: None} if row["differs"] else {}
        key = {name: _plain(rows[0][name]) for name in (*TABLE, "judge", "method", *DESCRIPTION, *VARIANT)}
        key["overridden"] = sorted({name for row in rows for name in json.loads(row["overridden"])})
        key |= _cost({row["set"]: row for row in rows}.values())
        failed = {name: why for name, why in failed.items() if name not in accuracies}
        # Of several runs of one set each may say something else.
        verified = {name: count for name, count in again.items() if name not in unverified}
        return cls(key, accuracies, failed, verified, "; ".join(differs))

    @property
    def variant(self) -> str:
        """Eight hex digits over the settings that tell variants of a method apart."""
        return _digest({name: self.key[name] for name in VARIANT})

    @property
    def set_means(self) -> Accuracies:
        return np.array([np.mean(list(students.values())) for students in self.accuracies.values()])

    @property
    def common(self) -> frozenset[int]:
        """Students that were trained on every set."""
        students = [frozenset(row) for row in self.accuracies.values()]
        return frozenset.intersection(*students) if students else frozenset()

    def table(self, students: frozenset[int]) -> Accuracies:
        """Shapes: [sets, students]; one column, the set means, where fewer than two students are given."""
        if len(students) < 2:
            return self.set_means[:, None]
        return np.array([[row[k] for k in sorted(students)] for row in self.accuracies.values()])

    def row(self) -> dict[str, Any]:
        counts = [len(students) for students in self.accuracies.values()]
        pooled = np.array([a for students in self.accuracies.values() for a in students.values()])
        known = len(pooled) > 0
        within = [float(np.var(list(students.values()))) for students in self.accuracies.values()]
        # The whole dataset is one set by nature: there is no other to draw.
        few_sets = len(counts) == 1 and self.key["kind"] != "ceiling"
        return self.key | {
            "variant": self.variant,
            "sets": len(counts),
            "students_min": min(counts, default=0),
            "students_max": max(counts, default=0),
            "mean": float(self.set_means.mean()) if known else math.nan,
            "ci95": half_width(self.table(self.common)) if known else math.nan,
            "sd": float(pooled.std()) if known else math.nan,
            "sd_between": float(self.set_means.std()) if known else math.nan,
            "sd_within": math.sqrt(float(np.mean(within))) if known else math.nan,
            "provisional": known and (few_sets or min(counts) < 2),
            "failed_sets": len(self.failed),
            "failed": next((self.failed[name] for name in sorted(self.failed)), ""),
            "verified_sets": len(self.verified),
            "verified_students": sum(self.verified.values()),
            "differs": self.differs,
        }

    def difference(self, other: Group) -> tuple[float, HalfWidth]:
        """Difference of means, and half its interval; paired by student where both have two or more in common."""
        gap = float(self.set_means.mean() - other.set_means.mean())
        both = self.common & other.common
        if len(both) > 1:
            return gap, half_widths(self.table(both), other.table(both))
        return gap, _unpaired(self.table(self.common), other.table(other.common))


def next_set(means: Accuracies, upper: float) -> float:
    """How far one more set's mean may lie from the mean of these, one a set: half a prediction interval.

    nan where there are fewer than two. It covers what sets and students bring together, as in set means of students
    that are seeded alike.
    """
    if len(means) < 2:
        return math.nan
    return _t(len(means) - 1, upper) * float(means.std(ddof=1)) * math.sqrt(1 + 1 / len(means))


def _unpaired(ours: Accuracies, reference: Accuracies) -> HalfWidth:
    alone = half_widths(ours), half_widths(reference)
    return lambda upper: math.hypot(*(half(upper) for half in alone))


def _compare(groups: Sequence[Group], rows: Sequence[dict[str, Any]]) -> None:
    """Fill the differences to random and to the best coreset, inside one table and judge."""
    for members in _by(rows, (*TABLE, "judge")).values():
        measured = [i for i in members if groups[i].accuracies]
        for i in members:
            rows[i]["control"] = control_of(rows[i])
        randoms = [i for i in measured if rows[i]["control"] == "random"]
        controls = [i for i in measured if rows[i]["control"]]
        roles = [role for role in ("random", "coreset") if any(rows[i]["control"] == role for i in measured)]
        for i in members:
            best = _coreset_of(rows, i, controls)
            for name, other in (("random", _random_of(rows, i, randoms)), ("coreset", best)):
                gap, half, provisional = math.nan, math.nan, False
                if other not in (None, i) and i in measured and rows[i]["kind"] != "ceiling":
                    gap, interval = groups[i].difference(groups[other])
                    half = interval(UPPER)
                    provisional = rows[i]["provisional"] or rows[other]["provisional"]
                rows[i] |= {
                    f"forwards_{name}": math.nan if other is None else _times(rows[i]["forwards"], rows[other]),
                    f"difference_{name}": gap,
                    f"difference_{name}_ci95": half,
                    f"difference_{name}_provisional": provisional,
                }
            rows[i]["controls"] = " ".join(roles)
            rows[i]["best_coreset"] = "" if best is None else rows[best]["label"]


def _random_of(rows: Sequence[Mapping[str, Any]], i: int, randoms: Sequence[int]) -> int | None:
    """Which of several variants of random a row is held against: the one that is known best, and never the one that
    does best. For what is no control itself, one whose students train on as many images comes before the others."""
    same = [] if rows[i]["control"] else _as_often(rows, i, randoms)
    return max(same or randoms, key=lambda j: _known(rows[j], j), default=None)


def _coreset_of(rows: Sequence[Mapping[str, Any]], i: int, controls: Sequence[int]) -> int | None:
    """The control of the highest mean, of those that students train on as often as on a row, else of all. Random images
    alone are the other control, and no coreset that was chosen."""
    for some in (_as_often(rows, i, controls), controls):
        if any(rows[j]["control"] == "coreset" for j in some):
            return max(some, key=lambda j: (_printed(rows[j]), -j))
    return None


def _as_often(rows: Sequence[Mapping[str, Any]], i: int, others: Sequence[int]) -> list[int]:
    """Those of other rows whose students train on as many images, repeats counted; none where that is not known."""
    ours = rows[i]["forwards"]
    return [j for j in others if abs(ours - rows[j]["forwards"]) <= 0.005 * rows[j]["forwards"]]


def best_known(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of variants of random images, one or more, that with the fewest options set by hand, then the most sets and
    students."""
    return max(enumerate(rows), key=lambda one: _known(one[1], one[0]))[1]


def _known(row: Mapping[str, Any], place: int) -> tuple[int, int, int, int]:
    return -len(row["overridden"]), row["sets"], row["students_min"], -place


def _times(forwards: float, control: Mapping[str, Any]) -> float:
    return forwards / control["forwards"] if control["forwards"] else math.nan


def _label(rows: Sequence[dict[str, Any]]) -> None:
    """Name every row so that no two variants of a method look alike, and none passes for its paper's setting."""
    for members in _by(rows, TABLE).values():
        presets = {rows[i]["preset"] for i in members} - {"imported"}
        for same in _by([rows[i] for i in members], ("method",)).values():
            kin = [rows[members[i]] for i in same]
            for row in kin:
                row["label"] = _name(row, kin, say_preset=len(presets) > 1)


def _name(row: Mapping[str, Any], kin: Sequence[Mapping[str, Any]], *, say_preset: bool) -> str:
    def differ(name: str) -> bool:
        return len({other[name] for other in kin}) > 1

    name = f"{row['package']}/{row['method']}" if differ("package") and not row["method_sha256"] else row["method"]
    if row["method_sha256"]:
        name += f"@{row['method_sha256'][:8]}"
    if row["train_backbone"] != "unknown" and len({other["train_backbone"] for other in kin} - {"unknown"}) > 1:
        name += f" on {row['train_backbone']}"
    notes = [row["preset"]] if say_preset and row["preset"] not in ("paper", "imported") else []
    notes += [row["precision"]] if row["precision"] != "fp32" else []
    notes += [row["pixels"]] if differ("pixels") else []
    notes += [f"{row['labels']} labels"] if differ("labels") else []
    name += f" ({', '.join(notes)})" if notes else ""
    values = json.loads(row["config"])
    alike = [json.loads(other["config"]) for other in kin if other["preset"] == row["preset"]]
    shown = {key for key in values if any(other.get(key) != values[key] for other in alike)} | set(row["overridden"])
    shown -= {"decode"} if "factor" in shown else set()  # which says the same
    options = [f"{key}={_short(values.get(key))}" for key in sorted(shown)]
    return name + (f" [{', '.join(options)}]" if options else "")


def _rank(rows: Sequence[dict[str, Any]]) -> None:
    for members in _by(rows, (*TABLE, "judge")).values():
        means = {i: _printed(rows[i]) for i in members if not math.isnan(rows[i]["mean"])}
        for i in members:
            rows[i]["rank"] = 1 + sum(other > means[i] for other in means.values()) if i in means else 0


def _printed(row: Mapping[str, Any]) -> float:
    # By the printed text: rounding twice could tell apart what looks the same.
    return float(percent(row["mean"]))


def _by(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[tuple[Any, ...], list[int]]:
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(tuple(row[name] for name in names), []).append(i)
    return found


def _cost(sets: Any) -> dict[str, Any]:
    """Bytes of a set (the largest, should they differ), seconds per set, in all and by device, and the means of what
    was measured of sets beside the accuracy of students."""
    rows = list(sets)
    largest = max(rows, key=lambda row: int(row["bytes"]))
    measured = {
        name: [float(row[name]) for row in rows if not math.isnan(row[name])] for name in ("recognised", "correlation")
    }
    by_device: dict[str, list[float]] = {}
    for row in rows:
        by_device.setdefault(row["device"], []).append(float(row["seconds"]))
    return {
        **{name: int(largest[name]) for name in ("bytes", "images_bytes", "labels_bytes")},
        **{name: float(np.mean(values)) if values else math.nan for name, values in measured.items()},
        **{f"{name}_sets": len(values) for name, values in measured.items()},
        # Of sets of one size all are equal; nan where no record says.
        "forwards": max((float(row["forwards"]) for row in rows if not math.isnan(row["forwards"])), default=math.nan),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "cost": json.dumps({device: float(np.mean(seconds)) for device, seconds in sorted(by_device.items())}),
    }


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
