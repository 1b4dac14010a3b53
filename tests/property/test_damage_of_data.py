"""Damage to datasets in the data folder: no bit may change without a word, and what can be read is what was added."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.data import sources
from ddbench.data.manifests import find
from ddbench.errors import DataError

FILES = ("train.safetensors", "test.safetensors", "manifest.json")


def archive(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    parts = {}
    for part, count in (("train", 12), ("test", 6)):
        parts |= {f"x_{part}": rng.integers(0, 255, (count, 4, 4), dtype="uint8"), f"y_{part}": np.arange(count) % 3}
    np.savez(path, **parts)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources.add("mok", archive(folder / "a.npz", 0), folder)
    return folder


def everything(root: Path) -> tuple[object, ...]:
    dataset = sources.load("mok", root)
    parts = (dataset.train, dataset.test.load())
    return dataset.manifest, *((p.images.tolist(), p.labels.tolist(), p.classes) for p in parts)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(FILES), fault=st.sampled_from(["flip", "cut", "zero"]))
def test_no_damage_passes_without_a_word(root: Path, data: st.DataObject, name: str, fault: str) -> None:
    place = root / "mok" / name
    whole, before = place.read_bytes(), everything(root)
    broken = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 1), label="at")
    match fault:
        case "flip":
            broken[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        case "cut":
            del broken[at:]
        case "zero":
            broken[at : at + 8] = bytes(len(broken[at : at + 8]))
    place.write_bytes(broken)
    try:
        after = everything(root)
    except DataError as error:
        assert "mok" in str(error)  # noqa: PT017 - it may also be read as before: a space of a JSON file means nothing
    else:
        assert after == before
    finally:
        place.write_bytes(whole)


def test_a_dataset_that_is_replaced_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    dataset = sources.load("mok", tmp_path)
    sources.add("mok", archive(tmp_path / "b.npz", 1), tmp_path, force=True)
    with pytest.raises(DataError, match="has been replaced since this command began"):
        dataset.test.load()
    assert sources.load("mok", tmp_path).test.load() is not None


def test_a_copied_folder_is_not_the_dataset_that_its_name_says(tmp_path: Path) -> None:
    sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    shutil.copytree(tmp_path / "mok", tmp_path / "kom")
    with pytest.raises(DataError, match="'mok', and its folder is called 'kom'"):
        sources.load("kom", tmp_path)


def test_a_manifest_of_an_earlier_version_has_no_checksum(tmp_path: Path) -> None:
    sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    path = tmp_path / "mok" / "manifest.json"
    value = json.loads(path.read_text())
    assert value.pop("checksum").startswith("b2:")
    path.write_text(json.dumps(value))
    assert len(sources.load("mok", tmp_path).test.load()) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 3},
        {"train": 3},
        {"name": [1]},
        {"title": [1]},
        {"shape": [1, 4]},
        {"odd": 1},
        {"fingerprint": "b2:00"},
    ],
    ids=str,
)
def test_a_manifest_of_other_kinds_is_a_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    path = tmp_path / "mok" / "manifest.json"
    value = json.loads(path.read_text())
    del value["checksum"]
    path.write_text(json.dumps(value | change))
    with pytest.raises(DataError, match=r"manifest\.json"):
        find(tmp_path, "mok")


def test_scalars_in_an_archive_are_a_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array(1, "uint8"), labels=np.array(1))
    with pytest.raises(DataError, match="a single number"):
        sources.add("mok", tmp_path / "a.npz", tmp_path / "data")


def test_a_dataset_is_read_once_while_nobody_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    for path in (tmp_path / "mok").iterdir():
        os.utime(path, (0, 0))
    first = sources.load("mok", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("ddbench.data.manifests.read_json", lambda _: pytest.fail("it is known already"))
        assert all(sources.load("mok", tmp_path) is first for _ in range(5))
    sources.add("mok", archive(tmp_path / "b.npz", 1), tmp_path, force=True)
    assert sources.load("mok", tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize("next_command", ["load", "add"])
def test_a_dataset_that_was_taken_away_is_put_back(tmp_path: Path, next_command: str) -> None:
    """Where two folders cannot be exchanged at once, a kill between two renames leaves none for a moment."""
    added = sources.add("mok", archive(tmp_path / "a.npz", 0), tmp_path)
    (tmp_path / ".mok.partial").mkdir()
    (tmp_path / "mok").rename(tmp_path / ".mok.partial" / "ready.replaced")
    if next_command == "load":
        assert sources.load("mok", tmp_path).fingerprint == added["fingerprint"]
    else:
        with pytest.raises(DataError, match="has other data called mok"):
            sources.add("mok", archive(tmp_path / "b.npz", 1), tmp_path)
    assert find(tmp_path, "mok") == added
