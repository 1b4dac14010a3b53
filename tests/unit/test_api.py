"""The functions of Python do what the commands do, with options as values."""

import importlib
import importlib.util
import linecache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ddbench
from ddbench.cli import root as command_line
from ddbench.errors import ConfigError, DataError, PluginError, RunError
from ddbench.plugins import GROUPS, of_class
from ddbench.runs.record import read_record
from ddbench_methods.dm import DM

TINY = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'
OWN = """
from ddbench_methods.dm import DM

class Own(DM):
    name = "own"

    def export(self, problem, state):
        return super().export(problem, state)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.toml").write_text(TINY)
    return folder


def run(place: Path, method: Any = "dm", **more: Any) -> ddbench.Run:
    given = {"ipc": 1, "options": {"iterations": 2}, "protocol": str(place / "tiny.toml"), "device": "cpu"}
    return ddbench.run(method, "digits", data=place, **given | {"runs": place / "runs"} | more)


def test_a_call_and_a_command_are_one_run(place: Path) -> None:
    found = run(place)
    command = ["run", "--method", "dm", "--dataset", "digits", "--ipc", "1", "--set", "iterations=2", "--device", "cpu"]
    where = ["--protocol", str(place / "tiny.toml"), "--runs", str(place / "runs"), "--data", str(place), "--quiet"]
    said = CliRunner().invoke(command_line, [*command, *where])
    assert str(found.folder / "record.json") in said.stdout
    assert [path.parent for path in (place / "runs").glob("digits/ipc1/dm/*/record.json")] == [found.folder]
    assert found.record == read_record(found.folder / "record.json")
    assert found.record.config.sources["iterations"] == "options"
    assert found.record.config.sources["lr_images"].startswith(("default", "preset"))


def test_the_result_has_accuracies_and_the_set_and_prints(place: Path) -> None:
    found = run(place)
    assert list(found.accuracies) == [("tiny@1", "mlp")]
    (accuracy,) = found.accuracies.values()
    assert len(accuracy) == 2
    assert len(found.set) == 10
    lines = repr(found).splitlines()
    assert lines[0] == f"dm on digits, ipc 1, seed 0: {found.folder}"
    assert lines[1] == f"tiny@1, mlp: {100 * sum(accuracy) / 2:.1f} % of 2 students"


def test_folders_are_those_of_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDBENCH_RUNS", str(tmp_path / "there"))
    monkeypatch.setenv("DDBENCH_DATA", str(place))
    found = ddbench.run("random", "digits", ipc=1, protocol=str(place / "tiny.toml"), device="cpu")
    assert found.folder.is_relative_to(tmp_path / "there")
    assert ddbench.leaderboard()["method"].tolist() == ["random"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"options": {"iteration": 2}}, "dm has no option 'iteration'. Did you mean 'iterations'?"),
        ({"options": {"lr_images": -1.0}}, "lr_images: input should be greater than 0 (got -1.0)"),
        ({"options": {"iterations": "many"}}, "iterations: input should be a valid integer"),
        ({"backbone": "convnett"}, "Did you mean 'convnet'?"),
        ({"preset": "fast"}, "there is no preset 'fast'"),
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"ipc": 0}, "ipc is 0"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(place: Path, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(place, **more)
    assert sentence in str(caught.value)


def own_class(path: Path, source: str = OWN) -> Any:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)["Own"]


def test_a_class_is_the_method_of_its_file(place: Path, tmp_path: Path) -> None:
    by_class = run(place, own_class(tmp_path / "idea.py"))
    by_file = run(place, f"{tmp_path / 'idea.py'}:Own")
    assert by_class.folder == by_file.folder
    assert by_class.record.run.provided_by == "idea.py"
    assert len(by_class.record.run.method_sha256 or "") == 64
    changed = run(place, own_class(tmp_path / "idea.py", OWN + "# one more thought\n"))
    assert changed.folder != by_class.folder


def test_a_registered_class_is_the_method_of_its_package(place: Path) -> None:
    assert run(place, DM).folder == run(place).folder


def test_a_class_of_a_notebook_is_known_by_its_cell() -> None:
    def typed(cell: str, source: str) -> Any:
        # As IPython leaves it: no file, and the lines where tracebacks look for them.
        linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
        names: dict[str, Any] = {"__name__": "a-notebook"}
        exec(compile(source, cell, "exec"), names)
        return of_class(GROUPS["method"], names["Own"])

    first, again = typed("<ipython-1>", OWN), typed("<ipython-2>", OWN)
    other = typed("<ipython-3>", OWN.replace("super()", "DM.export and super()"))
    with pytest.raises(PluginError, match="a function of its own"):
        typed("<ipython-4>", "from ddbench_methods.dm import DM\nclass Own(DM):\n    name = 'own'\n")
    assert (first.name, first.provided_by) == ("own", "notebook")
    assert first.sha256 == again.sha256 != other.sha256


def test_a_class_without_a_source_is_refused() -> None:
    names: dict[str, Any] = {"__name__": "a-prompt"}
    exec(compile(OWN, "<typed>", "exec"), names)
    with pytest.raises(PluginError, match="Put the class into a file"):
        of_class(GROUPS["method"], names["Own"])


def test_what_is_no_method_is_refused(place: Path) -> None:
    with pytest.raises(PluginError, match=r"not a subclass of ddbench\.Method"):
        run(place, Path)


def test_a_run_is_judged_by_more(place: Path) -> None:
    found = run(place)
    more = ddbench.evaluate(found, judge="convnet-w4", students=1, device="cpu", data=place)
    assert len(more.accuracies["tiny@1", "convnet-d2-w4"]) == 1
    assert more.accuracies["tiny@1", "mlp"] == found.accuracies["tiny@1", "mlp"]
    with pytest.raises(DataError, match="leave out what is said of a file"):
        ddbench.evaluate(found.folder, pixels="zca")


def test_a_file_of_others_is_judged_and_stands_on_the_board(place: Path, tmp_path: Path) -> None:
    whole = run(place).set
    torch.save({"data": [[whole.images, whole.labels]]}, tmp_path / "theirs.pt")
    said: dict[str, Any] = {"dataset": "digits", "pixels": "standard", "protocol": str(place / "tiny.toml")}
    where: dict[str, Any] = {"data": place, "runs": tmp_path / "runs", "device": "cpu"}
    judged = ddbench.evaluate(tmp_path / "theirs.pt", name="theirs", claims={"accuracy": 0.9}, **said, **where)
    assert judged.accuracies == {("tiny@1", "mlp"): run(place).accuracies["tiny@1", "mlp"]}
    assert judged.record.imported is not None
    assert judged.record.imported.claims["accuracy"] == 0.9
    board = ddbench.leaderboard([judged, run(place).folder])
    assert sorted(board[board["judge"] == "mlp"]["method"]) == ["dm", "theirs"]
    with pytest.raises(ConfigError, match="no native protocol"):
        ddbench.evaluate(judged, protocol="native", data=place)


def test_the_board_is_a_function_before_and_after_its_package_is_imported(place: Path, tmp_path: Path) -> None:
    run(place)
    first = ddbench.leaderboard(place / "runs")
    importlib.import_module("ddbench.leaderboard.boards")

    assert first.equals(ddbench.leaderboard(place / "runs"))
    assert {"dataset", "method", "judge", "mean", "ci95", "sd", "rank"} <= set(first.columns)
    assert ddbench.leaderboard(tmp_path / "none").empty
    with pytest.raises(RunError, match="holds no record"):
        ddbench.leaderboard([tmp_path])


def test_a_dataset_is_bytes_and_classes(tmp_path: Path) -> None:
    digits = ddbench.load_dataset("digits")
    assert digits.train.images.dtype == digits.test.load().images.dtype == torch.uint8
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        ddbench.load_dataset("digit", data=tmp_path)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was remarked since this was asked last."""
    found = [r.getMessage() for r in caplog.records if r.name == "ddbench.api" and r.levelname == "WARNING"]
    caplog.clear()
    return found


@pytest.mark.parametrize("progress", [False, True])
def test_a_call_remarks_what_the_command_does(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, progress: bool
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "onw.toml").write_text("")
    (tmp_path / "idea.py").write_text(OWN)
    own: dict[str, Any] = {"progress": progress, "runs": tmp_path / "runs"}
    run(place, str(tmp_path / "idea.py"), **own)
    (remark,) = said(caplog)
    assert "onw.toml is read by no method" in remark
    found = run(place, preset="paper", protocol=["mtt", str(place / "tiny.toml")], judge="mlp", students=1, **own)
    paper, stepless, lost = said(caplog)
    assert paper == "no published setting of dm for digits at ipc 1: the method's defaults are used."
    assert stepless.startswith("mtt@1 takes a step size from the set")
    assert lost.startswith("mtt@1 with mlp: not defined")
    again: dict[str, Any] = {"students": 1, "device": "cpu", "data": place, "progress": progress}
    ddbench.evaluate(found, protocol=str(place / "tiny.toml"), **again)
    assert said(caplog) == []
    ddbench.evaluate(found, protocol="mtt", judge="mlp", **again)
    (told,) = said(caplog)
    assert told == lost
    (found.folder / "record.json").write_text("{")
    assert len(ddbench.leaderboard(tmp_path / "runs")) == 1
    (left,) = said(caplog)
    assert left.startswith("left out: ")
    assert str(found.folder / "record.json") in left


def test_what_is_guessed_of_a_file_is_remarked(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = run(place).set.images
    said(caplog)
    torch.save({"data": [[images, torch.arange(10)]]}, tmp_path / "theirs.pt")
    own = {"dataset": "digits", "protocol": str(place / "tiny.toml"), "data": place, "runs": tmp_path / "runs"}
    ddbench.evaluate(tmp_path / "theirs.pt", device="cpu", pixels="standard", **own)  # type: ignore[arg-type]
    assert any("theirs.pt: guessed from the numbers: labels class" in text for text in said(caplog)), caplog.text


NATIVE = """
from dataclasses import replace

from ddbench_methods.dm import DM


class Own(DM):
    name = {name!r}
    info = replace(DM.info, native={native!r})
"""


# A name that nobody registers, and one that another method has.
@pytest.mark.parametrize(("name", "then"), [("own", "changed"), ("mtt", "gone")])
def test_native_of_a_method_in_a_file_is_what_its_run_was_recorded_with(
    place: Path, tmp_path: Path, name: str, then: str
) -> None:
    file = tmp_path / "idea.py"
    file.write_text(NATIVE.format(name=name, native="quick@1"))
    found = run(place, str(file), runs=tmp_path / "runs")
    if then == "changed":
        file.write_text("raise RuntimeError('this is not run')\n")
    if then == "gone":
        file.unlink()
    more = ddbench.evaluate(found, protocol="native", judge="mlp", students=1, device="cpu", data=place)
    assert set(more.accuracies) == {("tiny@1", "mlp"), ("quick@1", "mlp")}
    asked = ["evaluate", str(found.folder), "--protocol", "native", "--judge", "mlp", "--students", "1", "--quiet"]
    said = CliRunner().invoke(command_line, [*asked, "--device", "cpu", "--data", str(place)])
    assert (said.exit_code, "quick@1" in said.stdout) == (0, True)


def test_native_that_is_a_file_has_to_be_there_and_to_name_no_code(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(TINY.replace("tiny", "own"))
    file = tmp_path / "idea.py"
    file.write_text(NATIVE.format(name="own", native=str(own)))
    found = run(place, str(file), runs=tmp_path / "runs")
    again: dict[str, Any] = {"protocol": "native", "judge": "mlp", "students": 1, "device": "cpu", "data": place}
    assert ("own@1", "mlp") in ddbench.evaluate(found, **again).accuracies
    own.write_text('name = "own"\nbackbones = ["./theirs.py:Net"]\nstudents = 1\n')
    with pytest.raises(ConfigError, match=r"own\.toml, which the run's folder names, names code: '\./theirs\.py:Net'"):
        ddbench.evaluate(found, **again)
    own.unlink()
    with pytest.raises(ConfigError, match=r"the native protocol of own is .*own\.toml.* --protocol \./FILE\.toml"):
        ddbench.evaluate(found, **again)


def test_native_of_a_run_that_is_not_finished_is_not_looked_for(place: Path, tmp_path: Path) -> None:
    found = run(place, runs=tmp_path / "runs")
    (found.folder / "record.json").unlink()
    with pytest.raises(RunError, match="is not a finished run"):
        ddbench.evaluate(found, protocol="native", device="cpu", data=place)
