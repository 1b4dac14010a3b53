"""Estimates: right order of magnitude, nothing written, artefacts of the runs folder used and never built there."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.config import parse_assignments
from ddbench.costs.estimate import Estimate, estimate
from ddbench.evaluation.krr import KRRTrainer
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Predictor
from ddbench.runs.resolving import Asked, Resolution, resolve_spec
from ddbench.runs.runner import RunOptions, prepare, run
from ddbench_methods.dm import DM

CPU = torch.device("cpu")
# A limit that no machine exceeds, be it busy: what is measured is bounded by its number of steps.
PLENTY = 1000.0


def resolution(method: str, folder: Path, *assignments: str) -> Resolution:
    tiny = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 4\n[options]\nsteps = 400\nbatch = 16\n'
    (folder / "tiny.toml").write_text(tiny)
    asked = Asked(
        method, "digits", ipc=2, protocols=(str(folder / "tiny.toml"),), options=parse_assignments(assignments)
    )
    return resolve_spec(asked, folder)


def phases(found: Estimate) -> dict[str, tuple[float | None, str]]:
    return {phase.name: (phase.seconds, phase.basis) for phase in found.phases}


class Work:
    """A clock that only work moves: a step of DM takes half a second, one of a student a hundredth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        step, train = DM.step, SGDTrainer.train

        def slow_step(method: DM, problem: Any, state: Any, rng: Any) -> Any:
            self.now += 0.5
            return step(method, problem, state, rng)

        def slow_train(trainer: SGDTrainer, students: Sequence[int], tick: Callable[[int], None]) -> Any:
            def slow_tick(steps: int) -> None:
                self.now += 0.01 * steps
                tick(steps)

            return train(trainer, students, slow_tick)

        monkeypatch.setattr(DM, "step", slow_step)
        monkeypatch.setattr(SGDTrainer, "train", slow_train)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_a_run_takes_as_long_as_was_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolution("dm", tmp_path, "iterations=30", "batch_real=16")
    Work(monkeypatch)
    found = estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY)
    record = run(asked, RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=CPU))
    told = phases(found)
    assert told["condense"][0] == pytest.approx(record.cost["condense"].seconds) == 15
    assert told["evaluate tiny@1 mlp"][0] == pytest.approx(record.cost["evaluate"].seconds) == 16
    assert found.complete
    assert told["condense"][1].startswith("30 steps of 500 ms")


def test_artefacts_are_made_elsewhere_unless_they_are_there(tmp_path: Path) -> None:
    asked = resolution("herding", tmp_path, "epochs=1")
    runs = tmp_path / "runs"
    before = phases(estimate(asked, root=runs, device=CPU))
    assert before["prepare"][1] == "measured: trained-network"
    assert not runs.exists()
    prepare(asked, RunOptions(root=runs, data_root=tmp_path, device=CPU))
    after = phases(estimate(asked, root=runs, device=CPU))
    assert after["prepare"][1] == "measured"


def test_a_set_that_a_protocol_cannot_judge_is_foreseen(tmp_path: Path) -> None:
    asked = resolve_spec(Asked("random", "digits", ipc=1, protocols=("mtt",), judges=("mlp",)), tmp_path)
    ((seconds, basis),) = (v for k, v in phases(estimate(asked, root=tmp_path, device=CPU)).items() if "mtt" in k)
    assert seconds == 0
    assert "will fail: protocol mtt@1" in basis


def test_what_only_the_set_tells_is_not_told_before_there_is_one(tmp_path: Path) -> None:
    assignments = ("experts=40", "start_epochs=3", "expert_span=1")
    options = {"protocols": ("mtt",), "judges": ("mlp",), "options": parse_assignments(assignments)}
    asked = resolve_spec(Asked("mtt", "digits", ipc=1, **options), tmp_path)  # type: ignore[arg-type]
    found = estimate(asked, root=tmp_path / "runs", device=CPU, limit=0.5)
    assert not found.complete
    told = phases(found)
    assert told["prepare"][0] is None
    ((seconds, basis),) = (phase for name, phase in told.items() if "mtt@1" in name)
    assert seconds is None
    assert "before there is a set" in basis


def test_the_test_images_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: object) -> None:
        raise AssertionError("test data was read")

    asked = resolution("random", tmp_path)
    monkeypatch.setattr(type(asked.dataset.test), "load", forbidden)
    assert estimate(asked, root=tmp_path / "runs", device=CPU, limit=1.0).complete


def test_a_large_whitening_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can interrupt its decomposition. One that is kept is read."""
    monkeypatch.setattr("ddbench.data.pixels.SMALL_WHITENING", 1)
    asked = resolve_spec(Asked("random", "digits", ipc=1, pixels="zca", protocols=("quick",)), tmp_path)
    runs = tmp_path / "runs"
    found = estimate(asked, root=runs, device=CPU, limit=1.0)
    assert phases(found)["pixels"] == (None, "fitting zca(eps=0.1) takes more than 0.25 s, once for this dataset")
    assert not runs.exists()
    prepare(asked, RunOptions(root=runs, data_root=tmp_path, device=CPU))
    assert "pixels" not in phases(estimate(asked, root=runs, device=CPU, limit=1.0))


def test_getting_ready_for_a_student_has_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.evaluation.sgd.SGDTrainer.steps", property(lambda self: time.sleep(30)))
    found = estimate(resolution("random", tmp_path), root=tmp_path / "runs", device=CPU, limit=1.0)
    assert phases(found)["evaluate tiny@1 mlp"] == (None, "getting ready for a student takes more than 0.5 s")


def test_kernel_regression_is_timed_by_its_own_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_spec(Asked("random", "digits", ipc=2, protocols=("krr-fc1",), judges=("mlp",)), tmp_path)
    train, work = KRRTrainer.train, Work(monkeypatch)

    def slow(self: KRRTrainer, students: Sequence[int], tick: Callable[[int], None]) -> Predictor:
        predict = train(self, students, tick)

        def wait(x: torch.Tensor) -> torch.Tensor:
            work.now += 0.002 * len(x)
            return predict(x)

        return wait

    monkeypatch.setattr(KRRTrainer, "train", slow)
    found = estimate(asked, root=tmp_path, device=CPU, limit=PLENTY)
    seconds, basis = phases(found)["evaluate krr-fc1@1 fc1 kernel"]
    # Of students that are all alike there is one.
    assert seconds == pytest.approx(0.002 * asked.dataset.manifest["test"]["images"])
    assert basis == "its predictions"


def test_networks_that_choose_are_counted(tmp_path: Path) -> None:
    assignments = ("select=heldout", "experts=1", "start_epochs=1", "expert_span=1", "iterations=1001", "inner_steps=1")
    asked = resolve_spec(
        Asked("mtt", "digits", ipc=1, backbone="mlp", options=parse_assignments(assignments)), tmp_path
    )
    seconds, basis = phases(estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY))["choose by mtt@1"]
    assert seconds is not None
    assert basis.startswith("6 students x 1001 steps")


def test_networks_by_which_a_step_size_is_chosen_are_counted(tmp_path: Path) -> None:
    native = 'name = "tiny-kip"\ntrainer = "finite-width"\nlabels = "soft"\nbackbones = ["mlp"]\nstudents = 2\n'
    (tmp_path / "kip.toml").write_text(native + "[options]\nsteps = 1000\nlr_factors = [1.0, 0.1, 0.01]\n")
    asked = resolve_spec(Asked("random", "digits", ipc=1, protocols=(str(tmp_path / "kip.toml"),)), tmp_path)
    _, basis = phases(estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY))["evaluate tiny-kip@1 mlp"]
    assert basis.startswith("2 students and 3 to choose by x 1000 steps")


@pytest.mark.parametrize(("iterations", "students"), [(0, None), (4, "8 students")])
def test_choosing_is_a_phase_of_its_own_where_there_are_steps(
    tmp_path: Path, iterations: int, students: str | None
) -> None:
    small = {"experts": 1, "start_epochs": 1, "expert_span": 1, "inner_steps": 1, "iterations": iterations}
    asked = resolve_spec(Asked("mtt", "digits", ipc=1, backbone="mlp", options=small, select={"every": 1}), tmp_path)
    told = phases(estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY))
    assert ("choose by mtt@1" in told) == (students is not None)
    assert students is None or told["choose by mtt@1"][1].startswith(students)


@pytest.mark.parametrize(
    ("method", "assignments"),
    [
        ("mtt", ("select=heldout", "experts=1", "start_epochs=1", "expert_span=1", "inner_steps=1", "iterations=9")),
        ("ld", ("iterations=1000",)),
    ],
)
def test_a_set_is_judged_in_its_own_space(tmp_path: Path, method: str, assignments: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"pixels": "zca", "backbone": "mlp", "protocols": ("quick",), "judges": ("mlp",)}
    asked = resolve_spec(Asked(method, "digits", ipc=1, options=parse_assignments(assignments), **options), tmp_path)
    told = phases(estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY))
    assert told["evaluate quick@1 mlp"][0] is not None
    assert any(name.startswith("choose by ") for name in told)


def test_a_length_that_is_found_while_condensing_is_not_told(tmp_path: Path) -> None:
    asked = resolve_spec(Asked("ld", "digits", ipc=1, protocols=("ld", "quick"), judges=("mlp",)), tmp_path)
    told = phases(estimate(asked, root=tmp_path / "runs", device=CPU, limit=PLENTY))
    unknown = (None, "cannot be told before the set says how long to train on it")
    assert told["choose by ld@1"] == told["evaluate ld@1 mlp"] == unknown
    assert told["evaluate quick@1 mlp"][0] is not None


def test_a_prediction_that_takes_too_long_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_spec(Asked("random", "digits", ipc=2, protocols=("krr-fc1",), judges=("mlp",)), tmp_path)
    monkeypatch.setattr(KRRTrainer, "train", lambda *_: lambda x: time.sleep(30))
    seconds, basis = phases(estimate(asked, root=tmp_path, device=CPU, limit=1.0))["evaluate krr-fc1@1 fc1 kernel"]
    assert (seconds, basis) == (None, "predicting one image takes too long to be measured")
