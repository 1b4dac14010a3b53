"""ddbench leaderboard: the board of the local runs, and the committed tables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddbench.arguments import MOST_STUDENTS
from ddbench.cli import Group
from ddbench.cli.common import (
    data_option,
    device_option,
    json_option,
    leaderboards_option,
    note,
    print_json,
    quiet_option,
    remark,
    run_options,
    runs_option,
    stack,
    terminal_width,
)
from ddbench.text import number_of, of_board

if TYPE_CHECKING:
    from ddbench.runs.retraining import Retrained

tables_option = leaderboards_option("Folder of records and tables.")
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
    click.option(
        "--track",
        "tracks",
        multiple=True,
        type=click.Choice(["hard", "soft", "teacher"]),
        help="Only what was learned from classes, from stored soft labels, or from a teacher on line. Repeatable.",
    ),
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
@click.option("--scores", is_flag=True, help="With the scores of DD-Ranking, from evaluations that are there.")
@json_option
@click.pass_context
def leaderboard(
    ctx: click.Context,
    runs_root: Path,
    form: str,
    html: Path | None,
    scores: bool,
    as_json: bool,
    **wanted: Sequence[Any],
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
        print_json(json.loads(local_summary(runs_root, chosen, lost, scores=scores).to_json(orient="records")))
    elif html is not None:
        click.echo(str(html))
    else:
        click.echo(local_board(runs_root, chosen, lost, form=form, width=terminal_width(), scores=scores))
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
@click.option("--force", is_flag=True, help="Add a result too that is better than the records can explain.")
@tables_option
@data_option
@json_option
def add(paths: Sequence[Path], force: bool, leaderboards: Path, data_root: Path, as_json: bool) -> None:
    """Check the records of finished runs and copy them into the leaderboard, each with a picture of its set.

    A record is compared with the set and the evaluations beside it, and with the other records: a result that is above
    the whole dataset, or far above the other sets of its method, is refused without --force.
    """
    from ddbench.leaderboard import boards

    notes: list[str] = []
    added = [str(path) for path in boards.add(paths, leaderboards, force=force, data_root=data_root, notes=notes)]
    for text in notes:
        note(f"Note: {text}")
    if as_json:
        print_json(added)
    else:
        click.echo("\n".join(added))


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a table is out of date.")
@_html_option
@tables_option
@json_option
@click.pass_context
def build(ctx: click.Context, only_check: bool, html: Path | None, leaderboards: Path, as_json: bool) -> None:
    """Make the tables from the records."""
    from ddbench.files import write_atomically
    from ddbench.leaderboard import boards

    if only_check and html is not None:
        raise click.UsageError("--check writes nothing, so it goes without --html.")
    lost: list[str] = []
    # In this order: a fault may be why a table differs.
    faults = boards.faults(leaderboards) if only_check else []
    made = boards.differences if only_check else boards.build
    changed = [str(one) for one in made(leaderboards, lost)]
    found = [*faults, *changed]
    if html is not None:
        write_atomically(html, boards.committed_page(leaderboards).encode())
        found.append(str(html))
    if as_json:
        print_json(found)
    elif found:
        click.echo("\n".join(found))
    _name(lost)
    if only_check and changed:
        one = len(changed) == 1
        note(
            f"Error: {len(changed)} file{' is' if one else 's are'} not what the records give. "
            f"`{of_board('leaderboard build', leaderboards)}` makes {'it' if one else 'them'} again."
        )
    if faults:
        said = "fault is" if len(faults) == 1 else "faults are"
        note(
            f"Error: {len(faults)} {said} of records, pictures, published sets or checks, which "
            "`leaderboard build` does not mend. Take those files from their source again, or add and "
            "publish them anew."
        )
    if only_check and (found or lost):
        ctx.exit(1)


@click.command(short_help="Train students of finished runs again, and compare.")
@click.argument("refs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--students", type=click.IntRange(1, MOST_STUDENTS), default=1, show_default=True, metavar="N", help="How many."
)
@click.option("--all", "everyone", is_flag=True, help="All students of each record.")
@click.option("--protocol", "protocols", multiple=True, metavar="NAME|FILE", help="Only under this one. Repeatable.")
@click.option("--judge", "judges", multiple=True, metavar="NAME", help="Only with this backbone. Repeatable.")
@tables_option
@device_option
@data_option
@json_option
@quiet_option
@click.pass_context
def verify(
    ctx: click.Context,
    refs: Sequence[str],
    students: int,
    everyone: bool,
    protocols: Sequence[str],
    judges: Sequence[str],
    leaderboards: Path,
    device: str,
    data_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train students of finished runs again, from the set in the run's folder, and compare with the record.

    RUN is the folder of a run, or the name of a set that is published beside the records, as in dance/cifar10/ipc10,
    which needs no folder. With a committed record of the same set, it is that record which is compared, wherever the
    set was made again.

    What comes out is entered beside the committed record. Its row is verified where students of every set agree. A
    check that differs takes that from it, until a later one of more students agrees. Equal accuracies are expected on
    the same kind of machine and software; elsewhere the means have to lie as near as two students of that set do.
    """
    from ddbench.evaluation.protocol import protocol
    from ddbench.leaderboard import claims
    from ddbench.runs.retraining import meant
    from ddbench.runs.rundir import RunDir

    asked: dict[str, Any] = {
        # A recipe of a file is needed itself; the others are known by the run, or built in.
        "protocols": [protocol(ref) if ref.endswith(".toml") else ref for ref in protocols],
        "judges": judges,
    }
    wanted = {ref: claims.claim_of(ref, leaderboards, data_root, remark) for ref in refs}
    for claim in wanted.values():  # all, before students of the first are trained
        meant(claim.subject, claims.ids_of(asked["protocols"]), judges)
        claims.require_room(claim, leaderboards)
    rows: list[dict[str, Any]] = []
    try:
        for ref, claim in wanted.items():
            notes: list[str] = []
            shown = ref if claim.run is None else claim.run.name
            where = {"folder": None, "set": ref} if claim.run is None else {"folder": str(claim.run), "set": None}

            def heard(one: Retrained, shown: str = shown, where: dict[str, Any] = where) -> None:
                rows.append({**where, **_row(one)})
                if not as_json:
                    click.echo(f"{shown}: {one}")

            with tempfile.TemporaryDirectory() as nowhere:
                root = Path(nowhere) if claim.run is None else RunDir.at(claim.run).root
                options = run_options(root, data_root, device, quiet=quiet)
                count = None if everyone else students
                done = claims.verify(claim, leaderboards, options, students=count, **asked, notes=notes, heard=heard)
            if done.entered is not None:
                does = "says so in the tables" if done.differing else "marks the row, once all its sets are verified"
                note(f"Entered in {done.entered}. `{of_board('leaderboard build', leaderboards)}` {does}.")
            elif not done.stays and any(one.agrees for one in done.found):
                why = f"{leaderboards} has no record of this, so nothing was entered"
                note(f"{why}; `{of_board('leaderboard add', leaderboards, ref)}` adds it.")
            for check in done.stays:
                what = f"{check.protocol} with {check.backbone}"
                more = number_of(len(check.students), "student")
                note(f"Not entered: the check of {what} that is there is of {more}, and stays.")
            for check in done.differing:
                note(
                    f"Not verified: a check of {check.protocol} with {check.backbone} differs ({check}). It stands "
                    f"until a later one of more than {number_of(len(check.students), 'student')} agrees."
                )
            for text in notes:
                note(f"Note: {text}")
    finally:  # also what was checked before somebody stopped it
        if as_json and rows:
            print_json(rows)
    wrong = sum(not (row["agrees"] or row["failed"]) for row in rows)
    failed = sum(bool(row["failed"]) for row in rows)
    said = [f"{wrong} of {len(rows)} evaluations are not what their records say"] if wrong else []
    said += [f"{failed} of {len(rows)} evaluations could not be trained again"] if failed else []
    if said:
        note(f"Error: {', and '.join(said)}.")
        ctx.exit(1)


def _row(one: Retrained) -> dict[str, Any]:
    return {
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
