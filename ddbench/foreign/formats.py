"""Files that others published, as tensors: what is in them, and nothing about what the numbers mean."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
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
from ddbench.data.folders import class_folders, read_class_folders, read_images
from ddbench.data.parts import has_images, is_image, visible
from ddbench.errors import DataError, closest, mistyped
from ddbench.files import open_regular, sha256_of
from ddbench.foreign import class_folders as folders
from ddbench.foreign.claims import claims_of
from ddbench.foreign.pairs import Group, Pair, groups, is_best
from ddbench.foreign.pickles import refuse_bomb, require_file, trusting, unpickle
from ddbench.foreign.values import (
    READS,
    images_of,
    is_array,
    labels_of,
    may_be_numbers,
    rate_of,
    refuse_repeats,
    tensor_of,
)
from ddbench.synthetic import SyntheticSet, origin
from ddbench.text import printable, some_of

IMAGE_KEYS = (
    "images", "image_syn", "x", "x_train", "train_images", "data", "image", "syn_images", "synthetic_images",
    "images_syn", "x_syn", "coreset_images", "x_proto", "imgs", "img", "inputs",
)  # fmt: skip
LABEL_KEYS = (
    "labels", "label_syn", "y", "y_train", "train_labels", "targets", "label", "syn_labels", "synthetic_labels",
    "labels_syn", "y_syn", "coreset_labels", "y_proto", "target", "soft_labels",
)  # fmt: skip
LR_KEYS = ("lr", "syn_lr", "lr_syn", "recipe.lr")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
DC = "pt of the DC layout"
DD = "steps of Dataset Distillation"
MTT = "pt files of the MTT family"
FREPO = "npz of FRePo"
FOLDER = "folder of images"
LABEL_FILES = ("labels.pt", "labels.pth", "labels.npy")  # beside images or class folders
AGREEING = 0.5  # of soft labels with their folders; less says that the two are not in one order
HEADER_FILE = "ddbench.json"  # beside the class folders of an exported set
SUFFIXES = (".safetensors", ".npz", ".npy", *PICKLES)
MOST_FILES = 1000  # looked at in a folder, and
MOST_OPENED = 8  # opened to see which of them is a set


@dataclass(frozen=True, eq=False)
class Found:
    """One set as its file has it.

    Shapes: images [N, C, H, W], float32 or uint8; labels [N] int64, [N, K] float32, or None where there are none.
    `entry` names the set inside the file. `claims` is whatever else its maker wrote there. `ours` is the whole set
    where ddbench wrote the file, which then says itself what its numbers mean, with `about` where it came from.
    `schedule` [T, B] are the images of each step, where the file has steps. What a layout is known to mean where its
    numbers leave it open: `label_kind` of rows, the pixel space `habit` that its project has, and that images are
    `whitened`. `notes` are sentences for a person, `doubt` one about the order of its classes.
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
    schedule: Tensor | None = None
    label_kind: str = ""
    habit: str = ""
    whitened: bool = False
    notes: tuple[str, ...] = ()
    doubt: str = ""
    # What files are called in the digest, where their own names do not tell sets apart.
    called: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The digest of the file, or of the names and contents of several."""
        if len(self.files) == 1:
            return sha256_of(self.files[0])
        names = self.called or tuple(path.name for path in self.files)
        lines = "".join(f"{name} {sha256_of(path)}\n" for name, path in zip(names, self.files, strict=True))
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
    require_file(path)
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
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return [_read_safetensors(path)]
    if suffix == ".npz":
        return [_read_npz(path)]
    if suffix == ".npy":
        return [_read_npy(path)]
    if suffix in PICKLES:
        return _read_pt(path) if Pair.of(path) is None else _read_pairs(path.parent, only=path)
    raise DataError(f"{path} is no set that ddbench reads: its name ends in {suffix or 'nothing'!r}. {READS}")


def entry_name(name: str) -> str:
    """An entry as lists show it: what the MTT family calls best was chosen on test images."""
    return f"{name} (chosen on test images)" if is_best(name) else name


def choose(found: Sequence[Found], entry: str | None, shown: Path) -> list[Found]:
    """The sets that are meant: the one called `entry`, all with "all", and without a word those that belong together.

    Raises: DataError for an unknown name, and where a choice is needed.
    """
    names = [one.entry for one in found]
    if entry is None:
        if len(found) == 1 or found[0].layout == DC:
            return list(found)
        honest = [name for name in names if not is_best(name)] or names
        raise mistyped(
            DataError(
                f"{shown} holds {len(found)} states of a set: {', '.join(map(entry_name, names))}. Say which is meant, "
                f"as in --entry {honest[-1]}; choosing by test accuracy would be choosing on test data."
            )
        )
    if entry == "all":
        return list(found)
    if entry not in names:
        known = ", ".join(map(entry_name, names))
        raise mistyped(DataError(f"{shown} has no entry {entry!r}. {closest(entry, names)}It has {known}."))
    return [found[names.index(entry)]]


def _read_folder(folder: Path, info: DatasetInfo | None, size: int | None) -> list[Found]:
    place = _innermost(folder)
    if pairs := _read_pairs(place):
        return pairs
    ours = (place / HEADER_FILE).is_file()
    beside = [place / name for name in LABEL_FILES if (place / name).is_file()]
    given = beside[0] if beside and not ours else None
    if given is not None and any(map(is_image, visible(place))) and not any(map(Path.is_dir, visible(place))):
        images, files = read_images(place, size)
        rows = labels_of(given, _label_rows(given), len(images))
        return [Found(images, rows, None, FOLDER, place.resolve().name, (*files, given))]
    names = class_folders(place, str(folder))
    if ours or info is not None:
        # Classes are known by their names, so that a folder of something else does not count as one.
        names = [name for name in names if has_images(place / name)]
    few = len(names) < 2 and not ours and info is None
    if few or not any(has_images(place / name) for name in names):
        return _read_files(folder, len(names))
    try:
        numbering = folders.number(names, info, str(folder), ours=ours)
        return [_read_class_folders(place, numbering, ours=ours, size=size, given=given)]
    except DataError:
        # Pictures to look at lie beside a set, in folders of their own.
        if any(_is_candidate(place, entry) and "label" not in entry.name for entry in place.iterdir()):
            return _read_files(folder, len(names))
        raise


def _innermost(folder: Path) -> Path:
    """Where the classes of a folder begin, one folder down as long as there is a single one without images in it."""
    while not (folder / HEADER_FILE).is_file():
        inside = [entry for entry in visible(folder) if entry.is_dir()]
        if len(inside) != 1 or not any(entry.is_dir() for entry in visible(inside[0])):
            break
        if any(
            is_image(entry) or entry.suffix.lower() in SUFFIXES for entry in (*visible(folder), *visible(inside[0]))
        ):
            break
        folder = inside[0]
    return folder


def _read_class_folders(
    folder: Path, numbering: folders.Numbering, *, ours: bool, size: int | None, given: Path | None
) -> Found:
    """The set in class folders; `given` has soft labels of its images, in their order."""
    try:
        images, labels, files = read_class_folders(folder, numbering.classes, size)
    except DataError as error:
        raise DataError(f"{error} {READS}") from None
    # Version 0.1 numbered such a set by position, so it is another set than the one that was judged then.
    called = tuple(path.relative_to(folder).as_posix() for path in files) if numbering.gaps else ()
    name = folder.resolve().name
    if given is not None:
        labels, files = _labels_of_folders(given, labels, files), [*files, given]
        called = (*called, given.name) if called else ()
    found = Found(
        images, labels, None, FOLDER, name, tuple(files), notes=numbering.notes, doubt=numbering.doubt, called=called
    )
    if not ours:
        return found
    beside = folder / HEADER_FILE
    require_file(beside)
    header = _json(beside, beside.read_text(encoding="utf-8", errors="replace"))
    # Pixels were rounded to bytes and labels to classes: of the description, the pixel space and the recipe are left.
    kept = {**header, "label_kind": "class", "decode": "none"}
    tensors = {"images": images, "labels": labels}
    if "lr" in header:
        tensors["recipe.lr"] = rate_of(beside, header["lr"])
    whole = sets.assemble(kept, tensors, str(beside))
    return replace(found, lr=whole.recipe.lr, ours=whole, about=origin(header["about"]))


def _read_files(folder: Path, class_count: int) -> list[Found]:
    """The one set among the files in a folder, and in those in it."""
    places = _places(folder)
    if not places:
        raise DataError(
            f"{folder} has {class_count} class folders, and at least two are needed; nor is there another file that "
            f"could be a set. {READS}"
        )
    if len(places) == 1:
        return read(places[0])
    sets_in = {}
    for place in places if len(places) <= MOST_OPENED else []:
        with contextlib.suppress(DataError):
            sets_in[place] = read(place)
    whole = [found for found in sets_in.values() if any(one.labels is not None for one in found)]
    if len(whole) == 1:
        return whole[0]
    names = [str(place.relative_to(folder)) for place in places]
    some = some_of(names, MOST_OPENED)
    which = "Say which is meant" if whole or len(places) > MOST_OPENED else "None of them is a set by itself"
    raise DataError(f"{folder} has {len(names)} files that could be sets: {some}. {which}: give its path. {READS}")


def _places(folder: Path) -> list[Path]:
    """The files in a folder, and in those in it, that could be sets; of pairs of files, their folder."""
    files = [path for path in itertools.islice(sorted(folder.rglob("*")), MOST_FILES) if _is_candidate(folder, path)]
    paired = {path.parent for path in files if (pair := Pair.of(path)) is not None and pair.labels is not None}
    return sorted(paired | {path for path in files if path.parent not in paired})


def _is_candidate(folder: Path, path: Path) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _label_rows(path: Path) -> Tensor:
    if path.suffix != ".npy":
        return tensor_of(path, unpickle(path))
    with _careful(path), open_regular(path) as file:
        return tensor_of(path, np.load(file, allow_pickle=False))


def _labels_of_folders(path: Path, classes: Tensor, files: Sequence[Path]) -> Tensor:
    """Soft labels that lie beside class folders, in the order of the images there.

    Class 10 comes after class 2 or before it: the order is taken in which rows and folders agree most.
    Raises: DataError where they agree in no order.
    """
    rows = labels_of(path, _label_rows(path), len(classes))
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
        refuse_bomb(path, file)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    if "ddbench" in arrays:
        header = _json(path, str(arrays.pop("ddbench")))
        tensors = {name: tensor_of(path, value) for name, value in arrays.items()}
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
    value = unpickle(path)
    if isinstance(value, Mapping) and isinstance(value.get("ddbench"), str):
        header = _json(path, value["ddbench"])
        beside = value.get("tensors", {})
        if not isinstance(beside, Mapping) or not isinstance(value.get("data"), list | tuple):
            raise DataError(f"{path} calls itself a set of ddbench, and its tensors cannot be read.")
        pair = _of_pair(path, next(iter(value["data"]), None), "0", {})
        if pair.labels is None:
            raise DataError(f"{path} calls itself a set of ddbench, and has no labels.")
        tensors = {"images": pair.images, "labels": pair.labels, **{k: tensor_of(path, v) for k, v in beside.items()}}
        return [_own(path, "pt", sets.assemble(header, tensors, str(path)), header.get("about", {}))]
    if isinstance(value, Mapping) and _has_pairs(value):
        pairs = [value["data"]] if _is_pair(value["data"], 2) else list(value["data"])
        if not pairs:
            raise DataError(f"{path} has an empty list 'data', so there is no set in it. {READS}")
        claims = claims_of({name: part for name, part in value.items() if name != "data"})
        return _of_pairs(path, pairs, claims)
    if isinstance(value, Mapping):
        return [_of_mapping(path, "pt", value)]
    if isinstance(value, list | tuple) and value:
        if all(_is_pair(step, 3) for step in value):
            return [_of_steps(path, value)]
        if all(_is_pair(pair, 2) for pair in value):
            return _of_pairs(path, value, {})
        return [_of_pair(path, value, "0", {})]
    if is_array(value):
        return [_found(path, "pt", "0", value, None, None, (path,), {})]
    raise DataError(f"{path} holds a {type(value).__name__}, and no images. {READS}")


def _has_pairs(value: Mapping[str, Any]) -> bool:
    """Whether the entry 'data' has sets, rather than images whose labels are another entry."""
    data = value.get("data")
    if not isinstance(data, list | tuple):
        return False
    return not any(name in value for name in LABEL_KEYS) or any(isinstance(part, list | tuple) for part in data)


def _of_pairs(path: Path, pairs: Sequence[Any], claims: Mapping[str, Any]) -> list[Found]:
    refuse_repeats(path, [part for pair in pairs if isinstance(pair, list | tuple) for part in pair])
    return [_of_pair(path, pair, str(number), claims) for number, pair in enumerate(pairs)]


def _is_pair(value: Any, length: int) -> bool:
    """Whether a value is images with as much beside them as makes `length`, rather than rows of a list."""
    return isinstance(value, list | tuple) and len(value) == length and is_array(value[0]) and value[0].ndim >= 3


def _of_steps(path: Path, steps: Sequence[Any]) -> Found:
    """What Dataset Distillation writes: for each step, its images, their labels and its step size.

    Source: Wang et al., arXiv 1811.10959. A batch that is seen again is kept once.
    """
    refuse_repeats(path, [part for step in steps for part in step])
    batches: list[tuple[Tensor, Tensor]] = []
    seen, rates = [], []
    for images, labels, rate in steps:
        x = images_of(path, images)
        batch = x, labels_of(path, labels, len(x))
        known = (number for number, other in enumerate(batches) if all(map(torch.equal, batch, other)))
        seen.append(next(known, len(batches)))
        batches += [batch] if seen[-1] == len(batches) else []
        rates.append(rate_of(path, rate))
    if len({(x.shape, y.shape, x.dtype, y.dtype) for x, y in batches}) > 1 or any(rate.ndim for rate in rates):
        raise DataError(
            f"{path} has steps that differ in the number or shape of their images; ddbench replays none such."
        )
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    schedule = torch.arange(len(images)).unflatten(0, (len(batches), -1))[seen]
    count = f"{len(seen)} step{'s' if len(seen) > 1 else ''} of {schedule.shape[1]} images"
    note = f"{count}, each with its step size: --protocol dd takes just these"
    return Found(
        images, labels, torch.stack(rates), DD, "0", (path,), schedule=schedule, habit="standard(stats=dd)",
        notes=(note,),
    )  # fmt: skip


def _of_pair(path: Path, pair: Any, entry: str, claims: Mapping[str, Any]) -> Found:
    if not isinstance(pair, list | tuple) or len(pair) not in (2, 3):
        what = f"a list of {len(pair)}" if isinstance(pair, list | tuple) else f"a {type(pair).__name__}"
        raise DataError(f"{path}: entry {entry} is not a pair of images and labels, but {what}. {READS}")
    lr = pair[2] if len(pair) == 3 else None
    return _found(path, DC, entry, pair[0], pair[1], lr, (path,), claims)


def _of_mapping(path: Path, layout: str, parts: Mapping[str, Any]) -> Found:
    spelt = {str(name).lower(): name for name in reversed(list(parts))}

    def first(names: Sequence[str]) -> Any:
        return next((spelt[name] for name in names if name in spelt and may_be_numbers(parts[spelt[name]])), None)

    images, labels, lr = first(IMAGE_KEYS), first(LABEL_KEYS), first(LR_KEYS)
    if images is None:
        raise DataError(f"{path} has {', '.join(map(str, parts)) or 'nothing'} in it, and no images. {READS}")
    used = {images, labels, lr}
    claims = claims_of({name: value for name, value in parts.items() if name not in used})
    rate = parts[lr] if lr else next((parts[n] for n in LR_KEYS if isinstance(parts.get(n), float)), None)
    frepo = (layout, images, labels) == ("npz", "image", "label")
    found = _found(
        path, FREPO if frepo else layout, "0", parts[images], None if labels is None else parts[labels], rate, (path,),
        claims,
    )  # fmt: skip
    if frepo:
        return replace(found, habit="frepo-zca(reg=0.1)", label_kind="regression")
    others = [str(name) for name, value in parts.items() if name not in used and _rows(value) == len(found.images)]
    if found.labels is None and others:
        note = f"{others[0]!r} has one row for each image and could be the labels; under the name 'labels' it is read"
        return replace(found, notes=(note,))
    return found


def _rows(value: Any) -> int:
    if is_array(value):
        return int(value.shape[0]) if value.ndim else 0
    return len(value) if isinstance(value, list | tuple) else 0


def _read_pairs(folder: Path, only: Path | None = None) -> list[Found]:
    """`images_TAG.pt` with `labels_TAG.pt`, and `lr_TAG.pt` where it is; shards of one set are joined."""
    return [found for group in groups(folder, only) for found in _of_group(folder, group)]


def _of_group(folder: Path, group: Group) -> list[Found]:
    first = group.pairs[0]
    if any(pair.labels is not None for pair in group.pairs):
        return [_join(folder, group)]
    if len(group.pairs) > 1:
        return [replace(_join(folder, group), notes=(*group.notes, _without_labels(first)))]
    # The file may have its labels in it.
    whole = _read_pt(first.path)
    if len(whole) > 1 or whole[0].labels is not None:
        return whole
    # Other names than MTT's were files like any other in version 0.1, and the entry is part of a run's id.
    entry = group.name if first.path.name.startswith("images") else whole[0].entry
    return [replace(whole[0], entry=entry, notes=(*whole[0].notes, *group.notes, _without_labels(first)))]


def _without_labels(pair: Pair) -> str:
    return f"{pair.labels_name} is not beside {pair.path.name}; if it was published, fetch it too"


def _join(folder: Path, group: Group) -> Found:
    parts, files, rate = [], [pair.path for pair in group.pairs], group.rate
    labelled = any(pair.labels is not None for pair in group.pairs)
    for pair in group.pairs:
        labels = pair.labels
        if labels is None and labelled:
            raise DataError(
                f"{pair.path} has no {pair.labels_name} beside it, and images without labels train nobody. Fetch it "
                "too."
            )
        files += [] if labels is None else [labels]
        taught = None if labels is None else unpickle(labels)
        parts.append(_found(pair.path, MTT, group.name, unpickle(pair.path), taught, None, (pair.path,), {}))
    if len({part.images.shape[1:] for part in parts}) > 1 or len({_row(part) for part in parts}) > 1:
        raise DataError(
            f"the shards of {group.name!r} in {folder} do not belong together: their shapes or labels differ."
        )
    lr = None
    if rate is not None:
        files.append(rate)
        lr = rate_of(rate, unpickle(rate))
    joined = torch.cat([part.images for part in parts])
    targets = torch.cat([part.labels for part in parts if part.labels is not None]) if labelled else None
    habit = "zca(eps=0.1)" if group.whitened else ""
    return Found(
        joined, targets, lr, MTT, group.name, tuple(files), habit=habit, whitened=group.whitened, notes=group.notes
    )


def _row(part: Found) -> tuple[Any, ...]:
    return () if part.labels is None else (*part.labels.shape[1:], part.labels.dtype)


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
    x = images_of(path, images)
    y = None if labels is None else labels_of(path, labels, len(x))
    return Found(x, y, None if lr is None else rate_of(path, lr), layout, entry, files, claims)


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not (isinstance(header, dict) and header.get("format") in sets.READ and isinstance(header.get("about"), dict)):
        raise DataError(f"{path} calls itself a set of ddbench, and its description cannot be read.")
    return header


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
                f"{path} is refused: it holds pickled objects, and ddbench runs nothing that a foreign file names. "
                f"{trusting(path, 'numpy, torch', 'numpy.load(%s, allow_pickle=True)')}"
            ) from None
        why = printable(str(error), 200) or type(error).__name__
        raise DataError(f"{path} cannot be opened: it is damaged or half there ({why}).") from None
