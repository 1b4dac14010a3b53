"""Sweeps on a real Slurm of one node: `eval "$(tests/slurm/start.sh)"` starts it, `pytest -m slurm` runs these tests.

One run is told of its time limit twice; it takes minutes, so it is submitted first and asked for last.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.files import read_json
from ddbench.synthetic import load

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 2\nbatch = 16\n'
LONG, SHORT = 1500, 400
PATIENCE = 900


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm answers here; tests/slurm/start.sh starts one")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "tiny.toml").write_text(PROTOCOL)
    shutil.copy(HERE / "drift.py", folder)
    (folder / "long.toml").write_text(drift(LONG))
    (folder / "cancelled.toml").write_text(drift(SHORT))
    return folder


def drift(iterations: int) -> str:
    return (
        f'[grid]\nmethod = "./drift.py:Drift"\ndataset = "digits"\nipc = 1\nprecision = "fp32"\n'
        f'protocol = "tiny.toml"\nset = {{ iterations = {iterations} }}\n'
    )


def ddbench(place: Path, *arguments: str, sleep: float = 0.0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DRIFT_SLEEP": str(sleep)}
    command = [sys.executable, "-m", "ddbench", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def submit(place: Path, file: str, *slurm: str, sleep: float = 0.0) -> list[str]:
    settings = [word for setting in slurm for word in ("--slurm", setting)]
    done = ddbench(place, "sweep", file, "--cluster", "slurm", "--json", *settings, sleep=sleep)
    assert done.returncode == 0, done.stderr
    ids: list[str] = json.loads(done.stdout)
    return ids


def states(place: Path, file: str) -> list[tuple[str, str]]:
    done = ddbench(place, "sweep", file, "--cluster", "slurm", "--dry-run", "--json")
    return [(row["state"], row["why"]) for row in json.loads(done.stdout)]


def queue() -> set[str]:
    return set(
        subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
    )


def wait_for(condition: object, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, f"waited in vain until {what}"
        time.sleep(1)


def field(job: str, name: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"\b{name}=(\S+)", shown)
    assert found is not None
    return found[1]


def log_of(place: Path, job: str) -> str:
    (path,) = (place / "runs" / "jobs").glob(f"*/{job}_0_log.out")
    return path.read_text()


def folder_of(place: Path, file: str) -> Path:
    done = ddbench(place, "sweep", file, "--cluster", "slurm", "--dry-run", "--json")
    return place / Path(json.loads(done.stdout)[0]["folder"])


def attempts_of(path: Path) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = read_json(path)["attempts"]
    return attempts


def steps_of(folder: Path) -> list[list[int]]:
    return [attempt["steps"] for attempt in attempts_of(folder / "attempts.json")]


def uninterrupted(place: Path, iterations: int, other: Path) -> torch.Tensor:
    """The images of the same run, done at once, elsewhere."""
    (other / "once.toml").write_text(drift(iterations))
    shutil.copy(place / "tiny.toml", other)
    shutil.copy(place / "drift.py", other)
    done = ddbench(other, "sweep", "once.toml", "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stderr
    (path,) = other.glob("runs/*/*/*/*/synthetic.safetensors")
    return load(path).images


@pytest.fixture(scope="module")
def told(place: Path) -> str:
    """The job of a run of 150 s under a limit of two minutes, of whose end it is told after one to one and a half."""
    (job,) = submit(place, "long.toml", "timeout_min=2", "signal_delay_s=30", sleep=0.1)
    assert field(job, "TimeLimit") == "00:02:00"
    return job


def test_an_array_does_each_run_in_a_job_and_one_that_fails_says_why(place: Path, told: str) -> None:
    (place / "some.toml").write_text(
        '[grid]\nmethod = "random"\ndataset = "digits"\nipc = [1, 2, 3, 4]\nprecision = "fp32"\n'
        'protocol = "tiny.toml"\n'
        '[[run]]\nmethod = "dm"\ndataset = "digits"\nipc = 1\nprecision = "fp32"\nprotocol = "tiny.toml"\n'
        "set = { lr_images = 1e30 }\n"
    )
    first = ddbench(place, "sweep", "some.toml", "--cluster", "slurm", "--dry-run")
    assert "#SBATCH --job-name=some" in first.stdout
    assert "#SBATCH --array=0-3%4" in first.stdout  # as many as this Slurm takes in one array
    assert "--time" not in first.stdout
    assert not list((place / "runs").glob("jobs/some-*"))
    jobs = submit(place, "some.toml")
    assert len(jobs) == 5
    assert field(jobs[0], "TimeLimit") == "UNLIMITED"
    assert field(jobs[0], "JobName") == "some"
    again = ddbench(place, "sweep", "some.toml", "--cluster", "slurm")
    assert "Left out, because they are queued or running" in again.stderr
    assert again.stdout == "Nothing is left to submit.\n"
    wait_for(lambda: not queue() & set(jobs), "the array is done")
    *done, failed = states(place, "some.toml")
    assert [state for state, _ in done] == ["done"] * 4
    assert failed[0] == "failed"
    assert "loss became nan" in failed[1]
    assert [field(job, "JobState") for job in jobs] == ["COMPLETED"] * 4 + ["FAILED"]
    assert field(jobs[-1], "ExitCode") == "1:0"
    assert "loss became nan" in log_of(place, jobs[-1])
    assert "done after" in log_of(place, jobs[0])
    assert not any("Traceback" in log_of(place, job) for job in jobs)
    attempts = [attempts_of(path) for path in (place / "runs").glob("digits/*/random/*/attempts.json")]
    assert [len(some) for some in attempts] == [1] * 4


def test_a_job_that_is_cancelled_has_saved_and_goes_on_when_asked_again(place: Path, told: str, tmp_path: Path) -> None:
    (job,) = submit(place, "cancelled.toml", sleep=0.1)
    folder = folder_of(place, "cancelled.toml")
    wait_for(lambda: (folder / "log.jsonl").is_file() and (folder / "log.jsonl").stat().st_size, "the run steps")
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: job not in queue(), "the job is gone")
    (saved,) = steps_of(folder)
    assert 0 < saved[1] < SHORT
    log = log_of(place, job)
    assert "stopped by SIGTERM" in log
    assert "Traceback" not in log
    assert states(place, "cancelled.toml")[0][0] == "interrupted"
    (again,) = submit(place, "cancelled.toml")
    wait_for(lambda: again not in queue(), "the second job is done")
    assert states(place, "cancelled.toml")[0][0] == "done"
    assert steps_of(folder) == [saved, [saved[1], SHORT]]
    assert torch.equal(load(folder / "synthetic.safetensors").images, uninterrupted(place, SHORT, tmp_path))


def test_jobs_that_share_a_list_repeat_nothing(place: Path, told: str) -> None:
    (place / "shared.toml").write_text(
        '[grid]\nmethod = "herding"\ndataset = "digits"\nipc = [1, 2, 3]\nprecision = "fp32"\nprotocol = "tiny.toml"\n'
        '[[run]]\nmethod = "dm"\ndataset = "digits"\nipc = 2\nprecision = "fp32"\nprotocol = "tiny.toml"\n'
        "set = { lr_images = 1e30 }\n"
    )
    done = ddbench(place, "sweep", "shared.toml", "--cluster", "slurm", "--jobs", "2", "--json")
    jobs = json.loads(done.stdout)
    assert len(jobs) == 2
    wait_for(lambda: not queue() & set(jobs), "both jobs are done")
    assert [state for state, _ in states(place, "shared.toml")] == ["done"] * 3 + ["failed"]
    attempts = [attempts_of(path) for path in (place / "runs").glob("digits/*/herding/*/attempts.json")]
    assert [len(some) for some in attempts] == [1] * 3
    (failed,) = (place / "runs").glob("digits/ipc2/dm/*/attempts.json")
    assert len(attempts_of(failed)) == 1


def test_a_run_that_is_told_of_its_limit_twice_finishes_with_equal_bits(place: Path, told: str, tmp_path: Path) -> None:
    folder = folder_of(place, "long.toml")

    def gone() -> bool:
        # Slurm lets a job that was queued again wait for two minutes, which a test need not.
        subprocess.run(["scontrol", "update", f"JobId={told}", "StartTime=now"], capture_output=True, check=False)
        return told not in queue()

    wait_for(gone, "the long run is done")
    assert states(place, "long.toml")[0][0] == "done"
    steps = steps_of(folder)
    assert len(steps) >= 3
    # Nothing is done twice: each attempt goes on where the one before has saved.
    assert [first for first, _ in steps] == [0, *(last for _, last in steps[:-1])]
    assert field(told, "Restarts") == str(len(steps) - 1)
    log = log_of(place, told)
    assert log.count("was queued again") == len(steps) - 1
    assert "Traceback" not in log
    assert torch.equal(load(folder / "synthetic.safetensors").images, uninterrupted(place, LONG, tmp_path))
