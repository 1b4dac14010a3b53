"""Knowledge distillation against the formula, its gradient by hand, and students side by side against one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddbench import Problem, Protocol, SyntheticSet, Variables
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError
from ddbench.evaluation.distill import DistillTrainer, distillation_loss, tempered
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS, DistillOptions
from ddbench.initial import real_images
from ddbench.testing.contract import problem_for_checks
from ddbench.training.networks import TrainedNetwork
from ddbench.training.options import SGDOptions
from ddbench.training.students import train_students

TEMPERATURE, WEIGHT = 3.0, 0.3
SHORT = {"epochs": None, "steps": 4, "batch": 4, "temperature": TEMPERATURE, "hard_weight": WEIGHT}


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def by_hand(z: np.ndarray, v: np.ndarray, classes: list[int], t: float, w: float) -> tuple[float, np.ndarray]:
    """Loss and gradient by the student's logits z, for teacher's logits v, row by row as in the paper's section 2."""
    loss, slope = 0.0, np.zeros_like(z)
    for i, label in enumerate(classes):
        p, q, one = softmax(v[i] / t), softmax(z[i] / t), softmax(z[i])
        loss += -w * np.log(one[label]) - (1 - w) * t * t * sum(p[k] * np.log(q[k]) for k in range(len(p)))
        # d/dz of the soft part is (q - p) / t, which t² brings to t (q - p).
        slope[i] = w * (one - np.eye(len(p))[label]) + (1 - w) * t * (q - p)
    return loss / len(classes), slope / len(classes)


@pytest.mark.parametrize(("t", "w"), [(1.0, 0.0), (4.0, 0.1), (0.5, 0.9), (20.0, 1.0)])
def test_loss_and_gradient_are_the_formula(t: float, w: float) -> None:
    rng = np.random.default_rng(0)
    z, v, classes = rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3, [0, 1, 2, 3, 4, 2]
    logits = torch.tensor(z, requires_grad=True)
    soft = torch.tensor(np.stack([softmax(row / t) for row in v]))
    loss = distillation_loss(logits, soft, torch.eye(5).double()[classes], temperature=t, hard_weight=w)
    expected, slope = by_hand(z, v, classes, t, w)
    (grad,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert np.allclose(grad.numpy(), slope, rtol=1e-11, atol=1e-14)


def test_without_the_scale_it_is_the_divergence_of_the_authors_of_rded() -> None:
    """Their loss is torch's KL divergence at the temperature, whose gradient is that of the unscaled cross-entropy."""
    rng, t = np.random.default_rng(1), 20.0
    z, v = torch.tensor(rng.normal(size=(6, 5)) * 3, requires_grad=True), torch.tensor(rng.normal(size=(6, 5)) * 3)
    soft = (v / t).softmax(1)
    loss = distillation_loss(z, soft, torch.eye(5).double()[[0] * 6], temperature=t, hard_weight=0.0, scaled=False)
    (ours,) = torch.autograd.grad(loss, z)
    (theirs,) = torch.autograd.grad(torch.nn.KLDivLoss(reduction="batchmean")((z / t).log_softmax(1), soft), z)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    scaled = distillation_loss(z, soft, torch.eye(5).double()[[0] * 6], temperature=t, hard_weight=0.0)
    assert float(scaled.detach()) == pytest.approx(t * t * float(loss.detach()), rel=1e-12)


def test_given_probabilities_are_tempered_as_their_logits_would_be() -> None:
    logits = 5 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(tempered(logits.softmax(1), 4.0), (logits / 4).softmax(1), rtol=1e-12)
    sure = tempered(torch.tensor([[1.0, 0.0, 0.0]]), 4.0)
    assert torch.equal(sure, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path)


def protocol(**options: object) -> Protocol:
    small = {"teacher": "convnet-d2-w8", "teacher_epochs": 2}
    return Protocol(
        name="kd", trainer="distill", labels="soft", augment="flip", options={**SHORT, **small, **options}, students=3
    )


def hard_set(problem: Problem) -> SyntheticSet:
    return SyntheticSet(real_images(problem, problem.rng.fold("set")), problem.class_labels(), pixels="standard")


def soft_set(problem: Problem) -> SyntheticSet:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    return replace(hard_set(problem), labels=rows, label_kind="logit")


def trainer(problem: Problem, synthetic: SyntheticSet, **options: object) -> DistillTrainer:
    return DistillTrainer(synthetic, protocol(**options), problem, students=3)


def test_the_teacher_labels_what_the_student_sees(problem: Problem) -> None:
    made = trainer(problem, hard_set(problem)).plan
    assert not made.static
    x = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = made.targets(x, torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]]), problem.rng)
    weights = problem.artifacts.get(
        TrainedNetwork.of(problem, epochs=2, lr=DistillOptions().teacher_lr, seed=0), problem
    )
    for s in range(2):
        logits = problem.backbone(weights, x[s], train=False)[0]
        assert torch.allclose(targets[s, :, :3], (logits / TEMPERATURE).softmax(1), atol=1e-6)
    assert torch.equal(targets[..., 3:].argmax(-1), torch.tensor([[0, 0, 1, 1], [2, 2, 0, 0]]))


def test_given_labels_are_those_of_the_set(problem: Problem) -> None:
    synthetic = soft_set(problem)
    made = trainer(problem, synthetic, targets="given").plan
    targets = made.targets(torch.zeros(1, 6, 3, 8, 8), torch.arange(6)[None], problem.rng)[0]
    assert torch.allclose(targets[:, :3], (synthetic.labels / TEMPERATURE).softmax(1), atol=1e-6)
    assert torch.equal(targets[:, 3:].argmax(1), synthetic.labels.argmax(1))


def test_fixed_labels_are_the_teachers_of_each_image_as_it_is(problem: Problem) -> None:
    synthetic = hard_set(problem)
    made = trainer(problem, synthetic, targets="fixed").plan
    assert made.static
    weights = problem.artifacts.get(
        TrainedNetwork.of(problem, epochs=2, lr=DistillOptions().teacher_lr, seed=0), problem
    )
    logits = problem.backbone(weights, synthetic.images, train=False)[0]
    x, rows = torch.zeros(1, 6, 3, 8, 8), torch.arange(6)[None]  # whatever the student sees of them
    targets = made.targets(x, rows, problem.rng)[0]
    assert torch.allclose(targets[:, :3], (logits / TEMPERATURE).softmax(1), atol=1e-6)
    assert torch.equal(targets[:, 3:].argmax(1), synthetic.labels)
    # The teacher's labels stand in place of those of the set.
    soft = trainer(problem, soft_set(problem), targets="fixed").plan
    assert torch.equal(soft.labels[:, :3], made.labels[:, :3])


def test_fixed_labels_of_raw_pixels_are_those_in_the_pixel_space(problem: Problem) -> None:
    rows = torch.arange(0, 12, 2)
    raw = SyntheticSet(problem.train.images[rows].clone(), problem.train.labels[rows].clone(), pixels="standard")
    made = trainer(problem, raw, targets="fixed").plan
    weights = problem.artifacts.get(
        TrainedNetwork.of(problem, epochs=2, lr=DistillOptions().teacher_lr, seed=0), problem
    )
    logits = problem.backbone(weights, problem.real.take(rows), train=False)[0]
    assert torch.allclose(made.labels[:, :3], (logits / TEMPERATURE).softmax(1), atol=1e-6)


def test_fixed_labels_of_tiles_are_one_for_each_tile(problem: Problem) -> None:
    tiles = replace(hard_set(problem), decode="tiles(factor=2)")
    chosen = trainer(problem, tiles, targets="fixed")
    full, classes = decode("tiles(factor=2)", tiles.images, tiles.labels)
    plain = trainer(problem, replace(tiles, images=full, labels=classes, decode="none"), targets="fixed")
    assert torch.equal(chosen.plan.labels, plain.plan.labels)
    assert torch.equal(chosen.plan.images, plain.plan.images)
    assert chosen.extra_bytes == 4 * 24 * 3  # the labels, and no teacher


@pytest.mark.parametrize("targets", ["teacher", "given", "fixed"])
def test_students_side_by_side_are_those_trained_one_by_one(problem: Problem, targets: str) -> None:
    made = trainer(problem, soft_set(problem), targets=targets).plan
    net = problem.backbone
    fresh = Variables.stack([net.init(problem.rng.fold("student", k), problem.device) for k in range(3)])
    alone = train_students(net, fresh, made, [0, 1, 2], together=1)
    together = train_students(net, fresh, made, [0, 1, 2], together=3)
    for name, value in alone.params.items():
        torch.testing.assert_close(together.params[name], value, atol=1e-5, rtol=1e-4)


def test_one_step_moves_by_the_gradient_of_the_formula(problem: Problem) -> None:
    """The whole step in float64, from the plan's own draws and numpy's loss: w <- w - lr (g + decay w)."""
    chosen = trainer(problem, soft_set(problem), targets="given", steps=1, batch=6, momentum=0.0)
    made, net = chosen.plan, problem.backbone
    fresh = net.init(problem.rng.fold("student"), problem.device)
    (step,) = [step for block in made.blocks([0]) for step in block.steps()]
    x = step.transform(made.take(step.indices))[0].double()
    params = {name: value.double().requires_grad_() for name, value in fresh.params.items()}
    logits: Tensor = net(Variables(params, fresh.buffers), x, train=True)[0]
    v = chosen.synthetic.labels[step.indices[0]].double().numpy()
    _, slope = by_hand(logits.detach().numpy(), v, v.argmax(1).tolist(), TEMPERATURE, WEIGHT)
    grads = torch.autograd.grad(logits, list(params.values()), torch.tensor(slope))
    trained = train_students(net, Variables.stack([fresh]), made, [0]).copy(0)
    for (name, value), grad in zip(params.items(), grads, strict=True):
        moved = value - step.lr * (grad + made.options.weight_decay * value)
        torch.testing.assert_close(trained.params[name].double(), moved.detach(), atol=2e-6, rtol=1e-4)


def test_without_a_soft_part_it_is_plain_training(problem: Problem) -> None:
    synthetic = hard_set(problem)
    net = problem.backbone
    fresh = Variables.stack([net.init(problem.rng.fold("student"), problem.device)])
    made = trainer(problem, synthetic, hard_weight=1.0).plan
    same = Protocol(name="plain", augment="flip", options=SGDOptions(epochs=None, steps=4, batch=4))
    plain = plan(synthetic, same, problem, made.rng)
    for name, value in train_students(net, fresh, plain, [0]).params.items():
        torch.testing.assert_close(train_students(net, fresh, made, [0]).params[name], value, atol=1e-6, rtol=1e-5)


def test_a_teacher_is_stored_and_counted_and_given_labels_need_none(problem: Problem) -> None:
    assert trainer(problem, hard_set(problem)).extra_bytes == 4 * problem.backbone.parameters
    assert trainer(problem, soft_set(problem), targets="given").extra_bytes == 0


def test_hard_labels_never_pass_for_given_soft_ones(problem: Problem) -> None:
    with pytest.raises(ConfigError, match="trains on the soft labels of a set, and this one has classes"):
        assert trainer(problem, hard_set(problem), targets="given").steps
    targets = replace(soft_set(problem), label_kind="regression")
    with pytest.raises(ConfigError, match="which are none"):
        assert trainer(problem, targets, targets="given").steps


def test_no_hard_protocol_shares_a_recipe_with_a_soft_one() -> None:
    hard = {p.digest for p in PROTOCOLS.values() if p.labels == "hard"}
    soft = {p.digest for p in PROTOCOLS.values() if p.labels == "soft"}
    assert not hard & soft
    assert {PROTOCOLS["distill@1"].digest, PROTOCOLS["distill-given@1"].digest} < soft


@pytest.mark.parametrize("targets", ["teacher", "fixed"])
def test_counting_steps_trains_no_teacher(problem: Problem, targets: str) -> None:
    assert trainer(problem, hard_set(problem), targets=targets).steps == 4
    assert not problem.artifacts.used


def test_a_mixing_protocol_without_a_teacher_is_refused(problem: Problem) -> None:
    mixing = protocol(targets="fixed").model_copy(update={"augment": "mixing"})
    with pytest.raises(ConfigError, match="mixes images, and only a teacher can label what comes of that"):
        assert DistillTrainer(hard_set(problem), mixing, problem, students=3).steps


def test_tracks_say_whose_labels_students_see() -> None:
    tracks = {name: p.track for name, p in PROTOCOLS.items()}
    assert tracks["dsa@1"] == tracks["hard-truths-hl@1"] == "hard"
    assert tracks["dsa-soft@1"] == tracks["soft-labels@1"] == tracks["hard-truths-sl@1"] == "soft"
    assert {tracks[name] for name in ("distill@1", "rded@1", "rded@2", "rd3@1", "rd3@2")} == {"teacher"}
    assert tracks["distill-given@1"] == "soft"
