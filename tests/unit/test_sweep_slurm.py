"""What a Slurm job does with its part of a list; a real Slurm is in tests/slurm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.errors import DataError
from ddbench.runs.resolving import Asked, Reader, resolve_spec
from ddbench.runs.signals import AGAIN
from ddbench.runs.states import status_of
from ddbench.sweep import slurm
from ddbench.sweep.grid import asked_to_json
from ddbench.sweep.slurm import SlurmJob, shown


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A job ends with its process, and so leaves its handlers in place."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def listed(place: Path, *requests: tuple[Asked, str]) -> Path:
    content = {
        "schema": slurm.SCHEMA,
        "submitted": "2026-01-01T00:00:00Z",
        "runs": str(place / "runs"),
        "data": str(place / "data"),
        "device": "cpu",
        "grace_seconds": 20.0,
        "requests": [{"asked": asked_to_json(asked), "folder": folder} for asked, folder in requests],
        "jobs": {},
    }
    path = place / "jobs" / "runs.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_data_that_a_node_lacks_is_a_failure_in_the_run_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, (Asked("random", "cifar10"), "cifar10/ipc10/random/convnet-d3-s0-00000000"))
    with pytest.raises(SystemExit) as left:
        SlurmJob(path, 0)()
    assert left.value.code == 1
    status = status_of(tmp_path / "runs/cifar10/ipc10/random/convnet-d3-s0-00000000")
    assert status.state == "failed"
    assert "ddbench data get cifar10" in status.why
    out = capsys.readouterr().out
    assert status.why in out
    assert "Traceback" not in out


def test_an_open_precision_follows_the_device_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in the worker, or the outcome would be looked for in the folder of another run."""
    seen: list[torch.device] = []

    def resolve(asked: Asked, data_root: Path, device: torch.device, read: Reader) -> None:
        seen.append(device)
        raise DataError("far enough")

    monkeypatch.setattr(slurm, "visible_devices", lambda name: ["cuda:0"])
    monkeypatch.setattr(slurm, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(slurm, "resolve_spec", resolve)
    with pytest.raises(SystemExit):
        SlurmJob(listed(tmp_path, (Asked("random", "digits"), "digits/x")), 0)()
    assert seen == [torch.device("cuda")]


def test_a_damaged_list_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.json").write_text("{")
    with pytest.raises(SystemExit):
        SlurmJob(tmp_path / "runs.json", 0)()
    assert "Error: " in capsys.readouterr().out


def commands(place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "scontrol").write_text(f"#!/bin/sh\n{text}\n")
    (place / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")


def told(job: SlurmJob, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a job that gets a signal before its run has begun."""

    def tell(_: Any) -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    monkeypatch.setattr(slurm, "read_json", tell)
    with pytest.raises(SystemExit) as left:
        job()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_job_that_is_told_of_its_limit_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked')
    assert told(SlurmJob(tmp_path, 0), signal.SIGUSR2, monkeypatch) == AGAIN
    assert (tmp_path / "asked").read_text() == "requeue 12_3\n"
    assert "was queued again" in capsys.readouterr().out
    # It is on its way out: Slurm's own signal that follows changes nothing.
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_job_that_is_cancelled_is_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked')
    assert told(SlurmJob(tmp_path, 0), signal.SIGTERM, monkeypatch) == AGAIN
    assert not (tmp_path / "asked").exists()
    assert "stopped by SIGTERM" in capsys.readouterr().out


def test_a_job_that_slurm_does_not_queue_again_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(tmp_path, monkeypatch, "echo Requested operation is presently disabled >&2; exit 1")
    assert told(SlurmJob(tmp_path, 0), signal.SIGUSR2, monkeypatch) == AGAIN
    out = capsys.readouterr().out
    assert "could not be queued again: Requested operation is presently disabled" in out
    assert "Start the same sweep again" in out


def test_a_shared_list_leaves_out_what_others_did_or_tried(tmp_path: Path) -> None:
    from ddbench.runs.states import write_failure
    from ddbench.sweep.tasks import Task

    asked = Asked("random", "digits", ipc=1)
    task = Task(asked, resolve_spec(asked, tmp_path))
    root = tmp_path / "runs"
    shared, single = SlurmJob(tmp_path, None), SlurmJob(tmp_path, 0)
    assert shared._settled(task, root, "2026-01-01T00:00:00Z") is None
    write_failure(root / task.resolution.spec.folder, DataError("gone"))
    assert single._settled(task, root, "2026-01-01T00:00:00Z") is None
    tried = shared._settled(task, root, "2026-01-01T00:00:00Z")
    assert tried is not None
    assert tried.why == "gone"
    # What failed before it was submitted is tried again.
    assert shared._settled(task, root, "2999-01-01T00:00:00Z") is None


def test_ids_of_jobs_are_shown_in_short() -> None:
    assert shown(["12_0", "12_1", "12_2", "13"]) == "12_[0-2], 13"
    assert shown([]) == ""


LOGGING = """
import logging, sys
handler = logging.StreamHandler(sys.stderr)
closed = []
handler.close = lambda: closed.append(True)
logging.getLogger("somebody").addHandler(handler)
from ddbench.sweep.slurm import _submitit
import torchvision, kornia, sklearn, matplotlib, pandas
assert _submitit().__name__ == "submitit"
assert logging.getLogger("submitit").handlers == []
print("closed" if closed else "open")
"""


def test_the_logging_of_whoever_starts_a_sweep_is_left_alone() -> None:
    """absl's handler closes its stream with itself, which under pytest was stderr for all tests that came after."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SUBMITIT")}
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout == "open\n"
