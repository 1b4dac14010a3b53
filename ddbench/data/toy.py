"""Tiny datasets with structure, in memory: a method that works beats random images on them within seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddbench.data.catalogue import DatasetInfo
from ddbench.data.dataset import Dataset
from ddbench.data.tensors import DatasetTensors
from ddbench.rng import Rng

PROTOTYPE_CONTRAST = 30.0  # in grey levels
NOISE_CONTRAST = 60.0  # one image says little about its class, the mean of many says all
TEST_PER_CLASS = 40


def toy(
    classes: int = 3, shape: tuple[int, int, int] = (1, 8, 8), per_class: int | Sequence[int] = 40, seed: int = 0
) -> Dataset:
    """Smooth class prototypes with strong noise on top; `per_class` may give each class its own count."""
    counts = [per_class] * classes if isinstance(per_class, int) else list(per_class)
    rng = Rng(seed, ("toy",))
    coarse = torch.randn(classes, shape[0], 4, 4, generator=rng.fold("prototypes").torch())
    prototypes = 128 + PROTOTYPE_CONTRAST * interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=False)
    train = _draw(prototypes, counts, rng.fold("train"))
    test = _draw(prototypes, [TEST_PER_CLASS] * classes, rng.fold("test"))
    info = DatasetInfo(
        name="toy",
        title="Toy",
        shape=shape,
        classes=classes,
        how="embedded",
        class_names=train.classes,
        licence="none needed",
        train=len(train),
        test=len(test),
    )
    return Dataset.in_memory(info, train, test)


def _draw(prototypes: Tensor, counts: Sequence[int], rng: Rng) -> DatasetTensors:
    labels = torch.repeat_interleave(torch.arange(len(prototypes)), torch.tensor(counts))
    noise = torch.randn(len(labels), *prototypes.shape[1:], generator=rng.torch())
    images = (prototypes[labels] + NOISE_CONTRAST * noise).round().clamp(0, 255).to(torch.uint8)
    return DatasetTensors(images, labels, tuple(f"class {label}" for label in range(len(prototypes))))
