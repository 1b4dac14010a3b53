"""Judges that came to no result, taken off a run. Those with accuracies stay: choosing which results to show would be
choosing on test data."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddbench.backbones import names as backbones
from ddbench.errors import ConfigError, RunError, closest, mistyped
from ddbench.evaluation.meant import is_protocol
from ddbench.evaluation.protocol import judged_by
from ddbench.plugins import same_name
from ddbench.runs.evaluating import evaluations
from ddbench.runs.record import EvaluationPart, RunRecord, read_record, write_record
from ddbench.runs.rundir import RunDir, evaluation_file

ALL = "failed"


@dataclass(frozen=True)
class Chosen:
    """What `forget` would take off a run, and what was meant with it and stays because it has accuracies."""

    failed: tuple[EvaluationPart, ...]
    kept: tuple[EvaluationPart, ...] = ()


def choose(path: Path, refs: Sequence[str]) -> Chosen:
    """The evaluations of a run that are meant: PROTOCOL, PROTOCOL/JUDGE, or all that failed with "failed".

    Raises: RunError where the run has no record, or nothing that is meant; and where all that is meant has accuracies.
    """
    folder = RunDir.at(path)
    known = _known(folder, _record(folder))
    failed: dict[tuple[str, str], EvaluationPart] = {}
    kept: dict[tuple[str, str], EvaluationPart] = {}
    for ref in refs:
        if ref == ALL:
            failed |= {key: part for key, part in known.items() if part.failed}
            continue
        meant = {key: part for key, part in known.items() if _is_meant(ref, part, _record(folder))}
        if not meant:
            there = sorted({name(part) for part in known.values()} | {part.protocol for part in known.values()})
            judges = ", ".join(name(part) for part in known.values()) or "no judges"
            raise mistyped(
                RunError(f"run {folder.spec.id} was not judged by {ref}. {closest(ref, there)}It has {judges}.")
            )
        if not any(part.failed for part in meant.values()):
            raise RunError(
                f"{', '.join(name(part) for part in meant.values())} of run {folder.spec.id} came to a result, so it "
                "stays: choosing which results to show would be choosing on test data. Only judges that failed can "
                "be forgotten."
            )
        failed |= {key: part for key, part in meant.items() if part.failed}
        kept |= {key: part for key, part in meant.items() if not part.failed}
    return Chosen(tuple(failed.values()), tuple(kept.values()))


def forget(path: Path, parts: Sequence[EvaluationPart]) -> RunRecord:
    """Take failed evaluations off a run and rewrite its record, which is returned. Works on imported runs too.

    Raises: RunError where another process works on the run; where one of them has come to a result since, it stays.
    """
    folder = RunDir.at(path)
    with folder.lock():
        before = _record(folder)
        known = _known(folder, before)
        gone = {(p.protocol, p.backbone) for p in parts if known.get((p.protocol, p.backbone), p).failed}
        # The files first: from them the next evaluation makes the record anew.
        for protocol, backbone in gone:
            file = evaluation_file(folder.path, protocol, backbone)
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise RunError(f"{file} could not be removed: {error.strerror}. Check its permissions.") from error
            with contextlib.suppress(OSError):
                file.parent.rmdir()
        left = tuple(e for e in before.evaluations if (e.protocol, e.backbone) not in gone)
        cost = dict(before.cost)
        if "evaluate" in cost:
            cost["evaluate"] = cost["evaluate"].model_copy(update={"seconds": sum(e.seconds for e in left)})
        record = before.model_copy(update={"evaluations": left, "cost": cost})
        write_record(folder.record, record)
        return record


def name(part: EvaluationPart) -> str:
    """The name that goes behind --forget: dsa@1/convnet-d3."""
    return f"{part.protocol}/{judged_by(part.protocol, part.backbone)}"


def _record(folder: RunDir) -> RunRecord:
    if not folder.record.is_file():
        raise RunError(f"{folder.path} is not a finished run, so no judge of it can be forgotten.")
    return read_record(folder.record)


def _known(folder: RunDir, record: RunRecord) -> dict[tuple[str, str], EvaluationPart]:
    """What the record has, and what an evaluation that was interrupted has left beside it."""
    parts = [*record.evaluations, *evaluations(folder, record.synthetic.sha256)]
    return {(part.protocol, part.backbone): part for part in parts}


def _is_meant(ref: str, part: EvaluationPart, record: RunRecord) -> bool:
    protocol, _, judge = ref.partition("/")
    if not is_protocol(part.protocol, protocol):
        return False
    if not judge or any(same_name(judge, n) for n in (part.backbone, judged_by(part.protocol, part.backbone))):
        return True
    with contextlib.suppress(ConfigError):
        return backbones.canonical(judge, record.data.shape) == part.backbone
    return False
