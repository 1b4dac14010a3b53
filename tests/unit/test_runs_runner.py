"""Runs from start to end, interrupted in every way that does not need a second process."""

from __future__ import annotations

import errno
import getpass
import itertools
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, optim

from ddbench import synthetic as sets
from ddbench.data.toy import toy
from ddbench.errors import ArtifactError, ConfigError, DataError, DivergedError, RunError
from ddbench.evaluation.protocol import Protocol
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor
from ddbench.files import write_json
from ddbench.method import Method, MethodConfig, MethodInfo, Metrics, State
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.runs import checkpoint, condensing, finishing, provenance, runner
from ddbench.runs.condensing import snapshot_steps
from ddbench.runs.evaluating import read_curve, read_evaluation
from ddbench.runs.observers import Observer, read_log
from ddbench.runs.record import read_record
from ddbench.runs.resolving import Resolution, RunSpec
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import Interrupted, RunOptions, build_problem, evaluate_run, prepare, run
from ddbench.synthetic import Choice, SyntheticSet
from ddbench.training.options import SGDOptions

TINY = Protocol(name="tiny", options=SGDOptions(epochs=None, steps=3, batch=4), augment="none", backbones=("mlp",))
LEARNED = Protocol(name="learned", options=SGDOptions(epochs=None, steps=3, lr=None), backbones=("mlp",))
STEPS = 7


class CrashError(Exception):
    """Stands for anything that ends a process without a word."""


class DriftConfig(MethodConfig):
    iterations: int = Field(STEPS, ge=0, description="Steps.")
    lr_images: float = Field(0.1, gt=0, description="Step size.")
    nan_at: int | None = Field(None, description="The step whose loss is nan.")
    lost_at: int | None = Field(None, description="The step that ruins the images and not the loss.")
    raise_at: int | None = Field(None, description="The step that raises DivergedError itself.")


@dataclass
class DriftState(State):
    images: Tensor
    optimizer: optim.Optimizer


class Drift(Method[DriftState]):
    """Images that follow random targets. `during` is called before each step, and is not part of the run's identity."""

    name = "drift"
    info = MethodInfo(title="Drift", learns=("images",), advice="A smaller lr_images helps.")
    Config = DriftConfig
    config: DriftConfig

    def __init__(self, config: MethodConfig, during: Callable[[int], None] = lambda step: None) -> None:
        super().__init__(config)
        self.during = during
        self.started = 0

    def start(self, problem: Problem) -> DriftState:
        self.started += 1
        shape = (problem.classes * problem.ipc, *problem.shape)
        images = torch.randn(shape, generator=problem.rng.fold("start").torch()).requires_grad_()
        return DriftState(images, optim.SGD([images], self.config.lr_images, momentum=0.9))

    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        step = state.step + 1
        self.during(step)
        if step == self.config.raise_at:
            raise DivergedError("the inner loop left the numbers.")
        target = torch.randn(state.images.shape, generator=rng.torch())
        loss = (state.images - target).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        if step == self.config.lost_at:
            state.images.data[0] = torch.inf
        return {"loss": loss.detach() * (torch.nan if step == self.config.nan_at else 1)}

    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().clone(), problem.class_labels())


class Notes(Observer):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_phase(self, name: str) -> None:
        self.phases.append(name)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, and no pictures: test_runs_files looks at those."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(finishing, "preview", lambda *arguments: b"a picture")


def asked(method: Drift | None = None, protocols: tuple[Protocol, ...] = (TINY,), **changes: Any) -> Resolution:
    dataset = toy()
    method = method or Drift(DriftConfig())
    values: dict[str, Any] = {
        "method": "drift",
        "provided_by": "tests 1.0",
        "method_sha256": None,
        "dataset": "toy",
        "data_fingerprint": dataset.fingerprint,
        "ipc": 2,
        "backbone": "mlp",
        "pixels": "standard",
        "seed": 0,
        "precision": "fp32",
        "config": method.config.model_dump(mode="json"),
        "protocols": tuple(p.id for p in protocols),
        "students": 2,
        "sources": {"config.iterations": "default"},
    }
    return Resolution(RunSpec(**values | changes), method, dataset, protocols)


def options(root: Path, **changes: Any) -> RunOptions:
    values: dict[str, Any] = {"checkpoint_seconds": 1e9, "snapshots": 0, **changes}
    return RunOptions(root=root, data_root=root / "no-data", device=torch.device("cpu"), **values)


def folder_of(root: Path, resolution: Resolution) -> RunDir:
    return RunDir.at(root / resolution.spec.folder)


def crash_at(step: int) -> Drift:
    def during(now: int) -> None:
        if now == step:
            raise CrashError

    return Drift(DriftConfig(), during)


def signal_at(step: int, number: int) -> Drift:
    return Drift(DriftConfig(), lambda now: os.kill(os.getpid(), number) if now == step else None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nothing has interrupted."""
    root = tmp_path_factory.mktemp("whole")
    run(asked(), options(root))
    return folder_of(root, asked())


def same_set(one: RunDir, other: RunDir) -> bool:
    return one.synthetic.read_bytes() == other.synthetic.read_bytes()


def losses(folder: RunDir) -> float:
    """The sum of all steps' losses, from the means in the log."""
    entries = read_log(folder.log)
    steps = [0, *(entry["step"] for entry in entries)]
    counts = [after - before for before, after in itertools.pairwise(steps)]
    return sum(count * entry["metrics"]["loss"] for count, entry in zip(counts, entries, strict=True))


@pytest.mark.parametrize("cadence", [1, 3])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_resume_is_bit_exact(tmp_path: Path, whole: RunDir, step: int, cadence: int) -> None:
    with pytest.raises(CrashError):
        run(asked(crash_at(step)), options(tmp_path, checkpoint_steps=cadence))
    record = run(asked(), options(tmp_path, checkpoint_steps=cadence))
    folder = folder_of(tmp_path, asked())
    assert same_set(folder, whole)
    steps = [entry["step"] for entry in read_log(folder.log)]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert losses(folder) == pytest.approx(losses(whole))
    # A crash leaves what the last checkpoint says; before the first one that is nothing.
    reached = (step - 1) // cadence * cadence
    assert [attempt.steps for attempt in record.attempts] == [(0, reached), (reached, STEPS)]


def test_a_finished_folder_has_all_its_files(whole: RunDir) -> None:
    assert whole.preview.read_bytes().startswith(b"\x89PNG")
    names = sorted(str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file())
    assert names == [
        ".lock",
        "attempts.json",
        f"checkpoints/step_{STEPS:06d}.pt",
        "cost.json",
        "evaluations/tiny@1/mlp.json",
        "log.jsonl",
        "preview.png",
        "record.json",
        "sheet.webp",
        "spec.json",
        "synthetic.json",
        "synthetic.safetensors",
    ]


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(asked(), options(tmp_path, checkpoint_steps=1))
    names = sorted(path.name for path in folder_of(tmp_path, asked()).checkpoints.iterdir())
    assert names == [f"step_{STEPS - 1:06d}.pt", f"step_{STEPS:06d}.pt"]


def test_checkpoints_and_logs_cost_no_condensation_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(folder: Path, value: checkpoint.Checkpoint) -> None:
        time.sleep(0.1)

    monkeypatch.setattr(condensing.checkpoint, "save", slow)
    record = run(asked(), options(tmp_path, checkpoint_steps=1))
    assert record.cost["condense"].seconds < 0.1 * STEPS / 2


def test_condensation_time_goes_on_after_an_interruption(tmp_path: Path) -> None:
    crash = crash_at(5).during

    def during(step: int) -> None:
        time.sleep(0.05)
        crash(step)

    with pytest.raises(CrashError):
        run(asked(Drift(DriftConfig(), during)), options(tmp_path, checkpoint_steps=2))
    record = run(asked(), options(tmp_path))
    assert 4 * 0.05 <= record.cost["condense"].seconds < 10


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    watcher, method = Notes(), Drift(DriftConfig())
    assert run(asked(method), options(tmp_path, observers=[watcher])) == record
    assert read_record(folder.record) == record
    assert method.started == 0
    assert watcher.phases == []
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_fresh_starts_over(tmp_path: Path) -> None:
    run(asked(), options(tmp_path))
    method = Drift(DriftConfig())
    record = run(asked(method), options(tmp_path, fresh=True))
    assert method.started == 1
    assert len(record.attempts) == 1


def test_more_students_extend_and_equal_those_of_a_fresh_run(tmp_path: Path) -> None:
    two = run(asked(), options(tmp_path / "extended"))
    three = run(asked(students=3), options(tmp_path / "extended"))
    fresh = run(asked(students=3), options(tmp_path / "fresh"))
    assert two.evaluations[0].accuracy == three.evaluations[0].accuracy[:2]
    assert three.evaluations[0].accuracy == fresh.evaluations[0].accuracy
    assert len(three.evaluations[0].accuracy) == 3
    first = read_evaluation(folder_of(tmp_path / "extended", asked()).evaluation(TINY, "mlp")).scores
    assert sum(score.seconds for score in first[:2]) == two.evaluations[0].seconds


def test_fewer_students_than_there_are_change_nothing(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path))
    assert run(asked(students=1), options(tmp_path)) == record


def test_another_judge_is_another_evaluation_of_the_same_set(tmp_path: Path) -> None:
    run(asked(), options(tmp_path))
    method = Drift(DriftConfig())
    record = run(asked(method, judges=("convnet-d2-w4",)), options(tmp_path))
    assert [part.backbone for part in record.evaluations] == ["convnet-d2-w4", "mlp"]
    assert method.started == 0


def test_evaluate_run_adds_to_the_record(tmp_path: Path) -> None:
    before = run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    other = TINY.model_copy(update={"name": "other", "labels": "soft"})
    after = evaluate_run(folder.path, [other], [], 1, options(tmp_path))
    assert [part.protocol for part in after.evaluations] == ["other@1", "tiny@1"]
    assert after.evaluations[1] == before.evaluations[0]
    assert after.synthetic == before.synthetic
    assert read_record(folder.record) == after


def test_students_can_be_trained_in_another_precision(tmp_path: Path) -> None:
    before = run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    other = TINY.model_copy(update={"name": "other"})
    (short, usual) = evaluate_run(folder.path, [other], [], 1, options(tmp_path), precision="bf16").evaluations
    assert (short.precision, usual.precision) == ("bf16", "fp32")
    assert usual == before.evaluations[0]
    assert folder.spec.precision == before.run.precision == "fp32"
    with pytest.raises(ConfigError, match="there is no precision 'fp16'"):
        evaluate_run(folder.path, [other], [], 1, options(tmp_path), precision="fp16")


def test_evaluate_run_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        run(asked(crash_at(2)), options(tmp_path))
    with pytest.raises(RunError, match="is not a finished run"):
        evaluate_run(tmp_path / asked().spec.folder, [TINY], [], 1, options(tmp_path))
    with pytest.raises(RunError, match=r"it has no spec\.json"):
        evaluate_run(tmp_path, [TINY], [], 1, options(tmp_path))


def test_evaluate_run_refuses_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(asked(), options(tmp_path))
    monkeypatch.setattr(runner, "load", lambda name, root: toy(seed=1))
    with pytest.raises(DataError, match="was made from toy with fingerprint"):
        evaluate_run(tmp_path / asked().spec.folder, [TINY], [], 1, options(tmp_path))


def test_a_cell_that_cannot_be_judged_stops_nothing_else(tmp_path: Path) -> None:
    watcher = Notes()
    resolution = asked(protocols=(LEARNED, TINY))
    record = run(resolution, options(tmp_path, observers=[watcher]))
    failed, fine = record.evaluations
    assert "learned" in failed.failed
    assert failed.accuracy == ()
    assert len(fine.accuracy) == 2
    assert record.status == "complete"
    assert any("learned@1 with mlp failed" in text for text in watcher.notes)
    assert run(resolution, options(tmp_path)) == record


def test_a_protocol_that_no_set_could_have_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    older = TINY.model_copy(update={"name": "older", "augment": "dc"})
    method = Drift(DriftConfig())
    with pytest.raises(ConfigError, match=r"older@1 is kept .* convnet-d2-w4-bn was augmented.*Use augment"):
        run(asked(method, protocols=(TINY, older), judges=("mlp", "convnet-d2-w4-bn")), options(tmp_path))
    assert method.started == 0
    assert not any(tmp_path.iterdir())
    run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    with pytest.raises(ConfigError, match="older@1 is kept"):
        evaluate_run(folder.path, [older], ["convnet-d2-w4-bn"], 1, options(tmp_path))
    assert [part.protocol for part in read_record(folder.record).evaluations] == ["tiny@1"]


def test_a_failure_is_tried_again_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Problem:
        raise ConfigError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "problems", lambda *arguments: fail)
        assert run(asked(), options(tmp_path)).evaluations[0].failed == "not defined: not today"
    record = evaluate_run(tmp_path / asked().spec.folder, [TINY], [], 2, options(tmp_path))
    assert record.evaluations[0].failed == ""
    assert len(record.evaluations[0].accuracy) == 2


def test_a_protocol_that_changed_its_meaning_is_refused(tmp_path: Path) -> None:
    run(asked(), options(tmp_path))
    changed = TINY.model_copy(update={"labels": "soft"})
    with pytest.raises(RunError, match="protocol tiny@1 has changed since"):
        run(asked(protocols=(changed,)), options(tmp_path))


def test_a_curve_has_every_snapshot_and_ends_with_the_result(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path, curve=True, snapshots=3))
    folder = folder_of(tmp_path, asked())
    curve = read_curve(folder.curve(TINY, "mlp"))
    assert [point.step for point in curve.points] == [0, 1, STEPS]
    assert curve.points[-1].accuracy == record.evaluations[0].accuracy
    assert all(len(point.accuracy) == 2 and point.seconds is not None for point in curve.points)
    start = sets.load(folder.snapshot(0)).images
    assert torch.equal(start, torch.randn(start.shape, generator=Rng(0).fold("start").torch()))
    # Nothing of it is part of the record: nobody can choose a snapshot by its accuracy.
    assert len(record.evaluations) == 1
    assert run(asked(), options(tmp_path, curve=True, snapshots=3)) == record


def test_a_curve_is_drawn_later_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    run(asked(), options(tmp_path, snapshots=3))
    folder = folder_of(tmp_path, asked())
    assert not folder.curve(TINY, "mlp").exists()
    run(asked(), options(tmp_path, curve=True))
    path = folder.curve(TINY, "mlp")
    whole = read_curve(path)
    write_json(path, whole.model_copy(update={"points": whole.points[:1]}).model_dump(mode="json"))
    evaluate_run(folder.path, [TINY], [], 2, options(tmp_path), curve=True)
    assert read_curve(path) == whole


def test_a_snapshot_that_cannot_be_judged_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    run(asked(), options(tmp_path, snapshots=3))
    folder = folder_of(tmp_path, asked())
    synthetic = sets.load(folder.snapshot(1))
    sets.save(replace(synthetic, images=synthetic.images * 1e30), folder.snapshot(1), {"step": 1})
    folder.keep_snapshot_sum(folder.snapshot(1))
    record = run(asked(), options(tmp_path, curve=True))
    start, lost, end = read_curve(folder.curve(TINY, "mlp")).points
    assert "not finite" in lost.failed
    assert lost.accuracy == ()
    assert len(start.accuracy) == len(end.accuracy) == 2
    assert run(asked(), options(tmp_path, curve=True)) == record


def test_a_snapshot_of_steps_that_were_lost_is_taken_again(tmp_path: Path) -> None:
    late = max(snapshot_steps(STEPS, 4))
    with pytest.raises(CrashError):
        run(asked(crash_at(late + 1)), options(tmp_path, snapshots=4, checkpoint_steps=late - 1))
    folder = folder_of(tmp_path, asked())
    taken = folder.snapshot(late).read_bytes()
    folder.snapshot(late).write_bytes(b"what a step left that nobody will hear of")
    run(asked(), options(tmp_path, snapshots=4))
    assert folder.snapshot(late).read_bytes() == taken
    # Its time is known too: a curve tells it.
    assert late in [entry["step"] for entry in read_log(folder.log)]


def test_snapshots_lie_denser_early_than_late() -> None:
    assert snapshot_steps(1000, 5) == [0, 62, 250, 562]
    assert snapshot_steps(0, 5) == []
    assert snapshot_steps(1000, 0) == []
    assert snapshot_steps(2, 5) == [0, 1]


@pytest.mark.parametrize("cadence", [None, 2])
def test_a_loss_that_is_lost_stops_the_run(tmp_path: Path, cadence: int | None) -> None:
    resolution = asked(Drift(DriftConfig(nan_at=5)))
    kept = "The last good checkpoint is step 4." if cadence else "There is no checkpoint yet."
    expected = f"loss became nan at step 5 of drift (lr_images=0.1). {kept}\nA smaller lr_images helps."
    for _ in range(2):
        with pytest.raises(DivergedError) as caught:
            run(resolution, options(tmp_path, checkpoint_steps=cadence))
        assert str(caught.value) == expected
    assert not folder_of(tmp_path, resolution).synthetic.exists()


def test_a_state_that_is_lost_is_never_saved(tmp_path: Path) -> None:
    resolution = asked(Drift(DriftConfig(lost_at=4)))
    with pytest.raises(DivergedError, match=r"images holds a number that is not finite at step 4 of drift"):
        run(resolution, options(tmp_path, checkpoint_steps=2))
    assert [p.name for p in folder_of(tmp_path, resolution).checkpoints.iterdir()] == ["step_000002.pt"]


def test_a_method_may_say_itself_that_it_diverged(tmp_path: Path) -> None:
    resolution = asked(Drift(DriftConfig(raise_at=3)))
    with pytest.raises(DivergedError, match=r"^the inner loop left the numbers at step 3 of drift \(lr_im"):
        run(resolution, options(tmp_path))


def test_an_earlier_nan_is_blamed_before_what_it_led_to(tmp_path: Path) -> None:
    resolution = asked(Drift(DriftConfig(nan_at=2, raise_at=4)))
    with pytest.raises(DivergedError, match="loss became nan at step 2"):
        run(resolution, options(tmp_path))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_that_it_met(tmp_path: Path, whole: RunDir, number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 4 of 7, which is saved") as caught:
        run(asked(signal_at(4, number)), options(tmp_path))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    folder = folder_of(tmp_path, asked())
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step_000004.pt"]
    record = run(asked(), options(tmp_path))
    assert [attempt.steps for attempt in record.attempts] == [(0, 4), (4, 7)]
    assert same_set(folder, whole)


def test_a_signal_while_getting_ready_interrupts_at_once(tmp_path: Path) -> None:
    method = Drift(DriftConfig())
    after: list[str] = []

    def slow(problem: Problem) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        after.append("the line after the signal")

    method.prepare = slow  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="getting ready"):
        run(asked(method), options(tmp_path))
    assert after == []


class StopAfterOneStudent(Observer):
    """Sends SIGTERM while the second student is trained."""

    def on_student(self, protocol: str, backbone: str, done: float, of: int, eta_seconds: float | None) -> None:
        if done > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_students_that_were_done_survive_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.runs.evaluating.SHOW_SECONDS", 0.0)
    with pytest.raises(Interrupted, match="students"):
        run(asked(), options(tmp_path, observers=[StopAfterOneStudent()]))
    folder = folder_of(tmp_path, asked())
    first = read_evaluation(folder.evaluation(TINY, "mlp")).scores
    assert [score.student for score in first] == [0]
    assert not folder.record.exists()
    record = run(asked(), options(tmp_path))
    both = read_evaluation(folder.evaluation(TINY, "mlp")).scores
    assert both[0] == first[0]
    assert len(record.evaluations[0].accuracy) == 2


def test_a_signal_is_heard_between_batches_of_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel regression is nearly all testing."""
    tested: list[int] = []
    monkeypatch.setattr("ddbench.evaluation.evaluate.TESTED_IMAGES", 10)
    train = SGDTrainer.train

    def watched(self: SGDTrainer, *given: Any) -> Predictor:
        predict = train(self, *given)

        def interrupted(x: torch.Tensor) -> torch.Tensor:
            tested.append(len(x))
            os.kill(os.getpid(), signal.SIGTERM)
            return predict(x)

        return interrupted

    monkeypatch.setattr(SGDTrainer, "train", watched)
    with pytest.raises(Interrupted, match="students"):
        run(asked(), options(tmp_path))
    assert tested == [10]


class Choosing(Drift):
    """Says that its set was chosen."""

    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return replace(super().export(problem, state), choice=Choice(1, 0.25, 40, 3, "tiny@1"))


def test_the_record_says_how_a_set_was_chosen(tmp_path: Path) -> None:
    record = run(asked(Choosing(DriftConfig())), options(tmp_path))
    assert record.synthetic.choice is not None
    assert record.synthetic.choice.model_dump() == {
        "step": 1, "accuracy": 0.25, "images": 40, "students": 3, "protocol": "tiny@1",
    }  # fmt: skip
    folder = folder_of(tmp_path, asked())
    assert sets.load(folder.synthetic).choice == Choice(1, 0.25, 40, 3, "tiny@1")
    assert read_record(folder.record) == record


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, whole: RunDir) -> None:
    with pytest.raises(CrashError):
        run(asked(crash_at(6)), options(tmp_path, checkpoint_steps=2))
    folder = folder_of(tmp_path, asked())
    newest = folder.checkpoints / "step_000004.pt"
    newest.write_bytes(newest.read_bytes()[:-200])
    watcher = Notes()
    record = run(asked(), options(tmp_path, observers=[watcher]))
    assert [attempt.steps for attempt in record.attempts] == [(0, 4), (2, 7)]
    assert any("step_000004.pt is damaged" in text for text in watcher.notes)
    assert same_set(folder, whole)
    steps = [entry["step"] for entry in read_log(folder.log)]
    assert steps == sorted(set(steps))


def test_without_a_sound_checkpoint_a_run_starts_over(tmp_path: Path, whole: RunDir) -> None:
    with pytest.raises(CrashError):
        run(asked(crash_at(6)), options(tmp_path, checkpoint_steps=2))
    folder = folder_of(tmp_path, asked())
    for path in folder.checkpoints.iterdir():
        path.write_bytes(b"nothing that torch knows")
    assert run(asked(), options(tmp_path)).attempts[1].steps == (0, 7)
    assert same_set(folder, whole)
    assert losses(folder) == pytest.approx(losses(whole))


def test_a_full_disk_leaves_a_run_that_can_go_on(
    tmp_path: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "step_000004" in path.name:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunError, match="the disk is full"):
            run(asked(), options(tmp_path, checkpoint_steps=2))
    folder = folder_of(tmp_path, asked())
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step_000002.pt"]
    assert run(asked(), options(tmp_path)).attempts[1].steps == (2, 7)
    assert same_set(folder, whole)


def too_much_for_a_gpu(step: int) -> None:
    raise torch.OutOfMemoryError("tried to allocate 80 GiB. Much more text")


def too_much_for_torch(step: int) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def too_much_for_python(step: int) -> None:
    raise MemoryError


@pytest.mark.parametrize("advice", ["", "--set chunk=1 needs less"])
@pytest.mark.parametrize(
    ("during", "why"),
    [
        (too_much_for_a_gpu, "tried to allocate 80 GiB. Much more text"),
        (too_much_for_torch, ".*DefaultCPUAllocator.*"),
        (too_much_for_python, "no more could be had"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: Callable[[int], None], why: str, advice: str
) -> None:
    monkeypatch.setattr(Drift, "info", replace(Drift.info, memory_advice=advice))
    what = advice or "Use a smaller batch or backbone, or another --device"
    with pytest.raises(RunError, match=f"the device is out of memory: {why}. {what}; running"):
        run(asked(Drift(DriftConfig(), during)), options(tmp_path))


def test_other_errors_of_torch_are_not_taken_for_memory(tmp_path: Path) -> None:
    def during(step: int) -> None:
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="size"):
        run(asked(Drift(DriftConfig(), during)), options(tmp_path))


def test_a_set_that_cannot_be_told_names_step_and_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(self: Drift, problem: Problem, state: DriftState) -> SyntheticSet:
        raise DivergedError("the learned step size became 0.")

    monkeypatch.setattr(Drift, "export", export)
    with pytest.raises(DivergedError, match=r"the learned step size became 0 at step 0 of drift .*no checkpoint yet"):
        run(asked(), options(tmp_path, snapshots=2))


def test_a_record_names_what_took_its_steps(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path))
    judged = record.attempts[0].model_copy(update={"steps": (STEPS, STEPS), "device": "another"})
    assert record.model_copy(update={"attempts": (*record.attempts, judged)}).devices == ["cpu"]
    assert record.model_copy(update={"attempts": (judged,)}).devices == ["another"]


def test_a_damaged_mark_of_a_whitening_is_named(tmp_path: Path) -> None:
    run(asked(pixels="zca(eps=0.1)"), options(tmp_path))
    (mark,) = (tmp_path / "artifacts" / "pixels").glob("*.json")
    mark.write_text("{")
    with pytest.raises(ArtifactError, match=r"is damaged.*Remove the folder .*pixels and run again"):
        run(asked(pixels="zca(eps=0.1)"), options(tmp_path, fresh=True))
    shutil.rmtree(mark.parent)
    assert run(asked(pixels="zca(eps=0.1)"), options(tmp_path, fresh=True)).status == "complete"


def test_a_damaged_record_says_how_to_get_another(tmp_path: Path, whole: RunDir) -> None:
    run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    folder.record.write_text("{")
    with pytest.raises(RunError, match=r"record\.json is damaged.*Run its command again, which writes a new one"):
        evaluate_run(folder.path, (TINY,), (), None, options(tmp_path))
    run(asked(), options(tmp_path))
    folder.record.unlink()
    folder.record.mkdir()
    with pytest.raises(RunError, match=r"record\.json cannot be read: Is a directory"):
        read_record(folder.record)


def test_students_that_need_too_much_memory_get_no_advice_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drift, "info", replace(Drift.info, memory_advice="--set chunk=1 needs less"))

    def full(self: SGDTrainer, *given: Any) -> Predictor:
        raise torch.OutOfMemoryError("CUDA out of memory. ")

    monkeypatch.setattr(SGDTrainer, "train", full)
    with pytest.raises(RunError, match=r"memory: CUDA out of memory\. Use a smaller batch or backbone, or another"):
        run(asked(), options(tmp_path))


@pytest.mark.parametrize(("device", "threads"), [("cuda", 4), ("cpu", 6)])
def test_a_run_on_a_gpu_leaves_the_processor_to_others(tmp_path: Path, device: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with runner.session(replace(options(tmp_path), device=torch.device(device))):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


def test_progress_says_when_students_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, int]] = []

    class Watch(Observer):
        def on_student(self, protocol: str, backbone: str, done: float, of: int, eta_seconds: float | None) -> None:
            told.append((done, of))
            assert done < of or eta_seconds is None  # how long their tests take is not known

    monkeypatch.setattr("ddbench.runs.evaluating.SHOW_SECONDS", 0.0)
    run(asked(), options(tmp_path, observers=[Watch()]))
    # Two students of three steps, one after the other: only after the last step is nothing left to be trained.
    assert len(told) == 6
    assert [done < of for done, of in told] == [True] * 5 + [False]


def test_a_run_under_way_is_refused(tmp_path: Path) -> None:
    with (
        RunDir.open(tmp_path, asked().spec).lock(),
        pytest.raises(RunError, match=f"being worked on by pid {os.getpid()} on .* since 20"),
    ):
        run(asked(), options(tmp_path))
    assert run(asked(), options(tmp_path)).status == "complete"


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(asked(), options(tmp_path))
    path = tmp_path / asked().spec.folder
    other = asked(seed=1)
    (tmp_path / other.spec.folder).parent.mkdir(parents=True, exist_ok=True)
    path.rename(tmp_path / other.spec.folder)
    with pytest.raises(RunError, match="belongs to another run: its seed differ"):
        run(other, options(tmp_path))


def test_a_record_says_everything_and_nothing_private(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    text = folder.record.read_text()
    for private in (str(tmp_path), str(Path(__file__).parent), socket.gethostname(), str(Path.home())):
        assert private not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert record.cost.keys() == {"prepare", "condense", "evaluate"}
    assert record.cost["evaluate"].seconds == record.evaluations[0].seconds
    assert record.synthetic.bytes == 6 * (8 * 8 * 4 + 8)
    assert record.data.test == len(toy().test.load())
    assert record.attempts[0].packages["torch"] == torch.__version__
    assert record.config.sources == {"iterations": "default"}
    described = json.loads(folder.about.read_text())
    assert described["sha256"] == record.synthetic.sha256
    assert described["about"] == {
        "run": asked().spec.id,
        "method": "drift",
        "dataset": "toy",
        "data": toy().fingerprint,
        "ipc": 2,
        "classes": ["class 0", "class 1", "class 2"],
        "step": STEPS,
    }


def test_a_damaged_record_is_written_again(tmp_path: Path) -> None:
    record = run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    folder.record.write_text("{")
    again = run(asked(), options(tmp_path))
    assert again.evaluations == record.evaluations
    assert again.synthetic == record.synthetic


def test_a_set_in_a_whitened_space_is_judged_and_charged(tmp_path: Path) -> None:
    first = run(asked(pixels="zca(eps=0.1)"), options(tmp_path))
    again = run(asked(pixels="zca(eps=0.1)", seed=1), options(tmp_path))
    assert first.data.pixels == "zca(eps=0.1)"
    assert [(a["kind"], a["from_cache"]) for a in first.artifacts] == [("pixel-space", False)]
    assert [(a["kind"], a["from_cache"]) for a in again.artifacts] == [("pixel-space", True)]
    assert first.artifacts[0]["seconds"] == again.artifacts[0]["seconds"] > 0
    assert first.data.pixels_fingerprint == again.data.pixels_fingerprint


def test_prepare_only_fills_the_cache(tmp_path: Path) -> None:
    resolution = asked(pixels="zca(eps=0.1)")
    assert [entry["from_cache"] for entry in prepare(resolution, options(tmp_path))] == [False]
    assert [entry["from_cache"] for entry in prepare(resolution, options(tmp_path))] == [True]
    assert list(RunDir.find(tmp_path)) == []
    assert run(resolution, options(tmp_path)).artifacts[0]["from_cache"] is True


def test_what_an_earlier_attempt_built_was_not_in_the_cache(tmp_path: Path) -> None:
    method = crash_at(4)
    with pytest.raises(CrashError):
        run(asked(method, pixels="zca(eps=0.1)"), options(tmp_path, checkpoint_steps=2))
    assert run(asked(pixels="zca(eps=0.1)"), options(tmp_path)).artifacts[0]["from_cache"] is False


def test_an_attempt_says_of_which_code_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Mapping[str, Any] = {"commit": "1a2b", "dirty": True}
    monkeypatch.setattr(provenance, "git", lambda: state)
    assert run(asked(), options(tmp_path)).attempts[0].git == state


def test_the_same_seed_gives_methods_the_same_generator(tmp_path: Path) -> None:
    problem = build_problem(
        toy(),
        backbone="mlp",
        pixels="standard",
        ipc=1,
        seed=3,
        device=torch.device("cpu"),
        precision="fp32",
        artifacts_root=tmp_path,
    )
    assert problem.rng == Rng(3)
    assert (problem.classes, problem.ipc, problem.backbone.name) == (3, 1, "mlp")


def test_global_generators_are_left_as_found(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(asked(), options(tmp_path, curve=True, snapshots=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_without_steps_has_a_set_and_a_record(tmp_path: Path) -> None:
    resolution = asked(Drift(DriftConfig(iterations=0)))
    record = run(resolution, options(tmp_path, snapshots=5))
    folder = folder_of(tmp_path, resolution)
    assert record.attempts[0].steps == (0, 0)
    assert not folder.snapshots.exists()
    assert read_log(folder.log) == []


def test_a_finished_set_is_bound_to_its_evaluations(tmp_path: Path) -> None:
    run(asked(), options(tmp_path))
    folder = folder_of(tmp_path, asked())
    synthetic = sets.load(folder.synthetic)
    sets.save(replace(synthetic, images=synthetic.images + 1), folder.synthetic, {"step": STEPS})
    folder.record.unlink()
    folder.about.unlink()
    record = run(asked(), options(tmp_path))
    assert read_evaluation(folder.evaluation(TINY, "mlp")).synthetic == record.synthetic.sha256
    assert len(record.evaluations[0].accuracy) == 2
