"""Sets to take away: an index of them in a folder or at an address, and copies that are what the index says.

The index names the hash of every file, so a file that was damaged or replaced on its way is not used.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

import ddbench
from ddbench.errors import DataError, RunError, closest, mistyped
from ddbench.fields import (
    Architecture,
    Count,
    Line,
    Name,
    Number,
    Positive,
    ProtocolId,
    RunId,
    Sha256,
    Share,
    Text,
)
from ddbench.files import sha256_of, write_atomically
from ddbench.runs.record import read_document
from ddbench.text import budget_name, safe_name

logger = logging.getLogger(__name__)

SCHEMA: Literal["ddbench.sets/1"] = "ddbench.sets/1"
SETS = "DDBENCH_SETS"
INDEX = "index.json"
FOLDER = Path("leaderboards") / "sets"
KEPT = ".sets"  # in the data folder
SCHEMES = ("http", "https", "file")
TIMEOUT_SECONDS = 30.0
MOST_INDEX_BYTES = 5_000_000
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*/(ipc[1-9][0-9]*|whole)$"

RULE = (
    "Which set stands for a method: of its settings on the board, those with the highest mean over all their sets "
    "under the protocol of the method's own paper, as the records were when the set was added; of the sets of those "
    "settings, the one with the lowest seed. It was not compared with its siblings by its own accuracy. An entry that "
    "departs from this says why."
)


class SetEntry(BaseModel):
    """A set that can be taken away: its file, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Strict(), Field(pattern=NAME, max_length=200)] = Field(
        description="METHOD/DATASET/BUDGET, as in dance/cifar10/ipc10."
    )
    file: Name = Field(description="Beside the index.")
    sha256: Sha256 = Field(description="Of the file.")
    bytes: Positive = Field(description="Size of the file.")
    kept: Literal["float32", "float16", "uint8"] = Field(description="How the file keeps the images.")
    rounding: Number = Field(description="Largest change of a number of an image, in the set's own pixel space.")
    set: Sha256 = Field(description="Of the run's own file of the set, as its record has it.")
    run: RunId
    record: Line = Field(description="The record of the run, inside the leaderboard's folder.")
    title: Line = Field(description="The method's name as papers print it.")
    seed: Count
    backbone: Architecture
    pixels: Line
    images: Count
    labels: Literal["class", "probability", "logit", "regression"]
    licence: Line = Field(description="Of the dataset that the set was condensed from, as the catalogue has it.")
    protocol: ProtocolId = Field(description="Of the method's own paper, under which it stands on the board.")
    judge: Architecture
    accuracy: tuple[Share, ...] = Field(description="Student 0, 1, … on the run's own set, from the record.")
    accuracy_of_file: tuple[Share, ...] = Field(
        default=(), description="The same students on the set as the file has it; empty where that was not measured."
    )
    why: Text = Field(default="", description="Why this set, where the rule would have taken another.")


class SetIndex(BaseModel):
    """The sets that lie in a folder, or behind an address."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    index_schema: Literal["ddbench.sets/1"] = Field(SCHEMA, alias="schema")
    rule: Text = RULE
    sets: tuple[SetEntry, ...] = ()
    checksum: Line = Field(default="", description="Over all else in the file, which is compared when it is read.")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, values in (("name", [s.name for s in self.sets]), ("file", [s.file for s in self.sets])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"there are two entries with the {what} {twice[0]}")
        return self

    def entry(self, name: str, shown: str) -> SetEntry:
        """The entry of that name. Raises: DataError where there is none; `shown` is where the index is from."""
        for entry in self.sets:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.sets]
        known = ", ".join(names) or "none yet"
        raise mistyped(DataError(f"there is no set {name!r} in {shown}. {closest(name, names)}There are: {known}."))

    def with_entry(self, entry: SetEntry) -> SetIndex:
        """The index with an entry in the place of the one of its name, ordered by name."""
        others = [other for other in self.sets if other.name != entry.name]
        return self.model_copy(update={"sets": tuple(sorted([*others, entry], key=lambda one: one.name))})

    def to_json(self) -> dict[str, object]:
        """The document of index.json, less the checksum."""
        return self.model_dump(mode="json", by_alias=True, exclude={"checksum"})


class SupportsRead(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


def name_of(method: str, dataset: str, ipc: int) -> str:
    """What a published set is called: dance/cifar10/ipc10."""
    return f"{safe_name(method)}/{safe_name(dataset)}/{budget_name(ipc)}"


def is_name(text: str) -> bool:
    """Whether a text has the form of a published set's name."""
    return re.fullmatch(NAME, text) is not None


def place_of_sets(given: str | None = None) -> str:
    """The folder or address of published sets: the one that is given, else that of DDBENCH_SETS, else a checkout's.

    Raises: DataError where nobody says one and no checkout is at hand.
    """
    said = given or os.environ.get(SETS)
    if said:
        return said
    for folder in (FOLDER, Path(str(ddbench.__file__)).parents[1] / FOLDER):
        if (folder / INDEX).is_file():
            return str(folder)
    raise DataError(
        f"nobody says where published sets are: there is no {FOLDER / INDEX} here, and ddbench was not installed from "
        f"a checkout. Name a folder or an address with --sets, or in {SETS}."
    )


def read_index(place: str, data_root: Path) -> SetIndex:
    """The index of a folder or an address. Where an address does not answer, the index that was read last is used.

    Raises: DataError where there is none, or it is damaged.
    """
    if not _is_address(place):
        if not (path := Path(place) / INDEX).is_file():
            raise DataError(f"there is no {path}. {_asked_for(place)}")
        return _parsed(path)
    kept = _kept(place, data_root)
    try:
        content = _fetched(place, INDEX, MOST_INDEX_BYTES)
    except _NoAnswerError as error:
        if not kept.is_file():
            raise
        logger.warning("%s The index that was read last is used.", error)
        return _parsed(kept)
    # Whatever a network answers instead, it does not take the place of an index that was read. And two processes may
    # ask at once, so that each reads what it was answered itself.
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / INDEX
        write_atomically(fresh, content)
        index = _parsed(fresh, f"{place.rstrip('/')}/{INDEX}")
    try:
        write_atomically(kept, content)
    except RunError as error:
        logger.warning("%s The index is used all the same, and fetched again the next time.", error)
    return index


def last_index(place: str, data_root: Path) -> SetIndex:
    """The index of a folder; of an address the one that was read last, without asking the network, and no sets where
    none was. Raises: as `read_index`."""
    if not _is_address(place):
        return read_index(place, data_root)
    kept = _kept(place, data_root)
    return _parsed(kept) if kept.is_file() else SetIndex()


def _kept(place: str, data_root: Path) -> Path:
    return data_root / KEPT / f"index-{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"


def take(name: str, place: str, data_root: Path, out: Path | None = None) -> Path:
    """The file of a published set: in the folder that has it, or a copy in the data folder of what an address has.

    With `out`, a copy of it there.
    Raises: DataError where there is no such set, it cannot be had, it is not what the index says, or another file is
    at `out`, which stays as it is.
    """
    entry = read_index(place, data_root).entry(name, place)
    path = file_of(entry, place, data_root)
    if out is None:
        return path
    if out.is_dir():
        raise mistyped(
            DataError(f"--out {out} is a folder. Say what the file should be called, as in {out / path.name}.")
        )
    if out.is_file() and sha256_of(out) != entry.sha256:
        raise mistyped(
            DataError(f"{out} is there already and is another file, so it is left as it is. Choose another --out.")
        )
    write_atomically(out, path.read_bytes())
    return out


def file_of(entry: SetEntry, place: str, data_root: Path) -> Path:
    """The file of an entry of the index at `place`, as `take` without `out`."""
    if not _is_address(place):
        path = Path(place) / entry.file
        if not path.is_file():
            raise DataError(
                f"{path} is missing, and the index beside it names it. Take the folder from its source again."
            )
        _require_same(sha256_of(path), entry, str(path))
        return path
    copy = data_root / KEPT / entry.sha256[:16] / entry.file
    if copy.is_file() and sha256_of(copy) == entry.sha256:
        return copy
    content = _fetched(place, entry.file, entry.bytes)
    _require_same(hashlib.sha256(content).hexdigest(), entry, f"{place.rstrip('/')}/{entry.file}")
    write_atomically(copy, content)
    return copy


def json_schema() -> str:
    """The JSON schema of an index, as committed under leaderboards/schema."""
    return json.dumps(SetIndex.model_json_schema(by_alias=True), indent=2, sort_keys=True) + "\n"


class _NoAnswerError(DataError):
    """An address that cannot be reached."""


def _is_address(place: str) -> bool:
    """Whether a place is an address. Raises: DataError for one of an unknown kind."""
    if "://" not in place:
        return False
    scheme = place.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise mistyped(
            DataError(f"sets are not read from {place}: an address begins with {', '.join(SCHEMES)}; or name a folder.")
        )
    return True


def _fetched(place: str, file: str, most: int) -> bytes:
    """The content of a file behind an address, of at most so many bytes.

    Raises: _NoAnswerError where it cannot be reached, DataError where it is not there or larger.
    """
    address = f"{place.rstrip('/')}/{file}"
    try:
        urlsplit(address).port  # noqa: B018 - raises ValueError for what is no address
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
            content = _read(answer, most + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise _NoAnswerError(
                f"{address} could not be read: the server answered {error.code}. Try again later."
            ) from None
        raise DataError(
            f"there is no {address}: the server answered {error.code} {error.reason}. {_asked_for(place)}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or error
        if isinstance(why, FileNotFoundError):
            raise DataError(f"there is no {address}. {_asked_for(place)}") from None
        raise _NoAnswerError(
            f"{address} could not be read: {why or type(error).__name__}. Check the address and the network."
        ) from None
    if len(content) > most:
        raise DataError(f"{address} is larger than the {most} bytes that were expected, so it is not used.")
    return content


def _read(answer: SupportsRead, most: int) -> bytes:
    """At most so many bytes, for as many of which as an index says there may be no room."""
    parts, left = [], most
    while left > 0 and (part := answer.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _asked_for(place: str) -> str:
    return f"Is {place} where published sets are? Say where with --sets, or in {SETS}."


def _require_same(found: str, entry: SetEntry, shown: str) -> None:
    if found != entry.sha256:
        raise DataError(
            f"{shown} is not the set {entry.name}: it has sha256 {found[:16]}…, and the index says "
            f"{entry.sha256[:16]}…. It was damaged or replaced, so it is not used."
        )


def _parsed(path: Path, shown: str = "") -> SetIndex:
    try:
        return read_document(path, SetIndex, SCHEMA, "is not an index of published sets")
    except RunError as error:
        raise DataError(str(error).replace(str(path), shown) if shown else str(error)) from None
