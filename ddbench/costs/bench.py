"""How fast the hot loops are on this machine: student training, steps of methods, and the ceilings of the device.

On random images of CIFAR-10's shape, so that nothing has to be downloaded. The clock is read after waiting for the
device.
"""

from __future__ import annotations

import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.variables import Variables
from ddbench.config import Layer, preset_layers, resolve
from ddbench.data.catalogue import CATALOGUE
from ddbench.data.dataset import Dataset
from ddbench.data.tensors import DatasetTensors
from ddbench.engine.capabilities import has_graphs, wait_for
from ddbench.engine.precision import Precision
from ddbench.errors import ConfigError, RunError
from ddbench.evaluation.evaluate import SealedTest, scores, tested_together
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.evaluation.trainer import Trainer
from ddbench.files import write_json
from ddbench.initial import real_images
from ddbench.loop import drive
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.runs import provenance
from ddbench.runs.record import read_document
from ddbench.runs.resolving import find_method
from ddbench.runs.runner import build_problem
from ddbench.synthetic import SyntheticSet
from ddbench.training import lockstep
from ddbench.training.experts import EXPERT_BATCH, ExpertTrajectories
from ddbench.training.students import footprint, students_together

Loop = Literal["ceiling", "methods", "students", "experts"]

USUAL: tuple[Loop, ...] = ("ceiling", "methods", "students")

SCHEMA: Literal["ddbench.bench/1"] = "ddbench.bench/1"
PROTOCOL = PROTOCOLS["dsa@1"]
REPEATS = 3
PER_CLASS = 512
# Of the images of an expert's epoch: all of CIFAR-10 on a GPU.
EXPERT_PER_CLASS = {"gpu": 5000, "cpu": PER_CLASS}
EXPERT_EPOCHS = 1 + REPEATS
TEST_IMAGES = 10_000
# As a graph a method's step is called, captured, timed, and then perhaps compiled, called and captured again.
WARM_METHOD = {"graph": 8, "plain": 1}
WARM_STUDENT = {"graph": 10, "plain": 1}
PRODUCT_SIDE = {"gpu": 8192, "cpu": 1024}
COPIED_BYTES = {"gpu": 1 << 30, "cpu": 1 << 28}
# All students are really trained where that takes up to so many times the seconds that a loop is given.
WORTH_FINISHING = 3.0


class Part(BaseModel):
    """A part of a bench document. Frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Machine(Part):
    """What the numbers were measured on."""

    device: str
    cpu: str
    torch: str
    cuda: str | None
    python: str
    threads: int


class StudentPart(Part):
    """What a student is trained on, and what a whole one costs."""

    backbone: str
    shape: tuple[int, int, int]
    classes: int
    images: int = Field(description="In the synthetic set.")
    digest: str = Field(description="Of the protocol.")
    way: Literal["plain", "graph", "compiled graph"] = Field(description="How the engine took the steps.")
    steps: int = Field(ge=1, description="Of one student.")
    seconds: float = Field(gt=0, allow_inf_nan=False, description="One student at the steady pace.")
    students: int = Field(ge=1, description="How many were asked for.")
    all_in_seconds: float = Field(
        gt=0, allow_inf_nan=False, description="One of them with its share of the setup, and tested."
    )
    extrapolated: bool = Field(description="Whether the whole was told from a stretch of steps.")


class Result(Part):
    """One loop in one precision. Times are of one step of one student, of one step of a method, of one product."""

    loop: Loop
    name: str
    precision: str
    ms: float = Field(gt=0, allow_inf_nan=False, description="Median of the repeats.")
    spread_ms: float = Field(ge=0, allow_inf_nan=False, description="Slowest less fastest repeat.")
    repeats: int = Field(ge=1)
    calls: int = Field(ge=1, description="In all repeats together.")
    setup_seconds: float | None = Field(default=None, description="Before the steady pace: start, compile, capture.")
    images_per_second: float | None = None
    tflops: float | None = None
    share: float | None = Field(default=None, description="Of the measured ceiling in the same precision.")
    gigabytes_per_second: float | None = Field(default=None, description="Read and written.")
    student: StudentPart | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is a measurement of."""
        return self.name, self.precision


class Bench(Part):
    """All loops that were measured at once. No host names, no paths, no dates."""

    bench_schema: Literal["ddbench.bench/1"] = Field(SCHEMA, alias="schema")
    machine: Machine
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that is written to a file."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, kw_only=True)
class AskedBench:
    """What to measure. Methods use the first of the backbones."""

    device: torch.device
    backbones: Sequence[str] = ("convnet",)
    ipcs: Sequence[int] = (1, 10)
    methods: Sequence[str] = ("dm",)
    precisions: Sequence[str] = ("fp32",)
    loops: Sequence[Loop] = USUAL
    students: int = PROTOCOL.students
    seconds: float = 3.0


@dataclass(frozen=True)
class Comparison:
    """One loop in two documents. `same` says that the difference is no larger than the spread of either."""

    name: str
    precision: str
    old_ms: float
    new_ms: float
    faster: float
    same: bool


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one value a repeat."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def fields(self) -> dict[str, Any]:
        """The numbers that results hold: milliseconds, their spread, and how many repeats of how many calls."""
        spread = 1000 * (max(self.seconds) - min(self.seconds))
        return {"ms": 1000 * self.median, "spread_ms": spread, "repeats": len(self.seconds), "calls": self.calls}


def measure(asked: AskedBench, say: Callable[[str], None] = lambda _: None) -> Bench:
    """Time the loops one after another; `say` is told which comes next.

    Raises: PluginError, ConfigError for methods and backbones that cannot be timed, and for a precision that the device
    lacks.
    """
    for name in asked.precisions:
        Precision(name).require(asked.device)  # type: ignore[arg-type]
    return Bench(machine=this_machine(asked.device), results=tuple(_results(asked, say)))


def kind_of(device: torch.device) -> Literal["gpu", "cpu"]:
    """By which kind of device the amounts of work above are chosen."""
    return "cpu" if device.type == "cpu" else "gpu"


def _way(device: torch.device) -> Literal["graph", "plain"]:
    return "graph" if has_graphs(device) else "plain"


def this_machine(device: torch.device) -> Machine:
    """This machine with one of its devices."""
    return Machine(
        device=provenance.device_name(device),
        cpu=provenance.cpu_name(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda if device.type == "cuda" else None,
        python=provenance.python_version(),
        threads=torch.get_num_threads(),
    )


def compare(new: Bench, old: Bench) -> list[Comparison]:
    """The loops that are in both, in the order of `new`."""
    before = {result.key: result for result in old.results}
    rows = []
    for result in new.results:
        if (past := before.get(result.key)) is not None:
            same = abs(result.ms - past.ms) <= max(result.spread_ms, past.spread_ms)
            rows.append(Comparison(*result.key, past.ms, result.ms, past.ms / result.ms, same))
    return rows


def read_bench(path: Path) -> Bench:
    """Read a document. Raises: RunError for a missing, damaged or foreign file, naming it."""
    return read_document(path, Bench, SCHEMA, "was not written by `ddbench bench`")


def save_latest(root: Path, bench: Bench) -> None:
    """Keep a document in the runs folder `root`, for the estimates of `ddbench run --dry-run`."""
    write_json(_latest(root, bench.machine.device), bench.to_json())


def latest(root: Path, device: torch.device) -> Bench | None:
    """The last document about this very machine, with the same torch and as many threads; None without one."""
    here = this_machine(device)
    try:
        found = read_bench(_latest(root, here.device))
    except RunError:
        return None
    return found if found.machine == here else None


def student_result(bench: Bench, trainer: Trainer) -> Result | None:
    """The measurement of students that are trained as those of a trainer, if there is one."""
    problem, images = trainer.problem, len(trainer.synthetic.images)
    wanted = (problem.backbone.name, problem.shape, problem.classes, images, trainer.protocol.digest)
    for result in bench.results:
        part = result.student
        if part is None or result.precision != problem.precision.name:
            continue
        if (part.backbone, part.shape, part.classes, part.images, part.digest) == wanted:
            return result
    return None


def _latest(root: Path, device: str) -> Path:
    slug = re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")
    return root / "artifacts" / "bench" / f"{slug}.json"


def _results(asked: AskedBench, say: Callable[[str], None]) -> Iterator[Result]:
    data = _dataset(PER_CLASS)
    ceilings: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ddbench-bench-") as folder:
        problem = partial(_problem, device=asked.device, artifacts=Path(folder))
        if "ceiling" in asked.loops:
            say("ceiling")
            for result in _ceilings(asked):
                ceilings[result.precision] = result.tflops or 0.0
                yield result
        # Before students, as in a run: training them makes the process keep its memory.
        if "methods" in asked.loops:
            for precision, ref, ipc in itertools.product(asked.precisions, asked.methods, asked.ipcs):
                say(f"{ref} ipc{ipc} {precision}")
                yield _method(ref, problem(data, asked.backbones[0], ipc, precision), asked)
        if "students" in asked.loops:
            for precision, backbone, ipc in itertools.product(asked.precisions, asked.backbones, asked.ipcs):
                say(f"students {backbone} ipc{ipc} {precision}")
                yield _of_ceiling(_students(problem(data, backbone, ipc, precision), data, asked), ceilings)
        if "experts" in asked.loops:
            everything = _dataset(EXPERT_PER_CLASS[kind_of(asked.device)])
            for precision, backbone in itertools.product(asked.precisions, asked.backbones):
                say(f"experts {backbone} {precision}")
                yield _of_ceiling(_experts(problem(everything, backbone, 1, precision)), ceilings)


def _problem(
    data: Dataset, backbone: str, ipc: int, precision: str, *, device: torch.device, artifacts: Path
) -> Problem:
    return build_problem(
        data, backbone=backbone, pixels="standard", ipc=ipc, seed=0, device=device, precision=precision,
        artifacts_root=artifacts,
    )  # fmt: skip


def _of_ceiling(result: Result, ceilings: Mapping[str, float]) -> Result:
    """A result with its share of the ceiling of its precision, where both are known."""
    ceiling = ceilings.get(result.precision)
    share = result.tflops / ceiling if ceiling and result.tflops else None
    return result.model_copy(update={"share": share})


def _dataset(per_class: int) -> Dataset:
    """Random images of CIFAR-10's shape, which are not CIFAR-10: their fingerprint is another."""
    known = CATALOGUE["cifar10"]
    rng = Rng(0, ("bench",))

    def draw(part: str, count: int) -> DatasetTensors:
        pixels = rng.fold(part).numpy().integers(0, 256, (count, *known.shape), dtype=np.uint8)
        labels = torch.arange(known.classes).repeat_interleave(count // known.classes)
        return DatasetTensors(torch.from_numpy(pixels), labels, known.class_names)

    train, test = draw("train", per_class * known.classes), draw("test", TEST_IMAGES)
    return Dataset.in_memory(replace(known, train=len(train), test=len(test)), train, test, origin="random")


def _ceilings(asked: AskedBench) -> Iterator[Result]:
    """Square products in each precision, and a copy on the device."""
    device, kind = asked.device, kind_of(asked.device)
    side, rng = PRODUCT_SIDE[kind], Rng(0, ("bench", "ceiling"))
    numbers = torch.randn(2, side, side, generator=rng.torch(device), device=device)
    for name in asked.precisions:
        left, right = numbers.bfloat16() if name == "bf16" else numbers
        multiply = partial(torch.mm, left, right, out=torch.empty_like(left))
        # The inputs have their type already; autocast would only look at them once more.
        with Precision(name).active(device), torch.autocast(kind, enabled=False):  # type: ignore[arg-type]
            timing = timed(multiply, device, asked.seconds)
        tflops = 2 * side**3 / timing.median / 1e12
        yield Result(loop="ceiling", name=f"product of {side}x{side}", precision=name, tflops=tflops, **timing.fields())
    source = torch.arange(COPIED_BYTES[kind] // 8, device=device)
    target = torch.empty_like(source)
    timing = timed(lambda: target.copy_(source), device, asked.seconds)
    rate = 2 * COPIED_BYTES[kind] / timing.median / 1e9
    yield Result(loop="ceiling", name="copy", precision="any", gigabytes_per_second=rate, **timing.fields())


def _method(ref: str, problem: Problem, asked: AskedBench) -> Result:
    """Steps of a method under its preset for CIFAR-10, prepared as its preset `timing` says, if it has one."""
    _, kind = find_method(ref)
    layers, _ = preset_layers(kind.settings(), "timing", problem.info.name, problem.ipc)
    layers.append(Layer("timing", kind.info.timing))
    method = kind(resolve(kind.name, kind.Config, layers).config)
    warm, total = WARM_METHOD[_way(asked.device)], method.total_steps(problem)
    if total < warm + 1 + REPEATS:
        raise ConfigError(
            f"{kind.name} takes {total} steps, too few to time; give --method one that learns in steps, such as dm, or "
            "--loop students."
        )
    with problem.precision.active(problem.device):
        started = time.perf_counter()
        steps = drive(method, problem)
        next(steps)
        timing = timed(lambda: next(steps), asked.device, asked.seconds, warm=warm, most=total)
        passed = time.perf_counter() - started
    setup = max(0.0, passed - timing.median * (1 + timing.calls))
    name = f"{kind.name} ipc{problem.ipc} {problem.backbone.name}"
    return Result(loop="methods", name=name, precision=problem.precision.name, setup_seconds=setup, **timing.fields())


def _experts(problem: Problem) -> Result:
    """An epoch of one expert, of as many as are trained side by side."""
    side_by_side = students_together(EXPERT_BATCH, problem.device, footprint(problem.backbone))
    wanted = ExpertTrajectories.of(problem, experts=side_by_side, epochs=EXPERT_EPOCHS, lr=0.01)
    with problem.precision.active(problem.device):
        times = problem.artifacts.get(wanted, problem).seconds(0)
    # The first epoch has the setup in it.
    epochs = tuple(after - before for before, after in itertools.pairwise(times[1:]))
    timing, images = Timing(epochs, len(epochs)), len(problem.train)
    rate = images / timing.median
    return Result(
        loop="experts",
        name=f"expert epoch {problem.backbone.name}, {images} images",
        precision=problem.precision.name,
        # An expert is charged its share of what those side by side took.
        setup_seconds=max(0.0, side_by_side * (times[1] - timing.median)),
        images_per_second=rate,
        tflops=rate * flops_per_image(problem.backbone) / 1e12,
        **timing.fields(),
    )


def _students(problem: Problem, data: Dataset, asked: AskedBench) -> Result:
    """Students under dsa@1, by the path that a run takes: `scores`."""
    synthetic = SyntheticSet(
        real_images(problem, problem.rng.fold("bench")).cpu(), problem.class_labels(), pixels=problem.pixels.name
    )
    count, device = asked.students, asked.device
    # As a fresh process would find it: what one loop has compiled would otherwise serve the next.
    lockstep.COMPILED.forget()
    finished = True
    wait_for(device)
    started = time.perf_counter()
    trainer = SGDTrainer(synthetic, PROTOCOL, problem, students=count)
    schedule = trainer.plan
    watch = _Stopwatch(device, asked.seconds, schedule.steps, count)
    try:
        for _ in scores(trainer, SealedTest(data.test), range(count), progress=watch):
            pass
    except _EnoughError:
        finished = False
    passed = time.perf_counter() - started
    timing = watch.timing()
    setup = max(0.0, watch.first - started - timing.median * watch.group)
    whole = schedule.steps * timing.median
    images = len(synthetic.images) / schedule.steps_per_epoch
    rate = images / timing.median
    graph: Literal["graph", "compiled graph"] = "compiled graph" if lockstep.COMPILED else "graph"
    student = StudentPart(
        backbone=problem.backbone.name,
        shape=problem.shape,
        classes=problem.classes,
        images=len(synthetic.images),
        digest=PROTOCOL.digest,
        way=graph if schedule.static and has_graphs(device) else "plain",
        steps=schedule.steps,
        seconds=whole,
        students=count,
        all_in_seconds=passed / count if finished else setup / count + whole + _testing(problem, data),
        extrapolated=not finished,
    )
    return Result(
        loop="students",
        name=f"student {problem.backbone.name} ipc{problem.ipc}",
        precision=problem.precision.name,
        setup_seconds=setup,
        images_per_second=rate,
        tflops=rate * flops_per_image(problem.backbone) / 1e12,
        student=student,
        **timing.fields(),
    )


def timed(
    call: Callable[[], Any], device: torch.device, seconds: float, *, warm: int = 1, most: int | None = None
) -> Timing:
    """Time a call over and over, for about so many seconds after `warm` calls; `most` bounds the calls in all."""
    for _ in range(warm):
        call()
    # The probe also tells how many calls fit.
    count = max(1, int(seconds / REPEATS / _seconds_of(call, 1, device)))
    if most is not None:
        count = max(1, min(count, (most - warm - 1) // REPEATS))
    return Timing(tuple(_seconds_of(call, count, device) / count for _ in range(REPEATS)), REPEATS * count)


def _seconds_of(call: Callable[[], Any], count: int, device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait_for(device)
    return time.perf_counter() - started


def flops_per_image(net: Backbone) -> float:
    """Floating-point operations of one training step, forward and backward, per image.

    Products and convolutions only: torch counts no norms, activations or pooling, and augmentation is left out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # On the meta device nothing is computed, and operations are counted all the same.
    meta, batch = torch.device("meta"), 2
    variables = net.init(Rng(0), torch.device("cpu")).to(meta)
    params = {name: value.requires_grad_() for name, value in variables.params.items()}
    images = torch.empty(batch, *net.shape, device=meta)
    with FlopCounterMode(display=False) as counter:
        logits, _ = net(Variables(params, variables.buffers), images, train=True)
        labels = torch.zeros(batch, dtype=torch.int64, device=meta)
        torch.autograd.grad(F.cross_entropy(logits, labels), list(params.values()))
    return counter.get_total_flops() / batch


class _EnoughError(Exception):
    """Raised in the training that is timed."""


@dataclass
class _Stopwatch:
    """The progress of `scores`, which waits for the device only between stretches of steps, so as not to disturb them.

    `steps` are those of one student, of which `students` are to be trained.
    """

    device: torch.device
    limit: float
    steps: int
    students: int
    first: float = 0.0
    group: int = 0
    _taken: int = 0
    _next: int = 1
    _stretch: int = 0
    _marks: list[float] = field(default_factory=list)

    def __call__(self, student_steps: int) -> None:
        if not student_steps:  # a batch of test images
            return
        self._taken += 1
        if self._taken != self._next:
            return
        wait_for(self.device)
        now = time.perf_counter()
        if self._taken == 1:
            self.first, self.group = now, student_steps
            # A student of few steps keeps enough of them for the repeats.
            self._next = 1 + max(1, min(WARM_STUDENT[_way(self.device)], (self.steps - 1) // (2 * REPEATS)))
            return
        if not self._stretch:
            each = (now - self.first) / (self._taken - 1)
            most = (self.steps - self._taken) // REPEATS
            self._stretch = max(1, min(int(self.limit / REPEATS / each), most))
        self._marks.append(now)
        self._next += self._stretch
        if len(self._marks) > REPEATS:
            self._next = -1
            if self.students * self.steps * self.timing().median > WORTH_FINISHING * self.limit:
                raise _EnoughError

    def timing(self) -> Timing:
        """Seconds of one step of one student, in each stretch."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return Timing(tuple((b - a) / self._stretch / self.group for a, b in pairs), REPEATS * self._stretch)


def _testing(problem: Problem, data: Dataset) -> float:
    """Seconds to test one student, told from a few images."""
    count = tested_together(problem.shape)
    if kind_of(problem.device) == "cpu":
        count = max(1, count // 10)
    test = data.test.load()
    images = problem.pixels.forward(test.images[:count].to(problem.device))
    variables = problem.backbone.init(problem.rng.fold("bench"), problem.device)
    with torch.inference_mode(), Precision("fp32").active(problem.device):
        timing = timed(lambda: problem.backbone(variables, images, train=False), problem.device, 0.0)
    return timing.median * len(test) / count
