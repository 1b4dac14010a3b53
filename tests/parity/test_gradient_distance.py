"""Distances of gradients against loops over classes and rows, written down from their definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench import Rng
from ddbench.backbones.names import build
from ddbench.engine.distance import GRADIENT_DISTANCES, filter_cosine_distance

SHAPES = {"conv": (4, 3, 3, 3), "bias": (4,), "norm": (4, 2, 2), "scale": (4,), "linear": (3, 5)}
Gradients = dict[str, np.ndarray]


def ours(real: Gradients, synthetic: Gradients) -> float:
    """Row by row of each tensor of two or more axes: one minus the product, over that of the lengths plus 1e-6."""
    total = 0.0
    for name, a in real.items():
        if a.ndim == 1:
            continue
        for x, y in zip(a.reshape(len(a), -1), synthetic[name].reshape(len(a), -1), strict=True):
            total += 1 - (x @ y) / (np.sqrt(x @ x) * np.sqrt(y @ y) + 1e-6)
    return total


def mse(real: Gradients, synthetic: Gradients) -> float:
    return float(sum(((a - synthetic[name]) ** 2).sum() for name, a in real.items()))


def cos(real: Gradients, synthetic: Gradients) -> float:
    x, y = (np.concatenate([a.ravel() for a in g.values()]) for g in (real, synthetic))
    return float(1 - (x @ y) / (np.sqrt(x @ x) * np.sqrt(y @ y) + 1e-6))


def stacked(classes: list[Gradients]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([g[name] for g in classes])) for name in classes[0]}


@pytest.mark.parametrize("by_hand", [ours, mse, cos])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(1, 4), scale=st.sampled_from([1.0, 1e-4, 1e3]))
def test_distances_are_those_of_the_loop(
    by_hand: Callable[[Gradients, Gradients], float], seed: int, classes: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    real, synthetic = (
        [{name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(classes)]
        for _ in range(2)
    )
    expected = sum(by_hand(r, s) for r, s in zip(real, synthetic, strict=True))
    found = GRADIENT_DISTANCES[by_hand.__name__](stacked(synthetic), stacked(real))
    assert np.isclose(float(found), expected, rtol=1e-12)


def test_a_convnet_has_394_rows_for_ten_classes() -> None:
    params = build("convnet-d3", (3, 32, 32), 10).init(Rng(0)).params
    gradient = {name: value[None].double() for name, value in params.items()}
    opposite = {name: -value for name, value in gradient.items()}
    assert float(filter_cosine_distance(gradient, gradient)) == pytest.approx(0, abs=0.01)
    assert float(filter_cosine_distance(opposite, gradient)) == pytest.approx(788, abs=0.01)


def test_a_dead_filter_has_a_distance_and_a_slope() -> None:
    real, synthetic = torch.randn(1, 4, 6, generator=Rng(0).torch()), torch.zeros(1, 4, 6, requires_grad=True)
    filter_cosine_distance({"w": synthetic}, {"w": real}).backward()
    assert synthetic.grad is not None
    assert bool(torch.isfinite(synthetic.grad).all())
