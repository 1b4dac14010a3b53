"""DATM against float64 loops written down from the paper: first images and labels, stretches, and whole iterations."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, optim

from ddbench import Problem, Rng, drive
from ddbench.engine.augment import draw_many
from ddbench.initial import INITIALS
from ddbench.loop import condense
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import unflatten
from ddbench_methods.datm import DATM, DATMConfig, DATMState
from ddbench_methods.mtt import MTT, MTTConfig, step_where

SIX = "color_crop_cutout_flip_scale_rotate"
SMALL: dict[str, Any] = {
    "experts": 2, "start_epochs": 2, "inner_steps": 3, "lr_experts": 0.3, "lr_network": 0.05, "lr_images": 0.5,
    "lr_lr": 1e-4, "lr_labels": 3.0, "label_experts": 2, "label_epochs": 4, "threshold": None,
}  # fmt: skip


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path, seed=3)


def method(**options: Any) -> DATM:
    return DATM(DATMConfig(**(SMALL | options)))


def network(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling; then a linear layer."""
    for block in ("block1", "block2"):
        x = torch.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = torch.nn.functional.avg_pool2d(x.clamp(min=0), 2)
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


def named(problem: Problem, flat: Tensor) -> dict[str, Tensor]:
    return unflatten(flat.double(), problem.backbone.init(Rng(0)).params)


def rows_of(problem: Problem, images: Tensor) -> Tensor:
    """Which training images these are."""
    real = problem.real.take(torch.arange(len(problem.train))).flatten(1)
    apart = torch.cdist(images.flatten(1).double(), real.double())
    assert float(apart.min(dim=1).values.max()) < 1e-5
    return apart.argmin(dim=1)


def soft_cross_entropy(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    scores = network(p, x)
    powers = scores.exp()
    return -(y * (powers / powers.sum(1, keepdim=True)).log()).sum(1).mean()


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_iterations_are_those_of_the_loop(problem: Problem, threshold: float | None) -> None:
    chosen = method(iterations=6, threshold=threshold)
    first = chosen.start(problem)
    u, z, a = first.images.detach().double(), first.logits.detach().double(), torch.tensor(0.05, dtype=torch.float64)
    origin_u, origin_z = u.clone(), z.clone()
    moving = [torch.zeros_like(u), torch.zeros_like(z), torch.zeros_like(a)]
    losses, taken = [], []
    for i in range(6):
        rng = problem.rng.fold("step", i)
        drawn = rng.fold("expert").numpy()
        expert, epoch = int(drawn.integers(2)), int(drawn.integers(0, 2))
        start, target = (first.experts.params(expert, at).double() for at in (epoch, epoch + 2))
        generator = rng.fold("rows").torch()
        batches = [torch.randperm(len(u), generator=generator) for _ in range(3)]
        views = draw_many(SIX, 3, len(u), rng.fold("views"), align_corners=True)
        leaves = [t.clone().requires_grad_() for t in (u, z, a)]
        w = {name: value.detach().requires_grad_() for name, value in named(problem, start).items()}
        for t, batch in enumerate(batches):
            y = leaves[1].exp() / leaves[1].exp().sum(1, keepdim=True)
            inner = soft_cross_entropy(w, views[t](leaves[0][batch][None])[0], y[batch])
            slopes = torch.autograd.grad(inner, list(w.values()), create_graph=True)
            w = {name: value - leaves[2] * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
        end = torch.cat([value.flatten() for value in w.values()])
        loss = (end - target).square().sum() / (start - target).square().sum()
        slopes = torch.autograd.grad(loss, leaves)
        losses.append(loss.item())
        taken.append(threshold is None or loss.item() <= threshold)
        if not taken[-1]:
            continue
        for v, slope, momentum in zip(moving, slopes, (0.5, 0.9, 0.5), strict=True):
            v.mul_(momentum).add_(slope)
        u, z, a = u - 0.5 * moving[0], z - 3.0 * moving[1], a - 1e-4 * moving[2]
    told = [metrics for _, metrics in drive(chosen, problem) if metrics]
    *_, (state, _) = drive(chosen, problem)
    assert isinstance(state, DATMState)
    assert [float(m["loss"]) for m in told] == pytest.approx(losses, rel=1e-4)
    assert [bool(m.get("taken", True)) for m in told] == taken
    if threshold is not None:
        assert 0 < sum(taken) < 6, "the threshold separated nothing"
    for ours, theirs, before in ((state.images, u, origin_u), (state.logits, z, origin_z)):
        assert (theirs - before).norm() > 1e-3
        assert (ours.detach() - theirs).norm() < 2e-3 * (theirs - before).norm()
    assert state.lr.item() - 0.05 == pytest.approx(float(a) - 0.05, rel=2e-2)


def test_certain_labels_that_stay_are_mtt(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 50 for the class and 0 for the others, T- = 0 and no threshold, images and step size go MTT's way."""
    shared = {k: v for k, v in SMALL.items() if k in MTTConfig.model_fields}
    mtt = MTT(MTTConfig(iterations=4, momentum=0.5, **shared))
    rows = torch.cat([problem.train.offsets[k] + torch.arange(problem.ipc) for k in range(problem.classes)])
    certain = 50 * torch.nn.functional.one_hot(problem.class_labels(), problem.classes).float()
    monkeypatch.setattr(DATM, "first_images", lambda self, problem, rng: (problem.real.take(rows), certain.clone()))
    monkeypatch.setattr(MTT, "start", lambda self, problem: self.begin(problem, problem.real.take(rows)))
    *_, (ours, _) = drive(method(iterations=4, lr_labels=0.0), problem)
    monkeypatch.setattr(DATM, "start", MTT.start)
    *_, (theirs, _) = drive(mtt, problem)
    moved = (theirs.images - problem.real.take(rows)).norm()
    assert moved > 1e-2
    assert (ours.images - theirs.images).norm() < 1e-4 * moved
    assert ours.lr.item() == pytest.approx(theirs.lr.item(), rel=1e-6)


def test_first_images_are_those_that_an_expert_gets_right(problem: Problem) -> None:
    chosen = method()
    images, logits = chosen.first_images(problem, problem.rng.fold("start"))
    rows = rows_of(problem, images)
    experts = chosen.labellers(problem)
    scores = [
        network(named(problem, experts.params(k, 4)), problem.real.take(torch.arange(len(problem.train))).double())
        for k in range(2)
    ]
    for label in range(problem.classes):
        first, count = int(problem.train.offsets[label]), int(problem.train.counts[label])
        generator = problem.rng.fold("start").fold("class", label).torch()
        order = (first + torch.randperm(count, generator=generator)).tolist()
        wanted = [r for r in order if int(scores[0][r].argmax()) == label]
        wanted += [r for r in order if r not in wanted and int(scores[1][r].argmax()) == label]
        wanted += [r for r in order if r not in wanted]
        assert rows[label * problem.ipc : (label + 1) * problem.ipc].tolist() == wanted[: problem.ipc]
    for n, row in enumerate(rows.tolist()):
        label = int(problem.train.labels[row])
        right = [s[row] for s in scores if int(s[row].argmax()) == label] or [s[row] for s in scores]
        assert torch.allclose(logits[n].double(), torch.stack(right).mean(0), atol=1e-4)


@pytest.mark.parametrize("options", [{"confident": False}, {"initial": "noise"}])
def test_other_first_images_are_labelled_by_the_first_expert(problem: Problem, options: dict[str, Any]) -> None:
    chosen = method(**options)
    images, logits = chosen.first_images(problem, problem.rng.fold("start"))
    params = chosen.labellers(problem).params(0, 4)
    assert torch.allclose(logits.double(), network(named(problem, params), images.double()), atol=1e-4)
    expected = INITIALS[options.get("initial", "real")](problem, problem.rng.fold("start"))
    assert torch.equal(images, expected)


def test_the_average_is_that_of_images_and_logits(problem: Problem) -> None:
    """Also over an iteration that changes nothing, of which there are some here."""
    chosen, decay = method(iterations=6, threshold=0.9, ema=0.6), 0.6
    averages: list[Tensor] = []
    taken = []
    for state, metrics in drive(chosen, problem):
        assert isinstance(state, DATMState)
        now = [state.images.detach().double(), state.logits.detach().double()]
        averages = [decay * a + (1 - decay) * b for a, b in zip(averages, now, strict=True)] if averages else now
        taken += [bool(metrics["taken"])] if metrics else []
        made = chosen.export(problem, state)
        assert torch.allclose(made.images.double(), averages[0], atol=1e-6)
        assert torch.allclose(made.labels.double(), averages[1], atol=1e-5)
    assert 0 < sum(taken) < 6
    assert (averages[1] - now[1]).abs().max() > 1e-4


def test_the_stretch_of_training_grows_as_in_the_paper() -> None:
    chosen = method(first_epoch=2, early_epochs=10, start_epochs=20, growth=1000)
    generator = np.random.default_rng(0)
    for step, below in ((0, 10), (99, 10), (100, 11), (500, 15), (999, 19), (1000, 20), (5000, 20)):
        drawn = {chosen.start_epoch(step, generator) for _ in range(2000)}
        assert drawn == set(range(2, below)), step
    plain = method(start_epochs=4)
    assert {plain.start_epoch(0, generator) for _ in range(500)} == {0, 1, 2, 3}


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_step_that_is_not_wanted_leaves_values_and_momentum(momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(3, generator=generator).requires_grad_(),
        torch.randn((), generator=generator).requires_grad_(),
    ]
    same = [value.detach().clone().requires_grad_() for value in values]
    ours, theirs = (optim.SGD(v, 0.1, momentum=momentum) for v in (values, same))
    for wanted in (False, True, True, False, False, True):
        for value, twin in zip(values, same, strict=True):
            value.grad = torch.randn(value.shape, generator=generator)
            twin.grad = value.grad.clone()
        step_where(torch.tensor(wanted), ours)
        if wanted:
            theirs.step()
        for value, twin in zip(values, same, strict=True):
            assert torch.allclose(value, twin, rtol=1e-6)


def test_the_set_has_logits_a_step_size_and_its_labels_counted(problem: Problem) -> None:
    made = condense(method(iterations=2), problem)
    assert made.label_kind == "logit"
    assert made.recipe.lr is not None
    assert math.isfinite(float(made.recipe.lr))
    assert made.nbytes == 4 * (made.images.numel() + made.labels.numel() + 1)
