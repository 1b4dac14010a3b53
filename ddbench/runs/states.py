"""What has become of a run, by what is in its folder: done, failed, running, interrupted or missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from ddbench.errors import DdbenchError, RunError
from ddbench.files import read_json, write_json
from ddbench.runs.record import EvaluationPart, Part, RunRecord, read_record
from ddbench.runs.rundir import FAILURE, RECORD, SET, SPEC, RunDir

if TYPE_CHECKING:
    from ddbench.runs.evaluating import Cell

RunState = Literal["done", "failed", "running", "interrupted", "missing"]
# The protocols of the preset quick, each with those of smaller step sizes.
FIRST_LOOKS = {"quick@1": "quick-large or quick-slow", "quick-large@1": "quick-slow", "quick-slow@1": ""}
STATES: tuple[RunState, ...] = ("done", "failed", "running", "interrupted", "missing")


@dataclass(frozen=True)
class Status:
    """The state of a run. `why` says more in words: of a failed run its reason, of a running one who works on it."""

    state: RunState
    why: str = ""


class Failure(Part):
    """failure.json: why the last attempt at a run failed. `error` is the kind of error, `when` a time in UTC."""

    file_schema: Literal["ddbench.failure/1"] = "ddbench.failure/1"
    message: str
    error: str
    when: str


def write_failure(folder: Path, error: BaseException) -> None:
    """Keep why a run failed, in its folder, which need not be there yet. A disk that is full keeps nothing."""
    bug = not isinstance(error, DdbenchError)
    message = f"{type(error).__name__}: {error}".rstrip(": ") if bug else str(error)
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    failure = Failure(message=message, error=type(error).__name__, when=when)
    with contextlib.suppress(RunError):
        write_json(folder / FAILURE, failure.model_dump(mode="json"))


def read_failure(folder: Path) -> Failure | None:
    """Why the last attempt failed; None where it did not."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    try:
        return Failure.model_validate(read_json(path))
    except (RunError, ValidationError):
        return Failure(message=f"{path} is damaged, so the reason is not known.", error="unknown", when="")


@contextlib.contextmanager
def kept_failure(folder: RunDir) -> Iterator[None]:
    """An attempt at a run: what makes it fail stays in the folder until the next attempt. Only under the lock.

    A signal is no failure: what it stops goes on.
    """
    (folder.path / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        write_failure(folder.path, error)
        raise


def lost_cells(record: RunRecord, asked: Sequence[Cell] | None = None) -> list[str]:
    """Why cells that were asked for have no accuracy, one sentence each; all of the record's where none are named."""
    return [f"{e.protocol} with {e.backbone}: {e.failed}{_calmer(e)}" for e in _lost(record, asked)]


def nothing_judged(record: RunRecord, asked: Sequence[Cell] | None = None) -> bool:
    """Whether no judge that was asked for came to a result, and that is a failure.

    A judge that diverges at a first look is what that look has shown, and no failure of the run.
    """
    lost, of = _lost(record, asked), record.evaluations if asked is None else asked
    return bool(lost) and len(lost) == len(of) and not all(_diverged_at_first_look(e) for e in lost)


def judged(record: RunRecord, asked: Sequence[Cell] | None = None) -> Status:
    """The state of a run whose record has all that was asked: failed only where no judge came to a result.

    One judge without a result is said beside the others; it takes nothing away from them.
    """
    return Status("failed" if nothing_judged(record, asked) else "done", "\n".join(lost_cells(record, asked)))


def _lost(record: RunRecord, asked: Sequence[Cell] | None) -> list[EvaluationPart]:
    wanted = None if asked is None else {(cell.protocol.digest, cell.backbone) for cell in asked}
    return [e for e in record.evaluations if e.failed and (wanted is None or (e.digest, e.backbone) in wanted)]


def _diverged_at_first_look(evaluation: EvaluationPart) -> bool:
    return evaluation.protocol in FIRST_LOOKS and not evaluation.failed.startswith("not defined")


def _calmer(evaluation: EvaluationPart) -> str:
    others = FIRST_LOOKS.get(evaluation.protocol, "")
    return f" Smaller step sizes: --protocol {others}." if others and _diverged_at_first_look(evaluation) else ""


def status_of(path: Path, asked: Sequence[Cell] | None = None) -> Status:
    """The state of the run in a folder; `asked` are the evaluations that count, else those that its record has.

    A finished run that lacks an evaluation that is asked for now is interrupted: its command goes on with that. Where
    evaluations are asked for, the set is compared with the record, which a list of many runs would wait for.
    """
    record = None
    with contextlib.suppress(RunError):
        record = read_record(path / RECORD)
    return status_from(path, record, asked)


def _damage(path: Path) -> str:
    """Why set and record of a finished run do not belong together; nothing where they do."""
    try:
        RunDir.at(path).set_sha256()
    except RunError as error:
        return str(error)
    return ""


def status_from(path: Path, record: RunRecord | None, asked: Sequence[Cell] | None = None) -> Status:
    """The state, for whoever has read the record; None where there is none, or none that can be read."""
    if not path.is_dir():
        return Status("missing")
    holder = RunDir.holder(path)
    if holder is not None:
        return Status("running", f"by {holder}")
    # Without its set a run is done again, whatever its record says.
    if record is not None and (path / SET).is_file():
        if asked is None and any(e.accuracy or e.failed for e in record.evaluations):
            return judged(record)
        if asked is not None and all(cell.in_record(record) for cell in asked):
            # Whoever asks leaves out what is done, so that nobody else would notice.
            damage = _damage(path)
            return Status("failed", damage) if damage else judged(record, asked)
    failure = read_failure(path)
    if failure is not None:
        return Status("failed", failure.message)
    return Status("interrupted") if (path / SPEC).is_file() else Status("missing")
