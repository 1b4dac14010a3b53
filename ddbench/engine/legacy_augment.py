"""The augmentation of Dataset Condensation, for networks that train on a finished set.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929: crop_scale_rotate on
MNIST, crop_noise for the network that its code calls ConvNetBN. Not differentiable.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddbench.engine.augment import parse_strategy
from ddbench.errors import ConfigError
from ddbench.rng import Rng

OPS = ("crop", "scale", "rotate", "noise")

CROP_PIXELS = 4
SCALE_CHANGE = 0.2
ROTATE_DEGREES = 45
NOISE = 0.001


def legacy(strategy: str, images: Tensor, rng: Rng) -> Tensor:
    """Augment one batch [B, C, H, W], each image by one operation of the strategy; without gradients.

    Crops and rotations are filled with the mean colour of this batch, scaled images with zeros.
    Raises: ConfigError for an unknown operation, and for rotations of images that are not square.
    """
    ops = parse_strategy(strategy, OPS)
    height, width = images.shape[-2:]
    if "rotate" in ops and height != width:
        raise ConfigError(
            f"Augmentation {strategy!r} rotates square images only, and these have {height} x {width} pixels: a turned "
            "one would not cover the frame. Leave 'rotate' out."
        )
    if not ops:
        return images
    images = images.detach()
    mean = images.mean((0, 2, 3))
    choice = torch.randint(len(ops), (len(images),), generator=rng.fold("op").torch())
    out = images.clone()
    for number, op in enumerate(ops):
        chosen = (choice == number).nonzero().flatten().to(images.device)
        if len(chosen):
            out[chosen] = _apply_one(op, images[chosen], mean, rng.fold(op))
    return out


def _apply_one(op: str, images: Tensor, mean: Tensor, rng: Rng) -> Tensor:
    match op:
        case "crop":
            return _crop(images, mean, rng)
        case "scale":
            return _scale(images, rng)
        case "rotate":
            return _rotate(images, mean, rng)
        case _:
            noise = torch.randn(images.shape, generator=rng.torch(), dtype=images.dtype)
            return images + NOISE * noise.to(images.device)


def _crop(images: Tensor, mean: Tensor, rng: Rng) -> Tensor:
    n, _, height, width = images.shape
    margin = CROP_PIXELS
    padded = mean[:, None, None].repeat(n, 1, height + 2 * margin, width + 2 * margin)
    padded[..., margin:-margin, margin:-margin] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    # The last of the 2 * margin + 1 windows is never drawn: so it was in the published runs.
    rows, columns = torch.randint(2 * margin, (2, n), generator=rng.torch()).to(images.device)
    return windows[torch.arange(n, device=images.device), :, rows, columns]


def _scale(images: Tensor, rng: Rng) -> Tensor:
    n, _, height, width = images.shape
    factors = 1 + SCALE_CHANGE * (2 * torch.rand(2, n, 1, generator=rng.torch(), dtype=torch.float64) - 1)
    resized = [(factor * length).long() for factor, length in zip(factors, (height, width), strict=True)]
    square = torch.maximum(*resized).clamp(min=max(height, width))
    rows, columns = (_nearest(new, length, square) for new, length in zip(resized, (height, width), strict=True))
    picked = images[
        torch.arange(n, device=images.device)[:, None, None],
        :,
        rows.clamp(min=0).to(images.device)[:, :, None],
        columns.clamp(min=0).to(images.device)[:, None, :],
    ]
    outside = ((rows < 0)[:, :, None] | (columns < 0)[:, None, :]).to(images.device)
    return picked.movedim(-1, 1).masked_fill(outside[:, None], 0)


def _nearest(resized: Tensor, length: int, square: Tensor) -> Tensor:
    """Which pixel each pixel of the frame shows, [n, length], of images resized to [n, 1]; -1: none.

    Each lies in the middle of a square [n, 1] that holds it and the frame, and the frame is cut out of the middle of
    that. Both middles are rounded down, so that the one pixel more or less of odd differences depends on the square.
    """
    pixels = torch.arange(length) + (square - length) // 2 - (square - resized) // 2
    return (pixels * length // resized).masked_fill((pixels < 0) | (pixels >= resized), -1)


def _rotate(images: Tensor, mean: Tensor, rng: Rng) -> Tensor:
    # One image at a time, 0.1 ms each: the cubic splines of the published runs are scipy's.
    from scipy import ndimage

    size = images.shape[-1]
    fill = mean.mean().item()
    angles = torch.randint(-ROTATE_DEGREES, ROTATE_DEGREES, (len(images),), generator=rng.torch()).tolist()
    turned = np.empty(images.shape, dtype=images.cpu().numpy().dtype)
    for target, image, angle in zip(turned, images.cpu().numpy(), angles, strict=True):
        whole = ndimage.rotate(image, angle, axes=(-2, -1), reshape=True, order=3, mode="constant", cval=fill)
        start = (whole.shape[-1] - size) // 2
        target[:] = whole[:, start : start + size, start : start + size]
    return torch.from_numpy(turned).to(images.device)
