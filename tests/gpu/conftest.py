"""What the tests on a GPU share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.engine.program as program
from ddbench.artifacts import ArtifactCache
from ddbench.backbones.names import build
from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy
from ddbench.loop import drive
from ddbench.method import Method
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks


@dataclass(frozen=True, eq=False)
class Driven:
    """A method that was driven to its end: with what, its last state, and its loss of every step."""

    method: Method[Any]
    problem: Problem
    state: Any
    losses: list[float]

    @property
    def captured(self) -> list[bool]:
        """Of every program of its steps, whether it is a CUDA graph."""
        return [step.captured for step in self.state._programs.programs.values()]


def driven(method: Method[Any], problem: Problem) -> Driven:
    """Drive a method to its end, in the problem's precision."""
    with problem.precision.active(problem.device):
        steps = list(drive(method, problem))
    return Driven(method, problem, steps[-1][0], [float(metrics["loss"]) for _, metrics in steps[1:]])


MADE = program.Program.__init__


def make_without_graph(made: program.Program, *args: Any, **options: Any) -> None:
    """Initialise a program that is called step by step, whatever the device can do."""
    MADE(made, *args, **options)
    made._eager = True


def drive_both_ways(
    monkeypatch: pytest.MonkeyPatch, method: Method[Any], problem_of: Callable[[], Problem], *, fused: bool
) -> tuple[Driven, Driven]:
    """A method with every step as it is called, and once more with its steps in graphs, compiled if they are `fused`.

    Each time on a problem that `problem_of` makes, by a method of its own.
    """
    monkeypatch.setattr(program, "worth_compiling", lambda seconds, device: fused)
    problem = problem_of()
    with monkeypatch.context() as patched:
        patched.setattr(program.Program, "__init__", make_without_graph)
        plain = driven(type(method)(method.config), problem)
    graphs = driven(type(method)(method.config), problem_of())
    assert not any(plain.captured)
    return plain, graphs


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Driven, Driven]]:
    """`drive_both_ways`, for as long as the test lasts."""
    return partial(drive_both_ways, monkeypatch)


def problem_on_the_gpu(folder: Path) -> Problem:
    """The small problem of the contract, on a GPU; what it held out before stays on the host."""
    device = torch.device("cuda")
    problem = problem_for_checks(folder)
    pixels = fit_pixels("standard", problem.train, problem.info).to(device)
    return replace(problem, device=device, pixels=pixels)


@pytest.fixture
def on_the_gpu() -> Callable[[Path], Problem]:
    """`problem_on_the_gpu`."""
    return problem_on_the_gpu


def problem_of_the_toy(
    backbone: str, folder: Path, ipc: int, device: str = "cuda", *, drawn_on_the_host: bool = False
) -> Problem:
    """Three classes of 40 images, 32x32 in colour, for any backbone.

    Methods may draw networks on a GPU; `drawn_on_the_host`, they are those that a CPU draws.
    """
    data, place = toy(3, (3, 32, 32), 40), torch.device(device)
    problem = Problem(
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info).to(place),
        backbone=build(backbone, data.train.shape, 3),
        ipc=ipc,
        rng=Rng(0),
        device=place,
        artifacts=ArtifactCache(folder),
    )
    if drawn_on_the_host:
        problem.backbone.init = partial(draw_on_the_host, problem.backbone.init)  # type: ignore[method-assign]
    return problem


def draw_on_the_host(init: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A network as `init` draws it where it is not told to draw on the device."""
    return init(*args, **{**options, "on_device": False})


@pytest.fixture
def toy_problem() -> Callable[..., Problem]:
    """`problem_of_the_toy`."""
    return problem_of_the_toy
