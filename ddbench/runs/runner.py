"""A run from start to end: prepare, condense, evaluate, record. Each stage does what the folder lacks."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddbench import synthetic as sets
from ddbench.artifacts import ArtifactCache, Tell
from ddbench.backbones import names as backbones
from ddbench.backbones.foreign import derivatives_explained
from ddbench.data.dataset import Dataset
from ddbench.data.sources import load
from ddbench.engine.precision import Precision
from ddbench.errors import DataError, RunError
from ddbench.evaluation.protocol import Protocol
from ddbench.evaluation.selection import Selector
from ddbench.files import disk_is_full, sha256_of
from ddbench.problem import Problem, fitted
from ddbench.rng import Rng
from ddbench.runs.condensing import SNAPSHOTS, Cadence, Condensation
from ddbench.runs.evaluating import (
    Cell,
    Judging,
    cells,
    curve_is_drawn,
    evaluations,
    recorded_curves,
    require_judges,
)
from ddbench.runs.finishing import describe, finish
from ddbench.runs.ledger import Ledger
from ddbench.runs.observers import Observer
from ddbench.runs.record import CostPart, RunRecord, read_record, write_record
from ddbench.runs.resolving import Resolution
from ddbench.runs.rundir import SPEC, RunDir
from ddbench.runs.runspec import RunSpec
from ddbench.runs.signals import Interrupted, Stop
from ddbench.runs.states import kept_failure
from ddbench.synthetic import SyntheticSet
from ddbench.text import budget

logger = logging.getLogger(__name__)

HOST_THREADS = 4  # of a run on a GPU

__all__ = ["Interrupted", "RunOptions", "build_problem", "dataset_of", "evaluate_run", "prepare", "run", "session"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a run is done. Nothing here changes what comes out.

    `curve` judges the snapshots too, when the run is over. `grace_seconds` is how long a step may go on after SIGTERM,
    and `stop_on` what a scheduler sends beside it.
    """

    root: Path
    data_root: Path
    device: torch.device
    fresh: bool = False
    observers: Sequence[Observer] = ()
    curve: bool = False
    snapshots: int = SNAPSHOTS
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    grace_seconds: float = 20.0
    stop_on: Sequence[signal.Signals] = ()

    @property
    def artifacts(self) -> Path:
        """Shared by all runs of a runs folder."""
        return self.root / "artifacts"


def prepare(resolution: Resolution, options: RunOptions) -> list[dict[str, Any]]:
    """Only fill the artefact cache with what the run will read. Returns what that is, with what it cost to make."""
    with session(options) as (stop, tell), stop.at_once():
        tell.on_phase("prepare")
        problem, _ = _given(resolution, options, tell)
        with _advised(resolution.method.info.memory_advice):
            resolution.method.prepare(problem)
        return list(problem.artifacts.used.values())


def run(resolution: Resolution, options: RunOptions) -> RunRecord:
    """Do what is missing of a run and return its record; a finished run is read, not repeated.

    Raises: Interrupted after SIGTERM or Ctrl-C, with everything saved; DivergedError; RunError if the folder is locked
    or foreign, or the disk is full.
    """
    spec, dataset = resolution.spec, resolution.dataset
    Precision(spec.precision).require(options.device)  # type: ignore[arg-type]
    there = not options.fresh and (options.root / spec.folder / SPEC).is_file()
    folder = RunDir.open(options.root, spec) if there else None
    record = _finished(folder, resolution.cells, options) if folder is not None else None
    if folder is not None and record is not None:
        told = _Everyone(options.observers)
        told.on_record(record, folder)
        told.on_end()
        return record
    # Before the folder is made: of a run that cannot be judged nothing is left.
    require_judges(resolution.cells, dataset.info)
    folder = RunDir.open(options.root, spec)
    with session(options) as (stop, tell), folder.lock(), kept_failure(folder), _explained(options):
        if options.fresh:
            folder.clear()
        ledger = Ledger(folder, options.device)
        ledger.check()
        if folder.synthetic.is_file():
            folder.set_sha256()
            ledger.begin(ledger.last_step)
        else:
            with _advised(resolution.method.info.memory_advice):
                _condense(resolution, options, folder, ledger, stop, tell)
        synthetic, info = sets.load(folder.synthetic), resolution.method.info
        space = fitted(synthetic.pixels, dataset.train, dataset.info, ArtifactCache(options.artifacts), options.device)
        title = f"{info.title}, {dataset.title}, {budget(spec.ipc)}, seed {spec.seed}"
        describe(folder, synthetic, dataset, space, title)
        _evaluate(folder, synthetic, dataset, resolution.cells, options, ledger, stop, tell, precision=spec.precision)
        tell.on_phase("record")
        record = finish(
            folder, spec, synthetic, dataset, space,
            title=info.title, kind=info.kind, native=info.native, learned=resolution.method.learns, ledger=ledger,
        )  # fmt: skip
        tell.on_record(record, folder)
        return record


def evaluate_run(
    path: Path,
    protocols: Sequence[Protocol],
    judges: Sequence[str],
    students: int | None,
    options: RunOptions,
    curve: bool = False,
    dataset_ref: str | None = None,
    precision: str | None = None,
) -> RunRecord:
    """More evaluations of a finished run; rewrites its record. What failed before is tried again.

    No judges: the backbones of each protocol. No students: as many as each protocol says. `dataset_ref` says where the
    dataset is that the run names, for one that is code: the folder may be somebody else's, and runs none. `precision`
    is that of students, by default of the run; each evaluation says in its record which it was.
    Raises: RunError if the run is not finished; DataError if the dataset is not the one it was made from.
    """
    folder = RunDir.at(path)
    finished_record(folder)
    precision = precision or folder.spec.precision
    Precision(precision).require(options.device)  # type: ignore[arg-type]
    dataset = dataset_of(folder, options.data_root, dataset_ref)
    asked = cells(protocols, judges, students, dataset.info.shape, own=folder.spec.backbone)
    require_judges(asked, dataset.info)
    with session(options) as (stop, tell), folder.lock():
        before = finished_record(folder)
        folder.set_sha256()
        ledger = Ledger(folder, options.device)
        ledger.check()
        ledger.begin(ledger.last_step)
        synthetic = sets.load(folder.synthetic)
        _evaluate(
            folder, synthetic, dataset, asked, options, ledger, stop, tell,
            retry=True, curve=curve or options.curve, precision=precision,
        )  # fmt: skip
        record = before.model_copy(
            update={
                "evaluations": tuple(evaluations(folder, before.synthetic.sha256)),
                "curves": recorded_curves(folder, before.synthetic.sha256),
                "cost": ledger.costs,
                "attempts": ledger.attempts,
            }
        )
        write_record(folder.record, record)
        tell.on_record(record, folder)
        return record


def dataset_of(folder: RunDir, data_root: Path, dataset_ref: str | None = None) -> Dataset:
    """The dataset that a run was made from. Raises: DataError if the one that is there is another."""
    dataset = load(dataset_ref or folder.spec.dataset, data_root)
    if dataset.info.name != folder.spec.dataset:
        raise DataError(f"run {folder.spec.id} was made from {folder.spec.dataset}, not from {dataset.info.name}.")
    require_images(dataset, folder.spec.data_fingerprint, f"run {folder.spec.id} was made from {folder.spec.dataset}")
    return dataset


def require_images(dataset: Dataset, fingerprint: str, made: str) -> None:
    """Raises: DataError where a dataset has other images than those of a fingerprint; `made` begins the sentence."""
    if dataset.fingerprint != fingerprint:
        raise DataError(
            f"{made} with fingerprint {fingerprint}, and the one in the data folder has {dataset.fingerprint}. "
            "Point --data at the folder with the other one."
        )


def finished_record(folder: RunDir) -> RunRecord:
    """The record of a finished run. Raises: RunError where it is not finished, or its record is damaged."""
    if not (folder.record.is_file() and folder.synthetic.is_file()):
        raise RunError(
            f"{folder.path} is not a finished run: run its command again first, which goes on where it stopped."
        )
    try:
        return read_record(folder.record)
    except RunError as error:
        again = "Remove the folder and import the set again" if folder.spec.imported else "Run its command again"
        raise RunError(f"{error} {again}, which writes a new one.") from None


def build_problem(
    dataset: Dataset,
    *,
    backbone: str,
    pixels: str,
    ipc: int,
    seed: int,
    device: torch.device,
    precision: str,
    artifacts_root: Path,
    tell: Tell | None = None,
) -> Problem:
    """The problem for a dataset: everything that a method is given, and no test data.

    A whitening is fitted once and kept under `artifacts_root`; the problem's artefact list says what it cost. `tell`
    hears how far the building of an artefact is.
    """
    artifacts = ArtifactCache(artifacts_root, tell=tell)
    return Problem(
        info=dataset.info,
        train=dataset.train,
        pixels=fitted(pixels, dataset.train, dataset.info, artifacts, device).to(device),
        backbone=backbones.build(backbone, dataset.info.shape, len(dataset.train.classes)),
        ipc=ipc,
        rng=Rng(seed),
        device=device,
        artifacts=artifacts,
        precision=Precision(precision),  # type: ignore[arg-type]
    )


def _ran_out(error: Exception) -> bool:
    """Whether `error` says that memory ran out: of a GPU, or of the host or Apple's GPUs, for which torch has no
    type."""
    untyped = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(name in str(error) for name in untyped)


def _too_large(error: Exception, advice: str) -> RunError:
    reason = str(error).partition("\n")[0].rstrip(". ") or "no more could be had"
    return RunError(
        f"the device is out of memory: {reason}. {advice}; running the same command again goes on from the last "
        "checkpoint, one with another option starts another run."
    )


@contextlib.contextmanager
def _advised(advice: str) -> Iterator[None]:
    """Memory that runs out becomes a sentence with this advice, if there is one."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (advice and _ran_out(error)):
            raise
        raise _too_large(error, advice) from error


@contextlib.contextmanager
def _few_threads(device: torch.device) -> Iterator[None]:
    """On a GPU little is left to the host. Threads that wait for each other there, and for a core beside other
    processes, have cost two thirds of a step. On a CPU their number is left alone, because sums are rounded by it."""
    before = torch.get_num_threads()
    if device.type != "cpu":
        torch.set_num_threads(min(before, HOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def session(options: RunOptions) -> Iterator[tuple[Stop, Observer]]:
    """Signals are heard, observers told when it is over, and memory that runs out becomes a sentence."""
    tell = _Everyone(options.observers)

    def last_words(text: str) -> None:
        tell.on_end()
        tell.on_note(text)
        if not options.observers:
            sys.stderr.write(f"Error: {text}\n")  # nobody else says why the process ends

    stop = Stop(options.grace_seconds, last_words, options.stop_on)
    try:
        with _explained(options), stop.listening(), _few_threads(options.device):
            yield stop, tell
    finally:
        tell.on_end()


@contextlib.contextmanager
def _explained(options: RunOptions) -> Iterator[None]:
    """Memory that runs out, and a disk that cannot be written, become sentences."""
    try:
        with _advised("Use a smaller batch or backbone, or another --device"):
            yield
    except OSError as error:
        if not (disk_is_full(error) or isinstance(error, PermissionError)):
            raise
        why = "the disk is full" if disk_is_full(error) else error.strerror
        raise RunError(
            f"{error.filename or options.root} could not be written: {why}. Once that is repaired, running the same "
            "command again goes on from the last checkpoint."
        ) from error


class _Everyone(Observer):
    """Passes everything on to several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_start(self, *values: Any) -> None:
        self._pass("on_start", values)

    def on_phase(self, *values: Any) -> None:
        self._pass("on_phase", values)

    def on_build(self, *values: Any) -> None:
        self._pass("on_build", values)

    def on_step(self, *values: Any) -> None:
        self._pass("on_step", values)

    def on_student(self, *values: Any) -> None:
        self._pass("on_student", values)

    def on_note(self, *values: Any) -> None:
        self._pass("on_note", values)

    def on_record(self, *values: Any) -> None:
        self._pass("on_record", values)

    def on_end(self) -> None:
        self._pass("on_end", ())

    def _pass(self, name: str, values: tuple[Any, ...]) -> None:
        for observer in self._observers:
            getattr(observer, name)(*values)


def _finished(folder: RunDir, asked: Sequence[Cell], options: RunOptions) -> RunRecord | None:
    """The record of a run to which nothing needs to be added."""
    if not (folder.record.is_file() and folder.synthetic.is_file()):
        return None
    try:
        record = read_record(folder.record)
    except RunError as error:
        # Everything that it is made from is still in the folder.
        logger.warning("%s It is made again.", error)
        return None
    folder.set_sha256()
    there = all(cell.in_record(record) for cell in asked)
    curves = not options.curve or all(curve_is_drawn(folder, cell, record) for cell in asked)
    return record if there and curves else None


def _problem(resolution: Resolution, options: RunOptions, tell: Observer) -> Problem:
    spec = resolution.spec
    return _problem_of(spec, resolution.dataset, options, tell, spec.pixels, spec.backbone)


def _given(resolution: Resolution, options: RunOptions, tell: Observer) -> tuple[Problem, Selector | None]:
    """What a method is given: the problem, without the images by which the best of its sets is selected, if it is."""
    problem = _problem(resolution, options, tell)
    selector = Selector.of(resolution.selection, resolution.method, problem)
    return (problem, None) if selector is None else (selector.problem, selector)


def _condense(
    resolution: Resolution, options: RunOptions, folder: RunDir, ledger: Ledger, stop: Stop, tell: Observer
) -> None:
    spec, dataset, method = resolution.spec, resolution.dataset, resolution.method
    tell.on_phase("prepare")
    with stop.at_once(), ledger.phase("prepare"):
        problem, selector = _given(resolution, options, tell)
        with problem.precision.active(problem.device):
            method.prepare(problem)
    # Now, not only at the end: after an interruption all this comes from the cache.
    ledger.set_artifacts(problem.artifacts.used)
    tell.on_phase("condense")
    about = {
        "run": spec.id,
        "method": spec.method,
        "dataset": spec.dataset,
        "data": dataset.fingerprint,
        "ipc": spec.ipc,
        "classes": list(dataset.train.classes),
    }
    cadence = Cadence(options.snapshots, options.checkpoint_seconds, options.checkpoint_steps)
    with derivatives_explained(problem.backbone):
        Condensation(method, problem, folder, ledger, stop, tell, cadence, about, selector).run()


def _evaluate(
    folder: RunDir,
    synthetic: SyntheticSet,
    dataset: Dataset,
    asked: Sequence[Cell],
    options: RunOptions,
    ledger: Ledger,
    stop: Stop,
    tell: Observer,
    *,
    retry: bool = False,
    curve: bool | None = None,
    precision: str,
) -> None:
    tell.on_phase("evaluate")
    sha256 = sha256_of(folder.synthetic)
    made = problems(replace(folder.spec, precision=precision), dataset, options, tell)
    judging = Judging(folder, synthetic, dataset, sha256, made, stop, tell, retry)
    try:
        with ledger.phase("evaluate"):
            results = [(cell, judging.judge(cell)) for cell in asked]
    finally:
        peaks = ledger.costs.get("evaluate")
        # Not where the disk was full when it should have been entered: that error is the one to tell.
        if peaks is not None:
            # Of students that count, in all attempts: one that was interrupted is trained again.
            seconds = sum(part.seconds for part in evaluations(folder, sha256))
            ledger.set_cost("evaluate", peaks.model_copy(update={"seconds": seconds}))
    if options.curve if curve is None else curve:
        step = int(sets.read_header(folder.synthetic)["about"]["step"])
        for cell, result in results:
            judging.draw_curve(cell, result, step, ledger.costs.get("condense", CostPart(seconds=0.0)).seconds)


def problems(spec: RunSpec, dataset: Dataset, options: RunOptions, tell: Observer) -> Callable[[str, str], Problem]:
    """Makes the problem of a judge, by pixel space and backbone."""
    return partial(_problem_of, spec, dataset, options, tell)


def _problem_of(
    spec: RunSpec, dataset: Dataset, options: RunOptions, tell: Observer, pixels: str, backbone: str
) -> Problem:
    return build_problem(
        dataset,
        backbone=backbone,
        pixels=pixels,
        ipc=spec.ipc,
        seed=spec.seed,
        device=options.device,
        precision=spec.precision,
        artifacts_root=options.artifacts,
        tell=tell.on_build,
    )
