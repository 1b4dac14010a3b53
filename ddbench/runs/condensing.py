"""The second stage of a run: drive the method, log, checkpoint, take snapshots, and go on where an attempt ended."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddbench import synthetic as sets
from ddbench.data.scale import left_range, real_scale, scale_of
from ddbench.errors import DivergedError, PluginError
from ddbench.evaluation.selection import Selector
from ddbench.loop import drive, export, over
from ddbench.method import Method, Metrics, State
from ddbench.problem import Problem
from ddbench.runs import checkpoint
from ddbench.runs.checkpoint import Checkpoint
from ddbench.runs.ledger import Clock, Ledger, Peaks
from ddbench.runs.observers import MetricLog, Observer, Started
from ddbench.runs.record import CostPart
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import Stop
from ddbench.synthetic import SyntheticSet

# A tick moves all metrics since the last one to the host at once, so that no step waits for the device.
TICK_SECONDS = 1.0
TICK_STEPS = 100


SNAPSHOTS = 5
"""How many states of a set a run keeps where nobody says, the result among them."""


@dataclass(frozen=True)
class Cadence:
    """How often something is written. `checkpoint_steps` comes on top of the clock, for tests."""

    snapshots: int = SNAPSHOTS
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None


def snapshot_steps(total: int, count: int) -> list[int]:
    """Where snapshots are taken: at the start, and denser early than late. The end is the result itself.

    For 5 of 1000 steps: 0, 62, 250, 562, and the result.
    """
    if total < 1 or count < 1:
        return []
    return sorted({math.floor(total * (i / (count - 1)) ** 2) for i in range(count - 1)}) if count > 1 else []


@dataclass
class Condensation:
    """One attempt. Whatever is written in it is not counted as condensation time."""

    method: Method[Any]
    problem: Problem
    folder: RunDir
    ledger: Ledger
    stop: Stop
    tell: Observer
    cadence: Cadence
    about: Mapping[str, Any]
    selector: Selector | None = None
    _pending: list[tuple[int, Metrics]] = field(default_factory=list)
    _told: bool = False

    def run(self) -> None:
        """From the last good checkpoint to the end; synthetic.safetensors is there afterwards.

        Raises: Interrupted after a signal, DivergedError when a number is no longer one.
        """
        device = self.problem.device
        saved = checkpoint.load(self.folder.checkpoints, self.folder.spec.id, device, self.tell.on_note)
        step = saved.step if saved is not None else 0
        self._log = MetricLog(self.folder.log)
        self._log.cut(step if saved is not None else -1)
        self._clock = Clock(device, saved.seconds if saved is not None else 0.0)
        self._peaks = Peaks(device, *((saved.peak_device_bytes, saved.peak_host_bytes) if saved is not None else ()))
        self._total = self.method.total_steps(self.problem)
        self._snapshots = set(snapshot_steps(self._total, self.cadence.snapshots))
        self._saved_step = saved.step if saved is not None else None
        self.ledger.begin(step)
        self.tell.on_start(Started(self.folder.spec, self.folder.path, step, self._total))
        with self.problem.precision.active(device):
            self._drive(saved)

    def _drive(self, saved: Checkpoint | None) -> None:
        # What start() does again after an interruption was counted the first time.
        if saved is None:
            self._clock.start()
        if self.selector is not None and saved is not None:
            self.selector.load_state_dict(saved.best)
        steps = drive(self.method, self.problem, saved.state if saved is not None else None, self.selector)
        with self.stop.at_once():
            state, _ = next(steps)
        if saved is not None:
            self._clock.start()
        self._ticked = self._checkpointed = time.monotonic()
        self._snapshot(state)
        while (metrics := self._step(steps, state)) is not None:
            self._pending.append((state.step, metrics))
            self._between_steps(state)
        self._finish(state)

    def _step(self, steps: Iterator[tuple[State, Metrics]], state: State) -> Metrics | None:
        """Let the method take a step, which changes `state`; None after the last one."""
        before = state.step
        try:
            _, metrics = next(steps)
        except StopIteration:
            return None
        except DivergedError as error:
            # A metric of an earlier step may have gone wrong first, and nobody has looked yet.
            self._tick(before)
            raise self._diverged(str(error).rstrip("."), before + 1, {}) from error
        return metrics

    def _between_steps(self, state: State) -> None:
        now = time.monotonic()
        cadence = self.cadence
        if state.step in self._snapshots:
            self._snapshot(state)
        on_count = cadence.checkpoint_steps is not None and state.step % cadence.checkpoint_steps == 0
        stopping = self.stop.asked is not None
        if stopping:
            self.stop.no_hurry()
        if stopping or on_count or now - self._checkpointed >= cadence.checkpoint_seconds:
            self._save(state)
        elif len(self._pending) >= TICK_STEPS or now - self._ticked >= TICK_SECONDS:
            self._tick(state.step)
        if stopping:
            self.stop.check(f"after step {state.step} of {self._total}, which is saved")

    def _tick(self, step: int) -> None:
        """Look at the metrics since the last tick: the only place that waits for the device.

        Raises: DivergedError naming the first step at which one was not finite.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        with self._clock.paused() as seconds:
            rows = _numbers(pending)
            for at, values in rows:
                for name, value in values.items():
                    if not math.isfinite(value):
                        raise self._diverged(f"{name} became {value}", at, values)
            means = _means([values for _, values in rows])
            self._log.add(step, seconds, means)
            self.tell.on_step(step, self._total, means, seconds)
        self._ticked = time.monotonic()

    def _save(self, state: State) -> None:
        self._tick(state.step)
        if self._saved_step == state.step:
            return
        with self._clock.paused() as seconds:
            packed = state.state_dict()
            lost = checkpoint.not_finite(packed)
            if lost is not None:
                raise self._diverged(f"{lost} holds a number that is not finite", state.step, {})
            self._watch(packed.get("images"), state.step)
            checkpoint.save(
                self.folder.checkpoints,
                Checkpoint(
                    run=self.folder.spec.id,
                    step=state.step,
                    state=packed,
                    seconds=seconds,
                    peak_device_bytes=self._peaks.device_bytes(),
                    peak_host_bytes=self._peaks.host_bytes(),
                    best=self.selector.state_dict() if self.selector is not None else None,
                ),
            )
            self.ledger.reached(state.step)
        self._saved_step = state.step
        self._checkpointed = time.monotonic()

    def _snapshot(self, state: State) -> None:
        path = self.folder.snapshot(state.step)
        if state.step not in self._snapshots or over(self.method, self.problem, state):
            return
        self._tick(state.step)
        with self._clock.paused():
            lost = checkpoint.not_finite(state.state_dict())
            if lost is not None:
                raise self._diverged(f"{lost} holds a number that is not finite", state.step, {})
            synthetic = self._exported(state)
            self._watch(synthetic.images, state.step)
            sets.save(synthetic, path, {**self.about, "step": state.step})
            self.folder.keep_snapshot_sum(path)

    def _watch(self, images: object, step: int) -> None:
        """Say once that learned images have left the range of real ones. The run goes on: its losses are numbers."""
        if self._told or not isinstance(images, Tensor) or not images.is_floating_point():
            return
        scale = scale_of(images, self._real_scale)
        if said := left_range(scale):
            self._told = True
            self.tell.on_note(f"At step {step} {said}. {self.method.info.advice}".rstrip())

    @cached_property
    def _real_scale(self) -> float:
        return real_scale(self.problem.train, self.problem.pixels)

    def _finish(self, state: State) -> None:
        self._save(state)
        # Until now what was exported is the iterate: a curve shows what was learned, and not what was chosen.
        best = self.selector.best if self.selector is not None else None
        synthetic = self._exported(state) if best is None else best
        with self._clock.paused() as seconds:
            if not synthetic.finite():
                raise self._diverged("the set holds a number that is not finite", state.step, {})
            self.ledger.set_cost(
                "condense",
                CostPart(
                    seconds=seconds,
                    peak_device_bytes=self._peaks.device_bytes(),
                    peak_host_bytes=self._peaks.host_bytes(),
                ),
            )
            self.ledger.set_artifacts(self.problem.artifacts.used)
            self.ledger.set_counts(self.method.counts(state))
            # Last: a folder that has this file is condensed.
            sets.save(synthetic, self.folder.synthetic, {**self.about, "step": state.step})

    def _exported(self, state: State) -> SyntheticSet:
        try:
            return in_budget(self.method, self.problem, state)
        except DivergedError as error:
            raise self._diverged(str(error).rstrip("."), state.step, {}) from error

    def _diverged(self, what: str, step: int, metrics: Mapping[str, float]) -> DivergedError:
        config = self.method.config.model_dump()
        rates = {k: v for k, v in {**config, **metrics}.items() if k.startswith("lr") and isinstance(v, float)}
        settings = ", ".join(f"{name}={value:.6g}" for name, value in rates.items() if math.isfinite(value))
        good = checkpoint.last_step(self.folder.checkpoints)
        kept = f"The last good checkpoint is step {good}." if good is not None else "There is no checkpoint yet."
        where = f"{self.method.name} ({settings})" if settings else self.method.name
        advice = f"\n{self.method.info.advice}" if self.method.info.advice else ""
        return DivergedError(f"{what} at step {step} of {where}. {kept}{advice}")


def in_budget(method: Method[Any], problem: Problem, state: State) -> SyntheticSet:
    """The method's set. Raises: PluginError for one of more images than were asked for, which no board may rank."""
    synthetic = export(method, problem, state)
    budget = len(problem.train) if method.info.kind == "ceiling" else problem.ipc * problem.classes
    if len(synthetic) > budget:
        raise PluginError(
            f"export of {method.name} returned {len(synthetic)} images; {problem.ipc} per class are {budget}."
        )
    return synthetic


def _numbers(pending: Sequence[tuple[int, Metrics]]) -> list[tuple[int, dict[str, float]]]:
    """The metrics of many steps on the host, waiting once for each device that they are on."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for _, metrics in pending:
        for value in metrics.values():
            by_device.setdefault(value.device, []).append(value.detach().float())
    on_host = {device: iter(torch.stack(values).tolist()) for device, values in by_device.items()}
    return [(step, {name: next(on_host[value.device]) for name, value in metrics.items()}) for step, metrics in pending]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(some) / len(some) for name, some in values.items()}
