"""Which set somebody means: what is at a path, or a published set by its name. One rule, wherever both are taken."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddbench.data.parts import is_image
from ddbench.errors import DataError, DdbenchError, closest, mistyped
from ddbench.foreign.formats import MOST_FILES, SUFFIXES
from ddbench.foreign.published_sets import SetEntry, file_of, is_name, last_index, place_of_sets, read_index
from ddbench.runs.rundir import RECORD, SPEC

Tell = Callable[[str], None]
"""Hears a sentence that a person should read."""


@dataclass(frozen=True)
class Meant:
    """What a word means: what is at `path`, or the published set of an entry of the index at `place`."""

    path: Path
    entry: SetEntry | None = None
    place: str = ""

    def file(self, data_root: Path) -> Path:
        """The path, or the file of the published set. Raises: DataError where that cannot be had, or is damaged."""
        return self.path if self.entry is None else file_of(self.entry, self.place, data_root)


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return (path / SPEC).is_file() or (path / RECORD).is_file()


def holds_set(path: Path) -> bool:
    """Whether a path could be a set that `foreign.formats.read` reads, or is a run: a file, or a folder in which there
    is an image or a file whose name ends as those of sets do."""
    if not path.is_dir():
        return path.exists()
    inside = itertools.islice(path.rglob("*"), MOST_FILES)
    return is_run(path) or any(one.suffix.lower() in SUFFIXES or is_image(one) for one in inside)


def meant(
    ref: str | Path,
    data_root: Path,
    tell: Tell,
    *,
    takes: Callable[[Path], bool] = holds_set,
    what: str = "run or set",
    place: Callable[[], str] = place_of_sets,
) -> Meant:
    """What a word on the command line, or a text in Python, means. The rule:

    - What is not written as METHOD/DATASET/BUDGET is a path; so are ./dance/cifar10/ipc10 and a `pathlib.Path`.
    - Of a word that is, what is on disk comes first, where it is something that the command takes: `takes` says so, and
      `what` names it in sentences.
    - Else it is the published set of that name, if the index at `place` has it. Something else of that path, such as a
      folder that is no run, does not hide it.
    - Where both are there, `tell` hears which one is meant, and how to say the other.

    Raises: DataError for a word that is neither, which names both and the nearest published name.
    """
    path = Path(ref)
    if isinstance(ref, Path) or not is_name(ref):
        if isinstance(ref, str) and not os.path.lexists(path):
            _refuse_near(ref, what, place, data_root)
        return Meant(path)
    there = os.path.lexists(path)
    if there and takes(path):
        if ref in _known(place, data_root):
            tell(
                f"{ref} is the {what} of that path here. A published set is called so too: `ddbench sets get {ref}` "
                "says where its file is."
            )
        return Meant(path)
    try:
        where = place()
        entry = read_index(where, data_root).entry(ref, where)
    except DataError as error:
        said = f"what is at {ref} is no {what}" if there else f"there is no {what} at {ref}"
        neither = DataError(f"{said}, and no published set is called so: {error}")
        neither.exit_code = error.exit_code
        raise neither from None
    if there:
        tell(f"{ref} is the published set of that name. What is at that path is no {what}; say ./{ref} to mean it.")
    return Meant(path, entry, where)


def as_word(path: Path) -> str:
    """A path as a word that `meant` takes for one."""
    return f"./{path}" if is_name(str(path)) else str(path)


def _refuse_near(ref: str, what: str, place: Callable[[], str], data_root: Path) -> None:
    """Raises: DataError for a word that is nearly the name of a published set. Others are paths, and whoever opens
    them says what is missing."""
    if "/" not in ref or ref.startswith(("/", ".")):
        return
    if near := closest(ref, sorted(_known(place, data_root))):
        raise mistyped(
            DataError(
                f"there is no {what} at {ref}, and no published set is called so. {near}`ddbench sets list` shows "
                "the names of published sets."
            )
        )


def _known(place: Callable[[], str], data_root: Path) -> set[str]:
    """The published names that are known without a network, none where nobody says any: they are only for a remark."""
    try:
        return {entry.name for entry in last_index(place(), data_root).sets}
    except DdbenchError:
        return set()
