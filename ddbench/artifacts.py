"""Expensive things that runs share, made once and named by what determines them: expert trajectories, networks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ddbench.errors import ArtifactError, RunError
from ddbench.files import locked, not_regular, read_json, sha256_of, sweep, sweep_dead, write_json

if TYPE_CHECKING:
    from ddbench.problem import Problem

logger = logging.getLogger(__name__)

R = TypeVar("R")
MARK = "artifact.json"
COST = "cost.json"
TELL_SECONDS = 1.0
LEFT_SECONDS = 3600.0  # nothing takes longer to write


def outside_identity(default: Any = dataclasses.MISSING) -> Any:
    """A field that does not say which artefact it is, but how much of it is wanted, since a pool of experts grows in
    place; or what whoever asks for it calls its options."""
    return field(default=default, metadata={"identity": False})


@dataclass(frozen=True, kw_only=True)
class Artifact(ABC, Generic[R]):
    """The values that determine an expensive thing. Subclasses are frozen dataclasses with plain fields.

    `shared` says that several processes may build at the same time, because `build` claims what it makes part by part.
    """

    kind: ClassVar[str]
    shared: ClassVar[bool] = False

    @abstractmethod
    def build(self, folder: Path, problem: Problem) -> None:
        """Make what is still missing in `folder`. Each file is written atomically, so that a killed build goes on."""

    @abstractmethod
    def open(self, folder: Path) -> R:
        """A reader for a complete folder."""

    def missing(self, folder: Path) -> str:
        """What is not there yet, in words, or nothing. Pools that grow say how much more is wanted."""
        return "" if (folder / MARK).is_file() else "everything"

    @property
    def grows(self) -> bool:
        """Whether more can be added to it later, so that its files look after themselves."""
        return self.shared or any(not f.metadata.get("identity", True) for f in dataclasses.fields(self))

    def damage(self, folder: Path) -> str:
        """What is wrong with a complete folder, in words, or nothing: its files are no longer those that were built.

        Large files are hashed once in a process. Earlier versions kept no checksums. A pool that grows has
        its own.
        """
        if self.grows:
            return ""
        try:
            mark = read_json(folder / MARK)
            self.seconds(folder)
        except (RunError, ArtifactError) as error:
            return str(error).partition(". ")[0].rstrip(".")
        files = mark.get("files", {}) if isinstance(mark, dict) else None
        if not isinstance(files, dict):
            return f"{MARK} was not written by ddbench"
        for name, known in files.items():
            path = folder / str(name)
            if not_regular(path):
                return f"{name} is missing"
            if sha256_of(path) != known:
                return f"{name} is not what was built"
        return ""

    def discard(self, folder: Path) -> None:
        """Remove what `damage` complains of, so that `missing` says what is to be made again. Only under the lock."""
        # The mark first: without it the folder counts as unfinished, wherever this is interrupted.
        (folder / MARK).unlink(missing_ok=True)
        for path in _files(folder):
            path.unlink(missing_ok=True)

    def seconds(self, folder: Path) -> float:
        """What it cost to make the part that this run reads."""
        cost = folder / COST
        return seconds_in(cost) if cost.is_file() else 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that name it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("identity", True)}

    @property
    def key(self) -> str:
        """16 hex digits over kind and identity."""
        text = json.dumps([self.kind, self.identity], sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=8).hexdigest()


Tell = Callable[[str, float, float], None]
"""Told now and then how far a build is: what it makes, how much of it is done, and how much there is to do."""


def seconds_in(path: Path) -> float:
    """What something cost, from the file that says so. Raises: ArtifactError where it does not say so any more."""
    try:
        seconds = read_json(path)["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError("no number of seconds")
        return float(seconds)
    except (RunError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{path} is damaged: it should say what was spent on this artefact, which every record names. Remove the "
            f"folder {path.parent} and run again, which makes it anew."
        ) from None


def _files(folder: Path) -> list[Path]:
    """What a build has written: all but locks and what is being written."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return [path for path in found if path.name != "lock" and not path.name.startswith(".")]


def made(folder: Path) -> None:
    """Make a folder. Raises: ArtifactError where something else is in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArtifactError(
            f"{folder} cannot be made: a file has the name of one of its folders. Move it elsewhere and run again."
        ) from error


@dataclass
class ArtifactCache:
    """A folder of artefacts, `root/<kind>/<key>`, and a list of those that this process used."""

    root: Path
    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    tell: Tell | None = None
    _tidied: bool = field(default=False, repr=False)

    def get(self, artifact: Artifact[R], problem: Problem) -> R:
        """Open it, building what is missing first. One process builds, others wait; or help, where it is `shared`.

        Raises: ArtifactError when the build did not make what was asked for.
        """
        from safetensors import SafetensorError  # lists of runs import this module and no library

        folder = self.root / artifact.kind / artifact.key
        made(folder)
        cached = not artifact.missing(folder) and not artifact.damage(folder)
        if not cached:
            self._complete(artifact, folder, problem)
        try:
            opened = artifact.open(folder)
        except (ArtifactError, SafetensorError, OSError, EOFError) as error:
            if artifact.grows:
                raise
            # Of an earlier version, which kept no checksums.
            self._complete(artifact, folder, problem, broken=str(error))
            cached, opened = False, artifact.open(folder)
        self.used[artifact.key] = {
            "kind": artifact.kind,
            "key": artifact.key,
            "identity": artifact.identity,
            "wanted": dataclasses.asdict(artifact),
            "seconds": artifact.seconds(folder),
            "from_cache": cached,
        }
        return opened

    def progress(self, what: str, of: float) -> Callable[[float], None]:
        """For a build that takes long: call it with how much more is done. It tells at most once a second."""
        done, told = 0.0, -math.inf

        def tick(more: float) -> None:
            nonlocal done, told
            done += more
            if self.tell is not None and (done >= of or time.monotonic() - told >= TELL_SECONDS):
                told = time.monotonic()
                self.tell(what, done, of)

        return tick

    def _tidy(self) -> None:
        """Remove what killed processes were writing in any artefact, now that something is made anyway."""
        if not self._tidied:
            self._tidied = True
            # Other machines may share the folder, and their processes are not known here.
            sweep_dead(self.root, least_seconds=LEFT_SECONDS)

    def _complete(self, artifact: Artifact[Any], folder: Path, problem: Problem, broken: str = "") -> None:
        """Build what is missing; what is damaged, or `broken` as its reader found, is made anew."""
        with contextlib.nullcontext() if artifact.shared else locked(folder / "lock"):
            if not artifact.shared:
                sweep(folder)
            if not artifact.missing(folder) and (why := broken or artifact.damage(folder)):
                logger.warning("%s %s is damaged: %s. It is made again.", artifact.kind, artifact.key, why)
                artifact.discard(folder)
            if artifact.missing(folder):
                self._tidy()
                self._build(artifact, folder, problem)

    def _build(self, artifact: Artifact[Any], folder: Path, problem: Problem) -> None:
        before = artifact.seconds(folder)
        started = time.perf_counter()
        try:
            # In the precision that its key names, whoever asks for it.
            with problem.precision.active(problem.device):
                artifact.build(folder, problem)
        finally:
            # Apart from the mark, because a build that is stopped has cost something too.
            write_json(folder / COST, {"seconds": before + time.perf_counter() - started}, sealed=True)
        mark: dict[str, Any] = {"kind": artifact.kind, "identity": artifact.identity}
        if not artifact.grows:
            files = (path for path in _files(folder) if path.name not in (MARK, COST))
            mark["files"] = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
        write_json(folder / MARK, mark, sealed=True)
        still = artifact.missing(folder)
        if still:
            raise ArtifactError(
                f"{artifact.kind} {artifact.key} was built and still lacks {still}. Remove its folder and run again."
            )
