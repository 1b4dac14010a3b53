"""ddbench sweep: many runs, on this machine's devices or on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ddbench.cli.common import (
    data_option,
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    runs_option,
    writable,
)

if TYPE_CHECKING:
    from ddbench.runs.batch import Outcome


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--shard", "part", metavar="I/N", help="Only the i-th of n parts, for schedulers of any kind.")
@click.option("--cluster", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@click.option(
    "--slurm", "settings", multiple=True, metavar="KEY=VALUE", help="As in partition=gpu, timeout_min=720. Repeatable."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N",
    help="Workers side by side. Default: one for each visible device; on Slurm one for each run.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what is done and what is missing; run nothing.")
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
    device: str,
    data_root: Path,
    runs_root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do the runs of a sweep file. The same command again does what is missing.

    FILE is TOML with one [grid], whose method, dataset, ipc, seed, … may be lists, and any number of [[run]].
    """
    from ddbench.config import parse_assignments
    from ddbench.runs.batch import resolve_all, settled, status_in
    from ddbench.runs.devices import choose_device, visible_devices
    from ddbench.runs.states import STATES
    from ddbench.sweep.grid import read_sweep, shard
    from ddbench.sweep.launch import Worker, launch_local, submit_slurm

    if settings and cluster != "slurm":
        raise click.UsageError("--slurm needs --cluster slurm.")
    slurm = parse_assignments(settings, "--slurm partition=gpu")
    requests = read_sweep(file)
    if part:
        requests = shard(requests, part)
    # Jobs of a cluster find their devices where they run.
    here = choose_device(device if cluster == "local" else "auto")
    if cluster == "local":
        requests = settled(requests, data_root, here)
    elif here.type == "cpu" and any(asked.precision is None for asked in requests):
        note(
            "Some runs leave the precision open, and this machine has no GPU: runs that were done on GPUs are not "
            'recognised. Say precision = "tf32", or another, in the file.'
        )
    resolutions = resolve_all(requests, data_root, here)
    states = [status_in(resolution, runs_root).state for resolution in resolutions]
    if dry_run:
        rows = [(str(runs_root / r.spec.folder), state) for r, state in zip(resolutions, states, strict=True)]
        if as_json:
            print_json([{"folder": folder, "state": state} for folder, state in rows])
        else:
            print_table(rows, ("run", "state"))
            counts = Counter(states)
            note(", ".join(f"{counts[state]} {state}" for state in STATES))
        return
    writable(runs_root)
    devices = visible_devices(device) if cluster == "local" else [device]
    count = jobs or (len(devices) if cluster == "local" else max(1, len(states) - states.count("done")))
    workers = [
        Worker(
            tuple(requests),
            runs_root,
            data_root,
            devices[number % len(devices)],
            first=number * len(requests) // count,
            quiet=quiet,
        )
        for number in range(count)
    ]
    logs = runs_root / "jobs"
    if cluster == "slurm":
        ids = submit_slurm(workers, logs, slurm)
        if as_json:
            print_json(ids)
        else:
            click.echo(f"submitted {len(ids)} jobs: {', '.join(ids)}; their logs are in {logs}")
        return
    outcomes = workers[0]() if count == 1 else launch_local(workers, logs)
    _report(outcomes, as_json, ctx)
    if any(outcome.state != "done" for outcome in outcomes):
        ctx.exit(1)


def _report(outcomes: Sequence[Outcome], as_json: bool, ctx: click.Context) -> None:
    if as_json:
        print_json([{"folder": str(o.folder), "state": o.state, "message": o.message} for o in outcomes])
        return
    print_table(((o.folder, o.state, o.message) for o in outcomes), ("run", "state", "message"))
    elsewhere = ctx.get_parameter_source("runs_root") is ParameterSource.COMMANDLINE
    where = f" --runs {ctx.params['runs_root']}" if elsewhere else ""
    note(f"`ddbench leaderboard{where}` shows the accuracies.")
