"""How accuracies of students are printed, and learning curves where --curve asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import click

from ddbench.cli.common import note, print_table
from ddbench.evaluation.protocol import judged_by
from ddbench.runs.evaluating import curves
from ddbench.runs.record import RunRecord
from ddbench.runs.rundir import RunDir
from ddbench.text import duration, percent


def accuracy_cells(accuracy: Sequence[float]) -> tuple[str, str]:
    """The mean over students and each of them, in %; "failed" where there is none."""
    return percent(mean(accuracy)) if accuracy else "failed", " ".join(map(percent, accuracy))


def with_curves(record: RunRecord, folder: Path) -> dict[str, Any]:
    """A record as JSON, and beside it the curves of its set."""
    drawn = curves(RunDir.at(folder), record.synthetic.sha256)
    return {**record.to_json(), "curves": [curve.model_dump(mode="json") for curve in drawn]}


def print_curves(record: RunRecord, folder: Path) -> None:
    """A line for every snapshot and judge."""
    drawn = curves(RunDir.at(folder), record.synthetic.sha256)
    if not drawn:
        where = RunDir.at(folder).snapshots
        note(f"There is no learning curve: {where} has no snapshots. They are taken while a method learns in steps.")
    rows = [
        (
            curve.protocol,
            judged_by(curve.protocol, curve.backbone),
            point.step,
            "" if point.seconds is None else duration(point.seconds),
            *accuracy_cells(point.accuracy),
        )
        for curve in drawn
        for point in curve.points
    ]
    if rows:
        click.echo("")
        print_table(rows, ("protocol", "judge", "step", "after", "accuracy, %", "students"))
    for curve in drawn:
        judge = judged_by(curve.protocol, curve.backbone)
        for point in curve.points:
            if point.failed:
                note(f"{curve.protocol} with {judge}, step {point.step}: {point.failed}")
