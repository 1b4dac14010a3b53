"""DM as its card describes it, around the loss (which tests/parity/test_dm.py compares with the formula)."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench import Problem, drive
from ddbench.backbones.names import build
from ddbench.config import preset_layers, resolve
from ddbench.loop import condense
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.resolving import QUICK
from ddbench.testing.contract import problem_for_checks

DM = load_object(GROUPS["method"], "dm")


def dm(**options: Any) -> Any:
    return DM(DM.Config(**{"iterations": 3, "augment": "none"} | options))


def test_the_defaults_are_those_of_the_paper() -> None:
    assert DM.Config().model_dump() == {
        "iterations": 20_001,  # the reference loop runs from 0 to 20 000 inclusive
        "lr_images": 1.0,
        "momentum": 0.5,
        "batch_real": 256,
        "augment": "auto",
        "initial": "real",
        "classes_per_pass": None,
    }


@pytest.mark.parametrize(
    ("dataset", "ipc", "lr"),
    [
        ("cifar10", 1, 1.0),
        ("cifar10", 50, 1.0),
        ("cifar10", 100, 10.0),
        ("cifar10", 1250, 10.0),
        ("cifar100", 125, 1.0),
    ],
)
def test_the_published_step_sizes_are_presets(dataset: str, ipc: int, lr: float) -> None:
    layers, _ = preset_layers(DM.settings(), "paper", dataset, ipc)
    assert layers, "no published setting"
    config = resolve("dm", DM.Config, layers).config
    assert (config.lr_images, config.iterations, config.momentum) == (lr, 20_001, 0.5)


def test_the_quick_preset_fits_any_dataset() -> None:
    options, run = preset_layers([QUICK, *DM.settings()], "quick", "digits", 1)
    assert resolve("dm", DM.Config, options).config.iterations <= 1000
    assert run[0].values["protocol"] == "quick@1"


def test_it_starts_from_real_images_of_each_class(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=4)
    images = dm().start(problem).images
    everything = problem.real.take(torch.arange(len(problem.train)))
    matches = (images.detach()[:, None] == everything[None]).flatten(2).all(dim=2)
    assert matches.sum(dim=1).tolist() == [1] * 12
    rows = matches.float().argmax(dim=1)
    assert torch.equal(problem.train.labels[rows], problem.class_labels())
    assert len(rows.unique()) == 12


def test_it_can_start_from_noise(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=20)
    images = dm(initial="noise").start(problem).images
    assert abs(float(images.detach().std()) - 1) < 0.05
    assert not torch.equal(images, dm().start(problem).images)


def test_no_iterations_export_the_start(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(dm(iterations=0), problem)
    assert torch.equal(synthetic.images, dm().start(problem).images.detach())
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (synthetic.label_kind, synthetic.pixels) == ("class", "standard")


def test_every_iteration_draws_a_fresh_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    drawn: list[torch.Tensor] = []
    init = problem.backbone.init

    def watch(*args: Any, **options: Any) -> Any:
        network = init(*args, **options)
        drawn.append(network.params["logits.weight"].clone())
        return network

    monkeypatch.setattr(problem.backbone, "init", watch)
    condense(dm(), problem)
    assert len(drawn) == 3
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_networks_are_not_differentiated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    networks: list[Any] = []
    init = problem.backbone.init

    def watch(*args: Any, **options: Any) -> Any:
        networks.append(init(*args, **options))
        return networks[-1]

    monkeypatch.setattr(problem.backbone, "init", watch)
    condense(dm(iterations=1), problem)
    (network,) = networks
    assert all(value.grad is None and not value.requires_grad for value in network.params.values())


def test_the_loss_falls_on_average(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    losses = [float(metrics["loss"]) for _, metrics in drive(dm(iterations=60), problem) if metrics]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def strategy_of(problem: Problem, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    seen: list[str] = []
    module = sys.modules[DM.__module__]
    siamese = module.siamese

    def watch(strategy: str, *rest: Any) -> Any:
        seen.append(strategy)
        return siamese(strategy, *rest)

    monkeypatch.setattr(module, "siamese", watch)
    condense(dm(iterations=1, **options), problem)
    return seen[0]


def test_digits_are_never_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    digits = replace(problem, info=replace(problem.info, digits=True))
    assert "flip" in strategy_of(problem, monkeypatch, augment="auto")
    assert "flip" not in strategy_of(digits, monkeypatch, augment="auto")
    assert strategy_of(digits, monkeypatch, augment="flip") == "flip"


@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "convnet-d2-w8-bn"])
def test_fewer_classes_a_pass_change_nothing(tmp_path: Path, backbone: str) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build(backbone, (3, 8, 8), 3))
    whole = condense(dm(batch_real=8), problem).images
    cut = condense(dm(batch_real=8, classes_per_pass=1), problem).images
    assert torch.allclose(whole, cut, atol=1e-5)
    assert len(dm(classes_per_pass=1).passes(problem)) == (3 if problem.backbone.per_sample else 1)
