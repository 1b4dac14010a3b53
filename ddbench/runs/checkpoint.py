"""The state of a condensation as a file. Private to a run, and never anything but tensors and plain values."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.files import write_atomically

FORMAT = "ddbench.checkpoint/1"
KEPT = 2
# Ends the file, before the digest of all that stands before it.
SEAL = b"ddbench.sha256:"

# All that torch.load raises for a file that is cut short, overwritten, or not a checkpoint at all.
_DAMAGED = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, AttributeError, IndexError, OverflowError,
    MemoryError, AssertionError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """`state` is that of `State.state_dict`; `seconds` and the peaks are what condensing had cost by then.

    `best` is the best set so far, where a run selects.
    """

    run: str
    step: int
    state: Mapping[str, Any]
    seconds: float
    peak_device_bytes: int | None = None
    peak_host_bytes: int | None = None
    best: Mapping[str, Any] | None = None


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write step_000400.pt and remove all but the newest two.

    Raises: RunError if the disk is full; the older checkpoints are then untouched.
    """
    # Through memory: writing to a path, torch reports a full disk as an error that names no cause.
    content = io.BytesIO()
    torch.save({"format": FORMAT, **vars(checkpoint)}, content)
    written = content.getvalue()
    seal = SEAL + hashlib.sha256(written).digest()
    write_atomically(folder / f"step_{checkpoint.step:06d}.pt", written + seal)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink(missing_ok=True)


def load(folder: Path, run: str, device: torch.device, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a run that can be read, or None. Damaged ones are passed over, with a note."""
    for path in _newest_first(folder):
        try:
            values = torch.load(_content(path), map_location=_to(device), weights_only=True)
            if values.pop("format") != FORMAT or values["run"] != run:
                note(f"{path.name} is not a checkpoint of this run; it is passed over.")
                continue
            return Checkpoint(**values)
        except _DAMAGED as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            note(f"{path.name} is damaged ({reason}); going on from the one before, or from the start.")
    return None


def _content(path: Path) -> io.BytesIO:
    """What torch wrote. Raises: ValueError where it is not what was written.

    The parts of the archive have checksums, which torch never reads, and its directory has none: one bit there, and
    torch gives tensors of whatever the memory holds. So the whole file has one, which earlier files lack.
    """
    content = path.read_bytes()
    ends = len(content) - len(SEAL) - hashlib.sha256().digest_size
    if ends > 0 and content[ends:].startswith(SEAL):
        content, digest = content[:ends], content[ends + len(SEAL) :]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("it is not what was written")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
        plain = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    if damaged is not None or not plain:
        raise ValueError(f"{damaged or 'a part'} is not what was written")
    return io.BytesIO(content)


def last_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, by its name."""
    paths = _newest_first(folder)
    return _step(paths[0]) if paths else None


def not_finite(state: Mapping[str, Any], name: str = "") -> str | None:
    """The name of a tensor in a saved state that holds something other than finite numbers, or None."""
    for path, tensor in _tensors(state, name):
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            return path
    return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}[{position}]")


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step_*.pt") if _step(p) >= 0), key=_step, reverse=True)


def _step(path: Path) -> int:
    match = re.fullmatch(r"step_(\d+)\.pt", path.name)
    return int(match[1]) if match else -1


def _to(device: torch.device) -> Callable[[Any, str], Any]:
    """What was on the host stays there; what was on a device goes to the one that is used now."""

    def place(storage: Any, location: str) -> Any:
        if location == "cpu":
            return storage
        return torch.serialization.default_restore_location(storage, str(device))

    return place
