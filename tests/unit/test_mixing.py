"""Augmentation that mixes images: what a tile, a crop and a box are, and what stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench import Rng
from ddbench.engine.mixing import (
    Mix,
    cutmix,
    flip_crop_mix,
    random_crop,
    random_resized_crop,
    shuffle_crop_flip_mix,
    shuffle_strips,
    shuffle_tiles,
)
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan


def numbered(n: int, side: int) -> Tensor:
    """Images [n, 1, side, side], every pixel of all of them another number."""
    return torch.arange(n * side * side, dtype=torch.float32).reshape(n, 1, side, side)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([4, 7, 8]), st.sampled_from([2, 3]))
def test_shuffled_tiles_are_the_tiles_of_the_same_image(seed: int, n: int, side: int, factor: int) -> None:
    images = numbered(n, side)
    shuffled, tile = shuffle_tiles(images, factor, Rng(seed)), side // factor
    for before, after in zip(images[:, 0].numpy(), shuffled[:, 0].numpy(), strict=True):
        tiles = [
            {
                m[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile].tobytes()
                for r in range(factor)
                for c in range(factor)
            }
            for m in (before, after)
        ]
        assert tiles[0] == tiles[1]
        rest = np.ones((side, side), bool)
        rest[: factor * tile, : factor * tile] = False
        assert (before[rest] == after[rest]).all()


def test_tiles_of_different_images_have_orders_of_their_own() -> None:
    same = numbered(1, 4).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in shuffle_tiles(same, 2, Rng(0))}) > 15  # of 24 orders


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 7, 8]), st.sampled_from([2, 3]))
def test_strips_are_shuffled_as_in_a_plain_loop(seed: int, side: int, factor: int) -> None:
    images, rng = numbered(3, side), Rng(seed)
    shuffled = shuffle_strips(images, factor, rng)
    wide = side // factor
    for k in range(3):
        image = images[k, 0].numpy()
        for axis, name in ((1, "columns"), (0, "rows")):
            strips = np.split(image, [wide * (i + 1) for i in range(factor - 1)], axis)
            order = torch.rand(3, factor, generator=rng.fold(name).torch()).argsort(dim=1)[k]
            image = np.concatenate([strips[i] for i in order], axis)
        assert (shuffled[k, 0].numpy() == image).all()


def test_tiles_of_a_row_or_column_stay_together() -> None:
    same = numbered(1, 4).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in shuffle_strips(same, 2, Rng(0))}) == 4  # of 24 orders of tiles


def test_boxes_are_whole_pixels_of_the_image_within_their_bounds() -> None:
    """On ramps of rows and columns, a box shows where it begins and ends."""
    side, n = 64, 400
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    made = random_resized_crop(torch.stack([row, column]).expand(n, 2, side, side), 0.5, Rng(0)).double()
    # Half a pixel of the result is the box's share of one: what the outermost pixels lack of the box's edges.
    inner = slice(8, side - 8)
    steps = torch.stack([made[:, 0, inner, 32].diff(dim=1).mean(1), made[:, 1, 32, inner].diff(dim=1).mean(1)])
    sides = steps * side
    assert torch.allclose(sides, sides.round(), atol=2e-3)
    shares, ratios = sides.prod(0) / side**2, sides[1] / sides[0]
    # Whole pixels move an area by half a pixel of each side at most, and the ratio with them.
    assert 0.5 - 0.025 < float(shares.min()) < 0.55
    assert float(shares.max()) <= 1.0 + 1e-6
    assert 3 / 4 - 0.03 < float(ratios.min()) < 0.8
    assert 1.25 < float(ratios.max()) < 4 / 3 + 0.03
    assert made.min() >= 0
    assert made.max() <= side - 1


def test_a_box_of_all_of_the_area_is_the_image() -> None:
    """No box that is wider than high has all of it, so that ten draws are in vain."""
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(random_resized_crop(images, 1.0, Rng(1)), images, atol=1e-5)


@pytest.mark.parametrize("side", [32, 64])
def test_both_readings_are_one_on_images_that_are_no_mosaics(side: int) -> None:
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffle_crop_flip_mix(images, Rng(2)), flip_crop_mix(images, Rng(2)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([5, 8]))
def test_cutmix_gives_every_image_one_box_of_another(seed: int, n: int, side: int) -> None:
    images = numbered(n, side)
    mixed = cutmix(images, Rng(seed))
    foreign = (mixed != images).any(dim=(0, 1))
    rows, columns = foreign.any(dim=1).nonzero().flatten(), foreign.any(dim=0).nonzero().flatten()
    if len(rows):  # one box, the same in all images
        box = foreign[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert foreign.sum() == box.numel()
    # Every pixel comes from the same place of some image, each image from at most one other.
    source = (mixed // (side * side)).long()
    assert torch.equal(mixed % (side * side), images % (side * side))
    for k in range(n):
        assert len(set(source[k].unique().tolist()) - {k}) <= 1


def test_the_share_of_a_box_is_uniform_but_for_what_lies_outside() -> None:
    images = torch.zeros(2, 1, 32, 32)
    images[1] = 1
    shares = []
    for seed in range(400):
        mixed = cutmix(images, Rng(seed))
        if float(mixed[0].max()):
            shares.append(float(mixed[0].mean()))
    # Half of the draws pair each image with itself; a box of share u loses a part at the edges, never gains one.
    assert 150 < len(shares) < 250
    assert 0.25 < np.mean(shares) < 0.5
    assert max(shares) > 0.8


@pytest.mark.parametrize("smallest", [1.0, 0.5])
def test_a_crop_of_the_whole_area_is_the_image(smallest: float) -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cropped = random_crop(images, smallest, Rng(1))
    assert cropped.shape == images.shape
    assert cropped.min() >= images.min() - 1e-6
    assert cropped.max() <= images.max() + 1e-6
    if smallest == 1.0:
        # No crop that is wider than high has all of the area, so that sides are cut to the image's.
        ramp = torch.arange(16.0).expand(4, 1, 16, 16)
        assert (random_crop(ramp, 1.0, Rng(0)).diff(dim=-1) >= -1e-5).all()


def test_small_images_are_flipped_and_mixed_and_nothing_else() -> None:
    images = numbered(16, 8)
    mixed = flip_crop_mix(images, Rng(3))
    assert set(mixed.flatten().tolist()) <= set(images.flatten().tolist())
    turned = [torch.equal(mixed[k, 0, 0], images[k, 0, 0].flip(-1)) for k in range(16)]
    kept = [torch.equal(mixed[k, 0, 0], images[k, 0, 0]) for k in range(16)]
    assert any(turned)
    assert any(kept)


def test_the_same_draws_give_the_same_images_and_others_others() -> None:
    images = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    first = flip_crop_mix(images, Rng(0))
    assert torch.equal(first, flip_crop_mix(images, Rng(0)))
    assert not torch.equal(first, flip_crop_mix(images, Rng(1)))
    assert not first.requires_grad


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([5, 8]))
def test_targets_are_mixed_in_the_shares_of_the_images(seed: int, n: int, side: int) -> None:
    mix = Mix.draw(n, side, side, Rng(seed))
    images = torch.eye(n)[:, :, None, None].expand(n, n, side, side)  # image k has ones in channel k alone
    shares = mix.images(images).mean(dim=(2, 3))
    assert torch.allclose(shares, mix.targets(torch.eye(n)), atol=1e-6)
    two = mix.images(images.expand(2, -1, -1, -1, -1))  # students side by side
    assert torch.equal(two[0], two[1])
    assert torch.equal(two[0], mix.images(images))


def test_a_step_that_mixes_nothing_can_be_captured_as_one_that_does() -> None:
    images, targets = torch.randn(5, 3, 8, 8, generator=Rng(0).torch()), torch.rand(5, 4, generator=Rng(1).torch())
    nothing = Mix.none(5)
    assert torch.equal(nothing.images(images), images)
    assert torch.equal(nothing.targets(targets), targets)


def test_students_see_mixed_images_with_mixed_labels_in_a_share_of_the_steps() -> None:
    n, side = 6, 8
    images = torch.eye(n)[:, :, None, None].expand(n, n, side, side)
    options = SGDOptions(epochs=None, steps=200, batch=4, cutmix=0.5)
    plan = TrainingPlan(images, torch.arange(n), lambda x: x, options, "none", "none", 1, Rng(0, ("mixed",)))
    assert plan.static
    mixed = 0
    for block in plan.blocks([0, 3]):
        for step in block.steps():
            x, y = plan.seen(step, n)
            if y.is_floating_point():
                mixed += 1
                assert torch.allclose(x.mean(dim=(3, 4)), y, atol=1e-6)
            else:
                assert torch.equal(x.mean(dim=(3, 4)).argmax(dim=2), y)
    assert 75 < mixed < 125
    plain = TrainingPlan(images, torch.arange(n), lambda x: x, SGDOptions(), "none", "none", 1, Rng(0))
    assert plain.static
