"""Augmentation against loops over images and pixels in float64, written from the formulas."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from ddbench.engine.augment import (
    ALL_OPS,
    DIGIT_OPS,
    OPS,
    apply,
    draw_many,
    independent,
    join,
    one_after_another,
    resolve_strategy,
    siamese,
)
from ddbench.engine.legacy_augment import legacy
from ddbench.errors import ConfigError
from ddbench.rng import Rng

# torch scripts a few functions the first time that a forward derivative is asked for, and warns of its own habit.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 8, 8), (1, 7, 7), (2, 6, 10)]


def pixel(image, row, column):
    """The colour at one pixel, zero outside."""
    channels, height, width = image.shape
    if 0 <= row < height and 0 <= column < width:
        return image[:, row, column]
    return np.zeros(channels)


def at(image, row, column):
    """The colour at a point between pixels, zero outside."""
    top, left = math.floor(row), math.floor(column)
    colour = np.zeros(len(image))
    for i in (top, top + 1):
        for j in (left, left + 1):
            colour += (1 - abs(row - i)) * (1 - abs(column - j)) * pixel(image, i, j)
    return colour


def integer(u, low, high):
    """The integer in [low, high] that a uniform number stands for."""
    return low + int(u * (high - low + 1))


def color_by_hand(image, u, corners):
    out = image + (u[0] - 0.5)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            grey = sum(out[:, i, j]) / len(image)
            out[:, i, j] = (out[:, i, j] - grey) * (2 * u[1]) + grey
    mean = sum(out.ravel()) / out.size
    return (out - mean) * (u[2] + 0.5) + mean


def crop_by_hand(image, u, corners):
    out = np.zeros_like(image)
    _, height, width = image.shape
    most_rows, most_columns = math.floor(0.125 * height + 0.5), math.floor(0.125 * width + 0.5)
    down, right = integer(u[0], -most_rows, most_rows), integer(u[1], -most_columns, most_columns)
    for i in range(height):
        for j in range(width):
            out[:, i, j] = pixel(image, i + down, j + right)
    return out


def cutout_by_hand(image, u, corners):
    out = image.copy()
    (first_row, last_row), (first_column, last_column) = (
        box_by_hand(length, number) for length, number in zip(image.shape[1:], u[:2], strict=True)
    )
    for i in range(first_row, last_row + 1):
        for j in range(first_column, last_column + 1):
            out[:, i, j] = 0
    return out


def box_by_hand(length, number):
    side = math.floor(0.5 * length + 0.5)
    centre = integer(number, 0, length - (side % 2))
    start = centre - side // 2
    return max(0, start), min(length - 1, start + side - 1)


def flip_by_hand(image, u, corners):
    return np.stack([[row[::-1] for row in channel] for channel in image]) if u[0] < 0.5 else image


def scale_by_hand(image, u, corners):
    factors = [1 / 1.2 + number * (1.2 - 1 / 1.2) for number in u[:2]]
    return sampled_by_hand(image, corners, lambda x, y: (factors[0] * x, factors[1] * y))


def rotate_by_hand(image, u, corners):
    angle = math.radians(-15 + 30 * u[0])
    cos, sin = math.cos(angle), math.sin(angle)
    return sampled_by_hand(image, corners, lambda x, y: (cos * x - sin * y, sin * x + cos * y))


def sampled_by_hand(image, corners, source):
    out = np.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            if corners:
                x, y = source(2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1)
                out[:, i, j] = at(image, (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
            else:
                x, y = source((2 * j + 1) / width - 1, (2 * i + 1) / height - 1)
                out[:, i, j] = at(image, ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2)
    return out


BY_HAND = dict(
    color=color_by_hand,
    crop=crop_by_hand,
    cutout=cutout_by_hand,
    flip=flip_by_hand,
    scale=scale_by_hand,
    rotate=rotate_by_hand,
)


def augmented_by_hand(draw, images):
    groups = []
    for op, numbers, group in zip(draw.ops.tolist(), draw.numbers.double().numpy(), images.numpy(), strict=True):
        rows = np.broadcast_to(numbers, (len(group), 3)) if len(numbers) == 1 else numbers
        groups.append([BY_HAND[OPS[op]](image, u, draw.align_corners) for image, u in zip(group, rows, strict=True)])
    return torch.tensor(np.array(groups))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_each_operation_is_the_formula(op, shape, corners):
    images = noise(1, 3, *shape)
    draw = independent(op, 1, 3, Rng(4), align_corners=corners)
    torch.testing.assert_close(draw(images), augmented_by_hand(draw, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("draw", [siamese(ALL_OPS, 8, Rng(1)), independent(ALL_OPS, 8, 2, Rng(1))], ids=["one", "each"])
def test_groups_with_different_operations_are_the_formula(draw):
    assert len(set(draw.ops.tolist())) >= 4
    images = noise(8, 2, 3, 8, 8)
    torch.testing.assert_close(draw(images), augmented_by_hand(draw, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("digits", [False, True])
def test_idc_flips_and_colours_in_every_step_and_then_moves_images_one_way(digits):
    """The augmentation of IDC's code, and of DANCE's and NCFM's: colour and flip are no choices beside the others."""
    strategies = one_after_another(resolve_strategy("idc", digits))
    draws = [draw_many(strategy, 8, 2, Rng(2).fold(n)) for n, strategy in enumerate(strategies)]
    images = noise(8, 2, 3, 8, 8)
    expected = images.clone()
    for kinds in [{"flip"}] * (not digits) + [{"color"}, {"crop", "scale", "rotate"}]:
        draw = draws.pop(0)
        assert {OPS[op] for op in draw.ops.tolist()} == kinds
        expected = augmented_by_hand(draw, expected)
        images = draw(images)
        torch.testing.assert_close(images, expected, rtol=1e-12, atol=1e-12)
    assert not draws


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_other_precisions_follow_and_keep_their_type(dtype, tolerance):
    images, draw = noise(12, 2, 3, 32, 32), independent(ALL_OPS, 12, 2, Rng(0))
    out = draw(images.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), draw(images), rtol=tolerance, atol=tolerance)


def test_corner_convention_matters_only_for_rotations_of_images_that_are_not_square():
    square, wide = noise(1, 4, 1, 9, 9), noise(1, 4, 1, 6, 10)
    for op in ("scale", "rotate"):
        views = [independent(op, 1, 4, Rng(0), align_corners=corners) for corners in (False, True)]
        torch.testing.assert_close(views[0](square), views[1](square), rtol=1e-12, atol=1e-12)
        assert torch.allclose(views[0](wide), views[1](wide)) == (op == "scale")


@pytest.mark.parametrize("op", OPS)
def test_real_and_synthetic_batches_of_different_size_get_the_same_transformation(op):
    view = siamese(op, 5, Rng(3))
    synthetic = noise(5, 2, 3, 8, 8)
    real = torch.cat([noise(5, 31, 3, 8, 8, seed=1), synthetic], dim=1)
    seen_alone, seen_among_others = view(synthetic), view(real)[:, -2:]
    torch.testing.assert_close(seen_alone, seen_among_others, rtol=1e-12, atol=1e-12)
    elsewhere = siamese(op, 5, Rng(4))
    assert not torch.allclose(elsewhere(synthetic), seen_alone)


def test_siamese_groups_draw_numbers_of_their_own():
    image = noise(1, 1, 1, 32, 32).expand(40, 1, 1, 32, 32)
    out = siamese("rotate", 40, Rng(0))(image)
    assert len(torch.unique(out.flatten(1), dim=0)) == 40


@pytest.mark.parametrize("op", OPS)
def test_independent_images_share_the_operation_but_not_the_numbers(op):
    out = independent(op, 1, 64, Rng(0))(noise(1, 1, 3, 32, 32).expand(1, 64, 3, 32, 32))
    different = len(torch.unique(out[0].flatten(1), dim=0))
    assert different == 2 if op == "flip" else different > 30


def test_operations_are_drawn_equally_often():
    steps = 12_000
    for strategy, ops in ((ALL_OPS, set(OPS)), (DIGIT_OPS, set(OPS) - {"flip"})):
        counts = Counter(OPS[op] for op in draw_many(strategy, steps, 1, Rng(0)).ops.tolist())
        assert set(counts) == ops
        share = 1 / len(ops)
        allowed = 4.5 * math.sqrt(steps * share * (1 - share))
        assert all(abs(count - steps * share) < allowed for count in counts.values())


def test_numbers_are_uniform_and_unrelated():
    numbers = draw_many("color", 200, 100, Rng(0)).numbers.double().reshape(-1, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    deciles = torch.stack([torch.histc(column, 10, 0, 1) for column in numbers.T])
    assert (deciles - 2000).abs().max() < 4.5 * math.sqrt(20_000 * 0.1 * 0.9)
    assert (torch.corrcoef(numbers.T) - torch.eye(3)).abs().max() < 0.03


def test_half_of_the_images_are_flipped():
    images = noise(1, 1, 1, 4, 4).expand(1, 4000, 1, 4, 4)
    flipped = (independent("flip", 1, 4000, Rng(0))(images) != images).flatten(2).any(2).sum().item()
    assert abs(flipped - 2000) < 4.5 * math.sqrt(1000)


def test_crop_reaches_every_offset_and_no_other():
    draws = 3000
    position = torch.arange(1.0, 1 + 32 * 32).reshape(1, 1, 1, 32, 32).expand(1, draws, 1, 32, 32)
    centre = independent("crop", 1, draws, Rng(0))(position)[0, :, 0, 16, 16].long() - 1
    offsets = set(zip((centre // 32 - 16).tolist(), (centre % 32 - 16).tolist(), strict=True))
    assert offsets == {(a, b) for a in range(-4, 5) for b in range(-4, 5)}


@pytest.mark.parametrize(("length", "side", "places"), [(8, 4, 9), (7, 4, 8), (6, 3, 6), (28, 14, 29)])
def test_cutout_has_all_its_places(length, side, places):
    draws = 4000
    kept = independent("cutout", 1, draws, Rng(0))(torch.ones(1, draws, 1, length, length))[0, :, 0]
    rows = {tuple(row.nonzero().flatten().tolist()) for row in (kept == 0).any(2)}
    assert rows == {
        tuple(i for i in range(length) if start <= i < start + side)
        for start in range(-(side // 2), places - side // 2)
    }
    assert len(rows) == places


def test_scale_and_rotation_stay_in_their_ranges():
    # A ramp shows the factor directly: one pixel right of the centre it reads factor, or cos, and below it -sin.
    draws, ramp = 4000, torch.arange(-4.0, 5.0, dtype=torch.float64).expand(1, 4000, 1, 9, 9)
    factor = independent("scale", 1, draws, Rng(0))(ramp)[0, :, 0, 4, 5]
    assert 1 / 1.2 <= factor.min() < 0.835
    assert 1.198 < factor.max() <= 1.2
    turned = independent("rotate", 1, draws, Rng(0))(ramp)[0, :, 0]
    angle = torch.rad2deg(torch.atan2(-turned[:, 5, 4], turned[:, 4, 5]))
    assert -15 <= angle.min() < -14.9
    assert 14.9 < angle.max() <= 15


@forward_mode
@pytest.mark.parametrize("op", OPS)
def test_gradients_of_first_and_second_order_and_forward_are_right(op):
    view = independent(op, 1, 1, Rng(2))
    images = noise(1, 1, 2, 6, 6).requires_grad_()
    # Augmentations are linear in the pixels or nearly so; the cube gives the second derivative something to be.
    assert torch.autograd.gradcheck(view, images, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: view(x) ** 3, images, check_fwd_over_rev=True)


@forward_mode
def test_gradients_flow_through_mixed_groups():
    view = siamese(ALL_OPS, 6, Rng(1))
    assert len(set(view.ops.tolist())) >= 3
    images = noise(6, 1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(view, images, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: view(x) ** 3, images)


@forward_mode
def test_vmap_over_sets_is_the_loop_over_sets():
    view = siamese(ALL_OPS, 6, Rng(1))
    sets, directions = noise(3, 6, 2, 3, 8, 8), noise(3, 6, 2, 3, 8, 8, seed=1)

    def slope(images):
        return torch.func.grad(lambda x: (view(x) ** 3).sum())(images)

    torch.testing.assert_close(torch.func.vmap(view)(sets), torch.stack([view(images) for images in sets]))
    torch.testing.assert_close(torch.func.vmap(slope)(sets), torch.stack([slope(images) for images in sets]))
    _, curvature = torch.func.jvp(torch.func.vmap(slope), (sets,), (directions,))
    by_reverse = [
        torch.autograd.functional.hvp(lambda x: (view(x) ** 3).sum(), images, direction)[1]
        for images, direction in zip(sets, directions, strict=True)
    ]
    torch.testing.assert_close(curvature, torch.stack(by_reverse))


def test_same_rng_gives_the_same_draw_and_another_gives_another():
    first, again, other = (independent(ALL_OPS, 50, 4, Rng(seed).fold("view")) for seed in (0, 0, 1))
    assert torch.equal(first.ops, again.ops)
    assert torch.equal(first.numbers, again.numbers)
    assert not torch.equal(first.ops, other.ops)
    assert not torch.equal(first.numbers, other.numbers)


def test_global_generators_are_left_and_not_read():
    images = noise(6, 2, 1, 8, 8)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        outputs.append((siamese(ALL_OPS, 6, Rng(0))(images), legacy("crop_scale_rotate_noise", images[0], Rng(0))))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (str(np.random.get_state()), random.getstate()) == before[1:]
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)


def test_applying_never_waits_for_the_device():
    # Tensors on the meta device hold no numbers: reading one on the host is an error.
    images = torch.empty(12, 5, 3, 32, 32, device="meta")
    for draw in (siamese(ALL_OPS, 12, Rng(0)), independent(ALL_OPS, 12, 5, Rng(0)).to("meta")):
        out = draw(images)
        assert (out.device.type, out.shape) == ("meta", images.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_not_waited_for_and_agrees_with_the_cpu():
    images, draw = noise(12, 5, 3, 32, 32).float(), independent(ALL_OPS, 12, 5, Rng(0))
    there = images.cuda()
    draw(there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = draw(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), draw(images), rtol=1e-4, atol=1e-4)


def test_none_returns_the_images_themselves():
    images = noise(3, 2, 1, 4, 4)
    assert siamese("none", 3, Rng(0))(images) is images
    assert independent("none", 3, 2, Rng(0))(images) is images


def test_a_draw_can_mix_identity_and_operations():
    images = noise(2, 3, 1, 8, 8)
    out = join([siamese("none", 1, Rng(0)), siamese("rotate", 1, Rng(0))])(images)
    assert torch.equal(out[0], images[0])
    assert not torch.allclose(out[1], images[1])


def test_students_are_a_slice_with_a_stride():
    steps, batch = 7, 3
    students = [draw_many(ALL_OPS, steps, batch, Rng(0).fold(student)) for student in range(4)]
    images = noise(4, batch, 1, 8, 8)
    together = join(students)[2::steps](images)
    one_by_one = torch.cat([draw[2](group[None]) for draw, group in zip(students, images, strict=True)])
    torch.testing.assert_close(together, one_by_one)


def test_a_smaller_last_batch_uses_the_first_numbers():
    draw, images = independent("rotate", 2, 6, Rng(0)), noise(2, 6, 1, 8, 8)
    torch.testing.assert_close(draw(images[:, :4]), draw(images)[:, :4])


@pytest.mark.parametrize("shape", [(2, 7, 1, 8, 8), (3, 6, 1, 8, 8), (12, 1, 8, 8)], ids=str)
def test_images_that_do_not_fit_the_draw_are_refused(shape):
    with pytest.raises(ValueError, match=r"augments \[2, 6, C, H, W\]"):
        apply(independent("rotate", 2, 6, Rng(0)), noise(*shape))


def test_group_index_out_of_range_is_refused():
    draw = siamese(ALL_OPS, 3, Rng(0))
    assert torch.equal(draw[-1].ops, draw.ops[2:])
    with pytest.raises(IndexError):
        draw[3]


def candidates(op, image, mean):
    """All results that the legacy operation may give for one square image [C, H, H], by setting."""
    _, size, _ = image.shape
    match op:
        case "crop":
            return {(r, c): shifted_by_hand(image, r - 4, c - 4, mean) for r in range(8) for c in range(8)}
        case "scale":
            lengths = range(math.floor(0.8 * size), math.ceil(1.2 * size))
            return {(h, w): resized_by_hand(image, h, w) for h in lengths for w in lengths}
        case "rotate":
            return {angle: turned_by_hand(image, angle, mean.mean()) for angle in range(-45, 45)}


def shifted_by_hand(image, down, right, mean):
    size = image.shape[-1]
    out = np.empty_like(image)
    for i in range(size):
        for j in range(size):
            inside = 0 <= i + down < size and 0 <= j + right < size
            out[:, i, j] = image[:, i + down, j + right] if inside else mean
    return out


def resized_by_hand(image, height, width):
    """Resized, laid into the middle of a square of zeros that holds it and the frame, and the frame cut out of that."""
    size = image.shape[-1]
    whole = max(height, width, size)
    square = np.zeros((len(image), whole, whole), dtype=image.dtype)
    top, left, start = int((whole - height) / 2), int((whole - width) / 2), int((whole - size) / 2)
    for row in range(height):
        for column in range(width):
            from_row, from_column = math.floor(row * size / height), math.floor(column * size / width)
            square[:, top + row, left + column] = image[:, from_row, from_column]
    return square[:, start : start + size, start : start + size]


def turned_by_hand(image, degrees, fill):
    size = image.shape[-1]
    angle = math.radians(degrees)
    whole = int(size * (abs(math.cos(angle)) + abs(math.sin(angle))) + 0.5)
    offset = (whole - size) // 2 - (whole - 1) / 2
    points = np.empty((2, size, size))
    for i in range(size):
        for j in range(size):
            y, x = i + offset, j + offset
            points[0, i, j] = math.cos(angle) * y + math.sin(angle) * x + (size - 1) / 2
            points[1, i, j] = -math.sin(angle) * y + math.cos(angle) * x + (size - 1) / 2
    return np.stack([ndimage.map_coordinates(channel, points, order=3, cval=fill) for channel in image])


def settings_found(op, images, out, mean):
    for image, result in zip(images.numpy(), out.numpy(), strict=True):
        yield [key for key, by_hand in candidates(op, image, mean).items() if np.allclose(by_hand, result, atol=1e-6)]


@pytest.mark.parametrize("size", [8, 11])
@pytest.mark.parametrize("op", ["crop", "scale", "rotate"])
def test_each_legacy_image_is_one_of_the_results_in_the_text(op, size):
    images = noise(8, 2, size, size)
    found = list(settings_found(op, images, legacy(op, images, Rng(0)), images.mean((0, 2, 3)).numpy()))
    assert all(found)
    assert len({str(keys) for keys in found}) > 2


def test_legacy_crop_never_draws_the_last_offset():
    # The position under the frame's centre tells the offset; far from the border nothing else does.
    position = torch.arange(20.0 * 20, dtype=torch.float64).reshape(1, 1, 20, 20).expand(3000, 1, 20, 20)
    centre = legacy("crop", position, Rng(0))[:, 0, 10, 10].long()
    assert set((centre // 20 - 10).tolist()) == set((centre % 20 - 10).tolist()) == set(range(-4, 4))


def test_legacy_scale_fills_with_zeros_and_crop_with_the_batch_mean():
    images = 1 + noise(200, 2, 16, 16).abs()
    shrunk = legacy("scale", images, Rng(0))
    assert set(shrunk[shrunk < 1].tolist()) == {0.0}
    corner = legacy("crop", images, Rng(0))[:, :, 0, 0]
    assert torch.isclose(corner, images.mean((0, 2, 3)), rtol=1e-12).all(1).any()


def test_each_scaled_image_is_the_one_of_its_factors():
    # Told apart by their positions: all pairs of lengths that 28 pixels can have give different images.
    size, count = 28, 60
    position = (
        torch.arange(1.0 + size * size, dtype=torch.float64)[1:].reshape(1, 1, size, size).expand(count, 1, -1, -1)
    )
    found = legacy("scale", position, Rng(0)).numpy()
    factors = torch.rand(2, count, 1, generator=Rng(0).fold("scale").torch(), dtype=torch.float64).squeeze(-1).tolist()
    odd = 0
    for image, out, u, v in zip(position.numpy(), found, *factors, strict=True):
        height, width = (int((0.8 + 0.4 * part) * size) for part in (u, v))
        np.testing.assert_array_equal(out, resized_by_hand(image, height, width))
        whole = max(height, width, size)
        # Where resized images would lie if no square were between them and the frame.
        odd += any(int((whole - size) / 2) - int((whole - n) / 2) != int((n - size) / 2) for n in (height, width))
    assert odd > count / 10


def test_legacy_noise_is_small_and_normal():
    images = noise(40, 3, 16, 16)
    change = legacy("noise", images, Rng(0)) - images
    assert change.std().item() == pytest.approx(0.001, rel=0.03)
    assert abs(change.mean().item()) < 5 * 0.001 / math.sqrt(change.numel())


def test_legacy_draws_one_operation_an_image():
    images = noise(600, 1, 8, 8)
    out = legacy("crop_noise", images, Rng(0))
    noisy = (out - images).abs().amax((1, 2, 3)) < 0.01
    assert abs(noisy.sum().item() - 300) < 4.5 * math.sqrt(150) + 600 / 64


@pytest.mark.parametrize("op", ["crop", "rotate"])
def test_legacy_fills_with_the_mean_of_the_whole_batch(op):
    images = 3 + noise(12, 2, 8, 8)
    out = legacy(f"{op}_noise", images, Rng(0))
    moved = (out - images).abs().amax((1, 2, 3)) > 0.01
    assert 0 < moved.sum() < 12
    assert all(settings_found(op, images[moved], out[moved], images.mean((0, 2, 3)).numpy()))


def test_legacy_none_changes_nothing_and_rotations_ask_for_square_images():
    wide = noise(2, 1, 6, 8)
    assert legacy("none", wide, Rng(0)) is wide
    assert legacy("crop_scale_noise", wide, Rng(0)).shape == wide.shape
    with pytest.raises(ConfigError, match="6 x 8 pixels"):
        legacy("crop_rotate", wide, Rng(0))
    with pytest.raises(ConfigError, match="'flip'"):
        legacy("crop_flip", wide, Rng(0))


def test_legacy_keeps_type_and_leaves_its_input():
    images = noise(20, 1, 8, 8).float().requires_grad_()
    before = images.detach().clone()
    out = legacy("crop_scale_rotate_noise", images, Rng(0))
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(out, legacy("crop_scale_rotate_noise", images, Rng(0)))
