"""Fresh students are trained, and only then is the test data read: once by each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench import Problem, Protocol, SyntheticSet, Variables
from ddbench.data.tensors import DatasetTensors
from ddbench.data.toy import toy
from ddbench.engine.precision import Precision
from ddbench.errors import ConfigError, DivergedError, PluginError
from ddbench.evaluation import evaluate as module
from ddbench.evaluation.evaluate import SealedTest, evaluate, scores
from ddbench.evaluation.plan import plan
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor, Trainer, trainer_of
from ddbench.initial import real_images
from ddbench.testing.contract import problem_for_checks
from ddbench.training.options import SGDOptions
from ddbench.training.students import train_students

CPU = torch.device("cpu")
STEPS = 4
SHORT = Protocol(name="short", augment="none", students=3, options=SGDOptions(epochs=None, steps=STEPS, batch=4))


class Test:
    """Test data that knows how often it was loaded, and refuses while it is locked."""

    __test__ = False

    def __init__(self, data: DatasetTensors) -> None:
        self.data, self.loads, self.locked = data, 0, False

    def load(self) -> DatasetTensors:
        assert not self.locked, "the test data was read before training was over"
        self.loads += 1
        return self.data


def toy_test() -> Test:
    return Test(toy(3, (3, 8, 8)).test.load())


def set_for(problem: Problem, seed: int = 0) -> SyntheticSet:
    return SyntheticSet(real_images(problem, problem.rng.fold("set", seed)), problem.class_labels())


def guesses(*classes: int) -> Predictor:
    """A predictor of students that each say one class to everything."""

    def predict(images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(classes), 3)[:, None].expand(-1, len(images), -1).float()

    return predict


def test_a_student_reads_once_and_is_refused_a_second_time(tmp_path: Path) -> None:
    problem, source = problem_for_checks(tmp_path), toy_test()
    sealed = SealedTest(source)
    assert sealed.measure(["a", "b"], guesses(0, 1), problem.pixels, CPU)[0] == pytest.approx([1 / 3, 1 / 3])
    assert sealed.reads == {"a": 1, "b": 1}
    with pytest.raises(
        RuntimeError, match=r"student b has read the test data already; it is read once, after training"
    ):
        sealed.measure(["c", "b"], guesses(0, 1), problem.pixels, CPU)
    assert sealed.measure(["d"], guesses(2), problem.pixels, CPU)[0] == pytest.approx([1 / 3])
    assert source.loads == 1


def test_accuracy_is_the_share_of_right_answers_over_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TESTED_IMAGES", 17)
    problem = problem_for_checks(tmp_path)
    data = toy_test().data.subset(torch.tensor([0, 1, 2, 3, 40, 41, 80]))
    whole, _ = SealedTest(Test(data)).measure(["a", "b", "c"], guesses(0, 1, 2), problem.pixels, CPU)
    assert whole == [4 / 7, 2 / 7, 1 / 7]
    sizes: list[int] = []

    def watch(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return guesses(0)(images)

    calls: list[int] = []
    SealedTest(toy_test()).measure(["a"], watch, problem.pixels, CPU, between=lambda: calls.append(len(sizes)))
    assert sizes == [17] * 7 + [1]
    assert calls == list(range(1, 9))


def test_fewer_images_are_tested_together_where_they_are_large() -> None:
    assert [module.tested_together((3, side, side)) for side in (8, 28, 32, 64, 128)] == [1000, 1000, 1000, 250, 62]
    assert module.tested_together((3, 4096, 4096)) == 1


def test_students_see_test_images_in_the_pixel_space(tmp_path: Path) -> None:
    problem, source = problem_for_checks(tmp_path), toy_test()
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images)
        return guesses(0)(images)

    SealedTest(source).measure(["a"], watch, problem.pixels, CPU)
    assert torch.equal(torch.cat(seen), problem.pixels.forward(source.data.images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_no_accuracy(tmp_path: Path, value: float) -> None:
    problem = problem_for_checks(tmp_path)

    def predict(images: Tensor) -> Tensor:
        scores = guesses(0, 1)(images).clone()
        scores[1, 0, 2] = value
        return scores

    with pytest.raises(DivergedError, match=r"^b: the student's outputs are not finite after training"):
        SealedTest(toy_test()).measure(["a", "b"], predict, problem.pixels, CPU)


def test_test_data_is_read_only_after_training(tmp_path: Path) -> None:
    problem, source = problem_for_checks(tmp_path), toy_test()
    sealed = SealedTest(source)
    events: list[str] = []
    source.locked = True

    def tick(steps: int) -> None:
        if not steps:  # testing
            return
        events.append(f"step with {len(sealed.reads)} read")
        source.locked = len(events) < STEPS

    found = list(evaluate(set_for(problem), SHORT, problem, sealed, progress=tick))
    assert [score.student for score in found] == [0, 1, 2]
    # Student k takes all its steps while k others have read; then it reads too.
    assert events == [f"step with {k} read" for k in range(3) for _ in range(STEPS)]
    assert source.loads == 1


def test_reading_early_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, source = problem_for_checks(tmp_path), toy_test()
    source.locked = True

    class Cheat(SGDTrainer):
        def train(self, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
            source.load()
            return super().train(students, tick)

    monkeypatch.setattr(module, "trainer_of", Cheat)
    with pytest.raises(AssertionError, match="before training was over"):
        next(evaluate(set_for(problem), SHORT, problem, SealedTest(source)))


def test_every_student_reads_exactly_once(tmp_path: Path) -> None:
    problem, sealed = problem_for_checks(tmp_path), SealedTest(toy_test())
    list(evaluate(set_for(problem), SHORT, problem, sealed))
    assert sealed.reads == {f"short@1/convnet-d2-w8/{k}": 1 for k in range(3)}
    with pytest.raises(RuntimeError, match="has read the test data already"):
        list(evaluate(set_for(problem, 1), SHORT, problem, sealed))
    list(scores(trainer_of(set_for(problem, 1), SHORT, problem), sealed, range(3), label="step 10/"))
    list(evaluate(set_for(problem), SHORT, problem, sealed, students=[3]))
    assert len(sealed.reads) == 7


def test_accuracies_are_those_of_students_trained_by_hand(tmp_path: Path) -> None:
    problem, synthetic, source = problem_for_checks(tmp_path), set_for(problem_for_checks(tmp_path)), toy_test()
    found = list(evaluate(synthetic, SHORT, problem, SealedTest(source)))
    rng = trainer_of(synthetic, SHORT, problem).rng
    for score in found:
        k, net = score.student, problem.backbone
        fresh = Variables.stack([net.init(rng.fold("student", k, "network"))])
        trained = train_students(net, fresh, plan(synthetic, SHORT, problem, rng), [k]).copy(0)
        logits, _ = net(trained, problem.pixels.forward(source.data.images), train=False)
        right = (logits.argmax(dim=1) == source.data.labels).float().mean()
        assert score.accuracy == pytest.approx(float(right))
        assert score.seconds > 0


def accuracies(problem: Problem, synthetic: SyntheticSet, **options: Any) -> list[float]:
    return [score.accuracy for score in evaluate(synthetic, SHORT, problem, SealedTest(toy_test()), **options)]


def test_a_student_is_the_same_whoever_else_is_asked(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = set_for(problem)
    everyone = accuracies(problem, synthetic, students=[0, 1, 2, 3])
    assert accuracies(problem, synthetic) == everyone[:3]
    assert accuracies(problem, synthetic, students=[3, 1]) == [everyone[3], everyone[1]]


def test_students_do_not_depend_on_the_seed_of_the_run(tmp_path: Path) -> None:
    synthetic = set_for(problem_for_checks(tmp_path))
    assert accuracies(problem_for_checks(tmp_path, seed=0), synthetic) == accuracies(
        problem_for_checks(tmp_path, seed=9), synthetic
    )


def test_students_start_from_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, starts = problem_for_checks(tmp_path), []

    def watch(net: Any, fresh: Variables, *rest: Any, **options: Any) -> Variables:
        starts.append(fresh)
        return train_students(net, fresh, *rest, **options)

    monkeypatch.setattr("ddbench.evaluation.sgd.train_students", watch)
    for seed in (0, 1):
        list(evaluate(set_for(problem, seed), SHORT, problem, SealedTest(toy_test())))
    weights = [start.params["logits.weight"] for start in starts]
    for first, second in zip(weights[:3], weights[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_diverged_student_is_named(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    wild = SHORT.model_copy(update={"options": SGDOptions(epochs=None, steps=STEPS, lr=1e30)})
    with pytest.raises(DivergedError, match=r"short@1/convnet-d2-w8/0: the student's outputs are not finite"):
        list(evaluate(set_for(problem), wild, problem, SealedTest(toy_test())))


def test_students_train_in_the_precision_of_the_problem_and_answer_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = replace(problem_for_checks(tmp_path), precision=Precision("bf16"))
    seen: list[bool] = []

    class Watching(SGDTrainer):
        def train(self, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
            seen.append(torch.is_autocast_enabled("cpu"))
            predict = super().train(students, tick)

            def watched(images: Tensor) -> Tensor:
                seen.append(torch.is_autocast_enabled("cpu"))
                return predict(images)

            return watched

    monkeypatch.setattr(module, "trainer_of", Watching)
    next(evaluate(set_for(problem), SHORT, problem, SealedTest(toy_test())))
    assert seen == [True, False]
    assert not torch.is_autocast_enabled("cpu")


def test_a_protocol_names_its_trainer(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    trainer = trainer_of(set_for(problem), SHORT, problem)
    assert isinstance(trainer, SGDTrainer)
    assert isinstance(trainer, Trainer)
    with pytest.raises(PluginError, match="there is no trainer 'replai'"):
        trainer_of(set_for(problem), SHORT.model_copy(update={"trainer": "replai"}), problem)
    wrong = Protocol(name="own", trainer="krr", options=SGDOptions())
    with pytest.raises(ConfigError, match=r"own@1 has the options of another trainer: those of 'krr' are a KRROptions"):
        trainer_of(set_for(problem), wrong, problem)


def test_a_trainer_tells_its_steps_in_advance(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    ticks: list[int] = []
    synthetic = set_for(problem)
    list(evaluate(synthetic, SHORT, problem, SealedTest(toy_test()), progress=ticks.append))
    assert sum(ticks) == 3 * trainer_of(synthetic, SHORT, problem).steps == 3 * STEPS
