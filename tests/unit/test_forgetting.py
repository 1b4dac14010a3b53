"""Judges that came to no result can be taken off a run, and those with a result cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.errors import RunError
from ddbench.files import SEAL, read_json, write_json
from ddbench.leaderboard.boards import add, board_of
from ddbench.runs.forgetting import choose, forget, name
from ddbench.runs.record import read_record
from ddbench.runs.states import status_of

TINY = 'name = "tiny"\nbackbones = ["mlp", "convnet-d2-w8"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'


def ddbench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose set has no step size of its own, judged by tiny, which works, and by mtt, which has no meaning."""
    place = tmp_path_factory.mktemp("made")
    (place / "tiny.toml").write_text(TINY)
    arguments = ["run", "--method", "random", "--dataset", "digits", "--ipc", "1", "--device", "cpu", "--quiet"]
    protocols = ["--protocol", place / "tiny.toml", "--protocol", "mtt", "--judge", "mlp", "--judge", "convnet-d2-w8"]
    result = ddbench(*arguments, *protocols, "--runs", place / "runs")
    assert result.exit_code == 0, result.output
    return place


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    (found,) = (tmp_path / "made" / "runs").glob("*/*/*/*-s0-*")
    return found


def judges(path: Path) -> list[str]:
    return [name(part) for part in read_record(path / "record.json").evaluations]


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path / "evaluations")) for file in (path / "evaluations").rglob("*.json")}


BOTH = ["mtt@1/convnet-d2-w8", "mtt@1/mlp", "tiny@1/convnet-d2-w8", "tiny@1/mlp"]


@pytest.mark.parametrize(
    ("ref", "left"),
    [
        ("mtt", BOTH[2:]),
        ("mtt@1", BOTH[2:]),
        ("failed", BOTH[2:]),
        ("mtt/mlp", ["mtt@1/convnet-d2-w8", *BOTH[2:]]),
        ("mtt@1/convnet-d2-w8", BOTH[1:]),
    ],
)
def test_failed_judges_are_taken_off(path: Path, ref: str, left: list[str]) -> None:
    assert judges(path) == BOTH
    before = read_record(path / "record.json")
    record = forget(path, choose(path, [ref]).failed)
    assert judges(path) == left
    assert record == read_record(path / "record.json")
    assert SEAL in json.loads((path / "record.json").read_text())
    assert record.evaluations == tuple(e for e in before.evaluations if name(e) in left)
    assert record.cost["evaluate"].seconds == sum(e.seconds for e in record.evaluations)
    assert files(path) == {f"{entry}.json" for entry in left}
    assert status_of(path).state == "done"


def test_a_judge_with_a_result_stays(path: Path) -> None:
    for ref in ("tiny", "tiny/mlp"):
        with pytest.raises(RunError, match="choosing which results to show would be choosing on test data"):
            choose(path, [ref])
    # Of a protocol by which one judge failed and one did not, the one that failed is meant.
    file = path / "evaluations" / "tiny@1" / "mlp.json"
    kept = read_json(file)
    write_json(file, kept | {"failed": "it diverged"}, sealed=True)
    chosen = choose(path, ["tiny"])
    assert ([name(p) for p in chosen.failed], [name(p) for p in chosen.kept]) == (
        ["tiny@1/mlp"],
        ["tiny@1/convnet-d2-w8"],
    )
    # It may come to a result before it is forgotten.
    write_json(file, kept, sealed=True)
    forget(path, chosen.failed)
    assert judges(path) == BOTH
    assert file.is_file()


def test_what_an_interrupted_evaluation_left_is_known_too(path: Path) -> None:
    record = read_json(path / "record.json")
    record["evaluations"] = [e for e in record["evaluations"] if e["protocol"] != "mtt@1"]
    write_json(path / "record.json", record, sealed=True)
    forget(path, choose(path, ["failed"]).failed)
    assert not [file for file in files(path) if file.startswith("mtt")]


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("mttt", "Did you mean 'mtt@1'"),
        ("mtt/resnet18", r"was not judged by mtt/resnet18.*It has mtt@1/convnet-d2-w8, mtt@1/mlp"),
        ("", "was not judged by"),
        ("/mlp", "was not judged by /mlp"),
    ],
)
def test_a_judge_that_is_not_there_is_a_sentence(path: Path, ref: str, why: str) -> None:
    with pytest.raises(RunError, match=why):
        choose(path, [ref])


def test_a_run_without_a_record_has_nothing_to_forget(path: Path) -> None:
    (path / "record.json").unlink()
    with pytest.raises(RunError, match="is not a finished run"):
        choose(path, ["failed"])


def test_the_column_goes_and_a_committed_record_may_be_replaced(path: Path, tmp_path: Path) -> None:
    assert "not defined" in board_of([path])
    add([path], tmp_path / "boards", allow_dirty=True)
    forget(path, choose(path, ["failed"]).failed)
    assert "not defined" not in board_of([path])
    assert "mtt" not in board_of([path])
    add([path], tmp_path / "boards", allow_dirty=True)


def evaluate(path: Path, *arguments: str | Path) -> Result:
    return ddbench("evaluate", path, *arguments)


def test_the_command_names_what_it_forgets(path: Path) -> None:
    result = evaluate(path, "--forget", "failed", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Forgotten: mtt@1/") == 2
    assert "has none" in result.stderr
    assert [e["protocol"] for e in json.loads(result.stdout)["evaluations"]] == ["tiny@1", "tiny@1"]
    again = evaluate(path, "--forget", "failed")
    assert (again.exit_code, again.stderr) == (0, "No judge of this run has failed.\n")
    assert "tiny@1" in again.stdout
    refused = evaluate(path, "--forget", "tiny")
    assert (refused.exit_code, refused.stdout) == (1, "")


def test_to_forget_and_to_judge_are_two_commands(path: Path) -> None:
    for more in (["--protocol", "dsa"], ["--curve"], ["--made-with", "mlp"]):
        result = evaluate(path, "--forget", "failed", *more)
        assert result.exit_code == 2
        assert f"leave out {more[0]}" in result.stderr
    assert judges(path) == BOTH


def test_a_judge_that_was_forgotten_can_be_tried_again(path: Path) -> None:
    forget(path, choose(path, ["mtt/mlp"]).failed)
    result = evaluate(path, "--protocol", "mtt", "--judge", "mlp", "--device", "cpu", "--quiet")
    assert result.exit_code == 1
    assert judges(path) == BOTH


def test_judges_of_an_imported_set_are_forgotten_too(path: Path, made: Path, tmp_path: Path) -> None:
    exported = ddbench("export", path, "--format", "pt", "--out", tmp_path / "set.pt", "--data", tmp_path)
    assert exported.exit_code == 0, exported.output
    common: list[Any] = ["--device", "cpu", "--quiet", "--runs", tmp_path / "imported", "--judge", "mlp"]
    protocols = ["--protocol", made / "tiny.toml", "--protocol", "mtt"]
    result = evaluate(tmp_path / "set.pt", "--dataset", "digits", *protocols, *common)
    assert result.exit_code == 0, result.output
    (imported,) = (tmp_path / "imported").glob("*/*/*/*")
    assert judges(imported) == ["mtt@1/mlp", "tiny@1/mlp"]
    assert evaluate(imported, "--forget", "mtt").exit_code == 0
    assert judges(imported) == ["tiny@1/mlp"]
    assert read_record(imported / "record.json").imported is not None
