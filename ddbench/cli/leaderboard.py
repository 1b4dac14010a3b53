"""ddbench leaderboard: the board of the local runs, and the committed tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from ddbench.cli import Group
from ddbench.cli.common import Folder, data_option, json_option, note, print_json, runs_option, terminal_width

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


@click.group(
    cls=Group,
    short_help="The board of the local runs, and the committed tables.",
    invoke_without_command=True,
    homes={"add": "ddbench.cli.leaderboard:add", "build": "ddbench.cli.leaderboard:build"},
)
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
def leaderboard(ctx: click.Context, runs_root: Path, form: str, html: Path | None, as_json: bool) -> None:
    """The board of the local runs; or the committed tables, with a command.

    With --html it is a page: one file that any browser opens, to sort, to filter, and with all that is known of a row.
    Runs that are not on it, because they failed, run or were interrupted, are counted below it.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ddbench.files import write_atomically
    from ddbench.leaderboard.boards import local_board, local_summary

    if html is not None:
        write_atomically(html, local_board(runs_root, form="html").encode())
    if as_json:
        print_json(json.loads(local_summary(runs_root).to_json(orient="records")))
    elif html is not None:
        click.echo(str(html))
    else:
        click.echo(local_board(runs_root, form=form, width=terminal_width()))
    _say_what_is_missing(ctx, runs_root)


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
    found = boards.check(folder) if only_check else [str(path) for path in boards.build(folder)]
    if html is not None:
        write_atomically(html, boards.committed_page(folder).encode())
        found.append(str(html))
    if as_json:
        print_json(found)
    elif found:
        click.echo("\n".join(found))
    if only_check and found:
        note(f"Error: {len(found)} files are not what the records give. `ddbench leaderboard build` makes them again.")
        ctx.exit(1)
