"""What has become of a run, by its folder: done, failed, running, interrupted, missing; and why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddbench.errors import DataError, DivergedError, RunError
from ddbench.files import SEAL
from ddbench.runs import runner
from ddbench.runs.batch import run_one, status_in
from ddbench.runs.resolving import Asked, Resolution, resolve_spec
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions
from ddbench.runs.states import read_failure, status_of, write_failure

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 2\nbatch = 16\n'


@pytest.fixture
def resolution(tmp_path: Path) -> Resolution:
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    asked = Asked("dm", "digits", ipc=1, protocols=[str(tmp_path / "tiny.toml")], options={"iterations": 1})
    return resolve_spec(asked, tmp_path)


def options(tmp_path: Path) -> RunOptions:
    return RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=torch.device("cpu"))


def folder(resolution: Resolution, tmp_path: Path) -> Path:
    return tmp_path / "runs" / resolution.spec.folder


def test_a_run_is_missing_then_interrupted_then_done(resolution: Resolution, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert status_in(resolution, root).state == "missing"
    RunDir.open(root, resolution.spec)
    assert status_in(resolution, root).state == "interrupted"
    assert run_one(resolution, options(tmp_path)).state == "done"
    assert status_in(resolution, root).state == status_of(folder(resolution, tmp_path)).state == "done"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DivergedError("loss became nan at step 3"), "loss became nan at step 3"),
        (DataError("the images are gone"), "the images are gone"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "the device is out of memory"),
    ],
)
def test_a_failed_run_keeps_why_until_it_is_tried_again(
    resolution: Resolution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(runner, "_condense", fail)
        outcome = run_one(resolution, options(tmp_path))
    assert outcome.state == "failed"
    status = status_in(resolution, tmp_path / "runs")
    assert (status.state, status.why) == ("failed", outcome.message)
    assert why in status.why
    assert run_one(resolution, options(tmp_path)).state == "done"
    assert read_failure(folder(resolution, tmp_path)) is None


def test_a_bug_keeps_its_kind_and_its_traceback(
    resolution: Resolution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(runner, "_condense", break_down)
    with pytest.raises(TypeError, match="a bug"):
        run_one(resolution, options(tmp_path))
    assert status_in(resolution, tmp_path / "runs").why == "TypeError: a bug"


def test_a_run_can_fail_before_it_has_a_folder_and_be_done_later(resolution: Resolution, tmp_path: Path) -> None:
    write_failure(folder(resolution, tmp_path), DataError("the data is not there"))
    assert status_in(resolution, tmp_path / "runs").state == "failed"
    assert run_one(resolution, options(tmp_path)).state == "done"


def test_a_damaged_reason_is_still_a_failure(resolution: Resolution, tmp_path: Path) -> None:
    path = RunDir.open(tmp_path / "runs", resolution.spec).path
    (path / "failure.json").write_text("{")
    status = status_of(path)
    assert status.state == "failed"
    assert "is damaged" in status.why


HOLD = """
import sys, time
from pathlib import Path
from ddbench.runs.rundir import RunDir
with RunDir.at(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_running_while_a_process_works_on_it_and_interrupted_after_its_death(
    resolution: Resolution, tmp_path: Path
) -> None:
    path = RunDir.open(tmp_path / "runs", resolution.spec).path
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    status = status_of(path)
    assert status.state == "running"
    assert f"pid {process.pid}" in status.why
    outcome = run_one(resolution, options(tmp_path))
    assert outcome.state == "running"
    assert "is being worked on by pid" in outcome.message
    process.kill()
    process.communicate()
    assert status_of(path).state == "interrupted"


def test_one_judge_without_a_result_is_a_note_and_all_of_them_a_failure(resolution: Resolution, tmp_path: Path) -> None:
    assert run_one(resolution, options(tmp_path)).state == "done"
    path = folder(resolution, tmp_path) / "record.json"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL}
    (judged,) = record["evaluations"]
    path.write_text(json.dumps(record | {"evaluations": [judged | {"accuracy": [], "failed": "it diverged"}]}))
    assert status_of(path.parent).state == "failed"
    assert status_in(resolution, tmp_path / "runs").why == "tiny@1 with mlp: it diverged"
    other = judged | {"backbone": "lenet", "accuracy": [], "failed": "it diverged"}
    path.write_text(json.dumps(record | {"evaluations": [judged, other]}))
    status = status_of(path.parent)
    assert (status.state, status.why) == ("done", "tiny@1 with lenet: it diverged")


def test_a_judge_that_diverges_at_a_first_look_is_a_note(resolution: Resolution, tmp_path: Path) -> None:
    assert run_one(resolution, options(tmp_path)).state == "done"
    path = folder(resolution, tmp_path) / "record.json"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL}
    (judged,) = record["evaluations"]
    said = {
        ("quick@1", "it diverged."): ("done", "it diverged. Smaller step sizes: --protocol quick-large or quick-slow."),
        ("quick-large@1", "it diverged."): ("done", "it diverged. Smaller step sizes: --protocol quick-slow."),
        ("quick-slow@1", "it diverged."): ("done", "it diverged."),
        ("quick@1", "not defined: no such network."): ("failed", "not defined: no such network."),
        ("dsa@1", "it diverged."): ("failed", "it diverged."),
    }
    for (protocol, failed), (state, why) in said.items():
        lost = judged | {"protocol": protocol, "accuracy": [], "failed": failed}
        path.write_text(json.dumps(record | {"evaluations": [lost]}))
        status = status_of(path.parent)
        assert (status.state, status.why) == (state, f"{protocol} with mlp: {why}")


def test_a_finished_run_whose_set_was_damaged_is_not_done(resolution: Resolution, tmp_path: Path) -> None:
    assert run_one(resolution, options(tmp_path)).state == "done"
    path = folder(resolution, tmp_path) / "synthetic.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    status = status_in(resolution, tmp_path / "runs")
    assert status.state == "failed"
    assert "is not the set of this run" in status.why
    assert run_one(resolution, options(tmp_path)).message == status.why


def test_a_run_that_lacks_a_judge_that_is_asked_for_is_not_done(resolution: Resolution, tmp_path: Path) -> None:
    assert run_one(resolution, options(tmp_path)).state == "done"
    more = resolve_spec(
        Asked("dm", "digits", ipc=1, protocols=resolution.spec.protocols, options={"iterations": 1}, judges=["lenet"]),
        tmp_path,
    )
    assert more.spec.id == resolution.spec.id
    assert [cell.backbone for cell in more.cells] == ["lenet"]
    assert status_in(more, tmp_path / "runs").state == "interrupted"


def test_a_lock_is_not_taken_from_a_run_that_begins(resolution: Resolution, tmp_path: Path) -> None:
    """Whoever looks may hold the lock of a killed run for a moment; a run waits that long."""
    opened = RunDir.open(tmp_path / "runs", resolution.spec)
    (opened.path / "lock").write_text("{}")
    assert RunDir.holder(opened.path) is None
    with opened.lock():
        assert RunDir.holder(opened.path) is not None
        with pytest.raises(RunError, match="is being worked on"), opened.lock():
            pass
