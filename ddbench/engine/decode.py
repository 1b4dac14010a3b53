"""From stored images to training images."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor

from ddbench.errors import DataError

_TILES = re.compile(r"tiles\(factor=(\d+)\)")


def decode(name: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Decode a set: "none" changes nothing, "tiles(factor=F)" cuts each image into F x F tiles of full size.

    Shapes: images [N, C, H, W], labels [N] or [N, K]; tiles give N * F * F of both, tile after tile of one image.
    Differentiable. Raises: DataError for an unknown decoder.
    Source: Kim et al., ICML 2022 (arXiv 2205.14959), multi-formation.
    """
    if name == "none":
        return images, labels
    match = _TILES.fullmatch(name)
    if not match or int(match[1]) < 1:
        raise DataError(f"there is no decoder {name!r}; known are 'none' and 'tiles(factor=F)'.")
    factor = int(match[1])
    height, width = images.shape[-2:]
    # Sizes that the factor does not divide are padded right and below with 0.5, as in the paper's code.
    padded = F.pad(images, (0, -width % factor, 0, -height % factor), value=0.5)
    tiles = padded.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # [N, C, F, h, F, w]
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    full = F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
    return full, labels.repeat_interleave(factor * factor, dim=0)
