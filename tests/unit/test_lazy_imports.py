"""Heavy libraries are imported where they are used: lists and help answer at once, and a run needs no plotting."""

import json
import subprocess
import sys

import pytest

import ddbench

# Read by `ddbench list`, `ddbench runs` and `ddbench --help`.
LIGHT = [
    "ddbench",
    "ddbench.errors",
    "ddbench.rng",
    "ddbench.config",
    "ddbench.plugins",
    "ddbench.files",
    "ddbench.data.catalogue",
    "ddbench.backbones.names",
    "ddbench.evaluation.protocol",
    "ddbench.runs.record",
    "ddbench.runs.listing",
    "ddbench.runs.removal",
    "ddbench.cli",
]
# All that condensing and judging needs.
CORE = [
    "ddbench.loop",
    "ddbench.initial",
    "ddbench.evaluation.evaluate",
    "ddbench.evaluation.sgd",
    "ddbench.training.networks",
    "ddbench.testing.contract",
    "ddbench_methods.dm",
    "ddbench_methods.coresets",
]
HEAVY = ["torch", "numpy", "safetensors"]
RARE = ["torchvision", "kornia", "sklearn", "matplotlib", "pandas", "submitit", "scipy", "jax"]
PROGRAM = """
import importlib, json, sys
modules, watched = json.loads(sys.argv[1])
found = {}
for module in modules:
    importlib.import_module(module)
    for name in watched:
        if name in sys.modules and name not in found:
            found[name] = module
print(json.dumps(found))
"""


def imported(modules: list[str], watched: list[str]) -> dict[str, str]:
    """Which of the watched modules get imported, each with the module that did it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([modules, watched])], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_names_lists_and_help_need_no_torch() -> None:
    assert imported(LIGHT, HEAVY + RARE) == {}


def test_a_run_imports_no_library_that_it_does_not_use() -> None:
    assert imported(CORE, RARE) == {}


def test_the_watch_notices_an_import() -> None:
    assert imported(["json", "ddbench.rng", "numpy"], HEAVY) == {"numpy": "numpy"}


@pytest.mark.parametrize("name", [name for name in ddbench.__all__ if name != "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ddbench, name) is not None
    assert name in dir(ddbench)


def test_the_version_is_that_of_the_install() -> None:
    assert ddbench.__version__[0].isdigit()


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'ddbench' has no attribute 'Methods'"):
        ddbench.Methods  # noqa: B018
