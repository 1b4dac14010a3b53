"""Imports point one way: from the command line down to errors; and nothing points at the methods."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddbench
import ddbench_methods

# A unit is a module or a folder right under ddbench. It imports from its own row and from rows below it.
ROWS = [
    {"cli", "__main__", "__init__"},
    {"api"},
    {"sensitivity"},
    {"sweep", "leaderboard", "testing", "costs"},
    {"foreign"},
    {"runs"},
    {"loop"},
    {"evaluation"},
    {"training"},
    {"initial"},
    {"method", "synthetic", "problem", "artifacts"},
    {"ntk", "backbones", "data"},
    {"engine"},
    {"arguments", "plugins", "files", "fields", "text", "rng", "config", "errors", "moved", "host", "decoders"},
]
HEIGHT = {unit: -row for row, units in enumerate(ROWS) for unit in units}
STRANGERS = list(itertools.permutations(("sweep", "leaderboard", "testing", "costs"), 2))
# A file given by path holds one method if it holds one subclass of Method: known only once the file was imported.
# The package `leaderboard` stands in the place of the function of that name, and calls it.
EXCEPTIONS = {("plugins", "method"), ("leaderboard", "api")}
FOR_METHODS = {
    "",
    "artifacts",
    "backbones",
    "config",
    "data",
    "decoders",
    "engine",
    "errors",
    "files",
    "initial",
    "ntk",
    "training",
}

SUITE = Path(str(ddbench.__file__)).parent
METHODS = Path(str(ddbench_methods.__file__)).parent


def imports(tree: ast.AST) -> Iterator[str]:
    """What a module imports, inside functions and for type checkers too; `from a import b` counts as a.b."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=0) if module:
                yield from (f"{module}.{name.name}" for name in names)
            case _:
                yield from imports(node)


def unit(path: Path) -> str:
    return path.relative_to(SUITE).parts[0].removesuffix(".py")


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def imported_units(path: Path) -> set[str]:
    """The units of ddbench that a file imports; "" for the public names."""
    found = [name.split(".") for name in imports(ast.parse(path.read_text()))]
    own = [parts for parts in found if parts[0] == "ddbench"]
    return {parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "" for parts in own}


@pytest.mark.parametrize("path", files(SUITE), ids=lambda path: str(path.relative_to(SUITE)))
def test_imports_point_down(path: Path) -> None:
    here = unit(path)
    assert here in HEIGHT, f"{here} is new: say in ROWS where it stands"
    upward = {
        there
        for there in imported_units(path)
        if there and HEIGHT[there] > HEIGHT[here] and (here, there) not in EXCEPTIONS
    }
    assert not upward, f"{here} imports {', '.join(sorted(upward))}, which stands above it"


@pytest.mark.parametrize("path", files(SUITE), ids=lambda path: str(path.relative_to(SUITE)))
def test_units_that_know_nothing_of_each_other_do_not_import_each_other(path: Path) -> None:
    here = unit(path)
    strangers = {b for a, b in STRANGERS if a == here} | {a for a, b in STRANGERS if b == here}
    assert not strangers & imported_units(path)


@pytest.mark.parametrize("path", files(SUITE), ids=lambda path: str(path.relative_to(SUITE)))
def test_the_suite_knows_no_method(path: Path) -> None:
    assert not [name for name in imports(ast.parse(path.read_text())) if name.startswith("ddbench_methods")]


@pytest.mark.parametrize("path", files(METHODS), ids=lambda path: path.name)
def test_methods_use_public_names_and_the_engine(path: Path) -> None:
    assert imported_units(path) <= FOR_METHODS


def depth(tree: ast.AST) -> int:
    """How many functions lie in one another at the deepest place; a method of a class is one."""
    inner = max((depth(node) for node in ast.iter_child_nodes(tree)), default=0)
    return inner + isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", files(METHODS), ids=lambda path: path.name)
def test_a_method_reads_from_top_to_bottom(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert depth(tree) <= 2, "a function in a function in a function hides what it does"
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    ours = {"Program", "Programs", "first_order", "second_order", "heldout"}
    assert not names & ours, "capturing, compiling and selecting are the suite's"


def test_a_method_knows_nothing_of_evaluation() -> None:
    assert "evaluation" not in imported_units(SUITE / "method.py")


@pytest.mark.parametrize("path", files(SUITE) + files(METHODS), ids=lambda path: path.name)
def test_imports_are_absolute(path: Path) -> None:
    relative = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative


def test_the_walk_sees_imports_in_functions_and_those_for_type_checkers() -> None:
    code = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c.d import e\n    import g as h\n"
    assert sorted(imports(ast.parse(code))) == ["a", "b", "c.d.e", "g"]
