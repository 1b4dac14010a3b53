"""The data folder: datasets decoded once into uint8 tensors that are memory-mapped when read.

Layout: ROOT/NAME/{train.safetensors, test.safetensors, manifest.json}. A folder appears whole, by one rename.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddbench.data.archives import ensure_space
from ddbench.data.manifests import SCHEMA, Manifest, PartManifest, damaged, digest, find
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import DataError, RunError
from ddbench.files import disk_is_full, locked, not_regular, once, put_folder, write_atomically, write_json

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclass(frozen=True, eq=False)
class Content:
    """What was read from somebody's files."""

    train: DatasetTensors
    test: DatasetTensors
    origin: str  # "image folder (JPEG)", "torchvision (checksummed original files)", ...
    kind: str  # what a copy is called after: "JPEG", "npz", ...
    split: str = "as in the source"
    preprocessing: str = "none"
    original: bool = False
    left_out: str = ""  # "12 files: 10 .dcm, 2 without suffix"


def make_manifest(name: str, title: str, content: Content, original: bool) -> Manifest:
    """The manifest of a dataset that has just been read."""
    train, test = content.train, content.test
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        title=title,
        original=original,
        origin=content.origin,
        split=content.split,
        preprocessing=content.preprocessing,
        shape=list(train.shape),
        classes=list(train.classes),
        train=PartManifest(images=len(train), fingerprint=train.fingerprint),
        test=PartManifest(images=len(test), fingerprint=test.fingerprint),
        fingerprint=whole_fingerprint(train, test),
        contents=whole_contents(train, test),
    )
    if content.left_out:
        manifest["left_out"] = content.left_out
    return manifest


def whole_fingerprint(train: DatasetTensors, test: DatasetTensors) -> str:
    """What both parts together are."""
    return digest(f"{train.fingerprint} {test.fingerprint}".encode())


def whole_contents(train: DatasetTensors, test: DatasetTensors) -> str:
    """What both parts together are, whatever the order of the images inside either."""
    return digest(f"{train.contents} {test.contents}".encode())


def read_part(root: Path, manifest: Manifest, part: Literal["train", "test"]) -> DatasetTensors:
    """The training or the test images of a dataset in the data folder, memory-mapped.

    They are compared with the manifest's fingerprint, once in a process: a manifest that was read before the dataset
    was replaced does not fit the new images.
    Raises: DataError if the file is missing, damaged or of other data.
    """
    path = root / manifest["name"] / f"{part}.safetensors"
    try:
        if why := not_regular(path):
            raise OSError(why)
        tensors = load_file(path)
        images, labels = tensors["images"], tensors["labels"]
    except (SafetensorError, OSError, KeyError) as error:
        raise damaged(path, manifest["name"], str(error)) from error
    if list(images.shape) != [manifest[part]["images"], *manifest["shape"]]:
        raise damaged(path, manifest["name"], f"it has images of shape {list(images.shape)}")
    try:
        data = DatasetTensors(images, labels, tuple(manifest["classes"]))
    except DataError as error:
        raise damaged(path, manifest["name"], str(error).rstrip(".")) from None
    found, expected = once(path, f"images of {len(data.classes)} classes", lambda: data.fingerprint), manifest[part]
    if found != expected["fingerprint"]:
        _refuse_replaced(root, manifest)
        why = f"its images and labels have the fingerprint {found}, and the manifest says {expected['fingerprint']}"
        raise damaged(path, manifest["name"], why)
    return replace(data, known_fingerprint=found)


def _refuse_replaced(root: Path, manifest: Manifest) -> None:
    """Raise DataError if another dataset has taken the place of this one since its manifest was read."""
    name = manifest["name"]
    try:
        now = find(root, name)
    except DataError:
        return
    if now is not None and now["fingerprint"] != manifest["fingerprint"]:
        raise DataError(
            f"the dataset {name} in the data folder '{root}' has been replaced since this command began: it had the "
            f"fingerprint {manifest['fingerprint']} and has {now['fingerprint']}. Run the same command again, which "
            "works on the new one; or put the old one back."
        )


@contextmanager
def building(root: Path, name: str, progress: Progress | None = None) -> Iterator[Path]:
    """A locked, empty folder in which to build a dataset; it is gone afterwards, also after a failure.

    Waits while another process builds it.

    Raises: DataError in place of the system's errors.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(root / name)
        with locked(root / f".{name}.lock", "--data", _waiting(name, progress)):
            work = root / f".{name}.partial"
            _put_back(root, name)
            shutil.rmtree(work, ignore_errors=True)  # an earlier attempt may have been killed
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except RunError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        if disk_is_full(error):
            raise DataError(
                f"{name} could not be stored in the data folder '{root}': the disk is full. Nothing of it was kept. "
                "Free some space and run the same command again."
            ) from error
        where = error.filename or root
        raise DataError(f"{name} could not be stored: {where}: {error.strerror or error}.") from error


def _waiting(name: str, progress: Progress | None) -> Callable[[], None] | None:
    return None if progress is None else lambda: progress(f"waiting for another process that adds {name}", 0, 1)


def put_back(root: Path, name: str) -> None:
    """A dataset that was taken away for another one, by a process that was killed before the other one was there."""
    if _replaced(root, name).is_dir() and not (root / name).exists():
        with locked(root / f".{name}.lock", "--data"):
            _put_back(root, name)


def _put_back(root: Path, name: str) -> None:
    if _replaced(root, name).is_dir() and not (root / name).exists():
        _replaced(root, name).rename(root / name)


def _replaced(root: Path, name: str) -> Path:
    return root / f".{name}.partial" / "ready.replaced"


def install(root: Path, work: Path, content: Content, manifest: Manifest, *, force: bool) -> Manifest:
    """Write a dataset inside `work` and move it to its place in the data folder.

    Raises: DataError if other data is there under this name and `force` is not given.
    """
    name = manifest["name"]
    if not force:
        _refuse_other_data(root, manifest)
    parts: dict[str, DatasetTensors] = {"train": content.train, "test": content.test}
    ensure_space(root, sum(part.images.nbytes + part.labels.nbytes for part in parts.values()), name)
    ready = work / "ready"
    for part, data in parts.items():
        tensors = {"images": data.images.contiguous(), "labels": data.labels.contiguous()}
        write_atomically(ready / f"{part}.safetensors", partial(save_file, tensors))
    write_json(ready / "manifest.json", manifest, sealed=True)
    put_folder(ready, root / name)
    return manifest


def remains(root: Path, name: str) -> list[Path]:
    """What the data folder has of a dataset: its folder, and what a process left that was killed while adding it.

    Raises: DataError where something else is in its place.
    """
    try:
        _refuse_foreign(root / name)
    except OSError as error:
        raise DataError(
            f"'{root / name}' cannot be read: {error.strerror}. Check its owner and permissions."
        ) from error
    return [path for path in (root / name, root / f".{name}.partial") if path.is_symlink() or path.exists()]


def remove(root: Path, name: str) -> None:
    """Remove a dataset from the data folder, whole or not at all. Where a link is in its place, only the link goes.

    Raises: DataError while another process adds it, and in place of the system's errors.
    """
    place, work = root / name, root / f".{name}.partial"
    try:
        with FileLock(root / f".{name}.lock", blocking=False):
            remains(root, name)
            if work.exists():
                shutil.rmtree(work)
            if place.is_symlink():
                place.unlink()
            elif place.exists():
                place.rename(work)  # from here on it is not there any more
                shutil.rmtree(work)
    except Timeout:
        raise DataError(f"{name} is being added by another process. Wait for it, or stop that process.") from None
    except OSError as error:
        raise DataError(f"{name} could not be removed: {error.filename or root}: {error.strerror or error}.") from error


def _refuse_foreign(place: Path) -> None:
    """A dataset replaces a dataset, never somebody's files: with `--data .` its place may be the images themselves."""
    ours = {"manifest.json", "train.safetensors", "test.safetensors"}
    if place.is_dir() and {path.name for path in place.iterdir()} <= ours:
        return
    if place.exists():
        raise DataError(
            f"'{place}' is in the place of the dataset and was not made by ddbench, so it is left alone. Choose "
            "another name, another --data folder, or move it away."
        )


def _refuse_other_data(root: Path, manifest: Manifest) -> None:
    name = manifest["name"]
    try:
        there = find(root, name)
    except DataError:
        return  # damaged: adding it again is the cure
    if there is not None and there["fingerprint"] != manifest["fingerprint"]:
        raise DataError(
            f"the data folder '{root}' has other data called {name}: {there['title']!r} ({there['fingerprint']}, "
            f"{there['origin']}), not {manifest['title']!r} ({manifest['fingerprint']}, {manifest['origin']}). "
            "Choose another name, or replace it with --force."
        )
