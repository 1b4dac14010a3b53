"""ddbench new: files to begin with."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click

from ddbench.cli import Group
from ddbench.errors import ConfigError, RunError

PACKAGED = "idea.py.txt"


@click.group(cls=Group, homes={"method": "ddbench.cli.new:method"}, short_help="Write a file to begin with.")
def new() -> None:
    """Write a file to begin with."""


@click.command(short_help="A method of your own, in one file that runs.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def method(file: Path) -> None:
    """Write a complete method into FILE, which ends in .py, to change into your own.

    It is the example of the guide "Add a method", called after the file.
    """
    from ddbench.files import write_atomically

    if file.suffix != ".py":
        raise ConfigError(f"{file} does not end in .py. Name it such as {file.with_suffix('.py')}.")
    if file.exists():
        raise ConfigError(f"{file} is there already, and nothing is written over it. Name another one.")
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "my-method"
    text = _example().replace('name = "my-method"', f'name = "{name}"')
    write_atomically(file, text.encode())
    ref = f"{file if file.is_absolute() else f'./{file}'}:MyMethod"
    click.echo(
        f"{file} has the method {name}. Try it, change it, and try it again:\n"
        f"  ddbench check --method {ref}\n"
        f"  ddbench run --method {ref} --dataset digits --ipc 1"
    )


def _example() -> str:
    """The checkout's docs/examples/idea.py, or the copy inside an installed package.

    Raises: RunError where neither is there.
    """
    root = Path(__file__).resolve().parents[2]
    checkout = root / "docs" / "examples" / "idea.py"
    if (root / "pyproject.toml").is_file() and checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    packaged = resources.files("ddbench.cli") / PACKAGED
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    raise RunError(f"the example is missing: neither {checkout} nor {packaged} is there. Reinstall ddbench.")
