"""NCFM's iterations as CUDA graphs, compiled or not, against the same iterations called one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.engine.program as program
from ddbench.loop import drive
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learned_frequencies": True, "normals_per_scale": 4},
        {"in_turn": True, "real_images": "first", "watched": "both"},
        {"optimizer": "sgd", "lr_images": 1e-4},
    ],
)
def test_ncfm_takes_the_same_steps_in_a_graph(
    options: dict[str, Any],
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    monkeypatch: pytest.MonkeyPatch,
    call_one_by_one: Callable[[pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr(program, "worth_compiling", lambda seconds, device: fused)
    kind = load_object(GROUPS["method"], "ncfm")
    losses, ends = [], []
    for eager in (True, False):
        problem = on_the_gpu(tmp_path)
        # SGD at a large step, so that a network that stood still in the graph would be seen.
        config = kind.Config(
            iterations=8, networks=2, epochs=2, batch_real=8, frequencies=64, lr_frequencies=0.1, **options
        )
        method = kind(config)
        with problem.precision.active(problem.device), monkeypatch.context() as patched:
            if eager:
                call_one_by_one(patched)
            steps = list(drive(method, problem))
        state, _ = steps[-1]
        losses.append([float(metrics["loss"]) for _, metrics in steps[1:]])
        assert [step.captured is not eager for step in state._programs.programs.values()] == [True]
        ends.append([state.images.detach(), *getattr(state, "sampler", [])])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for one, other in zip(*ends, strict=True):
        assert (one - other).norm() <= 1e-3 * one.norm()
