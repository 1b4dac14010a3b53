"""ddbench leaderboard: the board of the local runs, and the committed tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from ddbench.cli import Group
from ddbench.cli.common import Folder, json_option, note, print_json, runs_option

_folder_option = click.option(
    "--leaderboards",
    "folder",
    default="leaderboards",
    show_default=True,
    metavar="DIR",
    type=Folder(),
    help="Folder of records and tables.",
)


@click.group(
    cls=Group,
    short_help="The board of the local runs, and the committed tables.",
    invoke_without_command=True,
    homes={"add": "ddbench.cli.leaderboard:add", "build": "ddbench.cli.leaderboard:build"},
)
@runs_option
@json_option
@click.pass_context
def leaderboard(ctx: click.Context, runs_root: Path, as_json: bool) -> None:
    """The board of the local runs; or the committed tables, with a command.

    Runs that are not on it, because they failed, run or were interrupted, are counted below it.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ddbench.leaderboard.boards import local_board, local_summary

    if as_json:
        print_json(json.loads(local_summary(runs_root).to_json(orient="records")))
    else:
        click.echo(local_board(runs_root))
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
@click.option("--force", is_flag=True, help="Add a result too that is better than the records can explain.")
@_folder_option
@json_option
def add(paths: Sequence[Path], force: bool, folder: Path, as_json: bool) -> None:
    """Check the records of finished runs and copy them into the leaderboard.

    A record is compared with the set and the evaluations beside it, and with the other records: a result that is above
    the whole dataset, or far above the other sets of its method, is refused without --force.
    """
    from ddbench.leaderboard import boards

    added = [str(path) for path in boards.add(paths, folder, force=force, tell=lambda text: note(f"Note: {text}"))]
    if as_json:
        print_json(added)
    else:
        click.echo("\n".join(added))


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a table is out of date.")
@_folder_option
@json_option
@click.pass_context
def build(ctx: click.Context, only_check: bool, folder: Path, as_json: bool) -> None:
    """Make the tables from the records."""
    from ddbench.leaderboard import boards

    found = boards.check(folder) if only_check else [str(path) for path in boards.build(folder)]
    if as_json:
        print_json(found)
    elif found:
        click.echo("\n".join(found))
    if only_check and found:
        note(f"Error: {len(found)} files are not what the records give. `ddbench leaderboard build` makes them again.")
        ctx.exit(1)
