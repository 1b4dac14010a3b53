"""How the covariances of pairs of pixels are stored: a band around the diagonal, or all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.ntk.architectures import WEIGHT_VARIANCE, Architecture

# Two directions count as one below this multiple of the rounding: what is left of the sine of their angle is noise,
# and the NTK's derivative, which divides by it, does not exist there. Larger multiples lose what nearly equal patches
# contribute: on FashionMNIST the gradient is wrong by 6e-6 of its length with 1, and by 2e-4 with 8.
POLE = 1.0


def convolution_layouts(network: Architecture, layouts: Sequence[Any]) -> list[tuple[Any, Any]]:
    """For each convolution the layout that it and its ReLU see, and the one after pooling where there is pooling."""
    plan, level = [], 0
    for number, layer in enumerate(network.layers):
        if layer == "conv":
            pooled = network.layers[number + 2] == "pool"
            plan.append((layouts[level], layouts[level + 1] if pooled else None))
            level += pooled
    return plan


def layouts_of(network: Architecture, sizes: list[tuple[int, int]], full: bool) -> list[Layout]:
    if full or not network.banded:
        return [Full(*size) for size in sizes]
    radius, levels = 0, []
    for height, width in reversed(sizes):
        levels.append(Band(height, width, min(radius, height - 1), min(radius, width - 1)))
        radius = 2 * radius + 1
    return list(reversed(levels))


def all_is_less(network: Architecture, sizes: list[tuple[int, int]]) -> bool:
    """Whether the band of a small image, with what lies beyond its edges, is larger than all pairs of its pixels."""
    return layouts_of(network, sizes, False)[0].entries > Full(*sizes[0]).entries


@dataclass(frozen=True)
class Layout(ABC):
    """Which pairs of pixels of two images are kept, and the linear layers on them. One resolution."""

    height: int
    width: int

    @property
    @abstractmethod
    def partners(self) -> tuple[int, int]:
        """A and B."""

    @property
    def entries(self) -> int:
        """Numbers that a pair of images takes."""
        rows, columns = self.partners
        return self.height * self.width * rows * columns

    def own(self, maps: Tensor) -> Tensor:
        """[H, W, n] -> [H, W, 1, 1, n], the same for every partner."""
        return maps[:, :, None, None]

    @abstractmethod
    def partner(self, maps: Tensor) -> Tensor:
        """[H, W, n] -> [H, W, A, B, n], or [1, 1, A, B, n]: a map where the partner is; 0 outside the image."""

    @abstractmethod
    def box(self, s: Tensor) -> Tensor:
        """The sum over a 3x3 window that moves both pixels."""

    @abstractmethod
    def pool(self, s: Tensor, after: Any) -> Tensor:
        """2x2 average pooling of both images, into the layout `after`."""

    @abstractmethod
    def centre(self, s: Tensor) -> Tensor:
        """[H, W, A, B, n] -> [H, W, n]: each pixel with itself."""

    @abstractmethod
    def mask(self, like: Tensor) -> Tensor | None:
        """[H, W, A, B]: 1 where the partner is inside the image; None where it always is."""

    @abstractmethod
    def on_itself(self, device: torch.device) -> Tensor:
        """bool [H or 1, W or 1, A, B, 1]: where the partner is the pixel itself."""

    def coincide(self, n: int, device: torch.device) -> Tensor:
        """bool, broadcast to [H, W, A, B, n, n]: a pixel with itself, in one and the same image."""
        return self.on_itself(device)[..., None] & torch.eye(n, dtype=torch.bool, device=device)

    def cross(self, x1: Tensor, x2: Tensor) -> Tensor:
        """S of the input: images [C, H, W, n] -> [H, W, A, B, n1, n2]."""
        products = (self.own(a)[..., None] * self.partner(b)[..., None, :] for a, b in zip(x1, x2, strict=True))
        return sum(products) / len(x1)  # type: ignore[return-value]

    def cross_self(self, x: Tensor) -> Tensor:
        """S of each image with itself: [C, H, W, n] -> [H, W, A, B, n]."""
        return sum(self.own(a) * self.partner(a) for a in x) / len(x)  # type: ignore[return-value]

    def conv(self, s: Tensor, bias: float) -> Tensor:
        """A 3x3 convolution with zero padding: the divisor is 9 also at the border."""
        out = _Box.apply(s, self) * (WEIGHT_VARIANCE / 9) + bias
        mask = self.mask(s)
        return out if mask is None else out * mask.reshape(*mask.shape, *(1 for _ in range(s.dim() - 4)))

    def trace(self, s: Tensor) -> Tensor:
        """The mean over pixels that are their own partners: what a flatten reads."""
        return self.centre(s).mean((0, 1))


@dataclass(frozen=True)
class Band(Layout):
    """Partners within `up` rows and `along` columns, by their offset."""

    up: int
    along: int

    @property
    def partners(self) -> tuple[int, int]:
        return 2 * self.up + 1, 2 * self.along + 1

    def partner(self, maps: Tensor) -> Tensor:
        rows, columns = self.partners
        padded = F.pad(maps, (0, 0, self.along, self.along, self.up, self.up))
        return padded.unfold(0, rows, 1).unfold(1, columns, 1).movedim(2, -1)

    def box(self, s: Tensor) -> Tensor:
        return _sum_of_three(_sum_of_three(s, (0,)), (1,))

    def pool(self, s: Tensor, after: Band) -> Tensor:
        s = _pool_axis(s, 0, self.up, after.height, after.up)
        s = _pool_axis(s, 1, self.along, after.width, after.along)
        mask = after.mask(s)  # with an odd size the partner may be in a row that pooling drops
        return s * mask.reshape(*mask.shape, *(1 for _ in range(s.dim() - 4)))

    def centre(self, s: Tensor) -> Tensor:
        return s[:, :, self.up, self.along]

    def mask(self, like: Tensor) -> Tensor:
        return self.partner(like.new_ones(self.height, self.width, 1))[..., 0]

    def on_itself(self, device: torch.device) -> Tensor:
        rows, columns = (torch.arange(n, device=device) for n in self.partners)
        return ((rows == self.up)[:, None] & (columns == self.along))[None, None, :, :, None]


@dataclass(frozen=True)
class Full(Layout):
    """Every pixel of the other image."""

    @property
    def partners(self) -> tuple[int, int]:
        return self.height, self.width

    def partner(self, maps: Tensor) -> Tensor:
        return maps[None, None]

    def box(self, s: Tensor) -> Tensor:
        return _sum_of_three(_sum_of_three(s, (0, 2)), (1, 3))

    def pool(self, s: Tensor, after: Full) -> Tensor:
        height, width = after.height, after.width
        s = s[: 2 * height, : 2 * width, : 2 * height, : 2 * width]
        for dim, size in zip(range(4), (height, width, height, width), strict=True):
            s = s.unflatten(dim, (size, 2)).mean(dim + 1)
        return s

    def centre(self, s: Tensor) -> Tensor:
        return s.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).movedim((-2, -1), (0, 1))

    def mask(self, like: Tensor) -> None:
        return None

    def on_itself(self, device: torch.device) -> Tensor:
        rows, columns = (torch.eye(n, dtype=torch.bool, device=device) for n in (self.height, self.width))
        return (rows[:, None, :, None] & columns[None, :, None, :])[..., None]


def _sum_of_three(s: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum of an entry and its neighbours on both sides; several dimensions move together; 0 beyond the ends."""
    out = s.clone()
    later = tuple(slice(1, None) if dim in dims else slice(None) for dim in range(4))
    earlier = tuple(slice(None, -1) if dim in dims else slice(None) for dim in range(4))
    out[later] += s[earlier]
    out[earlier] += s[later]
    return out


def _pool_axis(s: Tensor, axis: int, radius: int, size: int, reach: int) -> Tensor:
    """One axis of pooling. With pixels 2P + a and partners 2P' + b, offsets are 2(P' - P) + b - a."""
    more = 2 * reach + 1 - radius
    s = F.pad(s, (*((0, 0) * (s.dim() - 3 - axis)), more, more))
    even, odd = (s[(slice(None),) * axis + (slice(a, 2 * size, 2),)] for a in (0, 1))

    def offsets(part: Tensor, first: int) -> Tensor:
        return part[(slice(None),) * (axis + 2) + (slice(first, first + 4 * reach + 1, 2),)]

    return (offsets(even, 1) + offsets(odd, 1) + offsets(even, 2) + offsets(odd, 0)) / 4


class _Box(torch.autograd.Function):
    """`Layout.box`, which is its own transpose: nothing is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.box(s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.box(grad), None
