"""Damage to what a run has made: no bit of a set, a record or a score changes without a word, and no work is lost."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.cli import root as ddbench
from ddbench.errors import DdbenchError, RunError
from ddbench.evaluation.protocol import Protocol
from ddbench.files import read_json, write_json
from ddbench.foreign.formats import read
from ddbench.foreign.importing import Import, bring_in, export_run
from ddbench.leaderboard import boards
from ddbench.runs.evaluating import read_evaluation
from ddbench.runs.ledger import Ledger
from ddbench.runs.record import RunRecord, read_record
from ddbench.runs.resolving import Asked, Resolution, resolve_spec
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, evaluate_run, run
from ddbench.training.options import SGDOptions

TINY = Protocol(name="tiny", augment="none", backbones=("mlp",), students=1, options=SGDOptions(epochs=0, batch=4))
CPU = torch.device("cpu")


def options(root: Path, *, fresh: bool = False) -> RunOptions:
    return RunOptions(root=root, data_root=root / "data", device=CPU, fresh=fresh)


def asked(students: int = 1) -> Resolution:
    resolution = resolve_spec(Asked("random", "toy", ipc=1, backbone="mlp", students=students), Path("data"))
    return Resolution(resolution.spec, resolution.method, resolution.dataset, (TINY,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    run(asked(), options(root))
    (folder,) = root.glob("toy/ipc1/random/*")
    return folder


@pytest.fixture
def mend(finished: Path) -> Callable[[], dict[Path, bytes]]:
    whole = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}

    def put_back() -> dict[Path, bytes]:
        for path, content in whole.items():
            path.write_bytes(content)
        return whole

    return put_back


def flip(path: Path, at: int = -50, bit: int = 6) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_set_is_refused_by_name_and_its_record_kept(
    finished: Path, mend: Callable[[], dict[Path, bytes]], tmp_path: Path, damage: str
) -> None:
    root = finished.parents[3]
    path = finished / "synthetic.safetensors"
    record = (finished / "record.json").read_bytes()
    try:
        content = path.read_bytes()
        flip(path) if damage == "flip" else path.write_bytes(content[:200] if damage == "cut" else b"")
        for use in (
            lambda: run(asked(), options(root)),
            lambda: run(asked(students=2), options(root)),
            lambda: evaluate_run(finished, [TINY], [], 2, options(root)),
            lambda: export_run(finished, "npz", tmp_path / "a.npz", root),
            lambda: boards.add([finished], tmp_path / "boards", allow_dirty=True),
        ):
            with pytest.raises(RunError, match=r"synthetic\.safetensors.*--fresh"):
                use()
            assert (finished / "record.json").read_bytes() == record
        assert list(tmp_path.iterdir()) == []
        # Of a set without a record, its description knows the hash.
        (finished / "record.json").unlink()
        with pytest.raises(RunError, match=r"synthetic\.json says"):
            run(asked(), options(root))
    finally:
        mend()


def test_inspect_says_that_a_set_is_not_that_of_its_run(finished: Path, mend: Callable[[], dict[Path, bytes]]) -> None:
    from click.testing import CliRunner

    try:
        flip(finished / "synthetic.safetensors")
        result = CliRunner().invoke(ddbench, ["inspect", str(finished)])
        assert result.exit_code == 1
        assert "is not the set of this run" in result.stderr
    finally:
        mend()


def test_a_damaged_record_is_made_again_and_said_so(
    finished: Path, mend: Callable[[], dict[Path, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    try:
        before = read_record(finished / "record.json")
        path = finished / "record.json"
        path.write_text(path.read_text().replace('"student', '"stxdent').replace('"seed": 0', '"seed": 1'))
        again = run(asked(), options(finished.parents[3]))
        assert "checksum" in caplog.text
        assert "made again" in caplog.text
        assert again.evaluations == before.evaluations
        assert again.run == before.run
    finally:
        mend()


JSON_FILES: dict[str, Callable[[Path], object]] = {
    "record.json": read_record,
    "spec.json": lambda path: RunDir.at(path.parent).spec,
    "cost.json": lambda path: (
        Ledger(RunDir.at(path.parent), CPU).costs,
        Ledger(RunDir.at(path.parent), CPU).artifacts,
    ),
    "attempts.json": lambda path: Ledger(RunDir.at(path.parent), CPU).attempts,
    "evaluations/tiny@1/mlp.json": read_evaluation,
    "synthetic.json": read_json,
}


@settings(deadline=None, max_examples=200)
@given(data=st.data(), name=st.sampled_from(sorted(JSON_FILES)))
def test_no_bit_of_a_file_of_ours_changes_without_a_word(finished: Path, data: st.DataObject, name: str) -> None:
    path, read = finished / name, JSON_FILES[name]
    whole, value = path.read_bytes(), read(path)
    try:
        flip(path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
        try:
            after = read(path)
        except DdbenchError:
            return
        assert after == value  # a space has become another one
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(JSON_FILES))
def test_a_checksum_that_lost_its_name_is_no_file_of_an_earlier_version(finished: Path, name: str) -> None:
    path, read = finished / name, JSON_FILES[name]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole.replace(b'"checksum"', b'"bhecksum"'))
        with pytest.raises(DdbenchError, match="its checksum is called 'bhecksum'"):
            read(path)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(JSON_FILES))
def test_files_of_earlier_versions_have_no_checksum(finished: Path, mend: Callable[[], object], name: str) -> None:
    path, read = finished / name, JSON_FILES[name]
    try:
        value, content = read(path), json.loads(path.read_text())
        assert content.pop("checksum").startswith("b2:")
        write_json(path, content["attempts"] if name == "attempts.json" else content)
        assert read(path) == value
    finally:
        mend()


@pytest.mark.parametrize("name", ["cost.json", "attempts.json"])
def test_a_key_of_another_name_is_noticed_before_the_work(
    finished: Path, mend: Callable[[], object], name: str
) -> None:
    path = finished / name
    try:
        content = json.loads(path.read_text())
        del content["checksum"]
        path.write_text(json.dumps(content).replace('"seconds"', '"secends"', 1).replace('"python"', '"pytion"', 1))
        with pytest.raises(RunError, match=rf"{name} was not written by ddbench.*--fresh"):
            run(asked(students=2), options(finished.parents[3]))
    finally:
        mend()


def test_a_record_holds_its_checksum_on_the_leaderboard_too(finished: Path, tmp_path: Path) -> None:
    (place,) = boards.add([finished], tmp_path, allow_dirty=True)
    record: RunRecord = read_record(place)
    assert record == read_record(finished / "record.json")
    place.write_text(place.read_text().replace(record.data.title, record.data.title + "x"))
    lost: list[str] = []
    assert not [path for path in boards.build(tmp_path, lost) if path.suffix == ".csv"]
    assert len(lost) == 1
    assert "checksum" in lost[0]
    with pytest.raises(RunError, match=r"checksum"):
        boards.check(tmp_path)


@pytest.mark.parametrize("name", ["synthetic.safetensors", "record.json"])
def test_a_damaged_imported_set_is_taken_from_its_file_again(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    place, _ = export_run(finished, "npz", tmp_path / "a.npz", tmp_path)
    dataset = asked().dataset

    def taken() -> Path:
        (found,) = read(place)
        return bring_in(found, Import(protocols=("dsa@1",)), dataset, options(tmp_path / "runs"))[0]

    folder = taken()
    whole = (folder / name).read_bytes()
    flip(folder / name)
    assert taken() == folder
    assert (folder / name).read_bytes() == whole
    assert "taken from its file again" in caplog.text
