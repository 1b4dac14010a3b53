"""Without an install there are no entry points, and forty tests would fail for that one reason."""

import pytest

from ddbench.plugins import GROUPS, listing


def pytest_configure() -> None:
    if not any(plugin.package == "ddbench" for plugin in listing(GROUPS["method"])):
        reason = "ddbench is not installed, so no method can be found. Run: pip install -e '.[dev]'"
        pytest.exit(reason, returncode=pytest.ExitCode.USAGE_ERROR)
