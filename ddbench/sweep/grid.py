"""Many runs from few lines: a block of axes, or a sweep file, becomes requests in a fixed order.

A sweep file has one `[grid]` and any number of `[[run]]`. Each is a block: a value, or a list of values for the axes.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddbench.arguments import MOST_IPC, MOST_STUDENTS
from ddbench.config import parse_assignments, parse_selection, read_toml
from ddbench.errors import ConfigError, closest
from ddbench.plugins import same_name
from ddbench.runs.resolving import Asked, find_method
from ddbench.runs.selecting import old_names
from ddbench.text import MOST_COUNT

T = TypeVar("T")

# Slowest first: runs that share data, pixel space, network and method, and so their artefacts, are neighbours.
AXES = ("dataset", "precision", "pixels", "backbone", "preset", "method", "ipc", "seed")
LISTS = {"protocol": "protocols", "judge": "judges"}
KINDS: dict[str, type] = {"ipc": int, "seed": int, "students": int}
LEAST = {"ipc": 1, "seed": 0, "students": 1}
MOST = {"ipc": MOST_IPC, "seed": MOST_COUNT, "students": MOST_STUDENTS}
KEYS = (*AXES, *LISTS, "students", "select", "set")


def expand(axes: Mapping[str, Sequence[Any]], options: Mapping[str, Any] | None = None, **common: Any) -> list[Asked]:
    """One request for each combination of the axes' values; `common` holds what all of them share.

    `options` are for all methods that have them, or for one: see `distribute`.

    Raises: PluginError for an unknown method, ConfigError where no method has an option that is set.
    """
    given = distribute(options or {}, axes["method"])
    names = [name for name in AXES if name in axes]
    requests = []
    for values in itertools.product(*(axes[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        requests.append(Asked(**chosen, **common, options=given[chosen["method"]], by="command"))
    return requests


def distribute(options: Mapping[str, Any], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Which of the options belong to which of the methods: "KEY" to all that have it, "METHOD.KEY" to one.

    Of two that set the same option of a method the later wins.

    Raises: ConfigError where one belongs to none of them.
    """
    kinds = {ref: find_method(ref)[1] for ref in methods}
    known = {ref: [*kind.Config.model_fields, *old_names(kind).values()] for ref, kind in kinds.items()}
    given: dict[str, dict[str, Any]] = {ref: {} for ref in methods}
    for key, value in options.items():
        owner, dot, option = key.rpartition(".")
        takers = [ref for ref in known if not dot or same_name(owner, ref) or same_name(owner, kinds[ref].name)]
        if not takers:
            chosen = [kind.name for kind in kinds.values()]
            hint = closest(owner, chosen)
            raise ConfigError(f"option {key!r}: {hint}{owner!r} is none of the methods here: {', '.join(chosen)}.")
        if len(takers) > 1:
            having = [ref for ref in takers if option in known[ref]]
            if not having:
                raise ConfigError(_nobody_has(option, [kinds[ref].name for ref in takers], known))
            takers = having
        for ref in takers:
            given[ref][option] = value
    return given


def read_sweep(path: Path) -> list[Asked]:
    """The requests of a sweep file: those of `[grid]` first, then each `[[run]]`; none twice.

    Raises: ConfigError, naming the file and the key, for whatever cannot be used.
    """
    content = read_toml(path)
    for key in content.keys() - {"grid", "run"}:
        raise ConfigError(
            f"{path}: {key!r} is not known. {closest(key, ['grid', 'run'])}A sweep has [grid] and [[run]]."
        )
    blocks = [("grid", content["grid"])] if "grid" in content else []
    runs = content.get("run", [])
    if not isinstance(runs, list):
        raise ConfigError(f"{path}: write [[run]] with two brackets, so that there can be several.")
    blocks += [(f"run {number}", block) for number, block in enumerate(runs, start=1)]
    if not blocks:
        raise ConfigError(f"{path} asks for nothing. Give it a [grid], or a [[run]] for each run.")
    requests = [asked for name, block in blocks for asked in _block(f"{path}: {name}", block)]
    return list(dict.fromkeys(requests))


def asked_to_json(asked: Asked) -> dict[str, Any]:
    """A request as JSON: what a worker or a job is given."""
    return {**dataclasses.asdict(asked), "config_file": str(asked.config_file) if asked.config_file else None}


def asked_from_json(value: Mapping[str, Any]) -> Asked:
    """What `asked_to_json` made."""
    rest = dict(value)
    if "assignments" in rest:  # of a job that 0.1 has queued
        rest |= {"options": parse_assignments(rest.pop("assignments")), "by": "command"}
    lists = {name: tuple(rest[name]) for name in ("protocols", "judges")}
    file = rest["config_file"]
    return Asked(**{**rest, **lists, "config_file": Path(file) if file else None})


def shard(items: Sequence[T], text: str) -> list[T]:
    """The i-th of n interleaved parts, for "i/n" with i from 1 to n. Raises: ConfigError for any other text."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"a shard is i/n with i from 1 to n, as in 3/16; got {text!r}.")
    return list(items[int(match[1]) - 1 :: int(match[2])])


def _block(where: str, block: Any) -> list[Asked]:
    if not isinstance(block, dict):
        raise ConfigError(f"{where} must be a table of settings.")
    for key in block.keys() - set(KEYS):
        raise ConfigError(f"{where}: {key!r} is not known. {closest(key, KEYS)}There are {', '.join(KEYS)}.")
    for key in ("method", "dataset"):
        if key not in block:
            raise ConfigError(f"{where} does not say which {key}.")
    axes = {key: _values(where, key, block[key]) for key in AXES if key in block}
    common: dict[str, Any] = {LISTS[key]: tuple(_values(where, key, block[key])) for key in LISTS if key in block}
    if "students" in block:
        (common["students"],) = _values(where, "students", block["students"])
    if "select" in block:
        select = block["select"]
        common["select"] = parse_selection(select) if isinstance(select, str) else select
        if not isinstance(common["select"], dict | bool):
            raise ConfigError(f"{where}: select is a table, as in select = {{ heldout = 0.1, every = 500 }}, or none.")
    options = block.get("set", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{where}: set is a table, as in set = {{ iterations = 100 }}.")
    return expand(axes, _flat(options), **common)


def _values(where: str, key: str, given: Any) -> list[Any]:
    values: list[Any] = given if isinstance(given, list) else [given]
    kind = KINDS.get(key, str)
    for value in values:
        if type(value) is not kind:
            raise ConfigError(f"{where}: {key} is {'a whole number' if kind is int else 'a text'}, not {value!r}.")
        if key in LEAST and isinstance(value, int) and value < LEAST[key]:
            raise ConfigError(f"{where}: {key} is {value}; it is at least {LEAST[key]}.")
        if key in MOST and isinstance(value, int) and value > MOST[key]:
            raise ConfigError(f"{where}: {key} is {value}; it is at most {MOST[key]}.")
    if not values or (key == "students" and len(values) > 1):
        raise ConfigError(f"{where}: {key} needs {'one value' if key == 'students' else 'at least one value'}.")
    return values


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """With one level of names: in TOML `dm.iterations` is a table of its own."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _nobody_has(option: str, methods: Sequence[str], options: Mapping[str, Sequence[str]]) -> str:
    known = sorted({name for names in options.values() for name in names})
    return (
        f"none of {', '.join(methods)} has an option {option!r}. {closest(option, known)}"
        "`ddbench show method NAME` lists them."
    )
