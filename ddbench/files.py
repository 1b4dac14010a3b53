"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddbench.errors import RunError


def disk_is_full(error: Exception) -> bool:
    """Whether `error` says that no space, or no quota, is left."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors wraps the system's error in its own type and keeps the number only in the text.
    return any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def write_atomically(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a file beside its place, then move it there; missing folders are made.

    `data` is the content, or a function that writes it to the path it is given.
    Raises: RunError if the disk is full or the place cannot be written; nothing is left behind then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode
        if isinstance(data, bytes):
            beside.write_bytes(data)
        else:
            data(beside)
        # Some libraries make files that only their owner can read; a data folder is often shared.
        beside.chmod(mode)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if disk_is_full(error):
            raise RunError(
                f"{path} could not be written: the disk is full. Free some space and run the same command again."
            ) from error
        if isinstance(error, OSError):
            raise RunError(
                f"{path} could not be written: {error.strerror or error}. Check the folder's owner and permissions."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def sweep(folder: Path, name: str = "", *, spare: str = "", idle_seconds: float = 0.0) -> None:
    """Remove what killed processes were writing in a folder and those in it: files of this name, or all but `spare`.

    For a caller that nobody else writes beside; else only what has not grown for `idle_seconds`.
    """
    for path in folder.rglob(f".{name}.*.tmp" if name else ".*.tmp"):
        if spare and path.name.startswith(f".{spare}."):
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= idle_seconds:
                path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a newline at the end, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises: RunError if the file is missing or damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged and cannot be read as JSON: {error}.") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once the folder itself is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
