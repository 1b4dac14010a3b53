"""Expensive things are made once, named by what determines them, and go on after an interruption."""

import itertools
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ddbench.artifacts import COST, MARK, Artifact, ArtifactCache, outside_identity
from ddbench.engine.precision import Precision
from ddbench.errors import ArtifactError, DivergedError
from ddbench.files import read_json
from ddbench.problem import Problem
from ddbench.testing.contract import problem_for_checks
from ddbench.training.networks import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class Number(Artifact[str]):
    """A number in a file."""

    kind: ClassVar[str] = "number"
    value: int
    builds: ClassVar[list[int]] = []

    def build(self, folder: Path, problem: Problem) -> None:
        self.builds.append(self.value)
        (folder / "number.txt").write_text(str(self.value))

    def open(self, folder: Path) -> str:
        return (folder / "number.txt").read_text()


@dataclass(frozen=True, kw_only=True)
class Pool(Artifact[list[str]]):
    """A pool that grows: a file for each member."""

    kind: ClassVar[str] = "pool"
    lr: float
    count: int = outside_identity()
    stop_after: int | None = outside_identity(None)
    made: ClassVar[list[int]] = []

    def build(self, folder: Path, problem: Problem) -> None:
        for k in range(self.count):
            if not (folder / f"{k}.txt").exists():
                if k == self.stop_after:
                    raise KeyboardInterrupt
                self.made.append(k)
                (folder / f"{k}.txt").write_text(str(k))

    def missing(self, folder: Path) -> str:
        lacking = self.count - len(list(folder.glob("*.txt")))
        return f"{lacking} of {self.count}" if lacking > 0 else ""

    def open(self, folder: Path) -> list[str]:
        return [(folder / f"{k}.txt").read_text() for k in range(self.count)]


class Failing(Pool):
    def build(self, folder: Path, problem: Problem) -> None:
        (folder / "0.txt").write_text("0")


@pytest.fixture(autouse=True)
def forget() -> None:
    Number.builds.clear()
    Pool.made.clear()


def test_it_is_built_once_and_read_ever_after(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    assert [problem.artifacts.get(Number(value=7), problem) for _ in range(2)] == ["7", "7"]
    assert ArtifactCache(tmp_path).get(Number(value=7), problem) == "7"
    assert Number.builds == [7]


def test_it_lies_under_its_kind_and_key_with_its_fields_and_its_cost(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    artifact = Number(value=7)
    problem.artifacts.get(artifact, problem)
    mark = read_json(tmp_path / "number" / artifact.key / MARK)
    assert (mark["kind"], mark["identity"]) == ("number", {"value": 7})
    assert read_json(tmp_path / "number" / artifact.key / COST)["seconds"] > 0


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "artifacts").touch()
    problem = problem_for_checks(tmp_path)
    with pytest.raises(ArtifactError, match="a file has the name of one of its folders"):
        ArtifactCache(tmp_path / "artifacts").get(Number(value=1), problem)


def test_other_values_are_another_artefact(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    assert problem.artifacts.get(Number(value=7), problem) == "7"
    assert problem.artifacts.get(Number(value=8), problem) == "8"
    assert Number(value=7).key != Number(value=8).key
    assert len(Number(value=7).key) == 16


def test_the_kind_is_part_of_the_key() -> None:
    class Other(Number):
        kind = "other"

    assert Number(value=7).key != Other(value=7).key


def test_how_much_is_wanted_is_not_part_of_the_identity() -> None:
    assert Pool(lr=0.1, count=2).key == Pool(lr=0.1, count=9).key != Pool(lr=0.2, count=2).key
    assert Pool(lr=0.1, count=2).identity == {"lr": 0.1}


def test_a_pool_grows_and_its_cost_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("ddbench.artifacts.time.perf_counter", lambda: 10.0 * next(clock))
    problem = problem_for_checks(tmp_path)
    costs = []
    for count in (2, 4, 1):
        assert problem.artifacts.get(Pool(lr=0.1, count=count), problem) == [str(k) for k in range(count)]
        costs.append(problem.artifacts.used[Pool(lr=0.1, count=count).key]["seconds"])
    assert Pool.made == [0, 1, 2, 3]
    assert costs == [10.0, 20.0, 20.0]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        problem.artifacts.get(Pool(lr=0.1, count=3, stop_after=2), problem)
    assert problem.artifacts.used == {}
    assert problem.artifacts.get(Pool(lr=0.1, count=3), problem) == ["0", "1", "2"]
    assert Pool.made == [0, 1, 2]


def test_what_was_used_says_whether_it_was_there(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    for from_cache in (False, True):
        problem.artifacts.get(Pool(lr=0.1, count=2), problem)
        (used,) = problem.artifacts.used.values()
        assert used["from_cache"] is from_cache
    assert used["identity"] == {"lr": 0.1}
    assert used["wanted"]["count"] == 2


def test_a_build_that_leaves_something_out_is_an_error(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(ArtifactError, match=r"pool [0-9a-f]{16} was built and still lacks 1 of 2\. Remove its folder"):
        problem.artifacts.get(Failing(lr=0.1, count=2), problem)


def test_a_build_that_fails_has_its_cost_and_the_next_one_adds_to_it(tmp_path: Path) -> None:
    class Failing(Number):
        def build(self, folder: Path, problem: Problem) -> None:
            time.sleep(0.02)
            raise DivergedError("lost")

    problem, folder = problem_for_checks(tmp_path), tmp_path / "number" / Number(value=7).key
    seconds = []
    for _ in range(2):
        with pytest.raises(DivergedError):
            problem.artifacts.get(Failing(value=7), problem)
        seconds.append(read_json(folder / COST)["seconds"])
    assert seconds[1] >= seconds[0] + 0.02
    assert not (folder / MARK).exists()


def test_a_build_runs_in_the_precision_that_its_key_names(tmp_path: Path) -> None:
    seen = []

    class Watching(Number):
        def build(self, folder: Path, problem: Problem) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))
            super().build(folder, problem)

    problem = replace(problem_for_checks(tmp_path), precision=Precision("bf16"))
    problem.artifacts.get(Watching(value=7), problem)
    assert seen == [True]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"seconds": null}'])
def test_of_a_damaged_cost_it_is_made_again(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_for_checks(tmp_path)
    problem.artifacts.get(Number(value=7), problem)
    (tmp_path / "number" / Number(value=7).key / COST).write_text(text)
    assert problem.artifacts.get(Number(value=7), problem) == "7"
    assert "cost.json is damaged" in caplog.text
    assert Number.builds == [7, 7]
    assert problem.artifacts.used[Number(value=7).key]["from_cache"] is False


def test_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(Number):
        def build(self, folder: Path, problem: Problem) -> None:
            started.set()
            assert go_on.wait(10)
            super().build(folder, problem)

    problem, results = problem_for_checks(tmp_path), []

    def get() -> None:
        results.append(ArtifactCache(tmp_path).get(Slow(value=7), problem))

    threads = [threading.Thread(target=get) for _ in range(3)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert results == ["7"] * 3
    assert Number.builds == [7]


def test_a_build_tells_now_and_then_how_far_it_is(tmp_path: Path) -> None:
    heard: list[tuple[str, float, float]] = []
    tick = ArtifactCache(tmp_path, tell=lambda *told: heard.append(told)).progress("numbers", 100)
    for _ in range(50):
        tick(2)
    assert heard == [("numbers", 2.0, 100), ("numbers", 100.0, 100)]
    ArtifactCache(tmp_path).progress("numbers", 1)(1)  # and where nobody listens


def test_a_trained_network_is_an_artefact_of_its_problem(tmp_path: Path) -> None:
    def key(**changes: Any) -> str:
        return TrainedNetwork.of(problem_for_checks(tmp_path, **changes), epochs=1, lr=0.1, seed=0).key

    assert key() == key(ipc=1) == key(seed=5)
    assert key() != key(per_class=39)
    assert key() != key(shape=(1, 8, 8))


def test_a_trained_network_fits_the_training_images(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)

    def right(epochs: int) -> float:
        network = problem.artifacts.get(TrainedNetwork.of(problem, epochs=epochs, lr=0.05, seed=0), problem)
        logits, _ = problem.backbone(network, problem.real.take(everything), train=False)
        return float((logits.argmax(dim=1) == problem.real.labels).float().mean())

    everything = torch.arange(len(problem.train))
    assert right(40) > 0.8 > right(0) + 0.2
