"""Several runs, one after another; one that fails does not keep the others from running."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench.data.scale import left_range
from ddbench.errors import DdbenchError, RunError
from ddbench.runs.evaluating import Cell, require_judges
from ddbench.runs.record import RunRecord
from ddbench.runs.resolving import CPU, Asked, Reader, Resolution, RunSpec, resolve_spec
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, run
from ddbench.runs.states import RunState, Status, judged, lost_cells, status_of


@dataclass(frozen=True)
class Outcome:
    """What became of one run: done, failed, or running where another process works on it.

    `message` says why there is no complete record, or which judge of a finished run came to no result.
    """

    spec: RunSpec
    folder: Path
    state: RunState
    record: RunRecord | None = None
    message: str = ""


def resolve_all(
    requests: Iterable[Asked], data_root: Path, device: torch.device = CPU, read: Reader | None = None
) -> list[Resolution]:
    """The runs that are asked for on a device, none twice: methods without a budget answer every ipc with one run.

    `read` reads the sets that some of them start from.
    Raises: the first error of any of them, before anything has been started.
    """
    resolved = (resolve_whole(asked, data_root, device, read) for asked in requests)
    return list({what_is_done(resolution): resolution for resolution in resolved}.values())


def resolve_whole(asked: Asked, data_root: Path, device: torch.device = CPU, read: Reader | None = None) -> Resolution:
    """What is asked for, once all its judges are known to exist. Raises: as `resolve_spec` and `require_judges`."""
    resolution = resolve_spec(asked, data_root, device, read)
    require_judges(resolution.cells, resolution.dataset.info)
    return resolution


def what_is_done(resolution: Resolution) -> Hashable:
    """Alike for requests that one run answers: its set, and how that is judged."""
    spec = resolution.spec
    return spec.id, spec.protocols, spec.judges


def run_all(resolutions: Sequence[Resolution], options: RunOptions) -> list[Outcome]:
    """One run after another."""
    return [run_one(resolution, options) for resolution in resolutions]


def run_one(resolution: Resolution, options: RunOptions) -> Outcome:
    """Do a run and say what became of it. Raises: Interrupted, and whatever is a bug."""
    folder = options.root / resolution.spec.folder
    try:
        record = run(resolution, options)
    except DdbenchError as error:
        busy = isinstance(error, RunError) and RunDir.holder(folder) is not None
        return Outcome(resolution.spec, folder, "running" if busy else "failed", message=str(error))
    state = judged(record, resolution.cells).state
    return Outcome(resolution.spec, folder, state, record, "\n".join(shortcomings(record, resolution.cells)))


def shortcomings(record: RunRecord, asked: Sequence[Cell]) -> list[str]:
    """Sentences that a person should read of a finished run: of judges that were asked for and came to no result, and
    of images that have left the range of real ones."""
    said = left_range(record.synthetic.scale or 0.0)
    return [*lost_cells(record, asked), *([f"{said[0].upper()}{said[1:]}."] if said else [])]


def status_in(resolution: Resolution, root: Path) -> Status:
    """How far a run is under a runs folder, with all the evaluations that are asked of it."""
    return status_of(root / resolution.spec.folder, resolution.cells)
