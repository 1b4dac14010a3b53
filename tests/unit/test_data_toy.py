"""The toy datasets have structure that the mean of a class shows and one image hides."""

import torch

from ddbench.data.tensors import DatasetTensors
from ddbench.data.toy import toy


def nearest(centres: torch.Tensor, test: DatasetTensors) -> float:
    distance = torch.cdist(test.images.flatten(1).float(), centres.flatten(1))
    return distance.argmin(1).eq(test.labels).float().mean().item()


def test_class_means_tell_more_than_single_images() -> None:
    for seed in range(3):
        data = toy(seed=seed)
        train = data.train
        means = torch.stack([train.images[train.labels == k].float().mean(0) for k in range(3)])
        singles = torch.stack([train.images[train.labels == k][0].float() for k in range(3)])
        assert nearest(means, data.test.load()) > 0.9
        assert nearest(singles, data.test.load()) < nearest(means, data.test.load()) - 0.1


def test_the_same_seed_gives_the_same_data() -> None:
    assert toy(seed=1).fingerprint == toy(seed=1).fingerprint != toy(seed=2).fingerprint


def test_classes_may_be_unbalanced_and_images_not_square() -> None:
    data = toy(classes=4, shape=(3, 8, 12), per_class=(5, 9, 3, 20))
    assert data.train.counts.tolist() == [5, 9, 3, 20]
    assert data.train.shape == data.info.shape == (3, 8, 12)
    assert data.info.classes == len(data.train.classes) == 4
    assert data.title == "Toy"
    assert data.original


def test_training_and_test_images_are_different_draws() -> None:
    data = toy()
    assert data.train.images[0].ne(data.test.load().images[0]).any()
