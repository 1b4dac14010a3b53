"""Chains of layers together with their tangent, in torch's operations.

For networks that `linearised` has no kernels for: a compiler joins what lies between convolutions, and autograd takes
the reverse pass. As there, maps and their tangents lie behind one another as one batch. A layer is known by its type,
or brings a method `tangent(x, dx)` that gives its output and the change of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.engine.program import channels_last, layers_ran

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Any, Tensor, Tensor], Pair]


@dataclass(frozen=True)
class Tangents:
    """A chain of layers, by name."""

    layers: Sequence[tuple[str, nn.Module]]

    def __call__(self, params: Mapping[str, Tensor], directions: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """The logits, and behind them their change along the directions of all parameters: [2N, K].

        Differentiable in parameters and images, whose tangent is zero.
        """
        layers_ran(in_kernels=False)
        pair, moved = channels_last(images), False
        for name, layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                names = [key for key in (f"{name}.weight", f"{name}.bias") if key in params]
                weights = [params[key] for key in names], [directions[key] for key in names]
                pair = (_further if moved else _first)(_affine(layer), pair, *weights)
                moved = True
            elif not moved or isinstance(layer, LINEAR):
                pair = layer(pair)
            else:
                x, dx = pair.chunk(2)
                if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                    of, change = ((v[f"{name}.weight"], v[f"{name}.bias"]) for v in (params, directions))
                    pair = torch.cat(_norm(layer, x, dx, of, change))
                else:
                    pair = torch.cat(_rule(layer)(layer, x, dx))
        return pair


def known(layer: nn.Module) -> bool:
    """Whether a chain may have this layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return layer.bias is not None
    if isinstance(layer, nn.MaxPool2d):
        square = all(isinstance(v, int) for v in (layer.kernel_size, layer.stride, layer.padding))
        return square and layer.dilation == 1 and not layer.ceil_mode
    return isinstance(layer, (nn.Linear, *LINEAR)) or _rule(layer) is not None


def _affine(layer: nn.Conv2d | nn.Linear) -> Callable[..., Tensor]:
    if isinstance(layer, nn.Linear):
        return F.linear
    return partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def _first(affine: Callable[..., Tensor], x: Tensor, weights: list[Tensor], directions: list[Tensor]) -> Tensor:
    # Values and change are channels of one layer.
    both = (torch.cat(pair) for pair in zip(weights, directions, strict=True))
    return torch.cat(affine(x, *both).chunk(2, dim=1))


def _further(affine: Callable[..., Tensor], pair: Tensor, weights: list[Tensor], directions: list[Tensor]) -> Tensor:
    x, dx = affine(pair, weights[0]).chunk(2)
    for bias in weights[1:]:
        x = x + bias.view(-1, *(1 for _ in x.shape[2:]))
    return torch.cat([x, dx + affine(pair[: len(x)], *directions)])


def _rule(layer: nn.Module) -> Any:
    return RULES.get(type(layer)) or getattr(type(layer), "tangent", None)


def _norm(layer: nn.GroupNorm | nn.LayerNorm, x: Tensor, dx: Tensor, of: Pair, change: Pair) -> Pair:
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else 1
    y, t = (v.unflatten(1, (groups, -1)) for v in (x, dx))
    dims = tuple(range(2, y.ndim))
    y, t = (v - v.mean(dims, keepdim=True) for v in (y, t))
    scale = ((y * y).mean(dims, keepdim=True) + layer.eps).rsqrt()
    y = y * scale
    t = scale * (t - y * (y * t).mean(dims, keepdim=True))
    y, t = y.flatten(1, 2), t.flatten(1, 2)
    if isinstance(layer, nn.GroupNorm):
        of, change = ((v[:, None, None], w[:, None, None]) for v, w in (of, change))
    return y * of[0] + of[1], t * of[0] + y * change[0] + change[1]


def _relu(layer: nn.ReLU, x: Tensor, dx: Tensor) -> Pair:
    return x.relu(), dx.where(x > 0, 0.0)


def _leaky(layer: nn.LeakyReLU, x: Tensor, dx: Tensor) -> Pair:
    return F.leaky_relu(x, layer.negative_slope), dx.where(x > 0, dx * layer.negative_slope)


def _sigmoid(layer: nn.Sigmoid, x: Tensor, dx: Tensor) -> Pair:
    y = x.sigmoid()
    return y, y * (1 - y) * dx


def _swish(layer: nn.SiLU, x: Tensor, dx: Tensor) -> Pair:
    y = x.sigmoid()
    return x * y, y * (1 + x * (1 - y)) * dx


def _max_pool(layer: nn.MaxPool2d, x: Tensor, dx: Tensor) -> Pair:
    """The first of the largest, as torch chooses. On a GPU of shifted maps, because torch's gradient of overlapping
    windows adds in no fixed order there, and because a compiler joins them."""
    if not x.is_cuda:
        y, chosen = F.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding, return_indices=True)
        return y, dx.flatten(2).gather(2, chosen.flatten(2)).view_as(y)
    return _of_shifted(layer, x, dx)


def _of_shifted(layer: nn.MaxPool2d, x: Tensor, dx: Tensor) -> Pair:
    side, step, pad = cast(tuple[int, int, int], (layer.kernel_size, layer.stride, layer.padding))
    rows, columns = ((length + 2 * pad - side) // step + 1 for length in x.shape[2:])
    x, dx = F.pad(x, (pad,) * 4, value=-torch.inf), F.pad(dx, (pad,) * 4)

    def shifted(map_: Tensor, i: int, j: int) -> Tensor:
        return map_[:, :, i : i + step * (rows - 1) + 1 : step, j : j + step * (columns - 1) + 1 : step]

    y, dy = shifted(x, 0, 0), shifted(dx, 0, 0)
    for place in range(1, side * side):
        other = shifted(x, *divmod(place, side))
        larger = other > y
        y, dy = other.where(larger, y), shifted(dx, *divmod(place, side)).where(larger, dy)
    return y, dy


LINEAR = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)

RULES: dict[type[nn.Module], Rule] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _swish,
    nn.MaxPool2d: _max_pool,
}
