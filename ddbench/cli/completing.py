"""What a shell is offered for options and arguments that take a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType


class Known(StringParamType):
    """A text, of which some are known; where `files` may stand too, those where no name fits."""

    def __init__(self, names: Callable[[click.Context], Iterable[str]], *, files: bool = False) -> None:
        self._names, self._files = names, files

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        fitting = [CompletionItem(name) for name in self._names(ctx) if name.startswith(incomplete)]
        return fitting or ([CompletionItem(incomplete, type="file")] if self._files else [])


def offer_names(command: click.Command, path: str) -> None:
    """Have the options and arguments of a command offer what there is; `path` is how it is called: "show method".

    Only for completion: values are taken as before.
    """
    for param in command.params:
        if not isinstance(param.type, StringParamType):
            continue
        if isinstance(param, click.Option):
            names = next((_KNOWN[option] for option in param.opts if option in _KNOWN), None)
        else:
            names = _ARGUMENTS.get(path)
        if names is not None:
            param.type = Known(names, files=path in _OR_FILES and isinstance(param, click.Argument))


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


def _trainers(ctx: click.Context) -> Iterable[str]:
    from ddbench.plugins import TRAINERS, listing

    return [plugin.name for plugin in listing(TRAINERS)]


def _recipes(ctx: click.Context) -> Iterable[str]:
    return [name for name in _protocols(ctx) if name != "native"]  # native to which method, nobody says there


def _downloads(ctx: click.Context) -> Iterable[str]:
    from ddbench.data.catalogue import CATALOGUE

    return [name for name, entry in CATALOGUE.items() if entry.how in ("torchvision", "zip")]


def _sets(ctx: click.Context) -> Iterable[str]:
    from ddbench.errors import DdbenchError
    from ddbench.foreign.published_sets import place_of_sets, read_index

    try:
        place = place_of_sets(ctx.params.get("place"))
        # A shell does not wait for a network.
        return [] if "://" in str(place) else [one.name for one in read_index(place, Path("data")).sets]
    except DdbenchError:
        return []


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
_ARGUMENTS: dict[str, Callable[[click.Context], Iterable[str]]] = {
    "show method": _methods,
    "show protocol": _recipes,
    "show dataset": _datasets,
    "show backbone": _backbones,
    "show trainer": _trainers,
    "data get": _downloads,
    "data add": _datasets,
    "data rm": _datasets,
    "sets get": _sets,
    "compare": _methods,
    "reproduce": _methods,
}
_OR_FILES = {"show method", "show protocol", "show backbone", "compare", "reproduce"}
