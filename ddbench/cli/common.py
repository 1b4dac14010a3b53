"""Options that several commands share, and printing."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar, cast

import click

from ddbench.arguments import MOST_SNAPSHOTS, MOST_STUDENTS
from ddbench.errors import ConfigError
from ddbench.text import printable, size

if TYPE_CHECKING:
    from ddbench.runs.observers import Observer
    from ddbench.runs.removal import Piece, Plan

F = TypeVar("F", bound=Callable[..., Any])

LAST_COLUMN = 30  # characters; with less, no column alone can make room
MOVE_SECONDS = 0.1  # between two states of a moving line
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


yes_option = click.option("--yes", is_flag=True, help="Delete without a question, also where no terminal can ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Name what would go, and delete nothing.")
wanted_options = (
    click.option("--method", "methods", multiple=True, metavar="NAME", help="Only runs of this method. Repeatable."),
    click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only runs on this dataset. Repeatable."),
    click.option(
        "--ipc", "ipcs", multiple=True, type=click.IntRange(0), metavar="N",
        help="Only runs of this budget; 0 for those on the whole dataset. Repeatable.",
    ),
    click.option(
        "--state", "states", multiple=True,
        type=click.Choice(["done", "failed", "running", "interrupted", "damaged"]), help="Repeatable.",
    ),
)  # fmt: skip


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


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Iterable[Sequence[Any]], headers: Sequence[str] = (), *, expendable: Sequence[str] = ()) -> None:
    """A plain table on stdout. On a terminal it fits: its last column is wrapped, or else all are, between words.

    Where that is not enough, columns are left out and named, of the `expendable` ones the first first.
    """
    from tabulate import tabulate

    cells = [["" if cell is None else printable(str(cell), lines=True) for cell in row] for row in rows]
    if not cells:
        return
    widths: list[int | None] = [None] * len(cells[0])
    head_widths: list[int] | None = None
    left_out: tuple[str, ...] = ()
    if (width := terminal_width()) is not None:
        taken = [max(len(row[column]) for row in [list(headers), *cells] if row) for column in range(len(cells[0]) - 1)]
        room = width - sum(taken) - 2 * len(taken) - 1
        last = max(len(row[-1]) for row in [list(headers), *cells] if row)
        widths[-1] = max(LAST_COLUMN, room)
        if room < min(last, LAST_COLUMN):
            from ddbench.leaderboard.fitting import HEAD, fit

            heads = list(headers) or [""] * len(cells[0])
            places = [heads.index(name) for name in expendable]
            fitted = fit(heads, cells, width, places, whole_words=True)
            headers = [heads[k] for k in fitted.columns] if headers else ()
            cells = [[row[k] for k in fitted.columns] for row in cells]
            widths, left_out = list(fitted.widths), fitted.left_out
            head_widths = [wide - HEAD for wide in fitted.widths] if headers else None
    style = "simple" if headers else "plain"
    click.echo(
        tabulate(
            cells,
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


def wrapped(text: str) -> str:
    """A paragraph as lines that fit on the terminal of stdout, where that is one."""
    width = terminal_width()
    return text if width is None else "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))


def note(text: str) -> None:
    """A line on stderr. Where nobody can read it any more, it is not worth a command."""
    from ddbench.runs.observers import Patient

    if sys.stderr is not None:
        click.echo(printable(text, lines=True), file=cast(TextIO, Patient(sys.stderr)))


def agreed(question: str, *, yes: bool) -> bool:
    """Whether to go on with something that cannot be undone: said beforehand, or asked on a terminal."""
    if yes or not at_a_terminal():
        return yes
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # Ctrl-C or the end of the input is an answer too
        click.echo(err=True)
        return False


def at_a_terminal() -> bool:
    """Whether somebody is there who can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def carry_out(
    ctx: click.Context,
    plan: Plan,
    removing: Iterator[Piece | str],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Name what would go, ask, and let it go. The code is 1 where something stays that should have gone.

    `beside` is what the JSON document says beside that.
    """
    if not as_json:
        if plan.pieces:
            print_table(((p.path, p.what, size(p.bytes)) for p in plan.pieces), ("what goes", "", "size"))
        else:
            click.echo("There is nothing to delete.")
        for kept in plan.kept:
            note(f"Kept: {kept.what}, {size(kept.bytes)}: {kept.why}.")
    elif plan.pieces and yes and not dry_run:
        for piece in plan.pieces:
            note(f"{piece.path}: {piece.what}, {size(piece.bytes)}")
    gone, errors = [], []
    wanted = bool(plan.pieces) and not dry_run
    go = wanted and (yes if as_json else agreed(f"Delete this, {size(plan.bytes)}?", yes=yes))
    if go:
        with Progress(False, at_once=False) as progress:
            for result in removing:
                if isinstance(result, str):
                    errors.append(result)
                else:
                    gone.append(result)
                progress("deleting", len(gone) + len(errors), len(plan.pieces))
        for error in errors:
            note(f"Error: {error}")
    if as_json:
        print_json(
            {
                "deleted": [piece.to_json() for piece in gone],
                "left": [piece.to_json() for piece in plan.pieces if piece not in gone],
                "kept": [vars(kept) for kept in plan.kept],
                "errors": errors,
                **(beside or {}),
                "bytes": sum(piece.bytes for piece in gone),
            }
        )
    elif go:
        click.echo(f"Deleted {len(gone)} of {len(plan.pieces)}: {size(sum(piece.bytes for piece in gone))}.")
    if wanted and not go:
        note(f"Nothing was deleted: {size(plan.bytes)} would go. Say --yes to delete it.")
        ctx.exit(1)
    if errors:
        ctx.exit(1)


class Progress:
    """What a long operation on files is doing, on stderr, between `with` and its end: a moving line on a terminal;
    elsewhere a line for each new thing, and one every ten seconds while it lasts, also where nothing is reported.

    Not `at_once`, nothing is said of what is over before that. A stderr that is gone is no reason to end the operation.
    `clock` counts seconds.
    """

    def __init__(
        self,
        quiet: bool,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: bool = True,
    ) -> None:
        from ddbench.runs.observers import Patient

        # As it is now: whoever is called may put something else in its place for a while.
        self._stream = None if quiet or sys.stderr is None else Patient(sys.stderr)
        self._moving = self._stream is not None and self._stream.isatty()
        self._every = MOVE_SECONDS if self._moving else every_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._doing, self._done, self._of = "", 0, 0
        self._since = -math.inf
        self._at_once = at_once
        self._shown = -math.inf if at_once else clock()

    def __enter__(self) -> Self:
        if self._stream is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._moving and self._doing:
            self._write("\r\x1b[K")

    def __call__(self, what: str, done: int, of: int) -> None:
        """Hear that so much of something is done; `of` is at most 1 where nobody knows how much there is."""
        with self._lock:
            new = what != self._doing
            self._doing, self._done, self._of = what, done, of
            if new:
                self._since = self._clock()
        self.show(at_once=new and self._at_once)

    def show(self, *, at_once: bool = False) -> None:
        """Say what is being done, unless that was said a moment ago."""
        with self._lock:
            now = self._clock()
            if self._stream is None or not self._doing or not (at_once or now - self._shown >= self._every):
                return
            self._shown = now
            line = f"{self._doing} {self._how_far(now - self._since)}"
        self._write(f"\r{line}\x1b[K" if self._moving else f"{line}\n")

    def _how_far(self, seconds: float) -> str:
        from ddbench.text import duration

        if self._of > 1 and self._done:
            return f"{100 * min(self._done, self._of) // self._of} %"
        return "..." if seconds < 1 else f"... {duration(seconds)}"

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._every)):
            self.show()

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)
        self._stream.flush()


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
