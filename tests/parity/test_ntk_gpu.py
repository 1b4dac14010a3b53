"""GPU kernels for bands, run one program after another by Triton's interpreter, and how a network is cut into them.

The interpreter is slow: the images are of 2x2 pixels. Larger ones are compared on a GPU (tests/gpu).
"""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench.ntk import blocks as ntk_blocks
from ddbench.ntk import kernel as kernels
from ddbench.ntk.architectures import BIAS_VARIANCE, Architecture, architecture
from ddbench.ntk.blocks import TorchBlocks
from ddbench.ntk.gram import Gram
from ddbench.ntk.kernel import _Relu, kernel, variances
from ddbench.ntk.layouts import Band

pytest.importorskip("triton")


def first_stage(
    x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    s = band.conv(band.cross(x1, x2), BIAS_VARIANCE)
    return rest_of_stage(s, s, q1, q2, band, after, same)


def next_stage(
    s: Tensor, theta: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    s = band.conv(s, BIAS_VARIANCE)
    return rest_of_stage(s, band.conv(theta, 0.0) + s, q1, q2, band, after, same)


def rest_of_stage(
    s: Tensor, theta: Tensor, q1: Tensor, q2: Tensor, band: Band, after: Band | None, same: bool
) -> tuple[Tensor, Tensor]:
    coincide = band.coincide(q1.shape[-1], s.device) if same else None
    s, theta = _Relu.apply(s, theta, band.own(q1)[..., None], band.partner(q2)[..., None, :], coincide)
    return (s, theta) if after is None else (band.pool(s, after), band.pool(theta, after))


PLAIN = SimpleNamespace(first_stage=first_stage, next_stage=next_stage)


@pytest.mark.parametrize("name", ["convvec3", "convnet3", "convnet"])
@pytest.mark.parametrize("same", [False, True])
def test_a_network_in_stages_is_the_network(name: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(2, 3, 2, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network, found = architecture(name), []
    for module in (None, PLAIN):
        for user in (kernels, ntk_blocks):
            monkeypatch.setattr(user, "one_pass", lambda *_, module=module: module)
        leaf = x.clone().requires_grad_()
        value = kernel(network, leaf, x if same else y, same=same, full=False)
        found.append((*value, *torch.autograd.grad(value.ntk.square().sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def check(first: bool, pool: bool, same: bool) -> None:
    """Values and gradients of one stage, ours against torch's, in float32."""
    from ddbench.ntk import gpu as kernels_fused

    band, after = Band(2, 2, 1, 1), Band(1, 1, 0, 0) if pool else None
    generator = torch.Generator().manual_seed(1)
    x1 = torch.randn(3, 2, 2, 2, generator=generator)
    x2 = x1.clone() if same else torch.randn(3, 2, 2, 3, generator=generator)
    depth = architecture("convvec1" if first else "convvec2")
    q1, q2 = (variances(depth, x)[-1] for x in (x1, x2))
    inside = band.mask(x1)[..., None, None]
    given = [x1] if first else list(first_stage(x1, x2, *(variances(depth, x)[0] for x in (x1, x2)), band, None, same))
    found = []
    for module in (PLAIN, kernels_fused):
        leaves = [t.clone().requires_grad_() for t in (*given, q1)]
        if first:
            out = module.first_stage(leaves[0], x2, leaves[1], q2, band, after, same)
        else:
            out = module.next_stage(*leaves, q2, band, after, same)
        weights = torch.randn(2, *out[0].shape, generator=torch.Generator().manual_seed(2)) * (1 if pool else inside)
        grads = torch.autograd.grad((out[0] * weights[0]).sum() + (out[1] * weights[1]).sum(), leaves)
        # Covariances of pixels outside the image are 0 and stay so, whatever gradient they are said to have.
        found.append([*out, *(grad * inside if grad.dim() == 6 else grad for grad in grads)])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6), (first, pool, same)


# As few pixels as show every way from one stage to the next: with and without pooling on both sides.
SMALL = {
    "plain": ("conv", "relu", "conv", "relu", "conv", "relu", "flatten", "dense"),
    "pooled": ("conv", "relu", "conv", "relu", "pool", "conv", "relu", "pool", "flatten", "dense"),
    "pooled first": ("conv", "relu", "pool", "conv", "relu", "flatten", "dense"),
}


def check_network(name: str, shape: tuple[int, int, int], first: int, second: int, chunk: int) -> None:
    """All stages of a network joined, against float64; so many images on each side, and pairs in a chunk.

    Without images on the second side it is the first side's own kernel.
    """
    from ddbench.ntk import gpu as kernels_fused

    def fits(network: Architecture, channels: int, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
        return kernels_fused if dtype == torch.float32 else None

    kernels.one_pass = ntk_blocks.one_pass = fits  # as on a GPU; whoever calls puts it back or ends
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(first, *shape, generator=generator).requires_grad_()
    y = torch.randn(second, *shape, generator=generator) if second else None
    network = Architecture(name, SMALL[name])
    blocks = TorchBlocks(network, shape, torch.device("cpu"), torch.float32, 1)
    value = Gram(blocks, blocks.bytes_per_pair * chunk)(x, y)
    weights = torch.randn(value.shape, generator=generator)
    (grad,) = torch.autograd.grad((value * weights).sum(), x)
    exact = x.detach().double().requires_grad_()
    truth = kernel(network, exact, None if y is None else y.double()).ntk
    (slope,) = torch.autograd.grad((truth * weights.double()).sum(), exact)
    assert ((value.double() - truth) / truth).abs().max() < 1e-6
    assert (grad.double() - slope).abs().max() < 1e-6 * slope.abs().max()


def interpret(*cases: tuple[Any, ...], check: str = "check") -> None:
    # Triton decides when it is imported whether it interprets, hence another process.
    program = f"import runpy; check = runpy.run_path({__file__!r})[{check!r}]; [check(*case) for case in {cases!r}]"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.interpreted
@pytest.mark.parametrize("case", [(True, True, False), (False, True, True)])
def test_a_stage_is_convolution_relu_and_pooling(case: tuple[bool, bool, bool]) -> None:
    check(*case)


@pytest.mark.interpreted
@pytest.mark.parametrize("case", [("plain", (2, 2, 2), 2, 33, 100), ("pooled first", (1, 2, 2), 1, 1, 1)])
def test_joined_stages_are_the_network(case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernels, ntk_blocks):
        monkeypatch.setattr(module, "one_pass", module.one_pass)  # put back after the check has replaced it
    check_network(*case)


@pytest.mark.slow
def test_every_way_from_stage_to_stage_in_chunks() -> None:
    interpret(
        ("plain", (2, 3, 2), 3, 0, 6), ("plain", (2, 3, 2), 3, 70, 70), ("pooled", (1, 4, 4), 1, 1, 1),
        ("pooled first", (1, 2, 3), 2, 0, 1), check="check_network",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_every_form_of_a_stage(first: bool) -> None:
    interpret(*((first, pool, same) for pool in (True, False) for same in (True, False)))
