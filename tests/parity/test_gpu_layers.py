"""GPU kernels against torch's own layers in double precision, through Triton's interpreter on a CPU."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.engine.augment import OPS, Draw, apply

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreted

POOL = {"none": lambda x: x, "avg": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 2)}


@pytest.fixture(scope="module")
def fused() -> types.ModuleType:
    from ddbench.engine.gpu import layers as fused

    return fused


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, pool: str) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    x = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    x = x * weight[:, None, None] + bias[:, None, None]
    return POOL[pool](x.clamp(min=0) if relu else x)


def close(ours: Tensor, truth: Tensor) -> bool:
    return bool((ours.double() - truth).abs().max() <= 2e-5 * (1 + truth.abs().max()))


@pytest.mark.parametrize("pool", POOL)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (2, 32, 2, 2), (2, 24, 6, 10)])
def test_norm_activation_and_pooling_are_those_of_separate_layers(
    fused: types.ModuleType, shape: tuple[int, ...], relu: bool, pool: str
) -> None:
    x = numbers(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = numbers(shape[1], seed=1).requires_grad_(), numbers(shape[1], seed=2).requires_grad_()
    ours = fused.norm_act_pool(x, weight, bias, eps=1e-5, relu=relu, pool=pool, short=False)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    truth = norm(exact[0], exact[1], exact[2], relu, pool)
    assert close(ours.detach(), truth.detach())
    grad = numbers(*truth.shape, seed=3)
    for mine, right in zip(
        torch.autograd.grad(ours, (x, weight, bias), grad),
        torch.autograd.grad(truth, exact, grad.double()),
        strict=True,
    ):
        assert close(mine, right)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", POOL)
@pytest.mark.parametrize(("channels", "side", "padding"), [(3, 8, 1), (1, 6, 3)])
def test_the_first_layer_is_convolution_and_norm(
    fused: types.ModuleType, channels: int, side: int, padding: int, pool: str, layout: torch.memory_format
) -> None:
    x = numbers(5, channels, side, side).contiguous(memory_format=layout)
    kernel, shift = numbers(16, channels, 3, 3, seed=1).requires_grad_(), numbers(16, seed=2)
    weight, bias = numbers(16, seed=3).requires_grad_(), numbers(16, seed=4).requires_grad_()
    ours = fused.first_layer(
        x, kernel, weight, bias, padding=padding, eps=1e-5, relu=True, pool=pool, short=False, rounding="fp32"
    )
    exact = [t.detach().double().requires_grad_() for t in (kernel, weight, bias)]
    # The convolution has a shift, which the norm takes away; the kernel leaves it out.
    truth = norm(F.conv2d(x.double(), exact[0], shift.double(), padding=padding), exact[1], exact[2], True, pool)
    assert close(ours.detach(), truth.detach())
    grad = numbers(*truth.shape, seed=5)
    for mine, right in zip(
        torch.autograd.grad(ours, (kernel, weight, bias), grad),
        torch.autograd.grad(truth, exact, grad.double()),
        strict=True,
    ):
        assert close(mine, right)


@pytest.mark.parametrize("each", [1, 3, 6])
def test_the_first_layer_gives_each_class_its_gradient(fused: types.ModuleType, each: int) -> None:
    classes, x = 3, numbers(3 * each, 3, 6, 6)
    kernel, weight, bias = numbers(16, 3, 3, 3, seed=1), numbers(16, seed=2), numbers(16, seed=3)
    copies = kernel.expand(classes, -1, -1, -1, -1).requires_grad_()
    options = {"padding": 1, "eps": 1e-5, "relu": True, "pool": "avg", "short": False, "rounding": "fp32"}
    grad = numbers(3 * each, 16, 3, 3, seed=4)
    (ours,) = torch.autograd.grad(fused.first_layer(x, copies, weight, bias, **options), copies, grad)
    for k, (part, slope) in enumerate(zip(x.chunk(classes), grad.chunk(classes), strict=True)):
        exact = kernel.double().requires_grad_()
        out = norm(F.conv2d(part.double(), exact, padding=1), weight.double(), bias.double(), True, "avg")
        assert close(ours[k], torch.autograd.grad(out, exact, slope.double())[0])


def test_the_first_layer_refuses_a_gradient_that_it_does_not_have(fused: types.ModuleType) -> None:
    x = numbers(2, 3, 8, 8).requires_grad_()
    out = fused.first_layer(
        x, numbers(16, 3, 3, 3), torch.ones(16), torch.zeros(16), padding=1, eps=1e-5, relu=True, pool="avg",
        short=False, rounding="fp32",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="no gradient for its images"):
        out.sum().backward()


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 12, 20)])
@pytest.mark.parametrize("op", [-1, *range(len(OPS))])
def test_one_kernel_augments_as_the_operations_one_by_one(size: tuple[int, int, int], op: int) -> None:
    from ddbench.engine.gpu import augment as gpu_augment

    images, u = numbers(2, 3, *size), torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    ops = torch.tensor([op, (op + 3) % len(OPS)])
    for rows, corners in ((3, False), (1, True)):
        draw = Draw(ops, u[:, :rows], corners)
        assert torch.allclose(gpu_augment.augment(images, ops, draw.numbers, corners), apply(draw, images), atol=1e-4)


def test_kernels_know_what_does_not_fit(fused: types.ModuleType) -> None:
    assert fused.fits(128, 32, 32)
    assert not fused.fits(128, 7, 8)  # no 2x2 windows
    assert not fused.fits(128, 128, 128)  # too large for the registers of a block
    assert not fused.fits(12, 8, 8)
    assert fused.first_fits(27, 128, 32, 32)
    assert not fused.first_fits(75, 128, 32, 32)  # 5x5 kernels
