"""ddbench condenses image datasets and says honestly how well each method does it.

The public names are looked up on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ddbench import moved

_HOMES = {
    "LoadedSet": "ddbench.runs.loaded",
    "Run": "ddbench.api",
    "Transform": "ddbench.data.transform",
    "Grid": "ddbench.api",
    "compare": "ddbench.api",
    "correlate": "ddbench.api",
    "evaluate": "ddbench.api",
    "evaluate_grid": "ddbench.api",
    "leaderboard": "ddbench.api",
    "load": "ddbench.api",
    "load_dataset": "ddbench.api",
    "recognise": "ddbench.api",
    "run": "ddbench.api",
    "ArtifactCache": "ddbench.artifacts",
    "Artifact": "ddbench.artifacts",
    "Backbone": "ddbench.backbones.backbone",
    "Choice": "ddbench.synthetic",
    "Selection": "ddbench.config",
    "Variables": "ddbench.backbones.variables",
    "MethodConfig": "ddbench.config",
    "condense": "ddbench.loop",
    "drive": "ddbench.loop",
    "export": "ddbench.loop",
    "DdbenchError": "ddbench.errors",
    "Method": "ddbench.method",
    "MethodInfo": "ddbench.method",
    "Metrics": "ddbench.method",
    "State": "ddbench.method",
    "transient": "ddbench.method",
    "Problem": "ddbench.problem",
    "Protocol": "ddbench.evaluation.protocol",
    "Recipe": "ddbench.synthetic",
    "Rng": "ddbench.rng",
    "SyntheticSet": "ddbench.synthetic",
}

__all__ = [*sorted(_HOMES), "__version__"]

moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("ddbench")
        except PackageNotFoundError:
            return "0+unknown"
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in moved.GONE:
        return moved.gone(name)
    raise AttributeError(f"module 'ddbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
