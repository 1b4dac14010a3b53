"""Runs one after another, or side by side: the same call on this machine's devices and on a Slurm cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ddbench.errors import ConfigError, DdbenchError, RunError
from ddbench.runs.judging import Cell, cells
from ddbench.runs.observers import Console
from ddbench.runs.record import RunRecord, read_record
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, run
from ddbench.runs.spec import CPU, Asked, Resolution, RunSpec, resolve_spec

State = Literal["done", "failed", "busy"]
Progress = Literal["done", "started", "missing"]

# What submitit calls alike on every kind of cluster; its other settings carry the cluster's name in front.
GENERAL = (
    "cpus_per_task",
    "gpus_per_node",
    "mem_gb",
    "name",
    "nodes",
    "stderr_to_stdout",
    "tasks_per_node",
    "timeout_min",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one run. `busy`: another process works on it. `message` says why there is no complete record."""

    spec: RunSpec
    folder: Path
    state: State
    record: RunRecord | None = None
    message: str = ""


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or else the CPU. Raises: ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device {name!r} for ddbench; choose auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, and torch {torch.__version__} sees no CUDA device. Use --device cpu, or "
            "check the driver with nvidia-smi and that this torch was built for CUDA."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {name!r}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}."
        )
    return device


def visible_devices(name: str) -> list[str]:
    """The devices that a sweep may use: all visible GPUs for "auto" and "cuda", else the one that is named."""
    chosen = choose_device(name)
    if name in ("auto", "cuda") and chosen.type == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]


def resolve_all(requests: Iterable[Asked], data_root: Path, device: torch.device = CPU) -> list[Resolution]:
    """The runs that are asked for on a device, none twice: methods without a budget answer every ipc with one run.

    Raises: the first error of any of them, before anything has been started.
    """
    resolved = (resolve_spec(asked, data_root, device) for asked in requests)
    return list({(r.spec.id, r.spec.protocols, r.spec.judges): r for r in resolved}.values())


def settled(requests: Iterable[Asked], data_root: Path, device: torch.device) -> list[Asked]:
    """The same requests with the precision written down that they have on a device: workers share a list of runs, and
    on unlike devices an open precision would make two runs of one."""
    return [replace(asked, precision=resolve_spec(asked, data_root, device).spec.precision) for asked in requests]


def run_all(resolutions: Sequence[Resolution], options: RunOptions) -> list[Outcome]:
    """One run after another. One that fails does not keep the others from running."""
    outcomes = []
    for resolution in resolutions:
        folder = options.root / resolution.spec.folder
        try:
            record = run(resolution, options)
        except DdbenchError as error:
            state: State = "busy" if isinstance(error, RunError) and _is_locked(folder) else "failed"
            outcomes.append(Outcome(resolution.spec, folder, state, message=str(error)))
            continue
        lost = failures(record, asked_of(resolution))
        outcomes.append(Outcome(resolution.spec, folder, "failed" if lost else "done", record, "\n".join(lost)))
    return outcomes


def failures(record: RunRecord, asked: Sequence[Cell]) -> list[str]:
    """Why cells that were asked for have no accuracy, one sentence each. Others in the record do not matter."""
    wanted = {(cell.protocol.digest, cell.backbone) for cell in asked}
    return [
        f"{e.protocol} with {e.backbone}: {e.failed}"
        for e in record.evaluations
        if e.failed and (e.digest, e.backbone) in wanted
    ]


def asked_of(resolution: Resolution) -> list[Cell]:
    """The evaluations that a run asks for."""
    spec = resolution.spec
    return cells(resolution.protocols, spec.judges, spec.students, resolution.dataset.info.shape, own=spec.backbone)


def progress(resolution: Resolution, root: Path) -> Progress:
    """How far a run is: "done" where its record has everything that is asked, "started" where its folder is there."""
    folder = root / resolution.spec.folder
    with contextlib.suppress(RunError):
        record = read_record(folder / "record.json")
        if all(cell.in_record(record) for cell in asked_of(resolution)):
            return "done"
    return "started" if folder.is_dir() else "missing"


@dataclass(frozen=True)
class Worker:
    """A process that works through a list of runs, from its own place on, and leaves out what others work on."""

    requests: tuple[Asked, ...]
    runs_root: Path
    data_root: Path
    device: str = "auto"
    first: int = 0
    quiet: bool = False

    def __call__(self) -> list[Outcome]:
        order = self.requests[self.first :] + self.requests[: self.first]
        options = RunOptions(
            root=self.runs_root,
            data_root=self.data_root,
            device=choose_device(self.device),
            observers=() if self.quiet else [Console()],
        )
        return run_all(resolve_all(order, self.data_root, options.device), options)

    def checkpoint(self) -> Any:
        """What submitit runs after a preemption: the same again, because finished runs are left out."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch_local(workers: Sequence[Worker], log_folder: Path) -> list[Outcome]:
    """Workers side by side on this machine; waits for all of them.

    Raises: RunError if a worker breaks down.
    """
    import submitit

    executor = submitit.LocalExecutor(folder=log_folder)
    # A local job without a limit gets five minutes.
    executor.update_parameters(timeout_min=60 * 24 * 365)
    jobs = [executor.submit(worker) for worker in workers]
    try:
        return merge([outcome for job in jobs for outcome in _result(job)])
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def submit_slurm(workers: Sequence[Worker], log_folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Hand workers to Slurm as one array and return the ids of its jobs.

    Raises: ConfigError for a setting that submitit does not know, and where there is no Slurm.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=log_folder, cluster="slurm")
        executor.update_parameters(
            **{key if key in GENERAL else f"slurm_{key}": value for key, value in settings.items()}
        )
        with executor.batch():
            jobs = [executor.submit(worker) for worker in workers]
    except (NameError, TypeError) as error:
        raise ConfigError(f"submitit does not take these Slurm settings: {error}") from None
    except (RuntimeError, FileNotFoundError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"Slurm did not take the sweep: {error}. Start it on a machine that has sbatch.") from None
    return [job.job_id for job in jobs]


def merge(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome for each run: done where any worker finished it, busy only where nobody did anything else."""
    rank = ("busy", "failed", "done")
    best: dict[Path, Outcome] = {}
    for outcome in outcomes:
        known = best.get(outcome.folder)
        if known is None or rank.index(outcome.state) > rank.index(known.state):
            best[outcome.folder] = outcome
    return [best[folder] for folder in sorted(best)]


def _result(job: Any) -> list[Outcome]:
    import submitit

    try:
        outcomes: list[Outcome] = job.result()
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
        last = (str(error).strip().splitlines() or ["it left no message"])[-1]
        raise RunError(f"a worker of the sweep broke down: {last} Its log is {job.paths.stderr}.") from None
    return outcomes


def _is_locked(folder: Path) -> bool:
    try:
        run_folder = RunDir.at(folder)
    except RunError:
        return False
    try:
        with run_folder.lock():
            return False
    except RunError:
        return True
