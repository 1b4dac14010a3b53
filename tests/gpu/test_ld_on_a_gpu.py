"""LD's steps, and the Adam steps of its students, as CUDA graphs, compiled or not, against plain calls of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.lockstep as lockstep
from ddbench.backbones.variables import Variables
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import Recipe, SyntheticSet
from ddbench.training.students import train_students

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("variant", ["second-order", "ridge"])
def test_ld_takes_the_same_steps_in_a_graph(
    variant: str,
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    both_ways: Callable[..., Any],
) -> None:
    method_class = load_object(GROUPS["method"], "ld")
    # Two full batches and a smaller one: both programs are captured, and one after the other uses the optimisers.
    method = method_class(method_class.Config(variant=variant, iterations=30, batch_real=50))
    plain, graphs = both_ways(method, partial(on_the_gpu, tmp_path), fused=fused)
    assert graphs.captured == [True, True]
    assert plain.losses == pytest.approx(graphs.losses, rel=1e-2)
    assert torch.allclose(plain.state.labels, graphs.state.labels, atol=3e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_graphs_take_the_steps_of_adam(
    fused: bool, tmp_path: Path, on_the_gpu: Callable[[Path], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "worth_compiling", lambda seconds, device: fused)
    monkeypatch.setattr(lockstep.COMPILED, "_functions", {})
    problem = on_the_gpu(tmp_path)
    images = problem.train.images[torch.arange(0, 120, 20)]
    synthetic = SyntheticSet(images, problem.class_labels(), recipe=Recipe(steps=20, batch=4))
    schedule = plan(synthetic, PROTOCOLS["ld@1"], problem, Rng(0))
    # In double precision: a gradient that is zero but for rounding would otherwise become a whole step.
    schedule = replace(schedule, images=schedule.forward(schedule.images).double(), forward=lambda x: x)
    net, students = problem.backbone, [0, 1, 2]
    fresh = Variables.stack([net.init(Rng(k), problem.device) for k in students]).to(torch.float64)
    plain = train_students(net, fresh, schedule, students, static=False)
    static = train_students(net, fresh, schedule, students, static=True)
    for name, value in plain.params.items():
        assert torch.allclose(value, static.params[name], atol=1e-6), name
