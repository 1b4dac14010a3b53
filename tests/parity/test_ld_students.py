"""Students of ld@1, ld-ridge@1 and ld-ridge@2 against plain float64 loops, written down from the description."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, Recipe, Rng, SyntheticSet
from ddbench.backbones.names import build
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.trainer import Trainer, trainer_of
from ddbench.testing.contract import problem_for_checks
from ddbench.training.plan import TrainingPlan

Tensors = dict[str, Tensor]
STEPS, BATCH, STUDENTS = 12, 4, (3, 0)


def embed(p: Tensors, x: Tensor) -> Tensor:
    """An MLP of two hidden layers."""
    x = (x.flatten(1) @ p["layer1.1.weight"].T + p["layer1.1.bias"]).clamp(min=0)
    return (x @ p["embed.0.weight"].T + p["embed.0.bias"]).clamp(min=0)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -(y * (z - z.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


class Adam:
    """Kingma and Ba, ICLR 2015, algorithm 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t, self.moments = lr, 0, {}  # type: ignore[var-annotated]

    def __call__(self, values: Tensors, grads: Tensors) -> Tensors:
        self.t += 1
        moved = dict(values)
        for name, grad in grads.items():
            m, v = self.moments.get(name, (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            self.moments[name] = m, v
            moved[name] = values[name] - self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        return moved


def trainer_for(name: str, folder: Path, **parts: Any) -> Trainer:
    problem = replace(problem_for_checks(folder, ipc=3), backbone=build("mlp", (3, 8, 8), 3))
    return trainer_of(set_of(problem, **parts), PROTOCOLS[name], problem, students=len(STUDENTS))


def set_of(problem: Problem, **parts: Any) -> SyntheticSet:
    rows = problem.real.class_indices(problem.ipc, Rng(7)).flatten()
    labels = torch.rand(9, 3, generator=Rng(8).torch())
    known = {
        "images": problem.train.images[rows],
        "labels": labels / labels.sum(dim=1, keepdim=True),
        "label_kind": "probability",
        "recipe": Recipe(optimizer="adam", lr=torch.tensor(1e-3), steps=STEPS, batch=BATCH),
    }
    return SyntheticSet(**known | parts)


def drawn(training: TrainingPlan, student: int) -> list[Tensor]:
    steps = [step for block in training.blocks([student]) for step in block.steps()]
    assert {step.lr for step in steps} == {training.lr(0)}
    return [step.indices[0] for step in steps]


def by_hand(trainer: Trainer, student: int, images: Tensor, labels: Tensor, rows: list[Tensor]) -> Tensors:
    rng = trainer.rng.fold("student", student, "network")
    p, adam = trainer.problem.backbone.init(rng).to(torch.float64).params, Adam(1e-3)
    for chosen in rows:
        leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
        z = embed(leaves, images[chosen]) @ leaves["logits.weight"].T + leaves["logits.bias"]
        grads = torch.autograd.grad(cross_entropy(z, labels[chosen]), list(leaves.values()))
        p = adam(p, dict(zip(p, grads, strict=True)))
    return p


def ridge_by_hand(
    trainer: Trainer, student: int, images: Tensor, labels: Tensor, rows: list[Tensor], *, constant: bool
) -> tuple[Tensors, Tensor]:
    rng = trainer.rng.fold("student", student, "network")
    p, adam, adam_scale = trainer.problem.backbone.init(rng).to(torch.float64).params, Adam(1e-3), Adam(0.01)
    names = [name for name in p if not name.startswith("logits")]
    head, scale = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for chosen in rows:
        leaves = {name: p[name].clone().requires_grad_() for name in names}
        factor = scale.clone().requires_grad_()
        features = ones(embed(leaves, images[chosen]))
        z = features.detach() if constant else features
        local = z.T @ torch.linalg.inv(z @ z.T + torch.eye(len(z), dtype=torch.float64)) @ labels[chosen]
        head = 0.99 * head.detach() + 0.01 * local
        loss = cross_entropy(features @ (factor * head), labels[chosen])
        *grads, grad = torch.autograd.grad(loss, [*leaves.values(), factor])
        p = adam(p, dict(zip(names, grads, strict=True)))
        scale = adam_scale({"s": scale}, {"s": grad})["s"]
    return p, head.detach()


def in_double(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor]:
    """Base images, their labels, and images to be told apart."""
    synthetic, problem = trainer.synthetic, trainer.problem
    x, labels = problem.pixels.forward(synthetic.images).double(), synthetic.labels.double()
    if not synthetic.soft:
        labels = F.one_hot(synthetic.labels, 3).double()
    return x, labels, problem.real.take(torch.arange(20))


@pytest.mark.parametrize("hard", [False, True])
def test_students_of_ld_take_adam_steps_on_random_subsets(tmp_path: Path, hard: bool) -> None:
    parts = {"labels": torch.arange(3).repeat_interleave(3), "label_kind": "class"} if hard else {}
    trainer = trainer_for("ld@1", tmp_path, **parts)
    images, labels, unseen = in_double(trainer)
    ticks: list[int] = []
    scores = trainer.train(STUDENTS, ticks.append)(unseen)
    assert sum(ticks) == len(STUDENTS) * STEPS == len(STUDENTS) * trainer.steps
    for k, student in enumerate(STUDENTS):
        p = by_hand(
            trainer,
            student,
            images,
            labels,
            drawn(plan(trainer.synthetic, trainer.protocol, trainer.problem, trainer.rng), student),
        )
        expected = embed(p, unseen.double()) @ p["logits.weight"].T + p["logits.bias"]
        assert torch.allclose(scores[k].double(), expected, atol=1e-4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("hard", [False, True])
def test_students_of_ld_ridge_have_a_running_head_that_is_solved_for(tmp_path: Path, hard: bool, version: int) -> None:
    parts = {"labels": torch.arange(3).repeat_interleave(3), "label_kind": "class"} if hard else {}
    trainer = trainer_for(f"ld-ridge@{version}", tmp_path, **parts)
    images, labels, unseen = in_double(trainer)
    ticks: list[int] = []
    scores = trainer.train(STUDENTS, ticks.append)(unseen)
    assert sum(ticks) == len(STUDENTS) * STEPS == len(STUDENTS) * trainer.steps
    plain = PROTOCOLS["ld@1"]  # of the same recipe, as far as it says which images make a step
    for k, student in enumerate(STUDENTS):
        rows = drawn(plan(trainer.synthetic, plain, trainer.problem, trainer.rng), student)
        p, head = ridge_by_hand(trainer, student, images, labels, rows, constant=version == 1)
        assert torch.allclose(scores[k].double(), ones(embed(p, unseen.double())) @ head, atol=1e-5)
        other, wrong = ridge_by_hand(trainer, student, images, labels, rows, constant=version == 2)
        assert not torch.allclose(scores[k].double(), ones(embed(other, unseen.double())) @ wrong, atol=1e-5)
