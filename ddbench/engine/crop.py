"""The usual augmentation of small real images: padded by reflection, cropped at random, mirrored half of the time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddbench.rng import Rng

PADDING = 4


def draw_crops(batch: int, rng: Rng) -> Tensor:
    """int64 [B, 3] on the host: the first row and column of each crop in the padded image, and 1 to mirror it."""
    return torch.from_numpy(rng.numpy().integers(0, np.array([2 * PADDING + 1, 2 * PADDING + 1, 2]), (batch, 3)))


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Each image as its draw says, in one gather.

    Shapes: images [B, C, H, W], of more than 4 pixels a side; draws [B, 3].
    """
    height, width = images.shape[-2:]
    rows = _reflected(torch.arange(height, device=images.device) + draws[:, :1], height)
    columns = _reflected(torch.arange(width, device=images.device) + draws[:, 1:2], width)
    columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns)
    positions = rows[:, :, None] * width + columns[:, None, :]
    return images.flatten(2).gather(2, positions.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Positions in an image padded by reflection, as positions in the image."""
    inside = (positions - PADDING).abs()
    return torch.where(inside < size, inside, 2 * (size - 1) - inside)
