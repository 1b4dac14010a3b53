"""The command line on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_fresh_process_runs_on_a_device_by_number(tmp_path: Path) -> None:
    options = ["--method", "random", "--dataset", "digits", "--ipc", "1", "--students", "1", "--device", "cuda:0"]
    command = [sys.executable, "-m", "ddbench", "run", *options, "--runs", str(tmp_path), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tf32" in done.stdout


SEES = """
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench import Method, MethodConfig, MethodInfo, State, SyntheticSet
from ddbench.initial import noise_images


@dataclass
class SeesState(State):
    images: torch.Tensor


class SeesConfig(MethodConfig):
    iterations: int = 1


class Sees(Method[SeesState]):
    name = "sees"
    info = MethodInfo(title="Sees", learns=("images",))
    Config = SeesConfig

    def start(self, problem):
        gpu = torch.cuda.get_device_properties(problem.device).uuid
        Path(f"seen-{problem.rng.seed}").write_text(f"{torch.cuda.device_count()} {gpu}")
        return SeesState(noise_images(problem, problem.rng.fold("start")).to(problem.device))

    def step(self, problem, state, rng):
        torch.cuda._sleep(2_000_000_000)
        return {"size": state.images.abs().mean()}

    def export(self, problem, state):
        return SyntheticSet(state.images.cpu(), problem.class_labels())
"""
SWEEP = """
[grid]
method = "./sees.py:Sees"
dataset = "digits"
ipc = 1
seed = [0, 1, 2, 3]
judge = "mlp"
students = 1
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("outside", "jobs"), [(None, "2"), ("1,0", "2"), (None, "4"), ("1", "2")])
def test_each_worker_of_a_sweep_sees_its_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: str | None, jobs: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sees.py").write_text(SEES)
    Path("s.toml").write_text(SWEEP)
    if outside is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    command = [sys.executable, "-m", "ddbench", "sweep", "s.toml", "--jobs", jobs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = [Path(f"seen-{seed}").read_text().split() for seed in range(4)]
    assert [count for count, _ in seen] == ["1"] * 4
    assert len({gpu for _, gpu in seen}) == (1 if outside == "1" else 2)
