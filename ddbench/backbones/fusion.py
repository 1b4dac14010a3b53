"""The same network in fewer, larger layers, for first-order gradients on a GPU.

Instance norm, activation and pooling become one layer, and the first convolution joins it where it is small
(`ddbench.engine.gpu.layers`). Parameters keep their names, so that a network's variables fit both forms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.backbones.tangent_blocks import Block, Linearised
from ddbench.backbones.tangent_layers import Tangents, known
from ddbench.engine.program import channels_last, gpu_kernels

Slot = tuple[nn.Module, str]
"""Where a layer is: its parent and its name there."""


class InstanceNorm(nn.Module):
    """Instance norm, with the activation and the pooling that came after it. `short` says a convolution comes next."""

    def __init__(self, norm: nn.GroupNorm, relu: bool, pool: str, short: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.relu, self.pool, self.short = relu, pool, short

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        fused = _kernels_for(x)
        if fused is not None and fused.fits(*x.shape[1:]):
            short = self.short and autocasting()
            return fused.norm_act_pool(
                x, self.weight, self.bias, eps=self.eps, relu=self.relu, pool=self.pool, short=short
            )
        x = F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        if self.relu:
            x = F.relu(x)
        match self.pool:
            case "avg":
                return F.avg_pool2d(x, 2)
            case "max":
                return F.max_pool2d(x, 2)
        return x


class Held(InstanceNorm):
    """A norm that is applied by the first layer; its parameters stay in their place."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Convolution(nn.Module):
    """A convolution without its bias, which the instance norm after it would take away again."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.stride, self.padding = conv.weight, conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(channels_last(x), self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class FirstLayer(Convolution):
    """A convolution of images together with the norm after it."""

    def __init__(self, conv: nn.Conv2d, norm: Held) -> None:
        super().__init__(conv)
        self._norm = (norm,)  # in a tuple, so that it stays the child of its old parent

    def forward(self, x: Tensor) -> Tensor:
        (norm,), fused = self._norm, _kernels_for(x)
        channels, inputs, side, _ = self.weight.shape[-4:]  # gradients by class bring one copy for each
        padding = int(self.padding[0])
        height, width = (length + 2 * padding - side + 1 for length in x.shape[2:])
        # The kernel has no gradient for its images.
        fixed = not (x.requires_grad and torch.is_grad_enabled())
        if fused is None or not fixed or not fused.first_fits(inputs * side**2, channels, height, width):
            return norm.normalise(super().forward(x))
        rounding = "bf16" if autocasting() else "tf32" if torch.backends.cudnn.allow_tf32 else "fp32"
        return fused.first_layer(
            x, self.weight, norm.weight, norm.bias, padding=padding, eps=norm.eps, relu=norm.relu, pool=norm.pool,
            short=norm.short and autocasting(), rounding=rounding,
        )  # fmt: skip


def _kernels_for(x: Tensor) -> ModuleType | None:
    # The kernels compute in single precision; a network in double precision keeps torch's layers.
    return gpu_kernels() if x.is_cuda and x.dtype != torch.float64 else None


def autocasting() -> bool:
    """Whether networks run in bfloat16 on GPUs now."""
    return torch.is_autocast_enabled("cuda")


def fuse(module: nn.Module) -> nn.Module | None:
    """A copy of a module in fused layers; None where it has no instance norm."""
    module = copy.deepcopy(module)
    # Residual branches are lines of their own; only the first line reads images.
    fused = [_fuse(list(line), first=number == 0) for number, line in enumerate(_lines(module))]
    return module if sum(fused) else None


def tangents(module: nn.Module) -> Tangents | None:
    """A module together with its tangent, in torch's operations; None where it is no chain of layers that are known."""
    chain = _chain(module)
    return Tangents(tuple(chain)) if chain and all(known(layer) for _, layer in chain) else None


def linearised(module: nn.Module, height: int, width: int) -> Linearised | None:
    """A module together with its tangent; None where it is no chain of blocks with instance norm and a linear layer."""
    chain = _chain(module)
    names, line, blocks = {layer: name for name, layer in chain}, [layer for _, layer in chain], []
    while len(line) > 1 and isinstance(conv := line[0], nn.Conv2d):
        norm, line = line[1], line[2:]
        if not isinstance(norm, nn.GroupNorm) or norm.num_groups < norm.num_channels or conv.groups > 1:
            return None
        if conv.dilation != (1, 1) or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            return None
        height, width = (
            (length + 2 * pad - side) // stride + 1
            for length, pad, side, stride in zip(
                (height, width), conv.padding, conv.kernel_size, conv.stride, strict=True
            )
        )
        maps = conv.out_channels, height, width
        if relu := bool(line) and isinstance(line[0], nn.ReLU):
            line = line[1:]
        pool = _pooling(line[0]) if line else "none"
        if pool != "none":
            if height % 2 or width % 2:
                return None
            height, width, line = height // 2, width // 2, line[1:]
        blocks.append(Block(names[conv], names[norm], conv.stride, conv.padding, norm.eps, relu, pool, maps))
    match line:
        case [nn.Flatten(), nn.Linear() as linear] if blocks and linear.bias is not None:
            return Linearised(tuple(blocks), names[linear])
    return None


def _chain(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a module, by name, where one follows the other; else none."""
    names = {layer: name for name, layer in module.named_modules()}
    line = [_layer(slot) for slot in _line(module)]
    if len(line) < sum(not list(layer.children()) for layer in module.modules()):
        return []
    return [(names[layer], layer) for layer in line if not isinstance(layer, nn.Identity)]


def _lines(module: nn.Module) -> Iterator[Iterator[Slot]]:
    """Layers that follow one another, line by line."""
    yield _line(module)
    for child in module.modules():
        if child is not module and not isinstance(child, nn.Sequential):
            yield from (_line(part) for part in child.children() if isinstance(part, nn.Sequential))


def _line(module: nn.Module) -> Iterator[Slot]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _line(child)
        else:
            yield module, name


def _fuse(line: list[Slot], *, first: bool) -> int:
    line = [slot for slot in line if not isinstance(_layer(slot), nn.Identity)]
    fused = 0
    for i, slot in enumerate(line):
        norm = _layer(slot)
        if not (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels):
            continue
        after = i + 1
        relu = after < len(line) and isinstance(_layer(line[after]), nn.ReLU)
        after += relu
        pool = _pooling(_layer(line[after])) if after < len(line) else "none"
        after += pool != "none"
        short = after < len(line) and isinstance(_layer(line[after]), nn.Conv2d)
        for gone in line[i + 1 : after]:
            _put(gone, nn.Identity())
        before = _layer(line[i - 1]) if i else None
        layer = InstanceNorm(norm, relu, pool, short)
        if isinstance(before, nn.Conv2d) and first and i == 1 and before.stride == (1, 1):
            layer = Held(norm, relu, pool, short)
            _put(line[0], FirstLayer(before, layer))
        elif isinstance(before, nn.Conv2d):
            _put(line[i - 1], Convolution(before))
        _put(slot, layer)
        fused += 1
    return fused


def _pooling(layer: nn.Module) -> str:
    match layer:
        case nn.AvgPool2d(kernel_size=2, stride=2, padding=0):
            return "avg"
        case nn.MaxPool2d(kernel_size=2, stride=2, padding=0):
            return "max"
    return "none"


def _layer(slot: Slot) -> nn.Module:
    parent, name = slot
    return parent.get_submodule(name)


def _put(slot: Slot, layer: nn.Module) -> None:
    parent, name = slot
    parent._modules[name] = layer
