"""The scores of DD-Ranking, as columns of a board: what is left of a result without its labels and its augmentation.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025, arXiv 2505.13300. Every accuracy that
they are made from is a row of the same board, and nothing is trained for them. Where one is missing, there is no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddbench.evaluation.protocol import PROTOCOLS, Protocol
from ddbench.leaderboard.statistics import TABLE, best_known
from ddbench.leaderboard.tracks import NAMES, factor_of

if TYPE_CHECKING:
    from pandas import DataFrame

SCORES = ("lrs", "ars")
COLUMNS = ("lrs", "lrs_missing", "ars", "ars_missing")
# What was measured of the sets themselves, which a summary has in any case.
MEASURED = {"recognised": "recognised, %", "correlation": "DCS"}
WEIGHT = 0.5  # of either of two differences, as DD-Ranking's own board has it
COMMON, WHOLE = "dsa@1", "full@1"
# Under which protocol a set is judged with hard labels, where its own has others; elsewhere the common one.
_HARD = {"hard-truths-sl@1": "hard-truths-hl@1", "soft-labels@1": COMMON}


def label_robust_score(own: float, random: float, whole: float, hard: float, weight: float = WEIGHT) -> float:
    """LRS, 0 to 100: (e^a - e^-1) / (e - e^-1) with a = w (own - random) - (1 - w) (whole - hard).

    Accuracies are fractions: of the set with its own labels, of random images with the same, of the whole dataset with
    hard labels, and of the set with hard labels. With numbers in percent the formula gives nothing between 0 and 100.
    Raises: ValueError for what is no fraction.
    """
    _fractions(own, random, whole, hard, weight)
    return _scaled(weight * (own - random) - (1 - weight) * (whole - hard))


def augmentation_robust_score(
    own: float, random: float, own_plain: float, random_plain: float, weight: float = WEIGHT
) -> float:
    """ARS, 0 to 100: scaled as LRS, of b = w (own - random) + (1 - w) (own_plain - random_plain).

    Accuracies are fractions, of the set and of random images, with augmentation and (plain) without.
    Raises: ValueError for what is no fraction.
    """
    _fractions(own, random, own_plain, random_plain, weight)
    return _scaled(weight * (own - random) + (1 - weight) * (own_plain - random_plain))


def _fractions(*values: float) -> None:
    if any(not 0 <= value <= 1 for value in values):
        raise ValueError(f"accuracies and weights are fractions from 0 to 1; got {', '.join(map(str, values))}")


def _scaled(difference: float) -> float:
    """From -1 to 1, on 0 to 100."""
    return 100 * (math.exp(difference) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def with_scores(summary: DataFrame) -> DataFrame:
    """The rows of `statistics.summarise` with LRS and ARS, and with what is missing for them: nan, and a text.

    Scores are made from means over all sets of a row. Give all rows there are: a part of a board lacks what the scores
    of its rows need.
    """
    rows = [{str(name): value for name, value in row.items()} for row in summary.to_dict("records")]
    board = _Board.of(rows)
    scored = [{**board.labels(row), **board.augmentation(row)} for row in rows]
    return summary.assign(**{name: [row[name] for row in scored] for name in COLUMNS})


_SINGLE = (
    "Scores take single random images, as DD-Ranking does, also of rows whose sets store several images in one and "
    "whose difference to random images is to such."
)


def about_scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences for below a table: what the scores are made from, and what is missing for which rows."""
    first = rows[0]
    hard, plain = _hard(first), _plain(first)
    notes = [
        f"LRS, 0 to 100, over {first['judge']}: half of what the row is above random images, less half of what the set "
        f"is below the whole dataset, both with hard labels ({hard}; {WHOLE} where {hard} has no whole dataset).",
        "ARS, 0 to 100: half of what the row is above random images, and half of that without augmentation"
        + (f" ({plain})." if plain else "."),
        *([_SINGLE] if any(factor_of(row) > 1 for row in rows) else []),
        f"Where the differences cancel, either score is {_scaled(0.0):.1f}. Neither has an interval.",
    ]
    for score in SCORES:
        missing: dict[str, list[str]] = {}
        for row in rows:
            if row[f"{score}_missing"]:
                missing.setdefault(row[f"{score}_missing"], []).append(row["label"])
        notes += [f"No {score.upper()} for {', '.join(dict.fromkeys(who))}: {why}." for why, who in missing.items()]
    return [*notes, *_about_measured(rows)]


def _about_measured(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    told = {
        "recognised": "the fraction of a set's images whose class a network says that was trained on the real images",
        "correlation": "Spearman's rank correlation of the method's loss and the test loss of students along a run",
    }
    for name, meaning in told.items():
        counts = sorted({row[f"{name}_sets"] for row in rows if row[f"{name}_sets"]})
        said = f"{MEASURED[name].partition(',')[0]}: {meaning}"
        if counts:
            several = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
            said += f", of {several} {'set' if several == '1' else 'sets'} of a row"
        # Real images have no loss that a method lowered.
        without = ("ceiling", "coreset", "imported") if name == "correlation" else ("ceiling",)
        missing = [row["label"] for row in rows if not row[f"{name}_sets"] and row["kind"] not in without]
        if missing:
            where = " (of a method that logs a loss)" if name == "correlation" else ""
            said += f". Not measured of {', '.join(dict.fromkeys(missing))}: ddbench measure {name} RUN{where}"
        yield f"{said}."


@dataclass(frozen=True, eq=False)
class _Board:
    """Where the accuracies of a board are found."""

    sets: dict[tuple[Any, ...], float]  # by data, ipc, protocol, digest, track, judge, method and variant
    random: dict[tuple[Any, ...], float]  # by table and judge: its control, one real image in each
    whole: dict[tuple[Any, ...], float]  # by data, protocol and judge, with hard labels

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> _Board:
        known = [row for row in rows if not math.isnan(row["mean"])]
        own = {(*_place(row), row["method"], row["variant"]): float(row["mean"]) for row in known}
        # DD-Ranking's random images are single ones, also where a method stores several in one. The differences of a
        # board are to other random images there, which students train on as often.
        single: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in known:
            if row["control"] == "random" and factor_of(row) == 1:
                single.setdefault(_place(row), []).append(row)
        randoms = {place: float(best_known(some)["mean"]) for place, some in single.items()}
        whole = {
            (row["fingerprint"], row["protocol"], row["judge"]): float(row["mean"])
            for row in known
            if row["kind"] == "ceiling" and row["track"] == "hard"
        }
        return cls(own, randoms, whole)

    def labels(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """LRS of a row, and what is missing for it."""
        if said := _no_score(row):
            return {"lrs": math.nan, "lrs_missing": said}
        hard = _hard(row)
        random = self.random.get(_place(row))
        wholes = [self.whole.get((row["fingerprint"], name, row["judge"])) for name in (hard, WHOLE)]
        whole = next((value for value in wholes if value is not None), None)
        own = self.sets.get((*_place(row, hard), row["method"], row["variant"]))
        found = {
            "random": (f"single random images with {NAMES[row['track']]} under {row['protocol']}", random),
            "whole": (f"the whole dataset with hard labels, under {hard} or {WHOLE}", whole),
            "hard": (f"the same sets with hard labels, under {hard}", own),
        }
        return _score("lrs", label_robust_score, row, found)

    def augmentation(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """ARS of a row, and what is missing for it."""
        plain = _plain(row)
        said = _no_score(row) or ("" if plain else f"{row['protocol']} has no twin without augmentation")
        if said:
            return {"ars": math.nan, "ars_missing": said}
        random, random_plain = self.random.get(_place(row)), self.random.get(_place(row, plain))
        own_plain = self.sets.get((*_place(row, plain), row["method"], row["variant"]))
        found = {
            "random": (f"single random images under {row['protocol']}", random),
            "random_plain": (f"single random images under {plain}", random_plain),
            "own_plain": (f"the same sets under {plain}", own_plain),
        }
        return _score("ars", augmentation_robust_score, row, found)


def _score(
    name: str, formula: Callable[..., float], row: Mapping[str, Any], found: Mapping[str, tuple[str, float | None]]
) -> dict[str, Any]:
    """A score of a row, and what is missing for it. `found` has the formula's other arguments: what each is, and it."""
    if missing := [what for what, value in found.values() if value is None]:
        return {name: math.nan, f"{name}_missing": f"not judged by {row['judge']}: {'; '.join(missing)}"}
    values = {argument: value for argument, (_, value) in found.items()}
    return {name: formula(row["mean"], **values), f"{name}_missing": ""}


def _no_score(row: Mapping[str, Any]) -> str:
    if row["kind"] == "ceiling":
        return "the whole dataset is what others are compared with"
    return "it has no accuracy" if math.isnan(row["mean"]) else ""


def _place(row: Mapping[str, Any], protocol: str = "") -> tuple[Any, ...]:
    """Table and judge of a row; or of its twin under a built-in protocol, which has hard labels or the same."""
    names = (*TABLE, "judge")
    if not protocol or protocol == row["protocol"]:
        return tuple(row[name] for name in names)
    twin = PROTOCOLS[protocol]
    track = "hard" if twin.track == "hard" else row["track"]
    changed = {"protocol": protocol, "digest": twin.digest, "track": track}
    return tuple(changed.get(name, row[name]) for name in names)


def _hard(row: Mapping[str, Any]) -> str:
    """The protocol under which a row's sets are judged with hard labels: its own, if that is one."""
    return str(row["protocol"]) if row["track"] == "hard" else _HARD.get(row["protocol"], COMMON)


def _plain(row: Mapping[str, Any]) -> str:
    """The built-in protocol that differs from a row's in its augmentation alone, which is none; "" without one."""
    own = PROTOCOLS.get(row["protocol"])
    if own is None or own.digest != row["digest"] or own.augment == "none":
        return ""
    return next((p.id for p in PROTOCOLS.values() if p.augment == "none" and _recipe(p) == _recipe(own)), "")


def _recipe(protocol: Protocol) -> dict[str, Any]:
    beside = {"name", "version", "augment", "students", "source", "backbones"}
    return protocol.model_dump(exclude=beside) | {"options": protocol.options.model_dump()}
