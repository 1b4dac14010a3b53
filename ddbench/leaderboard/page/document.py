"""What the page knows: every row, run and curve as values that JSON holds, in an order that records alone decide."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.errors import DdbenchError, RunError
from ddbench.evaluation.protocol import judged_by
from ddbench.foreign.published_sets import INDEX, read_index
from ddbench.leaderboard.alike import letters
from ddbench.leaderboard.command import commands_of, reproduction_of
from ddbench.leaderboard.costs import costs
from ddbench.leaderboard.observations import collect, record_file
from ddbench.leaderboard.published import ZCA, as_printed, belongs, beside, printed
from ddbench.leaderboard.scores import MEASURED, SCORES, with_scores
from ddbench.leaderboard.sheets import read_sheet
from ddbench.leaderboard.statistics import TABLE, Group, groups_of, summarise, to_records
from ddbench.leaderboard.tracks import about_controls, name_of
from ddbench.leaderboard.verification import VERIFIED, Key, Standing, key_of, trust
from ddbench.runs.record import CurvePart, EvaluationPart, RunRecord, read_record
from ddbench.text import counted, percent

if TYPE_CHECKING:
    from pandas import DataFrame

_NOTE = re.compile(r"\(([^()]*)\)")
_METHOD = ("package", "method_sha256", "method", "kind", "name")


def document(
    paths: Iterable[Path],
    published: DataFrame,
    lost: list[str] | None = None,
    downloads: Mapping[str, Mapping[str, Any]] | None = None,
    chosen: Callable[[DataFrame], DataFrame] | None = None,
    checks: Mapping[Key, Standing] | None = None,
) -> dict[str, Any]:
    """The document of the page: `tables`, `rows`, `runs`, `papers`.

    A table is one protocol on one dataset with one ipc; a row one setting of a method under one judge of a table; a run
    one set. Rows refer to tables by place and to runs by id. Accuracies are fractions, bytes bytes, times seconds.
    `downloads` says by run how its set is taken away, as `downloads_in` gives it; `chosen` takes rows of a summary, and
    what it leaves is shown as it was compared with everything; `checks` are those of evaluations, as for
    `collect`.
    Raises: RunError for a damaged record, naming it; with `lost`, such sentences go there.
    """
    files = list(paths)
    frame = collect(files, lost, checks)
    summary = with_scores(summarise(frame))
    found = _named(to_records(summary))
    shown = found if chosen is None else _named(to_records(chosen(summary)))
    records, sheets = _records(files)
    known = _Known.of(frame, records, published, checks or {})
    alike = _letters(found, known)
    tables = {key: _table(rows) for key, rows in _by(shown, TABLE).items()}
    places = {key: place for place, key in enumerate(tables)}
    rows: list[dict[str, Any]] = []
    for row in shown:
        key = tuple(row[name] for name in TABLE)
        place = {"table": places[key], "setting": _setting(row, tables[key]["common"])}
        rows.append(place | _row(row, known, alike.get(_key(row))))
    used = sorted({entry["id"] for row in rows for entry in row["runs"]})
    runs = {name: _run(records[name], sheets.get(name), (downloads or {}).get(name)) for name in used}
    return {"tables": list(tables.values()), "rows": rows, "runs": runs, "papers": _papers(shown)}


@dataclass(frozen=True, eq=False)
class _Known:
    """What rows are made from: accuracies and the run of each set by row, records by run, published numbers, checks."""

    groups: dict[tuple[Any, ...], Group]
    runs: dict[tuple[Any, ...], dict[str, str]]
    records: Mapping[str, RunRecord]
    numbers: Sequence[Mapping[str, Any]]
    checks: Mapping[Key, Standing]

    @classmethod
    def of(
        cls,
        frame: DataFrame,
        records: Mapping[str, RunRecord],
        published: DataFrame,
        checks: Mapping[Key, Standing],
    ) -> _Known:
        groups, runs = {}, {}
        for group, part in groups_of(frame):
            key = _key(group.key | {"variant": group.variant})
            by_set = part.sort_values("run", ascending=False)  # a set counts once, as made by the first of its runs
            groups[key], runs[key] = group, dict(zip(by_set["set"], by_set["run"], strict=True))
        numbers = [{str(name): value for name, value in row.items()} for row in printed(published).to_dict("records")]
        return cls(groups, runs, records, numbers, checks)


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With what the page calls the method of each."""
    return [row | {"name": name_of(row["method"], row["control"], row["config"])} for row in rows]


def _letters(found: Sequence[dict[str, Any]], known: _Known) -> dict[tuple[Any, ...], str]:
    """The letters of the rows that stand for their methods, by key."""
    said: dict[tuple[Any, ...], str] = {}
    for members in _by(found, (*TABLE, "judge")).values():
        keys = [_key(row) for row in _heads(members)]
        said |= dict(zip(keys, letters([known.groups[key] for key in keys]), strict=True))
    return said


def downloads_in(sets: Path) -> dict[str, dict[str, Any]]:
    """How the published sets of a folder are taken away, by run: the command, the file's hash and its bytes.

    Raises: DataError for a damaged index, naming it.
    """
    if not (sets / INDEX).is_file():
        return {}
    index = read_index(str(sets), sets)
    return {
        entry.run: {"command": f"ddbench sets get {entry.name}", "sha256": entry.sha256, "bytes": entry.bytes}
        for entry in index.sets
    }


def _records(files: Iterable[Path]) -> tuple[dict[str, RunRecord], dict[str, bytes]]:
    """Records and sheets by run. Of several records of a run, every evaluation is taken where it has most students."""
    found: dict[str, RunRecord] = {}
    sheets: dict[str, bytes] = {}
    for path in files:
        try:
            record = read_record(record_file(path))
        except RunError:  # `collect` has said so
            continue
        if sheet := read_sheet(record_file(path), record):
            sheets[record.run.id] = sheet
        other = found.get(record.run.id)
        found[record.run.id] = record if other is None else _together(*sorted((record, other), key=_weight))
    return found, sheets


def _weight(record: RunRecord) -> tuple[int, str]:
    return sum(len(part.accuracy) for part in record.evaluations), record.synthetic.sha256


def _together(less: RunRecord, more: RunRecord) -> RunRecord:
    """The record that has more, with the evaluations that only the other has, or has with more students."""
    parts: dict[tuple[str, str], list[EvaluationPart]] = {}
    for part in (*more.evaluations, *less.evaluations):
        parts.setdefault((part.digest, part.backbone), []).append(part)
    best = tuple(max(same, key=lambda part: len(part.accuracy)) for same in parts.values())
    return more.model_copy(update={"evaluations": best})


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in (*TABLE, "judge", "method", "variant"))


def _by(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _heads(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each method the setting that stands for it: of fewest options set by hand, then of most sets.

    It stands there for what it is, and never for its accuracy: that would be choosing on test data.
    """
    return [
        min(kin, key=lambda row: (row["mean"] is None, len(row["overridden"]), -row["sets"], row["variant"]))
        for kin in _by([row for row in rows if row["kind"] != "ceiling"], _METHOD).values()
    ]


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    judges = sorted({row["judge"] for row in rows}, key=lambda name: (not name.startswith("convnet"), name))
    copied = {name: first[name] for name in (*TABLE, "original", "train", "test")}
    # As summarise has them, whose rows these were.
    told = [
        row
        | {name: _number(row[name]) for name in ("forwards_random", "forwards_coreset")}
        | {"config": json.dumps(row["config"])}
        for row in rows
    ]
    said = {judge: list(about_controls([row for row in told if row["judge"] == judge], [judge])) for judge in judges}
    return copied | {"judges": judges, "common": _common(rows), "controls": said}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _common(rows: Sequence[dict[str, Any]]) -> str:
    """What all rows of a table say in parentheses after their method, such as tf32: the page says it once, above."""
    notes = {note[1] if (note := _NOTE.match(_setting(row))) else "" for row in rows}
    return notes.pop() if len(notes) == 1 else ""


def _setting(row: Mapping[str, Any], common: str = "") -> str:
    """What a row's label says beside the method: "(tf32) [experts=50]", or "experts=50" where tf32 is common."""
    text = str(row["label"]).removeprefix(row["method"]).strip()
    text = text.removeprefix(f"({common})").strip() if common else text
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _row(row: dict[str, Any], known: _Known, alike: str | None) -> dict[str, Any]:
    """`alike` are the letters of a row that stands for its method; None folds it under that one."""
    group, runs = known.groups[_key(row)], known.runs[_key(row)]
    numbers = [n for n in known.numbers if (n["dataset"], n["ipc"]) == (row["dataset"], row["ipc"])]
    said = beside(row["method"], row["protocol"], row["config"], numbers, row["judge"])
    sets = [(known.records[run], name) for name, run in sorted(runs.items())]
    sets.sort(key=lambda entry: (entry[0].run.seed, entry[1]))
    evaluations = [_evaluation(record, row) for record, _ in sets]
    largest = max(range(len(sets)), key=lambda k: sets[k][0].synthetic.bytes)
    cost = costs(sets[largest][0], evaluations[largest])
    return {
        "id": f"{row['method']}-{row['variant']}",
        **{name: row[name] for name in _COPIED},
        "family": "/".join(row[name] for name in _METHOD),
        "said": _said(row),
        "alike": alike,
        "whitened": "zca" in row["pixels"],
        "verified": trust(row) == VERIFIED,
        "differs": row["differs"],
        "scores": {name: row[name] for name in (*SCORES, *MEASURED) if row[name] is not None},
        "gap": row["difference_random"],
        "gap_ci95": row["difference_random_ci95"],
        "bytes": {
            "images": cost.images_bytes,
            "labels": cost.labels_bytes,
            "other": cost.other_bytes,
            "beside": cost.beside_bytes,
        },
        "forwards": cost.student_forwards,
        "seen": "–" if cost.student_forwards is None else counted(cost.student_forwards),
        "seconds": None if row["kind"] in ("ceiling", "imported") else row["seconds"],
        "cost": row["cost"],
        "published": [_published(number) for number in said],
        "printed": [_published(number) for number in numbers if belongs(number["method"], row["method"])],
        "runs": [
            {
                "id": record.run.id,
                "accuracy": [accuracy for _, accuracy in sorted(group.accuracies.get(name, {}).items())],
                "failed": group.failed.get(name, ""),
                "checks": _checks(record, evaluation, known),
            }
            for (record, name), evaluation in zip(sets, evaluations, strict=True)
        ],
    }


_COPIED = (
    "judge", "method", "name", "title", "kind", "labels", "mean", "ci95", "sd", "sets", "students_min", "students_max",
    "provisional", "failed_sets", "failed", "control",
)  # fmt: skip


def _checks(record: RunRecord, part: EvaluationPart, known: _Known) -> list[str]:
    """The checks of an evaluation, a line each, in the order in which they were entered."""
    found = known.checks.get(key_of(record, part))
    return [
        f"{check}; on {check.device}, {check.started[:10]}" + (", on its published file" if check.file else "")
        for check in (found.checks if found else ())
    ]


def _evaluation(record: RunRecord, row: Mapping[str, Any]) -> EvaluationPart:
    return next(
        part
        for part in record.evaluations
        if part.digest == row["digest"] and judged_by(part.protocol, part.backbone) == row["judge"]
    )


def _published(number: Mapping[str, Any]) -> dict[str, Any]:
    names = ("method", "protocol", "train_backbone", "test_backbone", "source", "note")
    value = as_printed(number) + ("*" if number["note"].startswith(ZCA) else "")
    return {name: number[name] for name in names} | {"text": value, "value": float(number["accuracy"]) / 100}


def _run(record: RunRecord, sheet: bytes | None, download: Mapping[str, Any] | None) -> dict[str, Any]:
    run, data, synthetic, last = record.run, record.data, record.synthetic, record.attempts[-1:]
    attempt = last[0] if last else None
    git = (attempt.git if attempt else None) or {}
    return {
        "seed": run.seed,
        "method": run.method,
        "preset": run.preset,
        "precision": run.precision,
        "backbone": run.backbone,
        "pixels": data.pixels,
        "provided_by": run.provided_by,
        "sha256": synthetic.sha256,
        "images": synthetic.images,
        "stored": synthetic.stored,
        "decode": synthetic.decode,
        "learned": list(synthetic.learned),
        "choice": None if synthetic.choice is None else synthetic.choice.model_dump(mode="json"),
        "options": [
            [name, _spelled(value), record.config.sources.get(name, "")] for name, value in record.config.values.items()
        ],
        "artifacts": [[str(a.get("kind", "")), float(a.get("seconds", 0))] for a in record.artifacts],
        "condense_seconds": record.cost["condense"].seconds if "condense" in record.cost else None,
        "peak_device_bytes": record.cost["condense"].peak_device_bytes if "condense" in record.cost else None,
        "devices": record.devices,
        "commit": str(git.get("commit", "")),
        "dirty": bool(git.get("dirty", False)),
        "started": attempt.started if attempt else "",
        "packages": dict(attempt.packages) if attempt else {},
        "commands": commands_of(record),
        "reproduce": reproduction_of(record),
        "download": None if download is None else dict(download),
        "sheet": None if sheet is None else _sheet(record, sheet),
        "curves": [_curve(curve) for curve in record.curves],
        "imported": None if record.imported is None else record.imported.model_dump(mode="json"),
        "evaluations": [
            [part.protocol, part.backbone, len(part.accuracy), part.seconds, part.device] for part in record.evaluations
        ],
    }


def _sheet(record: RunRecord, picture: bytes) -> dict[str, Any]:
    part = record.sheet
    assert part is not None  # else no picture would have been read
    said = {"classes": part.classes, "rows": part.rows, "stretched": part.stretched}
    return said | {"data": "data:image/webp;base64," + base64.b64encode(picture).decode()}


def _curve(curve: CurvePart) -> dict[str, Any]:
    points = [[point.step, list(point.accuracy)] for point in curve.points]
    return {"protocol": curve.protocol, "judge": judged_by(curve.protocol, curve.backbone), "points": points}


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _said(row: Mapping[str, Any]) -> dict[str, str]:
    """Mean, deviation and ends of the interval as boards print them: a script would round a tie the other way."""
    if row["mean"] is None:
        return {}
    said = {"mean": percent(row["mean"]), "sd": percent(row["sd"])}
    if row["ci95"] is not None:
        low, high = max(0.0, row["mean"] - row["ci95"]), min(1.0, row["mean"] + row["ci95"])
        said |= {"low": percent(low), "high": percent(high)}
    return said


def _papers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the methods that come with ddbench are from, by name; nothing of others, whose names may be anybody's."""
    from ddbench.runs.resolving import find_method

    found = {}
    for method in sorted({row["method"] for row in rows if row["package"] == "ddbench"}):
        try:
            info = find_method(f"ddbench/{method}")[1].info
        except DdbenchError:  # a record may be of a method that is gone
            continue
        found[method] = {"title": info.title, "venue": info.venue, "year": info.year, "arxiv": info.arxiv}
    return found


def finite(value: Any) -> Any:
    """The value with null for every number that JSON has no word for."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
