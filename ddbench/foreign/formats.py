"""Files that others published, as tensors: what is in them, and nothing about what the numbers mean.

Pickles are opened by torch's restricted loader, which makes tensors and plain values and calls nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import synthetic as sets
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.folders import read_class_folders, read_images, visible
from ddbench.errors import DataError
from ddbench.fields import MOST_COUNT
from ddbench.files import not_regular, open_regular, sha256_of
from ddbench.synthetic import SyntheticSet, origin
from ddbench.text import printable

READS = (
    "Read are: .safetensors; .pt of the DC layout {'data': [[images, labels], …]}; images_*.pt with labels_*.pt, in "
    "shards too; .npz with images and labels; .npy of uint8; a folder with one folder of images per class; "
    "labels.pt or labels.npy beside images."
)
IMAGE_KEYS = ("images", "image_syn", "x", "x_train", "train_images", "data")
LABEL_KEYS = ("labels", "label_syn", "y", "y_train", "train_labels", "targets", "label")
LR_KEYS = ("lr", "syn_lr", "lr_syn", "recipe.lr")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
MTT_FILE = re.compile(r"images_?(?P<tag>.*)\.(?:pt|pth)")
SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)?[_-]?(?P<number>\d+)[_-]of[_-](?P<count>\d+)")
NAMED_SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)[_-]?(?P<number>\d+)")
BEST = "best"  # of the MTT family: the state whose accuracy on test images was the highest on the way
DC = "pt of the DC layout"
MTT = "pt files of the MTT family"
FOLDER = "folder of images"
LABEL_FILES = ("labels.pt", "labels.pth", "labels.npy")  # beside images or class folders
AGREEING = 0.5  # of soft labels with their folders; less says that the two are not in one order
HEADER_FILE = "ddbench.json"  # beside the class folders of an exported set
MOST_CLASSES = 100_000  # five times those of the largest image dataset
MOST_CLAIM = 2000  # characters of a claim that are kept
MOST_CLAIMS = 100
MOST_DEPTH = 8  # of values inside values in a claim
# What a file may become in memory for each of its bytes: half precision doubles, deflate shrinks one colour a lot.
EXPANDS, EXPANDS_PACKED, SMALL = 16, 250, 64 << 20


@dataclass(frozen=True, eq=False)
class Found:
    """One set as its file has it.

    Shapes: images [N, C, H, W], float32 or uint8; labels [N] int64, [N, K] float32, or None where there are none.
    `entry` names the set inside the file. `claims` is whatever else its maker wrote there. `ours` is the whole set
    where ddbench wrote the file, which then says itself what its numbers mean, with `about` where it came from.
    """

    images: Tensor
    labels: Tensor | None
    lr: Tensor | None
    layout: str
    entry: str
    files: tuple[Path, ...]
    claims: Mapping[str, Any] = field(default_factory=dict)
    ours: SyntheticSet | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The digest of the file, or of the names and contents of several."""
        if len(self.files) == 1:
            return sha256_of(self.files[0])
        lines = "".join(f"{path.name} {sha256_of(path)}\n" for path in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def source(self) -> str:
        """Name of the file, or of the folder of several, without its path."""
        first = self.files[0].resolve()
        if self.layout == FOLDER:
            return self.entry
        return first.name if len(self.files) == 1 else first.parent.name

    @property
    def choice(self) -> sets.Choice | None:
        """How its step was chosen, where ddbench wrote the file and the method chose one."""
        return self.ours.choice if self.ours is not None else None

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)


def read(path: Path, info: DatasetInfo | None = None, size: int | None = None) -> list[Found]:
    """Every set in a file or folder, in its order; at least one. `info` knows the order of classes that have names.

    Images are resized to `size` x `size` pixels when given.
    Raises: DataError for what is missing, damaged, of no known layout, or would run code when it is opened.
    """
    if not path.exists():
        raise DataError(f"there is no file {path}.")
    if path.is_dir():
        return [_resized(found, size) for found in _read_folder(path, info, size)]
    return [_resized(found, size) for found in _read_file(path)]


def _resized(found: Found, size: int | None) -> Found:
    """Bilinear, and smoothed where it becomes smaller, as pictures are resized."""
    if size is None or tuple(found.images.shape[-2:]) == (size, size):
        return found
    if found.ours is not None:
        raise DataError("a set of ddbench has the size that it was made for; --size is for those of others.")
    images = F.interpolate(found.images.float(), size=(size, size), mode="bilinear", antialias=True)
    whole = found.images.dtype == torch.uint8
    return replace(found, images=images.round().clamp(0, 255).to(torch.uint8) if whole else images)


def _read_file(path: Path) -> list[Found]:
    _require_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return [_read_safetensors(path)]
    if suffix == ".npz":
        return [_read_npz(path)]
    if suffix == ".npy":
        return [_read_npy(path)]
    if suffix in PICKLES:
        if MTT_FILE.fullmatch(path.name):
            return _read_mtt(path.parent, only=path)
        return _read_pt(path)
    raise DataError(f"{path} is no set that ddbench reads: its name ends in {suffix or 'nothing'!r}. {READS}")


def _require_regular(path: Path) -> None:
    if why := not_regular(path):
        raise DataError(f"{path} cannot be read: {why}.")


def entry_name(name: str) -> str:
    """An entry as lists show it: what the MTT family calls best was chosen on test images."""
    return f"{name} (chosen on test images)" if name == BEST else name


def choose(found: Sequence[Found], entry: str | None, shown: Path) -> list[Found]:
    """The sets that are meant: the one called `entry`, all with "all", and without a word those that belong together.

    Raises: DataError for an unknown name, and where a choice is needed.
    """
    names = [one.entry for one in found]
    if entry is None:
        if len(found) == 1 or found[0].layout == DC:
            return list(found)
        honest = [name for name in names if name != BEST] or names
        raise DataError(
            f"{shown} holds {len(found)} states of a set: {', '.join(map(entry_name, names))}. Say which is meant, as "
            f"in --entry {honest[-1]}; choosing by test accuracy would be choosing on test data."
        )
    if entry == "all":
        return list(found)
    if entry not in names:
        raise DataError(f"{shown} has no entry {entry!r}; it has {', '.join(map(entry_name, names))}.")
    return [found[names.index(entry)]]


def _read_folder(folder: Path, info: DatasetInfo | None, size: int | None) -> list[Found]:
    if any(MTT_FILE.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_file()):
        return _read_mtt(folder)
    there = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    given = there[0] if there and not (folder / HEADER_FILE).is_file() else None
    if given is not None and not any(entry.is_dir() for entry in visible(folder)):
        images, files = read_images(folder, size)
        rows = _labels(given, _label_rows(given), len(images))
        return [Found(images, rows, None, FOLDER, folder.resolve().name, (*files, given))]
    try:
        images, labels, files = read_class_folders(folder, info, size)
    except DataError as error:
        raise DataError(f"{error} {READS}") from None
    if given is not None:
        labels, files = _labels_of_folders(given, labels, files), [*files, given]
    found = Found(images, labels, None, FOLDER, folder.resolve().name, tuple(files))
    beside = folder / HEADER_FILE
    if not beside.is_file():
        return [found]
    _require_regular(beside)
    header = _json(beside, beside.read_text(encoding="utf-8", errors="replace"))
    # Pixels were rounded to bytes and labels to classes: of the description, the pixel space and the recipe are left.
    kept = {**header, "label_kind": "class", "decode": "none"}
    tensors = {"images": images, "labels": labels}
    if "lr" in header:
        tensors["recipe.lr"] = _rate(beside, header["lr"])
    whole = sets.assemble(kept, tensors, str(beside))
    return [replace(found, lr=whole.recipe.lr, ours=whole, about=origin(header["about"]))]


def _label_rows(path: Path) -> Tensor:
    if path.suffix != ".npy":
        return _tensor(path, _unpickle(path))
    with _careful(path), open_regular(path) as file:
        return _tensor(path, np.load(file, allow_pickle=False))


def _labels_of_folders(path: Path, classes: Tensor, files: Sequence[Path]) -> Tensor:
    """Soft labels that lie beside class folders, in the order of the images there.

    Class 10 comes after class 2 or before it: the order is taken in which rows and folders agree most.
    Raises: DataError where they agree in no order.
    """
    rows = _labels(path, _label_rows(path), len(classes))
    by_text = torch.tensor(sorted(range(len(files)), key=lambda at: str(files[at]))).argsort()
    fitting = max((rows, rows[by_text]), key=lambda some: _agreeing(some, classes))
    if _agreeing(fitting, classes) < AGREEING:
        raise DataError(
            f"{path} has the labels of other images, or of these in another order: the likeliest class is that of the "
            f"folder for {100 * _agreeing(fitting, classes):.0f} % of them. Take it away to judge the classes alone."
        )
    return fitting


def _agreeing(rows: Tensor, classes: Tensor) -> float:
    given = rows.argmax(dim=1) if rows.ndim == 2 else rows
    return float((given == classes).float().mean())


def _read_safetensors(path: Path) -> Found:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is not a readable safetensors file ({error}); it may be half-written.") from None
    if "ddbench" in metadata:
        header = _json(path, metadata["ddbench"])
        return _own(path, "safetensors", sets.assemble(header, tensors, str(path)), header["about"])
    return _of_mapping(path, "safetensors", tensors)


def _read_npz(path: Path) -> Found:
    with _careful(path), open_regular(path) as file:
        _refuse_bomb(path, file)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    if "ddbench" in arrays:
        header = _json(path, str(arrays.pop("ddbench")))
        tensors = {name: _tensor(path, value) for name, value in arrays.items()}
        if "images" not in tensors or tensors["images"].ndim != 4:
            raise DataError(f"{path} calls itself a set of ddbench, and has no images [N, H, W, C].")
        tensors["images"] = tensors["images"].permute(0, 3, 1, 2).contiguous()
        return _own(path, "npz", sets.assemble(header, tensors, str(path)), header.get("about", {}))
    return _of_mapping(path, "npz", arrays)


def _read_npy(path: Path) -> Found:
    with _careful(path), open_regular(path) as file:
        images = np.load(file, allow_pickle=False)
    names = (path.name.replace("images", "labels"), f"{path.stem}_labels.npy", "labels.npy", "y.npy")
    beside = next(
        (path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()), None
    )
    labels = None
    if beside is not None:
        with _careful(beside), open_regular(beside) as file:
            labels = np.load(file, allow_pickle=False)
    files = (path,) if beside is None else (path, beside)
    return _found(path, "npy", "0", images, labels, None, files, {})


def _read_pt(path: Path) -> list[Found]:
    value = _unpickle(path)
    if isinstance(value, Mapping) and isinstance(value.get("ddbench"), str):
        header = _json(path, value["ddbench"])
        beside = value.get("tensors", {})
        if not isinstance(beside, Mapping) or not isinstance(value.get("data"), list | tuple):
            raise DataError(f"{path} calls itself a set of ddbench, and its tensors cannot be read.")
        pair = _of_pair(path, next(iter(value["data"]), None), "0", {})
        if pair.labels is None:
            raise DataError(f"{path} calls itself a set of ddbench, and has no labels.")
        tensors = {"images": pair.images, "labels": pair.labels, **{k: _tensor(path, v) for k, v in beside.items()}}
        return [_own(path, "pt", sets.assemble(header, tensors, str(path)), header.get("about", {}))]
    if isinstance(value, Mapping) and isinstance(value.get("data"), list | tuple):
        pairs = list(value["data"])
        if not pairs:
            raise DataError(f"{path} has an empty list 'data', so there is no set in it. {READS}")
        claims = _claims({name: part for name, part in value.items() if name != "data"})
        _refuse_repeats(path, pairs)
        return [_of_pair(path, pair, str(number), claims) for number, pair in enumerate(pairs)]
    if isinstance(value, Mapping):
        return [_of_mapping(path, "pt", value)]
    if isinstance(value, list | tuple):
        return [_of_pair(path, value, "0", {})]
    if isinstance(value, Tensor):
        return [_found(path, "pt", "0", value, None, None, (path,), {})]
    raise DataError(f"{path} holds a {type(value).__name__}, and no images. {READS}")


def _of_pair(path: Path, pair: Any, entry: str, claims: Mapping[str, Any]) -> Found:
    if not isinstance(pair, list | tuple) or len(pair) not in (2, 3):
        raise DataError(f"{path}: entry {entry} is not a pair of images and labels. {READS}")
    lr = pair[2] if len(pair) == 3 else None
    return _found(path, DC, entry, pair[0], pair[1], lr, (path,), claims)


def _of_mapping(path: Path, layout: str, parts: Mapping[str, Any]) -> Found:
    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in parts and _is_array(parts[name])), None)

    images, labels, lr = first(IMAGE_KEYS), first(LABEL_KEYS), first(LR_KEYS)
    if images is None:
        raise DataError(f"{path} has {', '.join(map(str, parts)) or 'nothing'} in it, and no images. {READS}")
    used = {images, labels, lr}
    claims = _claims({name: value for name, value in parts.items() if name not in used})
    rate = parts.get(lr) if lr else next((parts[n] for n in LR_KEYS if isinstance(parts.get(n), float)), None)
    return _found(path, layout, "0", parts[images], parts[labels] if labels else None, rate, (path,), claims)


def _read_mtt(folder: Path, only: Path | None = None) -> list[Found]:
    """`images_TAG.pt` with `labels_TAG.pt`, and `lr_TAG.pt` where it is; shards of one set are joined."""
    tags = {}
    for entry in sorted(folder.iterdir()):
        match = MTT_FILE.fullmatch(entry.name)
        if match and entry.is_file():
            tags[match["tag"]] = entry
    groups = _shards(folder, tags)
    if only is not None:
        groups = {name: paths for name, paths in groups.items() if only in paths}
    return [_join(folder, name, paths) for name, paths in groups.items()]


def _shards(folder: Path, tags: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Which files make one set: those called i-of-n or shard i, and those numbered 0, 1, 2, … without a gap.

    Other numbers are steps of condensation: each is a set of its own.
    """
    groups: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    alone = {}
    for tag, path in tags.items():
        match = SHARD.fullmatch(tag) or NAMED_SHARD.fullmatch(tag)
        if match is None:
            alone[tag] = path
            continue
        name = match["stem"] or "whole"
        groups.setdefault(name, {})[int(match["number"])] = path
        if "count" in match.groupdict():
            counts[name] = int(match["count"])
    numbers = sorted(int(tag) for tag in alone if tag.isdigit())
    if len(numbers) > 1 and numbers == list(range(len(numbers))):
        plain = {int(tag): alone.pop(tag) for tag in list(alone) if tag.isdigit()}
        groups["whole"] = plain
    for name, shards in groups.items():
        first = min(shards)
        wanted = range(first, first + counts.get(name, len(shards)))
        missing = sorted(set(wanted) - set(shards))
        if missing or first > 1:
            lost = missing[0] if missing else 0
            raise DataError(
                f"{folder} has {len(shards)} shards of the images of {name!r}, and shard {lost} is missing. A part of "
                "a set is another set; fetch the rest."
            )
    ordered = sorted(alone, key=lambda tag: (tag == BEST, not tag.isdigit(), int(tag) if tag.isdigit() else 0, tag))
    joined = {name: [shards[number] for number in sorted(shards)] for name, shards in sorted(groups.items())}
    return joined | {tag or "only": [alone[tag]] for tag in ordered}


def _join(folder: Path, name: str, paths: Sequence[Path]) -> Found:
    parts, files, lr = [], list(paths), None
    for path in paths:
        labels_path = path.with_name(path.name.replace("images", "labels", 1))
        if not labels_path.is_file():
            raise DataError(
                f"{path} has no {labels_path.name} beside it, and images without labels train nobody. Fetch it too."
            )
        files.append(labels_path)
        parts.append(_found(path, MTT, name, _unpickle(path), _unpickle(labels_path), None, (path,), {}))
    if len({part.images.shape[1:] for part in parts}) > 1 or len({_row(part) for part in parts}) > 1:
        raise DataError(f"the shards of {name!r} in {folder} do not belong together: their shapes or labels differ.")
    lr_path = next((p for p in _lr_files(folder, name) if p.is_file()), None)
    if lr_path is not None:
        files.append(lr_path)
        lr = _rate(lr_path, _unpickle(lr_path))
    joined = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    return Found(joined, labels, lr, MTT, name, tuple(files))


def _lr_files(folder: Path, name: str) -> list[Path]:
    tag = "" if name in ("whole", "only") else f"_{name}"
    stems = (f"lr{tag}", f"syn_lr{tag}", f"lr_syn{tag}", "lr", "syn_lr")
    return [folder / f"{stem}{suffix}" for stem in stems for suffix in (".pt", ".pth")]


def _row(part: Found) -> tuple[Any, ...]:
    assert part.labels is not None
    return (*part.labels.shape[1:], part.labels.dtype)


def _own(path: Path, layout: str, whole: SyntheticSet, about: Mapping[str, Any]) -> Found:
    return Found(whole.images, whole.labels, whole.recipe.lr, layout, "0", (path,), ours=whole, about=origin(about))


def _found(
    path: Path,
    layout: str,
    entry: str,
    images: Any,
    labels: Any,
    lr: Any,
    files: tuple[Path, ...],
    claims: Mapping[str, Any],
) -> Found:
    x = _images(path, _tensor(path, images))
    y = None if labels is None else _labels(path, _tensor(path, labels), len(x))
    return Found(x, y, None if lr is None else _rate(path, lr), layout, entry, files, claims)


def _images(path: Path, images: Tensor) -> Tensor:
    """[N, C, H, W], float32 or uint8, from any common order of axes."""
    if images.ndim == 5:
        images = images.flatten(0, 1)
    if images.ndim == 3:
        images = images[:, None]
    shape = tuple(images.shape)
    if images.ndim != 4 or not images.numel():
        raise DataError(f"{path} has images of shape {shape}; expected are [N, C, H, W] or [N, H, W, C]. {READS}")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if not first and not last:
        raise DataError(f"{path} has images of shape {shape}, of which no axis is 1 or 3 channels. {READS}")
    if not first:
        images = images.permute(0, 3, 1, 2)
    if images.is_complex() or images.dtype == torch.bool:
        raise DataError(f"{path} has images of {images.dtype}; pixels are real numbers.")
    if images.is_floating_point():
        return images.detach().float().contiguous()
    if int(images.min()) < 0 or int(images.max()) > 255:
        raise DataError(
            f"{path} has whole-numbered images from {int(images.min())} to {int(images.max())}; bytes are 0 to 255."
        )
    return images.to(torch.uint8).contiguous()


def _labels(path: Path, labels: Tensor, count: int) -> Tensor:
    """[N] int64 or [N, K] float32."""
    if labels.ndim > 1 and labels.shape[0] != count and labels.shape[:2].numel() == count:
        labels = labels.flatten(0, 1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise DataError(f"{path} has labels of shape {tuple(labels.shape)} for {count} images; one row each is needed.")
    if labels.is_complex():
        raise DataError(f"{path} has labels of {labels.dtype}; classes are whole numbers.")
    if labels.ndim == 2:
        return labels.detach().float().contiguous()
    whole = not labels.is_floating_point() or bool((torch.isfinite(labels) & (labels == labels.round())).all())
    if not whole:
        raise DataError(f"{path} has labels that are neither whole numbers nor one row of numbers an image.")
    if not len(labels) or abs(int(labels.min())) > MOST_CLASSES or int(labels.max()) > MOST_CLASSES:
        shown = f"from {int(labels.min())} to {int(labels.max())}" if len(labels) else "of no image"
        raise DataError(f"{path} has labels {shown}; classes are counted from 0, and no dataset has {MOST_CLASSES}.")
    return labels.detach().long().contiguous()


def _rate(path: Path, value: Any) -> Tensor:
    rate = _tensor(path, value).detach()
    if rate.is_complex():
        raise DataError(f"{path} has a step size of {rate.dtype}; it is a real number.")
    rate = rate.float().squeeze()
    if rate.ndim > 1 or not rate.numel():
        raise DataError(f"{path} has a step size of shape {tuple(rate.shape)}; it is one number, or one for each step.")
    return rate


def _tensor(path: Path, value: Any) -> Tensor:
    """Numbers of a kind that torch computes with, no more of them than the file has.

    A file can hold one number and a shape of millions, or a tensor that is a description and no numbers.
    """
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            what = "nested" if value.is_nested else "quantised" if value.is_quantized else str(value.layout)
            raise DataError(
                f"{path} has a tensor that is no plain array of numbers on the CPU ({what}, {value.device.type}). Ask "
                "its maker for plain tensors."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise DataError(
                f"{path} has a tensor of shape {tuple(value.shape)} and numbers for a part of it only, which are "
                "repeated. Ask its maker for a file with all of them."
            )
        return _usual(value.detach())
    try:
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind not in "biufc":
            raise TypeError(f"values of type {array.dtype}")
        native = np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("="))
        return _usual(torch.from_numpy(native))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} has something that is no array of numbers where one belongs ({error}).") from None


def _usual(tensor: Tensor) -> Tensor:
    # Of these torch has a type, and hardly any function.
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return tensor.to(torch.int64)
    usual = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.float() if tensor.is_floating_point() and tensor.dtype not in usual else tensor


def _refuse_bomb(path: Path, file: Any) -> None:
    """Raise DataError for an archive that would unpack to far more than its size; the file is rewound."""
    size = path.stat().st_size
    with zipfile.ZipFile(file) as archive:
        whole = sum(member.file_size for member in archive.infolist())
    file.seek(0)
    if whole > max(SMALL, EXPANDS_PACKED * size):
        raise DataError(f"{path} has {size} bytes and would unpack to {whole}, so it is left alone.")


def _refuse_repeats(path: Path, pairs: Sequence[Any]) -> None:
    """Raise DataError where a file names the same numbers again and again, so that it becomes much more than it has."""
    parts = [part for pair in pairs if isinstance(pair, list | tuple) for part in pair if isinstance(part, Tensor)]
    whole = sum(part.numel() * part.element_size() for part in parts)
    if whole > max(SMALL, EXPANDS * path.stat().st_size):
        raise DataError(f"{path} has {path.stat().st_size} bytes and would become {whole}, so it is left alone.")


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not (isinstance(header, dict) and header.get("format") == sets.FORMAT and isinstance(header.get("about"), dict)):
        raise DataError(f"{path} calls itself a set of ddbench, and its description cannot be read.")
    return header


def _unpickle(path: Path) -> Any:
    """What a torch file holds, made without calling anything that the file names."""
    from torch.serialization import safe_globals

    # numpy 1 and 2 write different names for the one function that makes a number.
    scalar: Any = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8")]
    allowed: list[Any] = [*((scalar, name) for name in names), np.dtype, *numbers]
    _require_regular(path)
    if zipfile.is_zipfile(path):
        with _careful(path), open_regular(path) as file:
            _refuse_bomb(path, file)
    try:
        # What an old torch wrote is warned about, and the reader cannot change it.
        with warnings.catch_warnings(), safe_globals(allowed):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        named = re.search(r"(?:GLOBAL|global|class|function)\s+`?([\w.]+\.[\w.]+)", text)
        if named:
            raise DataError(
                f"{path} is refused: opening it would call {named[1]}. ddbench runs nothing that a foreign file names; "
                "ask its maker for tensors only."
            ) from None
        raise DataError(f"{path} cannot be opened: it is damaged, half there, or no file of torch.") from None
    except Exception:  # whatever a stranger's bytes make of torch's reader
        raise DataError(f"{path} cannot be opened: it is damaged, half there, or no file of torch.") from None


@contextlib.contextmanager
def _careful(path: Path) -> Iterator[None]:
    """Turns what numpy raises on a damaged or dangerous file into a sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever a stranger's bytes make of numpy's and Python's readers
        if "pickle" in str(error).lower():
            raise DataError(
                f"{path} is refused: it holds pickled objects, and ddbench runs nothing that a foreign file names."
            ) from None
        why = printable(str(error), 200) or type(error).__name__
        raise DataError(f"{path} cannot be opened: it is damaged or half there ({why}).") from None


def _claims(values: Mapping[str, Any]) -> dict[str, Any]:
    """What else a file says, as far as it is words and numbers."""
    found = {}
    for name, value in list(values.items())[:MOST_CLAIMS]:
        plain = _plain(value, MOST_DEPTH)
        if plain is not None:
            text = json.dumps(plain)
            kept = plain if len(text) <= MOST_CLAIM else text[:MOST_CLAIM] + " …"
            found[printable(str(name), 200)] = kept
    return found


def _plain(value: Any, depth: int) -> Any:
    if depth < 0:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return printable(value, MOST_CLAIM, lines=True)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) <= MOST_COUNT else f"{value:.3g}" if isinstance(value, float) else "a huge number"
    if isinstance(value, Tensor | np.ndarray):
        few = value.ndim <= 4 and int(np.prod(value.shape)) < 64
        return _plain(_tensor(Path(), value).tolist(), depth) if few and _readable(value) else None
    if isinstance(value, list | tuple):
        parts = [_plain(part, depth - 1) for part in value[:MOST_CLAIMS]]
        return parts if all(part is not None for part in parts) else None
    if isinstance(value, Mapping):
        return {printable(str(name), 200): _plain(part, depth - 1) for name, part in list(value.items())[:MOST_CLAIMS]}
    return None


def _readable(value: Tensor | np.ndarray) -> bool:
    try:
        return not _tensor(Path(), value).is_complex()
    except DataError:
        return False
