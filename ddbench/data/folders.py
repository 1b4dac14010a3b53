"""Folders of image files, one folder a class, decoded into uint8 tensors."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddbench.data.cache import Content, Progress
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import DataError
from ddbench.files import open_regular
from ddbench.text import MOST_LINE, printable

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
GREY_MODES = {"1", "L", "LA", "La"}
COLOUR_MODES = {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, MemoryError, OverflowError,
    IndexError, KeyError, TypeError, AttributeError,
)  # fmt: skip
NATURE = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}
DECODE_CHUNK = 256
MOST_PIXELS = 64 * 10**6
HELD_OUT = 0.1
VAL_NAMES = ("val", "valid", "validation")

ClassFiles = list[list[Path]]  # the files of every class, in class order


@dataclass(frozen=True)
class Decoded:
    """Images as RGB, [N, 3, H, W] uint8, and what their files were."""

    images: Tensor
    labels: Tensor
    colour: bool
    formats: frozenset[str]
    resized: bool


def visible(folder: Path) -> list[Path]:
    """What is in a folder, less hidden files and the litter of macOS archives, by name."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def base_folder(folder: Path) -> Path:
    """Where the content begins: one folder down as long as there is nothing beside it."""
    while len(entries := visible(folder)) == 1 and entries[0].is_dir() and entries[0].name != "train":
        folder = entries[0]
    return folder


def read_image_folder(
    folder: Path, shown: str, info: DatasetInfo | None, size: int | None, progress: Progress | None
) -> Content:
    """Read train/CLASS/... with test/CLASS/... or val/CLASS/..., or only CLASS/... and hold out a tenth of every class.

    `shown` is what the folder is called in messages. Images are resized to `size` x `size` pixels when given. A subset
    of ImageNet is always resized to its own resolution, and takes its own classes out of a larger folder.
    Raises: DataError if there are no classes, or an image is corrupt or of another size.
    """
    train_folder = folder / "train"
    if info is not None and not train_folder.is_dir():
        raise DataError(
            f"{shown} has no folder 'train'; {info.name} needs its own train/CLASS/ and test/CLASS/ folders."
        )
    names, classes = _classes(train_folder if train_folder.is_dir() else folder, shown, info)
    target = (info.shape[1], info.shape[2]) if info is not None and info.wnids else (size, size) if size else None
    reader = _Reader(folder, shown, target, progress)
    if not train_folder.is_dir():
        whole = reader.decode(_class_files(folder, names, reader))
        rest, held_out = _tensors(whole, classes, colour=whole.colour).split(HELD_OUT)
        return _content(rest, held_out, [whole], "a tenth of every class held out by ddbench, a fixed draw")
    test_files, test_name = _test_files(folder, names, reader, prefer_val=info is not None and bool(info.wnids))
    train = reader.decode(_class_files(train_folder, names, reader))
    test = reader.decode(test_files, like=None if target else train)
    colour = train.colour or test.colour
    split = f"folders 'train' and '{test_name}' of the source"
    return _content(
        _tensors(train, classes, colour=colour), _tensors(test, classes, colour=colour), [train, test], split
    )


def read_class_folders(
    folder: Path, info: DatasetInfo | None = None, size: int | None = None
) -> tuple[Tensor, Tensor, list[Path]]:
    """The images of CLASS/..., as [N, C, H, W] uint8, their labels [N] int64, and their files.

    Folders that are all numbers are class numbers; others are classes in the order of `info`, or else of their names.
    Images are resized to `size` x `size` pixels when given.
    Raises: DataError if there are no classes, or an image is corrupt or of another size.
    """
    names, _ = _classes(folder, str(folder), info)
    reader = _Reader(folder, str(folder), (size, size) if size else None, None)
    files = _class_files(folder, names, reader)
    decoded = reader.decode(files)
    numbers = torch.tensor([int(name) for name in names]) if all(name.isdecimal() for name in names) else None
    labels = decoded.labels if numbers is None else numbers[decoded.labels]
    images = decoded.images if decoded.colour else decoded.images[:, :1].contiguous()
    return images, labels, [path for paths in files for path in paths]


def read_images(folder: Path, size: int | None = None) -> tuple[Tensor, list[Path]]:
    """The images that lie in a folder, as [N, C, H, W] uint8, and their files: 2.png before 10.png.

    Images are resized to `size` x `size` pixels when given.
    Raises: DataError if there are none, or one is corrupt or of another size.
    """
    found = [path for path in visible(folder) if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(f"{folder} has no images.")
    files = sorted(
        found, key=lambda path: [int(part) if part.isdecimal() else part for part in _NUMBERS.split(path.name)]
    )
    decoded = _Reader(folder, str(folder), (size, size) if size else None, None).decode([files])
    return decoded.images if decoded.colour else decoded.images[:, :1].contiguous(), files


_NUMBERS = re.compile(r"(\d+)")


class _Reader:
    """Decodes files of one folder, to one size."""

    def __init__(self, folder: Path, shown: str, target: tuple[int, int] | None, progress: Progress | None) -> None:
        self.folder = folder
        self.shown = shown
        self.target = target
        self.progress = progress

    def name(self, path: Path) -> str:
        """What a file is called in messages."""
        return f"{path.relative_to(self.folder)} of {self.shown}"

    def decode(self, files: ClassFiles, like: Decoded | None = None) -> Decoded:
        """Decode the files of all classes; the images must be as large as those of `like`, or as the first of them."""
        with warnings.catch_warnings():
            # Said of images that `_refuse_huge` is about to refuse.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return self._decode(files, like)

    def _decode(self, files: ClassFiles, like: Decoded | None) -> Decoded:
        flat = [path for paths in files for path in paths]
        labels = torch.repeat_interleave(torch.arange(len(files)), torch.tensor([len(paths) for paths in files]))
        height, width = self.target or (like.images.shape[2:] if like is not None else self._size(flat[0]))
        need = 3 * len(flat) * height * width
        if need > _memory():
            raise DataError(
                f"{len(flat)} images of {height}x{width} pixels take {need / 1e9:.0f} GB, more than the memory has. "
                "Choose a smaller --size."
            )
        pixels = np.empty((len(flat), 3, height, width), dtype=np.uint8)
        colour, resized, formats, done = False, False, set(), 0
        starts = range(0, len(flat), DECODE_CHUNK)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                chunks = pool.map(lambda start: self._decode_chunk(flat, pixels, start), starts)
                for chunk_colour, chunk_resized, chunk_formats in chunks:
                    colour, resized = colour or chunk_colour, resized or chunk_resized
                    formats |= chunk_formats
                    done = min(done + DECODE_CHUNK, len(flat))
                    if self.progress is not None:
                        self.progress("decoding images", done, len(flat))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return Decoded(torch.from_numpy(pixels), labels, colour, frozenset(formats), resized)

    def _decode_chunk(self, files: Sequence[Path], pixels: np.ndarray, start: int) -> tuple[bool, bool, set[str]]:
        colour, resized, formats = False, False, set()
        for position, path in enumerate(files[start : start + DECODE_CHUNK], start):
            try:
                with open_regular(path) as file, _compared(file) as image:
                    self._refuse_huge(image, path)
                    image.load()
                    formats.add(image.format or "unknown")
                    colour = colour or self._is_colour(image, path)
                    resized = resized or image.size != pixels.shape[:1:-1]
                    rgb = self._fit(image.convert("RGB"), pixels.shape[2:], path)
            except BROKEN as error:
                raise self._corrupt(path, error) from error
            pixels[position] = np.asarray(rgb).transpose(2, 0, 1)
        return colour, resized, formats

    def _is_colour(self, image: Image.Image, path: Path) -> bool:
        if image.mode not in GREY_MODES | COLOUR_MODES:
            raise DataError(
                f"{self.name(path)} has more than 8 bits a channel (mode {image.mode}), and ddbench keeps 8. "
                "Convert such images first."
            )
        return image.mode in COLOUR_MODES

    def _fit(self, image: Image.Image, size: Sequence[int], path: Path) -> Image.Image:
        height, width = size
        if image.size == (width, height):
            return image
        if self.target is None:
            raise DataError(
                f"images have different sizes: {self.name(path)} has {image.size[0]}x{image.size[1]} pixels, others "
                f"{width}x{height}. All images of a dataset share one size; --size {min(height, width)} resizes them."
            )
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _size(self, path: Path) -> tuple[int, int]:
        try:
            with open_regular(path) as file, Image.open(file) as image:
                self._refuse_huge(image, path)
                return image.size[1], image.size[0]
        except BROKEN as error:
            raise self._corrupt(path, error) from error

    def _refuse_huge(self, image: Image.Image, path: Path) -> None:
        # A file of some kilobytes can say that it has any number of pixels.
        if image.width * image.height > MOST_PIXELS:
            raise DataError(
                f"{self.name(path)} has {image.width}x{image.height} pixels, more than {MOST_PIXELS // 10**6} million. "
                "Make it smaller first."
            )

    def _corrupt(self, path: Path, error: Exception) -> DataError:
        why = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        return DataError(f"{self.name(path)} cannot be decoded: {why}. Replace or remove the file.")


def _compared(file: BufferedReader) -> Image.Image:
    """An image whose checksums fit, where its format has any: Pillow does not look at those of a PNG's pixels."""
    image = Image.open(file)
    if image.format == "PNG":
        image.verify()
        file.seek(0)
        image = Image.open(file)
    return image


def _memory() -> float:
    """Bytes that this process may have: of the machine, or less where a limit is set."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ImportError, ValueError, OSError):
        return math.inf
    return whole if soft == resource.RLIM_INFINITY else min(whole, soft)


def _classes(folder: Path, shown: str, info: DatasetInfo | None) -> tuple[list[str], tuple[str, ...]]:
    """The class folders in class order, and what the classes are called."""
    found = [entry.name for entry in visible(folder) if entry.is_dir()]
    for name in found:
        if printable(name, MOST_LINE) != name:
            raise DataError(
                f"{shown} has a class folder whose name is no text, {name!r}: it is of another encoding, or has "
                "control characters. Rename it."
            )
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


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _class_files(folder: Path, names: Sequence[str], reader: _Reader) -> ClassFiles:
    files = []
    for name in names:
        paths = _image_files(folder / name)
        if not paths:
            raise DataError(
                f"class {name!r} is empty: {reader.name(folder / name)} has no image. Add images or remove the class."
            )
        files.append(paths)
    return files


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def _test_files(folder: Path, names: Sequence[str], reader: _Reader, prefer_val: bool) -> tuple[ClassFiles, str]:
    order = (*VAL_NAMES, "test") if prefer_val else ("test", *VAL_NAMES)
    for name in order:
        part = folder / name
        if (part / "val_annotations.txt").is_file():
            return _annotated_files(part, names, reader), name
        # A test folder without class folders, as ImageNet's, holds images whose labels nobody has.
        found = [entry.name for entry in visible(part) if entry.is_dir()] if part.is_dir() else []
        if not set(found) & set(names):
            continue
        extra = [entry for entry in found if entry not in names]
        if extra and not prefer_val:
            raise DataError(f"{reader.name(part / extra[0])} is a class that the folder 'train' does not have.")
        return _class_files(part, names, reader), name
    raise DataError(
        f"{reader.shown} has a folder 'train', but no folder 'test' or 'val' with the same class folders. Add one; or "
        "add the folder 'train' itself, and ddbench holds out a tenth of every class."
    )


def _annotated_files(part: Path, names: Sequence[str], reader: _Reader) -> ClassFiles:
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


def _content(train: DatasetTensors, test: DatasetTensors, decoded: Sequence[Decoded], split: str) -> Content:
    formats = sorted({NATURE.get(name, name) for part in decoded for name in part.formats})
    kind = formats[0] if len(formats) == 1 else "mixed"
    height, width = train.shape[1:]
    resized = any(part.resized for part in decoded)
    return Content(
        train,
        test,
        origin=f"image folder ({', '.join(formats)})",
        kind=kind,
        split=split,
        preprocessing=f"resized to {width}x{height}, bilinear, aspect not kept" if resized else "none",
    )
