"""The device of a run."""

from __future__ import annotations

import torch

from ddbench.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or else the CPU. Raises: ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device {name!r} for ddbench; choose auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, and torch {torch.__version__} sees no CUDA device. Use --device cpu, or "
            "check the driver with nvidia-smi and that this torch was built for CUDA."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {name!r}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}."
        )
    return device


def visible_devices(name: str) -> list[str]:
    """The devices that a sweep may use: all visible GPUs for "auto" and "cuda", else the one that is named."""
    chosen = choose_device(name)
    if name in ("auto", "cuda") and chosen.type == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]
