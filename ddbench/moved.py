"""Import paths of version 0.1 whose modules have moved. They work until 0.3, with a warning that says where to look.

These are modules that other code had reason to import; the public names of the package `ddbench` have not moved.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# An old module -> where its names are now; the first place that has a name is meant.
MOVED: dict[str, tuple[str, ...]] = {
    "ddbench.backbones.base": (
        "ddbench.backbones.backbone",
        "ddbench.backbones.variables",
        "ddbench.backbones.stack",
        "ddbench.backbones.foreign",
    ),
    "ddbench.bench": ("ddbench.costs.bench",),
    "ddbench.driver": ("ddbench.loop",),
    "ddbench.engine.change": ("ddbench.backbones.tangent_blocks",),
    "ddbench.engine.gradients": ("ddbench.training.class_gradients",),
    "ddbench.engine.kernel_regression": ("ddbench.engine.regression",),
    "ddbench.engine.kernels": (
        "ddbench.ntk.kernel",
        "ddbench.ntk.gram",
        "ddbench.ntk.blocks",
        "ddbench.ntk.layouts",
        "ddbench.ntk.architectures",
    ),
    "ddbench.engine.lockstep": ("ddbench.training.lockstep",),
    "ddbench.engine.memory": ("ddbench.engine.program",),
    "ddbench.engine.students": ("ddbench.training.students",),
    "ddbench.engine.tangents": ("ddbench.backbones.tangent_layers",),
    "ddbench.engine.unroll": ("ddbench.training.unroll",),
    "ddbench.estimate": ("ddbench.costs.estimate",),
    "ddbench.evaluation.trained": ("ddbench.training.networks",),
    "ddbench.evaluation.trajectories": ("ddbench.training.experts",),
    "ddbench.evaluation.transfer": ("ddbench.evaluation.finite_width",),
    "ddbench.evaluation.validation": ("ddbench.evaluation.selection",),
    "ddbench.foreign.export": ("ddbench.foreign.exporting",),
    "ddbench.foreign.readers": ("ddbench.foreign.formats",),
    "ddbench.leaderboard.collect": ("ddbench.leaderboard.observations",),
    "ddbench.leaderboard.rank": ("ddbench.leaderboard.statistics",),
    "ddbench.leaderboard.render": ("ddbench.leaderboard.tables",),
    "ddbench.runs.judging": ("ddbench.runs.evaluating",),
    "ddbench.runs.sharing": ("ddbench.foreign.importing",),
    "ddbench.runs.spec": ("ddbench.runs.resolving", "ddbench.runs.runspec"),
}


@dataclass(frozen=True)
class Validation:
    """What a method of 0.1 said of how it chooses. Nothing asks for it any more; see `Method.selection`."""

    protocol: Any
    times: int
    students: int


# Public names of 0.1 that have no meaning left, for files that import them.
GONE = {"Validation": Validation}


def gone(name: str) -> Any:
    """One of `GONE`, with a warning that says what to use."""
    warnings.warn(
        f"ddbench.{name} is no longer asked for: the loop selects on held-out images (--select, Method.selection). The "
        "name goes with ddbench 0.3.",
        DeprecationWarning,
        stacklevel=3,
    )
    return GONE[name]


class _Finder(MetaPathFinder, Loader):
    """Finds a module that has moved, after all other finders have found nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        places = MOVED[old]
        warnings.warn(
            f"{old} has moved to {' and '.join(places)}; the old path goes with ddbench 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )

        def look_up(name: str) -> Any:
            for place in places:
                there = importlib.import_module(place)
                if hasattr(there, name):
                    return getattr(there, name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__getattr__ = look_up  # type: ignore[method-assign]
        module.__doc__ = f"Moved to {' and '.join(places)}."


def install() -> None:
    """Let old paths be found from now on. Safe to repeat."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
