"""A record's run once more: the command that makes it, and whether set and accuracies are those of the record.

On a CPU the set is the same bit for bit with the same version of torch and as many threads. Elsewhere it may differ by
rounding, which grows with the steps, so that what comes out is as good as another set of the same method.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ddbench import synthetic as sets
from ddbench.config import spelled, spelled_selection
from ddbench.data import catalogue
from ddbench.data.dataset import Dataset
from ddbench.errors import DataError, RunError
from ddbench.evaluation.protocol import PROTOCOLS, judged_by, protocol
from ddbench.leaderboard.command import Judged, judged_together
from ddbench.leaderboard.observations import NO_STUDENT, collect
from ddbench.leaderboard.statistics import next_set
from ddbench.leaderboard.submission import PEERS, other_sets
from ddbench.plugins import names_code
from ddbench.runs import runner
from ddbench.runs.agreement import CONFIDENCE, tolerance
from ddbench.runs.record import Attempt, EvaluationPart, RunRecord, read_record, readable
from ddbench.runs.resolving import Asked, find_method, foresee, resolve_spec
from ddbench.runs.rundir import RECORD, SET
from ddbench.runs.runner import RunOptions
from ddbench.runs.runspec import RunSpec
from ddbench.runs.selecting import told_by_config
from ddbench.text import percent


@dataclass(frozen=True)
class Again:
    """What has to be done to make a record again. `left_out` are sentences about what cannot be.

    `elsewhere` says that the dataset in the data folder is there and has other images than those of the record.
    """

    file: Path
    record: RunRecord
    asked: Asked
    judged: tuple[Judged, ...]
    spec: RunSpec
    left_out: tuple[str, ...] = ()
    elsewhere: bool = False

    def commands(self, into: Path, data_root: Path | None = None) -> list[list[str]]:
        """The commands as words: one that runs, and one for each further group of judges."""
        asked, where = self.asked, ["--runs", str(into)]
        where += ["--data", str(data_root)] if data_root is not None else []
        words = ["ddbench", "run", "--method", str(asked.method), "--dataset", asked.dataset]
        words += ["--ipc", str(asked.ipc), "--seed", str(asked.seed)]
        for name in ("preset", "backbone", "pixels", "precision"):
            words += [f"--{name}", str(getattr(asked, name))]
        for name, value in asked.options.items():
            words += ["--set", f"{name}={spelled(value)}"]
        words += ["--select", spelled_selection(asked.select)] if asked.select is not None else []
        first, *others = self.judged
        folder = str(into / self.spec.folder)
        return [
            [*words, *first.words(), *where],
            *(["ddbench", "evaluate", folder, *group.words(), *where[2:]] for group in others),
        ]

    def text(self, into: Path, data_root: Path | None = None) -> str:
        """The commands as a person types them."""
        return "\n".join(shlex.join(words) for words in self.commands(into, data_root))


@dataclass(frozen=True)
class JudgedAgain:
    """One evaluation of a record and the same one made again. Accuracies are fractions.

    `within` is how far the means may lie apart, and `by` what says so; None where nothing does.
    """

    evaluation: EvaluationPart
    accuracy: tuple[float, ...]
    within: float | None
    by: str

    @property
    def equal(self) -> bool:
        """Whether every student has the recorded accuracy."""
        return self.accuracy == self.evaluation.accuracy

    @property
    def difference(self) -> float:
        """The mean that came out again less the recorded one."""
        return fmean(self.accuracy) - fmean(self.evaluation.accuracy)

    @property
    def agrees(self) -> bool | None:
        """Whether the accuracies agree; None where they are apart, and nothing says how far they may be."""
        if not self.accuracy:
            return False
        if self.equal:
            return True
        return None if self.within is None else abs(self.difference) <= self.within

    def __str__(self) -> str:
        part = self.evaluation
        what = f"{part.protocol} with {part.backbone}: recorded {percent(fmean(part.accuracy))} %"
        if not self.accuracy:
            return f"{what}, and there is no accuracy this time."
        what += f", again {percent(fmean(self.accuracy))} %"
        if self.equal:
            return f"{what}: all {len(self.accuracy)} students equal."
        if self.within is None:
            return f"{what}: {100 * self.difference:+.2f} points; undecided, because {self.by}."
        word = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{what}: {word} ({100 * self.difference:+.2f} points; {100 * self.within:.2f} are allowed, by {self.by})."
        )


@dataclass(frozen=True)
class Reproduction:
    """A record, the one that was made again, and what is to be said of the two.

    `circumstances` are those that differ and can round a sum in another way; without any the set has to be the same.
    `apart` is the largest difference of two pixels of two sets, where both are there.
    """

    again: Again
    folder: Path
    record: RunRecord
    same_set: bool
    circumstances: tuple[str, ...]
    apart: float | None
    outcomes: tuple[JudgedAgain, ...]

    @property
    def agrees(self) -> bool:
        """Whether the record was reproduced: with the same set where that is expected, and accuracies that agree."""
        return (self.same_set or bool(self.circumstances)) and all(one.agrees is True for one in self.outcomes)

    def lines(self) -> list[str]:
        """What a person reads."""
        told = "; ".join(self.circumstances)
        apart = "" if self.apart is None else f" Pixels differ by at most {self.apart:.2g}."
        if self.same_set:
            found = "The set is the same, bit for bit." + (f" What differs: {told}." if told else "")
        elif told:
            found = f"The set is another one.{apart} That is no contradiction. What differs: {told}."
        else:
            found = (
                f"The set DIFFERS.{apart} It should be the same: torch, threads, processor and code are those of the "
                "record."
            )
        return [found, *(str(one) for one in self.outcomes), *self.again.left_out]


def again_of(
    file: Path,
    *,
    data_root: Path,
    device: torch.device,
    method: str | None = None,
    protocols: Sequence[str] = (),
) -> Again:
    """What makes a record again. `method` names the file of a method that was given by path, `protocols` files of those
    that are not built in.

    Raises: RunError where a record cannot be made again, saying what is missing; ConfigError, DataError, PluginError
    for names that are not known here.
    """
    record = read_record(file)
    run = record.run
    if record.imported is not None:
        raise RunError(
            f"{file} is of an imported set: its maker has condensed it, and ddbench only judged it. With the file "
            f"{record.imported.file} (sha256 {record.imported.sha256[:16]}…) `ddbench evaluate` judges it again."
        )
    ref = _method_of(record, method, file)
    judged, left_out = _judged(record, protocols)
    if not judged:
        raise RunError(f"{file} has no evaluation that can be made again. {' '.join(left_out)}".rstrip())
    asked = Asked(
        method=ref,
        dataset=run.dataset,
        ipc=run.ipc or 10,  # the whole dataset has no budget, and is asked for with any
        seed=run.seed,
        preset=run.preset,
        backbone=run.backbone,
        pixels=record.data.pixels,
        precision=run.precision,
        protocols=judged[0].protocols,
        judges=judged[0].judges,
        students=judged[0].students,
        by="command",
    )
    asked, spec, dataset = _settled(asked, record, data_root, device)
    differ = [name for name in {**spec.config, **record.config.values} if _value(spec, name) != _value(record, name)]
    if differ:
        left_out.append(f"Note: options that mean something else in this version: {', '.join(sorted(differ))}.")
    elsewhere = dataset is not None and not _same_images(record, dataset)
    return Again(file, record, asked, tuple(judged), spec, tuple(left_out), elsewhere)


def with_their_images(wanted: Sequence[Again]) -> tuple[list[Again], str]:
    """Those of several records whose images are in the data folder, and a sentence about the others, if there are any.

    A dataset may be there in one copy alone, and a name stands for records of all. Where no record has its images
    there, all are left, for a command that is only printed.
    """
    here = [again for again in wanted if not again.elsewhere]
    if here and len(here) < len(wanted):
        titles = sorted({_called(again.record) for again in wanted if again.elsewhere})
        return here, (
            f"Note: {len(wanted) - len(here)} of {len(wanted)} records are left out, because the data folder has other "
            f"images than theirs, which are those of {' and of '.join(titles)}."
        )
    titles = sorted({_called(again.record) for again in wanted})
    several = f"Note: the records are of {' and of '.join(titles)}. Each command takes the copy that it is given."
    return list(wanted), several if len(titles) > 1 else ""


def _called(record: RunRecord) -> str:
    return f"{record.data.title} ({record.data.fingerprint})"


def _same_images(record: RunRecord, dataset: Dataset) -> bool:
    known = record.data
    # Older records, and images that were added by older versions, do not say their contents.
    return known.fingerprint == dataset.fingerprint or known.contents == dataset.contents != ""


def reproduce(again: Again, options: RunOptions) -> Reproduction:
    """Run a record's run under another runs folder, and compare. A run that is finished there is read.

    Raises: what `runner.run` and `runner.evaluate_run` raise; DataError where the dataset is not that of the record;
    RunError as `require_elsewhere`.
    """
    require_elsewhere(again, options.root)
    resolution = resolve_spec(again.asked, options.data_root, options.device)
    known = again.record.data
    if not _same_images(again.record, resolution.dataset):
        raise DataError(
            f"the record is of {known.title} with the fingerprint {known.fingerprint}, and the one in the data folder "
            f"has {resolution.dataset.fingerprint}. Point --data at the folder with the other one."
        )
    record = runner.run(resolution, options)
    folder = options.root / resolution.spec.folder
    for group in again.judged[1:]:
        protocols = [protocol(ref) for ref in group.protocols]
        record = runner.evaluate_run(folder, protocols, group.judges, group.students, replace(options, fresh=False))
    same = record.synthetic.sha256 == again.record.synthetic.sha256
    return Reproduction(
        again=again,
        folder=folder,
        record=record,
        same_set=same,
        circumstances=tuple(_circumstances(again.record, record)),
        apart=None if same else _apart(again.file, folder),
        outcomes=tuple(_outcomes(again, record, same_set=same)),
    )


def require_elsewhere(again: Again, into: Path) -> None:
    """Raises: RunError where a runs folder has the very run that a record is of: it would be compared with itself, and
    lost by starting over."""
    there = into / again.spec.folder
    same = again.file.parent.exists() and there.exists() and there.samefile(again.file.parent)
    for _, record in readable([there / RECORD]):
        spent = [of.cost["condense"].seconds if "condense" in of.cost else None for of in (again.record, record)]
        same = same or (spent[0] is not None and spent[0] == spent[1])  # a clock says it twice of one run alone
    if same:
        raise RunError(
            f"{there} is the run that {again.file} is of, so it would be compared with itself. Choose another folder "
            "with --into."
        )


def _method_of(record: RunRecord, given: str | None, file: Path) -> str:
    run = record.run
    if given is not None:
        loaded, _ = find_method(given)
        if run.method_sha256 is not None and loaded.sha256 != run.method_sha256:
            raise RunError(
                f"{given} is another file than that of the record: its sha256 is {str(loaded.sha256)[:16]}…, and the "
                f"record says {run.method_sha256[:16]}…. Get the file as it was."
            )
        return given
    if run.method_sha256 is not None:
        raise RunError(
            f"{file} is of a method that was given by its file, {run.provided_by} (sha256 {run.method_sha256[:16]}…). "
            "Name that file with --method ./FILE.py:CLASS."
        )
    package = run.provided_by.split(" ")[0]
    return run.method if package == "ddbench" else f"{package}/{run.method}"


def _judged(record: RunRecord, protocols: Sequence[str]) -> tuple[list[Judged], list[str]]:
    """The evaluations in groups that one command makes, and what is said of those that no command can."""
    own = {(one.id, one.digest): ref for ref in protocols for one in [protocol(ref)]}
    found, left_out = [], []
    for part in record.evaluations:
        ref = own.get((part.protocol, part.digest))
        builtin = PROTOCOLS.get(part.protocol)
        if ref is None and builtin is not None and builtin.digest == part.digest:
            ref = part.protocol
        if not part.accuracy:
            left_out.append(f"Note: {part.protocol} with {part.backbone} had no result, and is left out.")
        elif ref is None:
            left_out.append(
                f"Note: {part.protocol} with {part.backbone} is left out: its recipe is in a file of its own. Name it "
                "with --protocol FILE."
            )
        elif names_code(part.backbone):
            left_out.append(f"Note: {part.protocol} with {part.backbone} is left out: that network is in a file.")
        else:
            found.append((ref, part))
    return judged_together(found), left_out


def _settled(
    asked: Asked, record: RunRecord, data_root: Path, device: torch.device
) -> tuple[Asked, RunSpec, Dataset | None]:
    """What is asked with the options that preset and defaults do not give, the spec that comes of it, and the dataset
    where it is there.
    """
    kind = find_method(asked.method)[1]
    options, selection = told_by_config(kind, record.config.values)
    spec, dataset = _spec(asked, record, data_root, device)
    if spec.config == record.config.values:
        return asked, spec, dataset
    usual, selected = told_by_config(kind, spec.config)
    known = kind.Config.model_fields
    asked = replace(
        asked,
        options={name: value for name, value in options.items() if name in known and usual.get(name) != value},
        select=None if selection == selected else selection,
    )
    return asked, *_spec(asked, record, data_root, device)


def _spec(asked: Asked, record: RunRecord, data_root: Path, device: torch.device) -> tuple[RunSpec, Dataset | None]:
    try:
        found = resolve_spec(asked, data_root, device)
        return found.spec, found.dataset
    except DataError:
        if asked.dataset not in catalogue.CATALOGUE:
            raise
        # Commands can be told without the images, and are of the record's, after which its run's folder is named.
        return replace(foresee(asked, device), data_fingerprint=record.data.fingerprint), None


def _value(of: RunSpec | RunRecord, name: str) -> Any:
    values: Mapping[str, Any] = of.config if isinstance(of, RunSpec) else of.config.values
    return values.get(name)


def _circumstances(old: RunRecord, new: RunRecord) -> list[str]:
    """What is not as it was, of all that can round a sum in another way."""
    told: tuple[tuple[str, Callable[[Attempt], Any]], ...] = (
        ("device", lambda attempt: attempt.device),
        ("torch", lambda attempt: attempt.packages.get("torch", "unknown")),
        ("processor", lambda attempt: attempt.cpu),
        ("threads", lambda attempt: "unknown" if attempt.threads is None else attempt.threads),
        ("code", _code),
    )
    values = [(name, _values(old, value), _values(new, value)) for name, value in told]
    found = [f"{name} {before} then, {now} now" for name, before, now in values if before != now]
    return found + (["a GPU, which adds in an order of its own"] if new.devices != ["cpu"] else [])


def _values(record: RunRecord, value: Callable[[Attempt], Any]) -> str:
    """What the attempts that took steps say; where there are none, all."""
    working = [a for a in record.attempts if a.steps[1] > a.steps[0]] or list(record.attempts)
    return " and ".join(dict.fromkeys(str(value(attempt)) for attempt in working)) or "unknown"


def _code(attempt: Attempt) -> str:
    if attempt.git is None:
        return f"ddbench {attempt.packages.get('ddbench', 'unknown')}"
    return str(attempt.git.get("commit"))[:12] + (" with changes" if attempt.git.get("dirty") else "")


def _apart(file: Path, folder: Path) -> float | None:
    """The largest difference of two pixels, where the old set is there too and of the same shape; else None."""
    old = file.parent / SET
    if not old.is_file():
        return None
    try:
        ours, theirs = sets.load(folder / SET), sets.load(old)
    except DataError:
        return None
    if ours.images.shape != theirs.images.shape:
        return None
    return float((ours.images.float() - theirs.images.float()).abs().max())


def _outcomes(again: Again, record: RunRecord, *, same_set: bool) -> list[JudgedAgain]:
    new = {(e.digest, e.backbone): e.accuracy for e in record.evaluations}
    asked = {(ref, judge) for group in again.judged for ref in _ids(group.protocols) for judge in group.judges}
    found = []
    for part in again.record.evaluations:
        if not part.accuracy or (part.protocol, part.backbone) not in asked:
            continue
        accuracy = new.get((part.digest, part.backbone), ())[: len(part.accuracy)]
        within, by = _allowed(again, part, same_set)
        found.append(JudgedAgain(part, accuracy, within, by))
    return found


def _ids(refs: Sequence[str]) -> list[str]:
    return [protocol(ref).id for ref in refs]


def _allowed(again: Again, part: EvaluationPart, same_set: bool) -> tuple[float | None, str]:
    """How far the means may lie apart, and by what."""
    if same_set:
        return tolerance(part.accuracy, len(part.accuracy), again.record.data.test), "students of one set"
    frame = collect([again.file, *_beside(again.file)], lost=[])
    frame = frame[(frame["digest"] == part.digest) & (frame["student"] != NO_STUDENT)]
    judge = judged_by(part.protocol, part.backbone)
    own = frame[(frame["run"] == again.record.run.id) & (frame["judge"] == judge)]
    means = [fmean(part.accuracy), *(other_sets(own, frame) if len(own) else ())]
    if len(means) < PEERS:
        return None, "its row has too few sets to say how far sets of this method lie apart"
    return next_set(np.array(means), (1 + CONFIDENCE) / 2), f"the {len(means)} sets of its row"


def _beside(file: Path) -> list[Path]:
    """The records of the same dataset and budget: of the runs beside a run, or in the folder of a committed record."""
    found = file.parent.parent.glob(f"*/{RECORD}") if file.name == RECORD else file.parent.glob("*.json")
    return [path for path in sorted(found) if path != file]
