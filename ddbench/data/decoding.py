"""Image files as uint8 tensors: turned upright, on white where they are transparent, to one size."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from ddbench.data.cache import Progress
from ddbench.data.mistaken import mistaken
from ddbench.errors import DataError
from ddbench.files import open_regular
from ddbench.host import memory

IMAGE_SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpc", ".jpx", ".webp", ".bmp", ".dib", ".gif",
    ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm",
} | ({".avif"} if features.check("avif") else set())  # fmt: skip
GREY_MODES = {"1", "L", "LA", "La"}
COLOUR_MODES = {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, MemoryError, OverflowError,
    IndexError, KeyError, TypeError, AttributeError,
)  # fmt: skip
DECODE_CHUNK = 256
MOST_PIXELS = 64 * 10**6
# Others are not looked for: Pillow hands some of them, such as EPS, to other programs.
FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "TGA", "PPM")
SIGNED = tuple(name for name in FORMATS if name != "TGA")  # which almost any bytes could be
UPRIGHT = 1  # the orientation of EXIF that asks for nothing
TURNED, ON_WHITE = "turned upright by EXIF", "transparent parts on white"

ClassFiles = list[list[Path]]  # the files of every class, in class order


@dataclass(frozen=True)
class Decoded:
    """Images as RGB, [N, 3, H, W] uint8, and what their files were.

    `changes` says what else was done to some of them: `TURNED`, `ON_WHITE`.
    """

    images: Tensor
    labels: Tensor
    colour: bool
    formats: frozenset[str]
    resized: bool
    changes: frozenset[str] = frozenset()


@dataclass
class _Seen:
    """What the files of a chunk were."""

    colour: bool = False
    resized: bool = False
    formats: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)


class Reader:
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
            # Said of images that `_refuse_huge` is about to refuse, and of damaged tags that nobody needs.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            return self._decode(files, like)

    def _decode(self, files: ClassFiles, like: Decoded | None) -> Decoded:
        flat = [path for paths in files for path in paths]
        labels = torch.repeat_interleave(torch.arange(len(files)), torch.tensor([len(paths) for paths in files]))
        height, width = self.target or (like.images.shape[2:] if like is not None else self._size(flat[0]))
        need = 3 * len(flat) * height * width
        if need > (memory() or math.inf):
            raise DataError(
                f"{len(flat)} images of {height}x{width} pixels take {need / 1e9:.0f} GB, more than the memory has. "
                "Choose a smaller --size."
            )
        pixels = np.empty((len(flat), 3, height, width), dtype=np.uint8)
        seen, done = _Seen(), 0
        starts = range(0, len(flat), DECODE_CHUNK)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                chunks = pool.map(lambda start: self._decode_chunk(flat, pixels, start), starts)
                for chunk in chunks:
                    seen.colour, seen.resized = seen.colour or chunk.colour, seen.resized or chunk.resized
                    seen.formats |= chunk.formats
                    seen.changes |= chunk.changes
                    done = min(done + DECODE_CHUNK, len(flat))
                    if self.progress is not None:
                        self.progress("decoding images", done, len(flat))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        kinds, changes = frozenset(seen.formats), frozenset(seen.changes)
        return Decoded(torch.from_numpy(pixels), labels, seen.colour, kinds, seen.resized, changes)

    def _decode_chunk(self, files: Sequence[Path], pixels: np.ndarray, start: int) -> _Seen:
        seen = _Seen()
        for position, path in enumerate(files[start : start + DECODE_CHUNK], start):
            try:
                with open_regular(path) as file, _compared(file) as image:
                    self._refuse_huge(image, path)
                    image.load()
                    seen.formats.add(image.format or "unknown")
                    seen.colour = seen.colour or self._is_colour(image, path)
                    shown = _as_shown(image, seen.changes)
                    seen.resized = seen.resized or shown.size != pixels.shape[:1:-1]
                    rgb = self._fit(shown, pixels.shape[2:], path)
            except BROKEN as error:
                raise self._corrupt(path, error) from error
            pixels[position] = np.asarray(rgb).transpose(2, 0, 1)
        return seen

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
            with open_regular(path) as file, _opened(file) as image:
                self._refuse_huge(image, path)
                width, height = _turned(image, set()).size
                return height, width
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
        if instead := mistaken(path):
            return DataError(f"{self.name(path)} is {instead}")
        why = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        return DataError(f"{self.name(path)} cannot be decoded: {why}. Replace or remove the file.")


def _compared(file: BufferedReader) -> Image.Image:
    """An image whose checksums fit, where its format has any: Pillow does not look at those of a PNG's pixels."""
    image = _opened(file)
    if image.format == "PNG":
        image.verify()
        file.seek(0)
        image = _opened(file)
    return image


def _opened(file: BufferedReader) -> Image.Image:
    return Image.open(file, formats=FORMATS)


def looks_like_an_image(path: Path) -> bool:
    """Whether a file begins like an image, whatever it is called. It may be damaged further on."""
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=SIGNED):
                return True
    except BROKEN:
        return False


def _as_shown(image: Image.Image, changes: set[str]) -> Image.Image:
    """The image in RGB as every viewer shows it; what had to be done for that is added to `changes`.

    Without that the colour that lies hidden under transparent parts would show: whatever a program has left there.
    """
    image = _turned(image, changes)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    changes.add(ON_WHITE)
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _turned(image: Image.Image, changes: set[str]) -> Image.Image:
    """The image turned and mirrored as its EXIF tag says. A tag that cannot be read asks for nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        turned = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    except BROKEN:
        return image
    if turned is not image:
        changes.add(TURNED)
    return turned
