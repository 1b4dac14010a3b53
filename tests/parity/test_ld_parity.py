"""LD against float64 loops written down from the paper: autograd through the look-ahead, explicit inverses, a list."""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench import Problem, Rng, Variables
from ddbench.backbones.names import build
from ddbench.data.pixels import Standard
from ddbench.engine.regression import ridge_map, with_ones
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks

LD = load_object(GROUPS["method"], "ld")
MODULE = sys.modules[LD.__module__]
Tensors = dict[str, Tensor]

BATCH_REAL, BATCH_BASE = 30, 4  # of 108 images the last batch of a pass has 18


class Double(Standard):
    """The standard pixel space in float64; what follows from it is float64 too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).double()


def problem_in_double(folder: Path, monkeypatch: pytest.MonkeyPatch, backbone: str = "convnet-d2-w4") -> Problem:
    """Without the images that are held out, as LD is given one."""
    problem = problem_for_checks(folder, seed=3)
    pixels = Double(**{f.name: getattr(problem.pixels, f.name) for f in fields(Standard)})
    problem = replace(problem, pixels=pixels, backbone=build(backbone, problem.shape, problem.classes))
    init = problem.backbone.init
    monkeypatch.setattr(problem.backbone, "init", lambda *a, **options: init(*a, **options).to(torch.float64))
    return problem.heldout(0.1)[0]


def embed(p: Tensors, x: Tensor) -> Tensor:
    """Twice 3x3 convolution, instance norm, ReLU, 2x2 average pooling."""
    for block in ("block1", "block2"):
        x = torch.nn.functional.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = x.clamp(min=0)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.flatten(1)


def network(p: Tensors, x: Tensor) -> Tensor:
    return embed(p, x) @ p["logits.weight"].T + p["logits.bias"]


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """mean_i Σ_c -y_ic log softmax(z_i)_c."""
    return -(y * (z - z.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def one_hot(classes: Tensor) -> Tensor:
    return torch.eye(3, dtype=torch.float64)[classes]


def ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def projected(labels: Tensor) -> Tensor:
    rows = []
    for row in labels.tolist():
        clipped = [min(1.0, max(0.0, value)) for value in row]
        total = sum(clipped)
        rows.append([value / total for value in clipped] if total > 0 else [1 / len(row)] * len(row))
    return torch.tensor(rows, dtype=torch.float64)


class Adam:
    """Kingma and Ba, ICLR 2015, algorithm 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t, self.m, self.v = lr, 0, {}, {}  # type: ignore[var-annotated]

    def __call__(self, values: Tensors, grads: Tensors) -> Tensors:
        self.t += 1
        moved = {}
        for name, grad in grads.items():
            self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * grad
            self.v[name] = 0.999 * self.v.get(name, 0.0) + 0.001 * grad**2
            first, second = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            moved[name] = values[name] - self.lr * first / (second.sqrt() + 1e-8)
        return moved


class Rule:
    """The restart rule on a list: minimum of the sum of the last w errors, once there are w.

    w steps without a new minimum are borne, the one after them ends the network.
    """

    def __init__(self, window: int) -> None:
        self.window, self.lengths = window, []  # type: ignore[var-annotated]
        self.forget()

    def forget(self) -> None:
        self.errors: list[float] = []
        self.lowest, self.best = float("inf"), 0

    def restarts(self, error: float) -> bool:
        # An error is a float32 in the authors' code.
        self.errors.append(float(np.float32(error)))
        if len(self.errors) < self.window:
            return False
        total = sum(self.errors[-self.window :])
        if total < self.lowest:
            self.lowest, self.best = total, len(self.errors)
        if len(self.errors) - self.best <= self.window:
            return False
        self.lengths.append(self.best)
        self.forget()
        return True


@dataclass
class ByHand:
    """Labels, network and lengths after some steps, and the last gradient of the labels."""

    labels: Tensor
    params: Tensors
    rule: Rule
    slope: Tensor
    weight: Tensor
    scale: Tensor


def draws(problem: Problem, t: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen base rows and the real batch of a step, as the method draws them."""
    rng, real = problem.rng.fold("step", t), problem.real
    rows = real.epoch_indices(BATCH_REAL, t, problem.rng.fold("real"))
    return torch.randperm(n, generator=rng.fold("base").torch())[:BATCH_BASE], real.take(rows), real.labels[rows]


def leaves(p: Tensors) -> Tensors:
    return {name: value.detach().clone().requires_grad_() for name, value in p.items()}


def second_order(problem: Problem, base: Tensor, steps: int, window: int, lr_labels: float) -> ByHand:
    start = problem.rng.fold("start").fold("network")
    p, labels, rule = problem.backbone.init(start).params, torch.full((6, 3), 1 / 3, dtype=torch.float64), Rule(window)
    adam_labels, adam, slope = Adam(lr_labels), Adam(1e-3), torch.zeros(())
    for t in range(steps):
        chosen, x_target, y_target = draws(problem, t, 6)
        y, p = labels.clone().requires_grad_(), leaves(p)
        inner = cross_entropy(network(p, base[chosen]), y[chosen])
        grads = dict(zip(p, torch.autograd.grad(inner, list(p.values()), create_graph=True), strict=True))
        ahead = {name: p[name] - 0.01 * grads[name] for name in p}
        z = network(ahead, x_target)
        (slope,) = torch.autograd.grad(cross_entropy(z, one_hot(y_target)), y)
        labels = projected(adam_labels({"y": labels}, {"y": slope})["y"])
        p = adam({k: v.detach() for k, v in p.items()}, {k: g.detach() for k, g in grads.items()})
        if rule.restarts(100 * float((z.argmax(dim=1) != y_target).double().mean())):
            p, adam = problem.backbone.init(problem.rng.fold("step", t).fold("network")).params, Adam(1e-3)
    return ByHand(labels, p, rule, slope, torch.zeros(()), torch.zeros(()))


def ridge(problem: Problem, base: Tensor, steps: int, window: int, lr_labels: float) -> ByHand:
    start = problem.rng.fold("start").fold("network")
    p, labels, rule = problem.backbone.init(start).params, torch.full((6, 3), 1 / 3, dtype=torch.float64), Rule(window)
    adam_labels, adam, adam_scale, slope = Adam(lr_labels), Adam(1e-3), Adam(0.01), torch.zeros(())
    weight, scale = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for t in range(steps):
        chosen, x_target, y_target = draws(problem, t, 6)
        y, p = labels.clone().requires_grad_(), leaves(p)
        z = ones(embed(p, base[chosen]))
        local = z.T @ torch.linalg.inv(z @ z.T + 1.0 * torch.eye(len(z), dtype=torch.float64)) @ y[chosen]
        mixed = 0.99 * weight + 0.01 * local
        outer = ones(embed(p, x_target)) @ (scale * mixed)
        (slope,) = torch.autograd.grad(cross_entropy(outer, one_hot(y_target)), y, retain_graph=True)
        labels = projected(adam_labels({"y": labels}, {"y": slope})["y"])
        leaf = scale.clone().requires_grad_()
        # `mixed` is what it was, of the labels before this update, and the features are behind it as well.
        inner = cross_entropy(z @ (leaf * mixed), labels[chosen])
        weight = mixed.detach()
        names = [name for name in p if not name.startswith("logits")]
        *grads, grad_scale = torch.autograd.grad(inner, [*(p[name] for name in names), leaf])
        moved = adam({k: v.detach() for k, v in p.items()}, dict(zip(names, grads, strict=True)))
        p = {name: value.detach() for name, value in p.items()} | moved
        scale = adam_scale({"s": scale}, {"s": grad_scale})["s"]
        if rule.restarts(100 * float((outer.argmax(dim=1) != y_target).double().mean())):
            p = problem.backbone.init(problem.rng.fold("step", t).fold("network")).params
            adam, adam_scale, weight, scale = Adam(1e-3), Adam(0.01), torch.zeros_like(scale), torch.ones_like(scale)
    return ByHand(labels, p, rule, slope, weight, scale)


BY_HAND: dict[str, Callable[..., ByHand]] = {"second-order": second_order, "ridge": ridge}


def started(problem: Problem, **options: Any) -> tuple[Any, Any]:
    known = {"iterations": 1000, "batch_real": BATCH_REAL, "batch_base": BATCH_BASE}
    method = LD(LD.Config(**known | options))
    return method, method.start(problem)


def advance(method: Any, problem: Problem, state: Any, steps: int) -> None:
    for _ in range(steps):
        method.step(problem, state, problem.rng.fold("step", state.step))
        state.step += 1


@pytest.mark.parametrize("variant", BY_HAND)
@pytest.mark.parametrize(("window", "lr_labels", "steps"), [(1000, 1e-3, 6), (2, 1e-3, 24), (3, 0.2, 24)])
def test_the_steps_are_those_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, window: int, lr_labels: float, steps: int
) -> None:
    problem = problem_in_double(tmp_path, monkeypatch)
    method, state = started(problem, variant=variant, window=window, lr_labels=lr_labels)
    advance(method, problem, state, steps)
    expected = BY_HAND[variant](problem, problem.whole.real.take(state.rows), steps, window, lr_labels)
    assert torch.allclose(state.labels.grad, expected.slope, rtol=1e-8, atol=1e-14)
    assert torch.allclose(state.labels, expected.labels, rtol=0, atol=1e-9)
    for name, value in expected.params.items():
        assert torch.allclose(state.network.params[name], value, rtol=1e-6, atol=1e-7), name
    if variant == "ridge":
        assert torch.allclose(state.head["weight"], expected.weight, rtol=1e-8, atol=1e-10)
        assert torch.allclose(state.head["scale"], expected.scale, rtol=1e-8)
    assert state.lengths == expected.rule.lengths[-3:]
    assert bool(expected.rule.lengths) == (window < steps)


def test_a_step_in_float32_is_that_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_in_double(tmp_path / "a", monkeypatch)
    plain = replace(problem_for_checks(tmp_path / "b", seed=3), backbone=build("convnet-d2-w4", (3, 8, 8), 3))
    plain = plain.heldout(0.1)[0]
    for variant, by_hand in BY_HAND.items():
        method, state = started(plain, variant=variant)
        advance(method, plain, state, 1)
        expected = by_hand(problem, problem.whole.real.take(state.rows), 1, 1000, 1e-3)
        assert (state.labels.grad - expected.slope).norm() < 1e-4 * expected.slope.norm()


@pytest.mark.parametrize("backbone", ["convnet-d2-w4-bn", "alexcifarnet", "mlp"])
def test_the_gradient_of_labels_is_that_of_autograd_through_the_look_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    problem = problem_in_double(tmp_path, monkeypatch, backbone)
    method, state = started(problem)
    before = Variables(leaves(state.network.params), {k: v.clone() for k, v in state.network.buffers.items()})
    chosen, x, classes = draws(problem, 0, 6)
    y = state.labels.clone().requires_grad_()
    advance(method, problem, state, 1)

    net, params = problem.backbone, list(before.params.values())
    logits, buffers = net(before, state.images[chosen])
    grads = torch.autograd.grad(cross_entropy(logits, y[chosen]), params, create_graph=True)
    moved = dict(zip(before.params, (p - 0.01 * g for p, g in zip(params, grads, strict=True)), strict=True))
    outer = cross_entropy(net(Variables(moved, buffers), x)[0], one_hot(classes))
    (expected,) = torch.autograd.grad(outer, y)
    assert torch.allclose(state.labels.grad, expected, rtol=1e-9, atol=1e-16)
    for name, value in buffers.items():
        assert torch.allclose(state.network.buffers[name], value)


def test_the_look_ahead_is_differentiated_rightly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_in_double(tmp_path, monkeypatch)
    p = leaves(problem.backbone.init(Rng(5)).params)
    base, (_, x, classes) = problem.real.take(torch.tensor([0, 41, 82])), draws(problem, 0, 6)

    def target(y: Tensor) -> Tensor:
        inner = cross_entropy(network(p, base), y)
        grads = torch.autograd.grad(inner, list(p.values()), create_graph=True)
        ahead = {name: value - 0.01 * grad for (name, value), grad in zip(p.items(), grads, strict=True)}
        return 1e3 * cross_entropy(network(ahead, x[:5]), one_hot(classes[:5]))

    labels = torch.rand(3, 3, dtype=torch.float64, generator=Rng(6).torch()).requires_grad_()
    assert torch.autograd.gradcheck(target, labels, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 12), st.floats(0.01, 100))
def test_one_map_gives_the_weights_of_ridge_regression_for_any_targets(
    seed: int, n: int, width: int, strength: float
) -> None:
    generator = Rng(seed).torch()
    z = torch.randn(n, width, dtype=torch.float64, generator=generator)
    y = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    # The normal equations, in the other form.
    expected = torch.linalg.inv(z.T @ z + strength * torch.eye(width, dtype=torch.float64)) @ z.T @ y
    assert torch.allclose(ridge_map(z, strength).T @ y, expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(with_ones(z)[:, :-1], z)
    assert with_ones(z)[:, -1].tolist() == [1.0] * n


def test_the_solution_is_differentiated_rightly() -> None:
    generator = Rng(4).torch()
    features = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.rand(3, 2, dtype=torch.float64, generator=generator).requires_grad_()

    def weights(z: Tensor, y: Tensor) -> Tensor:
        return ridge_map(with_ones(z), 0.7).T @ y

    assert torch.autograd.gradcheck(weights, (features, targets))


def test_the_network_learns_through_the_solution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_in_double(tmp_path, monkeypatch)
    method, state = started(problem, variant="ridge")
    # With uniform labels all columns of the solution are equal, and the features learn nothing.
    state.labels.copy_(torch.rand(6, 3, dtype=torch.float64, generator=Rng(6).torch()).softmax(dim=1))
    p, y = leaves(state.network.params), state.labels.clone()
    chosen, _, _ = draws(problem, 0, 6)
    z = ones(embed(p, problem.whole.real.take(state.rows)[chosen]))
    advance(method, problem, state, 1)

    def slope(through: Tensor) -> Tensor:
        inverse = torch.linalg.inv(through @ through.T + torch.eye(4, dtype=torch.float64))
        loss = cross_entropy(z @ (0.01 * through.T @ inverse @ y[chosen]), state.labels[chosen])
        return torch.autograd.grad(loss, p["block1.conv.weight"], retain_graph=True)[0]

    found = state.network.params["block1.conv.weight"].grad
    assert (found - slope(z)).norm() < 1e-10 * found.norm()
    assert (found - slope(z.detach())).norm() > 1e-3 * found.norm()


@pytest.mark.parametrize(
    ("errors", "step", "length"),
    [
        # The minimum comes with the step at which the first mean is there; 50 steps are borne, the 51st is not.
        ([0.5] * 400, 101, 50),
        # The mean falls for as long as errors of 0.5 leave it: last at step 99.
        ([0.5] * 49 + [0.4] * 400, 150, 99),
    ],
)
def test_a_network_ends_one_step_after_a_whole_window_without_a_new_minimum(
    tmp_path: Path, errors: list[float], step: int, length: int
) -> None:
    problem = problem_for_checks(tmp_path)
    method, state = started(problem, window=50)

    def only_note(problem: Problem, state: Any, base: Tensor, rows: Tensor) -> Tensors:
        MODULE.note(state, torch.tensor(errors[state.step], dtype=torch.float64))
        return {}

    method.update = only_note
    while not state.drawn:
        advance(method, problem, state, 1)
    assert (state.drawn, state.lengths) == (step, [length])


def test_an_equal_mean_is_no_new_minimum_in_whichever_order_its_errors_came(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    _, state = started(problem, window=7)
    # Thirds and the like, as the smaller last batch of a pass has them, whose sums depend on the order in float64.
    errors = [k / 968 for k in (711, 703, 695, 698, 640, 655, 677)]
    dice = random.Random(3)
    for error in errors:
        MODULE.note(state, torch.tensor(error, dtype=torch.float64))
    for again in range(1, 200):
        # Two of the window change places: the same errors in another order.
        first, second = dice.sample(range(7), 2)
        kept = state.recent["errors"]
        kept[[first, second]] = kept[[second, first]]
        oldest = int(state.recent["taken"]) % 7
        MODULE.note(state, kept[oldest].clone() / 100)
        assert int(state.recent["since"]) == again


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_the_restart_rule_is_kept_although_it_is_looked_at_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    problem = problem_for_checks(tmp_path)
    method, state = started(problem, window=window)
    dice, rule, expected, drawn, looks = random.Random(window), Rule(window), [], [], 0
    errors = [dice.randint(0, 1024) / 1024 * 0.98 ** min(t % 90, 50) for t in range(400)]

    class Watched(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            nonlocal looks
            looks += name == "since"
            return super().__getitem__(name)

    def only_note(problem: Problem, state: Any, base: Tensor, rows: Tensor) -> Tensors:
        nonlocal looks
        MODULE.note(state, torch.tensor(errors[state.step], dtype=torch.float64))
        looks -= 1  # the look of the device at its own counter
        return {}

    state.recent = Watched(state.recent)
    method.update = only_note
    for t, error in enumerate(errors):
        if rule.restarts(100 * error):
            expected.append(t + 1)
        advance(method, problem, state, 1)
        if state.drawn and state.drawn not in drawn:
            drawn.append(state.drawn)
            looks -= 1  # when it is set back
    assert drawn == expected
    assert len(expected) > 5
    assert state.lengths == rule.lengths[-3:]
    assert looks < len(errors) / (1 if window == 1 else 1.5)


def test_a_row_of_which_nothing_is_left_becomes_uniform() -> None:
    labels = torch.tensor([[-1.0, 0.0, -0.5], [2.0, 0.5, -3.0], [0.2, 0.2, 0.4]])
    expected = torch.tensor([[1 / 3] * 3, [2 / 3, 1 / 3, 0.0], [0.25, 0.25, 0.5]])
    assert torch.allclose(MODULE.project(labels), expected)
    assert torch.allclose(MODULE.project(labels).double(), projected(labels.double()), atol=1e-7)
