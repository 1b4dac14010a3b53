"""DM against a float64 loop over classes, written down from the paper's equation 4 and its algorithm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench import Problem, Rng, drive
from ddbench.backbones.names import build
from ddbench.engine.augment import Draw, siamese
from ddbench.engine.distance import class_mean_distance
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks

DM = load_object(GROUPS["method"], "dm")
ALL_OPS = "color_crop_cutout_flip_scale_rotate"


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 4),
    n=st.integers(1, 5),
    m=st.integers(1, 6),
    width=st.integers(1, 7),
)
def test_the_distance_is_summed_over_classes_and_features(seed: int, classes: int, n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    synthetic, real = rng.normal(size=(classes, n, width)), rng.normal(size=(classes, m, width))
    total = 0.0
    for c in range(classes):
        for d in range(width):
            gap = sum(real[c, :, d]) / m - sum(synthetic[c, :, d]) / n
            total += gap * gap
    ours = class_mean_distance(torch.from_numpy(synthetic), torch.from_numpy(real))
    assert np.isclose(float(ours), total, rtol=1e-12)


def embed(p: dict[str, Tensor], x: Tensor, batch_norm: bool) -> Tensor:
    """All but the last linear layer: twice convolution, norm, ReLU, average pooling; norms in training mode."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        axes = (0, 2, 3) if batch_norm else (2, 3)
        x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.relu(), 2)
    return x.flatten(1)


def loss_by_hand(
    p: dict[str, Tensor], view: Draw, real: list[Tensor], synthetic: list[Tensor], batch_norm: bool
) -> Tensor:
    """The sum over classes of the squared distance of mean embeddings, one draw a class for both sides.

    Networks with batch norm see all classes in one forward pass of the real images, and one of the synthetic ones.
    """
    seen = [(view[c](real[c][None])[0], view[c](synthetic[c][None])[0]) for c in range(len(real))]
    if batch_norm:
        all_real = embed(p, torch.cat([r for r, _ in seen]), batch_norm).split([len(r) for r, _ in seen])
        all_synthetic = embed(p, torch.cat([s for _, s in seen]), batch_norm).split([len(s) for _, s in seen])
        pairs = list(zip(all_real, all_synthetic, strict=True))
    else:
        pairs = [(embed(p, r, batch_norm), embed(p, s, batch_norm)) for r, s in seen]
    total = torch.zeros((), dtype=torch.float64)
    for r, s in pairs:
        total = total + ((r.mean(dim=0).detach() - s.mean(dim=0)) ** 2).sum()
    return total


def by_hand(problem: Problem, start: Tensor, *, steps: int, strategy: str, batch: int) -> tuple[Tensor, list[float]]:
    """Images after some steps, and the losses: SGD with step size 1 and momentum 0.5, one velocity throughout."""
    images, velocity, losses = start.double(), torch.zeros_like(start, dtype=torch.float64), []
    for t in range(steps):
        rng = problem.rng.fold("step", t)
        network = problem.backbone.init(rng.fold("network"), on_device=True).to(torch.float64)
        view = siamese(strategy, problem.classes, rng.fold("view"))
        rows = problem.real.class_indices(batch, rng.fold("real"))
        real = [problem.real.take(row).double() for row in rows]
        leaf = images.clone().requires_grad_()
        synthetic = list(leaf.split(problem.ipc))
        loss = loss_by_hand(network.params, view, real, synthetic, not problem.backbone.per_sample)
        (grad,) = torch.autograd.grad(loss, leaf)
        velocity = 0.5 * velocity + grad
        images = images - velocity
        losses.append(loss.item())
    return images, losses


@pytest.mark.parametrize(
    ("backbone", "strategy", "changes", "batch"),
    [
        ("convnet-d2-w8", "none", {}, 16),
        ("convnet-d2-w8", ALL_OPS, {}, 16),
        ("convnet-d2-w8", ALL_OPS, {"ipc": 1}, 16),
        ("convnet-d2-w8", "color_crop", {"per_class": (40, 7, 12), "ipc": 3}, 256),
        ("convnet-d2-w8-bn", ALL_OPS, {}, 16),
        ("convnet-d2-w8-bn", "none", {"ipc": 5}, 256),
    ],
)
def test_three_steps_are_those_of_the_loop(
    tmp_path: Path, backbone: str, strategy: str, changes: dict[str, Any], batch: int
) -> None:
    problem = problem_for_checks(tmp_path, seed=3, **changes)
    problem = replace(problem, backbone=build(backbone, problem.shape, problem.classes))
    method = DM(DM.Config(iterations=3, augment=strategy, batch_real=batch))
    start = method.start(problem).images.detach().clone()
    expected, losses = by_hand(problem, start, steps=3, strategy=strategy, batch=batch)
    found: list[float] = []
    for last, metrics in drive(method, problem):
        state = last
        found += [float(value) for value in metrics.values()]
    assert found == pytest.approx(losses, rel=1e-3)
    moved = (expected - start).norm()
    assert moved > 0.01
    assert (state.images.detach() - expected).norm() < 1e-3 * moved


def test_momentum_is_kept_between_steps(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    ends = []
    for momentum in (0.0, 0.5):
        method = DM(DM.Config(iterations=2, augment="none", momentum=momentum))
        images = [state.images.detach().clone() for state, _ in drive(method, problem)]
        ends.append(images)
    plain, heavy = ends
    assert torch.equal(plain[1], heavy[1])
    assert not torch.allclose(plain[2], heavy[2])


def test_the_real_batch_is_drawn_anew_in_each_step(tmp_path: Path) -> None:
    real = problem_for_checks(tmp_path).real
    rows = [real.class_indices(8, Rng(0).fold("step", t).fold("real")) for t in range(2)]
    assert not torch.equal(*rows)
    assert all(len(row.unique()) == 8 for batch in rows for row in batch)
