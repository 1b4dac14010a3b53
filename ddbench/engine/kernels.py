"""Infinite-width kernels of networks: NNGP and NTK, exact, differentiable in the images, chunk by chunk.

Jacot et al., NeurIPS 2018 (the NTK); Arora et al., NeurIPS 2019 and Novak et al., ICLR 2019 (convolutional networks);
the architectures are those of Nguyen et al., NeurIPS 2021 (arXiv 2107.13034). NTK parameterisation, ReLU.

A network with pooling needs the covariance S of every pixel p of one image with every pixel p' of the other. But
convolution and ReLU keep the offset p' - p, and a network that ends in a flatten reads offset 0 alone. Each 2x2 pooling
on the way back widens the offsets that count from R to 2R + 1, so that a band of offsets is all there is to compute.

Shapes: images [n, C, H, W]. Inside, covariances are [H, W, A, B, n1, n2]: a pixel of the first image, then its partner
in the second (as an offset in a band, else as a pixel), then the pair; maps of one image are [H, W, n].
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import pi
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ddbench.engine.program import Fuse, Program, kernels
from ddbench.errors import ConfigError, closest

WEIGHT_VARIANCE = 2.0
BIAS_VARIANCE = 0.01

Layer = Literal["conv", "relu", "pool", "flatten", "gap", "dense"]

# Two directions count as one below this multiple of the rounding: what is left of the sine of their angle is noise,
# and the NTK's derivative, which divides by it, does not exist there. Larger multiples lose what nearly equal patches
# contribute: on FashionMNIST the gradient is wrong by 6e-6 of its length with 1, and by 2e-4 with 8.
POLE = 1.0

# Of images that our own kernels take.
MOST_CHANNELS = 4

# For one chunk and its gradient: larger ones leave the caches of a CPU and are no faster. On a GPU each program keeps
# its memory: a kernel with and without a gradient an eighth each, and a regression, which holds all first images.
CPU_MEMORY = 1 << 28
GPU_SHARE = 1 / 8
GPU_SHARE_OF_REGRESSION = 3 / 8

# Pairs of images that our GPU kernels are cut into where it matters, on the first and on the second side.
HIGH, WIDE = 16, 64


@dataclass(frozen=True)
class Architecture:
    """A network without its widths: layers in order, the read-out included."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def pools(self) -> int:
        """How often the resolution is halved."""
        return self.layers.count("pool")

    @property
    def banded(self) -> bool:
        """Whether a band of offsets is enough: no layer averages over all pixels."""
        return "gap" not in self.layers

    @property
    def flat(self) -> bool:
        """Whether it sees an image as one vector."""
        return self.layers[0] == "flatten"


EXAMPLES = ("fc1", "fc3", "convvec3", "convvec8", "convnet3", "convnet", "myrtle5", "myrtle7", "myrtle10")
_BLOCK: tuple[Layer, ...] = ("conv", "relu")
_MYRTLE = {"myrtle5": (1, 1, 1), "myrtle7": (1, 2, 2), "myrtle10": (2, 3, 3)}


def architecture(name: str) -> Architecture:
    """The network of a name: fc<depth>, convvec<depth>, convnet3, convnet or myrtle5, 7, 10.

    Raises: ConfigError for any other name.
    """
    plain = name.lower()
    if found := re.fullmatch(r"(fc|convvec)([1-9]\d?)", plain):
        depth = int(found[2])
        if found[1] == "fc":
            return Architecture(plain, ("flatten", *(("dense", "relu") * depth), "dense"))
        return Architecture(plain, (*(_BLOCK * depth), "flatten", "dense"))
    if plain in ("convnet", "convnet3"):
        first = _BLOCK if plain == "convnet" else ()
        return Architecture(plain, (*first, *((*_BLOCK, "pool") * 3), "flatten", "dense"))
    if plain in _MYRTLE:
        one, two, three = _MYRTLE[plain]
        return Architecture(
            plain,
            (*(_BLOCK * (1 + one)), "pool", *(_BLOCK * two), "pool", *(_BLOCK * three), "gap", "dense"),
        )
    raise ConfigError(
        f"there is no kernel {name!r}. {closest(plain, EXAMPLES)}There are fc<depth>, convvec<depth>, convnet3, "
        "convnet, myrtle5, myrtle7 and myrtle10; depths up to 99."
    )


class Kernel(NamedTuple):
    """Both kernels of pairs of images. Shapes: [n1, n2]."""

    nngp: Tensor
    ntk: Tensor


def kernel(
    network: Architecture, x1: Tensor, x2: Tensor | None = None, *, same: bool = False, full: bool | None = None
) -> Kernel:
    """NNGP and NTK of all pairs, in one piece, in the dtype of the images, differentiable once.

    Without x2, or with `same`, image i of both sides is one image: coincident directions are then known, and not left
    to rounding. `full` computes every pair of pixels also where a band is enough; by default where that is less.
    Raises: ConfigError for images too small for the network.
    """
    same = same or x2 is None
    constant = x2 is not None and not x2.requires_grad
    x2 = x1 if x2 is None else x2
    if network.flat:
        return _flat(network, x1, x2, same)
    first, second = (x.permute(1, 2, 3, 0) for x in (x1, x2))
    maps = [variances(network, x, full=bool(full)) for x in ((first,) if x2 is x1 else (first, second))]
    fused = _one_pass(network, x1.shape[1], x1.device, x1.dtype) if constant and not full else None
    sizes = resolutions(network, *x1.shape[-2:])
    if full is None:
        full = fused is None and _all_is_less(network, sizes)
    layouts = _layouts(network, sizes, full)
    relus = iter(zip(maps[0], maps[-1], strict=True))
    if fused is not None:
        s, theta = _in_stages(fused, first, second, relus, _plan(network, layouts), same)
    else:
        s, theta = _layer_by_layer(network, first, second, relus, layouts, same)
    return _read_out(network, layouts[-1], s, theta)


def _read_out(network: Architecture, layout: Layout, s: Tensor, theta: Tensor) -> Kernel:
    """The flatten or the average over all pixels, and the dense layer."""
    read: Callable[[Tensor], Tensor] = layout.trace if network.banded else _mean_of_all
    nngp = WEIGHT_VARIANCE * read(s) + BIAS_VARIANCE
    return Kernel(nngp, WEIGHT_VARIANCE * read(theta) + nngp)


Maps = Iterator[tuple[Tensor, Tensor]]
"""The variances of both sides before each ReLU."""


def _layer_by_layer(
    network: Architecture, x1: Tensor, x2: Tensor, relus: Maps, layouts: Sequence[Layout], same: bool
) -> tuple[Tensor, Tensor]:
    """S and Theta after the last layer before the flatten or the average."""
    s = layouts[0].conv(layouts[0].cross(x1, x2), BIAS_VARIANCE)
    theta, level = s, 0  # nothing before the first layer has weights
    for layer in network.layers[1:-2]:
        here = layouts[level]
        if layer == "conv":
            s = here.conv(s, BIAS_VARIANCE)
            theta = here.conv(theta, 0.0) + s
        elif layer == "relu":
            q1, q2 = next(relus)
            coincide = here.coincide(q1.shape[-1], s.device) if same else None
            s, theta = _Relu.apply(s, theta, here.own(q1)[..., None], here.partner(q2)[..., None, :], coincide)
        else:
            level += 1
            s, theta = here.pool(s, layouts[level]), here.pool(theta, layouts[level])
    return s, theta


def _in_stages(
    fused: Any, x1: Tensor, x2: Tensor, relus: Maps, plan: Sequence[tuple[Any, Any]], same: bool
) -> tuple[Tensor, Tensor]:
    """The same by kernels that take convolution, ReLU and pooling in one pass; x2 is a constant."""
    s, theta = fused.first_stage(x1, x2, *next(relus), *plan[0], same)
    for here, after in plan[1:]:
        s, theta = fused.next_stage(s, theta, *next(relus), here, after, same)
    return s, theta


def _plan(network: Architecture, layouts: Sequence[Any]) -> list[tuple[Any, Any]]:
    """For each convolution the layout that it and its ReLU see, and the one after pooling where there is pooling."""
    plan, level = [], 0
    for number, layer in enumerate(network.layers):
        if layer == "conv":
            pooled = network.layers[number + 2] == "pool"
            plan.append((layouts[level], layouts[level + 1] if pooled else None))
            level += pooled
    return plan


def _one_pass(network: Architecture, channels: int, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module of our own GPU kernels, where it can be used."""
    fits = network.banded and not network.flat and dtype == torch.float32 and channels <= MOST_CHANNELS
    if device.type != "cuda" or not fits or kernels() is None:
        return None
    from ddbench.engine import kernels_fused

    return kernels_fused


def _mean_of_all(s: Tensor) -> Tensor:
    return s.mean((0, 1, 2, 3))


def _flat(network: Architecture, x1: Tensor, x2: Tensor, same: bool) -> Kernel:
    # The product in float64: TF32 and autocast leave that alone, and coincident images stay coincident.
    a, b = x1.flatten(1).double(), x2.flatten(1).double()
    s = (a @ b.T / a.shape[1]).to(x1.dtype)
    q1, q2 = ((torch.linalg.vector_norm(x, dim=1).square() / x.shape[1]).to(x1.dtype) for x in (a, b))
    theta = torch.zeros_like(s)
    coincide = torch.eye(len(x1), dtype=torch.bool, device=s.device) if same else None
    for layer in network.layers[1:]:
        if layer == "dense":
            s = WEIGHT_VARIANCE * s + BIAS_VARIANCE
            theta = WEIGHT_VARIANCE * theta + s
            q1, q2 = (WEIGHT_VARIANCE * q + BIAS_VARIANCE for q in (q1, q2))
        else:
            s, theta = _Relu.apply(s, theta, q1[:, None], q2, coincide)
            q1, q2 = q1 / 2, q2 / 2
    return Kernel(s, theta)


def variances(network: Architecture, x: Tensor, *, full: bool = False) -> list[Tensor]:
    """The maps [H, W, n] of S[p, p] before each ReLU, of images [C, H, W, n] with themselves.

    A pooled variance needs the covariance of neighbours, so that a band is carried here too: a narrower one, because
    nothing after the last ReLU counts.
    """
    last = len(network.layers) - network.layers[::-1].index("relu")
    front = replace(network, layers=network.layers[:last])
    levels = _layouts(front, resolutions(front, x.shape[1], x.shape[2]), full)
    s = levels[0].cross_self(x)
    maps, level = [], 0
    for layer in front.layers:
        here = levels[level]
        match layer:
            case "conv":
                s = here.conv(s, BIAS_VARIANCE)
            case "relu":
                q = here.centre(s)
                maps.append(q)
                s, _ = _Relu.apply(s, None, here.own(q), here.partner(q), here.on_itself(s.device))
            case _:
                s = here.pool(s, levels[level + 1])
                level += 1
    return maps


def resolutions(network: Architecture, height: int, width: int) -> list[tuple[int, int]]:
    """Height and width before the first pooling, and after each. Raises: ConfigError where nothing would be left."""
    sizes = [(height >> k, width >> k) for k in range(network.pools + 1)]
    if min(sizes[-1]) < 1:
        raise ConfigError(
            f"kernel {network.name} halves images {network.pools} times, and {height}x{width} leaves nothing. "
            f"Images of {2**network.pools}x{2**network.pools} are the smallest."
        )
    return sizes


def _layouts(network: Architecture, sizes: list[tuple[int, int]], full: bool) -> list[Layout]:
    if full or not network.banded:
        return [Full(*size) for size in sizes]
    radius, levels = 0, []
    for height, width in reversed(sizes):
        levels.append(Band(height, width, min(radius, height - 1), min(radius, width - 1)))
        radius = 2 * radius + 1
    return list(reversed(levels))


def _all_is_less(network: Architecture, sizes: list[tuple[int, int]]) -> bool:
    """Whether the band of a small image, with what lies beyond its edges, is larger than all pairs of its pixels."""
    return _layouts(network, sizes, False)[0].entries > Full(*sizes[0]).entries


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


class _Relu(torch.autograd.Function):
    """ReLU on S and Theta, given the variances on both sides (Cho and Saul, NeurIPS 2009), with explicit derivatives.

    With r the square root of q1 q2 - S^2 and t = atan2(r, S):
    S' = (r + (pi - t) S) / 2 pi, Theta' = Theta (pi - t) / 2 pi.
    """

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, theta: Tensor | None, q1: Tensor, q2: Tensor, coincide: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(s, theta, q1, q2, coincide)
        r = _sine(s, q1, q2, coincide)
        slope = _slope(r, s)
        return torch.addcmul(r / (2 * pi), slope, s), None if theta is None else slope * theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_s: Tensor, to_theta: Tensor | None) -> tuple[Tensor | None, ...]:
        s, theta, q1, q2, coincide = ctx.saved_tensors
        r = _sine(s, q1, q2, coincide)
        slope = _slope(r, s)
        grad_s = slope * to_s
        by_q = r * to_s  # both variances' derivatives are this over 4 pi q
        grad_theta = None
        if theta is not None and to_theta is not None:
            grad_theta = slope * to_theta
            pull = torch.where(r > 0, theta * to_theta / r, 0)
            grad_s = torch.add(grad_s, pull, alpha=1 / (2 * pi))
            by_q = torch.addcmul(by_q, pull, s, value=-1)
        grads_q = [
            by_q.sum_to_size(q.shape) * torch.where(q > 0, 1 / (4 * pi * q), 0) if wanted else None
            for q, wanted in zip((q1, q2), ctx.needs_input_grad[2:4], strict=True)
        ]
        return grad_s, grad_theta, *grads_q, None


def _sine(s: Tensor, q1: Tensor, q2: Tensor, coincide: Tensor | None) -> Tensor:
    """sqrt(q1 q2 - S^2), exactly 0 where that is rounding."""
    both = q1 * q2
    square = torch.addcmul(both, s, s, value=-1)
    r = torch.where(square > POLE * torch.finfo(s.dtype).eps * both, square, 0).sqrt()
    return r if coincide is None else r.masked_fill(coincide, 0)


def _slope(r: Tensor, s: Tensor) -> Tensor:
    return torch.atan2(r, s).mul_(-1 / (2 * pi)).add_(0.5)


class Blocks(ABC):
    """What computes the NTK of one chunk of pairs. x1 is [n1, C, H, W], x2 [n2, C, H, W]."""

    # Bytes that a pair of images takes while its gradient is computed, and of these what is held from its value on;
    # second images are filled up to whole lanes.
    bytes_per_pair: int
    held_per_pair: int
    lanes: int = 1

    @abstractmethod
    def value(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        """[n1, n2], without a graph. `same`: x1 is x2."""

    @abstractmethod
    def slope(self, x1: Tensor, x2: Tensor, weights: Tensor, same: bool) -> Tensor:
        """The gradient of the sum of weights [n1, n2] times kernel, in x1 as first argument alone: [n1, C, H, W]."""

    def row(self, x1: Tensor, columns: Sequence[tuple[Tensor, Tensor, bool]]) -> Tensor:
        """The sum of slopes over second chunks, each with its weights and whether it is x1."""
        total = torch.zeros_like(x1)
        for x2, weights, same in columns:
            total += self.slope(x1, x2, weights, same)
        return total

    def regression(
        self, rows: Sequence[Tensor], columns: Sequence[tuple[Tensor, Tensor, Tensor]], weights: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Predictions by `weights` [n1, C] for second chunks, each with its targets [n2, C] and the share [n2, 1] of
        each of its images in the error; and the gradients, in the first images and in the weights, of half the sum of
        squared errors by their shares.
        """
        predictions, of_images, of_weights = [], torch.zeros_like(torch.cat(list(rows))), torch.zeros_like(weights)
        for x2, targets, share in columns:
            value = torch.cat([self.value(x1, x2, False) for x1 in rows])
            predicted, pull, part = _pull_back(value, weights, targets, share)
            predictions.append(predicted)
            of_weights += part
            slopes = [self.slope(x1, x2, some, False) for x1, some in zip(rows, _like(rows, pull), strict=True)]
            of_images += torch.cat(slopes)
        return predictions, of_images, of_weights


def _pull_back(value: Tensor, weights: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions [n2, C] by a kernel's values [n1, n2], and the gradients of the error in values and weights."""
    exact = value.to(weights.dtype)
    predicted = exact.T @ weights
    errors = (predicted - targets) * share
    return predicted, (weights @ errors.T).to(value.dtype), exact @ errors


def _like(rows: Sequence[Tensor], whole: Tensor) -> Sequence[Tensor]:
    return whole.split([len(x1) for x1 in rows])


class TorchBlocks(Blocks):
    """The kernels of this module: one program for each shape of chunk, forward and backward.

    Our own GPU kernels take variances as they take images. They are computed once for a chunk, and their gradient is
    taken once for a row of chunks.
    """

    def __init__(
        self, network: Architecture, shape: Sequence[int], device: torch.device, dtype: torch.dtype, calls: int
    ) -> None:
        self._network, self._device, self._calls, self._dtype = network, device, calls, dtype
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._fused = _one_pass(network, shape[0], device, dtype)
        self.lanes = 1 if self._fused is None else int(self._fused.LANES.value)
        self._variances = WeakTensorKeyDictionary()  # of a call's chunks, which are new tensors every time
        held, worked = _numbers_per_pair(network, shape, self._fused is not None)
        self.held_per_pair = held * torch.finfo(dtype).bits // 8
        self.bytes_per_pair = self.held_per_pair + worked * torch.finfo(dtype).bits // 8

    def value(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        if self._fused is None:
            return self._run("value", same, x1, x2)
        return self._run("value", same, x1, x2, self._maps(x1), self._maps(x2))

    def slope(self, x1: Tensor, x2: Tensor, weights: Tensor, same: bool) -> Tensor:
        if self._fused is None:
            return self._run("slope", same, x1, x2, weights)
        return self.row(x1, [(x2, weights, same)])

    def row(self, x1: Tensor, columns: Sequence[tuple[Tensor, Tensor, bool]]) -> Tensor:
        if self._fused is None:
            return super().row(x1, columns)
        own, totals = self._maps(x1), None
        for x2, weights, same in columns:
            grads = self._run("slope", same, x1, x2, own, self._maps(x2), weights)
            totals = grads if totals is None else torch._foreach_add(totals, grads)
        assert totals is not None
        return totals[0] + self._run("maps' slope", False, x1, totals[1:])

    def regression(
        self, rows: Sequence[Tensor], columns: Sequence[tuple[Tensor, Tensor, Tensor]], weights: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        own = [] if self._fused is None else [self._maps(x1) for x1 in rows]
        predictions, totals = [], None
        for x2, targets, share in columns:
            maps = [] if self._fused is None else self._maps(x2)
            predicted, *sums = self._run("regression", False, list(rows), x2, own, maps, weights, targets, share)
            predictions.append(predicted)
            totals = sums if totals is None else torch._foreach_add(totals, sums)
        assert totals is not None
        of_weights, *grads = totals
        each = len(grads) // len(rows)  # of a row of chunks: in its images, then in each of their maps
        of_images = [
            grads[k * each] + self._run("maps' slope", False, x1, grads[k * each + 1 : (k + 1) * each])
            if each > 1
            else grads[k]
            for k, x1 in enumerate(rows)
        ]
        return predictions, torch.cat(of_images), of_weights

    def _maps(self, x: Tensor) -> list[Tensor]:
        if x not in self._variances:
            self._variances[x] = self._run("maps", False, x)
        return self._variances[x]

    @torch.no_grad()
    def _run(self, what: str, same: bool, *given: Any) -> Any:
        key = (what, same, *(len(x) for x in _pytree.tree_leaves(given)))
        if key not in self._programs:
            make = partial(self._make if self._fused is None else self._make_fused, what, same)
            self._programs[key] = Program(make, self._device, calls=self._calls, fused=self._fused is not None)
        return self._programs[key](*given)

    def _make(self, what: str, same: bool, fuse: Fuse[Any]) -> Callable[..., Any]:
        @fuse
        def ntk(x1: Tensor, x2: Tensor) -> Tensor:
            return kernel(self._network, x1.to(self._dtype), x2.detach().to(self._dtype), same=same).ntk

        def value(x1: Tensor, x2: Tensor) -> Tensor:
            with torch.no_grad():
                return ntk(x1, x2)

        def slope(x1: Tensor, x2: Tensor, weights: Tensor) -> Tensor:
            leaf = x1.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(ntk(leaf, x2), leaf, weights)
            return grad

        programs: dict[str, Callable[..., Any]] = {
            "value": value,
            "slope": slope,
            "regression": partial(_regression, lambda x1, x2, *_: ntk(x1, x2)),
        }
        return programs[what]

    def _make_fused(self, what: str, same: bool, fuse: Fuse[Any]) -> Callable[..., Any]:
        network, fused = self._network, self._fused
        assert fused is not None

        def maps(x: Tensor) -> list[Tensor]:
            # Cloned, because they are views of whole bands.
            return [q.clone() for q in variances(network, x.to(self._dtype).permute(1, 2, 3, 0))]

        def ntk(x1: Tensor, x2: Tensor, q1: list[Tensor], q2: list[Tensor]) -> Tensor:
            layouts = _layouts(network, resolutions(network, *x1.shape[-2:]), False)
            first, second = (x.to(self._dtype).permute(1, 2, 3, 0) for x in (x1, x2))
            s, theta = fused.stages(first, second, q1, q2, _plan(network, layouts), same)
            return _read_out(network, layouts[-1], s, theta).ntk

        def slope(x1: Tensor, x2: Tensor, q1: list[Tensor], q2: list[Tensor], weights: Tensor) -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in (x1, *q1)]
            with torch.enable_grad():
                return list(torch.autograd.grad(ntk(leaves[0], x2, leaves[1:], q2), leaves, weights))

        def slope_of_maps(x: Tensor, grads: list[Tensor]) -> Tensor:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(maps(leaf), leaf, grads)
            return grad

        programs: dict[str, Callable[..., Any]] = {
            "value": ntk,
            "slope": slope,
            "regression": partial(_regression, ntk),
            "maps": maps,
            "maps' slope": slope_of_maps,
        }
        return programs[what]


def _regression(
    ntk: Callable[..., Tensor],
    rows: Sequence[Tensor],
    x2: Tensor,
    own: Sequence[Sequence[Tensor]],
    maps: Sequence[Tensor],
    weights: Tensor,
    targets: Tensor,
    share: Tensor,
) -> list[Tensor]:
    """Of one second chunk: predictions, the gradient in the weights, those in each first chunk and its maps.

    The graphs of all first chunks are held, and go one by one.
    """
    given = [(x1, *more) for x1, more in zip(rows, own or [()] * len(rows), strict=True)]
    leaves = [[t.detach().requires_grad_() for t in some] for some in given]
    with torch.enable_grad():
        values = [ntk(some[0], x2, some[1:], maps) for some in leaves]
    predicted, pull, of_weights = _pull_back(torch.cat([v.detach() for v in values]), weights, targets, share)
    grads: list[Tensor] = []
    for some, part in zip(leaves, _like(rows, pull), strict=True):
        grads += torch.autograd.grad(values.pop(0), some, part)
    return [predicted, of_weights, *grads]


class Gram:
    """The NTK of many images with many, chunk by chunk on both sides, differentiable in the first images.

    A gradient takes the chunks one by one: their kernels are computed again, with a graph each, so that no more than
    one chunk's graph is ever in memory. A regression knows the gradient of its error as soon as it has predicted a
    chunk, and computes no kernel twice, where a chunk holds all first images. All chunks of a call have one shape.
    `memory` is in bytes, and `memory_of_regression` that of a regression's chunk.
    """

    def __init__(self, blocks: Blocks, memory: int, memory_of_regression: int | None = None) -> None:
        self._blocks = blocks
        self._pairs = max(1, memory // blocks.bytes_per_pair)
        self._memory_of_regression = memory if memory_of_regression is None else memory_of_regression

    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """[n1, n2]; without x2 the symmetric kernel of x1, differentiable as such. x2 is a constant."""
        return _Gram.apply(x1, x2, self)

    def value(self, x1: Tensor, x2: Tensor | None) -> Tensor:
        """The kernel, without a graph."""
        rows, columns = self._cut(x1, x2)
        out: list[list[Tensor]] = []
        for i, a in enumerate(rows):
            line: list[Tensor] = []
            for j, b in enumerate(columns):
                if x2 is None and j < i:
                    line.append(out[j][i].T)
                else:
                    line.append(self._blocks.value(a, b, x2 is None and i == j))
            out.append(line)
        whole = torch.cat([torch.cat(line, dim=1) for line in out])
        return whole[: len(x1), : len(x1 if x2 is None else x2)]

    def slope(self, x1: Tensor, x2: Tensor | None, weights: Tensor) -> Tensor:
        """The gradient in x1 of the sum of weights [n1, n2] times kernel."""
        if x2 is None:
            weights = weights + weights.T  # the kernel is symmetric: its derivative on one side tells that on both
        rows, columns = self._cut(x1, x2)
        high, wide = len(rows[0]), len(columns[0])
        weights = F.pad(weights, (0, wide * len(columns) - weights.shape[1], 0, high * len(rows) - len(weights)))
        grads = []
        for i, a in enumerate(rows):
            blocks = weights[i * high : (i + 1) * high].split(wide, dim=1)
            line = [(b, block, x2 is None and i == j) for j, (b, block) in enumerate(zip(columns, blocks, strict=True))]
            grads.append(self._blocks.row(a, line))
        return torch.cat(grads)[: len(x1)]

    def regression(self, x1: Tensor, x2: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel regression by `weights` on x1: half the mean squared error of its predictions for x2, and these.

        The error is differentiable in x1 and in the weights; x2 and the targets are constants.
        Shapes: weights [n1, C], targets [n2, C]; returns a scalar and [n2, C], in the dtype of the weights.
        """
        targets = targets.to(weights.dtype)
        rows = self._rows_at_once(x1, len(x2))
        if rows is None:
            predicted = self(x1, x2).T.to(weights.dtype) @ weights
            return (predicted - targets).square().mean() / 2, predicted.detach()
        return _Regression.apply(x1, weights, x2, targets, rows, self._blocks)

    def _rows_at_once(self, x1: Tensor, n2: int) -> tuple[int, int] | None:
        """Images of a first and of a second chunk so that the graphs of all first chunks fit; None where none do."""
        blocks, memory = self._blocks, self._memory_of_regression
        held, worked = blocks.held_per_pair, blocks.bytes_per_pair - blocks.held_per_pair
        n1 = len(x1)
        wide = min(_whole(memory // (n1 * held + min(n1, HIGH) * worked), WIDE), n2)
        if wide < min(blocks.lanes, n2):
            return None
        filled = math.ceil(wide / blocks.lanes) * blocks.lanes
        most = (memory - n1 * filled * held) // (filled * worked)
        return (min(_whole(most, HIGH), n1), wide) if most >= min(n1, HIGH) else None

    def _cut(self, x1: Tensor, x2: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        if x2 is None:
            side, lanes = math.isqrt(self._pairs), self._blocks.lanes
            # A side that fills no whole number of lanes takes as much memory as one that does.
            side = max(1, min(side, self._pairs // (math.ceil(side / lanes) * lanes)))
            rows = _pieces(x1, _whole(side, WIDE))
            return rows, rows
        # Chunks are four times as wide as high, as the blocks of our GPU kernels are.
        high = max(math.isqrt(self._pairs // 4), self._pairs // len(x2), 1)
        rows = _pieces(x1, _whole(high, HIGH))
        return rows, _pieces(x2, _whole(self._pairs // len(rows[0]), WIDE))


def _whole(n: int, block: int) -> int:
    """n, rounded down to whole blocks where it has one."""
    return n - n % block if n > block else n


def _pieces(x: Tensor, most: int) -> list[Tensor]:
    """Pieces of one length, at most that; the last is filled up with its last image."""
    count = math.ceil(len(x) / most)
    size = math.ceil(len(x) / count)
    missing = count * size - len(x)
    return list((torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x).split(size))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor | None, gram: Gram) -> Tensor:
        ctx.gram = gram
        ctx.save_for_backward(x1, x2)
        return gram.value(x1, x2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        x1, x2 = ctx.saved_tensors
        return ctx.gram.slope(x1, x2, weights), None, None


class _Regression(torch.autograd.Function):
    """The gradients come with the value: whatever the error is used for only scales them."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, weights: Tensor, x2: Tensor, targets: Tensor, sizes: tuple[int, int], blocks: Blocks
    ) -> tuple[Tensor, Tensor]:
        high, wide = sizes
        rows, columns = _pieces(x1.detach(), high), _pieces(x2, wide)
        padded = len(rows) * len(rows[0]) - len(x1), len(columns) * len(columns[0]) - len(x2)
        share = torch.full((len(x2), 1), 1 / targets.numel(), dtype=weights.dtype, device=weights.device)
        # What fills a chunk up has no weight on the one side, and no share in the error on the other.
        each = [F.pad(t, (0, 0, 0, padded[1])).split(len(columns[0])) for t in (targets, share)]
        by = F.pad(weights.detach(), (0, 0, 0, padded[0]))
        predictions, of_x1, of_weights = blocks.regression(rows, list(zip(columns, *each, strict=True)), by)
        predicted = torch.cat(predictions)[: len(x2)]
        ctx.save_for_backward(of_x1[: len(x1)], of_weights[: len(x1)])
        ctx.mark_non_differentiable(predicted)
        return (predicted - targets).square().mean() / 2, predicted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_x1, of_weights = ctx.saved_tensors
        return up.to(of_x1.dtype) * of_x1, up * of_weights, None, None, None, None


def gram(
    name: str,
    shape: Sequence[int],
    device: torch.device,
    *,
    backend: str = "torch",
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    calls: int = 1,
) -> Gram:
    """The chunked kernel of a network for images of shape (C, H, W).

    `calls` is how often a chunk will be computed. `memory` in bytes for one chunk and its gradient; by default 256 MiB
    on a CPU, and an eighth of a GPU, or three for a regression.
    Raises: ConfigError for an unknown network or backend, for images too small, and where the backend cannot be used.
    """
    network = architecture(name)
    if not network.flat:
        resolutions(network, *shape[1:])
    of_regression = memory
    if memory is None:
        memory = of_regression = CPU_MEMORY
        if device.type == "cuda":
            whole = torch.cuda.get_device_properties(device).total_memory
            memory, of_regression = int(GPU_SHARE * whole), int(GPU_SHARE_OF_REGRESSION * whole)
    match backend:
        case "torch":
            return Gram(TorchBlocks(network, shape, device, dtype, calls), memory, of_regression)
        case "neural-tangents":
            from ddbench.engine.kernels_nt import NeuralTangentsBlocks

            return Gram(NeuralTangentsBlocks(network, shape, dtype), memory, of_regression)
    raise ConfigError(f"there is no kernel backend {backend!r}; there are torch and neural-tangents.")


def _numbers_per_pair(network: Architecture, shape: Sequence[int], fused: bool) -> tuple[int, int]:
    """Numbers held for a pair until its gradient is computed: two for each ReLU; and what one layer works on."""
    if network.flat:
        return 2 * network.layers.count("relu"), 10
    sizes = resolutions(network, *shape[1:])
    layouts = _layouts(network, sizes, full=not fused and _all_is_less(network, sizes))
    if fused:
        # What stages write, and the gradients of one and of the one after it; images have one, covariances two.
        plan = _plan(network, layouts)
        kept = sum(2 * (after or here).entries for here, after in plan)
        grads = [here.entries * (1 if k == 0 else 2) for k, (here, _) in enumerate(plan)]
        return kept, max(map(sum, zip(grads, [*grads[1:], 0], strict=True)))
    level, kept = 0, 0
    for layer in network.layers:
        level += layer == "pool"
        kept += 2 * layouts[level].entries * (layer == "relu")
    return kept, 10 * layouts[0].entries
