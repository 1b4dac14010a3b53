"""Images that come as arrays: `.npz` files, and the idx files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddbench.data.archives import ensure_space
from ddbench.data.cache import Content
from ddbench.data.folders import HELD_OUT, HELD_OUT_BY_DDBENCH
from ddbench.data.mistaken import refuse_mistaken
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import DataError
from ddbench.files import open_regular
from ddbench.text import MOST_LINE, printable

TRAIN_KEYS = (("x_train", "y_train"), ("train_images", "train_labels"))
TEST_KEYS = (("x_test", "y_test"), ("test_images", "test_labels"), ("val_images", "val_labels"))
WHOLE_KEYS = (("images", "labels"), ("x", "y"))
NAME_KEYS = ("class_names", "classes")
NPZ_HELP = (
    "An npz file has x_train, y_train, x_test, y_test (or train_images, train_labels, test_images, test_labels; or "
    "only images, labels): images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], labels integers [N]."
)
IDX_PARTS = {"train": "train", "test": "t10k"}
IDX_UINT8 = 0x08


def read_npz(path: Path, room: Path, class_names: tuple[str, ...] = ()) -> Content:
    """Read a `.npz` file; with one pair of images and labels, a tenth of every class is held out.

    `room` is a folder on the disk that has to hold the arrays; `class_names` are for a file that numbers its classes.
    Raises: DataError if the file is damaged, has other arrays, or has pickled objects.
    """
    refuse_mistaken(path)
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                ensure_space(room, sum(member.file_size for member in archive.infolist()), str(path))
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return _npz_content(path, arrays, class_names)
    except DataError:
        raise
    except Exception as error:  # whatever a stranger's bytes make of numpy's and Python's readers
        raise DataError(f"{path} cannot be read ({error}); pickled objects are never loaded. {NPZ_HELP}") from error


def find_idx(folder: Path) -> dict[str, Path] | None:
    """The four idx files in a folder or its folder `raw`, plain or gzipped, by role; None if not all are there."""
    for place in (folder, folder / "raw"):
        found = {}
        for part, prefix in IDX_PARTS.items():
            for role, dims in (("images", 3), ("labels", 1)):
                names = (f"{prefix}-{role}{mark}idx{dims}-ubyte{end}" for mark in "-." for end in ("", ".gz"))
                found[f"{part} {role}"] = next((place / name for name in names if (place / name).is_file()), None)
        files = {role: path for role, path in found.items() if path is not None}
        if len(files) == len(found):
            return files
    return None


def read_idx(files: Mapping[str, Path], class_names: tuple[str, ...], checksums: Mapping[str, str]) -> Content:
    """Read the four files that `find_idx` found; original if they have the published md5 `checksums`, by file name.

    Raises: DataError if a file is damaged.
    """
    arrays = {role: _idx_array(path, 3 if role.endswith("images") else 1) for role, path in files.items()}
    parts = []
    for part in IDX_PARTS:
        images, labels = (torch.from_numpy(arrays[f"{part} {role}"]) for role in ("images", "labels"))
        classes = class_names or tuple(map(str, range(int(arrays["train labels"].max()) + 1)))
        if len(images) != len(labels) or int(labels.max()) >= len(classes):
            raise DataError(
                f"{files[f'{part} labels']} does not belong to {files[f'{part} images']}: {len(labels)} labels up to "
                f"{int(labels.max())} for {len(images)} images of {len(classes)} classes."
            )
        parts.append(DatasetTensors.sort(images[:, None], labels.long(), classes))
    known = all(checksums.get(path.name) == _md5(path) for path in files.values())
    origin = "idx files (checksummed original files)" if known else "idx files"
    return Content(parts[0], parts[1], origin=origin, kind="idx", original=known)


def _npz_content(path: Path, arrays: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> Content:
    def pair(choices: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray] | None:
        return next(((arrays[x], arrays[y]) for x, y in choices if x in arrays and y in arrays), None)

    train, test = pair(TRAIN_KEYS) or pair(WHOLE_KEYS), pair(TEST_KEYS)
    if train is None:
        raise DataError(f"{path} has {', '.join(arrays) or 'no arrays'}, not the expected ones. {NPZ_HELP}")
    if any(array.ndim == 0 for pair_of in (train, test) if pair_of is not None for array in pair_of):
        raise DataError(f"{path} has a single number where images or labels belong. {NPZ_HELP}")
    values = np.unique(train[1])
    named = next((arrays[key].reshape(-1).tolist() for key in NAME_KEYS if key in arrays), values.tolist())
    if named == list(range(len(class_names))):
        named = class_names
    classes = tuple(printable(str(name), MOST_LINE) for name in named)
    if len(classes) != len(values) or len(classes) < 2:
        raise DataError(
            f"{path} has {len(classes)} class names for {len(values)} different training labels; there must be one a "
            "class, at least two classes, and no class without images."
        )
    first = _npz_part(path, *train, values, classes)
    if test is not None:
        second = _npz_part(path, *test, values, classes)
        if first.shape != second.shape:
            shapes = " and ".join("x".join(map(str, part.shape)) for part in (first, second))
            raise DataError(f"{path} has training and test images of different shapes, {shapes}. Resize one of them.")
        return Content(first, second, origin="npz file", kind="npz")
    rest, held_out = first.split(HELD_OUT)
    return Content(rest, held_out, origin="npz file", kind="npz", split=HELD_OUT_BY_DDBENCH)


def _npz_part(
    path: Path, images: np.ndarray, labels: np.ndarray, values: np.ndarray, classes: tuple[str, ...]
) -> DatasetTensors:
    labels = labels.reshape(-1) if labels.size == len(labels) else labels
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise DataError(f"{path} has labels {labels.dtype} {list(labels.shape)} for {len(images)} images. {NPZ_HELP}")
    if not len(labels) or set(np.unique(labels)) != set(values):
        raise DataError(f"{path} has other classes in its test part than in its training part. {NPZ_HELP}")
    return DatasetTensors.sort(
        _channels_first(path, images), torch.from_numpy(np.searchsorted(values, labels)), classes
    )


def _channels_first(path: Path, images: np.ndarray) -> Tensor:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        advice = "" if images.dtype == np.uint8 else "Convert them to uint8, 0 to 255, first. "
        raise DataError(f"{path} has images {images.dtype} {list(images.shape)}. {advice}{NPZ_HELP}")
    if images.ndim == 3:
        return torch.from_numpy(images)[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        why = "both are possible" if first else "neither has 1 or 3 channels"
        raise DataError(f"{path}: images {list(images.shape)} as [N, H, W, C] or [N, C, H, W]? {why}. {NPZ_HELP}")
    return torch.from_numpy(images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _idx_array(path: Path, dims: int) -> np.ndarray:
    """One idx file: two zero bytes, the type, the number of axes, each axis as a big-endian int32, then the values."""
    try:
        with open_regular(path) as file:
            packed = file.read()
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or only half there ({error}). Fetch it again.") from error
    header = 4 * (dims + 1)
    whole = len(content) >= header and content[:4] == bytes((0, 0, IDX_UINT8, dims))
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist() if whole else []
    if not whole or len(content) - header != math.prod(shape) or not shape[0]:
        raise DataError(f"{path} is damaged: it is not an idx file of uint8 with {dims} axes, or not all of one.")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def _md5(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
