"""What a long operation on files is doing, as a moving line or as lines."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

MOVE_SECONDS = 0.1  # between two states of a moving line


class Progress:
    """What a long operation on files is doing, on stderr, between `with` and its end: a moving line on a terminal;
    elsewhere a line for each new thing, and one every ten seconds while it lasts, also where nothing is reported.

    Not `at_once`, nothing is said of what is over before that. A stderr that is gone is no reason to end the operation.
    `clock` counts seconds.
    """

    def __init__(
        self,
        quiet: bool,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: bool = True,
    ) -> None:
        from ddbench.runs.observers import Patient

        # As it is now: whoever is called may put something else in its place for a while.
        self._stream = None if quiet or sys.stderr is None else Patient(sys.stderr)
        self._moving = self._stream is not None and self._stream.isatty()
        self._every = MOVE_SECONDS if self._moving else every_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._doing, self._done, self._of = "", 0, 0
        self._since = -math.inf
        self._at_once = at_once
        self._shown = -math.inf if at_once else clock()

    def __enter__(self) -> Self:
        if self._stream is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._moving and self._doing:
            self._write("\r\x1b[K")

    def __call__(self, what: str, done: int, of: int) -> None:
        """Hear that so much of something is done; `of` is at most 1 where nobody knows how much there is."""
        with self._lock:
            new = what != self._doing
            self._doing, self._done, self._of = what, done, of
            if new:
                self._since = self._clock()
        self.show(at_once=new and self._at_once)

    def show(self, *, at_once: bool = False) -> None:
        """Say what is being done, unless that was said a moment ago."""
        with self._lock:
            now = self._clock()
            if self._stream is None or not self._doing or not (at_once or now - self._shown >= self._every):
                return
            self._shown = now
            line = f"{self._doing} {self._how_far(now - self._since)}"
        self._write(f"\r{line}\x1b[K" if self._moving else f"{line}\n")

    def _how_far(self, seconds: float) -> str:
        from ddbench.text import duration

        if self._of > 1 and self._done:
            return f"{100 * min(self._done, self._of) // self._of} %"
        return "..." if seconds < 1 else f"... {duration(seconds)}"

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._every)):
            self.show()

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)
        self._stream.flush()
