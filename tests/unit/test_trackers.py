"""Trackers get every point of a run once, whatever happened to it, and cost no run whatever happens to them."""

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner

import ddbench
from ddbench.cli import root as program
from ddbench.errors import ConfigError, PluginError
from ddbench.runs.observers import Observer, read_log
from ddbench.runs.record import RunRecord
from ddbench.runs.resolving import Asked, resolve_spec
from ddbench.runs.runner import RunOptions, run
from ddbench.runs.trackers import KEPT, TrackedRun, Tracker, trackers

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'
STEPS = 4


class Heard(Tracker):
    """Keeps what it is told."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self.calls.append(("open", run.series))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("metrics", step, dict(values)))

    def results(self, step: int, accuracies: Mapping[str, float], sheet: Path | None) -> None:
        self.calls.append(("results", step, dict(accuracies), sheet is not None))

    def close(self) -> None:
        self.calls.append(("close",))


class Broken(Tracker):
    """Fails when it should take a step."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError("no network")


class Stopping(Observer):
    """Ends the process, as far as a test can, once a step has been told."""

    def on_step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def heard() -> list[tuple[Any, ...]]:
    Heard.calls.clear()
    return Heard.calls


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    return tmp_path


def go(place: Path, *watching: Observer, checkpoint_steps: int | None = 1, **more: Any) -> RunRecord:
    asked = Asked("dm", "digits", ipc=1, protocols=[str(place / "tiny.toml")], options={"iterations": STEPS})
    options = RunOptions(
        root=place / "runs", data_root=place, device=torch.device("cpu"), observers=watching, snapshots=0,
        checkpoint_steps=checkpoint_steps, **more,
    )  # fmt: skip
    return run(resolve_spec(asked, place), options)


def folder_of(place: Path) -> Path:
    return next((place / "runs").glob("*/*/*/*/record.json")).parent


def steps(calls: list[tuple[Any, ...]]) -> list[int]:
    return [call[1] for call in calls if call[0] == "metrics"]


def test_a_tracker_gets_the_log_and_the_results_and_changes_nothing(place: Path, heard: list[Any]) -> None:
    plain = go(place)
    log = read_log(folder_of(place) / "log.jsonl")
    (place / "runs").rename(place / "before")
    tracked = go(place, *trackers([Heard], pytest.fail))
    assert tracked.run.id == plain.run.id
    assert tracked.synthetic.sha256 == plain.synthetic.sha256
    assert [part.accuracy for part in tracked.evaluations] == [part.accuracy for part in plain.evaluations]
    assert steps(heard) == [entry["step"] for entry in log] == list(range(1, STEPS + 1))
    (said,) = [call[2] for call in heard if call[0] == "metrics" and call[1] == 1]
    assert said.keys() == {*log[0]["metrics"], "seconds"}
    (results,) = [call for call in heard if call[0] == "results"]
    accuracy = tracked.evaluations[0].accuracy
    assert results == ("results", STEPS, {"accuracy/tiny@1/mlp": sum(accuracy) / len(accuracy)}, True)
    assert heard[-1] == ("close",)


def test_an_interrupted_run_goes_on_in_the_same_series_without_doubles(place: Path, heard: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(place, *trackers([Heard], pytest.fail), Stopping())
    assert steps(heard) == [1]
    go(place, *trackers([Heard], pytest.fail))
    assert steps(heard) == list(range(1, STEPS + 1))
    assert len({call[1] for call in heard if call[0] == "open"}) == 1


def test_a_finished_run_is_sent_once_and_after_fresh_anew(place: Path, heard: list[Any]) -> None:
    go(place)
    for _ in range(2):
        go(place, *trackers([Heard], pytest.fail))
    assert steps(heard) == list(range(1, STEPS + 1))
    assert [call[0] for call in heard].count("results") == 1
    go(place, *trackers([Heard], pytest.fail), fresh=True)
    assert len({call[1] for call in heard if call[0] == "open"}) == 2


def test_later_judges_go_to_the_series_of_the_run(place: Path, heard: list[tuple[Any, ...]]) -> None:
    go(place, *trackers([Heard], pytest.fail))
    (series,) = {call[1] for call in heard if call[0] == "open"}
    heard.clear()
    (place / "other.toml").write_text(PROTOCOL.replace("tiny", "other"))
    for _ in range(2):
        ddbench.evaluate(folder_of(place), protocol=str(place / "other.toml"), device="cpu", data=place, track=Heard)
    # Asked for again, nothing is new.
    assert [call[0] for call in heard] == ["open", "results", "close"]
    assert heard[0] == ("open", series)
    assert heard[1][2].keys() == {"accuracy/tiny@1/mlp", "accuracy/other@1/mlp"}


def test_trackers_are_for_runs_and_not_for_grids_or_what_is_forgotten(place: Path) -> None:
    for option in ("--grid", "--forget=failed"):
        result = CliRunner().invoke(program, ["evaluate", str(place), option, "--track", "tensorboard"])
        assert (result.exit_code, "--track" in result.stderr) == (2, True)


def test_a_tracker_that_fails_is_told_of_once_and_costs_nothing(place: Path) -> None:
    told: list[str] = []
    record = go(place, *trackers([Broken], told.append))
    assert record.status == "complete"
    assert told == ["The tracker Broken failed (OSError: no network) and is left out; the run goes on without it."]


@pytest.mark.parametrize(
    "kept", ['{"Heard": {"step": "late"}}', '{"Heard": {"series": 5, "step": null}}', '{"Heard": 5}', "["]
)
def test_what_is_kept_of_a_tracker_and_damaged_begins_anew(place: Path, heard: list[Any], kept: str) -> None:
    go(place, *trackers([Heard], pytest.fail))
    (folder_of(place) / "trackers.json").write_text(kept)
    heard.clear()
    go(place, *trackers([Heard], pytest.fail))
    assert steps(heard) == list(range(1, STEPS + 1))
    assert [call[0] for call in heard].count("results") == 1


@pytest.mark.parametrize("package", ["no.such", "..x", "no such"])
def test_a_package_that_is_no_package_is_not_installed(package: str) -> None:
    kind = type("Mine", (Tracker,), {"package": package})
    with pytest.raises(ConfigError, match="needs the package"):
        trackers([kind], pytest.fail)


def scalars(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert not events.Tags()["images"] or events.Tags()["images"] == ["set"]
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_every_point_once(place: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        go(place, *trackers(["tensorboard"], pytest.fail), Stopping())
    go(place, *trackers(["TensorBoard"], pytest.fail))
    found = scalars(folder_of(place))
    assert found["loss"] == found["seconds"] == list(range(1, STEPS + 1))
    assert found["accuracy/tiny@1/mlp"] == [STEPS]


class FakeRun:
    def __init__(self, **settings: Any) -> None:
        self.settings, self.summary, self.logged, self.over = settings, dict[str, Any](), list[Any](), False

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.over = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_are_given_the_same(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    module = types.ModuleType(name)
    module.__dict__.update(init=lambda **given: runs.append(FakeRun(**given)) or runs[-1], Image=lambda path: path)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("ddbench.runs.trackers.find_spec", lambda package: object())
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    go(place, *trackers([name], pytest.fail))
    (fake,) = runs
    series = json.loads((folder_of(place) / KEPT).read_text())[name]["series"]
    assert fake.settings["project"] == "ddbench"
    assert fake.settings["resume"] == "allow"
    assert fake.settings["config"]["method"] == "dm"
    assert fake.settings["config"]["config.iterations"] == STEPS
    assert series in (fake.settings.get("id", ""), fake.settings["name"].split()[-1])
    assert [step for step, values in fake.logged if "loss" in values] == list(range(1, STEPS + 1))
    results = fake.summary or fake.logged[-1][1]
    assert results.keys() == {"accuracy/tiny@1/mlp", "set"}
    assert fake.over


def test_what_is_no_tracker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tensorboard'"):
        trackers(["tensorbord"], pytest.fail)
    with pytest.raises(PluginError, match=r"no subclass of ddbench\.runs\.trackers\.Tracker"):
        trackers(["pathlib:Path"], pytest.fail)
    with pytest.raises(PluginError, match="does not import"):
        trackers(["nowhere.at_all:Mine"], pytest.fail)
    monkeypatch.setattr("ddbench.runs.trackers.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"needs the package wandb: pip install 'ddbench\[wandb\]'"):
        ddbench.run("random", "digits", track="wandb", runs=tmp_path)
    result = CliRunner().invoke(program, ["run", "--method", "random", "--dataset", "digits", "--track", "trackio"])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)


def test_a_tracker_of_ones_own_is_named_by_its_file(place: Path) -> None:
    (place / "mine.py").write_text(
        "from ddbench.runs.trackers import Tracker\n"
        "class Mine(Tracker):\n"
        "    def results(self, step, accuracies, sheet):\n"
        "        (self.run.folder / 'mine.txt').write_text(' '.join(accuracies))\n"
    )
    done = ddbench.run(
        "random", "digits", ipc=1, protocol=str(place / "tiny.toml"), runs=place / "runs", device="cpu",
        track=f"{place / 'mine.py'}:Mine",
    )  # fmt: skip
    assert (done.folder / "mine.txt").read_text() == "accuracy/tiny@1/mlp"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_workers_of_a_sweep_track(place: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(sys, "executable", forked_python)
    (place / "sweep.toml").write_text(
        f'[grid]\nmethod = "dm"\ndataset = "digits"\nipc = 1\nprotocol = "{place / "tiny.toml"}"\n'
        f"set = {{ iterations = {STEPS} }}\n"
    )
    arguments = ["sweep", str(place / "sweep.toml"), "--runs", str(place / "runs"), "--data", str(place)]
    result = CliRunner().invoke(program, [*arguments, "--device", "cpu", "--track", "tensorboard", "--quiet"])
    assert result.exit_code == 0, result.output
    assert scalars(folder_of(place))["accuracy/tiny@1/mlp"] == [STEPS]
