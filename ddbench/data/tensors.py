"""Real images: uint8 tensors on the host, and class-wise sampling in a pixel space on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddbench.data.manifests import digest
from ddbench.engine.capabilities import pins
from ddbench.errors import DataError
from ddbench.rng import Rng

if TYPE_CHECKING:
    from ddbench.data.pixels import PixelSpace

HASH_CHUNK = 2048  # images hashed or transformed at a time, so that a memory-mapped set is never in memory twice


@dataclass(frozen=True, eq=False)
class DatasetTensors:
    """Raw uint8 images, class by class, on the host; memory-mapped when they come from the cache.

    Shapes: images [N, C, H, W] uint8, sorted by class, inside a class in the order of the source; labels [N] int64;
    rows [N] int64, where they lie in the set that they are a part of, or None.
    Raises: DataError if the tensors are not of that form.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    known_fingerprint: str | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}.")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(images)}], one an image, not {labels.dtype} {list(labels.shape)}."
            )
        if len(labels) and (int(labels[0]) < 0 or int(labels[-1]) >= len(self.classes)):
            raise DataError(f"labels must be from 0 to {len(self.classes) - 1}, one of {len(self.classes)} classes.")
        if bool((labels[1:] < labels[:-1]).any()):
            raise DataError("images must be sorted by class; DatasetTensors.sort does that.")

    @classmethod
    def sort(cls, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> DatasetTensors:
        """The images, class by class; inside a class they keep their order."""
        order = torch.argsort(labels, stable=True)
        return cls(images[order], labels[order].to(torch.int64), classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def counts(self) -> Tensor:
        """Images per class, [K] int64."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    @cached_property
    def offsets(self) -> Tensor:
        """Where each class begins, [K] int64."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def fingerprint(self) -> str:
        """What these images and labels are, whatever file they came from: "b2:" and 16 hexadecimal digits."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        hasher = hashlib.blake2b(digest_size=8)
        hasher.update(repr((len(self), *self.shape, len(self.classes))).encode())
        hasher.update(self.labels.numpy().astype("<i8").tobytes())
        for images in self.images.split(HASH_CHUNK):
            hasher.update(np.ascontiguousarray(images.numpy()).data)
        return f"b2:{hasher.hexdigest()}"

    @cached_property
    def contents(self) -> str:
        """A digest that no order of the images changes: over the sorted digests of each image with its label."""
        alone = sorted(
            hashlib.blake2b(label.tobytes() + image.tobytes(), digest_size=16).digest()
            for images, labels in zip(self.images.split(HASH_CHUNK), self.labels.split(HASH_CHUNK), strict=True)
            for image, label in zip(images.numpy(), labels.numpy().astype("<i8"), strict=True)
        )
        return digest(repr((len(self), *self.shape, len(self.classes))).encode(), *alone)

    def subset(self, indices: Tensor) -> DatasetTensors:
        """The images at these positions, class by class."""
        rows = indices[torch.argsort(self.labels[indices], stable=True)]
        return DatasetTensors(self.images[rows], self.labels[rows], self.classes, rows=rows)

    def split(self, fraction: float) -> tuple[DatasetTensors, DatasetTensors]:
        """The rest, and a stratified held-out part of about `fraction`, at least one image of every class.

        The draw depends on the images and on `fraction` alone, never on the seed of a run.
        Raises: DataError if a class has too few images for both parts.
        """
        if not 0 < fraction < 1:
            raise DataError(f"the held-out fraction must be between 0 and 1, not {fraction}.")
        rng = Rng(0, ("split", self.fingerprint, repr(float(fraction))))
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label, (count, offset) in enumerate(zip(self.counts.tolist(), self.offsets.tolist(), strict=True)):
            held = max(1, round(fraction * count))
            if held >= count:
                raise DataError(
                    f"class {self.classes[label]!r} has {count} images, too few to hold out {fraction:g} of them. "
                    "Hold out less, or add images to that class."
                )
            order = torch.randperm(count, generator=rng.fold(label).torch())
            held_out[offset + order[:held]] = True
        return self.subset(torch.where(~held_out)[0]), self.subset(torch.where(held_out)[0])


class RealImages:
    """Training images on a device, in a pixel space, sampled class by class.

    The images stay uint8 on the device where the pixel space is cheap and are transformed batch by batch; a whitening
    is applied once, and its float32 images are kept.
    """

    def __init__(self, data: DatasetTensors, pixels: PixelSpace, device: torch.device) -> None:
        self.data = data
        self.pixels = pixels.to(device)
        self.device = device
        self.classes = len(data.classes)
        self.shape = data.shape
        self.counts = data.counts
        self.labels = data.labels.to(device)
        self._sizes: list[int] = data.counts.tolist()
        self._smallest = min(self._sizes)
        self._offsets = data.offsets.numpy()[:, None]
        self._images = data.images.to(device) if pixels.cheap else self._transform_all()

    def __len__(self) -> int:
        return len(self.data)

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices`, in the pixel space, on the device.

        Shapes: indices int64 [...], of any shape; returns float32 [..., C, H, W].
        """
        flat = indices.to(self.device, non_blocking=pins(self.device)).reshape(-1)
        images = self._images.index_select(0, flat).reshape(*indices.shape, *self.shape)
        return self.pixels.forward(images) if self.pixels.cheap else images

    def class_indices(self, n: int, rng: Rng) -> Tensor:
        """Uniform draws without replacement inside every class, [K, min(n, smallest class)] int64, drawn on the CPU."""
        n, generator = min(n, self._smallest), rng.numpy()
        drawn = np.stack([generator.choice(size, n, replace=False) for size in self._sizes])
        return torch.from_numpy(drawn + self._offsets)

    def class_batches(self, n: int, rng: Rng) -> Tensor:
        """As many images of every class as `class_indices` draws, [K, n, C, H, W]."""
        return self.take(self.class_indices(n, rng))

    def batch(self, n: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """min(n, N) images drawn uniformly without replacement, and their labels."""
        indices = torch.from_numpy(rng.numpy().choice(len(self), min(n, len(self)), replace=False)).to(self.device)
        return self.take(indices), self.labels[indices]

    def epoch_indices(self, n: int, step: int, rng: Rng) -> Tensor:
        """Batch `step` of shuffled passes over all images, int64 on the CPU; the last one of a pass is what is left.

        Depends on `rng` and the step alone, so that an interrupted run finds its place. Give it the run's generator,
        not the step's.
        """
        per_pass = -(-len(self) // n)
        order = torch.randperm(len(self), generator=rng.fold("pass", step // per_pass).torch())
        return order[step % per_pass * n :][:n]

    def epoch_batch(self, n: int, step: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """The images that `epoch_indices` draws, and their labels."""
        indices = self.epoch_indices(n, step, rng).to(self.device)
        return self.take(indices), self.labels[indices]

    def raw(self, indices: Tensor) -> Tensor:
        """The images as stored: uint8 [..., C, H, W] on the device."""
        flat = indices.to(self.device, non_blocking=pins(self.device)).reshape(-1)
        return self._stored.index_select(0, flat).reshape(*indices.shape, *self.shape)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and labels in order, at most `size` at a time."""
        for labels, indices in zip(
            self.labels.split(size), torch.arange(len(self), device=self.device).split(size), strict=True
        ):
            yield self.take(indices), labels

    @cached_property
    def _stored(self) -> Tensor:
        # Where they are whitened these are a quarter of what is there already; few methods ask for them.
        return self._images if self.pixels.cheap else self.data.images.to(self.device)

    def _transform_all(self) -> Tensor:
        transformed = torch.empty(len(self), *self.shape, device=self.device)
        for target, images in zip(transformed.split(HASH_CHUNK), self.data.images.split(HASH_CHUNK), strict=True):
            target.copy_(self.pixels.forward(images.to(self.device)))
        return transformed
