"""SIGTERM and Ctrl-C, as a shell sees them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from ddbench.cli import root

ARGUMENTS = ["run", "--method", "dm", "--dataset", "digits", "--ipc", "1", "--quiet", "--device", "cpu"]
OPTIONS = ["--backbone", "convnet-w8", "--set", "iterations=100000", "--set", "batch_real=8"]


def wait_until_it_steps(runs: Path) -> None:
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in runs.glob("*/*/*/*/log.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.05)


@contextlib.contextmanager
def at_work(runs: Path, *python: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has made a step. It does not outlive a test that fails: it would take a core for minutes."""
    with subprocess.Popen(
        [*python, "-m", "ddbench", *ARGUMENTS, *OPTIONS, "--runs", str(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until_it_steps(runs)
            yield process
        finally:
            process.kill()


def check_that_it_saved(process: subprocess.Popen[str], number: signal.Signals, runs: Path) -> None:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out == ""
    assert err.startswith(f"Error: stopped by {number.name} after step")
    assert err.endswith("Run the same command again to go on.\n")
    assert list(runs.glob("*/*/*/*/checkpoints/step_*.pt"))


def test_a_signal_saves_says_how_to_go_on_and_exits_with_75(tmp_path: Path) -> None:
    with at_work(tmp_path, sys.executable) as process:
        process.send_signal(signal.SIGTERM)
        check_that_it_saved(process, signal.SIGTERM, tmp_path)


def test_so_does_the_end_of_its_terminal(tmp_path: Path, forked_python: str) -> None:
    # Under nohup, also that of whoever runs the tests, the signal is ignored, and is meant to be.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with at_work(tmp_path, forked_python) as process:
            process.send_signal(signal.SIGHUP)
            check_that_it_saved(process, signal.SIGHUP, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_told_twice_says_so_and_has_saved(tmp_path: Path, forked_python: str) -> None:
    """As `timeout` does it. Nothing is lost: the run goes on after its last step, not after an older checkpoint."""
    with at_work(tmp_path, forked_python) as process:
        process.terminate()
        time.sleep(0.001)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    (stopped_after,) = re.findall(r"after step (\d+) of", err)
    (attempts,) = tmp_path.glob("*/*/*/*/attempts.json")
    assert json.loads(attempts.read_text())["attempts"][-1]["steps"] == [0, int(stopped_after)]


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, forked_python: str) -> None:
    with at_work(tmp_path, "nohup", forked_python) as process:
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
