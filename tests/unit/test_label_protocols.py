"""What judging learned labels needed: subsets, numbers that the set brings along, the set's own network."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench import Problem, Protocol, Recipe, Rng, SyntheticSet
from ddbench.backbones.names import build
from ddbench.errors import ConfigError
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.trainer import trainer_of
from ddbench.runs.evaluating import cells
from ddbench.testing.contract import problem_for_checks
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Step, TrainingPlan

RNG = Rng(0, ("subsets",))


def plan_of(n: int, **options: Any) -> TrainingPlan:
    known = SGDOptions(epochs=None, sampling="subset", schedule="constant", **options)
    return TrainingPlan(torch.zeros(n, 1, 4, 4), torch.arange(n), lambda x: x, known, "none", "none", 1, RNG)


def steps_of(training: TrainingPlan, student: int = 0) -> list[Step]:
    return [step for block in training.blocks([student]) for step in block.steps()]


def test_every_step_draws_a_subset_without_repeats() -> None:
    training = plan_of(10, steps=40, batch=4)
    steps = steps_of(training)
    assert training.steps == len(steps) == 40
    assert {tuple(step.indices.shape) for step in steps} == {(1, 4)}
    assert all(len(step.indices.unique()) == 4 for step in steps)
    # In passes over all images, each would come once in any two and a half steps.
    assert any(set(a.indices[0].tolist()) & set(b.indices[0].tolist()) for a, b in itertools.pairwise(steps))
    counts = torch.bincount(torch.cat([step.indices[0] for step in steps]), minlength=10)
    assert counts.min() > 0
    assert len(counts.unique()) > 1


def test_a_subset_of_all_images_or_more_is_all_of_them() -> None:
    for batch in (10, 99):
        steps = steps_of(plan_of(10, steps=5, batch=batch))
        assert [sorted(step.indices[0].tolist()) for step in steps] == [list(range(10))] * 5
        assert plan_of(10, steps=5, batch=batch).batch == 10


def test_subsets_are_drawn_in_blocks_and_alike_in_any_company() -> None:
    training = plan_of(30_000, steps=7, batch=100)
    blocks = list(training.blocks([4, 0]))
    assert [(block.first, len(block)) for block in blocks] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    together = torch.cat([block.indices[1] for block in blocks])
    assert torch.equal(together, torch.cat([step.indices for step in steps_of(training)]))


def set_of(problem: Problem, **recipe: Any) -> SyntheticSet:
    return SyntheticSet(torch.zeros(6, *problem.shape), problem.class_labels(), recipe=Recipe(**recipe))


def test_length_and_batch_are_those_of_the_set(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    training = plan(set_of(problem, steps=123, batch=4), PROTOCOLS["ld@1"], problem, RNG)
    assert (training.steps, training.batch, training.lr(0)) == (123, 4, 1e-3)
    # A protocol with numbers of its own does not ask.
    assert plan(set_of(problem, steps=123, batch=4), PROTOCOLS["quick@1"], problem, RNG).steps == 300


@pytest.mark.parametrize("name", ["ld@1", "ld-ridge@1", "ld-ridge@2"])
@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({}, r"sets neither epochs nor steps and takes the set's own number, and this set has none\. Use a protocol"),
        ({"steps": 5}, r"sets no batch size and takes the set's own number, and this set has none"),
        ({"steps": 0, "batch": 5}, r"the set asks for 0 as its recipe's steps; no student can train with it"),
        ({"steps": 5, "batch": -1}, r"the set asks for -1 as its recipe's batch"),
    ],
)
def test_a_set_without_length_or_batch_is_refused(tmp_path: Path, name: str, recipe: dict[str, Any], why: str) -> None:
    problem = problem_for_checks(tmp_path)
    trainer = trainer_of(set_of(problem, **recipe), PROTOCOLS[name], problem)
    with pytest.raises(ConfigError, match=why):
        assert trainer.steps


def test_a_step_size_of_adam_is_not_taken_for_one_of_sgd(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    learned = set_of(problem, lr=torch.tensor(1e-3), optimizer="adam")
    with pytest.raises(ConfigError, match=r"own step size is one of adam, and protocol mtt@1 trains with sgd\. Use"):
        plan(learned, PROTOCOLS["mtt@1"], problem, RNG)
    adam = Protocol(name="own-adam", options=SGDOptions(lr=None, optimizer="adam"))
    assert plan(learned, adam, problem, RNG).lr(0) == pytest.approx(1e-3)


def test_soft_labels_and_a_step_size_that_were_learned_together_are_both_used(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(6, *problem.shape)
    learned = SyntheticSet(images, logits, Recipe(lr=torch.tensor(0.02)), label_kind="logit")
    training = plan(learned, PROTOCOLS["datm@1"], problem, RNG)
    assert torch.equal(training.labels, logits.softmax(dim=1))
    assert training.lr(0) == pytest.approx(0.02)
    assert (training.options.batch, training.options.align_corners, training.passes) == (128, True, 1001)
    # mtt@1 trains on the classes of the same set, which is another recipe and another column.
    assert torch.equal(plan(learned, PROTOCOLS["mtt@1"], problem, RNG).labels, logits.argmax(dim=1))
    with pytest.raises(
        ConfigError, match=r"protocol datm@1 trains with the set's own step size, and this set has none"
    ):
        plan(replace(learned, recipe=Recipe()), PROTOCOLS["datm@1"], problem, RNG)


def test_a_head_is_not_solved_for_on_embeddings_that_depend_on_the_batch(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    trainer = trainer_of(set_of(problem, steps=5, batch=4), PROTOCOLS["ld-ridge@2"], problem)
    with pytest.raises(ConfigError, match=r"ld-ridge@2 solves for a head.* batch norm of convnet-d2-w8-bn"):
        trainer.train([0], lambda _: None)


def test_the_sets_own_network_is_its_judge_unless_others_are_named() -> None:
    protocols, shape = [PROTOCOLS["ld@1"], PROTOCOLS["dsa@1"]], (3, 32, 32)
    asked = cells(protocols, (), None, shape, own="alexcifarnet")
    assert [(cell.protocol.id, cell.backbone, cell.students) for cell in asked] == [
        ("ld@1", "alexcifarnet", 20),
        ("dsa@1", "convnet-d3", 5),
    ]
    named = cells(protocols, ("lenet",), 3, shape, own="alexcifarnet")
    assert [(cell.backbone, cell.students) for cell in named] == [("lenet", 3)] * 2
