"""Records as one table: a row per record, protocol, judge and student."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.data.catalogue import known_copy
from ddbench.errors import RunError
from ddbench.evaluation.protocol import judged_by
from ddbench.leaderboard.costs import costs, device_seconds
from ddbench.leaderboard.tracks import track_of
from ddbench.leaderboard.verification import Key, Standing, key_of
from ddbench.runs.record import EvaluationPart, Part, RunRecord, read_record
from ddbench.runs.rundir import RECORD

if TYPE_CHECKING:
    from pandas import DataFrame


COLUMNS = (
    "run", "status", "method", "title", "kind", "package", "method_sha256", "dataset", "data_title", "fingerprint",
    "original", "train", "test", "ipc", "seed", "preset", "precision", "train_backbone", "pixels", "labels", "config",
    "overridden", "set", "bytes", "images_bytes", "labels_bytes", "forwards", "seconds", "device", "protocol", "digest",
    "track", "judge", "student", "accuracy", "failed", "recognised", "correlation", "verified", "again", "differs",
    "published",
)  # fmt: skip
NO_STUDENT = -1


def collect(
    paths: Iterable[Path],
    lost: list[str] | None = None,
    checks: Mapping[Key, Standing] | None = None,
) -> DataFrame:
    """Read records into a table with the columns above; accuracies stay fractions.

    A path is a record or a run folder with one. An evaluation that failed is one row without a student. Where the same
    evaluation of the same run comes twice, the one with more students is kept. `checks` are of those that somebody has
    checked, as `verification.standings` gives them: `verified` says whether they are, `again` how many students of the
    set were trained again with success, `differs` which checks speak against the record.
    Raises: RunError for a path without a record and for a damaged record, naming it; with `lost`, such sentences go
    there, and the others are collected.
    """
    import pandas as pd

    records = []
    for path in paths:
        try:
            records.append(read_record(record_file(path)))
        except RunError as error:
            if lost is None:
                raise
            lost.append(str(error))
    data = _same_data(records)
    rows = [
        row | data[row["fingerprint"]] | _checked(r, e, checks or {})
        for r, e in _without_repeats(records)
        for row in _rows(r, e)
    ]
    rows.sort(key=lambda row: (row["run"], row["digest"], row["judge"], row["student"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _checked(record: RunRecord, part: EvaluationPart, checks: Mapping[Key, Standing]) -> dict[str, Any]:
    """What checks say of an evaluation."""
    found = checks.get(key_of(record, part))
    if found is None:
        return {"verified": False, "again": 0, "differs": ""}
    differs = "; ".join(f"run {record.run.id}, {check}" for check in found.differing)
    return {"verified": found.verified, "again": found.students, "differs": differs}


def record_file(path: Path) -> Path:
    """The record that a path means: itself, or record.json in a run folder.

    Raises: RunError where there is none.
    """
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        raise RunError(
            f"{path} holds no record: a run that has not finished, or not a run. "
            "Run the same command again to finish it, or name a folder under runs/ that has a record.json."
        )
    return file


def _same_data(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """What a table says of the data of each fingerprint: the same of data that differ only in the order of images.

    That of the original where the catalogue knows it, else that of the smallest fingerprint. A record that does not say
    what its data are whatever the order is taken to have data of their own, unless the catalogue knows them.
    """
    known: dict[str, str] = {}
    for record in records:
        copy = known_copy(record.run.dataset, fingerprint=record.data.fingerprint)
        if contents := record.data.contents or (copy.contents if copy else ""):
            known[record.data.fingerprint] = contents
    alike: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        fingerprint = record.data.fingerprint
        alike.setdefault((record.run.dataset, known.get(fingerprint, fingerprint)), []).append(record)
    found: dict[str, dict[str, Any]] = {}
    for (dataset, _), group in alike.items():

        def place(record: RunRecord, dataset: str = dataset) -> tuple[bool, str]:
            fingerprint = record.data.fingerprint
            return known_copy(dataset, fingerprint=fingerprint) is None, fingerprint

        data = min(group, key=place).data
        columns = {"data_title": data.title, "fingerprint": data.fingerprint, "original": data.original}
        found |= {record.data.fingerprint: columns for record in group}
    return found


def _without_repeats(records: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, EvaluationPart]]:
    kept: dict[tuple[str, str, str], tuple[RunRecord, EvaluationPart]] = {}
    for record in records:
        for evaluation in record.evaluations:
            key = (record.run.id, evaluation.digest, evaluation.backbone)
            if key not in kept or _weight(record, evaluation) > _weight(*kept[key]):
                kept[key] = (record, evaluation)
    yield from kept.values()


def _weight(record: RunRecord, evaluation: EvaluationPart) -> tuple[int, str, str]:
    # The last two settle a draw by content, so that the order of the files never matters.
    return len(evaluation.accuracy), record.attempts[-1].started if record.attempts else "", record.synthetic.sha256


def _rows(record: RunRecord, evaluation: EvaluationPart) -> Iterator[dict[str, Any]]:
    run, data, synthetic = record.run, record.data, record.synthetic
    cost = costs(record, evaluation)
    overridden = [
        name for name, source in record.config.sources.items() if not source.startswith(("default", "preset"))
    ]
    common = {
        "run": run.id,
        "status": record.status,
        "method": run.method,
        "title": run.title,
        "kind": run.kind,
        # Versions are provenance, as in the run's id.
        "package": run.provided_by.split(" ")[0],
        "method_sha256": run.method_sha256 or "",
        "dataset": run.dataset,
        "data_title": data.title,
        "fingerprint": data.fingerprint,
        "original": data.original,
        "train": data.train,
        "test": data.test,
        "ipc": run.ipc,
        "seed": run.seed,
        "preset": run.preset,
        "precision": run.precision,
        "train_backbone": run.backbone,
        "pixels": data.pixels,
        "labels": synthetic.labels,
        "config": json.dumps(_settings(record), sort_keys=True),
        "overridden": json.dumps(sorted(overridden)),
        "set": synthetic.sha256,
        "bytes": synthetic.bytes + evaluation.beside_bytes,
        "images_bytes": cost.images_bytes,
        "labels_bytes": cost.labels_bytes,
        "forwards": math.nan if cost.student_forwards is None else float(cost.student_forwards),
        "seconds": device_seconds(record),
        "device": " + ".join(sorted(record.devices)),
        "protocol": evaluation.protocol,
        "digest": evaluation.digest,
        "track": track_of(record, evaluation),
        "judge": judged_by(evaluation.protocol, evaluation.backbone),
        "failed": evaluation.failed,
        "recognised": _measured(
            record.recognised, "accuracy", backbone=judged_by(evaluation.protocol, evaluation.backbone)
        ),
        "correlation": _measured(record.correlations, "rho", digest=evaluation.digest, backbone=evaluation.backbone),
        "published": record.config.published,
    }
    for student, accuracy in enumerate(evaluation.accuracy):
        yield common | {"student": student, "accuracy": accuracy, "failed": ""}
    if not evaluation.accuracy:
        reason = evaluation.failed or "no student finished"
        yield common | {"student": NO_STUDENT, "accuracy": float("nan"), "failed": reason}


def _measured(parts: Sequence[Part], value: str, **of: str) -> float:
    """What one of these parts says, that of these fields; nan where there is none."""
    found = [part for part in parts if all(getattr(part, name) == wanted for name, wanted in of.items())]
    return float(getattr(found[0], value)) if found else math.nan


def _settings(record: RunRecord) -> dict[str, Any]:
    """What tells sets of one method apart: its options, and the decoder without which a set is another one."""
    # An option left at none is one that an older record does not have: their sets belong to one row.
    options = {name: value for name, value in record.config.values.items() if value is not None}
    return options | ({"decode": record.synthetic.decode} if record.synthetic.decode != "none" else {})
