"""MTT as its card describes it, around the gradient (which tests/parity compares with the unrolled loop)."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.training.unroll as unroll
from ddbench import Selection, Variables, condense, drive, host
from ddbench.backbones import Backbone, build
from ddbench.config import preset_layers, resolve
from ddbench.data.pixels import fit_pixels
from ddbench.errors import ConfigError, DataError, DivergedError
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.plugins import GROUPS, load_object
from ddbench.rng import Rng
from ddbench.runs.resolving import QUICK, Asked, foresee
from ddbench.testing.contract import problem_for_checks

MTT = load_object(GROUPS["method"], "mtt")
MODULE = sys.modules[MTT.__module__]
SMALL = {"iterations": 3, "experts": 2, "start_epochs": 2, "inner_steps": 2, "lr_experts": 0.1, "lr_images": 1.0}


def mtt(**options: Any) -> Any:
    return MTT(MTT.Config(**SMALL | options))


# N, M, T+, batch, lr_images, lr_lr, first step size, pixels, network; from the card.
TABLE = {
    ("cifar10", 1): (50, 2, 2, None, 1e2, 1e-7, 1e-2, "zca(eps=0.1)", "convnet-d3"),
    ("cifar10", 10): (30, 2, 20, None, 1e2, 1e-5, 1e-3, "zca(eps=0.1)", "convnet-d3"),
    ("cifar10", 50): (30, 2, 40, None, 1e3, 1e-5, 1e-3, "standard", "convnet-d3"),
    ("cifar100", 1): (20, 3, 20, None, 1e3, 1e-5, 1e-2, "zca(eps=0.1)", "convnet-d3"),
    ("cifar100", 10): (20, 2, 20, None, 1e3, 1e-5, 1e-2, "standard(stats=mtt)", "convnet-d3"),
    ("cifar100", 50): (80, 2, 40, 125, 1e3, 1e-5, 1e-2, "zca(eps=0.1)", "convnet-d3"),
    ("tiny-imagenet", 1): (10, 2, 10, None, 1e4, 1e-4, 1e-2, "standard", "convnet-d4"),
    ("tiny-imagenet", 10): (20, 2, 40, 200, 1e4, 1e-4, 1e-2, "standard", "convnet-d4"),
    ("tiny-imagenet", 50): (20, 2, 40, 300, 1e4, 1e-4, 1e-2, "standard", "convnet-d4"),
    ("imagenette", 1): (20, 2, 10, None, 1e4, 1e-6, 1e-2, "standard", "convnet-d5"),
    ("imageyellow", 10): (20, 2, 10, 20, 1e4, 1e-6, 1e-2, "standard", "convnet-d5"),
}


@pytest.mark.parametrize(("dataset", "ipc"), TABLE)
def test_the_published_settings_are_presets(dataset: str, ipc: int) -> None:
    spec = foresee(Asked("mtt", dataset, ipc))
    inner_steps, expert_span, start_epochs, batch_syn, lr_images, lr_lr, lr_network, pixels, backbone = TABLE[
        dataset, ipc
    ]
    assert spec.config == {
        "iterations": 5000,
        "inner_steps": inner_steps,
        "expert_span": expert_span,
        "start_epochs": start_epochs,
        "batch_syn": batch_syn,
        "lr_images": lr_images,
        "lr_lr": lr_lr,
        "lr_network": lr_network,
        "momentum": 0.5,
        "augment": "auto",
        "initial": "real",
        "experts": 100,
        "lr_experts": 0.01,
        "experts_seed": 0,
        "grad": "auto",
        "select": "last",
        "heldout": 0.1,
        "select_every": 500,
        "select_students": 2,
    }
    assert (spec.pixels, spec.backbone, spec.protocols) == (pixels, backbone, ("mtt@1", "dsa@1"))


# N, M, T+, batch, lr_images, lr_lr, first step size, alpha, decay of the average; from table 7 of Du et al., CVPR 2023.
FTD = {
    ("cifar10", 1): (50, 2, 2, None, 1e2, 1e-7, 1e-2, 0.3, 0.9999),
    ("cifar10", 10): (30, 2, 20, None, 1e2, 1e-5, 1e-3, 0.3, 0.9995),
    ("cifar10", 50): (30, 2, 40, None, 1e3, 1e-5, 1e-2, 1.0, 0.999),
    ("cifar100", 1): (40, 3, 20, None, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
    ("cifar100", 10): (20, 2, 40, None, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
    ("cifar100", 50): (80, 2, 40, 1000, 1e3, 1e-5, 1e-2, 1.0, 0.999),
    ("tiny-imagenet", 1): (30, 2, 10, None, 1e4, 1e-4, 1e-2, 1.0, 0.999),
    ("tiny-imagenet", 10): (20, 2, 40, 500, 1e4, 1e-4, 1e-2, 1.0, 0.999),
}
NAMES = ("inner_steps", "expert_span", "start_epochs", "batch_syn", "lr_images", "lr_lr", "lr_network", "alpha_experts",
         "ema")  # fmt: skip


@pytest.mark.parametrize(("dataset", "ipc"), FTD)
def test_ftd_is_a_preset(dataset: str, ipc: int) -> None:
    spec = foresee(Asked("mtt", dataset, ipc, preset="ftd"))
    told = dict(zip(NAMES, FTD[dataset, ipc], strict=True))
    assert spec.config == foresee(Asked("mtt", dataset, ipc)).config | told | {"rho_experts": 0.01}
    assert spec.protocols == ("mtt@1", "dsa@1")


def test_datm_has_its_authors_experts_as_a_preset() -> None:
    for dataset, ipc in (("cifar10", 1), ("cifar10", 1000), ("cifar100", 10), ("tiny-imagenet", 50)):
        paper, ftd = (foresee(Asked("datm", dataset, ipc, preset=preset)) for preset in ("paper", "ftd"))
        assert ftd.config == {**paper.config, "rho_experts": 0.01, "alpha_experts": 0.3}
        assert (ftd.pixels, ftd.protocols) == (paper.pixels, paper.protocols)


def test_datms_settings_are_those_of_its_authors_files() -> None:
    def told(dataset: str, ipc: int) -> list[Any]:
        config = foresee(Asked("datm", dataset, ipc)).config
        names = ("inner_steps", "lr_images", "lr_labels", "lr_lr", "first_epoch", "early_epochs", "start_epochs",
                 "growth", "batch_syn")  # fmt: skip
        return [config[name] for name in names]

    assert told("cifar100", 10) == [80, 1000, 10, 1e-5, 0, 30, 50, 2000, 1000]
    assert told("cifar100", 50) == [80, 1000, 10, 1e-5, 20, None, 70, 1000, 1000]
    assert told("cifar100", 100) == [80, 50, 10, 1e-5, 30, None, 70, 1000, 1000]
    # A batch of 1000 is named for ipc 1 too, where there are 200 images.
    assert told("tiny-imagenet", 1) == [40, 10_000, 10, 1e-4, 0, 15, 20, 2000, None]
    assert told("tiny-imagenet", 10) == [40, 100, 10, 1e-4, 10, None, 50, 1000, 500]
    assert told("tiny-imagenet", 50) == [20, 100, 10, 1e-4, 40, None, 70, 1000, 1000]


def test_datm_on_tiny_imagenet_is_whitened_and_has_four_blocks() -> None:
    for ipc in (1, 10, 50):
        spec = foresee(Asked("datm", "tiny-imagenet", ipc))
        assert (spec.pixels, spec.backbone, spec.protocols) == ("zca(eps=0.1)", "convnet-d4", ("datm@1", "dsa@1"))
        same = {name: spec.config[name] for name in ("iterations", "expert_span", "lr_network", "momentum_labels",
                                                     "threshold", "confident", "experts")}  # fmt: skip
        assert same == {
            "iterations": 10_000, "expert_span": 2, "lr_network": 0.01, "momentum_labels": 0.9, "threshold": 1.0,
            "confident": True, "experts": 100,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            Asked("mtt", "cifar10", 10, preset="tesla"),
            "has no settings for cifar10 at ipc 10; it has some for cifar10 at",
        ),
        (Asked("mtt", "cifar10", 10, preset="trial"), "there is no preset 'trial' of mtt. Choose paper, quick, ftd or"),
        (Asked("dm", "cifar10", 10, preset="ftd"), "there is no preset 'ftd' of dm. Choose paper or quick"),
        (Asked("dm", "cifar10", 10, preset="qick"), "there is no preset 'qick' of dm. Did you mean 'quick'"),
        (Asked("datm", "cifar10", 10, options={"teacher_labels": True}), "teacher_labels"),
    ],
)
def test_presets_and_options_of_others_are_refused(asked: Asked, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        foresee(asked)


def test_a_set_with_an_experts_labels_is_judged_by_them(tmp_path: Path) -> None:
    assert (mtt().native, mtt(teacher_labels=True).native) == ("mtt@1", "datm@1")
    problem = problem_for_checks(tmp_path)
    first = condense(mtt(iterations=0, teacher_labels=True), problem)
    assert torch.equal(first.labels, torch.nn.functional.one_hot(problem.class_labels().long(), 3).float())
    made = condense(mtt(teacher_labels=True), problem)
    assert made.label_kind == "probability"
    assert torch.allclose(made.labels.sum(dim=1), torch.ones(len(made)))
    assert made.labels.max() < 1


def test_an_iteration_above_the_threshold_changes_neither_images_nor_step_size(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    plain = [float(metrics["loss"]) for _, metrics in drive(mtt(iterations=6), problem) if metrics]
    between = (min(plain) + max(plain)) / 2
    before, taken = None, []
    for state, metrics in drive(mtt(iterations=6, threshold=between), problem):
        now = [value.detach().clone() for value in (state.images, state.lr)]
        if metrics:
            assert bool(metrics["taken"]) == (float(metrics["loss"]) <= between)
            taken.append(bool(metrics["taken"]))
            assert all(torch.equal(a, b) != taken[-1] for a, b in zip(before, now, strict=True))
        before = now
    assert {True, False} == set(taken)


def test_a_threshold_that_nothing_reaches_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    *_, (without, told) = drive(mtt(), problem)
    *_, (with_one, _) = drive(mtt(threshold=1e9), problem)
    assert torch.equal(without.images, with_one.images)
    assert torch.equal(without.lr, with_one.lr)
    assert "taken" not in told
    # So runs of before there was one keep their ids.
    assert "threshold" not in mtt().config.kept()


def test_an_average_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    """Averages and assigned labels are part of a checkpoint."""
    problem, method = problem_for_checks(tmp_path), mtt(ema=0.7, teacher_labels=True, iterations=4)
    states = drive(method, problem)
    for _ in range(3):
        state, _ = next(states)
    saved = state.state_dict()
    *_, (whole, _) = states
    *_, (resumed, _) = drive(method, problem, saved)
    assert torch.equal(resumed.averages[0], whole.averages[0])
    assert torch.equal(resumed.assigned, whole.assigned)
    assert torch.equal(method.export(problem, resumed).images, whole.averages[0])


def test_a_checkpoint_of_before_there_were_averages_goes_on(tmp_path: Path) -> None:
    problem, method = problem_for_checks(tmp_path), mtt(iterations=4)
    states = drive(method, problem)
    for _ in range(3):
        state, _ = next(states)
    saved = state.state_dict()
    assert (saved.pop("averages"), saved.pop("assigned")) == ([], None)
    *_, (whole, _) = states
    *_, (resumed, _) = drive(method, problem, saved)
    assert torch.equal(resumed.images, whole.images)


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_the_quick_preset_needs_few_expert_epochs(dataset: str) -> None:
    options, run = preset_layers([QUICK, *MTT.settings()], "quick", dataset, 10)
    config = resolve("mtt", MTT.Config, options).config
    epochs = config.experts * (config.start_epochs - 1 + config.expert_span)
    assert epochs <= (10 if dataset == "digits" else 1)
    assert config.iterations * config.inner_steps <= 400
    values = {name: value for layer in run for name, value in layer.values.items()}
    assert (values["pixels"], values["backbone"]) == ("standard", "convnet-w32")


def test_a_step_is_timed_after_one_expert_epoch_and_otherwise_as_published() -> None:
    layers, _ = preset_layers(MTT.settings(), "timing", "cifar10", 10)
    config = resolve("mtt", MTT.Config, layers).config
    published = resolve("mtt", MTT.Config, preset_layers(MTT.settings(), "paper", "cifar10", 10)[0]).config
    assert config == published.model_copy(update={"experts": 1, "start_epochs": 1, "expert_span": 1})


@pytest.mark.parametrize(
    ("batch", "steps", "sizes"),
    [
        (None, 3, [6, 6, 6]),
        (6, 2, [6, 6]),
        (100, 2, [6, 6]),
        (3, 5, [3, 3, 3, 3, 3]),
        (4, 5, [2, 4, 2, 4, 2]),
        (5, 4, [1, 5, 1, 5]),
    ],
)
def test_students_see_passes_without_repeats_and_a_small_batch_first(
    batch: int | None, steps: int, sizes: list[int]
) -> None:
    method = mtt(batch_syn=batch, inner_steps=steps)
    assert method.sizes(6) == sizes
    rows = method.rows(6, Rng(0))
    assert rows.shape == (steps, max(sizes))
    per_pass = len(sizes[: next(t for t in range(1, steps + 1) if sum(sizes[:t]) == 6)])
    for first in range(0, steps - per_pass + 1, per_pass):
        seen = [rows[t, : sizes[t]] for t in range(first, first + per_pass)]
        assert sorted(torch.cat(seen).tolist()) == list(range(6))
    assert torch.equal(rows, method.rows(6, Rng(0)))
    assert not torch.equal(rows, method.rows(6, Rng(1)))


def test_only_epochs_that_can_be_read_are_trained(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method = mtt(start_epochs=3, expert_span=2, iterations=0)
    method.prepare(problem)
    (used,) = problem.artifacts.used.values()
    assert (used["kind"], used["wanted"]["epochs"], used["wanted"]["experts"]) == ("expert-trajectories", 4, 2)
    state = method.start(problem)
    assert state.experts.params(1, 4).shape == (problem.backbone.parameters,)
    with pytest.raises(IndexError):
        state.experts.params(1, 5)


def test_every_start_below_the_latest_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(MODULE.Trajectories, "params", lambda _, k, t: asked.append((k, t)))
    problem = problem_for_checks(tmp_path)
    method = mtt(start_epochs=3, expert_span=2, experts=2, iterations=40)
    state = method.start(problem)
    method.update = lambda *_: {}
    for step in range(40):
        method.step(problem, state, Rng(step))
    assert set(asked[::2]) == {(k, t) for k in range(2) for t in range(3)}
    assert all(b == (k, t + 2) for (k, t), b in zip(asked[::2], asked[1::2], strict=True))


def test_the_set_carries_its_step_size_and_the_native_protocol_uses_it(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(mtt(lr_lr=1e-4, lr_network=0.03), problem)
    assert synthetic.recipe.lr is not None
    assert synthetic.recipe.lr.shape == ()
    assert synthetic.recipe.lr.item() != pytest.approx(0.03, rel=1e-6)
    assert synthetic.pixels == "standard"
    assert MTT.info.native == "mtt@1"
    assert PROTOCOLS["mtt@1"].options.lr is None
    assert PROTOCOLS["dsa@1"].options.lr == 0.01


def test_the_step_size_can_fall_below_zero_and_then_the_run_stops(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method = mtt(lr_network=0.5, lr_lr=1.0, iterations=1)
    metrics = [metrics for _, metrics in drive(method, problem) if metrics]
    assert any(m["lr"] <= 0 and not torch.isfinite(m["log_lr"]) for m in metrics)
    state = method.start(problem)
    with torch.no_grad():
        state.lr.fill_(-0.1)
    with pytest.raises(DivergedError, match=r"the learned step size became -0\.1; no student can train with it"):
        method.export(problem, state)
    assert "lr_lr" in MTT.info.advice


def test_auto_takes_the_full_graph_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, forms = problem_for_checks(tmp_path), []
    descent = MODULE.descent
    monkeypatch.setattr(MODULE, "descent", lambda net, like, form: forms.append(form) or descent(net, like, form))
    for size in (1 << 40, 1 << 10):
        monkeypatch.setattr(unroll, "memory", lambda device, size=size: size)
        mtt().start(problem)
    mtt(grad="tesla").start(problem)
    assert forms == ["full", "adjoint", "tesla"]


def test_auto_counts_the_graphs_of_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, method = problem_for_checks(tmp_path), mtt(inner_steps=7, batch_syn=4)
    like, images, y = problem.backbone.init(Rng(0)), torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(problem.backbone(Variables(params), x)[0], y)

    sizes = method.sizes(6)
    assert sizes == [2, 4, 2, 4, 2, 4, 2]
    needed = sum(unroll.graph_bytes(loss, like.params, images[:size], y[:size]) for size in sizes)
    forms = []
    for share in (1.1, 0.9):
        monkeypatch.setattr(unroll, "memory", lambda device, share=share: share * needed / unroll.SHARE)
        forms.append(unroll.exact_form(problem.backbone, like, sum(sizes)))
    assert forms == ["full", "adjoint"]


def test_auto_takes_what_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, forms = problem_for_checks(tmp_path), []
    # As on a GPU; the layers themselves fall back to torch's on a CPU.
    monkeypatch.setattr(Backbone, "second_order", lambda self, device: self.linearised)
    descent = MODULE.descent
    monkeypatch.setattr(MODULE, "descent", lambda net, like, form: forms.append(form) or descent(net, like, form))
    mtt().start(problem)
    mtt(grad="full").start(problem)
    assert forms == ["adjoint", "full"]


def test_both_exact_forms_learn_the_same_and_tesla_something_else(tmp_path: Path) -> None:
    sets = {
        grad: condense(mtt(grad=grad, inner_steps=6, lr_network=0.1), problem_for_checks(tmp_path)).images
        for grad in ("adjoint", "full", "tesla")
    }
    moved = (sets["full"] - condense(mtt(iterations=0), problem_for_checks(tmp_path)).images).norm()
    assert (sets["adjoint"] - sets["full"]).norm() < 1e-3 * moved
    assert (sets["tesla"] - sets["full"]).norm() > 1e-2 * moved


def test_the_mismatch_falls(tmp_path: Path) -> None:
    method = mtt(iterations=25, start_epochs=1, experts=1, lr_network=0.1, lr_images=3.0, lr_lr=1e-4)
    losses = [float(metrics["loss"]) for _, metrics in drive(method, problem_for_checks(tmp_path)) if metrics]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_batch_norm_is_refused(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    with pytest.raises(ConfigError, match="convnet-d2-w8-bn has batch norm"):
        condense(mtt(), problem)


def test_experts_whitening_and_first_images_are_without_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = PROTOCOLS["mtt@1"]
    short = native.options.model_copy(update={"epochs": 2})
    monkeypatch.setitem(PROTOCOLS, "mtt@1", native.model_copy(update={"options": short}))  # type: ignore[misc]
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    rule = Selection(on=True, heldout=0.25, every=2)
    assert condense(mtt(), problem, rule).pixels == "zca(eps=0.1, heldout=0.25)"
    rest, _ = problem.heldout(0.25)
    used, space = sorted(problem.artifacts.used.values(), key=lambda entry: str(entry["kind"]))
    # The whitening without the held-out part is charged as well.
    assert space["identity"] == {"dataset": rest.train.fingerprint, "pixels": "zca(eps=0.1, heldout=0.25)"}
    assert used["identity"]["dataset"] == rest.train.fingerprint != problem.train.fingerprint
    assert used["identity"]["pixels"] == f"{rest.pixels.name} {rest.pixels.fingerprint}"
    first = condense(mtt(iterations=0), problem, rule).images
    seen = rest.real.take(torch.arange(len(rest.train)))
    assert all(any(torch.equal(image, other) for other in seen) for image in first)


def test_an_impossible_budget_is_refused_before_experts_are_trained(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), ipc=10**6)
    with pytest.raises(DataError, match="ipc is 1000000"):
        mtt().prepare(problem)
    assert not problem.artifacts.used


def test_memory_is_what_the_job_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, unlimited = tmp_path / "memory.max", tmp_path / "other"
    limit.write_text("12345678\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(host, "CGROUPS", (unlimited, tmp_path / "missing", limit))
    assert unroll.memory(torch.device("cpu")) == 12345678
