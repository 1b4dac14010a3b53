"""Networks together with their tangent, against forward differentiation by torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp

from ddbench import Rng, Variables
from ddbench.backbones import build, from_module
from ddbench.backbones.tangent_layers import _max_pool, _of_shifted, known
from ddbench.engine.program import compiled

NETWORKS = [
    ("mlp", (1, 8, 8)),
    ("lenet", (1, 12, 12)),
    ("alexcifarnet", (3, 8, 8)),
    ("alexnet", (3, 32, 32)),
    ("vgg11", (1, 28, 28)),
    ("convnet-d2-w8", (3, 8, 8)),
    ("convnet-d2-w8-nn-max", (1, 9, 11)),
    ("convnet-d2-w8-gn-swish-np", (1, 8, 8)),
    ("convnet-d2-w8-ln-sigmoid", (1, 8, 8)),
    ("convnet-d2-w8-leaky", (3, 8, 8)),
]


def drawn(name: str, shape: tuple[int, int, int]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    net, generator = build(name, shape, 3), Rng(1).torch()
    params = {key: value.double() for key, value in net.init(Rng(0)).params.items()}
    directions = {key: torch.randn(value.shape, generator=generator).double() for key, value in params.items()}
    return params, directions, 10 * torch.randn(4, *shape, generator=generator).double()


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_logits_and_their_change_and_the_gradients_of_both(name: str, shape: tuple[int, int, int]) -> None:
    net = build(name, shape, 3)
    assert net.tangents is not None
    params, directions, x = drawn(name, shape)

    def logits(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return net(Variables(params), x)[0]

    of_values, of_change = torch.randn(2, 4, 3, generator=Rng(2).torch()).double()
    leaves = {key: value.clone().requires_grad_() for key, value in params.items()}
    images = x.clone().requires_grad_()
    values, change = net.tangents(leaves, directions, images).chunk(2)
    slopes = torch.autograd.grad((values * of_values + change * of_change).sum(), [*leaves.values(), images])

    expected = jvp(lambda w: logits(w, x), (params,), (directions,))
    # Forward over reverse: torch 2.15 takes the reverse of layer norm's tangent for another function.
    first = grad(lambda w, x: (logits(w, x) * of_values).sum(), argnums=(0, 1))(params, x)
    second = jvp(
        lambda w: grad(lambda w, x: (logits(w, x) * of_change).sum(), argnums=(0, 1))(w, x), (params,), (directions,)
    )[1]
    truth = [first[0][key] + second[0][key] for key in params] + [first[1] + second[1]]
    for ours, theirs in zip((values, change, *slopes), (*expected, *truth), strict=True):
        # A bias before a norm changes nothing, and its slope is rounding alone.
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm() + 1e-10


@pytest.mark.parametrize("name", ["convnet-d2-w8-bn", "resnet18"])
def test_other_networks_have_none(name: str) -> None:
    assert build(name, (3, 32, 32), 3).tangents is None


def test_a_module_from_elsewhere_has_none() -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

    assert from_module("mine", factory, (3, 2, 2), 3).tangents is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.GroupNorm(2, 4, affine=False),
        nn.BatchNorm2d(4),
        nn.Dropout(),
    ],
)
def test_layers_that_are_not_known(layer: nn.Module) -> None:
    assert not known(layer)


@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_of_shifted_maps_is_pooling(pool: tuple[int, int, int], ties: bool) -> None:
    x, dx = torch.randn(2, 2, 3, 9, 8, generator=Rng(0).torch(), dtype=torch.float64)
    x = x.relu().round() if ties else x
    layer, found = nn.MaxPool2d(*pool), []
    for form in (_max_pool, _of_shifted):
        leaves = x.clone().requires_grad_(), dx.clone().requires_grad_()
        y, dy = form(layer, *leaves)
        found.append([y, dy, *torch.autograd.grad((y * y.detach().cos() + dy * y).sum(), leaves)])
    assert torch.equal(found[0][0], F.max_pool2d(x, *pool))
    assert all(torch.allclose(a, b, rtol=1e-14, atol=1e-14) for a, b in zip(*found, strict=True))


@pytest.mark.slow
def test_a_compiler_takes_it_whole() -> None:
    import torch._dynamo as dynamo

    net = build("alexcifarnet", (3, 8, 8), 3)
    params, directions, x = drawn("alexcifarnet", (3, 8, 8))
    assert net.tangents is not None
    explained = dynamo.explain(net.tangents)(params, directions, x)
    assert explained.graph_break_count == 0
    assert torch.allclose(compiled(net.tangents)(params, directions, x), net.tangents(params, directions, x))
