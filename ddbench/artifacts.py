"""Expensive things that runs share, made once and named by what determines them: expert trajectories, networks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from filelock import FileLock

from ddbench.errors import ArtifactError, RunError
from ddbench.files import read_json, sweep, write_json

if TYPE_CHECKING:
    from ddbench.problem import Problem

R = TypeVar("R")
MARK = "artifact.json"
COST = "cost.json"
TELL_SECONDS = 1.0


def outside_identity(default: Any = dataclasses.MISSING) -> Any:
    """A field that says how much of the artefact is wanted, not which one it is: a pool of experts grows in place."""
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
        return float(read_json(path)["seconds"])
    except (RunError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{path} is damaged: it should say what was spent on this artefact, which every record names. Remove the "
            f"folder {path.parent} and run again, which makes it anew."
        ) from None


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

    def get(self, artifact: Artifact[R], problem: Problem) -> R:
        """Open it, building what is missing first. One process builds, others wait; or help, where it is `shared`.

        Raises: ArtifactError when the build did not make what was asked for.
        """
        folder = self.root / artifact.kind / artifact.key
        made(folder)
        cached = not artifact.missing(folder)
        if not cached:
            with contextlib.nullcontext() if artifact.shared else FileLock(folder / "lock"):
                if not artifact.shared:
                    sweep(folder)
                if artifact.missing(folder):
                    self._build(artifact, folder, problem)
        self.used[artifact.key] = {
            "kind": artifact.kind,
            "key": artifact.key,
            "identity": artifact.identity,
            "wanted": dataclasses.asdict(artifact),
            "seconds": artifact.seconds(folder),
            "from_cache": cached,
        }
        return artifact.open(folder)

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

    def _build(self, artifact: Artifact[Any], folder: Path, problem: Problem) -> None:
        before = artifact.seconds(folder)
        started = time.perf_counter()
        try:
            # In the precision that its key names, whoever asks for it.
            with problem.precision.active(problem.device):
                artifact.build(folder, problem)
        finally:
            # Apart from the mark, because a build that is stopped has cost something too.
            write_json(folder / COST, {"seconds": before + time.perf_counter() - started})
        write_json(folder / MARK, {"kind": artifact.kind, "identity": artifact.identity})
        still = artifact.missing(folder)
        if still:
            raise ArtifactError(
                f"{artifact.kind} {artifact.key} was built and still lacks {still}. Remove its folder and run again."
            )
