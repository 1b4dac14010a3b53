"""What the command line does, as functions of Python: run, evaluate, load, look at the results.

What the command line remarks on stderr is logged here, by warnings of the logger "ddbench.api", whatever `progress` is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ddbench.arguments import checked
from ddbench.data import sources
from ddbench.data.dataset import Dataset
from ddbench.data.scale import left_range
from ddbench.errors import ConfigError, DataError, closest, mistyped
from ddbench.evaluation.meant import ids_of
from ddbench.evaluation.protocol import TRACKS, judged_by
from ddbench.evaluation.protocol import protocol as judging_by
from ddbench.evaluation.recipes import USUAL
from ddbench.foreign.formats import entry_name
from ddbench.foreign.importing import Import, bring_in, dataset_of, found_in, load_set
from ddbench.foreign.meant import as_word, meant
from ddbench.foreign.starting import read_start
from ddbench.foreign.terms import Said
from ddbench.leaderboard import comparison
from ddbench.leaderboard.boards import local_summary
from ddbench.leaderboard.chosen import Chosen
from ddbench.leaderboard.comparison import Cells
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.references import Shelf
from ddbench.leaderboard.scores import with_scores
from ddbench.leaderboard.statistics import summarise
from ddbench.method import Method
from ddbench.runs import correlating, recognising, runner
from ddbench.runs.batch import shortcomings
from ddbench.runs.condensing import SNAPSHOTS
from ddbench.runs.devices import choose_device
from ddbench.runs.evaluating import cells
from ddbench.runs.loaded import LoadedSet
from ddbench.runs.observers import Console
from ddbench.runs.record import RunRecord
from ddbench.runs.resolving import Asked, asked_ref, judged_with, remarks, resolve_spec
from ddbench.runs.rundir import SPEC, RunDir
from ddbench.runs.runner import RunOptions
from ddbench.runs.states import lost_cells
from ddbench.runs.trackers import trackers
from ddbench.sensitivity import tables
from ddbench.sensitivity.asked import USUAL_GRID, AskedGrid, read_grid
from ddbench.sensitivity.judging import SaidOfFiles
from ddbench.sensitivity.judging import evaluate_grid as judge_grid
from ddbench.sensitivity.results import Results
from ddbench.text import budget, percent

if TYPE_CHECKING:
    from pandas import DataFrame

    from ddbench.runs.trackers import Tracker

    Several = str | Sequence[str]
    Tracked = str | type[Tracker] | Sequence[str | type[Tracker]]

logger = logging.getLogger(__name__)

DATA, RUNS = "DDBENCH_DATA", "DDBENCH_RUNS"


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished run: its folder, its record, and the set in it."""

    folder: Path
    record: RunRecord
    data_root: Path = Path("data")

    @cached_property
    def set(self) -> LoadedSet:
        """The synthetic set, as a torch Dataset. Raises: RunError if it was damaged or replaced since."""
        return load_set(self.folder, Said(), None, None, self.data_root)

    @property
    def accuracies(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """Accuracy of each student on the test set, as a fraction, by protocol and judge: ("dsa@1", "convnet-d3").

        Empty for a judge that came to no result; `record.evaluations` says why.
        """
        return {(part.protocol, part.backbone): part.accuracy for part in self.record.evaluations}

    def __repr__(self) -> str:
        run = self.record.run
        lines = [f"{run.method} on {run.dataset}, {budget(run.ipc)}, seed {run.seed}: {self.folder}"]
        if said := left_range(self.record.synthetic.scale or 0.0):
            lines.append(said)
        for part in self.record.evaluations:
            result = f"failed: {part.failed}"
            if part.accuracy:
                result = f"{percent(fmean(part.accuracy))} % of {len(part.accuracy)} students"
            lines.append(f"{part.protocol}, {judged_by(part.protocol, part.backbone)}: {result}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class Grid:
    """What `evaluate_grid` found: the results, and the file that has them. It prints as tables."""

    results: Results
    file: Path

    @property
    def frame(self) -> DataFrame:
        """A row for each section, recipe and method: `mean` and `ci95` (half the 95 % interval) as fractions, `rank`,
        and Kendall's `tau` of the recipe's order to that of the base, with `tau_low` and `tau_high`."""
        return tables.frame(self.results)

    def __repr__(self) -> str:
        return tables.text(self.results)


@checked
def run(
    method: str | type[Method[Any]],
    dataset: str,
    *,
    ipc: int = 10,
    seed: int = 0,
    backbone: str | None = None,
    pixels: str | None = None,
    preset: str | None = None,
    protocol: Several = (),
    judge: Several = (),
    students: int | None = None,
    precision: str | None = None,
    options: Mapping[str, Any] | None = None,
    select: Mapping[str, Any] | bool | None = None,
    device: str = "auto",
    data: str | Path | None = None,
    runs: str | Path | None = None,
    fresh: bool = False,
    curve: bool = False,
    snapshots: int = SNAPSHOTS,
    progress: bool = False,
    track: Tracked = (),
) -> Run:
    """Condense a dataset, judge the set, write a record: `ddbench run`. A finished run is read, not repeated.

    `method` is a name, "package/name", "./file.py:Class", or a subclass of `Method` itself; `options` are values of its
    options by name. `select` keeps the best set on held-out training images, as in {"heldout": 0.1, "every": 500,
    "students": 2}; True does so as the method proposes, False not at all. What is left open is decided by the preset,
    then by the default. `protocol` and `judge` are one name or several. `data` and `runs` are the folders of datasets
    and runs: by default those of the environment variables DDBENCH_DATA and DDBENCH_RUNS, else "data" and "runs".
    `fresh` starts over, `curve` judges the snapshots too, of which there are `snapshots`, the result among them;
    `progress` prints on stderr. `track` names trackers, or is a subclass of `ddbench.runs.trackers.Tracker`: metrics
    and accuracies go there too. In its record an option given here has the source "options".
    Raises: DdbenchError, with a sentence that says what to do, for whatever cannot be used as asked.
    """
    asked = Asked(
        method=method,
        dataset=dataset,
        ipc=ipc,
        seed=seed,
        preset=preset,
        backbone=backbone,
        pixels=pixels,
        protocols=_several(protocol),
        judges=_several(judge),
        students=students,
        precision=precision,
        options={name: _plain(value) for name, value in (options or {}).items()},
        select=select,
    )
    where = _options(device, data, runs, progress=progress, fresh=fresh, curve=curve, snapshots=snapshots, track=track)
    resolution = resolve_spec(asked, where.data_root, where.device, read_start)
    _say(remarks([resolution]))
    record = runner.run(resolution, where)
    _say(shortcomings(record, resolution.cells))
    return Run(where.root / resolution.spec.folder, record, where.data_root)


@checked
def evaluate(
    path: str | Path | Run,
    *,
    protocol: Several = (),
    judge: Several = (),
    students: int | None = None,
    device: str = "auto",
    dataset: str | None = None,
    pixels: str | None = None,
    labels: str | None = None,
    lr: float | None = None,
    augment: str | None = None,
    decode: str | None = None,
    size: int | None = None,
    entry: str | None = None,
    name: str | None = None,
    ipc: int | None = None,
    made_with: str | None = None,
    claims: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    runs: str | Path | None = None,
    curve: bool = False,
    precision: str | None = None,
    progress: bool = False,
    track: Tracked = (),
) -> Run:
    """Judge a finished run by more protocols, judges or students, or a set that somebody else made: `ddbench evaluate`.

    `path` is the folder of a run; or what becomes one without a condensation: a file or folder that was downloaded, or
    the name of a published set. `protocol` and `judge` are one name or several; left out, those of the run, or of the
    protocol. What a downloaded file does not say is said here: `dataset`, `pixels`, `labels`, `lr`, `augment`, `decode`
    and `size` as in `load`; `entry` which set of several; `name` what boards call it, `ipc` its budget, `made_with` its
    backbone, `claims` what its maker says of it. `precision` is that of students, by default of the run. `track` is as
    for `run`.
    Raises: DdbenchError, with a sentence that says what to do; it calls the arguments by the command line's options.
    """
    place = _found(path, _folder(data, DATA))
    refs = _several(protocol)
    imported = not (place / SPEC).is_file()
    root = runs if imported else RunDir.at(place).root
    where = _options(device, data, root, progress=progress, curve=curve, track=track)
    said = Said(pixels, labels, lr, augment, decode, size)
    if imported:
        found = found_in(place, entry, dataset, where.data_root, size)
        if len(found) > 1:
            names = ", ".join(entry_name(one.entry) for one in found)
            raise mistyped(DataError(f"{place} holds {len(found)} sets: {names}. Say entry=…."))
        real = dataset_of(found[0], place, dataset, where.data_root)
        refs_of_set = tuple(asked_ref(judging_by(ref), ref) for ref in refs if ref != "native")
        asked = Import(said, name or "", ipc, made_with or "", dict(claims or {}), refs_of_set)
        entered = bring_in(found[0], asked, real, where)
        place = entered.folder
        _say(f"{path}: {text}" for text in [*entered.notes, *entered.warnings])
    elif said != Said() or any(value for value in (entry, name, ipc, made_with, claims)):
        raise DataError(f"{place} is a run, whose set says itself what it is; leave out what is said of a file.")
    there = RunDir.at(place)
    protocols = judged_with(there.spec, refs, runner.finished_record(there))
    own_data = None if imported else dataset
    judges = _several(judge)
    record = runner.evaluate_run(place, protocols, judges, students, where, curve, own_data, precision)
    _say(lost_cells(record, cells(protocols, judges, students, record.data.shape, own=record.run.backbone)))
    return Run(place, record, where.data_root)


@checked
def evaluate_grid(
    sets: str | Path | Run | Sequence[str | Path | Run] = (),
    *,
    base: str = "",
    factors: Mapping[str, Sequence[Any]] | str | Path = "usual",
    recipes: Sequence[Mapping[str, Any]] = (),
    product: bool = False,
    forwards: int | None = None,
    judge: Several = (),
    students: int | None = None,
    device: str = "auto",
    dataset: str | None = None,
    pixels: str | None = None,
    labels: str | None = None,
    decode: str | None = None,
    size: int | None = None,
    entry: str | None = None,
    data: str | Path | None = None,
    runs: str | Path | None = None,
    output: str | Path = "sensitivity.json",
    progress: bool = False,
) -> Grid:
    """Judge sets under a protocol and variants of it at equal training: `ddbench evaluate --grid`.

    `sets` are runs, files, or names of published sets. `base` is the protocol, by default the first of the first set's
    run; `factors` are values by factor, as in {"optimizer": ["adam"], "epochs": ["1/4"], "batch": [32], "augment":
    ["none"], "labels": ["teacher"]}, "usual", or a TOML file of a grid; `recipes` are tables of one's own variants;
    `product` combines the factors. `forwards` is how many images each student trains on. What files do not say is said
    by `dataset`, `pixels`, `labels`, `decode`, `size` and `entry`, as for `evaluate`. Finished cells, which lie beside
    `output`, are read and not trained again.
    Raises: DdbenchError, with a sentence that says what to do; it calls the arguments by the command line's options.
    """
    words = str(factors) if isinstance(factors, str | Path) else ""
    if words and words != USUAL_GRID and not words.endswith(".toml"):
        raise ConfigError(f"factors are values by factor, 'usual', or a TOML file; got {words!r}.")
    wanted = read_grid(Path(words)) if words.endswith(".toml") else AskedGrid(factors=USUAL if words else factors)  # type: ignore[arg-type]
    several = [sets] if isinstance(sets, str | Path | Run) else sets
    wanted = wanted.over(
        sets=tuple(map(_word, several)),
        base=judging_by(base) if base else None,
        own=(*wanted.own, *recipes),
        product=product,
        forwards=forwards,
        judges=_several(judge),
        students=students,
    )
    files = SaidOfFiles(Said(pixels, labels, None, None, decode, size), dataset, entry)
    where = _options(device, data, runs, progress=progress, curve=False)
    return Grid(judge_grid(wanted, files, where, Path(output), logger.warning), Path(output))


@checked
def recognise(
    run: str | Path | Run,
    *,
    judge: Several = (),
    device: str = "auto",
    data: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Let networks that were trained on the real images say the classes of a run's set: `ddbench measure recognised`.

    `judge` are their backbones, by default the ConvNet that fits the images. What they recognise is in the result's
    `record.recognised`, as fractions, and in the record on disk.
    Raises: DdbenchError, with a sentence that says what to do.
    """
    folder = _place(run)
    where = _options(device, data, RunDir.at(folder).root, progress=progress, curve=False)
    record = recognising.recognise(folder, _several(judge), where)
    _say(filter(None, [recognising.reservation(record)]))
    return Run(folder, record, where.data_root)


@checked
def correlate(
    run: str | Path | Run,
    *,
    protocol: Several = (),
    judge: Several = (),
    metric: str = "loss",
    device: str = "auto",
    data: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Correlate what a method logged along a run with the test loss of students: `ddbench measure correlation`.

    The snapshots are judged by the run's own protocols and judges, or by those of them that are named. Spearman's rho
    and its 95 % interval are in the result's `record.correlations`, and in the record on disk. More snapshots say more:
    `run(…, snapshots=20)`.
    Raises: DdbenchError, with a sentence that says what to do.
    """
    folder = _place(run)
    where = _options(device, data, RunDir.at(folder).root, progress=progress, curve=False)
    names = ids_of(_several(protocol))
    record = correlating.correlate(folder, names, _several(judge), where, metric=metric)
    return Run(folder, record, where.data_root)


@checked
def load(
    path: str | Path | Run,
    *,
    dataset: str | None = None,
    pixels: str | None = None,
    labels: str | None = None,
    lr: float | None = None,
    augment: str | None = None,
    decode: str | None = None,
    size: int | None = None,
    entry: str | None = None,
    data: str | Path | None = None,
) -> LoadedSet:
    """The synthetic set of a run, of a file of ddbench, or of one that others published, as a torch Dataset.

    A text such as "dance/cifar10/ipc10" is the name of a published set, if no set is at that path; see `foreign.meant`.
    `ddbench sets list` shows them, and the environment variable DDBENCH_SETS says in which folder or at which address
    they are.
    What a file of others does not say is said here, as for `evaluate`: `dataset`, the one that it was condensed from;
    `pixels`, such as "zca", or "unit" or "raw" for images that are still to be normalised; `labels`, such as
    "probability"; `lr`, the step size that was learned with it; `decode`, such as "tiles:2" for sets that store 2 x 2
    smaller images in each; `size`, to resize images to so many pixels; `entry`, which set of several.
    Raises: DdbenchError where there is no such set, it is damaged, or something has to be said.
    """
    root = _folder(data, DATA)
    place = _found(path, root)
    return load_set(place, Said(pixels, labels, lr, augment, decode, size), dataset, entry, root)


@checked
def load_dataset(name: str, *, data: str | Path | None = None) -> Dataset:
    """A dataset as ddbench uses it: `train` and `test.load()` have uint8 images [N, C, H, W] and int64 labels [N].

    Raises: DataError where it is not in the data folder; the digits always are.
    """
    return sources.load(name, _folder(data, DATA))


@checked
def leaderboard(
    runs: str | Path | Iterable[str | Path | Run] | None = None, *, track: Several = (), scores: bool = False
) -> DataFrame:
    """The rows of the board of some runs: one for each method, settings, protocol, track of labels and judge.

    `runs` is a runs folder, by default that of DDBENCH_RUNS, else "runs"; or run folders, records and results of `run`.
    `mean`, `ci95` (half the width of the 95 % interval) and `sd` are fractions; see `leaderboard.statistics.summarise`.
    `track` leaves the rows of one or several tracks: "hard", "soft", "teacher". `scores` adds those of DD-Ranking, nan
    beside a text that says what is missing; see `leaderboard.scores.with_scores`.
    Raises: RunError for a path without a record, where paths are named; ConfigError for a track that does not exist.
    """
    chosen = Chosen(tracks=_several(track))
    if unknown := set(chosen.tracks) - set(TRACKS):
        hint = closest(min(unknown), list(TRACKS))
        raise ConfigError(f"there is no track {min(unknown)!r} of labels. {hint}There are {', '.join(TRACKS)}.")
    if runs is None or isinstance(runs, str | Path):
        lost: list[str] = []
        rows = local_summary(_folder(runs, RUNS), chosen, lost, scores=scores)
        _say(f"left out: {text}" for text in lost)
        return rows
    whole = summarise(collect([_place(one) for one in runs]))
    return chosen.of(with_scores(whole) if scores else whole)


@checked
def compare(
    *results: str | Path | Run,
    dataset: str | None = None,
    ipc: int | None = None,
    protocol: Several = (),
    judge: Several = (),
    runs: str | Path | None = None,
    leaderboards: str | Path = "leaderboards",
) -> DataFrame:
    """Which of two or more results is better, in pairs, wherever both were judged alike: `ddbench compare`.

    A result is a method or a row of a board by name, a run by its folder, its id or what `run` gave, a record, a
    published set by name, or a downloaded set that was judged. Names are looked up in `runs`, then in `leaderboards`. A
    row's `difference` is that of its `first` to its `second`, a fraction, and its `verdict` is better, worse, equal
    (within half a point) or undecided; see `leaderboard.comparison.compare`.
    Raises: DdbenchError where a name means nothing, or nothing can be compared.
    """
    refs = list(map(_word, results))
    if len(dict.fromkeys(refs)) < 2:
        raise ConfigError("two or more results are needed to compare, such as compare('dm', 'random').")
    shelf = Shelf(_folder(runs, RUNS), Path(leaderboards), dataset, ipc, logger.warning)
    return comparison.compare(refs, shelf, Cells(dataset, ipc, _several(protocol), _several(judge)))


def _options(
    device: str,
    data: str | Path | None,
    runs: str | Path | None,
    *,
    progress: bool,
    curve: bool,
    fresh: bool = False,
    snapshots: int = SNAPSHOTS,
    track: Tracked = (),
) -> RunOptions:
    named = [track] if isinstance(track, str | type) else list(track)
    return RunOptions(
        root=_folder(runs, RUNS),
        data_root=_folder(data, DATA),
        device=choose_device(device),
        fresh=fresh,
        curve=curve,
        snapshots=snapshots,
        observers=[*([Console()] if progress else []), *trackers(named, logger.warning)],
    )


def _say(sentences: Iterable[str]) -> None:
    for text in sentences:
        logger.warning("%s", text)


def _place(one: str | Path | Run) -> Path:
    return one.folder if isinstance(one, Run) else Path(one)


def _found(one: str | Path | Run, data_root: Path) -> Path:
    """The folder of a run, or the path or file of what a text means."""
    return one.folder if isinstance(one, Run) else meant(one, data_root, logger.warning).file(data_root)


def _word(one: str | Path | Run) -> str:
    return one if isinstance(one, str) else as_word(_place(one))


def _folder(given: str | Path | None, variable: str) -> Path:
    usual = {DATA: "data", RUNS: "runs"}[variable]
    return Path(given) if given is not None else Path(os.environ.get(variable) or usual)


def _plain(value: Any) -> Any:
    """A value of an option as text can say it: a run, to start from its set, is its folder."""
    return str(value.folder) if isinstance(value, Run) else str(value) if isinstance(value, Path) else value


def _several(names: Several) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
