"""How fast something goes, and how long the rest of it takes: nothing is said until there is a pace."""

from __future__ import annotations

from collections import deque

# Two neighbouring rates that differ by more than this are not one pace: between them something was compiled, say.
FACTOR = 3.0
POINTS = 30


class Pace:
    """The rate of something that is counted, from the last points that agree with each other.

    The first steps of a run load, compile and capture; a time left that is computed from them can be wrong by a factor
    of hundreds. So there is no rate before two intervals in a row agree, and slow first ones never enter it.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=POINTS)

    def add(self, done: float, seconds: float) -> None:
        """So much is done after so many seconds. A count or a clock that goes back begins anew."""
        if self._points:
            last_done, last_seconds = self._points[-1]
            if done < last_done or seconds < last_seconds:
                self._points.clear()
            elif done == last_done or seconds == last_seconds:
                return
        if len(self._points) > 1:
            before, now = _rate(self._points[-2], self._points[-1]), _rate(self._points[-1], (done, seconds))
            if max(before, now) > FACTOR * min(before, now):
                last = self._points[-1]
                self._points.clear()
                self._points.append(last)
        self._points.append((done, seconds))

    @property
    def rate(self) -> float | None:
        """How much is done a second; None as long as there is no pace."""
        return _rate(self._points[0], self._points[-1]) if len(self._points) > 2 else None

    def left(self, of: float) -> float | None:
        """Seconds until `of` is done; None as long as there is no pace."""
        rate = self.rate
        return None if rate is None else max(0.0, of - self._points[-1][0]) / rate


def _rate(first: tuple[float, float], last: tuple[float, float]) -> float:
    return (last[0] - first[0]) / (last[1] - first[1])
