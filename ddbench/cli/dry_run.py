"""The dry run of `ddbench run`. Imported when it is asked for: unlike the commands, it imports what it uses at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from ddbench.cli.common import note, print_json, print_table
from ddbench.costs.estimate import Estimate, estimate
from ddbench.errors import DataError
from ddbench.foreign.starting import read_start
from ddbench.runs.batch import resolve_all, status_in
from ddbench.runs.resolving import DEFAULTS_USED, Asked, Resolution, RunSpec, foresee, remarks
from ddbench.text import budget, duration, size


def print_plans(
    requests: Sequence[Asked],
    data_root: Path,
    runs_root: Path,
    device: torch.device,
    said: Mapping[str, str],
    as_json: bool,
) -> None:
    """Print what would be done: every value with its source, the folder, and about what it costs."""
    try:
        resolutions = resolve_all(requests, data_root, device, read_start)
    except DataError as missing:
        if as_json:
            print_json([_plan(foresee(asked, device), said, runs_root, None, None, str(missing)) for asked in requests])
            return
        for asked in requests:
            _print_plan(foresee(asked, device), said, runs_root, "missing", None)
        note(f"There is no estimate, because the data is missing: {missing}")
        return
    for sentence in remarks(resolutions):
        note(f"Note: {sentence}")
    estimates = _estimates(resolutions, runs_root, device)
    if as_json:
        print_json(
            [
                _plan(r.spec, said, runs_root, status_in(r, runs_root).state, cost, "")
                for r, cost in zip(resolutions, estimates, strict=True)
            ]
        )
        return
    for resolution, cost in zip(resolutions, estimates, strict=True):
        _print_plan(resolution.spec, said, runs_root, status_in(resolution, runs_root).state, cost)


def _estimates(resolutions: Sequence[Resolution], runs_root: Path, device: torch.device) -> list[Estimate]:
    """One for each run; runs that differ in their seed share one."""
    keys = [dataclasses.replace(r.spec, seed=0).id for r in resolutions]
    different = dict(zip(keys, resolutions, strict=True))
    # A dry run stays short, however many runs it is about.
    limit = max(1.0, 8.0 / len(different))
    found = {key: estimate(r, root=runs_root, device=device, limit=limit) for key, r in different.items()}
    return [found[key] for key in keys]


def _plan(
    spec: RunSpec,
    said: Mapping[str, str],
    runs_root: Path,
    status: str | None,
    cost: Estimate | None,
    missing: str,
) -> dict[str, Any]:
    asked = spec.to_json()
    value = {
        "folder": str(runs_root / spec.folder),
        "status": status,
        "sources": {**said, **asked.pop("sources")},
        "spec": asked,
        "estimate": cost and {**dataclasses.asdict(cost), "seconds": cost.seconds, "complete": cost.complete},
    }
    return value | ({"missing": missing} if missing else {})


def _without_a_paper(spec: RunSpec) -> str:
    if spec.published is not False:
        return ""
    return f"; no published setting for {spec.dataset} at {budget(spec.ipc)}: {DEFAULTS_USED}"


def _print_plan(spec: RunSpec, said: Mapping[str, str], runs_root: Path, status: str, cost: Estimate | None) -> None:
    sources = {**said, **spec.sources}
    rows: list[tuple[str, Any, str]] = [
        ("method", spec.method, spec.provided_by),
        ("dataset", spec.dataset, spec.data_fingerprint),
        ("ipc", spec.ipc or "the whole dataset", sources["ipc"]),
        ("seed", spec.seed, sources["seed"]),
        ("preset", spec.preset, sources["preset"] + _without_a_paper(spec)),
        ("backbone", spec.backbone, sources["backbone"]),
        ("pixels", spec.pixels, sources["pixels"]),
        ("precision", spec.precision, sources["precision"]),
        ("protocol", ", ".join(spec.protocols), sources["protocol"]),
        ("judges", ", ".join(spec.judges) or "as the protocol says", sources["judge"]),
        ("students", spec.students or "as the protocol says", sources["students"]),
    ]
    rows += [(f"{spec.method}.{name}", value, sources[f"config.{name}"]) for name, value in spec.config.items()]
    print_table(rows, ("", "value", "source"))
    click.echo()
    states = {
        "done": "is complete: nothing is left to do",
        "failed": "is there and has failed: the run tries again from its last checkpoint",
        "running": "is being worked on by another process",
        "interrupted": "is there: the run goes on",
        "missing": "is new",
    }
    if cost is None:
        click.echo(f"{runs_root / spec.folder}, where the last part may change with the data")
        return
    click.echo(f"{runs_root / spec.folder} {states[status]}")
    click.echo()
    known = [(p.name, "unknown" if p.seconds is None else duration(p.seconds), p.basis) for p in cost.phases]
    total = ("" if cost.complete else "more than ") + duration(cost.seconds)
    print_table([*known, ("total", total, f"roughly, on {cost.device}")], ("phase", "time", "from"))
    device = f"{size(cost.peak_device_bytes)} on the device, " if cost.peak_device_bytes else ""
    click.echo(f"memory: {device}{size(cost.peak_host_bytes or 0)} of the process")
