"""How far a sweep is: runs done of all, the running ones with their own progress, and the time left for all of it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO, cast

from ddbench.runs.observers import Observer, Patient, Started
from ddbench.runs.pace import Pace
from ddbench.text import duration, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.live import Live

    from ddbench.runs.batch import Outcome

EVERY_SECONDS = 30.0


class Reporter(Observer):
    """Passes on where a run is, as small values that can cross to another process: {"event": "at", ...} and notes."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._paces: dict[str, Pace] = {}

    def on_start(self, started: Started) -> None:
        self._at("condense", f"{started.step}/{started.total}", None)

    def on_phase(self, name: str) -> None:
        self._paces = {}
        self._at(name, "", None)

    def on_build(self, what: str, done: float, of: float) -> None:
        self._at("prepare", f"{what} {done / of:.0%}", self._left(what, done, of, time.monotonic()))

    def on_step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._at("condense", f"{step}/{total}", self._left("condense", step, total, seconds))

    def on_student(self, protocol: str, backbone: str, done: float, of: int, eta_seconds: float | None) -> None:
        self._at("evaluate", f"{protocol} {backbone} {done:.1f}/{of} students", eta_seconds)

    def on_note(self, text: str) -> None:
        self._say({"event": "note", "text": text})

    def _left(self, name: str, done: float, of: float, seconds: float) -> float | None:
        pace = self._paces.setdefault(name, Pace())
        pace.add(done, seconds)
        return pace.left(of)

    def _at(self, what: str, count: str, left: float | None) -> None:
        self._say({"event": "at", "what": what, "count": count, "left": left})


@dataclass
class Forecast:
    """The time left of many runs on several workers. `kinds` says of each run which others take as long.

    A run of a kind that was seen takes as long as those took on average, another one as long as all did; nothing is
    known before a first run is done.
    """

    kinds: Sequence[Hashable]
    workers: int
    _seen: dict[Hashable, list[float]] = field(default_factory=dict)

    def took(self, run: int, seconds: float) -> None:
        """A run was done in this time."""
        self._seen.setdefault(self.kinds[run], []).append(seconds)

    def left(self, waiting: Sequence[int], running: Mapping[int, tuple[float, float | None]]) -> float | None:
        """Seconds until everything is done. Of each running one: its seconds so far, and what its phase has left."""
        if not self._seen:
            return None
        work = [self._expected(run) for run in waiting]
        under_way = [max(self._expected(run) - spent, left or 0.0) for run, (spent, left) in running.items()]
        # Nobody can be done before the longest of them.
        return max(sum(work + under_way) / max(1, self.workers), *under_way, 0.0)

    def _expected(self, run: int) -> float:
        same = self._seen.get(self.kinds[run]) or [seconds for some in self._seen.values() for seconds in some]
        return sum(same) / len(same)


@dataclass
class _Running:
    name: str
    place: str
    since: float
    at: str = "starting"
    left: float | None = None


class Board:
    """Progress of a sweep on stderr: moving lines on a terminal; elsewhere a line for each run that ends, and every
    half minute one for the whole and for each run at work. `names` are of the runs that are left; `already` more are
    done.
    """

    def __init__(
        self,
        names: Sequence[str],
        kinds: Sequence[Hashable],
        workers: int,
        *,
        already: int = 0,
        quiet: bool = False,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        from rich.console import Console

        self._names = names
        self._already = already
        self._ended: dict[int, str] = {}
        self._running: dict[int, _Running] = {}
        self._forecast = Forecast(kinds, workers)
        self._console = Console(file=cast(TextIO, Patient(sys.stderr)), soft_wrap=True, highlight=False)
        self._quiet = quiet
        self._every = every_seconds
        self._live: Live | None = None
        self._over = threading.Event()
        self._lock = threading.RLock()

    def __enter__(self) -> Board:
        if not self._quiet:
            already = f", {self._already} of them done already" if self._already else ""
            self.note(f"{self._already + len(self._names)} runs{already}")
            if self._console.is_terminal:
                from rich.live import Live
                from rich.text import Text

                self._live = Live(
                    get_renderable=lambda: Text("\n".join(self.lines())), console=self._console, refresh_per_second=2
                )
                self._live.start()
            else:
                threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()

    def begins(self, run: int, place: str) -> None:
        """A worker takes a run."""
        with self._lock:
            self._running[run] = _Running(self._names[run], place, time.monotonic())

    def hears(self, run: int, event: Mapping[str, Any]) -> None:
        """What a Reporter says of a run at work."""
        with self._lock:
            if event["event"] == "note":
                self.note(f"{self._names[run]}: {event['text']}")
            elif run in self._running:
                working = self._running[run]
                working.at, working.left = f"{event['what']} {event['count']}".strip(), event["left"]

    def ends(self, run: int, outcome: Outcome) -> None:
        """A run is over."""
        with self._lock:
            working = self._running.pop(run, None)
            self._ended[run] = outcome.state
            took = ""
            if working is not None:
                seconds = time.monotonic() - working.since
                took = f" after {duration(seconds)}"
                if outcome.state == "done":
                    self._forecast.took(run, seconds)
            result = accuracy_of(outcome)
            self.note(f"{outcome.state}{took}: {self._names[run]}" + (f": {result}" if result else ""))

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(text, markup=False)

    def lines(self) -> list[str]:
        """Where the sweep is now: the whole, then each run at work."""
        with self._lock:
            now = time.monotonic()
            count = Counter(self._ended.values())
            waiting = [run for run in range(len(self._names)) if run not in self._ended and run not in self._running]
            under_way = {run: (now - working.since, working.left) for run, working in self._running.items()}
            left = self._forecast.left(waiting, under_way)
            parts = [f"{self._already + count['done']} of {self._already + len(self._names)} runs done"]
            parts += [f"{count[state]} {state}" for state in ("failed", "interrupted", "missing") if count[state]]
            parts += [f"{count['running']} left to other processes"] if count["running"] else []
            parts += [f"about {duration(left)} left"] if left is not None and (waiting or under_way) else []
            at_work = [
                f"  {w.place}: {w.name}, {w.at}" + (f", {duration(w.left)} left" if w.left is not None else "")
                for w in self._running.values()
            ]
            return [", ".join(parts), *at_work]

    def _tick(self) -> None:
        while not self._over.wait(self._every):
            for line in self.lines():
                self.note(line)


def accuracy_of(outcome: Outcome) -> str:
    """What a run came to, in words: the accuracy of its first judge with one, and why there is none."""
    found = [e for e in outcome.record.evaluations if e.accuracy] if outcome.record is not None else []
    mean = f"{percent(fmean(found[0].accuracy))} % under {found[0].protocol}" if found else ""
    judge = f"{mean} with {found[0].backbone}" if found else ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return ". ".join(part for part in (judge + more, outcome.message.replace("\n", " ")) if part)
