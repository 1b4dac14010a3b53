"""Help and lists answer at once: they import neither torch nor anything as slow."""

import os
import subprocess
import sys
import time

import pytest

QUICK = [
    ["--help"],
    ["--version"],
    ["run", "--help"],
    ["sweep", "--help"],
    ["list", "methods"],
    ["list", "datasets"],
    ["list", "backbones"],
    ["list", "protocols"],
    ["list", "methods", "--json"],
    ["show", "protocol", "dsa"],
]
PROBE = """
import sys
from ddbench.cli import root
try:
    root(sys.argv[1:], prog_name="ddbench")
finally:
    slow = {"torch", "torchvision", "kornia", "sklearn", "matplotlib", "pandas", "scipy", "rich", "submitit"}
    sys.stderr.write(" ".join(sorted(slow & sys.modules.keys())))
"""


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_quick_commands_import_nothing_slow(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["list", "protocols"]], ids=" ".join)
def test_quick_commands_take_less_than_half_a_second(arguments: list[str]) -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ddbench", *arguments], capture_output=True, check=True)
        return time.perf_counter() - started

    # The best of a few: the question is what the command needs, not what else the machine does.
    assert min(once() for _ in range(4)) < 0.5


def test_a_reader_that_stops_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ddbench", "list", "datasets"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
