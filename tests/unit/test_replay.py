"""The trainer `replay`: a student takes exactly the steps that the set has stored."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, Recipe, Rng, SyntheticSet, Variables
from ddbench.backbones import build
from ddbench.data.toy import toy
from ddbench.errors import ConfigError
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.replay import ReplayTrainer
from ddbench.initial import real_images
from ddbench.plugins import GROUPS, load_object
from ddbench.runs import finishing, runner
from ddbench.runs.evaluating import read_curve
from ddbench.runs.resolving import Resolution, RunSpec
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, evaluate_run, run
from ddbench.synthetic import load, save
from ddbench.testing.contract import problem_for_checks
from ddbench.training.students import train_students

DD = PROTOCOLS["dd@1"]
LRS = (0.3, 0.1, 0.5, 0.2)
SCHEDULE = [[0, 2, 4], [1, 3, 5], [0, 2, 4], [4, 4, 1]]


def made(problem: Problem, start: dict[str, Tensor] | None = None, **changes: Any) -> SyntheticSet:
    images = real_images(problem, problem.rng.fold("set"))
    recipe = Recipe(lr=torch.tensor(LRS), schedule=torch.tensor(SCHEDULE))
    return SyntheticSet(
        images, problem.class_labels(), replace(recipe, **changes), pixels="standard", start=dict(start or {})
    )


def trained(trainer: ReplayTrainer, students: list[int]) -> Variables:
    """What the trainer's students end as."""
    predict = trainer.train(students, lambda _: None)
    return predict.args[1]  # type: ignore[attr-defined]


def by_hand(problem: Problem, synthetic: SyntheticSet, start: dict[str, Tensor]) -> dict[str, Tensor]:
    params = {name: value.double() for name, value in start.items()}
    for rows, lr in zip(SCHEDULE, LRS, strict=True):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        x = torch.stack([synthetic.images[i] for i in rows]).double()
        y = torch.stack([synthetic.labels[i] for i in rows])
        F.cross_entropy(problem.backbone(Variables(params), x)[0], y).backward()
        params = {name: value - lr * value.grad for name, value in params.items() if value.grad is not None}
    return params


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path)


def test_students_take_the_stored_steps_in_their_order(problem: Problem) -> None:
    synthetic = made(problem)
    trainer = ReplayTrainer(synthetic, DD, problem)
    found = trained(trainer, [0, 3])
    for place, student in enumerate((0, 3)):
        start = problem.backbone.init(trainer.rng.fold("student", student, "network")).params
        expected = by_hand(problem, synthetic, start)
        assert all(torch.allclose(found.params[k][place].double(), v, atol=1e-5) for k, v in expected.items())
    backwards = replace(synthetic.recipe, schedule=torch.tensor(SCHEDULE[::-1]))
    other = trained(ReplayTrainer(replace(synthetic, recipe=backwards), DD, problem), [0])
    assert (other.params["logits.weight"][0] - found.params["logits.weight"][0]).abs().max() > 1e-3


@pytest.mark.parametrize("together", [1, 2, 3])
def test_the_static_program_takes_the_steps_of_the_plain_loop(problem: Problem, together: int) -> None:
    schedule, net, students = ReplayTrainer(made(problem), DD, problem).plan, problem.backbone, [0, 1, 2]
    assert schedule.static
    assert (schedule.steps, schedule.batch) == (4, 3)
    fresh = Variables.stack([net.init(Rng(k)) for k in students])
    plain = train_students(net, fresh, schedule, students, together=1, static=False)
    static = train_students(net, fresh, schedule, students, together=together, static=True)
    stacked = train_students(net, fresh, schedule, students, together=together, static=False)
    for name, value in plain.params.items():
        assert torch.allclose(static.params[name], value, atol=2e-6)
        assert torch.allclose(stacked.params[name], value, atol=2e-6)


def test_one_step_size_serves_all_steps(problem: Problem) -> None:
    one = trained(ReplayTrainer(made(problem, lr=torch.tensor(0.1)), DD, problem), [0])
    four = trained(ReplayTrainer(made(problem, lr=torch.full((4,), 0.1)), DD, problem), [0])
    assert all(torch.equal(one.params[name], value) for name, value in four.params.items())


def test_random_students_differ_and_are_all_counted(problem: Problem) -> None:
    scores = list(evaluate(made(problem), DD, problem, SealedTest(toy(3, (3, 8, 8)).test), students=range(6)))
    assert [score.student for score in scores] == list(range(6))
    assert len({score.accuracy for score in scores}) > 1


def test_a_stored_start_is_where_the_one_student_starts(problem: Problem, tmp_path: Path) -> None:
    start = problem.backbone.init(Rng(7)).params
    synthetic = made(problem, start)
    save(synthetic, tmp_path / "set.safetensors")
    synthetic = load(tmp_path / "set.safetensors")
    found = trained(ReplayTrainer(synthetic, DD, problem), [0, 1])
    expected = by_hand(problem, synthetic, start)
    for student in (0, 1):
        assert all(torch.allclose(found.params[k][student].double(), v, atol=1e-5) for k, v in expected.items())
    scores = list(evaluate(synthetic, DD, problem, SealedTest(toy(3, (3, 8, 8)).test)))
    assert [score.student for score in scores] == [0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": None}, "has no schedule. Use"),
        ({"lr": None}, "has no step sizes. Use"),
        ({"loss": "mse"}, "asks for sgd on mse"),
        ({"optimizer": "adam"}, "asks for adam on cross_entropy"),
    ],
)
def test_a_set_that_cannot_be_replayed_is_refused(problem: Problem, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"protocol dd@1 .*{words}"):
        trained(ReplayTrainer(made(problem, **changes), DD, problem), [0])


def test_a_start_of_another_network_is_refused(problem: Problem) -> None:
    start = build("mlp", problem.shape, 3).init(Rng(0)).params
    with pytest.raises(ConfigError, match="that is no convnet-d2-w8"):
        trained(ReplayTrainer(made(problem, start), DD, problem), [0])


def asked(root: Path, initial_network: str, students: int) -> Resolution:
    method_class = load_object(GROUPS["method"], "dd")
    dataset = toy()
    method = method_class(method_class.Config(iterations=2, passes=1, initial_network=initial_network))
    spec = RunSpec(
        method="dd",
        provided_by="tests 1.0",
        method_sha256=None,
        dataset="toy",
        data_fingerprint=dataset.fingerprint,
        ipc=2,
        backbone="mlp",
        pixels="standard",
        seed=0,
        precision="fp32",
        config=method.config.model_dump(mode="json"),
        protocols=("dd@1",),
        students=students,
        sources={"config.iterations": "default"},
    )
    return Resolution(spec, method, dataset, (DD,))


@pytest.mark.parametrize(("initial_network", "count"), [("random", 3), ("fixed", 1)])
def test_a_record_counts_a_student_that_cannot_differ_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial_network: str, count: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(finishing, "preview", lambda *arguments: b"a picture")
    options = RunOptions(
        root=tmp_path, data_root=tmp_path / "none", device=torch.device("cpu"), snapshots=2, curve=True
    )
    resolution = asked(tmp_path, initial_network, students=3)
    record = run(resolution, options)
    (evaluation,) = record.evaluations
    assert (evaluation.protocol, evaluation.backbone, evaluation.failed) == ("dd@1", "mlp", "")
    assert len(evaluation.accuracy) == count
    assert evaluation.alike is (initial_network == "fixed")
    folder = RunDir.at(tmp_path / resolution.spec.folder)
    points = read_curve(folder.curve(DD, "mlp")).points
    assert [len(point.accuracy) for point in points] == [count] * len(points)
    assert [(c.protocol, c.digest, c.backbone, c.points) for c in record.curves] == [("dd@1", DD.digest, "mlp", points)]
    # What is complete is read, and not done again.
    written = folder.record.stat().st_mtime_ns
    assert run(resolution, options) == record
    assert folder.record.stat().st_mtime_ns == written
    # The start is stored, and is part of what the set costs.
    synthetic = load(folder.synthetic)
    weights = 4 * build("mlp", (1, 8, 8), 3).parameters if initial_network == "fixed" else 0
    assert (
        synthetic.nbytes
        == sum(
            t.numel() * t.element_size()
            for t in (synthetic.images, synthetic.labels, synthetic.recipe.lr, synthetic.recipe.schedule)
            if t is not None
        )
        + weights
    )
    assert json.loads(folder.record.read_text())["synthetic"]["bytes"] == synthetic.nbytes


def test_more_students_of_one_start_stay_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(finishing, "preview", lambda *arguments: b"a picture")
    monkeypatch.setattr(runner, "load", lambda name, root: toy())
    options = RunOptions(root=tmp_path, data_root=tmp_path / "none", device=torch.device("cpu"), snapshots=0)
    resolution = asked(tmp_path, "fixed", students=1)
    before = run(resolution, options)
    after = evaluate_run(tmp_path / resolution.spec.folder, [DD], [], 5, options)
    assert after.evaluations == before.evaluations
