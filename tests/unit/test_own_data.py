"""Folders as people have them: what their parts are called, how their images lie, and what else is in them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from ddbench.data import sources
from ddbench.data.parts import role_of
from ddbench.errors import DataError

CLASSES = ("glioma", "meningioma")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def fill(folder: Path, count: int, start: int = 0, suffix: str = ".png") -> None:
    """Small images, each of one colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.fromarray(np.full((6, 8, 3), number, dtype=np.uint8)).save(folder / f"{number}{suffix}")


def split(place: Path, train: str, test: str, inside: str = "", classes: Sequence[str] = CLASSES) -> Path:
    for label, name in enumerate(classes):
        fill(place / train / inside / name, 3, 10 * label)
        fill(place / test / inside / name, 2, 10 * label + 100)
    return place


PAIRS = [
    ("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("Training", "Testing"),
    ("seg_train", "seg_test"), ("train", "val"), ("train", "valid"), ("train", "dev"), ("Train", "Validation"),
    ("train_images", "test_images"), ("train2017", "val2017"), ("TrainSet", "TestSet"), ("training_set", "test_set"),
    ("brain-train", "brain-test"), ("Training Data", "Test Data"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_the_parts_of_a_split_are_known_by_their_names(tmp_path: Path, root: Path, train: str, test: str) -> None:
    manifest = sources.add("mine", split(tmp_path / "x", train, test), root)
    assert (manifest["classes"], manifest["train"]["images"], manifest["test"]["images"]) == (list(CLASSES), 6, 4)
    assert manifest["split"] == f"folders '{train}' and '{test}' of the source"
    dataset = sources.load("mine", root)
    assert int(dataset.train.images.max()) < 100 <= int(dataset.test.load().images.min())


def test_the_same_images_have_the_same_fingerprint_whatever_the_parts_are_called(tmp_path: Path, root: Path) -> None:
    prints = {
        sources.add(f"d{k}", split(tmp_path / str(k), *names), root)["fingerprint"] for k, names in enumerate(PAIRS)
    }
    assert len(prints) == 1


def test_a_part_may_lie_twice_and_the_unlabelled_one_is_counted(tmp_path: Path, root: Path) -> None:
    for part in ("seg_train", "seg_test"):
        split(tmp_path / "x", f"{part}/{part}", f"{part}/{part}")
    fill(tmp_path / "x" / "seg_pred" / "seg_pred", 5)
    manifest = sources.add("mine", tmp_path / "x", root)
    assert manifest["classes"] == list(CLASSES)
    assert manifest["left_out"] == "5 files: 5 images in 'seg_pred'"


@pytest.mark.parametrize("beside", ["", "labels"])
def test_a_split_may_lie_one_folder_down(tmp_path: Path, root: Path, beside: str) -> None:
    split(tmp_path / "x" / "images", "train", "val")
    if beside:
        (tmp_path / "x" / beside / "train").mkdir(parents=True)
        (tmp_path / "x" / beside / "train" / "0.txt").write_text("0 0.5 0.5 1 1")
    manifest = sources.add("mine", tmp_path / "x", root)
    assert (manifest["train"]["images"], manifest["test"]["images"]) == (6, 4)
    assert manifest.get("left_out", "") == ("1 file: 1 .txt" if beside else "")


def test_the_test_part_is_preferred_and_the_other_one_is_counted(tmp_path: Path, root: Path) -> None:
    split(tmp_path / "x", "Train", "Test")
    fill(tmp_path / "x" / "Valid" / "glioma", 3)
    manifest = sources.add("mine", tmp_path / "x", root)
    assert manifest["test"]["images"] == 4
    assert manifest["left_out"] == "3 files: 3 images in 'Valid'"


@pytest.mark.parametrize("name", ["train", "test", "val", "Training", "steam train"])
def test_a_class_may_be_called_like_a_part(tmp_path: Path, root: Path, name: str) -> None:
    for label, one in enumerate(("boat", "car", name)):
        fill(tmp_path / "vehicles" / one, 12, 20 * label)
    manifest = sources.add("mine", tmp_path / "vehicles", root)
    assert manifest["classes"] == sorted(["boat", "car", name])
    assert manifest["split"].startswith("a tenth of every class")


def test_a_class_called_train_may_lie_inside_the_parts(tmp_path: Path, root: Path) -> None:
    manifest = sources.add("mine", split(tmp_path / "x", "train", "test", classes=("boat", "test", "train")), root)
    assert manifest["classes"] == ["boat", "test", "train"]
    assert manifest["train"]["images"] == 9


def test_folders_that_look_like_parts_are_not_taken_for_classes(tmp_path: Path, root: Path) -> None:
    split(tmp_path / "x", "Entrenamiento", "Prueba")
    with pytest.raises(DataError, match=r"'Entrenamiento', 'Prueba'\) look like the parts of a split.*'glioma'"):
        sources.add("mine", tmp_path / "x", root)
    for name in CLASSES:
        fill(tmp_path / "y" / name / "train", 3)
        fill(tmp_path / "y" / name / "test", 2)
    with pytest.raises(DataError, match="Put the parts above the classes: train/CLASS"):
        sources.add("mine", tmp_path / "y", root)
    assert not list(root.glob("mine*"))


def test_parts_without_class_folders_ask_for_a_table(tmp_path: Path, root: Path) -> None:
    for part in ("train", "test"):
        fill(tmp_path / "x" / part, 3)
    with pytest.raises(DataError, match=r"'train' and 'test' of .* have no class folders.*--labels"):
        sources.add("mine", tmp_path / "x", root)


def test_parts_that_are_numbered_or_called_unlike_are_no_classes(tmp_path: Path, root: Path) -> None:
    for place, others in (("x", ("train", "test1")), ("y", ("my_train", "their_test"))):
        for part in others:
            fill(tmp_path / place / part, 12)
        with pytest.raises(DataError, match="have no class folders"):
            sources.add("mine", tmp_path / place, root)
    manifest = sources.add("mine", split(tmp_path / "z", "my_train", "their_test"), root)
    assert manifest["classes"] == list(CLASSES)


def test_what_lies_beside_the_images_is_no_class(tmp_path: Path, root: Path) -> None:
    for name in CLASSES:
        fill(tmp_path / "x" / "images" / name, 12)
        (tmp_path / "x" / "annotations" / name).mkdir(parents=True)
        (tmp_path / "x" / "annotations" / name / "0.xml").touch()
    manifest = sources.add("mine", tmp_path / "x", root)
    assert (manifest["classes"], manifest["left_out"]) == (list(CLASSES), "2 files: 2 .xml")
    for name in CLASSES:
        fill(tmp_path / "y" / "photos" / name, 12)
    for name in ("README.md", "LICENSE"):
        (tmp_path / "y" / name).touch()
    assert sources.add("mine", tmp_path / "y", root)["classes"] == list(CLASSES)


def test_two_folders_that_could_be_the_training_part_are_refused(tmp_path: Path, root: Path) -> None:
    split(tmp_path / "x", "Train", "test")
    fill(tmp_path / "x" / "training" / "glioma", 2)
    with pytest.raises(DataError, match="several folders that could be the training part: Train, training"):
        sources.add("mine", tmp_path / "x", root)


def test_the_usual_names_are_meant_where_others_lie_beside_them(tmp_path: Path, root: Path) -> None:
    split(tmp_path / "x", "train", "test")
    before = sources.add("mine", tmp_path / "x", root)
    for other in ("train_small", "train2", "training", "Test-blurred", "test2", "val"):
        fill(tmp_path / "x" / other / "glioma", 2)
        fill(tmp_path / "x" / other / "meningioma", 2)
    manifest = sources.add("mine", tmp_path / "x", root)
    assert manifest["fingerprint"] == before["fingerprint"]
    assert manifest["left_out"].startswith("24 files: 4 images in 'Test-blurred', ")


def test_classes_may_all_sound_like_the_training_part(tmp_path: Path, root: Path) -> None:
    for label, one in enumerate(("boat", "train", "training")):
        fill(tmp_path / "x" / one, 12, 20 * label)
    assert sources.add("mine", tmp_path / "x", root)["classes"] == ["boat", "train", "training"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"), ("TEST", "test"), ("dev", "val"), ("seg_pred", None), ("trainer", None), ("contest", None),
        ("train_test_split", None), ("restraint", None), ("Test-images", "test"),
    ],
)  # fmt: skip
def test_what_a_name_says_of_a_part(name: str, role: str | None) -> None:
    assert role_of(name) == role


def dataset_of(place: Path, root: Path, pictures: dict[str, Image.Image], **saved: object) -> torch.Tensor:
    """The training images of a dataset whose two classes have these files in both parts."""
    for part in ("train", "test"):
        for name in CLASSES:
            (place / part / name).mkdir(parents=True)
            for file, picture in pictures.items():
                picture.save(place / part / name / file, **saved)
    sources.add("mine", place, root)
    return sources.load("mine", root).train.images


CORNERS = np.zeros((16, 24, 3), dtype=np.uint8)
CORNERS[:8, :12], CORNERS[:8, 12:], CORNERS[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# What a viewer shows: the EXIF standard says where row 0 and column 0 lie.
SHOWN = {
    1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1], 5: CORNERS.transpose(1, 0, 2),
    6: CORNERS[::-1].transpose(1, 0, 2), 7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: CORNERS[:, ::-1].transpose(1, 0, 2),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_photos_are_turned_upright(tmp_path: Path, root: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    saved = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    images = dataset_of(tmp_path / "x", root, {f"a{suffix}": Image.fromarray(CORNERS)}, exif=exif, **saved)
    found = images[0].permute(1, 2, 0).numpy()
    assert found.shape == SHOWN[orientation].shape
    assert np.abs(found.astype(int) - SHOWN[orientation]).max() <= (4 if suffix == ".jpg" else 0)
    manifest = sources.installed(root)[0]
    turned = orientation != 1 and suffix != ".tif"  # of a TIFF it is part of the pixels
    assert manifest["preprocessing"] == ("turned upright by EXIF" if turned else "none")


def test_a_photo_on_its_side_has_the_size_of_its_upright_neighbours(tmp_path: Path, root: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for part in ("train", "test"):
        for name in CLASSES:
            fill(tmp_path / "x" / part / name, 1, 3, ".jpg")
            Image.fromarray(np.zeros((8, 6, 3), dtype=np.uint8)).save(tmp_path / "x" / part / name / "b.jpg", exif=exif)
    assert sources.add("mine", tmp_path / "x", root)["shape"] == [3, 6, 8]


def test_an_orientation_that_cannot_be_read_changes_nothing(tmp_path: Path, root: Path) -> None:
    pictures = {"a.jpg": Image.fromarray(CORNERS)}
    whole = dataset_of(tmp_path / "x", root, pictures)
    odd = dataset_of(tmp_path / "y", tmp_path / "other", pictures, exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert torch.equal(whole, odd)


def hidden(mode: str) -> Image.Image:
    """A dark square on transparent ground under which another colour lies hidden."""
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = pixels[..., 2] = 255
    pixels[4:12, 4:12] = (20, 20, 20, 255)
    picture = Image.fromarray(pixels)
    if mode == "P":
        return picture.quantize(4)
    return picture.convert(mode)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".png"), ("LA", ".png"), ("P", ".png"), ("RGBA", ".webp")])
def test_what_is_hidden_under_transparency_does_not_show(tmp_path: Path, root: Path, mode: str, suffix: str) -> None:
    saved = {"lossless": True} if suffix == ".webp" else {}
    images = dataset_of(tmp_path / "x", root, {f"a{suffix}": hidden(mode)}, **saved)
    assert set(images[0, :, 0, 0].tolist()) == {255}
    assert set(images[0, :, 8, 8].tolist()) == {20}
    assert images.shape[1] == (1 if mode == "LA" else 3)
    assert sources.installed(root)[0]["preprocessing"] == "transparent parts on white"


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path, root: Path) -> None:
    pixels = np.full((8, 8, 4), (100, 0, 0, 51), dtype=np.uint8)  # a fifth opaque
    images = dataset_of(tmp_path / "x", root, {"a.png": Image.fromarray(pixels)})
    assert images[0, :, 0, 0].tolist() == [224, 204, 204]


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path: Path, root: Path) -> None:
    plain = Image.fromarray(CORNERS)
    assert torch.equal(
        dataset_of(tmp_path / "x", root, {"a.png": plain}),
        dataset_of(tmp_path / "y", tmp_path / "other", {"a.png": plain.convert("RGBA")}),
    )
    first, second = sources.installed(root)[0], sources.installed(tmp_path / "other")[0]
    assert (second["fingerprint"], second["preprocessing"]) == (first["fingerprint"], "none")


def test_files_are_known_by_suffix_or_content_and_others_are_counted(tmp_path: Path, root: Path) -> None:
    place = split(tmp_path / "x", "train", "test")
    cat = place / "train" / "glioma"
    picture = Image.fromarray(np.full((6, 8, 3), 7, dtype=np.uint8))
    for name, kind in (
        ("a.JFIF", "JPEG"),
        ("b.jp2", "JPEG2000"),
        ("10026", "PNG"),
        ("c.0001", "PNG"),
        ("d.GIF", "GIF"),
    ):
        picture.save(cat / name, kind)
    for number in range(10):
        (cat / f"{number}.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for name in ("README", "Makefile", "x.heic", "y.npy", "z.mat"):
        (cat / name).write_bytes(b"no image here")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png"):
        (cat / name).write_bytes(b"litter")
    for litter in (place / "__MACOSX", cat / ".ipynb_checkpoints"):
        fill(litter, 2)
    manifest = sources.add("mine", place, root)
    assert manifest["train"]["images"] == 6 + 5
    assert manifest["left_out"] == "15 files: 10 .dcm, 2 without suffix, 1 .heic, 1 .mat, 1 .npy"


def test_many_kinds_of_files_are_said_in_one_line(tmp_path: Path, root: Path) -> None:
    place = split(tmp_path / "x", "train", "test")
    for number in range(9):
        (place / "train" / "glioma" / f"x.a{number}").touch()
    manifest = sources.add("mine", place, root)
    assert manifest["left_out"].startswith("9 files: 1 .a0, ")
    assert manifest["left_out"].endswith(", 3 others")


def test_a_class_without_an_image_that_is_read_says_what_it_has(tmp_path: Path, root: Path) -> None:
    place = split(tmp_path / "x", "train", "test")
    (place / "train" / "scan").mkdir()
    (place / "train" / "scan" / "1.dcm").touch()
    with pytest.raises(DataError, match=r"'scan' is empty: .* has no image that ddbench reads, but 1 file: 1 \.dcm"):
        sources.add("mine", place, root)


@pytest.mark.skipif(os.name == "nt", reason="named pipes are of POSIX")
def test_a_pipe_without_suffix_keeps_nobody_waiting(tmp_path: Path, root: Path) -> None:
    place = split(tmp_path / "x", "train", "test")
    os.mkfifo(place / "train" / "glioma" / "pipe")
    assert sources.add("mine", place, root)["left_out"] == "1 file: 1 without suffix"
