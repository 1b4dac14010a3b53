"""GPU kernels with tangents against torch's own layers, differentiated forward and back in double precision.

They run through Triton's interpreter on a CPU.
"""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreted

POOL = {"none": lambda x: x, "avg": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 2)}

# So large that forgetting it somewhere would be seen.
EPS = 0.1


@pytest.fixture(scope="module")
def tangent_kernels() -> types.ModuleType:
    from ddbench.engine.gpu import tangent_layers as tangent_kernels

    return tangent_kernels


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, truth: Tensor) -> bool:
    return bool((ours.double() - truth).abs().max() <= 1e-5 * (1 + truth.abs().max()))


def pair_and_vectors(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps with their tangents, away from a mean of 0; weight, bias and their tangents."""
    n, channels, *_ = shape
    # Rounded, so that windows have several largest pixels.
    pair = ((2 * numbers(2 * n, *shape[1:])).round() / 2 + 0.5).contiguous(memory_format=torch.channels_last)
    pair[n:] += 0.1 * numbers(n, *shape[1:], seed=6)
    return pair, *(numbers(channels, seed=seed) for seed in (1, 2, 3, 4))


def pair_by_torch(
    pair: Tensor, weight: Tensor, bias: Tensor, dweight: Tensor | None, dbias: Tensor | None, relu: bool, pool: str
) -> Tensor:
    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = F.group_norm(x, len(weight), weight, bias, EPS)
        return POOL[pool](x.relu() if relu else x)

    x, dx = pair.chunk(2)
    still = torch.zeros_like(weight)
    along = dx, still if dweight is None else dweight, still if dbias is None else dbias
    return torch.cat(torch.func.jvp(layers, (x, weight, bias), along))


@pytest.mark.parametrize("pool", POOL)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("shape", "moving"),
    [
        ((3, 16, 8, 8), True),
        ((2, 20, 16, 8), True),
        ((3, 5, 4, 4), False),
        ((2, 40, 2, 2), True),
        ((1, 8, 6, 10), False),
    ],
)
def test_a_pair_and_its_gradient_are_those_of_separate_layers(
    tangent_kernels: types.ModuleType, shape: tuple[int, ...], moving: bool, relu: bool, pool: str
) -> None:
    pair, weight, bias, *changes = pair_and_vectors(shape)
    dweight, dbias = changes if moving else (None, None)
    x, dx = pair.chunk(2)
    ours = tangent_kernels.norm_act_pool_jvp(x, dx, weight, bias, dweight, dbias, EPS, relu, pool)
    exact = [t.double().requires_grad_() for t in (pair, weight, bias)]
    truth = pair_by_torch(*exact, *(t.double() if moving else None for t in changes), relu, pool)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert close(ours, truth.detach())
    grad = numbers(*truth.shape, seed=5)
    of_pair, sums = tangent_kernels.norm_act_pool_jvp_gradients(grad, x, dx, weight, bias, dweight, EPS, relu, pool)
    for mine, right in zip((of_pair, *sums), torch.autograd.grad(truth, exact, grad.double()), strict=True):
        assert close(mine, right)


def test_kernels_know_which_pairs_fit(tangent_kernels: types.ModuleType) -> None:
    assert tangent_kernels.jvp_fits(128, 32, 32)
    assert not tangent_kernels.jvp_fits(128, 64, 64)  # too large for the registers of a block
    assert not tangent_kernels.jvp_fits(128, 7, 8)  # no 2x2 windows
    assert not tangent_kernels.jvp_fits(12, 8, 8)
