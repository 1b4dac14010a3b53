"""Downloads: checked, whole or not at all, and not repeated. Served from this machine."""

import gzip
import hashlib
import io
import pickle
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddbench.data import catalogue, sources
from ddbench.errors import ConfigError, DataError


def tiny_zip(folder: Path, classes: int = 3, per_class: int = 4) -> Path:
    """The layout of Tiny ImageNet's zip, smaller: val has one folder of images and a list of their classes."""
    rng = np.random.default_rng(0)

    def image(grey: bool) -> bytes:
        shape = (8, 8) if grey else (8, 8, 3)
        written = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(written, "JPEG")
        return written.getvalue()

    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        lines = []
        for label in range(classes):
            wnid = f"n{label:08d}"
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "0 0 1 1")
            for number in range(per_class):
                archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{number}.JPEG", image(number == 0))
            archive.writestr(f"tiny-imagenet-200/val/images/val_{classes - label}.JPEG", image(False))
            lines.append(f"val_{classes - label}.JPEG\t{wnid}\t0\t0\t62\t57\n")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(reversed(lines)))
        archive.writestr("tiny-imagenet-200/test/images/test_0.JPEG", image(False))
        archive.writestr("tiny-imagenet-200/wnids.txt", "")
    return path


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue's Tiny ImageNet, pointed at a small zip on this machine."""
    folder, address = served
    path = tiny_zip(folder)
    entry = replace(
        catalogue.CATALOGUE["tiny-imagenet"],
        shape=(3, 8, 8),
        classes=3,
        train=12,
        test=3,
        url=f"{address}/{path.name}",
        md5=hashlib.md5(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny-imagenet", entry)
    return path


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_a_download_is_checked_decoded_and_loadable_without_network(tiny: Path, tmp_path: Path) -> None:
    seen = []
    root = tmp_path / "data"
    manifest = sources.get("tinyimagenet", root, lambda *step: seen.append(step))
    assert manifest["original"]
    assert manifest["title"] == "Tiny ImageNet"
    assert {what for what, _, _ in seen} == {"downloading", "unpacking", "decoding images", "storing"}
    assert all(done <= total for _, done, total in seen)
    assert leftovers(root) == ["tiny-imagenet"]
    tiny.unlink()
    dataset = sources.load("tiny-imagenet", root)
    assert dataset.train.counts.tolist() == [4, 4, 4]
    assert dataset.train.classes == ("n00000000", "n00000001", "n00000002")
    assert dataset.train.shape == (3, 8, 8)
    assert sources.get("tiny-imagenet", root) == manifest


def test_validation_images_get_the_classes_of_the_list(tiny: Path, tmp_path: Path) -> None:
    sources.get("tiny-imagenet", tmp_path / "data")
    test = sources.load("tiny-imagenet", tmp_path / "data").test.load()
    with zipfile.ZipFile(tiny) as archive:
        for label in range(3):
            written = archive.read(f"tiny-imagenet-200/val/images/val_{3 - label}.JPEG")
            expected = np.asarray(Image.open(io.BytesIO(written))).transpose(2, 0, 1)
            assert np.array_equal(test.images[label], expected)


def test_the_same_zip_added_by_hand_is_the_original_too(tiny: Path, tmp_path: Path) -> None:
    added = sources.add("tiny-imagenet", tiny, tmp_path / "added")
    assert added["original"]
    assert added["fingerprint"] == sources.get("tiny-imagenet", tmp_path / "got")["fingerprint"]


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content[:-1] + b"!"])
def test_a_damaged_download_is_refused_and_can_be_repeated(
    tiny: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = tiny.read_bytes()
    tiny.write_bytes(damage(whole))
    with pytest.raises(DataError, match=r"tiny-imagenet-200.zip arrived damaged: .* md5 \w+ instead of"):
        sources.get("tiny-imagenet", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []
    tiny.write_bytes(whole)
    assert sources.get("tiny-imagenet", tmp_path / "data")["original"]


def test_a_missing_file_on_the_server_is_said_in_words(tiny: Path, tmp_path: Path) -> None:
    tiny.unlink()
    with pytest.raises(
        DataError, match=r"could not be downloaded: HTTP Error 404.*ddbench data add tiny-imagenet PATH"
    ):
        sources.get("tiny-imagenet", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_a_copy_is_not_silently_taken_for_the_original(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        for wnid in ("n0", "n1", "n2"):
            (folder / part / wnid).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / part / wnid / "0.png")
    assert sources.add("tiny-imagenet", folder, tmp_path / "data")["title"] == "Tiny ImageNet, PNG copy, 3 + 3 images"
    with pytest.raises(DataError, match="already, as 'Tiny ImageNet, PNG copy"):
        sources.get("tiny-imagenet", tmp_path / "data")
    assert sources.get("tiny-imagenet", tmp_path / "data", force=True)["original"]


def test_a_line_of_the_list_without_its_image_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_zip(tmp_path)) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(DataError, match=r"line 2 of val/val_annotations.txt of .* names 'val_2.JPEG' of 'n00000001'"):
        sources.add("mine", folder, tmp_path / "data")


def idx_gz(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.tobytes(), mtime=0)


@pytest.fixture
def mnist_mirror(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's MNIST, pointed at 20 + 10 images on this machine."""
    from torchvision import datasets

    folder, address = served
    rng = np.random.default_rng(0)
    resources = []
    for prefix, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8)[::-1] % 10
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(idx_gz(np.ascontiguousarray(values)))
            resources.append((path.name, hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return folder


def test_how_much_torchvision_has_downloaded_is_told_and_its_own_bar_is_silent(
    mnist_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "DOWNLOAD_SECONDS", 0.0001)
    seen: list[tuple[str, int, int]] = []
    sources.get("mnist", tmp_path / "data", lambda *step: seen.append(step))
    assert seen[0] == ("downloading", 0, 12_000_000)
    assert len([what for what, _, _ in seen if what == "downloading"]) > 1
    assert seen[-1] == ("storing", 0, 1)
    assert capsys.readouterr().err == ""


def test_torchvision_downloads_are_decoded_once(mnist_mirror: Path, tmp_path: Path) -> None:
    manifest = sources.get("mnist", tmp_path / "data")
    assert manifest["origin"] == "torchvision (checksummed original files)"
    assert manifest["original"]
    assert leftovers(tmp_path / "data") == ["mnist"]
    train = sources.load("mnist", tmp_path / "data").train
    assert train.shape == (1, 28, 28)
    assert train.counts.tolist() == [2] * 10
    images = np.frombuffer(gzip.decompress((mnist_mirror / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert np.array_equal(train.images[0, 0], images.reshape(-1, 28, 28)[9])


def test_the_files_that_torchvision_downloads_can_be_added_by_hand(mnist_mirror: Path, tmp_path: Path) -> None:
    added = sources.add("mnist", mnist_mirror, tmp_path / "added")
    assert added["original"]
    assert added["fingerprint"] == sources.get("mnist", tmp_path / "got")["fingerprint"]
    for path in list(mnist_mirror.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = sources.add("mnist", mnist_mirror, tmp_path / "plain")
    assert plain["fingerprint"] == added["fingerprint"]
    assert not plain["original"]  # the published checksums are those of the compressed files


def test_a_file_that_torchvision_finds_damaged_is_refused(mnist_mirror: Path, tmp_path: Path) -> None:
    (mnist_mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"mnist could not be downloaded: .* Nothing of it was kept"):
        sources.get("mnist", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


@pytest.fixture
def cifar_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original files of CIFAR-10 in small, with checksums to fit."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, value: object) -> tuple[str, str]:
        (folder / name).write_bytes(pickle.dumps(value))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch() -> dict[str, object]:
        return {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", batch())])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch())])
    name, md5 = write("batches.meta", {"label_names": list(catalogue.CIFAR10_CLASSES)})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder


def test_original_cifar_files_can_be_added_by_hand(cifar_batches: Path, tmp_path: Path) -> None:
    manifest = sources.add("cifar10", cifar_batches, tmp_path / "data")
    assert manifest["original"]
    train = sources.load("cifar10", tmp_path / "data").train
    stored = pickle.loads((cifar_batches / "data_batch_1").read_bytes())["data"]
    assert np.array_equal(train.images[3].flatten(), stored[11])
    assert train.labels[3] == 1


def test_original_files_with_a_wrong_checksum_are_refused(cifar_batches: Path, tmp_path: Path) -> None:
    with (cifar_batches / "test_batch").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match=r"cifar10 could not be read from .*corrupted"):
        sources.add("cifar10", cifar_batches, tmp_path / "data")


def test_a_torchvision_that_does_not_import_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"torchvision does not work here .* Install torch and torchvision together"):
        sources.get("cifar10", tmp_path / "data")


def test_imagenet_subsets_say_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagewoof cannot be downloaded .*`ddbench data add imagewoof FOLDER`"):
        sources.get("imagewoof", tmp_path)


def test_only_the_catalogue_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset 'mine'"):
        sources.get("mine", tmp_path)
