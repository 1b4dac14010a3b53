"""DC and DSA against a float64 loop over networks, matches and classes, written down from the papers' algorithms."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Method, Problem, Variables, drive
from ddbench.backbones.names import build
from ddbench.engine.augment import Draw, siamese
from ddbench.plugins import GROUPS, load_object
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks
from ddbench.training.lockstep import Lockstep
from ddbench.training.plan import TrainingPlan

DC, DSA = (load_object(GROUPS["method"], name) for name in ("dc", "dsa"))
ALL_OPS = "color_crop_cutout_flip_scale_rotate"
Running = dict[str, Tensor]


def logits(p: dict[str, Tensor], x: Tensor, running: Running | None, train: bool) -> Tensor:
    """Twice convolution, norm, ReLU, average pooling, then a linear layer. Batch norm where there are statistics.

    In training batch norm divides by the batch's own spread and moves its statistics a tenth of the way; else it
    divides by the statistics.
    """
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        if running is None:
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        elif train:
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            count = x.numel() / x.shape[1]
            for key, value in (("mean", mean), ("var", variance * count / (count - 1))):
                name = f"{block}.norm.running_{key}"
                running[name] = 0.9 * running[name] + 0.1 * value.detach().flatten()
        else:
            mean, variance = (running[f"{block}.norm.running_{key}"][:, None, None] for key in ("mean", "var"))
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.relu(), 2)
    return F.linear(x.flatten(1), p["logits.weight"], p["logits.bias"])


def loss(p: dict[str, Tensor], x: Tensor, y: Tensor, running: Running | None, train: bool) -> Tensor:
    rows = logits(p, x, running, train).log_softmax(dim=1)
    return -sum(rows[i, int(label)] for i, label in enumerate(y)) / len(y)  # type: ignore[return-value]


def distance(kind: str, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if kind == "ours":
        for a, b in zip(real, synthetic, strict=True):
            if a.ndim > 1:
                for x, y in zip(a.flatten(1), b.flatten(1), strict=True):
                    total = total + 1 - x @ y / (x.norm() * y.norm() + 1e-6)
        return total
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (real, synthetic))
    return (a - b) @ (a - b) if kind == "mse" else 1 - a @ b / (a.norm() * b.norm() + 1e-6)


def orders(plan: TrainingPlan, rng: Rng) -> list[tuple[Tensor, Draw | None]]:
    """The batches of all inner steps of one network, and how each is augmented."""
    return [
        (block.indices[0, t, :size], block.draws[0][t] if block.draws else None)
        for block in replace(plan, rng=rng).blocks([0])
        for t, size in enumerate(block.sizes)
    ]


def by_hand(
    problem: Problem, config: Any, strategy: str, start: Tensor, plan: TrainingPlan
) -> tuple[Tensor, list[float]]:
    """Images after all networks, and the mean loss of each network's matches."""
    images, velocity, means = start.double(), torch.zeros_like(start, dtype=torch.float64), []
    labels = problem.class_labels()
    for step in range(config.iterations):
        rng = problem.rng.fold("step", step)
        fresh = problem.backbone.init(rng.fold("network"), on_device=True).to(torch.float64)
        p, losses = fresh.params, []
        running = None if problem.backbone.per_sample else dict(fresh.buffers)
        batches = orders(plan, rng.fold("training"))
        for t in range(config.outer_loop):
            at = rng.fold("match", t)
            if running is not None:
                usual = problem.real.take(problem.real.class_indices(16, at.fold("statistics"))).double()
                logits(p, usual.flatten(0, 1), running, train=True)
            view = siamese(strategy, problem.classes, at.fold("view"))
            rows = problem.real.class_indices(config.batch_real, at.fold("real"))
            leaf = images.clone().requires_grad_()
            total = torch.zeros((), dtype=torch.float64)
            for c in range(problem.classes):
                theta = {name: value.clone().requires_grad_() for name, value in p.items()}
                real = view[c](problem.real.take(rows[c]).double()[None])[0]
                mine = view[c](leaf[c * problem.ipc : (c + 1) * problem.ipc][None])[0]
                of_real = torch.autograd.grad(
                    loss(theta, real, torch.full((len(real),), c), running, False), list(theta.values())
                )
                of_mine = torch.autograd.grad(
                    loss(theta, mine, torch.full((len(mine),), c), running, False),
                    list(theta.values()),
                    create_graph=True,
                )
                total = total + distance(config.distance, list(of_real), list(of_mine))
            (grad,) = torch.autograd.grad(total, leaf)
            velocity = config.momentum * velocity + grad
            images = images - config.lr_images * velocity
            losses.append(total.item())
            if t == config.outer_loop - 1:
                break
            per_match = len(batches) // (config.outer_loop - 1)
            for indices, draw in batches[t * per_match : (t + 1) * per_match]:
                x = images[indices] if draw is None else draw(images[indices][None])[0]
                theta = {name: value.clone().requires_grad_() for name, value in p.items()}
                grads = torch.autograd.grad(loss(theta, x, labels[indices], running, True), list(theta.values()))
                p = {name: p[name] - config.lr_network * g for name, g in zip(p, grads, strict=True)}
        means.append(sum(losses) / len(losses))
    return images, means


def compare(method: Method[Any], problem: Problem, strategy: str) -> None:
    begun = method.start(problem)
    start, plan = begun.images.detach().clone(), begun.training.plan
    assert plan.strategy == strategy
    expected, losses = by_hand(problem, method.config, strategy, start, plan)
    found: list[float] = []
    for last, metrics in drive(method, problem):
        state = last
        found += [float(value) for value in metrics.values()]
    assert found == pytest.approx(losses, rel=1e-3)
    moved = (expected - start).norm()
    assert moved > 0.01
    assert (state.images.detach() - expected).norm() < 2e-3 * moved


@pytest.mark.parametrize(
    ("backbone", "changes", "options"),
    [
        ("convnet-d2-w8", {}, {"inner_loop": 2}),
        ("convnet-d2-w8", {"per_class": (40, 7, 12)}, {"inner_loop": 1, "batch_real": 256, "batch_train": 256}),
        ("convnet-d2-w8-bn", {}, {"inner_loop": 2}),
        ("convnet-d2-w8", {}, {"inner_loop": 1, "distance": "mse", "lr_images": 10.0}),
        ("convnet-d2-w8-bn", {}, {"inner_loop": 1, "distance": "cos", "lr_images": 1.0}),
    ],
)
def test_dc_learns_the_images_of_the_loop(
    tmp_path: Path, backbone: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    problem = problem_for_checks(tmp_path, seed=3, **{"ipc": 3, **changes})
    problem = replace(problem, backbone=build(backbone, problem.shape, problem.classes))
    # 9 images in batches of 4: the last one of an epoch has a single image.
    options = {"iterations": 2, "outer_loop": 3, "batch_real": 12, "batch_train": 4, "lr_network": 0.1} | options
    compare(DC(DC.Config(**options)), problem, "none")


@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "convnet-d2-w8-bn"])
def test_dsa_learns_the_images_of_the_loop(tmp_path: Path, backbone: str) -> None:
    problem = problem_for_checks(tmp_path, seed=5, ipc=3)
    problem = replace(problem, backbone=build(backbone, problem.shape, problem.classes))
    options = {"iterations": 2, "outer_loop": 4, "inner_loop": 2, "batch_real": 12, "batch_train": 4, "lr_network": 0.1}
    compare(DSA(DSA.Config(**options, augment=ALL_OPS)), problem, ALL_OPS)


def test_one_match_a_network_never_trains_it(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=1)
    method = DC(DC.Config(iterations=3, batch_real=12, outer_loop=1))
    assert method.start(problem).training is None
    images, velocity = method.start(problem).images.detach().double(), torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    for step in range(3):
        rng = problem.rng.fold("step", step)
        p = problem.backbone.init(rng.fold("network"), on_device=True).to(torch.float64).params
        rows = problem.real.class_indices(12, rng.fold("match", 0, "real"))
        leaf, total = images.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
        for c in range(3):
            theta = {name: value.clone().requires_grad_() for name, value in p.items()}
            pairs = ((problem.real.take(rows[c]).double(), False), (leaf[c : c + 1], True))
            gradients = [
                torch.autograd.grad(
                    loss(theta, x, torch.full((len(x),), c), None, True), list(theta.values()), create_graph=graph
                )
                for x, graph in pairs
            ]
            total = total + distance("ours", *(list(g) for g in gradients))
        velocity = 0.5 * velocity + torch.autograd.grad(total, leaf)[0]
        images = images - 0.1 * velocity
    (*_, (state, _)) = drive(method, problem)
    assert (state.images.detach() - images).norm() < 1e-4 * images.norm()


def test_restarted_students_are_fresh_ones(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, backbone=build("convnet-d2-w8-bn", problem.shape, problem.classes))
    plan = DC(DC.Config(outer_loop=3, inner_loop=2)).start(problem).training.plan
    plan = replace(plan, options=plan.options.model_copy(update={"momentum": 0.9}))
    first, second = (problem.backbone.init(Rng(k), copies=1) for k in (1, 2))
    used = Lockstep(problem.backbone, first, plan)
    used.train([0], lambda _: None)
    used.restart(second)
    trained = [training.train([0], lambda _: None)[0] for training in (used, Lockstep(problem.backbone, second, plan))]
    for a, b in zip(*(_tensors(v) for v in trained), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(trained[0].params["logits.weight"], second.params["logits.weight"][0])


def _tensors(network: Variables) -> list[Tensor]:
    return [*network.params.values(), *network.buffers.values()]
