"""ddbench leaderboard: the board of the local runs, and the committed tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddbench.cli import Group
from ddbench.cli.common import (
    Folder,
    data_option,
    device_option,
    json_option,
    note,
    observers,
    print_json,
    quiet_option,
    runs_option,
)

if TYPE_CHECKING:
    from ddbench.runs.retraining import Retrained

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
    homes={
        "add": "ddbench.cli.leaderboard:add",
        "build": "ddbench.cli.leaderboard:build",
        "verify": "ddbench.cli.leaderboard:verify",
    },
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

    notes: list[str] = []
    added = [str(path) for path in boards.add(paths, folder, force=force, notes=notes)]
    for text in notes:
        note(f"Note: {text}")
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


@click.command(short_help="Train students of finished runs again, and compare.")
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--students", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="How many.")
@click.option("--all", "everyone", is_flag=True, help="All students of each record.")
@click.option("--protocol", "protocols", multiple=True, metavar="NAME", help="Only under this one. Repeatable.")
@click.option("--judge", "judges", multiple=True, metavar="NAME", help="Only with this backbone. Repeatable.")
@_folder_option
@device_option
@data_option
@json_option
@quiet_option
@click.pass_context
def verify(
    ctx: click.Context,
    paths: Sequence[Path],
    students: int,
    everyone: bool,
    protocols: Sequence[str],
    judges: Sequence[str],
    folder: Path,
    device: str,
    data_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train students of finished runs again, from the set in the run's folder, and compare with the record.

    What agrees is entered beside the committed record, whose row is then verified. Equal accuracies are expected on the
    same kind of machine and software; elsewhere the means have to lie as near as two students of that set do.
    """
    from ddbench.evaluation.protocol import protocol
    from ddbench.leaderboard import boards
    from ddbench.leaderboard.observations import record_file
    from ddbench.runs.devices import choose_device
    from ddbench.runs.rundir import RunDir
    from ddbench.runs.runner import RunOptions

    ids = [protocol(ref).id for ref in protocols]
    count = None if everyone else students
    rows: list[dict[str, Any]] = []
    for path in paths:
        run = record_file(path).parent
        options = RunOptions(
            root=RunDir.at(run).root, data_root=data_root, device=choose_device(device), observers=observers(quiet)
        )
        found, kept = boards.verify(run, folder, options, students=count, protocols=ids, judges=judges)
        rows += [_row(run, one) for one in found]
        if not as_json:
            click.echo("\n".join(f"{run.name}: {one}" for one in found))
        if kept is not None:
            note(f"Entered in {kept}. `ddbench leaderboard build` marks the row.")
        elif any(one.agrees for one in found):
            note(f"{folder} has no record of this, so nothing was entered; `ddbench leaderboard add {run}` adds it.")
    if as_json:
        print_json(rows)
    wrong = [row for row in rows if not row["agrees"]]
    if wrong:
        note(f"Error: {len(wrong)} of {len(rows)} evaluations are not what their records say.")
        ctx.exit(1)


def _row(run: Path, one: Retrained) -> dict[str, Any]:
    return {
        "folder": str(run),
        "protocol": one.evaluation.protocol,
        "judge": one.evaluation.backbone,
        "students": list(one.students),
        "recorded": list(one.recorded),
        "again": list(one.accuracy),
        "within": one.within,
        "equal": one.equal,
        "agrees": one.agrees,
        "failed": one.failed,
    }
