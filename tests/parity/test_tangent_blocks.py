"""Networks with their tangents, written out, against torch's own forward and reverse derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.fusion import linearised
from ddbench.backbones.names import build
from ddbench.backbones.tangent_blocks import cross_entropy_jvp
from ddbench.backbones.variables import Variables
from ddbench.rng import Rng

CHAINS = ["convnet-d2-w8", "convnet-d3-w8-max", "convnet-d2-w8-np"]
OTHERS = [
    "convnet-w8-bn",
    "convnet-w8-gn",
    "convnet-w8-ln",
    "convnet-w8-nn",
    "convnet-w8-sigmoid",
    "resnet18",
    "alexnet",
    "mlp",
]


def network(net: Backbone, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and a direction for each."""
    params = net.init(Rng(seed)).to(torch.float64).params
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
    # Scales and shifts of one and zero would hide terms.
    params = {name: p + 0.1 * draw[name] if p.ndim == 1 else p for name, p in params.items()}
    return params, {name: 0.1 * direction.flip(0) for name, direction in draw.items()}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("name", CHAINS)
def test_the_change_and_its_gradient_are_those_of_forward_over_reverse(name: str) -> None:
    net = build(name, (3, 16, 16), 4)
    assert net.linearised is not None
    params, directions = network(net)
    images, labels = numbers(3, *net.shape), torch.tensor([0, 2, 3])

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(net(Variables(params), x)[0], labels)

    (logits, change) = jvp(lambda p: net(Variables(p), images)[0], (params,), (directions,))
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    x = images.clone().requires_grad_()
    pair = net.linearised(leaves, directions, x)
    assert torch.allclose(pair, torch.cat([logits, change]), atol=1e-10)
    along = jvp(lambda p: loss(p, images), (params,), (directions,))[1]
    ours = cross_entropy_jvp(pair, labels, len(images))
    assert torch.allclose(ours, along, atol=1e-10)
    curved, mixed = jvp(lambda p: torch.func.grad(loss, argnums=(0, 1))(p, images), (params,), (directions,))[1]
    by_x, *by_params = torch.autograd.grad(ours, [x, *leaves.values()], allow_unused=True)
    assert torch.allclose(by_x, mixed, atol=1e-10)
    for key, found in zip(leaves, by_params, strict=True):
        # A convolution's shift before a norm has no effect.
        assert torch.allclose(torch.zeros_like(curved[key]) if found is None else found, curved[key], atol=1e-9), key


@pytest.mark.parametrize("name", CHAINS)
def test_directions_of_classes_and_missing_ones(name: str) -> None:
    net, classes, each = build(name, (2, 16, 16), 3), 3, 2
    assert net.linearised is not None
    params, _ = network(net)
    directions = {key: 0.1 * numbers(classes, *p.shape) for key, p in params.items() if p.ndim > 1}
    x = numbers(classes * each, *net.shape).requires_grad_()
    pair = net.linearised(params, directions, x)
    labels = torch.arange(classes).repeat_interleave(each)
    (slope,) = torch.autograd.grad(cross_entropy_jvp(pair, labels, each), x)
    for k, (some, mine) in enumerate(zip(x.detach().split(each), slope.split(each), strict=True)):
        along = {key: direction[k] for key, direction in directions.items()}
        alone = some.clone().requires_grad_()
        one = net.linearised(params, along, alone)
        assert torch.allclose(torch.cat([part[k * each : (k + 1) * each] for part in pair.chunk(2)]), one, atol=1e-12)
        (expected,) = torch.autograd.grad(cross_entropy_jvp(one, torch.full((each,), k), each), alone)
        assert torch.allclose(mine, expected, atol=1e-12)


def test_gradients_of_the_change_are_numerically_right() -> None:
    net = build("convnet-d2-w4", (2, 8, 8), 3)
    assert net.linearised is not None
    params, directions = network(net)
    names, change = [name for name in params if not name.endswith("conv.bias")], net.linearised
    labels = torch.tensor([1, 2])

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return cross_entropy_jvp(change({**params, **dict(zip(names, values, strict=True))}, directions, x), labels, 2)

    leaves = [numbers(2, *net.shape).requires_grad_(), *(params[name].clone().requires_grad_() for name in names)]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_not_taken_for_chains(name: str) -> None:
    assert build(name, (3, 32, 32), 3).linearised is None


@pytest.mark.parametrize("end", [[], [nn.ReLU()], [nn.AvgPool2d(2)], [nn.Linear(4, 3)]])
def test_chains_without_an_end_are_not_taken_for_networks(end: list[nn.Module]) -> None:
    assert linearised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), *end), 8, 8) is None


@pytest.mark.parametrize(
    ("name", "side", "fits"), [("convnet-w16", 32, True), ("convnet-w20", 32, False), ("convnet-d4-w16", 64, False)]
)
def test_kernels_are_used_where_they_take_all_maps(name: str, side: int, fits: bool) -> None:
    pytest.importorskip("triton")
    net = build(name, (3, side, side), 3)
    assert net.linearised is not None
    assert (net.second_order(torch.device("cuda")) is not None) is fits
    assert net.second_order(torch.device("cpu")) is None


def test_maps_with_odd_sides_are_left_to_torch() -> None:
    assert build("convnet-d2-w8", (3, 18, 18), 3).linearised is None
