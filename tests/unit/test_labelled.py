"""Images whose classes stand in a table: columns, names of files, parts; and what is missing on either side."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddbench.cli import root as program
from ddbench.data import catalogue, sources
from ddbench.data.cache import Manifest
from ddbench.errors import ConfigError, DataError

CAT, DOG = range(12), range(100, 112)


def write(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve dark cats and twelve bright dogs, whose grey level is their number."""
    for number in (*CAT, *DOG):
        write(tmp_path / "photos" / f"{number:03}.png", number)
    return tmp_path / "photos"


def table(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(cells: str, delimiter: str = ",") -> list[str]:
    """A line for each image: `cells` with its number and its class in place."""
    named = [(f"{number:03}", "cat" if number in CAT else "dog") for number in (*CAT, *DOG)]
    return [cells.format(n=number, c=name).replace(",", delimiter) for number, name in named]


def is_right(manifest: Manifest, root: Path) -> bool:
    dataset = sources.load(manifest["name"], root)
    return all(
        bool(((part.images[:, 0, 0, 0] >= 100) == (part.labels == 1)).all())
        for part in (dataset.train, dataset.test.load())
    ) and manifest["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("head", "cells", "delimiter"),
    [
        ("file,label", "{n}.png,{c}", ","),
        ("id,breed", "{n},{c}", ","),
        ("image_id,width,dx", "{n},4,{c}", ";"),
        ("Width,ClassName,Path", "4,{c},photos/{n}.png", "\t"),
        ("", "{n}.png,{c}", ","),
        ("", "{c},{n}", ","),
        ("what,kind", "./{n}.png,{c}", ","),
        ("a,b,Class", '7,"photos/{n}.png",{c}', ","),
    ],
)
def test_columns_and_names_of_files_are_found(
    images: Path, tmp_path: Path, head: str, cells: str, delimiter: str
) -> None:
    lines = [*([head.replace(",", delimiter)] if head else []), *rows(cells, delimiter)]
    manifest = sources.add("mine", images, tmp_path / "data", labels=[table(tmp_path / "l.csv", lines)])
    assert is_right(manifest, tmp_path / "data")
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (22, 2)
    assert manifest["split"].startswith("a tenth of every class held out")
    assert "left_out" not in manifest


def test_a_table_gives_the_data_that_class_folders_give(images: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", ["file,label", *rows("{n},{c}")])
    by_table = sources.add("mine", images, tmp_path / "data", labels=[labels])
    for path in sorted(images.iterdir()):
        place = tmp_path / "folders" / ("cat" if int(path.stem) in CAT else "dog") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    assert sources.add("mine", tmp_path / "folders", tmp_path / "data")["fingerprint"] == by_table["fingerprint"]


def test_a_column_may_say_the_part(images: Path, tmp_path: Path) -> None:
    lines = [line + (",Training" if int(line[:3]) % 3 else ",test") for line in rows("{n},{c}")]
    labels = table(tmp_path / "l.csv", ["id,label,split", *lines])
    manifest = sources.add("mine", images, tmp_path / "data", labels=[labels])
    assert is_right(manifest, tmp_path / "data")
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (16, 8)
    assert manifest["split"] == "'train' and 'test' by the table"


def test_folders_may_say_the_part_and_each_may_have_its_table(tmp_path: Path) -> None:
    for part, count in (("Train", 3), ("Test", 2)):
        for number in range(count):
            for label in range(2):
                write(tmp_path / "x" / part / str(label) / f"{number}.png", 100 * label + number)
        paths = [f"{part}/{label}/{number}.png,{label}" for label in range(2) for number in range(count)]
        table(tmp_path / "x" / f"{part}.csv", ["Path,ClassId", *paths])
    tables = [Path("Train.csv"), Path("Test.csv")]  # found beside the images
    manifest = sources.add("signs", tmp_path / "x", tmp_path / "data", labels=tables)
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (6, 4)
    assert (manifest["split"], manifest["classes"]) == ("'train' and 'test' by the folders", ["0", "1"])
    assert "left_out" not in manifest


def test_folders_that_say_the_part_may_lie_further_down(tmp_path: Path) -> None:
    paths = [f"images/{part}/{n}.png" for part in ("train", "val") for n in (0, 1, 100, 101)]
    for path in paths:
        write(tmp_path / "x" / "deep" / path, int(Path(path).stem))
    write(tmp_path / "x" / "other" / "train" / "7.png", 7)
    lines = [*(f"deep/{path},{'cat' if int(Path(path).stem) < 50 else 'dog'}" for path in paths), "7,cat"]
    manifest = sources.add("mine", tmp_path / "x", tmp_path / "data", labels=[table(tmp_path / "l.csv", lines)])
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (5, 4)
    assert is_right(manifest, tmp_path / "data")


def test_class_numbers_are_in_the_order_of_numbers(images: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", [line.replace("cat", "10").replace("dog", "9") for line in rows("{n},{c}")])
    assert sources.add("mine", images, tmp_path / "data", labels=[labels])["classes"] == ["9", "10"]


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_known_dataset_keeps_its_class_order(tmp_path: Path, by: str) -> None:
    names = catalogue.CIFAR10_CLASSES
    lines = ["id,label,split"]
    for part in ("train", "test"):
        for label, name in enumerate(names):
            path = tmp_path / "x" / f"{part}-{label}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), label, dtype=np.uint8)).save(path)
            lines.append(f"{part}-{label},{name.upper() if by == 'name' else label},{part}")
    sources.add("cifar10", tmp_path / "x", tmp_path / "data", labels=[table(tmp_path / "l.csv", lines)])
    train = sources.load("cifar10", tmp_path / "data").train
    assert train.classes == names
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist() == list(range(10))


def test_columns_can_be_said(images: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", ["id,genus,sort", *rows("{n},animal,{c}")])
    with pytest.raises(ConfigError, match=r"columns 'id', 'genus', 'sort', and none is known as labels.*--columns"):
        sources.add("mine", images, tmp_path / "data", labels=[labels])
    for columns in ("id,sort", "1,3", "ID, Sort"):
        assert is_right(
            sources.add("mine", images, tmp_path / "data", labels=[labels], columns=columns), tmp_path / "data"
        )
    for columns, sentence in (
        ("id,srt", r"no column 'srt'. Did you mean 'sort'\?"),
        ("id", "FILE,LABEL"),
        ("1,9", "'9'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            sources.add("mine", images, tmp_path / "data", labels=[labels], columns=columns)


def test_an_archive_has_its_table_inside(images: Path, tmp_path: Path) -> None:
    table(tmp_path / "l.csv", ["id,label", *rows("{n},{c}")])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, f"x/photos/{path.name}")
        archive.write(tmp_path / "l.csv", "x/inside.csv")
    manifest = sources.add("mine", tmp_path / "x.zip", tmp_path / "data", labels=[Path("inside.csv")])
    assert is_right(manifest, tmp_path / "data")


def changed(lines: list[str], how: str) -> list[str]:
    match how:
        case "an image less":
            return [*lines, "lost.png,cat", "gone,dog"]
        case "a line less":
            return lines[:-2]
        case "twice":
            return [*lines, "000,dog"]
        case "empty":
            return [*lines[:3], "003,", *lines[4:]]
        case "short":
            return [*lines, "alone"]
        case "one class":
            return [line.replace("dog", "cat") for line in lines]
        case "odd part":
            return [lines[0] + ",split", *(f"{line},seven" for line in lines[1:])]
        case _:
            return [lines[0] + ",split", *(f"{line},train" for line in lines[1:])]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("an image less", r"2 lines of the labels name no image of .*photos: 'lost.png' \(line 26 of l.csv\), 'gone'"),
        ("a line less", r"2 images of .*photos are in no line of l.csv, such as 110.png"),
        ("twice", r"line 26 of l.csv and line 2 of l.csv say different things of '000': 'dog' and 'cat'"),
        ("empty", r"line 4 of l.csv has an empty cell"),
        ("short", r"line 26 of l.csv has 1 columns, fewer than the others"),
        ("one class", r"all images have the label 'cat', and at least two"),
        ("odd part", r"line 2 of l.csv says the part 'seven'; it is train, test or val. With --columns FILE,LABEL"),
        ("only train", r"put every image into 'train'; training and test images are both needed"),
    ],
)
def test_what_does_not_fit_is_named(images: Path, tmp_path: Path, how: str, sentence: str) -> None:
    labels = table(tmp_path / "l.csv", changed(["id,label", *rows("{n},{c}")], how))
    with pytest.raises(DataError, match=sentence):
        sources.add("mine", images, tmp_path / "data", labels=[labels])
    assert not (tmp_path / "data" / "mine").exists()


def test_a_lost_image_in_the_first_line_is_not_taken_for_a_header(images: Path, tmp_path: Path) -> None:
    for first in ("lost.png,cat", "lost,cat"):
        labels = table(tmp_path / "l.csv", [first, *rows("{n},{c}")])
        with pytest.raises(DataError, match=r"1 line of the labels names no image of .*'lost.*line 1 of l.csv"):
            sources.add("mine", images, tmp_path / "data", labels=[labels])


def test_a_name_that_several_images_have_needs_its_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for number in range(12):
            write(tmp_path / "x" / folder / f"{number}.png", number)
    lines = [f"{folder}/{number},{folder}" for folder in "ab" for number in range(12)]
    assert sources.add("mine", tmp_path / "x", tmp_path / "data", labels=[table(tmp_path / "l.csv", lines)])
    labels = table(tmp_path / "m.csv", [*lines[1:], "0.png,a"])
    with pytest.raises(DataError, match=r"line 24 of m.csv names '0.png', which could be a/0.png and b/0.png"):
        sources.add("mine", tmp_path / "x", tmp_path / "data", labels=[labels])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"), (b"file,label\n", "has no lines with labels"), (b"\xff\xfe\0i\0d", "no text in UTF-8"),
        (b"000\n001\n", "one column"), (b"x,y\nu,v\n", "names images that are there|name no image"),
        (b'id,label\n000,"cat\n' + b"x" * (2 << 20), "cannot be read as CSV"),
        ("id,label\n000,c\u202eat\n001,dog\n".encode(), "control characters"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_a_sentence(images: Path, tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        sources.add("mine", images, tmp_path / "data", labels=[tmp_path / "l.csv"])


def test_tables_are_for_images_in_folders(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv cannot be read: No such file"):
        sources.add("mine", images, tmp_path / "data", labels=[tmp_path / "none.csv"])
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 4, 4), dtype=np.uint8), labels=np.arange(4) % 2)
    with pytest.raises(ConfigError, match="--labels is for images in a folder or an archive"):
        sources.add("mine", tmp_path / "x.npz", tmp_path / "data", labels=[tmp_path / "l.csv"])


def test_a_table_beside_images_without_class_folders_is_pointed_at(images: Path, tmp_path: Path) -> None:
    table(images / "train.csv", ["id,label", *rows("{n},{c}")])
    with pytest.raises(DataError, match=r"has no class folders, and a table train\.csv.*--labels train\.csv"):
        sources.add("mine", images, tmp_path / "data")


def test_the_command_line_takes_tables(images: Path, tmp_path: Path) -> None:
    (images / "extra.dcm").touch()
    labels = table(tmp_path / "l.csv", ["id,x,y", *rows("{n},1,{c}")])
    arguments = ["data", "add", "mine", str(images), "--data", str(tmp_path / "data")]
    done = CliRunner().invoke(program, [*arguments, "--labels", str(labels), "--columns", "id,y"])
    assert done.exit_code == 0, done.output
    assert "Note: left out: 1 file: 1 .dcm." in done.stderr
    assert "left out       1 file: 1 .dcm" in done.stdout
    assert CliRunner().invoke(program, [*arguments, "--columns", "id,y"]).exit_code == 2
