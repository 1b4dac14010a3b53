"""Workers side by side on one machine: processes of their own, each with its device, each doing one run at a time."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ddbench.errors import RunError
from ddbench.runs.batch import Outcome
from ddbench.runs.places import Place
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import AGAIN, SAME_REQUEST, Interrupted, heeded
from ddbench.runs.states import Status, status_of, write_failure
from ddbench.sweep.grid import asked_to_json
from ddbench.sweep.process import Process
from ddbench.sweep.progress import Board
from ddbench.sweep.tasks import Beside, Task

LOOK_SECONDS = 0.5


@dataclass
class _Worker:
    """A process, and the run that it has been given."""

    number: int
    process: Process
    task: int | None = None
    ready: bool = False


@dataclass
class Pool:
    """Does runs on several places of this machine. `skip` says of a run whether it is left out when its turn comes;
    `ahead` are processes that were started before, which are taken from it.

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
    ahead: list[Process] = field(default_factory=list)
    beside: Beside = field(default_factory=Beside)
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
                worker.process.hang_up()
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
            self.board.begins(index, worker.process.place.shown)
            folder = self.runs_root / task.resolution.spec.folder
            worker.process.tell({"asked": asked_to_json(task.asked), "folder": str(folder)})
            return
        worker.process.hang_up()

    def _over(self, index: int, state: Any, message: str) -> None:
        outcome = self.tasks[index].outcome(self.runs_root, Status(state, message))
        self._outcomes[index] = outcome
        self.board.ends(index, outcome)

    def _left(self, worker: _Worker) -> None:
        """A worker's process has ended."""
        code = worker.process.popen.wait()
        worker.process.hang_up()
        self._workers.remove(worker)
        index = worker.task
        if index is None and (code in (0, AGAIN) or self._asked is not None):
            if code == AGAIN and self._asked is None and self._waiting:
                self._start(worker.number, worker.process.place)
            return
        why = f"{_ending(code)} {worker.process.last_sentence}".strip()
        if index is None:
            self._broken.append(why)
            self.board.note(f"the worker on {worker.process.place.shown} {why}")
            if worker.ready and self._waiting:
                self._start(worker.number, worker.process.place)
            return
        folder = self.runs_root / self.tasks[index].resolution.spec.folder
        if self._asked is not None:
            self._over(index, "interrupted", "stopped before it could save; it goes on from its last checkpoint.")
            return
        message = f"its worker on {worker.process.place.shown} {why}"
        # A bug has left its own reason; a process that was killed could not.
        if folder.is_dir() and RunDir.holder(folder) is None and status_of(folder).state != "failed":
            write_failure(folder, RunError(message))
        self._over(index, "failed", message)
        if self._waiting:
            self._start(worker.number, worker.process.place)

    def _start(self, number: int, place: Place) -> None:
        waiting = [process for process in self.ahead if process.place == place]
        if waiting:
            self.ahead.remove(waiting[0])
        process = waiting[0] if waiting else Process.start(place, self.logs / f"worker-{number}.log")
        worker = _Worker(number, process)
        self._workers.append(worker)
        threading.Thread(target=self._hear, args=(worker, process.popen.stdout), daemon=True).start()
        where = {"runs": str(self.runs_root), "data": str(self.data_root), "device": place.device}
        process.tell(where | {"grace_seconds": self.grace_seconds, "beside": self.beside.as_json()})

    def _hear(self, worker: _Worker, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                with contextlib.suppress(ValueError):  # a line that a killed worker left unfinished
                    self._said.put((worker, json.loads(line)))
        self._said.put((worker, None))

    def _stop_workers(self) -> None:
        for worker in self._workers:
            if self._hurry:
                worker.process.popen.kill()
            else:
                worker.process.hang_up()

    def _end_all(self) -> None:
        """Nobody is left behind, whatever ended the loop."""
        for worker in self._workers:
            worker.process.hang_up()
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.popen.wait(self.grace_seconds)
            worker.process.popen.kill()
            worker.process.popen.wait()

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


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}:"
    name = signal.Signals(-code).name
    more = " (often the system's way of taking back memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{more}; its last words were:"
