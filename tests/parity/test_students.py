"""Students trained together are the students trained one by one, whichever way they are trained."""

from typing import Any

import pytest
import torch
from torch import nn

from ddbench import Backbone, Rng, Variables
from ddbench.backbones.foreign import from_module
from ddbench.backbones.names import build
from ddbench.backbones.variables import Shape
from ddbench.evaluation.plan import counted
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import footprint, predict, students_together, train_students

RNG = Rng(0, ("students",))
STUDENTS = [3, 0, 8, 5, 1]
AUGMENT = "color_crop_cutout_flip_scale_rotate"


def setup(
    backbone: str, dtype: torch.dtype, *, strategy: str = AUGMENT, legacy: str = "none", **options: Any
) -> tuple[Backbone, Variables, TrainingPlan]:
    known = SGDOptions.model_validate({"epochs": 3, "batch": 4} | options)
    images = torch.randn(10, 3, 8, 8, generator=RNG.torch(), dtype=dtype)
    labels = torch.arange(10) % 3
    training = TrainingPlan(
        images,
        labels,
        lambda x: x,
        known,
        strategy,
        legacy,
        rng=RNG,
        **counted(known.epochs or 0),
    )
    net = build(backbone, (3, 8, 8), 3)
    return net, net.init(RNG.fold("network"), copies=len(STUDENTS)).to(dtype), training


def assert_close(found: Variables, expected: Variables, tolerance: float) -> None:
    for part in ("params", "buffers"):
        for name, value in getattr(expected, part).items():
            other = getattr(found, part)[name]
            assert other.shape == value.shape
            assert torch.allclose(other, value, rtol=tolerance, atol=tolerance), name


CASES: list[dict[str, Any]] = [
    {"backbone": "convnet-d2-w4"},
    {"backbone": "convnet-d2-w4-bn"},
    {"backbone": "mlp"},
    {"backbone": "convnet-d2-w4", "schedule": "cosine", "nesterov": True},
    {"backbone": "convnet-d2-w4", "optimizer": "adam"},
    {"backbone": "convnet-d2-w4-bn", "strategy": "none", "legacy": "crop_noise"},
    {"backbone": "convnet-d2-w4-bn", "decayed": "weights", "weight_decay": 0.3},
    {"backbone": "convnet-d2-w4", "strategy": "none", "batch": 256},
]


@pytest.mark.parametrize("together", [2, 5, 9])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_together_is_one_by_one(case: dict[str, Any], together: int) -> None:
    net, fresh, training = setup(dtype=torch.float64, **case)
    alone = train_students(net, fresh, training, STUDENTS, together=1, static=False)
    company = train_students(net, fresh, training, STUDENTS, together=together, static=False)
    # Adam turns rounding into steps where gradients vanish.
    assert_close(company, alone, 1e-5 if case.get("optimizer") == "adam" else 1e-10)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_a_program_of_static_shape_is_the_plain_loop(case: dict[str, Any], together: int) -> None:
    # Adam turns rounding into steps where gradients vanish; in float64 these are too small to see.
    net, fresh, training = setup(dtype=torch.float64 if case.get("optimizer") == "adam" else torch.float32, **case)
    plain = train_students(net, fresh, training, STUDENTS[:3], together=1, static=False)
    static = train_students(net, fresh, training, STUDENTS[:3], together=together, static=True)
    assert_close(static, plain, 1e-4)


def test_students_come_back_in_their_order() -> None:
    net, fresh, training = setup("convnet-d2-w4", torch.float64)
    everyone = train_students(net, fresh, training, STUDENTS, together=2, static=False)
    for k, student in enumerate(STUDENTS):
        single = Variables.stack([fresh.copy(k)])
        alone = train_students(net, single, training, [student], static=False)
        assert_close(alone, Variables.stack([everyone.copy(k)]), 1e-10)


@pytest.mark.parametrize(("together", "static"), [(1, False), (2, False), (1, True)])
def test_the_fresh_weights_are_left_as_they_are(together: int, static: bool) -> None:
    net, fresh, training = setup("convnet-d2-w4-bn", torch.float32)
    before = fresh.clone()
    trained = train_students(net, fresh, training, STUDENTS, together=together, static=static)
    assert_close(fresh, before, 0)
    assert not any(value.requires_grad for value in trained.params.values())
    moved = [not torch.equal(trained.params[name], value) for name, value in before.params.items()]
    assert all(moved)


@pytest.mark.parametrize(("together", "static"), [(1, False), (2, False), (2, True)])
def test_every_step_of_every_student_ticks(together: int, static: bool) -> None:
    net, fresh, training = setup("mlp", torch.float32)
    ticks: list[int] = []
    train_students(net, fresh, training, STUDENTS, together=together, static=static, tick=ticks.append)
    assert sum(ticks) == len(STUDENTS) * training.steps == 5 * 12
    assert max(ticks) == together


def test_on_a_cpu_students_train_one_by_one() -> None:
    assert students_together(10, torch.device("cpu")) == 1
    assert students_together(10, torch.device("cuda")) > students_together(10**6, torch.device("cuda")) == 1


def test_fewer_students_side_by_side_where_images_are_large() -> None:
    cuda = torch.device("cuda")
    assert students_together(100, cuda, 32 * 32) == 4 * students_together(100, cuda, 64 * 64) == 8
    assert students_together(100, cuda, 28 * 28) == 8
    assert students_together(256, cuda, 128 * 128) == 1


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("convnet", (3, 32, 32), 32 * 32),
        ("convnet", (1, 28, 28), 32 * 32),  # the first layer pads grey images
        ("convnet", (3, 64, 64), 64 * 64),
        ("convnet-w1024-nn-kip", (3, 32, 32), 8 * 32 * 32),
        ("resnet18", (3, 32, 32), 32 * 32),
        ("mlp", (3, 32, 32), 32 * 32),
    ],
)
def test_an_image_is_as_large_as_it_makes_the_widest_layer(name: str, shape: Shape, size: int) -> None:
    assert footprint(build(name, shape, 10)) == size


def test_somebodys_network_is_measured_as_far_as_it_can_be() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(self.factor)  # no number where there is no memory

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), Reads(), nn.Flatten(), nn.Linear(512 * 64, 3))

    assert from_module("reads", make, (3, 8, 8), 3).widest == 512 * 64


def test_wide_networks_see_fewer_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("convnet-d2-w256-nn", (3, 32, 32), 3)
    students, images = net.init(Rng(0), copies=2), torch.randn(7, 3, 32, 32, generator=Rng(1).torch())
    seen: list[int] = []
    assert net.widest == 256 * 32 * 32
    handle = net._modules[False].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    whole = predict(net, students, images)
    monkeypatch.setattr("ddbench.training.students.TESTED_IMAGES", 6)
    torch.testing.assert_close(predict(net, students, images), whole)
    handle.remove()
    assert seen == [7, 7] + [3, 3, 1] * 2


def test_predictions_are_those_of_each_student_in_evaluation_mode() -> None:
    net, fresh, training = setup("convnet-d2-w4-bn", torch.float64)
    trained = train_students(net, fresh, training, STUDENTS)
    images = torch.randn(6, 3, 8, 8, generator=RNG.fold("test").torch(), dtype=torch.float64)
    scores = predict(net, trained, images)
    assert scores.shape == (5, 6, 3)
    for k in range(5):
        assert torch.allclose(scores[k], net(trained.copy(k), images, train=False)[0])
    # In evaluation mode the company of an image in its batch changes nothing.
    assert torch.allclose(predict(net, trained, images[:1])[:, 0], scores[:, 0])
