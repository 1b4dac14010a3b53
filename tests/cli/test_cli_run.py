"""ddbench run, prepare and evaluate on the digits, with a protocol of a few steps."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.runs.record import read_record
from ddbench.runs.rundir import RunDir

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 3\nbatch = 16\n'
METHOD = """
from dataclasses import dataclass
import torch
from pydantic import Field
from ddbench import Method, MethodConfig, MethodInfo, State, SyntheticSet

class Options(MethodConfig):
    iterations: int = Field(2, ge=0, description="Steps.")

@dataclass
class Where(State):
    images: torch.Tensor

class Slow(Method):
    name = "slow"
    info = MethodInfo(title="Slow")
    Config = Options
    def prepare(self, problem):
        import time
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)
    def start(self, problem):
        return Where(torch.zeros(problem.classes * problem.ipc, *problem.shape))
    def step(self, problem, state, rng):
        return {}
    def export(self, problem, state):
        return SyntheticSet(state.images.clone(), problem.class_labels())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "tiny.toml").write_text(PROTOCOL)
    return folder


def call(place: Path, *arguments: str) -> Result:
    options = ["--data", str(place / "data"), "--device", "cpu"]
    if arguments[0] != "evaluate":
        options += ["--runs", str(place / "runs")]
    return CliRunner().invoke(root, [*arguments, *options])


def run(place: Path, *arguments: str, ipc: str = "1", quiet: bool = True) -> Result:
    common = ["--dataset", "digits", "--ipc", ipc, "--protocol", str(place / "tiny.toml")]
    return call(place, "run", *arguments, *common, *(["--quiet"] if quiet else []))


@pytest.fixture(scope="module")
def first(place: Path) -> Result:
    return run(place, "--method", "random", "--method", "dm", "--set", "iterations=2", quiet=False)


def folder_of(place: Path, method: str, ipc: str = "ipc1") -> Path:
    (found,) = (place / "runs" / "digits" / ipc / method).glob("*-s0-*")
    return found


def test_two_methods_give_a_board_and_say_where_the_runs_are(place: Path, first: Result) -> None:
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert "protocol tiny@1" in lines[0]
    assert any(" random " in line for line in lines)
    assert any("dm [iterations=2]" in line for line in lines)
    for method in ("random", "dm"):
        folder = folder_of(place, method)
        for name in ("record.json", "preview.png"):
            assert str(folder / name) in first.stdout
            assert (folder / name).is_file()
    assert read_record(folder_of(place, "dm") / "record.json").config.values["iterations"] == 2


def test_progress_goes_to_stderr(first: Result) -> None:
    assert "evaluate tiny@1 mlp" in first.stderr
    assert "evaluate tiny@1 mlp" not in first.stdout


def test_a_finished_run_is_not_done_again(place: Path, first: Result) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    again = run(place, "--method", "random", "--method", "dm", "--set", "iterations=2", quiet=False)
    assert again.stdout == first.stdout
    assert again.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()} == before


def test_fresh_starts_over_and_gives_the_same_numbers(place: Path, first: Result) -> None:
    record = folder_of(place, "random") / "record.json"
    before = read_record(record)
    assert run(place, "--method", "random", "--fresh").exit_code == 0
    after = read_record(record)
    assert after.evaluations[0].accuracy == before.evaluations[0].accuracy
    assert record.stat().st_mtime_ns > folder_of(place, "dm").joinpath("record.json").stat().st_mtime_ns


def test_json_on_stdout_is_the_list_of_records(place: Path, first: Result) -> None:
    result = run(place, "--method", "random", "--method", "dm", "--set", "iterations=2", "--json", quiet=False)
    records = json.loads(result.stdout)
    assert [record["run"]["method"] for record in records] == ["random", "dm"]
    assert all(record["schema"] == "ddbench.record/1" for record in records)


def test_one_method_keeps_an_option_to_itself(place: Path, first: Result) -> None:
    options = ["--method", "dm", "--method", "herding", "--set", "dm.iterations=1", "--set", "herding.epochs=0"]
    result = run(place, *options, "--json", "--seed", "3")
    dm, herding = json.loads(result.stdout)
    assert (dm["config"]["values"]["iterations"], dm["config"]["sources"]["iterations"]) == (1, "--set")
    assert herding["config"]["values"]["epochs"] == 0


def test_a_run_that_fails_does_not_stop_the_others(place: Path) -> None:
    result = run(place, "--method", "dm", "--method", "random", "--set", "lr_images=1e30", ipc="2")
    assert result.exit_code == 1
    assert "random" in result.stdout
    assert "Error: dm, ipc 2, seed 0: loss became" in result.stderr
    assert "lr_images=1e+30" in result.stderr
    assert "Traceback" not in result.output


def test_a_protocol_that_does_not_fit_is_a_note_beside_the_result_of_another(place: Path) -> None:
    result = run(place, "--method", "random", "--protocol", "mtt", "--judge", "mlp", ipc="3")
    assert result.exit_code == 0
    assert "trains with the set's own step size, and this set has none" in result.stderr
    # Before the run and after it.
    assert result.stderr.startswith("Note: mtt@1 takes a step size from the set, and those of random bring none")
    assert "\nNote: mtt@1 with mlp: " in result.stderr
    assert "tiny@1" in result.stdout


def test_a_run_without_any_result_fails_the_command(place: Path) -> None:
    arguments = ["--method", "random", "--dataset", "digits", "--protocol", "mtt", "--judge", "mlp", "--ipc", "4"]
    result = call(place, "run", *arguments, "--quiet", "--device", "cpu")
    assert result.exit_code == 1
    assert "\nError: mtt@1 with mlp: " in result.stderr


def test_a_run_that_another_process_works_on_is_refused(place: Path, first: Result) -> None:
    folder = folder_of(place, "dm")
    with RunDir.at(folder).lock():
        result = run(place, "--method", "dm", "--set", "iterations=2", "--fresh")
    assert result.exit_code == 1
    assert f"is being worked on by pid {os.getpid()}" in result.stderr
    assert (folder / "record.json").is_file()


def test_the_whole_dataset_is_one_run_for_every_ipc(place: Path) -> None:
    result = call(
        place, "run", "--method", "whole", "--dataset", "digits", "--ipc", "1", "--ipc", "2", "--dry-run", "--json"
    )
    (plan,) = json.loads(result.stdout)
    assert plan["spec"]["ipc"] == 0


def test_a_dry_run_names_the_source_of_every_value_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "none"
    arguments = ["--method", "dm", "--dataset", "digits", "--ipc", "1", "--set", "iterations=2", "--dry-run"]
    options = ["--protocol", str(place / "tiny.toml"), "--runs", str(runs), "--device", "cpu"]
    result = CliRunner().invoke(root, ["run", *arguments, *options])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert rows["dm.iterations"].split() == ["dm.iterations", "2", "--set"]
    assert rows["dm.momentum"].split()[-1] == "default"
    assert "preset quick" in rows["dm.batch_real"]
    assert rows["ipc"].split()[-1] == "--ipc"
    assert rows["seed"].split()[-1] == "default"
    assert "2 steps of" in rows["condense"]
    assert "2 students x 3 steps" in rows["evaluate"]
    assert "roughly, on" in rows["total"]
    assert rows["memory:"]
    assert f"{runs / 'digits' / 'ipc1' / 'dm'}" in result.stdout
    assert not runs.exists()


def test_a_dry_run_as_json_has_spec_sources_and_estimate(place: Path, first: Result) -> None:
    result = run(place, "--method", "random", "--method", "dm", "--set", "iterations=2", "--dry-run", "--json")
    random, dm = json.loads(result.stdout)
    assert random["status"] == dm["status"] == "done"
    assert Path(dm["folder"]) == folder_of(place, "dm")
    assert dm["sources"]["config.iterations"] == "--set"
    assert dm["estimate"]["seconds"] == pytest.approx(sum(phase["seconds"] for phase in dm["estimate"]["phases"]))
    assert all(phase["seconds"] >= 0 and math.isfinite(phase["seconds"]) for phase in dm["estimate"]["phases"])
    assert dm["estimate"]["peak_host_bytes"] > 50e6


def test_a_dry_run_without_the_data_still_prints_the_spec(tmp_path: Path) -> None:
    arguments = ["run", "--method", "dm", "--dataset", "cifar10", "--data", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(root, arguments)
    assert result.exit_code == 0, result.output
    assert "convnet-d3" in result.stdout
    assert "no estimate, because the data is missing: cifar10 is not in the data folder" in result.stderr
    (plan,) = json.loads(CliRunner().invoke(root, [*arguments, "--json"]).stdout)
    assert plan["estimate"] is None
    assert "cifar10 is not in the data folder" in plan["missing"]


def test_an_estimate_gives_up_on_what_takes_too_long(place: Path, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(METHOD)
    result = run(place, "--method", str(tmp_path / "idea.py"), "--dry-run", "--json")
    (plan,) = json.loads(result.stdout)
    phases: dict[str, Any] = {phase["name"]: phase for phase in plan["estimate"]["phases"]}
    assert phases["prepare"]["seconds"] is None
    assert "takes more than 2 s" in phases["prepare"]["basis"]
    assert phases["condense"]["seconds"] is None
    assert phases["evaluate tiny@1 mlp"]["seconds"] > 0


def test_prepare_fills_the_cache_that_run_reads(place: Path) -> None:
    arguments = ["--method", "herding", "--dataset", "digits", "--ipc", "1", "--seed", "4", "--set", "epochs=0"]
    prepared = call(place, "prepare", *arguments, "--json", "--quiet")
    (artefact,) = json.loads(prepared.stdout)
    assert artefact["kind"] == "trained-network"
    (record,) = json.loads(run(place, *arguments[:2], *arguments[6:], "--json").stdout)
    assert [(a["key"], a["from_cache"]) for a in record["artifacts"]] == [(artefact["key"], True)]
    twice = call(place, "prepare", *arguments, "--ipc", "3", "--set", "epochs=2", "--json", "--quiet")
    assert [entry["from_cache"] for entry in json.loads(twice.stdout)] == [False]  # made for the first of the two
    nothing = call(place, "prepare", "--method", "random", "--dataset", "digits", "--quiet")
    assert nothing.stdout == "These methods need nothing beforehand.\n"


def test_a_curve_is_printed_step_by_step(place: Path) -> None:
    options = ["--method", "dm", "--seed", "9", "--set", "iterations=4", "--set", "batch_real=4", "--curve"]
    result = run(place, *options)
    assert result.exit_code == 0, result.output
    table = result.stdout.split("judge", 1)[1].splitlines()
    assert [line.split()[2] for line in table if line.startswith("tiny@1")] == ["0", "1", "2", "4"]
    (folder,) = (place / "runs" / "digits" / "ipc1" / "dm").glob("*-s9-*")
    evaluated = ["evaluate", str(folder), "--protocol", str(place / "tiny.toml"), "--curve", "--quiet"]
    assert [line.split()[2] for line in call(place, *evaluated).stdout.splitlines()[-4:]] == ["0", "1", "2", "4"]
    record = json.loads(call(place, *evaluated, "--json").stdout)
    ((listed,),) = (json.loads(run(place, *options, "--json").stdout),)
    assert listed["curves"] == record["curves"]
    (curve,) = record["curves"]
    assert [point["step"] for point in curve["points"]] == [0, 1, 2, 4]
    assert curve["points"][-1]["accuracy"] == record["evaluations"][0]["accuracy"]
    # What was drawn is part of the record.
    (recorded,) = json.loads(call(place, *evaluated[:-2], "--quiet", "--json").stdout)["curves"]
    assert recorded["points"] == curve["points"]
    (path,) = folder.glob("evaluations/*/*.curve.json")
    drawn = json.loads(path.read_text())
    drawn["points"][1] |= {"accuracy": [], "failed": "a long reason"}
    del drawn["checksum"]
    path.write_text(json.dumps(drawn))
    failed = call(place, *evaluated)
    assert failed.stdout.splitlines()[-3].split()[2:] == ["1", *failed.stdout.splitlines()[-3].split()[3:5], "failed"]
    assert failed.stderr == "tiny@1 with mlp, step 1: a long reason\n"

    shutil.rmtree(folder / "snapshots")
    path.unlink()
    told = call(place, *evaluated)
    assert told.exit_code == 0
    assert "There is no learning curve" in told.stderr


def test_evaluate_adds_students_and_protocols_to_a_record(place: Path) -> None:
    assert run(place, "--method", "random", "--seed", "7").exit_code == 0
    (folder,) = (place / "runs" / "digits" / "ipc1" / "random").glob("*-s7-*")
    before = read_record(folder / "record.json").evaluations[0].accuracy
    tiny = ["--protocol", str(place / "tiny.toml")]
    result = call(place, "evaluate", str(folder), *tiny, "--students", "3", "--json", "--quiet")
    (more,) = json.loads(result.stdout)["evaluations"]
    assert len(more["accuracy"]) == 3
    assert tuple(more["accuracy"][:2]) == before
    result = call(place, "evaluate", str(folder), *tiny, "--judge", "convnet-w8", "--quiet")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()[2:]] == ["convnet-d2-w8", "mlp"]
    assert run(place, "--method", "random", "--seed", "8").exit_code == 0
    both = sorted(map(str, folder.parent.glob("*-s[78]-*")))
    result = call(place, "evaluate", *both, *tiny, "--students", "4", "--quiet")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line in both] == both
    for one in both:
        found = [part for part in read_record(Path(one) / "record.json").evaluations if part.backbone == "mlp"]
        assert [len(part.accuracy) for part in found] == [4]
    shown = json.loads(call(place, "evaluate", *both, *tiny, "--json", "--quiet").stdout)
    assert [record["run"]["seed"] for record in shown] == [7, 8]
    for words, sentence in {
        (*both, "more.pt"): "Of several, each is a RUN, and more.pt is none.",
        (*both, "--forget", "failed"): "--forget is for one RUN.",
        (*both, "--name", "a"): "--name is for a file",
    }.items():
        refused = call(place, "evaluate", *words)
        assert (refused.exit_code, sentence in refused.stderr) == (2, True), refused.output
    again = call(place, "evaluate", str(folder), "--quiet")
    assert again.exit_code == 0, again.output
    failing = call(place, "evaluate", str(folder), "--protocol", "mtt", "--judge", "mlp", "--quiet")
    assert failing.exit_code == 1
    assert "Error: mtt@1 with mlp:" in failing.stderr
    assert call(place, "evaluate", str(folder), *tiny, "--quiet").exit_code == 0
