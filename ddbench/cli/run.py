"""ddbench run and ddbench prepare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.arguments import PRECISIONS
from ddbench.cli.common import (
    FIRST_RUN,
    F,
    data_option,
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    run_options,
    runs_option,
    set_option,
    snapshots_option,
    stack,
    students_option,
    terminal_width,
    track_option,
    writable,
)

if TYPE_CHECKING:
    from ddbench.runs.batch import Outcome
    from ddbench.runs.record import RunRecord
    from ddbench.runs.resolving import Asked


def _what_to_run(command: F) -> F:
    """The options that say which runs are meant."""
    return stack(
        click.option(
            "--method",
            "methods",
            multiple=True,
            metavar="REF",
            help="A name, PACKAGE/NAME or ./FILE.py:CLASS. Repeatable.",
        ),
        click.option("--dataset", metavar="NAME", help="A dataset of `ddbench data list`."),
        click.option(
            "--ipc",
            "ipcs",
            multiple=True,
            type=click.IntRange(min=1),
            default=[10],
            show_default=True,
            metavar="N",
            help="Images per class. Repeatable.",
        ),
        click.option(
            "--seed",
            "seeds",
            multiple=True,
            type=click.IntRange(min=0),
            default=[0],
            show_default=True,
            metavar="N",
            help="Seed of the set. Repeatable.",
        ),
        click.option(
            "--preset",
            metavar="NAME",
            help="paper, quick, or one of the method's own. Default: quick for digits, else paper.",
        ),
        click.option("--backbone", metavar="NAME", help="The network that the method uses."),
        click.option("--pixels", metavar="NAME", help="Pixel space, such as standard or zca."),
        click.option(
            "--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML with the method's options."
        ),
        set_option,
        click.option(
            "--select",
            metavar="KEY=VALUE,...|on|none",
            help="Keep the best set on held-out training images, as in heldout=0.1,every=500,students=2.",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            help="Default: the preset's, else tf32 on GPUs that have it.",
        ),
    )(command)


_how_to_judge: Callable[[F], F] = stack(
    click.option(
        "--protocol",
        "protocols",
        multiple=True,
        metavar="NAME|FILE",
        help="How the set is judged: a name, native, or a TOML file. Repeatable.",
    ),
    click.option(
        "--judge",
        "judges",
        multiple=True,
        metavar="NAME",
        help="Backbone of students; default: as the protocol says. Repeatable.",
    ),
    students_option,
)
_where: Callable[[F], F] = stack(device_option, data_option, runs_option)


@click.command(short_help="Condense a dataset, judge the set, write a record.")
@_what_to_run
@_how_to_judge
@_where
@click.option("--fresh", is_flag=True, help="Start over instead of going on from the last checkpoint.")
@click.option("--curve", is_flag=True, help="Judge the snapshots too, after the run; in JSON they are `curves`.")
@snapshots_option
@click.option("--dry-run", is_flag=True, help="Say what would be done and about how long it takes; run nothing.")
@track_option
@json_option
@quiet_option
@click.pass_context
def run(
    ctx: click.Context,
    device: str,
    data_root: Path,
    runs_root: Path,
    fresh: bool,
    curve: bool,
    snapshots: int,
    dry_run: bool,
    track: Sequence[str],
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Condense a dataset, judge the set, write a record.

    Several methods, ipc or seeds make several runs, done one after another. The same command again goes on where it was
    stopped, and leaves out what is done.
    """
    requests = _requests(**asked)
    from ddbench.cli.curves import with_curves
    from ddbench.foreign.starting import read_start
    from ddbench.runs.batch import resolve_all, run_all
    from ddbench.runs.resolving import remarks

    options = run_options(
        runs_root, data_root, device, quiet=quiet, track=track, fresh=fresh, curve=curve, snapshots=snapshots
    )
    if dry_run:
        from ddbench.cli.dry_run import print_plans

        print_plans(requests, data_root, runs_root, options.device, _said(ctx), as_json)
        return
    resolutions = resolve_all(requests, data_root, options.device, read_start)
    for sentence in remarks(resolutions):
        note(f"Note: {sentence}")
    writable(runs_root)
    outcomes = run_all(resolutions, options)
    done = [(outcome.record, outcome.folder) for outcome in outcomes if outcome.record is not None]
    if as_json:
        print_json([with_curves(record, folder) if curve else record.to_json() for record, folder in done])
    elif done:
        _print_results(done, curve)
    exit_with_failures(ctx, outcomes)


@click.command(short_help="Make beforehand what runs need, such as experts.")
@_what_to_run
@_where
@json_option
@quiet_option
def prepare(device: str, data_root: Path, runs_root: Path, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Make what the methods of these runs need beforehand, such as experts; `ddbench run` then finds it."""
    requests = _requests(protocols=(), judges=(), students=None, **asked)
    from ddbench.foreign.starting import read_start
    from ddbench.runs.batch import resolve_all
    from ddbench.runs.runner import prepare as fill
    from ddbench.text import duration

    options = run_options(writable(runs_root), data_root, device, quiet=quiet)
    used: dict[str, dict[str, Any]] = {}
    for resolution in resolve_all(requests, data_root, options.device, read_start):
        # What a later request finds there may have been made for an earlier one.
        used |= {e["key"]: e | {"from_cache": used.get(e["key"], e)["from_cache"]} for e in fill(resolution, options)}
    if as_json:
        print_json(list(used.values()))
        return
    print_table(
        (
            (entry["kind"], entry["key"], duration(entry["seconds"]), "yes" if entry["from_cache"] else "no")
            for entry in used.values()
        ),
        ("artefact", "key", "cost", "was there"),
    )
    if not used:
        click.echo("These methods need nothing beforehand.")


def exit_with_failures(ctx: click.Context, outcomes: Sequence[Outcome]) -> None:
    """Say on stderr which runs have failed, and which judges of others; leave with 1 if a run has."""
    for outcome in outcomes:
        where = f"{outcome.spec.method}, ipc {outcome.spec.ipc}, seed {outcome.spec.seed}: "
        kind = "Note" if outcome.state == "done" else "Error"
        for line in outcome.message.splitlines() if outcome.state == "done" else [outcome.message]:
            note(f"{kind}: {where if len(outcomes) > 1 else ''}{line}")
    if any(outcome.state != "done" for outcome in outcomes):
        ctx.exit(1)


def _requests(
    methods: Sequence[str],
    dataset: str | None,
    ipcs: Sequence[int],
    seeds: Sequence[int],
    config: Path | None,
    assignments: Sequence[str],
    select: str | None,
    **common: Any,
) -> list[Asked]:
    for option, given in (("--method", methods), ("--dataset", dataset)):
        if not given:
            raise click.UsageError(f"Missing option {option!r}. A first run, which needs no download: {FIRST_RUN}")
    if config is not None and len(set(methods)) > 1:
        raise click.UsageError("--config holds the options of one method. For several, use --set or `ddbench sweep`.")
    # Only now: importing what runs anything takes seconds, and a usage error should not.
    from ddbench.config import parse_assignments, parse_selection
    from ddbench.sweep.grid import expand

    axes: dict[str, Sequence[Any]] = {
        "dataset": [dataset],
        "method": list(dict.fromkeys(methods)),
        "ipc": ipcs,
        "seed": seeds,
    }
    common["select"] = None if select is None else parse_selection(select)
    return expand(axes, parse_assignments(assignments), config_file=config, **common)


def _print_results(done: Sequence[tuple[RunRecord, Path]], curve: bool) -> None:
    from ddbench.cli.curves import print_curves
    from ddbench.leaderboard.boards import board_of

    click.echo(board_of([folder for _, folder in done], terminal_width()))
    for record, folder in done:
        if curve:
            print_curves(record, folder)
        click.echo(f"{folder / 'record.json'}  {folder / 'preview.png'}")


def _said(ctx: click.Context) -> dict[str, str]:
    """Where the values come from that no preset touches."""
    options = {"ipcs": "ipc", "seeds": "seed", "judges": "judge", "students": "students"}
    left_open = click.core.ParameterSource.DEFAULT
    return {
        name: "default" if ctx.get_parameter_source(parameter) is left_open else f"--{name}"
        for parameter, name in options.items()
    }
