"""What each dataset in the data folder is and where it came from. Needs no torch, so that lists answer at once."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddbench.config import explain
from ddbench.errors import DataError, RunError
from ddbench.fields import Flag, Line, Name, Positive
from ddbench.files import read_json

logger = logging.getLogger(__name__)

SCHEMA = "ddbench.dataset/1"


class _PartFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    images: Positive
    fingerprint: Line


class _ManifestFile(BaseModel):
    """manifest.json, checked before any of it is used."""

    model_config = ConfigDict(extra="forbid")

    schema_: Line = Field(alias="schema")
    name: Name
    title: Line
    original: Flag
    origin: Line
    split: Line
    preprocessing: Line
    shape: tuple[Positive, Positive, Positive]
    classes: list[Line] = Field(min_length=1)
    train: _PartFile
    test: _PartFile
    fingerprint: Line
    contents: Line = ""  # older manifests lack it
    left_out: Line = ""


class PartManifest(TypedDict):
    """One of the two parts of a dataset."""

    images: int
    fingerprint: str


class _Manifest(TypedDict):
    """What every manifest has."""

    schema: str
    name: str
    title: str
    original: bool
    origin: str
    split: str
    preprocessing: str
    shape: list[int]
    classes: list[str]
    train: PartManifest
    test: PartManifest
    fingerprint: str


class Manifest(_Manifest, total=False):
    """What a dataset in the data folder is and where it came from."""

    contents: str  # as the fingerprint, whatever the order of the images; older manifests lack it
    left_out: str  # files of the source that are in neither part, where there were any


def digest(*parts: bytes) -> str:
    """The short fingerprint of some bytes: "b2:" and 16 hexadecimal digits of blake2b."""
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        hasher.update(part)
    return f"b2:{hasher.hexdigest()}"


def find(root: Path, name: str) -> Manifest | None:
    """The manifest of a dataset in the data folder, or None if it is not there.

    Raises: DataError if the manifest is damaged.
    """
    path = root / name / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = read_json(path)
    except RunError as error:
        raise damaged(path, name, str(error).rstrip(".")) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise damaged(path, name, f"it is not of schema {SCHEMA}")
    try:
        _ManifestFile.model_validate(manifest)
    except ValidationError as error:
        raise damaged(path, name, explain("it cannot be used", error)) from None
    if manifest["name"] != name:
        raise DataError(
            f"{path} is of the dataset {manifest['name']!r}, and its folder is called {name!r}: it was copied or "
            f"renamed. Give the folder its name back, or add the images again with `ddbench data add {name} PATH`."
        )
    parts = f"{manifest['train']['fingerprint']} {manifest['test']['fingerprint']}"
    if manifest["fingerprint"] != digest(parts.encode()):
        raise damaged(path, name, "its fingerprint is not that of its parts")
    return Manifest(**manifest)  # type: ignore[typeddict-item]


def find_all(root: Path) -> list[Manifest]:
    """The manifests of all datasets in the data folder, by name; damaged ones are left out with a warning."""
    found = []
    for path in sorted(root.glob("*/manifest.json")):
        try:
            manifest = find(root, path.parent.name)
        except DataError as error:
            logger.warning("%s", error)
            continue
        if manifest is not None:
            found.append(manifest)
    return found


def damaged(path: Path, name: str, why: str) -> DataError:
    """What to say of a file of a dataset that cannot be used."""
    return DataError(
        f"{path} is missing or damaged: {why}. Add the dataset again with `ddbench data add {name} PATH` "
        f"(or `ddbench data get {name}`)."
    )
