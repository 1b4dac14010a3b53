"""Workers side by side on one machine: processes of their own, each with its device, each doing one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import site
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import ddbench
from ddbench.errors import RunError
from ddbench.runs.batch import Outcome
from ddbench.runs.devices import Place
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import AGAIN, SAME_REQUEST, Interrupted, heeded
from ddbench.runs.states import Status, status_of, write_failure
from ddbench.sweep.grid import asked_to_json
from ddbench.sweep.progress import Board
from ddbench.sweep.tasks import Task

LOOK_SECONDS = 0.5
# Of a log's end, what a last sentence is looked for in.
TAIL_BYTES = 4096


@dataclass
class _Worker:
    """A process, and the run that it has been given."""

    number: int
    place: Place
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    task: int | None = None
    ready: bool = False


@dataclass
class Pool:
    """Does runs on several places of this machine. `skip` says of a run whether it is left out when its turn comes.

    A run that makes its worker break down is failed with the worker's last sentence, and another worker takes over;
    a place whose worker does not even start is given up. On a signal every run at work is saved. Whoever kills this
    process ends the workers too, after they have saved.
    """

    tasks: Sequence[Task]
    places: Sequence[Place]
    runs_root: Path
    data_root: Path
    logs: Path
    board: Board
    skip: Callable[[Task], Status | None] = lambda _: None
    stop_on: Sequence[signal.Signals] = ()
    grace_seconds: float = 20.0
    _outcomes: dict[int, Outcome] = field(default_factory=dict)
    _said: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = field(default_factory=queue.SimpleQueue)
    _asked: signal.Signals | None = None
    _asked_at: float = 0.0
    _hurry: bool = False

    def work(self) -> list[Outcome]:
        """Do all runs and say what became of each, in their order.

        Raises: Interrupted after a signal, when every worker has saved and left; RunError if no worker could start.
        """
        self._waiting = deque(range(len(self.tasks)))
        self._broken: list[str] = []
        self._workers: list[_Worker] = []
        with self._listening(), self.board:
            try:
                for number, place in enumerate(self.places):
                    self._start(number, place)
                while self._workers:
                    self._look()
            finally:
                self._end_all()
        if self._asked is not None:
            saved = sum(outcome.state == "interrupted" for outcome in self._outcomes.values())
            done = sum(outcome.state == "done" for outcome in self._outcomes.values())
            name = "Ctrl-C" if self._asked is signal.SIGINT else self._asked.name
            raise Interrupted(
                f"stopped by {name}: {done} of {len(self.tasks)} runs are done, {saved} saved what they had. "
                "Run the same command again to go on.",
                self._asked,
            )
        if self._broken and not self._outcomes:
            raise RunError(f"no worker of the sweep could start: {self._broken[0]}")
        for index in self._waiting:
            why = f"no worker was left to do it: {self._broken[-1]}" if self._broken else ""
            self._outcomes[index] = self.tasks[index].outcome(self.runs_root, Status("missing", why))
        return [self._outcomes[index] for index in sorted(self._outcomes)]

    def _look(self) -> None:
        """Hear one worker, or nothing for a moment."""
        if self._asked is not None:
            self._stop_workers()
        try:
            worker, event = self._said.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return
        if event is None:
            self._left(worker)
        elif event["event"] == "ready":
            worker.ready = True
            self._give(worker)
        elif event["event"] == "outcome":
            assert worker.task is not None
            self._over(worker.task, event["state"], event["message"])
            worker.task = None
            if event["state"] == "interrupted":  # it leaves, with whatever stopped it
                _hang_up(worker)
            else:
                self._give(worker)
        elif worker.task is not None:
            self.board.hears(worker.task, event)

    def _give(self, worker: _Worker) -> None:
        """The next run, or none, after which the worker leaves."""
        while self._waiting and self._asked is None:
            index = self._waiting.popleft()
            task = self.tasks[index]
            left_out = self.skip(task)
            if left_out is not None:
                self._outcomes[index] = task.outcome(self.runs_root, left_out)
                self.board.ends(index, self._outcomes[index])
                continue
            worker.task = index
            self.board.begins(index, worker.place.shown)
            folder = self.runs_root / task.resolution.spec.folder
            _tell(worker, {"asked": asked_to_json(task.asked), "folder": str(folder)})
            return
        _hang_up(worker)

    def _over(self, index: int, state: Any, message: str) -> None:
        outcome = self.tasks[index].outcome(self.runs_root, Status(state, message))
        self._outcomes[index] = outcome
        self.board.ends(index, outcome)

    def _left(self, worker: _Worker) -> None:
        """A worker's process has ended."""
        code = worker.process.wait()
        _hang_up(worker)
        self._workers.remove(worker)
        index = worker.task
        if index is None and (code in (0, AGAIN) or self._asked is not None):
            if code == AGAIN and self._asked is None and self._waiting:
                self._start(worker.number, worker.place)
            return
        why = f"{_ending(code)} {last_sentence(worker.log, worker.log_start)}".strip()
        if index is None:
            self._broken.append(why)
            self.board.note(f"the worker on {worker.place.shown} {why}")
            if worker.ready and self._waiting:
                self._start(worker.number, worker.place)
            return
        folder = self.runs_root / self.tasks[index].resolution.spec.folder
        if self._asked is not None:
            self._over(index, "interrupted", "stopped before it could save; it goes on from its last checkpoint.")
            return
        message = f"its worker on {worker.place.shown} {why}"
        # A bug has left its own reason; a process that was killed could not.
        if folder.is_dir() and RunDir.holder(folder) is None and status_of(folder).state != "failed":
            write_failure(folder, RunError(message))
        self._over(index, "failed", message)
        if self._waiting:
            self._start(worker.number, worker.place)

    def _start(self, number: int, place: Place) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"worker-{number}.log"
        with log.open("ab") as stderr:
            start = stderr.tell()
            process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", "ddbench.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_importable(place.environment),
                # The terminal's Ctrl-C is for the sweep, which tells its workers itself.
                start_new_session=True,
            )
        worker = _Worker(number, place, process, log, start)
        self._workers.append(worker)
        threading.Thread(target=self._hear, args=(worker, process.stdout), daemon=True).start()
        where = {"runs": str(self.runs_root), "data": str(self.data_root), "device": place.device}
        _tell(worker, where | {"grace_seconds": self.grace_seconds})

    def _hear(self, worker: _Worker, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                with contextlib.suppress(ValueError):  # a line that a killed worker left unfinished
                    self._said.put((worker, json.loads(line)))
        self._said.put((worker, None))

    def _stop_workers(self) -> None:
        for worker in self._workers:
            if self._hurry:
                worker.process.kill()
            else:
                _hang_up(worker)

    def _end_all(self) -> None:
        """Nobody is left behind, whatever ended the loop."""
        for worker in self._workers:
            _hang_up(worker)
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(self.grace_seconds)
            worker.process.kill()
            worker.process.wait()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in heeded(self.stop_on)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _heard(self, number: int, _: Any) -> None:
        if self._asked is None:
            self._asked, self._asked_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._asked_at > SAME_REQUEST:
            self._hurry = True


def last_sentence(log: Path, start: int = 0) -> str:
    """The last line that is not empty in a log, from `start` on; empty where nothing was said."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")
    return ""


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}:"
    name = signal.Signals(-code).name
    more = " (often the system's way of taking back memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{more}; its last words were:"


def _importable(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this ddbench on the path, which need not be installed."""
    home = str(Path(ddbench.__file__).parent.parent)
    known = environment.get("PYTHONPATH", "")
    if home in (*site.getsitepackages(), *known.split(os.pathsep)):
        return dict(environment)
    return {**environment, "PYTHONPATH": os.pathsep.join(part for part in (home, known) if part)}


def _tell(worker: _Worker, order: Mapping[str, Any]) -> None:
    assert worker.process.stdin is not None
    # One that has died says so by the end of its answers.
    with contextlib.suppress(OSError):
        worker.process.stdin.write((json.dumps(order) + "\n").encode())
        worker.process.stdin.flush()


def _hang_up(worker: _Worker) -> None:
    """The end of a worker's stdin: it saves what it works on and leaves."""
    assert worker.process.stdin is not None
    with contextlib.suppress(OSError):
        worker.process.stdin.close()
