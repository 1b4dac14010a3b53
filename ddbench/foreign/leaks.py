"""Whether a set has images of the test part in it, by which no student could be judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddbench.data.dataset import Dataset
from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.tensors import HASH_CHUNK


def count_test_images(images: Tensor, dataset: Dataset, spaces: Sequence[PixelSpace] = ()) -> int:
    """How many images of a set are images of the dataset's test part, byte for byte, and not of its training part.

    Bytes are compared as they are; floats [N, C, H, W] as pixels from 0 to 255, from 0 to 1, in the space `standard`,
    and in `spaces`, each rounded to bytes. The test images are hashed and looked at in no other way.
    """
    if tuple(images.shape[1:]) != dataset.info.shape:
        return 0
    forms = [images] if images.dtype == torch.uint8 else _as_bytes(images, dataset, spaces)
    found = [set(_digests(form)) for form in forms]
    test = set(_digests(dataset.test.load().images))
    if not any(digests & test for digests in found):
        return 0
    # Some datasets have an image in both parts, and a set of training images may have it.
    test -= set(_digests(dataset.train.images))
    return max(sum(digest in test for digest in _digests(form)) for form in forms)


def sentence(count: int, images: int, dataset: Dataset) -> str:
    """What to tell of so many test images in a set of so many images."""
    return (
        f"{count} of {images} images are test images of {dataset.info.name}, byte for byte: accuracy on the test part "
        "says nothing of this set"
    )


def _as_bytes(images: Tensor, dataset: Dataset, spaces: Sequence[PixelSpace]) -> list[Tensor]:
    usual = fit_pixels("standard", dataset.train, dataset.info)
    floats = [images / 255, images, *(space.back(images) for space in (usual, *spaces))]
    return [
        (255 * torch.nan_to_num(form, 0.0, 0.0, 0.0)).round().clamp(0, 255).to(torch.uint8)
        for form in floats
        if form is not None
    ]


def _digests(images: Tensor) -> Iterator[bytes]:
    for chunk in images.split(HASH_CHUNK):
        yield from (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in chunk.contiguous().numpy())
