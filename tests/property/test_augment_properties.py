"""What augmentation keeps for any images, any groups and any strategy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.engine.augment import ALL_OPS, DIGIT_OPS, OPS, Draw, independent, parse_strategy, resolve_strategy, siamese
from ddbench.errors import ConfigError
from ddbench.rng import Rng

quickly = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
strategies = st.lists(st.sampled_from(OPS), min_size=1, unique=True).map("_".join)
shapes = st.tuples(*(st.integers(1, high) for high in (5, 4, 3, 9, 9)))


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@quickly
@given(strategies, shapes, seeds, st.booleans())
def test_groups_stay_in_their_places(strategy, shape, seed, corners):
    images, draw = noise(shape, seed), siamese(strategy, shape[0], Rng(seed), align_corners=corners)
    out = draw(images)
    assert out.shape == images.shape
    for group in range(shape[0]):
        close(out[group : group + 1], draw[group](images[group : group + 1]))


@quickly
@given(strategies, shapes, seeds)
def test_images_of_an_independent_draw_use_their_own_row(strategy, shape, seed):
    images, draw = noise(shape, seed), independent(strategy, shape[0], shape[1], Rng(seed))
    out = draw(images)
    for i in range(shape[1]):
        alone = Draw(draw.ops, draw.numbers[:, i : i + 1])
        close(out[:, i : i + 1], alone(images[:, i : i + 1]))


@quickly
@given(strategies, shapes, seeds, st.integers(1, 6))
def test_a_siamese_draw_does_not_depend_on_the_batch(strategy, shape, seed, more):
    images = noise(shape, seed)
    others = noise((shape[0], more, *shape[2:]), seed + 1)
    view = siamese(strategy, shape[0], Rng(seed))
    close(view(images), view(torch.cat([others, images], dim=1))[:, more:])


@quickly
@given(shapes, seeds)
def test_flipping_twice_is_nothing(shape, seed):
    images, view = noise(shape, seed), siamese("flip", shape[0], Rng(seed))
    assert torch.equal(view(view(images)), images)


@quickly
@given(st.lists(st.sampled_from([op for op in OPS if op != "color"]), min_size=1, unique=True), shapes, seeds)
def test_geometry_is_linear_and_invents_no_brightness(ops, shape, seed):
    first, second = noise(shape, seed), noise(shape, seed + 1)
    view = independent("_".join(ops), shape[0], shape[1], Rng(seed))
    close(view(first - 2 * second), view(first) - 2 * view(second))
    assert view(first).abs().max() <= first.abs().max() + 1e-12


@quickly
@given(shapes, seeds)
def test_color_on_grey_images_ignores_saturation(shape, seed):
    images = noise((*shape[:2], 1, *shape[3:]), seed)
    draw = siamese("color", shape[0], Rng(seed))
    numbers = draw.numbers.clone()
    numbers[..., 1] = 0.9 - 0.8 * numbers[..., 1]
    close(Draw(draw.ops, numbers)(images), draw(images))


@quickly
@given(st.floats(0, 1, exclude_max=True, width=32), st.sampled_from(OPS), st.sampled_from([1, 4, 7, 8, 28, 32, 64]))
def test_extreme_numbers_stay_inside(number, op, size):
    largest = 1 - 2.0**-24
    images = 1 + torch.arange(float(size * size)).reshape(1, 1, 1, size, size)
    for u in (number, 0.0, largest):
        out = Draw(torch.tensor([OPS.index(op)]), torch.full((1, 1, 3), u))(images)
        assert out.isfinite().all()
        if op in ("crop", "cutout", "flip"):
            assert set(out.flatten().tolist()) <= {0.0, *images.flatten().tolist()}


@quickly
@given(strategies)
def test_a_strategy_is_read_as_it_is_written(text):
    assert "_".join(parse_strategy(text)) == text
    assert resolve_strategy(text, digits=True) == resolve_strategy(text, digits=False) == text
    assert {OPS[op] for op in siamese(text, 200, Rng(0)).ops.tolist()} == set(text.split("_"))


def test_auto_leaves_flip_out_on_digits():
    assert resolve_strategy("auto", digits=False) == ALL_OPS
    assert resolve_strategy("auto", digits=True) == DIGIT_OPS
    assert set(parse_strategy(ALL_OPS)) - set(parse_strategy(DIGIT_OPS)) == {"flip"}
    assert parse_strategy("none") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("color_crp", "Did you mean 'crop'"),
        ("", "names ''"),
        ("flip_flip", "twice"),
        ("auto", "cutout"),
        ("none_flip", "'none'"),
    ],
)
def test_a_strategy_that_cannot_be_read_says_what_is_known(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_strategy(text)
