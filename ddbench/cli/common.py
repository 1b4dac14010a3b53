"""Options that several commands share, and printing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from ddbench.arguments import MOST_SNAPSHOTS, MOST_STUDENTS
from ddbench.errors import ConfigError
from ddbench.text import printable

if TYPE_CHECKING:
    from ddbench.runs.observers import Observer
    from ddbench.runs.runner import RunOptions

F = TypeVar("F", bound=Callable[..., Any])

LAST_COLUMN = 30  # characters; with less, no column alone can make room
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


def leaderboards_option(text: str) -> Callable[[F], F]:
    """The folder of the committed leaderboards, with what a command takes from it."""
    return click.option(
        "--leaderboards",
        "leaderboards",
        default="leaderboards",
        show_default=True,
        metavar="DIR",
        type=Folder(),
        help=text,
    )


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."
)
snapshots_option = click.option(
    "--snapshots",
    type=click.IntRange(2, MOST_SNAPSHOTS),
    default=5,
    show_default=True,
    metavar="N",
    help="States of the set that are kept, the result among them, for curves and correlations.",
)
track_option = click.option(
    "--track",
    "track",
    multiple=True,
    metavar="NAME",
    help="Send metrics and accuracies to tensorboard, wandb, trackio, FILE.py:CLASS or MODULE:CLASS. Repeatable.",
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
decode_option = click.option(
    "--decode",
    metavar="NAME",
    help="Of a file: tiles:2 where an image holds 2 x 2 smaller ones (IDC, NCFM, …); none.",
)
size_option = click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Of a file: resize its images to N x N pixels."
)
students_option = click.option(
    "--students",
    type=click.IntRange(1, MOST_STUDENTS),
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


def observers(quiet: bool, track: Sequence[str] = ()) -> list[Observer]:
    """Who watches a run: the console, and the trackers of these names.

    Raises: ConfigError, PluginError for a tracker that is not there.
    """
    from ddbench.runs.observers import Console

    watching: list[Observer] = [] if quiet else [Console()]
    if track:
        from ddbench.runs.trackers import trackers

        watching += trackers(track, lambda text: note(f"Warning: {text}"))
    return watching


def run_options(
    root: Path, data_root: Path, device: str, *, quiet: bool, track: Sequence[str] = (), **more: Any
) -> RunOptions:
    """Where and how runs of the folder `root` are done, as the options of a command say it.

    Raises: ConfigError for a device or a tracker that is not there, PluginError for a tracker that is none.
    """
    from ddbench.runs.devices import choose_device
    from ddbench.runs.runner import RunOptions

    watching = observers(quiet, track)
    return RunOptions(root=root, data_root=data_root, device=choose_device(device), observers=watching, **more)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(
    rows: Iterable[Sequence[Any]],
    headers: Sequence[str] = (),
    *,
    expendable: Sequence[str] = (),
    prose: bool = False,
) -> None:
    """A plain table on stdout. On a terminal it fits: its last column is wrapped, or else all are, between words.

    Where that is not enough, columns are left out and named, of the `expendable` ones the first first. With `prose` the
    last column may take many lines, and no more are left out than it needs to be readable.
    """
    from tabulate import tabulate

    cells = [["" if cell is None else printable(str(cell), lines=True) for cell in row] for row in rows]
    if not cells:
        return
    widths: list[int | None] = [None] * len(cells[0])
    head_widths: list[int] | None = None
    left_out: tuple[str, ...] = ()
    if (width := terminal_width()) is not None:
        from ddbench.leaderboard.fitting import HEAD, fit, for_tabulate

        heads = list(headers) or [""] * len(cells[0])
        tall = [max(len(head) + HEAD if head else 0, *(len(row[k]) for row in cells)) for k, head in enumerate(heads)]
        kept, going = list(range(len(heads))), [heads.index(name) for name in expendable]

        def room() -> int:
            return width - sum(tall[k] + 2 for k in kept[:-1]) - 1

        while prose and going and room() < min(tall[-1], LAST_COLUMN):
            kept.remove(going.pop(0))
            left_out = tuple(heads[k] for k in range(len(heads)) if k not in kept)
        cells, heads = [[row[k] for k in kept] for row in cells], [heads[k] for k in kept]
        widths = [*[None] * (len(kept) - 1), max(LAST_COLUMN, room())]
        if room() < min(tall[-1], LAST_COLUMN):
            fitted = fit(heads, cells, width, [kept.index(k) for k in going], whole_words=True)
            heads = [heads[k] for k in fitted.columns]
            cells = [[row[k] for k in fitted.columns] for row in cells]
            widths, left_out = list(fitted.widths), (*left_out, *fitted.left_out)
            head_widths = [wide - HEAD for wide in fitted.widths] if headers else None
        headers = heads if headers else ()
    style = "simple" if headers else "plain"
    click.echo(
        tabulate(
            cells if width is None else for_tabulate(cells),
            headers,
            tablefmt=style,
            disable_numparse=True,
            maxcolwidths=widths,
            maxheadercolwidths=head_widths,
        )
    )
    if left_out:
        note(wrapped(f"Left out, for the width of the terminal: {', '.join(left_out)}. --json has all."))


def terminal_width() -> int | None:
    """Characters in a line of stdout; None where it is no terminal, and nothing has to fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph as lines that fit on the terminal of stdout, where that is one; the second line on is indented."""
    if (width := terminal_width()) is None:
        return text
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False))


def note(text: str) -> None:
    """A line on stderr. Where nobody can read it any more, it is not worth a command."""
    from ddbench.runs.observers import Patient

    if sys.stderr is not None:
        click.echo(printable(text, lines=True), file=cast(TextIO, Patient(sys.stderr)))


def remark(text: str) -> None:
    """A sentence on stderr that changes nothing, and that a person should read."""
    note(f"Note: {text}")


def writable(folder: Path, option: str = "--runs") -> Path:
    """A folder that exists and can be written; `option` chooses it. Raises: RunError where it cannot be made."""
    from ddbench.errors import RunError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the folder {folder} cannot be made: {error.strerror}. Choose another one with {option}."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"the folder {folder} cannot be written. Check its owner, or choose another one with {option}.")
    return folder
