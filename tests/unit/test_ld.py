"""LD as its card describes it, around the formulas (which tests/parity/test_ld_parity.py compares with loops)."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench import Selection, condense, drive
from ddbench.backbones.names import build
from ddbench.config import preset_layers, resolve
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import RealImages
from ddbench.engine.precision import Precision
from ddbench.errors import ConfigError
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.resolving import QUICK, Asked, foresee
from ddbench.testing import contract
from ddbench.testing.contract import problem_for_checks

LD = load_object(GROUPS["method"], "ld")
MODULE = sys.modules[LD.__module__]
VARIANTS = ("second-order", "ridge")


def ld(**options: Any) -> Any:
    return LD(LD.Config(**{"iterations": 3} | options))


# By images per class: labelled images a step, passes over the real images, window of the restart rule.
TABLE = {
    1: (10, 400, 50),
    2: (10, 400, 50),
    5: (25, 400, 50),
    10: (50, 400, 50),
    20: (50, 800, 200),
    50: (50, 800, 200),
}
SETTINGS = [
    ("mnist", "lenet", "standard", 1 / 6, 49),
    ("fashion-mnist", "lenet", "standard", 1 / 6, 49),
    ("svhn", "alexcifarnet", "standard", 0.1, 65),
    ("cifar10", "alexcifarnet", "standard(stats=ld)", 0.1, 44),
]


@pytest.mark.parametrize("ipc", TABLE)
@pytest.mark.parametrize(("dataset", "backbone", "pixels", "heldout", "per_pass"), SETTINGS)
def test_the_published_settings_are_presets(
    dataset: str, backbone: str, pixels: str, heldout: float, per_pass: int, ipc: int
) -> None:
    spec = foresee(Asked("ld", dataset, ipc))
    batch_base, passes, window = TABLE[ipc]
    assert spec.config == {
        "variant": "second-order",
        "iterations": passes * per_pass,
        "lr_labels": 1e-3,
        "lr_network": 1e-3,
        "lr_ahead": 0.01,
        "ridge": 1.0,
        "head_rate": 0.01,
        "lr_scale": 0.01,
        "batch_real": 1024,
        "batch_base": batch_base,
        "window": window,
        "heldout": pytest.approx(heldout),
        "validate_every": 5,
    }
    assert (spec.backbone, spec.pixels) == (backbone, pixels)
    assert spec.protocols == ("ld@1", "dsa-soft@1", "dsa@1")


def test_cifar100_has_a_window_and_a_batch_of_its_own() -> None:
    spec = foresee(Asked("ld", "cifar100", 1))
    known = {"iterations": 35_200, "batch_base": 100, "window": 100, "batch_real": 1024}
    assert {name: spec.config[name] for name in known} == known
    assert (spec.backbone, spec.pixels) == ("alexcifarnet", "standard(stats=ld)")


@pytest.mark.parametrize("ipc", TABLE)
def test_without_a_preset_batch_and_window_follow_the_table(ipc: int) -> None:
    batch_base, _, window = TABLE[ipc]
    assert (ld().batch_for(10 * ipc), ld().window_for(10 * ipc)) == (batch_base, window)
    assert (ld(batch_base=7).batch_for(10 * ipc), ld(window=3).window_for(10 * ipc)) == (7, 3)


def test_the_quick_preset_fits_any_dataset() -> None:
    options, run = preset_layers([QUICK, *LD.settings()], "quick", "digits", 1)
    assert resolve("ld", LD.Config, options).config.iterations <= 1000
    assert run[-1].values["protocol"] == ["quick@1", "ld@1"]


@pytest.mark.parametrize("check", contract.checks, ids=lambda check: check.__name__)
def test_the_ridge_variant_keeps_the_contract(check: contract.Check) -> None:
    check(LD, {"variant": "ridge", "iterations": 5, "window": 1, "batch_real": 50})


def test_labels_start_uniform_on_real_images_of_each_class(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=4)
    synthetic = condense(ld(iterations=0), problem)
    assert torch.equal(synthetic.labels, torch.full((12, 3), 1 / 3))
    assert synthetic.label_kind == "probability"
    assert synthetic.source_indices is not None
    assert torch.equal(problem.train.labels[synthetic.source_indices], problem.class_labels())
    assert torch.equal(synthetic.images, problem.train.images[synthetic.source_indices])
    # Bytes of images as they are in the file, labels as float32, one step size.
    assert synthetic.nbytes == 12 * 3 * 64 + 12 * 3 * 4 + 4


def test_the_recipe_says_how_the_labels_want_to_be_used(tmp_path: Path) -> None:
    recipe = condense(ld(batch_base=5, lr_network=2e-3), problem_for_checks(tmp_path)).recipe
    assert (recipe.optimizer, recipe.steps, recipe.batch) == ("adam", 3, 5)
    assert float(recipe.lr) == pytest.approx(2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_stay_and_labels_move_on_the_simplex(tmp_path: Path, variant: str) -> None:
    problem = problem_for_checks(tmp_path)
    method = ld(variant=variant, iterations=20, lr_labels=0.1)
    for state, _ in drive(method, problem):
        labels = method.export(problem, state).labels
        assert torch.allclose(labels.sum(dim=1), torch.ones(6))
        assert float(labels.min()) >= 0
    assert (labels - 1 / 3).abs().max() > 0.1
    assert torch.equal(method.export(problem, state).images, problem.train.images[state.rows])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_no_step_has_chosen_stay_and_others_go_on_without_a_gradient(tmp_path: Path, variant: str) -> None:
    problem = problem_for_checks(tmp_path)
    method = ld(variant=variant, iterations=1000, batch_base=1)
    state = method.start(problem)
    before, seen = state.labels.clone(), set()
    for t in range(3):
        last = state.labels.clone()
        method.step(problem, state, problem.rng.fold("step", t))
        state.step += 1
        seen |= set(state.labels.grad.abs().sum(dim=1).nonzero().flatten().tolist())
        moved = set((state.labels != last).any(dim=1).nonzero().flatten().tolist())
        assert moved == seen
    assert len(seen) > 1
    assert torch.equal(state.labels[[k for k in range(6) if k not in seen]], before[: 6 - len(seen)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_on_real_images_falls(tmp_path: Path, variant: str) -> None:
    method = ld(variant=variant, iterations=60, lr_labels=0.02, lr_network=0.01, head_rate=0.05)
    losses = [float(metrics["loss"]) for _, metrics in drive(method, problem_for_checks(tmp_path)) if metrics]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_validation_sees_held_out_images_and_training_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    rest, part = problem.heldout(0.1)
    assert LD.selection.heldout == 0.1
    everything = torch.cat([rest.train.images, part.raw(torch.arange(len(part)))]).flatten(1)
    assert len(everything) == len(problem.train)
    taken: list[Tensor] = []
    take = RealImages.take

    def watch(self: RealImages, indices: Tensor) -> Tensor:
        if self is rest.real:
            taken.append(indices)
        return take(self, indices)

    monkeypatch.setattr(RealImages, "take", watch)
    condense(ld(batch_real=50), problem)
    assert sorted(torch.cat(taken).tolist()) == list(range(len(rest.train)))


def test_the_length_is_the_mean_of_the_last_three_restarts(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method = ld()
    state = method.start(problem)
    assert method.length(state, 7) == 7
    state.lengths, state.drawn = [10, 20, 33], 60
    assert method.length(state, 70) == 21
    assert method.export(problem, state).recipe.steps == 21
    state.lengths = [10, 20, 35]  # 21 and two thirds: the fraction is dropped, not rounded
    assert method.length(state, 70) == 21


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restart_draws_another_network_and_forgets_all_of_the_old_one_but_the_labels(
    tmp_path: Path, variant: str
) -> None:
    problem = problem_for_checks(tmp_path)
    method = ld(variant=variant, iterations=1000, window=1, lr_network=0.05)
    state = method.start(problem)
    places = [value.data_ptr() for value in state.network.params.values()]
    first = {name: value.detach().clone() for name, value in state.network.params.items()}
    while not state.drawn:
        labels = state.labels.clone()
        method.step(problem, state, problem.rng.fold("step", state.step))
        state.step += 1
    assert not any(torch.equal(value, first[name]) for name, value in state.network.params.items() if value.ndim > 1)
    assert [value.data_ptr() for value in state.network.params.values()] == places
    moments = [value for kept in state.network_optimizer.state.values() for value in kept.values()]
    assert not any(bool(value.any()) for value in moments)
    assert any(bool(value.any()) for kept in state.label_optimizer.state.values() for value in kept.values())
    assert not torch.equal(state.labels, labels)
    assert int(state.recent["taken"]) == int(state.recent["since"]) == 0
    if variant == "ridge":
        assert not state.head["weight"].any()
        assert torch.equal(state.head["scale"], torch.ones(()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "alexcifarnet"])
def test_it_runs_in_short_precision(tmp_path: Path, variant: str, backbone: str) -> None:
    problem = problem_for_checks(tmp_path)
    ends = []
    for name in ("fp32", "bf16"):
        net = build(backbone, problem.shape, 3)
        same = replace(problem, precision=Precision(name), backbone=net)  # type: ignore[arg-type]
        ends.append(condense(ld(variant=variant), same).labels)
    assert torch.allclose(*ends, atol=1e-3)


def test_batch_norm_works_with_second_order_and_is_refused_with_ridge(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    assert condense(ld(), problem).finite()
    with pytest.raises(ConfigError, match=r"convnet-d2-w8-bn has batch norm\. Use another backbone, or variant=second"):
        condense(ld(variant="ridge"), problem)


def test_a_whitening_without_the_held_out_images_is_named(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    assert condense(ld(), problem).pixels == "zca(eps=0.1, heldout=0.1)"


def test_base_images_come_from_all_images_and_real_batches_do_not(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=30)
    rest, part = problem.heldout(0.1)
    state = ld().start(rest)
    assert torch.equal(state.rows, ld().start(problem).rows)
    held = {image.numpy().tobytes() for image in part.data.images}
    exported = ld().export(rest, state)
    assert any(image.numpy().tobytes() in held for image in exported.images)
    assert torch.equal(exported.images, problem.train.images[state.rows])


def test_it_selects_as_its_paper_does_unless_it_is_asked_otherwise(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    choice = condense(ld(iterations=6), problem).choice
    # A pass is one step here: after the fifth and the last one a new network each.
    assert choice is not None
    assert choice.step in (5, 6)
    assert (choice.students, choice.protocol) == (1, "ld@1")
    choice = condense(ld(iterations=1, variant="ridge"), problem).choice
    assert choice is not None
    assert choice.protocol == "ld-ridge@2"
    assert condense(ld(iterations=6), problem, Selection()).choice is None
