"""ddbench leaderboard: the board of the local runs, and the committed tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ddbench.cli import Group
from ddbench.cli.common import Folder, data_option, json_option, note, print_json, runs_option, stack, terminal_width

_folder_option = click.option(
    "--leaderboards",
    "folder",
    default="leaderboards",
    show_default=True,
    metavar="DIR",
    type=Folder(),
    help="Folder of records and tables.",
)
_html_option = click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the board as one page, which needs no network.",
)


_chosen_options = stack(
    click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only this dataset. Repeatable."),
    click.option(
        "--ipc",
        "ipcs",
        multiple=True,
        type=click.IntRange(0),
        metavar="N",
        help="Only this budget; 0 for the whole dataset. Repeatable.",
    ),
    click.option("--method", "methods", multiple=True, metavar="NAME", help="Only this method. Repeatable."),
    click.option("--protocol", "protocols", multiple=True, metavar="NAME", help="Only this protocol. Repeatable."),
    click.option(
        "--judge",
        "judges",
        multiple=True,
        metavar="NAME",
        help="Only this judge, or all whose names begin so. Repeatable.",
    ),
)


@click.group(
    cls=Group,
    short_help="The board of the local runs, and the committed tables.",
    invoke_without_command=True,
    homes={"add": "ddbench.cli.leaderboard:add", "build": "ddbench.cli.leaderboard:build"},
)
@_chosen_options
@runs_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "csv", "latex", "html"]),
    default="text",
    show_default=True,
    help="How the board is printed. Text fits the terminal; csv has every number.",
)
@_html_option
@json_option
@click.pass_context
def leaderboard(
    ctx: click.Context, runs_root: Path, form: str, html: Path | None, as_json: bool, **wanted: Sequence[Any]
) -> None:
    """The board of the local runs; or the committed tables, with a command.

    With --html it is a page: one file that any browser opens, to sort, to filter, and with all that is known of a row.
    Ranks and differences are those of the whole board, whatever part of it is chosen. Runs that are not on it, because
    they failed, run or were interrupted, are counted below it, and damaged records are named.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ddbench.files import write_atomically
    from ddbench.leaderboard.boards import local_board, local_summary
    from ddbench.leaderboard.chosen import Chosen

    chosen, lost = Chosen(**{name: tuple(values) for name, values in wanted.items()}), list[str]()
    if html is not None:
        write_atomically(html, local_board(runs_root, chosen, lost, form="html").encode())
    if as_json:
        lost.clear()  # the page has found the same
        print_json(json.loads(local_summary(runs_root, chosen, lost).to_json(orient="records")))
    elif html is not None:
        click.echo(str(html))
    else:
        click.echo(local_board(runs_root, chosen, lost, form=form, width=terminal_width()))
    _say_what_is_missing(ctx, runs_root)
    _name(lost)


def _name(lost: Sequence[str]) -> None:
    for sentence in lost:
        note(f"Left out: {sentence}")


def _say_what_is_missing(ctx: click.Context, runs_root: Path) -> None:
    from ddbench.runs.listing import off_the_board

    counts = off_the_board(runs_root)
    if counts:
        elsewhere = ctx.get_parameter_source("runs_root") is ParameterSource.COMMANDLINE
        command = f"ddbench runs --runs {runs_root}" if elsewhere else "ddbench runs"
        said = ", ".join(f"{count} {state}" for state, count in counts.items())
        note(f"Not on this board: {said}; `{command}` lists {'it' if sum(counts.values()) == 1 else 'them'}.")


@click.command(short_help="Copy the records of finished runs into the leaderboard.")
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_folder_option
@data_option
@json_option
def add(paths: Sequence[Path], folder: Path, data_root: Path, as_json: bool) -> None:
    """Check the records of finished runs and copy them into the leaderboard, each with a picture of its set."""
    from ddbench.leaderboard import boards

    notes: list[str] = []
    added = [str(path) for path in boards.add(paths, folder, data_root=data_root, notes=notes)]
    for text in notes:
        note(f"Note: {text}")
    if as_json:
        print_json(added)
    else:
        click.echo("\n".join(added))


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a table is out of date.")
@_html_option
@_folder_option
@json_option
@click.pass_context
def build(ctx: click.Context, only_check: bool, html: Path | None, folder: Path, as_json: bool) -> None:
    """Make the tables from the records."""
    from ddbench.files import write_atomically
    from ddbench.leaderboard import boards

    if only_check and html is not None:
        raise click.UsageError("--check writes nothing, so it goes without --html.")
    lost: list[str] = []
    found = boards.check(folder, lost) if only_check else [str(path) for path in boards.build(folder, lost)]
    if html is not None:
        write_atomically(html, boards.committed_page(folder).encode())
        found.append(str(html))
    if as_json:
        print_json(found)
    elif found:
        click.echo("\n".join(found))
    _name(lost)
    if only_check and found:
        note(f"Error: {len(found)} files are not what the records give. `ddbench leaderboard build` makes them again.")
    if only_check and (found or lost):
        ctx.exit(1)
