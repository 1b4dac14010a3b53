"""The networks from before residual connections, sized for small images.

MLP, AlexNet and VGG11 are those of Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021;
LeNet and AlexCifarNet those of Wang et al., "Dataset Distillation", arXiv 1811.10959.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.backbones.stack import Chain, Stack
from ddbench.backbones.variables import Shape


def mlp(shape: Shape, classes: int) -> Chain:
    """Two hidden layers of 128."""
    return Chain(
        {
            "layer1": nn.Sequential(nn.Flatten(), nn.Linear(Stack(shape).numel, 128), nn.ReLU()),
            "embed": nn.Sequential(nn.Linear(128, 128), nn.ReLU()),
            "logits": nn.Linear(128, classes),
        }
    )


def lenet(shape: Shape, classes: int) -> Chain:
    """Two 5x5 convolutions and three linear layers."""
    stack = Stack(shape)
    stages = {
        "block1": nn.Sequential(stack.conv(6, 5, padding=2 if stack.grey else 0), nn.ReLU()),
        "block2": nn.Sequential(stack.max_pool(), stack.conv(16, 5, padding=0), nn.ReLU()),
        "pool": stack.max_pool(),
    }
    return Chain(stages | _linear_end(stack.numel, 120, 84, classes))


def alexnet(shape: Shape, classes: int, *, norm: str) -> Chain:
    """Five convolutions and one linear layer, without dropout."""
    stack = Stack(shape)

    def layers(width: int, kernel: int, padding: int) -> list[nn.Module]:
        return [stack.conv(width, kernel, padding=padding), stack.norm(norm), nn.ReLU()]

    return Chain(
        {
            "block1": nn.Sequential(*layers(128, 5, 4 if stack.grey else 2)),
            "block2": nn.Sequential(stack.max_pool(), *layers(192, 5, 2)),
            "block3": nn.Sequential(stack.max_pool(), *layers(256, 3, 1)),
            "block4": nn.Sequential(*layers(192, 3, 1)),
            "block5": nn.Sequential(*layers(192, 3, 1)),
            "pool": stack.max_pool(),
            "embed": nn.Flatten(),
            "logits": nn.Linear(stack.numel, classes),
        }
    )


def vgg11(shape: Shape, classes: int, *, norm: str) -> Chain:
    """Eight 3x3 convolutions in five blocks. The last map is averaged, so that larger images fit too."""
    stack = Stack(shape)
    # Five poolings need a map of 32x32. Grey images are padded to it in the papers; small colour ones need it as well.
    padded = stack.grey or min(shape[1:]) < 32
    stages: dict[str, nn.Module] = {}
    for index, widths in enumerate([(64,), (128,), (256, 256), (512, 512), (512, 512)], start=1):
        layers: list[nn.Module] = [] if index == 1 else [stack.max_pool()]
        for width in widths:
            padding = 3 if padded and index == 1 else 1
            layers += [stack.conv(width, 3, padding=padding), stack.norm(norm), nn.ReLU()]
        stages[f"block{index}"] = nn.Sequential(*layers)
    stages["pool"] = nn.Sequential(stack.max_pool(), stack.global_pool())
    stages["embed"] = nn.Flatten()
    stages["logits"] = nn.Linear(stack.numel, classes)
    return Chain(stages)


class ResponseNorm(nn.Module):
    """x / (1 + alpha m)^0.75, with m the mean of x^2 over a channel, the two before it and the one after it.

    nn.LocalResponseNorm(4, alpha, k=1) out of slices and sums, which a compiler joins with what is around them; torch's
    is a pooling in three dimensions, and its derivatives on a GPU are atomic sums.
    """

    alpha = 0.001 / 9

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.alpha * _over_four(x * x)).pow(-0.75)

    def tangent(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and how it changes as x goes along dx."""
        base = 1 + self.alpha * _over_four(x * x)
        turn = 0.75 * self.alpha * _over_four(2 * x * dx) / base
        scale = base.pow(-0.75)
        return x * scale, scale * (dx - x * turn)


def _over_four(x: Tensor) -> Tensor:
    padded = F.pad(x, (0, 0, 0, 0, 2, 1))
    a, b, c, d = (padded.narrow(-3, start, x.shape[-3]) for start in range(4))
    return (a + b + c + d) / 4


def alexcifarnet(shape: Shape, classes: int) -> Chain:
    """Two 5x5 convolutions with local response norm and three linear layers."""
    stack = Stack(shape)
    stages = {
        "block1": nn.Sequential(stack.conv(64, 5, padding=2), nn.ReLU()),
        "block2": nn.Sequential(
            stack.max_pool(3, 2, 1), ResponseNorm(), stack.conv(64, 5, padding=2), nn.ReLU(), ResponseNorm()
        ),
        "pool": stack.max_pool(3, 2, 1),
    }
    return Chain(stages | _linear_end(stack.numel, 384, 192, classes))


def _linear_end(features: int, first: int, second: int, classes: int) -> dict[str, nn.Module]:
    return {
        "layer1": nn.Sequential(nn.Flatten(), nn.Linear(features, first), nn.ReLU()),
        "embed": nn.Sequential(nn.Linear(first, second), nn.ReLU()),
        "logits": nn.Linear(second, classes),
    }
