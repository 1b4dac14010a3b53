"""Folders of image files, one folder a class, decoded into uint8 tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddbench.data.cache import Content, Progress
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.decoding import ClassFiles, Decoded, Reader
from ddbench.data.labelled import read_tables
from ddbench.data.parts import Parts, class_base, find_parts, folders_in, image_files, is_image, left_out, visible
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import DataError
from ddbench.files import open_regular
from ddbench.text import MOST_LINE, printable

NATURE = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}
HELD_OUT = 0.1
HELD_OUT_BY_DDBENCH = "a tenth of every class held out by ddbench, a fixed draw"


def read_image_folder(
    folder: Path, shown: str, info: DatasetInfo | None, size: int | None, progress: Progress | None
) -> Content:
    """Read train/CLASS/... with test/CLASS/... or val/CLASS/..., or only CLASS/... and hold out a tenth of every class.

    `shown` is what the folder is called in messages. Parts are known by their names, such as Training or seg_test.
    Images are resized to `size` x `size` pixels when given. A subset of ImageNet is always resized to its own
    resolution, and takes its own classes out of a larger folder.
    Raises: DataError if there are no classes, or an image is corrupt or of another size.
    """
    parts = find_parts(folder, shown)
    if info is not None and parts is None:
        raise DataError(
            f"{shown} has no folder 'train'; {info.name} needs its own train/CLASS/ and test/CLASS/ folders."
        )
    if parts is None and len(folders_in(folder)) < 2 and (tables := _tables(folder)):
        raise DataError(
            f"{shown} has no class folders, and a table {tables[0]}. If it says the classes, name it: --labels "
            f"{tables[0]}."
        )
    base = class_base(folder) if parts is None else parts.train
    names, classes = _classes(base, shown, info)
    subset = info is not None and bool(info.wnids)
    reader = Reader(folder, shown, _target(info, size), progress)
    if parts is None:
        train_files, test_files, split = _class_files(base, names, reader), None, ""
    else:
        train_files = _class_files(parts.train, names, reader)
        test_files, test_name = _test_files(parts, names, reader, subset=subset)
        split = f"folders '{parts.train.name}' and '{test_name}' of the source"
    # Of ImageNet, a hundred folders are left out for each one that a subset takes.
    unused = (
        "" if subset else left_out(folder, [path for part in (train_files, test_files or []) for path in _flat(part)])
    )
    return _decoded(reader, classes, train_files, test_files, split, unused)


def read_labelled_folder(
    folder: Path,
    shown: str,
    tables: Sequence[Path],
    columns: str,
    info: DatasetInfo | None,
    size: int | None,
    progress: Progress | None,
) -> Content:
    """Read images whose classes stand in tables, see `read_tables`; what else is said is as for `read_image_folder`.

    Raises: DataError if tables and images do not fit, or an image is corrupt or of another size.
    """
    found = read_tables(tables, folder, columns, info.class_names if info is not None else ())
    if info is not None and found.test is None:
        raise DataError(
            f"{info.name} has its own test part, and the labels say no part. Add a column for it, or choose "
            "a name of your own."
        )
    reader = Reader(folder, shown, _target(info, size), progress)
    used = [*_flat(found.train), *_flat(found.test or [])]
    return _decoded(reader, found.classes, found.train, found.test, found.split, left_out(folder, [*used, *tables]))


def class_folders(folder: Path, shown: str) -> list[str]:
    """The names of the folders in a folder, sorted. Raises: DataError for a name that is no text."""
    found = [entry.name for entry in visible(folder) if entry.is_dir()]
    for name in found:
        if printable(name, MOST_LINE) != name:
            raise DataError(
                f"{shown} has a class folder whose name is no text, {name!r}: it is of another encoding, or has "
                "control characters. Rename it."
            )
    return found


def read_class_folders(
    folder: Path, classes: Mapping[str, int] | None = None, size: int | None = None
) -> tuple[Tensor, Tensor, list[Path]]:
    """The images of CLASS/..., as [N, C, H, W] uint8, their labels [N] int64, and their files, class by class.

    `classes` says which folders are read, and which class each is; else they are numbered in their order.
    Raises: DataError if there are no classes, or an image is corrupt or of another size.
    """
    if classes is None:
        classes = {name: label for label, name in enumerate(_classes(folder, str(folder), None)[0])}
    names = sorted(classes, key=lambda name: (classes[name], name))
    reader = Reader(folder, str(folder), (size, size) if size else None, None)
    files = _class_files(folder, names, reader)
    decoded = reader.decode(files)
    labels = torch.tensor([classes[name] for name in names])[decoded.labels]
    images = decoded.images if decoded.colour else decoded.images[:, :1].contiguous()
    return images, labels, [path for paths in files for path in paths]


def read_images(folder: Path, size: int | None = None) -> tuple[Tensor, list[Path]]:
    """The images that lie in a folder, as [N, C, H, W] uint8, and their files: 2.png before 10.png.

    Images are resized to `size` x `size` pixels when given.
    Raises: DataError if there are none, or one is corrupt or of another size.
    """
    found = [path for path in visible(folder) if path.is_file() and is_image(path)]
    if not found:
        raise DataError(f"{folder} has no images.")
    files = sorted(
        found, key=lambda path: [int(part) if part.isdecimal() else part for part in _NUMBERS.split(path.name)]
    )
    decoded = Reader(folder, str(folder), (size, size) if size else None, None).decode([files])
    return decoded.images if decoded.colour else decoded.images[:, :1].contiguous(), files


_NUMBERS = re.compile(r"(\d+)")


def _classes(folder: Path, shown: str, info: DatasetInfo | None) -> tuple[list[str], tuple[str, ...]]:
    """The class folders in class order, and what the classes are called."""
    found = class_folders(folder, shown)
    if info is not None and info.wnids:
        if missing := [wnid for wnid in info.wnids if wnid not in found]:
            raise DataError(
                f"{shown} lacks {len(missing)} of the {info.classes} classes of {info.name}, such as "
                f"{folder.name}/{missing[0]}. It is made from a folder of ImageNet classes, train/WNID and val/WNID."
            )
        return list(info.wnids), info.class_names
    if len(found) < 2:
        raise DataError(
            f"{shown} has {len(found)} class folders, and at least two are needed. An image folder is "
            "train/CLASS/... with test/CLASS/... or val/CLASS/..., or only CLASS/..."
        )
    plain = {_plain(name): name for name in found}
    official = info.class_names if info is not None else ()
    if official and plain.keys() == {_plain(name) for name in official}:
        return [plain[_plain(name)] for name in official], official
    numbered = all(name.isdecimal() for name in found)
    names = sorted(found, key=int) if numbered else sorted(found)
    return names, official if numbered and len(official) == len(names) else tuple(names)


def _tables(folder: Path) -> list[str]:
    return [path.name for path in visible(folder) if path.suffix.lower() in (".csv", ".tsv")]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _class_files(folder: Path, names: Sequence[str], reader: Reader) -> ClassFiles:
    files = []
    for name in names:
        place = folder / name
        paths = image_files(place) if place.is_dir() else []
        if not paths:
            others = left_out(place, []) if place.is_dir() else ""
            raise DataError(
                f"class {name!r} is empty: {reader.name(place)} has no image that ddbench reads"
                f"{f', but {others}' if others else ''}. Add images or remove the class."
            )
        files.append(paths)
    return files


def _test_files(parts: Parts, names: Sequence[str], reader: Reader, *, subset: bool) -> tuple[ClassFiles, str]:
    for part in parts.tests(prefer="val" if subset else "test"):
        if (part / "val_annotations.txt").is_file():
            return _annotated_files(part, names, reader), part.name
        # A test folder without class folders, as ImageNet's, holds images whose labels nobody has.
        found = [entry.name for entry in folders_in(part)]
        if not set(found) & set(names):
            continue
        extra = [entry for entry in found if entry not in names]
        if extra and not subset:
            raise DataError(
                f"{reader.name(part / extra[0])} is a class that the folder {parts.train.name!r} does not have."
            )
        return _class_files(part, names, reader), part.name
    train = parts.train.name
    raise DataError(
        f"{reader.shown} has a folder {train!r}, but no folder 'test' or 'val' with the same class folders. Add one; "
        f"or add the folder {train!r} itself, and ddbench holds out a tenth of every class."
    )


def _annotated_files(part: Path, names: Sequence[str], reader: Reader) -> ClassFiles:
    """The validation folder of Tiny ImageNet: all images in one folder, their classes in a text file."""
    files: dict[str, list[Path]] = {name: [] for name in names}
    listing = part / "val_annotations.txt"
    with open_regular(listing) as file:
        lines = file.read().decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        image, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        path = part / "images" / image
        if wnid not in files or Path(image).name != image or not path.is_file():
            raise DataError(f"line {number} of {reader.name(listing)} names {image!r} of {wnid!r}, which is not there.")
        files[wnid].append(path)
    if empty := [name for name, paths in files.items() if not paths]:
        raise DataError(f"class {empty[0]!r} is empty: {reader.name(listing)} has no image of it.")
    return [sorted(paths) for paths in files.values()]


def _tensors(decoded: Decoded, classes: tuple[str, ...], *, colour: bool) -> DatasetTensors:
    images = decoded.images if colour else decoded.images[:, :1].contiguous()
    return DatasetTensors(images, decoded.labels, classes)


def _decoded(
    reader: Reader, classes: tuple[str, ...], train_files: ClassFiles, test_files: ClassFiles | None, split: str,
    unused: str,
) -> Content:  # fmt: skip
    """The images of both parts; without files of the test part, a tenth of every class is held out."""
    train = reader.decode(train_files)
    if test_files is None:
        rest, held_out = _tensors(train, classes, colour=train.colour).split(HELD_OUT)
        return _content(rest, held_out, [train], HELD_OUT_BY_DDBENCH, unused)
    test = reader.decode(test_files, like=None if reader.target else train)
    colour = train.colour or test.colour
    first, second = (_tensors(part, classes, colour=colour) for part in (train, test))
    return _content(first, second, [train, test], split, unused)


def _flat(files: ClassFiles) -> list[Path]:
    return [path for paths in files for path in paths]


def _target(info: DatasetInfo | None, size: int | None) -> tuple[int, int] | None:
    if info is not None and info.wnids:
        return info.shape[1], info.shape[2]
    return (size, size) if size else None


def _content(
    train: DatasetTensors, test: DatasetTensors, decoded: Sequence[Decoded], split: str, unused: str
) -> Content:
    formats = sorted({NATURE.get(name, name) for part in decoded for name in part.formats})
    kind = formats[0] if len(formats) == 1 else "mixed"
    height, width = train.shape[1:]
    resized = any(part.resized for part in decoded)
    done = sorted({change for part in decoded for change in part.changes}, reverse=True)
    done += [f"resized to {width}x{height}, bilinear, aspect not kept"] if resized else []
    return Content(
        train,
        test,
        origin=f"image folder ({', '.join(formats)})",
        kind=kind,
        split=split,
        preprocessing="; ".join(done) or "none",
        left_out=unused,
    )
