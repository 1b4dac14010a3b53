"""RDED against a plain loop: which crops of which images, how they are tiled, and what JPEG leaves of them."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddbench import Problem, Rng, SyntheticSet, Variables, condense
from ddbench.backbones.names import build
from ddbench.errors import ConfigError, DataError
from ddbench.evaluation.distill import Distillation, DistillTrainer, FromTeacher
from ddbench.evaluation.forwards import expected_forwards
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard.tracks import asked_of_the_set
from ddbench.testing.contract import problem_for_checks
from ddbench.training.networks import TrainedNetwork
from ddbench.training.students import train_students
from ddbench_methods.rded import RDED, RDEDConfig, mosaic, random_crops, through_jpeg

SMALL = {"teacher": "convnet-d2-w8", "teacher_epochs": 2, "pool": 7, "crops": 3, "jpeg": False}


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path)


def method(**options: object) -> RDED:
    return RDED(RDEDConfig(**(SMALL | options)))


def cross_entropy(problem: Problem, image: Tensor, label: int) -> float:
    """Of the teacher, in float64, for one image in the pixel space."""
    own = replace(problem, backbone=build("convnet-d2-w8", problem.shape, problem.classes))
    weights = own.artifacts.get(TrainedNetwork.of(own, epochs=2, lr=0.05, seed=0), own).to(torch.float64)
    logits = own.backbone(weights, image[None].double(), train=False)[0][0]
    return float(logits.logsumexp(0) - logits[label])


@pytest.mark.parametrize("factor", [1, 2])
def test_the_easiest_crop_of_an_image_and_the_easiest_images_of_a_class_are_kept(problem: Problem, factor: int) -> None:
    made = condense(method(factor=factor), problem)
    height, width = problem.shape[1:]
    h, w = height // factor, width // factor
    for label in range(problem.classes):
        rng = problem.rng.fold("start").fold("class", label)
        there, first = int(problem.train.counts[label]), int(problem.train.offsets[label])
        order = torch.randperm(there, generator=rng.fold("pool").torch())[:7]
        candidates = []
        crops = [random_crops(problem.train.images[first + order], (h, w), rng.fold("crop", c)) for c in range(3)]
        for number in range(len(order)):
            scored = []
            for crop in (crops[c][number] for c in range(3)):
                pixels = problem.pixels.forward(crop[None])[0]
                frame = torch.zeros(problem.shape)
                top, left = (height - h) // 2, (width - w) // 2
                frame[:, top : top + h, left : left + w] = pixels
                scored.append((cross_entropy(problem, frame, label), crop))
            candidates.append(min(scored, key=lambda pair: pair[0]))
        candidates.sort(key=lambda pair: pair[0])
        wanted = [crop for _, crop in candidates]
        for n in range(problem.ipc):
            image = made.images[label * problem.ipc + n]
            for r in range(factor):
                for c in range(factor):
                    place = (r * factor + c) * problem.ipc + n  # the easiest crops are first tiles
                    tile = image[:, r * h : (r + 1) * h, c * w : (c + 1) * w]
                    assert torch.equal(tile, wanted[place % len(wanted)]), (label, n, r, c)


def test_more_crops_a_side_than_pixels_are_refused_before_a_teacher_is_trained(problem: Problem) -> None:
    least = min(problem.shape[1:])
    with pytest.raises(DataError, match=f"cannot hold .* crops. Choose a factor of at most {least}"):
        method(factor=least + 1).prepare(problem)


def test_crops_of_all_of_an_image_are_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench_methods.rded.SMALLEST", 1.0)
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=Rng(0).torch(), dtype=torch.uint8)
    assert torch.equal(random_crops(images, (8, 8), Rng(1)), images)


def test_crops_are_squares_of_every_share_and_place() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(500, 1, 64, 64)
    crops = random_crops(ramp, (64, 64), Rng(0))[:, 0, 0].double()
    wide, left = crops[:, -1] - crops[:, 0], crops[:, 0]
    assert 64 * 0.08**0.5 - 4 < float(wide.min()) < 30
    assert float(wide.max()) > 60
    assert float(left.max()) > 35
    assert float(left.min()) < 2


def test_a_mosaic_is_filled_row_by_row_and_odd_sides_with_black() -> None:
    crops = torch.arange(1, 9, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 2, 2)
    whole = mosaic(crops, 2, (5, 4))
    assert whole.shape == (2, 1, 5, 4)
    assert whole[0, 0, ::2, ::2].tolist() == [[1, 2], [3, 4], [0, 0]]
    assert whole[1, 0, ::2, ::2].tolist() == [[5, 6], [7, 8], [0, 0]]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 16, 16), generator=Rng(0).torch(), dtype=torch.uint8)
    for before, after in zip(images, through_jpeg(images), strict=True):
        file = io.BytesIO()
        pixels = before.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, format="JPEG", quality=75)
        again = np.asarray(Image.open(file)).reshape(16, 16, channels)
        assert (after.permute(1, 2, 0).numpy() == again).all()
        assert not torch.equal(before, after)


@pytest.mark.parametrize(("ipc", "classes", "batch"), [
    (1, 10, 10), (10, 10, 50), (50, 10, 100), (1, 100, 20), (10, 100, 100), (50, 100, 200), (10, 1000, 100),
    (1, 200, 100), (10, 200, 100), (50, 200, 100),
])  # fmt: skip
def test_batches_are_those_of_the_authors_code(ipc: int, classes: int, batch: int) -> None:
    assert PROTOCOLS["rded@2"].options.batch_of(ipc * classes, classes) == batch
    assert PROTOCOLS["rded@1"].options.batch_of(ipc * classes, classes) is None
    assert PROTOCOLS["rd3@2"].options.batch_of(ipc * classes, classes) == 50


@pytest.mark.parametrize("which", ["random", "rded"])
def test_every_set_can_be_judged(problem: Problem, which: str) -> None:
    """Real images too, which bring no batch of their own: they are the control."""
    images, labels = problem.train.images[:6].clone(), problem.class_labels()
    made = condense(method(batch=3), problem) if which == "rded" else SyntheticSet(images, labels)
    small = {"teacher": "convnet-d2-w8", "teacher_epochs": 1, "epochs": 2}
    judged = PROTOCOLS["rded@2"]
    judged = judged.model_copy(update={"options": judged.options.model_copy(update=small)})
    trainer = DistillTrainer(made, judged, problem, students=1)
    # Ten images make a step at so few of a class, whatever the set asks for; it has six.
    assert (trainer.plan.options.batch, trainer.steps) == (10, 3)
    assert trainer.student_forwards == 18 == expected_forwards(judged, "resnet18-bn-he", "digits", 6)
    assert asked_of_the_set(judged) == []


def test_a_set_without_a_batch_is_sent_from_the_first_version_to_the_second(problem: Problem) -> None:
    made = SyntheticSet(problem.train.images[:6].clone(), problem.class_labels())
    with pytest.raises(
        ConfigError, match=r"rded@1 sets no batch size .* Use a protocol with a fixed one, such as rded@2"
    ):
        assert DistillTrainer(made, PROTOCOLS["rded@1"], problem, students=1).steps


def test_a_set_says_how_many_images_make_a_step(problem: Problem) -> None:
    assert condense(method(), problem).recipe.batch == 10
    assert condense(method(batch=4), problem).recipe.batch == 4
    assert condense(method(jpeg=True), problem).stored == "uint8"


@pytest.mark.parametrize(("name", "stretch"), [("rded@2", 2), ("rd3@2", 1)])
def test_a_student_takes_the_steps_of_a_plain_loop(problem: Problem, name: str, stretch: int) -> None:
    """AdamW written out, five passes of batches of 4 and 2: decay on kernels and matrices, one step size a pass."""
    net = build("convnet-d2-w8-bn", problem.shape, problem.classes)
    problem = replace(problem, backbone=net)
    fresh, teacher = (net.init(Rng(k)).to(torch.float64) for k in (1, 2))
    # Shifts and scales of norms begin at 0 and 1, where decay would hardly be seen.
    moved = Rng(3).torch()
    shifted = {
        key: value + torch.randn(value.shape, generator=moved) if value.ndim == 1 else value
        for key, value in fresh.params.items()
    }
    fresh = Variables(shifted, fresh.buffers)

    def labels(x: Tensor) -> Tensor:
        return 5 * net(teacher, x, train=False)[0]

    options = PROTOCOLS[name].options.model_copy(update={"epochs": 4, "batch": 4, "weight_decay": 0.3})
    images = torch.randn(6, *problem.shape, generator=Rng(0).torch(), dtype=torch.float64)
    made = plan(
        SyntheticSet(images.float(), problem.class_labels()),
        PROTOCOLS[name],
        problem,
        Rng(4),
        options=options,
        labels=lambda given: F.one_hot(given.labels, problem.classes).double(),
        criterion=Distillation(20.0, 0.0, scaled=False),
        labeller=FromTeacher(labels, 20.0),
    )
    made = replace(made, images=images, forward=lambda x: x)
    trained = train_students(net, Variables.stack([fresh]), made, [0]).copy(0)

    params = {key: value.clone() for key, value in fresh.params.items()}
    mean = {key: torch.zeros_like(value) for key, value in params.items()}
    square = {key: torch.zeros_like(value) for key, value in params.items()}
    steps = [step for block in made.blocks([0]) for step in block.steps()]
    assert [step.indices.shape[1] for step in steps] == [4, 2] * 5
    rounding = 0.0
    for number, step in enumerate(steps, start=1):
        lr = 1e-3 * 0.5 * (1 + math.cos(math.pi * ((number - 1) // 2) / 5 / stretch))
        x = step.transform(images[step.indices])[0]
        leaves = {key: value.detach().requires_grad_() for key, value in params.items()}
        said, wanted = (net(Variables(leaves, fresh.buffers), x, train=True)[0] / 20, labels(x) / 20)
        loss = (wanted.softmax(1) * (wanted.log_softmax(1) - said.log_softmax(1))).sum() / len(x)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for (key, value), slope in zip(params.items(), slopes, strict=True):
            rounding = max(rounding, float(slope.abs().max())) if key.endswith("conv.bias") else rounding
            mean[key] = 0.9 * mean[key] + 0.1 * slope
            square[key] = 0.999 * square[key] + 0.001 * slope**2
            if value.ndim > 1:
                value = value * (1 - lr * 0.3)
            root = (square[key] / (1 - 0.999**number)).sqrt()
            params[key] = value - lr * mean[key] / (1 - 0.9**number) / (root + 1e-8)
    # A norm takes the bias before it away, whose gradient is rounding alone. Both loops have that, and a step makes of
    # it at most the step size times its share of epsilon. Parameters of up to 4 round by 4e-16 in each step beside it.
    margin = len(steps) * (2 * 1e-3 * rounding / 1e-8 + 1e-15)
    assert margin < 1e-10
    for key, value in params.items():
        assert float((trained.params[key] - value).abs().max()) <= margin, key
    assert float((params["logits.weight"] - fresh.params["logits.weight"]).abs().max()) > 1e-3
