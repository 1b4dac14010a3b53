"""Archives, unpacked without trusting them: nothing leaves the target, no link is made, the disk is not filled."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from ddbench.errors import DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
RESERVE = 256 << 20  # bytes of the disk that unpacking leaves free
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, OSError)

Member = tuple[str, int, IO[bytes] | None]  # name, size, content; a folder has no content


def is_archive(path: Path) -> bool:
    """Whether the name says that this is an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack regular files and folders into the new folder `target`. `progress` hears how far into the archive it is.

    Raises: DataError if the archive is damaged, would write outside the target, has a link or a device, or is too big.
    """
    target.mkdir()
    try:
        file, size = archive.open("rb"), archive.stat().st_size
    except OSError as error:
        raise _damaged(archive, error) from error
    is_zip = archive.name.lower().endswith(".zip")
    members = _zip_members(archive, file) if is_zip else _tar_members(archive, file)
    with file, closing(members):
        while True:
            try:
                member = next(members, None)
            except DAMAGED as error:
                raise _damaged(archive, error) from error
            if member is None:
                return
            for _ in _write(archive, target, *member):
                if progress is not None:
                    progress(file.tell(), size)


def ensure_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError unless `needed` bytes fit on the disk of `folder` with some room left."""
    free = shutil.disk_usage(folder).free
    if needed > free - RESERVE:
        raise DataError(
            f"{what} does not fit: it needs {needed / 1e6:.0f} MB, and the disk of '{folder}' has {free / 1e6:.0f} MB "
            f"free, of which {RESERVE / 1e6:.0f} MB are left alone. Free some space or use another --data folder."
        )


def _write(archive: Path, target: Path, name: str, size: int, content: IO[bytes] | None) -> Iterator[None]:
    """Write a member, and yield after each part of it."""
    parts = re.split(r"[\\/]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise DataError(f"{archive} is not safe to unpack: its member {name!r} would land outside the folder.")
    path = target.joinpath(*parts)
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    ensure_space(target, size, f"{name!r} of {archive}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise DataError(f"{archive} has two members called {name!r}. Pack it again from the original files.") from error
    with file:
        written = 0
        while chunk := _read(archive, content):
            written += file.write(chunk)
            yield
    if written != size:
        raise DataError(f"{archive} is damaged: its member {name!r} has {written} of {size} bytes. Fetch it again.")


def _read(archive: Path, content: IO[bytes]) -> bytes:
    try:
        return content.read(1 << 20)
    except DAMAGED as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(f"{archive} is damaged or only half there ({error}). Fetch it again.")


def _tar_members(archive: Path, file: IO[bytes]) -> Generator[Member]:
    if archive.name.lower().endswith(".tar"):
        _check_tar_end(archive)
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg():
                yield member.name, member.size, tar.extractfile(member)
            else:
                kind = "a link" if member.issym() or member.islnk() else "a device"
                raise _refused(archive, member.name, kind)


def _zip_members(archive: Path, file: IO[bytes]) -> Generator[Member]:
    with zipfile.ZipFile(file) as zipped:
        for member in zipped.infolist():
            mode = member.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise _refused(archive, member.filename, "a link")
            if member.flag_bits & 1:
                raise DataError(f"{archive} is encrypted. Unpack it yourself and add the folder.")
            if member.is_dir():
                yield member.filename, 0, None
            else:
                with zipped.open(member) as content:
                    yield member.filename, member.file_size, content


def _refused(archive: Path, name: str, kind: str) -> DataError:
    return DataError(
        f"{archive} is not safe to unpack: its member {name!r} is {kind}, and only files and folders are taken. "
        "Unpack it yourself and add the folder."
    )


def _check_tar_end(archive: Path) -> None:
    # Without compression, a file that ends between two members looks whole to tarfile.
    with archive.open("rb") as file:
        file.seek(-min(1024, archive.stat().st_size), 2)
        if any(end := file.read()) or len(end) < 1024:
            raise DataError(f"{archive} is only half there: the end marker is missing. Fetch it again.")
