"""CAFE in graphs, compiled or not, against plain calls on the same device, and a GPU against a CPU."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.lockstep as lockstep
from ddbench import Variables
from ddbench.loop import drive
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers and profilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]
FIXED = {"loops": "fixed", "iterations": 4, "outer_loop": 4, "inner_loop": 2, "batch_real": 16, "batch_train": 8}


def cafe(**options: Any) -> Any:
    kind = load_object(GROUPS["method"], "cafe")
    return kind(kind.Config(**(FIXED | options)))


def learned(method: Any, problem: Problem) -> tuple[torch.Tensor, list[dict[str, float]]]:
    told = []
    with problem.precision.active(problem.device):
        for last, metrics in drive(method, problem):
            state = last
            told.append({name: float(value) for name, value in metrics.items()})
    return state.images.cpu(), told[1:]


@pytest.mark.parametrize(
    ("backbone", "dsa", "fused", "share"),
    [
        ("convnet-w16", False, False, 1e-3),
        ("convnet-w16", True, False, 1e-3),
        ("convnet-w16", True, True, 1e-3),
        ("convnet-w16-ln", True, False, 1e-3),
        ("convnet-w16-swish", True, True, 1e-4),
    ],
)
def test_updates_and_training_are_the_same_in_graphs(
    backbone: str,
    dsa: bool,
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
    method = cafe(dsa=dsa, lr_images=0.01)
    with caplog.at_level("INFO"):
        plain, graphs = both_ways(method, partial(toy_problem, backbone, tmp_path, 4), fused=fused)
    assert plain.losses == pytest.approx(graphs.losses, rel=share)
    assert torch.allclose(plain.state.images, graphs.state.images, atol=10 * share)
    assert not [message for message in caplog.messages if "eagerly" in message or "cannot be captured" in message]


def test_watched_loops_end_and_are_counted(tmp_path: Path, toy_problem: Callable[..., Problem]) -> None:
    method = cafe(loops="watched", window=3, batch_query=60, most_updates=30, most_epochs=30)
    images, told = learned(method, toy_problem("convnet-w16", tmp_path, 4))
    assert bool(images.isfinite().all())
    assert all(step["updates"] >= 3 and step["epochs"] >= 3 * (step["updates"] - 1) for step in told)


def test_a_query_in_a_graph_sees_the_network_as_it_is(tmp_path: Path, toy_problem: Callable[..., Problem]) -> None:
    """Asked of graphs that were captured on another network."""
    problem, method = toy_problem("convnet-w16", tmp_path, 4), cafe()
    rows = problem.real.class_indices(40, problem.rng)
    with problem.precision.active(problem.device):
        state = method.start(problem)
        seen = []
        for k in range(6):
            network = problem.backbone.init(problem.rng.fold("other", k), problem.device)
            state.training.restart(Variables.stack([network]))
            in_a_graph, plain = method.run_update(problem, state, "query", rows), method.query(problem, state, rows)
            seen.append((float(in_a_graph), float(plain)))
    assert [graph for graph, _ in seen] == pytest.approx([plain for _, plain in seen], abs=0.01)
    assert len({plain for _, plain in seen}) > 2


def test_a_gpu_learns_the_images_of_a_cpu(tmp_path: Path, toy_problem: Callable[..., Problem]) -> None:
    images = []
    for device in ("cpu", "cuda"):
        problem = toy_problem("convnet-w16", tmp_path, 4, device, drawn_on_the_host=True)
        images.append(learned(cafe(dsa=True, iterations=2, lr_images=0.01), problem)[0])
    start = cafe(dsa=True).start(toy_problem("convnet-w16", tmp_path, 4, "cpu")).images
    assert (images[0] - images[1]).norm() < 1e-2 * (images[0] - start).norm()


def test_classes_in_several_passes_are_the_same(tmp_path: Path, toy_problem: Callable[..., Problem]) -> None:
    whole, _ = learned(cafe(lr_images=0.01), toy_problem("convnet-w16", tmp_path, 2))
    cut, _ = learned(cafe(lr_images=0.01, classes_per_pass=2), toy_problem("convnet-w16", tmp_path, 2))
    assert torch.allclose(whole, cut, atol=1e-2)
