"""ddbench measure: what is told of finished runs beside the accuracy of students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddbench.cli import Group
from ddbench.cli.common import (
    data_option,
    device_option,
    json_option,
    leaderboards_option,
    print_json,
    print_table,
    quiet_option,
    remark,
    run_options,
    runs_option,
)

if TYPE_CHECKING:
    from ddbench.runs.record import CorrelationPart
    from ddbench.runs.runner import RunOptions

_runs_argument = click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group(
    cls=Group,
    short_help="Measure finished runs otherwise than by the accuracy of students.",
    homes={
        "recognised": "ddbench.cli.measure:recognised",
        "correlation": "ddbench.cli.measure:correlation",
    },
)
def measure() -> None:
    """Measure finished runs otherwise than by the accuracy of students.

    What comes out is kept in the runs' records, and `ddbench leaderboard --scores` shows it. Nothing chooses by it.
    """


@click.command(short_help="How much of a set a network recognises that was trained on the real images.")
@click.argument("refs", metavar="RUN|SET...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--judge", "--backbone", "judges", multiple=True, metavar="NAME",
    help="Backbone of the network; default: the ConvNet that fits the images. Repeatable.",
)  # fmt: skip
@leaderboards_option("Of a published set: the folder with its record, which keeps what is measured.")
@device_option
@data_option
@runs_option
@json_option
@quiet_option
def recognised(
    refs: Sequence[str],
    judges: Sequence[str],
    leaderboards: Path,
    device: str,
    data_root: Path,
    runs_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """How much of a set a network recognises that was trained on the real images.

    RUN is the folder of a run, SET the name of a published set, as in dance/cifar10/ipc10, which needs no folder.

    The set is a test set here: the network says a class of each image, and no test image is read. It is trained once
    for each dataset and pixel space, as the teacher of distill@1 is.
    """
    from ddbench.leaderboard import measuring
    from ddbench.runs.recognising import recognise, reservation
    from ddbench.text import percent

    # All, before a network is trained for the first.
    wanted = [measuring.asked(ref, leaderboards, data_root, remark) for ref in refs]
    records = []
    for one in wanted:
        if isinstance(one, Path):
            records.append(recognise(one, judges, _options(one, device, data_root, quiet)))
        else:
            records.append(measuring.recognise(one, judges, run_options(runs_root, data_root, device, quiet=quiet)))
    if as_json:
        print_json([{"run": r.run.id, **part.model_dump(mode="json")} for r in records for part in r.recognised])
        return
    rows = [
        (record.run.method, record.run.id, part.backbone, part.images, percent(part.accuracy))
        for record in records
        for part in record.recognised
    ]
    print_table(rows, ("method", "run", "network", "images", "recognised, %"))
    for text in dict.fromkeys(text for record in records if (text := reservation(record))):
        remark(text)


@click.command(short_help="Whether a method's loss and the test loss go down together along a run.")
@_runs_argument
@click.option("--protocol", "refs", multiple=True, metavar="NAME|FILE", help="Only under this one. Repeatable.")
@click.option("--judge", "--backbone", "judges", multiple=True, metavar="NAME", help="Only by this judge. Repeatable.")
@click.option("--metric", default="loss", show_default=True, metavar="NAME", help="What the method has logged.")
@device_option
@data_option
@json_option
@quiet_option
def correlation(
    paths: Sequence[Path],
    refs: Sequence[str],
    judges: Sequence[str],
    metric: str,
    device: str,
    data_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Whether a method's loss and the test loss go down together along a run.

    The snapshots of a finished run are judged as its result was, and their mean test loss is correlated, by ranks, with
    what the method logged before each of them. The more snapshots, the more it says: `ddbench run --snapshots 20`.
    """
    from ddbench.evaluation.meant import ids_of
    from ddbench.runs.correlating import correlate

    names = ids_of(refs)
    records = [
        correlate(path, names, judges, _options(path, device, data_root, quiet), metric=metric) for path in paths
    ]
    if as_json:
        print_json([{"run": r.run.id, **part.model_dump(mode="json")} for r in records for part in r.correlations])
        return
    rows = [
        (record.run.method, record.run.id, part.protocol, part.backbone, part.metric, part.points, *_of(part))
        for record in records
        for part in record.correlations
    ]
    print_table(rows, ("method", "run", "protocol", "judge", "metric", "snapshots", "Spearman's rho", "95 % interval"))


def _of(part: CorrelationPart) -> tuple[str, str]:
    known = part.low is not None and part.high is not None
    return f"{part.rho:+.2f}", f"[{part.low:+.2f}, {part.high:+.2f}]" if known else "too few snapshots"


def _options(path: Path, device: str, data_root: Path, quiet: bool) -> RunOptions:
    from ddbench.runs.rundir import RunDir

    return run_options(RunDir.at(path).root, data_root, device, quiet=quiet)
