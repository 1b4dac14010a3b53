"""A small sheet of a set's images, for a board to show beside its numbers: a column a class, at most 40 kB."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import torch
from PIL import Image, features
from torch import Tensor
from torch.nn.functional import interpolate

from ddbench.data.pixels import PixelSpace
from ddbench.runs.preview import arranged, colours, in_rgb
from ddbench.runs.record import SheetPart
from ddbench.synthetic import SyntheticSet

MOST_BYTES = 40_000
MOST_CLASSES = MOST_ROWS = 10
LARGEST_SIDE = 64  # pixels; larger images are made smaller
GAP = 1
QUALITIES = (90, 75)  # below, noise in images of a few pixels turns into blocks that are not in the set


def sheet(synthetic: SyntheticSet, pixels: PixelSpace) -> tuple[bytes, SheetPart] | None:
    """A WebP picture of a set, and what a record says of it; None where this Pillow cannot write WebP.

    The first ten classes, a column each, with up to ten images from the top; as many rows as the size has room for.
    Without loss where that fits. The same set gives the same bytes under the same version of WebP.
    """
    if not features.check("webp"):
        return None
    labels = synthetic.hard_labels
    columns = [torch.where(labels == k)[0][:MOST_ROWS] for k in labels.unique()[:MOST_CLASSES]]
    rows = max(len(column) for column in columns)
    shown, stretched = colours(synthetic, torch.cat(columns), pixels)
    places = [(row, k) for k, column in enumerate(columns) for row in range(len(column))]
    whole = arranged(_small(in_rgb(shown)), places, rows, len(columns), GAP)
    height = len(whole) // rows
    # One row always has room: ten images of the largest side, be they noise, take two thirds of it.
    count, data = next(one for one in _attempts(whole, rows, height) if len(one[1]) <= MOST_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    return data, SheetPart(sha256=sha256, bytes=len(data), classes=len(columns), rows=count, stretched=stretched)


def _attempts(whole: Tensor, rows: int, height: int) -> Iterator[tuple[int, bytes]]:
    """From the largest to the smallest: how many rows of a sheet [H, W, 3] are shown, and the picture."""
    yield rows, _webp(whole, lossless=True)
    for count in range(rows, 0, -1):
        for quality in QUALITIES:
            yield count, _webp(whole[: count * height], quality=quality)


def _webp(picture: Tensor, **options: int | bool) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(picture.numpy()).save(file, "WEBP", **options)
        return file.getvalue()


def _small(images: Tensor) -> Tensor:
    """Images [n, 3, H, W] with no side above the largest."""
    share = LARGEST_SIDE / max(images.shape[-2:])
    if share >= 1:
        return images
    height, width = (max(1, round(side * share)) for side in images.shape[-2:])
    return interpolate(images, size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)
