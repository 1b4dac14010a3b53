"""How large the pixels of a set are beside those of real images: what has left their range has diverged."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.data.pixels import PixelSpace
from ddbench.data.tensors import DatasetTensors
from ddbench.engine.capabilities import in_float64

# Sets of nearly all methods, from real images and from noise, have at most 2; at ipc 1, where an image has all of its
# class's gradient, DM's have 5, CAFE's 10, and 14 with a weight of 1 for its discrimination loss, on which students do
# best. Those of a step size that is too large have 30 and more, and students on them are at chance.
FAR = 20.0
SAMPLE = 500  # real images


def real_scale(train: DatasetTensors, pixels: PixelSpace) -> float:
    """Root mean square of real pixels in a space, at least 1: what methods that start from noise begin with."""
    rows = torch.arange(0, len(train), max(1, len(train) // SAMPLE))
    return largeness(pixels.to("cpu").forward(train.images[rows]))


def largeness(real: Tensor) -> float:
    """`real_scale` of images that are in the space already."""
    return max(1.0, _rms(real))


def scale_of(images: Tensor, real: float) -> float:
    """Root mean square of the pixels of a set, in units of `real_scale`; those that are no number are left out."""
    return _rms(images) / real


def left_range(scale: float) -> str:
    """The sentence about a set of that scale; "" where it is in the range of images."""
    if scale <= FAR:
        return ""
    return (
        f"the images have diverged: their pixels are {scale:.3g} times as large as those of real images (root mean "
        f"square; more than {FAR:g} times is taken for that), and students learn next to nothing from them"
    )


def _rms(images: Tensor) -> float:
    return float(torch.nan_to_num(in_float64(images.detach()), nan=0.0, posinf=0.0, neginf=0.0).square().mean().sqrt())
