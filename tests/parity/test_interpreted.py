"""The tests that Triton's interpreter runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_in_a_process_that_interprets_them() -> None:
    # Triton decides as it is imported whether kernels are compiled or interpreted, and torch imports it early.
    here = Path(__file__)
    # Only the files with such tests, because the others import for seconds.
    files = [str(p) for p in sorted(here.parent.glob("test_*.py")) if "mark.interpreted" in p.read_text() and p != here]
    assert files
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "interpreted", *files]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
