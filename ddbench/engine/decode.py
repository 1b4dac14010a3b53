"""From stored images to training images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Names of decoders, which were here, can be imported from here as before.
from ddbench.decoders import NONE as NONE
from ddbench.decoders import canonical_decoder as canonical_decoder
from ddbench.decoders import factor_of
from ddbench.decoders import tiles as tiles
from ddbench.errors import DataError


def decode(name: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Decode a set: "none" changes nothing, "tiles(factor=F)" cuts each image into F x F tiles of full size.

    Shapes: images [N, C, H, W] of floats, labels [N] or [N, K]; tiles give N * F * F of both, tile after tile of one
    image. Differentiable. Raises: DataError for an unknown decoder, and for tiles that have no pixel.
    Source: Kim et al., ICML 2022 (arXiv 2205.14959), multi-formation.
    """
    factor = factor_of(name)
    if factor == 1:
        return images, labels
    height, width = images.shape[-2:]
    check_factor(factor, height, width)
    # Sizes that the factor does not divide are padded right and below with 0.5, as in the paper's code.
    padded = F.pad(images, (0, -width % factor, 0, -height % factor), value=0.5)
    cut = padded.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # [N, C, F, h, F, w]
    cut = cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    full = F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)
    return full, labels.repeat_interleave(factor * factor, dim=0)


def check_factor(factor: int, height: int, width: int) -> None:
    """Raises: DataError where images of that size have no pixel of some of the F x F tiles.

    So it is with more tiles a side than pixels, and with fewer where all but the last take all pixels there are: of 8
    pixels, five tiles of two pixels leave the last one to the padding.
    """
    fits = [
        f for f in range(1, min(height, width, factor) + 1) if all(-(-n // f) * (f - 1) < n for n in (height, width))
    ]
    if factor not in fits:
        raise DataError(
            f"images of {height} x {width} cannot hold {factor} x {factor} smaller ones: some would have no pixel. "
            f"Choose a factor of {fits[-1]}, or a smaller one that divides the sides."
        )


def assembled(parts: Tensor, factor: int) -> Tensor:
    """[N * F * F, C, h, w] -> [N, C, F * h, F * w]: F x F parts in an image, row by row."""
    grid = parts.unflatten(0, (-1, factor, factor)).permute(0, 3, 1, 4, 2, 5)  # [N, C, F, h, F, w]
    return grid.flatten(4, 5).flatten(2, 3)
