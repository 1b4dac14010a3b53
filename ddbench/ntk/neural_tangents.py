"""The kernels of this package through neural-tangents (Novak et al., ICLR 2020), which they are checked against.

Import this module only where its backend was asked for. The library comes with the extra `ntk`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddbench.errors import ConfigError
from ddbench.ntk.architectures import BIAS_VARIANCE, WEIGHT_VARIANCE, Architecture
from ddbench.ntk.blocks import Blocks

try:
    import jax
    import numpy as np
    from jax.experimental import enable_x64
    from neural_tangents import stax
except Exception as error:  # JAX of another version fails in many ways while it is imported
    raise ConfigError(
        f"the kernel backend neural-tangents cannot be used ({type(error).__name__}: {error}). "
        "Install it with pip install 'ddbench[ntk]', or leave out --set kernel_backend=neural-tangents."
    ) from error


class NeuralTangentsBlocks(Blocks):
    """Chunks of kernels by neural-tangents, on JAX's device."""

    def __init__(self, network: Architecture, shape: Sequence[int], dtype: torch.dtype) -> None:
        pixels = 1 if network.flat else shape[1] * shape[2]
        # All pairs of pixels, unless a flatten follows without pooling; four tensors while they are differentiated.
        self.bytes_per_pair = 8 * pixels * (pixels if network.pools else 1) * torch.finfo(dtype).bits // 8
        self.held_per_pair = 0
        self._dtype = dtype
        self._kernel = kernel_function(network)
        self._value = jax.jit(self._ntk, static_argnames="same")
        self._slope = jax.jit(self._pull, static_argnames="same")

    def value(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        with enable_x64(self._dtype == torch.float64):
            found = self._value(self._there(x1), self._there(x2), same=same)
            return _back(found, x1.device)

    def slope(self, x1: Tensor, x2: Tensor, weights: Tensor, same: bool) -> Tensor:
        with enable_x64(self._dtype == torch.float64):
            found = self._slope(self._there(x1), self._there(x2), self._there(weights), same=same)
            return _back(found, x1.device).permute(0, 3, 1, 2).to(x1.dtype)

    def _ntk(self, x1: Any, x2: Any, *, same: bool) -> Any:
        return self._kernel(x1, None if same else x2, "ntk")

    def _pull(self, x1: Any, x2: Any, weights: Any, *, same: bool) -> Any:
        _, pull = jax.vjp(partial(self._ntk, x2=x2, same=same), x1)
        (grad,) = pull(weights)
        # Of one chunk with itself, and symmetric weights, both sides give the same gradient.
        return grad / 2 if same else grad

    def _there(self, x: Tensor) -> Any:
        value = x.detach().to("cpu", self._dtype)
        return jax.numpy.asarray((value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy())


def kernel_function(network: Architecture) -> Callable[..., Any]:
    """The library's kernel function of a network, for images [n, H, W, C]."""
    made = []
    for layer in network.layers:
        match layer:
            case "conv":
                made.append(stax.Conv(1, (3, 3), padding="SAME", W_std=WEIGHT_VARIANCE**0.5, b_std=BIAS_VARIANCE**0.5))
            case "relu":
                made.append(stax.Relu())
            case "pool":
                made.append(stax.AvgPool((2, 2), strides=(2, 2)))
            case "flatten":
                made.append(stax.Flatten())
            case "gap":
                made.append(stax.GlobalAvgPool())
            case "dense":
                made.append(stax.Dense(1, W_std=WEIGHT_VARIANCE**0.5, b_std=BIAS_VARIANCE**0.5))
    _, _, function = stax.serial(*made)
    return function


def _back(found: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(found)).to(device)
