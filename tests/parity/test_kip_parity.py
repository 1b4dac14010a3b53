"""KIP and LS against float64 loops written down from the papers: the objective, Adam, and the least-squares labels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddbench import Problem, Rng, drive
from ddbench.engine.regression import least_squares, reduced, ridge_weights
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks

KIP = load_object(GROUPS["method"], "kip")
LS = load_object(GROUPS["method"], "ls")


def fc1(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The NTK of one hidden ReLU layer by arc-cosines, entry by entry; the angle of an image with itself is 0."""
    columns = x if y is None else y
    rows = []
    for i, a in enumerate(x.flatten(1)):
        row = []
        for j, b in enumerate(columns.flatten(1)):
            u, v, s = (2 * (c * d).mean() + 0.01 for c, d in ((a, a), (b, b), (a, b)))
            cosine = s / (u * v).sqrt()
            if (y is None and i == j) or float(cosine.detach()) > 1 - 1e-13:  # one image: no angle, no derivative of it
                nngp, slope = s / 2, 0.5
            else:
                angle = torch.acos(cosine)
                nngp = (u * v).sqrt() * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
                slope = (math.pi - angle) / (2 * math.pi)
            row.append(2 * s * slope + 2 * nngp + 0.01)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def objective(images: Tensor, labels: Tensor, targets: Tensor, y: Tensor, ridge: float) -> Tensor:
    k_ss, k_ts = fc1(images), fc1(targets, images)
    shift = ridge * k_ss.diagonal().mean() * torch.eye(len(images), dtype=torch.float64)
    predicted = k_ts @ torch.linalg.inv(k_ss + shift) @ labels
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(targets)):
        for k in range(labels.shape[1]):
            wanted = (1.0 if int(y[row]) == k else 0.0) - 1 / labels.shape[1]
            total = total + (wanted - predicted[row, k]) ** 2
    return total / (2 * len(targets) * labels.shape[1])


def by_hand(
    problem: Problem, start: Tensor, *, steps: int, learn_labels: bool, per_class: int, support: Sequence[Sequence[int]]
) -> tuple[Any, ...]:
    """Images, labels and losses after some steps of Adam with step size 0.04, its moments kept by hand.

    `support`: for each step, the rows that are regressed on. The others have no gradient, and move on their momentum.
    """
    one_hot = torch.eye(problem.classes, dtype=torch.float64)[problem.class_labels()]
    values = [start.double(), one_hot - 1 / problem.classes]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    losses = []
    for t in range(1, steps + 1):
        rows = problem.real.class_indices(per_class, problem.rng.fold("step", t - 1).fold("real")).flatten()
        leaves = [v.clone().requires_grad_() for v in values]
        images, labels = (torch.stack([leaf[row] for row in support[t - 1]]) for leaf in leaves)
        loss = objective(images, labels, problem.real.take(rows).double(), problem.train.labels[rows], 1e-3)
        losses.append(loss.item())
        for k, grad in enumerate(torch.autograd.grad(loss, leaves)):
            if k == 1 and not learn_labels:
                continue
            first[k] = 0.9 * first[k] + 0.1 * grad
            second[k] = 0.999 * second[k] + 0.001 * grad**2
            step = first[k] / (1 - 0.9**t) / ((second[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            values[k] = values[k] - 0.04 * step
    return *values, losses


def steps_are_those_of_the_loop(problem: Problem, support: Sequence[Sequence[int]], labels: str, **more: Any) -> None:
    options = {"kernel": "fc1", "kernel_dtype": "float64", "ridge": 1e-3, "batch_real": 15, "labels": labels} | more
    method = KIP(KIP.Config(iterations=len(support), **options))
    start = method.start(problem).images.detach().clone()
    learned = labels == "learned"
    images, targets, losses = by_hand(
        problem, start, steps=len(support), learn_labels=learned, per_class=5, support=support
    )
    found = []
    for last, metrics in drive(method, problem):
        state = last
        found += [float(metrics["loss"])] if metrics else []
    assert found == pytest.approx(losses, rel=1e-5)
    assert (images - start).abs().max() > 0.05
    assert (state.images - images).abs().max() < 1e-3
    assert (state.labels - targets).abs().max() < (1e-3 if learned else 1e-7)


@pytest.mark.parametrize("labels", ["learned", "fixed"])
def test_three_steps_are_those_of_the_loop(tmp_path: Path, labels: str) -> None:
    problem = problem_for_checks(tmp_path, seed=2, per_class=(9, 6, 7))
    steps_are_those_of_the_loop(problem, [range(len(problem.class_labels()))] * 3, labels)


@pytest.mark.parametrize("labels", ["learned", "fixed"])
def test_steps_on_a_part_of_the_support_are_those_of_the_loop(tmp_path: Path, labels: str) -> None:
    problem = problem_for_checks(tmp_path, seed=2, ipc=4, per_class=(9, 6, 7))
    method = KIP(KIP.Config(kernel="fc1", batch_support=8))
    # With its number as the label of each image, a draw tells its rows.
    numbered = replace(method.start(problem), labels=torch.arange(12)[:, None])
    draws = [problem.rng.fold("step", step).fold("support") for step in range(4)]
    drawn = [method.support(problem, numbered, rng)[1].flatten().tolist() for rng in draws]
    assert [sorted(row // 4 for row in rows) for rows in drawn] == [[0, 0, 1, 1, 2, 2]] * 4
    assert all(len(set(rows)) == 6 for rows in drawn)
    assert len({frozenset(rows) for rows in drawn}) > 1
    steps_are_those_of_the_loop(problem, drawn, labels, batch_support=8)


def test_the_gradient_goes_through_the_solve_the_kernel_and_the_ridge() -> None:
    root = torch.randn(4, 6, generator=Rng(0).torch(), dtype=torch.float64)
    kernel, y = (root @ root.T).requires_grad_(), torch.randn(4, 3, generator=Rng(1).torch(), dtype=torch.float64)

    def weights(k: Tensor, targets: Tensor) -> Tensor:
        return ridge_weights((k + k.T) / 2, targets, ridge=0.3)

    assert torch.autograd.gradcheck(weights, (kernel, y.requires_grad_()))
    plain = (root @ root.T).numpy()
    expected = np.linalg.solve(plain + 0.3 * np.trace(plain) / 4 * np.eye(4), y.detach().numpy())
    assert np.allclose(weights(kernel, y).detach().numpy(), expected)


def test_a_kernel_that_is_not_positive_definite_gives_no_number() -> None:
    assert bool(torch.isnan(ridge_weights(-torch.eye(3), torch.ones(3, 2))).all())


@pytest.mark.parametrize(("rows", "rank"), [(50, 6), (50, 4), (4, 4)])
def test_least_squares_in_pieces_is_least_squares(rows: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, 6)), rng.normal(size=(rows, 3))
    triangle = None
    for part in np.array_split(np.arange(rows), 3):
        triangle = reduced(torch.from_numpy(a[part]), torch.from_numpy(y[part]), triangle)
    assert triangle is not None
    expected, *_ = np.linalg.lstsq(a, y, rcond=1e-12)
    assert np.allclose(least_squares(triangle, 6).numpy(), expected)
    if rank == 6:
        residual = float(triangle[6:, 6:].square().sum())
        assert residual == pytest.approx(((a @ expected - y) ** 2).sum(), abs=1e-9)


@pytest.mark.parametrize(("batch", "ridge"), [(7, 1e-6), (22, 0.1), (1000, 1e-6)])
def test_labels_solve_the_whole_training_set(tmp_path: Path, batch: int, ridge: float) -> None:
    problem = problem_for_checks(tmp_path, per_class=(9, 6, 7))
    method = LS(LS.Config(kernel="fc1", kernel_dtype="float64", batch_real=batch, ridge=ridge))
    *_, (state, metrics) = drive(method, problem)
    images = problem.real.take(state.indices).double()
    targets = problem.real.take(torch.arange(len(problem.train))).double()
    y = torch.eye(3, dtype=torch.float64)[problem.train.labels] - 1 / 3
    k_ss = fc1(images)
    inverse = torch.linalg.inv(k_ss + ridge * k_ss.diagonal().mean() * torch.eye(6, dtype=torch.float64))
    k_ts = fc1(targets, images)
    expected, *_ = np.linalg.lstsq((k_ts @ inverse).numpy(), y.numpy(), rcond=None)
    assert np.allclose(state.labels.numpy(), expected, atol=1e-5)
    assert state.step == method.total_steps(problem) == -(-22 // batch)
    residual = ((k_ts @ inverse @ torch.from_numpy(expected) - y) ** 2).sum() / 22
    assert float(metrics["residual"]) == pytest.approx(float(residual), rel=1e-4)
