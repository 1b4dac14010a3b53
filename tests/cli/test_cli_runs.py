"""ddbench runs: list, show, delete and clean, as a person meets them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ddbench.cli import deleting, root
from ddbench.errors import DataError
from ddbench.runs.rundir import RunDir
from ddbench.runs.states import write_failure

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'
SLOW = {"torch", "torchvision", "kornia", "sklearn", "matplotlib", "pandas", "scipy", "rich", "submitit"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of digits."""
    place = tmp_path_factory.mktemp("made")
    (place / "tiny.toml").write_text(PROTOCOL)
    done = CliRunner().invoke(
        root,
        [
            *("run", "--method", "dm", "--method", "random", "--dataset", "digits", "--ipc", "1", "--quiet"),
            *("--protocol", str(place / "tiny.toml"), "--set", "dm.iterations=2", "--device", "cpu"),
            *("--runs", str(place / "runs"), "--data", str(place / "data")),
        ],
    )
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, and one run that has failed and one whose record is damaged."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    dm = folder_of(tmp_path, "dm")
    write_failure(tmp_path / "runs" / "toy" / "ipc10" / "dm" / "mlp-s3-0a0a0a0a", DataError("no images\nno hope"))
    broken = tmp_path / "runs" / "digits" / "ipc1" / "mtt" / f"mlp-s0-{RunDir.at(dm).spec.id}"
    broken.mkdir(parents=True)
    (broken / "spec.json").write_text("{")
    return tmp_path


def folder_of(place: Path, method: str) -> Path:
    (found,) = (place / "runs" / "digits" / "ipc1" / method).glob("*-s0-*")
    return found


def call(place: Path, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner(env={"DDBENCH_RUNS": str(place / "runs")}).invoke(root, ["runs", *arguments], input=answer)


def test_the_list_says_state_accuracy_and_reason(place: Path) -> None:
    result = call(place)
    assert result.exit_code == 0, result.output
    lines = {line.split()[1]: line for line in result.stdout.splitlines()[2:] if " digits " in line}
    assert " done " in lines["random"]
    assert "tiny@1/mlp" in lines["random"]
    assert " damaged " in lines["mtt"]
    assert "spec.json is damaged" in lines["mtt"]
    assert "failed" in result.stdout
    assert "no images" in result.stdout
    assert "no hope" not in result.stdout
    assert result.stderr.startswith("4 runs: 2 done, 1 failed, 1 damaged; ")
    assert call(place, "list").stdout == result.stdout


def test_the_list_is_json_too_and_can_be_narrowed(place: Path) -> None:
    everything = json.loads(call(place, "--json").stdout)
    assert [run["state"] for run in everything] == ["done", "damaged", "done", "failed"]
    failed = json.loads(call(place, "list", "--json", "--state", "failed", "--state", "damaged").stdout)
    assert {run["id"] for run in failed} >= {"0a0a0a0a"}
    assert len(failed) == 2
    assert [r["method"] for r in json.loads(call(place, "--json", "--method", "random").stdout)] == ["random"]
    assert json.loads(call(place, "--json", "--dataset", "toy", "--ipc", "10").stdout)[0]["why"] == "no images\nno hope"
    assert "There is no run that fits under" in call(place, "--ipc", "7").stdout
    assert "There is no run under" in call(place / "none").stdout


def test_an_option_before_the_command_is_not_dropped_in_silence(place: Path) -> None:
    result = call(place, "--state", "failed", "delete", "--yes")
    assert result.exit_code == 2
    assert "--state goes behind the command: ddbench runs delete --state" in result.stderr
    assert folder_of(place, "dm").is_dir()
    elsewhere = call(place, "--runs", str(place / "other"), "delete", "--state", "failed", "--yes")
    assert elsewhere.exit_code == 2
    assert "--runs goes behind the command" in elsewhere.stderr


def test_show_says_why_a_run_failed_in_full(place: Path) -> None:
    result = call(place, "show", "0a0a")
    assert result.exit_code == 0, result.output
    assert "no images" in result.stdout
    assert "no hope" in result.stdout


def test_show_says_settings_with_sources_judges_costs_and_files(place: Path) -> None:
    path = folder_of(place, "dm")
    result = call(place, "show", str(path))
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["iterations", "2", "--set"] in rows
    assert ["state", "done"] in rows
    assert any(row[:1] == ["tiny@1/mlp"] and len(row) == 4 for row in rows)
    assert any(row[:1] == ["condense"] for row in rows)
    assert any(row[:1] == ["synthetic.safetensors"] for row in rows)
    found = json.loads(call(place, "show", str(path), "--json").stdout)
    assert found["spec"]["config"]["iterations"] == 2
    assert len(found["evaluations"][0]["accuracy"]) == 2


def test_show_of_nothing_or_of_several_is_a_sentence(place: Path) -> None:
    nothing = call(place, "show", "ffffffff")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "no run under" in nothing.stderr
    twice = call(place, "show", RunDir.at(folder_of(place, "dm")).spec.id)
    assert twice.exit_code == 1
    assert "2 runs have an id that begins with" in twice.stderr
    assert call(place, "show", str(folder_of(place, "mtt"))).exit_code == 0


def test_delete_names_what_would_go_and_without_a_yes_leaves_it(place: Path) -> None:
    result = call(place, "delete", str(folder_of(place, "dm")))
    assert result.exit_code == 1
    assert str(folder_of(place, "dm")) in result.stdout
    assert "Nothing was deleted" in result.stderr
    assert "--yes" in result.stderr
    looked = call(place, "delete", "--dry-run", "--method", "dm")
    assert looked.exit_code == 0
    assert "toy" in looked.stdout
    assert len(json.loads(call(place, "--json").stdout)) == 4


def test_delete_takes_what_fits_and_nothing_else(place: Path) -> None:
    result = call(place, "delete", "--state", "failed", "--state", "damaged", "--yes")
    assert result.exit_code == 0, result.output
    assert "Deleted 2 of 2" in result.stdout
    assert [run["state"] for run in json.loads(call(place, "--json").stdout)] == ["done", "done"]
    # Of those named, only what fits.
    both = [str(folder_of(place, name)) for name in ("dm", "random")]
    assert call(place, "delete", *both, "--method", "random", "--yes").exit_code == 0
    assert [run["method"] for run in json.loads(call(place, "--json").stdout)] == ["dm"]


def test_delete_of_everything_must_be_said(place: Path) -> None:
    result = call(place, "delete", "--yes")
    assert result.exit_code == 2
    assert "Say which runs" in result.stderr
    assert call(place, "delete", "--ipc", "9", "--yes").stdout == "There is nothing to delete.\n"


def test_delete_asks_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(answer: bool) -> None:
        monkeypatch.setattr(deleting, "at_a_terminal", lambda: True)
        monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text) or answer)

    ask(False)
    refused = call(place, "delete", "--state", "failed")
    assert refused.exit_code == 1
    assert "Nothing was deleted" in refused.stderr
    ask(True)
    assert call(place, "delete", "--state", "failed").exit_code == 0
    assert len(asked) == 2
    assert len(json.loads(call(place, "--json").stdout)) == 3
    # Ctrl-C is a no.
    monkeypatch.setattr("click.confirm", lambda *_, **__: (_ for _ in ()).throw(click.Abort()))
    assert "Nothing was deleted" in call(place, "delete", "--state", "damaged").stderr
    # A program that reads JSON is not asked.
    assert call(place, "delete", "--state", "damaged", "--json").exit_code == 1
    assert len(asked) == 2


def test_delete_as_json_says_what_is_gone(place: Path) -> None:
    looked = json.loads(call(place, "delete", "--state", "failed", "--json", "--dry-run").stdout)
    assert (looked["deleted"], len(looked["left"])) == ([], 1)
    result = call(place, "delete", "--state", "failed", "--json", "--yes")
    assert json.loads(result.stdout)["deleted"] == looked["left"]
    assert looked["left"][0]["path"] in result.stderr


def test_delete_leaves_a_run_at_work_and_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dm = folder_of(place, "dm")
    holder = RunDir.holder

    def busy(path: Path) -> str | None:
        return "pid 7 on host since now" if path == dm else holder(path)

    monkeypatch.setattr(RunDir, "holder", staticmethod(busy))
    named = call(place, "delete", str(dm), "--yes")
    assert named.exit_code == 1
    assert "is being worked on by pid 7" in named.stderr
    fitting = call(place, "delete", "--dataset", "digits", "--yes")
    assert fitting.exit_code == 0
    assert "is left alone, because it is being worked on by pid 7" in fitting.stderr
    assert [run["state"] for run in json.loads(call(place, "--json").stdout)] == ["running", "failed"]


def test_a_run_of_another_runs_folder_is_not_deleted(place: Path) -> None:
    result = CliRunner(env={"DDBENCH_RUNS": str(place / "other")}).invoke(
        root, ["runs", "delete", str(folder_of(place, "dm")), "--yes"]
    )
    assert result.exit_code == 1
    assert "is not inside the runs folder" in result.stderr
    assert folder_of(place, "dm").is_dir()


def test_clean_names_takes_and_leaves_a_run_that_can_be_judged_again(place: Path, made: Path) -> None:
    looked = call(place, "clean")
    assert looked.exit_code == 1
    assert str(folder_of(place, "dm") / "checkpoints") in looked.stdout
    assert "Kept: snapshots of finished runs" in looked.stderr
    assert "Nothing was deleted" in looked.stderr
    assert (folder_of(place, "dm") / "checkpoints").is_dir()
    done = call(place, "clean", "--yes", "--json")
    assert done.exit_code == 0
    assert {Path(piece["path"]).name for piece in json.loads(done.stdout)["deleted"]} == {"checkpoints"}
    assert call(place, "clean").stdout == "There is nothing to delete.\n"
    again = CliRunner().invoke(
        root,
        [
            *("evaluate", str(folder_of(place, "dm")), "--protocol", str(made / "tiny.toml"), "--students", "3"),
            *("--curve", "--device", "cpu", "--data", str(place / "data"), "--quiet", "--json"),
        ],
    )
    assert again.exit_code == 0, again.output
    judged = json.loads(again.stdout)
    assert len(judged["evaluations"][0]["accuracy"]) == 3
    drawn = [point["step"] for point in judged["curves"][0]["points"]]
    assert len(drawn) > 1
    # A curve that was drawn outlives its snapshots.
    assert call(place, "clean", "--snapshots", "--yes").exit_code == 0
    shown = json.loads(call(place, "show", str(folder_of(place, "dm")), "--json").stdout)
    assert "snapshots/" not in shown["files"]
    assert (folder_of(place, "dm") / "evaluations" / "tiny@1" / "mlp.curve.json").is_file()


def test_a_board_says_which_runs_are_not_on_it(place: Path) -> None:
    def board(*arguments: str) -> Result:
        return CliRunner(env={"DDBENCH_RUNS": str(place / "runs")}).invoke(root, ["leaderboard", *arguments])

    said = "Not on this board: 1 failed, 1 damaged; `ddbench runs` lists them.\n"
    result = board()
    assert (result.exit_code, result.stderr) == (0, said)
    assert "dm" in result.stdout
    as_json = board("--json")
    assert as_json.stderr == said
    assert len(json.loads(as_json.stdout)) == 2
    (folder_of(place, "dm") / "record.json").write_text("{")
    fewer = board("--runs", str(place / "runs"))
    assert fewer.exit_code == 0
    assert fewer.stderr.startswith("Not on this board: 1 failed, 2 damaged; `ddbench runs --runs ")
    assert call(place, "delete", "--state", "failed", "--state", "damaged", "--yes").exit_code == 0
    assert board().stderr == ""


@pytest.mark.parametrize("arguments", ["runs", "runs --json", "runs clean --dry-run", "runs show --help"])
def test_nothing_slow_is_imported(place: Path, arguments: str) -> None:
    code = (
        "import sys\nfrom ddbench.cli import root\n"
        "try:\n    root(sys.argv[1:], prog_name='ddbench')\n"
        "finally:\n    sys.stderr.write('imported: ' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True, text=True, check=True, env={**os.environ, "DDBENCH_RUNS": str(place / "runs")},
    )  # fmt: skip
    assert not SLOW & set(done.stderr.rpartition("imported: ")[2].split())
