"""What CAFE's loops took in runs, and what came of them: updates of a network, epochs between two of them, loops that a
cap ended, time, how large pixels became beside real ones, and accuracies.

python tests/gpu/measure_cafe.py --output docs/measured/cafe.json runs/cifar10/ipc*/cafe/*

Runs that the output has from before stay in it. Totals are from records. Percentiles are from logs, whose lines are
means over the networks of about a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from ddbench.files import write_json
from ddbench.runs.observers import read_log
from ddbench.runs.record import read_record

PERCENTILES = (10, 50, 90)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(runs: tuple[Path, ...], output: Path) -> None:
    """Summarise finished runs of CAFE."""
    before = json.loads(output.read_text())["runs"] if output.is_file() else []
    rows_by_run = {row["run"]: row for row in before} | {row["run"]: row for row in map(summary, runs)}
    rows = sorted(rows_by_run.values(), key=lambda row: (row["dataset"], row["ipc"], row["run"]))
    write_json(output, {"schema": "ddbench.cafe-loops/1", "runs": rows})
    for row in rows:
        click.echo(
            f"{row['dataset']} ipc{row['ipc']} {row['options']}: {row['updates']} updates, {row['between']} epochs"
        )


def summary(folder: Path) -> dict[str, Any]:
    """One run, with the options that were set by hand."""
    record, log = read_record(folder / "record.json"), read_log(folder / "log.jsonl")
    given = {name for name, source in record.config.sources.items() if not source.startswith(("default", "preset"))}
    by_hand = {name: value for name, value in record.config.values.items() if name in given}
    networks = record.config.values["iterations"]
    updates, epochs = record.counts["updates"], record.counts["epochs"]
    lines = [line["metrics"] for line in log]
    between = [m["epochs"] / (m["updates"] - 1) for m in lines if m["updates"] > 1]
    return {
        "run": record.run.id,
        "dataset": record.run.dataset,
        "ipc": record.run.ipc,
        "seed": record.run.seed,
        "options": by_hand,
        "devices": record.devices,
        "precision": record.run.precision,
        "seconds": record.cost["condense"].seconds,
        "networks": networks,
        "updates": round(updates / networks, 2),
        "between": round(epochs / (updates - networks), 2) if updates > networks else 0.0,
        "capped": record.counts["capped loops"],
        "updates percentiles": percentiles([m["updates"] for m in lines]),
        "between percentiles": percentiles(between),
        "scale": record.synthetic.scale,
        "accuracy": {f"{e.protocol} {e.backbone}": e.accuracy for e in record.evaluations},
        "longest": max((m["longest"] for m in lines), default=0.0),
    }


def percentiles(values: list[float]) -> list[float]:
    """The tenth, the median and the ninetieth."""
    return [round(float(value), 2) for value in np.percentile(values, PERCENTILES)] if values else []


if __name__ == "__main__":
    main()
