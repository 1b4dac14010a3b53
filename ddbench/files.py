"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ddbench.errors import RunError, mistyped
from ddbench.text import printable

logger = logging.getLogger(__name__)

R = TypeVar("R")
PATIENCE_SECONDS = 1.0


def disk_is_full(error: Exception) -> bool:
    """Whether `error` says that no space, or no quota, is left."""
    return _number_of(error) in (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a file beside its place, then move it there; missing folders are made.

    `data` is the content, or a function that writes it to the path it is given.
    Raises: RunError if the disk is full or the place cannot be written, or what is there is no file, such as
    /dev/null; nothing is left behind then, and what is there stays as it is.
    """
    _refuse_place(path)
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
        # Windows puts nothing on disk through a file that was opened for reading, and needs no mode.
        with beside.open("rb+" if os.name == "nt" else "rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if disk_is_full(error):
            raise RunError(
                f"{path} could not be written: the disk is full. Free some space and run the same command again."
            ) from error
        number = _number_of(error)
        if number is not None or isinstance(error, OSError):
            why = os.strerror(number) if number is not None else str(error)
            advice = _ADVICE.get(number or 0, "Check the folder's owner and permissions.")
            raise RunError(f"{path} could not be written: {why}. {advice}") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def require_writable(places: Iterable[Path], why: str) -> None:
    """Look whether files could be put at these places, before what belongs there is computed. Leaves nothing behind.

    `why` says what for, and what to do, in sentences that follow the reason.
    Raises: RunError for the first place that could not be written.
    """
    tried: set[Path] = set()
    for place in places:
        folder = next((one for one in place.parents if os.path.lexists(one)), place.parent)
        if folder in tried:
            continue
        tried.add(folder)
        try:
            # The system's own word: what permissions say is not all, as on a disk that is mounted to be read.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            said = "the disk is full" if disk_is_full(error) else error.strerror or str(error)
            raise RunError(f"nothing can be written in {folder}: {said}. {why}") from error


def of_the_disk(error: OSError) -> str | None:
    """A sentence for an error of the system that is the user's to mend, since it is about a path that the user named
    or about a disk; None for any other one, which is a bug, ours or a method's."""
    number = error.errno or 0
    if error.filename is None or number not in _MENDED_BY_USERS:
        return None
    return f"{error.filename}: {error.strerror}. {_MENDED_BY_USERS[number]}".rstrip()


_MENDED_BY_USERS = {
    errno.EACCES: "Check its owner and permissions, and those of the folders above it.",
    errno.EPERM: "Check its owner and permissions, and those of the folders above it.",
    errno.ELOOP: "Links lead to each other in a circle; remove one.",
    errno.ESTALE: "The network disk has lost it; try again.",
    errno.EIO: "The disk is at fault.",
    errno.EMFILE: "The process may not have more files open; raise `ulimit -n`.",
    errno.ENFILE: "The machine may not have more files open.",
    errno.ENOSPC: "Free some space and run the same command again.",
    errno.EDQUOT: "Free some space and run the same command again.",
    errno.ENAMETOOLONG: "",
    errno.EROFS: "",
}

_ADVICE = {
    errno.ENAMETOOLONG: "Choose a shorter one.",
    errno.EEXIST: "A file has the name of one of its folders. Move it away, or choose another place.",
    errno.ENOTDIR: "A file has the name of one of its folders. Move it away, or choose another place.",
    errno.EISDIR: "A folder has its name. Move it away, or choose another place.",
    errno.EROFS: "Choose a place that can be written.",
    errno.EFBIG: "That is more than the disk, or `ulimit -f`, allows. Choose another place, or raise the limit.",
    errno.EIO: "The disk is at fault. Choose another place.",
}


def _refuse_place(path: Path) -> None:
    """Raises: RunError where no file can be put, though the system would do it: it would put one over a device."""
    if path.name in ("", ".."):
        raise mistyped(RunError(f"{str(path)!r} names no file. Say what the file should be called."))
    try:
        mode = path.stat().st_mode
        # /dev/stdout is a link to whatever the process has open.
        of_a_process = path.is_symlink() and str(path.readlink()).startswith("/proc/")
    except (OSError, ValueError):
        return  # nothing is there, or writing says what is wrong
    if of_a_process or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise mistyped(
            RunError(f"{path} is a device, a pipe or a socket, and no file, so it is left as it is. Name a file.")
        )


def _number_of(error: Exception) -> int | None:
    """The system's number of an error, also of one that a library has wrapped; None where the system said nothing."""
    if isinstance(error, OSError):
        return error.errno
    # safetensors keeps the number only in the text.
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match is not None else None


def put_folder(ready: Path, place: Path) -> None:
    """Move a folder that is whole to its place, on the same disk; one that is there is replaced, and then removed.

    At no moment is there neither, where the system can exchange two folders at once (Linux).
    """
    if not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        ready.rename(place)
    elif exchange(ready, place):
        shutil.rmtree(ready, ignore_errors=True)
    else:
        aside = ready.with_name(f"{ready.name}.replaced")
        place.rename(aside)
        ready.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(place.parent)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names on one disk at once; False, with nothing done, where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # the last one on Windows
        return False
    done: int = rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE)
    return done == 0


# Of Linux: paths are relative to the folder of the process, and both names stay.
_HERE, _EXCHANGE = -100, 2


@contextlib.contextmanager
def locked(path: Path, option: str = "--runs", waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Alone with whatever a lock file stands for. Waits for others, and says so after a second, by `waiting` if given.

    `option` is what chooses the folder. Raises: RunError where the file system has no locks.
    """
    require_locks(path, option)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            if waiting is None:
                logger.warning("waiting for %s, which works on %s ...", _holder(path), path.parent)
            else:
                waiting()
            lock.acquire()
    except OSError as error:
        raise _not_locked(path, option, error) from error
    try:
        yield
    finally:
        lock.release()


def require_locks(path: Path, option: str = "--runs") -> None:
    """Raises: RunError where locks of the system are not to be had.

    filelock would take the mere existence of a file for a lock there, and any earlier command has left that file.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which locks otherwise
        return
    try:
        disk = path.parent.stat().st_dev
        if disk not in _lockable:
            # Not the file itself: whoever tries it at this moment would find it taken.
            with tempfile.TemporaryFile(dir=path.parent) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lockable.add(disk)
    except OSError as error:
        raise _not_locked(path, option, error) from error


_lockable: set[int] = set()


def _not_locked(path: Path, option: str, error: OSError) -> RunError:
    why = "the disk is full" if disk_is_full(error) else error.strerror or str(error)
    advice = (
        f"Its file system has no locks, which keep two processes apart; choose a folder on another one with {option}."
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
        else "Check the folder's owner and permissions."
    )
    return RunError(f"{path.parent} cannot be locked: {why}. {advice}")


def _holder(path: Path) -> str:
    """Who holds a lock, as Linux lists them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if parts[1] == "FLOCK" and parts[5].split(":")[-1] == inode:
                return f"pid {parts[4]} on {socket.gethostname()}"
    return "another process"


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


def unfinished(place: Path) -> Path:
    """Where a file or folder is made before it is moved to `place`; what processes that are gone left is removed."""
    for path in place.parent.glob(f".{glob.escape(place.name)}.*.tmp"):
        match = re.fullmatch(r"(\d+)-\d+\.tmp", path.name.removeprefix(f".{place.name}."))
        if match is not None and not _lives(int(match[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def sweep_dead(folder: Path, *, deep: bool = True, least_seconds: float = 0.0) -> None:
    """Remove what processes that are gone were writing in a folder, and in those in it where `deep`.

    For folders that others may write to at this moment: a process that lives on this machine keeps its files, and so
    does everyone for `least_seconds` after they have last grown.
    """
    for path in folder.rglob(".*.tmp") if deep else folder.glob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)-\d+\.tmp", path.name)
        if match is None:
            continue  # the name is somebody else's
        with contextlib.suppress(OSError):
            if not _lives(int(match[1])) and time.time() - path.stat().st_mtime >= least_seconds:
                path.unlink()


def _lives(pid: int) -> bool:
    if os.name == "nt":
        return True  # asking would be Ctrl-C for that process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


SEAL = "checksum"
MARK = "b2:"  # of a fingerprint by blake2b


def checksum(*parts: bytes | memoryview) -> str:
    """The short fingerprint of some bytes: "b2:" and 16 hexadecimal digits of blake2b."""
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        hasher.update(part)
    return f"{MARK}{hasher.hexdigest()}"


def seal_of(value: Mapping[str, Any]) -> str:
    """The checksum that a JSON document carries under `SEAL`: over all else in it, however it is laid out."""
    rest = {name: part for name, part in value.items() if name != SEAL}
    return checksum(json.dumps(rest, sort_keys=True).encode())


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as indented JSON with a newline at the end, whole or not at all.

    A document that is `sealed` carries a checksum, which `read_json` compares.
    """
    if sealed:
        # As a reader sees it: tuples are lists there, and names are texts.
        value = json.loads(json.dumps(value))
        value |= {SEAL: seal_of(value)}
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


_READING = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened for reading bytes; a pipe would keep its reader waiting, and a device may have no end.

    Raises: OSError with a sentence for everything else than a file, as for a file that is missing.
    """
    # Without waiting: opening a pipe that nobody writes to would not return.
    descriptor = os.open(path, os.O_RDONLY | _READING)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def not_regular(path: Path) -> str:
    """What is wrong with a path that a library will open by itself, in words; nothing where it is a regular file."""
    try:
        open_regular(path).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def read_json(path: Path, *, sealed: bool = False) -> Any:
    """The value in a JSON file, without the checksum that `write_json` gave it; earlier versions gave none.

    Raises: RunError if the file is missing or damaged, or cannot be read; with `sealed`, for a kind of file that was
    never written without a checksum, also where it has none.
    """
    try:
        with open_regular(path) as file:
            value = json.loads(file.read())
        if isinstance(value, dict) and SEAL in value:
            if value[SEAL] != seal_of(value):
                raise RunError(f"{path} is damaged: its content does not have the checksum that it names.")
            del value[SEAL]
        elif isinstance(value, dict) and (name := _misnamed_seal(value)) is not None:
            raise RunError(f"{path} is damaged: its checksum is called {printable(name, 40)!r}.")
        elif sealed and isinstance(value, dict):
            raise RunError(f"{path} is damaged: it has no checksum, and no such file was ever written without.")
        return value
    except RecursionError:
        raise RunError(f"{path} is damaged and cannot be read as JSON: its values lie too deep.") from None
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged and cannot be read as JSON: {error}.") from error


def _misnamed_seal(value: dict[str, Any]) -> str | None:
    """The key of a checksum that lost its name, without which a document looks like one of an earlier version."""
    for name, one in value.items():
        if isinstance(one, str) and one.startswith(MARK):
            rest = {key: other for key, other in value.items() if key != name}
            if seal_of(rest) == one:
                return name
    return None


def file_called(name: str, suffix: str) -> str:
    """The sentence for a name that nobody knows and that a file of the working folder has: how to say the file."""
    try:
        there = bool(name) and "/" not in name and Path(f"{name}{suffix}").is_file()
    except (OSError, ValueError):  # a text that no path can be
        there = False
    return f"To name the file {name}{suffix} here, say ./{name}{suffix}. " if there else ""


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as hex digits; once in a process, while nobody writes it."""

    def digest() -> str:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return once(path, "sha256", digest)


# A clock of a file system ticks a few times in a hundredth of a second: what has just been written is not trusted to
# have another time when it is written again.
RACY_SECONDS = 2.0
_known: dict[tuple[str, str], tuple[tuple[int, ...], Any]] = {}


def state_of(*paths: Path) -> tuple[int, ...] | None:
    """What tells that files have not been written since; None where that cannot be told yet, or one is not there."""
    found: list[int] = []
    for path in paths:
        try:
            now = path.stat()
        except (OSError, ValueError):  # the second of a text that no path can be
            return None
        if time.time() - now.st_mtime < RACY_SECONDS:
            return None
        found += (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return tuple(found)


def once(path: Path, what: str, find: Callable[[], R]) -> R:
    """What `find` says of a file, asked again only where the file may not be the same any more."""
    state = state_of(path)
    before = _known.get((str(path), what))
    if state is not None and before is not None and before[0] == state:
        known: R = before[1]
        return known
    found = find()
    if state is not None:
        _known[str(path), what] = (state, found)
    return found


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once the folder itself is on disk; Windows opens no folders.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
