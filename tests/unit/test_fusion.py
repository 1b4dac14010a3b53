"""Networks in fused layers are the same functions of the same variables."""

import pytest
import torch

from ddbench.backbones.backbone import Backbone, Fused
from ddbench.backbones.fusion import FirstLayer, Held, InstanceNorm, fuse
from ddbench.backbones.names import build
from ddbench.backbones.variables import Variables
from ddbench.rng import Rng
from ddbench.training.class_gradients import class_gradients

WITH_INSTANCE_NORM = [
    "convnet-w16",
    "convnet-w16-max",
    "convnet-w16-np",
    "convnet-w16-sigmoid",
    "vgg11",
    "resnet18",
    "resnet18-ap",
]
WITHOUT = ["convnet-w16-bn", "convnet-w16-gn", "convnet-w16-nn", "lenet", "mlp", "alexnet"]


def in_fused_layers(net: Backbone) -> Backbone:
    fused = net._in_fused_layers
    assert isinstance(fused, Fused)
    return fused


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", WITH_INSTANCE_NORM)
def test_fused_layers_compute_the_same_network(name: str, train: bool) -> None:
    net = build(name, (3, 32, 32), 3)
    ours = in_fused_layers(net)
    v = net.init(Rng(0)).to(torch.float64)
    v = Variables({k: p.requires_grad_() for k, p in v.params.items()}, v.buffers)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain, fused = net(v, x, train)[0], ours(v, x, train)[0]
    assert torch.allclose(plain, fused, atol=1e-9)
    assert torch.allclose(net.embed(v, x, train), ours.embed(v, x, train), atol=1e-9)
    wanted = [x, *v.params.values()]
    slopes = torch.autograd.grad(plain.square().sum(), wanted, allow_unused=True)
    others = torch.autograd.grad(fused.square().sum(), wanted, allow_unused=True)
    scale = max(float(s.abs().max()) for s in slopes if s is not None)
    for key, slope, other in zip(["images", *v.params], slopes, others, strict=True):
        assert slope is not None
        # A shift before an instance norm has no effect, and so no gradient but rounding.
        assert torch.allclose(slope, torch.zeros_like(slope) if other is None else other, atol=1e-9 * scale), key


@pytest.mark.parametrize("name", WITHOUT)
def test_networks_without_instance_norm_stay_as_they_are(name: str) -> None:
    net = build(name, (3, 32, 32), 3)
    assert fuse(net._modules[True]) is None
    assert net.first_order(torch.device("cpu")) is net


def test_a_convnet_becomes_three_pairs_and_a_linear_layer() -> None:
    module = fuse(build("convnet-w16", (3, 32, 32), 3)._modules[True])
    assert module is not None
    kinds = [type(layer) for layer in module.modules()]
    assert kinds.count(FirstLayer) == kinds.count(Held) == 1
    assert kinds.count(InstanceNorm) == 2
    assert torch.nn.AvgPool2d not in kinds
    assert torch.nn.ReLU not in kinds


def test_names_and_initial_values_are_those_of_the_plain_network() -> None:
    net = build("convnet-w16", (3, 32, 32), 3)
    plain, fused = net.init(Rng(1)), in_fused_layers(net).init(Rng(1))
    assert list(plain.params) == list(fused.params)
    assert all(torch.equal(plain.params[k], fused.params[k]) for k in plain.params)


@pytest.mark.parametrize("name", ["convnet-w16", "vgg11", "resnet18-ap"])
def test_gradients_by_class_are_those_of_the_plain_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(name, (3, 32, 32), 3)
    v = net.init(Rng(0)).to(torch.float64)
    images = torch.randn(3, 2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients, labels = class_gradients(net), torch.arange(3)
    plain = gradients.of(v, images, labels)
    monkeypatch.setattr(Backbone, "first_order", lambda self, device: in_fused_layers(net))
    ours = gradients.of(v, images, labels)
    assert list(plain) == list(ours)
    scale = max(float(value.abs().max()) for value in plain.values())
    assert all(torch.allclose(plain[key], ours[key], atol=1e-9 * scale) for key in plain)
