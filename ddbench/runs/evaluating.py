"""The third stage of a run: fresh students on the finished set, student by student, each counted once."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from ddbench.backbones import names as backbones
from ddbench.backbones.backbone import Backbone
from ddbench.config import explain
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.dataset import Dataset
from ddbench.errors import ConfigError, DataError, DdbenchError, DivergedError, PluginError, RunError
from ddbench.evaluation.evaluate import Score, SealedTest, scores
from ddbench.evaluation.plan import refuse_what_was_mistaken
from ddbench.evaluation.protocol import OWN, Protocol
from ddbench.evaluation.trainer import Trainer, trainer_class, trainer_of
from ddbench.fields import Count, Line, Number, Seconds, Sha256, Share
from ddbench.files import read_json, sha256_of, write_json
from ddbench.problem import Problem
from ddbench.runs import provenance
from ddbench.runs.observers import Observer, read_log
from ddbench.runs.pace import Pace
from ddbench.runs.record import CurvePart, CurvePoint, EvaluationPart, Part, RunRecord
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import Stop
from ddbench.synthetic import SyntheticSet, load
from ddbench.text import printable

SHOW_SECONDS = 0.5


@dataclass(frozen=True)
class Cell:
    """What is asked for: so many students of one backbone under one protocol."""

    protocol: Protocol
    backbone: str
    students: int

    def in_record(self, record: RunRecord) -> bool:
        """Whether a record has it already, be it as a failure."""
        return any(
            e.digest == self.protocol.digest
            and e.protocol == self.protocol.id
            and e.backbone == self.backbone
            and (e.failed or e.alike or len(e.accuracy) >= self.students)
            for e in record.evaluations
        )


def cells(
    protocols: Iterable[Protocol],
    judges: Sequence[str],
    students: int | None,
    shape: tuple[int, int, int],
    *,
    own: str,
) -> list[Cell]:
    """Every protocol with every judge, or with its backbones where no judge is named; `own` is the set's backbone.

    A trainer that trains no network, such as one of kernel regression, judges once, whatever backbones are named.
    """
    found = []
    for protocol in protocols:
        named = judges or protocol.backbones
        networks = list(dict.fromkeys(own if name == OWN else backbones.canonical(name, shape) for name in named))
        if not trainer_class(protocol.trainer).uses_backbone:
            networks = networks[:1]
        found += [Cell(protocol, backbone, students or protocol.students) for backbone in networks]
    return found


def require_judges(asked: Iterable[Cell], info: DatasetInfo) -> None:
    """Make the network of every judge once, before anything is spent or recorded.

    Raises: ConfigError or PluginError for one that does not exist or does not take the images, ConfigError for a
    protocol that is refused with it on this dataset, whatever the set.
    """
    errors: dict[str, DdbenchError] = {}
    for cell in asked:
        try:
            network = _make(cell.backbone, info.shape, info.classes)
            refuse_what_was_mistaken(cell.protocol, network, info.name)
        except (ConfigError, PluginError) as error:
            errors.setdefault(str(error), error)
    if errors:
        first = next(iter(errors.values()))
        raise type(first)("\n".join(errors)) from first


@functools.cache
def _make(backbone: str, shape: tuple[int, int, int], classes: int) -> Backbone:
    # A sweep asks for the same few networks for every one of its runs.
    return backbones.build(backbone, shape, classes)


class StudentScore(Part):
    """One student of an evaluation file."""

    student: Count
    accuracy: Share
    seconds: Seconds
    device: Line
    precision: Line = "fp32"
    chose: dict[Line, Number] = Field(default={})
    loss: Number | None = None


class EvaluationFile(Part):
    """evaluations/<protocol>/<backbone>.json: whose students they are, and beside that what a record says of them all.

    `synthetic` is the sha256 of the set's file.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    synthetic: Sha256
    file_schema: Literal["ddbench.evaluation/1"] = "ddbench.evaluation/1"
    scores: tuple[StudentScore, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """An evaluation so far: as a record has it, of the set with that sha256, by these students one by one."""

    part: EvaluationPart
    synthetic: str
    scores: tuple[StudentScore, ...] = ()

    @classmethod
    def of(cls, cell: Cell, sha256: str) -> Self:
        """An evaluation before its first student."""
        about = {"protocol": cell.protocol.id, "digest": cell.protocol.digest, "backbone": cell.backbone}
        return cls(EvaluationPart(**about, **_of_students((), failed="")), sha256)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What a file says. Raises: ValidationError from pydantic where it is none of an evaluation."""
        file = EvaluationFile.model_validate(value)
        said = dict(file.model_extra or {})
        # Files of ddbench 0.1 may have the choice with every student alone.
        said["chose"] = said.get("chose") or (file.scores[-1].chose if file.scores else {})
        part = {**said, **_of_students(file.scores, failed=said.get("failed", ""))}
        return cls(EvaluationPart.model_validate(part), file.synthetic, file.scores)

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean test loss of students 0, 1, …; nothing where an earlier version has not kept one of them."""
        by_number = {s.student: s.loss for s in self.scores}
        found = [by_number.get(k) for k in range(len(self.part.accuracy))]
        return tuple(loss for loss in found if loss is not None) if None not in found else ()

    def to_json(self) -> dict[str, Any]:
        """As the file has it, which leaves out what its students say one by one."""
        part = self.part.model_dump(mode="json", exclude=set(_of_students((), failed="")))
        about = {name: part.pop(name) for name in ("protocol", "digest", "backbone")}
        file = EvaluationFile(synthetic=self.synthetic, scores=self.scores).model_dump(mode="json")
        return {**about, **file, **part}

    def having(self, *scores: StudentScore, **values: Any) -> Self:
        """The same evaluation with more students, and with other values of its part."""
        students, part = (*self.scores, *scores), self.part.model_copy(update=values)
        part = part.model_copy(update=_of_students(students, failed=part.failed))
        return replace(self, part=part, scores=students)


def _of_students(scores: Sequence[StudentScore], *, failed: str) -> dict[str, Any]:
    """What a record says of all students together: accuracies of students 0, 1, …, seconds, devices, precisions."""
    by_number = {s.student: s.accuracy for s in scores}
    return {
        # None after a failure, so that nobody averages over the survivors.
        "accuracy": () if failed else tuple(by_number[k] for k in range(len(by_number)) if k in by_number),
        "seconds": sum(s.seconds for s in scores),
        "device": ", ".join(dict.fromkeys(s.device for s in scores)),
        "precision": ", ".join(dict.fromkeys(s.precision for s in scores)) or "fp32",
    }


class Curve(CurvePart):
    """evaluations/<protocol>/<backbone>.curve.json. `synthetic` is the sha256 of the set's file."""

    synthetic: Sha256
    file_schema: Literal["ddbench.curve/1"] = "ddbench.curve/1"


@dataclass
class Judging:
    """One attempt at evaluating a run's set, whose file has that sha256.

    `problem_of` gives the problem for a pixel space and a backbone.
    """

    folder: RunDir
    synthetic: SyntheticSet
    dataset: Dataset
    sha256: str
    problem_of: Callable[[str, str], Problem]
    stop: Stop
    tell: Observer
    retry: bool = False

    def __post_init__(self) -> None:
        self._test = SealedTest(self.dataset.test)

    def judge(self, cell: Cell) -> Evaluated:
        """Train the students that are missing; what is known is kept, student by student.

        A protocol that does not fit the set, or a student that diverges, makes the cell a failure; other cells go on.
        Raises: Interrupted after a signal.
        """
        path = self.folder.evaluation(cell.protocol, cell.backbone)
        done = self._read(path, cell)
        if self.retry and done.part.failed:
            done = done.having(failed="")
        missing = sorted(set(range(cell.students)) - {s.student for s in done.scores})
        if done.part.failed or done.part.alike or not missing:
            return done

        def keep(*scores: StudentScore, **values: Any) -> None:
            nonlocal done
            done = done.having(*scores, **values)
            write_json(path, done.to_json(), sealed=True)

        done = done.having(track=cell.protocol.track_of(more_than_classes=self.synthetic.more_than_classes))
        try:
            problem = self.problem_of(self.synthetic.pixels, cell.backbone)
            trainer = trainer_of(self.synthetic, cell.protocol, problem, students=len(missing), chosen=done.part.chose)
            device, precision = provenance.device_name(problem.device), problem.precision.on(problem.device)
            done = done.having(beside_bytes=trainer.extra_bytes, student_forwards=trainer.student_forwards)
            for score in self._scores(trainer, cell, missing, "", lambda chosen: keep(chose=chosen)):
                keep(StudentScore(device=device, precision=precision, **vars(score)), alike=trainer.deterministic)
        except (DivergedError, ConfigError) as error:
            # Boards tell a cell that went wrong from one that has no meaning, such as MTT's protocol on random images.
            keep(
                failed=printable(f"not defined: {error}" if isinstance(error, ConfigError) else str(error), lines=True)
            )
            self.tell.on_note(f"{cell.protocol.id} with {cell.backbone} failed: {error}")
        return done

    def draw_curve(
        self, cell: Cell, result: Evaluated, last_step: int, seconds: float, *, losses: bool = False
    ) -> Curve | None:
        """Judge every snapshot as the result was judged; None where the result could not be.

        With `losses`, snapshots that an earlier version has judged without their test loss are judged again.
        """
        if result.part.failed:
            return None
        path = self.folder.curve(cell.protocol, cell.backbone)
        students = range(len(result.part.accuracy))
        curve = self._read_curve(path, cell)
        known = {
            p.step: p
            for p in curve.points
            if p.failed or (len(p.accuracy) == len(students) and (len(p.loss) == len(students) or not losses))
        }
        clock = {entry["step"]: entry["seconds"] for entry in read_log(self.folder.log)} | {0: 0.0}
        known[last_step] = CurvePoint(
            step=last_step, seconds=seconds, accuracy=result.part.accuracy, loss=result.losses
        )
        problem = self.problem_of(self.synthetic.pixels, cell.backbone)
        for step, snapshot in snapshots(self.folder):
            if step not in known:
                known[step] = self._point(step, snapshot, cell, problem, students, clock.get(step))
            curve = curve.model_copy(update={"points": tuple(known[s] for s in sorted(known))})
            write_json(path, curve.model_dump(mode="json"), sealed=True)
        return curve

    def _point(
        self, step: int, snapshot: Path, cell: Cell, problem: Problem, students: Sequence[int], seconds: float | None
    ) -> CurvePoint:
        known = self.folder.snapshot_sums().get(snapshot.name)
        if known is not None and sha256_of(snapshot) != known:
            return CurvePoint(
                step=step, seconds=seconds, failed=f"{snapshot.name} is damaged: it is not what was saved"
            )
        try:
            trainer = trainer_of(load(snapshot), cell.protocol, problem, students=len(students))
            found = list(self._scores(trainer, cell, students, f"step {step} "))
        except (DivergedError, ConfigError, DataError) as error:
            return CurvePoint(step=step, seconds=seconds, failed=printable(str(error), lines=True))
        return CurvePoint(
            step=step,
            seconds=seconds,
            accuracy=tuple(score.accuracy for score in found),
            loss=tuple(score.loss for score in found if score.loss is not None),
        )

    def _scores(
        self,
        trainer: Trainer,
        cell: Cell,
        students: Sequence[int],
        label: str,
        keep: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> Iterable[Score]:
        networks = (1 if trainer.deterministic else len(students)) + trainer.trials
        heard = _Progress(self.tell, cell, label, max(1, trainer.steps), networks, self.stop)
        return scores(trainer, self._test, students, label=label, progress=heard.add, keep=keep)

    def _read(self, path: Path, cell: Cell) -> Evaluated:
        fresh = Evaluated.of(cell, self.sha256)
        if not path.is_file():
            return fresh
        found = read_evaluation(path)
        # Without a score nothing was judged, and a mistake in a protocol's file can be mended.
        changed = found.part.digest != cell.protocol.digest
        if found.synthetic != self.sha256 or (changed and not found.scores):
            return fresh
        if changed:
            raise RunError(
                f"protocol {cell.protocol.id} has changed since this run was judged by it, and a column is one recipe. "
                "Raise its version, or give it another name."
            )
        return found

    def _read_curve(self, path: Path, cell: Cell) -> Curve:
        fresh = Curve(
            protocol=cell.protocol.id, digest=cell.protocol.digest, backbone=cell.backbone, synthetic=self.sha256
        )
        if not path.is_file():
            return fresh
        found = read_curve(path)
        return found if (found.synthetic, found.digest) == (fresh.synthetic, fresh.digest) else fresh


@dataclass
class _Progress:
    """Counts student-steps, says how long the rest will take, and lets a signal in."""

    tell: Observer
    cell: Cell
    label: str
    steps: int
    networks: int
    stop: Stop

    def __post_init__(self) -> None:
        self._done = 0
        self._pace = Pace()
        self._shown = -float("inf")

    def add(self, count: int) -> None:
        self.stop.check("while students were trained; those that were done are kept")
        if not count:
            return
        self._done += count
        now = time.monotonic()
        total = self.steps * self.networks
        if now - self._shown >= SHOW_SECONDS or self._done >= total:
            self._shown = now
            self._pace.add(self._done, now)
            # Unknown once all are trained, because how long their tests take is.
            left = self._pace.left(total) if self._done < total else None
            name = f"{self.label}{self.cell.protocol.id}"
            self.tell.on_student(name, self.cell.backbone, self._done / self.steps, self.networks, left)


def snapshots(folder: RunDir) -> list[tuple[int, Path]]:
    """Steps and files of the snapshots, in their order; files that are called otherwise are nobody's."""
    matches = [(re.fullmatch(r"step_([0-9]{1,15})\.safetensors", p.name), p) for p in folder.snapshots.glob("step_*")]
    return sorted((int(match[1]), path) for match, path in matches if match is not None)


def curve_is_drawn(folder: RunDir, cell: Cell, record: RunRecord) -> bool:
    """Whether every snapshot of a recorded evaluation has been judged; of a failed one there is nothing to draw."""
    path = folder.curve(cell.protocol, cell.backbone)
    recorded = [e for e in record.evaluations if (e.protocol, e.backbone) == (cell.protocol.id, cell.backbone)]
    if any(e.failed for e in recorded):
        return True
    if not path.is_file():
        return False
    students = 1 if any(e.alike for e in recorded) else cell.students
    drawn = {p.step for p in read_curve(path).points if p.failed or len(p.accuracy) >= students}
    return drawn.issuperset(step for step, _ in snapshots(folder))


def read_evaluation(path: Path) -> Evaluated:
    """Raises: RunError if the file is damaged."""
    return _read(path, Evaluated.from_json)


def read_curve(path: Path) -> Curve:
    """Raises: RunError if the file is damaged."""
    return _read(path, Curve.model_validate)


T = TypeVar("T")


def _read(path: Path, model: Callable[[Any], T]) -> T:
    try:
        return model(read_json(path))
    except RunError as error:
        raise RunError(f"{error} Remove that file and run again.") from None
    except ValidationError as error:
        raise RunError(f"{explain(str(path), error)}. Remove that file and run again.") from None


def curves(folder: RunDir, sha256: str) -> list[Curve]:
    """The learning curves that were drawn of the set of this content, by protocol and backbone."""
    found = [read_curve(path) for path in sorted(folder.evaluations.glob("*/*.curve.json"))]
    return [curve for curve in found if curve.synthetic == sha256]


def recorded_curves(folder: RunDir, sha256: str) -> tuple[CurvePart, ...]:
    """The same as a record has them."""
    beside = set(Curve.model_fields) - set(CurvePart.model_fields)
    return tuple(CurvePart(**curve.model_dump(exclude=beside)) for curve in curves(folder, sha256))


def evaluations(folder: RunDir, sha256: str) -> list[EvaluationPart]:
    """Everything that is known about the set of this content, by protocol and backbone."""
    paths = (p for p in sorted(folder.evaluations.glob("*/*.json")) if not p.name.endswith(".curve.json"))
    found = [read_evaluation(path) for path in paths]
    return [e.part for e in found if e.synthetic == sha256 and (e.scores or e.part.failed)]
