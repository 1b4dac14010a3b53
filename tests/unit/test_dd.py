"""DD as its card describes it, around the gradient (which tests/parity compares with the unrolled loop)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ddbench import Problem, SyntheticSet, Variables, drive
from ddbench.backbones import build
from ddbench.config import preset_layers, resolve
from ddbench.errors import ConfigError
from ddbench.loop import condense
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.resolving import QUICK, Asked, foresee
from ddbench.synthetic import load, save
from ddbench.testing import contract
from ddbench.testing.contract import problem_for_checks

DD = load_object(GROUPS["method"], "dd")


def dd(**options: Any) -> Any:
    return DD(DD.Config(**{"iterations": 2, "passes": 2} | options))


def test_the_defaults_are_those_of_the_authors_code() -> None:
    assert DD.Config().model_dump() == {
        "iterations": 19_600,  # 400 passes over CIFAR-10 in 49 batches
        "batches": None,
        "passes": 3,
        "lr_network": 0.02,
        "lr_images": 0.01,
        "halve_every": 40,
        "batch_real": 1024,
        "networks": 1,
        "initial_network": "random",
        "augment_real": False,
        "initial": "noise",
    }


PAPER = {  # dataset: images, network, first step size, real images augmented
    "mnist": (60_000, "lenet-xavier", 0.02, False),
    "fashion-mnist": (60_000, "lenet-xavier", 0.02, False),
    "svhn": (73_257, "alexcifarnet-xavier", 0.001, False),
    "cifar10": (50_000, "alexcifarnet-xavier", 0.001, True),
    "cifar100": (50_000, "alexcifarnet-xavier", 0.001, True),
}


@pytest.mark.parametrize("dataset", PAPER)
@pytest.mark.parametrize(("ipc", "batches"), [(1, 1), (10, 10), (50, 10)])
def test_the_presets_are_the_table_of_the_card(dataset: str, ipc: int, batches: int) -> None:
    images, backbone, lr_network, augment_real = PAPER[dataset]
    spec = foresee(Asked(method="dd", dataset=dataset, ipc=ipc))
    expected = {
        "iterations": 400 * math.ceil(images / 1024),
        "batches": batches,
        "passes": 3,
        "lr_network": lr_network,
        "lr_images": 0.01,
        "halve_every": 40,
        "batch_real": 1024,
        "networks": 1,
        "initial_network": "random",
        "augment_real": augment_real,
        "initial": "noise",
    }
    assert spec.config == expected
    assert (spec.backbone, spec.protocols) == (backbone, ("dd@1", "dsa@1"))
    assert spec.pixels == ("standard(stats=dd)" if dataset == "cifar10" else "standard")


@pytest.mark.parametrize(("ipc", "steps"), [(1, 10), (2, 6), (10, 10), (50, 10)])
def test_the_quick_preset_takes_few_steps_on_any_dataset(tmp_path: Path, ipc: int, steps: int) -> None:
    options, run = preset_layers([QUICK, *DD.settings()], "quick", "digits", ipc)
    config = resolve("dd", DD.Config, options).config
    assert config.iterations <= 100
    problem = replace(problem_for_checks(tmp_path), ipc=ipc)
    assert DD(config).batches(problem) * config.passes == steps
    assert {key: value for layer in run for key, value in layer.values.items()}["protocol"] == "quick@1"


def test_images_are_stored_batch_by_batch_and_each_step_names_its_own(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=4)
    synthetic = condense(dd(batches=2, passes=3), problem)
    assert synthetic.labels.tolist() == 2 * [0, 0, 1, 1, 2, 2]
    first, second = list(range(6)), list(range(6, 12))
    assert synthetic.recipe.schedule is not None
    assert synthetic.recipe.schedule.tolist() == 3 * [first, second]
    assert synthetic.recipe.lr is not None
    assert synthetic.recipe.lr.shape == (6,)
    assert bool((synthetic.recipe.lr > 0).all())
    assert (synthetic.start, synthetic.pixels) == ({}, "standard")


def test_real_images_keep_their_class_when_they_are_grouped(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=4)
    synthetic = condense(dd(iterations=0, batches=2, initial="real"), problem)
    everything = problem.real.take(torch.arange(len(problem.train)))
    rows = (synthetic.images[:, None] == everything[None]).flatten(2).all(dim=2).float().argmax(dim=1)
    assert torch.equal(problem.train.labels[rows], synthetic.labels)
    assert len(rows.unique()) == 12


@pytest.mark.parametrize("lr", [1e-6, 0.02, 1000.0])
def test_it_starts_from_noise_and_one_step_size(tmp_path: Path, lr: float) -> None:
    problem = problem_for_checks(tmp_path, ipc=20)
    synthetic = condense(dd(iterations=0, lr_network=lr), problem)
    assert abs(float(synthetic.images.std()) - 1) < 0.05
    assert synthetic.recipe.lr is not None
    assert torch.allclose(synthetic.recipe.lr, torch.full((20,), lr), rtol=1e-4)


@pytest.mark.parametrize(("ipc", "batches"), [(1, 1), (7, 7), (10, 10), (11, 1), (12, 6), (50, 10)])
def test_batches_divide_the_images_of_a_class(tmp_path: Path, ipc: int, batches: int) -> None:
    assert dd().batches(replace(problem_for_checks(tmp_path), ipc=ipc)) == batches


def test_batches_that_do_not_divide_ipc_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batches is 3, which does not divide ipc 2"):
        condense(dd(batches=3), problem_for_checks(tmp_path))


def test_batch_norm_is_refused(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    with pytest.raises(ConfigError, match="convnet-d2-w8-bn has batch norm"):
        condense(dd(), problem)


def test_several_networks_and_a_fixed_one_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="with initial_network=fixed there is only one"):
        condense(dd(initial_network="fixed", networks=2), problem_for_checks(tmp_path))


def replayed(problem: Problem, synthetic: SyntheticSet, start: dict[str, torch.Tensor]) -> float:
    """The loss on all training images after the set's steps."""
    net, params = problem.backbone, {name: value.clone() for name, value in start.items()}
    recipe = synthetic.recipe
    assert recipe.lr is not None
    assert recipe.schedule is not None
    for rows, lr in zip(recipe.schedule, recipe.lr, strict=True):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        F.cross_entropy(net(Variables(params), synthetic.images[rows])[0], synthetic.labels[rows]).backward()
        params = {name: value - lr * value.grad for name, value in params.items() if value.grad is not None}
    with torch.no_grad():
        x = problem.real.take(torch.arange(len(problem.train)))
        return float(F.cross_entropy(net(Variables(params), x)[0], problem.real.labels))


def test_a_fixed_start_is_stored_and_leads_where_the_method_saw_it_lead(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method, before = dd(initial_network="fixed", iterations=3), math.nan
    for state, metrics in drive(method, problem):
        if metrics:
            # All training images fit into one batch, so that the metric is the loss on them, one step earlier.
            assert float(metrics["loss"]) == pytest.approx(before, rel=1e-4)
        synthetic = method.export(problem, state)
        save(synthetic, tmp_path / "set.safetensors")
        synthetic = load(tmp_path / "set.safetensors")
        assert sum(value.numel() for value in synthetic.start.values()) == problem.backbone.parameters
        before = replayed(problem, synthetic, dict(synthetic.start))


def test_the_step_size_is_halved_after_so_many_passes(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)  # 120 images
    method = dd(iterations=7, batch_real=60, halve_every=2, lr_images=0.08)
    found = [float(state.optimizer.param_groups[0]["lr"]) for state, metrics in drive(method, problem) if metrics]
    assert found == pytest.approx([0.08] * 4 + [0.04] * 3)


def test_the_last_batch_of_a_pass_has_a_program_of_its_own(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)

    def programs(batch: int, sizes: set[int]) -> int:
        (*_, (state, _)) = drive(dd(batch_real=batch, iterations=4, passes=1), problem)
        per_pass = math.ceil(len(problem.train) / batch)
        drawn = [problem.real.epoch_indices(batch, step, problem.rng.fold("real")) for step in range(per_pass)]
        assert {len(rows) for rows in drawn} == sizes
        return len(state._programs.programs)

    assert [programs(50, {50, 20}), programs(40, {40}), programs(500, {120})] == [2, 1, 1]


def test_the_loss_falls(tmp_path: Path) -> None:
    method = dd(iterations=15, passes=4, lr_images=0.05, lr_network=0.1)
    losses = [float(metrics["loss"]) for _, metrics in drive(method, problem_for_checks(tmp_path)) if metrics]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    "check",
    [
        contract.a_resumed_run_equals_an_uninterrupted_one,
        contract.an_export_shares_no_memory_with_the_state,
        contract.save_and_load_give_the_same_set,
    ],
    ids=lambda check: check.__name__,
)
def test_a_fixed_initialisation_keeps_the_contract_too(check: contract.Check) -> None:
    check(DD, {"initial_network": "fixed", "passes": 1, "augment_real": True})
