"""Where the numbers of a run go beside its folder: TensorBoard, wandb, trackio, or a class of somebody's own.

A tracker changes no run. It is given what the log of the run has, so that one that is turned on late, or goes on after
a run was killed, has every point once. One that fails is left out with a warning, and the run goes on.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from ddbench.errors import ConfigError, PluginError, RunError, closest, mistyped
from ddbench.files import read_json, write_json
from ddbench.plugins import TRACKERS, listing, load, named, names_code, raise_stop, said
from ddbench.runs.observers import Observer, Started, read_log
from ddbench.runs.record import RunRecord
from ddbench.runs.rundir import LOG, SHEET, RunDir
from ddbench.runs.runspec import RunSpec

KEPT = "trackers.json"
PROJECT = "ddbench"

Value = bool | int | float | str


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of its run.

    `name` is the run's folder under the runs folder, `config` what was asked, flat: options of the method have
    "config." in front. `series` is one word for this run in this folder; a run that is started over has another one.
    """

    name: str
    folder: Path
    config: Mapping[str, Value]
    series: str


class Tracker:
    """Takes the numbers of one run. Subclasses do with them what they like; an error in one costs no run.

    `package` is what has to be installed for it, and `whole` says that it is given the whole series every time the run
    goes on, since it begins anew; another one gets only the steps that it has not had.
    """

    package: ClassVar[str] = ""
    whole: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the run's log: the means of the metrics up to a step, and `seconds`, of condensation so far."""

    def results(self, step: int, accuracies: Mapping[str, float], sheet: Path | None) -> None:
        """The run has a record. Mean accuracies of the students, as fractions, by "accuracy/PROTOCOL/JUDGE"; and a
        picture of the set in WebP, if there is one. Comes again where the run was judged further."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run, which are written anew whenever it goes on."""

    package = "tensorboard"
    whole = True

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run)
        place = run.folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that is open has the points of the file that is gone; the purge makes it forget them.
        self._writer = SummaryWriter(str(place), purge_step=0)
        rows = "\n".join(f"| {name} | {value} |" for name, value in run.config.items())
        self._writer.add_text("config", f"| | |\n|---|---|\n{rows}", 0)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def results(self, step: int, accuracies: Mapping[str, float], sheet: Path | None) -> None:
        from torch.utils.tensorboard.summary import hparams

        for name, value in accuracies.items():
            self._writer.add_scalar(name, value, step)
        # In this run's own file: `add_hparams` would make a folder more, which TensorBoard shows as another run.
        for part in hparams(dict(self.run.config), dict(accuracies)):
            self._writer._get_file_writer().add_summary(part)
        if sheet is not None:
            import numpy as np
            from PIL import Image

            with Image.open(sheet) as opened:
                self._writer.add_image("set", np.asarray(opened.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb(Tracker):
    """A run of Weights & Biases; its own environment variables say of which project, and whether it is sent."""

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        super().__init__(run)
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.series,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            dir=str(run.folder),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def results(self, step: int, accuracies: Mapping[str, float], sheet: Path | None) -> None:
        self._run.summary.update(dict(accuracies))
        if sheet is not None:
            self._run.summary.update({"set": self._wandb.Image(str(sheet))})

    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """A run of trackio, on this machine unless its own environment variables say otherwise."""

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        super().__init__(run)
        self._trackio = trackio
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name} {run.series}",
            config=dict(run.config),
            resume="allow",
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def results(self, step: int, accuracies: Mapping[str, float], sheet: Path | None) -> None:
        picture = {"set": self._trackio.Image(str(sheet))} if sheet is not None else {}
        self._run.log({**accuracies, **picture}, step=step)

    def close(self) -> None:
        self._run.finish()


BUILT_IN: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


class Tracking(Observer):
    """An observer that gives every run to a tracker of a kind; `name` is what it was asked for by, and `say` hears of
    one that fails, once."""

    def __init__(self, name: str, kind: type[Tracker], say: Callable[[str], None]) -> None:
        self.name, self.kind = name, kind
        self._say = say
        self._told: set[str] = set()
        self._tracker: Tracker | None = None
        self._lost = False
        self._kept: dict[str, Any] = {}
        self._folder = Path()

    def on_start(self, started: Started) -> None:
        self._lost = False
        self._safely(lambda: self._open(started.spec, started.folder))

    def on_step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._safely(lambda: self._send(step, metrics, seconds))

    def on_record(self, record: RunRecord, folder: RunDir) -> None:
        self._safely(lambda: self._finish(record, folder))

    def on_end(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._safely(tracker.close)
        self._lost = False

    def _open(self, spec: RunSpec, folder: Path) -> None:
        self._folder, self._kept = folder, _kept(folder).get(self.name, {})
        self._kept.setdefault("series", f"{spec.id}-{secrets.token_hex(4)}")
        if self.kind.whole:
            self._kept["step"] = -1
        # Now, and not after the first step: a run that is killed before it has the same series.
        self._keep()
        run = TrackedRun(spec.folder.as_posix(), folder, _config(spec), self._kept["series"])
        self._tracker = self.kind(run)
        for entry in read_log(folder / LOG):
            self._send(entry["step"], entry["metrics"], entry["seconds"])

    def _send(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        if self._tracker is None or step <= self._kept.get("step", -1):
            return
        self._tracker.metrics(step, {**metrics, "seconds": seconds})
        self._kept["step"] = step
        if not self.kind.whole:
            self._keep()

    def _finish(self, record: RunRecord, folder: RunDir) -> None:
        accuracies = {
            f"accuracy/{e.protocol}/{e.backbone}": fmean(e.accuracy) for e in record.evaluations if e.accuracy
        }
        logged = read_log(folder.log)
        last = logged[-1]["step"] if logged else 0
        known = _kept(folder.path).get(self.name, {})
        told = {"step": last, "results": accuracies}
        if self._tracker is None and all(known.get(name) == value for name, value in told.items()):
            return
        if self._tracker is None:
            self._open(folder.spec, folder.path)
        assert self._tracker is not None
        sheet = folder.path / SHEET
        self._tracker.results(last, accuracies, sheet if sheet.is_file() else None)
        self._kept |= told
        self._keep()

    def _keep(self) -> None:
        write_json(self._folder / KEPT, {**_kept(self._folder), self.name: self._kept})

    def _safely(self, action: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            action()
        except BaseException as error:
            raise_stop(error)
            self._lost, self._tracker = True, None
            text = f"The tracker {self.name} failed ({said(error)}) and is left out; the run goes on without it."
            if text not in self._told:
                self._told.add(text)
                self._say(text)


def trackers(refs: Sequence[str | type[Tracker]], say: Callable[[str], None]) -> list[Observer]:
    """An observer for each tracker that is named, or given as a class; `say` hears of one that fails.

    A name is tensorboard, wandb, trackio, one that a package registers, "./FILE.py:CLASS" or "MODULE:CLASS".
    Raises: PluginError for what is no tracker, ConfigError where its package is not installed.
    """
    asked = {ref if isinstance(ref, str) else ref.__qualname__: ref for ref in refs}
    return [Tracking(name, _kind(ref), say) for name, ref in asked.items()]


def _kind(ref: str | type[Tracker]) -> type[Tracker]:
    found = ref if isinstance(ref, type) else _imported(ref)
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise mistyped(PluginError(f"tracker {ref!r} is no subclass of ddbench.runs.trackers.Tracker."))
    if found.package and not _is_there(found.package):
        extra = f"'ddbench[{found.package}]'" if found in BUILT_IN.values() else found.package
        raise ConfigError(f"tracker {ref!r} needs the package {found.package}: pip install {extra}")
    return found


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # of a part of a package that is not there, and of what is no name
        return False


def _imported(ref: str) -> Any:
    module, colon, name = ref.partition(":")
    if names_code(ref) or named(TRACKERS, ref):
        return load(TRACKERS, ref).value
    if not colon:
        known = [*BUILT_IN, *(plugin.name for plugin in listing(TRACKERS))]
        if ref.lower() in BUILT_IN:
            return BUILT_IN[ref.lower()]
        raise ConfigError(
            f"there is no tracker {ref!r}. {closest(ref, known)}Known: {', '.join(known)}; or ./FILE.py:CLASS, or "
            "MODULE:CLASS."
        )
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise mistyped(PluginError(f"tracker {ref!r} does not import: {said(error)}.")) from error


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    with suppress(RunError, OSError):
        value = read_json(folder / KEPT)
        if isinstance(value, dict):
            return {name: part for name, part in value.items() if _is_part(part)}
    return {}


def _is_part(part: Any) -> bool:
    """Whether a tracker can go on with what is kept of it; with less it begins anew."""
    return isinstance(part, dict) and type(part.get("step", 0)) is int and isinstance(part.get("series", ""), str)


def _config(spec: RunSpec) -> dict[str, Value]:
    about = {name: getattr(spec, name) for name in ("method", "dataset", "ipc", "seed", "backbone", "pixels")}
    options = {f"config.{name}": value for name, value in spec.config.items()}
    whole = {**about, "precision": spec.precision, "preset": spec.preset, **options}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in whole.items()}
