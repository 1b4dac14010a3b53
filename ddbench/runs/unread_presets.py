"""Files in a folder of presets that no method reads, because they are not called after one."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddbench.errors import closest
from ddbench.files import once
from ddbench.method import Method
from ddbench.plugins import GROUPS, listing
from ddbench.text import printable

# What else may lie there: the mark of a package, and words for whoever looks into the folder.
_NO_SETTINGS = frozenset({".py", ".md", ".rst", ".txt"})


def unread_presets(kind: type[Method[Any]]) -> list[str]:
    """A sentence for each file in the folder of a method's presets that belongs to no method beside that folder.

    A method of which nobody can tell the name without running its code, because it is computed, counts where it has
    been imported.
    """
    folder = kind.presets_folder()
    if folder is None or not folder.is_dir():
        return []
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _NO_SETTINGS
    ]
    names = {kind.name, *_registered(kind), *_imported(folder.parent)}
    left = [path for path in files if path.name not in {f"{name}.toml" for name in names}]
    if not left:
        return []
    # Only now, because a folder may have many files of code, and mostly nothing is left.
    written = {name for path in sorted(folder.parent.glob("*.py")) for name in _written(path)}
    left = [path for path in left if path.suffix != ".toml" or path.stem not in written]
    return [_sentence(path, kind, sorted(names)) for path in left]


def _sentence(path: Path, kind: type[Method[Any]], names: list[str]) -> str:
    meant = names if (path.parent / f"{kind.name}.toml").is_file() else [kind.name]
    near = closest(path.name, [f"{name}.toml" for name in meant])
    return (
        f"{printable(str(path))} is read by no method: a file of presets is called after one, as in {kind.name}.toml. "
        f"{near}Rename it, or move it away."
    )


def _registered(kind: type[Method[Any]]) -> Iterator[str]:
    """The names under which packages register methods of the folder that this one is in."""
    package = kind.__module__.rpartition(".")[0]
    for plugin in listing(GROUPS["method"]):
        if package and plugin.entry.module.rpartition(".")[0] == package:
            yield plugin.name


def _imported(folder: Path, kind: type[Any] = Method) -> Iterator[str]:
    """The names of the methods of a folder that are there already, whoever has imported them."""
    for one in kind.__subclasses__():
        file = getattr(sys.modules.get(one.__module__), "__file__", None)
        name = vars(one).get("name")
        if file is not None and Path(file).parent == folder and isinstance(name, str):
            yield name
        yield from _imported(folder, one)


def _written(path: Path) -> list[str]:
    """The texts that a file of Python gives to variables, of which one may be the name of a method."""

    def find() -> list[str]:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return []
        given = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)]
        return [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]

    return once(path, "texts", find)
