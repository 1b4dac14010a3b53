"""ddbench check: the contract that every method keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli.common import json_option, note, print_json, set_option

if TYPE_CHECKING:
    from ddbench.method import Method

SMALL = 8  # of anything that is counted, beside classes of forty images


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

    if not options and (advice := _without_trial(kind)):
        note(advice)

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


def _without_trial(kind: type[Method[Any]]) -> str:
    """What to write where a method brings no options for trials and has some that may be too much; else nothing."""
    from ddbench.testing import contract

    large = _large(kind)
    if contract.trial(kind) or not large:
        return ""
    shown = ", ".join(f"{name} {default}" for name, default in large.items())
    smaller = [f"{name} = {SMALL}" for name in large]
    return "\n".join(
        [
            f"Note: {kind.name} has no preset for trials, so that each check runs with its defaults ({shown}), which "
            f"can take minutes. Write smaller ones into presets/{kind.name}.toml beside its file:",
            "  [[setting]]",
            '  preset = "trial"',
            '  dataset = "*"',
            '  source = "what suits a tiny problem, for checks"',
            *(f"  {line}" for line in smaller),
            f"or give them to this command alone: --set {smaller[0].replace(' ', '')}.",
        ]
    )


def _large(kind: type[Method[Any]]) -> Mapping[str, int]:
    """The options that count something and can be smaller. Of `iterations` the checks take few anyway."""
    from pydantic import ValidationError

    found: dict[str, int] = {}
    for name, field in kind.Config.model_fields.items():
        if name == "iterations" or type(field.default) is not int or field.default <= SMALL:
            continue
        try:
            kind.Config(**{name: SMALL})
        except ValidationError:
            continue  # its range, or another option, forbids it
        found[name] = field.default
    return found
