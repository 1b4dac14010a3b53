"""Help and lists answer at once: they import neither torch nor anything as slow."""

import os
import subprocess
import sys

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


COUNT = """
import sys
from pathlib import Path
import click
from pydantic import BaseModel
before = {*sys.modules}
from ddbench.cli import root
try:
    root(sys.argv[1:], prog_name="ddbench")
finally:
    new = [sys.modules[name] for name in sys.modules.keys() - before]
    files = {Path(file) for module in new if (file := getattr(module, "__file__", None))}
    sys.stderr.write(f"{len(files)} {sum(file.stat().st_size for file in files)}")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["list", "protocols"]], ids=" ".join)
def test_quick_commands_load_little(arguments: list[str]) -> None:
    """Half a second is what Python, click and pydantic take with about this much beside them; torch is 60 MB."""
    done = subprocess.run([sys.executable, "-c", COUNT, *arguments], capture_output=True, text=True, check=True)
    files, size = map(int, done.stderr.split())
    assert files < 150
    assert size < 8_000_000


def test_a_reader_that_stops_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ddbench", "list", "datasets"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
