"""Learning curves, where --curve asks for them: how `run` and `evaluate` print them."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import click

from ddbench.cli.common import note, print_table
from ddbench.leaderboard.render import duration
from ddbench.runs.judging import curves
from ddbench.runs.record import RunRecord
from ddbench.runs.rundir import RunDir


def with_curves(record: RunRecord, folder: Path) -> dict[str, Any]:
    """A record as JSON, and beside it the curves of its set."""
    drawn = curves(RunDir.at(folder), record.synthetic.sha256)
    return {**record.to_json(), "curves": [curve.model_dump(mode="json") for curve in drawn]}


def print_curves(record: RunRecord, folder: Path) -> None:
    """A line for every snapshot and judge."""
    drawn = curves(RunDir.at(folder), record.synthetic.sha256)
    rows = [
        (
            curve.protocol,
            curve.backbone,
            point.step,
            "" if point.seconds is None else duration(point.seconds),
            f"{100 * mean(point.accuracy):.1f}" if point.accuracy else "failed",
            " ".join(f"{100 * accuracy:.1f}" for accuracy in point.accuracy),
        )
        for curve in drawn
        for point in curve.points
    ]
    if rows:
        click.echo("")
        print_table(rows, ("protocol", "judge", "step", "after", "accuracy, %", "students"))
    for curve in drawn:
        for point in curve.points:
            if point.failed:
                note(f"{curve.protocol} with {curve.backbone}, step {point.step}: {point.failed}")
