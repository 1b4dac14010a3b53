"""Files are whole or absent."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddbench.errors import RunError
from ddbench.files import disk_is_full, read_json, sweep, write_atomically, write_json

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
