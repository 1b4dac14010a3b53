"""DC and DSA in graphs, compiled or not, against plain calls on the same device."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.lockstep as lockstep
from ddbench.loop import drive
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers and profilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize(
    ("name", "backbone", "fused", "share"),
    [
        ("dc", "convnet-w16", False, 1e-3),
        ("dc", "convnet-w16-ln", False, 1e-3),
        ("dc", "convnet-w16-bn", False, 1e-3),
        ("dsa", "convnet-w16", False, 1e-3),
        ("dsa", "convnet-w16", True, 1e-3),
        # Other kernels round otherwise. Where signs decide, weights that are off by a ten-millionth make a quarter of a
        # percent of a loss; where they do not, they stay a ten-millionth.
        ("dsa", "convnet-w16-bn-swish", True, 1e-4),
        ("dsa", "convnet-w16-swish", True, 1e-4),
    ],
)
def test_matches_and_training_are_the_same_in_graphs(
    name: str,
    backbone: str,
    fused: bool,
    share: float,
    tmp_path: Path,
    toy_problem: Callable[..., Problem],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    both_ways: Callable[..., Any],
) -> None:
    monkeypatch.setattr(lockstep, "worth_compiling", lambda seconds, device: fused)
    monkeypatch.setattr(lockstep.COMPILED, "_functions", {})
    kind = load_object(GROUPS["method"], name)
    method = kind(kind.Config(iterations=4, outer_loop=3, inner_loop=2, batch_real=16, batch_train=8))
    with caplog.at_level("INFO"):
        plain, graphs = both_ways(method, partial(toy_problem, backbone, tmp_path, 4), fused=fused)
    assert all(graphs.captured)
    assert plain.losses == pytest.approx(graphs.losses, rel=share)
    assert torch.allclose(plain.state.images, graphs.state.images, atol=2 * share)
    assert not [message for message in caplog.messages if "eagerly" in message]


def test_a_gpu_learns_the_images_of_a_cpu(tmp_path: Path, toy_problem: Callable[..., Problem]) -> None:
    kind = load_object(GROUPS["method"], "dsa")
    images = []
    for device in ("cpu", "cuda"):
        problem = toy_problem("convnet-w16", tmp_path, 4, device, drawn_on_the_host=True)
        method = kind(kind.Config(iterations=2, outer_loop=3, inner_loop=2, batch_real=16))
        with problem.precision.active(problem.device):
            (*_, (state, _)) = drive(method, problem)
        images.append(state.images.detach().cpu())
    start = kind(kind.Config()).start(toy_problem("convnet-w16", tmp_path, 4, "cpu")).images.detach()
    assert (images[0] - images[1]).norm() < 1e-2 * (images[0] - start).norm()
