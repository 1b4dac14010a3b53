"""Who watches a run: the console, or nobody; and the log of metrics."""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeGuard, TypeVar, cast

from ddbench.errors import RunError
from ddbench.files import disk_is_full, open_regular, write_atomically
from ddbench.runs.pace import Pace
from ddbench.text import MOST_COUNT, budget, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ddbench.runs.record import RunRecord
    from ddbench.runs.resolving import RunSpec
    from ddbench.runs.rundir import RunDir

T = TypeVar("T")


@dataclass(frozen=True)
class Started:
    """A run that begins, or goes on from `step`."""

    spec: RunSpec
    folder: Path
    step: int
    total: int


class Observer:
    """What the runner tells while it works. Does nothing; subclasses do with it what they like, and change no run."""

    def on_start(self, started: Started) -> None:
        """Condensing begins."""

    def on_phase(self, name: str) -> None:
        """`name` is prepare, condense, evaluate or record."""

    def on_build(self, what: str, done: float, of: float) -> None:
        """About once a second, while something is made that runs share, such as experts."""

    def on_step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        """About once a second: means since the last call, and the seconds of condensation so far."""

    def on_student(self, protocol: str, backbone: str, done: float, of: int, eta_seconds: float | None) -> None:
        """`done` counts trained networks, and the part of one that is being trained; when all are, they are being
        tested. No seconds: there is no pace yet. Of the networks some may be trials, by which the training of the
        others is chosen."""

    def on_note(self, text: str) -> None:
        """A sentence that a person should read."""

    def on_record(self, record: RunRecord, folder: RunDir) -> None:
        """The run has its record, which was written now or was there."""

    def on_end(self) -> None:
        """Nothing more comes: the run is done, interrupted or failed."""


class Patient(io.TextIOBase):
    """A stream for progress, which is never worth a run: what it cannot take, because the terminal was closed, the
    pipe's reader left or the disk of the log is full, is dropped. Letters that its encoding lacks are replaced.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._quietly(self._stream.isatty, False)

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        known = text.encode(self.encoding, "replace").decode(self.encoding)
        self._quietly(lambda: self._stream.write(known), 0)
        return len(text)

    def flush(self) -> None:
        self._quietly(self._stream.flush, None)

    def _quietly(self, action: Callable[[], T], otherwise: T) -> T:
        # ValueError: the stream was closed.
        try:
            return action()
        except (OSError, ValueError):
            atexit.unregister(_forget_stderr)
            atexit.register(_forget_stderr)
            return otherwise


def _forget_stderr() -> None:
    """What stderr could not take is still in its buffer, and the interpreter's last flush would fail with it."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class Console(Observer):
    """Progress on stderr: a moving line with the time left on a terminal, elsewhere a line now and then."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        from rich.console import Console as Terminal

        self._terminal = Terminal(file=cast(TextIO, Patient(sys.stderr)), soft_wrap=True, highlight=False)
        self._every = every_seconds
        self._spoke = -float("inf")
        self._task_name = ""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._paces: dict[str, Pace] = {}

    def on_start(self, started: Started) -> None:
        spec = started.spec
        going_on = f", going on from step {started.step} of {started.total}" if started.step else ""
        self.on_note(
            f"{spec.method} on {spec.dataset}, {budget(spec.ipc)}, {spec.backbone}, seed {spec.seed}{going_on}"
        )

    def on_phase(self, name: str) -> None:
        self._close()
        self._paces = {}
        self._spoke = -float("inf")

    def on_build(self, what: str, done: float, of: float) -> None:
        left = self._pace(what, done, time.monotonic()).left(of)
        self._show("prepare", done, of, f"{what}  {done / of:.0%}", left, "")

    def on_step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        pace = self._pace("condense", step, seconds)
        values = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        rate = f"{pace.rate:.3g} steps/s" if pace.rate is not None else ""
        self._show("condense", step, total, f"{step}/{total}  {rate}", pace.left(total), values)

    def on_student(self, protocol: str, backbone: str, done: float, of: int, eta_seconds: float | None) -> None:
        count = f"{done:.1f}/{of} students" + (", testing" if done >= of else "")
        self._show(f"evaluate {protocol} {backbone}", done, of, count, eta_seconds, "")

    def on_note(self, text: str) -> None:
        self._terminal.print(text, markup=False)

    def on_end(self) -> None:
        self._close()

    def _pace(self, name: str, done: float, seconds: float) -> Pace:
        pace = self._paces.setdefault(name, Pace())
        pace.add(done, seconds)
        return pace

    def _show(self, name: str, done: float, of: float, count: str, left: float | None, values: str) -> None:
        if self._terminal.is_terminal:
            self._move(name, done, of, count, left, values)
            return
        now = time.monotonic()
        if name == self._task_name and now - self._spoke < self._every and done < of:
            return
        self._task_name, self._spoke = name, now
        parts = [name, count.strip(), f"{duration(left)} left" if left is not None else "", values]
        self.on_note("  ".join(part for part in parts if part))

    def _move(self, name: str, done: float, of: float, count: str, left: float | None, values: str) -> None:
        if self._progress is None or name != self._task_name:
            self._close()
            self._open(name)
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=done,
            total=of,
            count=count,
            left=f"{duration(left)} left" if left is not None else "",
            values=values,
        )

    def _open(self, name: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = ["{task.description}", "{task.fields[count]}", "{task.fields[left]}", "{task.fields[values]}"]
        texts = [TextColumn(text, markup=False) for text in columns]
        self._progress = Progress(texts[0], BarColumn(), *texts[1:], TimeElapsedColumn(), console=self._terminal)
        self._progress.start()
        self._task = self._progress.add_task(name, total=None, count="", left="", values="")
        self._task_name = name

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._task_name = None, None, ""


@dataclass
class MetricLog:
    """log.jsonl: one line a tick with step, seconds of condensation, and the mean of each metric since the last one."""

    path: Path

    def cut(self, step: int) -> None:
        """Keep the lines up to a step. A line that a killed process left unfinished goes too."""
        entries = [(line, _parsed(line)) for line in _lines(self.path)]
        kept = [line for line, entry in entries if entry is not None and entry["step"] <= step]
        write_atomically(self.path, b"".join(kept))

    def add(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Append a line. Raises: RunError if the disk is full."""
        line = json.dumps({"step": step, "seconds": round(seconds, 3), "metrics": dict(metrics)})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            why = "the disk is full" if disk_is_full(error) else error.strerror
            raise RunError(
                f"{self.path} could not be written: {why}. Free some space and run the same command again; it goes on "
                "from the last checkpoint."
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log: `step`, `seconds` (None where that is no time) and `metrics`, which are numbers.

    What is damaged in it is left out. Raises: RunError where it is there and cannot be read.
    """
    return [_cleaned(entry) for line in _lines(path) if (entry := _parsed(line)) is not None]


def _lines(path: Path) -> list[bytes]:
    try:
        with open_regular(path) as file:
            return file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}. Move it away and run again.") from None


def _cleaned(entry: Mapping[str, Any]) -> dict[str, Any]:
    metrics, seconds = entry.get("metrics"), entry.get("seconds")
    known = metrics if isinstance(metrics, dict) else {}
    return {
        "step": entry["step"],
        "seconds": seconds if _is_number(seconds) and 0 <= seconds < math.inf else None,
        "metrics": {name: value for name, value in known.items() if _is_number(value)},
    }


def _is_number(value: Any) -> TypeGuard[float]:
    # A whole number of hundreds of digits is none that a float can be.
    return isinstance(value, float) or (type(value) is int and abs(value) <= MOST_COUNT)


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    known = isinstance(entry, dict) and type(entry.get("step")) is int and 0 <= entry["step"] <= MOST_COUNT
    return entry if known else None
