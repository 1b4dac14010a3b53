"""Each architecture against a forward pass written out from its definition, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.backbones import Variables, build
from ddbench.rng import Rng

EPS = 1e-5


class Tensors:
    """Hands out parameters in the order in which layers use them, and knows nothing of their names."""

    def __init__(self, v: Variables) -> None:
        self.left = list(v.params.values())

    def take(self, count: int) -> list[Tensor]:
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def normalised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True) + EPS)


def norm(kind: str, x: Tensor, p: Tensors) -> Tensor:
    if kind == "nn":
        return x
    weight, bias = p.take(2)
    match kind:
        case "in":
            y = normalised(x, (2, 3))
        case "bn":
            y = normalised(x, (0, 2, 3))
        case "ln":
            return normalised(x, (1, 2, 3)) * weight + bias
        case _:
            y = normalised(x.unflatten(1, (4, -1)), (2, 3, 4)).flatten(1, 2)
    return y * weight[:, None, None] + bias[:, None, None]


def avg2(x: Tensor) -> Tensor:
    h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return (x[:, :, 0:h:2, 0:w:2] + x[:, :, 1:h:2, 0:w:2] + x[:, :, 0:h:2, 1:w:2] + x[:, :, 1:h:2, 1:w:2]) / 4


def max2(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def conv(x: Tensor, p: Tensors, padding: int) -> Tensor:
    weight, bias = p.take(2)
    return F.conv2d(x, weight, bias, padding=padding)


def linear(x: Tensor, p: Tensors) -> Tensor:
    weight, bias = p.take(2)
    return x @ weight.T + bias


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def start(name: str, shape: tuple[int, int, int], batch: int = 3, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensors]:
    """What our network answers, what it was asked, and its parameters, moved off their starting values."""
    backbone = build(name, shape, 5)
    rng = Rng(11)
    v = backbone.init(rng).to(torch.float64)
    for key, tensor in v.params.items():
        tensor += 0.1 * torch.randn(tensor.shape, generator=rng.fold(key).torch(), dtype=torch.float64)
    x = torch.randn(batch, *shape, generator=rng.fold("x").torch(), dtype=torch.float64)
    x *= scale
    return backbone(v, x)[0], x, Tensors(v)


def close(ours: Tensor, by_hand: Tensor, p: Tensors) -> None:
    assert not p.left
    torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-9)


ACTIVATIONS = {
    "relu": relu,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "leaky": lambda x: torch.where(x > 0, x, 0.01 * x),
    "swish": lambda x: x / (1 + torch.exp(-x)),
}
POOLS = {"avg": avg2, "max": max2, "np": lambda x: x}


@pytest.mark.parametrize(
    ("shape", "depth", "kind", "activation", "pool"),
    [
        ((3, 8, 8), 2, "in", "relu", "avg"),
        ((1, 8, 8), 2, "in", "relu", "avg"),
        ((3, 9, 14), 2, "bn", "swish", "max"),
        ((3, 8, 8), 1, "gn", "leaky", "np"),
        ((3, 8, 6), 2, "ln", "sigmoid", "avg"),
        ((1, 12, 12), 3, "nn", "relu", "max"),
    ],
)
def test_convnet(shape, depth, kind, activation, pool):
    ours, x, p = start(f"convnet-d{depth}-w8-{kind}-{activation}-{pool}", shape)
    for block in range(depth):
        x = conv(x, p, padding=3 if block == 0 and shape[0] == 1 else 1)
        x = POOLS[pool](ACTIVATIONS[activation](norm(kind, x, p)))
    close(ours, linear(x.flatten(1), p), p)


def test_mlp():
    ours, x, p = start("mlp", (3, 4, 4))
    x = relu(linear(relu(linear(x.flatten(1), p)), p))
    close(ours, linear(x, p), p)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 16, 16)])
def test_lenet(shape):
    ours, x, p = start("lenet", shape)
    x = max2(relu(conv(x, p, 2 if shape[0] == 1 else 0)))
    x = max2(relu(conv(x, p, 0))).flatten(1)
    close(ours, linear(relu(linear(relu(linear(x, p)), p)), p), p)


@pytest.mark.parametrize("kind", ["nn", "bn"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alexnet(kind, channels):
    ours, x, p = start("alexnet-bn" if kind == "bn" else "alexnet", (channels, 8, 8))
    x = max2(relu(norm(kind, conv(x, p, 4 if channels == 1 else 2), p)))
    x = max2(relu(norm(kind, conv(x, p, 2), p)))
    for _ in range(3):
        x = relu(norm(kind, conv(x, p, 1), p))
    close(ours, linear(max2(x).flatten(1), p), p)


@pytest.mark.parametrize(("name", "kind", "shape"), [("vgg11", "in", (1, 28, 28)), ("vgg11-bn", "bn", (3, 32, 32))])
def test_vgg11(name, kind, shape):
    ours, x, p = start(name, shape, batch=2)
    padding = 3 if shape[0] == 1 else 1
    for step in "cMcMccMccMccM":
        if step == "M":
            x = max2(x)
        else:
            x, padding = relu(norm(kind, conv(x, p, padding), p)), 1
    assert x.shape[2:] == (1, 1)
    close(ours, linear(x.flatten(1), p), p)


def test_alexcifarnet():
    def response(x: Tensor) -> Tensor:
        # torch divides alpha by the window's four channels.
        return F.local_response_norm(x, 4, alpha=0.001 / 9, beta=0.75, k=1)

    # Large inputs, or the norm would hardly differ from the identity.
    ours, x, p = start("alexcifarnet", (3, 8, 8), scale=100.0)
    y = response(F.max_pool2d(relu(conv(x, p, 2)), 3, 2, 1))
    y = F.max_pool2d(response(relu(conv(y, p, 2))), 3, 2, 1).flatten(1)
    close(ours, linear(relu(linear(relu(linear(y, p)), p)), p), p)


@pytest.mark.parametrize(
    ("name", "kind", "widths", "size"),
    [
        ("resnet18", "in", (64, 128, 256, 512), 9),
        ("resnet18-bn", "bn", (64, 128, 256, 512), 8),
        ("resnet-16-32-64", "bn", (16, 32, 64), 8),
    ],
)
def test_resnet(name, kind, widths, size):
    ours, x, p = start(name, (3, size, size))
    x = relu(norm(kind, F.conv2d(x, *p.take(1), padding=1), p))
    for width in widths:
        for block in range(2):
            stride = 2 if block == 0 and width != widths[0] else 1
            y = relu(norm(kind, F.conv2d(x, *p.take(1), stride=stride, padding=1), p))
            y = norm(kind, F.conv2d(y, *p.take(1), padding=1), p)
            if stride == 2:
                x = norm(kind, F.conv2d(x, *p.take(1), stride=2), p)
            x = relu(x + y)
    close(ours, linear(x.mean((2, 3)), p), p)


@pytest.mark.parametrize(("name", "kind", "size"), [("resnet18-ap", "in", 16), ("resnet18-bn-ap", "bn", 9)])
def test_resnet_with_average_pooling(name, kind, size):
    ours, x, p = start(name, (3, size, size), batch=2)
    x = relu(norm(kind, F.conv2d(x, *p.take(1), padding=1), p))
    for width in (64, 128, 256, 512):
        for block in range(2):
            halves = block == 0 and width > 64
            y = relu(norm(kind, F.conv2d(x, *p.take(1), padding=1), p))
            y = norm(kind, F.conv2d(avg2(y) if halves else y, *p.take(1), padding=1), p)
            if halves:
                x = norm(kind, avg2(F.conv2d(x, *p.take(1))), p)
            x = relu(x + y)
    assert math.prod(x.shape[1:]) == 512 * (size // 8) ** 2
    close(ours, linear(x.flatten(1), p), p)
