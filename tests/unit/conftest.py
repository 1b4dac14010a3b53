"""What tests of runs folders share."""

import shutil
from pathlib import Path

import pytest

PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one finished run, DM on the digits; to be copied, not changed."""
    import torch

    from ddbench.runs.runner import RunOptions, run
    from ddbench.runs.spec import Asked, resolve_spec

    place = tmp_path_factory.mktemp("made")
    (place / "tiny.toml").write_text(PROTOCOL)
    asked = Asked("dm", "digits", ipc=1, protocols=[str(place / "tiny.toml")], options={"iterations": 2})
    options = RunOptions(root=place / "runs", data_root=place, device=torch.device("cpu"), snapshots=3)
    run(resolve_spec(asked, place), options)
    return place / "runs"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of that runs folder for one test."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"
