"""A dataset from code: squares, crosses and bars in noise."""

from pathlib import Path

import torch

from ddbench import Rng
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.dataset import Dataset
from ddbench.data.tensors import DatasetTensors

NAMES = ("square", "cross", "bar")


def shapes(data_folder: Path) -> Dataset:
    """Made in memory. A dataset that reads files looks for them in `data_folder`."""
    train, test = draw(200, Rng(0, ("shapes", "train"))), draw(50, Rng(0, ("shapes", "test")))
    info = DatasetInfo(
        name="shapes",
        title="Shapes",
        shape=train.shape,
        classes=len(NAMES),
        how="user",
        class_names=NAMES,
        licence="CC0",
    )
    return Dataset.in_memory(info, train, test)


def draw(per_class: int, rng: Rng) -> DatasetTensors:
    """Images [3 * per_class, 1, 16, 16] of one shape each, in noise."""
    templates = torch.zeros(len(NAMES), 1, 16, 16)
    templates[0, 0, 4:12, 4:12] = 120
    templates[1, 0, 7:9, 3:13] = templates[1, 0, 3:13, 7:9] = 120
    templates[2, 0, 7:9, 2:14] = 120
    labels = torch.arange(len(NAMES)).repeat_interleave(per_class)
    noise = 40 * torch.randn(len(labels), 1, 16, 16, generator=rng.torch())
    images = (60 + templates[labels] + noise).clamp(0, 255).to(torch.uint8)
    return DatasetTensors(images, labels, NAMES)
