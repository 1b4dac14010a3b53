"""What tests of runs folders and of records share."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"
PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n'


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one finished run, DM on the digits; to be copied, not changed."""
    import torch

    from ddbench.runs.resolving import Asked, resolve_spec
    from ddbench.runs.runner import RunOptions, run

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


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a record like one of the golden ones, with some of its parts changed by functions."""

    def write(name: str, like: str = "dm-s0.json", **changes: Any) -> Path:
        value = json.loads((RECORDS / like).read_text())
        for key, change in changes.items():
            value[key] = change(value.get(key))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Call it with a folder, in which the system then makes no file, also where the tests are root."""

    def shut(folder: Path) -> None:
        real = os.open

        def denied(path: Any, flags: int, *values: Any, **named: Any) -> int:
            inside = isinstance(path, str | os.PathLike) and folder in (Path(path), *Path(path).parents)
            if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, flags, *values, **named)

        monkeypatch.setattr(os, "open", denied)

    return shut
