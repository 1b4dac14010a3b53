"""ddbench sets: condensed sets to take away, and how one of a run's is published."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import Group
from ddbench.cli.common import (
    data_option,
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    run_options,
    wrapped,
)
from ddbench.cli.leaderboard import tables_option
from ddbench.text import percent, size

if TYPE_CHECKING:
    from ddbench.foreign.published_sets import SetEntry

_sets_option = click.option(
    "--sets",
    "place",
    envvar="DDBENCH_SETS",
    show_envvar=True,
    metavar="DIR|URL",
    help="Where the index of sets is: a folder, or an address of http, https or file; default: leaderboards/sets.",
)


@click.group(
    cls=Group,
    homes={"list": "ddbench.cli.sets:list_", "get": "ddbench.cli.sets:get", "add": "ddbench.cli.sets:add"},
)
def sets() -> None:
    """Condensed sets to take away: what there is, get one, publish one."""


@click.command("list", short_help="Which sets can be taken away.")
@_sets_option
@data_option
@json_option
def list_(place: str | None, data_root: Path, as_json: bool) -> None:
    """Which sets can be taken away, with the accuracy that their runs were recorded with."""
    from ddbench.foreign.published_sets import place_of_sets, read_index

    place = place_of_sets(place)
    index = read_index(place, data_root)
    if as_json:
        print_json(index.to_json())
        return
    if not index.sets:
        click.echo(f"No set has been published in {place} yet. `ddbench sets add RUN` publishes one.")
        return
    rows = [_row(entry) for entry in index.sets]
    print_table(
        rows,
        ("name", "accuracy, %", "of the file", "under", "judge", "size", "seed", "run", "licence of the images"),
        expendable=("run", "seed", "judge", "licence of the images", "of the file", "under"),
    )
    for entry in index.sets:
        if entry.why:
            note(wrapped(f"{entry.name}: {entry.why}"))
    note(wrapped(index.rule))


def _row(entry: SetEntry) -> tuple[Any, ...]:
    from ddbench.evaluation.protocol import judged_by

    judge = judged_by(entry.protocol, entry.judge)
    means = (percent(fmean(part)) if part else "" for part in (entry.accuracy, entry.accuracy_of_file))
    return entry.name, *means, entry.protocol, judge, size(entry.bytes), entry.seed, entry.run, entry.licence


@click.command(short_help="Get a set, checked against the index.")
@click.argument("name")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Copy it there.")
@_sets_option
@data_option
@json_option
def get(name: str, out: Path | None, place: str | None, data_root: Path, as_json: bool) -> None:
    """Get a set by its name, such as dance/cifar10/ipc10, and print where its file is.

    What comes from an address is kept in the data folder. The file's hash is compared with the index each time.
    """
    from ddbench.foreign.published_sets import place_of_sets, take

    path = take(name, place_of_sets(place), data_root, out)
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        click.echo(str(path))


@click.command(short_help="Publish the set of a run.")
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--protocol",
    "ref",
    metavar="NAME|FILE",
    help="By which accuracy it stands on the board; default: that of the method's own paper.",
)
@click.option(
    "--kept",
    type=click.Choice(["float16", "uint8", "float32"]),
    default="float16",
    show_default=True,
    help="How the file keeps images of floating point; uint8 has 256 steps of each channel.",
)
@click.option("--judge", "judged", is_flag=True, help="Train the record's students on the set as the file has it.")
@click.option("--why", default="", metavar="TEXT", help="Why this set, where the rule would take another one.")
@tables_option
@device_option
@data_option
@quiet_option
@json_option
def add(
    path: Path,
    ref: str | None,
    kept: Any,
    judged: bool,
    why: str,
    leaderboards: Path,
    device: str,
    data_root: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish the set of a run whose record is in the leaderboard: a small file, and an entry of the index.

    The rule of the index says which set stands for a method: the lowest seed of the settings with the highest mean.
    Another one needs --why, which the index keeps.
    """
    from ddbench.evaluation.protocol import protocol
    from ddbench.leaderboard.publishing import publish

    options = run_options(path.parent, data_root, device, quiet=quiet) if judged else None
    by = None if ref in (None, "native") else protocol(str(ref))
    entry = publish(path, leaderboards, protocol=by, kept=kept, why=why, judging=options)
    if as_json:
        print_json(entry.model_dump(mode="json"))
        return
    click.echo(f"{entry.name}: {entry.file}, {size(entry.bytes)}, of run {entry.run}")
    measured = f"; {percent(fmean(entry.accuracy_of_file))} % on the set as the file has it" if judged else ""
    click.echo(f"{percent(fmean(entry.accuracy))} % under {entry.protocol} with {entry.judge}{measured}")
