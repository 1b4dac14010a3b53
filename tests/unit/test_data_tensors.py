"""DatasetTensors and RealImages on small examples."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import DatasetTensors, RealImages
from ddbench.data.toy import toy
from ddbench.errors import DataError
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks

CPU = torch.device("cpu")
GOLDEN = "b2:457bee772d20d12d"  # records and caches of every release carry such values


def images(n: int) -> Tensor:
    return torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images(2).float(), torch.tensor([0, 1]), "uint8"),
        (images(2)[0], torch.tensor([0, 1]), r"\[N, C, H, W\]"),
        (images(2), torch.tensor([0]), "one an image"),
        (images(2), torch.tensor([0, 1], dtype=torch.int32), "int64"),
        (images(2), torch.tensor([0, 2]), "from 0 to 1"),
        (images(2), torch.tensor([-1, 0]), "from 0 to 1"),
        (images(2), torch.tensor([1, 0]), "sorted by class"),
    ],
)
def test_tensors_of_another_form_are_refused(pixels: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DatasetTensors(pixels, labels, ("a", "b"))


def test_counts_and_offsets_count_every_class() -> None:
    data = DatasetTensors(images(5), torch.tensor([0, 0, 0, 2, 2]), ("a", "b", "c"))
    assert data.counts.tolist() == [3, 0, 2]
    assert data.offsets.tolist() == [0, 3, 3]
    assert data.shape == (1, 2, 2)
    assert len(data) == 5


def test_a_known_fingerprint_is_not_computed_again() -> None:
    assert DatasetTensors(images(1), torch.tensor([0]), ("a",), "b2:0123456789abcdef").fingerprint == (
        "b2:0123456789abcdef"
    )


def test_the_fingerprint_is_a_hash_of_sizes_labels_and_pixels() -> None:
    written = b"(3, 1, 2, 2, 2)" + b"".join(label.to_bytes(8, "little") for label in (0, 0, 1)) + bytes(range(12))
    expected = f"b2:{hashlib.blake2b(written, digest_size=8).hexdigest()}"
    assert DatasetTensors(images(3), torch.tensor([0, 0, 1]), ("a", "b")).fingerprint == expected == GOLDEN


def test_a_class_of_one_image_cannot_be_split() -> None:
    data = DatasetTensors(images(4), torch.tensor([0, 0, 0, 1]), ("cat", "dog"))
    with pytest.raises(DataError, match="class 'dog' has 1 images, too few"):
        data.split(0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_that_holds_out_nothing_or_all_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        toy().train.split(fraction)


def test_sampling_is_uniform_over_a_class() -> None:
    real = on_cpu(DatasetTensors(images(9), torch.tensor([0] * 3 + [1] * 6), ("a", "b")))
    drawn = torch.stack([real.class_indices(2, Rng(0, ("draw", draw))) for draw in range(1500)])
    for label, size in enumerate((3, 6)):
        share = torch.bincount(drawn[:, label].flatten() - 3 * label, minlength=size) / drawn[:, label].numel()
        assert torch.allclose(share, torch.full((size,), 1 / size), atol=0.03)
        first = torch.bincount(drawn[:, label, 0] - 3 * label, minlength=size) / len(drawn)
        assert torch.allclose(first, torch.full((size,), 1 / size), atol=0.04)


def on_cpu(data: DatasetTensors, pixels: str = "standard") -> RealImages:
    info = DatasetInfo("mine", "mine", data.shape, len(data.classes), "user")
    return RealImages(data, fit_pixels(pixels, data, info), CPU)


@pytest.mark.parametrize("pixels", ["standard", "zca", "kip-zca"])
def test_images_are_taken_by_indices_of_any_shape_in_the_pixel_space(pixels: str) -> None:
    data = toy(shape=(3, 4, 6)).train
    real = on_cpu(data, pixels)
    indices = torch.tensor([[5, 0], [7, 5]])
    taken = real.take(indices)
    assert taken.shape == (2, 2, 3, 4, 6)
    assert taken.dtype == torch.float32
    assert torch.equal(real.raw(indices), data.images[indices])
    assert torch.allclose(taken, real.pixels.forward(data.images[indices]), atol=1e-6)
    assert torch.equal(real.take(torch.tensor(5)), taken[0, 0])


def test_bytes_stay_bytes_where_the_pixel_space_is_cheap() -> None:
    data = toy().train
    assert on_cpu(data)._images.dtype == torch.uint8
    assert on_cpu(data, "zca")._images.dtype == torch.float32


def test_chunks_go_over_all_images_in_order() -> None:
    data = toy().train
    real = on_cpu(data)
    chunks = list(real.chunks(50))
    assert [len(labels) for _, labels in chunks] == [50, 50, 20]
    assert torch.equal(torch.cat([part for part, _ in chunks]), real.take(torch.arange(len(real))))
    assert torch.equal(torch.cat([labels for _, labels in chunks]), data.labels)


def test_sampling_leaves_the_global_generators_alone() -> None:
    import random

    real = on_cpu(toy().train)
    before = (
        torch.random.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
    )
    real.class_batches(3, Rng(1))
    real.batch(3, Rng(1))
    real.data.split(0.2)
    toy(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]
    assert random.getstate() == before[2]


def test_an_image_that_changes_its_class_changes_the_contents() -> None:
    two = torch.stack([images(1)[0], images(1)[0] + 1])
    one = DatasetTensors(two, torch.tensor([0, 1]), ("a", "b"))
    other = DatasetTensors(two.flip(0), torch.tensor([0, 1]), ("a", "b"))
    assert one.contents != other.contents


def test_an_image_that_is_there_twice_counts_twice() -> None:
    once, twice = images(1), images(1).repeat(2, 1, 1, 1)
    assert (
        DatasetTensors(once, torch.tensor([0]), ("a",)).contents
        != DatasetTensors(twice, torch.tensor([0, 0]), ("a",)).contents
    )


@pytest.mark.parametrize("n", [7, 30, 200])
def test_epoch_batches_visit_every_image_once_a_pass_and_depend_on_the_step_alone(tmp_path: Path, n: int) -> None:
    real: RealImages = problem_for_checks(tmp_path).real
    per_pass = -(-len(real) // n)
    seen = [real.epoch_batch(n, step, Rng(3)) for step in range(2 * per_pass)]
    for some in (seen[:per_pass], seen[per_pass:]):
        labels = torch.cat([y for _, y in some])
        assert torch.equal(torch.bincount(labels), real.counts)
        images = torch.cat([x for x, _ in some]).flatten(1)
        assert len(images.unique(dim=0)) == len(real.take(torch.arange(len(real))).flatten(1).unique(dim=0))
    if per_pass > 1:
        assert not torch.equal(seen[0][0], seen[per_pass][0])
    assert torch.equal(real.epoch_batch(n, per_pass, Rng(3))[0], seen[per_pass][0])
