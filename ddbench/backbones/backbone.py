"""What an architecture is to the suite: a way to draw parameters, and functions of parameters and images."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

from ddbench.backbones import initialisers
from ddbench.backbones.fusion import fuse, linearised, tangents
from ddbench.backbones.initialisers import Initialiser
from ddbench.backbones.stack import Chain
from ddbench.backbones.tangent_blocks import Linearised
from ddbench.backbones.tangent_layers import Tangents
from ddbench.backbones.variables import Shape, Variables
from ddbench.engine.capabilities import runs_triton
from ddbench.engine.program import gpu_kernels, layers_ran
from ddbench.errors import ConfigError, closest
from ddbench.rng import Rng

logger = logging.getLogger(__name__)


_pytree.register_pytree_node(
    Variables,
    lambda v: ([v.params, v.buffers], None),
    lambda children, _: Variables(*children),
    serialized_type_name="ddbench.Variables",
)


class Backbone:
    """An architecture for images of one shape and a number of classes.

    Parameters are values and the network is a function of them, so that students can be stacked, unrolled and
    differentiated through. Every function here works under torch.func's grad and jvp, and under its vmap where the
    network is `vmappable`.
    """

    name: str
    shape: Shape
    classes: int
    parameters: int
    """Numbers in the parameters of one network."""
    per_sample: bool
    """Whether each image is processed alone. Batch norm mixes a batch; batches then must not share a forward pass."""
    taps: tuple[str, ...]
    """The names that `features` knows."""
    stochastic: bool = False
    """Whether it draws random numbers when it trains, as dropout does; see `in_training`."""

    def __init__(self, name: str, chain: Chain, shape: Shape, classes: int, initialiser: Initialiser = "torch") -> None:
        # A running variance starts at one, a running mean at zero; a chain has no other buffers.
        buffers = {
            key: torch.full(tensor.shape, float(key.endswith("running_var")), device="cpu", dtype=torch.float32)
            for key, tensor in chain.named_buffers()
        }
        self._set(name, chain, shape, classes, chain.taps, buffers)
        self._draws = initialisers.draws_of(chain, initialiser)

    def _set(
        self,
        name: str,
        module: nn.Module,
        shape: Shape,
        classes: int,
        taps: Iterable[str],
        buffers: dict[str, Tensor],
    ) -> None:
        self.name, self.shape, self.classes, self.taps = name, shape, classes, tuple(taps)
        self.parameters = sum(parameter.numel() for parameter in module.parameters())
        self.per_sample = not any(isinstance(layer, _BatchNorm) for layer in module.modules())
        # One module a mode, so that nobody has to switch: compiled programs would notice, and begin again.
        self._modules = {True: module.train(), False: copy.deepcopy(module).eval()}
        self._shapes = {key: parameter.shape for key, parameter in module.named_parameters()}
        self._buffers = buffers

    def init(
        self,
        rng: Rng,
        device: torch.device | str = "cpu",
        copies: int | None = None,
        *,
        on_device: bool = False,
    ) -> Variables:
        """A fresh network, or S = `copies` of them; copy k equals `init(rng.fold("copy", k))`.

        Drawn on the CPU, so that all devices start from the same numbers; `on_device` draws on `device`, which is
        faster and gives other numbers.
        """
        rngs = [rng] if copies is None else [rng.fold("copy", k) for k in range(copies)]
        drawn = self._draw(rngs, torch.device(device), torch.device(device if on_device else "cpu"))
        return drawn.copy(0) if copies is None else drawn

    @property
    def fused(self) -> bool:
        """Whether its norms are GPU kernels of ddbench, which leave a compiler little to do."""
        return False

    @property
    def vmappable(self) -> bool:
        """Whether torch.func.vmap takes it: not where its forward pass asks what a number is."""
        return True

    @property
    def capturable(self) -> bool:
        """Whether its training pass can be a graph that is replayed without Python."""
        return True

    def in_training(self) -> Backbone:
        """The form for training that hands the buffers from each step to the next.

        A stochastic network draws there alone: its state of drawing is a buffer, and whoever leaves that as it is would
        have the same draws at every step.
        """
        return self

    @functools.cached_property
    def widest(self) -> int:
        """Numbers in the largest output of one of its layers for one image, and at least those of the image."""
        sizes = [math.prod(self.shape)]

        def measure(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel())

        handles = [layer.register_forward_hook(measure) for layer in self._modules[False].modules()]
        try:
            self._apply(self._nowhere, torch.empty(1, *self.shape, device="meta"), False, ("logits",))
        except Exception as error:
            # Somebody's own layer that needs numbers; what the ones before it make is known.
            logger.debug("%s cannot be measured: %s", self.name, error)
        finally:
            for handle in handles:
                handle.remove()
        return max(sizes)

    @functools.cached_property
    def tap_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs at `taps` for one image; none where they cannot be told without numbers."""
        try:
            outputs, _ = self._apply(self._nowhere, torch.empty(1, *self.shape, device="meta"), False, self.taps)
        except Exception as error:  # as above
            logger.debug("the taps of %s cannot be measured: %s", self.name, error)
            return {}
        return {tap: tuple(outputs[tap].shape[1:]) for tap in self.taps if isinstance(outputs[tap], Tensor)}

    def layers(self) -> Iterator[nn.Module]:
        """Its modules as torch has them, each once."""
        return self._modules[True].modules()

    @property
    def _nowhere(self) -> Variables:
        """Parameters and buffers that have shapes and no numbers."""
        params = {key: torch.empty(shape, device="meta") for key, shape in self._shapes.items()}
        return Variables(params, {key: tensor.to("meta") for key, tensor in self._buffers.items()})

    def first_order(self, device: torch.device) -> Backbone:
        """The form that is fastest on a device: the same function of the same variables, for gradients of first
        order only. Taps inside the network may be missing, and the gradient of a shift without effect is zero."""
        return self if not runs_triton(device) or gpu_kernels() is None else self._in_fused_layers

    @functools.cached_property
    def linearised(self) -> Linearised | None:
        """The network together with its tangent, written out; None where it is of another kind."""
        return linearised(self._modules[True], *self.shape[1:])

    def second_order(self, device: torch.device) -> Linearised | None:
        """`linearised` where GPU kernels of ddbench take all of it on a device, and nothing is left to compile."""
        linearised = self.linearised if runs_triton(device) else None
        return linearised if linearised is not None and linearised.in_kernels else None

    @functools.cached_property
    def tangents(self) -> Tangents | None:
        """The network together with its tangent in torch's operations; None where it is no chain of known layers."""
        return tangents(self._modules[True])

    @functools.cached_property
    def _in_fused_layers(self) -> Backbone:
        modules = {mode: fused for mode, module in self._modules.items() if (fused := fuse(module)) is not None}
        return Fused(self, modules) if modules else self

    def __call__(self, v: Variables, x: Tensor, train: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the buffers after this batch; `v` stays as it is.

        Shapes: x [B, C, H, W], logits [B, K].
        """
        outputs, buffers = self._apply(v, x, train, ("logits",))
        return outputs["logits"], buffers

    def embed(self, v: Variables, x: Tensor, train: bool = True) -> Tensor:
        """What the last linear layer reads.

        Shapes: x [B, C, H, W], returns [B, D].
        Raises: ConfigError for a network that does not end in a linear layer.
        """
        return self.features(v, x, ("embed",), train)["embed"]

    def features(
        self, v: Variables, x: Tensor, taps: Sequence[str] | None = None, train: bool = True
    ) -> dict[str, Tensor]:
        """The outputs inside the network at the named taps, or at all of them.

        Raises: ConfigError for a tap that this network does not have.
        """
        wanted = self.taps if taps is None else tuple(dict.fromkeys(taps))
        for tap in wanted:
            if tap not in self.taps:
                raise ConfigError(self._no_such_tap(tap))
        outputs, _ = self._apply(v, x, train, wanted)
        return {tap: outputs[tap] for tap in wanted}

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, shape={self.shape}, classes={self.classes}, parameters={self.parameters})"

    def _no_such_tap(self, tap: str) -> str:
        return f"{self.name} has no tap {tap!r}. {closest(tap, self.taps)}It has: {', '.join(self.taps)}."

    def _draw(self, rngs: Sequence[Rng], device: torch.device, source: torch.device) -> Variables:
        params = initialisers.draw(self._draws, self._shapes, rngs, source, device)
        buffers = {
            key: tensor.to(device).expand(len(rngs), *tensor.shape).clone() for key, tensor in self._buffers.items()
        }
        return Variables(params, buffers)

    def _apply(
        self, v: Variables, x: Tensor, train: bool, taps: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._call(v, train, (x, taps))

    def _call(self, v: Variables, train: bool, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
        layers_ran(in_kernels=self.fused)
        # Layers write their statistics in place, into copies that belong to this call.
        buffers = {key: tensor.clone() for key, tensor in v.buffers.items()} if train else v.buffers
        tensors = {**v.params, **buffers}
        output = functional_call(self._modules[train], tensors, arguments)
        # functional_call puts a buffer that the module replaced back into the dict.
        return output, {key: tensors[key] for key in buffers}


class Fused(Backbone):
    """A backbone in fused layers; see `Backbone.first_order`."""

    def __init__(self, backbone: Backbone, modules: dict[bool, nn.Module]) -> None:
        self.__dict__.update(vars(backbone))
        self._modules, self.taps, self._plain = modules, ("embed", "logits"), backbone

    @property
    def fused(self) -> bool:
        return True

    @property
    def widest(self) -> int:
        return self._plain.widest

    def first_order(self, device: torch.device) -> Backbone:
        return self
