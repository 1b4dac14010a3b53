"""How numbers are rounded: one named value that is part of the spec and of the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ddbench.errors import ConfigError

Name = Literal["fp32", "tf32", "bf16"]


def usual(device: torch.device) -> Name:
    """What a run on this device uses where nothing is asked: TF32 where there is such a thing, which changes no
    accuracy (docs, concepts/engine.md), and IEEE single elsewhere."""
    tensor_cores = (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return "tf32" if tensor_cores else "fp32"


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
            raise ConfigError(f"there is no precision {self.name!r}; choose one of {', '.join(get_args(Name))}.")

    def on(self, device: torch.device) -> Name:
        """What it comes to on a device: CPUs have no TF32."""
        return "fp32" if self.name == "tf32" and device.type == "cpu" else self.name

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
        cast = torch.autocast(device.type, torch.bfloat16, enabled=self.name == "bf16", cache_enabled=False)
        try:
            with cast:
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before[0]
            torch.backends.cudnn.allow_tf32 = before[1]
            torch.backends.cudnn.benchmark = before[2]
            torch.use_deterministic_algorithms(before[3])
