"""Runs that are killed, stopped or shut out from outside, in processes of their own.

One process imports everything once and forks a child for each run, so that dying many times takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddbench.errors import RunError
from ddbench.runs.observers import read_log
from ddbench.runs.record import RunRecord, read_record
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import SAME_REQUEST

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

ITERATIONS = 60
KILLS = 12

PROTOCOL = """
name = "tiny"
augment = "none"
backbones = ["mlp"]
students = 2
options = { epochs = 0, batch = 4 }
"""

SERVER = """
import json, os, sys, tempfile, time
from pathlib import Path

import torch

from ddbench.errors import DdbenchError
from ddbench.runs.runner import Interrupted, RunOptions, run
from ddbench.runs.resolving import Asked, resolve_spec

def work(order):
    options = {"iterations": order["iterations"], "batch_real": 4}
    asked = Asked("dm", "digits", ipc=1, backbone="mlp", protocols=[sys.argv[1]], options=options)
    resolution = resolve_spec(asked, Path("no-data"))
    if order.get("sleep"):
        step = resolution.method.step
        def slow(problem, state, rng):
            if state.step == 3:
                Path(order["sleep"]).touch()
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    time.sleep(1)
            return step(problem, state, rng)
        resolution.method.step = slow
    options = RunOptions(
        root=Path(order["root"]), data_root=Path("no-data"), device=torch.device("cpu"),
        checkpoint_steps=order["checkpoint_steps"], grace_seconds=order.get("grace", 20.0),
    )
    try:
        run(resolution, options)
    except Interrupted as stop:
        return stop.exit_code
    except DdbenchError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as root:
    # What a run imports late need not be imported by every child.
    work({"root": root, "iterations": 1, "checkpoint_steps": 1})
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(work(json.loads(line)))
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
"""


class Server:
    """Starts runs, one at a time."""

    def __init__(self, protocol: Path) -> None:
        protocol.write_text(PROTOCOL)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(protocol)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, root: Path, **order: Any) -> int:
        """The pid of a run that has begun."""
        assert self._process.stdin is not None
        values = {"root": str(root), "iterations": ITERATIONS, "checkpoint_steps": 3, **order}
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        return int(self._answer("pid"))

    def wait(self) -> int:
        """Its exit code, or minus the signal that killed it."""
        return int(self._answer("status"))

    def error(self) -> str:
        """What a run that fails says."""
        return str(self._answer("error"))

    def close(self) -> None:
        """No more runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self, key: str) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())[key]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "tiny.toml")
    yield started
    started.close()


def only(root: Path) -> RunDir:
    (folder,) = RunDir.find(root)
    return folder


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, float]:
    """A run that nothing has interrupted, and the seconds that it took."""
    root = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    server.start(root)
    assert server.wait() == 0
    return only(root), time.monotonic() - began


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


def check_equal(folder: RunDir, whole: RunDir) -> RunRecord:
    assert folder.synthetic.read_bytes() == whole.synthetic.read_bytes()
    record, expected = read_record(folder.record), read_record(whole.record)
    assert [e.accuracy for e in record.evaluations] == [e.accuracy for e in expected.evaluations]
    steps = [entry["step"] for entry in read_log(folder.log)]
    assert steps == sorted(set(steps))
    assert steps[-1] == ITERATIONS
    # A spec that was being written stays for a minute, because it can be another process's.
    assert [path.name for path in folder.path.rglob("*.tmp") if not path.name.startswith(".spec.json.")] == []
    return record


def test_kill_at_any_moment_and_resume_is_bit_exact(
    server: Server, whole: tuple[RunDir, float], tmp_path: Path
) -> None:
    draw = random.Random()
    killed = finished = 0
    while killed < KILLS:
        root = tmp_path / str(finished)
        pid = server.start(root)
        time.sleep(draw.uniform(0.0, whole[1]))
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(pid, signal.SIGKILL)
        if server.wait() == -signal.SIGKILL:
            killed += 1
        else:
            check_equal(only(root), whole[0])
            finished += 1
        assert finished < 5 * KILLS, "the runs are always quicker than the signal"
    server.start(tmp_path / str(finished))
    assert server.wait() == 0
    check_equal(only(tmp_path / str(finished)), whole[0])


@pytest.mark.parametrize("after", ["attempts.json", "checkpoints/step_000021.pt", "synthetic.safetensors"])
def test_kill_at_a_certain_file_and_resume_is_bit_exact(
    server: Server, whole: tuple[RunDir, float], tmp_path: Path, after: str
) -> None:
    folder = tmp_path / whole[0].spec.folder
    pid = server.start(tmp_path)
    wait_for(folder / after)
    os.kill(pid, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert not (folder / "record.json").exists()
    server.start(tmp_path)
    assert server.wait() == 0
    assert len(check_equal(only(tmp_path), whole[0]).attempts) == 2


def test_a_step_that_does_not_end_is_left_behind(server: Server, whole: tuple[RunDir, float], tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    pid = server.start(tmp_path / "runs", sleep=str(asleep), grace=0.2)
    wait_for(asleep)
    os.kill(pid, signal.SIGTERM)
    # The step sleeps for half a minute and would then save itself.
    assert server.wait() == 75
    assert [p.name for p in only(tmp_path / "runs").checkpoints.iterdir()] == ["step_000003.pt"]
    server.start(tmp_path / "runs")
    assert server.wait() == 0
    check_equal(only(tmp_path / "runs"), whole[0])


def test_a_second_ctrl_c_does_not_wait(server: Server, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    pid = server.start(tmp_path / "runs", sleep=str(asleep), grace=60.0)
    wait_for(asleep)
    os.kill(pid, signal.SIGINT)
    time.sleep(SAME_REQUEST + 0.1)
    os.kill(pid, signal.SIGINT)
    assert server.wait() == 130
    # Had it waited, the step would have ended after half a minute and been saved.
    assert [p.name for p in only(tmp_path / "runs").checkpoints.iterdir()] == ["step_000003.pt"]


def test_a_second_process_is_refused_while_the_first_works(server: Server, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    pid = server.start(tmp_path / "runs", sleep=str(asleep))
    wait_for(asleep)
    folder = only(tmp_path / "runs")
    with pytest.raises(RunError, match=f"being worked on by pid {pid} on"), folder.lock():
        pass
    os.kill(pid, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    # The other way round: this process holds the lock, which the killed one has not left behind.
    with folder.lock():
        server.start(tmp_path / "runs")
        assert f"being worked on by pid {os.getpid()} on" in server.error()
        assert server.wait() == 1


@pytest.mark.slow
def test_sigterm_leaves_the_command_with_75_and_it_goes_on(tmp_path: Path) -> None:
    protocol = tmp_path / "tiny.toml"
    protocol.write_text(PROTOCOL)
    command = [sys.executable, "-m", "ddbench", "run", "--method", "dm", "--dataset", "toy", "--ipc", "1"]
    command += ["--backbone", "mlp", "--protocol", str(protocol), "--set", "iterations=800"]
    command += ["--set", "batch_real=1", "--runs", str(tmp_path / "runs"), "--json"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet) as first:
        end = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob("runs/*/*/*/*/log.jsonl")):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
    assert first.returncode == 75, said
    assert "Traceback" not in said
    assert "Run the same command again to go on." in said
    again = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    (record,) = json.loads(again.stdout)
    (reached, last) = (attempt["steps"][1] for attempt in record["attempts"])
    assert 0 < reached < last == 800
    assert record["attempts"][1]["steps"][0] == reached
