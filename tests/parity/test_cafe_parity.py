"""CAFE against float64 loops over layers, classes, images and networks, written down from the method card.

The golden values are those of the authors' code on the same inputs.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, Variables, drive
from ddbench.backbones.names import build
from ddbench.engine.augment import Draw, siamese
from ddbench.plugins import GROUPS, load_object
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks
from ddbench.training.plan import TrainingPlan
from ddbench_methods.cafe import image_gradient

CAFE = load_object(GROUPS["method"], "cafe")
ALL_OPS = "color_crop_cutout_flip_scale_rotate"
WEIGHTS = (0.1, 0.1, 1.0, 1.0)


# The network and the loss of the card, section 2


def features(p: dict[str, Tensor], x: Tensor, depth: int) -> list[Tensor]:
    """f1 to f5 of a ConvNet: each block after its ReLU, the last pooling, and that again, flat."""
    found = []
    for block in range(1, depth + 1):
        if block > 1:
            x = F.avg_pool2d(x, 2)
        padding = 3 if block == 1 and x.shape[1] == 1 else 1
        x = F.conv2d(x, p[f"block{block}.conv.weight"], p[f"block{block}.conv.bias"], padding=padding)
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * p[f"block{block}.norm.weight"][:, None, None] + p[f"block{block}.norm.bias"][:, None, None]
        x = x.relu()
        found.append(x)
    pooled = F.avg_pool2d(x, 2)
    return [*found, pooled, pooled.flatten(1)]


def logits(p: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    return F.linear(features(p, x, depth)[-1], p["logits.weight"], p["logits.bias"])


def parts_by_hand(
    p: dict[str, Tensor], real: list[Tensor], synthetic: list[Tensor], depth: int
) -> tuple[list[Tensor], Tensor]:
    """Squared distances of class means, layer by layer, summed over classes; and the summed cross-entropy."""
    of_real = [features(p, x, depth) for x in real]
    of_mine = [features(p, x, depth) for x in synthetic]
    distances = []
    for layer in range(depth + 2):
        total = torch.zeros((), dtype=torch.float64)
        for theirs, mine in zip(of_real, of_mine, strict=True):
            gap = sum(mine[layer]) / len(mine[layer]) - sum(theirs[layer]) / len(theirs[layer])
            total = total + (gap * gap).sum()
        distances.append(total)
    centres = [sum(mine[-1]) / len(mine[-1]) for mine in of_mine]
    entropy = torch.zeros((), dtype=torch.float64)
    for label, theirs in enumerate(of_real):
        for row in theirs[-1]:
            scores = torch.stack([row @ centre for centre in centres])
            entropy = entropy + scores.logsumexp(0) - scores[label]
    return distances, entropy


def loss_by_hand(p: dict[str, Tensor], real: list[Tensor], synthetic: list[Tensor], depth: int) -> Tensor:
    distances, entropy = parts_by_hand(p, real, synthetic, depth)
    weights = [*WEIGHTS[:2], *[1.0] * (depth - 1)]
    aligned = sum(w * d for w, d in zip(weights, distances, strict=False))
    return aligned + distances[-1] + 0.01 * entropy  # type: ignore[no-any-return]


# The golden values, section 9


def golden_parameter(shape: tuple[int, ...], j: int, name: str) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    value = torch.sin(0.37 * k + j).view(shape) * (0.2 if len(shape) > 1 else 0.1)
    return value + 1 if name.endswith("norm.weight") else value


def golden_network() -> Variables:
    net = build("convnet-d3-w8", (3, 32, 32), 10)
    shapes = {name: tuple(value.shape) for name, value in net.init(Rng(0)).params.items()}
    return Variables({name: golden_parameter(shape, j, name) for j, (name, shape) in enumerate(shapes.items())})


def golden_images(count: int, phase: float) -> Tensor:
    i, c, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (count, 3, 32, 32)), indexing="ij")
    return torch.sin(0.7 * i + 0.3 * h + 0.5 * w + 1.1 * c + 0.1 * h * w + phase)


def golden_gradient(passes: list[slice]) -> tuple[Tensor, Any]:
    """The gradient [10, 2, 3, 32, 32] of the golden inputs, and the parts of the loss."""
    net = build("convnet-d3-w8", (3, 32, 32), 10)
    real, synthetic = golden_images(40, 0.0).unflatten(0, (10, 4)), golden_images(20, 0.9).unflatten(0, (10, 2))
    return image_gradient(
        net, golden_network(), None, synthetic, real.__getitem__, weights=(0.1, 0.1, 1.0), discrimination=0.01,
        passes=passes,
    )  # fmt: skip


@pytest.mark.parametrize("passes", [[slice(0, 10)], [slice(0, 3), slice(3, 10)]])
def test_the_loss_is_that_of_the_authors_code(passes: list[slice]) -> None:
    _, loss = golden_gradient(passes)
    *layers, embedding = loss.distances.tolist()
    assert layers == pytest.approx(
        [25501.91805946667, 7482.851254354973, 551.9340488709563, 70.67745451542645], rel=1e-14
    )
    aligned = sum(w * d for w, d in zip(WEIGHTS, layers, strict=True))
    assert aligned == pytest.approx(3921.088434768547, rel=1e-14)
    assert float(loss.entropy) == pytest.approx(239.60792497788614, rel=1e-14)
    assert embedding + 0.01 * float(loss.entropy) == pytest.approx(73.07353376520531, rel=1e-14)
    assert float(loss.total) == pytest.approx(3994.161968534, abs=1e-9)


def test_the_loop_below_has_the_golden_values_too() -> None:
    real, synthetic = list(golden_images(40, 0.0).split(4)), list(golden_images(20, 0.9).split(2))
    distances, entropy = parts_by_hand(golden_network().params, real, synthetic, 3)
    assert [float(d) for d in distances[:-1]] == pytest.approx(
        [25501.91805946667, 7482.851254354973, 551.9340488709563, 70.67745451542645], rel=1e-13
    )
    assert float(entropy) == pytest.approx(239.60792497788614, rel=1e-13)


def test_the_golden_gradient_is_that_of_the_loop() -> None:
    gradient, _ = golden_gradient([slice(0, 10)])
    leaf = golden_images(20, 0.9).requires_grad_()
    total = loss_by_hand(golden_network().params, list(golden_images(40, 0.0).split(4)), list(leaf.split(2)), 3)
    (expected,) = torch.autograd.grad(total, leaf)
    assert expected.norm() > 1
    assert torch.allclose(gradient.flatten(0, 1), expected, rtol=1e-9, atol=1e-11)


def test_the_cross_entropy_of_real_images_under_the_network_says_nothing_of_the_synthetic_ones() -> None:
    """The authors add it to the loss; here it is left out."""
    leaf = golden_images(20, 0.9).requires_grad_()
    p, real = golden_network().params, golden_images(40, 0.0)
    inert = F.cross_entropy(logits(p, real, 3), torch.arange(10).repeat_interleave(4)) + 0 * leaf.sum()
    (gradient,) = torch.autograd.grad(inert, leaf)
    assert not gradient.any()


# The closed form against autograd on other shapes


@pytest.mark.parametrize(
    ("shape", "depth", "classes", "ipc", "strategy", "runs"),
    [
        ((3, 8, 8), 2, 4, 1, "none", 4),
        ((3, 8, 8), 2, 5, 3, ALL_OPS, 5),
        ((3, 8, 8), 2, 5, 3, ALL_OPS, 2),
        ((1, 28, 28), 3, 3, 2, "crop_rotate", 1),
        ((3, 64, 64), 4, 2, 1, "none", 1),
        ((3, 8, 8), 2, 100, 1, "none", 15),
    ],
)
def test_the_gradient_is_that_of_the_loop(
    shape: tuple[int, int, int], depth: int, classes: int, ipc: int, strategy: str, runs: int
) -> None:
    net, rng = build(f"convnet-d{depth}-w4", shape, classes), Rng(2)
    network = net.init(rng.fold("network")).to(torch.float64)
    view = siamese(strategy, classes, rng.fold("view")) if strategy != "none" else None
    generator = rng.torch()
    real = torch.randn(classes, 3, *shape, generator=generator, dtype=torch.float64)
    images = torch.randn(classes, ipc, *shape, generator=generator, dtype=torch.float64)
    passes = [slice(first, first + runs) for first in range(0, classes, runs)]
    gradient, loss = image_gradient(
        net, network, view, images, real.__getitem__, weights=(0.1, 0.1, 1.0), discrimination=0.01, passes=passes
    )
    leaf = images.clone().requires_grad_()

    def seen(x: Tensor) -> list[Tensor]:
        return list(x) if view is None else [view[c](x[c][None])[0] for c in range(classes)]

    expected = loss_by_hand(network.params, seen(real), seen(leaf), depth)
    assert float(loss.total) == pytest.approx(float(expected.detach()), rel=1e-10)
    (wanted,) = torch.autograd.grad(expected, leaf)
    assert (gradient - wanted).norm() < 1e-9 * wanted.norm()


# The whole algorithm, section 3 with the corrections of section 9


def orders(plan: TrainingPlan, rng: Rng) -> list[tuple[Tensor, Draw | None]]:
    """The batches of a hundred epochs of one network, and how each is augmented."""
    return [
        (block.indices[0, t, :size], block.draws[0][t] if block.draws else None)
        for block in replace(plan, rng=rng).blocks([0])
        for t, size in enumerate(block.sizes)
    ]


class Network:
    """One random network: matched, asked and trained, in float64."""

    def __init__(self, problem: Problem, config: Any, plan: TrainingPlan, rng: Rng) -> None:
        self.problem, self.config, self.rng = problem, config, rng
        self.p = problem.backbone.init(rng.fold("network"), on_device=True).to(torch.float64).params
        self.batches = orders(plan, rng.fold("training", 0))
        self.per_epoch = plan.steps_per_epoch
        self.matches = self.queries = 0

    def slope(self, images: Tensor) -> tuple[Tensor, float]:
        at, problem = self.rng.fold("match", self.matches), self.problem
        self.matches += 1
        rows = problem.real.class_indices(self.config.batch_real, at.fold("real"))
        leaf = images.clone().requires_grad_()
        real = [problem.real.take(row).double() for row in rows]
        mine = list(leaf.split(problem.ipc))
        if self.config.dsa:
            view = siamese(self.config.augment, problem.classes, at.fold("view"))
            real = [view[c](x[None])[0] for c, x in enumerate(real)]
            mine = [view[c](x[None])[0] for c, x in enumerate(mine)]
        total = loss_by_hand(self.p, real, mine, 2)
        (gradient,) = torch.autograd.grad(total, leaf)
        return gradient, float(total.detach())

    def mean_accuracy(self) -> float:
        """Σ_c acc_c / C on fresh real images."""
        problem, each = self.problem, max(1, round(self.config.batch_query / self.problem.classes))
        rows = problem.real.class_indices(each, self.rng.fold("query", self.queries))
        self.queries += 1
        shares = []
        for c, row in enumerate(rows):
            best = logits(self.p, problem.real.take(row).double(), 2).argmax(1)
            shares.append(float((best == c).double().mean()))
        return sum(shares) / len(shares)

    def epoch(self, images: Tensor, labels: Tensor) -> None:
        now, self.batches = self.batches[: self.per_epoch], self.batches[self.per_epoch :]
        for indices, draw in now:
            x = images[indices] if draw is None else draw(images[indices][None])[0]
            theta = {name: value.clone().requires_grad_() for name, value in self.p.items()}
            loss = F.cross_entropy(logits(theta, x, 2), labels[indices])
            slopes = torch.autograd.grad(loss, list(theta.values()))
            self.p = {n: self.p[n] - self.config.lr_network * g for n, g in zip(self.p, slopes, strict=True)}


def by_hand(problem: Problem, config: Any, start: Tensor, plan: TrainingPlan) -> tuple[Tensor, list[dict[str, float]]]:
    """Images after all networks, and for each network its mean loss, updates and epochs."""
    images, velocity, told = start.double(), torch.zeros_like(start, dtype=torch.float64), []
    labels, classes = problem.class_labels(), problem.classes
    halvings = [round(share * (config.iterations - 1)) for share in config.lr_halvings]
    lr = config.lr_images
    for it in range(config.iterations):
        if it in halvings:
            lr = lr * 0.5
        network = Network(problem, config, plan, problem.rng.fold("step", it))
        losses, epochs = [], 0
        w_out: list[float] = []
        a = 0.0
        while True:
            gradient, loss = network.slope(images)
            losses.append(loss)
            velocity = config.momentum * velocity + gradient
            images = images - lr * velocity
            if config.loops == "fixed":
                if len(losses) == config.outer_loop:
                    break
                for _ in range(config.inner_loop):
                    network.epoch(images, labels)
                    epochs += 1
                continue
            a = network.mean_accuracy() + (a / classes if config.leaky_watch else 0.0)
            w_out.append(a)
            if len(w_out) == config.window:
                if max(w_out) - min(w_out) < config.plateau:
                    break
                w_out.pop(0)
            w_in: list[float] = []
            b = 0.0
            while True:
                network.epoch(images, labels)
                epochs += 1
                b = network.mean_accuracy() + (b / classes if config.leaky_watch else 0.0)
                w_in.append(b)
                if len(w_in) == config.window:
                    if max(w_in) - min(w_in) > config.progress:
                        break
                    w_in.pop(0)
        told.append({"loss": sum(losses) / len(losses), "updates": len(losses), "epochs": epochs})
    return images, told


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"window": 4}),
        ({"per_class": (40, 9, 15)}, {"window": 3, "leaky_watch": False}),
        ({}, {"loops": "fixed", "outer_loop": 4, "inner_loop": 3}),
        ({}, {"window": 3, "dsa": True, "augment": ALL_OPS}),
        ({"ipc": 1}, {"loops": "fixed", "outer_loop": 3, "inner_loop": 2, "dsa": True, "augment": "crop_flip"}),
    ],
)
def test_it_learns_the_images_of_the_loop(tmp_path: Path, changes: dict[str, Any], options: dict[str, Any]) -> None:
    problem = problem_for_checks(tmp_path, seed=3, **{"ipc": 3, **changes})
    # 9 images in batches of 4: the last one of an epoch has a single image.
    options = {
        "iterations": 3, "batch_real": 12, "batch_train": 4, "batch_query": 60, "lr_network": 0.05, "plateau": 0.105,
        "lr_images": 0.01, "lr_halvings": (0.5,),
    } | options  # fmt: skip
    method = CAFE(CAFE.Config(**options))
    begun = method.start(problem)
    expected, told = by_hand(problem, method.config, begun.images.clone(), begun.training.plan)
    found: list[dict[str, float]] = []
    for last, metrics in drive(method, problem):
        state = last
        if metrics:
            found.append({name: float(metrics[name]) for name in ("loss", "updates", "epochs")})
    assert [(step["updates"], step["epochs"]) for step in found] == [(s["updates"], s["epochs"]) for s in told]
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in told], rel=1e-3)
    start = begun.images
    moved = (expected - start).norm()
    assert moved > 0.01
    assert (state.images - expected).norm() < 2e-3 * moved
    if method.config.loops == "watched":
        assert len({step["updates"] for step in found}) > 1 or found[0]["updates"] > method.config.window


def test_momentum_and_its_velocity_last_for_the_whole_run(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    ends: list[list[Tensor]] = []
    for momentum in (0.0, 0.5):
        method = CAFE(CAFE.Config(iterations=2, loops="fixed", outer_loop=1, momentum=momentum, batch_real=8))
        ends.append([state.images.clone() for state, _ in drive(method, problem)])
    plain, heavy = ends
    assert torch.equal(plain[1], heavy[1])
    assert not torch.allclose(plain[2], heavy[2])
