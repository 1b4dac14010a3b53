"""How far a value travels: files of ddbench entered, and distinct calls from one file into another, in whole commands.

    python tests/measure_journeys.py docs/measured/journeys.json

Four journeys on the digits, each in a fresh process on the CPU: a run, an MTT run with its experts, a board from
records and a foreign set. Numbers of files and calls are those of the code, not of the machine.
"""

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

QUICK = ["--dataset", "digits", "--ipc", "1", "--device", "cpu", "--quiet", "--protocol", "quick@1", "--students", "1"]
EXPERTS = ["--set", "iterations=2", "--set", "experts=1", "--set", "start_epochs=1", "--set", "inner_steps=2"]
JOURNEYS = {
    "run": [["run", "--method", "dm", *QUICK, "--set", "iterations=3"]],
    "mtt": [["run", "--method", "mtt", *QUICK, *EXPERTS]],
    "board": [["run", "--method", "random", *QUICK], ["leaderboard"]],
    "foreign": [
        [
            "evaluate",
            "{set}",
            "--dataset",
            "digits",
            "--device",
            "cpu",
            "--quiet",
            "--protocol",
            "quick@1",
            "--students",
            "1",
        ]
    ],
}


class Trace:
    """Calls between files of the packages ddbench and ddbench_methods."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.calls: set[tuple[str, str, str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        here = place(frame.f_code.co_filename)
        if here is None or frame.f_code.co_name == "<module>":
            return
        self.files.add(here)
        back = frame.f_back
        there = place(back.f_code.co_filename) if back is not None else None
        if back is not None and there is not None and there != here:
            self.calls.add((there, back.f_code.co_qualname, here, frame.f_code.co_qualname))

    def counts(self) -> dict[str, int]:
        """Files entered, pairs of files with a call between them, and distinct calls."""
        edges = {(a, b) for a, _, b, _ in self.calls}
        return {"files": len(self.files), "edges": len(edges), "calls": len(self.calls)}


def place(file: str) -> str | None:
    """A file within the packages, or None for any other."""
    for package in ("/ddbench_methods/", "/ddbench/"):
        if package in file and "/site-packages/" not in file:
            return file[file.rindex(package) + 1 :]
    return None


def traced(commands: list[list[str]]) -> dict[str, int]:
    """Run the last command in this process and count its calls; those before it prepare."""
    from ddbench.cli import root

    for command in commands[:-1]:
        root(command, standalone_mode=False)
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        root(commands[-1], standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return trace.counts()


def foreign_set(folder: Path) -> Path:
    """A file as another tool leaves it: images and labels of the digits."""
    import torch

    from ddbench.data.pixels import fit_pixels
    from ddbench.data.sources import load

    digits = load("digits", folder)
    first = [int((digits.train.labels == k).nonzero()[0]) for k in range(10)]
    images = fit_pixels("standard", digits.train, digits.info).forward(digits.train.images[first])
    torch.save({"images": images, "labels": torch.arange(10)}, folder / "set.pt")
    return folder / "set.pt"


def main() -> None:
    """All journeys, each in a process of its own, into a JSON file."""
    if sys.argv[1] == "--one":
        name, folder = sys.argv[2], Path(sys.argv[3])
        given = str(foreign_set(folder)) if name == "foreign" else ""
        commands = [
            [*(word.format(set=given) for word in command), "--runs", str(folder / "runs")]
            for command in JOURNEYS[name]
        ]
        print("\n" + json.dumps(traced(commands)))
        return
    found = {}
    for name in JOURNEYS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", name, folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.strip().splitlines()[-1])
            print(name, found[name])
    Path(sys.argv[1]).write_text(json.dumps({"journeys": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
