"""Files are whole or absent."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddbench import files
from ddbench.errors import RunError
from ddbench.files import (
    disk_is_full,
    not_regular,
    put_folder,
    read_json,
    sweep,
    sweep_dead,
    unfinished,
    write_atomically,
    write_json,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(error: Exception) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"half of")
        raise error

    return write


def test_bytes_and_functions_are_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a", b"one")
    write_atomically(tmp_path / "new" / "b", lambda path: save_file({"x": torch.ones(2)}, path))
    assert (tmp_path / "new" / "a").read_bytes() == b"one"
    assert load_file(tmp_path / "new" / "b")["x"].tolist() == [1, 1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b"]


def test_everyone_who_could_read_a_plain_file_can_read_it(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "tensors", lambda path: save_file({"x": torch.ones(2)}, path))
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, failing(ZeroDivisionError()))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(RunError, match=r"record.json could not be written: the disk is full"):
        write_atomically(tmp_path / "record.json", failing(error))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(ValueError("28"))


def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"")


def test_what_was_being_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left, other, whole = (tmp_path / name for name in (".a.pt.7-7.tmp", ".b.pt.7-7.tmp", "a.pt"))
    for path in (left, other, whole):
        path.touch()
    sweep(tmp_path, "a.pt", idle_seconds=60)
    assert left.exists()
    sweep(tmp_path, "a.pt")
    assert [path.exists() for path in (left, other, whole)] == [False, True, True]
    sweep(tmp_path)
    assert [path.exists() for path in (other, whole)] == [False, True]


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "µ"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text().endswith("}\n")


def test_damaged_and_missing_json_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match=r"y\.json is missing"):
        read_json(tmp_path / "y.json")


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_dead_process_was_writing_goes_and_what_others_write_stays(tmp_path: Path, gone: int) -> None:
    (tmp_path / "deep").mkdir()
    dead = [tmp_path / f".README.md.{gone}-1.tmp", tmp_path / "deep" / f".a.json.{gone}-12.tmp"]
    kept = [tmp_path / f".b.{os.getpid()}-1.tmp", tmp_path / ".mine.tmp", tmp_path / ".mine.5.tmp", tmp_path / "c.tmp"]
    for path in (*dead, *kept):
        path.touch()
    sweep_dead(tmp_path, least_seconds=3600)
    assert all(path.exists() for path in dead)
    sweep_dead(tmp_path, deep=False)
    assert [path.exists() for path in dead] == [False, True]
    sweep_dead(tmp_path)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)


def test_what_a_dead_process_was_making_of_one_name_goes(tmp_path: Path, gone: int) -> None:
    (tmp_path / f".set[1].{gone}-1.tmp").mkdir()
    (tmp_path / f".set[1].{gone}-2.tmp").touch()
    (tmp_path / f".other.{gone}-1.tmp").touch()
    ready = unfinished(tmp_path / "set[1]")
    assert ready.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [f".other.{gone}-1.tmp"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    if not at_once:
        monkeypatch.setattr(files, "exchange", lambda *_: False)
    for number in (1, 2):
        ready = tmp_path / "work" / "ready"
        ready.mkdir(parents=True)
        (ready / "a").write_text(str(number))
        put_folder(ready, tmp_path / "place")
        assert (tmp_path / "place" / "a").read_text() == str(number)
        assert list((tmp_path / "work").iterdir()) == []


def test_two_names_are_exchanged_or_left(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = files.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() == done
    assert files.exchange(tmp_path / "a", tmp_path / "absent") is False
    assert (tmp_path / "a").is_dir()


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_text("{}")
    assert not_regular(tmp_path / "file") == ""
    for name in ("pipe", "zero"):
        assert "no file" in not_regular(tmp_path / name)
        with pytest.raises(RunError, match="no file"):
            read_json(tmp_path / name)
    assert not_regular(tmp_path) == "Is a directory"
    assert not_regular(tmp_path / "absent") == "No such file or directory"


def test_a_sealed_document_is_compared_when_it_is_read(tmp_path: Path) -> None:
    value = {"b": (1, 2.5), "a": {"x": None, "ü": "−"}}
    write_json(tmp_path / "a.json", value, sealed=True)
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5], "a": {"x": None, "ü": "−"}}
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(" ".join(text.split()))  # laid out otherwise
    assert read_json(tmp_path / "a.json")["b"] == [1, 2.5]
    (tmp_path / "a.json").write_text(text.replace("2.5", "2.4"))
    with pytest.raises(RunError, match="checksum"):
        read_json(tmp_path / "a.json")


def test_a_file_is_looked_at_once_while_nobody_writes_it(tmp_path: Path) -> None:
    path, looked = tmp_path / "a", []
    path.write_bytes(b"12345")
    os.utime(path, (0, 0))
    for _ in range(3):
        files.once(path, "size", lambda: looked.append(path.stat().st_size))
    assert len(looked) == 1
    path.write_bytes(b"123456")
    for _ in range(2):  # just written: it may be written again before the clock ticks
        files.once(path, "size", lambda: looked.append(path.stat().st_size))
    assert looked == [5, 6, 6]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    # Root may replace /dev/null, after which nothing on the machine works as it should.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    for name in ("pipe", "link", "stdout"):
        with pytest.raises(RunError, match=r"is a device, a pipe or a socket, and no file") as caught:
            write_atomically(tmp_path / name, b"page")
        assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "stdout"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["", ".", "..", "below/.."])
def test_a_place_without_a_name_is_a_sentence(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="names no file"):
        write_atomically(Path(name), b"page")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENAMETOOLONG, "Choose a shorter one."),
        (errno.ENOTDIR, "A file has the name of one of its folders."),
        (errno.EISDIR, "A folder has its name."),
        (errno.EROFS, "Choose a place that can be written."),
        (errno.EFBIG, "or raise the limit."),
        (errno.EACCES, "Check the folder's owner and permissions."),
        (errno.ENOSPC, "Free some space and run the same command again."),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_advice_is_about_what_went_wrong(tmp_path: Path, number: int, advice: str, wrapped: bool) -> None:
    error = SafetensorError(f"I/O error (os error {number})") if wrapped else OSError(number, os.strerror(number))
    with pytest.raises(RunError) as caught:
        write_atomically(tmp_path / "set", failing(error))
    assert str(tmp_path / "set") in str(caught.value)
    assert advice in str(caught.value)
    assert list(tmp_path.iterdir()) == []
