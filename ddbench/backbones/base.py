"""What an architecture is to the suite: a way to draw parameters, and functions of parameters and images."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from ddbench.backbones import initialisers
from ddbench.backbones.fusion import change, fuse, tangents
from ddbench.backbones.initialisers import Initialiser
from ddbench.engine.change import Change
from ddbench.engine.program import kernels
from ddbench.engine.tangents import Tangents
from ddbench.errors import ConfigError, closest
from ddbench.rng import Rng

logger = logging.getLogger(__name__)

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

    def clone(self) -> Variables:
        """The same numbers in memory of their own."""
        return self._map(torch.clone)

    def detach(self) -> Variables:
        """The same numbers without their history. The tensors share memory."""
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


_pytree.register_pytree_node(
    Variables,
    lambda v: ([v.params, v.buffers], None),
    lambda children, _: Variables(*children),
    serialized_type_name="ddbench.Variables",
)


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


class Backbone:
    """An architecture for images of one shape and a number of classes.

    Parameters are values and the network is a function of them, so that students can be stacked, unrolled and
    differentiated through. Every function here works under torch.func's vmap, grad and jvp.
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

    def __init__(self, name: str, chain: Chain, shape: Shape, classes: int, initialiser: Initialiser = "torch") -> None:
        # A running variance starts at one, a running mean at zero; a chain has no other buffers.
        buffers = {
            key: torch.full(tensor.shape, float(key.endswith("running_var")), device="cpu", dtype=torch.float32)
            for key, tensor in chain.named_buffers()
        }
        self._set(name, chain, shape, classes, chain.taps, buffers)
        self._draws = initialisers.plan(chain, initialiser)

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
        """Whether its norms are kernels of ours, so that a compiler finds little left to do."""
        return False

    @functools.cached_property
    def widest(self) -> int:
        """Numbers in the largest output of one of its layers for one image, and at least those of the image."""
        sizes = [math.prod(self.shape)]
        params = {key: torch.empty(shape, device="meta") for key, shape in self._shapes.items()}
        nowhere = Variables(params, {key: tensor.to("meta") for key, tensor in self._buffers.items()})

        def measure(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel())

        handles = [layer.register_forward_hook(measure) for layer in self._modules[False].modules()]
        try:
            self._apply(nowhere, torch.empty(1, *self.shape, device="meta"), False, ("logits",))
        except Exception as error:
            # Somebody's own layer that needs numbers; what the ones before it make is known.
            logger.debug("%s cannot be measured: %s", self.name, error)
        finally:
            for handle in handles:
                handle.remove()
        return max(sizes)

    def first_order(self, device: torch.device) -> Backbone:
        """The same function of the same variables in the form that is fastest on a device, for gradients of first
        order only. Taps inside the network may be missing, and the gradient of a shift without effect is zero."""
        return self if device.type != "cuda" or kernels() is None else self._in_fused_layers

    @functools.cached_property
    def change(self) -> Change | None:
        """The network together with its tangent, written out; None where it is of another kind."""
        return change(self._modules[True], *self.shape[1:])

    def second_order(self, device: torch.device) -> Change | None:
        """`change` where kernels of ours take all of it on a device, and nothing is left to compile."""
        change = self.change if device.type == "cuda" else None
        return change if change is not None and change.in_kernels else None

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


class ForeignBackbone(Backbone):
    """A backbone around a module that knows nothing of ddbench; see `from_module`."""

    def __init__(
        self,
        name: str,
        factory: Callable[[], nn.Module],
        shape: Shape,
        classes: int,
        initialiser: Initialiser | None = None,
    ) -> None:
        self._factory = factory
        module = self._construct(Rng(0), name)
        buffers = {key: tensor.detach().clone() for key, tensor in module.named_buffers()}
        self._head, inner = _probe(module, name, shape, classes)
        ends = ("embed", "logits") if self._head is not None else ("logits",)
        taps = dict.fromkeys((*(tap for tap in inner if tap not in ends), *ends))
        self._own_draws = initialiser is None
        self._draws = initialisers.plan(module, initialiser) if initialiser is not None else {}
        self._set(name, module.to("meta"), shape, classes, taps, buffers)

    def first_order(self, device: torch.device) -> Backbone:
        # Nobody knows what its forward does between its layers.
        return self

    @functools.cached_property
    def change(self) -> Change | None:
        return None

    @functools.cached_property
    def tangents(self) -> Tangents | None:
        return None

    def _construct(self, rng: Rng, name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # torch.manual_seed would also seed the generators of all GPUs, which are not put back.
            torch.default_generator.manual_seed(rng.key)
            try:
                module = self._factory()
            except Exception as error:
                raise ConfigError(f"backbone {name!r} cannot be made: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"backbone {name!r} must make a torch.nn.Module, not a {type(module).__name__}.")
        return module.cpu()

    def _no_such_tap(self, tap: str) -> str:
        if tap == "embed":
            return (
                f"{self.name} has no embedding: its logits do not come straight from a torch.nn.Linear. "
                "Give it one as last layer, or use a method that needs no embedding."
            )
        return super()._no_such_tap(tap)

    def _draw(self, rngs: Sequence[Rng], device: torch.device, source: torch.device) -> Variables:
        if not self._own_draws:
            return super()._draw(rngs, device, source)
        modules = [self._construct(rng, self.name) for rng in rngs]
        return Variables.stack(
            [Variables(dict(module.named_parameters()), dict(module.named_buffers())).detach() for module in modules]
        ).to(device)

    def _apply(
        self, v: Variables, x: Tensor, train: bool, taps: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs: dict[str, Tensor] = {}
        handles = [self._watch(self._modules[train], tap, outputs) for tap in taps if tap != "logits"]
        try:
            outputs["logits"], buffers = self._call(v, train, (x,))
        finally:
            for handle in handles:
                handle.remove()
        for tap in taps:
            if tap not in outputs:
                raise ConfigError(f"{self.name} did not reach {tap!r} in {'training' if train else 'evaluation'} mode.")
        return outputs, buffers

    def _watch(self, module: nn.Module, tap: str, outputs: dict[str, Tensor]) -> RemovableHandle:
        if tap == "embed":
            assert self._head is not None
            return module.get_submodule(self._head).register_forward_pre_hook(
                lambda _, args: outputs.__setitem__(tap, args[0].clone())
            )
        # Cloned, because the next layer may work in place.
        return module.get_submodule(tap).register_forward_hook(
            lambda _, args, output: outputs.__setitem__(tap, output.clone())
        )


def from_module(
    name: str,
    factory: Callable[[], nn.Module],
    shape: Shape,
    classes: int,
    *,
    initialiser: Initialiser | None = None,
) -> Backbone:
    """A backbone from anybody's module. Taps are the names of its submodules, "embed" and "logits".

    Each network is drawn by calling `factory` on the CPU with torch's generator seeded and put back, so that the
    initialisation that its author wrote is kept. `initialiser` draws known layers from one of ours, which is faster.
    Raises: ConfigError if it cannot take the images, does not return logits, or draws random numbers in its forward
    pass; with an initialiser, also for layers that are not known.
    """
    return ForeignBackbone(name, factory, shape, classes, initialiser)


def _probe(module: nn.Module, name: str, shape: Shape, classes: int) -> tuple[str | None, list[str]]:
    """The linear layer that makes the logits, and the submodules whose output is one tensor. Runs the module once."""
    seen: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, output, key=key: seen.__setitem__(key, output))
        for key, layer in module.named_modules()
        if key
    ]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        try:
            logits = module.train()(torch.zeros(2, *shape, device="cpu"))
        except Exception as error:
            size = "x".join(map(str, shape))
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"backbone {name!r} does not take images of shape {size}: {reason}") from error
        finally:
            for handle in handles:
                handle.remove()
        random = not torch.equal(before, torch.get_rng_state())
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"backbone {name!r} must return logits of shape (2, {classes}) for 2 images, not {found}.")
    if random:
        raise ConfigError(
            f"backbone {name!r} draws random numbers in its forward pass (dropout, say), which no seed of a run would "
            "reach. Give a factory that makes it without, such as FILE.py:FACTORY with dropout=0."
        )
    heads = [key for key, output in seen.items() if output is logits and type(module.get_submodule(key)) is nn.Linear]
    return (heads[-1] if heads else None), [key for key, output in seen.items() if isinstance(output, Tensor)]
