"""Runs one after another, or side by side: the same call on this machine's devices and on a Slurm cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError, RunError
from ddbench.runs.batch import Outcome, resolve_all, run_all
from ddbench.runs.devices import choose_device
from ddbench.runs.observers import Console
from ddbench.runs.runner import RunOptions
from ddbench.runs.spec import Asked

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
    """One outcome for each run: done where any worker finished it, running only where nobody did anything else."""
    rank = ("running", "failed", "done")
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
