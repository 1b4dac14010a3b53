"""ddbench evaluate: more judges for a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddbench.cli.common import (
    data_option,
    device_option,
    json_option,
    note,
    observers,
    print_json,
    print_table,
    quiet_option,
    students_option,
)

if TYPE_CHECKING:
    from ddbench.runs.rundir import RunDir


@click.command(short_help="Judge a finished run by other judges.")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--protocol",
    "refs",
    multiple=True,
    metavar="NAME|FILE",
    help="A name, native, or a TOML file; default: those of the run. Repeatable.",
)
@click.option(
    "--judge", "--backbone", "judges", multiple=True, metavar="NAME",
    help="Backbone of students; default: as the protocol says. Repeatable.",
)  # fmt: skip
@students_option
@click.option("--curve", is_flag=True, help="Judge the snapshots too.")
@device_option
@data_option
@json_option
@quiet_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    folder: Path,
    refs: Sequence[str],
    judges: Sequence[str],
    students: int | None,
    curve: bool,
    device: str,
    data_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge a finished run again: by another protocol, other backbones or more students. RUN is its folder."""
    from ddbench.evaluation.protocol import protocol
    from ddbench.runs.judging import cells
    from ddbench.runs.rundir import RunDir
    from ddbench.runs.runner import RunOptions, evaluate_run
    from ddbench.runs.spec import find_method
    from ddbench.sweep.launch import choose_device, failures

    run = RunDir.at(folder)
    native = find_method(run.spec.method)[1].info.native if "native" in refs else ""
    protocols = [protocol(native if ref == "native" else ref) for ref in refs or run.spec.protocols]
    options = RunOptions(
        root=_runs_root(run),
        data_root=data_root,
        device=choose_device(device),
        observers=observers(quiet),
    )
    record = evaluate_run(folder, protocols, judges, students, options, curve)
    if as_json:
        print_json(record.to_json())
    else:
        rows = []
        for part in record.evaluations:
            each = [100 * accuracy for accuracy in part.accuracy]
            mean = f"{sum(each) / len(each):.1f}" if each else "failed"
            rows.append((part.protocol, part.backbone, mean, " ".join(f"{accuracy:.1f}" for accuracy in each)))
        print_table(rows, ("protocol", "judge", "accuracy, %", "students"))
    lost = failures(record, cells(protocols, judges, students, record.data.shape, own=record.run.backbone))
    for message in lost:
        note(f"Error: {message}")
    if lost:
        ctx.exit(1)


def _runs_root(run: RunDir) -> Path:
    """The runs folder that a run lies in, where the artefacts are; for a folder that was moved, the one above it."""
    path = run.path.resolve()
    depth = len(run.spec.folder.parts)
    return path.parents[depth - 1] if path.parts[-depth:] == run.spec.folder.parts else path.parent
