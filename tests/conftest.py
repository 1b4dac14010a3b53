"""What holds for every test: no folders of a person, and as many threads as there is room for."""

import os

# Workers of pytest-xdist share the cores. With all threads each, they wait for one another three quarters of the time.
# The libraries read this when they are imported, so it is set before that; processes that tests start inherit it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ddbench.plugins import GROUPS, listing

# How long an example takes says something of the machine and of what else it does, and nothing of the code.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    # A person's own folders are not for tests, neither to read nor to fill.
    for name in [name for name in os.environ if name.startswith("DDBENCH_")]:
        del os.environ[name]
    # Without an install there are no entry points, and forty tests would fail for that one reason.
    if not any(plugin.package == "ddbench" for plugin in listing(GROUPS["method"])):
        reason = "ddbench is not installed, so no method can be found. Run: pip install -e '.[dev]'"
        pytest.exit(reason, returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each worker has a part of the files in their order, and takes from another's when it is done: what a file or a
    worker makes once is seldom made twice, and none waits for the last one's long tests."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session")
def forked_python() -> Iterator[str]:
    """A program that takes `-m MODULE ARGUMENTS` as Python does and is there at once: see tests/forked.py.

    For tests of what processes do when they work, of which each would import for seconds first. It is the tests' own
    Python where there is no fork.
    """
    if not hasattr(os, "fork"):
        yield sys.executable
        return
    program = Path(__file__).with_name("forked.py")
    # The path of a socket can be no longer than a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ddbench-") as folder:
        socket, command = Path(folder) / "socket", Path(folder) / "python"
        start = shlex.join([sys.executable, "-ISB", str(program), "start", str(socket)])
        command.write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        command.chmod(0o755)
        serve = [sys.executable, str(program), "serve", str(socket)]
        with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n", "the server of forked processes did not start"
            yield str(command)
            # The end of its stdin, which comes too where pytest is killed, is the end of the server.
