"""What somebody's module does, found out by running it on two images; and whether it is what it is taken for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddbench.backbones import modules
from ddbench.backbones.backbone import Backbone
from ddbench.backbones.dropout import DRAWS, SeededDraws, fresh_draws
from ddbench.backbones.variables import Shape, Variables
from ddbench.errors import ConfigError
from ddbench.plugins import said
from ddbench.rng import Rng

logger = logging.getLogger(__name__)

# Kernels of torch differ by rounding, which layers amplify; mistakes are many times larger.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Found:
    """What a module does: `head` is the linear layer that makes the logits, `taps` the submodules whose output is one
    tensor, `stochastic` whether it draws when it trains."""

    head: str | None
    taps: list[str]
    stochastic: bool


def run(module: nn.Module, name: str, shape: Shape, classes: int) -> Found:
    """Run a module once in each mode. Raises: ConfigError where it cannot be a backbone."""
    seen: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, output, key=key: seen.__setitem__(key, output))
        for key, layer in module.named_modules()
        if key
    ]
    try:
        logits, draws = _logits(module.train(), name, shape, classes)
    finally:
        for handle in handles:
            handle.remove()
    _, in_evaluation = _logits(module.eval(), name, shape, classes)
    module.train()
    if in_evaluation:
        raise ConfigError(
            f"backbone {name!r} draws random numbers in evaluation mode too, so that its accuracy would be a matter of "
            "luck. Dropout as a function has to be told: F.dropout(x, p, self.training)."
        )
    heads = [key for key, output in seen.items() if output is logits and type(module.get_submodule(key)) is nn.Linear]
    return Found(
        heads[-1] if heads else None, [key for key, output in seen.items() if isinstance(output, Tensor)], draws > 0
    )


def _logits(module: nn.Module, name: str, shape: Shape, classes: int) -> tuple[Tensor, int]:
    """The logits of two images, and how often numbers were drawn for them."""
    mode = "training" if module.training else "evaluation"
    before = modules.generators()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            with SeededDraws(name, fresh_draws(Rng(0))) as drawing:
                # Of two images that differ: the outputs of a softmax would be told apart from logits by nothing else.
                logits = module(torch.stack([torch.zeros(shape), torch.ones(shape)]))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(modules.does_not_take(name, shape, error)) from error
        drawn_elsewhere = before != modules.generators()
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(
            f"backbone {name!r} must return logits of shape (2, {classes}) for 2 images, not {found}, in {mode} mode."
            f"{_ALONE if not isinstance(logits, Tensor) else ''}"
        )
    if logits.dtype != torch.float32:
        kind = str(logits.dtype).removeprefix("torch.")
        raise ConfigError(f"backbone {name!r} returns logits in {kind}. They must be float32, as its images are.")
    if drawn_elsewhere:
        raise ConfigError(
            f"backbone {name!r} draws random numbers in its forward pass from a global generator of Python, numpy or "
            "torch, which no seed of a run would reach. Draw by torch.nn.Dropout, torchvision.ops.StochasticDepth or "
            "torch.rand_like, or leave it out."
        )
    if classes > 1 and bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(2), atol=1e-5):
        raise ConfigError(
            f"backbone {name!r} returns probabilities, and the loss would take a softmax of them again. Return what "
            "goes into the softmax."
        )
    return logits, drawing.draws


_ALONE = (
    " Make it return the logits alone: networks with auxiliary heads often take an argument for that, as in "
    "torchvision:googlenet(aux_logits=False)."
)


def check_draws(name: str, first: Variables, again: Variables, other: Variables) -> None:
    """Compare networks of one seed, and of another: a factory has to draw from torch's generator alone.

    Raises: ConfigError where a seed does not decide the numbers, or not even the shapes.
    """
    pairs = [
        (key, tensor, getattr(again, part).get(key), getattr(other, part).get(key))
        for part in ("params", "buffers")
        for key, tensor in getattr(first, part).items()
        if key != DRAWS
    ]
    for key, tensor, same, changed in pairs:
        if any(found is None or found.shape != tensor.shape for found in (same, changed)):
            raise ConfigError(
                f"backbone {name!r} is not the same network at every call: {key} has other shapes. Its factory must "
                "always build the same architecture."
            )
        if not torch.equal(tensor, same):
            raise ConfigError(
                f"backbone {name!r} begins with other numbers in {key} whenever it is made, although torch's generator "
                "was seeded. Draw by torch on the CPU, not by numpy, random, or a generator of one's own."
            )
    if all(torch.equal(tensor, changed) for _, tensor, _, changed in pairs):
        logger.warning(
            "backbone %r begins with the same numbers whatever the seed (weights from a file, a seed in its factory, "
            "one module for all calls): its students differ in the order of their images alone.",
            name,
        )


def check_function(net: Backbone, module: nn.Module, split: Callable[[nn.Module], Variables]) -> bool:
    """Compare a backbone, as a function of tensors, with a fresh module that trains by itself.

    Returns whether each image is processed alone. `split` names the tensors of a module.
    Raises: ConfigError where logits, gradients or buffers differ: then state lies where it was not found.
    """
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first step of a run warns as well
            return _compare(net, module, split)
    except ConfigError:
        raise
    except Exception as error:
        aside = (
            " It computes with tensors that are not its own, or outside its forward pass, as activation checkpointing "
            "does: leave that out."
        )
        raise ConfigError(
            f"backbone {net.name!r} cannot take a training step: {said(error)}.{aside if 'meta' in str(error) else ''}"
        ) from error


def _compare(net: Backbone, module: nn.Module, split: Callable[[nn.Module], Variables]) -> bool:
    x = torch.randn(4, *net.shape, generator=Rng(0).fold("probe").torch())
    fresh = split(module).detach().clone()
    if net.stochastic:
        fresh.buffers[DRAWS] = fresh_draws(Rng(0))
    v = fresh.clone()
    for _ in range(2):
        v = _one_pass(net, module, split, v, x)
    tested = net(v, x, train=False)[0]
    _same(net.name, "logits in evaluation mode", tested, module.eval()(x))
    company = torch.cat([x[:1], x.flip(0)[:3] * 2 + 1])
    if not _close(net(v, company, train=False)[0][0], tested[0]):
        raise ConfigError(
            f"backbone {net.name!r} mixes the images of a batch in evaluation mode, so that its accuracy would depend "
            "on the order of test images. Batch norm needs running statistics for that (track_running_stats=True)."
        )
    seen = modules.settings(net._modules[True])
    with torch.no_grad():
        first, again, in_company = (net(fresh, batch)[0] for batch in (x, x, company))
    changed = [key for key, value in modules.settings(net._modules[True]).items() if seen.get(key, value) != value]
    if changed or not _close(again, first):
        where = f"it changes {changed[0]}" if changed else "with the same tensors it returns other logits each time"
        raise ConfigError(
            f"backbone {net.name!r} remembers its calls in what is no tensor: {where}, which all students would share. "
            "Keep a count in a buffer (register_buffer), or leave it out."
        )
    return _close(in_company[0], first[0])


def _one_pass(
    net: Backbone, module: nn.Module, split: Callable[[nn.Module], Variables], v: Variables, x: Tensor
) -> Variables:
    """Logits, gradients and buffers of a training pass, compared; returns the variables with the buffers after it."""
    y = torch.arange(len(x)) % net.classes
    own = split(module).params
    for parameter in own.values():
        parameter.grad = None
    expected = _by_itself(module.train(), net.name, x, v.buffers.get(DRAWS))
    F.cross_entropy(expected, y).backward()
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in v.params.items()}
    logits, buffers = net(Variables(leaves, v.buffers), x)
    slopes = torch.autograd.grad(
        F.cross_entropy(logits, y), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    _same(net.name, "logits", logits, expected)
    for (key, parameter), slope in zip(own.items(), slopes, strict=True):
        _same(net.name, f"the gradient of {key}", slope, parameter.grad)
    for key, tensor in split(module).buffers.items():
        _same(net.name, f"the buffer {key}", buffers[key], tensor)
    return Variables(v.params, {key: tensor.detach() for key, tensor in buffers.items()})


def _by_itself(module: nn.Module, name: str, x: Tensor, state: Tensor | None) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        if state is None:
            logits: Tensor = module(x)
            return logits
        with SeededDraws(name, state):
            logits = module(x)
    return logits


def _same(name: str, what: str, found: Tensor, expected: Tensor | None) -> None:
    expected = torch.zeros_like(found) if expected is None else expected.detach()
    if not _close(found.detach(), expected):
        raise ConfigError(
            f"backbone {name!r} is no function of its parameters, buffers and images: {what} is another than when it "
            "trains by itself. Parameters, buffers and layers must be registered (torch.nn.Parameter, register_buffer, "
            "torch.nn.ModuleList), and hooks must use the module that they are given."
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    # A gradient that is nothing but rounding has no scale of its own.
    least = TOLERANCE * scale + 1e-6
    return torch.allclose(found.double(), expected.double(), rtol=TOLERANCE, atol=least, equal_nan=True)
