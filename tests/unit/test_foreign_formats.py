"""Every layout that sets are published in, made by us, and every way in which such a file can be broken."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ddbench import SyntheticSet
from ddbench import synthetic as sets
from ddbench.cli import root
from ddbench.data.catalogue import CATALOGUE
from ddbench.errors import DataError
from ddbench.foreign.claims import claims_of
from ddbench.foreign.formats import Found, choose, read
from ddbench.synthetic import Recipe

CLASSES, IPC = 3, 2


def images(seed: int = 0, count: int = CLASSES * IPC) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(IPC)


def soft() -> Tensor:
    return torch.randn(CLASSES * IPC, CLASSES, generator=torch.Generator().manual_seed(9))


def only(path: Path) -> Found:
    (found,) = read(path)
    return found


def test_the_layout_of_dc_holds_several_sets_and_what_its_maker_measured(tmp_path: Path) -> None:
    value = {
        "data": [[images(seed), labels()] for seed in range(5)],
        "accs_all_exps": {"ConvNet": [np.float64(0.51), np.float32(0.5)]},
    }
    torch.save(value, tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt")
    found = read(tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt")
    assert [one.entry for one in found] == ["0", "1", "2", "3", "4"]
    assert all(torch.equal(one.images, images(seed)) for seed, one in enumerate(found))
    assert found[0].labels is not None
    assert torch.equal(found[0].labels, labels())
    assert found[0].claims == {"accs_all_exps": {"ConvNet": [0.51, 0.5]}}
    assert len(choose(found, None, tmp_path)) == 5
    assert choose(found, "3", tmp_path)[0] is found[3]


def test_numbers_of_numpy_1_and_2_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    value = {"data": [[images(), labels()]], "acc": np.float64(0.5)}
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in buffer.getvalue()
    for name, content in (("new", buffer.getvalue()), ("old", buffer.getvalue().replace(new, old))):
        (tmp_path / f"{name}.pt").write_bytes(content)
        assert only(tmp_path / f"{name}.pt").claims == {"acc": 0.5}


def test_pairs_of_the_mtt_family_are_joined_with_their_step_size(tmp_path: Path) -> None:
    torch.save(images(), tmp_path / "images_best.pt")
    torch.save(soft(), tmp_path / "labels_best.pt")
    torch.save(torch.tensor(0.02), tmp_path / "lr_best.pt")
    for path in (tmp_path, tmp_path / "images_best.pt"):
        found = only(path)
        assert torch.equal(found.images, images())
        assert found.labels is not None
        assert torch.equal(found.labels, soft())
        assert found.lr is not None
        assert float(found.lr) == pytest.approx(0.02)
        assert [file.name for file in found.files] == ["images_best.pt", "labels_best.pt", "lr_best.pt"]


def test_steps_of_the_mtt_family_are_sets_of_their_own_and_one_must_be_named(tmp_path: Path) -> None:
    for tag in ("1000", "2000", "best"):
        torch.save(images(len(tag)), tmp_path / f"images_{tag}.pt")
        torch.save(labels(), tmp_path / f"labels_{tag}.pt")
    found = read(tmp_path)
    assert [one.entry for one in found] == ["1000", "2000", "best"]
    said = (
        r"3 states of a set: 1000, 2000, best \(chosen on test images\)\. .*--entry 2000; choosing by .* on test data"
    )
    with pytest.raises(DataError, match=said):
        choose(found, None, tmp_path)
    with pytest.raises(DataError, match=r"no entry '3000'\. .*It has 1000, 2000, best \(chosen on test images\)") as no:
        choose(found, "3000", tmp_path)
    assert no.value.exit_code == 2


def test_what_was_chosen_on_test_images_is_last_and_never_advertised(tmp_path: Path) -> None:
    for tag in ("best", "final", *map(str, range(100, 1100, 100))):
        torch.save(images(), tmp_path / f"images_{tag}.pt")
        torch.save(labels(), tmp_path / f"labels_{tag}.pt")
    found = read(tmp_path)
    assert [one.entry for one in found][-2:] == ["final", "best"]
    with pytest.raises(DataError, match=r"as in --entry final;"):
        choose(found, None, tmp_path)
    shown = CliRunner().invoke(root, ["inspect", str(tmp_path)])
    assert "12: 100, 200, 300, 400, 500, 600, 700, …, best (chosen on test images); shown is 100" in shown.stdout
    assert [one.entry for one in choose(found, "best", tmp_path)] == ["best"]


@pytest.mark.parametrize("name", ["{}", "{}_of_3", "shard_{}", "best_shard{}", "00{}-of-00003"])
def test_shards_are_joined_in_their_order(tmp_path: Path, name: str) -> None:
    for number in range(3):
        rows = slice(2 * number, 2 * number + 2)
        torch.save(images()[rows], tmp_path / f"images_{name.format(number)}.pt")
        torch.save(labels()[rows], tmp_path / f"labels_{name.format(number)}.pt")
    found = only(tmp_path)
    assert torch.equal(found.images, images())
    assert found.labels is not None
    assert torch.equal(found.labels, labels())


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_npz_in_both_orders_of_axes(tmp_path: Path, last: bool, wide: bool) -> None:
    x = images().double() if wide else images()
    array = x.permute(0, 2, 3, 1).numpy() if last else x.numpy()
    np.savez(tmp_path / "set.npz", images=array, labels=soft().numpy())
    found = only(tmp_path / "set.npz")
    assert torch.equal(found.images, images())
    assert found.labels is not None
    assert found.labels.shape == (CLASSES * IPC, CLASSES)


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("data", "targets")])
def test_usual_names_of_arrays(tmp_path: Path, keys: tuple[str, str]) -> None:
    np.savez(tmp_path / "set.npz", **{keys[0]: images().numpy(), keys[1]: labels().numpy()}, lr=np.float32(0.1))
    torch.save({keys[0]: images(), keys[1]: labels(), "lr": 0.1}, tmp_path / "set.pt")
    save_file({keys[0]: images(), keys[1]: labels(), "lr": torch.tensor(0.1)}, tmp_path / "set.safetensors")
    for suffix in ("npz", "pt", "safetensors"):
        found = only(tmp_path / f"set.{suffix}")
        assert found.lr is not None
        assert (tuple(found.images.shape), float(found.lr)) == ((6, 3, 8, 8), pytest.approx(0.1))


def test_one_big_array_of_bytes_finds_its_labels_beside_it(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", array)
    assert only(tmp_path / "images.npy").labels is None
    np.save(tmp_path / "labels.npy", labels().numpy())
    found = only(tmp_path / "images.npy")
    assert found.images.dtype == torch.uint8
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), array)
    assert found.labels is not None
    np.savez(tmp_path / "whole.npz", images=array.astype(np.int64), labels=labels().numpy())
    assert only(tmp_path / "whole.npz").images.dtype == torch.uint8


def test_a_folder_of_images_by_class_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    info = CATALOGUE["fashion-mnist"]
    for label, name in enumerate(info.class_names):
        folder = tmp_path / "set" / name.replace("/", "_")
        folder.mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 10 * label, dtype=np.uint8)).save(folder / "0.png")
    (found,) = read(tmp_path / "set", info)
    assert found.labels is not None
    assert found.images[:, 0, 0, 0].tolist() == [10 * label for label in found.labels.tolist()]


def test_folders_that_are_numbers_are_class_numbers(tmp_path: Path) -> None:
    for label in (2, 10, 0):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "set" / str(label) / "a.png")
    found = only(tmp_path / "set")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 10]


def test_our_own_file_says_everything_itself(tmp_path: Path) -> None:
    whole = SyntheticSet(images(), soft(), Recipe(lr=torch.tensor(0.3)), pixels="zca(eps=0.1)", label_kind="logit")
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "cifar10"})
    found = only(tmp_path / "set.safetensors")
    assert found.ours is not None
    assert (found.ours.pixels, found.ours.label_kind, found.about) == ("zca(eps=0.1)", "logit", {"dataset": "cifar10"})


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.place}",)


def _bomb(folder: Path) -> Bomb:
    return Bomb(folder / "executed")


def _write(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        value = make(folder)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif name.endswith(".npz"):
            np.savez(path, **value)
        elif name.endswith(".npy"):
            np.save(path, value)
        else:
            torch.save(value, path)
        return path

    return write


def _half(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def _pair(**changes: Any) -> Callable[[Path], Any]:
    return lambda _: {"data": [[changes.get("x", images()), changes.get("y", labels())]]}


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no.pt", "there is no file"),
    "text": (_write("notes.txt", lambda _: b"hello"), r"is no set that ddbench reads: its name ends in '\.txt'"),
    "truncated pt": (_write("a.pt", lambda _: _half({"data": [[images(), labels()]]})), "damaged, half there"),
    "empty pt": (_write("a.pt", lambda _: b""), "damaged, half there"),
    "text called pt": (_write("a.pt", lambda _: b"hello world"), "damaged, half there"),
    "pickle with code": (_write("a.pt", lambda folder: {"data": _bomb(folder)}), r"would call \w+\.system"),
    "bare pickle with code": (
        _write("a.pt", lambda folder: pickle.dumps(_bomb(folder))),
        r"cannot be opened|would call",
    ),
    "npz with code": (
        _write("a.npz", lambda folder: {"images": np.array([_bomb(folder)], dtype=object)}),
        "refused: it holds pickled objects",
    ),
    "npy with code": (
        _write("a.npy", lambda folder: np.array([_bomb(folder)], dtype=object)),
        "refused: it holds pickled objects",
    ),
    "truncated npz": (_write("a.npz", lambda _: b"PK\x03\x04 and no more"), "damaged or half there"),
    "truncated safetensors": (_write("a.safetensors", lambda _: b"\x10\x00\x00"), "not a readable safetensors"),
    "no images": (_write("a.npz", lambda _: {"weights": np.zeros(3)}), "has weights in it, and no images"),
    "empty list": (_write("a.pt", lambda _: {"data": []}), "empty list 'data'"),
    "no pair": (_write("a.pt", lambda _: {"data": [images()]}), "not a pair of images and labels"),
    "a number": (_write("a.pt", lambda _: 3), "holds a int, and no images"),
    "flat images": (_write("a.pt", _pair(x=torch.zeros(6, 192))), r"images of shape \(6, 192\)"),
    "four channels": (_write("a.pt", _pair(x=torch.zeros(6, 4, 8, 8))), "no axis is 1 or 3 channels"),
    "no image": (_write("a.pt", _pair(x=torch.zeros(0, 3, 8, 8))), "images of shape"),
    "complex images": (_write("a.pt", _pair(x=torch.zeros(6, 3, 8, 8).cfloat())), "pixels are real numbers"),
    "integers beyond bytes": (_write("a.pt", _pair(x=torch.full((6, 3, 8, 8), 300))), "from 300 to 300"),
    "fewer labels": (_write("a.pt", _pair(y=labels()[:4])), r"labels of shape \(4,\) for 6 images"),
    "fractional labels": (_write("a.pt", _pair(y=labels() + 0.5)), "neither whole numbers nor one row"),
    "labels of words": (_write("a.pt", _pair(y=["a"] * 6)), "no array of numbers"),
    "three axes of labels": (_write("a.pt", _pair(y=torch.zeros(6, 2, 2))), "one row each is needed"),
    "folder without classes": (lambda folder: folder, r"0 class folders.*Read are"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_a_sentence_and_nothing_in_it_is_executed(case: str, tmp_path: Path) -> None:
    make, sentence = BROKEN[case]
    with pytest.raises(DataError, match=sentence):
        read(make(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / name / "0.png")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b/1\.png of .* cannot be decoded"):
        read(tmp_path)


def test_shards_that_are_missing_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    for number in (0, 2):
        torch.save(images()[:2], tmp_path / f"images_{number}_of_3.pt")
        torch.save(labels()[:2], tmp_path / f"labels_{number}_of_3.pt")
    with pytest.raises(DataError, match=r"shard 1 is missing\. A part of a set is another set"):
        read(tmp_path)
    torch.save(images()[:2, :, :4, :4], tmp_path / "images_1_of_3.pt")
    torch.save(labels()[:2], tmp_path / "labels_1_of_3.pt")
    with pytest.raises(DataError, match="do not belong together"):
        read(tmp_path)


def test_images_without_their_labels_say_which_file_is_missing(tmp_path: Path) -> None:
    torch.save(images(), tmp_path / "images_best.pt")
    for path in (tmp_path, tmp_path / "images_best.pt"):
        found = only(path)
        assert (found.labels, found.entry) == (None, "best")
        assert found.notes == ("labels_best.pt is not beside images_best.pt; if it was published, fetch it too",)
    torch.save(images(), tmp_path / "images_other.pt")
    torch.save(labels(), tmp_path / "labels_other.pt")
    # What was chosen on test images comes last.
    assert [(one.entry, one.labels is None) for one in read(tmp_path)] == [("other", False), ("best", True)]


def test_one_shard_without_its_labels_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        torch.save(images()[:3], tmp_path / f"images_{number}.pt")
    torch.save(labels()[:3], tmp_path / "labels_0.pt")
    with pytest.raises(DataError, match=r"images_1\.pt has no labels_1\.pt beside it"):
        read(tmp_path)


def test_a_damaged_description_is_a_sentence(tmp_path: Path) -> None:
    for text in ("no json", json.dumps({"format": "other"}), json.dumps({"format": sets.FORMAT})):
        np.savez(
            tmp_path / "a.npz", images=np.zeros((6, 8, 8, 3), np.float32), labels=np.zeros(6), ddbench=np.array(text)
        )
        with pytest.raises(DataError, match=r"cannot be read|is damaged"):
            read(tmp_path / "a.npz")


def test_claims_are_words_and_numbers_and_not_too_many() -> None:
    found = claims_of({"log": [0.1] * 5000, "net": object(), "who": "us", "acc": np.float32(0.5)})
    assert found.keys() == {"log", "who", "acc"}
    assert len(found["log"]) < 2100


DAMAGES: dict[str, dict[str, Any]] = {
    "no description": {"about": 3},
    "no pixels": {"pixels": None, "label_kind": 7},
    "a step size of words": {"recipe": {"lr": "fast"}},
    "an unknown wish": {"recipe": {"dropout": 0.5}},
    "a recipe that is none": {"recipe": [1, 2]},
    "an unknown kind of labels": {"label_kind": "fuzzy"},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["pt", "npz", "safetensors"])
def test_a_file_that_only_claims_to_be_ours_is_a_sentence(tmp_path: Path, kind: str, damage: str) -> None:
    whole = SyntheticSet(images(), labels(), pixels="standard")
    text = json.dumps(sets.header_of(whole) | DAMAGES[damage])
    path = tmp_path / f"set.{kind}"
    if kind == "pt":
        torch.save({"data": [[images(), labels()]], "ddbench": text}, path)
    elif kind == "npz":
        array = images().permute(0, 2, 3, 1).numpy()
        np.savez(path, images=array, labels=labels().numpy(), ddbench=np.array(text))
    else:
        save_file({"images": images(), "labels": labels()}, path, metadata={"ddbench": text})
    with pytest.raises(DataError):
        read(path)


def test_parts_of_our_layouts_that_are_missing_are_a_sentence(tmp_path: Path) -> None:
    text = json.dumps(sets.header_of(SyntheticSet(images(), labels(), pixels="standard")))
    for name, value in {"none": [], "number": [3], "short": [[images()]]}.items():
        torch.save({"data": value, "ddbench": text}, tmp_path / f"{name}.pt")
        with pytest.raises(DataError):
            read(tmp_path / f"{name}.pt")
    np.savez(tmp_path / "a.npz", labels=np.zeros(6), ddbench=np.array(text))
    with pytest.raises(DataError, match="has no images"):
        read(tmp_path / "a.npz")
