"""How numbers are rounded: one named value that is part of the spec and of the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch

from ddbench.arguments import PrecisionName
from ddbench.engine.capabilities import has_bfloat16, has_tf32
from ddbench.errors import ConfigError, closest

Name = PrecisionName


def usual(device: torch.device) -> Name:
    """What a run on this device uses where nothing is asked: TF32 where there is such a thing, which changes no
    accuracy (docs, concepts/engine.md), and IEEE single elsewhere."""
    tensor_cores = (
        has_tf32(device) and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return "tf32" if tensor_cores else "fp32"


def names_on(device: torch.device) -> tuple[Name, ...]:
    """The precisions that are apart on a device: without TF32 `tf32` is `fp32`."""
    there = {"fp32": True, "tf32": has_tf32(device), "bf16": has_bfloat16(device)}
    return tuple(name for name in get_args(Name) if there[name])


@dataclass(frozen=True)
class Precision:
    """`fp32`: IEEE single throughout. `tf32`: convolutions and products round their inputs to TF32 (NVIDIA GPUs).
    `bf16`: as tf32, and networks run under bfloat16 autocast, parameters staying float32.
    `deterministic` asks for kernels that add in a fixed order.
    """

    name: Name = "fp32"
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            hint = closest(self.name, get_args(Name))
            raise ConfigError(f"there is no precision {self.name!r}. {hint}Choose one of {', '.join(get_args(Name))}.")

    def on(self, device: torch.device) -> Name:
        """What it comes to on a device: only NVIDIA GPUs have TF32."""
        return "fp32" if self.name == "tf32" and not has_tf32(device) else self.name

    def require(self, device: torch.device) -> None:
        """Raises: ConfigError where the device cannot round so."""
        if self.name == "bf16" and not has_bfloat16(device):
            raise ConfigError(
                f"device {str(device)!r} cannot run networks in bfloat16 here; choose one of the precisions "
                f"{', '.join(names_on(device))}, or another --device."
            )

    @contextlib.contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Set torch's flags, and restore them on leaving. The only place that touches torch.backends."""
        short = self.name != "fp32"
        before = (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        )
        torch.backends.cuda.matmul.allow_tf32 = short
        torch.backends.cudnn.allow_tf32 = short
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)
        # The cache of casts would outlive the parameters: they change in place inside one long autocast.
        casts = torch.amp.autocast_mode.is_autocast_available(device.type)
        short = self.name == "bf16"
        cast = torch.autocast(device.type, torch.bfloat16, enabled=short, cache_enabled=False) if casts else None
        try:
            with cast or contextlib.nullcontext():
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before[0]
            torch.backends.cudnn.allow_tf32 = before[1]
            torch.backends.cudnn.benchmark = before[2]
            torch.use_deterministic_algorithms(before[3])
