"""Gradients of all classes in one pass, and slopes without a second backward, against one class after the other."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench import Backbone, Rng, Variables
from ddbench.backbones.foreign import from_module
from ddbench.backbones.names import build
from ddbench.engine.augment import ALL_OPS, OPS, siamese
from ddbench.testing.contract import problem_for_checks
from ddbench.training.class_gradients import ClassGradients, SharedGradients, class_gradients

CLASSES, IMAGES = 3, 2
LABELS = torch.tensor([2, 0, 1])
SMALL = [
    f"convnet-d2-w4{variant}" for variant in ("", "-gn", "-ln", "-bn", "-nn", "-gn-sigmoid-max", "-leaky-np", "-swish")
] + ["mlp"]
LARGE = ["lenet", "alexcifarnet", "resnet-16-32-64"]


def setting(name: str) -> tuple[Backbone, Variables, Tensor]:
    """A network in double precision, with statistics that are not those of a fresh one, and images."""
    shape = (3, 32, 32) if name in LARGE else (3, 8, 8)
    net = build(name, shape, CLASSES)
    network = net.init(Rng(0)).to(torch.float64)
    generator = Rng(1).torch()
    images = torch.randn(CLASSES, IMAGES, *shape, generator=generator, dtype=torch.float64)
    network = Variables(network.params, net(network, images.flatten(0, 1), train=True)[1])
    return net, network, images


def directions_like(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = Rng(2).torch()
    return {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in gradients.items()}


def one_by_one(
    net: Backbone, network: Variables, images: Tensor, weights: list[str], *, create_graph: bool = False
) -> list[list[Tensor]]:
    """For each class the gradient of its mean cross-entropy, by ordinary autograd."""
    gradients = []
    for x, label in zip(images, LABELS, strict=True):
        params = {name: value.clone().requires_grad_() for name, value in network.params.items()}
        logits, _ = net(Variables(params, network.buffers), x, train=net.per_sample)
        loss = F.cross_entropy(logits, label.expand(len(x)))
        gradients.append(list(torch.autograd.grad(loss, [params[w] for w in weights], create_graph=create_graph)))
    return gradients


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_one_pass_gives_the_gradients_and_slopes_of_a_loop_that_differentiates_twice(name: str) -> None:
    net, network, images = setting(name)
    weights = [k for k, value in network.params.items() if value.ndim > 1]
    shared = class_gradients(net)
    assert type(shared) is SharedGradients

    found = shared.of(network, images, LABELS)
    leaf = images.clone().requires_grad_()
    expected = one_by_one(net, network, leaf, weights, create_graph=True)
    assert list(found) == weights
    for w, weight in enumerate(weights):
        for k in range(CLASSES):
            assert (found[weight][k] - expected[k][w]).norm() <= 1e-10 * expected[k][w].norm()

    directions = directions_like(found)
    products = [(expected[k][w] * directions[m][k]).sum() for k in range(CLASSES) for w, m in enumerate(weights)]
    (slopes,) = torch.autograd.grad(torch.stack(products).sum(), leaf)
    assert (shared.slopes(network, images, LABELS, directions) - slopes).norm() <= 1e-10 * slopes.norm()


@pytest.mark.parametrize("name", ["convnet-d2-w4", "convnet-d2-w4-ln", "convnet-d2-w4-bn"])
def test_the_definition_takes_all_parameters_too(name: str) -> None:
    net, network, images = setting(name)
    names = list(network.params)
    whole = class_gradients(net, everything=True)
    found = whole.of(network, images, LABELS)
    leaf = images.clone().requires_grad_()
    expected = one_by_one(net, network, leaf, names, create_graph=True)
    assert list(found) == names
    directions = directions_like(found)
    product = torch.zeros((), dtype=torch.float64)
    for k in range(CLASSES):
        for gradient, key in zip(expected[k], names, strict=True):
            assert torch.allclose(found[key][k], gradient, atol=1e-12)
            product = product + (gradient * directions[key][k]).sum()
    (slopes,) = torch.autograd.grad(product, leaf)
    assert (whole.slopes(network, images, LABELS, directions) - slopes).norm() <= 1e-10 * slopes.norm()


def test_a_slope_is_what_a_finite_difference_measures() -> None:
    net, network, images = setting("convnet-d2-w4-swish")
    shared = SharedGradients(net)
    directions = directions_like(shared.of(network, images, LABELS))

    def product(x: Tensor) -> float:
        return float(sum((v * directions[k]).sum() for k, v in shared.of(network, x, LABELS).items()))

    way, h = torch.randn(images.shape, generator=Rng(3).torch(), dtype=torch.float64), 1e-5
    measured = (product(images + h * way) - product(images - h * way)) / (2 * h)
    assert measured == pytest.approx(float((shared.slopes(network, images, LABELS, directions) * way).sum()), rel=1e-6)


def test_slopes_go_through_the_augmentation_as_a_second_backward_would() -> None:
    net, network, images = setting("convnet-d2-w4")
    weights = [k for k, value in network.params.items() if value.ndim > 1]
    shared = SharedGradients(net)
    drawn = set()
    for seed in range(8):
        view = siamese(ALL_OPS, CLASSES, Rng(seed))
        drawn |= set(view.ops.tolist())
        leaf = images.clone().requires_grad_()
        directions = directions_like(shared.of(network, images, LABELS))
        gradients = one_by_one(net, network, view(leaf), weights, create_graph=True)
        products = [(gradients[k][w] * directions[m][k]).sum() for k in range(CLASSES) for w, m in enumerate(weights)]
        (expected,) = torch.autograd.grad(torch.stack(products).sum(), leaf)
        seen = view(leaf)
        seen.backward(shared.slopes(network, seen.detach(), LABELS, directions))
        assert leaf.grad is not None
        assert (leaf.grad - expected).norm() <= 1e-10 * expected.norm()
    assert len(drawn) == len(OPS)


class Own(nn.Module):
    """A network whose weights are used in a way that nobody foresees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(4, 1, 1))
        self.head = nn.Linear(4 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((torch.relu(self.conv(x)) * self.mix).flatten(1))
        return logits


def test_a_network_that_is_not_ours_goes_by_the_definition(tmp_path: Path) -> None:
    net = from_module("own", Own, (3, 8, 8), CLASSES)
    network = net.init(Rng(0)).to(torch.float64)
    images = problem_for_checks(tmp_path).real.class_batches(IMAGES, Rng(0)).double()
    gradients = class_gradients(net)
    assert type(gradients) is ClassGradients
    found = gradients.of(network, images, LABELS)
    expected = one_by_one(net, network, images, list(found))
    assert list(found) == ["mix", "conv.weight", "head.weight"]
    for k in range(CLASSES):
        assert all(torch.allclose(found[w][k], g, atol=1e-12) for w, g in zip(found, expected[k], strict=True))


def test_nothing_is_left_on_the_network_or_the_images() -> None:
    net, network, images = setting("convnet-d2-w4")
    before = {name: value.clone() for name, value in network.params.items()}
    shared = SharedGradients(net)
    gradients = shared.of(network, images, LABELS)
    slopes = shared.slopes(network, images, LABELS, gradients)
    assert not slopes.requires_grad
    assert not any(g.requires_grad for g in gradients.values())
    assert images.grad is None
    assert not images.requires_grad
    assert all(torch.equal(network.params[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", ["convnet-d2-w8", "convnet-d2-w8-ln", "convnet-d2-w8-bn", "mlp"])
def test_short_numbers_stay_near_long_ones(name: str) -> None:
    net = build(name, (3, 8, 8), CLASSES)
    network, images = net.init(Rng(0)), torch.randn(CLASSES, 8, 3, 8, 8, generator=Rng(1).torch())
    shared = SharedGradients(net)
    gradients = shared.of(network, images, LABELS)
    slopes = shared.slopes(network, images, LABELS, gradients)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        short = shared.of(network, images, LABELS)
        short_slopes = shared.slopes(network, images, LABELS, gradients)
    assert all(value.dtype == torch.float32 for value in [*short.values(), short_slopes])
    assert all((short[k] - value).norm() < 0.1 * value.norm() for k, value in gradients.items())
    assert (short_slopes - slopes).norm() < 0.1 * slopes.norm()
