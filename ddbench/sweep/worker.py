"""A process that does one run at a time, as it is told: `python -m ddbench.sweep.worker`, started by a sweep.

Orders come as lines of JSON on stdin: first where it works, then a run each. Answers go as lines of JSON to what was
stdout; whatever a method prints goes to stderr, which is the worker's log. When stdin ends, because the sweep is done
or dead, the worker saves what it works on, as after SIGTERM, and leaves: nobody is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.runs.signals import Interrupted

if TYPE_CHECKING:
    from ddbench.runs.runner import RunOptions

WAIT_SECONDS = 0.1


def main() -> int:
    """Work until stdin ends. Returns the exit code."""
    # What the terminal and a scheduler send to everyone reaches the sweep too, which says when to stop.
    for name in ("SIGINT", "SIGHUP", "SIGUSR2"):
        if (number := getattr(signal, name, None)) is not None:  # Windows has the first alone
            signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        # A sweep that is dead hears nothing, which ends no run before it has saved.
        with contextlib.suppress(OSError):
            answers.write(json.dumps(value) + "\n")
            answers.flush()

    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    _load(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    where = orders.get()
    if where is None:
        return 0
    from ddbench.errors import DdbenchError
    from ddbench.foreign.starting import read_start
    from ddbench.runs.batch import run_one
    from ddbench.runs.resolving import resolve_spec
    from ddbench.runs.states import write_failure
    from ddbench.sweep.grid import asked_from_json

    try:
        options = _options(where, say)
    except DdbenchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say({"event": "ready"})
    while (order := orders.get()) is not None:
        try:
            # The run's folder is known to whoever sent it, also where the run cannot be resolved here.
            asked = asked_from_json(order["asked"])
            outcome = run_one(resolve_spec(asked, options.data_root, options.device, read_start), options)
            say({"event": "outcome", "state": outcome.state, "message": outcome.message})
        except Interrupted as stop:
            say({"event": "outcome", "state": "interrupted", "message": str(stop)})
            return stop.exit_code
        except DdbenchError as error:
            write_failure(Path(order["folder"]), error)
            say({"event": "outcome", "state": "failed", "message": str(error)})
    return 0


def _options(where: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> RunOptions:
    """Where and how runs are done that come here. Raises: ConfigError for a device or a tracker that is not there."""
    from ddbench.runs.devices import choose_device
    from ddbench.runs.runner import RunOptions
    from ddbench.runs.trackers import trackers
    from ddbench.sweep.progress import Reporter
    from ddbench.sweep.tasks import Beside

    device = choose_device(where["device"])  # knows what _load could not
    reporter, beside = Reporter(say), Beside.of_json(where.get("beside", {}))
    return RunOptions(
        root=Path(where["runs"]),
        data_root=Path(where["data"]),
        device=device,
        observers=[reporter, *trackers(beside.track, reporter.on_note)],
        snapshots=beside.snapshots,
        grace_seconds=where["grace_seconds"],
    )


def _load(device: str) -> None:
    """What runs import and set up when they first need it, while whoever sends them is still getting ready."""
    import torch

    import ddbench.runs.batch  # noqa: F401

    if device.startswith("cuda"):
        import torch._dynamo
        import torch._inductor
    if device != "cpu":
        # Without a GPU, or without room on it, the device is asked for again, and then it is an error.
        with contextlib.suppress(Exception):
            torch.zeros(1, device=device)


def _listen(orders: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)
    # Between two runs the None is found; a run at work, or one that is about to begin, is told as a scheduler would.
    while not _working():
        time.sleep(WAIT_SECONDS)
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)  # where kill would end the process at once
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _working() -> bool:
    # While a run listens for it, SIGTERM has a handler of Python's.
    return callable(signal.getsignal(signal.SIGTERM))


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Everything is on disk; taking down the interpreter and its GPU in order would only take time.
    os._exit(code)
