"""What holds for every test: no folders of a person, and as many threads as there is room for."""

import os

# Workers of pytest-xdist share the cores. With all threads each, they wait for one another three quarters of the time.
# The libraries read this when they are imported, so it is set before that; processes that tests start inherit it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

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
