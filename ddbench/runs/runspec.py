"""One run, fully resolved, and the id that follows from it. Needs no torch, so that lists of runs answer at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ddbench.config import explain
from ddbench.errors import RunError
from ddbench.fields import Architecture, Count, Flag, Line, Name, PlainDict, Positive, Sha256, Text
from ddbench.files import SEAL
from ddbench.plugins import names_code
from ddbench.text import budget_name, safe_name

SCHEMA = "ddbench.spec/1"


@dataclass(frozen=True)
class RunSpec:
    """One run. `identity` determines the set and names the folder; the rest says how it is judged.

    `conventions` is what the catalogue says of the dataset beside its images: pixel statistics, whether it may be
    flipped. `judges` are the backbones of the students; empty means those of each protocol. `imported` is there where
    the set came from a file: its hash, and the terms on which it is read. `checksum` is there so that all values of a
    spec.json make a spec; it is compared and taken away when the file is read. `published` says whether a paper has
    settings for the dataset and ipc; None where nobody would expect it, and in files of before it was said.
    """

    method: str
    provided_by: str
    method_sha256: str | None
    dataset: str
    data_fingerprint: str
    ipc: int
    backbone: str
    pixels: str
    seed: int
    precision: str
    config: Mapping[str, Any]
    conventions: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "paper"
    protocols: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    students: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    imported: Mapping[str, Any] | None = None
    checksum: str = ""
    published: bool | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the set depends on. Devices, protocols, students and where a value came from are not in it; a precision
        that was left open is the one that its device gave it."""
        # Only where there is one, so that runs keep their folders.
        imported = {} if self.imported is None else {"imported": dict(self.imported)}
        return imported | {
            "method": self.method,
            # A package's version is provenance: a new release must not orphan finished runs.
            "package": self.provided_by.split(" ")[0],
            "method_sha256": self.method_sha256,
            "dataset": self.dataset,
            "data": self.data_fingerprint,
            "ipc": self.ipc,
            "backbone": self.backbone,
            "pixels": self.pixels,
            "seed": self.seed,
            "precision": self.precision,
            "config": dict(self.config),
            "conventions": dict(self.conventions),
        }

    @property
    def id(self) -> str:
        """Eight hex digits over the identity."""
        text = json.dumps(self.identity, sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=4).hexdigest()

    @property
    def folder(self) -> Path:
        """Relative to the runs folder: cifar10/ipc10/dm/convnet-d3-s0-3f2a91c4."""
        name = f"{safe_name(self.backbone)}-s{self.seed}-{self.id}"
        return Path(self.dataset) / budget_name(self.ipc) / self.method / name

    def to_json(self) -> dict[str, Any]:
        """The document of spec.json."""
        values = dataclasses.asdict(self)
        del values[SEAL]
        if self.published is None:
            del values["published"]
        return {"schema": SCHEMA, "id": self.id, **values}

    @classmethod
    def from_json(cls, value: Any) -> RunSpec:
        """What `to_json` made. Raises: RunError for anything else, and where the id is not that of the values."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RunError(f"this is not a ddbench run specification of schema {SCHEMA!r}.")
        rest = {k: v for k, v in value.items() if k not in ("schema", "id")}
        rest |= {name: rest.get(name) or () for name in ("protocols", "judges")}
        try:
            _SpecFile.model_validate(rest)
        except ValidationError as error:
            raise RunError(f"{explain('this run specification cannot be read', error)}.") from None
        spec = cls(**{**rest, "protocols": tuple(rest["protocols"]), "judges": tuple(rest["judges"])})
        # A file of one's own becomes a name with the digest of its content before it gets here.
        for ref in (spec.backbone, *spec.judges):
            if names_code(ref) and "@" not in ref:
                raise RunError(
                    f"this run specification names code, {ref!r}. ddbench runs code only where you name it yourself."
                )
        if spec.id != value.get("id"):
            raise RunError(f"this run specification says id {value.get('id')!r} and its values give {spec.id!r}.")
        return spec


class _SpecFile(BaseModel):
    """spec.json less its schema and id: what becomes a path, an import or a number is one of a kind."""

    model_config = ConfigDict(extra="forbid")

    method: Name
    provided_by: Line
    method_sha256: Sha256 | None
    dataset: Name
    data_fingerprint: Line
    ipc: Count
    backbone: Architecture
    pixels: Line
    seed: Count
    precision: Name
    config: PlainDict
    conventions: PlainDict = {}
    preset: Name = "paper"
    protocols: tuple[Line, ...] = ()
    judges: tuple[Architecture, ...] = ()
    students: Positive | None = None
    sources: dict[Line, Text] = {}
    imported: PlainDict | None = None
    published: Flag | None = None
