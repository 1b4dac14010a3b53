"""Students of a record trained a second time on its set, and what the two accuracies say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddbench import synthetic as sets
from ddbench.arguments import PRECISIONS
from ddbench.artifacts import Tell
from ddbench.data.dataset import Dataset
from ddbench.data.sources import load
from ddbench.errors import ConfigError, DataError, DdbenchError, RunError, closest, mistyped
from ddbench.evaluation.evaluate import SealedTest, scores
from ddbench.evaluation.meant import as_recorded, is_any, is_judge, is_protocol
from ddbench.evaluation.protocol import Protocol, judged_by, protocol
from ddbench.evaluation.trainer import Trainer, trainer_of
from ddbench.problem import Problem
from ddbench.runs import provenance
from ddbench.runs.agreement import agrees, compared, tolerance
from ddbench.runs.record import EvaluationPart, RunRecord, SyntheticPart, read_record
from ddbench.runs.resolving import protocols_of
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, build_problem, dataset_of, require_images, session
from ddbench.runs.signals import Stop
from ddbench.synthetic import SyntheticSet


@dataclass(frozen=True)
class Retrained:
    """Some students of one evaluation, as the record has them and as they came out again; all fractions.

    `within` is how far the means may lie apart, see `agreement.tolerance`. `failed` says why nothing could be trained.
    """

    evaluation: EvaluationPart
    students: tuple[int, ...]
    accuracy: tuple[float, ...]
    within: float
    device: str
    failed: str = ""

    @property
    def recorded(self) -> tuple[float, ...]:
        """What the record says of these students."""
        return tuple(self.evaluation.accuracy[k] for k in self.students)

    @property
    def equal(self) -> bool:
        """Whether every student has the recorded accuracy, to the last image."""
        return bool(self.accuracy) and self.accuracy == self.recorded

    @property
    def agrees(self) -> bool:
        """Whether the second training says what the record says."""
        return bool(self.accuracy) and agrees(self.recorded, self.accuracy, self.within)

    def __str__(self) -> str:
        what = f"{self.evaluation.protocol} with {self.evaluation.backbone}"
        if self.failed:
            return f"{what}: could not be trained again: {self.failed}"
        return f"{what}, {compared(self.recorded, self.accuracy, self.within)}."


@dataclass(frozen=True)
class Subject:
    """A set that students are trained on again, and the record that says what they reached.

    `shown` is what messages call it; `recipes` are protocols beside those that are built in.
    """

    shown: str
    record: RunRecord
    synthetic: SyntheticSet
    dataset: Dataset
    recipes: tuple[Protocol, ...] = ()

    def problem(self, backbone: str, options: RunOptions, *, precision: str = "", tell: Tell | None = None) -> Problem:
        """What a network of a backbone is trained on; in the precision of the run, unless another one is said."""
        run = self.record.run
        return build_problem(
            self.dataset,
            backbone=backbone,
            pixels=self.synthetic.pixels,
            ipc=run.ipc,
            seed=run.seed,
            device=options.device,
            precision=precision or run.precision,
            artifacts_root=options.artifacts,
            tell=tell,
        )

    def knowing(self, recipes: Iterable[Protocol]) -> Subject:
        """The same with more recipes, as those of somebody's own files."""
        return replace(self, recipes=(*self.recipes, *recipes))


def of_run(path: Path, data_root: Path, committed: RunRecord | None = None) -> Subject:
    """The set in a run's folder, and the folder's record; or a committed one of the same run, if one is given.

    The committed one wins where both have an evaluation: what came out in this folder may have other rounding, and is
    nobody's claim.
    Raises: RunError where the run has no set, another set than its record says, or another than the committed record
    is of; DataError where its dataset is another one here.
    """
    folder = RunDir.at(path)
    if not (folder.record.is_file() and folder.synthetic.is_file()):
        raise RunError(f"{path} has no set and record, so no student of it can be trained again.")
    record = read_record(folder.record)
    folder.set_sha256()
    if committed is not None:
        require_same_set(path, record, committed)
        said = {(e.digest, e.backbone) for e in committed.evaluations}
        own = tuple(e for e in record.evaluations if (e.digest, e.backbone) not in said)
        record = committed.model_copy(update={"evaluations": (*committed.evaluations, *own)})
    return Subject(str(path), record, sets.load(folder.synthetic), dataset_of(folder, data_root), recipes_of(folder))


def require_same_set(path: Path, record: RunRecord, committed: RunRecord) -> None:
    """Raises: RunError where a run's own record and the committed one of the same run are of two sets."""
    if record.synthetic.sha256 != committed.synthetic.sha256:
        raise RunError(
            f"{path} and the committed record of the run {committed.run.id} are two results: their sets differ. So "
            "nothing that is trained here says anything of the record; the set of the run that it is of would."
        )


def of_file(file: Path, record: RunRecord, data_root: Path, *, shown: str) -> Subject:
    """The set in a file of ddbench, which is that of a record, perhaps with images of less precision.

    Raises: DataError where the file is none, is of another set than the record describes, or the record's dataset is
    another one here.
    """
    synthetic, said = sets.load(file), record.synthetic
    found = SyntheticPart.of(synthetic, said.sha256, said.learned, said.scale)  # what a file cannot say is the record's
    if (found, synthetic.pixels) != (said, record.data.pixels):
        told = {name: (getattr(found, name), getattr(said, name)) for name in SyntheticPart.model_fields}
        told["pixels"] = (synthetic.pixels, record.data.pixels)
        differ = "; ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in told.items() if ours != theirs)
        raise DataError(
            f"{shown} is not the set of its record: they say {differ}. So nothing that is trained on it says anything "
            "of the record; take the file from its source again."
        )
    dataset = load(record.run.dataset, data_root)
    require_images(dataset, record.data.fingerprint, f"{shown} was made from {record.data.title}")
    return Subject(shown, record, synthetic, dataset)


def retrain(
    subject: Subject,
    options: RunOptions,
    *,
    students: int | None = 1,
    protocols: Sequence[str] = (),
    judges: Sequence[str] = (),
    heard: Callable[[Retrained], None] = lambda one: None,
) -> list[Retrained]:
    """Train the first `students` (None: all) of each evaluation of a record again, and write nothing.

    `protocols` and `judges` are those of the evaluations that are meant, all without any; see `with_accuracies`.
    `heard` is called with each once it is done.
    Raises: RunError where there is no such evaluation.
    """
    record, synthetic = subject.record, subject.synthetic
    wanted = meant(subject, protocols, judges)
    test, found = SealedTest(subject.dataset.test), []
    with session(options) as (stop, _):
        for part in wanted:
            count = len(part.accuracy) if students is None else min(students, len(part.accuracy))
            numbers = tuple(range(count))
            again: tuple[float, ...] = ()
            failed = ""
            try:
                problem = subject.problem(part.backbone, options, precision=_precision(part, record))
                recipe = protocol_of(part, subject.recipes, " Name its file with --protocol.")
                trainer = trainer_of(synthetic, recipe, problem, students=count, chosen=part.chose)
                again = _accuracies(trainer, test, numbers, stop)
            except DdbenchError as error:
                failed = str(error)
            within = tolerance(part.accuracy, count, record.data.test)
            found.append(Retrained(part, numbers, again, within, provenance.device_name(options.device), failed))
            heard(found[-1])
    return found


def meant(subject: Subject, protocols: Sequence[str] = (), judges: Sequence[str] = ()) -> list[EvaluationPart]:
    """The evaluations of a subject's record that `retrain` trains again. Raises: RunError where there is none."""
    if found := with_accuracies(subject.record, protocols, judges):
        return found
    parts = [part for part in subject.record.evaluations if part.accuracy]
    there = ", ".join(f"{e.protocol} with {e.backbone}" for e in parts) or "none"
    near = "".join(
        closest(said, sorted(names))
        for names, asked, fits in (
            ({e.protocol for e in parts}, protocols, is_protocol),
            ({e.backbone for e in parts}, judges, is_judge),
        )
        for said in asked
        if not any(fits(name, said) for name in names)
    )
    raise mistyped(RunError(f"{subject.shown} has no such evaluation; it has {there}. {near}".rstrip()))


def _accuracies(trainer: Trainer, test: SealedTest, students: Sequence[int], stop: Stop) -> tuple[float, ...]:
    def progress(_: int) -> None:
        stop.check("while students were trained again; what was told before that stays")

    label = f"{trainer.protocol.digest} "
    return tuple(score.accuracy for score in scores(trainer, test, students, label=label, progress=progress))


def _precision(part: EvaluationPart, record: RunRecord) -> str:
    return part.precision if part.precision in PRECISIONS else record.run.precision


def with_accuracies(
    record: RunRecord, protocols: Sequence[str] = (), judges: Sequence[str] = ()
) -> list[EvaluationPart]:
    """The evaluations of a record that came to a result: all, or those of some protocols and judges, said as
    `evaluation.meant` takes them. A judge is meant by what boards call it as well."""
    judges, own = as_recorded(judges), record.run.backbone
    return [
        part
        for part in record.evaluations
        if part.accuracy
        and (not protocols or any(is_protocol(part.protocol, said) for said in protocols))
        and any(is_any(name, judges, own) for name in {part.backbone, judged_by(part.protocol, part.backbone)})
    ]


def recipes_of(folder: RunDir) -> tuple[Protocol, ...]:
    """The protocols that a run's folder names; none where one cannot be had, as evaluations under it then say."""
    try:
        return tuple(protocols_of(folder.spec))
    except ConfigError:
        return ()


def protocol_of(part: EvaluationPart, recipes: Iterable[Protocol], advice: str = "") -> Protocol:
    """The protocol of an evaluation, by its digest: one of these recipes, or built in.

    Raises: RunError where it is neither, which ends with `advice`.
    """
    known = list(recipes)
    with contextlib.suppress(ConfigError):
        known.append(protocol(part.protocol))
    for one in known:
        if one.digest == part.digest:
            return one
    raise RunError(
        f"the recipe of {part.protocol} that the record names ({part.digest}) is not known here: it was in a file that "
        f"is not where it was, or another version of ddbench has it.{advice}"
    )
