"""What CI refuses: a committed record that says something else of the same run."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "golden" / "records" / "dm-s0.json"
PLACE = Path("leaderboards/records/cifar10/ipc10/dm-convnet-d3-s0-00000d00.json")
Change = Callable[[dict[str, Any]], Any]
LATER = "2099-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_scores", ROOT / ".ci" / "check_scores.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(*arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on a branch of its own, with one committed record."""
    monkeypatch.chdir(tmp_path)
    git("init", "-b", "main")
    PLACE.parent.mkdir(parents=True)
    PLACE.write_text(RECORD.read_text())
    git("add", ".")
    git("commit", "-m", "a record")
    git("checkout", "-b", "mine")
    return PLACE


def commit(place: Path, change: Change) -> None:
    record = json.loads(RECORD.read_text())
    change(record)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record))
    git("add", "-A")
    git("commit", "-m", "changed")


def better(record: dict[str, Any]) -> None:
    record["evaluations"][0]["accuracy"][1] = 0.999


def one_more(record: dict[str, Any]) -> None:
    record["evaluations"][0]["accuracy"].append(0.5)


def evaluated(record: dict[str, Any]) -> None:
    record["attempts"].append(record["attempts"][0] | {"started": LATER})


def test_nothing_has_changed(check: ModuleType, branch: Path) -> None:
    assert check.main([]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (better, "scores of dsa@1 with convnet-d3 have changed, and its run has not"),
        (lambda r: r["evaluations"].pop(0), "scores of dsa@1 with convnet-d3 have changed"),
        (lambda r: r["evaluations"][0]["accuracy"].pop(), "scores of dsa@1 with convnet-d3 have changed"),
        (one_more, "students of dsa@1 with convnet-d3 were added, and no attempt that trained them"),
        (lambda r: r["synthetic"].update(sha256="ab" * 32), "another set, and not another run"),
        (lambda r: r["run"].update(method="mine"), "another method, and"),
        (lambda r: r["config"]["values"].update(iterations=7), "another setting of its options, and"),
    ],
)
def test_what_no_run_has_changed_is_refused(
    check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str
) -> None:
    commit(branch, change)
    assert check.main(["main"]) == 1
    assert said in capsys.readouterr().err


def test_a_file_under_another_name_is_the_same_run(check: ModuleType, branch: Path) -> None:
    branch.unlink()
    commit(branch.with_name("other.json"), better)
    assert check.main(["main"]) == 1


def test_an_evaluation_that_was_scored_after_a_change_is_no_excuse_for_it(check: ModuleType, branch: Path) -> None:
    commit(branch, lambda r: (better(r), evaluated(r)))
    assert check.main(["main"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda r: (one_more(r), evaluated(r)),
        lambda r: (better(r), r["attempts"][0].update(started=LATER)),
        lambda r: r.update(counts={"updates": 3.0}),
        lambda r: r["run"].update(title="Another title"),
    ],
)
def test_more_students_a_new_run_and_other_texts_are_fine(check: ModuleType, branch: Path, change: Change) -> None:
    commit(branch, change)
    assert check.main(["main"]) == 0


def test_a_removed_record_is_told(check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    branch.unlink()
    git("commit", "-am", "removed")
    assert check.main(["main"]) == 0
    assert "is removed: its commit should say why" in capsys.readouterr().out


def test_nobody_verifies_what_they_send(check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = branch.with_name("dm-convnet-d3-s7-00000d07.json")
    place = Path(str(new).replace("records", "verified"))
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    git("add", "-A")
    git("commit", "-m", "a check of what is there")
    assert check.main(["main"]) == 0
    commit(new, lambda r: r["run"].update(id="00000d07", seed=7))
    assert check.main(["main"]) == 1
    assert "comes with a check of itself" in capsys.readouterr().err


def test_a_check_may_come_with_what_was_measured_beside_students(
    check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(str(branch).replace("records", "verified"))
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    git("add", "-A")
    commit(branch, lambda r: r.update(counts={"updates": 3.0}))
    assert check.main(["main"]) == 0
    commit(branch, lambda r: (one_more(r), evaluated(r)))
    assert check.main(["main"]) == 1
    assert "comes with a check of itself" in capsys.readouterr().err


@pytest.mark.parametrize("left", [None, "{", {"again": [0.5]}, {"again": [0.31]}])
def test_a_check_that_differs_does_not_go_unnoticed(
    check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str], left: Any
) -> None:
    one = {"protocol": "dsa@1", "backbone": "convnet-d3", "recorded": [0.5], "again": [0.3], "within": 0.03}
    place = Path(str(branch).replace("records", "verified"))
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"checks": [one]}))
    git("add", "-A")
    git("commit", "-m", "a check that differs")
    assert check.findings("main") == ([], [])
    git("checkout", "-b", "theirs")
    if left is None:
        place.unlink()
    else:
        place.write_text(left if isinstance(left, str) else json.dumps({"checks": [one | left]}))
    git("add", "-A")
    git("commit", "-m", "something else")
    assert check.main(["mine"]) == 0
    stays = left == {"again": [0.31]}
    assert ("has no check of dsa@1 with convnet-d3 any more that differs" in capsys.readouterr().out) != stays


def test_what_is_no_record_or_has_no_base_is_said(
    check: ModuleType, branch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch.write_text("{")
    assert check.main(["main"]) == 1
    assert "is not a record that can be read" in capsys.readouterr().err
    assert check.main(["nowhere"]) == 2
    assert "There is no common commit with nowhere" in capsys.readouterr().err


def test_the_picture_beside_a_record_is_no_record(check: ModuleType, branch: Path) -> None:
    branch.with_suffix(".webp").write_bytes(b"RIFF\x9a\xff")
    commit(branch, lambda record: None)
    assert check.findings("main") == ([], [])
