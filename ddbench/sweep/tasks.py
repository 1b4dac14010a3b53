"""The runs of a sweep: what was asked of each, and what it resolves to here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench.errors import RunError
from ddbench.foreign.starting import read_start
from ddbench.runs.batch import Outcome, resolve_whole, what_is_done
from ddbench.runs.condensing import SNAPSHOTS
from ddbench.runs.record import read_record
from ddbench.runs.resolving import CPU, Asked, Resolution
from ddbench.runs.rundir import RECORD
from ddbench.runs.states import Status, status_of


@dataclass(frozen=True)
class Task:
    """One run of a sweep: what was asked, and what it resolves to here."""

    asked: Asked
    resolution: Resolution

    @property
    def name(self) -> str:
        """The name in progress lines: cifar10 ipc 10 dm seed 0."""
        spec = self.resolution.spec
        return f"{spec.dataset} {f'ipc {spec.ipc}' if spec.ipc else 'whole'} {spec.method} seed {spec.seed}"

    @property
    def kind(self) -> tuple[Any, ...]:
        """What runs that take about as long have in common."""
        spec = self.resolution.spec
        options = json.dumps(dict(spec.config), sort_keys=True)
        return (spec.dataset, spec.ipc, spec.method, spec.backbone, options, spec.protocols, spec.judges)

    def status(self, root: Path) -> Status:
        """Its state under a runs folder, with all that is asked of it."""
        return status_of(root / self.resolution.spec.folder, self.resolution.cells)

    def outcome(self, root: Path, state: Status) -> Outcome:
        """Its outcome, with the record where there is one."""
        folder = root / self.resolution.spec.folder
        record = None
        with contextlib.suppress(RunError):
            record = read_record(folder / RECORD)
        return Outcome(self.resolution.spec, folder, state.state, record, state.why)


@dataclass(frozen=True)
class Beside:
    """What all runs of a sweep do beside what was asked of each: trackers by name, and how many states they keep.
    Nothing here changes what comes out."""

    track: tuple[str, ...] = ()
    snapshots: int = SNAPSHOTS

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Beside:
        """As a list of jobs or an order has it; one that was written before says less."""
        return cls(tuple(value.get("track", ())), value.get("snapshots", SNAPSHOTS))

    def as_json(self) -> dict[str, Any]:
        return {"track": list(self.track), "snapshots": self.snapshots}


def tasks_of(
    requests: Iterable[Asked], data_root: Path, device: torch.device = CPU, *, settled: bool = False
) -> list[Task]:
    """The runs that are asked for on a device, none twice.

    `settled` writes the precision down that they have there: workers share a list of runs, and on unlike devices an
    open precision would make two runs of one.
    Raises: the first error of any of them, before anything has been started.
    """

    def task(asked: Asked) -> Task:
        resolution = resolve_whole(asked, data_root, device, read_start)
        return Task(replace(asked, precision=resolution.spec.precision) if settled else asked, resolution)

    resolved = (task(asked) for asked in requests)
    return list({what_is_done(task.resolution): task for task in resolved}.values())
