"""Boards from records: observations, statistics, tables.

Python gives a package and a function of the same name one place: once this package is imported, `ddbench.leaderboard`
is the package and no longer the function of `ddbench.api`. So the package can be called as the function is.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """`ddbench.api.leaderboard`."""
        from ddbench.api import leaderboard

        return leaderboard(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
