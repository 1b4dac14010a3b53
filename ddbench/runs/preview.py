"""A picture of a set: a few images of each class, as colours rather than in the pixel space."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddbench.data.pixels import PixelSpace
from ddbench.synthetic import SyntheticSet

MOST_CLASSES = 20
MOST_IMAGES = 10
SMALLEST_SIDE = 64  # pixels that an image takes on the page at least
GAP = 4
TITLE_HEIGHT = 52
LETTER = 8  # pixels that a letter takes, a little more than on average
DPI = 100


def preview(synthetic: SyntheticSet, classes: Sequence[str], pixels: PixelSpace, title: str) -> bytes:
    """A PNG with one row a class: its first ten images, clipped to what a screen can show.

    Of more than twenty classes the first twenty are drawn. Where the pixel space has no way back, each image is
    stretched from its darkest to its brightest value, and the title says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = synthetic.hard_labels
    rows = [torch.where(labels == k)[0][:MOST_IMAGES] for k in range(min(len(classes), MOST_CLASSES))]
    columns = max(1, max(len(row) for row in rows))
    shown, stretched = colours(synthetic, torch.cat(rows), pixels)
    places = [(k, column) for k, row in enumerate(rows) for column in range(len(row))]
    sheet = arranged(_enlarged(in_rgb(shown)), places, len(rows), columns, GAP)
    notes = [f"the first {MOST_CLASSES} of {len(classes)} classes"] if len(classes) > MOST_CLASSES else []
    notes += ["each image stretched to its own range"] if stretched else []
    lines = [title, "; ".join(notes)] if notes else [title]
    names = [_short(name) for name in classes[: len(rows)]]

    height, width = sheet.shape[:2]
    margin = LETTER * max(len(name) for name in names) + 6 * GAP
    # A narrow sheet must still have room for its title.
    page = max(margin + width, LETTER * max(len(line) for line in lines) + 4 * GAP), TITLE_HEIGHT + height
    figure = Figure(figsize=(page[0] / DPI, page[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / page[0], 0, width / page[0], height / page[1]))
    axes.imshow(sheet.numpy(), interpolation="nearest")
    axes.set_axis_off()
    step = height / len(rows)
    for k, name in enumerate(names):
        axes.text(-2 * GAP, (k + 0.5) * step, name, ha="right", va="center", fontsize=10)
    top = 1 - TITLE_HEIGHT / 2 / page[1]
    figure.text(2 * GAP / page[0], top, "\n".join(lines), ha="left", va="center", fontsize=10, linespacing=1.4)
    with io.BytesIO() as file:
        canvas.print_png(file, metadata={"Software": None})
        return file.getvalue()


def colours(synthetic: SyntheticSet, rows: Tensor, pixels: PixelSpace) -> tuple[Tensor, bool]:
    """The images of some rows, float [n, C, H, W] in [0, 1], and whether each had to be stretched to its own range."""
    images = synthetic.images[rows]
    if images.dtype == torch.uint8:
        return images / 255, False
    shown = pixels.back(images)
    if shown is not None:
        return shown.float().clamp(0, 1), False
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-8), True


def in_rgb(images: Tensor) -> Tensor:
    """Images [n, 3, H, W]. More than three channels, or two, have no colours: the first stands for all."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def arranged(images: Tensor, places: Sequence[tuple[int, int]], rows: int, columns: int, gap: int) -> Tensor:
    """uint8 [rows * (H + gap), columns * (W + gap), 3] on white: each of images [n, 3, H, W] at its row and column."""
    height, width = (side + gap for side in images.shape[-2:])
    sheet = torch.ones(3, rows * height, columns * width)
    for image, (row, column) in zip(images, places, strict=True):
        top, left = row * height, column * width
        sheet[:, top : top + height - gap, left : left + width - gap] = image
    # Bytes, because matplotlib cuts floats off where they should be rounded.
    return (255 * sheet).round().to(torch.uint8).permute(1, 2, 0)


def _enlarged(images: Tensor) -> Tensor:
    """Images by a whole factor."""
    return interpolate(images, scale_factor=max(1, -(-SMALLEST_SIDE // max(images.shape[-2:]))), mode="nearest")


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
