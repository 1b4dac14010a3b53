"""ddbench sweep and ddbench leaderboard: four tiny runs on the digits, and their board."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.runs.batch import Outcome
from ddbench.runs.record import read_record
from ddbench.runs.rundir import RunDir
from ddbench.sweep.launch import Worker

SWEEP = """
[grid]
method = ["random", "dm"]
dataset = "digits"
ipc = [1, 2]
protocol = "tiny.toml"
set = { dm.iterations = 1 }
"""
PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    (tmp_path / "s.toml").write_text(SWEEP)
    return tmp_path


class InProcess:
    """A job of submitit's, without a process."""

    def __init__(self, worker: Callable[[], list[Outcome]]) -> None:
        self.outcomes = worker()

    def result(self) -> list[Outcome]:
        return self.outcomes

    def done(self) -> bool:
        return True


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments))


def states(*arguments: str) -> list[str]:
    result = call("sweep", "s.toml", "--dry-run", "--json", *arguments)
    return [row["state"] for row in json.loads(result.stdout)]


@pytest.mark.usefixtures("place")
def test_a_sweep_is_done_in_parts_and_shown_on_the_board() -> None:
    assert states() == ["missing"] * 4
    part = call("sweep", "s.toml", "--shard", "2/2", "--device", "cpu", "--quiet")
    assert part.exit_code == 0, part.output
    assert states() == ["missing", "done", "missing", "done"]
    assert call("sweep", "s.toml", "--device", "cpu", "--quiet").exit_code == 0
    assert states() == ["done"] * 4
    assert states("--shard", "1/4") == ["done"]
    board = call("leaderboard")
    assert board.exit_code == 0, board.output
    assert board.stdout.count("protocol tiny@1") == 2
    rows = json.loads(call("leaderboard", "--json").stdout)
    assert {(row["method"], row["ipc"]) for row in rows} == {(m, k) for m in ("random", "dm") for k in (1, 2)}


def test_a_run_that_another_process_works_on_is_left_to_it(place: Path) -> None:
    assert call("sweep", "s.toml", "--shard", "1/4", "--device", "cpu", "--quiet").exit_code == 0
    (folder,) = (place / "runs" / "digits" / "ipc1" / "random").iterdir()
    (folder / "record.json").unlink()
    with RunDir.at(folder).lock():
        result = call("sweep", "s.toml", "--shard", "1/2", "--device", "cpu", "--quiet", "--json")
    assert result.exit_code == 1
    busy, done = json.loads(result.stdout)
    assert (busy["state"], done["state"]) == ("running", "done")
    assert "is being worked on by pid" in busy["message"]


def test_workers_side_by_side_finish_every_run_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.LocalExecutor, "submit", lambda self, worker: InProcess(worker))
    result = call("sweep", "s.toml", "--jobs", "2", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()[2:]] == ["done"] * 4
    records = sorted((place / "runs").glob("*/*/*/*/record.json"))
    assert [len(read_record(path).attempts) for path in records] == [1] * 4


@pytest.mark.slow
def test_workers_are_processes_of_their_own(place: Path) -> None:
    result = call("sweep", "s.toml", "--jobs", "2", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert states() == ["done"] * 4
    assert len(list((place / "runs" / "jobs").glob("*_result.pkl"))) == 2


def test_a_worker_that_breaks_down_is_a_sentence_with_its_log(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        job_id = "7"
        paths = type("Paths", (), {"stderr": "runs/jobs/7_log.err"})

        def result(self) -> None:
            raise submitit.core.utils.FailedJobError("Job 7 failed\nMemoryError: too large")

        def done(self) -> bool:
            return True

    monkeypatch.setattr(submitit.LocalExecutor, "submit", lambda self, worker: Broken())
    result = call("sweep", "s.toml", "--jobs", "2", "--device", "cpu", "--quiet")
    assert result.exit_code == 1
    assert "a worker of the sweep broke down: MemoryError: too large Its log is runs/jobs/7_log.err" in result.stderr


@pytest.mark.usefixtures("place")
def test_slurm_jobs_are_submitted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    class Slurm:
        def update_parameters(self, **values: object) -> None:
            seen.update(values)

        def submit(self, worker: Worker) -> SimpleNamespace:
            return SimpleNamespace(job_id=f"11_{worker.first}")

        def batch(self) -> AbstractContextManager[None]:
            return nullcontext()

    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: Slurm())
    options = ["--cluster", "slurm", "--slurm", "partition=gpu", "--slurm", "timeout_min=720", "--jobs", "2"]
    result = call("sweep", "s.toml", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("submitted 2 jobs: 11_0, 11_2; their logs are in runs")
    assert seen == {"slurm_partition": "gpu", "timeout_min": 720}


@pytest.mark.usefixtures("place")
def test_slurm_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = call("sweep", "s.toml", "--cluster", "slurm")
    assert result.exit_code == 1
    assert "Start it on a machine that has sbatch" in result.stderr


@pytest.mark.usefixtures("place")
def test_records_of_a_clean_checkout_become_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.runs.provenance.git", lambda: {"commit": "0" * 40, "dirty": False})
    assert call("sweep", "s.toml", "--shard", "1/4", "--device", "cpu", "--quiet").exit_code == 0
    (folder,) = Path("runs").glob("digits/ipc1/random/*")
    added = call("leaderboard", "add", str(folder), "--leaderboards", "boards")
    assert added.exit_code == 0, added.output
    assert Path(added.stdout.strip()).is_file()
    stale = call("leaderboard", "build", "--check", "--leaderboards", "boards")
    assert stale.exit_code == 1
    assert "`ddbench leaderboard build` makes them again" in stale.stderr
    built = call("leaderboard", "build", "--leaderboards", "boards")
    assert "tables/digits/ipc1.md" in built.stdout.splitlines()
    assert call("leaderboard", "build", "--check", "--leaderboards", "boards").exit_code == 0


@pytest.mark.usefixtures("place")
def test_no_runs_give_a_sentence_and_not_an_empty_table() -> None:
    result = call("leaderboard")
    assert result.exit_code == 0
    assert "There is no finished run under runs yet" in result.stdout
    assert json.loads(call("leaderboard", "--json").stdout) == []
