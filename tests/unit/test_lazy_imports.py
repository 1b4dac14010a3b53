"""Heavy libraries are imported where they are used: lists and help answer at once, and a run needs no plotting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddbench
from ddbench.data.manifests import SCHEMA, digest

# Read by `ddbench list`, `ddbench runs` and `ddbench --help`.
LIGHT = [
    "ddbench",
    "ddbench.errors",
    "ddbench.rng",
    "ddbench.config",
    "ddbench.plugins",
    "ddbench.files",
    "ddbench.data.catalogue",
    "ddbench.data.manifests",
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


# Nothing is computed for these answers.
QUICK_COMMANDS = [
    "data list",
    "show dataset mine",
    "show dataset cifar10",
    "list methods",
    "list datasets",
    "list backbones",
    "list protocols",
    "runs list",
]
ANSWER = """
import sys
from ddbench.cli import root
root(sys.argv[1:], prog_name="ddbench", standalone_mode=False)
heavy = sorted({"torch", "numpy", "safetensors", "pandas", "scipy"} & set(sys.modules))
print(*heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("command", QUICK_COMMANDS)
def test_commands_that_compute_nothing_import_no_torch(command: str, tmp_path: Path) -> None:
    part = {"images": 2, "fingerprint": "b2:aa"}
    manifest = {
        "schema": SCHEMA, "name": "mine", "title": "Mine", "original": False, "origin": "npz", "split": "as it was",
        "preprocessing": "none", "shape": [1, 8, 8], "classes": ["a", "b"], "train": part, "test": part,
        "fingerprint": digest(b"b2:aa b2:aa"),
    }  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(json.dumps(manifest))
    where = {"DDBENCH_DATA": str(tmp_path), "DDBENCH_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *command.split()], capture_output=True, text=True, env=os.environ | where
    )
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
    if command in ("data list", "show dataset mine"):
        assert "Mine" in done.stdout


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
