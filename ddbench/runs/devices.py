"""The device of a run, and the part of a machine that a process of its own gets to see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ddbench.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


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


@dataclass(frozen=True)
class Place:
    """Where a process of its own works. `device` is the name that the device has there, `shown` the one it has here;
    `environment` is all that the process is given."""

    shown: str
    device: str
    environment: Mapping[str, str]


def place_of(name: str, environment: Mapping[str, str] | None = None) -> Place:
    """The environment in which a process sees the device `name` of this one, and no other GPU.

    Only that GPU, so that nothing lands on the first one by mistake. What CUDA_VISIBLE_DEVICES says here, numbers or
    UUIDs, is what the numbers of `name` count; on a CPU it is left as it is.
    """
    given = dict(os.environ if environment is None else environment)
    device = torch.device(name)
    if device.type != "cuda":
        return Place(name, name, given)
    index = device.index or 0
    entries = [entry.strip() for entry in given.get(VISIBLE, "").split(",") if entry.strip()]
    entry = entries[index] if index < len(entries) else str(index)
    return Place(name, "cuda", {**given, VISIBLE: entry})
