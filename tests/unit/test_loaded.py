"""A loaded set is a torch Dataset, prints, shows itself, and gives the transform of test images."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import ddbench
from ddbench import Recipe, SyntheticSet
from ddbench import synthetic as sets
from ddbench.data.catalogue import CATALOGUE
from ddbench.data.pixels import fit_pixels
from ddbench.data.transform import HOW, Transform
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, DataError, RunError
from ddbench.foreign.importing import export_run
from ddbench.initial import mosaics
from ddbench.runs.loaded import LoadedSet

SPACES = ["standard", "zca", "kip-zca", "rat-zca", "frepo-zca", "rfad-zca"]


def drawn(**parts: Any) -> SyntheticSet:
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SyntheticSet(**{"images": images, "labels": torch.arange(20) // 2, "pixels": "standard"} | parts)


def saved(synthetic: SyntheticSet, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    sets.save(synthetic, folder / "set.safetensors", about or {"dataset": "digits", "ipc": 2, "method": "dm"})
    return folder / "set.safetensors"


def space_of(name: str) -> Any:
    digits = ddbench.load_dataset("digits")
    return fit_pixels(name, digits.train, digits.info)


def test_an_item_is_an_image_and_its_class(tmp_path: Path) -> None:
    whole = drawn()
    loaded = ddbench.load(saved(whole, tmp_path))
    assert isinstance(loaded, Dataset)
    assert isinstance(loaded, SyntheticSet)
    assert len(loaded) == 20
    image, target = loaded[3]
    assert torch.equal(image, whole.images[3])
    assert (int(target), target.dtype) == (1, torch.int64)
    images, targets = loaded.tensors()
    assert torch.equal(images, whole.images)
    assert torch.equal(targets, whole.labels)
    assert [len(y) for _, y in DataLoader(loaded, batch_size=8)] == [8, 8, 4]
    assert len(list(loaded)) == 20, "a for loop ends"
    with pytest.raises(IndexError, match="none is number 20"):
        loaded[20]


def test_workers_in_processes_of_their_own_read_it(tmp_path: Path) -> None:
    loaded = ddbench.load(saved(drawn(images=torch.zeros(20, 1, 8, 8, dtype=torch.uint8)), tmp_path))
    (batch,) = DataLoader(loaded, batch_size=20, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(batch[0], loaded.tensors()[0])


def test_real_images_come_in_their_pixel_space(tmp_path: Path) -> None:
    digits = ddbench.load_dataset("digits")
    whole = drawn(images=digits.train.images[:20], pixels="zca(eps=0.1)")
    loaded = ddbench.load(saved(whole, tmp_path))
    expected = space_of("zca(eps=0.1)").forward(digits.train.images[:20])
    assert torch.equal(loaded.tensors()[0], expected)
    assert torch.allclose(loaded[7][0], expected[7], atol=1e-5)


@pytest.mark.parametrize("kind", ["probability", "logit", "regression"])
def test_soft_labels_are_rows_and_logits_become_probabilities(tmp_path: Path, kind: Any) -> None:
    rows = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    rows = rows.softmax(1) if kind == "probability" else rows
    loaded = ddbench.load(saved(drawn(labels=rows, label_kind=kind), tmp_path))
    expected = rows.softmax(1) if kind == "logit" else rows
    assert torch.equal(loaded.tensors()[1], expected)
    assert torch.equal(loaded[4][1], expected[4])
    assert torch.equal(loaded.labels, rows), "what is stored stays as it is"


@pytest.mark.parametrize("space", SPACES)
def test_a_whitening_is_of_the_images_that_a_mosaic_of_bytes_holds(tmp_path: Path, space: str) -> None:
    digits = ddbench.load_dataset("digits").train
    stored = mosaics(digits.images[:80], 2)
    whole = SyntheticSet(stored, torch.arange(20) // 2, pixels=space, decode="tiles(factor=2)")
    images, _ = ddbench.load(saved(whole, tmp_path)).tensors()
    cut, _ = decode(whole.decode, stored / 255, whole.labels)
    assert torch.allclose(images, space_of(space).forward(cut), atol=1e-4)
    if space == "standard":
        export_run(tmp_path / "set.safetensors", "pt", tmp_path / "set.pt", tmp_path)
    else:
        with pytest.raises(DataError, match=r"whitens the images that a mosaic holds.*safetensors or npz"):
            export_run(tmp_path / "set.safetensors", "pt", tmp_path / "set.pt", tmp_path)


def test_floats_in_tiles_need_no_dataset(tmp_path: Path) -> None:
    loaded = ddbench.load(saved(drawn(decode="tiles(factor=2)", pixels="zca"), tmp_path, {"dataset": "gone"}))
    assert len(loaded.tensors()[0]) == 80


def test_items_are_decoded_images(tmp_path: Path) -> None:
    loaded = ddbench.load(saved(drawn(decode="tiles(factor=2)"), tmp_path))
    assert (len(loaded), len(loaded.images)) == (80, 20)
    assert loaded[5][0].shape == (1, 8, 8)
    assert loaded.tensors()[1].tolist() == [k // 8 for k in range(80)]
    assert "80 when decoded by tiles(factor=2)" in str(loaded)


def test_three_lines_say_what_it_is(tmp_path: Path) -> None:
    recipe = Recipe(lr=torch.tensor(0.0213), steps=500)
    text = repr(ddbench.load(saved(drawn(recipe=recipe), tmp_path)))
    assert text.splitlines() == [
        "dm of Digits (UCI, 8x8), ipc 2: 20 images of 1x8x8, 5,284 bytes",
        "pixels standard, stored as float32; 10 classes, labels class",
        "recipe: lr 0.0213, steps 500",
    ]
    plain = repr(ddbench.load(saved(drawn(), tmp_path, {"about": "nothing"})))
    assert plain.splitlines()[0] == "a set of an unnamed dataset: 20 images of 1x8x8, 5,280 bytes"


@pytest.mark.parametrize("space", ["standard", "zca", "kip-zca"])
def test_it_shows_itself(tmp_path: Path, space: str) -> None:
    picture = ddbench.load(saved(drawn(pixels=space_of(space).name), tmp_path)).show()
    assert picture.format == "PNG"
    assert picture.width > 64
    assert picture.height > 10 * 64
    assert picture._repr_png_(), "notebooks ask for this"


@pytest.mark.parametrize("name", SPACES)
def test_the_transform_is_the_pixel_space(tmp_path: Path, name: str) -> None:
    test, space = ddbench.load_dataset("digits").test.load().images[:50], space_of(name)
    transform = ddbench.load(saved(drawn(pixels=space.name), tmp_path)).transform()
    expected = space.forward(test)
    assert torch.equal(transform(test), expected)
    assert torch.allclose(transform(test / 255), expected, atol=1e-5)
    assert torch.allclose(transform(test[3]), expected[3], atol=1e-5)
    picture = Image.fromarray(test[3, 0].numpy())
    assert torch.allclose(transform(picture), expected[3], atol=1e-5)
    assert torch.allclose(transform(picture.convert("RGB")), expected[3], atol=1e-5), "a file of grey in colours"
    assert transform(test).dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(1, 28, 28, dtype=torch.uint8), r"shape \(1, 8, 8\), and this one has \(1, 28, 28\)"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), "uint8, or floats"),
        ("digit.png", "a tensor or a PIL image; this is a str"),
    ],
)
def test_what_is_no_image_of_the_set_is_refused(tmp_path: Path, image: Any, sentence: str) -> None:
    transform = ddbench.load(saved(drawn(), tmp_path)).transform()
    with pytest.raises(DataError, match=sentence):
        transform(image)


ALONE = f"""
import sys
import numpy
{HOW}
t = numpy.load(sys.argv[1])
assert str(t["how"]) == sys.argv[3]
numpy.save(sys.argv[2], transform(numpy.load(sys.argv[2]), t))
assert "ddbench" not in sys.modules and "torch" not in sys.modules
"""


@pytest.mark.parametrize("name", SPACES)
def test_a_written_transform_needs_numpy_alone(tmp_path: Path, name: str) -> None:
    test, space = ddbench.load_dataset("digits").test.load().images[:50], space_of(name)
    Transform(space, (1, 8, 8)).save(tmp_path / "t.npz")
    np.save(tmp_path / "x.npy", test.numpy())
    arguments = [str(tmp_path / "t.npz"), str(tmp_path / "x.npy"), HOW]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True)
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float32
    expected = space.forward(test)
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())


def test_colours_go_channel_by_channel() -> None:
    space = fit_pixels("standard", ddbench.load_dataset("digits").train, ddbench.load_dataset("digits").info)
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    transform = Transform(replace(space, mean=mean, std=std), (3, 4, 4))  # type: ignore[call-arg]
    pixels = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.allclose(transform(picture), (pixels / 255 - mean) / std, atol=1e-5)


def test_statistics_of_the_catalogue_need_no_images(tmp_path: Path) -> None:
    whole = SyntheticSet(torch.rand(10, 3, 32, 32), torch.arange(10), pixels="standard")
    loaded = ddbench.load(saved(whole, tmp_path, {"dataset": "cifar10", "ipc": 1}), data=tmp_path / "nothing")
    mean, std = (torch.tensor(part)[:, None, None] for part in CATALOGUE["cifar10"].statistics["standard"])
    assert torch.allclose(loaded.transform()(torch.full((3, 32, 32), 0.5)), (0.5 - mean) / std)
    assert loaded.classes[0] == "airplane"
    assert loaded.show().width > 0
    whitened = ddbench.load(
        saved(replace(whole, pixels="zca(eps=0.1)"), tmp_path, {"dataset": "cifar10"}), data=tmp_path / "nothing"
    )
    assert len(whitened) == 10
    with pytest.raises(DataError, match="ddbench data get cifar10"):
        whitened.transform()


def test_another_copy_of_the_data_has_another_whitening(tmp_path: Path) -> None:
    about = {"dataset": "digits", "data": "b2:0123456789abcdef"}
    loaded = ddbench.load(saved(drawn(pixels="zca(eps=0.1)"), tmp_path, about))
    with pytest.raises(DataError, match="condensed from other images of digits"):
        loaded.transform()


def test_a_set_without_a_dataset_has_no_transform(tmp_path: Path) -> None:
    path = saved(drawn(), tmp_path, {"ipc": 2})
    with pytest.raises(DataError, match="does not say of which dataset"):
        ddbench.load(path).transform()
    assert torch.equal(
        ddbench.load(path, dataset="digits").transform()(torch.zeros(1, 8, 8)), space_of("standard").forward(zeros())
    )


def zeros() -> Tensor:
    return torch.zeros(1, 8, 8)


def test_files_of_others_are_loaded_as_they_are_said_to_be(tmp_path: Path) -> None:
    digits = ddbench.load_dataset("digits")
    images, labels = digits.train.images[::20] / 255, digits.train.labels[::20]
    torch.save({"data": [[images, labels], [255 * images, labels]]}, tmp_path / "two.pt")
    with pytest.raises(DataError, match=r"holds 2 sets: 0, 1. Say which"):
        ddbench.load(tmp_path / "two.pt", dataset="digits")
    with pytest.raises(ConfigError, match="does not say which dataset"):
        ddbench.load(tmp_path / "two.pt", entry="0")
    expected = space_of("standard").forward(images)
    for entry, pixels in (("0", "unit"), ("1", "raw")):
        loaded = ddbench.load(tmp_path / "two.pt", dataset="digits", entry=entry, pixels=pixels, lr=0.03)
        assert torch.allclose(loaded.tensors()[0], expected, atol=1e-5)
        assert float(loaded.recipe.lr or 0) == pytest.approx(0.03)
        assert (loaded.pixels, loaded.classes) == ("standard", digits.train.classes)
    hard = ddbench.load(tmp_path / "two.pt", dataset="digits", entry="0", pixels="unit", labels="hard")
    assert torch.equal(hard.tensors()[1], labels)


def test_a_run_is_loaded_with_what_its_folder_says(root: Path) -> None:
    (folder,) = (root / "digits" / "ipc1" / "dm").iterdir()
    loaded = ddbench.load(folder)
    assert isinstance(loaded, LoadedSet)
    assert (loaded.about["method"], loaded.about["seed"], loaded.classes[3]) == ("dm", 0, "3")
    assert torch.equal(loaded.images, sets.load(folder / "synthetic.safetensors").images)
    sets.save(drawn(), folder / "synthetic.safetensors")
    with pytest.raises(RunError, match="damaged or replaced"):
        ddbench.load(folder)
    (folder / "synthetic.safetensors").unlink()
    with pytest.raises(RunError, match="has no set yet"):
        ddbench.load(folder)


def test_what_is_no_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        ddbench.load(tmp_path / "gone.pt")
    with pytest.raises(DataError, match="is not the folder of a run"):
        ddbench.load(tmp_path)
