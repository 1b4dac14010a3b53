"""MTT's iterations as CUDA graphs, compiled or not, against the same iterations called one by one; and its experts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.experts as trajectories
from ddbench.backbones.names import build
from ddbench.loop import drive
from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem
from ddbench.testing.contract import problem_for_checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize(("grad", "fused"), [("adjoint", False), ("full", False), ("tesla", False), ("adjoint", True)])
def test_mtt_takes_the_same_steps_in_a_graph(
    grad: str,
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    both_ways: Callable[..., Any],
) -> None:
    method_class = load_object(GROUPS["method"], "mtt")
    # Batches of two and of four images: both shapes are in one graph.
    config = method_class.Config(
        iterations=8, experts=2, start_epochs=2, inner_steps=4, batch_syn=4, lr_experts=0.1, lr_network=0.05,
        lr_images=1.0, grad=grad,
    )  # fmt: skip
    plain, graphs = both_ways(method_class(config), partial(on_the_gpu, tmp_path), fused=fused)
    assert graphs.captured == [True]
    assert plain.losses == pytest.approx(graphs.losses, rel=1e-3)
    images, others = plain.state.images.detach(), graphs.state.images.detach()
    assert (images - others).norm() < 1e-3 * images.norm()


@pytest.mark.parametrize(
    ("name", "options"),
    [("mtt", {"ema": 0.9, "teacher_labels": True}), ("datm", {"ema": 0.9, "label_experts": 1, "label_epochs": 2})],
)
def test_averages_and_assigned_labels_are_those_of_steps_one_by_one(
    name: str,
    options: dict[str, Any],
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    both_ways: Callable[..., Any],
) -> None:
    method_class = load_object(GROUPS["method"], name)
    usual = {"experts": 2, "start_epochs": 2, "inner_steps": 3, "lr_experts": 0.1, "lr_images": 1.0}
    method = method_class(method_class.Config(iterations=8, **usual, **options))
    plain, graphs = both_ways(method, partial(on_the_gpu, tmp_path), fused=False)
    assert graphs.captured == [True]
    one, other = (end.method.export(end.problem, end.state) for end in (plain, graphs))
    for exported, end in ((one, plain), (other, graphs)):
        assert not torch.equal(exported.images, end.state.images.detach().cpu())
    for ours, theirs in ((one.images, other.images), (one.labels, other.labels)):
        assert (ours - theirs).norm() < 1e-3 * ours.norm()


def ends_of_pools(
    kind: Any, backbone: str, folder: Path, on_the_gpu: Callable[[Path], Problem], **asked: Any
) -> list[torch.Tensor]:
    """[3, P] where three networks of a pool arrive on a CPU, and the same on a GPU; two are trained together."""
    found = []
    for problem in (problem_for_checks(folder / "cpu"), on_the_gpu(folder / "cuda")):
        own = replace(problem, backbone=build(backbone, problem.shape, problem.classes))
        with own.precision.active(own.device):
            experts = own.artifacts.get(kind.of(own, experts=3, **asked), own)
        found.append(torch.stack([experts.params(k, experts.epochs) for k in range(3)]))
    return found


@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "convnet-d2-w16"])
def test_flat_experts_are_those_of_the_cpu(
    backbone: str, tmp_path: Path, on_the_gpu: Callable[[Path], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "students_together", lambda *_: 2)
    asked = {"epochs": 3, "lr": 0.1, "rho": 0.3, "alpha": 0.5}
    ours, theirs = ends_of_pools(trajectories.ExpertTrajectories, backbone, tmp_path, on_the_gpu, **asked)
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert (ours[0] - ours[1]).norm() > 0.1


def test_networks_of_which_the_ends_are_kept_are_those_of_the_cpu(
    tmp_path: Path, on_the_gpu: Callable[[Path], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two augmentations one after another and CutMix, captured; the third network is trained where the first was."""
    monkeypatch.setattr(trajectories, "students_together", lambda *_: 2)
    asked = {"epochs": 6, "lr": 0.02, "batch": 50}
    ours, theirs = ends_of_pools(trajectories.ExpertEnds, "convnet-d2-w8", tmp_path, on_the_gpu, **asked)
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert (ours[0] - ours[1]).norm() > 0.1


def test_what_is_written_out_learns_what_the_whole_graph_learns(
    tmp_path: Path, on_the_gpu: Callable[[Path], Problem]
) -> None:
    method_class, images = load_object(GROUPS["method"], "mtt"), {}
    options = {"experts": 2, "start_epochs": 2, "inner_steps": 4, "batch_syn": 4, "lr_experts": 0.1, "lr_network": 0.05}
    for grad, iterations in (("full", 0), ("full", 3), ("adjoint", 3)):
        problem = on_the_gpu(tmp_path)
        problem = replace(problem, backbone=build("convnet-d2-w16", problem.shape, problem.classes))
        method = method_class(method_class.Config(iterations=iterations, lr_images=1.0, grad=grad, **options))
        with problem.precision.active(problem.device):
            (*_, (state, _)) = drive(method, problem)
        images[grad, iterations] = state.images.detach()
    moved = (images["full", 3] - images["full", 0]).norm()
    assert (images["full", 3] - images["adjoint", 3]).norm() < 1e-3 * moved


def test_experts_side_by_side_are_those_one_by_one(
    tmp_path: Path, on_the_gpu: Callable[[Path], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for together in (1, 2):
        monkeypatch.setattr(trajectories, "students_together", lambda *_, together=together: together)
        problem = on_the_gpu(tmp_path / str(together))
        pool = trajectories.ExpertTrajectories.of(problem, experts=3, epochs=3, lr=0.1)
        experts = problem.artifacts.get(pool, problem)
        found.append(torch.stack([experts.params(k, 3) for k in range(3)]))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert (found[0][0] - found[0][1]).norm() > 0.1
