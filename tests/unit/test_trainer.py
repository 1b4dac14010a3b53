"""What a trainer is asked, how one of a stranger is found, and what is said where it is none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ddbench.evaluation.trainer as module
from ddbench import Problem, Protocol, SyntheticSet
from ddbench.errors import PluginError
from ddbench.evaluation.evaluate import SealedTest, scores
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor, Progress, Trainer, trainer_class, trainer_of
from ddbench.runs.evaluating import Cell, cells
from ddbench.testing.contract import problem_for_checks
from ddbench.training.options import SGDOptions

SHORT = Protocol(name="short", options=SGDOptions(epochs=None, steps=2, batch=4), students=2)


def set_for(problem: Problem) -> SyntheticSet:
    return SyntheticSet(problem.train.images[:6].clone(), problem.train.labels[:6].clone())


class Earlier(Trainer):
    """As it was written for ddbench 0.1, by somebody who imported Job for type checkers alone."""

    def train(self, job: Any, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:  # type: ignore[override]
        raise NotImplementedError

    def steps(self, job: Any) -> int:  # type: ignore[override]
        return 1

    def alike(self, job: Any) -> bool:
        return True


class EarlierPlan(SGDTrainer):
    def plan(self, job: Any) -> Any:  # type: ignore[override]
        return super().plan


class Silent(Trainer):
    @property
    def steps(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Earlier, r"\(Earlier\) is written for an earlier ddbench, by its alike, steps, train\. Since ddbench 0\.2 a"),
        (EarlierPlan, r"\(EarlierPlan\) is written for an earlier ddbench, by its plan\. Since"),
        (Silent, r"the class Silent does not answer train\. The guide 'Add a trainer' has a complete example"),
        (SGDOptions, r"is a ModelMetaclass, not a subclass of ddbench\.evaluation\.trainer\.Trainer"),
        (len, r"is a builtin_function_or_method, not a subclass"),
    ],
)
def test_what_is_no_trainer_is_refused_with_what_to_do(kind: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_object", lambda group, name: kind)
    with pytest.raises(PluginError, match=rf"trainer 'own'.*{words}"):
        trainer_class("own")
    with pytest.raises(PluginError, match=words):
        Protocol(name="p", trainer="own")


def test_whoever_imports_a_job_is_told_what_changed() -> None:
    with pytest.raises(PluginError, match=r"trainer\.Job is gone\. Since ddbench 0\.2 a trainer is made for one set"):
        exec("from ddbench.evaluation.trainer import Job")
    with pytest.raises(ImportError, match="Jobs"):
        exec("from ddbench.evaluation.trainer import Jobs")


def test_a_trainer_that_trains_no_network_judges_once_whatever_backbones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Once(SGDTrainer):
        uses_backbone = False

    asked = ([SHORT], ("mlp", "convnet"), None, (3, 32, 32))
    assert [cell.backbone for cell in cells(*asked, own="lenet")] == ["mlp", "convnet-d3"]
    monkeypatch.setattr("ddbench.runs.evaluating.trainer_class", lambda name: Once)
    assert cells(*asked, own="lenet") == [Cell(SHORT, "mlp", 2)]


@pytest.mark.parametrize("name", sorted({p.trainer for p in PROTOCOLS.values()}))
def test_presets_have_the_options_of_their_trainers(name: str) -> None:
    """They name them, because the trainer needs torch, which a list of protocols does not wait for."""
    kind = trainer_class(name)
    assert {type(p.options) for p in PROTOCOLS.values() if p.trainer == name} == {kind.Options}
    assert issubclass(kind, Trainer)


def test_one_plan_serves_counting_and_all_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, made = problem_for_checks(tmp_path), []

    def counted(*given: Any, **more: Any) -> Any:
        made.append(plan(*given, **more))
        return made[-1]

    monkeypatch.setattr("ddbench.evaluation.sgd.plan", counted)
    trainer = trainer_of(set_for(problem), SHORT, problem, students=2)
    assert not made, "making a trainer costs nothing"
    assert trainer.steps == 2
    test = SealedTest(type("Test", (), {"load": lambda self: problem.train})())
    assert [score.student for score in scores(trainer, test, range(2))] == [0, 1]
    assert len(made) == 1


def test_progress_of_students_reaches_a_trainer_of_a_stranger(tmp_path: Path) -> None:
    class Guess(Trainer):
        @property
        def steps(self) -> int:
            return 3

        def train(self, students: Sequence[int], progress: Progress) -> Predictor:
            progress(3 * len(students))
            return lambda x: torch.eye(self.problem.classes)[0].expand(len(students), len(x), -1)

    problem, heard = problem_for_checks(tmp_path), list[int]()
    test = SealedTest(type("Test", (), {"load": lambda self: problem.train})())
    found = list(scores(Guess(set_for(problem), SHORT, problem), test, [0, 4], progress=heard.append))
    assert [score.student for score in found] == [0, 4]
    assert [steps for steps in heard if steps] == [3, 3]
    assert found[0].accuracy == pytest.approx(float((problem.train.labels == 0).float().mean()))
