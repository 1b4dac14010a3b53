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
