"""Architectures as values and functions: a name becomes a Backbone, which draws parameters and applies them."""

from __future__ import annotations

import importlib
from typing import Any

# Names are parsed and listed without torch; what needs it is imported on first use.
_HOMES = {
    "Backbone": "ddbench.backbones.backbone",
    "Variables": "ddbench.backbones.variables",
    "from_module": "ddbench.backbones.foreign",
    "build": "ddbench.backbones.names",
    "canonical": "ddbench.backbones.names",
    "known": "ddbench.backbones.names",
}

__all__ = ["Backbone", "Variables", "build", "canonical", "from_module", "known"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ddbench.backbones' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
