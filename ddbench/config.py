"""Options of a method: a frozen pydantic model, filled in layers, each value with its source.

Four layers, later wins: the field's default, the presets for this dataset and ipc, a file, `--set`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ddbench.errors import ConfigError, closest
from ddbench.files import once, open_regular

M = TypeVar("M", bound=BaseModel)

ANY = "*"
MOST_FLOAT = 3.4028234663852886e38
MOST_INTEGER = 2**63 - 1
RUN_KEYS = ("pixels", "backbone", "protocol", "precision")


class Options(BaseModel):
    """A frozen set of options. A field has a default, a range and a sentence; `--set` and docs come from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_by_name(cls, values: Any) -> Any:
        """TOML has no null, so `"none"` stands for None, except where a text is expected ("none" the augmentation)."""
        if not isinstance(values, dict):
            return values
        return {k: None if v == "none" and _takes_none_and_no_text(cls, k) else v for k, v in values.items()}

    @model_validator(mode="after")
    def _as_single_precision(self) -> Self:
        """Networks compute in float32; what is larger there than any number would end in a traceback far from here."""
        for name, value in self:
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, float) and abs(part) > MOST_FLOAT:
                    raise ValueError(
                        f"{name} is {part:g}, larger than any number of single precision ({MOST_FLOAT:.2g})"
                    )
                if isinstance(part, int) and abs(part) > MOST_INTEGER:
                    raise ValueError(f"{name} is a whole number of more than 63 bits")
        return self


def later(default: Any, **told: Any) -> Any:
    """A field of a method's options that came when runs had been recorded: a run's config leaves it out at its default,
    so that runs keep their ids. Takes what `Field` takes."""
    return Field(default, json_schema_extra=_LATER, **told)


_LATER: dict[str, Any] = {"later": True}


class MethodConfig(Options):
    """Options of a method."""

    def kept(self) -> dict[str, Any]:
        """What a run's config keeps of them, as values of JSON: all but those that are `later` and at their default."""
        fields = type(self).model_fields.items()
        usual = {name for name, f in fields if f.json_schema_extra == _LATER and getattr(self, name) == f.default}
        return self.model_dump(mode="json", exclude=usual)


class Selection(Options):
    """How a run keeps the best of its sets: by networks that are trained on it and tested on held-out images.

    `fresh` is for each choice other networks than for the one before, and the later one of two equally good sets.
    """

    on: bool = Field(False, description="Whether the best set is kept, else the last.")
    heldout: float = Field(0.1, gt=0, lt=1, description="Share of the training set that is held out.")
    every: int | str = Field(500, description="Steps from one choice to the next; 5p are those of 5 passes.")
    students: int = Field(2, ge=1, description="Networks whose mean accuracy decides.")
    fresh: bool = Field(False, description="New networks for each choice, and the later of two equally good sets.")

    @field_validator("every")
    @classmethod
    def _some_steps(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value >= 1:
            return value
        if isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,8}p", value):
            return value
        raise ValueError("it is a number of steps, at least 1, or of passes over the real images, such as 5p")

    @property
    def passes(self) -> int | None:
        """`every` as a number of passes; None where it is one of steps."""
        return int(self.every[:-1]) if isinstance(self.every, str) else None


@dataclass(frozen=True)
class Layer:
    """Values from one place. `source` is what the record says of each of them."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved(Generic[M]):
    """A complete set of options and where each value came from."""

    config: M
    sources: dict[str, str]


@dataclass(frozen=True)
class Setting:
    """One `[[setting]]` of a preset file: options, and values of the run itself, for some datasets and ipc."""

    preset: str
    datasets: tuple[str, ...]
    ipcs: tuple[int | str, ...]
    source: str
    options: Mapping[str, Any]
    run: Mapping[str, Any]
    select: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All of it: values of the run, options, and of a selection."""
        return {**self.run, **self.options, **{f"select.{name}": value for name, value in self.select.items()}}

    def publishes(self, dataset: str, ipc: int | str) -> bool:
        """Whether it is a paper's for this dataset by name and this ipc; what holds for any dataset is no paper's."""
        return dataset in self.datasets and self.fits("paper", dataset, ipc)

    def fits(self, preset: str, dataset: str, ipc: int | str) -> bool:
        """Whether it applies. All but `trial` lie on top of the published ones, so that they take both."""
        presets = (preset,) if preset == "trial" else ("paper", preset)
        return (
            self.preset in presets
            and (ANY in self.datasets or dataset in self.datasets)
            and (ANY in self.ipcs or ipc in self.ipcs)
        )


def resolve(owner: str, model: type[M], layers: Sequence[Layer], ref: str = "") -> Resolved[M]:
    """Merge the layers over the model's defaults. `owner` names the model in errors, as in "mtt has no option", and
    `ref` is what a person named it by, if that is something else, such as "./idea.py:MyMethod".

    Raises: ConfigError for an unknown option or a value out of range.
    """
    values: dict[str, Any] = {}
    sources = {name: "default" for name in model.model_fields}
    for layer in layers:
        for name, value in layer.values.items():
            if name not in model.model_fields:
                hint = closest(name, list(model.model_fields))
                if isinstance(value, Mapping):
                    hint = hint or f"Options of {owner} stand without a table, as in `iterations = 100`. "
                shown = ref or owner
                raise ConfigError(f"{owner} has no option {name!r}. {hint}`ddbench show method {shown}` lists them.")
            values[name] = value
            sources[name] = layer.source
    try:
        config = model(**values)
    except ValidationError as error:
        raise ConfigError(explain(owner, error)) from None
    return Resolved(config, sources)


def explain(owner: str, error: ValidationError, known: Sequence[str] = ()) -> str:
    """A pydantic error as sentences: which option, which value, what was expected.

    `known` are the names that a person could have meant, of what a person wrote.
    """
    parts, unknown = [], ""
    for item in error.errors():
        where = ".".join(str(step) for step in item["loc"]) or "the whole"
        if item["type"] == "extra_forbidden":
            parts.append(f"{owner}: there is no {where!r}")
            if known:
                unknown = closest(where, list(known)).strip() or f"There are {', '.join(known)}."
            continue
        given = "" if item["type"] == "missing" else f" (got {_shown(item['input'])})"
        # A file of TOML has lists; that they become tuples is nobody's business.
        said = re.sub(r"\b([Tt])uple\b", "list", item["msg"].removeprefix("Value error, "))
        if not item["loc"] and item["type"] == "value_error":
            parts.append(f"{owner}: {said}")
            continue
        parts.append(f"{owner}: {where}: {said[0].lower()}{said[1:]}{given}")
    return f"{'; '.join(parts)}. {unknown}" if unknown else "; ".join(parts)


def _shown(value: Any) -> str:
    """A value in a message: what came from a stranger's file can be of any length and depth."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother, shown.maxlong = 2, 80, 80, 80
    try:
        return shown.repr(value)
    except ValueError:  # a whole number of too many digits
        return "a number of thousands of digits"


def parse_value(text: str) -> Any:
    """What a person types after `KEY=`: a TOML value, or else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    # No option is a date, and no date is a number.
    return text if isinstance(value, date | time) else value


def spelled(value: Any) -> str:
    """A value as it is typed after `KEY=`, so that `parse_value` and the option it is for read it as itself."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if parse_value(text) == value else json.dumps(value)


def parse_assignments(texts: Iterable[str], example: str = "--set iterations=100") -> dict[str, Any]:
    """`["lr_images=0.1", "augment=none"]` as a dict, in the order in which each was said last.

    Raises: ConfigError where there is no `=`; it shows `example`.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            option = example.partition(" ")[0]
            raise ConfigError(f"{option} takes KEY=VALUE, and {text!r} is not of that form. Example: {example}")
        values.pop(name.strip(), None)
        values[name.strip()] = parse_value(value)
    return values


def parse_selection(text: str) -> dict[str, Any] | bool:
    """What a person types after --select: "heldout=0.1,every=500,students=2", "on" or "none"."""
    if text in ("on", "none"):
        return text == "on"
    return parse_assignments(text.split(","), example="--select heldout=0.1,every=500,students=2")


def spelled_selection(select: Mapping[str, Any] | bool | None) -> str:
    """What `parse_selection` reads as this selection."""
    if not isinstance(select, Mapping):
        return "on" if select else "none"
    if not select.get("on", True):
        return "none"
    return ",".join(f"{name}={spelled(value)}" for name, value in select.items() if name != "on") or "on"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises: ConfigError when it is missing or not TOML."""
    try:
        with open_regular(path) as file:
            values = tomllib.loads(file.read().decode("utf-8"))
        _refuse_odd(values)
        return values
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be used: its values lie too deep.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.{_without_quotes(path, str(error))}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    except ValueError as error:  # a value that no setting has, or a whole number of thousands of digits
        raise ConfigError(f"{path} cannot be used: {error}.") from None


def _without_quotes(path: Path, error: str) -> str:
    """What to do where the line that is no TOML has a bare word for its value, as in `epochs = none`; else nothing."""
    place = re.search(r"at line (\d+)", error)
    lines = path.read_text(encoding="utf-8").splitlines()
    if place is None or int(place[1]) > len(lines):
        return ""
    word = re.search(r"=\s*([A-Za-z][\w./-]*)\s*(?:#.*)?$", lines[int(place[1]) - 1])
    if word is None:
        return ""
    meant = word[1].lower() if word[1].lower() in ("true", "false") else json.dumps(word[1])
    return f" Write {meant} for {word[1]}: words have quotes, and true and false small letters."


def _refuse_odd(value: Any) -> None:
    """Raise ValueError for what TOML has and no setting is."""
    match value:
        case date() | time():
            raise ValueError(f"{value} is a date or a time, and no setting is one")
        case bool():
            return
        case int() if abs(value) >= 2**63:
            raise ValueError(f"{_shown(value)} is larger than any whole number that a setting can be")
        case list():
            for part in value:
                _refuse_odd(part)
        case dict():
            for part in value.values():
                _refuse_odd(part)


def read_settings(path: Path) -> list[Setting]:
    """The settings of a preset file, in their order; a file is read once in a process, while nobody writes it.

    Raises: ConfigError where one lacks its dataset or source, and for whatever else is no setting.
    """
    return list(once(path, "settings", lambda: _read_settings(path)))


def _read_settings(path: Path) -> list[Setting]:
    settings = []
    content = read_toml(path)
    for key in sorted(content.keys() - {"setting"}):
        # A preset that nobody reads would leave a method's defaults in its place, without a word.
        raise ConfigError(f"{path}: {key!r} is not known. {closest(key, ['setting'])}Presets are [[setting]] tables.")
    tables = content.get("setting", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: write [[setting]] with two brackets, so that there can be several.")
    for number, table in enumerate(tables, start=1):
        rest = dict(table)
        try:
            dataset, source = rest.pop("dataset"), rest.pop("source")
        except KeyError as error:
            needed = str(error.args[0])
            near = [f" It has {key!r}. {hint}" for key in rest if (hint := closest(key, [needed]))]
            said = "".join(near[:1]).rstrip()
            raise ConfigError(f"{path}: setting {number} has no {needed!r}.{said}") from None
        run = rest.pop("run", {})
        if not isinstance(run, dict):
            raise ConfigError(f'{path}: run of setting {number} is a table, as in run = {{ backbone = "convnet" }}.')
        for key in run:
            if key not in RUN_KEYS:
                raise ConfigError(
                    f"{path}: setting {number} sets run.{key}. {closest(key, RUN_KEYS)}A preset may set "
                    f"{', '.join(RUN_KEYS)}."
                )
        ipc = rest.pop("ipc", ANY)
        # Where it is no table it is an option of a method that chooses by itself.
        select = rest.pop("select") if isinstance(rest.get("select"), dict) else {}
        settings.append(
            Setting(
                preset=rest.pop("preset", "paper"),
                datasets=_tuple(dataset),
                ipcs=_tuple(ipc),
                source=source,
                options=rest,
                run=run,
                select=select,
            )
        )
    return settings


def preset_layers(
    settings: Sequence[Setting], preset: str, dataset: str, ipc: int | str
) -> tuple[list[Layer], list[Layer]]:
    """The layers that apply: of options, and of values of the run (RUN_KEYS).

    Published settings come before others; inside each, the order of the file, so that later lines win.
    """
    fitting = _fitting(settings, preset, dataset, ipc)
    return _layers(fitting, "options"), _layers(fitting, "run")


def selection_layers(settings: Sequence[Setting], preset: str, dataset: str, ipc: int | str) -> list[Layer]:
    """The layers of values of a selection that apply, in the order of `preset_layers`."""
    return _layers(_fitting(settings, preset, dataset, ipc), "select")


def _fitting(settings: Sequence[Setting], preset: str, dataset: str, ipc: int | str) -> list[Setting]:
    return sorted((s for s in settings if s.fits(preset, dataset, ipc)), key=lambda s: s.preset != "paper")


def _layers(settings: Sequence[Setting], part: Literal["options", "run", "select"]) -> list[Layer]:
    return [Layer(f"preset {s.preset}: {s.source}", values) for s in settings if (values := getattr(s, part))]


@dataclass(frozen=True)
class Option:
    """One row of an option table."""

    name: str
    type: str
    default: str
    range: str
    description: str


def option_table(model: type[BaseModel]) -> list[Option]:
    """The options of a model, in the order of its fields."""
    rows = []
    for name, field in model.model_fields.items():
        kind = str(field.annotation)
        if isinstance(field.annotation, type) and not getattr(field.annotation, "__args__", None):
            kind = field.annotation.__name__
        limits = []
        for constraint in field.metadata:
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                value = getattr(constraint, attribute, None)
                if value is not None:
                    limits.append(f"{sign} {value}")
        kind = kind.replace("typing.", "")
        rows.append(Option(name, kind, repr(field.default), ", ".join(limits), field.description or ""))
    return rows


def _takes_none_and_no_text(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    kinds = get_args(field.annotation) if field is not None else ()
    return type(None) in kinds and str not in kinds


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)
