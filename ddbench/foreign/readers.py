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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench import synthetic as sets
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.folders import read_class_folders
from ddbench.errors import DataError
from ddbench.files import sha256_of
from ddbench.synthetic import SyntheticSet

READS = (
    "Read are: .safetensors; .pt of the DC layout {'data': [[images, labels], …]}; images_*.pt with labels_*.pt, in "
    "shards too; .npz with images and labels; .npy of uint8; a folder with one folder of images per class."
)
IMAGE_KEYS = ("images", "image_syn", "x", "x_train", "train_images", "data")
LABEL_KEYS = ("labels", "label_syn", "y", "y_train", "train_labels", "targets", "label")
LR_KEYS = ("lr", "syn_lr", "lr_syn", "recipe.lr")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
MTT_FILE = re.compile(r"images_?(?P<tag>.*)\.(?:pt|pth)")
SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)?[_-]?(?P<number>\d+)[_-]of[_-](?P<count>\d+)")
NAMED_SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)[_-]?(?P<number>\d+)")
DC = "pt of the DC layout"
MTT = "pt files of the MTT family"
FOLDER = "folder of images"
HEADER_FILE = "ddbench.json"  # beside the class folders of an exported set
LOOKED_UP = ("dataset", "backbone", "method")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MOST_CLAIM = 2000  # characters of a claim that are kept


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
        """Of the file, or of the names and contents of several."""
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


def read(path: Path, info: DatasetInfo | None = None) -> list[Found]:
    """Every set in a file or folder, in its order; at least one. `info` knows the order of classes that have names.

    Raises: DataError for what is missing, damaged, of no known layout, or would run code when it is opened.
    """
    if not path.exists():
        raise DataError(f"there is no file {path}.")
    if path.is_dir():
        return _read_folder(path, info)
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


def plain_names(about: object) -> dict[str, Any]:
    """What a file says of its origin, without names that are more than names.

    A dataset or a backbone may be code, `./file.py:name`, and a stranger's set must not say whose code to run.
    """
    return {
        name: value
        for name, value in (about.items() if isinstance(about, Mapping) else ())
        if name not in LOOKED_UP or (isinstance(value, str) and PLAIN_NAME.fullmatch(value))
    }


def choose(found: Sequence[Found], entry: str | None, shown: Path) -> list[Found]:
    """The sets that are meant: the one called `entry`, all with "all", and without a word those that belong together.

    Raises: DataError for an unknown name, and where a choice is needed.
    """
    names = [one.entry for one in found]
    if entry is None:
        if len(found) == 1 or found[0].layout == DC:
            return list(found)
        raise DataError(
            f"{shown} holds {len(found)} states of a set: {', '.join(names)}. Say which is meant, as in "
            f"--entry {names[-1]}; choosing by test accuracy would be choosing on test data."
        )
    if entry == "all":
        return list(found)
    if entry not in names:
        raise DataError(f"{shown} has no entry {entry!r}; it has {', '.join(names)}.")
    return [found[names.index(entry)]]


def _read_folder(folder: Path, info: DatasetInfo | None) -> list[Found]:
    if any(MTT_FILE.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_file()):
        return _read_mtt(folder)
    try:
        images, labels, files = read_class_folders(folder, info)
    except DataError as error:
        raise DataError(f"{error} {READS}") from None
    found = Found(images, labels, None, FOLDER, folder.resolve().name, tuple(files))
    beside = folder / HEADER_FILE
    if not beside.is_file():
        return [found]
    header = _json(beside, beside.read_text(encoding="utf-8", errors="replace"))
    # Pixels were rounded to bytes and labels to classes: of the description, the pixel space and the recipe are left.
    kept = {**header, "label_kind": "class", "decode": "none"}
    tensors = {"images": images, "labels": labels}
    if "lr" in header:
        tensors["recipe.lr"] = _rate(beside, header["lr"])
    whole = sets.assemble(kept, tensors, str(beside))
    return [replace(found, lr=whole.recipe.lr, ours=whole, about=plain_names(header["about"]))]


def _read_safetensors(path: Path) -> Found:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file ({error}); it may be half-written.") from None
    if "ddbench" in metadata:
        header = _json(path, metadata["ddbench"])
        return _own(path, "safetensors", sets.assemble(header, tensors, str(path)), header["about"])
    return _of_mapping(path, "safetensors", tensors)


def _read_npz(path: Path) -> Found:
    with _careful(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
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
    with _careful(path), path.open("rb") as file:
        images = np.load(file, allow_pickle=False)
    names = (path.name.replace("images", "labels"), f"{path.stem}_labels.npy", "labels.npy", "y.npy")
    beside = next(
        (path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()), None
    )
    labels = None
    if beside is not None:
        with _careful(beside), beside.open("rb") as file:
            labels = np.load(file, allow_pickle=False)
    files = (path,) if beside is None else (path, beside)
    return _found(path, "npy", "0", images, labels, None, files, {})


def _read_pt(path: Path) -> list[Found]:
    value = _unpickle(path)
    if isinstance(value, Mapping) and isinstance(value.get("ddbench"), str):
        header = _json(path, value["ddbench"])
        beside = value.get("tensors", {})
        pair = _of_pair(path, next(iter(value.get("data", [])), None), "0", {})
        if pair.labels is None:
            raise DataError(f"{path} calls itself a set of ddbench, and has no labels.")
        tensors = {"images": pair.images, "labels": pair.labels, **{k: _tensor(path, v) for k, v in beside.items()}}
        return [_own(path, "pt", sets.assemble(header, tensors, str(path)), header.get("about", {}))]
    if isinstance(value, Mapping) and isinstance(value.get("data"), list | tuple):
        pairs = list(value["data"])
        if not pairs:
            raise DataError(f"{path} has an empty list 'data', so there is no set in it. {READS}")
        claims = _claims({name: part for name, part in value.items() if name != "data"})
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
    ordered = sorted(alone, key=lambda tag: (not tag.isdigit(), int(tag) if tag.isdigit() else 0, tag))
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
    return Found(
        whole.images, whole.labels, whole.recipe.lr, layout, "0", (path,), ours=whole, about=plain_names(about)
    )


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
    if labels.ndim == 2:
        return labels.detach().float().contiguous()
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()) or bool((labels != labels.round()).any()):
            raise DataError(f"{path} has labels that are neither whole numbers nor one row of numbers an image.")
    elif labels.is_complex():
        raise DataError(f"{path} has labels of {labels.dtype}; classes are whole numbers.")
    return labels.detach().long().contiguous()


def _rate(path: Path, value: Any) -> Tensor:
    rate = _tensor(path, value).detach().float().squeeze()
    if rate.ndim > 1 or not rate.numel():
        raise DataError(f"{path} has a step size of shape {tuple(rate.shape)}; it is one number, or one for each step.")
    return rate


def _tensor(path: Path, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind not in "biufc":
            raise TypeError(f"values of type {array.dtype}")
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} has something that is no array of numbers where one belongs ({error}).") from None


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError:
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
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zlib.error):
        raise DataError(f"{path} cannot be opened: it is damaged, half there, or no file of torch.") from None


@contextlib.contextmanager
def _careful(path: Path) -> Iterator[None]:
    """Turns what numpy raises on a damaged or dangerous file into a sentence."""
    try:
        yield
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, pickle.UnpicklingError) as error:
        if "pickle" in str(error).lower():
            raise DataError(
                f"{path} is refused: it holds pickled objects, and ddbench runs nothing that a foreign file names."
            ) from None
        raise DataError(f"{path} cannot be opened: it is damaged or half there ({error}).") from None


def _claims(values: Mapping[str, Any]) -> dict[str, Any]:
    """What else a file says, as far as it is words and numbers."""
    found = {}
    for name, value in values.items():
        plain = _plain(value)
        if plain is not None:
            text = json.dumps(plain)
            found[str(name)] = plain if len(text) <= MOST_CLAIM else text[:MOST_CLAIM] + " …"
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist() if int(np.prod(value.shape)) < 64 else None
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return parts if all(part is not None for part in parts) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return None
