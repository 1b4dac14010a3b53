"""Runs the shell and Python blocks of a page in their order, in a fresh folder, and stops at the first that fails.

Usage: python docs/run_page.py docs/pages/guides/downloaded.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import click

FENCE = re.compile(r"^( *)```(sh|python)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@click.command()
@click.argument("page", type=click.Path(path_type=Path))
def main(page: Path) -> None:
    """Run the blocks of PAGE with this Python's ddbench."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DDBENCH_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        for _, language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            code = textwrap.dedent(block)
            click.echo(textwrap.indent(code.rstrip(), "+ "), err=True)
            program = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
            done = subprocess.run([*program, code], cwd=folder, env=environment)
            if done.returncode:
                raise click.ClickException(f"a block of {page} has failed with exit code {done.returncode}.")


if __name__ == "__main__":
    main()
