"""Layouts of other people's projects, made by us as their code writes them, and what is said of what does not load."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddbench.data.catalogue import CATALOGUE, CIFAR10_CLASSES, DatasetInfo
from ddbench.errors import DataError
from ddbench.foreign import class_folders
from ddbench.foreign.diagnosis import diagnose
from ddbench.foreign.formats import DD, FREPO, MTT, Found, choose, read

CIFAR10 = CATALOGUE["cifar10"]
WOOF = CATALOGUE["imagewoof"]
NETTE = CATALOGUE["imagenette"]


def images(seed: int = 0, count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) // 2


def only(path: Path, info: DatasetInfo | None = None) -> Found:
    (found,) = read(path, info)
    return found


def folders(root: Path, classes: Mapping[str, int]) -> Path:
    """A folder of each name, with one picture in the grey of its class."""
    for name, label in classes.items():
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 10 * label, np.uint8)).save(root / name / "0.png")
    return root


def by_colour(found: Found) -> bool:
    """Whether every picture has the label that its grey says."""
    assert found.labels is not None
    return found.images[:, 0, 0, 0].tolist() == [10 * label for label in found.labels.tolist()]


# Class folders.

NAMES: dict[str, Callable[[int], str]] = {
    "the dataset's names": lambda label: CIFAR10_CLASSES[label],
    "upper case": lambda label: CIFAR10_CLASSES[label].upper(),
    "numbers": str,
    "RDED": lambda label: f"{label:05d}",
    "SRe2L": lambda label: f"new{label:03d}",
    "numbers and names": lambda label: f"{label:02d}_{CIFAR10_CLASSES[label]}",
}


@pytest.mark.parametrize("missing", [None, 0, 4, 9])
@pytest.mark.parametrize("names", NAMES)
def test_a_class_that_is_missing_shifts_no_other(tmp_path: Path, names: str, missing: int | None) -> None:
    there = [label for label in range(10) if label != missing]
    found = only(folders(tmp_path / "set", {NAMES[names](label): label for label in there}), CIFAR10)
    assert found.labels is not None
    assert found.labels.tolist() == there
    assert by_colour(found)
    told = [finding.text for finding in diagnose(found, None, CIFAR10).findings if finding.code == "classes"]
    expected = [] if missing is None else [f"1 of 10 classes have no image: {CIFAR10_CLASSES[missing]} ({missing})"]
    assert told == expected


def test_a_folder_of_a_class_without_images_is_a_class_that_is_missing(tmp_path: Path) -> None:
    place = folders(tmp_path / "set", {name: label for label, name in enumerate(CIFAR10_CLASSES) if label})
    (place / "airplane").mkdir()
    (place / "logs").mkdir()
    found = only(place, CIFAR10)
    assert found.labels is not None
    assert found.labels.tolist() == list(range(1, 10))


@pytest.mark.parametrize("names", ["wnids", "names", "wnids and names", "ImageNet's numbers"])
@pytest.mark.parametrize("subset", ["imagenette", "imagewoof", "imageyellow"])
def test_classes_of_imagenet_subsets_by_what_they_are_called(tmp_path: Path, subset: str, names: str) -> None:
    info = CATALOGUE[subset]
    called = {
        "wnids": info.wnids,
        "names": info.class_names,
        "wnids and names": [f"{wnid}-{name}" for wnid, name in zip(info.wnids, info.class_names, strict=True)],
        "ImageNet's numbers": [f"{index:05d}" for index in class_folders.ILSVRC[subset]],
    }[names]
    found = only(folders(tmp_path / "set", {name: label for label, name in enumerate(called) if label != 3}), info)
    assert by_colour(found)
    assert found.labels is not None
    assert len(found.labels) == 9
    assert found.doubt == ""


def test_numbers_of_imagenet_rise_with_wordnet_ids() -> None:
    for name, numbers in class_folders.ILSVRC.items():
        pairs = sorted(zip(CATALOGUE[name].wnids, numbers, strict=True))
        assert [number for _, number in pairs] == sorted(numbers)


@pytest.mark.parametrize("form", ["{:05d}", "new{:03d}", "{}"])
def test_numbered_classes_of_a_subset_say_whose_order_is_meant(tmp_path: Path, form: str) -> None:
    place = folders(tmp_path / "set", {form.format(label): label for label in range(10)})
    woof, nette = only(place, WOOF), only(place, NETTE)
    assert by_colour(woof)
    assert by_colour(nette)
    assert "0 Australian terrier, 1 Border terrier" in woof.doubt
    assert "sorted WordNet ids, 0 Shih-Tzu, 1 Rhodesian ridgeback" in woof.doubt
    assert [finding.flag for finding in diagnose(woof, None, WOOF).findings if finding.code == "class-order"] == [
        "--labels imagefolder"
    ]
    # Here both orders are one.
    assert (nette.doubt, len(nette.notes)) == ("", 1)


def test_a_set_of_all_of_imagenet_has_the_classes_of_a_subset(tmp_path: Path) -> None:
    others = {"n09999999": 9, "n00000001": 9}
    by_id = only(folders(tmp_path / "ids", others | {wnid: label for label, wnid in enumerate(WOOF.wnids)}), WOOF)
    assert by_colour(by_id)
    assert by_id.notes == ("2 folders are other classes of ImageNet than those of imagewoof, and are left out",)
    numbers = dict.fromkeys(range(300), 9) | {
        index: label for label, index in enumerate(class_folders.ILSVRC["imagewoof"])
    }
    by_number = only(folders(tmp_path / "numbers", {f"new{k:03d}": label for k, label in numbers.items()}), WOOF)
    assert by_colour(by_number)
    assert len(by_number.images) == 10


def test_the_order_of_imagefolder() -> None:
    assert class_folders.imagefolder_order(NETTE) == list(range(10))
    order = class_folders.imagefolder_order(WOOF)
    assert [WOOF.wnids[label] for label in order] == sorted(WOOF.wnids)
    fashion = CATALOGUE["fashion-mnist"]
    assert fashion.class_names[class_folders.imagefolder_order(fashion)[0]] == "Ankle boot"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["airplane", "automobil"],
            r"1 of the 10 classes of cifar10, and 'automobil' is no class of it\. Did you mean",
        ),
        (["cat", "Cat", "dog"], r"two folders of the class cat, 'Cat' and 'cat'"),
        (["train", "val"], r"'train', 'val' are no classes of it"),
        (["cat", "7"], r"'7' is no class of it"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(folders(tmp_path / "set", {name: 0 for name in names}), CIFAR10)


def test_classes_of_a_dataset_of_ones_own_are_matched_by_its_names(tmp_path: Path) -> None:
    own = replace(CIFAR10, name="mine", classes=4, class_names=("2", "10", "c", "c++"))
    assert class_folders.number(["c++", "c", "10"], own, "set").classes == {"c++": 3, "c": 2, "10": 1}
    numbered = replace(own, classes=3, class_names=("1", "2", "3"))
    assert class_folders.number(["00003", "00001"], numbered, "set").classes == {"00003": 2, "00001": 0}
    assert class_folders.number(["00000", "00001"], numbered, "set").classes == {"00000": 0, "00001": 1}
    words = replace(own, classes=2, class_names=("猫", "犬"))
    assert class_folders.number(["犬"], words, "set").classes == {"犬": 1}


def test_without_a_dataset_names_are_numbered_and_that_is_said(tmp_path: Path) -> None:
    found = only(folders(tmp_path / "set", {"b": 1, "a": 0}))
    assert by_colour(found)
    assert "no dataset is said" in found.notes[0]


def test_classes_lie_further_down(tmp_path: Path) -> None:
    folders(tmp_path / "download" / "syn_data", {"00000": 0, "00001": 1})
    (tmp_path / "download" / "log.txt").write_text("x")
    assert by_colour(only(tmp_path, CIFAR10))


def test_a_set_with_a_class_missing_is_another_than_by_position(tmp_path: Path) -> None:
    some = folders(tmp_path / "some", {name: 1 for name in CIFAR10_CLASSES[1:]})
    other = folders(tmp_path / "other", {name: 1 for name in CIFAR10_CLASSES[:-1]})
    assert only(some, CIFAR10).sha256 != only(other, CIFAR10).sha256
    # Those that were read rightly before keep their digest, which is part of their runs' ids.
    whole = only(folders(tmp_path / "whole", {name: 1 for name in CIFAR10_CLASSES}), CIFAR10)
    assert whole.called == ()


# Files of torch.


def test_labels_in_a_list_are_labels(tmp_path: Path) -> None:
    rows = torch.eye(3)[labels()]
    for number, value in enumerate(
        (
            {"images": images(), "labels": labels().tolist()},
            [images(), labels().tolist()],
            {"images": list(images()), "labels": list(labels())},
            {"Images": images(), "LABELS": tuple(labels().tolist())},
            {"data": [images(), labels().tolist()]},
            {"data": [[images(), labels().tolist()]]},
            {"data": list(images()), "targets": labels().tolist()},
            [(images(), labels().tolist())],
        )
    ):
        torch.save(value, tmp_path / f"{number}.pt")
        found = only(tmp_path / f"{number}.pt")
        assert torch.equal(found.images, images())
        assert found.labels is not None
        assert torch.equal(found.labels, labels())
    torch.save({"images": images(), "labels": rows.tolist()}, tmp_path / "rows.pt")
    found = only(tmp_path / "rows.pt")
    assert found.labels is not None
    assert torch.equal(found.labels, rows)


def test_labels_that_are_no_numbers_are_not_ignored(tmp_path: Path) -> None:
    torch.save({"images": images(), "labels": ["cat"] * 6}, tmp_path / "words.pt")
    with pytest.raises(DataError, match="no array of numbers"):
        read(tmp_path / "words.pt")
    torch.save({"images": images(), "gt": labels().tolist()}, tmp_path / "other.pt")
    found = only(tmp_path / "other.pt")
    assert found.labels is None
    assert found.notes == (
        "'gt' has one row for each image and could be the labels; under the name 'labels' it is read",
    )


def test_lists_in_lists_end_in_a_sentence(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop += [loop] * 100
    for name, value in {"loop": loop, "uneven": [images()[0], images()[0, :, :4]]}.items():
        torch.save({"images": value, "labels": [0, 1]}, tmp_path / f"{name}.pt")
        with pytest.raises(DataError, match=f"{name}.pt"):
            read(tmp_path / f"{name}.pt")


def test_a_claim_that_holds_itself_a_hundred_times_ends(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop += [loop] * 100
    torch.save({"images": images(), "labels": labels(), "note": loop, "who": "us"}, tmp_path / "a.pt")
    assert only(tmp_path / "a.pt").claims == {"who": "us"}


def test_arrays_of_numpy_inside_a_torch_file_are_read(tmp_path: Path) -> None:
    value = {"images": images().numpy(), "labels": labels().numpy(), "accs": np.array([0.4]), "names": np.array(["a"])}
    torch.save(value, tmp_path / "a.pt")
    found = only(tmp_path / "a.pt")
    assert torch.equal(found.images, images())
    assert found.labels is not None
    assert torch.equal(found.labels, labels())
    assert found.claims == {"accs": [0.4]}
    torch.save({"images": images().numpy().astype(">f4"), "labels": np.asfortranarray(np.eye(6))}, tmp_path / "b.pt")
    assert torch.equal(only(tmp_path / "b.pt").images, images())
    torch.save({"images": images().numpy(), "labels": np.array(list("abcdef"))}, tmp_path / "c.pt")
    with pytest.raises(DataError, match="array of objects, texts or records"):
        read(tmp_path / "c.pt")


def test_arrays_of_objects_and_records_stay_closed(tmp_path: Path) -> None:
    # numpy would follow what such a file says of pointers and fields.
    record = np.zeros(6, np.dtype([("a", "f4"), ("b", "O")]))
    for number, odd in enumerate((record, np.array([print, None], dtype=object), np.array(["2020"], "M8[Y]"))):
        path = tmp_path / f"{number}.pt"
        torch.save({"images": images(), "labels": labels(), "odd": odd if number != 1 else odd[1:]}, path)
        assert only(path).claims == {}


def test_a_plain_pickle_says_how_to_make_tensors_of_it(tmp_path: Path) -> None:
    (tmp_path / "idm.pkl").write_bytes(pickle.dumps((images(), labels())))
    arrays = {"coreset_images": images().numpy(), "coreset_labels": labels().numpy()}
    (tmp_path / "rcig.pkl").write_bytes(pickle.dumps(arrays))
    for name in ("idm", "rcig"):
        with pytest.raises(DataError, match="is a plain pickle") as caught:
            read(tmp_path / f"{name}.pkl")
        lines = re.findall(r"^    (.*)$", str(caught.value), re.MULTILINE)
        assert len(lines) == 4
        script = "\n".join(lines).replace(repr(f"{name}.pkl"), repr(str(tmp_path / f"{name}.pkl")))
        exec(script.replace(f"'{name}-tensors.pt'", repr(str(tmp_path / "made.pt"))), {})
        found = only(tmp_path / "made.pt")
        assert torch.equal(found.images, images())
        assert found.labels is not None
        assert torch.equal(found.labels, labels())
    half = pickle.dumps((images(), labels()))[:500]
    (tmp_path / "half.pkl").write_bytes(half)
    with pytest.raises(DataError, match="damaged, half there"):
        read(tmp_path / "half.pkl")


@pytest.mark.parametrize("name", ["set.pt", "set.npz", "set.npy", "set.pkl", "set.safetensors", "images_best.pt"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("<!DOCTYPE html><html><title>Virus scan warning</title></html>", "is a web page, not the file"),
        ("\n\n<!-- saved --> <HTML><body>404</body></HTML>", "is a web page, not the file"),
        ('<?xml version="1.0"?><!doctype html><html/>', "is a web page, not the file"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page, not the file"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "is a pointer of Git LFS"),
    ],
)
def test_what_came_instead_of_the_file_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / name)


# Folders of pairs.


def pairs(folder: Path, *tags: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, tag in enumerate(tags):
        torch.save(images(number), folder / f"images{tag}.pt")
        torch.save(labels(), folder / f"labels{tag}.pt")
    return folder


def test_unwhitened_copies_are_left_out_and_tell_that_the_others_are_whitened(tmp_path: Path) -> None:
    place = pairs(tmp_path / "mtt", "_0", "_100", "_best")
    for tag in ("0", "100"):
        torch.save(images(9), place / f"images_zca_{tag}.pt")
    found = read(place)
    assert [(one.entry, one.whitened) for one in found] == [("0", True), ("100", True), ("best", True)]
    assert "images_zca_0.pt has pictures without whitening" in found[0].notes[0]
    assert torch.equal(choose(found, "100", place)[0].images, images(1))
    copy = only(place / "images_zca_100.pt")
    assert torch.equal(copy.images, images(9))
    assert copy.labels is not None
    assert [path.name for path in copy.files] == ["images_zca_100.pt", "labels_100.pt"]
    for tag in ("0", "100", "best"):
        (place / f"images_{tag}.pt").unlink()
    assert [one.entry for one in read(place)] == ["zca_0", "zca_100"]


def test_pairs_with_a_word_before_images(tmp_path: Path) -> None:
    for word, value in {"images": images(), "labels": labels(), "lr": torch.tensor(0.1)}.items():
        torch.save(value, tmp_path / f"ema_{word}_best.pt")
    found = only(tmp_path)
    assert (found.layout, found.entry) == (MTT, "ema_best")
    assert found.lr is not None
    assert float(found.lr) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("images", "only"), ("images_best", "best"), ("imagesbest", "best"), ("images7", "7"), ("my_images", "0"),
     ("imagenet", "0"), ("image_set", "0"), ("dm", "0")],
)  # fmt: skip
def test_a_file_of_images_alone_keeps_its_entry(tmp_path: Path, name: str, entry: str) -> None:
    # It is part of the id of the run that the set has become.
    torch.save(images(), tmp_path / f"{name}.pt")
    assert only(tmp_path / f"{name}.pt").entry == entry


@pytest.mark.parametrize(
    ("form", "there", "sentence"),
    [
        ("_{}", (0, 2), "shard 1 is missing"),
        ("_{}", (0, 1, 3), "shard 2 is missing"),
        ("_shard_{}", (0, 3), "shards 1, 2 are missing"),
        ("_shard_{}", (2, 3), "shard 1 is missing"),
        ("_{}_of_4", (0, 1, 2), "shard 3 is missing"),
        ("_part{}", (0, 2, 3), "shard 1 is missing"),
    ],
)
def test_a_shard_that_is_lost_is_named(tmp_path: Path, form: str, there: tuple[int, ...], sentence: str) -> None:
    pairs(tmp_path, *(form.format(number) for number in there))
    with pytest.raises(DataError, match=sentence):
        read(tmp_path)


def test_labels_of_a_shard_that_is_lost_tell_of_it(tmp_path: Path) -> None:
    pairs(tmp_path, "_0", "_1")
    torch.save(labels(), tmp_path / "labels_2.pt")
    with pytest.raises(DataError, match="shard 2 is missing"):
        read(tmp_path)


def test_steps_are_no_shards(tmp_path: Path) -> None:
    assert [one.entry for one in read(pairs(tmp_path, "_0", "_500", "_1000"))] == ["0", "500", "1000"]


# Whole projects.


def test_steps_of_dataset_distillation_are_a_schedule(tmp_path: Path) -> None:
    steps = [(images(k), labels(), torch.tensor(0.02 + k)) for k in range(3)]
    torch.save(steps * 2, tmp_path / "results.pth")
    found = only(tmp_path / "results.pth")
    assert (found.layout, len(found.images)) == (DD, 18)
    assert found.schedule is not None
    assert found.schedule.tolist() == 2 * [list(range(6 * k, 6 * k + 6)) for k in range(3)]
    assert found.lr is not None
    assert found.lr.tolist() == pytest.approx(2 * [0.02, 1.02, 2.02])
    torch.save(steps[:1], tmp_path / "one.pth")
    one = only(tmp_path / "one.pth")
    assert one.schedule is not None
    assert one.schedule.shape == (1, 6)
    torch.save([*steps, (images(count=4), labels(4), torch.tensor(0.1))], tmp_path / "uneven.pth")
    with pytest.raises(DataError, match="steps that differ in the number"):
        read(tmp_path / "uneven.pth")
    assert diagnose(found, None, CATALOGUE["mnist"]).normalised == "standard(stats=dd)"
    assert diagnose(found, None, CATALOGUE["digits"]).normalised == "standard"


def test_frepo_is_read_with_regression_labels(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "step000100.npz",
        image=images().permute(0, 2, 3, 1).numpy(),
        label=3 * torch.eye(3)[labels()].numpy() - 0.1,
    )
    found = only(tmp_path / "step000100.npz")
    assert torch.equal(found.images, images())
    assert (found.layout, diagnose(found).label_kind, found.habit) == (FREPO, "regression", "frepo-zca(reg=0.1)")


FILES: dict[str, dict[str, Any]] = {
    "IDC": {"data.pt": [images(), labels()]},
    "NCFM": {"distilled_data/data_20000.pt": [images(), labels()]},
    "DD-Ranking": {"images.pt": images()},
    "FTD": {"EMA/ema_images_best.pt": images(), "EMA/ema_labels_best.pt": labels()},
    "beside files that are no sets": {"data.pt": [images(), labels()], "syn_lr_best.pt": torch.tensor(0.1)},
    "one set in an archive": {"a/b/set.pt": {"images": images(), "labels": labels()}},
}


def written(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, folder / name)
    return folder


def test_pictures_to_look_at_are_no_classes(tmp_path: Path) -> None:
    written(folders(tmp_path, {"images": 0, "plots": 1}), {"data.pt": [images(), labels()]})
    assert torch.equal(only(tmp_path, CATALOGUE["digits"]).images, images())


@pytest.mark.parametrize("project", FILES)
def test_a_folder_with_one_file_that_is_a_set(tmp_path: Path, project: str) -> None:
    written(tmp_path, FILES[project])
    (tmp_path / "init.png").write_bytes(b"a picture to look at")
    assert torch.equal(only(tmp_path, CATALOGUE["digits"]).images, images())


def test_a_folder_with_several_sets_or_none_lists_its_files(tmp_path: Path) -> None:
    several = written(tmp_path / "a", {"data_100.pt": [images(), labels()], "data_200.pt": [images(), labels()]})
    with pytest.raises(DataError, match=r"2 files that could be sets: data_100\.pt, data_200\.pt\. Say which is meant"):
        read(several)
    parts = {f"{name}_best.pt": torch.zeros(3, 2) for name in ("saet", "scm", "syn_lr")}
    with pytest.raises(DataError, match=r"saet_best\.pt, scm_best\.pt, syn_lr_best\.pt\. None of them is a set"):
        read(written(tmp_path / "speed", parts))
