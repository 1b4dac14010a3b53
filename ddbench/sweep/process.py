"""The process of a worker: how it is started, told and ended. Needs no torch, so that it can start first."""

from __future__ import annotations

import contextlib
import json
import os
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ddbench
from ddbench.runs.places import Place

# Of a log's end, what a last sentence is looked for in.
TAIL_BYTES = 4096


@dataclass
class Process:
    """A worker's process in its place; `log` has what it prints, from `log_start` on."""

    place: Place
    popen: subprocess.Popen[bytes]
    log: Path
    log_start: int

    @classmethod
    def start(cls, place: Place, log: Path) -> Process:
        """Start one; it loads what it needs and waits to be told where it works."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            begins = stderr.tell()
            popen = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", "ddbench.sweep.worker", place.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_importable(place.environment),
                # The terminal's Ctrl-C is for the sweep, which tells its workers itself.
                start_new_session=True,
            )
        return cls(place, popen, log, begins)

    def tell(self, order: Mapping[str, Any]) -> None:
        """Hand it a line. One that has died says so by the end of its answers."""
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.write((json.dumps(order) + "\n").encode())
            self.popen.stdin.flush()

    def hang_up(self) -> None:
        """The end of its stdin: it saves what it works on and leaves."""
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.close()

    @property
    def last_sentence(self) -> str:
        """The last line that it printed, or nothing."""
        return last_sentence(self.log, self.log_start)


@contextlib.contextmanager
def started_ahead(places: Sequence[Place], logs: Path) -> Iterator[list[Process]]:
    """Processes that load while the sweep itself still does. Whoever takes one removes it from the list; the rest is
    sent away at the end. None where their logs cannot be written, which the sweep finds out by itself."""
    processes: list[Process] = []
    with contextlib.suppress(OSError):
        for number, place in enumerate(places):
            processes.append(Process.start(place, logs / f"worker-{number}.log"))
    try:
        yield processes
    finally:
        for process in processes:
            process.hang_up()
            process.popen.kill()
            process.popen.wait()
            assert process.popen.stdout is not None
            process.popen.stdout.close()


def last_sentence(log: Path, start: int = 0) -> str:
    """The last line that is not empty in a log, from `start` on; empty where nothing was said."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")
    return ""


def _importable(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this ddbench on the path, which need not be installed."""
    home = str(Path(ddbench.__file__).parent.parent)
    known = environment.get("PYTHONPATH", "")
    if home in (*site.getsitepackages(), *known.split(os.pathsep)):
        return dict(environment)
    return {**environment, "PYTHONPATH": os.pathsep.join(part for part in (home, known) if part)}
