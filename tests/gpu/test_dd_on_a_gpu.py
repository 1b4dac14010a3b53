"""DD's iterations as CUDA graphs, compiled or not, against the same iterations called one by one."""

from collections.abc import Callable
from pathlib import Path

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
@pytest.mark.parametrize("initial_network", ["random", "fixed"])
def test_dd_takes_the_same_steps_in_a_graph(
    initial_network: str,
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    monkeypatch: pytest.MonkeyPatch,
    call_one_by_one: Callable[[pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr(program, "worth_compiling", lambda seconds, device: fused)
    method_class = load_object(GROUPS["method"], "dd")
    losses, images = [], []
    for eager in (True, False):
        problem = on_the_gpu(tmp_path)
        # Two full batches and a smaller one: both programs are captured, and one after the other uses the optimiser.
        method = method_class(
            method_class.Config(iterations=18, batch_real=50, initial_network=initial_network, augment_real=True)
        )
        with problem.precision.active(problem.device), monkeypatch.context() as patched:
            if eager:
                call_one_by_one(patched)
            steps = list(drive(method, problem))
        state, _ = steps[-1]
        losses.append([float(metrics["loss"]) for _, metrics in steps[1:]])
        assert [step.captured is not eager for step in state._programs.programs.values()] == [True, True]
        images.append(state.images.detach().cpu())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Adam moves pixels of vanishing slope as far as others, in the direction of the rounding.
    assert (images[0] - images[1]).norm() < 0.02 * images[0].norm()
