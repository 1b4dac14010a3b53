"""ddbench check: the contract that every method keeps."""

from __future__ import annotations

import click

from ddbench.cli.common import json_option, note, print_json, set_option


@click.command(short_help="Try a method against the contract.")
@click.option("--method", "ref", required=True, metavar="REF", help="A name, PACKAGE/NAME, or ./FILE.py:CLASS.")
@set_option
@json_option
@click.pass_context
def check(ctx: click.Context, ref: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Try a method against the contract: seeds, resume, export, metrics. Needs no dataset."""
    from ddbench.config import parse_assignments
    from ddbench.plugins import names_code
    from ddbench.runs.resolving import find_method
    from ddbench.runs.unread_presets import unread_presets
    from ddbench.sweep.grid import distribute
    from ddbench.testing import contract

    _, kind = find_method(ref)
    for sentence in unread_presets(kind):
        note(f"Note: {sentence}")
    options = distribute(parse_assignments(assignments), [ref])[ref]

    def tell(check: contract.Check, error: str | None) -> None:
        click.echo(f"{'pass' if error is None else 'FAIL'}  {check.__name__.replace('_', ' ')}")
        if error is not None:
            click.echo(f"      {error}\n      The check: {(check.__doc__ or '').strip().splitlines()[0]}")

    shown = ref if names_code(ref) else ""
    results = contract.run(kind, options, ref=shown, told=None if as_json else tell)
    if as_json:
        print_json([{"check": name, "error": error} for name, error in results])
    failed = sum(error is not None for _, error in results)
    if failed:
        click.echo(f"{kind.name} breaks {failed} of {len(results)} checks.", err=True)
        ctx.exit(1)
