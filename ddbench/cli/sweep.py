"""ddbench sweep: many runs, on this machine's devices or on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddbench.cli.common import (
    Folder,
    data_option,
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    runs_option,
    snapshots_option,
    track_option,
    writable,
)
from ddbench.text import of_board, some_of

if TYPE_CHECKING:
    from ddbench.runs.batch import Outcome
    from ddbench.runs.states import Status
    from ddbench.sweep.process import Process
    from ddbench.sweep.tasks import Beside, Task


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--shard", "part", metavar="I/N", help="Only the i-th of n parts, for schedulers of any kind.")
@click.option("--cluster", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@click.option(
    "--slurm",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="As submitit calls it: partition=gpu, timeout_min=720, … Repeatable.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N",
    help="Workers side by side. Default: one for each visible device. On Slurm: jobs that share the runs; default: a "
    "job for each run.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Say what is done and what is missing, and what Slurm would get; run nothing."
)
@click.option(
    "--recorded",
    type=Folder(),
    metavar="DIR",
    help="Leave out runs that have records with all that is asked in this leaderboard, as in --recorded leaderboards.",
)
@snapshots_option
@track_option
@device_option
@data_option
@runs_option
@json_option
@quiet_option
@click.pass_context
def sweep(
    ctx: click.Context,
    file: Path,
    part: str | None,
    cluster: str,
    settings: Sequence[str],
    jobs: int | None,
    dry_run: bool,
    recorded: Path | None,
    snapshots: int,
    track: Sequence[str],
    device: str,
    data_root: Path,
    runs_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do the runs of a sweep file. The same command again does what is missing.

    FILE is TOML with one [grid], whose method, dataset, ipc, seed, … may be lists, and any number of [[run]].
    """
    from ddbench.runs.places import likely_devices, place_of
    from ddbench.sweep.process import started_ahead

    if settings and cluster != "slurm":
        raise click.UsageError("--slurm needs --cluster slurm.")
    likely = likely_devices(device) if cluster == "local" and not dry_run and file.is_file() else []
    places = [place_of(likely[number % len(likely)]) for number in range(jobs or len(likely)) if likely]
    # Before torch, which both take seconds to load.
    with started_ahead(places, runs_root / "jobs" / file.stem) as ahead:
        from ddbench.config import parse_assignments
        from ddbench.runs.devices import choose_device, visible_devices
        from ddbench.runs.resolving import remarks
        from ddbench.sweep.grid import read_sweep, shard
        from ddbench.sweep.tasks import Beside, tasks_of

        slurm = {
            key.removeprefix("slurm_"): value for key, value in parse_assignments(settings, "--slurm KEY=VALUE").items()
        }
        beside = Beside(tuple(track), snapshots)
        if track:
            from ddbench.runs.trackers import trackers

            trackers(track, note)  # told here, and not by every worker
        requests = read_sweep(file)
        if part is not None:
            requests = shard(requests, part)
        # Jobs of a cluster find their devices where they run.
        here = choose_device(device if cluster == "local" else "auto")
        if cluster == "slurm" and here.type == "cpu" and any(asked.precision is None for asked in requests):
            note(
                "Some runs leave the precision open, and this machine has no GPU: runs that were done on GPUs are not "
                'recognised. Say precision = "tf32", or another, in the file.'
            )
        tasks = tasks_of(requests, data_root, here, settled=cluster == "local")
        if recorded is not None:
            tasks = _without_recorded(tasks, recorded)
        states = [task.status(runs_root) for task in tasks]
        for sentence in remarks(task.resolution for task in tasks):
            note(f"Note: {sentence}")
        if cluster == "slurm":
            _on_slurm(file, tasks, states, slurm, jobs, dry_run, device, data_root, runs_root, as_json, beside)
            return
        if dry_run:
            _print_states(tasks, states, runs_root, as_json)
            return
        outcomes = _here(
            tasks, states, visible_devices(device), jobs, file, data_root, writable(runs_root), quiet, ahead, beside
        )
        _report(outcomes, as_json, ctx)
        if any(outcome.state != "done" for outcome in outcomes):
            ctx.exit(1)


SHOWN = 5  # runs of a note


def _without_recorded(tasks: Sequence[Task], leaderboards: Path) -> list[Task]:
    from ddbench.leaderboard.boards import has, place_of
    from ddbench.runs.record import readable

    if not (leaderboards / "records").is_dir():
        note(f"{leaderboards} has no records, so that no run is left out.")
    left = [task for task in tasks if not has(leaderboards, task.resolution.spec, task.resolution.cells)]
    if len(left) < len(tasks):
        note(f"Left out, because {leaderboards} has their records: {len(tasks) - len(left)} of {len(tasks)}.")
    there = [place for task in left if (place := leaderboards / place_of(task.resolution.spec)).is_file()]
    readable_ones = {place for place, _ in readable(there)}
    if damaged := [str(place) for place in there if place not in readable_ones]:
        command = of_board("leaderboard build", leaderboards)
        note(
            f"Damaged, so that they count as none: {some_of(damaged, SHOWN)}. `{command}` says what is wrong with each."
        )
    # Images that are chosen without a network are the same everywhere.
    partly = sorted(
        {
            task.name
            for task in left
            if (task.resolution.method.info.kind == "condensation" or task.resolution.method.uses_backbone)
            and (leaderboards / place_of(task.resolution.spec)) in readable_ones
        }
    )
    if partly:
        shown = some_of(partly, SHOWN)
        note(
            f"{len(partly)} of the others have a record without all that is asked: {shown}. What is judged now can be "
            "added to it only if the set comes out equal bit by bit, which sets from a GPU seldom do. Other seeds are "
            "sure."
        )
    return left


def _here(
    tasks: Sequence[Task],
    states: Sequence[Status],
    devices: Sequence[str],
    jobs: int | None,
    file: Path,
    data_root: Path,
    runs_root: Path,
    quiet: bool,
    ahead: list[Process],
    beside: Beside,
) -> list[Outcome]:
    """Do what is left on this machine; what is done already is among the outcomes."""
    from ddbench.runs.places import place_of
    from ddbench.sweep.pool import Pool
    from ddbench.sweep.progress import Board

    left = [task for task, status in zip(tasks, states, strict=True) if status.state != "done"]
    there = [
        task.outcome(runs_root, status) for task, status in zip(tasks, states, strict=True) if status.state == "done"
    ]
    count = min(jobs or len(devices), len(left))
    if not count:
        return there
    places = [place_of(devices[number % len(devices)]) for number in range(count)]
    board = Board([task.name for task in left], [task.kind for task in left], count, already=len(there), quiet=quiet)
    pool = Pool(left, places, runs_root, data_root, runs_root / "jobs" / file.stem, board, ahead=ahead, beside=beside)
    order = {task.resolution.spec.folder: number for number, task in enumerate(tasks)}
    return sorted([*there, *pool.work()], key=lambda outcome: order[outcome.spec.folder])


def _on_slurm(
    file: Path,
    tasks: Sequence[Task],
    states: Sequence[Status],
    settings: Mapping[str, Any],
    jobs: int | None,
    dry_run: bool,
    device: str,
    data_root: Path,
    runs_root: Path,
    as_json: bool,
    beside: Beside,
) -> None:
    from ddbench.sweep.slurm import Submission, queued, shown

    handed = {asked: job for job, asked in queued(runs_root)}
    left = [
        task
        for task, status in zip(tasks, states, strict=True)
        if status.state not in ("done", "running") and task.asked not in handed
    ]
    submission = Submission(
        file.stem,
        left,
        runs_root,
        data_root,
        device,
        settings,
        min(jobs, len(left)) if jobs else None,
        beside=beside,
    )
    waiting = [handed[task.asked] for task in tasks if task.asked in handed]
    if dry_run:
        _print_states(tasks, states, runs_root, as_json)
        if not as_json and left:
            click.echo(f"\n{submission.script()}")
        return
    if waiting:
        note(f"Left out, because they are queued or running as {shown(list(dict.fromkeys(waiting)))}: {len(waiting)}.")
    writable(runs_root)
    ids = submission.submit() if left else []
    if as_json:
        print_json(ids)
    elif ids:
        click.echo(f"submitted {shown(ids)} ({len(ids)} in all); logs are in {submission.folder}")
    else:
        click.echo("Nothing is left to submit.")


def _print_states(tasks: Sequence[Task], states: Sequence[Status], runs_root: Path, as_json: bool) -> None:
    from ddbench.runs.states import STATES

    rows = [(str(runs_root / t.resolution.spec.folder), s.state, s.why) for t, s in zip(tasks, states, strict=True)]
    if as_json:
        print_json([{"folder": folder, "state": state, "why": why} for folder, state, why in rows])
        return
    print_table(rows, ("run", "state", "why"))
    counts = Counter(status.state for status in states)
    note(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))


def _report(outcomes: Sequence[Outcome], as_json: bool, ctx: click.Context) -> None:
    if as_json:
        print_json([{"folder": str(o.folder), "state": o.state, "message": o.message} for o in outcomes])
        return
    print_table(((o.folder, o.state, o.message) for o in outcomes), ("run", "state", "message"))
    elsewhere = ctx.get_parameter_source("runs_root") is ParameterSource.COMMANDLINE
    where = f" --runs {ctx.params['runs_root']}" if elsewhere else ""
    note(f"`ddbench leaderboard{where}` shows the accuracies.")
