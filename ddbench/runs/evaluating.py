"""The third stage of a run: fresh students on the finished set, student by student, each counted once."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError

from ddbench.backbones import names as backbones
from ddbench.config import explain
from ddbench.data.dataset import Dataset
from ddbench.errors import ConfigError, DataError, DivergedError, RunError
from ddbench.evaluation.evaluate import Score, SealedTest, evaluate, trainer_of
from ddbench.evaluation.protocol import KRROptions, Protocol
from ddbench.evaluation.trainer import Job
from ddbench.fields import Architecture, Count, Flag, Hex, Line, Number, ProtocolId, Seconds, Sha256, Share, Text
from ddbench.files import read_json, sha256_of, write_json
from ddbench.problem import Problem
from ddbench.runs import provenance
from ddbench.runs.observers import Observer, read_log
from ddbench.runs.pace import Pace
from ddbench.runs.record import EvaluationPart, Part, RunRecord
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import Stop
from ddbench.synthetic import SyntheticSet, load
from ddbench.text import printable

SHOW_SECONDS = 0.5
OWN = "own"


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

    A kernel judges once, whatever networks are named.
    """
    found = []
    for protocol in protocols:
        named = judges or protocol.backbones
        networks = list(dict.fromkeys(own if name == OWN else backbones.canonical(name, shape) for name in named))
        if isinstance(protocol.options, KRROptions):
            networks = networks[:1]
        found += [Cell(protocol, backbone, students or protocol.students) for backbone in networks]
    return found


class StudentScore(Part):
    """One student of an evaluation file."""

    student: Count
    accuracy: Share
    seconds: Seconds
    device: Line
    precision: Line = "fp32"
    chose: dict[Line, Number] = Field(default={})


class Judged(Part):
    """Whose students a file is about. `synthetic` is the sha256 of the set's file."""

    protocol: ProtocolId
    digest: Hex
    backbone: Architecture
    synthetic: Sha256

    @classmethod
    def of(cls, cell: Cell, sha256: str) -> Self:
        """The file before its first student."""
        return cls(protocol=cell.protocol.id, digest=cell.protocol.digest, backbone=cell.backbone, synthetic=sha256)


class Evaluated(Judged):
    """evaluations/<protocol>/<backbone>.json."""

    file_schema: Literal["ddbench.evaluation/1"] = "ddbench.evaluation/1"
    scores: tuple[StudentScore, ...] = ()
    alike: Flag = False
    failed: Text = ""
    beside_bytes: Count = 0
    chose: dict[Line, Number] = Field(default={})

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Of students 0, 1, …; none after a failure, so that nobody averages over the survivors."""
        by_number = {s.student: s.accuracy for s in self.scores}
        return () if self.failed else tuple(by_number[k] for k in range(len(by_number)) if k in by_number)

    def part(self) -> EvaluationPart:
        """As a record has it."""
        return EvaluationPart(
            protocol=self.protocol,
            digest=self.digest,
            backbone=self.backbone,
            accuracy=self.accuracy,
            seconds=sum(s.seconds for s in self.scores),
            device=", ".join(dict.fromkeys(s.device for s in self.scores)),
            precision=", ".join(dict.fromkeys(s.precision for s in self.scores)) or "fp32",
            alike=self.alike,
            failed=self.failed,
            beside_bytes=self.beside_bytes,
            chose=self.known_choice,
        )

    @property
    def known_choice(self) -> dict[str, float]:
        """What trials have chosen, be it that no student was trained since."""
        return self.chose or (self.scores[-1].chose if self.scores else {})


class CurvePoint(Part):
    """A snapshot and its students. `seconds` are those of condensation up to its step."""

    step: Count
    seconds: Seconds | None
    accuracy: tuple[Share, ...] = ()
    failed: Text = ""


class Curve(Judged):
    """evaluations/<protocol>/<backbone>.curve.json. All snapshots, none chosen; the last point is the result."""

    file_schema: Literal["ddbench.curve/1"] = "ddbench.curve/1"
    points: tuple[CurvePoint, ...] = ()


@dataclass
class Judging:
    """One attempt at evaluating a run's set. `problem_of` gives the problem for a pixel space and a backbone."""

    folder: RunDir
    dataset: Dataset
    sha256: str
    problem_of: Callable[[str, str], Problem]
    stop: Stop
    tell: Observer
    retry: bool = False

    def __post_init__(self) -> None:
        self._test = SealedTest(self.dataset.test)
        self._synthetic = load(self.folder.synthetic)

    def judge(self, cell: Cell) -> Evaluated:
        """Train the students that are missing; what is known is kept, student by student.

        A protocol that does not fit the set, or a student that diverges, makes the cell a failure; other cells go on.
        Raises: Interrupted after a signal.
        """
        path = self.folder.evaluation(cell.protocol, cell.backbone)
        done = self._read(path, cell)
        if self.retry and done.failed:
            done = done.model_copy(update={"failed": ""})
        missing = sorted(set(range(cell.students)) - {s.student for s in done.scores})
        if done.failed or done.alike or not missing:
            return done
        try:
            problem = self.problem_of(self._synthetic.pixels, cell.backbone)
            device = provenance.device_name(problem.device)
            trainer, job = trainer_of(cell.protocol), Job(self._synthetic, cell.protocol, problem)
            alike = trainer.alike(job)
            missing = missing[:1] if alike else missing
            beside = trainer.stored_bytes(job)
            done = done.model_copy(update={"beside_bytes": beside})

            def keep(choice: dict[str, float]) -> None:
                nonlocal done
                done = done.model_copy(update={"chose": choice})
                write_json(path, done.model_dump(mode="json"), sealed=True)

            for score in self._scores(self._synthetic, cell, problem, missing, "", done.known_choice, keep):
                line = StudentScore(device=device, precision=problem.precision.on(problem.device), **vars(score))
                done = done.model_copy(update={"scores": (*done.scores, line), "alike": alike})
                write_json(path, done.model_dump(mode="json"), sealed=True)
        except (DivergedError, ConfigError) as error:
            # Boards tell a cell that went wrong from one that has no meaning, such as MTT's protocol on random images.
            why = printable(f"not defined: {error}" if isinstance(error, ConfigError) else str(error), lines=True)
            done = done.model_copy(update={"failed": why})
            write_json(path, done.model_dump(mode="json"), sealed=True)
            self.tell.on_note(f"{cell.protocol.id} with {cell.backbone} failed: {error}")
        return done

    def draw_curve(self, cell: Cell, result: Evaluated, last_step: int, seconds: float) -> Curve | None:
        """Judge every snapshot as the result was judged; None where the result could not be."""
        if result.failed:
            return None
        path = self.folder.curve(cell.protocol, cell.backbone)
        students = range(len(result.accuracy))
        curve = self._read_curve(path, cell)
        known = {p.step: p for p in curve.points if p.failed or len(p.accuracy) == len(students)}
        clock = {entry["step"]: entry.get("seconds") for entry in read_log(self.folder.log)} | {0: 0.0}
        clock = {step: known if _is_time(known) else None for step, known in clock.items()}
        known[last_step] = CurvePoint(step=last_step, seconds=seconds, accuracy=result.accuracy)
        problem = self.problem_of(self._synthetic.pixels, cell.backbone)
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
            scores = list(self._scores(load(snapshot), cell, problem, students, f"step {step} ", {}))
        except (DivergedError, ConfigError, DataError) as error:
            return CurvePoint(step=step, seconds=seconds, failed=printable(str(error), lines=True))
        return CurvePoint(step=step, seconds=seconds, accuracy=tuple(score.accuracy for score in scores))

    def _scores(
        self,
        synthetic: SyntheticSet,
        cell: Cell,
        problem: Problem,
        students: Sequence[int],
        label: str,
        chose: Mapping[str, float],
        keep: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> Iterable[Score]:
        trainer, job = trainer_of(cell.protocol), Job(synthetic, cell.protocol, problem, chose=chose)
        networks = len(students) + trainer.trials(job)
        progress = _Progress(self.tell, cell, label, max(1, trainer.steps(job)), networks, self.stop)
        return evaluate(
            synthetic, cell.protocol, problem, self._test, students=students, label=label, tick=progress.tick,
            chose=chose, keep=keep,
        )  # fmt: skip

    def _read(self, path: Path, cell: Cell) -> Evaluated:
        fresh = Evaluated.of(cell, self.sha256)
        if not path.is_file():
            return fresh
        found = read_evaluation(path)
        # Without a score nothing was judged, and a mistake in a protocol's file can be mended.
        if found.synthetic != self.sha256 or (found.digest != cell.protocol.digest and not found.scores):
            return fresh
        if found.digest != cell.protocol.digest:
            raise ConfigError(
                f"protocol {cell.protocol.id} has changed since this run was judged by it, and a column is one recipe. "
                "Raise its version, or give it another name."
            )
        return found

    def _read_curve(self, path: Path, cell: Cell) -> Curve:
        fresh = Curve.of(cell, self.sha256)
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

    def tick(self, count: int) -> None:
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


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


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
    return _read_part(path, Evaluated)


def read_curve(path: Path) -> Curve:
    """Raises: RunError if the file is damaged."""
    return _read_part(path, Curve)


P = TypeVar("P", bound=Part)


def _read_part(path: Path, model: type[P]) -> P:
    try:
        return model.model_validate(read_json(path))
    except RunError as error:
        raise RunError(f"{error} Remove that file and run again.") from None
    except ValidationError as error:
        raise RunError(f"{explain(str(path), error)}. Remove that file and run again.") from None


def curves(folder: RunDir, sha256: str) -> list[Curve]:
    """The learning curves that were drawn of the set of this content, by protocol and backbone."""
    found = [read_curve(path) for path in sorted(folder.evaluations.glob("*/*.curve.json"))]
    return [curve for curve in found if curve.synthetic == sha256]


def evaluations(folder: RunDir, sha256: str) -> list[EvaluationPart]:
    """Everything that is known about the set of this content, by protocol and backbone."""
    paths = (p for p in sorted(folder.evaluations.glob("*/*.json")) if not p.name.endswith(".curve.json"))
    found = [read_evaluation(path) for path in paths]
    return [e.part() for e in found if e.synthetic == sha256 and (e.scores or e.failed)]
