"""What a run will cost, told from a few real steps of it.

Rough: the first steps are measured, on a device that others may use. Nothing of a run is written; a whitening that is
fitted quickly is kept, as those of runs are, because runs share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from ddbench.artifacts import Artifact, ArtifactCache
from ddbench.costs.bench import Bench, latest, student_result
from ddbench.data.pixels import PixelSpace, fit_pixels, is_quick
from ddbench.engine.capabilities import forget_peak, peak_bytes, wait_for
from ddbench.engine.precision import Precision
from ddbench.errors import ConfigError
from ddbench.evaluation.evaluate import tested_together
from ddbench.evaluation.protocol import judged_by, protocol
from ddbench.evaluation.selection import Selector
from ddbench.evaluation.trainer import Predictor, Trainer, trainer_of
from ddbench.initial import real_images
from ddbench.loop import drive, export
from ddbench.problem import Problem
from ddbench.runs import provenance
from ddbench.runs.evaluating import Cell
from ddbench.runs.resolving import Resolution
from ddbench.runs.runner import build_problem
from ddbench.synthetic import SyntheticSet
from ddbench.text import duration

R = TypeVar("R")

STEPS = 20
TRAINING_STEPS = 40


@dataclass(frozen=True)
class Phase:
    """One phase of a run. `seconds` is None where it could not be told in time, and it takes at least `least`.

    `basis` says what was measured.
    """

    name: str
    seconds: float | None
    basis: str
    least: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run will cost on a device, and the most memory that its measured steps used."""

    device: str
    phases: tuple[Phase, ...]
    peak_device_bytes: int | None
    peak_host_bytes: int | None

    @property
    def seconds(self) -> float:
        """Seconds of all phases that could be told, and the least that the others take."""
        return sum(phase.least if phase.seconds is None else phase.seconds for phase in self.phases)

    @property
    def complete(self) -> bool:
        """Whether every phase could be told."""
        return all(phase.seconds is not None for phase in self.phases)


def estimate(resolution: Resolution, *, root: Path, device: torch.device, limit: float = 8.0) -> Estimate:
    """Measure the first steps of a run, and of a student of each judge, and extrapolate.

    `root` is the runs folder; artefacts in it are used, others made in a temporary one. So are the times of students
    that `ddbench bench` measured on this device. Takes about `limit` seconds.
    Raises: ConfigError, DataError where the run itself would.
    """
    forget_peak(device)
    with tempfile.TemporaryDirectory(prefix="ddbench-estimate-") as folder:
        problem, phases = _problem(resolution, root, Path(folder), device, limit / 4)
        condensing, made = _condense(resolution, problem, limit / 4)
        phases += condensing
        known = latest(root, device)
        # Real images, as many as there will be, where nothing was made.
        synthetic = made or SyntheticSet(
            real_images(problem, problem.rng.fold("estimate")).cpu(), problem.class_labels(), pixels=problem.pixels.name
        )
        choices = _choices(resolution, problem) if made is not None else 0
        # In the set's own space, which may be that of a part of the images.
        space = problem.pixels if synthetic.pixels == problem.pixels.name else _space(synthetic.pixels, problem)
        problem = dataclasses.replace(problem, pixels=space)
        share = limit / 2 / max(1, len(resolution.cells) + (choices > 0))
        if choices:
            phases.append(_choosing(resolution, choices, synthetic, problem, share, known))
        phases += [
            _students(cell, synthetic, problem, share, known, stand_in=made is None) for cell in resolution.cells
        ]
    return Estimate(
        device=provenance.device_name(device),
        phases=tuple(phases),
        peak_device_bytes=peak_bytes(device),
        peak_host_bytes=provenance.peak_host_bytes(),
    )


class _TimeIsUpError(Exception):
    """Raised in the measured code."""


@dataclass
class _Scratch(ArtifactCache):
    """Reads the artefacts of a shared cache and makes others in a folder of its own."""

    shared: ArtifactCache = field(kw_only=True)

    def get(self, artifact: Artifact[R], problem: Problem) -> R:
        folder = self.shared.root / artifact.kind / artifact.key
        if folder.is_dir() and not artifact.missing(folder):
            return artifact.open(folder)
        return super().get(artifact, problem)


def _problem(
    resolution: Resolution, root: Path, scratch: Path, device: torch.device, limit: float
) -> tuple[Problem, list[Phase]]:
    spec = resolution.spec

    def made(pixels: str) -> Problem:
        problem = build_problem(
            resolution.dataset,
            backbone=spec.backbone,
            pixels=pixels,
            ipc=spec.ipc,
            seed=spec.seed,
            device=device,
            precision=spec.precision,
            artifacts_root=root / "artifacts",
        )
        return dataclasses.replace(problem, artifacts=_Scratch(scratch, shared=problem.artifacts))

    # Not begun, because a decomposition cannot be interrupted.
    if is_quick(spec.pixels, resolution.dataset.train, root / "artifacts" / "pixels", device):
        with contextlib.suppress(_TimeIsUpError), _at_most(limit):
            return made(spec.pixels), []
    unknown = Phase("pixels", None, f"fitting {spec.pixels} takes more than {limit:.2g} s, once for this dataset")
    return made("standard"), [unknown]


def _space(name: str, problem: Problem) -> PixelSpace:
    store = problem.artifacts.root / "pixels"  # where the method has fitted it
    return fit_pixels(name, problem.train, problem.info, store, device=problem.device).to(problem.device)


def _condense(resolution: Resolution, problem: Problem, limit: float) -> tuple[list[Phase], SyntheticSet | None]:
    """The phases, and the method's set where it got so far."""
    method, selection = resolution.method, resolution.selection
    times: list[float] = []
    doing, started = "prepare", time.perf_counter()
    phases: list[Phase] = []
    synthetic = None
    try:
        with problem.precision.active(problem.device), _at_most(limit):
            # Not before: setting torch's flags can import parts of it that were not needed until now.
            started = time.perf_counter()
            if selection.on:
                problem, _ = problem.heldout(selection.heldout)
            method.prepare(problem)
            phases.append(Phase("prepare", time.perf_counter() - started, "measured"))
            doing = "start"
            for state, _ in drive(method, problem):
                wait_for(problem.device)
                times.append(time.perf_counter())
                if doing == "start":
                    synthetic, doing = export(method, problem, state), "step"
                    times[-1] = time.perf_counter()
                elif len(times) > STEPS or times[-1] - times[0] > limit / 2:
                    break
    except _TimeIsUpError:
        pass
    made = " and ".join(sorted({entry["kind"] for entry in problem.artifacts.used.values()}))
    if doing == "prepare":
        phases.append(Phase("prepare", None, f"takes more than {limit:.2g} s; what it makes is kept and shared"))
        phases.append(Phase("condense", None, "cannot be told before `ddbench prepare` has run"))
    else:
        if made:
            phases[0] = dataclasses.replace(phases[0], basis=f"measured: {made}")
        start = times[0] - started - (phases[0].seconds or 0.0) if times else None
        phases.append(_steps(method.total_steps(problem), times, start, limit))
    return phases, synthetic


def _choices(resolution: Resolution, problem: Problem) -> int:
    """How often a run looks whether its set is the best so far."""
    if (selector := Selector.of(resolution.selection, resolution.method, problem)) is None:
        return 0
    return math.ceil(resolution.method.total_steps(selector.problem) / selector.steps)


def _steps(total: int, times: list[float], start: float | None, limit: float) -> Phase:
    if start is None:
        return Phase("condense", None, f"its start takes more than {limit:.2g} s")
    durations = [b - a for a, b in itertools.pairwise(times)]
    if not durations and total:
        least = total * limit
        basis = f"one of its {total} steps takes more than {limit:.2g} s: over {duration(least)} in all"
        return Phase("condense", None, basis, least)
    # The first step also pays for what is done once: memory, the choice of kernels.
    each = statistics.median(durations[1:] or durations) if durations else 0.0
    basis = (
        f"{total} steps of {1000 * each:.3g} ms, {len(durations)} measured" if total else "measured: it has no steps"
    )
    return Phase("condense", start + total * each, basis)


def _choosing(
    resolution: Resolution, choices: int, synthetic: SyntheticSet, problem: Problem, limit: float, known: Bench | None
) -> Phase:
    students, by = resolution.selection.students, protocol(resolution.method.native)
    trainer, name = trainer_of(synthetic, by, problem), f"choose by {by.id}"
    return _trained(trainer, name, choices * students, limit, known, stand_in=False, at_once=students)


def _students(
    cell: Cell, synthetic: SyntheticSet, problem: Problem, limit: float, known: Bench | None, *, stand_in: bool
) -> Phase:
    trainer = trainer_of(synthetic, cell.protocol, problem.with_backbone(cell.backbone))
    name = f"evaluate {cell.protocol.id} {judged_by(cell.protocol.id, cell.backbone)}"
    return _trained(trainer, name, cell.students, limit, known, stand_in=stand_in)


def _trained(
    trainer: Trainer,
    name: str,
    students: int,
    limit: float,
    known: Bench | None,
    *,
    stand_in: bool,
    at_once: int | None = None,
) -> Phase:
    """What so many students of a trainer take, tests included; `at_once` of them are trained together."""
    problem = trainer.problem
    try:
        with problem.precision.active(problem.device), _at_most(limit):
            total = trainer.steps
            if _length_is_found(trainer):
                return Phase(name, None, "cannot be told before the set says how long to train on it")
            single = trainer.deterministic
            students, trials = (1, 0) if single else (students, trainer.trials)
            group = list(range(min(students, at_once or trainer.together)))
    except _TimeIsUpError:
        return Phase(name, None, f"getting ready for a student takes more than {limit:.2g} s")
    except ConfigError as error:
        if stand_in:
            return Phase(name, None, "cannot be told before there is a set, which brings how it is trained on")
        return Phase(name, 0.0, f"will fail: {error}")
    networks = f"{students} student{'s' * (students != 1)}" + (f" and {trials} to choose by" if trials else "")
    trained = students + trials
    found = student_result(known, trainer) if known is not None else None
    if found is not None and found.student is not None:
        setup, one = found.setup_seconds or 0.0, found.student.seconds
        basis = f"ddbench bench: {networks} x {total} steps of {found.ms:.3g} ms"
        return _tested(name, basis, setup + trained * one, students, _testing(problem, _untrained(problem), limit))
    taken = [(time.perf_counter(), 0)]

    def tick(steps: int) -> None:
        wait_for(problem.device)
        taken.append((time.perf_counter(), steps))
        if len(taken) > TRAINING_STEPS:
            raise _TimeIsUpError

    predict = None
    with problem.precision.active(problem.device), contextlib.suppress(_TimeIsUpError), _at_most(limit):
        trainer.choose(tick)
        predict = trainer.train(group, tick)
        wait_for(problem.device)
    if predict is not None:
        training = (time.perf_counter() - taken[0][0]) / (len(group) + trials) * trained
        basis = f"{networks} x {total} steps, {len(group) + trials} trained to the end"
        testing = _testing(problem, predict, limit)
        return _tested(name, "its predictions" if single else basis, training, students / len(group), testing)
    if len(taken) == 1:
        least = trained * total * limit
        slow = f"one of {total} training steps takes more than {limit:.2g} s: over {duration(least)} without tests"
        return Phase(name, None, slow, least)
    # The first step also pays for what is done once, such as drawing the order of the images.
    counted = taken[1:] if len(taken) > 2 else taken
    each = (counted[-1][0] - counted[0][0]) / sum(steps for _, steps in counted[1:])
    basis = f"{networks} x {total} steps of {1000 * each:.3g} ms, {len(counted) - 1} measured"
    return _tested(name, basis, trained * total * each, students, _testing(problem, _untrained(problem), limit))


def _length_is_found(trainer: Trainer) -> bool:
    """Whether the set says how long to train on it; condensation finds that, and this set comes from its start."""
    recipe = trainer.synthetic.recipe
    if recipe.steps is None:
        return False
    longer = dataclasses.replace(trainer.synthetic, recipe=dataclasses.replace(recipe, steps=recipe.steps + 1))
    return trainer_of(longer, trainer.protocol, trainer.problem).steps != trainer.steps


def _tested(name: str, basis: str, training: float, tests: float, testing: float | None) -> Phase:
    if testing is None:
        return Phase(name, None, "predicting one image takes too long to be measured", training)
    return Phase(name, training + tests * testing, basis)


def _untrained(problem: Problem) -> Predictor:
    """Answers in the time of a trained student."""
    variables = problem.backbone.init(problem.rng.fold("estimate"), problem.device)
    return lambda x: problem.backbone(variables, x, train=False)[0]


def _testing(problem: Problem, predict: Predictor, limit: float) -> float | None:
    """Seconds to predict as many images as the test set has, by ever larger batches of training images; None where one
    takes longer than the limit.

    Test data is not read for an estimate.
    """
    each = None
    with (
        Precision("fp32").active(problem.device),
        torch.inference_mode(),
        contextlib.suppress(_TimeIsUpError),
        _at_most(limit),
    ):
        for size in (1, 10, 100, tested_together(problem.shape)):
            raw = problem.train.images[:size].to(problem.device)
            started = time.perf_counter()
            predict(problem.pixels.forward(raw))
            wait_for(problem.device)
            each = (time.perf_counter() - started) / len(raw)
    return None if each is None else each * (problem.info.test or len(problem.train))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise _TimeIsUpError inside the block after that long. Elsewhere than in the main thread there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUpError

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
