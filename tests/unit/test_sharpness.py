"""Sharpness-aware steps, against their formulas on one vector of all parameters."""

import torch
from torch import Tensor

from ddbench.rng import Rng
from ddbench.training.sharpness import Sharpness

SHAPES = ((3, 4), (5,), (), (2, 3, 2))


def drawn(seed: int) -> list[Tensor]:
    generator = Rng(seed).torch()
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def test_it_climbs_relative_to_each_parameter() -> None:
    w, g = drawn(0), drawn(1)
    before = flat(w)
    climb = flat(Sharpness(0.3, 0.0).climbed(w, g)) - before
    assert torch.equal(flat(w), before)
    assert torch.allclose(climb, 0.3 * before.square() * flat(g) / (before * flat(g)).norm(), rtol=1e-10)
    # In units of each parameter the climb is as long as rho says.
    assert torch.allclose((climb / before).norm(), torch.tensor(0.3, dtype=torch.float64), rtol=1e-10)


def test_what_is_taken_off_is_at_right_angles_to_the_gradient_above() -> None:
    g, above = drawn(1), drawn(2)
    step = flat(Sharpness(0.3, 0.7).combined(g, above))
    across = (flat(above) - step) / 0.7
    assert abs(float(across.dot(flat(above)))) < 1e-12
    along = flat(g).dot(flat(above)) / flat(above).dot(flat(above))
    assert torch.allclose(across, flat(g) - along * flat(above), rtol=1e-10)


def test_without_rho_and_alpha_it_is_plain_descent() -> None:
    w, g, above = drawn(0), drawn(1), drawn(2)
    assert torch.equal(flat(Sharpness(0.0, 0.4).climbed(w, g)), flat(w))
    assert torch.equal(flat(Sharpness(0.1, 0.0).combined(g, above)), flat(above))
    # Where both gradients are one, there is nothing across.
    assert torch.allclose(flat(Sharpness(0.0, 0.4).combined(g, g)), flat(g), rtol=1e-12)


def test_a_gradient_that_vanishes_is_no_division_by_zero() -> None:
    w, nothing = drawn(0), [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    sharp = Sharpness(0.1, 0.3)
    assert torch.equal(flat(sharp.climbed(w, nothing)), flat(w))
    assert torch.equal(flat(sharp.combined(nothing, nothing)), flat(nothing))
