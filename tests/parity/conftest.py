"""Kernels for GPUs are tested on CPUs by Triton's interpreter."""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("interpreted") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="runs in a process that interprets kernels"))
