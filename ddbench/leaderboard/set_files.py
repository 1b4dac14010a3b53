"""The files of published sets beside the records: what they may take together, and whether the index is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ddbench.errors import DataError, RunError, mistyped
from ddbench.files import sha256_of
from ddbench.foreign.meant import Meant, Tell, is_run, meant
from ddbench.foreign.published_sets import FOLDER, INDEX, SetEntry, read_index
from ddbench.runs.record import RunRecord, readable
from ddbench.text import size

# Of all published sets of a leaderboard together, because they travel with every copy of it.
MOST_BYTES = 25_000_000


def wrong_sets(leaderboards: Path) -> list[str]:
    """A sentence for every published set that is not what the index says, is of no record, or lies there unnamed.

    Raises: DataError for a damaged index, RunError for a damaged record.
    """
    folder = leaderboards / FOLDER.name
    there = sorted(folder.glob("*.safetensors"))
    entries = read_index(str(folder), Path()).sets if (folder / INDEX).is_file() else ()
    wrong = []
    for entry in entries:
        path = folder / entry.file
        if not path.is_file():
            wrong.append(f"sets/{entry.file} is missing")
        elif sha256_of(path) != entry.sha256 or path.stat().st_size != entry.bytes:
            wrong.append(f"sets/{entry.file} is not the file that the index names")
        if record_of(entry, leaderboards) is None:
            wrong.append(f"{entry.name} is of no record: {entry.record} is not there, or of another set")
    named = {entry.file for entry in entries}
    wrong += [f"sets/{path.name} is in no index" for path in there if path.name not in named]
    total = sum(path.stat().st_size for path in there)
    if total > MOST_BYTES:
        wrong.append(f"the published sets take {size(total)}, and {size(MOST_BYTES)} is the most")
    return wrong


def meant_on(
    leaderboards: Path,
    ref: str,
    data_root: Path,
    tell: Tell,
    *,
    takes: Callable[[Path], bool] = is_run,
    what: str = "run",
) -> Meant:
    """What a word means where published sets are those of a leaderboard: `foreign.meant.meant` with its index."""

    def place() -> str:
        folder = leaderboards / FOLDER.name
        if not (folder / INDEX).is_file():
            raise mistyped(
                DataError(
                    f"{leaderboards} has no published sets: there is no {folder / INDEX}. Name what is "
                    "on disk, or another leaderboard with --leaderboards."
                )
            )
        return str(folder)

    return meant(ref, data_root, tell, takes=takes, what=what, place=place)


def record_of(entry: SetEntry, leaderboards: Path) -> RunRecord | None:
    """The record of a published set; None where it is not there, damaged (which the board says), of another run or set,
    or not where records lie."""
    parts = PurePosixPath(entry.record).parts
    if parts[:1] != ("records",) or ".." in parts:
        return None
    found = next((record for _, record in readable([leaderboards / entry.record])), None)
    same = found is not None and (found.run.id, found.synthetic.sha256) == (entry.run, entry.set)
    return found if same else None


def require_record(entry: SetEntry, leaderboards: Path) -> RunRecord:
    """The record of a published set, as `record_of`. Raises: RunError where there is none."""
    found = record_of(entry, leaderboards)
    if found is None:
        raise RunError(
            f"{entry.name} is of no record: {leaderboards / entry.record} is not there, damaged, of another run or "
            "set, or not where records lie. Take the folder from its source again."
        )
    return found
