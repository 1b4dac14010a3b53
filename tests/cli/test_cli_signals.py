"""SIGTERM and Ctrl-C, as a shell sees them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddbench.cli import root

ARGUMENTS = ["run", "--method", "dm", "--dataset", "digits", "--ipc", "1", "--quiet", "--device", "cpu"]
OPTIONS = ["--backbone", "convnet-w8", "--set", "iterations=100000", "--set", "batch_real=8"]


def wait_until_it_steps(runs: Path) -> None:
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in runs.glob("*/*/*/*/log.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_says_how_to_go_on_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ddbench", *ARGUMENTS, *OPTIONS, "--runs", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_it_steps(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out == ""
    assert err.startswith(f"Error: stopped by {number.name} after step")
    assert err.endswith("Run the same command again to go on.\n")
    assert list(tmp_path.glob("*/*/*/*/checkpoints/step_*.pt"))


def test_a_run_that_is_told_twice_says_so_and_has_saved(tmp_path: Path) -> None:
    """As `timeout` does it. Nothing is lost: the run goes on after its last step, not after an older checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ddbench", *ARGUMENTS, *OPTIONS, "--runs", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_it_steps(tmp_path)
    process.terminate()
    time.sleep(0.001)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    (stopped_after,) = re.findall(r"after step (\d+) of", err)
    (attempts,) = tmp_path.glob("*/*/*/*/attempts.json")
    assert json.loads(attempts.read_text())["attempts"][-1]["steps"] == [0, int(stopped_after)]


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "ddbench", *ARGUMENTS, *OPTIONS, "--runs", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_it_steps(tmp_path)
    process.send_signal(signal.SIGHUP)
    (log,) = tmp_path.glob("*/*/*/*/log.jsonl")
    size, until = log.stat().st_size, time.monotonic() + 60
    while log.stat().st_size == size:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_ctrl_c_saves_and_exits_with_130(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until_it_steps(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    result = CliRunner().invoke(root, [*ARGUMENTS, *OPTIONS, "--runs", str(tmp_path)])
    other.join()
    assert result.exit_code == 130
    assert result.stderr.startswith("Error: stopped by Ctrl-C after step")
    assert list(tmp_path.glob("*/*/*/*/checkpoints/step_*.pt"))


SWALLOWED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException:  # as numpy's and torch's compiled parts do, which leaves half a module
    pass
raise ImportError("half a module")
"""


def test_a_signal_during_an_import_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(SWALLOWED)
    done = subprocess.run(
        [sys.executable, "-m", "ddbench", "run", "--method", "late.py:Late", "--dataset", "digits", "--ipc", "1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (75, "Error: stopped by SIGTERM. Run the same command again.\n")
