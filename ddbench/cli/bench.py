"""ddbench bench: how fast the hot loops are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.arguments import PRECISIONS
from ddbench.cli.common import (
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    runs_option,
    students_option,
)

if TYPE_CHECKING:
    from ddbench.costs.bench import Bench, Comparison

# By kind of device, where nothing is asked for.
IPCS = {"gpu": (1, 10, 50), "cpu": (1, 10)}
SECONDS = {"gpu": 10.0, "cpu": 3.0}
# The images are made on the spot, so many of each class.
MOST_IPC = 500


@click.command(short_help="Time the hot loops on this machine.")
@click.option(
    "--loop",
    "loops",
    multiple=True,
    type=click.Choice(["ceiling", "methods", "students", "experts"]),
    help="Default: ceiling, methods and students. Repeatable.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=["convnet"],
    show_default=True,
    metavar="NAME",
    help="Of the students; methods use the first. Repeatable.",
)
@click.option(
    "--ipc",
    "ipcs",
    multiple=True,
    type=click.IntRange(1, MOST_IPC),
    metavar="N",
    help="Images per class; default: 1, 10 and, on a GPU, 50. Repeatable.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=["dm"],
    show_default=True,
    metavar="REF",
    help="A name, PACKAGE/NAME or ./FILE.py:CLASS. Repeatable.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Default: fp32; on a GPU all that it has. Repeatable.",
)
@students_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="About how long to time each loop; default: 10 on a GPU, 3 on a CPU.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the results as JSON."
)
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare with results written earlier.",
)
@device_option
@runs_option
@json_option
@quiet_option
def bench(
    loops: Sequence[Any],
    ipcs: Sequence[int],
    precisions: Sequence[str],
    students: int | None,
    seconds: float | None,
    output: Path | None,
    against: Path | None,
    device: str,
    runs_root: Path,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Time student training, steps of methods, and what the device can do at best. Needs no dataset.

    Times of students are kept in the folder of the runs, where `ddbench run --dry-run` finds them.
    """
    from ddbench.costs.bench import PROTOCOL, USUAL, AskedBench, compare, kind_of, measure, read_bench, save_latest
    from ddbench.engine.precision import names_on
    from ddbench.files import write_json
    from ddbench.runs.devices import choose_device

    old = read_bench(against) if against is not None else None
    chosen = choose_device(device)
    kind = kind_of(chosen)
    found = measure(
        AskedBench(
            device=chosen,
            loops=loops or USUAL,
            ipcs=tuple(dict.fromkeys(ipcs)) or IPCS[kind],
            precisions=tuple(dict.fromkeys(precisions)) or (names_on(chosen) if kind == "gpu" else ("fp32",)),
            students=students or PROTOCOL.students,
            seconds=seconds or SECONDS[kind],
            **{name: tuple(dict.fromkeys(values)) for name, values in asked.items()},
        ),
        (lambda _: None) if quiet else note,
    )
    if any(result.student for result in found.results):
        save_latest(runs_root, found)
    if output is not None:
        write_json(output, found.to_json())
    compared = compare(found, old) if old is not None else []
    if as_json:
        print_json(found.to_json() if old is None else {"bench": found.to_json(), "against": list(map(vars, compared))})
        return
    _print(found)
    if old is not None:
        click.echo()
        _print_comparison(compared, found, old)


def _print(found: Bench) -> None:
    machine = found.machine
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    click.echo(f"{machine.device} ({machine.cpu}, {machine.threads} threads), torch {machine.torch}{cuda}")
    click.echo()
    print_table(
        (
            (
                result.name,
                result.precision,
                f"{result.ms:.4g} ± {result.spread_ms / 2:.2g}",
                _number(result.images_per_second),
                _number(result.tflops) if result.tflops else _number(result.gigabytes_per_second, " GB/s"),
                "-" if result.share is None else f"{100 * result.share:.1f} %",
                _number(result.setup_seconds),
            )
            for result in found.results
        ),
        ("loop", "precision", "ms", "images/s", "TFLOP/s", "of ceiling", "setup s"),
    )
    students = [(result, result.student) for result in found.results if result.student is not None]
    if students:
        click.echo()
        print_table(
            (
                (
                    result.name,
                    result.precision,
                    part.way,
                    part.steps,
                    _number(part.seconds),
                    f"{part.all_in_seconds:.4g} for each of {part.students}",
                    "extrapolated" if part.extrapolated else "measured",
                )
                for result, part in students
            ),
            ("loop", "precision", "way", "steps", "s a student", "s with setup and test", "from"),
        )


def _print_comparison(compared: Sequence[Comparison], new: Bench, old: Bench) -> None:
    print_table(
        (
            (
                row.name,
                row.precision,
                f"{row.old_ms:.4g}",
                f"{row.new_ms:.4g}",
                f"{row.faster:.3g}x",
                "no more than the spread" if row.same else "",
            )
            for row in compared
        ),
        ("loop", "precision", "old ms", "new ms", "faster", ""),
    )
    if not compared:
        click.echo("The two have no loop in common.")
    then, now = old.machine.model_dump(), new.machine.model_dump()
    for name in (name for name in now if now[name] != then[name]):
        note(f"Not the same {name}: {then[name]} then, {now[name]} now.")


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{unit}"
