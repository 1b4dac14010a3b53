"""Claims of records, and checks of them: students are trained again on a set, and what comes out is entered.

What a set reaches is compared with the committed record of it, whoever trains the students, and wherever the set lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.errors import RunError, mistyped
from ddbench.files import require_writable, write_atomically
from ddbench.foreign.meant import Tell
from ddbench.foreign.published_sets import SetEntry
from ddbench.leaderboard import submission, verification
from ddbench.leaderboard.boards import place_of
from ddbench.leaderboard.observations import record_file
from ddbench.leaderboard.set_files import meant_on, require_record
from ddbench.leaderboard.sheets import sheet_file, with_sheet
from ddbench.runs.record import RunRecord, read_record, write_record
from ddbench.runs.rundir import RECORD

if TYPE_CHECKING:
    from ddbench.evaluation.protocol import Protocol
    from ddbench.runs.retraining import Retrained, Subject
    from ddbench.runs.runner import RunOptions


@dataclass(frozen=True)
class Claim:
    """A set whose record somebody wants to check. `place` is where the leaderboard has that record, `committed` it, if
    it has it; `run` is the folder that the set lies in, or `file` the hash of a published file."""

    subject: Subject
    place: Path
    committed: RunRecord | None
    run: Path | None = None
    file: str | None = None


def claim_of(ref: str, leaderboards: Path, data_root: Path, tell: Tell = lambda text: None) -> Claim:
    """The claim about the run or the published set that is meant, as `set_files.meant_on` says; `tell` is for that.

    Raises: RunError or DataError where it means nothing, or its set could not be trained on: it is damaged, of other
    data, or of another record than the leaderboard's; or where the checks of that record are damaged, or not of it.
    """
    from ddbench.runs.retraining import of_run

    found = meant_on(leaderboards, ref, data_root, tell)
    if found.entry is not None:
        return published_claim(found.entry, found.file(data_root), leaderboards, data_root)
    file = record_file(found.path)
    own = read_record(file)
    if submission.alone(file):
        raise mistyped(
            RunError(
                f"{ref} is a record without its run, so there is no set to train on. Name the run's folder, or the set "
                "as it was published, if it was: `ddbench sets list` shows the names."
            )
        )
    place = leaderboards / place_of(own.run)
    committed = read_record(place) if place.is_file() else None
    subject = of_run(file.parent, data_root, committed)
    if committed is not None:
        verification.checks_of(leaderboards, place, committed)
    return Claim(subject, place, committed, run=file.parent)


def published_claim(entry: SetEntry, file: Path, leaderboards: Path, data_root: Path) -> Claim:
    """The claim about a published set, whose file is there. Raises: as `claim_of`."""
    from ddbench.runs.retraining import of_file

    place = leaderboards / entry.record
    committed = require_record(entry, leaderboards)
    verification.checks_of(leaderboards, place, committed)
    return Claim(of_file(file, committed, data_root, shown=entry.name), place, committed, file=entry.sha256)


@dataclass(frozen=True)
class Verified:
    """What came out when students were trained again, where it was entered, if it was, earlier checks of more students,
    which stay, and the checks that differ and stand, of now or of before."""

    found: tuple[Retrained, ...]
    entered: Path | None
    stays: tuple[verification.Check, ...]
    differing: tuple[verification.Check, ...]


def require_room(claim: Claim, leaderboards: Path) -> None:
    """Raises: RunError where a check, or the picture of a set, could not be written in the leaderboard."""
    if claim.committed is None:
        return
    places = [leaderboards / verification.LOCK, verification.file_of(leaderboards, claim.place)]
    places += [claim.place] if claim.run is not None and claim.committed.sheet is None else []
    require_writable(
        places,
        "What comes out could not be entered, so no student was trained. Check the owner and permissions of the "
        "folder, or check a copy of it with --leaderboards.",
    )


def verify(
    claim: Claim,
    leaderboards: Path,
    options: RunOptions,
    *,
    students: int | None = 1,
    protocols: Sequence[Protocol | str] = (),
    judges: Sequence[str] = (),
    notes: list[str] | None = None,
    heard: Callable[[Retrained], None] = lambda one: None,
) -> Verified:
    """Train students on a set again, and enter what comes out beside the committed record, if there is one.

    They are compared with the committed record, whatever students the run's own folder has: a set that comes out equal
    on another machine verifies the record from there. The file of a published set may keep images with less precision
    than the run's own set; the check names it. A committed record without a picture gets one of the set that was
    checked. `protocols`, by their ids or themselves, and the other arguments are for `runs.retraining.retrain`, where
    recipes among the former need not be known otherwise. `notes` have what was done beside. Each evaluation is told to
    `heard` and then entered, so that none is lost where a later one is stopped.
    Raises: RunError where no evaluation is meant, or what came out could not be entered.
    """
    from ddbench.runs.retraining import retrain

    subject = claim.subject.knowing(one for one in protocols if not isinstance(one, str))
    kept: list[verification.Kept] = []

    def each(one: Retrained) -> None:
        heard(one)
        if (entered := _entered(leaderboards, claim, one)) is not None:
            kept.append(entered)

    found = retrain(subject, options, students=students, protocols=ids_of(protocols), judges=judges, heard=each)
    if kept and claim.run is not None:
        _draw(claim.place, claim.run / RECORD, options.data_root, [] if notes is None else notes)
    where = [one.path for one in kept if one.entered]
    stays = tuple(check for one in kept for check in one.stays)
    differing = tuple(check for one in kept for check in one.differing)
    return Verified(tuple(found), where[-1] if where else None, stays, differing)


def ids_of(protocols: Iterable[Protocol | str]) -> list[str]:
    """The ids of protocols that are meant by their ids, or are there themselves."""
    return [one if isinstance(one, str) else one.id for one in protocols]


def _entered(leaderboards: Path, claim: Claim, one: Retrained) -> verification.Kept | None:
    """What became of a check; None where nothing was trained, or the leaderboard claims nothing that was checked."""
    if claim.committed is None:
        return None
    recorded = {(e.digest, e.backbone): len(e.accuracy) for e in claim.committed.evaluations}
    if recorded.get((one.evaluation.digest, one.evaluation.backbone), 0) <= max(one.students):
        return None
    return verification.keep(leaderboards, claim.place, claim.committed, [one], claim.file)


def _draw(place: Path, run: Path, data_root: Path, notes: list[str]) -> None:
    """Give a committed record that has no picture one of its set, from a run's folder."""
    committed = read_record(place)  # it may have grown while students were trained
    if committed.sheet is not None:
        return
    record, picture = with_sheet(run, committed, data_root, notes)
    if picture is not None:
        write_atomically(sheet_file(place), picture)
        write_record(place, record)
        notes.append(f"{place} had no picture of its set, and has one now.")
