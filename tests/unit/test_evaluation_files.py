"""Files of evaluations: what they hold, and that those of every version are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddbench.errors import RunError
from ddbench.evaluation.protocol import protocol
from ddbench.files import write_json
from ddbench.runs.evaluating import Cell, Evaluated, StudentScore, evaluations, read_evaluation
from ddbench.runs.record import EvaluationPart
from ddbench.runs.rundir import RunDir

# As ddbench 0.1 wrote it, after two students of a protocol whose step size trials have chosen.
WRITTEN = {
    "protocol": "native-kip@1",
    "digest": protocol("native-kip").digest,
    "backbone": "mlp",
    "synthetic": "ab" * 32,
    "file_schema": "ddbench.evaluation/1",
    "scores": [
        {
            "student": k,
            "accuracy": accuracy,
            "seconds": 1.5,
            "device": device,
            "precision": "fp32",
            "chose": {"lr_factor": 0.25, "lr": 2.0},
            "loss": 1.25,
        }
        for k, accuracy, device in ((1, 0.25, "cpu"), (0, 0.5, "NVIDIA H100"))
    ],
    "alike": False,
    "failed": "",
    "beside_bytes": 12,
    "student_forwards": 640,
    "track": "soft",
    "chose": {"lr_factor": 0.25, "lr": 2.0},
}


# What files of earlier versions do not have.
LATER = ("chose", "beside_bytes", "alike", "student_forwards", "track")


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mlp.json"
    write_json(path, WRITTEN | changes, sealed=True)
    return path


def test_a_file_is_written_as_it_was_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_text()
    write_json(path, read_evaluation(path).to_json(), sealed=True)
    assert path.read_text() == before


def test_its_part_is_what_a_record_has(tmp_path: Path) -> None:
    found = read_evaluation(written(tmp_path))
    assert found.synthetic == "ab" * 32
    assert found.part == EvaluationPart(
        protocol="native-kip@1",
        digest=WRITTEN["digest"],
        backbone="mlp",
        accuracy=(0.5, 0.25),
        seconds=3.0,
        device="cpu, NVIDIA H100",
        beside_bytes=12,
        student_forwards=640,
        track="soft",
        chose={"lr_factor": 0.25, "lr": 2.0},
    )


def test_a_failure_has_no_accuracies_though_its_students_are_kept(tmp_path: Path) -> None:
    found = read_evaluation(written(tmp_path, failed="it diverged"))
    assert (found.part.failed, found.part.accuracy, found.part.seconds) == ("it diverged", (), 3.0)
    again = found.having(failed="")
    assert (again.part.accuracy, len(again.scores)) == ((0.5, 0.25), 2)


def test_students_are_added_one_by_one() -> None:
    fresh = Evaluated.of(Cell(protocol("dsa"), "mlp", 2), "cd" * 32)
    assert (fresh.part.accuracy, fresh.part.seconds, fresh.part.device, fresh.part.precision) == ((), 0, "", "fp32")
    one = fresh.having(StudentScore(student=0, accuracy=0.5, seconds=2.0, device="cpu", precision="bf16"), alike=True)
    assert (one.part.accuracy, one.part.precision, one.part.alike) == ((0.5,), "bf16", True)
    assert not fresh.scores


def test_files_from_before_a_choice_was_theirs_have_that_of_the_last_student(tmp_path: Path) -> None:
    assert read_evaluation(written(tmp_path, chose={})).part.chose == {"lr_factor": 0.25, "lr": 2.0}
    earlier = {name: value for name, value in WRITTEN.items() if name not in LATER}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    assert read_evaluation(tmp_path / "earlier.json").part.chose == {"lr_factor": 0.25, "lr": 2.0}


@pytest.mark.parametrize("changes", [{"unknown": 1}, {"backbone": ""}, {"scores": [{"student": 0}]}, {"synthetic": 3}])
def test_a_file_that_says_something_else_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"mlp\.json.*Remove that file and run again"):
        read_evaluation(written(tmp_path, **changes))


def test_evaluations_of_another_set_are_nobodys(root: Path) -> None:
    (path,) = root.glob("digits/**/evaluations/tiny@1")
    folder = RunDir.at(path.parent.parent)
    write_json(path / "lenet.json", WRITTEN | {"backbone": "lenet"}, sealed=True)
    assert [part.backbone for part in evaluations(folder, folder.set_sha256())] == ["mlp"]
    assert [part.backbone for part in evaluations(folder, "ab" * 32)] == ["lenet"]
