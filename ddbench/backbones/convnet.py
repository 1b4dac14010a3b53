"""ConvNet, the default network of the field.

Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018; the variants are those of Zhao,
Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ddbench.backbones.stack import Chain, Stack
from ddbench.backbones.variables import Shape

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky": nn.LeakyReLU,
    "swish": nn.SiLU,
}


def convnet(shape: Shape, classes: int, *, depth: int, width: int, norm: str, activation: str, pooling: str) -> Chain:
    """`depth` times convolution, norm, activation and pooling, then one linear layer.

    Taps: "block1" to "block<depth>" after the activation and before the pooling, "pool", "embed", "logits".
    """
    stack = Stack(shape)

    def pool() -> nn.Module:
        match pooling:
            case "avg":
                return stack.avg_pool()
            case "max":
                return stack.max_pool()
        return nn.Identity()

    stages: dict[str, nn.Module] = {}
    for index in range(1, depth + 1):
        block = nn.Sequential()
        if index > 1:
            block.add_module("pool", pool())
        # 28x28 digits become 32x32 maps, so that sizes equal those of colour images.
        block.add_module("conv", stack.conv(width, 3, padding=3 if stack.grey and index == 1 else 1))
        block.add_module("norm", stack.norm(norm))
        block.add_module("activation", ACTIVATIONS[activation]())
        stages[f"block{index}"] = block
    stages["pool"] = pool()
    stages["embed"] = nn.Flatten()
    stages["logits"] = nn.Linear(stack.numel, classes)
    return Chain(stages)
