"""What a grid is asked for: the base, what is changed in it, and which sets; from words or from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddbench.arguments import MOST_STUDENTS, Whole
from ddbench.config import read_toml
from ddbench.errors import ConfigError, closest
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.evaluation.recipes import USUAL, GridRecipe, parse_factors, recipes_of
from ddbench.text import MOST_COUNT

_KEYS = ("base", "sets", "factors", "recipe", "product", "forwards", "judge", "students")
USUAL_GRID = "usual"


@dataclass(frozen=True)
class AskedGrid:
    """A grid. No `base`: the first protocol that the first set's run names. No `forwards`: the training that the base
    has at a section's number of images. No `judges` and no `students`: those of the base."""

    sets: tuple[str, ...] = ()
    base: Protocol | None = None
    factors: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    own: tuple[Mapping[str, Any], ...] = ()
    product: bool = False
    forwards: int | None = None
    judges: tuple[str, ...] = ()
    students: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("forwards", self.forwards, MOST_COUNT), ("students", self.students, MOST_STUDENTS)):
            if value is not None:
                Whole(1, most)(name, value)

    def recipes(self, base: Protocol) -> list[GridRecipe]:
        """The recipes of the grid. Raises: ConfigError for what is no factor, no value and no recipe."""
        return recipes_of(base, self.factors, self.own, product=self.product)

    def over(self, **said: Any) -> AskedGrid:
        """The same with what was said beside it in the place of its own; what is empty was not said."""
        return replace(self, **{name: value for name, value in said.items() if value})


def asked(words: Sequence[str]) -> AskedGrid:
    """What follows --grid: factors with values, TOML files of a grid, or "usual".

    Raises: ConfigError for anything else.
    """
    found, factors = AskedGrid(), []
    for word in words:
        if word == USUAL_GRID:
            found = found.over(factors={**found.factors, **USUAL})
        elif word.endswith(".toml"):
            read = read_grid(Path(word))
            found = found.over(**{**vars(read), "factors": {**found.factors, **read.factors}})
        else:
            factors.append(word)
    return found.over(factors={**found.factors, **parse_factors(factors)})


def read_grid(path: Path) -> AskedGrid:
    """A grid from its TOML file. Paths of sets in it are relative to where the command runs, as on a command line.

    Raises: ConfigError, naming the file and the key, for whatever cannot be used.
    """
    content = read_toml(path)
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path}: {key!r} is not known. {closest(key, _KEYS)}A grid has {', '.join(_KEYS)}.")
    own, factors = content.get("recipe", []), content.get("factors", {})
    if not isinstance(own, list) or not all(isinstance(table, dict) for table in own):
        raise ConfigError(f"{path}: write [[recipe]] with two brackets, so that there can be several.")
    if not isinstance(factors, dict):
        raise ConfigError(f"{path}: factors is a table, as in [factors] and below it batch = [32].")
    for key, kind in (("base", str), ("product", bool)):
        if key in content and not isinstance(content[key], kind):
            raise ConfigError(f"{path}: {key} is {'a text' if kind is str else 'true or false'}; got {content[key]!r}.")
    try:
        return AskedGrid(
            sets=_texts(content, "sets"),
            base=protocol(content["base"]) if "base" in content else None,
            factors=factors,
            own=tuple(own),
            product=content.get("product", False),
            forwards=content.get("forwards"),
            judges=_texts(content, "judge"),
            students=content.get("students"),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    given = content.get(key, [])
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{key} is a text or a list of texts; got {given!r}.")
    return tuple(texts)
