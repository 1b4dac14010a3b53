"""Bringing your own images, and loading what is there: the good cases and the planted bad ones."""

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from ddbench import plugins
from ddbench.data import archives, cache, catalogue, sources
from ddbench.data.toy import toy
from ddbench.errors import ConfigError, DataError, PluginError
from ddbench.files import SEAL

COUNTS = {"train": (5, 3), "test": (2, 4)}


def picture(rng: np.random.Generator, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """An image of random pixels; size is width, height."""
    width, height = size
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def make_folder(
    folder: Path,
    classes: Sequence[str] = ("cat", "dog"),
    counts: dict[str, tuple[int, ...]] | None = None,
    mode: str = "RGB",
    size: tuple[int, int] = (8, 6),
    suffix: str = ".png",
) -> Path:
    """train/CLASS/0.png and so on, unbalanced and not square."""
    rng = np.random.default_rng(0)
    for part, numbers in (counts or COUNTS).items():
        for name, count in zip(classes, numbers, strict=True):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                picture(rng, mode, size).save(place / f"{number}{suffix}")
    return folder


def same_counts(classes: int, train: int = 2, test: int = 1) -> dict[str, tuple[int, ...]]:
    return {"train": (train,) * classes, "test": (test,) * classes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_an_image_folder_comes_back_as_it_was(folder: Path, root: Path) -> None:
    manifest = sources.add("mine", folder, root)
    dataset = sources.load("mine", root)
    assert dataset.manifest == manifest
    assert dataset.info.how == "user"
    assert dataset.info.shape == dataset.train.shape == (3, 6, 8)
    assert dataset.train.classes == dataset.info.class_names == ("cat", "dog")
    assert dataset.train.counts.tolist() == [5, 3]
    assert dataset.test.load().counts.tolist() == [2, 4]
    assert (dataset.title, dataset.original) == ("mine", False)
    assert (manifest["origin"], manifest["preprocessing"]) == ("image folder (PNG)", "none")
    expected = np.asarray(Image.open(folder / "train" / "dog" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(dataset.train.images[6], expected)


def test_stored_fingerprints_are_those_of_the_images(folder: Path, root: Path) -> None:
    sources.add("mine", folder, root)
    dataset = sources.load("mine", root)
    manifest = dataset.manifest
    for part, data in ((manifest["train"], dataset.train), (manifest["test"], dataset.test.load())):
        fresh = replace(data, images=data.images.clone(), known_fingerprint=None)
        assert fresh.fingerprint == data.fingerprint == part["fingerprint"]
    assert dataset.fingerprint == cache.whole_fingerprint(dataset.train, dataset.test.load())


def test_loading_training_images_never_touches_test_files(folder: Path, root: Path) -> None:
    sources.add("mine", folder, root)
    (root / "mine" / "test.safetensors").unlink()
    dataset = sources.load("mine", root)
    assert len(dataset.train) == 8
    with pytest.raises(DataError, match=r"test.safetensors is missing or damaged.*ddbench data add mine PATH"):
        dataset.test.load()


def test_once_there_the_source_is_not_needed(folder: Path, root: Path) -> None:
    before = sources.add("mine", folder, root)["fingerprint"]
    shutil.rmtree(folder)
    assert sources.load("mine", root).fingerprint == before


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_grey_stays_one_channel_and_colour_becomes_three(tmp_path: Path, root: Path, mode: str, channels: int) -> None:
    sources.add("mine", make_folder(tmp_path / "x", mode=mode), root)
    data = sources.load("mine", root).train
    assert data.shape == (channels, 6, 8)
    with Image.open(tmp_path / "x" / "train" / "cat" / "0.png") as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 8, channels)
    assert np.array_equal(data.images[0], expected.transpose(2, 0, 1))


def test_one_colour_image_makes_all_of_them_rgb(tmp_path: Path, root: Path) -> None:
    folder = make_folder(tmp_path / "x", mode="L")
    picture(np.random.default_rng(1)).save(folder / "test" / "dog" / "0.png")
    sources.add("mine", folder, root)
    train = sources.load("mine", root).train
    assert train.shape == (3, 6, 8)
    assert torch.equal(train.images[:, 0], train.images[:, 2])


@pytest.mark.parametrize("kind", ["zip", "gztar", "xztar"])
def test_an_archive_is_the_folder_it_was_packed_from(folder: Path, root: Path, kind: str) -> None:
    path = Path(shutil.make_archive(str(folder.with_name("packed")), kind, folder.parent, folder.name))
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/._images", b"litter")
    assert sources.add("packed", path, root)["fingerprint"] == sources.add("plain", folder, root)["fingerprint"]
    assert leftovers(root) == ["packed", "plain"]


def test_without_a_split_a_tenth_of_every_class_is_held_out_and_recorded(tmp_path: Path, root: Path) -> None:
    flat = make_folder(tmp_path / "x", counts={"train": (30, 7)}) / "train"
    manifest = sources.add("mine", flat.rename(tmp_path / "flat"), root)
    dataset = sources.load("mine", root)
    assert dataset.train.counts.tolist() == [27, 6]
    assert dataset.test.load().counts.tolist() == [3, 1]
    assert manifest["split"] == "a tenth of every class held out by ddbench, a fixed draw"
    assert sources.add("again", tmp_path / "flat", root)["fingerprint"] == manifest["fingerprint"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_serves_as_test_part(folder: Path, root: Path, name: str) -> None:
    (folder / "test").rename(folder / name)
    assert sources.add("mine", folder, root)["split"] == f"folders 'train' and '{name}' of the source"


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path, root: Path) -> None:
    names = [str(number) for number in range(12)]
    sources.add("mine", make_folder(tmp_path / "x", names, same_counts(12)), root)
    assert sources.load("mine", root).train.classes == tuple(names)


def test_hidden_and_foreign_files_are_left_alone(folder: Path, root: Path) -> None:
    before = sources.add("mine", folder, root)
    for name in (".DS_Store", "notes.txt", "._0.png"):
        (folder / "train" / "cat" / name).write_bytes(b"no image")
    (folder / ".hidden").mkdir()
    (folder / "train" / ".cache").mkdir()
    assert sources.add("mine", folder, root) == before | {"left_out": "1 file: 1 .txt"}


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_corrupt_image_is_named_and_nothing_is_kept(tmp_path: Path, root: Path, damage: str) -> None:
    folder = make_folder(tmp_path / "x", suffix=".jpg")
    path = folder / "test" / "dog" / "2.jpg"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"no image at all", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"test/dog/2.jpg of .*x cannot be decoded: "):
        sources.add("mine", folder, root)
    assert leftovers(root) == []


def test_images_of_16_bits_are_refused_rather_than_clipped(folder: Path, root: Path) -> None:
    Image.fromarray(np.full((6, 8), 1000, dtype=np.uint16)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"train/cat/0.png .* has more than 8 bits a channel"):
        sources.add("mine", folder, root)


@pytest.mark.parametrize("part", ["train", "test"])
def test_mixed_sizes_are_refused_or_resized_on_request(folder: Path, root: Path, part: str) -> None:
    picture(np.random.default_rng(2), size=(10, 10)).save(folder / part / "dog" / "1.png")
    with pytest.raises(DataError, match=rf"{part}/dog/1.png of .* has 10x10 pixels, others 8x6.*--size 6 resizes them"):
        sources.add("mine", folder, root)
    manifest = sources.add("mine", folder, root, size=5)
    assert manifest["shape"] == [3, 5, 5]
    assert manifest["preprocessing"] == "resized to 5x5, bilinear, aspect not kept"


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_is_named(folder: Path, root: Path, part: str) -> None:
    for path in (folder / part / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"class 'dog' is empty: {part}/dog of "):
        sources.add("mine", folder, root)


def test_train_and_test_must_have_the_same_classes(folder: Path, root: Path) -> None:
    shutil.copytree(folder / "test" / "dog", folder / "test" / "fox")
    with pytest.raises(DataError, match=r"test/fox of .* is a class that the folder 'train' does not have"):
        sources.add("mine", folder, root)
    shutil.rmtree(folder / "test" / "fox")
    shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(DataError, match="class 'dog' is empty"):
        sources.add("mine", folder, root)
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match="no folder 'test' or 'val'"):
        sources.add("mine", folder, root)


def test_one_class_is_no_dataset(tmp_path: Path, root: Path) -> None:
    folder = make_folder(tmp_path / "x", ["cat"], {"train": (2,), "test": (1,)})
    with pytest.raises(DataError, match="has 1 class folders, and at least two are needed"):
        sources.add("mine", folder, root)


def test_a_copy_of_cifar10_takes_its_place_and_says_so(tmp_path: Path, root: Path) -> None:
    folder = make_folder(tmp_path / "x", catalogue.CIFAR10_CLASSES, same_counts(10), size=(32, 32), suffix=".jpg")
    manifest = sources.add("CIFAR-10", folder, root)
    assert manifest["title"] == "CIFAR-10, JPEG copy, 20 + 10 images"
    assert not manifest["original"]
    dataset = sources.load("cifar10", root)
    assert dataset.info is catalogue.CATALOGUE["cifar10"]
    assert dataset.train.classes == catalogue.CIFAR10_CLASSES


def test_the_same_images_in_another_order_are_the_same_data(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "x", catalogue.CIFAR10_CLASSES, same_counts(10, train=3), size=(32, 32))
    first = sources.add("cifar10", folder, tmp_path / "elsewhere")
    for place in (folder / "train").iterdir():
        (place / "0.png").rename(place / "9.png")
    entry = replace(
        catalogue.CATALOGUE["cifar10"], train=30, test=10,
        copies=(catalogue.Copy(first["fingerprint"], first["contents"], "the original"),),
    )  # fmt: skip
    monkeypatch.setitem(catalogue.CATALOGUE, "cifar10", entry)
    second = sources.add("cifar10", folder, root)
    assert second["fingerprint"] != first["fingerprint"]
    assert second["contents"] == first["contents"]
    assert (second["original"], second["title"]) == (True, "CIFAR-10")
    assert sources.load("cifar10", root).contents == first["contents"]


def test_a_known_copy_is_called_what_it_is(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "x", catalogue.CIFAR10_CLASSES, same_counts(10), size=(32, 32), suffix=".jpg")
    first = sources.add("cifar10", folder, tmp_path / "elsewhere")
    copy = catalogue.Copy(first["fingerprint"], first["contents"], "two images a class", title="subset of 20 images")
    monkeypatch.setitem(catalogue.CATALOGUE, "cifar10", replace(catalogue.CATALOGUE["cifar10"], copies=(copy,)))
    manifest = sources.add("cifar10", folder, root)
    assert (manifest["title"], manifest["original"]) == ("CIFAR-10, subset of 20 images", False)


def test_a_manifest_from_before_contents_is_read(folder: Path, root: Path) -> None:
    sources.add("mine", folder, root)
    path = root / "mine" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["contents"], manifest[SEAL]
    path.write_text(json.dumps(manifest))
    assert sources.load("mine", root).contents == ""


def test_images_with_the_fingerprint_of_the_original_are_the_original(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "x", catalogue.CIFAR10_CLASSES, same_counts(10), size=(32, 32))
    known = catalogue.Copy(sources.add("cifar10", folder, tmp_path / "elsewhere")["fingerprint"], "", "the original")
    entry = replace(catalogue.CATALOGUE["cifar10"], train=20, test=10, copies=(known,))
    monkeypatch.setitem(catalogue.CATALOGUE, "cifar10", entry)
    manifest = sources.add("cifar10", folder, root)
    assert manifest["original"]
    assert manifest["title"] == "CIFAR-10"


@pytest.mark.parametrize(
    ("classes", "size", "mode"), [(10, (28, 28), "RGB"), (9, (32, 32), "RGB"), (10, (32, 32), "L")]
)
def test_what_is_not_cifar10_cannot_be_called_so(
    tmp_path: Path, root: Path, classes: int, size: tuple[int, int], mode: str
) -> None:
    names = [f"class{number}" for number in range(classes)]
    folder = make_folder(tmp_path / "x", names, same_counts(classes), size=size, mode=mode)
    with pytest.raises(DataError, match="this is not CIFAR-10: its training images have shape"):
        sources.add("cifar10", folder, root)
    assert leftovers(root) == []


def test_a_set_of_the_catalogue_needs_its_own_test_part(tmp_path: Path, root: Path) -> None:
    flat = make_folder(tmp_path / "x", catalogue.CIFAR10_CLASSES, {"train": (10,) * 10}, size=(32, 32)) / "train"
    flat.rename(tmp_path / "flat")
    with pytest.raises(DataError, match="no folder 'train'; cifar10 needs its own"):
        sources.add("cifar10", tmp_path / "flat", root)


def test_official_class_names_decide_the_order(tmp_path: Path, root: Path) -> None:
    names = [name.replace("/", " ").lower() for name in catalogue.FASHION_CLASSES]
    folder = make_folder(tmp_path / "x", names, same_counts(10), mode="L", size=(28, 28))
    sources.add("fashion-mnist", folder, root)
    train = sources.load("fashion-mnist", root).train
    assert train.classes == catalogue.FASHION_CLASSES
    expected = np.asarray(Image.open(folder / "train" / "ankle boot" / "0.png"))
    assert np.array_equal(train.images[18, 0], expected)


def test_an_imagenet_subset_takes_its_classes_in_its_order_at_128_pixels(tmp_path: Path, root: Path) -> None:
    wnids = catalogue.CATALOGUE["imagewoof"].wnids
    folder = make_folder(tmp_path / "x", [*wnids, "n00000000"], same_counts(11, 1), size=(150, 100), suffix=".JPEG")
    (folder / "test").rename(folder / "val")
    (folder / "test").mkdir()
    picture(np.random.default_rng(0)).save(folder / "test" / "unlabelled.png")
    manifest = sources.add("imagewoof", folder, root)
    assert manifest["title"] == "ImageWoof, 128 px, 10 + 10 images"
    assert manifest["split"] == "folders 'train' and 'val' of the source"
    assert manifest["preprocessing"] == "resized to 128x128, bilinear, aspect not kept"
    train = sources.load("imagewoof", root).train
    assert train.classes[:2] == ("Australian terrier", "Border terrier")
    with Image.open(folder / "train" / wnids[1] / "0.JPEG") as image:
        expected = np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(train.images[1], expected)


def test_an_imagenet_folder_without_the_classes_is_refused(folder: Path, root: Path) -> None:
    with pytest.raises(DataError, match=r"lacks 10 of the 10 classes of imagefruit, such as train/n07753275"):
        sources.add("imagefruit", folder, root)


def arrays(layout: str = "NHWC") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = {"NHWC": (6, 8, 3), "NCHW": (3, 6, 8), "NHW": (6, 8), "NHW1": (6, 8, 1)}[layout]
    return {
        "x_train": rng.integers(0, 256, (8, *shape), dtype=np.uint8),
        "y_train": np.array([7, 3, 3, 7, 7, 3, 7, 7]),
        "x_test": rng.integers(0, 256, (3, *shape), dtype=np.uint8),
        "y_test": np.array([[3], [7], [3]]),
    }


def saved(path: Path, values: dict[str, np.ndarray]) -> Path:
    contents: Any = values
    np.savez(path, **contents)
    return path


@pytest.mark.parametrize(
    ("layout", "shape"), [("NHWC", (3, 6, 8)), ("NCHW", (3, 6, 8)), ("NHW", (1, 6, 8)), ("NHW1", (1, 6, 8))]
)
def test_npz_arrays_of_any_layout_are_read(tmp_path: Path, root: Path, layout: str, shape: tuple[int, ...]) -> None:
    values = arrays(layout)
    sources.add("mine", saved(tmp_path / "x.npz", values), root)
    dataset = sources.load("mine", root)
    assert dataset.train.shape == shape
    assert dataset.train.classes == ("3", "7")
    assert dataset.train.labels.tolist() == [0] * 3 + [1] * 5
    assert dataset.test.load().labels.tolist() == [0, 0, 1]
    first = values["x_train"][1]
    assert np.array_equal(
        dataset.train.images[0], first.transpose(2, 0, 1) if layout == "NHWC" else first.reshape(shape)
    )


def test_an_npz_that_numbers_classes_gets_the_names_of_the_catalogue(tmp_path: Path, root: Path) -> None:
    labels = np.arange(20) % 10
    images = np.arange(20 * 32 * 32 * 3, dtype=np.uint8).reshape(20, 32, 32, 3)
    values = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    for name in ("cifar10", "mine"):
        sources.add(name, saved(tmp_path / "x.npz", values), root)
    assert sources.load("cifar10", root).train.classes == catalogue.CIFAR10_CLASSES
    assert sources.load("mine", root).train.classes == tuple("0123456789")


def test_npz_with_other_keys_class_names_and_no_split(tmp_path: Path, root: Path) -> None:
    values = arrays()
    medical = {
        f"{part}_{kind}": values[f"{axis}_{part}"]
        for part in ("train", "test")
        for kind, axis in (("images", "x"), ("labels", "y"))
    }
    plain = sources.add("plain", saved(tmp_path / "x.npz", values), root)
    assert sources.add("medical", saved(tmp_path / "y.npz", medical), root)["fingerprint"] == plain["fingerprint"]
    whole = {"images": values["x_train"], "labels": values["y_train"], "class_names": np.array(["cat", "dog"])}
    manifest = sources.add("whole", saved(tmp_path / "z.npz", whole), root)
    assert manifest["classes"] == ["cat", "dog"]
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (6, 2)


BAD_ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "floats": ({"x_train": np.zeros((8, 6, 8, 3))}, "images float64"),
    "flat": ({"x_train": np.zeros((8, 144), dtype=np.uint8)}, r"images uint8 \[8, 144\]"),
    "both layouts": ({"x_train": np.zeros((8, 3, 6, 3), dtype=np.uint8)}, "both are possible"),
    "no layout": ({"x_train": np.zeros((8, 6, 6, 4), dtype=np.uint8)}, "neither has 1 or 3 channels"),
    "float labels": ({"y_train": np.linspace(0, 1, 8)}, "labels float64"),
    "one-hot labels": ({"y_train": np.eye(8, dtype=int)}, r"labels int64 \[8, 8\]"),
    "fewer labels": ({"y_train": np.arange(7)}, r"labels int64 \[7\] for 8 images"),
    "other test classes": ({"y_test": np.array([3, 7, 8])}, "other classes in its test part"),
    "missing test class": ({"y_test": np.array([3, 3, 3])}, "other classes in its test part"),
    "one class": ({"y_train": np.zeros(8, dtype=int), "y_test": np.zeros(3, dtype=int)}, "at least two classes"),
    "too many names": ({"class_names": np.array(["a", "b", "c"])}, "3 class names for 2"),
    "objects": ({"y_train": np.array([1, 2, 3, 4, 5, 6, 7, {}], dtype=object)}, "pickled objects are never loaded"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_npz_arrays_of_another_form_are_refused(tmp_path: Path, root: Path, case: str) -> None:
    change, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message):
        sources.add("mine", saved(tmp_path / "x.npz", arrays() | change), root)
    assert leftovers(root) == []


def test_half_an_npz_and_an_npz_without_images_are_refused(tmp_path: Path, root: Path) -> None:
    path = saved(tmp_path / "x.npz", arrays())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"x.npz cannot be read"):
        sources.add("mine", path, root)
    with pytest.raises(DataError, match=r"y.npz has weights, not the expected ones"):
        sources.add("mine", saved(tmp_path / "y.npz", {"weights": np.zeros(3)}), root)


def test_arrays_are_not_resized(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match="--size resizes folders of image files only"):
        sources.add("mine", saved(tmp_path / "x.npz", arrays()), root, size=8)


def idx_files(folder: Path, zipped: bool) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 6), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 3
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def test_idx_files_of_a_users_set_are_read_plain_and_zipped(tmp_path: Path, root: Path) -> None:
    plain = sources.add("plain", idx_files(tmp_path / "x", zipped=False), root)
    assert sources.add("zipped", idx_files(tmp_path / "y", zipped=True), root)["fingerprint"] == plain["fingerprint"]
    assert (plain["shape"], plain["classes"], plain["origin"]) == ([1, 5, 4], ["0", "1", "2"], "idx files")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_half_an_idx_file_is_named(tmp_path: Path, root: Path, name: str, zipped: bool) -> None:
    folder = idx_files(tmp_path / "x", zipped)
    (path,) = folder.glob(f"{name}*")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=f"{name}.* is damaged"):
        sources.add("mine", folder, root)


def test_an_idx_class_without_images_is_refused(tmp_path: Path, root: Path) -> None:
    folder = idx_files(tmp_path / "x", zipped=False)
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="class '2' has no test images"):
        sources.add("mine", folder, root)


def test_idx_labels_of_other_images_are_refused(tmp_path: Path, root: Path) -> None:
    folder = idx_files(tmp_path / "x", zipped=False)
    shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / "train-labels-idx1-ubyte")
    with pytest.raises(DataError, match=r"does not belong to .*3 labels up to 2 for 6 images"):
        sources.add("mine", folder, root)


def test_other_data_does_not_replace_what_is_there_unless_forced(tmp_path: Path, folder: Path, root: Path) -> None:
    first = sources.add("mine", folder, root)
    assert sources.add("mine", folder, root) == first
    other = make_folder(tmp_path / "other", size=(4, 4))
    with pytest.raises(DataError, match=r"has other data called mine: .* replace it with --force"):
        sources.add("mine", other, root)
    assert sources.load("mine", root).manifest == first
    assert sources.add("mine", other, root, force=True)["shape"] == [3, 4, 4]
    assert sources.load("mine", root).train.shape == (3, 4, 4)
    assert leftovers(root) == ["mine"]


def test_a_set_in_use_survives_being_replaced(tmp_path: Path, folder: Path, root: Path) -> None:
    sources.add("mine", folder, root)
    in_use = sources.load("mine", root).train
    before = in_use.fingerprint
    sources.add("mine", make_folder(tmp_path / "other", size=(4, 4)), root, force=True)
    assert replace(in_use, known_fingerprint=None).fingerprint == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", b'{"schema": '),
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"schema": "ddbench.dataset/0"}'),
        ("manifest.json", b'{"schema": "ddbench.dataset/1"}'),
        ("train.safetensors", b""),
        ("train.safetensors", None),
    ],
)
def test_a_damaged_cache_says_add_it_again_and_that_works(
    folder: Path, root: Path, file: str, content: bytes | None
) -> None:
    sources.add("mine", folder, root)
    path = root / "mine" / file
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(DataError, match=rf"{file} is missing or damaged.*ddbench data add mine PATH"):
        sources.load("mine", root)
    sources.add("mine", folder, root)
    assert len(sources.load("mine", root).train) == 8


def test_images_of_another_shape_than_the_manifest_says_are_damage(folder: Path, root: Path) -> None:
    sources.add("mine", folder, root)
    shutil.copy(root / "mine" / "test.safetensors", root / "mine" / "train.safetensors")
    with pytest.raises(DataError, match=r"train.safetensors is missing or damaged: it has images of shape"):
        sources.load("mine", root)


def test_a_killed_add_can_be_run_again(folder: Path, root: Path) -> None:
    program = f"""
    import os, signal
    from pathlib import Path
    from ddbench.data import cache, sources
    cache.write_json = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    sources.add("mine", Path({str(folder)!r}), Path({str(root)!r}))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ)
    assert ended.returncode == -9
    assert leftovers(root) == [".mine.partial"]
    with pytest.raises(DataError, match="is not in the data folder"):
        sources.load("mine", root)
    assert sources.installed(root) == []
    sources.add("mine", folder, root)
    assert leftovers(root) == ["mine"]
    assert len(sources.load("mine", root).train) == 8


def test_several_at_once_wait_for_each_other(folder: Path, root: Path) -> None:
    manifests = []
    threads = [threading.Thread(target=lambda: manifests.append(sources.add("mine", folder, root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(manifests) == 4
    assert all(manifest == manifests[0] for manifest in manifests)
    assert leftovers(root) == ["mine"]


def test_a_disk_that_fills_while_writing_is_said_in_words(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_file", full)
        with pytest.raises(DataError, match=r"train.safetensors .* the disk is full"):
            sources.add("mine", folder, root)
    assert leftovers(root) == []
    assert sources.add("mine", folder, root)["name"] == "mine"


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(DataError, match="mine does not fit"):
        sources.add("mine", folder, root)
    assert leftovers(root) == []


def test_a_data_folder_that_is_a_file_is_said_in_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match=r"mine could not be stored: .*data: "):
        sources.add("mine", folder, tmp_path / "data")


@pytest.mark.parametrize("name", ["Mine", "my set", "my_set", "../mine", "-mine", "", "mine.v2"])
def test_names_are_lower_case_letters_digits_and_dashes(folder: Path, root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="use lower-case letters, digits and dashes"):
        sources.add(name, folder, root)


def test_names_that_are_taken_and_paths_that_are_not_there_are_refused(folder: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match="digits is built in"):
        sources.add("digits", folder, root)
    with pytest.raises(ConfigError, match="'toy' is the name of a built-in dataset"):
        sources.add("toy", folder, root)
    with pytest.raises(DataError, match="does not exist"):
        sources.add("mine", folder / "nowhere", root)
    (folder / "x.rar").touch()
    with pytest.raises(DataError, match=r"neither a folder, nor an archive .* nor a \.npz file"):
        sources.add("mine", folder / "x.rar", root)
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        sources.add("mine", folder, root, size=0)
    with pytest.raises(ConfigError, match="cifar10 has images of 32 pixels, not 64"):
        sources.add("cifar10", folder, root, size=64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "CIFAR-10",
            r"cifar10 is not in the data folder '.*': looked for .*cifar10/manifest.json.\nDownload it with `dd",
        ),
        ("imagewoof", r"Add it from a folder of ImageNet classes with `ddbench data add imagewoof PATH`"),
        ("cifar11", r"cifar11 is not in .*\nDid you mean 'cifar10'\? Your own images are added with"),
        ("mime", r"Did you mean 'mine'\?"),
    ],
)
def test_a_set_that_is_not_there_says_what_to_do(folder: Path, root: Path, name: str, message: str) -> None:
    sources.add("mine", folder, root)
    with pytest.raises(DataError, match=message):
        sources.load(name, root)


def test_installed_lists_what_is_there_and_warns_of_what_is_damaged(
    folder: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sources.installed(root) == []
    both = [sources.add(name, folder, root) for name in ("alpha", "beta")]
    assert sources.installed(root) == both
    (root / "alpha" / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert sources.installed(root) == both[1:]
    assert "alpha/manifest.json is missing or damaged" in caplog.text


def test_digits_need_no_files_and_write_none(root: Path) -> None:
    dataset = sources.load("digits", root)
    test = dataset.test.load()
    assert (len(dataset.train), len(test)) == (dataset.info.train, dataset.info.test) == (1438, 359)
    assert dataset.train.shape == dataset.info.shape == (1, 8, 8)
    assert int(dataset.train.images.max()) == 255
    assert dataset.original
    assert dataset.fingerprint == "b2:3db4a4d19dddc622"
    assert sources.get("digits", root) == dataset.manifest
    assert not root.exists()


def test_toy_is_loadable_by_name(root: Path) -> None:
    assert sources.load("toy", root).fingerprint == toy().fingerprint
    assert not root.exists()


def plant(site: Path, body: str) -> None:
    """A package with one dataset, as an installer would leave it."""
    (site / "planted.py").write_text(textwrap.dedent(body))
    info = site / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ddbench.datasets]\nplanted-set = planted:make\n")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("from ddbench.data.toy import toy\ndef make(root): return toy(seed=int(root.name))", None),
        ("def make(root): return 3", r"dataset 'planted-set' of planted 1.0 is int, not Dataset"),
        ("def make(root): return 1 / 0", r"does not load: ZeroDivisionError"),
        ("import nowhere_at_all", r"planted.* does not import"),
    ],
)
def test_a_dataset_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: str | None
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    plant(site, body)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    plugins.listing.cache_clear()
    try:
        if error is None:
            assert sources.load("planted-set", tmp_path / "5").fingerprint == toy(seed=5).fingerprint
        else:
            with pytest.raises(PluginError, match=error):
                sources.load("planted-set", tmp_path / "5")
        with pytest.raises(ConfigError, match="of a plug-in"):
            sources.add("planted-set", folder, tmp_path / "data")
    finally:
        plugins.listing.cache_clear()
        sys.modules.pop("planted", None)


def test_progress_is_told_up_to_the_end(folder: Path, root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    sources.add("mine", folder, root, progress=lambda *step: seen.append(step))
    assert seen == [("reading", 0, 1), ("decoding images", 8, 8), ("decoding images", 6, 6), ("storing", 0, 1)]


def test_who_waits_for_another_process_says_so(folder: Path, root: Path) -> None:
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".mine.lock", thread_local=False)
    seen: list[str] = []

    def told(what: str, done: int, of: int) -> None:
        seen.append(what)
        lock.release()

    with lock:
        sources.add("mine", folder, root, progress=told)
    assert seen[0] == "waiting for another process that adds mine"
    assert seen[-1] == "storing"
