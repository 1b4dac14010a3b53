"""DC and DSA as their cards describe them, around the steps (which tests/parity compares with the algorithm)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench import Problem, drive
from ddbench.backbones.foreign import from_module
from ddbench.backbones.names import build
from ddbench.config import preset_layers, resolve
from ddbench.engine.augment import OPS
from ddbench.errors import ConfigError
from ddbench.loop import condense
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.resolving import QUICK
from ddbench.testing.contract import problem_for_checks

DC, DSA = (load_object(GROUPS["method"], name) for name in ("dc", "dsa"))
DATASETS = ["mnist", "fashion-mnist", "svhn", "cifar10", "cifar100"]
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def make(kind: Any, **options: Any) -> Any:
    return kind(kind.Config(**{"iterations": 2, "inner_loop": 1, "batch_real": 8} | options))


def published(kind: Any, dataset: str, ipc: int, preset: str = "paper") -> dict[str, Any]:
    layers, _ = preset_layers([QUICK, *kind.settings()], preset, dataset, ipc)
    values: dict[str, Any] = resolve(kind.name, kind.Config, layers).config.model_dump()
    return values


@pytest.mark.parametrize("ipc", LOOPS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_the_published_settings_of_dc_are_presets(dataset: str, ipc: int) -> None:
    outer_loop, inner_loop = LOOPS[ipc]
    assert published(DC, dataset, ipc) == {
        "iterations": 1001,  # the reference loop runs from 0 to 1 000 inclusive
        "outer_loop": outer_loop,
        "inner_loop": inner_loop,
        "lr_images": 0.1,
        "momentum": 0.5,
        "lr_network": 0.01,
        "batch_real": 256,
        "batch_train": 256,
        "distance": "ours",
        "classes_per_pass": None,
        "initial": "noise",
    }


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("dataset", [*DATASETS, "tiny-imagenet"])
def test_the_published_settings_of_dsa_are_those_of_dc_on_augmented_real_images(dataset: str, ipc: int) -> None:
    expected = published(DC, "cifar10", ipc) | {"initial": "real", "augment": "auto"}
    assert published(DSA, dataset, ipc) == expected


def test_the_authors_advice_for_large_sets_is_a_preset() -> None:
    many = published(DSA, "cifar10", 100)
    assert (many["outer_loop"], many["inner_loop"]) == (100, 2)
    many = published(DC, "cifar10", 500)
    assert (many["outer_loop"], many["inner_loop"], many["initial"]) == (50, 10, "real")


def test_loops_that_nobody_published_go_on_between_those_that_were(tmp_path: Path) -> None:
    def loops(ipc: int, **options: Any) -> tuple[int, int]:
        found: tuple[int, int] = DC(DC.Config(**options)).loops(replace(problem_for_checks(tmp_path), ipc=ipc))
        return found

    for ipc in (10, 20, 50):
        assert loops(ipc) == LOOPS[ipc]
    assert loops(1)[0] == 1
    assert loops(5) == (5, 100)
    assert loops(200) == (50, 10)
    assert loops(5, outer_loop=3) == (3, 166)
    assert loops(5, inner_loop=7) == (5, 7)
    assert loops(5, outer_loop=1000) == (1000, 1)


@pytest.mark.parametrize("kind", [DC, DSA])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_a_first_look_is_short(kind: Any, ipc: int) -> None:
    values = published(kind, "digits", ipc, "quick")
    assert values["iterations"] * values["outer_loop"] <= 100


def test_dc_starts_from_noise_and_dsa_from_real_images(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=20)
    everything = problem.real.take(torch.arange(len(problem.train)))
    noise, real = (make(kind).start(problem).images.detach() for kind in (DC, DSA))
    assert abs(float(noise.std()) - 1) < 0.05
    assert bool((real[:, None] == everything[None]).flatten(2).all(dim=2).any(dim=1).all())
    assert torch.equal(make(DC, initial="real").start(problem).images, real)


@pytest.mark.parametrize("kind", [DC, DSA])
def test_no_iterations_export_the_start(kind: Any, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(make(kind, iterations=0), problem)
    assert torch.equal(synthetic.images, make(kind).start(problem).images.detach())
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_checkpoint_holds_images_and_momentum_and_nothing_of_a_network(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    (*_, (state, _)) = drive(make(DC), problem)
    assert state.state_dict().keys() == {"step", "images", "optimizer"}


class Watched:
    """The arguments of every match and the parameters that it saw."""

    def __init__(self, method: Any, problem: Problem) -> None:
        self.views: list[Any] = []
        self.rows: list[Tensor] = []
        self.heads: list[Tensor] = []
        update = method.update

        def watch(problem: Problem, state: Any, network: Any, view: Any, rows: Tensor, statistics: Any) -> Any:
            self.views.append(view)
            self.rows.append(rows)
            self.heads.append(network.params["logits.weight"].clone())
            return update(problem, state, network, view, rows, statistics)

        method.update = watch
        (*_, (self.state, _)) = drive(method, problem)


def test_a_network_is_drawn_anew_for_each_iteration_and_trained_between_its_matches(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    seen = Watched(make(DC, outer_loop=3), problem)
    assert len(seen.heads) == 6
    assert not any(torch.equal(a, b) for i, a in enumerate(seen.heads) for b in seen.heads[:i])
    jumps = [float((a - b).norm()) for a, b in zip(seen.heads, seen.heads[1:], strict=False)]
    assert jumps[2] > 10 * max(jumps[:2] + jumps[3:])


def test_every_match_draws_other_real_images_and_another_view(tmp_path: Path) -> None:
    seen = Watched(make(DSA, outer_loop=3), problem_for_checks(tmp_path))
    assert not any(torch.equal(a, b) for i, a in enumerate(seen.rows) for b in seen.rows[:i])
    assert not any(torch.equal(a.numbers, b.numbers) for i, a in enumerate(seen.views) for b in seen.views[:i])
    assert all(len(view) == 3 and view.numbers.shape[1] == 1 for view in seen.views)


@pytest.mark.parametrize("kind", [DC, DSA])
def test_dc_never_augments_and_dsa_augments_matches_and_training(kind: Any, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    seen = Watched(make(kind, iterations=10), problem)
    ops = {op for view in seen.views for op in view.ops.tolist()}
    assert ops == ({-1} if kind is DC else set(range(len(OPS))))
    assert (seen.state.training.plan.strategy == "none") == (kind is DC)


def test_digits_are_never_mirrored(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    digits = replace(problem, info=replace(problem.info, digits=True))
    assert "flip" in make(DSA).strategy(problem)
    assert "flip" not in make(DSA).strategy(digits)
    assert make(DSA, augment="flip").strategy(digits) == "flip"
    assert make(DSA, augment="none").strategy(problem) == "none"


def test_dsa_without_augmentation_is_dc_from_real_images(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    ours = condense(make(DSA, augment="none"), problem).images
    assert torch.equal(ours, condense(make(DC, initial="real"), problem).images)


@pytest.mark.parametrize("kind", [DC, DSA])
@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "convnet-d2-w8-bn"])
def test_fewer_classes_a_pass_change_nothing(kind: Any, tmp_path: Path, backbone: str) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build(backbone, (3, 8, 8), 3))
    whole = condense(make(kind), problem).images
    for most in (1, 2):
        cut = condense(make(kind, classes_per_pass=most), problem).images
        assert torch.allclose(whole, cut, atol=1e-4)
    assert len(make(kind, classes_per_pass=2).passes(problem)) == 2


def test_large_images_and_many_of_them_are_cut_by_themselves(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, shape=(3, 64, 64))
    assert len(make(DC, batch_real=256).passes(problem)) == 2
    assert len(make(DC, batch_real=8).passes(replace(problem, ipc=500))) == 3


@pytest.mark.parametrize("distance", ["ours", "mse", "cos"])
def test_the_loss_falls(distance: str, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    lr = {"ours": 0.1, "mse": 10.0, "cos": 3.0}[distance]
    method = make(DC, iterations=30, outer_loop=1, batch_real=40, distance=distance, lr_images=lr)
    losses = [float(metrics["loss"]) for _, metrics in drive(method, problem) if metrics]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


def test_networks_of_others_are_matched_and_trained_too(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, backbone=from_module("own", Own, problem.shape, problem.classes))
    (*_, (state, metrics)) = drive(make(DSA), problem)
    assert bool(torch.isfinite(metrics["loss"]))
    assert not torch.equal(state.images, make(DSA).start(problem).images)


def test_an_unknown_distance_is_refused_with_the_known_ones() -> None:
    from ddbench.config import Layer

    with pytest.raises(ConfigError, match="'ours', 'mse' or 'cos'"):
        resolve("dc", DC.Config, [Layer("--set", {"distance": "l2"})])
