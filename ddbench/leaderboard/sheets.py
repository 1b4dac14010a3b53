"""The pictures that lie beside records: found, checked, and drawn from a run's folder where a record has none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddbench.errors import DdbenchError
from ddbench.files import sha256_of
from ddbench.runs.record import RunRecord, SheetPart, readable
from ddbench.runs.rundir import RECORD, SET, SHEET

SUFFIX = Path(SHEET).suffix


def sheet_file(record: Path) -> Path:
    """Where the sheet of a record lies: beside it, under its name; in a run's folder as sheet.webp."""
    return record.with_name(SHEET) if record.name == RECORD else record.with_suffix(SUFFIX)


def read_sheet(path: Path, record: RunRecord) -> bytes | None:
    """The sheet of the record at a path, in WebP; None where it has none, or the file is not the one that it names."""
    try:
        data = sheet_file(path).read_bytes() if record.sheet is not None else b""
    except OSError:
        return None
    named = record.sheet is not None and hashlib.sha256(data).hexdigest() == record.sheet.sha256
    return data if named else None


def with_sheet(path: Path, record: RunRecord, data_root: Path, notes: list[str]) -> tuple[RunRecord, bytes | None]:
    """The record at a path with its sheet: the one beside it, or one that is drawn from the set in its run's folder.

    Where there is neither, the record names none, and a note says why.
    """
    found = read_sheet(path, record)
    if found is not None:
        return record, found
    record = record.model_copy(update={"sheet": None})
    if path.name != RECORD or not path.with_name(SET).is_file():
        return record, None
    try:
        drawn = _drawn(path.parent, data_root)
    except DdbenchError as error:
        notes.append(f"{path} is added without a picture of its set: {error}")
        return record, None
    return (record, None) if drawn is None else (record.model_copy(update={"sheet": drawn[1]}), drawn[0])


def wrong_sheets(records: Path) -> Iterator[str]:
    """A sentence for every sheet that is not what its record names, that is missing, or that belongs to no record.

    Of a damaged record, which the board names, nobody knows.
    """
    paths = sorted(records.rglob("*.json"))
    sheets = {path: record.sheet for path, record in readable(paths)}
    named = {sheet_file(path): sheet.sha256 for path, sheet in sheets.items() if sheet is not None}
    unknown = {sheet_file(path) for path in paths if path not in sheets}
    for file, sha256 in named.items():
        if not file.is_file():
            yield f"{_shown(file, records)} is missing: the record beside it names a picture"
        elif sha256_of(file) != sha256:
            yield f"{_shown(file, records)} is not the picture that the record beside it names"
    yield from (f"{_shown(file, records)} belongs to no record" for file in _others(records, {*named, *unknown}))


def _others(records: Path, named: Iterable[Path]) -> list[Path]:
    known = set(named)
    return [file for file in sorted(records.rglob(f"*{SUFFIX}")) if file not in known]


def _shown(file: Path, records: Path) -> str:
    return file.relative_to(records.parent).as_posix()


def _drawn(folder: Path, data_root: Path) -> tuple[bytes, SheetPart] | None:
    from ddbench.foreign.importing import load_set
    from ddbench.foreign.terms import Said
    from ddbench.runs.sheet import sheet

    synthetic = load_set(folder, Said(), None, None, data_root)
    return sheet(synthetic, synthetic.space)
