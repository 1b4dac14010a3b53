"""Programs of static shape against the plain loop, on the CPU, where both are the same arithmetic."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddbench.artifacts import ArtifactCache
from ddbench.backbones.names import build
from ddbench.backbones.variables import Variables
from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy
from ddbench.engine.augment import ALL_OPS, OPS, apply, independent, siamese
from ddbench.engine.program import Program, fusible, worth_compiling
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS, Protocol
from ddbench.evaluation.trainer import trainer_of
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import train_students

CPU = torch.device("cpu")
RECIPES = {
    "step, ragged batches": SGDOptions(epochs=6, batch=12),
    "cosine, nesterov": SGDOptions(epochs=5, batch=64, schedule="cosine", nesterov=True, warmup=0.2),
    "fixed steps": SGDOptions(epochs=None, steps=9, batch=7, schedule="constant"),
    "milestones": SGDOptions(epochs=5, batch=12, schedule="milestones", milestones=(2, 4), factor=0.3),
    "images mixed, ragged batches": SGDOptions(epochs=6, batch=12, cutmix=0.5),
    "biases and norms spared": SGDOptions(
        epochs=5, batch=12, weight_decay=0.1, decayed="weights", schedule="cosine", schedule_by="pass", nesterov=True
    ),
    "images always mixed": SGDOptions(epochs=4, batch=64, cutmix=1.0),
}
ADAM = {
    "subsets": SGDOptions(
        epochs=None, steps=9, batch=7, schedule="constant", optimizer="adam", sampling="subset", lr=1e-3, weight_decay=0
    ),
    "moments dropped": SGDOptions(epochs=6, batch=12, optimizer="adam", lr=1e-3),
    "decoupled decay": SGDOptions(
        epochs=6, batch=12, optimizer="adamw", lr=1e-3, weight_decay=0.3, schedule="cosine", stretch=2.0
    ),
    "biases and norms spared": SGDOptions(
        epochs=6, batch=12, optimizer="adamw", lr=1e-3, weight_decay=0.3, decayed="weights", schedule="constant"
    ),
    "spared in the gradient": SGDOptions(
        epochs=6, batch=12, optimizer="adam", lr=1e-3, weight_decay=0.3, decayed="weights", schedule="constant"
    ),
}


def make(backbone: str, options: SGDOptions, folder: Path, augment: str = "auto") -> tuple[Problem, TrainingPlan]:
    data = toy(3, (1, 8, 8), 40)
    problem = Problem(
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info),
        backbone=build(backbone, data.train.shape, 3),
        ipc=10,
        rng=Rng(0),
        device=CPU,
        artifacts=ArtifactCache(folder),
    )
    some = SyntheticSet(data.train.images[::4].clone(), data.train.labels[::4].clone())
    protocol = Protocol(name="recipe", options=options, augment=augment)
    return problem, plan(some, protocol, problem, Rng(0))


@pytest.mark.parametrize("backbone", ["convnet-w8", "convnet-w8-bn", "mlp"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_static_program_trains_the_students_of_the_plain_loop(backbone: str, recipe: str, tmp_path: Path) -> None:
    problem, schedule = make(backbone, RECIPES[recipe], tmp_path)
    net, students = problem.backbone, [0, 3, 5]
    fresh = Variables.stack([net.init(Rng(k)) for k in students])
    plain = train_students(net, fresh, schedule, students, together=1, static=False)
    for together in (1, 2, 3):
        ours = train_students(net, fresh, schedule, students, together=together, static=True)
        for name, value in {**plain.params, **plain.buffers}.items():
            other = {**ours.params, **ours.buffers}[name]
            assert torch.allclose(value, other, atol=2e-6), f"{name}, {together} together"
        moved = max(float((plain.params[k] - fresh.params[k]).abs().max()) for k in fresh.params)
        assert moved > 1e-3, "nothing was trained, so nothing was compared"


@pytest.mark.parametrize("backbone", ["convnet-w8", "convnet-w8-bn", "mlp"])
@pytest.mark.parametrize("recipe", ADAM)
def test_a_static_program_takes_the_steps_of_adam(backbone: str, recipe: str, tmp_path: Path) -> None:
    problem, schedule = make(backbone, ADAM[recipe], tmp_path)
    # In float64: a gradient that is zero but for rounding would otherwise become a whole step.
    schedule = replace(schedule, images=schedule.forward(schedule.images).double(), forward=lambda images: images)
    assert schedule.static
    net, students = problem.backbone, [0, 3, 5]
    fresh = Variables.stack([net.init(Rng(k)) for k in students]).to(torch.float64)
    plain = train_students(net, fresh, schedule, students, together=1, static=False)
    static = train_students(net, fresh, schedule, students, together=2, static=True)
    for name, value in {**plain.params, **plain.buffers}.items():
        assert torch.allclose(value, {**static.params, **static.buffers}[name], atol=1e-7), name
    assert (plain.params["logits.weight"] - fresh.params["logits.weight"]).abs().max() > 1e-3


def test_a_plan_without_augmentation_is_static_too(tmp_path: Path) -> None:
    problem, schedule = make("mlp", RECIPES["step, ragged batches"], tmp_path, augment="none")
    fresh = Variables.stack([problem.backbone.init(Rng(0))])
    plain = train_students(problem.backbone, fresh, schedule, [0], static=False)
    static = train_students(problem.backbone, fresh, schedule, [0], static=True)
    assert all(torch.allclose(plain.params[k], static.params[k], atol=2e-6) for k in plain.params)


@pytest.mark.parametrize("trainer", ["finite-width", "distill"])
def test_other_losses_are_those_of_the_plain_loop(trainer: str, tmp_path: Path) -> None:
    problem, _ = make("convnet-w8", SGDOptions(), tmp_path)
    data = problem.train
    scores = torch.randn(40, 3, generator=Rng(1).torch())
    some = SyntheticSet(data.images[::3].clone(), scores - scores.mean(1, keepdim=True), label_kind="logit")
    options = {"epochs": None, "steps": 9, "batch": 5, "lr": 0.1} | (
        {"targets": "given"} if trainer == "distill" else {}
    )
    protocol = Protocol(name="recipe", trainer=trainer, options=options, labels="soft")
    schedule = trainer_of(some, protocol, problem).plan  # type: ignore[attr-defined]
    assert schedule.static
    net, students = problem.backbone, [0, 3]
    fresh = Variables.stack([net.init(Rng(k)) for k in students])
    plain = train_students(net, fresh, schedule, students, static=False)
    static = train_students(net, fresh, schedule, students, together=2, static=True)
    for name, value in plain.params.items():
        assert torch.allclose(value, static.params[name], atol=2e-6), name
    # The same steps with soft cross-entropy lead somewhere else.
    shortened = SGDOptions(epochs=None, steps=9, batch=5, lr=0.1)
    usual = PROTOCOLS["dsa-soft@1"].model_copy(update={"augment": protocol.augment, "options": shortened})
    other = train_students(net, fresh, plan(some, usual, problem, Rng(0)), students, static=True)
    assert (other.params["logits.weight"] - static.params["logits.weight"]).abs().max() > 1e-3


def test_plans_that_need_the_host_are_not_static(tmp_path: Path) -> None:
    assert not replace(make("mlp", SGDOptions(epochs=1), tmp_path)[1], legacy="crop_noise").static


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 28, 20)])
def test_all_operations_as_one_formula_equal_them_one_by_one(shape: tuple[int, int, int], corners: bool) -> None:
    draw = independent(ALL_OPS, 30, 4, Rng(1), align_corners=corners)
    assert draw.ops.unique().numel() == len(OPS)
    images = torch.randn(30, 4, *shape, generator=Rng(2).torch())
    assert torch.allclose(apply(replace(draw, static=True), images), apply(draw, images), atol=2e-6)


def test_the_one_formula_has_the_gradient_of_the_operations() -> None:
    draw = siamese(ALL_OPS, 12, Rng(3))
    images = torch.randn(12, 2, 3, 8, 8, generator=Rng(4).torch(), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(12, 2, 3, 8, 8, generator=Rng(5).torch(), dtype=torch.float64)
    (one,) = torch.autograd.grad((apply(replace(draw, static=True), images) * weights).sum(), images)
    (each,) = torch.autograd.grad((apply(draw, images) * weights).sum(), images)
    assert torch.allclose(one, each, atol=1e-12)


def test_a_program_on_a_cpu_takes_one_step_a_call() -> None:
    total = torch.zeros(2)
    program = Program(fusible(lambda x: total.add_(x).clone()), CPU, calls=3)
    results = [program(torch.tensor([1.0, 2.0])) for _ in range(3)]
    assert [r.tolist() for r in results] == [[1, 2], [2, 4], [3, 6]]


def test_a_program_that_is_no_graph_brings_its_arguments_to_the_device_too() -> None:
    meta = torch.device("meta")
    assert Program(lambda x: x.device, meta, calls=1)(torch.zeros(1)) == meta


def test_short_work_is_never_compiled() -> None:
    assert not worth_compiling(5.0, torch.device("cuda"))
    assert worth_compiling(600.0, torch.device("cuda"))
    assert not worth_compiling(600.0, CPU)
