"""What the system does not let a command read or write is a sentence, whoever hears of it first."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ddbench
from ddbench.cli import root
from ddbench.errors import RunError
from ddbench.files import of_the_disk

COMMANDS: list[list[str]] = [
    ["sets", "list", "--sets", "shut"],
    ["sets", "add", "shut/run"],
    ["evaluate", "shut/run"],
    ["evaluate", "shut/run", "--grid", "usual"],
    ["inspect", "shut/set.pt"],
    ["measure", "recognised", "shut/run"],
    ["reproduce", "shut/record.json"],
    ["compare", "shut/one", "shut/other"],
    ["sweep", "shut/sweep.toml"],
    ["data", "add", "mine", "shut/images.npz"],
    ["run", "--method", "random", "--dataset", "digits", "--ipc", "1", "--runs", "shut"],
]


@pytest.fixture
def shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nobody may look into, also where the tests are root: every call of the system says so."""
    folder = tmp_path / "shut"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    real = os.stat

    def denied(path: Any, *values: Any, **named: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and "shut" in Path(path).parts and Path(path).name != "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *values, **named)

    monkeypatch.setattr(os, "stat", denied)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_folder_that_is_shut_is_a_sentence(shut: Path, command: list[str]) -> None:
    result = CliRunner().invoke(root, command)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert "Permission denied" in result.stderr
    assert "ermissions" in result.stderr


def test_in_python_it_is_an_error_of_ddbench(shut: Path) -> None:
    with pytest.raises(RunError, match=r"Permission denied\. Check its owner and permissions"):
        ddbench.recognise(shut / "run")


def test_an_error_of_the_system_that_nobody_can_mend_stays_a_bug() -> None:
    assert of_the_disk(OSError(errno.EACCES, "Permission denied", "x")) is not None
    assert of_the_disk(OSError(errno.EACCES, "Permission denied")) is None
    assert of_the_disk(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
