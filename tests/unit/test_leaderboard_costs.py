"""What a record says of bytes, of the training of a student, and of the making of its set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddbench.evaluation.forwards import expected_forwards
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard.costs import costs
from ddbench.runs.record import RunRecord, read_record

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "leaderboards" / "records").rglob("*.json"))
Write = Callable[..., Path]


def judged_by(protocol: str, **values: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    about = {"protocol": protocol, "digest": PROTOCOLS[protocol].digest, **values}
    return lambda evaluations: [evaluations[0] | about]


def test_bytes_of_committed_records_add_up() -> None:
    for path in COMMITTED:
        record = read_record(path)
        beyond = {"step size", "step sizes"} & set(record.synthetic.learned)
        for evaluation in record.evaluations:
            found = costs(record, evaluation)
            # Labels that the protocol stores for the set lie beside it.
            given = evaluation.beside_bytes - found.beside_bytes
            assert found.images_bytes + found.labels_bytes + found.other_bytes == record.synthetic.bytes + given
            # Label Distillation asks for a number of steps, and for a batch, which take none of these bytes.
            assert found.other_bytes > 0 if beyond else found.other_bytes in (0, 4), path.name


@pytest.mark.parametrize(
    ("part", "images", "labels"),
    [
        ({"stored": "float32", "labels": "class"}, 100 * 3072 * 4, 100 * 8),
        ({"stored": "uint8", "labels": "class"}, 100 * 3072, 100 * 8),
        ({"stored": "uint8", "labels": "regression"}, 100 * 3072, 100 * 10 * 4),
    ],
)
def test_images_and_labels_are_counted_apart(write: Write, part: dict[str, Any], images: int, labels: int) -> None:
    path = write("record.json", synthetic=lambda old: old | part | {"bytes": images + labels + 4})
    record = read_record(path)
    found = costs(record, record.evaluations[0])
    assert (found.images_bytes, found.labels_bytes, found.other_bytes) == (images, labels, 4)


@pytest.mark.parametrize(
    ("protocol", "backbone", "dataset", "images", "count"),
    [
        ("dsa@1", "convnet-d3", "cifar10", 500, 1001 * 500),
        ("dc@2", "convnet-d3", "cifar10", 10, 301 * 10),
        ("dc@2", "convnet-d3-bn", "cifar10", 10, 1001 * 10),
        ("dc@2", "convnet-d3", "mnist", 10, 1001 * 10),
        ("quick@1", "mlp", "digits", 100, 3 * 50 * 100),  # 300 steps, two of which go over the set once
        ("native-kip@1", "convnet-w1024-nn-kip", "cifar10", 10, 5000 * 10),
        ("krr@1", "convnet-d3", "cifar10", 10, 0),
        ("ld@1", "alexcifarnet", "cifar10", 100, None),
        ("dd@1", "alexcifarnet", "cifar10", 100, None),
    ],
)
def test_what_one_student_trains_on(protocol: str, backbone: str, dataset: str, images: int, count: int | None) -> None:
    assert expected_forwards(PROTOCOLS[protocol], backbone, dataset, images) == count


def test_an_earlier_record_is_counted_by_its_protocol_and_a_later_one_as_it_says(write: Write) -> None:
    earlier = read_record(write("earlier.json", evaluations=judged_by("dsa@1")))
    later = read_record(write("later.json", evaluations=judged_by("ld@1", student_forwards=12345)))
    unknown = read_record(write("unknown.json", evaluations=lambda old: [old[0] | {"digest": "0" * 16}]))
    decoded = read_record(
        write("decoded.json", evaluations=judged_by("dsa@1"), synthetic=lambda old: old | {"decode": "tiles(factor=2)"})
    )
    counts = [costs(record, record.evaluations[0]).student_forwards for record in (earlier, later, unknown, decoded)]
    assert counts == [1001 * 100, 12345, None, None]


def test_seconds_are_those_of_the_condensation_and_of_what_was_made_for_it() -> None:
    record = read_record(ROOT / "tests" / "golden" / "records" / "mtt-zca-s0.json")
    assert costs(record, record.evaluations[0]).device_seconds == pytest.approx(11821.0 + 9130.2 + 12.5)


def test_the_seconds_of_a_set_that_others_made_are_unknown(write: Write) -> None:
    imported = {
        "file": "set.pt", "sha256": "0" * 64, "bytes": 1, "layout": "pt", "entry": "", "terms": {}, "sources": {},
        "claims": {},
    }  # fmt: skip
    record = read_record(ROOT / "tests" / "golden" / "records" / "dm-s0.json")
    record = RunRecord.model_validate(record.to_json() | {"imported": imported})
    assert costs(record, record.evaluations[0]).device_seconds is None


def test_a_run_records_what_its_students_trained_on(made: Path) -> None:
    record = read_record(next(made.rglob("record.json")))
    # Two steps over ten images, of which each has no more than there are.
    assert [costs(record, evaluation).student_forwards for evaluation in record.evaluations] == [20]
