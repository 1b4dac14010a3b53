"""DANCE and NCFM against float64 loops written down from the papers, with torch's own optimisers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, optim

from ddbench import Problem, Rng, drive
from ddbench.data.pixels import fit_pixels
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError
from ddbench.loop import condense
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import unflatten
from ddbench_methods.dance import DANCE, DANCEConfig, DANCEState, mosaics
from ddbench_methods.ncfm import NCFM, NCFMConfig, characteristic_distance

SMALL: dict[str, Any] = {"networks": 2, "epochs": 3, "lr_networks": 0.3, "batch_real": 5}


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path, seed=3)


def dance(**options: Any) -> DANCE:
    return DANCE(DANCEConfig(**(SMALL | {"lr_images": 0.5} | options)))


def ncfm(**options: Any) -> NCFM:
    return NCFM(NCFMConfig(**(SMALL | {"frequencies": 16, "lr_images": 0.01} | options)))


def embedded(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.clamp(min=0), 2)
    return x.flatten(1)


def mean_distance(synthetic: Tensor, real: Tensor, frequencies: Tensor | None) -> Tensor:
    return sum(((synthetic[:, d].mean() - real[:, d].mean()) ** 2 for d in range(real.shape[1])), torch.zeros(()))


def characteristic(synthetic: Tensor, real: Tensor, frequencies: Tensor | None) -> Tensor:
    """300 times the mean over frequencies, from amplitudes and phases as the paper weighs them, both by one half."""
    assert frequencies is not None
    synthetic, real = (f / f.norm(dim=1, keepdim=True) for f in (synthetic, real))
    total = torch.zeros((), dtype=torch.float64)
    for t in frequencies:
        r, s = (torch.exp(1j * (f @ t)).mean() for f in (real, synthetic))
        amplitude = (r.abs() - s.abs()) ** 2
        phase = 2 * (r.abs() * s.abs() - (r * s.conj()).real)
        total = total + (0.5 * amplitude + 0.5 * phase.clamp(min=1e-12)).sqrt()
    return 300 * total / len(frequencies)


@pytest.mark.parametrize("per_class_steps", [True, False])
@pytest.mark.parametrize("make", [dance, ncfm])
def test_iterations_are_those_of_the_loop(problem: Problem, make: Any, per_class_steps: bool) -> None:
    method = make(iterations=3, per_class_steps=per_class_steps, batch_syn=6)
    first = method.start(problem)
    images = first.images.double().requires_grad_()
    distance = mean_distance if make is dance else characteristic
    optimizer: Any = optim.SGD([images], 0.5, momentum=0.5)
    if make is ncfm:
        optimizer = optim.AdamW([images], 0.01, weight_decay=5e-4)
    losses, like = [], problem.backbone.init(Rng(0)).params
    own = torch.arange(len(images)) // problem.ipc
    for i in range(3):
        rng = problem.rng.fold("step", i)
        drawn = rng.fold("network").numpy()
        number, share = int(drawn.integers(2)), float(drawn.random())
        ends = [first.networks.params(number, epoch).double() for epoch in (0, 3)]
        network, judge = unflatten(share * ends[0] + (1 - share) * ends[1], like), unflatten(ends[1], like)
        rows = problem.real.class_indices(5, rng.fold("real"))
        chosen = method.chosen(problem, rng)
        frequencies = None
        if make is ncfm:
            frequencies = torch.randn(16, first.width, generator=rng.fold("frequencies").torch()).double()
        with torch.no_grad():
            images.clamp_(0, 1)

        def seen(c: int, x: Tensor, name: str, rng: Rng = rng) -> Tensor:
            for view in method.views(problem, rng.fold(name)):
                x = view[c : c + 1](x[None])[0]
            return x

        def shown(c: int, chosen: Tensor = chosen) -> Tensor:
            full, _ = decode("tiles(factor=2)", images[own == c], torch.zeros(problem.ipc))
            mean, std = (value.double() for value in (problem.pixels.mean, problem.pixels.std))
            return (full[chosen[c]] - mean) / std

        def loss_of(
            c: int, part: str, network: Any = network, judge: Any = judge, rows: Any = rows, t: Any = frequencies
        ) -> Tensor:
            if part == "match":
                real = seen(c, problem.real.take(rows[c]).double(), "view")
                return distance(embedded(network, seen(c, shown(c), "view")), embedded(network, real), t)
            scores = embedded(judge, seen(c, shown(c), "calibration"))
            scores = scores @ judge["logits.weight"].T + judge["logits.bias"]
            return (scores.logsumexp(1) - scores[:, c]).mean()

        for part in ("match", "classify"):
            each = [loss_of(c, part) for c in range(problem.classes)]
            (gradient,) = torch.autograd.grad(torch.stack(each).sum(), images)
            if part == "match":
                losses.append(float(torch.stack(each).sum().detach()))
            for c in range(problem.classes) if per_class_steps else [None]:
                images.grad = gradient if c is None else gradient * (own == c)[:, None, None, None]
                optimizer.step()
    told = [float(metrics["loss"]) for _, metrics in drive(method, problem) if metrics]
    *_, (state, _) = drive(method, problem)
    assert told == pytest.approx(losses, rel=2e-4)
    moved = images.detach() - first.images
    assert moved.norm() > 0.05
    assert (state.images - images.detach()).norm() < 5e-3 * moved.norm()


def test_the_distance_of_equal_and_of_opposite_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    t = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    assert float(characteristic_distance(f, f.flip(1), t)) < 1e-5  # order says nothing
    assert float(characteristic_distance(f, f + 1, t)) > 0.1
    expected = sum(characteristic_distance(f[k : k + 1], (f + 1)[k : k + 1], t) for k in range(2))
    assert torch.allclose(characteristic_distance(f, f + 1, t), expected)


def test_ncfm_halves_its_step_size_as_torch_would(problem: Problem) -> None:
    method = ncfm(patience=3)
    state = method.start(problem)
    twin = optim.SGD([torch.zeros(1, requires_grad=True)], float(state.lr))
    plateau = optim.lr_scheduler.ReduceLROnPlateau(twin, factor=0.5, patience=3)
    generator = torch.Generator().manual_seed(1)
    for loss in [5.0, 4.0, *(4 + torch.rand(20, generator=generator)).tolist(), 3.9999, 3.0, *[3.5] * 9]:
        method.adapt(state, torch.tensor(loss))
        plateau.step(loss)
        assert float(state.lr) == pytest.approx(twin.param_groups[0]["lr"])
    assert float(state.lr) < 0.002


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_mosaics_are_real_images_with_every_fth_pixel(problem: Problem, factor: int) -> None:
    images = mosaics(problem, factor, problem.rng)
    assert images.shape == (problem.classes * problem.ipc, *problem.shape)
    rows = problem.real.class_indices(problem.ipc * factor**2, problem.rng)
    side = -(-problem.shape[1] // factor)
    for n, image in enumerate(images):
        label, within = divmod(n, problem.ipc)
        for tile in range(factor**2):
            of_class = rows[label]
            real = problem.train.images[of_class[(within * factor**2 + tile) % len(of_class)]].float() / 255
            small = F.interpolate(real[None], size=(side, side), mode="nearest")[0]
            top, left = tile // factor * side, tile % factor * side
            found = image[:, top : top + side, left : left + side]
            assert torch.equal(found, small[:, : found.shape[1], : found.shape[2]])


def test_a_set_says_how_its_mosaics_are_shown(problem: Problem) -> None:
    made = condense(dance(iterations=1), problem)
    assert made.decode == "tiles(factor=2)"
    assert condense(dance(iterations=1, factor=1), problem).decode == "none"
    back = problem.pixels.back(made.images)
    assert back is not None
    assert back.min() >= -1e-5
    assert back.max() <= 1 + 1e-5


def test_without_calibration_only_distances_count(problem: Problem) -> None:
    plain = [m for _, m in drive(dance(iterations=2, calibration=0.0), problem) if m]
    assert all("calibration" not in metrics for metrics in plain)


def test_classes_in_several_passes_are_the_same(problem: Problem) -> None:
    for make in (dance, ncfm):
        whole = condense(make(iterations=2), problem).images
        cut = condense(make(iterations=2, classes_per_pass=1), problem).images
        assert torch.allclose(whole, cut, atol=1e-4)


def test_whitened_pixels_are_refused(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whitened = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info, tmp_path))
    with pytest.raises(ConfigError, match=r"dance keeps pixels between 0 and 1.*Use --pixels standard"):
        dance().prepare(whitened)


def test_the_state_is_the_same_kind_for_both(problem: Problem) -> None:
    assert isinstance(ncfm().start(problem), DANCEState)
    assert len(dance().start(problem).moments) == 1
