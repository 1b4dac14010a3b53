"""Options that several commands share, and printing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddbench.errors import ConfigError
from ddbench.text import printable

if TYPE_CHECKING:
    from ddbench.runs.observers import Observer

F = TypeVar("F", bound=Callable[..., Any])

FIRST_RUN = "ddbench run --method dm --method random --method whole --dataset digits --ipc 10"


class Folder(click.Path):
    """A folder that is there or can be made: nothing on the way to it is a file, and no name is too long."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            Path(os.fsdecode(path)).stat()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            option = f" with {param.opts[0]}" if param is not None and param.opts else ""
            raise ConfigError(
                f"the folder {printable(os.fsdecode(path), 120)} cannot be made: {why}. Choose another one{option}."
            ) from None
        return path


data_option = click.option(
    "--data",
    "data_root",
    envvar="DDBENCH_DATA",
    default="data",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    type=Folder(),
    help="Folder of the datasets.",
)
runs_option = click.option(
    "--runs",
    "runs_root",
    envvar="DDBENCH_RUNS",
    default="runs",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    type=Folder(),
    help="Folder of the runs.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
quiet_option = click.option("--quiet", is_flag=True, help="Print no progress.")
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the method; METHOD.KEY=VALUE for one of several methods. Repeatable.",
)
students_option = click.option(
    "--students",
    type=click.IntRange(min=1),
    metavar="N",
    help="Fresh networks per set; default: as the protocol says.",
)


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def observers(quiet: bool) -> list[Observer]:
    """Who watches a run."""
    from ddbench.runs.observers import Console

    return [] if quiet else [Console()]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Iterable[Sequence[Any]], headers: Sequence[str] = ()) -> None:
    """A plain table on stdout. On a terminal its last column is wrapped to fit."""
    from tabulate import tabulate

    cells = [["" if cell is None else printable(str(cell), lines=True) for cell in row] for row in rows]
    if not cells:
        return
    widths: list[int | None] = [None] * len(cells[0])
    if sys.stdout.isatty():
        taken = [max(len(row[column]) for row in [list(headers), *cells] if row) for column in range(len(cells[0]) - 1)]
        left = shutil.get_terminal_size().columns - sum(taken) - 2 * len(taken) - 1
        widths[-1] = max(30, left)
    style = "simple" if headers else "plain"
    click.echo(tabulate(cells, headers, tablefmt=style, disable_numparse=True, maxcolwidths=widths))


def note(text: str) -> None:
    """A line on stderr."""
    click.echo(printable(text, lines=True), err=True)


class Progress:
    """What a long file operation is doing, on stderr: a moving line on a terminal, else a line for each new thing."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.doing = ""
        self.shown = 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            now = time.monotonic()
            if now - self.shown > 0.1 or done == of:
                share = f" {100 * done // of} %" if of else ""
                click.echo(f"\r{what}{share}\x1b[K", err=True, nl=done == of and of > 1)
                self.shown = now
        elif what != self.doing:
            click.echo(f"{what} ...", err=True)
        self.doing = what


def writable(folder: Path) -> Path:
    """A folder that exists and can be written. Raises: RunError where it cannot be made."""
    from ddbench.errors import RunError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the folder {folder} cannot be made: {error.strerror}. Choose another one with --runs."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"the folder {folder} cannot be written. Check its owner, or choose another one with --runs.")
    return folder
