"""DD against a float64 loop written down from the paper: training unrolled as one graph, Adam by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, drive
from ddbench.engine.crop import crop, draw_crops
from ddbench.plugins import GROUPS, load_object
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks

DD = load_object(GROUPS["method"], "dd")
CLASSES = 3


def logits(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling; then a linear layer."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.relu(), 2)
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


def cross_entropy(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    scores = logits(p, x)
    return -torch.stack([scores[i, y[i]] - scores[i].exp().sum().log() for i in range(len(y))]).mean()


def cropped(image: Tensor, draw: list[int]) -> Tensor:
    """One image [C, H, W], padded by 4 reflected pixels, cut out at a corner, mirrored where asked."""
    top, left, mirror = draw
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    part = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return torch.from_numpy((part[:, :, ::-1] if mirror else part).copy())


class Adam:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1."""

    def __init__(self, values: Tensor) -> None:
        self.m, self.v, self.t = torch.zeros_like(values), torch.zeros_like(values), 0

    def move(self, grad: Tensor, lr: float) -> Tensor:
        self.t += 1
        self.m = 0.5 * self.m + (1 - 0.5) * grad
        self.v = 0.999 * self.v + (1 - 0.999) * grad**2
        return lr * (self.m / (1 - 0.5**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)


def by_hand(
    problem: Problem, start: Tensor, *, iterations: int, batches: int, passes: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor, list[float]]:
    """Images [M, b * K, ...], step sizes and losses after some iterations of the formulas, one after another."""
    size, networks = options["batch_real"], options["networks"]
    images = start.double().unflatten(0, (batches, -1))
    raw = torch.full((batches * passes,), float(np.log(np.exp(0.05) - 1)), dtype=torch.float64)
    labels = torch.tensor([c for c in range(CLASSES) for _ in range(problem.ipc // batches)])
    adams, losses = (Adam(images), Adam(raw)), []
    per_epoch = -(-len(problem.train) // size)
    for i in range(iterations):
        rng, epoch = problem.rng.fold("step", i), i // per_epoch
        rows = problem.real.epoch_indices(size, i, problem.rng.fold("real"))
        x, y = problem.real.take(rows).double(), problem.real.labels[rows]
        if options["augment_real"]:
            draws = draw_crops(len(x), rng.fold("crops")).tolist()
            x = torch.stack([cropped(image, draw) for image, draw in zip(x, draws, strict=True)])
        fixed = options["initial_network"] == "fixed"
        drawn = (
            problem.backbone.init(problem.rng.fold("start", "network"), copies=1)
            if fixed
            else problem.backbone.init(rng.fold("networks"), copies=networks, on_device=True)
        )
        u, r = images.clone().requires_grad_(), raw.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for k in range(networks):
            w = {name: value.double().requires_grad_() for name, value in drawn.copy(k).params.items()}
            for t in range(batches * passes):
                inner = cross_entropy(w, u[t % batches], labels)
                slopes = torch.autograd.grad(inner, list(w.values()), create_graph=True)
                lr = (1 + r[t].exp()).log()
                w = {name: value - lr * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
            total = total + cross_entropy(w, x, y) / networks
        by_images, by_raw = torch.autograd.grad(total, (u, r))
        lr_images = 0.02 * 0.5 ** (epoch // options["halve_every"])
        images = images - adams[0].move(by_images, lr_images)
        raw = raw - adams[1].move(by_raw, lr_images)
        losses.append(total.item())
    return images.flatten(0, 1), (1 + raw.exp()).log(), losses


@pytest.mark.parametrize(
    ("ipc", "batches", "passes", "changes"),
    [
        (2, 2, 2, {}),
        (1, 1, 3, {"initial_network": "fixed"}),
        (4, 2, 1, {"networks": 2, "augment_real": True}),
        (2, 1, 2, {"batch_real": 50, "halve_every": 1}),  # a partial third batch, then half the step size
    ],
)
def test_iterations_are_those_of_the_loop(
    tmp_path: Path, ipc: int, batches: int, passes: int, changes: dict[str, Any]
) -> None:
    problem = problem_for_checks(tmp_path, seed=3, ipc=ipc)
    options = {"batch_real": 24, "networks": 1, "initial_network": "random", "augment_real": False, "halve_every": 40}
    options |= changes
    iterations = 4
    config = DD.Config(
        iterations=iterations, batches=batches, passes=passes, lr_network=0.05, lr_images=0.02, **options
    )
    method = DD(config)
    start = method.start(problem).images.detach().clone()
    images, lrs, losses = by_hand(
        problem, start, iterations=iterations, batches=batches, passes=passes, options=options
    )
    found = [float(metrics["loss"]) for state, metrics in drive(method, problem, None) if metrics]
    assert found == pytest.approx(losses, rel=1e-4)
    *_, (state, _) = drive(method, problem)
    synthetic = method.export(problem, state)
    moved = (images - start).norm()
    assert moved > 0.1
    # Adam moves pixels of vanishing slope as far as others, in the direction of the rounding.
    assert (synthetic.images - images).norm() < 0.01 * moved
    assert synthetic.recipe.lr is not None
    assert torch.allclose(synthetic.recipe.lr.double(), lrs, rtol=1e-4)
    assert not torch.allclose(lrs, torch.full_like(lrs, 0.05), rtol=1e-2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9)])
def test_a_crop_is_that_of_a_padded_image(shape: tuple[int, int, int]) -> None:
    images = torch.randn(40, *shape, generator=Rng(0).torch())
    draws = draw_crops(40, Rng(1))
    expected = torch.stack([cropped(image, draw) for image, draw in zip(images, draws.tolist(), strict=True)])
    assert torch.equal(crop(images, draws), expected)


def test_crops_reach_every_corner_equally_often() -> None:
    draws = draw_crops(90_000, Rng(0))
    for column, values in ((0, 9), (1, 9), (2, 2)):
        counts = draws[:, column].bincount()
        assert len(counts) == values
        assert (counts / len(draws) - 1 / values).abs().max() < 0.01
    assert not torch.equal(draw_crops(20, Rng(0)), draw_crops(20, Rng(1)))
