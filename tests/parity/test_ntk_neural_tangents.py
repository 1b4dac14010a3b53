"""Our kernels against neural-tangents, where the extra `ntk` is installed."""

import warnings

import pytest
import torch

from ddbench.ntk.gram import gram

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("neural_tangents", reason="needs the extra ntk", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
NETWORKS = ["fc1", "fc3", "convvec3", "convnet3", "convnet", "myrtle5"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_the_library(name: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, 8, 8, dtype=dtype, generator=generator) for n in (2, 3))
    x.requires_grad_()
    # Between an image and itself the library leaves the angle to rounding: the root of it is what comes out.
    diagonal = 1e-7 if dtype == torch.float64 else 1e-3
    for others in (y, None):
        both = []
        for backend in ("torch", "neural-tangents"):
            value = gram(name, (3, 8, 8), CPU, dtype=dtype, backend=backend, memory=1 << 30)(x, others)
            weights = torch.randn(value.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
            (grad,) = torch.autograd.grad((value * weights).sum(), x)
            both.append((value.detach(), grad))
        (ours, our_grad), (theirs, their_grad) = both
        wrong = ((ours - theirs) / theirs).abs()
        if others is None:
            assert wrong.diagonal().max() < diagonal
            wrong.fill_diagonal_(0)
        assert wrong.max() < tolerance
        assert (our_grad - their_grad).abs().max() < (
            diagonal if others is None else tolerance
        ) * their_grad.abs().max()


def test_the_memory_of_a_pair_is_bounded() -> None:
    from ddbench.ntk.architectures import architecture
    from ddbench.ntk.neural_tangents import NeuralTangentsBlocks

    sizes = [
        NeuralTangentsBlocks(architecture(name), (3, 32, 32), torch.float32).bytes_per_pair
        for name in ("fc1", "convvec3", "convnet")
    ]
    assert sizes == [32, 32 * 1024, 32 * 1024**2]
