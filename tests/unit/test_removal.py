"""What can go from a runs folder: planned with sizes, never outside it, never half of something that looks whole."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddbench.errors import RunError
from ddbench.files import read_json, write_json
from ddbench.runs import removal, rundir
from ddbench.runs.listing import Listed, list_runs, listed
from ddbench.runs.removal import Piece, Removal, clean, delete, plan_cleaning, plan_deletion
from ddbench.runs.rundir import RunDir
from ddbench.training.networks import TrainedNetwork

KEY = "0123456789abcdef"


def only(root: Path) -> Listed:
    (found,) = list_runs(root)
    return found


def names(plan: Removal) -> set[str]:
    return {piece.path.name for piece in plan.pieces}


def done(results: Iterator[Piece | str]) -> list[Piece]:
    found = list(results)
    assert not [result for result in found if isinstance(result, str)]
    return [result for result in found if isinstance(result, Piece)]


@contextmanager
def held(path: Path) -> Iterator[int]:
    code = """
import sys
from pathlib import Path
from ddbench.runs.rundir import RunDir
with RunDir.at(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate()


def test_a_deleted_run_is_gone_with_the_folders_that_it_leaves_empty(root: Path) -> None:
    found = only(root)
    plan = plan_deletion(root, [found])
    assert (plan.pieces[0].path, plan.bytes) == (found.folder, found.bytes)
    assert found.folder.is_dir()
    assert done(delete(root, plan)) == list(plan.pieces)
    assert root.is_dir()
    assert not any(root.iterdir())


def test_neighbours_of_a_deleted_run_stay(root: Path) -> None:
    found = only(root)
    assert found.spec is not None
    other = RunDir.open(root, replace(found.spec, seed=1)).path
    done(delete(root, plan_deletion(root, [found])))
    assert [one.folder for one in list_runs(root)] == [other]


def test_a_damaged_run_can_be_deleted(root: Path) -> None:
    path = only(root).folder
    (path / "spec.json").write_text("{")
    done(delete(root, plan_deletion(root, [only(root)])))
    assert not path.exists()


class Stopped(BaseException):
    """A process that is killed: no handler of errors sees it."""


@contextmanager
def stopping(after: int) -> Iterator[None]:
    """The process ends before it removes one more file."""
    left, unlink = after, os.unlink

    def counted(path: Any, *, dir_fd: int | None = None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        unlink(path, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
        patch.setattr(os, "unlink", counted)
        yield


@pytest.mark.parametrize("start_over", [False, True], ids=["delete", "clear"])
def test_wherever_it_stops_nothing_looks_finished_and_no_set_has_lost_its_costs(
    root: Path, tmp_path: Path, start_over: bool
) -> None:
    path = only(root).folder
    kept = tmp_path / "kept"
    shutil.copytree(path, kept)
    states = set()
    for after in range(1, 40):
        with stopping(after):
            if start_over:
                RunDir.at(path).clear()
            else:
                rundir.remove(path)
        found = listed(path)
        if found is not None:
            states.add(found.state)
            assert not found.condensed
            if (path / "synthetic.safetensors").exists() or any((path / "checkpoints").glob("*.pt")):
                assert {p.name for p in path.iterdir()} >= {"cost.json", "attempts.json", "log.jsonl", "spec.json"}
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(kept, path)
    assert states == {"interrupted"}


def test_a_run_at_work_is_not_deleted(root: Path) -> None:
    path = only(root).folder
    plan = plan_deletion(root, [only(root)])
    with held(path) as pid:
        with pytest.raises(RunError, match=f"is being worked on by pid {pid}.*not deleted"):
            plan_deletion(root, [only(root)])
        (refused,) = delete(root, plan)
        assert isinstance(refused, str)
        assert "is being worked on" in refused
        assert plan_cleaning(root, snapshots=True).pieces == ()
    assert only(root).state == "done"


def test_who_has_waited_for_the_lock_of_a_deleted_run_does_not_go_on(root: Path) -> None:
    folder = RunDir.at(only(root).folder)
    done(delete(root, plan_deletion(root, [only(root)])))
    folder.path.mkdir(parents=True)
    with pytest.raises(RunError, match="was deleted by another process just now"), folder.lock():
        pass


def test_a_full_disk_does_not_keep_a_run_from_being_deleted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(rundir, "write_json", full)
    done(delete(root, plan_deletion(root, [only(root)])))
    assert list_runs(root) == []


def test_links_are_removed_and_not_followed(root: Path, tmp_path: Path) -> None:
    path = only(root).folder
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep me")
    (path / "folder").symlink_to(outside)
    (path / "snapshots" / "file").symlink_to(outside / "precious")
    shutil.rmtree(path / "checkpoints")
    (path / "checkpoints").symlink_to(outside)
    assert names(plan_cleaning(root, snapshots=True)) == {"snapshots"}
    done(clean(root, plan_cleaning(root, snapshots=True)))
    done(delete(root, plan_deletion(root, [only(root)])))
    assert (outside / "precious").read_text() == "keep me"


def test_a_run_that_lies_elsewhere_is_not_touched(root: Path, tmp_path: Path) -> None:
    path = only(root).folder
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(RunError, match="is a symbolic link"):
        plan_deletion(root, [only(root)])
    found = listed(moved)
    assert found is not None
    with pytest.raises(RunError, match="is not inside the runs folder"):
        plan_deletion(root, [found])
    path.unlink()
    # A link above the run leads outside as well.
    (tmp_path / "far").mkdir()
    moved.rename(tmp_path / "far" / path.name)
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path / "far")
    with pytest.raises(RunError, match="is not inside the runs folder"):
        plan_deletion(root, [only(root)])
    assert plan_cleaning(root, snapshots=True).pieces == ()


def test_cleaning_takes_checkpoints_and_only_on_demand_snapshots(root: Path) -> None:
    path = only(root).folder
    plan = plan_cleaning(root)
    assert names(plan) == {"checkpoints"}
    (kept,) = plan.kept
    assert kept.bytes == sum(p.stat().st_size for p in (path / "snapshots").iterdir())
    assert "--snapshots" in kept.why
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "checkpoints" not in p.parts}
    done(clean(root, plan))
    assert not (path / "checkpoints").exists()
    assert {p: p.read_bytes() for p in before} == before
    assert plan_cleaning(root).pieces == ()
    done(clean(root, plan_cleaning(root, snapshots=True)))
    assert only(root).state == "done"


def unfinished(path: Path) -> None:
    (path / "record.json").unlink()


def without_set(path: Path) -> None:
    (path / "synthetic.safetensors").unlink()


def broken_record(path: Path) -> None:
    (path / "record.json").write_text("{")


@pytest.mark.parametrize("change", [unfinished, without_set, broken_record])
def test_nothing_of_a_run_that_is_not_finished_is_cleaned(root: Path, change: Callable[[Path], None]) -> None:
    plan = plan_cleaning(root, snapshots=True)
    change(only(root).folder)
    assert plan_cleaning(root, snapshots=True).pieces == ()
    # Nor where it came to that after it was planned.
    list(clean(root, plan))
    assert any((only(root).folder / "checkpoints").iterdir())


def test_half_written_files_go_and_those_of_a_living_process_stay(root: Path) -> None:
    path = only(root).folder
    shutil.rmtree(path / "checkpoints")
    dead = path / "evaluations" / ".mlp.json.1-2.tmp"
    dead.write_text("half")
    (path / ".spec.json.1-2.tmp").write_text("just now")
    store = root / "artifacts" / "experts" / KEY
    store.mkdir(parents=True)
    old, new = store / ".expert.1-2.tmp", store / ".expert.3-4.tmp"
    for file in (old, new):
        file.write_text("half")
    long_ago = time.time() - removal.IDLE_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    plan = plan_cleaning(root)
    assert {piece.path for piece in plan.pieces} == {dead, old}
    done(clean(root, plan))
    assert not dead.exists()
    assert not old.exists()
    assert new.exists()


def artefact(root: Path, kind: str, key: str = KEY, seconds: float = 7200.0) -> Path:
    folder = root / "artifacts" / kind / key
    folder.mkdir(parents=True)
    write_json(folder / "artifact.json", {"kind": kind, "identity": {}}, sealed=True)
    write_json(folder / "cost.json", {"seconds": seconds}, sealed=True)
    (folder / "expert_0000.safetensors").write_bytes(bytes(1000))
    return folder


def reads(path: Path, key: str) -> None:
    """Let a run have read an artefact."""
    cost = read_json(path / "cost.json")
    cost["artifacts"][key] = {"kind": "experts", "key": key}
    write_json(path / "cost.json", cost, sealed=True)
    record = read_json(path / "record.json")
    record["artifacts"] = [{"kind": "experts", "key": key}]
    write_json(path / "record.json", record, sealed=True)


def test_artefacts_go_on_demand_once_no_unfinished_run_needs_them(root: Path) -> None:
    folder, path = artefact(root, "experts"), only(root).folder
    reads(path, KEY)
    assert KEY not in names(plan_cleaning(root))
    assert any("--artifacts" in kept.why for kept in plan_cleaning(root).kept)
    plan = plan_cleaning(root, artifacts=True)
    (piece,) = [piece for piece in plan.pieces if piece.path == folder]
    assert piece.what == "experts, read by 1 finished run, 2 h 00 min to make"
    assert piece.bytes > 1000
    done(clean(root, plan))
    assert not folder.exists()


def test_artefacts_of_an_unfinished_run_stay(root: Path) -> None:
    folder, other, path = artefact(root, "experts"), artefact(root, "experts", "f" * 16), only(root).folder
    reads(path, KEY)
    (path / "record.json").unlink()
    plan = plan_cleaning(root, artifacts=True)
    assert names(plan) == {other.name}
    assert any("unfinished runs read them" in kept.why for kept in plan.kept)
    assert "read by no run that is here" in plan.pieces[0].what
    # A run that is still preparing does not know yet, so all stay.
    (path / "cost.json").unlink()
    (path / "attempts.json").unlink()
    plan = plan_cleaning(root, artifacts=True)
    assert plan.pieces == ()
    assert any(only(root).id in kept.why for kept in plan.kept)
    assert folder.is_dir()


def test_what_judging_reads_is_never_cleaned(root: Path) -> None:
    assert TrainedNetwork.kind in removal.KEPT_KINDS
    artefact(root, TrainedNetwork.kind)
    for name in ("pixels", "bench"):
        (root / "artifacts" / name).mkdir()
        (root / "artifacts" / name / f"{KEY}.json").write_text("{}")
    assert names(plan_cleaning(root, artifacts=True)) == {"checkpoints"}


@pytest.mark.parametrize("name", ["lock", ".expert_0003.lock"])
def test_an_artefact_that_is_being_made_is_kept(root: Path, name: str) -> None:
    folder = artefact(root, "experts")
    (folder / name).touch()
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        results = list(clean(root, plan_cleaning(root, artifacts=True)))
        process.communicate()
    assert [r for r in results if isinstance(r, str)] == [f"{folder} is being made by another process, so it is kept."]
    assert (folder / "artifact.json").is_file()


def test_an_artefact_that_is_removed_half_never_counts_as_whole(root: Path) -> None:
    for after in range(1, 4):
        folder = artefact(root, "experts", f"{after:016x}")
        with stopping(after):
            removal._remove(folder)
        assert not (folder / "artifact.json").exists()
        if (folder / "expert_0000.safetensors").exists():
            assert (folder / "cost.json").exists()


def test_a_file_that_cannot_be_removed_is_a_sentence_and_the_rest_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only(root)
    assert found.spec is not None
    other = listed(RunDir.open(root, replace(found.spec, seed=1)).path)
    assert other is not None
    plan = plan_deletion(root, [found, other])
    remove = rundir.remove

    def refuse(path: Path) -> None:
        if path == found.folder:
            raise PermissionError(13, "Permission denied", str(path / "record.json"))
        remove(path)

    monkeypatch.setattr(rundir, "remove", refuse)
    sentence, gone = delete(root, plan)
    assert isinstance(sentence, str)
    assert "could not be removed: Permission denied" in sentence
    assert gone == plan.pieces[1]
