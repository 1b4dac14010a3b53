"""ddbench sweep and ddbench leaderboard: four tiny runs on the digits, and their board."""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.leaderboard.boards import place_of
from ddbench.runs.record import read_record, write_record
from ddbench.runs.rundir import RunDir

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


@pytest.fixture
def ready_workers(forked_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have imported everything; `test_workers_side_by_side_finish_every_run_once` starts real ones."""
    monkeypatch.setattr(sys, "executable", forked_python)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments))


def states(*arguments: str) -> list[str]:
    result = call("sweep", "s.toml", "--dry-run", "--json", *arguments)
    return [row["state"] for row in json.loads(result.stdout)]


@pytest.mark.usefixtures("place", "ready_workers")
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


@pytest.mark.usefixtures("ready_workers")
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


def test_workers_side_by_side_finish_every_run_once(place: Path) -> None:
    result = call("sweep", "s.toml", "--jobs", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()[2:]] == ["done"] * 4
    assert result.stderr.splitlines()[0] == "4 runs"
    assert result.stderr.count("done after ") == 4
    records = sorted((place / "runs").glob("*/*/*/*/record.json"))
    assert [len(read_record(path).attempts) for path in records] == [1] * 4
    assert len(list((place / "runs" / "jobs" / "s").glob("worker-*.log"))) == 2
    again = call("sweep", "s.toml", "--jobs", "2", "--device", "cpu")
    assert again.stdout == result.stdout
    assert "done after" not in again.stderr


@pytest.mark.usefixtures("ready_workers")
def test_runs_of_a_sweep_keep_as_many_states_as_asked(place: Path) -> None:
    (place / "s.toml").write_text(SWEEP.replace('["random", "dm"]', '"dm"').replace("= 1 }", "= 8 }"))
    assert call("sweep", "s.toml", "--shard", "1/2", "--device", "cpu", "--quiet", "--snapshots", "3").exit_code == 0
    kept = sorted(path.stem for path in place.glob("runs/*/*/*/*/snapshots/step_*.safetensors"))
    assert [int(name.removeprefix("step_")) for name in kept] == [0, 2]  # and the result, which is the set
    assert call("sweep", "s.toml", "--snapshots", "1").exit_code == 2


@pytest.mark.usefixtures("ready_workers")
def test_runs_that_a_leaderboard_has_are_left_out(place: Path) -> None:
    assert call("sweep", "s.toml", "--shard", "1/2", "--device", "cpu", "--quiet").exit_code == 0
    for file in sorted((place / "runs").rglob("record.json")):
        record = read_record(file)
        write_record(place / "leaderboards" / place_of(record.run), record)
    elsewhere = ("--runs", "others", "--recorded", "leaderboards")
    assert states(*elsewhere) == ["missing"] * 2
    said = call("sweep", "s.toml", "--dry-run", *elsewhere)
    assert "Left out, because leaderboards has their records: 2 of 4." in said.output
    assert call("sweep", "s.toml", "--device", "cpu", "--quiet", *elsewhere).exit_code == 0
    assert len(list((place / "others").rglob("record.json"))) == 2

    # One more student is asked for than the records have.
    (place / "s.toml").write_text(SWEEP + "students = 3\n")
    assert states(*elsewhere) == ["missing", "interrupted"] * 2
    (said,) = (
        line for line in call("sweep", "s.toml", "--dry-run", *elsewhere).stderr.splitlines() if "Other seeds" in line
    )
    assert said.startswith("1 of the others have a record without all that is asked: digits ipc 1 dm seed 0.")
    # A record that cannot be read is none.
    (place / "s.toml").write_text(SWEEP)
    damaged = next((place / "leaderboards").rglob("*.json"))
    damaged.write_text("{")
    assert sorted(states(*elsewhere)) == ["done", "done", "missing"]
    said = call("sweep", "s.toml", "--dry-run", *elsewhere)
    assert f"Damaged, so that they count as none: {damaged.relative_to(place)}." in said.stderr
    assert "Other seeds" not in said.stderr


def test_a_sweep_that_does_not_reach_its_data_says_so_before_it_begins(place: Path) -> None:
    (place / "s.toml").write_text('[grid]\nmethod = "random"\ndataset = "cifar10"\n')
    result = call("sweep", "s.toml", "--device", "cpu")
    assert result.exit_code == 1
    assert "ddbench data get cifar10" in result.stderr
    assert not (place / "runs").exists()


SBATCH = """#!/bin/sh
echo "$1" >> "$(dirname "$0")/submitted"
case "$(cat "$1")" in *partition=nowhere*) echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1;; esac
echo "Submitted batch job $((10 + $(wc -l < "$(dirname "$0")/submitted")))"
"""


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of a Slurm that takes everything, three jobs to an array, and never begins; `queue` is its queue."""
    commands = place / "bin"
    commands.mkdir()
    (commands / "queue").touch()
    for name, text in {
        "sbatch": SBATCH,
        "srun": "#!/bin/sh\n",
        "squeue": f'#!/bin/sh\ncat "{commands}/queue"\n',
        "scontrol": "#!/bin/sh\necho MaxArraySize = 3\n",
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return commands


def scripts(slurm: Path) -> list[str]:
    return [Path(line).resolve().read_text() for line in (slurm / "submitted").read_text().split()]


def test_slurm_gets_a_job_for_each_run_in_as_many_arrays_as_it_takes(slurm: Path, place: Path) -> None:
    options = ["--cluster", "slurm", "--slurm", "partition=gpu", "--slurm", "gpus_per_node=1", "--slurm", "qos=night"]
    result = call("sweep", "s.toml", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("submitted 11_[0-2], 12 (4 in all); logs are in ")
    first, second = scripts(slurm)
    assert "#SBATCH --array=0-2%3" in first
    assert "--array" not in second
    for script in (first, second):
        for line in ("job-name=s", "partition=gpu", "gpus-per-node=1", "qos=night", "signal=USR2@120", "requeue"):
            assert f"#SBATCH --{line}\n" in script
        assert "--time" not in script  # the partition's own limit holds
    (listed,) = (place / "runs" / "jobs").glob("s-*/runs.json")
    content = json.loads(listed.read_text())
    assert content["jobs"] == {"11_0": [0], "11_1": [1], "11_2": [2], "12": [3]}
    # What is pickled for a job names the list and its number in it, whatever the list's length.
    assert all(path.stat().st_size < 1000 for path in listed.parent.glob("*_submitted.pkl"))


def test_runs_that_are_queued_are_not_submitted_again(slurm: Path) -> None:
    assert call("sweep", "s.toml", "--cluster", "slurm").exit_code == 0
    (slurm / "queue").write_text("11_0\n11_2\n12\n99\n")
    again = call("sweep", "s.toml", "--cluster", "slurm")
    assert again.stderr.splitlines()[-1] == "Left out, because they are queued or running as 11_[0-2], 12: 3."
    assert again.stdout.startswith("submitted 13 (1 in all);")
    (slurm / "queue").write_text("11_0\n11_2\n12\n13\n")
    assert call("sweep", "s.toml", "--cluster", "slurm").stdout == "Nothing is left to submit.\n"


def test_jobs_can_share_the_list_and_have_a_limit(slurm: Path, place: Path) -> None:
    options = ["--slurm", "timeout_min=90", "--slurm", "signal_delay_s=300", "--slurm", "max_num_timeout=7"]
    result = call("sweep", "s.toml", "--cluster", "slurm", "--jobs", "2", "--snapshots", "7", *options)
    assert result.stdout.startswith("submitted 11_[0-1] (2 in all);")
    (script,) = scripts(slurm)
    assert "#SBATCH --time=90\n" in script
    assert "#SBATCH --signal=USR2@300\n" in script
    (listed,) = (place / "runs" / "jobs").glob("s-*/runs.json")
    content = json.loads(listed.read_text())
    assert content["jobs"] == {"11_0": [0, 1, 2, 3], "11_1": [0, 1, 2, 3]}
    assert content["grace_seconds"] == 150
    assert content["beside"] == {"track": [], "snapshots": 7}
    # Each of the shared jobs has all of it.
    (slurm / "queue").write_text("11_1\n")
    assert call("sweep", "s.toml", "--cluster", "slurm").stdout == "Nothing is left to submit.\n"


def test_a_dry_run_with_slurm_shows_the_script_and_submits_nothing(slurm: Path, place: Path) -> None:
    result = call("sweep", "s.toml", "--cluster", "slurm", "--dry-run", "--slurm", "partition=gpu")
    assert result.exit_code == 0, result.output
    assert "#SBATCH --array=0-2%3" in result.stdout
    assert "#SBATCH --partition=gpu" in result.stdout
    assert not (slurm / "submitted").exists()
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("partition=nowhere", "Slurm did not take the jobs: sbatch: error: invalid partition specified: nowhere"),
        ("colour=red", "--slurm colour: submitit has no such setting. It has cpus_per_task, "),
        ("partion=gpu", "--slurm partion: submitit has no such setting. Did you mean 'partition'? "),
        ("mem_bg=4", "Did you mean 'mem_gb'? "),
        ("timeout_min=soon", 'submitit does not take these Slurm settings: Parameter "timeout_min" expected type'),
        ("nodes=2", "a job of a sweep is one task on one node"),
        ("tasks_per_node=4", "a job of a sweep is one task on one node"),
    ],
)
@pytest.mark.usefixtures("slurm")
def test_what_slurm_does_not_take_is_a_sentence(setting: str, says: str) -> None:
    result = call("sweep", "s.toml", "--cluster", "slurm", "--slurm", setting)
    assert result.exit_code == (1 if setting == "partition=nowhere" else 2)  # that Slurm alone knows
    assert says in result.stderr
    assert "sbatch is not found" not in result.stderr


@pytest.mark.usefixtures("place")
def test_slurm_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = call("sweep", "s.toml", "--cluster", "slurm")
    assert result.exit_code == 1
    assert "sbatch is not found. Start the sweep on a machine that has it." in result.stderr


@pytest.mark.usefixtures("place")
def test_records_of_a_clean_checkout_become_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.runs.provenance.git", lambda: {"commit": "0" * 40, "dirty": False})
    which = ["--method", "random", "--dataset", "digits", "--ipc", "1", "--protocol", "tiny.toml"]
    assert call("run", *which, "--device", "cpu", "--quiet").exit_code == 0
    (folder,) = Path("runs").glob("digits/ipc1/random/*")
    added = call("leaderboard", "add", str(folder), "--leaderboards", "boards")
    assert added.exit_code == 0, added.output
    assert Path(added.stdout.strip()).is_file()
    stale = call("leaderboard", "build", "--check", "--leaderboards", "boards")
    assert stale.exit_code == 1
    assert "`ddbench leaderboard build --leaderboards boards` makes them again" in stale.stderr
    built = call("leaderboard", "build", "--leaderboards", "boards")
    assert "tables/digits/ipc1.md" in built.stdout.splitlines()
    assert call("leaderboard", "build", "--check", "--leaderboards", "boards").exit_code == 0


@pytest.mark.usefixtures("place")
def test_no_runs_give_a_sentence_and_not_an_empty_table() -> None:
    result = call("leaderboard")
    assert result.exit_code == 0
    assert "There is no finished run under runs yet" in result.stdout
    assert json.loads(call("leaderboard", "--json").stdout) == []
