"""How a run selects, from all that was asked; and under which names its config keeps that."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ddbench.config import Layer, Selection, explain
from ddbench.errors import ConfigError, closest
from ddbench.evaluation.selection import no_passes
from ddbench.method import Method

logger = logging.getLogger(__name__)

SELECT = "select."  # before the values of a selection in a run's config

# Before selection was the loop's, these two methods had options of their own for it. A run's id is a hash over all
# values of its config, and boards compare them, so that runs of these two, and of methods derived from them, keep the
# old names whether they select or not. As options they are understood until 0.3.
OLD_NAMES: dict[str, dict[str, str]] = {
    "ddbench_methods.mtt": {
        "on": "select", "heldout": "heldout", "every": "select_every", "students": "select_students",
    },
    "ddbench_methods.ld": {"heldout": "heldout", "every": "validate_every"},
}  # fmt: skip


def old_names(kind: type[Method[Any]]) -> dict[str, str]:
    """By values of a selection, the names that options of a method had for them; without those that are its own."""
    names = next((OLD_NAMES[base.__module__] for base in kind.__mro__ if base.__module__ in OLD_NAMES), {})
    return {field: name for field, name in names.items() if name not in kind.Config.model_fields}


def split_off(kind: type[Method[Any]], layers: Iterable[Layer]) -> tuple[list[Layer], list[Layer]]:
    """The layers of options without those that are old names of a selection, and layers of these."""
    fields = {name: field for field, name in old_names(kind).items()}
    options, selections = [], []
    for layer in layers:
        found = {name: value for name, value in layer.values.items() if name in fields}
        options.append(Layer(layer.source, {k: v for k, v in layer.values.items() if k not in found}))
        if found:
            values = {fields[name]: _new(name, value) for name, value in found.items()}
            selections.append(Layer(layer.source, values))
            spelled = ",".join(f"{name}={value}" for name, value in values.items() if name != "on")
            _note(kind.name, " and ".join(found), spelled or ("on" if values["on"] else "none"))
    return options, selections


@functools.cache
def _note(method: str, names: str, spelled: str) -> None:
    logger.warning("%s: %s is --select %s now; the old spelling goes with ddbench 0.3.", method, names, spelled)


def as_values(asked: Mapping[str, Any] | bool | None) -> dict[str, Any]:
    """What was asked as values of a selection: to say how is to say that."""
    if asked is None or isinstance(asked, bool):
        return {} if asked is None else {"on": asked}
    return {"on": True, **asked}


def resolve_selection(kind: type[Method[Any]], layers: Sequence[Layer]) -> tuple[Selection, dict[str, str]]:
    """The method's own selection with the layers over it, and where each value came from.

    Raises: ConfigError for an unknown or impossible value, and where the method can select nothing, or no passes.
    """
    values = kind.selection.model_dump()
    sources = dict.fromkeys(values, "default")
    for layer in layers:
        for name, value in layer.values.items():
            if name not in values:
                raise ConfigError(
                    f"--select has no {name!r}. {closest(name, list(values))}It takes heldout, every and students, as "
                    "in --select heldout=0.1,every=500,students=2, or on, or none."
                )
            values[name], sources[name] = value, layer.source
    try:
        selection = Selection(**values)
    except ValidationError as error:
        raise ConfigError(explain("--select", error)) from None
    if selection.on and kind.info.kind != "condensation":
        raise ConfigError(
            f"{kind.name} chooses real images once and learns nothing in steps, of which the best could be kept. Leave "
            "--select out."
        )
    if selection.on and selection.passes is not None and kind.steps_per_pass is Method.steps_per_pass:
        raise no_passes(selection, kind.name)
    return selection, sources


def config_of(kind: type[Method[Any]], selection: Selection) -> dict[str, tuple[str, Any]]:
    """What a run's config keeps of a selection: by the name there, which of its values that is, and the value.

    Nothing where nothing is selected, but for methods with old names. The other names have a dot, as no option has.
    """
    old, usual, values = old_names(kind), kind.selection.model_dump(), selection.model_dump()
    if not selection.on and "on" not in old:
        values = dict.fromkeys(values)
    kept = {name: (field, _old(name, values[field])) for field, name in old.items()}
    if selection.on:
        told = {"on"} | {field for field, value in kept.values() if value is not None}
        for field in values.keys() - told:
            if values[field] != usual[field] or (not old and field != "fresh"):
                kept[f"{SELECT}{field}"] = (field, values[field])
    return kept


def told_by_config(kind: type[Method[Any]], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options in a run's config, and the values of its selection, which `config_of` has put there."""
    fields = {name: field for field, name in old_names(kind).items()}
    options, selection = {}, {}
    for name, value in config.items():
        if name.startswith(SELECT):
            selection[name.removeprefix(SELECT)] = value
        elif name not in fields:
            options[name] = value
        elif value is not None:
            selection[fields[name]] = _new(name, value)
    return options, {"on": bool(selection.keys() - {"on"}), **selection}


def _new(name: str, value: Any) -> Any:
    if name == "select":
        if value not in ("last", "heldout"):
            raise ConfigError(f"select is {value!r}; it was last or heldout. Say --select on, or leave it out.")
        return value == "heldout"
    return f"{value}p" if name == "validate_every" else value


def _old(name: str, value: Any) -> Any:
    if name == "select":
        return "heldout" if value else "last"
    if name == "validate_every":
        return int(value[:-1]) if isinstance(value, str) else None
    return value
