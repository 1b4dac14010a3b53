"""Image folders with soft labels beside them, and images of another size than those of the dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import ddbench
from ddbench.cli import root
from ddbench.errors import DataError
from ddbench.foreign.formats import read

CLASSES = 12  # so that, as texts, 10 comes before 2


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


def shade(label: int, number: int) -> int:
    return 20 * label + number


def folder_of(place: Path, per_class: int = 2, size: int = 8) -> Path:
    """Class folders of images, each of one grey that says which it is."""
    for label in range(CLASSES):
        (place / str(label)).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.full((size, size), shade(label, number), dtype=np.uint8)
            Image.fromarray(pixels).save(place / str(label) / f"{number}.png")
    return place


def soft(order: list[int]) -> Tensor:
    """Rows that have most of their weight on these classes, and say which image they are of."""
    rows = torch.full((len(order), CLASSES), 0.1 / CLASSES)
    for at, label in enumerate(order):
        rows[at, label] += 0.9 - 0.001 * at
        rows[at, (label + 1) % CLASSES] += 0.001 * at
    return rows


def by_number() -> list[int]:
    return [label for label in range(CLASSES) for _ in range(2)]


def by_text() -> list[int]:
    return [int(text) for text in sorted(map(str, range(CLASSES))) for _ in range(2)]


def write(rows: Tensor, path: Path) -> None:
    if path.suffix == ".npy":
        np.save(path, rows.numpy())
    else:
        torch.save(rows, path)


@pytest.mark.parametrize("name", ["labels.pt", "labels.npy"])
@pytest.mark.parametrize("order", [by_number, by_text])
def test_soft_labels_beside_class_folders_belong_to_the_images_in_their_order(
    tmp_path: Path, name: str, order: Any
) -> None:
    folder = folder_of(tmp_path / "set")
    write(soft(order()), folder / name)
    (found,) = read(folder)
    assert found.labels is not None
    assert found.labels.argmax(dim=1).tolist() == by_number()
    assert [int(image[0, 0, 0]) for image in found.images] == [shade(k, i) for k in range(CLASSES) for i in range(2)]
    # The two images of a class have rows of their own, the first before the second.
    firsts, seconds = found.labels[0::2].max(dim=1).values, found.labels[1::2].max(dim=1).values
    assert bool((firsts > seconds).all())
    assert found.files[-1].name == name


def test_soft_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set")
    write(soft(by_number()[::-1]), folder / "labels.pt")
    with pytest.raises(DataError, match=r"labels of other images, or of these in another order: .* for 0 % of them"):
        read(folder)
    write(soft(by_number())[:-1], folder / "labels.pt")
    with pytest.raises(DataError, match=r"has labels of shape .* for 24 images"):
        read(folder)


def test_images_that_lie_beside_their_labels_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1, 0):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    write(torch.tensor([0, 1, 2, 3]), tmp_path / "labels.npy")
    (found,) = read(tmp_path)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_labels_alone_are_no_set(tmp_path: Path) -> None:
    write(torch.tensor([0, 1]), tmp_path / "labels.pt")
    with pytest.raises(DataError, match=r"has images of shape \(2,\)"):
        read(tmp_path)


def test_pickled_code_in_a_label_file_is_not_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set")
    np.save(folder / "labels.npy", np.array([Path], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled objects"):
        read(folder)


def digits_of(folder: Path, size: int) -> Path:
    """A digit of each class, enlarged, as others publish pictures for networks of another size."""
    train = ddbench.load_dataset("digits").train
    for label, row in enumerate(train.offsets.tolist()):
        (folder / str(label)).mkdir(parents=True)
        small = Image.fromarray(train.images[row, 0].numpy())
        small.resize((size, size), Image.Resampling.NEAREST).save(folder / str(label) / "0.png")
    return folder


def test_images_of_another_size_are_resized_where_it_is_said(tmp_path: Path) -> None:
    folder = digits_of(tmp_path / "large", 24)
    asking = ["evaluate", folder, "--dataset", "digits", "--protocol", "quick", "--judge", "mlp", "--students", "1"]
    refused = command(*asking, "--runs", tmp_path / "runs")
    assert refused.exit_code == 1
    assert "images are (1, 24, 24) and those of digits are (1, 8, 8); --size 8 resizes them" in refused.stderr
    assert "--size 8 resizes them" in command("inspect", folder, "--dataset", "digits").stdout
    result = command(*asking, "--runs", tmp_path / "runs", "--size", "8", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["imported"]["terms"]["size"] == 8
    assert record["imported"]["sources"]["size"] == "flag"
    assert record["synthetic"]["stored"] == "uint8"
    # They are the digits again, a little smoothed.
    train = ddbench.load_dataset("digits").train
    loaded = ddbench.load(folder, dataset="digits", size=8)
    pairs = torch.stack([loaded.images.flatten().float(), train.images[train.offsets].flatten().float()])
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.9


def test_tensors_are_resized_as_well_and_those_of_the_right_size_are_not(tmp_path: Path) -> None:
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    torch.save([x, y], tmp_path / "set.pt")
    (found,), (same,) = read(tmp_path / "set.pt", size=8), read(tmp_path / "set.pt", size=16)
    assert (tuple(found.images.shape), found.images.dtype) == ((4, 3, 8, 8), torch.float32)
    assert torch.equal(same.images, x)
    torch.save([(40 * x + 128).clamp(0, 255).to(torch.uint8), y], tmp_path / "bytes.pt")
    (whole,) = read(tmp_path / "bytes.pt", size=8)
    assert whole.images.dtype == torch.uint8


def test_pictures_of_several_sizes_share_one_where_it_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(folder / "0" / "0.png")
    with pytest.raises(DataError, match="images have different sizes"):
        read(folder)
    (found,) = read(folder, size=8)
    assert tuple(found.images.shape) == (24, 1, 8, 8)
