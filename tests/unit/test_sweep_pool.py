"""Devices of workers, their environment, and sweeps in processes of their own that break down, stop or are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddbench.errors import ConfigError, RunError
from ddbench.files import read_json
from ddbench.runs import resolving
from ddbench.runs.batch import resolve_all
from ddbench.runs.devices import choose_device, visible_devices
from ddbench.runs.places import likely_devices, place_of
from ddbench.runs.resolving import Asked
from ddbench.runs.rundir import RunDir
from ddbench.runs.states import Status
from ddbench.sweep.grid import asked_from_json, asked_to_json, read_sweep
from ddbench.sweep.pool import Pool
from ddbench.sweep.process import last_sentence, started_ahead
from ddbench.sweep.progress import Board
from ddbench.sweep.tasks import tasks_of

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 2\nbatch = 16\n'


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_sweep_uses_every_visible_gpu_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_devices("auto") == visible_devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert visible_devices("cuda:1") == ["cuda:1"]
    assert visible_devices("cpu") == ["cpu"]
    with pytest.raises(ConfigError, match="this machine has cuda:0 to cuda:2"):
        choose_device("cuda:3")


@pytest.mark.parametrize(
    ("outside", "device", "inside"),
    [
        (None, "cuda:1", "1"),
        (None, "cuda", "0"),
        ("", "cuda:1", "1"),
        ("3,5", "cuda:1", "5"),
        ("3, 5", "cuda:0", "3"),
        ("GPU-8932f937,GPU-12ab34cd", "cuda:1", "GPU-12ab34cd"),
    ],
)
def test_a_worker_is_given_its_gpu_alone(outside: str | None, device: str, inside: str) -> None:
    """Whatever CUDA_VISIBLE_DEVICES says outside: the number counts what this process sees."""
    place = place_of(device, {"HOME": "h"} | ({} if outside is None else {"CUDA_VISIBLE_DEVICES": outside}))
    assert place.environment == {"HOME": "h", "CUDA_VISIBLE_DEVICES": inside}
    assert (place.shown, place.device) == (device, "cuda")


def test_a_worker_on_a_cpu_keeps_its_environment() -> None:
    assert place_of("cpu", {"CUDA_VISIBLE_DEVICES": "7"}).environment == {"CUDA_VISIBLE_DEVICES": "7"}


@pytest.mark.parametrize(
    ("drivers", "outside", "device", "likely"),
    [
        (3, None, "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        (3, "2,0", "cuda", ["cuda:0", "cuda:1"]),
        (3, None, "cuda:1", ["cuda:1"]),
        (3, None, "cpu", []),
        (3, None, "cuda:x", []),
        (0, "0,1", "auto", []),
    ],
)
def test_devices_are_guessed_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drivers: int, outside: str | None, device: str, likely: list[str]
) -> None:
    for number in range(drivers):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outside is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    assert likely_devices(device, tmp_path) == likely


def test_methods_without_a_budget_answer_every_ipc_with_one_run(tmp_path: Path) -> None:
    asked = [Asked(method, "digits", ipc=ipc) for method in ("whole", "random") for ipc in (1, 2)]
    wanted = [("whole", 0), ("random", 1), ("random", 2)]
    assert [(r.spec.method, r.spec.ipc) for r in resolve_all(asked, tmp_path)] == wanted
    tasks = tasks_of(asked, tmp_path)
    assert [(t.resolution.spec.method, t.resolution.spec.ipc) for t in tasks] == wanted


def test_workers_on_unlike_devices_make_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "usual", lambda device: "tf32" if device.index == 0 else "fp32")
    requests = [Asked("random", "digits"), Asked("random", "digits", precision="bf16")]
    there = [task.asked for task in tasks_of(requests, tmp_path, torch.device("cuda:0"), settled=True)]
    assert [asked.precision for asked in there] == ["tf32", "bf16"]
    ids = [[r.spec.id for r in resolve_all(there, tmp_path, torch.device(f"cuda:{k}"))] for k in (0, 1)]
    assert ids[0] == ids[1]


def test_a_request_crosses_to_another_process_unchanged() -> None:
    asked = Asked(
        "dm", "digits", ipc=3, seed=2, protocols=("dsa@1",), judges=("mlp",), students=4, precision="fp32",
        config_file=Path("a.toml"), options={"a": 1, "b": [2, "x"]}, by="command",
    )  # fmt: skip
    assert asked_from_json(json.loads(json.dumps(asked_to_json(asked)))) == asked


# What follows starts processes: a few seconds each.

WITNESS = """
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench import Method, MethodConfig, MethodInfo, State, SyntheticSet
from ddbench.initial import noise_images


class WitnessConfig(MethodConfig):
    iterations: int = 1
    how: str = "well"


@dataclass
class WitnessState(State):
    images: torch.Tensor


class Witness(Method[WitnessState]):
    name = "witness"
    info = MethodInfo(title="Witness", learns=("images",))
    Config = WitnessConfig

    def start(self, problem):
        print(f"a method that prints, seed {problem.rng.seed}")
        how = self.config.how
        if how == "dies":
            sys.stderr.write("a library's last words\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "bug":
            raise TypeError("a bug of its author's")
        Path(f"seen-{problem.rng.seed}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
        return WitnessState(noise_images(problem, problem.rng.fold("start")))

    def step(self, problem, state, rng):
        time.sleep(0.02 if self.config.how == "long" else 0)
        return {"zero": torch.zeros(())}

    def export(self, problem, state):
        return SyntheticSet(state.images.cpu().clone(), problem.class_labels())
"""


def witness(seeds: str, how: str = "well", iterations: int = 1) -> str:
    return (
        f'[[run]]\nmethod = "./witness.py:Witness"\ndataset = "digits"\nipc = 1\nseed = {seeds}\n'
        f'protocol = "tiny.toml"\nprecision = "fp32"\nset = {{ how = "{how}", iterations = {iterations} }}\n'
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    (tmp_path / "witness.py").write_text(WITNESS)
    return tmp_path


@pytest.fixture
def ready_workers(forked_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have imported everything; tests/cli/test_cli_sweep.py has a sweep with real ones."""
    monkeypatch.setattr(sys, "executable", forked_python)


def pool_of(place: Path, text: str, devices: list[str], every_seconds: float = 30.0) -> Pool:
    (place / "s.toml").write_text(text)
    tasks = tasks_of(read_sweep(place / "s.toml"), place)
    board = Board([t.name for t in tasks], [t.kind for t in tasks], len(devices), every_seconds=every_seconds)
    # As on a machine with GPUs, as far as that can be had without one: the environment is theirs, the device a CPU.
    places = [place_of(device) for device in devices]
    for there in places:
        object.__setattr__(there, "device", "cpu")
    return Pool(tasks, places, place / "runs", place, place / "runs" / "jobs" / "s", board)


@pytest.mark.usefixtures("ready_workers")
def test_each_worker_really_gets_the_environment_of_its_gpu(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More jobs than GPUs too: four workers on two of the three that are there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    outcomes = pool_of(place, witness("[0, 1, 2, 3]"), ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]).work()
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    assert [outcome.spec.seed for outcome in outcomes] == [0, 1, 2, 3]
    seen = [(place / f"seen-{seed}").read_text() for seed in range(4)]
    assert set(seen) <= {"4", "7"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.usefixtures("ready_workers")
def test_a_worker_that_breaks_down_is_reported_in_its_own_words_and_the_others_go_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = witness("0", "dies") + witness("1", "bug") + witness("[2, 3]")
    outcomes = pool_of(place, text, ["cpu", "cpu"]).work()
    assert [outcome.state for outcome in outcomes] == ["failed", "failed", "done", "done"]
    killed, bug = (outcome.message for outcome in outcomes[:2])
    assert "was ended by SIGKILL" in killed
    assert killed.endswith("a library's last words")
    assert bug.endswith("TypeError: a bug of its author's")
    # Both are in their folders, for whoever comes on Monday.
    states = [task.status(place / "runs") for task in tasks_of(read_sweep(place / "s.toml"), place)]
    assert [status.state for status in states] == ["failed", "failed", "done", "done"]
    assert states[0].why == killed
    assert states[1].why == "TypeError: a bug of its author's"
    assert "failed after" in capsys.readouterr().err


@pytest.mark.usefixtures("ready_workers")
def test_workers_that_cannot_start_are_a_sentence(place: Path) -> None:
    pool = pool_of(place, witness("[0, 1]"), ["cpu"])
    object.__setattr__(pool.places[0], "device", "cuda:9")
    with pytest.raises(
        RunError, match=r"no worker of the sweep could start: ended with exit code 1: (device|there is)"
    ):
        pool.work()


@pytest.mark.usefixtures("ready_workers")
def test_a_run_that_is_locked_is_left_to_its_process_and_others_can_be_left_out(place: Path) -> None:
    pool = pool_of(place, witness("[0, 1, 2]"), ["cpu"])
    pool.skip = lambda task: Status("failed", "elsewhere") if task.resolution.spec.seed == 1 else None
    folder = RunDir.open(place / "runs", pool.tasks[0].resolution.spec)
    with folder.lock():
        outcomes = pool.work()
    assert [outcome.state for outcome in outcomes] == ["running", "failed", "done"]
    assert not (place / "runs" / pool.tasks[1].resolution.spec.folder).exists()


@pytest.mark.usefixtures("ready_workers")
def test_a_worker_can_start_before_its_runs_are_known_and_one_too_many_is_sent_away(place: Path) -> None:
    pool = pool_of(place, witness("[0]"), ["cpu"])
    with started_ahead([pool.places[0], place_of("cuda:3")], pool.logs) as ahead:
        taken, left = ahead
        pool.ahead = ahead
        assert [outcome.state for outcome in pool.work()] == ["done"]
        assert ahead == [left]
        assert taken.popen.returncode == 0
    assert left.popen.returncode is not None


@pytest.mark.usefixtures("ready_workers")
def test_progress_is_said_in_plain_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool_of(place, witness("[0, 1]", "long", 40), ["cpu"], every_seconds=0.2).work()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 runs"
    assert "0 of 2 runs done" in lines
    assert any(line.startswith("  cpu: digits ipc 1 witness seed 0, condense") for line in lines)
    assert sum(line.startswith("done after") for line in lines) == 2
    assert any(line.startswith("1 of 2 runs done, about ") for line in lines)


@pytest.mark.parametrize(
    ("text", "last"), [("a\nb\n\n", "b"), ("", ""), ("only", "only"), ("before\x00\nafter \n", "after")]
)
def test_the_last_sentence_of_a_log(tmp_path: Path, text: str, last: str) -> None:
    log = tmp_path / "a.log"
    log.write_text("an earlier worker's\n" + text)
    assert last_sentence(log, len("an earlier worker's\n")) == last


def started(place: Path, python: str = sys.executable) -> subprocess.Popen[str]:
    """A sweep of two long runs on two workers, at work, with a session of its own."""
    (place / "s.toml").write_text(witness("[0, 1]", "long", 100_000))
    command = [python, "-m", "ddbench", "sweep", "s.toml", "--device", "cpu", "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    logs = lambda: [path for path in place.glob("runs/*/*/*/*/log.jsonl") if path.stat().st_size]  # noqa: E731
    wait_for(lambda: len(logs()) == 2)
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def nobody_holds(place: Path) -> bool:
    return all(RunDir.holder(path.parent) is None for path in place.glob("runs/*/*/*/*/spec.json"))


def saved_steps(place: Path) -> list[int]:
    return [read_json(path)["attempts"][-1]["steps"][1] for path in place.glob("runs/*/*/*/*/attempts.json")]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_sweep_that_is_stopped_has_saved_every_run_and_left_no_worker(
    place: Path, number: signal.Signals, code: int, forked_python: str
) -> None:
    # The slow one starts real processes.
    process = started(place, forked_python if number == signal.SIGTERM else sys.executable)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "0 of 2 runs are done, 2 saved what they had" in err
    assert "Traceback" not in err
    assert nobody_holds(place)
    assert all(step > 0 for step in saved_steps(place))


def test_no_worker_outlives_a_sweep_that_was_killed(place: Path, forked_python: str) -> None:
    process = started(place, forked_python)
    process.kill()
    process.communicate()
    wait_for(lambda: nobody_holds(place))
    assert all(step > 0 for step in saved_steps(place))


def test_no_worker_outlives_the_terminal_whose_shell_was_killed(place: Path, forked_python: str) -> None:
    """The kernel hangs up on everyone in front when a terminal's shell dies, of SIGKILL too."""
    import pty

    (place / "s.toml").write_text(witness("[0, 1]", "long", 100_000))
    sweep = f"{forked_python} -m ddbench sweep s.toml --device cpu --jobs 2; true"
    shell, terminal = pty.fork()
    if shell == 0:
        os.execvp("bash", ["bash", "-c", sweep])
    logs = lambda: [path for path in place.glob("runs/*/*/*/*/log.jsonl") if path.stat().st_size]  # noqa: E731
    wait_for(lambda: len(logs()) == 2)
    os.kill(shell, signal.SIGKILL)
    os.waitpid(shell, 0)
    wait_for(lambda: nobody_holds(place))
    os.close(terminal)
    assert all(step > 0 for step in saved_steps(place))
