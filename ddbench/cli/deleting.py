"""How a command deletes: it names what would go, asks, and lets it go."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli.common import note, print_json, print_table
from ddbench.cli.progress import Progress
from ddbench.text import size

if TYPE_CHECKING:
    from ddbench.runs.removal import Piece, Removal

yes_option = click.option("--yes", is_flag=True, help="Delete without a question, also where no terminal can ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Name what would go, and delete nothing.")


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
    plan: Removal,
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
