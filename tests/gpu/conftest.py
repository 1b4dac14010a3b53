"""What the tests on a GPU share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.artifacts import ArtifactCache
from ddbench.backbones.names import build
from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy
from ddbench.engine.program import Program
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks


@pytest.fixture
def on_the_gpu() -> Callable[[Path], Problem]:
    """Makes the small problem of the contract, on a GPU; what it held out before stays on the host."""

    def make(folder: Path) -> Problem:
        device = torch.device("cuda")
        problem = problem_for_checks(folder)
        pixels = fit_pixels("standard", problem.train, problem.info).to(device)
        return replace(problem, device=device, pixels=pixels)

    return make


@pytest.fixture
def call_one_by_one() -> Callable[[pytest.MonkeyPatch], None]:
    """Lets every step run as it is called, without graphs, for as long as the patch holds."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        usual = Program.__init__

        def eager(self: Program, *args: Any, **options: Any) -> None:
            usual(self, *args, **options)
            self._eager = True

        monkeypatch.setattr(Program, "__init__", eager)

    return patch


@pytest.fixture
def toy_problem() -> Callable[..., Problem]:
    """Makes a problem of three classes of 40 images, 32x32 in colour, for any backbone."""

    def make(backbone: str, folder: Path, ipc: int, device: str = "cuda") -> Problem:
        data, place = toy(3, (3, 32, 32), 40), torch.device(device)
        return Problem(
            info=data.info,
            train=data.train,
            pixels=fit_pixels("standard", data.train, data.info).to(place),
            backbone=build(backbone, data.train.shape, 3),
            ipc=ipc,
            rng=Rng(0),
            device=place,
            artifacts=ArtifactCache(folder),
        )

    return make
