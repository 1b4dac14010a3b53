"""A judge that cannot exist is a sentence before anything is done, and leaves nothing behind."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root as program
from ddbench.leaderboard.boards import local_board
from ddbench.runs.record import read_record

NETS = """
import torch
def broken(shape, classes): raise ValueError("never")
def wide(shape, classes): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9999, classes))
"""


def ddbench(*arguments: object) -> Result:
    return CliRunner().invoke(program, [*map(str, arguments), "--device", "cpu"])


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.mark.parametrize("judge", ["torchvision:resnet19", "torchvision:vit_b_16", "nets:broken", "nets:wide"])
def test_nothing_is_recorded_of_a_judge_that_cannot_exist(root: Path, nets: Path, judge: str) -> None:
    (folder,) = root.glob("digits/*/*/*")
    before, board = read_record(folder / "record.json"), local_board(root)
    files = sorted(folder.rglob("*"))
    judge = judge.replace("nets", str(nets))
    result = ddbench("evaluate", folder, "--protocol", "quick", "--judge", judge, "--judge", "mlp", "--students", 1)
    assert result.exit_code != 0
    assert judge.rpartition(":")[2] in result.stderr
    assert read_record(folder / "record.json") == before
    assert sorted(folder.rglob("*")) == files
    assert local_board(root) == board


def test_a_run_that_nobody_could_judge_is_not_begun(tmp_path: Path) -> None:
    arguments = ["run", "--method", "random", "--dataset", "digits", "--ipc", 1, "--runs", tmp_path / "runs"]
    for judge, more in (("torchvision:vit_b_16", []), ("torchvision:resnet19", ["--dry-run"])):
        result = ddbench(*arguments, "--judge", judge, "--judge", "mlp", *more)
        assert result.exit_code != 0
        assert judge.rpartition(":")[2] in result.stderr
    assert not list((tmp_path / "runs").glob("*/*/*/*"))


def test_all_impossible_judges_are_named_at_once(root: Path) -> None:
    (folder,) = root.glob("digits/*/*/*")
    judges = ("--judge", "torchvision:resnet19", "--judge", "torchvision:vgg10")
    stderr = ddbench("evaluate", folder, "--protocol", "quick", *judges).stderr
    assert "resnet19" in stderr
    assert "vgg10" in stderr
