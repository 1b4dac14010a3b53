"""ddbench evaluate --grid: sets under several recipes, and whether the order of methods survives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ddbench.cli.common import note, print_json, print_table, remark, run_options, writable

OUTPUT = Path("sensitivity.json")


def judge(
    ctx: click.Context,
    refs: Sequence[str],
    words: Sequence[str],
    options: Mapping[str, Any],
    said: Mapping[str, Any],
    *,
    device: str,
    data_root: Path,
    runs_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge the sets that `refs` mean, or those that a file of a grid names, and print a table for each section.

    `options` are those of the command for a grid, `said` what it says of files. The exit code is 1 where no cell has an
    accuracy.
    """
    from ddbench.evaluation.protocol import protocol
    from ddbench.foreign.terms import Said
    from ddbench.sensitivity.asked import asked
    from ddbench.sensitivity.judging import SaidOfFiles, evaluate_grid

    protocols, output = options["protocols"], options["output"] or OUTPUT
    if len(protocols) > 1:
        raise click.UsageError("A grid has one protocol as its base; name one with --protocol.")
    wanted = asked(words).over(
        sets=tuple(refs),
        base=protocol(protocols[0]) if protocols else None,
        product=options["product"],
        forwards=options["forwards"],
        judges=tuple(options["judges"]),
        students=options["students"],
    )
    files = SaidOfFiles(
        Said(*(said[name] for name in ("pixels", "labels", "lr", "augment", "decode", "size"))),
        said["dataset"],
        said["entry"],
    )
    where = run_options(writable(runs_root), data_root, device, quiet=quiet)
    results = evaluate_grid(wanted, files, where, output, remark)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
    else:
        _print(results)
        note(f"Results: {output}")
    if not any(cell.accuracy for section in results.sections for cell in section.cells):
        ctx.exit(1)


def _print(results: Any) -> None:
    from ddbench.sensitivity.tables import headers, rows, sentences, title

    for section in results.sections:
        click.echo(title(section))
        print_table(rows(section), headers(section))
        for text in sentences(section, results.recipes):
            click.echo(text)
        click.echo()
    click.echo("Accuracy, % ± half the 95 % interval (rank); tau: of the order to that of the first row, with 95 %.")
