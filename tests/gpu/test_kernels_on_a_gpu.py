"""Kernels on a GPU, in one pass, as graphs and in chunks, against the plain layers in float64."""

import pytest
import torch

from ddbench.ntk.architectures import architecture
from ddbench.ntk.gram import gram
from ddbench.ntk.kernel import WIDE, kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Torch warns, now and then, of streams that wait for each other; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("name", ["fc1", "fc3", "convvec3", "convnet3", "convnet", "myrtle5"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 14, 15)])
@pytest.mark.parametrize("memory", [1 << 22, 1 << 30])
def test_values_and_gradients_are_those_of_float64(name: str, shape: tuple[int, int, int], memory: int) -> None:
    device, network = torch.device("cuda"), architecture(name)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, *shape, generator=generator).to(device) for n in (5, WIDE + 6))
    for others in (None, y):
        chunked = gram(name, shape, device, memory=memory, calls=10)
        for attempt in range(4):  # as it is, captured, timed, replayed
            leaf = (x + 0.1 * attempt).requires_grad_()
            value = chunked(leaf, others)
            weights = torch.randn(value.shape, generator=torch.Generator(device).manual_seed(1), device=device)
            (grad,) = torch.autograd.grad((value * weights).sum(), leaf)
            exact = leaf.detach().double().requires_grad_()
            expected = kernel(network, exact, None if others is None else others.double()).ntk
            (slope,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
            assert ((value.double() - expected) / expected).abs().max() < 1e-6
            assert (grad.double() - slope).abs().max() < 1e-4 * slope.abs().max()
