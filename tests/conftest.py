"""Without an install there are no entry points, and forty tests would fail for that one reason."""

import os

import pytest

from ddbench.plugins import GROUPS, listing


def pytest_configure() -> None:
    # A person's own folders are not for tests, neither to read nor to fill.
    for name in [name for name in os.environ if name.startswith("DDBENCH_")]:
        del os.environ[name]
    if not any(plugin.package == "ddbench" for plugin in listing(GROUPS["method"])):
        reason = "ddbench is not installed, so no method can be found. Run: pip install -e '.[dev]'"
        pytest.exit(reason, returncode=pytest.ExitCode.USAGE_ERROR)
