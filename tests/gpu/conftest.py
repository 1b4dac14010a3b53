"""What the tests on a GPU share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddbench.data.pixels import fit_pixels
from ddbench.problem import Problem
from ddbench.testing.contract import problem_for_checks


@pytest.fixture
def on_the_gpu() -> Callable[[Path], Problem]:
    """Makes the small problem of the contract, on a GPU; what it held out before stays on the host."""

    def make(folder: Path) -> Problem:
        device = torch.device("cuda")
        problem = problem_for_checks(folder)
        pixels = fit_pixels("standard", problem.train, problem.info).to(device)
        return replace(problem, device=device, pixels=pixels, _splits={})

    return make
