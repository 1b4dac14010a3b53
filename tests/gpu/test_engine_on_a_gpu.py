"""The engine's graphs, compiled or not, against the plain loop on the same device."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.lockstep as lockstep
from ddbench.backbones.variables import Variables
from ddbench.engine.program import Program
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import Protocol
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import train_students

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers and profilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


def exact(schedule: TrainingPlan) -> TrainingPlan:
    """The same plan on images in double precision."""
    images = schedule.forward(schedule.images).double()
    return replace(schedule, images=images, forward=lambda x: x)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("backbone", "steps", "share", "cutmix"),
    [
        ("convnet-w16", 12, 1e-3, 0.0),
        ("convnet-w16", 12, 1e-3, 0.5),
        ("convnet-w16-bn", 12, 1e-3, 0.0),
        ("alexnet", 6, 1e-3, 0.0),
        ("vgg11", 1, 3e-2, 0.0),
        ("resnet18", 1, 3e-2, 0.0),
        ("resnet18-ap", 1, 3e-2, 0.0),
    ],
)
def test_graphs_train_the_students_of_the_plain_loop(
    backbone: str,
    steps: int,
    share: float,
    cutmix: float,
    fused: bool,
    tmp_path: Path,
    toy_problem: Callable[..., Problem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Deep networks that norm maps of four pixels are so ill-conditioned at the start that after three steps the plain
    # loop itself is a tenth of the way off, and one flipped maximum shows; one step is what rounding leaves comparable.
    monkeypatch.setattr(lockstep, "worth_compiling", lambda seconds, device: fused)
    monkeypatch.setattr(lockstep.COMPILED, "_functions", {})
    problem = toy_problem(backbone, tmp_path, 10)
    some = SyntheticSet(problem.train.images[::4].clone(), problem.train.labels[::4].clone())
    options = SGDOptions(epochs=None, steps=steps, batch=20, cutmix=cutmix)
    schedule = plan(some, Protocol(name="recipe", options=options), problem, Rng(0))
    students, net = [0, 1, 2], problem.backbone
    with problem.precision.active(problem.device):
        fresh = Variables.stack([net.init(Rng(k), problem.device) for k in students])
        truth = train_students(net, fresh.to(torch.float64), exact(schedule), students, together=1, static=False)
        plain = train_students(net, fresh, schedule, students, together=1, static=False)
        ours = train_students(net, fresh, schedule, students, together=3, static=True)
    for name, value in truth.params.items():
        moved = (value - fresh.params[name]).norm()
        rounding = (plain.params[name] - value).norm()
        # Kernels round differently and training amplifies it, so the plain loop's own distance to the truth is the
        # measure; a wrong step would be off by a good part of the whole movement.
        allowed = torch.maximum(5 * rounding, share * moved) + 1e-6
        assert (ours.params[name] - value).norm() <= allowed.clamp(max=float(0.1 * moved + 1e-5)), name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_graphs_spare_biases_and_norms_from_weight_decay(
    optimizer: str, momentum: float, tmp_path: Path, toy_problem: Callable[..., Problem]
) -> None:
    problem = toy_problem("convnet-w16", tmp_path, 10)
    some = SyntheticSet(problem.train.images[::4].clone(), problem.train.labels[::4].clone())
    net, trained = problem.backbone, {}
    for decayed in ("all", "weights"):
        options = SGDOptions.model_validate(
            {"epochs": None, "steps": 3, "batch": 20, "schedule": "constant", "optimizer": optimizer,
             "momentum": momentum, "decayed": decayed, "weight_decay": 10.0}
        )  # fmt: skip
        schedule = plan(some, Protocol(name="recipe", options=options), problem, Rng(0))
        with problem.precision.active(problem.device):
            fresh = Variables.stack([net.init(Rng(0), problem.device)])
            trained[decayed] = train_students(net, fresh, schedule, [0], static=True)
            plain = train_students(net, fresh, schedule, [0], static=False)
    # Scales begin at one, of which decay of 10 takes a tenth at each step of 0.01, 0.27 in three. Where a gradient is
    # rounding alone, as that of a bias before a norm, AdamW steps by up to 0.01 either way: 0.06 apart after three.
    for name, value in plain.params.items():
        ours, otherwise = trained["weights"].params[name], trained["all"].params[name]
        assert (ours - value).abs().max() < 0.06, name
        if name.endswith("norm.weight"):
            assert (otherwise - value).abs().max() > 0.2, name


@pytest.mark.parametrize("fused", [False, True])
def test_dm_takes_the_same_steps_in_a_graph(
    fused: bool, tmp_path: Path, toy_problem: Callable[..., Problem], both_ways: Callable[..., Any]
) -> None:
    method_class = load_object(GROUPS["method"], "dm")
    method = method_class(method_class.Config(iterations=12, batch_real=16))
    plain, graphs = both_ways(method, partial(toy_problem, "convnet-w16", tmp_path, 10), fused=fused)
    assert all(graphs.captured)
    assert plain.losses == pytest.approx(graphs.losses, rel=1e-3)
    assert torch.allclose(plain.state.images, graphs.state.images, atol=1e-3)


def test_a_step_that_cannot_be_captured_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    # The step waits for the device, which a capture forbids.
    program = Program(lambda x: x * float(x.sum()), torch.device("cuda"), calls=5)
    with caplog.at_level("INFO"):
        results = [program(torch.full((3,), 2.0)) for _ in range(5)]
    assert all(r.tolist() == [12, 12, 12] for r in results)
    assert sum("cannot be captured" in message for message in caplog.messages) == 1
