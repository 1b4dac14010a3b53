"""Arguments of the functions of Python, checked before anything is done: what is of another kind is a sentence.

The command line has its own checks, since there everything is text.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from ddbench.errors import ConfigError, RunError
from ddbench.text import MOST_COUNT, MOST_LINE, acts, printable

P = ParamSpec("P")
R = TypeVar("R")

MOST_IPC = 10**9  # so that no product of it with classes and pixels overflows
MOST_STUDENTS = 10_000  # each is a network, trained and held in memory with others
MOST_SNAPSHOTS = 10_000  # each is a file
PrecisionName = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
_SHOWN = 60  # letters of a value that an error shows


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function with every argument looked at first, by its name; what was left out is as it was.

    The function raises ConfigError for an argument of another kind, or out of range; and RunError for what the system
    does not let it read or write.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            check = KINDS.get(f"{function.__name__}.{name}", KINDS.get(name))
            if check is None or value is signature.parameters[name].default:
                continue
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            bound.arguments[name] = tuple(check(name, one) for one in value) if several else check(name, value)
        try:
            return function(*bound.args, **bound.kwargs)
        except OSError as error:
            from ddbench.files import of_the_disk

            if (sentence := of_the_disk(error)) is None:
                raise
            raise RunError(sentence) from error

    return wrapper


@dataclass(frozen=True)
class Whole:
    """A whole number of some range."""

    least: int = 0
    most: int = MOST_COUNT

    def __call__(self, name: str, value: Any) -> int:
        """The number. Raises: ConfigError for anything else, true and false among it."""
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise _other(name, value, "a whole number") from None
        if not self.least <= number <= self.most:
            raise ConfigError(f"{name} is {_shown(number)}; it is a whole number from {self.least} to {self.most}.")
        return number


def text(name: str, value: Any) -> str:
    """A text that says something. Raises: ConfigError for anything else."""
    if not isinstance(value, str):
        raise _other(name, value, "a text")
    if not value:
        raise ConfigError(f"{name} is an empty text. Say what is meant, or leave it out.")
    return _of_one_line(name, value)


def texts(name: str, value: Any) -> str | tuple[str, ...]:
    """One text or several. Raises: ConfigError for anything else."""
    if isinstance(value, str):
        return text(name, value)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise _other(name, value, "one text or several")
    return tuple(text(name, one) for one in value)


def place(name: str, value: Any) -> Any:
    """A file or folder: a path, or a result that has its `folder`. Raises: ConfigError for what no path can be."""
    path = getattr(value, "folder", value)
    if not isinstance(path, str | os.PathLike):
        raise _other(name, value, "a path")
    if not os.fspath(path):
        raise ConfigError(f"{name} is an empty path. Say where, as in '.', or leave it out.")
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whether that is right depends on what is done with it
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name} is {printable(str(path), _SHOWN)!r}, which no path can be: {why}.") from None
    return value


def places(name: str, value: Any) -> Any:
    """One place or several. Raises: ConfigError as `place`."""
    if isinstance(value, bytes | Mapping | str | os.PathLike) or hasattr(value, "folder"):
        return place(name, value)
    if not isinstance(value, Iterable):
        raise _other(name, value, "a path, or several")
    return [place(name, one) for one in value]


def flag(name: str, value: Any) -> bool:
    """True or false. Raises: ConfigError for anything else: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise _other(name, value, "True or False")
    return value


def number(name: str, value: Any) -> float:
    """A number. Raises: ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _other(name, value, "a number")
    return value


def table(name: str, value: Any) -> Mapping[str, Any]:
    """Values by name. Raises: ConfigError for anything else, and for a name that is no text."""
    if not isinstance(value, Mapping):
        raise _other(name, value, "a dictionary")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{name} has values by name, and {_shown(key)} is no text.")
    return value


def _tables(name: str, value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _other(name, value, "a list of dictionaries")
    return [table(name, one) for one in value]


def _factors(name: str, value: Any) -> Any:
    return place(name, value) if isinstance(value, str | os.PathLike) else table(name, value)


def _selection(name: str, value: Any) -> Any:
    return value if isinstance(value, bool) else table(name, value)


def _code(name: str, value: Any) -> Any:
    return value if isinstance(value, type) else text(name, value)


def _trackers(name: str, value: Any) -> Any:
    if isinstance(value, str | type):
        return _code(name, value)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise _other(name, value, "a tracker, or several")
    return tuple(_code(name, one) for one in value)


def _of_one_line(name: str, value: str) -> str:
    if len(value) > MOST_LINE:
        raise ConfigError(f"{name} is a text of {len(value)} letters; {MOST_LINE} are the most.")
    if any(acts(sign, lines=False) for sign in value):
        raise ConfigError(f"{name} is {printable(value, _SHOWN)!r}, which has a control character or a line end in it.")
    return value


def _other(name: str, value: Any, kind: str) -> ConfigError:
    return ConfigError(f"{name} is {kind}, and {_shown(value)} is a {type(value).__name__}.")


def _shown(value: Any) -> str:
    return printable(repr(value), _SHOWN)


KINDS: Mapping[str, Callable[[str, Any], Any]] = {
    "ipc": Whole(1, MOST_IPC),
    # Of a table of results, 0 is the whole dataset.
    "compare.ipc": Whole(0, MOST_IPC),
    **dict.fromkeys(("size", "forwards"), Whole(1)),
    "seed": Whole(0),
    "students": Whole(1, MOST_STUDENTS),
    "snapshots": Whole(2, MOST_SNAPSHOTS),
    **dict.fromkeys(
        (
            "dataset", "backbone", "pixels", "preset", "precision", "device", "labels", "augment", "decode", "entry",
            "made_with", "metric", "name", "base",
        ),
        text,
    ),
    **dict.fromkeys(("protocol", "judge", "leaderboard.track"), texts),
    **dict.fromkeys(("data", "runs", "output", "leaderboards", "path", "run", "results"), place),
    **dict.fromkeys(("sets", "leaderboard.runs"), places),
    **dict.fromkeys(("fresh", "curve", "progress", "product", "scores"), flag),
    **dict.fromkeys(("options", "claims"), table),
    "lr": number,
    "method": _code,
    "select": _selection,
    "factors": _factors,
    "recipes": _tables,
    "track": _trackers,
}  # fmt: skip
"""How the arguments of the public functions are checked, by "function.argument" or by the argument's name."""
