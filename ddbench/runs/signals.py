"""SIGTERM, SIGHUP and Ctrl-C: finish the step, save, leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

AGAIN = 75  # what a scheduler can be told to take as "try again"
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
EXIT_CODES = {signal.SIGTERM: AGAIN, signal.SIGINT: 130} | ({} if HANGUP is None else {HANGUP: AGAIN})
# `timeout` signals a process and then its group, schedulers the same: two signals this close are one request.
SAME_REQUEST = 2.0


class Interrupted(BaseException):
    """A run was stopped from outside, and what it had is on disk. `exit_code` is 130 for Ctrl-C, else 75; `signal` is
    the one that stopped it.

    As KeyboardInterrupt it is no Exception: it can come up anywhere, and nobody who catches their own errors means it.
    """

    def __init__(self, message: str, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_code = EXIT_CODES.get(number, AGAIN)


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported here. Interrupting that leaves half a module, or is swallowed: numpy's and
    torch's compiled parts import each other and forgive what fails. Then the process has to end instead."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def heeded(also: Sequence[signal.Signals] = ()) -> list[signal.Signals]:
    """The signals to listen for: those of EXIT_CODES and `also`, without a SIGHUP that `nohup` has turned off."""
    off = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    return [number for number in (*EXIT_CODES, *also) if not (off and number is HANGUP)]


class Stop:
    """Listens for SIGTERM, SIGHUP and Ctrl-C, and for signals of a scheduler's, while it is active, in the main thread;
    elsewhere it never hears any.

    Usually a signal only sets `asked`, and whoever works looks at it between two steps. Inside `at_once` it interrupts
    right there: for work that loses nothing by it. A second signal, later than `SAME_REQUEST` seconds after the first,
    or a step that does not end within `grace_seconds`, ends the process: what is on disk is consistent at any moment.
    `last_words` is called before that.
    """

    def __init__(
        self, grace_seconds: float, last_words: Callable[[str], None], also: Sequence[signal.Signals] = ()
    ) -> None:
        self.asked: signal.Signals | None = None
        self._also = also
        self._grace = grace_seconds
        self._last_words = last_words
        self._at_once = False
        self._timer: threading.Timer | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handlers are put in place, and the old ones put back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in heeded(self._also)}
        try:
            yield
        finally:
            self.no_hurry()
            for number, handler in before.items():
                # None: a handler that was not set from Python, which Python cannot put back either.
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Here a signal interrupts immediately."""
        self._at_once = True
        try:
            self.check("before anything new was done")
            yield
        finally:
            self._at_once = False

    def check(self, where: str) -> None:
        """Raises: Interrupted if a signal has come. `where` says how far the run is."""
        if self.asked is not None:
            self._raise(where)

    def no_hurry(self) -> None:
        """The step has ended in time; saving it may take as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            if time.monotonic() - self._since > SAME_REQUEST:
                self._leave("stopped by a second signal")
            return
        self.asked, self._since = signal.Signals(number), time.monotonic()
        if self._at_once:
            if importing(frame):
                self._leave("stopped while it was getting ready")
            self._raise("while it was getting ready")
        self._timer = threading.Timer(self._grace, self._leave, [f"the step did not end within {self._grace:g} s"])
        self._timer.daemon = True
        self._timer.start()

    def _raise(self, where: str) -> NoReturn:
        assert self.asked is not None
        name = "Ctrl-C" if self.asked is signal.SIGINT else self.asked.name
        raise Interrupted(f"stopped by {name} {where}. Run the same command again to go on.", self.asked)

    def _leave(self, why: str) -> None:
        assert self.asked is not None
        with contextlib.suppress(Exception):
            self._last_words(f"{why}; run the same command again to go on from the last checkpoint.")
        os._exit(EXIT_CODES.get(self.asked, AGAIN))
