"""Augmentation that mixes images of a batch.

Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899; together with the rest as in Sun et al., "On the Diversity and
Realism of Distilled Dataset" (RDED), CVPR 2024, arXiv 2312.03526. Not differentiable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.rng import Rng

# Images from this side on are mosaics of 2 x 2, whose tiles are shuffled and cropped; smaller ones are whole.
MOSAIC_SIDE = 128
MOSAIC = 2

# Sides of a crop to one another, as torchvision's RandomResizedCrop draws them.
RATIOS = (3 / 4, 4 / 3)
# How many boxes it draws before it takes the whole image.
CROPS_DRAWN = 10


def flip_crop_mix(images: Tensor, rng: Rng) -> Tensor:
    """Augment one batch [B, C, H, W]: tiles shuffled and a random crop where images are mosaics, flips, then CutMix.

    A whole image is not cropped: the smallest share of its area that RDED allows is all of it.
    """
    return _mixed(images, rng, shuffle_tiles, random_crop)


def shuffle_crop_flip_mix(images: Tensor, rng: Rng) -> Tensor:
    """Augment one batch [B, C, H, W] as the code of RDED does: where images are mosaics, the columns and the rows of
    their tiles are shuffled and a random crop is taken; then flips and CutMix, which draw as `flip_crop_mix` does.

    Source: Sun et al., CVPR 2024 (arXiv 2312.03526), the authors' code.
    """
    return _mixed(images, rng, shuffle_strips, random_resized_crop)


def _mixed(
    images: Tensor,
    rng: Rng,
    shuffle: Callable[[Tensor, int, Rng], Tensor],
    crop: Callable[[Tensor, float, Rng], Tensor],
) -> Tensor:
    factor = MOSAIC if min(images.shape[-2:]) >= MOSAIC_SIDE else 1
    images = images.detach()
    if factor > 1:
        images = shuffle(images, factor, rng.fold("tiles"))
        images = crop(images, 1 / factor, rng.fold("crop"))
    turned = torch.rand(len(images), generator=rng.fold("flip").torch()) < 0.5
    images = torch.where(turned.to(images.device)[:, None, None, None], images.flip(-1), images)
    return cutmix(images, rng.fold("mix"))


def shuffle_strips(images: Tensor, factor: int, rng: Rng) -> Tensor:
    """The F columns of tiles of each image [B, C, H, W] in an order of its own, and then the F rows; tiles of a row or
    a column stay together. What is left of a side that is no multiple of F belongs to its last strip, as there."""
    shuffled = images.clone()
    for axis in (-1, -2):
        side = images.shape[axis]
        edges = [*(k * (side // factor) for k in range(factor)), side]
        strips = [torch.arange(first, last) for first, last in itertools.pairwise(edges)]
        generator = rng.fold("columns" if axis == -1 else "rows").torch()
        orders = torch.rand(len(images), factor, generator=generator).argsort(dim=1).tolist()
        places = torch.stack([torch.cat([strips[k] for k in order]) for order in orders]).to(images.device)
        index = places[:, None, None, :] if axis == -1 else places[:, None, :, None]
        shuffled = shuffled.gather(axis, index.expand_as(shuffled))
    return shuffled


def random_resized_crop(images: Tensor, smallest: float, rng: Rng) -> Tensor:
    """A box of each image [B, C, H, W], between `smallest` and all of its area, brought back to full size bilinearly.

    Boxes are drawn as by torchvision's RandomResizedCrop: whole pixels, and of ten drawn the first that fits into the
    image; else all of the image, whose sides are no further apart than those of a box may be.
    """
    generator = rng.torch()
    height, width = images.shape[-2:]
    shares, ratios = torch.rand(2, CROPS_DRAWN, len(images), generator=generator, dtype=torch.float64)
    across, down = torch.rand(2, len(images), generator=generator, dtype=torch.float64)
    area = (smallest + (1 - smallest) * shares) * height * width
    stretch = torch.exp(math.log(RATIOS[0]) + (math.log(RATIOS[1]) - math.log(RATIOS[0])) * ratios)
    wide, high = (area * stretch).sqrt().round(), (area / stretch).sqrt().round()
    fits = (wide <= width) & (high <= height)
    first, any_fits = fits.int().argmax(dim=0, keepdim=True), fits.any(dim=0)
    wide = torch.where(any_fits, wide.gather(0, first)[0], width)
    high = torch.where(any_fits, high.gather(0, first)[0], height)
    left, top = (across * (width - wide + 1)).floor(), (down * (height - high + 1)).floor()
    # From -1 to 1, as affine grids count. Beyond a box lie the pixels around it, and beyond the frame its border.
    shares_of_frame = (wide / width, high / height)
    middles = ((2 * left + wide) / width - 1, (2 * top + high) / height - 1)
    zero = torch.zeros_like(wide)
    rows = ((shares_of_frame[0], zero, middles[0]), (zero, shares_of_frame[1], middles[1]))
    affine = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def shuffle_tiles(images: Tensor, factor: int, rng: Rng) -> Tensor:
    """The F x F tiles of each image in an order of its own. Sides are multiples of the factor, or end with a rest that
    stays where it is."""
    high, wide = (side - side % factor for side in images.shape[-2:])
    tiles = images[..., :high, :wide].unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # [B, C, F, h, F, w]
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, F * F, C, h, w]
    orders = torch.rand(len(images), factor * factor, generator=rng.torch()).argsort(dim=1).to(images.device)
    tiles = tiles[torch.arange(len(images), device=images.device)[:, None], orders]
    whole = tiles.unflatten(1, (factor, factor)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    shuffled = images.clone()
    shuffled[..., :high, :wide] = whole
    return shuffled


def random_crop(images: Tensor, smallest: float, rng: Rng) -> Tensor:
    """A part of each image, between `smallest` and all of its area, brought back to full size bilinearly."""
    shares, ratios, across, down = torch.rand(4, len(images), generator=rng.torch())
    area = smallest + (1 - smallest) * shares
    stretch = torch.exp(math.log(RATIOS[0]) + (math.log(RATIOS[1]) - math.log(RATIOS[0])) * ratios)
    wide, high = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    # From -1 to 1, as affine grids count.
    left, top = (2 * across - 1) * (1 - wide), (2 * down - 1) * (1 - high)
    zero = torch.zeros_like(wide)
    affine = torch.stack([torch.stack([wide, zero, left], 1), torch.stack([zero, high, top], 1)], 1)
    grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Mix:
    """A box that each image of a batch gets from another one. Tensors alone, so that a step can be captured with it.

    Shapes: box [4] int64, its first and last row and column, the last ones left out; partners [B] int64, a permutation;
    shares [2] float32, how much of an image stays and how much the box covers. Many of them have a leading [T].
    """

    box: Tensor
    partners: Tensor
    shares: Tensor

    @classmethod
    def draw(cls, count: int, height: int, width: int, rng: Rng) -> Mix:
        """One box for a batch: its share is uniform but for what lies outside of the frame, its middle is uniform."""
        generator = rng.torch()
        kept, across, down = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        partners = torch.randperm(count, generator=generator)
        half_high, half_wide = (int(side * math.sqrt(1 - kept)) // 2 for side in (height, width))
        row, column = int(down * height), int(across * width)
        top, bottom = max(0, row - half_high), min(height, row + half_high)
        left, right = max(0, column - half_wide), min(width, column + half_wide)
        share = (bottom - top) * (right - left) / (height * width)
        return cls(torch.tensor([top, bottom, left, right]), partners, torch.tensor([1 - share, share]))

    @classmethod
    def none(cls, count: int) -> Mix:
        """The one that changes nothing, for steps that are captured whether images are mixed in them or not."""
        return cls(torch.zeros(4, dtype=torch.int64), torch.arange(count), torch.tensor([1.0, 0.0]))

    def to(self, device: torch.device) -> Mix:
        return Mix(self.box.to(device), self.partners.to(device), self.shares.to(device))

    def images(self, images: Tensor) -> Tensor:
        """Images [..., B, C, H, W], mixed along B."""
        top, bottom, left, right = self.box.unbind()
        row, column = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        inside = ((row >= top) & (row < bottom))[:, None] & ((column >= left) & (column < right))
        return torch.where(inside, images.index_select(-4, self.partners), images)

    def targets(self, targets: Tensor) -> Tensor:
        """Targets [..., B, K] in the shares that images have of each other."""
        stays, covered = self.shares.to(targets.dtype).unbind()
        return stays * targets + covered * targets.index_select(-2, self.partners)


def cutmix(images: Tensor, rng: Rng) -> Tensor:
    """A box of each image [B, C, H, W] is that of another one of the batch, without its label."""
    return Mix.draw(len(images), images.shape[-2], images.shape[-1], rng).to(images.device).images(images)
