"""Adding images from odd places: nothing of the user's is lost, and each ends in a sentence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddbench.data import decoding, sources
from ddbench.errors import DataError


def _images(folder: Path) -> Path:
    for part in ("train", "test"):
        for label in "ab":
            for index in range(2):
                path = folder / part / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), index).save(path)
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_adding_images_from_the_data_folder_itself_keeps_them(tmp_path: Path, force: bool) -> None:
    source = _images(tmp_path / "flowers")
    before = sorted(source.rglob("*"))
    with pytest.raises(DataError, match="left alone"):
        sources.add("flowers", source, tmp_path, force=force)
    assert sorted(source.rglob("*")) == before
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_file_in_the_place_of_a_dataset_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flowers").write_text("mine")
    with pytest.raises(DataError, match="left alone"):
        sources.add("flowers", _images(tmp_path / "images"), tmp_path / "data")
    assert (tmp_path / "data" / "flowers").read_text() == "mine"


def test_a_dataset_that_lost_its_manifest_can_be_added_again(tmp_path: Path) -> None:
    source, root = _images(tmp_path / "images"), tmp_path / "data"
    first = sources.add("flowers", source, root)
    (root / "flowers" / "manifest.json").unlink()
    assert sources.add("flowers", source, root) == first


def test_an_npz_whose_parts_differ_in_shape_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:, :4, :4], y_test=labels)
    with pytest.raises(DataError, match="3x8x8 and 3x4x4"):
        sources.add("mine", tmp_path / "a.npz", tmp_path / "data")


def test_flat_uint8_images_are_not_told_to_become_uint8(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 192), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"uint8 \[4, 192\]\. An npz file"):
        sources.add("mine", tmp_path / "a.npz", tmp_path / "data")


def test_a_size_beyond_the_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding.np, "empty", refuse)
    with pytest.raises(DataError, match=r"Choose a smaller --size"):
        sources.add("mine", _images(tmp_path / "images"), tmp_path / "data", size=100_000)


@pytest.mark.parametrize("name", ["set.npz", "set.tar.gz", "set.zip", "set.bin"])
def test_a_web_page_under_the_name_of_data_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><html><title>Virus scan warning</title></html>")
    with pytest.raises(DataError, match="is a web page, not the file that its name says"):
        sources.add("pages", tmp_path / name, tmp_path / "data")


def test_an_image_that_is_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    with pytest.raises(DataError, match=r"cat/0\.png of .* is a pointer of Git LFS"):
        sources.add("pointers", tmp_path / "set", tmp_path / "data")
