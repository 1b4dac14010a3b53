"""ddbench compare: which of several methods, runs or sets is better, and whether the difference matters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from ddbench.cli.common import (
    json_option,
    leaderboards_option,
    note,
    print_json,
    print_table,
    remark,
    runs_option,
    wrapped,
)

names_option = leaderboards_option("Folder of committed records, for names that the runs folder does not know.")


@click.command(short_help="Which method, run or set is better, and by how much.")
@click.argument("refs", metavar="A B...", nargs=-1, required=True)
@click.option("--dataset", metavar="NAME", help="Only on this dataset.")
@click.option("--ipc", type=click.IntRange(min=0), metavar="N", help="Only of this budget; 0 is the whole dataset.")
@click.option("--protocol", "protocols", multiple=True, metavar="NAME|FILE", help="Only under this one. Repeatable.")
@click.option("--judge", "judges", multiple=True, metavar="NAME", help="Only by this backbone. Repeatable.")
@runs_option
@names_option
@json_option
def compare(
    refs: Sequence[str],
    dataset: str | None,
    ipc: int | None,
    protocols: Sequence[str],
    judges: Sequence[str],
    runs_root: Path,
    leaderboards: Path,
    as_json: bool,
) -> None:
    """Compare methods, runs or sets in pairs, wherever both were judged alike.

    A and B are methods or rows of a board by name, runs by folder or id, records, published sets by name, or downloaded
    sets that `ddbench evaluate` has judged. Accuracies are paired by student, which starts from the same seed on every
    set; sets are the units. A run that is part of a row is compared with the other sets of it. A difference that surely
    lies within half a point is called equal. The p values are corrected by Holm's method for all pairs that are
    printed.
    """
    if len(dict.fromkeys(refs)) < 2:
        raise click.UsageError("Name two or more results to compare, such as: ddbench compare dm random")
    from ddbench.leaderboard.comparison import Cells
    from ddbench.leaderboard.comparison import compare as compared
    from ddbench.leaderboard.references import Shelf

    cells = Cells(dataset, ipc, tuple(protocols), tuple(judges))
    found = compared(refs, Shelf(runs_root, leaderboards, dataset, ipc, remark), cells)
    if as_json:
        print_json(json.loads(found.to_json(orient="records")))
        return
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
    for title, members in groupby(rows, key=_title):
        click.echo(wrapped(title))
        print_table([_cells(row) for row in members], ("A", "B", "A − B, points", "95 % interval", "p", "A is"))
        click.echo()
    count = len(rows)
    plural = "" if count == 1 else "s"
    click.echo(wrapped(f"p: for no difference, corrected by Holm's method for {count} pair{plural}."))
    if any(row["provisional"] for row in rows):
        said = "† one set on a side: this is about those sets, and says nothing of others of the same method."
        click.echo(wrapped(said))
    if any(row["left_out"] for row in rows):
        click.echo(wrapped("without: a set that is on both sides is left out of the row, as it says."))
    if not all(row["paired"] for row in rows):
        note("Note: pairs with fewer than two students in common are not paired by student.")


def _title(row: Mapping[str, Any]) -> str:
    from ddbench.leaderboard.tracks import NAMES
    from ddbench.text import budget

    return (
        f"{row['data_title']}, {budget(row['ipc'])}, {NAMES[row['track']]}, protocol {row['protocol']}, {row['judge']}"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    from ddbench.text import percent

    gap, half = 100 * row["difference"], 100 * row["ci95"]
    known = not math.isnan(half)
    said = "equal within 0.5" if row["verdict"] == "equal" else row["verdict"]
    return (
        f"{row['first']}: {percent(row['first_mean'])}",
        f"{row['second']}: {percent(row['second_mean'])}",
        _signed(gap),
        f"[{_signed(gap - half)}, {_signed(gap + half)}]" if known else "one student of one set each",
        _p(row["p_holm"]) if known else "",
        said + ("†" if row["provisional"] else ""),
    )


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
