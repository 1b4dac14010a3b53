"""The part of a machine that a process of its own gets to see. Needs no torch, which takes seconds to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


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
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return Place(name, name, given)
    index, entries = int(number or 0), _entries(given)
    entry = entries[index] if index < len(entries) else str(index)
    return Place(name, "cuda", {**given, VISIBLE: entry})


def likely_devices(name: str, drivers: Path = Path("/dev")) -> list[str]:
    """The GPUs that a sweep on `name` will probably use: a guess without torch, which takes seconds to know it.

    Empty where there is no NVIDIA driver, and for a CPU.
    """
    there = len(list(drivers.glob("nvidia[0-9]*")))
    if name not in ("auto", "cuda"):
        return [name] if there and name.startswith("cuda:") and name[5:].isdigit() else []
    return [f"cuda:{index}" for index in range(min(there, len(_entries(os.environ)) or there))]


def _entries(environment: Mapping[str, str]) -> list[str]:
    return [entry.strip() for entry in environment.get(VISIBLE, "").split(",") if entry.strip()]
