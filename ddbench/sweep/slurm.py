"""A sweep on a Slurm cluster: one job for each run, or several jobs that share the list, submitted through submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ddbench.errors import ConfigError, DdbenchError, RunError, closest
from ddbench.files import read_json, write_json
from ddbench.foreign.starting import read_start
from ddbench.runs.batch import Outcome
from ddbench.runs.devices import choose_device, visible_devices
from ddbench.runs.places import place_of
from ddbench.runs.resolving import Asked, resolve_spec
from ddbench.runs.signals import AGAIN, Interrupted
from ddbench.runs.states import Status, read_failure, write_failure
from ddbench.sweep.grid import asked_from_json, asked_to_json
from ddbench.sweep.pool import Pool
from ddbench.sweep.progress import Board
from ddbench.sweep.tasks import Beside, Task

if TYPE_CHECKING:
    import submitit

SCHEMA = "ddbench.jobs/1"
LIST = "runs.json"
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
# What submitit takes when it is set up, and not as a setting of a job.
SET_UP = ("max_num_timeout", "max_pickle_size_gb", "python")
# Before its time limit a job is told, so long that a step can end and be saved. Slurm may tell up to a minute earlier.
WARNING_SECONDS = 120
SIGNAL: signal.Signals = getattr(signal, "SIGUSR2", signal.SIGTERM)  # Windows, which has no Slurm, has no SIGUSR2


@dataclass(frozen=True)
class SlurmJob:
    """What one job does: the run of that number in a list, or, without a number, whatever of the list is left."""

    list_file: Path
    run: int | None = None

    def __call__(self) -> None:
        """Work in a job. Leaves with 1 if a run has failed, and with 75 where one was stopped and can go on."""
        code = self._work()
        if code:
            # Without an exception for submitit to print and pickle: what went wrong was said.
            sys.stdout.flush()
            sys.exit(code)

    def _work(self) -> int:
        # Until the runs listen themselves there is nothing to save, and a job that is told so early is queued again.
        for number in (SIGNAL, signal.SIGTERM):
            signal.signal(number, _stopped)
        try:
            try:
                outcomes = self._runs()
            finally:
                # From here on nothing can be lost; whoever is queued again is told to end once more.
                for number in (SIGNAL, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
        except Interrupted as stop:
            _say(str(stop))
            return _queued_again() if stop.signal == SIGNAL else AGAIN
        except DdbenchError as error:
            _say(f"Error: {error}")
            return 1
        for outcome in outcomes:
            if outcome.state != "done":
                _say(f"{outcome.state}: {outcome.folder}: {outcome.message}")
        return int(any(outcome.state in ("failed", "missing") for outcome in outcomes))

    def _runs(self) -> list[Outcome]:
        content = read_json(self.list_file)
        runs_root, data_root = Path(content["runs"]), Path(content["data"])
        listed = content["requests"] if self.run is None else [content["requests"][self.run]]
        devices = visible_devices(content["device"])
        # An open precision follows the device, for the workers and so for the folders that are looked at here.
        here = choose_device(content["device"])
        tasks, lost = [], []
        for entry in listed:
            asked = asked_from_json(entry["asked"])
            try:
                tasks.append(Task(asked, resolve_spec(asked, data_root, here, read_start)))
            except DdbenchError as error:
                # Here, and not where it was submitted: data that this node lacks, say.
                write_failure(runs_root / entry["folder"], error)
                _say(f"failed: {runs_root / entry['folder']}: {error}")
                lost.append(error)
        board = Board([task.name for task in tasks], [task.kind for task in tasks], len(devices))
        pool = Pool(
            tasks,
            [place_of(name) for name in devices],
            runs_root,
            data_root,
            self.list_file.parent / f"workers-{_job_id()}",
            board,
            skip=lambda task: self._settled(task, runs_root, content["submitted"]),
            stop_on=(SIGNAL,),
            grace_seconds=content["grace_seconds"],
            beside=Beside.of_json(content.get("beside", {})),
        )
        done = pool.work() if tasks else []
        if lost:
            raise RunError(f"{len(lost)} of {len(listed)} runs cannot be done on this node; the reasons are above.")
        return done

    def _settled(self, task: Task, root: Path, submitted: str) -> Status | None:
        """Leave out what another job of the list has done, or has tried since it was submitted."""
        status = task.status(root)
        if status.state == "failed":
            failure = read_failure(root / task.resolution.spec.folder)
            return status if self.run is None and failure is not None and failure.when >= submitted else None
        return status if status.state == "done" or (self.run is None and status.state == "running") else None


@dataclass(frozen=True)
class Submission:
    """Jobs for the runs of a sweep. `shared`: so many jobs share the list; None: one job does one run.

    `name` is what Slurm calls the jobs, and with the time it names their folder; `settings` are submitit's, by the
    names that its Slurm executor has for them.
    """

    name: str
    tasks: Sequence[Task]
    runs_root: Path
    data_root: Path
    device: str
    settings: Mapping[str, Any]
    shared: int | None = None
    beside: Beside = field(default_factory=Beside)
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "ntasks_per_node"):
            if self.settings.get(key, 1) != 1:
                raise ConfigError(
                    f"--slurm {key}: a job of a sweep is one task on one node; --jobs asks for more jobs."
                )

    @property
    def jobs(self) -> list[SlurmJob]:
        """What each job does."""
        numbers = range(len(self.tasks)) if self.shared is None else [None] * self.shared
        return [SlurmJob(self._list, number) for number in numbers]

    @property
    def folder(self) -> Path:
        """The folder of the list, the scripts and the logs; two submissions within a second have two."""
        return (self.runs_root / "jobs" / f"{self.name}-{self.made:%Y%m%d-%H%M%S-%f}").absolute()

    def script(self) -> str:
        """The script that would be submitted; nothing is written."""
        executor: Any = self._executor(look_only=True)._executor
        count = min(len(self.jobs), array_limit() or len(self.jobs))
        if count > 1:
            executor.parameters["map_count"] = count
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def submit(self) -> list[str]:
        """Hand the jobs to Slurm, in as many arrays as it takes. Returns their ids.

        Raises: ConfigError for a setting that submitit does not know; RunError where there is no Slurm, and with the
        words of Slurm where it refuses.
        """
        submitit = _submitit()
        executor = self._executor()
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "submitted": f"{self.made:%Y-%m-%dT%H:%M:%SZ}",
            "runs": str(self.runs_root.absolute()),
            "data": str(self.data_root.absolute()),
            "device": self.device,
            "beside": self.beside.as_json(),
            "grace_seconds": self._grace,
            "requests": [
                {"asked": asked_to_json(task.asked), "folder": str(task.resolution.spec.folder)} for task in self.tasks
            ],
            "jobs": {},
        }
        write_json(self._list, content)
        jobs, limit = self.jobs, array_limit() or len(self.jobs)
        for start in range(0, len(jobs), limit):
            part = jobs[start : start + limit]
            try:
                with executor.batch():
                    submitted = [executor.submit(job) for job in part]
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                kept = f" {start} jobs were submitted before that." if start else ""
                raise RunError(f"Slurm did not take the jobs: {_last_line(error)}.{kept}") from None
            everything = list(range(len(self.tasks)))
            content["jobs"] |= {
                handed.job_id: everything if job.run is None else [job.run]
                for job, handed in zip(part, submitted, strict=True)
            }
            # Who asks for the same runs again finds here which of them are queued.
            write_json(self._list, content)
        return list(content["jobs"])

    @property
    def _list(self) -> Path:
        return self.folder / LIST

    @property
    def _warning(self) -> int:
        return int(self.settings.get("signal_delay_s", WARNING_SECONDS))

    @property
    def _grace(self) -> float:
        """How long a step may go on after the warning: half of the time that is left, for saving takes some too."""
        return max(20.0, self._warning / 2)

    def _executor(self, *, look_only: bool = False) -> submitit.AutoExecutor:
        submitit = _submitit()
        if shutil.which("sbatch") is None and not look_only:
            raise RunError("there is no Slurm here: sbatch is not found. Start the sweep on a machine that has it.")
        own = {
            "name": self.name,
            "stderr_to_stdout": True,
            "slurm_signal_delay_s": WARNING_SECONDS,
            # A job that is told of its time limit, or preempted, goes on later; a cluster's default may say otherwise.
            "slurm_additional_parameters": {"requeue": True},
        }
        _refuse_unknown(self.settings)
        given = {key if key in GENERAL else f"slurm_{key}": value for key, value in self.settings.items()}
        set_up = {key: value for key, value in given.items() if key.removeprefix("slurm_") in SET_UP}
        more = {key: value for key, value in given.items() if key not in set_up}
        if "slurm_additional_parameters" in more:
            own.pop("slurm_additional_parameters")
        try:
            executor = submitit.AutoExecutor(self.folder, cluster="slurm", **set_up)
            executor.update_parameters(**{**own, **more})
        except (NameError, TypeError, AssertionError, ValueError) as error:
            raise ConfigError(f"submitit does not take these Slurm settings: {_last_line(error)}") from None
        except RuntimeError as error:
            raise RunError(f"{error} A dry run needs srun as well, which submitit looks for.") from None
        # submitit's own default is five minutes; the partition's holds where the user names none.
        executor.parameters.setdefault("time", None)
        return executor


def _submitit() -> ModuleType:
    """The library that hands jobs to Slurm, imported without its settings for logging.

    They would shut down every handler that the process has; one of absl's, which JAX and TensorBoard bring, then closes
    the stream that it writes to, and this can be stderr. In a job submitit comes first and keeps its own log.
    """
    name = "SUBMITIT_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "NOCONFIG"
    try:
        import submitit
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return submitit


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Raises: ConfigError for a setting that submitit does not know, which it says in a list without an order."""
    slurm: Any = _submitit().slurm.slurm.SlurmExecutor
    known = [*GENERAL, *SET_UP, *sorted(slurm._valid_parameters() - set(GENERAL))]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"--slurm {key}: submitit has no such setting. {closest(key, known)}It has {', '.join(known)}; any "
                "option of sbatch goes into additional_parameters."
            )


def queued(runs_root: Path) -> list[tuple[str, Asked]]:
    """The runs that jobs of earlier sweeps under this folder have which are queued or running: job id and request.

    Empty where Slurm cannot be asked.
    """
    alive = _alive()
    found = []
    for path in sorted((runs_root / "jobs").glob(f"*/{LIST}")) if alive else []:
        try:
            content = read_json(path)
            jobs = {job: numbers for job, numbers in content["jobs"].items() if job in alive}
            found += [(job, asked_from_json(content["requests"][k]["asked"])) for job in jobs for k in jobs[job]]
        except (RunError, KeyError, TypeError, IndexError, AttributeError):
            continue  # a list of something else, or a damaged one: its runs are locked while they work
    return found


def array_limit() -> int | None:
    """The number of jobs that Slurm takes in one array; None where it cannot be asked."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config"))
    return int(found[1]) if found and int(found[1]) else None


def _alive() -> set[str]:
    user = str(os.getuid())
    return set(_output("squeue", "--noheader", "--array", "--format=%i", f"--user={user}").split())


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _job_id() -> str:
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "0")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job


def _queued_again() -> int:
    """Put this job back into the queue, as often as it takes."""
    try:
        subprocess.run(["scontrol", "requeue", _job_id()], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", "") or str(error)).strip()
        _say(f"The job could not be queued again: {why}. Start the same sweep again, which goes on.")
        return AGAIN
    _say("Its time is nearly up, so the job was queued again; it goes on from there.")
    return AGAIN


def _stopped(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    which = signal.Signals(number)
    raise Interrupted(f"stopped by {which.name} before a run had begun.", which)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def shown(ids: Sequence[str]) -> str:
    """Job ids in short: 12_[0-7], 13."""
    arrays: dict[str, list[int]] = {}
    single = []
    for job in ids:
        array, _, number = job.partition("_")
        if number.isdigit():
            arrays.setdefault(array, []).append(int(number))
        else:
            single.append(job)
    ranges = [f"{array}_[{min(numbers)}-{max(numbers)}]" for array, numbers in arrays.items()]
    return ", ".join([*ranges, *single])


__all__ = ["SlurmJob", "Submission", "array_limit", "queued", "shown"]
