"""A file to begin with: it is a method, keeps the contract, and nothing is written over."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ddbench.cli import new, root
from ddbench.plugins import GROUPS, load_object
from ddbench.testing import contract


def call(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(root, ["new", "method", *args])
    return result.exit_code, result.output


def test_the_file_is_a_method_of_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = call("Closer_means.py")
    assert code == 0
    assert "ddbench check --method ./Closer_means.py:MyMethod" in said
    kind = load_object(GROUPS["method"], "./Closer_means.py:MyMethod")
    assert kind.name == "closer-means"
    contract.name_and_info_are_complete(kind, {})
    contract.the_set_fits_the_problem(kind, {"iterations": 2})


def test_nothing_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("kept")
    code, said = call(str(file))
    assert (code, file.read_text()) == (2, "kept")
    assert "is there already" in said
    assert call(str(tmp_path / "mine"))[0] == 2


def test_an_installed_package_has_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ddbench" / "cli"
    folder.mkdir(parents=True)
    (folder / new.PACKAGED).write_text('name = "my-method"\n')
    monkeypatch.setattr(new, "__file__", str(folder / "new.py"))
    monkeypatch.setattr(new.resources, "files", lambda package: folder)
    assert call(str(tmp_path / "mine.py"))[0] == 0
    assert (tmp_path / "mine.py").read_text() == 'name = "mine"\n'
    (folder / new.PACKAGED).unlink()
    code, said = call(str(tmp_path / "other.py"))
    assert code == 1
    assert "Reinstall ddbench" in said
