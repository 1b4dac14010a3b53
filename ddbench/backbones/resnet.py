"""Residual networks for small images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The stem and the pooling variant are those of
Zhao, Mopuri and Bilen, ICLR 2021; the 16-32-64 form is that of Bohdal, Yang and Hospedales, arXiv 2006.08572.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ddbench.backbones.stack import Chain, Stack
from ddbench.backbones.variables import Shape


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut. With `average`, pooling halves the map instead of a stride."""

    def __init__(self, stack: Stack, width: int, stride: int, *, norm: str, average: bool) -> None:
        super().__init__()
        halves, entering = stride > 1, stack.channels
        step = 1 if average else stride
        main: list[nn.Module] = [stack.conv(width, 3, padding=1, stride=step, bias=False), stack.norm(norm), nn.ReLU()]
        if halves and average:
            main.append(stack.avg_pool())
        self.main = nn.Sequential(*main, stack.conv(width, 3, padding=1, bias=False), stack.norm(norm))
        shortcut: list[nn.Module] = []
        if halves or entering != width:
            pool = [nn.AvgPool2d(2)] if halves and average else []
            shortcut = [nn.Conv2d(entering, width, 1, step, bias=False), *pool, stack.norm(norm)]
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.main(x) + self.shortcut(x))


def resnet18(shape: Shape, classes: int, *, norm: str, flat: bool) -> Chain:
    """Four stages of two blocks. `flat` averages instead of striding, and keeps the last map instead of its mean."""
    return _resnet(shape, classes, (64, 128, 256, 512), norm=norm, flat=flat)


def resnet_16_32_64(shape: Shape, classes: int) -> Chain:
    """Three stages of two blocks, with batch norm. In LD, and so by default here, its convolutions begin He-normal by
    fan-out."""
    return _resnet(shape, classes, (16, 32, 64), norm="bn", flat=False)


def _resnet(shape: Shape, classes: int, widths: Sequence[int], *, norm: str, flat: bool) -> Chain:
    stack = Stack(shape)
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(stack.conv(widths[0], 3, padding=1, bias=False), stack.norm(norm), nn.ReLU())
    }
    for index, width in enumerate(widths, start=1):
        stride = 1 if index == 1 else 2
        stages[f"stage{index}"] = nn.Sequential(
            Block(stack, width, stride, norm=norm, average=flat),
            Block(stack, width, 1, norm=norm, average=flat),
        )
    if not flat:
        stages["pool"] = stack.global_pool()
    stages["embed"] = nn.Flatten()
    stages["logits"] = nn.Linear(stack.numel, classes)
    return Chain(stages)
