"""Makes a notebook of a page: its prose and Python blocks as cells, executed in their order in a fresh folder.

Usage: python docs/notebook.py docs/pages/guides/train-on-a-set.md
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import io
import json
import linecache
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LANGUAGE = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def cells(page: Path) -> Iterator[tuple[str, str]]:
    """The cells of a page: their kind, "markdown" or "code", and their text."""
    text, position = page.read_text(encoding="utf-8"), 0
    for match in BLOCK.finditer(text):
        yield "markdown", text[position : match.start()].strip()
        yield "code", match[1].rstrip("\n")
        position = match.end()
    yield "markdown", text[position:].strip()


def execute(code: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a cell, as a notebook keeps them: what it printed, and the value of its last line."""
    # As IPython does it, so that tracebacks and `inspect` find the lines of a cell.
    cell = f"<cell {hashlib.sha256(code.encode()).hexdigest()[:8]}>"
    linecache.cache[cell] = (len(code), None, code.splitlines(keepends=True), cell)
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, cell, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), cell, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append({"output_type": "execute_result", "metadata": {}, "data": _shown(value)})
    return outputs


def notebook(page: Path) -> dict[str, Any]:
    """The executed notebook of a page. Raises: whatever a cell of it does."""
    made: list[dict[str, Any]] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for position, (kind, text) in enumerate(cells(before / page)):
                if not text:
                    continue
                cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{position}", "metadata": {}}
                if kind == "code":
                    number += 1
                    outputs = execute(text, names)
                    for output in outputs:
                        output |= {"execution_count": number} if output["output_type"] == "execute_result" else {}
                    cell |= {"execution_count": number, "outputs": outputs}
                made.append(cell | {"source": _lines(text)})
        finally:
            os.chdir(before)
    return {"cells": made, "metadata": LANGUAGE, "nbformat": 4, "nbformat_minor": 5}


def _shown(value: Any) -> Mapping[str, Any]:
    if picture := getattr(value, "_repr_png_", lambda: None)():
        return {"image/png": base64.b64encode(picture).decode(), "text/plain": [f"<{type(value).__name__}>"]}
    return {"text/plain": _lines(repr(value))}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@click.command()
@click.argument("page", type=click.Path(path_type=Path))
def main(page: Path) -> None:
    """Execute PAGE and write the notebook beside it."""
    out = page.with_suffix(".ipynb")
    out.write_text(json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(str(out))


if __name__ == "__main__":
    main()
