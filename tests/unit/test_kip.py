"""KIP and LS around their objective: options, presets, augmentation, their sets, and how those are judged."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench import ArtifactCache, Problem, Rng, SyntheticSet, condense
from ddbench.backbones.names import build
from ddbench.config import preset_layers, resolve
from ddbench.data.pixels import fit_pixels
from ddbench.data.sources import load
from ddbench.engine.regression import centred, ridge_weights
from ddbench.errors import ConfigError, DivergedError
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.finite_width import FiniteWidthTrainer, largest_lr
from ddbench.evaluation.krr import regression_targets
from ddbench.evaluation.protocol import PROTOCOLS, FiniteWidthOptions, KRROptions, Protocol
from ddbench.evaluation.selection import VALIDATION
from ddbench.evaluation.trainer import trainer_of
from ddbench.loop import drive
from ddbench.ntk.architectures import architecture
from ddbench.ntk.kernel import kernel
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.evaluating import cells
from ddbench.runs.resolving import QUICK, Asked, resolve_spec
from ddbench.runs.runner import RunOptions, run
from ddbench.testing.contract import problem_for_checks
from ddbench.training.plan import TrainingPlan
from ddbench_methods.kip import moved

KIP = load_object(GROUPS["method"], "kip")
LS = load_object(GROUPS["method"], "ls")
SMALL = {"kernel": "fc1", "batch_real": 30}


def kip(**options: Any) -> Any:
    return KIP(KIP.Config(**{"iterations": 2} | SMALL | options))


def test_the_defaults_are_those_of_the_card() -> None:
    found = KIP.Config().model_dump()
    assert {key: found[key] for key in ("iterations", "lr_images", "batch_real", "ridge", "kernel", "labels")} == {
        "iterations": 1000,
        "lr_images": 0.04,
        "batch_real": 5000,
        "ridge": 1e-6,
        "kernel": "convnet",
        "labels": "learned",
    }


@pytest.mark.parametrize("method", [KIP, LS])
@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize(
    ("dataset", "pixels", "lr"),
    [
        ("mnist", "standard(stats=pixel)", 0.01),
        ("fashion-mnist", "standard(stats=pixel)", 0.01),
        ("svhn", "kip-zca(reg=0.1)", 0.04),
        ("cifar10", "kip-zca(reg=0.1)", 0.04),
        ("cifar100", "kip-zca(reg=0.1)", 0.04),
    ],
)
def test_presets_are_the_papers(method: Any, dataset: str, pixels: str, lr: float, ipc: int) -> None:
    options, run = preset_layers(method.settings(), "paper", dataset, ipc)
    config = resolve(method.name, method.Config, options).config
    assert (config.kernel, config.ridge, config.kernel_dtype) == ("convnet", 1e-6, "float32")
    assert run[-1].values == {"pixels": pixels, "protocol": ["krr@1", "native-kip@1", "dsa@1"]}
    if method is KIP:
        values = (config.iterations, config.lr_images, config.batch_real, config.labels, config.augment)
        assert values == (1000, lr, 5000, "learned", True)


@pytest.mark.parametrize("method", [KIP, LS])
def test_the_quick_preset_is_light_and_stays_on_the_common_board(method: Any) -> None:
    for dataset in ("digits", "cifar10"):
        options, run = preset_layers([QUICK, *method.settings()], "quick", dataset, 10)
        assert resolve(method.name, method.Config, options).config.kernel == "fc1"
        values = {key: value for layer in run for key, value in layer.values.items()}
        assert values["pixels"] == "standard"


def test_a_kernel_is_named_or_refused() -> None:
    assert KIP.Config(kernel="ConvNet+convvec3").kernel == "convnet+convvec3"
    with pytest.raises(ConfigError, match="no kernel 'convnet2'"):
        KIP.Config(kernel="fc1+convnet2")
    with pytest.raises(ConfigError, match=r"no kernel 'fc1\+fc2'"):
        LS.Config(kernel="fc1+fc2")


def test_it_learns_images_and_labels_from_real_ones(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    start, done = condense(kip(iterations=0), problem), condense(kip(), problem)
    assert start.label_kind == done.label_kind == "regression"
    assert start.recipe.loss == "mse"
    third = torch.eye(3)[problem.class_labels()] - 1 / 3
    assert torch.allclose(start.labels, third)
    assert not torch.allclose(done.labels, third, atol=1e-2)
    assert not torch.allclose(done.images, start.images, atol=1e-2)
    assert torch.equal(done.hard_labels, problem.class_labels())


def test_fixed_labels_stay(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    assert torch.equal(condense(kip(labels="fixed"), problem).labels, condense(kip(iterations=0), problem).labels)
    assert (kip(labels="fixed").learns, kip().learns) == (("images",), ("images", "labels"))


def test_a_family_of_kernels_is_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    method = kip(kernel="fc1+fc2+fc3", iterations=12)
    state = method.start(problem)
    used: list[int] = []
    for number, one in enumerate(state.kernels):
        for name in ("value", "regression"):  # of the support with itself, and of the targets
            call = getattr(one, name)

            def watch(*args: Any, number: int = number, call: Any = call) -> Any:
                used.append(number)
                return call(*args)

            monkeypatch.setattr(one, name, watch)
    for step in range(12):
        method.step(problem, state, Rng(0).fold("step", step))
    assert used[::2] == used[1::2]
    assert set(used) == {0, 1, 2}


def test_chunks_do_not_change_a_run(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whole, cut = (condense(kip(kernel_dtype="float64", **some), problem) for some in ({}, {"memory_gib": 1e-6}))
    assert torch.allclose(whole.images, cut.images, atol=1e-5)


def test_an_augmented_half_is_moved_and_the_rest_is_not() -> None:
    images = torch.rand(10_000, 1, 5, 5, generator=Rng(0).torch())
    new = moved(images, Rng(1), flip=True)
    same = (new == images).flatten(1).all(dim=1)
    assert 0.48 < float(same.float().mean()) < 0.52
    assert float(new.min()) >= 0
    assert float(new.max()) <= 1
    assert torch.equal(new, moved(images, Rng(1), flip=True))


def test_edges_are_repeated_and_nothing_dark_comes_in() -> None:
    images = torch.ones(40, 3, 8, 8)
    assert torch.allclose(moved(images, Rng(1), flip=True), images)


@pytest.mark.parametrize(("height", "width"), [(41, 41), (41, 21), (21, 41)])
def test_an_augmented_image_is_turned_and_shifted_as_far_as_stated_and_flipped_where_asked(
    height: int, width: int
) -> None:
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    size, (y, x) = torch.tensor([height, width]), (height // 2, width // 2)
    # The brightness is the place, so that the middle of the new image says where it came from.
    images = torch.stack([rows, columns]).expand(600, -1, -1, -1)
    for flip in (False, True):
        new = moved(images, Rng(2), flip=flip)
        shift = ((new[:, :, y, x] - size // 2) / size).abs().amax(dim=0)
        assert bool((shift > 0.085).all())
        assert bool((shift <= 0.1 + 1e-4).all())
        right = (new[:, :, y, x + 1] - new[:, :, y, x - 1]) / 2
        down = (new[:, :, y + 1, x] - new[:, :, y - 1, x]) / 2
        # A turn keeps lengths and right angles, also where an image is not square.
        for product, expected in ((right * right, 1), (down * down, 1), (right * down, 0)):
            assert (product.sum(dim=1) - expected).abs().max() < 1e-4
        tilt = torch.rad2deg(torch.atan2(right[:, 0], right[:, 1].abs()))
        assert 9 < float(tilt.abs().max()) <= 10.01
        assert bool((right[:, 1] < 0).any()) == flip
        assert bool((right[:, 1] > 0).any())


def test_digits_are_not_flipped_and_augmentation_changes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    flips: list[bool] = []
    module = sys.modules[KIP.__module__]

    def watch(images: Tensor, rng: Rng, flip: bool) -> Tensor:
        flips.append(flip)
        return moved(images, rng, flip)

    monkeypatch.setattr(module, "moved", watch)
    problem = problem_for_checks(tmp_path)
    digits = replace(problem, info=replace(problem.info, digits=True))
    grey = problem_for_checks(tmp_path / "grey", shape=(1, 8, 8))
    plain, turned, _, _ = (
        condense(kip(augment=augment), where).images
        for augment, where in ((False, problem), (True, problem), (True, digits), (True, grey))
    )
    assert flips == [True, True, False, False, False, False]
    assert not torch.allclose(plain, turned)


@pytest.mark.parametrize("pixels", ["standard(stats=pixel)", "kip-zca(reg=0.1)"])
def test_targets_are_moved_as_pictures_and_then_brought_into_the_pixel_space(tmp_path: Path, pixels: str) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels(pixels, problem.train, problem.info))
    rows = torch.arange(20)
    raw = problem.train.images[:20] / 255
    plain, new = (kip(augment=augment).targets(problem, rows, Rng(4)) for augment in (False, True))
    assert torch.allclose(plain, problem.pixels.forward(raw), atol=1e-6)
    assert torch.allclose(new, problem.pixels.forward(moved(raw, Rng(4), flip=True)), atol=1e-6)
    assert not torch.allclose(new, plain, atol=0.1)


def test_a_run_that_diverges_names_the_ridge() -> None:
    assert "ridge" in KIP.info.advice
    assert "ridge" in LS.info.advice


def test_label_solve_keeps_real_images_and_their_rows(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(LS(LS.Config(**SMALL)), problem)
    assert synthetic.images.dtype == torch.uint8
    assert synthetic.source_indices is not None
    assert torch.equal(synthetic.images, problem.train.images[synthetic.source_indices])
    assert synthetic.label_kind == "regression"


def fc1(x: Tensor, y: Tensor | None = None) -> Tensor:
    return kernel(architecture("fc1"), x, y).ntk


def test_label_solve_says_how_many_steps_it_takes_and_snapshots_are_solved(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method = LS(LS.Config(**SMALL | {"batch_real": 50}))
    labels = []
    for state, _ in drive(method, problem):
        labels.append(method.export(problem, state).labels)
    assert method.total_steps(problem) == len(labels) - 1 == math.ceil(len(problem.train) / 50) > 1
    assert torch.equal(labels[0], condense(kip(iterations=0), problem).labels)
    # In between, the best labels for the images so far.
    ridge, first = float(method.config.ridge), torch.arange(50)
    own = problem.real.take(state.indices).double()
    weights = ridge_weights(fc1(own), torch.eye(len(own)).double(), ridge)
    predicts = fc1(problem.real.take(first).double(), own) @ weights
    targets = centred(problem.real.labels[first], problem.classes).double()
    best = torch.linalg.lstsq(predicts, targets, driver="gelsd").solution
    assert ((predicts @ labels[1].double()) - predicts @ best).norm() < 1e-3 * targets.norm()


# How sets are judged.


def predictor(synthetic: SyntheticSet, problem: Problem, protocol: Protocol, students: int = 1) -> Any:
    trainer = trainer_of(synthetic, protocol, problem, students=students)
    trainer.choose(lambda _: None)
    return trainer.train(range(students), lambda _: None)


def test_kernel_regression_predicts_as_its_formula_says(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(kip(), problem)
    x = problem.real.take(torch.arange(60, 80))
    assert trainer_of(synthetic, PROTOCOLS["krr@1"], problem).deterministic
    krr = PROTOCOLS["krr@1"].model_copy(update={"options": KRROptions(kernel="convnet3", dtype="float64", ridge=0.01)})
    found = predictor(synthetic, problem, krr)(x)
    network = architecture("convnet3")
    k_ss, k_ts = (
        kernel(network, synthetic.images.double()).ntk,
        kernel(network, x.double(), synthetic.images.double()).ntk,
    )
    shift = 0.01 * k_ss.diagonal().mean() * torch.eye(len(k_ss), dtype=torch.float64)
    expected = k_ts @ torch.linalg.solve(k_ss + shift, synthetic.labels.double())
    assert found.shape == (1, 20, 3)
    assert torch.allclose(found[0], expected, atol=1e-8)


def test_stored_images_are_brought_into_the_pixel_space_before_the_kernel(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    synthetic = condense(LS(LS.Config(**SMALL)), problem)
    assert synthetic.images.dtype == torch.uint8
    x = problem.real.take(torch.arange(60, 80))
    found = predictor(synthetic, problem, PROTOCOLS["krr-fc1@1"])(x)[0]
    support = problem.pixels.forward(synthetic.images).double()
    k_ss, k_ts = fc1(support), fc1(x.double(), support)
    shift = 1e-6 * k_ss.diagonal().mean() * torch.eye(len(k_ss), dtype=torch.float64)
    expected = k_ts @ torch.linalg.solve(k_ss + shift, synthetic.labels.double())
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["class", "probability", "logit", "regression"])
def test_regression_targets_are_centred_unless_they_are_targets_already(kind: Any) -> None:
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    labels = {"class": torch.tensor([0, 2]), "logit": soft.log()}.get(kind, soft)
    synthetic = SyntheticSet(torch.zeros(2, 3, 8, 8), labels, label_kind=kind)
    one_hot = torch.eye(3)[[0, 2]] - 1 / 3
    expected = {"class": one_hot, "regression": soft}.get(kind, soft - 1 / 3)
    assert torch.allclose(regression_targets(synthetic, 3, hard=False), expected)
    assert torch.allclose(regression_targets(synthetic, 3, hard=True), one_hot)


def test_a_support_without_a_solution_is_an_error(tmp_path: Path) -> None:
    data = load("digits", Path("no-data-folder"))
    problem = digits_problem(tmp_path, 0)
    images = torch.full((10, *data.train.shape), torch.finfo(torch.float32).max / 1e3)
    krr = PROTOCOLS["krr-fc1@1"]
    with pytest.raises(DivergedError, match=r"not positive definite in float32.*numbers too large"):
        list(evaluate(SyntheticSet(images, torch.arange(10)), krr, problem, SealedTest(data.test)))


def digits_problem(root: Path, seed: int) -> Problem:
    data = load("digits", Path("no-data-folder"))
    return Problem(
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info),
        backbone=build("convnet-w16", data.train.shape, 10),
        ipc=1,
        rng=Rng(seed),
        device=torch.device("cpu"),
        artifacts=ArtifactCache(root),
    )


def test_solved_labels_beat_classes_by_three_points(tmp_path: Path) -> None:
    data, random = load("digits", Path("no-data-folder")), load_object(GROUPS["method"], "random")
    krr = PROTOCOLS["krr-fc1@1"]
    found = {}
    for name, method in (("solved", LS(LS.Config(kernel="fc1"))), ("classes", random(random.Config()))):
        scores = []
        for seed in range(5):
            problem = replace(digits_problem(tmp_path, seed), ipc=5)
            scores += [s.accuracy for s in evaluate(condense(method, problem), krr, problem, SealedTest(data.test))]
        found[name] = mean(scores)
    assert found["solved"] >= found["classes"] + 0.03


def test_a_kernel_that_is_not_positive_definite_is_named_and_not_the_students(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    krr = PROTOCOLS["krr-fc1@1"].model_copy(update={"options": KRROptions(kernel="fc1", ridge=1e-300)})
    twice = SyntheticSet(torch.ones(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2]), pixels="standard")
    with pytest.raises(DivergedError, match=r"not positive definite in float32.*dtype = \"float64\" or a larger ridge"):
        trainer_of(twice, krr, problem).train([0], lambda _: None)


def test_a_kernel_judges_once_whatever_networks_are_named() -> None:
    asked = cells([PROTOCOLS["krr-fc1@1"], PROTOCOLS["dsa@1"]], ["mlp", "lenet"], None, (3, 32, 32), own="mlp")
    assert [(cell.protocol.id, cell.backbone) for cell in asked] == [
        ("krr-fc1@1", "mlp"),
        ("dsa@1", "mlp"),
        ("dsa@1", "lenet"),
    ]


def test_the_largest_step_size_comes_from_the_tangent_kernel() -> None:
    net = build("convnet-d2-w8-nn-kip", (3, 8, 8), 3)
    fresh = net.init(Rng(0))
    images = torch.randn(6, 3, 8, 8, generator=Rng(1).torch())
    params = {name: value.clone().requires_grad_() for name, value in fresh.params.items()}
    rows = []
    for image in images:
        logits, _ = net(replace(fresh, params=params), image[None], train=True)
        grads = torch.autograd.grad(logits.sum() / 3**0.5, list(params.values()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows).double()
    expected = 2 * 6 * 3 / torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1]
    assert largest_lr(net, fresh, images, Rng(2)) == pytest.approx(float(expected), rel=1e-3)


def test_the_largest_step_size_is_found_once_for_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    native = PROTOCOLS["native-kip@1"].model_copy(update={"options": FiniteWidthOptions(steps=1)})
    found: list[float] = []

    def watched(*given: Any) -> float:
        found.append(largest_lr(*given))
        return found[-1]

    monkeypatch.setattr("ddbench.evaluation.finite_width.largest_lr", watched)
    sets = [condense(kip(iterations=steps), problem) for steps in (0, 1)]
    other = replace(problem, backbone=build("convnet-d2-w16", (3, 8, 8), 3))
    rates = []
    for synthetic, where in [(sets[0], problem), (sets[1], problem), (sets[0], other)]:
        trainer: Any = trainer_of(synthetic, native, where)
        assert trainer.steps == 1
        assert len(found) == len(set(rates)), "counting steps needs no step size"
        trainer.choose(lambda _: None)
        trainer.train([0], lambda _: None)
        rates.append(trainer.plan.lr(0))
    assert rates == [found[0], found[0], found[1]]
    assert found[0] != found[1]


def test_the_largest_step_size_is_that_of_the_first_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    asked: list[Any] = []

    def watched(net: Any, variables: Any, *rest: Any) -> float:
        asked.append(variables)
        return 1e-30  # so that training changes nothing

    monkeypatch.setattr("ddbench.evaluation.finite_width.largest_lr", watched)
    native = PROTOCOLS["native-kip@1"].model_copy(update={"options": FiniteWidthOptions(steps=1)})
    x = problem.real.take(torch.arange(5))
    first, second = predictor(condense(kip(iterations=0), problem), problem, native, students=2)(x)
    (variables,) = asked
    start, _ = problem.backbone(variables, x)
    torch.testing.assert_close(first, start)
    assert not torch.allclose(second, start, atol=1e-2)


def share_taken(problem: Problem, synthetic: SyntheticSet, *factors: float) -> float:
    """Of the largest step size, the share that students train with. All steps that are taken must be told."""
    protocol = PROTOCOLS["native-kip@1"].model_copy(
        update={"options": FiniteWidthOptions(steps=30, lr_factors=factors, validation=40)}
    )
    heard, trainer = [0], trainer_of(synthetic, protocol, problem, students=3)
    assert isinstance(trainer, FiniteWidthTrainer)
    trials = trainer.trials
    assert trials == (len(factors) if len(factors) > 1 else 0)
    chosen = dict(trainer.choose(heard.append))
    for number in range(3):
        trainer.train([number], heard.append)
    assert sum(heard) == 30 * (3 + trials)
    assert (trainer.trials, trainer.choose(heard.append)) == (0, chosen)
    rate = trainer.plan.lr(0)
    share = rate / trainer._largest_lr()
    assert chosen == pytest.approx({"lr_factor": share, "lr": rate})
    return share


def test_the_step_size_of_finite_networks_is_the_best_by_training_images(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w32-nn-kip", (3, 8, 8), 3))
    synthetic = condense(kip(), problem)
    assert share_taken(problem, synthetic, 0.5) == pytest.approx(0.5)
    assert share_taken(problem, synthetic, 1e-9, 0.5, 1e-8) == pytest.approx(0.5)
    assert share_taken(problem, synthetic, 1e6, 0.25) == pytest.approx(0.25)  # the first diverges
    with pytest.raises(DivergedError, match="diverges even with 1e\\+06 of"):
        share_taken(problem, synthetic, 1e7, 1e6)


def test_a_record_names_the_step_size_that_was_chosen(tmp_path: Path) -> None:
    native = 'name = "native"\ntrainer = "finite-width"\nlabels = "soft"\nbackbones = ["mlp"]\nstudents = 2\n'
    (tmp_path / "native.toml").write_text(native + "[options]\nsteps = 20\nlr_factors = [1e6, 0.1]\n")
    asked = resolve_spec(Asked("random", "digits", ipc=1, protocols=(str(tmp_path / "native.toml"),)), tmp_path)
    record = run(asked, RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=torch.device("cpu")))
    (found,) = record.evaluations
    assert found.chose["lr_factor"] == 0.1
    assert found.chose["lr"] > 0


def test_a_choice_is_kept_when_its_students_are_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = 'name = "native"\ntrainer = "finite-width"\nlabels = "soft"\nbackbones = ["mlp"]\nstudents = 2\n'
    (tmp_path / "native.toml").write_text(native + "[options]\nsteps = 20\nlr_factors = [1e6, 0.1]\n")
    asked = resolve_spec(Asked("random", "digits", ipc=1, protocols=(str(tmp_path / "native.toml"),)), tmp_path)
    options = RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=torch.device("cpu"))
    train, tried = FiniteWidthTrainer._train, []

    def watched(self: FiniteWidthTrainer, schedule: TrainingPlan, students: Any, progress: Any) -> Any:
        if VALIDATION in students:
            tried.append(schedule.lr(0) / self._largest_lr())
        elif len(tried) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return train(self, schedule, students, progress)

    interrupted: list[bool] = []
    monkeypatch.setattr(FiniteWidthTrainer, "_train", watched)
    with pytest.raises(KeyboardInterrupt):
        run(asked, options)
    (found,) = run(asked, options).evaluations
    assert (tried, interrupted) == (pytest.approx([1e6, 0.1]), [True])
    assert (found.chose["lr_factor"], len(found.accuracy)) == (0.1, 2)


def test_the_choice_of_a_step_size_leaves_no_trace_in_the_students(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-nn-kip", (3, 8, 8), 3))
    synthetic, images = condense(kip(), problem), torch.randn(4, 3, 8, 8, generator=Rng(3).torch())
    native = PROTOCOLS["native-kip@1"]
    native = native.model_copy(update={"options": native.options.model_copy(update={"steps": 5})})
    one, progress = trainer_of(synthetic, native, problem, students=2), lambda _: None
    chosen = one.choose(progress)
    apart = [one.train([number], progress)(images) for number in (0, 1)]
    together = trainer_of(synthetic, native, problem, students=2, chosen=chosen).train([0, 1], progress)(images)
    torch.testing.assert_close(torch.cat(apart), together)


def test_finite_networks_fit_the_targets_as_stored(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w32-nn-kip", (3, 8, 8), 3))
    synthetic = condense(kip(), problem)
    native = PROTOCOLS["native-kip@1"].model_copy(update={"options": FiniteWidthOptions(steps=300, weight_decay=0.0)})
    found = predictor(synthetic, problem, native, students=2)(synthetic.images)
    assert found.shape == (2, 6, 3)
    assert (found - synthetic.labels).square().mean() < 0.1 * synthetic.labels.square().mean()


def test_the_loss_of_finite_networks_is_half_the_mean_square(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    native = PROTOCOLS["native-kip@1"].model_copy(update={"options": FiniteWidthOptions(lr=0.5)})
    plan = trainer_of(condense(kip(iterations=0), problem), native, problem).plan  # type: ignore[attr-defined]
    a, b = torch.randn(2, 4, 3, generator=Rng(0).torch())
    assert float(plan.criterion(a, b)) == pytest.approx(float(((a - b) ** 2).sum() / 24))
    assert (plan.lr(0), plan.steps, plan.batch, plan.options.weight_decay) == (0.5, 5000, 6, 1e-3)
    assert torch.allclose(plan.labels, torch.eye(3)[problem.class_labels()] - 1 / 3)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_finite_networks_learn_labels_as_they_are_unless_the_protocol_asks_for_classes(
    tmp_path: Path, labels: str
) -> None:
    problem = problem_for_checks(tmp_path)
    learned = torch.randn(6, 3, generator=Rng(5).torch())
    synthetic = replace(condense(kip(iterations=0), problem), labels=learned)
    native = PROTOCOLS["native-kip@1"]
    assert native.labels == "soft"
    trainer = trainer_of(synthetic, native.model_copy(update={"labels": labels}), problem)
    expected = learned if labels == "soft" else torch.eye(3)[learned.argmax(dim=1)] - 1 / 3
    assert torch.allclose(trainer.plan.labels, expected)  # type: ignore[attr-defined]
