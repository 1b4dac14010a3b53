"""ddbench reproduce: a record's run once more, and whether set and accuracies are those of the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli.common import (
    Folder,
    data_option,
    device_option,
    json_option,
    note,
    print_json,
    quiet_option,
    remark,
    run_options,
    runs_option,
    writable,
)
from ddbench.cli.compare import names_option

if TYPE_CHECKING:
    from ddbench.leaderboard.reproduction import Again, Reproduction


@click.command(short_help="Run a record's run again, and compare.")
@click.argument("ref", metavar="RECORD")
@click.option("--dataset", metavar="NAME", help="Which of the records of a name: those on this dataset.")
@click.option("--ipc", type=click.IntRange(min=0), metavar="N", help="Those of this budget; 0 is the whole dataset.")
@click.option("--method", metavar="REF", help="The file of a method that was given by path: ./FILE.py:CLASS.")
@click.option("--protocol", "protocols", multiple=True, metavar="FILE", help="A recipe that was in a file. Repeatable.")
@click.option("--into", default="reproduced", show_default=True, metavar="DIR", type=Folder(), help="Where to run it.")
@click.option("--fresh", is_flag=True, help="Start over instead of reading what was reproduced before.")
@click.option("--dry-run", is_flag=True, help="Print the commands and run nothing.")
@device_option
@data_option
@runs_option
@names_option
@json_option
@quiet_option
@click.pass_context
def reproduce(
    ctx: click.Context,
    ref: str,
    dataset: str | None,
    ipc: int | None,
    method: str | None,
    protocols: Sequence[str],
    into: Path,
    fresh: bool,
    dry_run: bool,
    device: str,
    data_root: Path,
    runs_root: Path,
    leaderboards: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a record's run again with its settings and seeds, and say whether set and accuracies agree.

    RECORD is a file, the folder of a run, an id, the name of a published set, or that of a method or row, which stands
    for all its records; so does the file of a method, ./FILE.py. The commands are printed, then run in a folder of
    their own, so that nothing that is there already is read for it. Leaves with 1 where they do not agree.
    """
    from ddbench.leaderboard.references import Shelf
    from ddbench.leaderboard.reproduction import again_of, reproduce, require_elsewhere, with_their_images
    from ddbench.plugins import names_code

    if method is None and names_code(ref):
        method = ref  # whoever names records by the file of their method has named the file
    options = run_options(into, data_root, device, quiet=quiet, fresh=fresh)
    files = Shelf(runs_root, leaderboards, dataset, ipc, remark).one_budget(ref)
    every = [
        again_of(file, data_root=data_root, device=options.device, method=method, protocols=protocols) for file in files
    ]
    wanted, said = with_their_images(every)
    if said:
        note(said)
    where = None if _usual(ctx, "data_root") else data_root
    if not as_json or not quiet:
        for text in dict.fromkeys(again.text(into, where) for again in wanted):
            click.echo(text, err=as_json)
    if dry_run:
        for text in [text for again in wanted for text in again.left_out]:
            note(text)
        if as_json:
            print_json([_planned(again, into) for again in wanted])
        return
    for again in wanted:  # all, before the first is run
        require_elsewhere(again, into)
    writable(into, "--into")
    found = []
    for again in wanted:
        found.append(reproduce(again, options))
        if not as_json:
            click.echo("\n".join([f"{again.file}:", *found[-1].lines()]))
    if as_json:
        print_json([_compared(one, into) for one in found])
    wrong = [one for one in found if not one.agrees]
    if wrong:
        note(f"Error: {len(wrong)} of {len(found)} records {'was' if len(wrong) == 1 else 'were'} not reproduced.")
        ctx.exit(1)


def _usual(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE


def _planned(again: Again, into: Path) -> dict[str, Any]:
    return {
        "record": str(again.file),
        "run": again.record.run.id,
        "becomes": again.spec.id,
        "commands": again.commands(into),
        "left_out": list(again.left_out),
    }


def _compared(one: Reproduction, into: Path) -> dict[str, Any]:
    return _planned(one.again, into) | {
        "folder": str(one.folder),
        "same_set": one.same_set,
        "circumstances": list(one.circumstances),
        "apart": one.apart,
        "agrees": one.agrees,
        "evaluations": [
            {
                "protocol": outcome.evaluation.protocol,
                "judge": outcome.evaluation.backbone,
                "recorded": list(outcome.evaluation.accuracy),
                "again": list(outcome.accuracy),
                "equal": outcome.equal,
                "within": outcome.within,
                "by": outcome.by,
                "agrees": outcome.agrees,
            }
            for outcome in one.outcomes
        ],
    }
