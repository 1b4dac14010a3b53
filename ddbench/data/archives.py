"""Archives, unpacked without trusting them: nothing leaves the target, no link is made, the disk is not filled."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import IO, Any, Self

from ddbench.errors import DataError
from ddbench.files import not_regular
from ddbench.text import printable

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
RESERVE = 256 << 20  # bytes of the disk that unpacking leaves free
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, OSError,
    ValueError, IndexError, KeyError, OverflowError, RuntimeError,
)  # fmt: skip

Member = tuple[str, int, IO[bytes] | None]  # name, size, content; a folder has no content


def is_archive(path: Path) -> bool:
    """Whether the name says that this is an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack regular files and folders into the new folder `target`. `progress` hears how far into the archive it is.

    Raises: DataError if the archive is damaged, would write outside the target, has a link or a device, or is too big.
    """
    if why := not_regular(archive):
        raise DataError(f"{archive} cannot be read: {why}.")
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
    if (path == target and content is not None) or printable(name) != name:
        raise DataError(f"{archive} is not safe to unpack: {name!r} is no name of a file.")
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


class _Header(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged one for the end of the archive, and leaves out what follows."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged: {error}") from None


_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open, ".txz": lzma.open, ".bz2": bz2.open, ".tbz2": bz2.open,
}  # fmt: skip


def without_checksums(archive: Path) -> bool:
    """Whether an archive has no checksums of what is in it, so that damage inside a file cannot be seen."""
    return archive.name.lower().endswith(".tar")


def _tar_members(archive: Path, file: IO[bytes]) -> Generator[Member]:
    if without_checksums(archive):
        _check_tar_end(archive)
    # Not by tarfile, which never looks at the checksum at the end of a compressed stream.
    unpacked = _OPENERS.get(archive.suffix.lower())
    opened = nullcontext(file) if unpacked is None else unpacked(file, "rb")
    with opened as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
        for member in tar:
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg():
                yield member.name, member.size, tar.extractfile(member)
            else:
                kind = "a link" if member.issym() or member.islnk() else "a device"
                raise _refused(archive, member.name, kind)
        while rest := stream.read(1 << 20):
            if any(rest):
                raise tarfile.ReadError("something follows its end")


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
