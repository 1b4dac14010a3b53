"""The record of a run: what a leaderboard reads. Numbers are records first, tables second.

Accuracies are fractions, one per student. Times are seconds, sizes bytes, instants UTC: the key says the unit. No host
names, no user names, no paths.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ddbench.config import explain
from ddbench.errors import RunError
from ddbench.fields import (
    Architecture,
    Count,
    Flag,
    Hex,
    Line,
    Name,
    Number,
    PlainDict,
    ProtocolId,
    RunId,
    Seconds,
    Sha256,
    Share,
    Text,
    plain,
)
from ddbench.files import read_json, write_json

if TYPE_CHECKING:
    from ddbench.synthetic import SyntheticSet

SCHEMA: Literal["ddbench.record/1"] = "ddbench.record/1"


class Part(BaseModel):
    """A part of a record. Frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunPart(Part):
    """Which run this is."""

    id: RunId = Field(description="Eight hex digits over the resolved spec.")
    method: Name
    title: Line = Field(description="The method's name as papers print it.")
    kind: Literal["condensation", "coreset", "ceiling", "imported"]
    provided_by: Line = Field(description="Package and version, or the file name of a method given by path.")
    method_sha256: Sha256 | None = Field(default=None, description="Of the method's file when it was given by path.")
    dataset: Name
    ipc: Count = Field(description="Images per class; 0 for the whole dataset.")
    backbone: Architecture
    seed: Count
    preset: Name
    precision: Name
    native: Line = Field(description="The protocol of the method's own paper.")


class ConfigPart(Part):
    """The method's options and the layer that each came from."""

    values: PlainDict
    sources: dict[Line, Text]
    published: Flag | None = Field(
        default=None,
        description="Whether a paper has settings for the dataset and ipc, where its preset was asked for and could "
        "have; not in earlier records.",
    )


class DataPart(Part):
    """Which data, in which pixel space."""

    title: Line = Field(description='As boards print it: "CIFAR-10, JPEG copy".')
    fingerprint: Line = Field(description="Over all uint8 images and labels, train and test.")
    contents: Line = Field(default="", description="The same whatever the order of the images; old records lack it.")
    original: Flag
    train: Count
    test: Count
    classes: Count
    shape: tuple[Count, Count, Count]
    pixels: Line
    pixels_fingerprint: Line


class ChoicePart(Part):
    """How a method has chosen the step after which its set was taken. No test image took part."""

    step: Count
    accuracy: Share = Field(description="Fraction of the held-out images, the mean of the students.")
    images: Count = Field(description="Training images that were held out to choose.")
    students: Count
    protocol: Line = Field(description="Under which the students were trained: mtt@1.")


class SyntheticPart(Part):
    """The set itself, by content."""

    sha256: Sha256
    images: Count
    labels: Literal["class", "probability", "logit", "regression"]
    stored: Literal["float32", "uint8"]
    decode: Line
    learned: tuple[Line, ...]
    bytes: Count = Field(description="What a receiver must store: images, labels, step sizes, a stored start.")
    choice: ChoicePart | None = Field(default=None, description="None where the run chose no step: the last.")
    scale: Number | None = Field(
        default=None,
        description="Root mean square of learned pixels, beside that of real ones in the pixel space (at least 1). Far "
        "above 1, the set has diverged. None of real images, and in earlier records.",
    )

    @classmethod
    def of(cls, synthetic: SyntheticSet, sha256: str, learned: tuple[str, ...], scale: float | None = None) -> Self:
        """What a record says of a set whose file has that hash."""
        choice = synthetic.choice
        return cls(
            sha256=sha256,
            images=len(synthetic),
            labels=synthetic.label_kind,
            stored=synthetic.stored,
            decode=synthetic.decode,
            learned=learned,
            bytes=synthetic.nbytes,
            choice=None if choice is None else ChoicePart(**asdict(choice)),
            scale=scale,
        )


def _used(entry: dict[str, Any]) -> dict[str, Any]:
    """An artefact as a record has it: what it is, and what it cost whoever made it."""
    plain(entry)
    seconds = entry.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
        raise ValueError("the seconds of an artefact should be a number that is not below 0")
    if not isinstance(entry.get("kind", ""), str) or not isinstance(entry.get("key", ""), str):
        raise ValueError("the kind and the key of an artefact should be texts")
    return entry


UsedArtifact = Annotated[dict[str, Any], AfterValidator(_used)]


class EvaluationPart(Part):
    """Fresh students on the set, under one protocol, with one backbone."""

    protocol: ProtocolId = Field(description="As printed: dsa@1.")
    digest: Hex = Field(description="Of the protocol's fields; two recipes never share it.")
    backbone: Architecture
    accuracy: tuple[Share, ...] = Field(description="Student 0, 1, …; fractions of the test set.")
    seconds: Seconds = Field(description="All students together, testing included.")
    device: Line
    precision: Line = Field("fp32", description="In which the students were trained; they answer in fp32.")
    alike: Flag = Field(False, description="There is one student: the set leaves nothing to chance.")
    failed: Text = Field(default="", description="Why there is no accuracy, if there is none.")
    beside_bytes: Count = Field(
        default=0, description="What the protocol needs stored beside the set, such as a teacher."
    )
    student_forwards: Count | None = Field(
        default=None,
        description="Images that one student trained on, repeats counted, trials and teachers not; 0 where no network "
        "is trained. Not in earlier records.",
    )
    track: Literal["hard", "soft", "teacher"] | None = Field(
        default=None,
        description="Which labels students saw: classes; soft ones that are stored, one for each image; those of a "
        "teacher on line. Not in earlier records.",
    )
    chose: dict[Line, Number] = Field(
        default={}, description="Options that trials before the students chose by training images, such as a step size."
    )


class CurvePoint(Part):
    """A snapshot of the set and its students."""

    step: Count
    seconds: Seconds | None = Field(description="Of condensation, up to the step; none where nobody kept it.")
    accuracy: tuple[Share, ...] = Field(default=(), description="As in an evaluation.")
    loss: tuple[Number, ...] = Field(
        default=(), description="Mean cross-entropy over the test images, of each student. Not in earlier records."
    )
    failed: Text = Field(default="", description="Why there is no accuracy, if there is none.")


class CurvePart(Part):
    """A learning curve: all snapshots of a run, none chosen, under one protocol with one backbone.

    Its last point is the result.
    """

    protocol: ProtocolId
    digest: Hex
    backbone: Architecture
    points: tuple[CurvePoint, ...] = ()


class RecognisedPart(Part):
    """The set as a test set of a network that was trained on the real images. No test image was read."""

    backbone: Architecture
    network: Hex = Field(description="Key of the artefact that the network is.")
    epochs: Count
    lr: Number
    images: Count = Field(description="As students see them, decoded.")
    accuracy: Share = Field(description="Fraction of the images whose class the network said.")
    device: Line
    file: Sha256 | None = Field(
        default=None,
        description="Of the published file that was measured, whose images may have less precision; none where it was "
        "the run's own set. Not in earlier records.",
    )


class CorrelationPart(Part):
    """Whether what a method lowered went down together with the test loss of students, over the snapshots of a run.

    Measured when the run was over; nothing was chosen by it.
    """

    protocol: ProtocolId
    digest: Hex
    backbone: Architecture
    metric: Line = Field(description="What the method logged: its loss.")
    points: Count = Field(description="Snapshots with both numbers, the result among them.")
    rho: Annotated[Number, Field(ge=-1, le=1)] = Field(description="Spearman's rank correlation.")
    low: Annotated[Number, Field(ge=-1, le=1)] | None = Field(description="Ends of its 95 % interval; none below 4.")
    high: Annotated[Number, Field(ge=-1, le=1)] | None


class SheetPart(Part):
    """A small picture of the set in WebP, beside the record under the same name; in a run's folder sheet.webp.

    A column for each of the first classes, with the first images of each from the top.
    """

    sha256: Sha256 = Field(description="Of the picture's file.")
    bytes: Count
    classes: Count = Field(description="Columns.")
    rows: Count = Field(description="Images of a class.")
    stretched: Flag = Field(description="Each image is shown from its darkest to its brightest value.")


class CostPart(Part):
    """What one phase cost, over all attempts; evaluation, checkpoints and logs are not part of condensation."""

    seconds: Seconds
    peak_device_bytes: Count | None = Field(
        default=None, description="Most memory allocated on the device; none on a CPU."
    )
    peak_host_bytes: Count | None = Field(
        default=None,
        description="Most resident memory of the process so far, earlier phases included.",
    )


class Attempt(Part):
    """One process that worked on the run."""

    started: Line
    steps: tuple[Count, Count] = Field(description="First and last step that it reached.")
    device: Line
    cpu: Line
    git: PlainDict | None = Field(description="Commit and whether the checkout was clean; none for a release.")
    python: Line
    packages: dict[Line, Line]
    threads: Count | None = Field(
        default=None, description="Of torch on the host, by which sums on a CPU are rounded. Not in earlier records."
    )


class ImportedPart(Part):
    """Where a set came from that somebody else made. Nothing here was measured by ddbench."""

    file: Line = Field(description="Name of the file or folder, without its path.")
    sha256: Sha256 = Field(description="Of the file; of names and contents where there are several.")
    bytes: Count = Field(description="Size of the file.")
    layout: Line = Field(description="In which form it was published.")
    entry: Line = Field(description="Which set in the file.")
    terms: PlainDict = Field(description="Pixel space, kind of labels, step size, augmentation.")
    sources: dict[Line, Line] = Field(description="Whether each term came from a flag, the file, or was guessed.")
    claims: PlainDict = Field(description="What its maker says, in the file or through whoever imported it.")


class RunRecord(Part):
    """Everything that a table or a reader may ask of a run."""

    record_schema: Literal["ddbench.record/1"] = Field(SCHEMA, alias="schema")
    status: Literal["complete", "partial"]
    run: RunPart
    config: ConfigPart
    data: DataPart
    synthetic: SyntheticPart
    imported: ImportedPart | None = Field(default=None, description="None for a set that this run has condensed.")
    artifacts: tuple[UsedArtifact, ...] = ()
    evaluations: tuple[EvaluationPart, ...] = ()
    curves: tuple[CurvePart, ...] = Field(default=(), description="Drawn with --curve. Earlier records have none.")
    recognised: tuple[RecognisedPart, ...] = Field(
        default=(), description="By `ddbench measure recognised`. Earlier records have none."
    )
    correlations: tuple[CorrelationPart, ...] = Field(
        default=(), description="By `ddbench measure correlation`. Earlier records have none."
    )
    sheet: SheetPart | None = Field(default=None, description="A picture of the set. Earlier records have none.")
    cost: dict[Line, CostPart]
    counts: dict[Line, Number] = Field(
        default={}, description="What the method counted in all its steps, such as loops that a cap has ended."
    )
    attempts: tuple[Attempt, ...]
    checksum: Line = Field(
        default="", description="Over all else in the file, which is compared when it is read. Not in earlier records."
    )

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def devices(self) -> list[str]:
        """What took the run's steps; where there are none, what worked on it. An evaluation names its own."""
        working = [a for a in self.attempts if a.steps[1] > a.steps[0]] or list(self.attempts)
        return list(dict.fromkeys(attempt.device for attempt in working))

    def to_json(self) -> dict[str, Any]:
        """The document of record.json, less the checksum that `write_record` adds."""
        return self.model_dump(mode="json", by_alias=True, exclude={"checksum"})


@contextlib.contextmanager
def as_a_record() -> Iterator[None]:
    """What a record cannot hold becomes a sentence. Raises: RunError in place of pydantic's error."""
    try:
        yield
    except ValidationError as error:
        raise RunError(
            f"{explain('no record can be written of this run', error)}. Method, dataset or set say something of "
            "themselves that a record does not hold; once that is mended, the same command goes on from here."
        ) from None


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record with its checksum, whole or not at all."""
    write_json(path, record.to_json(), sealed=True)


def read_record(path: Path) -> RunRecord:
    """Read a record of any released schema. Raises: RunError for a damaged or foreign file, naming it."""
    return read_document(path, RunRecord, SCHEMA, "is not a ddbench record")


def readable(paths: Iterable[Path]) -> Iterator[tuple[Path, RunRecord]]:
    """The records of these files that are there and undamaged, in their order; the board names the others."""
    for path in paths:
        with contextlib.suppress(RunError):
            yield path, read_record(path)


D = TypeVar("D", bound=BaseModel)


def read_document(path: Path, model: type[D], schema: str, foreign: str, *, sealed: bool = False) -> D:
    """Read a JSON document that names its schema; `foreign` is what to say of a file of another one, and `sealed` is
    for documents that have had a checksum from their first version on.

    Raises: RunError for a missing, damaged or foreign file, naming it.
    """
    value = read_json(path, sealed=sealed)
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise RunError(f"{path} {foreign} (schema {found!r}; this version reads {schema!r}).")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RunError(f"{explain(str(path), error)}.") from None


def json_schema() -> str:
    """The JSON schema of a record, as committed under leaderboards/schema."""
    return json.dumps(RunRecord.model_json_schema(by_alias=True), indent=2, sort_keys=True) + "\n"
