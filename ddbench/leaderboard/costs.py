"""What a set costs whoever makes it, stores it and trains on it, told from its record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddbench.evaluation.forwards import expected_forwards
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard.tracks import track_of
from ddbench.runs.record import EvaluationPart, RunRecord

CLASS_BYTES, NUMBER_BYTES = 8, 4  # of a class label, int64, and of a number in a soft one, float32
_PIXEL_BYTES = {"float32": 4, "uint8": 1}


@dataclass(frozen=True)
class Costs:
    """Bytes of a set by what they are for, the training of one student on it, and the making of it.

    `images_bytes`, `labels_bytes` and `other_bytes` (learned step sizes, a schedule, a stored start) make up the bytes
    of the set, and labels that the protocol stores for it are counted as labels; `beside_bytes` is what else it needs
    beside the set, such as a teacher that makes soft labels.
    `student_forwards` counts the images that one student trains on, repeats included: equal counts are equal budgets,
    whatever epochs are called. None where the record does not say.
    `device_seconds` are those of the run's device, a GPU where `RunRecord.devices` names one, for the condensation and
    all that was made for it, from a cache or not. None for a set that others made.
    """

    images_bytes: int
    labels_bytes: int
    other_bytes: int
    beside_bytes: int
    student_forwards: int | None
    device_seconds: float | None


def costs(record: RunRecord, evaluation: EvaluationPart) -> Costs:
    """The costs of a record's set, judged as in one of its evaluations."""
    images, own = images_bytes(record), labels_bytes(record)
    # What lies beside a set in the track of stored soft labels are those: a teacher's, one for each image.
    given = evaluation.beside_bytes if track_of(record, evaluation) == "soft" else 0
    return Costs(
        images_bytes=images,
        labels_bytes=own + given,
        other_bytes=record.synthetic.bytes - images - own,
        beside_bytes=evaluation.beside_bytes - given,
        student_forwards=student_forwards(record, evaluation),
        device_seconds=None if record.imported else device_seconds(record),
    )


def images_bytes(record: RunRecord) -> int:
    """Bytes of the images as they are stored, before they are decoded."""
    return record.synthetic.images * math.prod(record.data.shape) * _PIXEL_BYTES[record.synthetic.stored]


def labels_bytes(record: RunRecord) -> int:
    """Bytes of the labels: one int64 for each image, or a float32 for each image and class."""
    each = CLASS_BYTES if record.synthetic.labels == "class" else NUMBER_BYTES * record.data.classes
    return record.synthetic.images * each


def student_forwards(record: RunRecord, evaluation: EvaluationPart) -> int | None:
    """Images that one student trains on: as recorded, or as the built-in protocol of the same digest has it.

    None for an earlier record of a set that is decoded, or under a protocol of one's own or one that leaves the number
    of steps to the set.
    """
    if evaluation.student_forwards is not None:
        return evaluation.student_forwards
    known = PROTOCOLS.get(evaluation.protocol)
    if known is None or known.digest != evaluation.digest or record.synthetic.decode != "none":
        return None
    return expected_forwards(known, evaluation.backbone, record.run.dataset, record.synthetic.images)


def device_seconds(record: RunRecord) -> float:
    """Seconds of the condensation and of everything made for it: what was shared is part of the price of everyone who
    needs it."""
    condense = record.cost.get("condense")
    made = sum(float(artifact.get("seconds", 0)) for artifact in record.artifacts)
    return (condense.seconds if condense else 0.0) + made
