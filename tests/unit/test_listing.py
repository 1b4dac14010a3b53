"""The runs under a runs folder: what a list says of each, whole or damaged, and how one is named."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ddbench.errors import DataError, RunError
from ddbench.files import read_json, write_json
from ddbench.runs.listing import (
    Listed,
    Wanted,
    artifacts_of,
    details,
    find_run,
    first_accuracy,
    folders,
    list_runs,
    listed,
    off_the_board,
    usage,
)
from ddbench.runs.record import EvaluationPart
from ddbench.runs.rundir import RunDir
from ddbench.runs.states import write_failure


def only(root: Path) -> Listed:
    (found,) = list_runs(root)
    return found


def test_a_finished_run_is_listed_with_what_it_is(root: Path) -> None:
    found = only(root)
    record = read_json(found.folder / "record.json")
    scores = record["evaluations"][0]["accuracy"]
    assert (found.method, found.dataset, found.ipc, found.seed, found.state) == ("dm", "digits", 1, 0, "done")
    assert found.id == record["run"]["id"] == found.folder.name[-8:]
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(sum(scores) / 2)
    assert (found.accuracy.protocol, found.accuracy.judge, found.accuracy.others) == ("tiny@1", "mlp", 0)
    files = [p for p in found.folder.rglob("*") if p.is_file() and p.name not in ("lock", ".lock")]
    assert found.bytes == sum(p.stat().st_size for p in files)
    assert found.changed == max(p.stat().st_mtime for p in files)
    assert json.loads(json.dumps(found.to_json()))["accuracy"]["mean"] == found.accuracy.mean


def test_of_several_judges_the_one_that_was_asked_for_first_is_shown(root: Path) -> None:
    found = only(root)
    assert found.record is not None
    (judge,) = found.record.evaluations

    def at(protocol: str, backbone: str, accuracy: tuple[float, ...]) -> EvaluationPart:
        return judge.model_copy(update={"protocol": protocol, "backbone": backbone, "accuracy": accuracy})

    parts = (at("aaa@1", "mlp", (0.1,)), at("tiny@1", "lenet", (0.2,)), at("tiny@1", "mlp", (0.3, 0.4)))
    record = found.record.model_copy(update={"evaluations": parts})
    assert found.spec is not None
    spec = replace(found.spec, protocols=("tiny@1",), judges=("mlp",))
    first = first_accuracy(record, spec)
    assert first is not None
    assert (first.mean, first.protocol, first.judge, first.others) == (pytest.approx(0.35), "tiny@1", "mlp", 2)
    # Nothing is known of a run whose spec is damaged but what its record says.
    assert first_accuracy(record, None) is not None
    failed = judge.model_copy(update={"accuracy": (), "failed": "not defined: no"})
    assert first_accuracy(found.record.model_copy(update={"evaluations": (failed,)}), spec) is None


def break_spec(path: Path) -> None:
    (path / "spec.json").write_text("{")


def lose_spec(path: Path) -> None:
    (path / "spec.json").unlink()


def other_id(path: Path) -> None:
    spec = read_json(path / "spec.json")
    write_json(path / "spec.json", spec | {"seed": 5}, sealed=True)


def break_record(path: Path) -> None:
    (path / "record.json").write_text("[]")


def binary_record(path: Path) -> None:
    (path / "record.json").write_bytes(b"\xff\xfe\x00")


def folder_for_a_record(path: Path) -> None:
    (path / "record.json").unlink()
    (path / "record.json").mkdir()


def lose_set(path: Path) -> None:
    (path / "synthetic.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (break_spec, "spec.json is damaged"),
        (lose_spec, "it has no spec.json"),
        (other_id, "says id"),
        (break_record, "is not a ddbench record"),
        (binary_record, "record.json is damaged"),
        (folder_for_a_record, "record.json cannot be read"),
        (lose_set, "synthetic.safetensors is missing"),
    ],
)
def test_a_damaged_run_is_listed_as_one_with_the_reason(root: Path, damage: Callable[[Path], None], why: str) -> None:
    before = only(root)
    damage(before.folder)
    found = only(root)
    assert found.state == "damaged"
    assert why in found.why
    assert (found.id, found.method, found.dataset, found.ipc, found.seed) == (before.id, "dm", "digits", 1, 0)
    json.dumps(details(found))


def test_a_record_that_can_be_made_again_is_damage_and_one_of_no_judge_is_not(root: Path) -> None:
    path = only(root).folder
    record = read_json(path / "record.json")
    write_json(path / "record.json", record | {"evaluations": []}, sealed=True)
    assert (only(root).state, only(root).condensed) == ("interrupted", True)
    assert "No judge" in only(root).why
    (path / "record.json").unlink()
    assert (only(root).state, only(root).condensed, only(root).why) == ("interrupted", False, "")


def test_a_run_that_failed_before_it_began_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "cifar10" / "whole" / "whole" / "convnet-d3-s2-0123abcd"
    write_failure(folder, DataError("the images are gone"))
    (found,) = list_runs(tmp_path / "runs")
    assert (found.state, found.why) == ("failed", "the images are gone")
    assert (found.id, found.dataset, found.ipc, found.seed) == ("0123abcd", "cifar10", 0, 2)


def test_what_is_no_run_is_left_out(root: Path) -> None:
    for name in ("artifacts/bench", "jobs", "a/b/c/d", "a/b/c/empty-s0-01234567"):
        (root / name).mkdir(parents=True)
    (root / "a" / "b" / "c" / "empty-s0-01234567" / ".lock").touch()
    (root / "a" / "file").write_text("")
    assert len(list_runs(root)) == 1
    assert list_runs(root / "none") == []


def test_only_runs_that_fit_are_listed(root: Path) -> None:
    assert len(list_runs(root, Wanted(("dm",), ("digits",), (1,), ("done",)))) == 1
    for wanted in (Wanted(methods=("dc",)), Wanted(datasets=("toy",)), Wanted(ipcs=(10,)), Wanted(states=("failed",))):
        assert list_runs(root, wanted) == []


def test_a_run_is_found_by_folder_record_name_or_the_beginning_of_its_id(root: Path) -> None:
    path = only(root).folder
    for ref in (str(path), str(path / "record.json"), path.name[-8:], path.name[-8:-6]):
        assert find_run(root, ref) == path


def test_a_name_that_fits_no_run_or_several_is_a_sentence(root: Path) -> None:
    path = only(root).folder
    first = path.name[-8:][0]
    other = path.with_name(path.name[:-8] + first + "0000000")
    shutil.copytree(path, other)
    with pytest.raises(RunError, match=f"2 runs have an id that begins with {first}: .*Give more digits"):
        find_run(root, first)
    with pytest.raises(RunError, match=r"no run under .* has an id that begins with"):
        find_run(root, "fedcba98")
    with pytest.raises(RunError, match="'nothing' is not the folder of a run: it does not exist"):
        find_run(root, "nothing")
    with pytest.raises(RunError, match=r"it has no spec\.json"):
        find_run(root, str(root))


def test_sizes_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(1000))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "big")
    (tmp_path / "run" / "folder").symlink_to(tmp_path)
    (tmp_path / "run" / "file").write_bytes(bytes(10))
    assert usage(tmp_path / "run")[0] < 10 + 1000
    assert usage(tmp_path / "gone") == (0, 0.0)


def test_details_tell_attempts_costs_and_files_also_without_a_record(root: Path) -> None:
    found = details(only(root))
    assert found["spec"]["config"]["iterations"] == 2
    assert found["spec"]["sources"]["config.iterations"] == "options"
    assert [a["steps"] for a in found["attempts"]] == [[0, 2]]
    assert {"prepare", "condense", "evaluate"} <= found["cost"].keys()
    assert found["files"]["checkpoints/"] > 0
    (only(root).folder / "record.json").unlink()
    without = details(only(root))
    assert (without["attempts"], without["cost"]) == (found["attempts"], found["cost"])
    for name in ("cost.json", "attempts.json"):
        (only(root).folder / name).write_text("[7]")
    assert details(only(root))["cost"] == {}


def test_a_run_says_which_artefacts_it_reads_once_it_has_prepared(root: Path) -> None:
    path = only(root).folder
    assert artifacts_of(only(root)) == []
    (path / "record.json").unlink()
    assert artifacts_of(only(root)) == []
    (path / "attempts.json").unlink()
    assert artifacts_of(only(root)) is None
    cost = read_json(path / "cost.json")
    write_json(path / "cost.json", cost | {"artifacts": {"k": {"key": "k", "kind": "expert"}}}, sealed=True)
    assert artifacts_of(only(root)) == [{"key": "k", "kind": "expert"}]


def test_runs_that_no_board_can_show_are_counted_by_state(root: Path) -> None:
    path = only(root).folder
    assert off_the_board(root) == {}
    write_failure(path.with_name("convnet-s1-00000001"), DataError("the images are gone"))
    spec = RunDir.at(path).spec
    RunDir.open(root, replace(spec, seed=9))
    RunDir.open(root, replace(spec, seed=8))
    assert off_the_board(root) == {"failed": 1, "interrupted": 2}
    break_record(path)
    assert off_the_board(root) == {"failed": 1, "interrupted": 2, "damaged": 1}


def test_a_folder_that_vanishes_meanwhile_is_left_out(root: Path) -> None:
    path = only(root).folder
    found = list(folders(root))
    shutil.rmtree(path)
    assert [listed(p) for p in found] == [None]


def test_a_folder_that_may_not_be_read_is_no_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> RunDir:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(RunDir, "at", staticmethod(refuse))
    found = only(root)
    assert found.state == "damaged"
    assert "Permission denied" in found.why
