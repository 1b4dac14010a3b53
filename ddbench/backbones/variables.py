"""What a network learns and keeps: its parameters and buffers, apart from its architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = tuple[int, int, int]


@dataclass(eq=False)
class Variables:
    """The tensors of a network, or of S networks with a leading S on every tensor.

    torch.func and torch.utils._pytree see through it.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def stack(networks: Sequence[Variables]) -> Variables:
        """S networks as one, in the order given."""
        return Variables(
            {name: torch.stack([v.params[name] for v in networks]) for name in networks[0].params},
            {name: torch.stack([v.buffers[name] for v in networks]) for name in networks[0].buffers},
        )

    @property
    def numel(self) -> int:
        """Numbers in the parameters, those of all copies together."""
        return sum(tensor.numel() for tensor in self.params.values())

    def copy(self, k: int) -> Variables:
        """The k-th of S networks. Its tensors are views."""
        return self._map(lambda tensor: tensor[k])

    def index_select(self, index: Tensor) -> Variables:
        """Those of S networks that an index tensor names: [B] gives B networks, [] one without a leading dimension.

        As torch.index_select does on the first dimension: `index` holds whole numbers from 0 to S - 1, on the device of
        the networks. It is not read on the host, so that nothing waits and a CUDA graph can hold it. The tensors are
        copies with a gradient.
        """
        if index.ndim == 0:
            return self._map(lambda tensor: tensor.index_select(0, index.reshape(1)).squeeze(0))
        return self._map(lambda tensor: tensor.index_select(0, index))

    def index_copy_(self, index: Tensor, networks: Variables) -> Variables:
        """Put networks in the places that an index tensor names among these S, in place, and return these.

        The counterpart of `index_select`, of the same shapes, as torch.Tensor.index_copy_ on the first dimension. Only
        the numbers are copied, without their history. Which of two networks stays in a place that is named twice is
        not defined.
        """
        with torch.no_grad():
            for ours, theirs in ((self.params, networks.params), (self.buffers, networks.buffers)):
                for name, tensor in ours.items():
                    value = theirs[name].unsqueeze(0) if index.ndim == 0 else theirs[name]
                    tensor.index_copy_(0, index.reshape(-1), value)
        return self

    def clone(self) -> Variables:
        """A copy of the numbers in memory of its own."""
        return self._map(torch.clone)

    def detach(self) -> Variables:
        """The numbers without their history. The tensors share memory."""
        return self._map(torch.detach)

    def to(self, target: torch.device | torch.dtype | str) -> Variables:
        """On a device, or with every floating-point tensor in a dtype."""
        if isinstance(target, torch.dtype):
            return self._map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return self._map(lambda tensor: tensor.to(target))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Variables:
        return Variables(
            {name: change(tensor) for name, tensor in self.params.items()},
            {name: change(tensor) for name, tensor in self.buffers.items()},
        )
