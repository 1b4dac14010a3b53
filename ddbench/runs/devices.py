"""The device of a run."""

from __future__ import annotations

import torch

from ddbench.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first NVIDIA GPU, or else the CPU: Apple's GPUs are taken where they are
    named. Raises: ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"there is no device {name!r} for ddbench; choose auto, cpu, cuda, cuda:N or mps.")
    if device.type == "mps":
        _require_mps(name, device)
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


def _require_mps(name: str, device: torch.device) -> None:
    if not torch.backends.mps.is_available():
        built = "sees no Apple GPU" if torch.backends.mps.is_built() else "was built without Metal"
        raise ConfigError(
            f"device {name!r} was asked for, and torch {torch.__version__} {built}. Use --device cpu; mps needs macOS "
            "on Apple silicon and a torch for it."
        )
    if device.index:
        raise ConfigError(f"there is no device {name!r}; a Mac has one, mps.")


def visible_devices(name: str) -> list[str]:
    """The devices that a sweep may use: all visible GPUs for "auto" and "cuda", else the one that is named."""
    chosen = choose_device(name)
    if name in ("auto", "cuda") and chosen.type == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]
