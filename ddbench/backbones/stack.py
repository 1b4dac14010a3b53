"""The layer factory of the built-in networks: layers in order, with names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ddbench.backbones.variables import Shape
from ddbench.errors import ConfigError


class Chain(nn.Module):
    """Stages one after the other; the output of each is a tap. The last two are "embed" and "logits"."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def forward(self, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        outputs = {}
        for name, stage in self.named_children():
            x = stage(x)
            if name in taps:
                outputs[name] = x
                if len(outputs) == len(taps):
                    break
        return outputs


class TooSmallError(ConfigError):
    """Images that the layers of a network shrink to nothing."""


class Stack:
    """Makes layers for images of one shape, each for the map that the ones before it leave.

    Raises: TooSmallError when nothing of the map is left.
    """

    def __init__(self, shape: Shape) -> None:
        self.channels, self.height, self.width = shape

    @property
    def grey(self) -> bool:
        return self.channels == 1

    @property
    def numel(self) -> int:
        return self.channels * self.height * self.width

    def conv(self, out: int, kernel: int, *, padding: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
        layer = nn.Conv2d(self.channels, out, kernel, stride, padding, bias=bias)
        self._shrink(kernel, stride, padding)
        self.channels = out
        return layer

    def max_pool(self, kernel: int = 2, stride: int = 2, padding: int = 0) -> nn.MaxPool2d:
        self._shrink(kernel, stride, padding)
        return nn.MaxPool2d(kernel, stride, padding)

    def avg_pool(self) -> nn.AvgPool2d:
        self._shrink(2, 2, 0)
        return nn.AvgPool2d(2)

    def global_pool(self) -> nn.AdaptiveAvgPool2d:
        self.height = self.width = 1
        return nn.AdaptiveAvgPool2d(1)

    def norm(self, kind: str) -> nn.Module:
        """Instance (in), batch (bn), group (gn) or layer norm (ln), or none (nn).

        Raises: ConfigError when four groups do not divide the channels.
        """
        match kind:
            case "in":
                if self.height * self.width == 1:
                    raise TooSmallError("instance norm turns a map of one pixel into zero")
                return nn.GroupNorm(self.channels, self.channels)
            case "gn":
                if self.channels % 4:
                    raise ConfigError(f"group norm makes 4 groups of {self.channels} channels. Use a multiple of 4.")
                return nn.GroupNorm(4, self.channels)
            case "ln":
                return nn.LayerNorm([self.channels, self.height, self.width])
            case "bn":
                layer = nn.BatchNorm2d(self.channels)
                # Read only where momentum is None; without it all buffers are floating-point.
                layer.num_batches_tracked = None
                return layer
        return nn.Identity()

    def _shrink(self, kernel: int, stride: int, padding: int) -> None:
        self.height = (self.height + 2 * padding - kernel) // stride + 1
        self.width = (self.width + 2 * padding - kernel) // stride + 1
        if self.height < 1 or self.width < 1:
            raise TooSmallError("nothing of the image is left")
