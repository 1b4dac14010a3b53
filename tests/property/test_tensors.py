"""What holds for any dataset: sampling, splits, fingerprints."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import DatasetTensors, RealImages
from ddbench.rng import Rng

CPU = torch.device("cpu")
counts_strategy = st.lists(st.integers(2, 9), min_size=2, max_size=5)
few = settings(max_examples=25, deadline=None)


def make(counts: list[int], shape: tuple[int, int, int] = (1, 2, 3), seed: int = 0) -> DatasetTensors:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8, generator=generator)
    return DatasetTensors(images, labels, tuple(f"c{k}" for k in range(len(counts))))


def on_cpu(data: DatasetTensors, pixels: str = "standard") -> RealImages:
    info = DatasetInfo("mine", "mine", data.shape, len(data.classes), "user")
    return RealImages(data, fit_pixels(pixels, data, info), CPU)


def rows(images: Tensor) -> list[tuple[int, ...]]:
    return sorted(tuple(row) for row in images.flatten(1).tolist())


@few
@given(counts=counts_strategy, n=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_class_sampling_stays_in_its_class_and_never_repeats(counts: list[int], n: int, seed: int) -> None:
    real = on_cpu(make(counts))
    indices = real.class_indices(n, Rng(seed))
    assert indices.shape == (len(counts), min(n, *counts))
    assert indices.dtype == torch.int64
    for label, drawn in enumerate(indices):
        assert real.labels[drawn].eq(label).all()
        assert len(set(drawn.tolist())) == len(drawn)


@few
@given(counts=counts_strategy, seed=st.integers(0, 2**40))
def test_the_same_rng_draws_the_same_images(counts: list[int], seed: int) -> None:
    real = on_cpu(make(counts))
    first, second = (real.class_batches(3, Rng(seed, ("real", 4))) for _ in range(2))
    assert torch.equal(first, second)
    images, labels = real.batch(3, Rng(seed))
    again, same_labels = real.batch(3, Rng(seed))
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)


@few
@given(counts=counts_strategy, n=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_a_batch_never_repeats_and_is_as_large_as_asked_or_all(counts: list[int], n: int, seed: int) -> None:
    data = DatasetTensors(
        torch.arange(sum(counts), dtype=torch.uint8).reshape(-1, 1, 1, 1), make(counts).labels, make(counts).classes
    )
    real = on_cpu(data)
    images, labels = real.batch(n, Rng(seed))
    assert len(images) == len(labels) == min(n, sum(counts))
    assert len(images.unique()) == len(images)


@few
@given(counts=counts_strategy, fraction=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_a_split_is_stratified_deterministic_and_loses_nothing(counts: list[int], fraction: float, seed: int) -> None:
    data = make(counts, seed=seed)
    rest, held_out = data.split(fraction)
    assert rows(torch.cat([rest.images, held_out.images])) == rows(data.images)
    assert held_out.counts.tolist() == [max(1, round(fraction * count)) for count in counts]
    assert torch.equal(rest.counts + held_out.counts, data.counts)
    again, _ = make(counts, seed=seed).split(fraction)
    assert again.fingerprint == rest.fingerprint


@few
@given(counts=counts_strategy, data=st.data())
def test_the_fingerprint_changes_with_any_pixel_or_label(counts: list[int], data: st.DataObject) -> None:
    original = make(counts)
    images = original.images.clone()
    index = data.draw(st.integers(0, images.numel() - 1))
    images.view(-1)[index] ^= 1
    changed = DatasetTensors(images, original.labels, original.classes)
    assert changed.fingerprint != original.fingerprint
    labels = original.labels.clone()
    labels[counts[0] - 1] = 1
    assert DatasetTensors(original.images, labels, original.classes).fingerprint != original.fingerprint
    assert make(counts).fingerprint == original.fingerprint


@few
@given(counts=counts_strategy, seed=st.integers(0, 99))
def test_sorting_by_class_keeps_the_order_inside_a_class(counts: list[int], seed: int) -> None:
    data = make(counts, seed=seed)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    shuffled = DatasetTensors.sort(data.images[order], data.labels[order], data.classes)
    for label in range(len(counts)):
        expected = data.images[[index for index in order.tolist() if data.labels[index] == label]]
        assert torch.equal(shuffled.images[shuffled.labels == label], expected)


@few
@given(counts=counts_strategy, seed=st.integers(0, 2**31), data=st.data())
def test_contents_are_the_same_in_any_order_and_change_with_any_pixel_or_label(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    original = make(counts)
    order = torch.randperm(len(original), generator=torch.Generator().manual_seed(seed))
    shuffled = DatasetTensors.sort(original.images[order], original.labels[order], original.classes)
    assert shuffled.contents == original.contents
    images = original.images.clone()
    place = data.draw(st.integers(0, images.numel() - 1))
    images.view(-1)[place] += 1
    assert DatasetTensors(images, original.labels, original.classes).contents != original.contents
