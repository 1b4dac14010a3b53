"""The bench: clocks are read in the right places, what is counted is counted, documents are read back or refused."""

import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddbench.backbones.names import build
from ddbench.backbones.variables import Variables
from ddbench.costs import bench
from ddbench.costs.bench import (
    AskedBench,
    Bench,
    Result,
    StudentPart,
    Timing,
    compare,
    flops_per_image,
    latest,
    measure,
    read_bench,
    save_latest,
    this_machine,
    timed,
)
from ddbench.costs.estimate import Phase, estimate
from ddbench.engine.augment import ALL_OPS, draw_many
from ddbench.errors import ConfigError, RunError
from ddbench.evaluation.protocol import Protocol
from ddbench.files import write_json
from ddbench.rng import Rng
from ddbench.runs.resolving import Asked, Resolution, resolve_spec
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import train_students

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def result(name: str = "loop", ms: float = 2.0, **values: Any) -> Result:
    return Result(**{"loop": "methods", "name": name, "precision": "fp32", "ms": ms, "spread_ms": 0.1, "repeats": 3,
                     "calls": 30} | values)  # fmt: skip


def document(*results: Result) -> Bench:
    return Bench(machine=this_machine(CPU), results=results)


def test_a_call_is_timed_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    durations = iter([9.0, 9.0, *[0.5] * 100])

    def call() -> None:
        clock.now += next(durations)

    timing = timed(call, CPU, 3.0, warm=2)
    assert timing == Timing((0.5, 0.5, 0.5), calls=6)  # three repeats of one second


def test_a_call_is_never_made_more_often_than_allowed() -> None:
    made = []
    timing = timed(lambda: made.append(1), CPU, 0.01, warm=2, most=12)
    assert timing.calls == 9
    assert len(made) == 12


def test_setup_and_pace_of_students_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = bench._Stopwatch(CPU, 3.0, steps=1000, students=4)
    clock.now += 7.0
    for number in range(40):
        clock.now += 0.5 if number else 1.0  # the first is slower, for whatever reason
        try:
            watch(0)  # of a batch of test images nothing is counted
            watch(4)
        except bench._EnoughError:
            break
    assert watch.first == 108.0
    assert watch.timing() == Timing((0.125, 0.125, 0.125), calls=6)
    assert number + 1 == 1 + 1 + 6  # the first, one to warm up, three repeats of two


def test_students_that_fit_are_trained_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = bench._Stopwatch(CPU, 3.0, steps=20, students=1)
    for _ in range(20):
        clock.now += 0.4  # eight seconds, less than three times the three that were given
        watch(1)
    assert watch.timing().median == pytest.approx(0.4)


def test_floating_point_operations_equal_a_count_by_hand() -> None:
    conv = [2 * 9 * inputs * outputs * side**2 for inputs, outputs, side in ((3, 8, 32), (8, 8, 16), (8, 8, 8))]
    linear = 2 * (8 * 4 * 4) * 10
    # Forward, by the weights, and by the inputs except those of the network.
    assert flops_per_image(build("convnet-w8", (3, 32, 32), 10)) == 3 * (sum(conv) + linear) - conv[0]


def test_a_bench_of_every_loop_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Protocol(name="short", options=SGDOptions(epochs=None, steps=8))
    monkeypatch.setattr(bench, "PROTOCOL", short)
    monkeypatch.setattr(bench, "TEST_IMAGES", 100)
    asked = AskedBench(device=CPU, backbones=("convnet-w8",), ipcs=(1,), students=2, seconds=0.1)
    said: list[str] = []
    found = measure(asked, said.append)
    product, copy, method, student = found.results
    assert [r.loop for r in found.results] == ["ceiling", "ceiling", "methods", "students"]
    assert said == ["ceiling", "dm ipc1 fp32", "students convnet-w8 ipc1 fp32"]
    assert method.name == "dm ipc1 convnet-d3-w8"
    assert copy.gigabytes_per_second is not None
    part = student.student
    assert part is not None
    assert student.images_per_second == pytest.approx(10 / (student.ms / 1000))
    assert student.tflops is not None
    assert product.tflops is not None
    assert student.share == pytest.approx(student.tflops / product.tflops)
    # Whether all students were trained depends on how busy the machine is.
    assert (part.way, part.steps, part.students) == ("plain", 8, 2)
    assert part.seconds == pytest.approx(8 * student.ms / 1000)
    assert part.all_in_seconds > 0


def test_experts_are_timed_by_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.EXPERT_PER_CLASS, "cpu", 64)
    (found,) = measure(AskedBench(device=CPU, backbones=["convnet-d1-w8"], loops=["experts"])).results
    assert found.name == "expert epoch convnet-d1-w8, 640 images"
    assert found.images_per_second == pytest.approx(640 / found.ms * 1000)
    assert found.setup_seconds is not None


def test_a_method_that_trains_experts_is_timed_with_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PER_CLASS", 64)
    asked = AskedBench(
        device=CPU, backbones=["convnet-d1-w8"], loops=["methods"], methods=["mtt"], ipcs=[1], seconds=0.1
    )
    (found,) = measure(asked).results
    assert found.name == "mtt ipc1 convnet-d1-w8"


def test_a_method_without_steps_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="random takes 0 steps"):
        measure(AskedBench(device=CPU, methods=("random",), backbones=("convnet-w8",), ipcs=(1,), loops=("methods",)))


def test_a_difference_within_the_spread_is_marked() -> None:
    old = document(result("a", 2.0), result("b", 2.0), result("gone"), result("c", 2.0, precision="bf16"))
    new = document(result("a", 1.0), result("b", 2.2, spread_ms=0.3), result("new"), result("c", 2.0))
    assert [(r.name, r.faster, r.same) for r in compare(new, old)] == [
        ("a", 2.0, False),
        ("b", pytest.approx(2 / 2.2), True),
    ]


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = document(result(images_per_second=10.0), result("other"))
    write_json(tmp_path / "b.json", written.to_json())
    assert read_bench(tmp_path / "b.json") == written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing"),
        ("{", "is damaged"),
        ("[1]", "was not written by `ddbench bench`"),
        ('{"schema": "ddbench.record/1"}', "ddbench.record/1"),
        ('{"schema": "ddbench.bench/1", "results": []}', "machine"),
    ],
)
def test_foreign_and_damaged_files_are_refused(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RunError, match=says):
        read_bench(file)


def test_a_time_of_zero_is_refused(tmp_path: Path) -> None:
    value = document(result()).to_json()
    value["results"][0]["ms"] = 0
    write_json(tmp_path / "b.json", value)
    with pytest.raises(RunError, match="ms"):
        read_bench(tmp_path / "b.json")


def test_only_times_of_this_very_machine_are_used(tmp_path: Path) -> None:
    assert latest(tmp_path, CPU) is None
    here = document(result())
    save_latest(tmp_path, here)
    assert latest(tmp_path, CPU) == here
    save_latest(tmp_path, here.model_copy(update={"machine": here.machine.model_copy(update={"threads": 1000})}))
    assert latest(tmp_path, CPU) is None


def digits(folder: Path) -> Resolution:
    (folder / "tiny.toml").write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 4\n[options]\nsteps = 400\n')
    asked = Asked("random", "digits", ipc=2, protocols=(str(folder / "tiny.toml"),))
    return resolve_spec(asked, folder)


def judging(asked: Resolution, root: Path) -> Phase:
    return next(p for p in estimate(asked, root=root, device=CPU, limit=1.0).phases if "evaluate" in p.name)


@pytest.mark.parametrize(("change", "used"), [({}, True), ({"backbone": "lenet"}, False), ({"images": 10}, False)])
def test_an_estimate_uses_what_the_bench_has_measured(change: dict[str, Any], used: bool, tmp_path: Path) -> None:
    asked = digits(tmp_path)
    values = {"backbone": "mlp", "shape": (1, 8, 8), "classes": 10, "images": 20, "way": "plain", "steps": 400,
              "digest": asked.protocols[0].digest, "seconds": 400.0, "students": 5, "all_in_seconds": 401.0,
              "extrapolated": True}  # fmt: skip
    part = StudentPart(**values | change)
    save_latest(tmp_path, document(result(loop="students", ms=1000.0, setup_seconds=30.0, student=part)))
    phase = judging(asked, tmp_path)
    assert phase.seconds is not None
    assert phase.basis.startswith("ddbench bench: 4 students x 400 steps of") == used
    assert (phase.seconds == pytest.approx(30 + 4 * 400, abs=5)) == used


def test_a_damaged_bench_does_not_stop_an_estimate(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "bench").mkdir(parents=True)
    (tmp_path / "artifacts" / "bench" / "cpu.json").write_text("{")
    assert "measured" in judging(digits(tmp_path), tmp_path).basis


PAGES_TOUCHED = """
import resource
import torch
from ddbench.engine.program import keep_memory

def pages_touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_memory(torch.device("cpu"))
# Small things that last land in the gaps beside the first few, which then are too small for the next one.
for _ in range(20):
    pages_touched()
print(min(pages_touched() for _ in range(5)), resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library decides alone")
def test_memory_that_was_freed_is_used_again() -> None:
    """In a process of its own: after an allocation that failed, the C library takes memory from elsewhere for good."""
    done = subprocess.run([sys.executable, "-c", PAGES_TOUCHED], capture_output=True, text=True, check=True)
    touched, page = map(int, done.stdout.split())
    assert touched < (1 << 26) / page / 2


def hand_written(width: int) -> nn.Module:
    def block(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]

    return nn.Sequential(*block(3), *block(width), *block(width), nn.Flatten(), nn.Linear(width * 16, 10))


@pytest.mark.slow
def test_training_is_not_slower_than_a_plain_loop_on_the_cpu() -> None:
    steps = 60
    images = torch.randn(100, 3, 32, 32, generator=Rng(0).torch())
    labels = torch.arange(100) % 10
    net = build("convnet-w32", (3, 32, 32), 10)
    options = SGDOptions(epochs=None, steps=steps)
    schedule = TrainingPlan(images, labels, lambda x: x, options, ALL_OPS, "none", 1, Rng(0))

    def ours(schedule: TrainingPlan) -> None:
        train_students(net, Variables.stack([net.init(Rng(1), CPU)]), schedule, [0])

    def plain(steps: int) -> None:
        module = hand_written(32)
        optimizer = torch.optim.SGD(module.parameters(), options.lr, momentum=0.9, weight_decay=5e-4)  # type: ignore[arg-type]
        draws = draw_many(ALL_OPS, steps, 100, Rng(0))
        for t in range(steps):
            order = torch.randperm(100)
            loss = nn.functional.cross_entropy(module(draws[t](images[order][None])[0]), labels[order])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def seconds(run: Any, argument: Any) -> float:
        started = time.perf_counter()
        run(argument)
        return time.perf_counter() - started

    ours(replace(schedule, options=SGDOptions(epochs=None, steps=3)))
    plain(3)
    ratios = [seconds(ours, schedule) / seconds(plain, steps) for _ in range(5)]
    print(f"ours / plain: {[round(ratio, 3) for ratio in ratios]}")
    assert statistics.median(ratios) < 1.25
