"""Which rows somebody has checked: a student was trained again on the set, and reached what the record says.

The checks lie beside the records, in verified/DATASET/ipcK/, and not in them: what a submitter sends does not say who
has looked at it. A row is verified, imported (others made its set), or claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from ddbench.fields import Architecture, Count, Hex, Line, PlainDict, ProtocolId, RunId, Sha256, Share
from ddbench.files import write_json
from ddbench.runs.record import Part, RunRecord, read_document, readable

if TYPE_CHECKING:
    from ddbench.runs.retraining import Retrained

FOLDER = "verified"
SCHEMA: Literal["ddbench.verification/1"] = "ddbench.verification/1"
VERIFIED, IMPORTED, CLAIMED = "verified", "imported", "claimed"

Key = tuple[str, str, str, str]  # run, sha256 of its set, digest of the protocol, backbone


class Check(Part):
    """Students of one evaluation that were trained a second time. Accuracies are fractions."""

    protocol: ProtocolId
    digest: Hex
    backbone: Architecture
    students: tuple[Count, ...] = Field(min_length=1)
    recorded: tuple[Share, ...]
    again: tuple[Share, ...]
    within: Share = Field(description="How far the means may lie apart; see runs.retraining.tolerance.")
    started: Line
    device: Line
    file: Sha256 | None = Field(
        default=None, description="Of the published file whose set was trained on, if it was not the run's own file."
    )
    git: PlainDict | None
    packages: dict[Line, Line]


class Verification(Part):
    """The checks of one run's record."""

    file_schema: Literal["ddbench.verification/1"] = Field(SCHEMA, alias="schema")
    run: RunId
    synthetic: Sha256
    checks: tuple[Check, ...] = ()
    checksum: Line = ""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def trust(row: Mapping[str, Any]) -> str:
    """What a row of a summary is: verified where every set of it is, else imported or claimed."""
    if row["sets"] and row["verified_sets"] == row["sets"]:
        return VERIFIED
    return IMPORTED if row["kind"] == "imported" else CLAIMED


def file_of(leaderboards: Path, record_place: Path) -> Path:
    """Where the checks of a committed record lie."""
    return leaderboards / FOLDER / record_place.relative_to(leaderboards / "records")


def keep(
    leaderboards: Path, record_place: Path, record: RunRecord, found: Iterable[Retrained], file: str | None = None
) -> Path | None:
    """Enter the checks that agree beside a committed record; returns where, or None where none does.

    A later check of the same evaluation takes the place of an earlier one with no more students. `file` is the hash of
    the published file that was trained on, if it was one.
    """
    path = file_of(leaderboards, record_place)
    checks = {(c.digest, c.backbone): c for c in checks_of(leaderboards, record_place)}
    agreed = [one for one in found if one.agrees]
    for one in agreed:
        key = (one.evaluation.digest, one.evaluation.backbone)
        if key not in checks or len(checks[key].students) <= len(one.students):
            checks[key] = _check(one, file)
    if not agreed:
        return None
    kept = Verification(run=record.run.id, synthetic=record.synthetic.sha256, checks=tuple(checks.values()))
    write_json(path, kept.model_dump(mode="json", by_alias=True, exclude={"checksum"}), sealed=True)
    return path


def checks_of(leaderboards: Path, record_place: Path) -> tuple[Check, ...]:
    """The checks beside a committed record. Raises: RunError where their file is damaged."""
    path = file_of(leaderboards, record_place)
    return _read(path).checks if path.is_file() else ()


def verified(leaderboards: Path, places: Iterable[Path]) -> frozenset[Key]:
    """The evaluations of committed records that were checked, and are still what was checked.

    Raises: RunError for a damaged file, naming it.
    """
    return frozenset(
        (one.run, one.synthetic, check.digest, check.backbone)
        for _, one, check, holds in _checks(leaderboards, places)
        if holds
    )


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
    """Every check of these records, and whether it is one: of what the record says, and within what it allows."""
    checked = [place for place in places if file_of(leaderboards, place).is_file()]
    for place, record in readable(checked):
        path = file_of(leaderboards, place)
        one = _read(path)
        known = {(e.digest, e.backbone): e.accuracy for e in record.evaluations}
        for check in one.checks:
            accuracy = known.get((check.digest, check.backbone), ())
            recorded = tuple(accuracy[k] for k in check.students if k < len(accuracy))
            same = (one.run, one.synthetic, recorded) == (record.run.id, record.synthetic.sha256, check.recorded)
            close = len(check.again) == len(recorded) > 0 and abs(fmean(check.again) - fmean(recorded)) <= check.within
            yield path, one, check, same and close


def _read(path: Path) -> Verification:
    return read_document(path, Verification, SCHEMA, "is no file of checks")


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
        within=one.within,
        started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=one.device,
        file=file,
        git=provenance.git(),
        packages=provenance.packages(),
    )
