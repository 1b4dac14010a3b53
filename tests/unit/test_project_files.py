"""Files around the code: what they say of the project is what it is."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported under another name than it is installed by.
CALLED = {"PIL": "pillow", "sklearn": "scikit-learn"}
# Comes with torch where there is a GPU.
WITH_TORCH = {"triton"}


def required(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=!\[ ]", line, maxsplit=1)[0].lower() for line in lines}


def imported(root: Path) -> set[str]:
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    return found


def test_whatever_is_imported_is_declared() -> None:
    extras = [
        line
        for name in ("ntk", "timm", "tensorboard", "wandb", "trackio", "test")
        for line in PROJECT["optional-dependencies"][name]
    ]
    declared = required(PROJECT["dependencies"]) | required(extras)
    ours = {"ddbench", "ddbench_methods", ""}
    outside = (imported(ROOT / "ddbench") | imported(ROOT / "methods")) - set(sys.stdlib_module_names) - ours
    assert "torch" in outside
    names = {CALLED.get(name, name.replace("_", "-")) for name in outside}
    assert names - declared - WITH_TORCH == set()


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    for name in ("version", "license"):
        assert re.search(rf"^{name}: (.+)$", text, re.MULTILINE)[1] == PROJECT[name]  # type: ignore[index]


def test_the_workflow_does_what_everybody_can_do_on_every_python_that_is_named() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run\n" in text
    tried = re.search(r"python: \[(.+)\]", text)
    assert tried is not None
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", c)]
    assert re.findall(r"3\.\d+", tried[1]) == named
    assert f">={named[0]}" == PROJECT["requires-python"]


@pytest.mark.parametrize("name", [".github/PULL_REQUEST_TEMPLATE.md"])
def test_pages_that_a_template_names_are_there(name: str) -> None:
    pages = re.findall(r"docs/pages/\S+\.md", (ROOT / name).read_text())
    assert pages
    assert all((ROOT / page).is_file() for page in pages)
