"""What can go from a runs folder: whole runs, what finished runs no longer need, artefacts that no run needs.

Everything is planned first, with its path and size, so that it can be named; then it is removed piece by piece. Links
are never followed, and nothing outside the runs folder is touched.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddbench.artifacts import COST, MARK
from ddbench.errors import RunError
from ddbench.files import disk_is_full, read_json
from ddbench.runs import rundir
from ddbench.runs.listing import Listed, artifacts_of, list_runs, listed, usage
from ddbench.text import duration, number_of, some_of

ARTIFACTS = "artifacts"
# Judges read these, and a network that is trained again is not quite the same on every machine.
KEPT_KINDS = ("trained-network",)
# What has not grown for so long belongs to a process that is gone: files are written in one go.
IDLE_SECONDS = 3600.0

_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Piece:
    """A file or a folder that would go. `what` says what it is, `run` the folder of the run that it belongs to."""

    path: Path
    what: str
    bytes: int
    run: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The document that commands print."""
        return {"path": str(self.path), "what": self.what, "bytes": self.bytes}


@dataclass(frozen=True)
class Kept:
    """What stays although somebody may expect it to go. `why` says so, and what would take it away."""

    what: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Removal:
    """What would go, and what stays."""

    pieces: tuple[Piece, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def bytes(self) -> int:
        """What would be free afterwards."""
        return _sum(self.pieces)


def plan_deletion(root: Path, runs: Sequence[Listed]) -> Removal:
    """Whole runs. Raises: RunError for a run that a process works on, and for one outside the runs folder."""
    for run in runs:
        if run.state == "running":
            raise RunError(
                f"run {run.id} is being worked on {run.why}, so it is not deleted. Wait for it, or stop that process."
            )
        _refuse_outside(run.folder, root)
    return Removal(tuple(Piece(run.folder, f"{run.state} run", run.bytes, run.folder) for run in runs))


def delete(root: Path, plan: Removal) -> Iterator[Piece | str]:
    """Delete whole runs, one after another: yields each that is gone, or a sentence on one that is not."""
    for piece in plan.pieces:
        try:
            _refuse_outside(piece.path, root)
            with rundir.alone(piece.path, piece.path.name, named=False), _explained():
                rundir.remove(piece.path)
            _prune(piece.path, root)
            yield piece
        except RunError as error:
            yield str(error)


def plan_cleaning(root: Path, *, snapshots: bool = False, artifacts: bool = False) -> Removal:
    """What runs that are condensed no longer need, half-written files, and on demand snapshots and artefacts.

    `snapshots` takes those of condensed runs too, after which no learning curve can be drawn of them. `artifacts` takes
    what no unfinished run needs, but for whitenings and the networks that judges read.
    """
    runs = list_runs(root)
    pieces: list[Piece] = []
    kept: list[Kept] = []
    series: list[Piece] = []
    for run in runs:
        if run.state == "running" or not _is_inside(run.folder, root):
            continue
        pieces += _half_written(run.folder, run.folder)
        if run.condensed:
            pieces += _folder(run, "checkpoints", "checkpoints of a finished run")
            series += _folder(run, "snapshots", "snapshots of a finished run")
    if snapshots:
        pieces += series
    elif series:
        kept.append(
            Kept("snapshots of finished runs", _sum(series), "`--curve` may judge them yet; --snapshots takes them")
        )
    store = root / ARTIFACTS
    if store.is_dir() and _is_inside(store, root):
        pieces += _half_written(store, None, IDLE_SECONDS)
        free, others = _artifacts(store, runs)
        if artifacts:
            pieces += free
            kept += others
        elif free:
            kept.append(
                Kept("artefacts that no unfinished run needs", _sum(free), "they took time; --artifacts takes them")
            )
    return Removal(tuple(pieces), tuple(kept))


def clean(root: Path, plan: Removal) -> Iterator[Piece | str]:
    """Remove what `plan_cleaning` has found; looks again before each piece. Yields as `delete` does."""
    for piece in plan.pieces:
        try:
            if _is_inside(piece.path, root):
                _clean(piece)
                yield piece
        except RunError as error:
            yield str(error)


def _clean(piece: Piece) -> None:
    """Remove a piece, with all locks that say that somebody uses it. Raises: RunError where somebody does."""
    if piece.run is not None:
        with rundir.alone(piece.run, piece.run.name, named=False), _explained():
            run = listed(piece.run)
            # Somebody may have begun it anew since it was planned.
            if _is_half_written(piece.path) or (run is not None and run.condensed):
                _remove(piece.path)
    elif piece.path.is_dir():
        with _unused(piece.path), _explained():
            _remove(piece.path)
    else:
        with _explained():
            _remove(piece.path)


def _folder(run: Listed, name: str, what: str) -> list[Piece]:
    path = run.folder / name
    if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
        return []
    return [Piece(path, what, usage(path)[0], run.folder)]


def _half_written(folder: Path, run: Path | None, idle_seconds: float = 0.0) -> list[Piece]:
    found = []
    spec_seconds = max(idle_seconds, rundir.SPEC_SECONDS)
    for path in sorted(folder.rglob(".*.tmp")):
        with contextlib.suppress(FileNotFoundError):
            about = path.lstat()
            # Whoever opens a run writes its spec without a lock.
            least = spec_seconds if path.name.startswith(f".{rundir.SPEC}.") else idle_seconds
            if path.is_file() and not path.is_symlink() and time.time() - about.st_mtime >= least:
                found.append(Piece(path, "half-written file of a process that was killed", about.st_size, run))
    return found


def _is_half_written(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _artifacts(store: Path, runs: Sequence[Listed]) -> tuple[list[Piece], list[Kept]]:
    """The artefacts that no unfinished run needs, and those that stay."""
    there = [
        folder
        for kind in _folders(store)
        for folder in _folders(kind)
        if _KEY.fullmatch(folder.name) and kind.name not in KEPT_KINDS
    ]
    readers: Counter[str] = Counter()
    needed: set[str] = set()
    silent = []
    for run in runs:
        unfinished = run.state == "running" or not run.condensed
        read = artifacts_of(run)
        if unfinished and read is None:
            silent.append(run.id or str(run.folder))
        keys = {str(entry.get("key")) for entry in read or ()}
        if unfinished:
            needed |= keys
        else:
            readers.update(keys)
    stay = [folder for folder in there if silent or folder.name in needed]
    free = []
    for folder in there:
        if folder in stay:
            continue
        count = readers[folder.name]
        by = f"read by {number_of(count, 'finished run')}" if count else "read by no run that is here"
        free.append(Piece(folder, f"{folder.parent.name}, {by}{_took(folder)}", usage(folder)[0]))
    if not stay:
        return free, []
    why = "unfinished runs read them"
    if silent:
        shown = some_of(silent, 5)
        why = f"unfinished runs do not say yet which they read ({shown}): finish or delete those first"
    return free, [Kept("artefacts", sum(usage(folder)[0] for folder in stay), why)]


def _took(folder: Path) -> str:
    try:
        return f", {duration(float(read_json(folder / COST)['seconds']))} to make"
    except (RunError, KeyError, TypeError, ValueError):
        return ""


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[None]:
    """All locks of an artefact. Raises: RunError where a process holds one, because it makes the artefact."""
    with contextlib.ExitStack() as held:
        for path in sorted({folder / "lock", *folder.glob(".*.lock")}):
            try:
                held.enter_context(FileLock(path, blocking=False))
            except Timeout:
                raise RunError(f"{folder} is being made by another process, so it is kept.") from None
            except OSError as error:
                raise RunError(f"{path} cannot be locked: {error.strerror}.") from error
        yield


def _remove(path: Path) -> None:
    """A file or a folder. What makes the rest of a folder count as whole goes first, what says its price last."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    entries = sorted(path.iterdir(), key=lambda entry: (entry.name != MARK, entry.name == COST, entry.name))
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    # Of a network disk a lock lives on, by another name, while it is open.
    with contextlib.suppress(OSError):
        path.rmdir()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if disk_is_full(error) else error.strerror
        raise RunError(f"{error.filename} could not be removed: {why}. Check its owner and permissions.") from error


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside the runs folder and reached without a link."""
    return not path.is_symlink() and path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()


def _refuse_outside(path: Path, root: Path) -> None:
    if path.is_symlink():
        raise RunError(
            f"{path} is a symbolic link to {path.resolve()}, and links are not followed when something is deleted. "
            "Remove the link yourself."
        )
    if not _is_inside(path, root):
        raise RunError(
            f"{path} is not inside the runs folder {root}, and nothing outside it is deleted. Say its own runs folder "
            "with --runs."
        )


def _prune(path: Path, root: Path) -> None:
    """Remove the folders above a run that hold nothing any more."""
    for folder in path.resolve().parents:
        if folder == root.resolve():
            return
        try:
            folder.rmdir()
        except OSError:
            return


def _sum(pieces: Iterable[Piece]) -> int:
    return sum(piece.bytes for piece in pieces)
