"""Which rows somebody has checked: students were trained again on the set, and reached what the record says, or not.

The checks lie beside the records, in verified/DATASET/ipcK/, and not in them: what a submitter sends does not say who
has looked at it. A check is of all accuracies of an evaluation as the record had them: one that is changed later, of
whichever student, is not what was checked.

The checks of an evaluation count together, in the order in which they were entered. It is verified where a check agrees
and none differs. A check that differs stands, whatever agreed before, until a later one of more students agrees: one
honest check in a hundred differs by chance, and the same students once more would be choosing. A row is verified where
every set of it is; it differs where one has a check that differs and stands; else it is imported (others made its set)
or claimed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from ddbench.errors import RunError
from ddbench.fields import Architecture, Count, Hex, Line, PlainDict, ProtocolId, RunId, Sha256, Share
from ddbench.files import locked, write_json
from ddbench.runs.agreement import agrees, compared, tolerance
from ddbench.runs.record import EvaluationPart, Part, RunRecord, read_document, read_record, readable

if TYPE_CHECKING:
    from ddbench.runs.retraining import Retrained

FOLDER = "verified"
LOCK = ".lock"  # of a leaderboard's folder, for what is read, added to and written again
SCHEMA: Literal["ddbench.verification/1"] = "ddbench.verification/1"
VERIFIED, DIFFERS, IMPORTED, CLAIMED = "verified", "differs", "imported", "claimed"

Key = tuple[str, str, str, str]  # run, sha256 of its set, digest of the protocol, backbone


def key_of(record: RunRecord, part: EvaluationPart) -> Key:
    """What the checks of an evaluation are found by."""
    return record.run.id, record.synthetic.sha256, part.digest, part.backbone


class Check(Part):
    """Students of one evaluation that were trained a second time. Accuracies are fractions."""

    protocol: ProtocolId
    digest: Hex
    backbone: Architecture
    students: tuple[Count, ...] = Field(min_length=1)
    recorded: tuple[Share, ...]
    again: tuple[Share, ...]
    claimed: tuple[Share, ...] = Field(
        default=(),
        description="All accuracies of the record then, of which some were checked. Not in earlier files.",
    )
    within: Share = Field(description="How far the means may lie apart; see runs.agreement.tolerance.")
    started: Line
    device: Line
    file: Sha256 | None = Field(
        default=None, description="Of the published file whose set was trained on, if it was not the run's own file."
    )
    git: PlainDict | None
    packages: dict[Line, Line]

    @property
    def agrees(self) -> bool:
        """Whether the second training says what the record says."""
        return agrees(self.recorded, self.again, self.within)

    def __str__(self) -> str:
        return compared(self.recorded, self.again, self.within)


class Verification(Part):
    """The checks of one run's record, of each evaluation in the order in which they were entered."""

    file_schema: Literal["ddbench.verification/1"] = Field(SCHEMA, alias="schema")
    run: RunId
    synthetic: Sha256
    checks: tuple[Check, ...] = ()
    checksum: Line = ""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


@dataclass(frozen=True)
class Standing:
    """What the checks of one evaluation say together; `checks` in the order in which they were entered."""

    checks: tuple[Check, ...]

    @property
    def differing(self) -> tuple[Check, ...]:
        """The checks that differ, and that no later one of more students has put right."""
        return tuple(
            check
            for place, check in enumerate(self.checks)
            if not check.agrees
            and not any(one.agrees and len(one.students) > len(check.students) for one in self.checks[place + 1 :])
        )

    @property
    def verified(self) -> bool:
        """Whether a check agrees, and none that differs stands."""
        return any(check.agrees for check in self.checks) and not self.differing

    @property
    def students(self) -> int:
        """How many students were trained again in the largest check that agrees."""
        return max((len(check.students) for check in self.checks if check.agrees), default=0)


@dataclass(frozen=True)
class Kept:
    """Where checks of a record are, whether something was entered there, earlier checks, of more students, that stay in
    the place of what came out now, and of the evaluations that were checked now the checks that differ and stand."""

    path: Path
    stays: tuple[Check, ...]
    entered: bool
    differing: tuple[Check, ...] = ()


def trust(row: Mapping[str, Any]) -> str:
    """What a row of a summary is: differs where a check of a set does, verified where every set is, else imported or
    claimed."""
    if row["differs"]:
        return DIFFERS
    if row["sets"] and row["verified_sets"] == row["sets"]:
        return VERIFIED
    return IMPORTED if row["kind"] == "imported" else CLAIMED


def file_of(leaderboards: Path, record_place: Path) -> Path:
    """Where the checks of a committed record lie."""
    return leaderboards / FOLDER / record_place.relative_to(leaderboards / "records")


def keep(
    leaderboards: Path, record_place: Path, record: RunRecord, found: Iterable[Retrained], file: str | None = None
) -> Kept | None:
    """Enter checks beside a committed record, those that differ as well; None where nothing could be trained.

    Of what agrees, and of what differs, a later check takes the place of earlier ones of the same evaluation with no
    more students. It is not entered where it adds nothing: where one of more students has come out alike, and none
    otherwise since. `file` is the hash of the published file that was trained on, if it was one.
    Raises: RunError where the record at its place has become another one than `record` while students were trained, or
    the checks beside it are not of it.
    """
    trained = [one for one in found if one.accuracy]
    if not trained:
        return None
    path = file_of(leaderboards, record_place)
    with locked(leaderboards / LOCK, "--leaderboards"):  # two who check one record at once would lose a check
        now = read_record(record_place)
        checks, entered = list(checks_of(leaderboards, record_place, now)), False
        stays: list[Check] = []
        for one in trained:
            check = _check(one, file)
            if now.synthetic.sha256 != record.synthetic.sha256 or not _fits(check, now):
                raise RunError(
                    f"{record_place} was changed while students were trained, and does not say any more what was "
                    "checked, so nothing was entered. Give the same command again."
                )
            if (larger := _larger(check, checks)) is not None:
                stays.append(larger)
            else:
                checks, entered = _with(check, checks), True
        if entered:
            kept = Verification(run=now.run.id, synthetic=now.synthetic.sha256, checks=tuple(checks))
            write_json(path, kept.model_dump(mode="json", by_alias=True, exclude={"checksum"}), sealed=True)
    of_now = {(one.evaluation.digest, one.evaluation.backbone) for one in trained}
    stand = [check for key, one in _together(checks).items() if key in of_now for check in one.differing]
    return Kept(path, tuple(stays), entered, tuple(stand))


def _larger(check: Check, checks: Iterable[Check]) -> Check | None:
    """A check of more students that has come out as this one does, and that no check has contradicted since."""
    since: list[Check] = []
    for one in checks:
        if _same_evaluation(one, check):
            since = [*since, one] if one.agrees == check.agrees else []
    return next((one for one in since if len(one.students) > len(check.students)), None)


def _with(check: Check, checks: Iterable[Check]) -> list[Check]:
    """The checks with one more, in the place of those that came out alike with no more students."""
    stay = [
        one
        for one in checks
        if not _same_evaluation(one, check) or one.agrees != check.agrees or len(one.students) > len(check.students)
    ]
    return [*stay, check]


def _same_evaluation(one: Check, other: Check) -> bool:
    return (one.digest, one.backbone) == (other.digest, other.backbone)


def _together(checks: Iterable[Check]) -> dict[tuple[str, str], Standing]:
    """The checks of each evaluation, by the protocol's digest and the backbone."""
    found: dict[tuple[str, str], tuple[Check, ...]] = {}
    for check in checks:
        key = (check.digest, check.backbone)
        found[key] = (*found.get(key, ()), check)
    return {key: Standing(of_one) for key, of_one in found.items()}


def checks_of(leaderboards: Path, record_place: Path, record: RunRecord) -> tuple[Check, ...]:
    """The checks beside a committed record.

    Raises: RunError where their file is damaged, or is of something else than the record says: nothing can be added to
    it then, and it is not thrown away, because it may be the record that was changed.
    """
    path = file_of(leaderboards, record_place)
    if not _is_there(path):
        return ()
    one = _read(path)
    for check in one.checks:
        if not _holds(one, check, record):
            raise RunError(
                f"{path} has a check of {check.protocol} with {check.backbone} that is not of what {record_place} "
                "says: one of the two was changed since. Find out which; where it is right that the record is another, "
                "remove the file of checks in a commit that says why."
            )
    return one.checks


def standings(leaderboards: Path, places: Iterable[Path]) -> dict[Key, Standing]:
    """The evaluations of committed records that were checked, and are still what was checked, with what was found.

    Raises: RunError for a damaged file, naming it.
    """
    found: dict[tuple[str, str], list[Check]] = {}
    for _, one, check, holds in _checks(leaderboards, places):
        if holds:
            found.setdefault((one.run, one.synthetic), []).append(check)
    return {
        (*of_run, *evaluation): standing
        for of_run, checks in found.items()
        for evaluation, standing in _together(checks).items()
    }


def out_of_date(leaderboards: Path, places: Sequence[Path]) -> list[str]:
    """A sentence for each file of checks whose record is gone, or says something else than what was checked."""
    known = {file_of(leaderboards, place) for place in places}
    found = [path for path in sorted((leaderboards / FOLDER).rglob("*.json")) if path not in known]
    gone = [f"{path.relative_to(leaderboards)} belongs to no record" for path in found]
    return gone + [
        f"{path.relative_to(leaderboards)} checks another {check.protocol} with {check.backbone} than its record has"
        for path, _, check, holds in _checks(leaderboards, places)
        if not holds
    ]


def _checks(leaderboards: Path, places: Iterable[Path]) -> Iterator[tuple[Path, Verification, Check, bool]]:
    """Every check of these records, and whether it is one, of what the record says."""
    checked = [place for place in places if _is_there(file_of(leaderboards, place))]
    for place, record in readable(checked):
        path = file_of(leaderboards, place)
        one = _read(path)
        for check in one.checks:
            yield path, one, check, _holds(one, check, record)


def _holds(one: Verification, check: Check, record: RunRecord) -> bool:
    """Whether a check is of what a record says."""
    return (one.run, one.synthetic) == (record.run.id, record.synthetic.sha256) and _fits(check, record)


def _fits(check: Check, record: RunRecord) -> bool:
    """Whether a check is of accuracies of a record, none of which was changed since, and allows what these allow."""
    known = {(e.digest, e.backbone): e for e in record.evaluations}
    part = known.get((check.digest, check.backbone))
    if part is None or part.protocol != check.protocol:
        return False
    accuracy, count = part.accuracy, len(check.students)
    recorded = tuple(accuracy[k] for k in check.students if k < len(accuracy))
    if (recorded, len(set(check.students)), len(check.again)) != (check.recorded, count, count):
        return False
    if accuracy[: len(check.claimed)] != check.claimed:
        return False
    # Where an earlier file does not say what the record was, it has some students more today, or none.
    before = [check.claimed] if check.claimed else [accuracy[:n] for n in range(count, len(accuracy) + 1)]
    return any(math.isclose(tolerance(some, count, record.data.test), check.within, rel_tol=1e-6) for some in before)


def _is_there(path: Path) -> bool:
    """Whether a file of checks is there. Raises: RunError where its name is that of something else."""
    if not path.is_file() and os.path.lexists(path):
        raise RunError(f"{path} should be a file of checks, and is none. Move it away.")
    return path.is_file()


def _read(path: Path) -> Verification:
    return read_document(path, Verification, SCHEMA, "is no file of checks", sealed=True)


def _check(one: Retrained, file: str | None) -> Check:
    from ddbench.runs import provenance

    part = one.evaluation
    return Check(
        protocol=part.protocol,
        digest=part.digest,
        backbone=part.backbone,
        students=one.students,
        recorded=one.recorded,
        again=one.accuracy,
        claimed=part.accuracy,
        within=one.within,
        started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=one.device,
        file=file,
        git=provenance.git(),
        packages=provenance.packages(),
    )
