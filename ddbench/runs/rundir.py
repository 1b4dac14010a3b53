"""The folder of a run: its paths, its lock, and whose it is."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddbench.errors import RunError
from ddbench.evaluation.protocol import Protocol
from ddbench.files import disk_is_full, read_json, require_locks, sha256_of, sweep, write_json
from ddbench.runs.record import read_record
from ddbench.runs.runspec import RunSpec
from ddbench.text import safe_name

logger = logging.getLogger(__name__)

SPEC = "spec.json"
RECORD = "record.json"
SET = "synthetic.safetensors"
SHEET = "sheet.webp"
LOG = "log.jsonl"
ATTEMPTS = "attempts.json"
COST = "cost.json"
# What a folder may hold before it belongs to a run: the locks, why it failed before it began, and files of a process
# killed while writing its spec.
LOCKS = (".lock", "lock")
FAILURE = "failure.json"
EVALUATIONS = "evaluations"
# What is removed before all else: without its record a run is unfinished, without its set and checkpoints not begun. A
# set without the rest, such as its costs, would get a record that lacks them.
_FIRST = (RECORD, SET, "checkpoints")
# Nobody takes so long to write a spec.
SPEC_SECONDS = 60.0
HOLDER_SECONDS = 0.2


@dataclass(frozen=True)
class RunDir:
    """A run's folder. `spec` is what is asked of it now; its protocols and students may differ from spec.json."""

    path: Path
    spec: RunSpec

    @classmethod
    def open(cls, root: Path, spec: RunSpec) -> RunDir:
        """The folder of a spec under the runs folder; made, with spec.json as its first file, if it is not there.

        Raises: RunError if the folder belongs to another run or to somebody else, or cannot be written.
        """
        path = root / spec.folder
        try:
            there = sorted(
                p.name for p in path.iterdir() if p.name not in (*LOCKS, FAILURE) and not p.name.endswith(".tmp")
            )
        except (FileNotFoundError, NotADirectoryError):
            there = []
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}. Check the folder's permissions.") from None
        if SPEC in there:
            found = cls.at(path).spec
            if found.identity != spec.identity:
                differ = [k for k, v in spec.identity.items() if found.identity.get(k) != v]
                raise RunError(
                    f"{path} belongs to another run: its {', '.join(differ)} differ from what is asked. "
                    "Move that folder away, or use another --runs folder."
                )
        elif there:
            raise RunError(
                f"{path} holds {there[0]} and no {SPEC}, so it is not the folder of a run. Move it away, or use "
                "another --runs folder."
            )
        else:
            write_json(path / SPEC, spec.to_json(), sealed=True)
        return cls(path, spec)

    @classmethod
    def at(cls, path: Path) -> RunDir:
        """The run in an existing folder. Raises: RunError if there is none."""
        if not (path / SPEC).is_file():
            raise RunError(f"{path} is not the folder of a run: it has no {SPEC}.")
        try:
            return cls(path, RunSpec.from_json(read_json(path / SPEC)))
        except RunError as error:
            raise RunError(f"{path / SPEC}: {error} Move the folder away and run again.") from None

    @staticmethod
    def find(root: Path) -> Iterator[RunDir]:
        """All runs under a runs folder, by path; damaged ones are left out with a warning."""
        for spec in sorted(root.glob(f"*/*/*/*/{SPEC}")):
            try:
                yield RunDir.at(spec.parent)
            except RunError as error:
                logger.warning("%s", error)

    @property
    def root(self) -> Path:
        """The runs folder, where the artefacts are; for a run that was moved, the folder above it."""
        path, depth = self.path.resolve(), len(self.spec.folder.parts)
        return path.parents[depth - 1] if path.parts[-depth:] == self.spec.folder.parts else path.parent

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def synthetic(self) -> Path:
        return self.path / SET

    @property
    def about(self) -> Path:
        return self.path / "synthetic.json"

    @property
    def preview(self) -> Path:
        return self.path / "preview.png"

    @property
    def sheet(self) -> Path:
        """A small picture of the set, which the record names."""
        return self.path / SHEET

    @property
    def measures(self) -> Path:
        """What was measured of the set beside the accuracy of students."""
        return self.path / "measures.json"

    @property
    def record(self) -> Path:
        return self.path / RECORD

    @property
    def attempts(self) -> Path:
        return self.path / ATTEMPTS

    @property
    def cost(self) -> Path:
        return self.path / COST

    @property
    def evaluations(self) -> Path:
        return self.path / EVALUATIONS

    def evaluation(self, protocol: Protocol, backbone: str) -> Path:
        """Accuracies of students of one backbone under one protocol."""
        return evaluation_file(self.path, protocol.id, backbone)

    def curve(self, protocol: Protocol, backbone: str) -> Path:
        """Where the learning curve of that evaluation is."""
        return self.evaluations / protocol.id / f"{safe_name(backbone)}.curve.json"

    def snapshot(self, step: int) -> Path:
        """The set as it was after a step."""
        return self.snapshots / f"step_{step:06d}.safetensors"

    def set_sha256(self) -> str:
        """The sha256 of the set's file, which is that of the record; of the description where there is no record yet.

        Raises: RunError if the set has been damaged or replaced since, or cannot be read.
        """
        try:
            found = sha256_of(self.synthetic)
        except OSError as error:
            raise RunError(f"{self.synthetic} cannot be read: {error.strerror or error}.") from None
        for path, known in ((self.record, self._recorded), (self.about, self._described)):
            expected = known() if path.is_file() else None
            if expected is None:
                continue
            if expected != found:
                again = (
                    "Remove the folder and import the set again"
                    if self.spec.imported
                    else "The run's command with --fresh starts the run over"
                )
                raise RunError(
                    f"{self.synthetic} is not the set of this run: it has sha256 {found[:16]}…, and {path.name} says "
                    f"{expected[:16]}…. It was damaged or replaced, so nothing is done with it. {again}; or put the "
                    "right file back."
                )
            break
        return found

    def describes_its_set(self) -> bool:
        """Whether synthetic.json is there and about the set that is there."""
        return self.about.is_file() and self._described() == sha256_of(self.synthetic)

    def _recorded(self) -> str | None:
        try:
            return read_record(self.record).synthetic.sha256
        except RunError:
            return None  # a damaged record is made again

    def _described(self) -> str | None:
        try:
            value = read_json(self.about)
        except RunError:
            return None
        sha256 = value.get("sha256") if isinstance(value, dict) else None
        return sha256 if isinstance(sha256, str) else None

    def snapshot_sums(self) -> dict[str, str]:
        """The sha256 of every snapshot, by its file's name; of those of earlier versions nobody knows it."""
        with contextlib.suppress(RunError):
            value = read_json(self._sums)
            if isinstance(value, dict):
                return {name: known for name, known in value.items() if isinstance(known, str)}
        return {}

    def keep_snapshot_sum(self, path: Path) -> None:
        """Remember what has been saved as a snapshot."""
        write_json(self._sums, {**self.snapshot_sums(), path.name: sha256_of(path)}, sealed=True)

    @property
    def _sums(self) -> Path:
        return self.snapshots / "sha256.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Work on the run alone.

        The lock is the system's, so that none survives its process; the file `lock` says who holds it.
        Raises: RunError if another process works on the run.
        """
        with alone(self.path, self.spec.id):
            if not (self.path / SPEC).is_file():
                raise RunError(f"{self.path} was deleted by another process just now. Run the same command again.")
            yield

    @staticmethod
    def holder(path: Path) -> str | None:
        """Who works on the run in a folder, in words; None where nobody does. Waits for nobody, changes nothing."""
        holder = path / "lock"
        if not holder.is_file():
            return None
        lock = FileLock(path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return _who(holder)
        except OSError:
            return None
        lock.release()
        return None

    def clear(self) -> None:
        """Remove everything but the spec and the locks, so that the run starts over. Only under the lock."""
        _empty(self.path)
        write_json(self.path / SPEC, self.spec.to_json(), sealed=True)


def evaluation_file(path: Path, protocol: str, backbone: str) -> Path:
    """Where a run keeps the accuracies of students of one backbone under the protocol of this id."""
    return path / EVALUATIONS / protocol / f"{safe_name(backbone)}.json"


@contextlib.contextmanager
def alone(path: Path, run: str, *, named: bool = True) -> Iterator[None]:
    """The lock of the folder of a run, which may be damaged; `run` is what an error calls it. See `RunDir.lock`.

    Not `named`, it writes nothing: what frees a disk that is full needs no space.
    """
    require_locks(path / ".lock")
    # Not at once: `holder` takes the lock for a moment where a killed process has left its name.
    lock = FileLock(path / ".lock", timeout=HOLDER_SECONDS, poll_interval=HOLDER_SECONDS / 4)
    holder = path / "lock"
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"run {run} is being worked on by {_who(holder)}. Wait for it, or stop that process.") from None
    except OSError as error:
        why = "the disk is full" if disk_is_full(error) else error.strerror
        raise RunError(f"{path} cannot be locked: {why}.") from error
    try:
        _sweep(path)
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if named:
            write_json(holder, {"host": socket.gethostname(), "pid": os.getpid(), "started": started})
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def remove(path: Path) -> None:
    """Remove the folder of a run, which may be damaged. Links in it are removed and not followed. Only under the lock.

    Wherever this is interrupted, what is left counts as less than it is, and can be removed or run again.
    """
    _empty(path)
    for name in (SPEC, *reversed(LOCKS)):
        (path / name).unlink(missing_ok=True)
    # Of a network disk the lock lives on, by another name, while it is open; and somebody may begin the run again.
    with contextlib.suppress(OSError):
        path.rmdir()


def _empty(path: Path) -> None:
    there = {entry.name: entry for entry in path.iterdir() if entry.name not in (SPEC, *LOCKS)}
    for name in [name for name in _FIRST if name in there] + sorted(there.keys() - set(_FIRST)):
        if there[name].is_dir() and not there[name].is_symlink():
            shutil.rmtree(there[name])
        else:
            there[name].unlink()


def _sweep(path: Path) -> None:
    """Remove what killed processes were writing."""
    sweep(path, spare=SPEC)
    # Whoever opens the folder at this moment writes the spec, without a lock.
    sweep(path, SPEC, idle_seconds=SPEC_SECONDS)


def _who(holder: Path) -> str:
    try:
        value: Any = json.loads(holder.read_text())
        return f"pid {value['pid']} on {value['host']} since {value['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
