"""What a shell is offered for options that take a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType


class Known(StringParamType):
    """A text, of which some are known."""

    def __init__(self, names: Callable[[click.Context], Iterable[str]]) -> None:
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._names(ctx) if name.startswith(incomplete)]


def offer_names(command: click.Command) -> None:
    """Have the options of a command offer what there is. Only for completion: values are taken as before."""
    for param in command.params:
        if isinstance(param, click.Option) and isinstance(param.type, StringParamType):
            names = next((_KNOWN[option] for option in param.opts if option in _KNOWN), None)
            if names is not None:
                param.type = Known(names)


def _methods(ctx: click.Context) -> Iterable[str]:
    from ddbench.plugins import GROUPS, listing

    return [plugin.name for plugin in listing(GROUPS["method"])]


def _datasets(ctx: click.Context) -> Iterable[str]:
    from ddbench.data.catalogue import CATALOGUE
    from ddbench.data.manifests import find_all

    root: Any = ctx.params.get("data_root") or "data"
    return [*CATALOGUE, *(m["name"] for m in find_all(Path(root)) if m["name"] not in CATALOGUE)]


def _protocols(ctx: click.Context) -> Iterable[str]:
    from ddbench.evaluation.protocol import PROTOCOLS

    return ["native", *dict.fromkeys(p.name for p in PROTOCOLS.values()), *PROTOCOLS]


def _backbones(ctx: click.Context) -> Iterable[str]:
    from ddbench.backbones.names import known

    return known()


def _presets(ctx: click.Context) -> Iterable[str]:
    return ["paper", "quick"]  # those of every method: its own are in its package, which is not loaded for this


_KNOWN: dict[str, Callable[[click.Context], Iterable[str]]] = {
    "--method": _methods,
    "--dataset": _datasets,
    "--protocol": _protocols,
    "--backbone": _backbones,
    "--preset": _presets,
    "--judge": _backbones,
}
