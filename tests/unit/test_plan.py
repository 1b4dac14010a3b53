"""Which images, which step size, which targets: counted and compared with the recipe as it is written down."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench import Problem, Protocol, Recipe, Rng, SyntheticSet
from ddbench.backbones.names import build
from ddbench.data.pixels import decoded_in, fit_pixels
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, DataError
from ddbench.evaluation.plan import counted, fit, plan
from ddbench.evaluation.protocol import PROTOCOLS, protocol
from ddbench.evaluation.trainer import trainer_of
from ddbench.initial import mosaics
from ddbench.testing.contract import problem_for_checks
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Block, Step, TrainingPlan

RNG = Rng(0, ("plan",))


def plan_of(n: int, *, strategy: str = "none", legacy: str = "none", rng: Rng = RNG, **options: Any) -> TrainingPlan:
    """A plan for n images of 2 x 2 pixels, whose first pixel is their number."""
    images = torch.zeros(n, 1, 4, 4)
    images[:, 0, 0, 0] = torch.arange(n)
    known = SGDOptions(**options)
    return TrainingPlan(
        images,
        torch.arange(n),
        lambda x: x,
        known,
        strategy,
        legacy,
        rng=rng,
        **counted(known.epochs or 0),
    )


def steps_of(training: TrainingPlan, student: int = 0) -> list[Step]:
    return [step for block in training.blocks([student]) for step in block.steps()]


@pytest.mark.parametrize(("epochs", "before", "after"), [(1000, 502, 499), (300, 152, 149), (600, 302, 299)])
@pytest.mark.parametrize(("n", "sizes"), [(10, [10]), (500, [256, 244])])
def test_the_step_size_falls_after_as_many_epochs_as_in_the_papers(
    epochs: int, before: int, after: int, n: int, sizes: list[int]
) -> None:
    blocks = list(plan_of(n, epochs=epochs).blocks([0]))
    lrs = [lr for block in blocks for lr in block.lrs]
    restarts = [restart for block in blocks for restart in block.restarts]
    assert lrs == [0.01] * before * len(sizes) + [0.001] * after * len(sizes)
    assert [t for t, restart in enumerate(restarts) if restart] == [before * len(sizes)]
    assert [size for block in blocks for size in block.sizes] == sizes * (before + after)
    assert plan_of(n, epochs=epochs).steps == (epochs + 1) * len(sizes)


def test_every_epoch_is_each_image_once_with_the_last_batch_kept() -> None:
    steps = steps_of(plan_of(7, epochs=4, batch=3))
    assert [step.indices.shape for step in steps] == [(1, 3), (1, 3), (1, 1)] * 5
    for epoch in (steps[first : first + 3] for first in range(0, 15, 3)):
        assert sorted(torch.cat([step.indices[0] for step in epoch]).tolist()) == list(range(7))


def test_epochs_come_in_other_orders() -> None:
    orders = {tuple(step.indices[0].tolist()) for step in steps_of(plan_of(20, epochs=9))}
    assert len(orders) == 10


def test_a_fixed_number_of_steps_is_kept_also_inside_an_epoch() -> None:
    training = plan_of(10, epochs=None, steps=8, batch=4, schedule="constant")
    steps = steps_of(training)
    assert training.steps == len(steps) == 8
    assert [step.indices.shape[1] for step in steps] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert {step.lr for step in steps} == {0.01}
    assert not any(step.restart for step in steps)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 4, "batch": 3},
        {"epochs": 2},
        {"epochs": None, "steps": 8, "batch": 4},
        {"epochs": None, "steps": 3, "batch": 16},
        {"epochs": None, "steps": 5, "batch": 4, "sampling": "subset"},
    ],
)
def test_student_forwards_are_the_images_of_all_steps(options: dict[str, Any]) -> None:
    training = plan_of(10, **options)
    assert training.student_forwards == sum(step.indices.shape[1] for step in steps_of(training))


def test_the_cosine_rises_and_falls_as_written_down() -> None:
    steps = steps_of(plan_of(64, epochs=None, steps=300, batch=64, lr=0.02, schedule="cosine", warmup=0.1))
    rising = [0.02 * (t + 1) / 30 for t in range(30)]
    falling = [0.01 * (1 + math.cos(math.pi * t / 270)) for t in range(270)]
    assert [step.lr for step in steps] == pytest.approx(rising + falling)
    assert max(step.lr for step in steps) == 0.02
    assert not any(step.restart for step in steps)


def test_a_step_size_by_pass_stays_as_the_first_step_of_the_pass_has_it() -> None:
    training: dict[str, Any] = {"epochs": 9, "batch": 4, "lr": 1e-3, "schedule": "cosine", "stretch": 2.0}
    of_a_pass = [0.5e-3 * (1 + math.cos(math.pi * number / 10 / 2)) for number in range(10)]
    by_pass = plan_of(10, **training, schedule_by="pass")
    assert [step.lr for step in steps_of(by_pass)] == pytest.approx([lr for lr in of_a_pass for _ in range(3)])
    by_step = [0.5e-3 * (1 + math.cos(math.pi * step / 30 / 2)) for step in range(30)]
    assert [step.lr for step in steps_of(plan_of(10, **training))] == pytest.approx(by_step)


def test_a_budget_of_images_goes_through_the_step_sizes_of_all_passes() -> None:
    """Half as many steps as ten passes have, so that each of their step sizes holds for half as long."""
    training: dict[str, Any] = {"epochs": 9, "batch": 5, "lr": 1.0, "schedule": "cosine", "schedule_by": "pass"}
    steps = steps_of(plan_of(20, **training, forwards=100))
    of_a_pass = [0.5 * (1 + math.cos(math.pi * number / 10)) for number in range(10)]
    assert [step.lr for step in steps] == pytest.approx([lr for lr in of_a_pass for _ in range(2)])


def test_weights_are_matrices_and_kernels_by_name_and_dimensions() -> None:
    """As `get_parameters` of RDED's code sorts them; one-dimensional weights are those of norms."""
    told = [("conv.weight", 4), ("in_proj_weight", 2), ("norm.weight", 1), ("conv.bias", 1), ("class_token", 3)]
    assert [SGDOptions(decayed="weights").decays(*one) for one in told] == [True, True, False, False, False]
    assert all(SGDOptions().decays(*one) for one in told)


def test_long_trainings_are_drawn_in_blocks_that_join_without_a_seam() -> None:
    training = plan_of(30_000, epochs=4, batch=10_000)
    blocks = list(training.blocks([0]))
    assert [(block.first, len(block)) for block in blocks] == [(0, 6), (6, 6), (12, 3)]
    steps = [step for block in blocks for step in block.steps()]
    for epoch in range(5):
        indices = torch.cat([step.indices[0] for step in steps[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(indices.sort().values, torch.arange(30_000))


@pytest.mark.parametrize(
    ("strategy", "legacy"), [("color_crop_flip", "none"), ("none", "crop_noise"), ("none", "none")]
)
def test_a_student_has_the_same_draws_in_any_company(strategy: str, legacy: str) -> None:
    training = plan_of(7, epochs=2, batch=3, strategy=strategy, legacy=legacy)
    together = [step for block in training.blocks([4, 0, 2]) for step in block.steps()]
    alone = steps_of(training, student=2)
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many.indices[2], one.indices[0])
        images = training.take(one.indices)
        company = many.transform(images.expand(3, *images.shape[1:]))
        assert torch.equal(company[2], one.transform(images)[0])
        assert (many.lr, many.restart) == (one.lr, one.restart)


@pytest.mark.parametrize(("strategy", "legacy"), [("color", "none"), ("none", "noise")])
def test_students_differ_in_order_and_augmentation(strategy: str, legacy: str) -> None:
    training = plan_of(50, epochs=0, strategy=strategy, legacy=legacy)
    (one,), (other,) = steps_of(training, 0), steps_of(training, 1)
    assert not torch.equal(one.indices, other.indices)
    same = torch.linspace(0, 1, 50 * 16).view(1, 50, 1, 4, 4)
    assert not torch.equal(one.transform(same), other.transform(same))


@pytest.mark.parametrize(("strategy", "legacy"), [("color_crop", "none"), ("none", "crop_noise")])
def test_steps_differ_in_augmentation(strategy: str, legacy: str) -> None:
    first, second = steps_of(plan_of(5, epochs=1, strategy=strategy, legacy=legacy))
    same = torch.linspace(0, 1, 80).view(1, 5, 1, 4, 4)
    assert not torch.equal(first.transform(same), second.transform(same))


def set_of(problem: Problem, seed: int = 0, **parts: Any) -> SyntheticSet:
    images = torch.randn(len(problem.class_labels()), *problem.shape, generator=Rng(seed, ("set",)).torch())
    return SyntheticSet(**{"images": images, "labels": problem.class_labels()} | parts)


def first_block(training: TrainingPlan, students: list[int]) -> Block:
    return next(training.blocks(students))


def test_two_sets_of_one_size_meet_the_same_students(tmp_path: Path) -> None:
    """Whoever made the set, with whatever seed of the run."""
    blocks = []
    for seed in (0, 7):
        problem = problem_for_checks(tmp_path, seed=seed)
        rng = trainer_of(set_of(problem, seed), protocol("dsa"), problem).rng
        blocks.append(first_block(plan(set_of(problem, seed), protocol("dsa"), problem, rng), [0, 1]))
        assert rng == Rng(0, ("students", protocol("dsa").digest, "convnet-d2-w8"))
    one, other = blocks
    assert torch.equal(one.indices, other.indices)
    for draw, twin in zip(one.draws, other.draws, strict=True):
        assert torch.equal(draw.ops, twin.ops)
        assert torch.equal(draw.numbers, twin.numbers)


def test_protocol_and_backbone_choose_the_students(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    wider = replace(problem, backbone=build("convnet-d2-w16", problem.shape, 3))
    synthetic = set_of(problem)
    rngs = {trainer_of(synthetic, protocol(name), p).rng for name in ("dsa", "mtt") for p in (problem, wider)}
    assert len(rngs) == 4


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"images": torch.zeros(6, 1, 8, 8)}, r"images are \(1, 8, 8\) and those of toy are \(3, 8, 8\)"),
        ({"images": torch.zeros(6, 3, 9, 8)}, r"images are \(3, 9, 8\)"),
        ({"labels": torch.arange(6)}, r"labels for 6 classes and toy has 3"),
        ({"labels": torch.zeros(6, 4), "label_kind": "logit"}, r"labels for 4 classes and toy has 3"),
        ({"labels": torch.zeros(6, 2), "label_kind": "logit"}, r"labels for 2 classes and toy has 3"),
        ({"images": torch.full((6, 3, 8, 8), torch.nan)}, r"not finite; the run that made it has diverged"),
        ({"pixels": "zca(eps=0.1)"}, r"lives in pixel space zca\(eps=0\.1\) and is judged in standard"),
    ],
)
def test_a_set_of_another_problem_is_refused(tmp_path: Path, parts: dict[str, Any], why: str) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(DataError, match=why):
        fit(set_of(problem, **parts), problem)


def test_a_set_may_leave_classes_out(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    fit(set_of(problem, labels=torch.zeros(6, dtype=torch.int64), pixels="standard"), problem)


def planned(problem: Problem, synthetic: SyntheticSet, name: str | Protocol = "dsa") -> TrainingPlan:
    return plan(synthetic, protocol(name) if isinstance(name, str) else name, problem, RNG)


LOGITS = torch.tensor([[3.0, 1.0, 2.0]] * 3 + [[-1.0, 0.0, -2.0]] * 3)


def test_hard_protocols_take_the_greatest_of_soft_labels(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    for kind in ("logit", "regression"):
        training = planned(problem, set_of(problem, labels=LOGITS, label_kind=kind))
        assert training.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_soft_protocols_take_probabilities(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    probabilities = LOGITS.exp() / LOGITS.exp().sum(dim=1, keepdim=True)
    for kind, labels in (("logit", LOGITS), ("probability", probabilities)):
        training = planned(problem, set_of(problem, labels=labels, label_kind=kind), "dsa-soft")
        assert torch.allclose(training.labels, probabilities)
    assert planned(problem, set_of(problem), "dsa-soft").labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match=r"dsa-soft@1 trains on probabilities, and this set has regression targets"):
        planned(problem, set_of(problem, labels=LOGITS, label_kind="regression"), "dsa-soft")


def test_soft_cross_entropy_is_the_mean_over_the_batch() -> None:
    training = plan_of(2)
    logits, targets = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    by_hand = -(targets * (logits - logits.exp().sum(dim=1, keepdim=True).log())).sum() / 4
    assert torch.allclose(training.criterion(logits, targets), by_hand)


def test_a_learned_step_size_is_used_where_the_protocol_says_so(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    learned = set_of(problem, recipe=Recipe(lr=torch.tensor(0.05)))
    assert planned(problem, learned, "mtt").lr(0) == pytest.approx(0.05)
    assert planned(problem, learned, "dsa").lr(0) == 0.01


@pytest.mark.parametrize(
    ("lr", "why"),
    [
        (None, r"mtt@1 trains with the set's own step size, and this set has none\. Use a protocol with a fixed one"),
        (torch.ones(3), r"this set has 3 of them"),
        (torch.tensor(-0.1), r"learned step size is -0\.1"),
        (torch.tensor(0.0), r"learned step size is 0\.0; no student can train with it"),
    ],
)
def test_a_step_size_that_is_not_one_is_refused(tmp_path: Path, lr: Tensor | None, why: str) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(ConfigError, match=why):
        planned(problem, set_of(problem, recipe=Recipe(lr=lr)), "mtt")


def test_a_recipe_without_length_is_refused(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(ConfigError, match=r"endless@1 sets neither epochs nor steps"):
        planned(problem, set_of(problem), Protocol(name="endless", options=SGDOptions(epochs=None)))


@pytest.mark.parametrize(
    ("name", "dataset", "backbone", "strategy", "legacy", "epochs"),
    [
        ("dsa", {}, "convnet-d2-w8", "color_crop_cutout_flip_scale_rotate", "none", 1000),
        ("dsa", {"digits": True}, "convnet-d2-w8", "color_crop_cutout_scale_rotate", "none", 1000),
        ("dsa", {}, "convnet-d2-w8-bn", "color_crop_cutout_flip_scale_rotate", "none", 1000),
        ("dc", {}, "convnet-d2-w8", "none", "none", 300),
        ("dc", {"name": "svhn", "digits": True}, "convnet-d2-w8", "none", "none", 300),
        ("dc", {"name": "mnist", "digits": True}, "convnet-d2-w8", "none", "crop_scale_rotate", 1000),
        # ConvNetBN is one network: three blocks of 128 channels with batch norm and ReLU.
        ("dc", {}, "convnet-d3-bn", "none", "crop_noise", 1000),
        ("dc", {"name": "mnist"}, "convnet-d3-bn", "none", "crop_noise", 1000),
        ("dc", {}, "convnet-d2-bn", "none", "none", 300),
        ("dc", {}, "convnet-d3-w64-bn", "none", "none", 300),
        ("dc", {}, "convnet-d3-bn-swish", "none", "none", 300),
        ("dc", {}, "alexnet-bn", "none", "none", 300),
        ("dc", {"name": "mnist"}, "convnet-d3-w64-bn", "none", "crop_scale_rotate", 1000),
        ("dance", {}, "convnet-d2-w8", "flip+color+crop_scale_rotate", "none", 1499),
        ("dance", {"digits": True}, "convnet-d2-w8", "color+crop_scale_rotate", "none", 1499),
        ("dance@1", {}, "convnet-d2-w8", "color_crop_flip_scale_rotate", "none", 1499),
        ("ncfm", {}, "convnet-d2-w8", "flip+color+crop_scale_rotate", "none", 1999),
        ("ncfm", {"digits": True}, "convnet-d2-w8", "color+crop_scale_rotate", "none", 1999),
        ("ncfm@1", {}, "convnet-d2-w8", "color_crop_flip_scale_rotate", "none", 1999),
        ("cafe", {}, "convnet-d2-w8", "none", "none", 600),
        ("cafe", {}, "convnet-d3-bn", "none", "crop_noise", 1000),
        ("dc@1", {}, "convnet-d2-w8", "none", "none", 300),
        ("dc@1", {}, "alexnet-bn", "none", "none", 300),
        ("dc@1", {}, "convnet-d3-bn", "none", "crop_noise", 1000),
        ("dc@1", {"name": "mnist"}, "convnet-d3-bn", "none", "crop_noise", 1000),
        ("cafe@1", {}, "convnet-d2-w8", "none", "none", 600),
    ],
)
def test_augmentation_and_length_follow_dataset_and_backbone(
    tmp_path: Path, name: str, dataset: dict[str, Any], backbone: str, strategy: str, legacy: str, epochs: int
) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, info=replace(problem.info, **dataset), backbone=build(backbone, problem.shape, 3))
    training = planned(problem, set_of(problem), name)
    assert (training.strategy, training.legacy, training.passes) == (strategy, legacy, epochs + 1)


@pytest.mark.parametrize(
    ("dataset", "backbone", "why"),
    [
        ("cifar10", "convnet-d3-w64-bn", r"convnet-d3-w64-bn was augmented, and in DC's code only convnet-d3-bn is"),
        ("mnist", "convnet-d3-w64-bn", "only convnet-d3-bn is"),
        ("mnist", "convnet-d2-w8", "images of MNIST that it scaled were often one pixel beside their place"),
        ("mnist", "alexnet-bn", "one pixel beside their place"),
    ],
)
def test_the_first_version_is_refused_where_it_was_not_the_authors_recipe(
    tmp_path: Path, dataset: str, backbone: str, why: str
) -> None:
    problem = problem_for_checks(tmp_path)
    info = replace(problem.info, name=dataset)
    problem = replace(problem, info=info, backbone=build(backbone, problem.shape, 3))
    for name in ("dc@1", "cafe@1"):
        newer = name.replace("1", "2")
        with pytest.raises(ConfigError, match=f"{name} is kept for what was measured.*{why}. Use {newer} instead"):
            planned(problem, set_of(problem), name)
        planned(problem, set_of(problem), newer)
    with pytest.raises(ConfigError, match=r'mine@1 is kept .* Use augment = "dc@2" instead'):
        planned(problem, set_of(problem), Protocol(name="mine", augment="dc"))


def test_stored_pixels_are_normalised_when_they_are_taken(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    rows = torch.tensor([0, 1, 40, 41, 80, 81])
    training = planned(problem, set_of(problem, images=problem.train.images[rows]))
    assert training.images.dtype == torch.uint8
    indices = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(training.take(indices), problem.real.take(rows[indices]))


def test_a_set_is_decoded_before_it_is_planned(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    training = planned(problem, set_of(problem, decode="tiles(factor=2)"))
    assert training.images.shape == (24, 3, 8, 8)
    assert training.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def bytes_in_tiles(problem: Problem) -> SyntheticSet:
    """A set of real bytes, four in each image, and no pixel space."""
    images = mosaics(torch.cat([problem.train.images[k * 40 : k * 40 + 8] for k in range(3)]), 2)
    return SyntheticSet(images, problem.class_labels(), decode="tiles(factor=2)")


@pytest.mark.parametrize("space", ["standard", "zca", "kip-zca"])
def test_a_whitening_is_of_the_images_that_a_mosaic_holds_and_not_of_the_mosaic(tmp_path: Path, space: str) -> None:
    problem = problem_for_checks(tmp_path, ipc=2)
    problem = replace(problem, pixels=fit_pixels(space, problem.train, problem.info))
    stored = bytes_in_tiles(problem)
    enlarged, _ = decode(stored.decode, stored.images / 255, stored.labels)
    training = planned(problem, stored)
    seen = training.forward(training.images)
    assert torch.allclose(seen, problem.pixels.forward(enlarged), atol=1e-4)
    # What has labels of its own for each image is the same images.
    assert stored.images.dtype == torch.uint8
    fixed = trainer_of(stored, PROTOCOLS["hard-truths-sl@1"], problem, students=1).outline
    assert torch.allclose(fixed.forward(fixed.images), seen, atol=1e-6)
    # And so are the items of who trains on the set without ddbench.
    assert torch.allclose(decoded_in(problem.pixels, stored.decode, stored.images, stored.labels)[0], seen, atol=1e-6)
