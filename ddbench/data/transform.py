"""The way of a test image into the pixel space of a set: as a callable, and as a file that needs no ddbench."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.data.pixels import KipWhitening, PixelSpace, Standard, Whitening
from ddbench.errors import DataError
from ddbench.files import write_atomically

MODES = {1: "L", 3: "RGB"}

# Stored in every file: what to do with its arrays, in the words of numpy alone.
HOW = '''
# t = dict(numpy.load("FILE.transform.npz")); pixels: uint8 [N, C, H, W], as the dataset stores them.
def transform(pixels, t):
    """Pixels as networks see them: float32 [N, C, H, W]."""
    x = (pixels / 255 - t["mean"]) / t["std"]
    if "weight" in t:
        rows = x.reshape(len(x), -1)
        if t["unit_length"]:
            rows = rows - rows.mean(axis=1, keepdims=True)
            rows = rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        x = (rows @ t["weight"].astype("float64")).reshape(x.shape)
    return x.astype("float32")
'''.strip()


@dataclass(frozen=True, eq=False)
class Transform:
    """What an image goes through before a network sees it: from stored pixels into a pixel space.

    Takes a uint8 tensor, a float tensor on the scale [0, 1], or a PIL image, such as torchvision's datasets give.
    Shapes: [C, H, W] or [..., C, H, W], and out the same in float32, on the device of the input.
    Raises: DataError for an image of another shape or kind.
    """

    space: PixelSpace
    shape: tuple[int, int, int]

    def __call__(self, image: Any) -> Tensor:
        pixels = image if isinstance(image, Tensor) else _of_pil(image, self.shape[0])
        if not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
            raise DataError(f"pixels are uint8, or floats from 0 to 1; these are {pixels.dtype}.")
        if tuple(pixels.shape[-3:]) != self.shape:
            raise DataError(
                f"the set has images of shape {self.shape}, and this one has {tuple(pixels.shape[-3:])}; bring it to "
                "that size first."
            )
        space = self._space if pixels.device.type == "cpu" else self._space.to(pixels.device)
        return space.forward(pixels)

    @cached_property
    def _space(self) -> PixelSpace:
        # Whitenings multiply in float64; a matrix that is so already is not converted for every image.
        if isinstance(self.space, Whitening | KipWhitening):
            return replace(self.space, weight=self.space.weight.double())
        return self.space

    def __repr__(self) -> str:
        return f"Transform({self.space.name}, {'x'.join(map(str, self.shape))})"

    def arrays(self) -> dict[str, Any]:
        """The numbers of the transform as `save` writes them, with `HOW` among them.

        mean and std broadcast against [C, H, W], on the scale [0, 1]; a whitening has weight [d, d] for d = C * H * W,
        and unit_length, which says whether each image is first centred and scaled to length 1.
        """
        space = self.space
        one = torch.ones(self.shape[0], 1, 1)
        found: dict[str, Any]
        match space:
            case Standard():
                found = {"mean": space.mean, "std": space.std}
            case Whitening():
                found = {"mean": space.mean.reshape(self.shape), "std": one, "weight": space.weight}
            case KipWhitening():
                found = {"mean": space.mean, "std": space.std, "weight": space.weight}
            case _:
                raise DataError(f"the pixel space {space.name} cannot be written as mean, deviation and matrix.")
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        unit = {"unit_length": np.array(isinstance(space, KipWhitening))} if "weight" in found else {}
        return {"pixels": np.array(space.name), "how": np.array(HOW), **arrays, **unit}

    def save(self, path: Path | str) -> None:
        """Write the transform as an .npz file for those who have numpy and no ddbench; its text `how` says how to apply
        it. Raises: RunError when the disk is full."""
        content = io.BytesIO()
        np.savez_compressed(content, **self.arrays())
        write_atomically(Path(path), content.getvalue())


def _of_pil(image: Any, channels: int) -> Tensor:
    if not hasattr(image, "convert"):
        raise DataError(f"an image is a tensor or a PIL image; this is a {type(image).__name__}.")
    picture = image.convert(MODES[channels]) if channels in MODES else image
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
