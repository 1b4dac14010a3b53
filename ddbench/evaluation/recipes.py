"""Recipes: a protocol and variants of it with one thing changed each, at equally many student image-forwards.

A variant is a protocol of its own, with its own name and digest. How long a student trains is no part of a variant: it
is a budget of images, the same for every recipe and every set, and only recipes of the factor `epochs` have a multiple
of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from ddbench.config import explain
from ddbench.errors import ConfigError, closest
from ddbench.evaluation.forwards import LEGACY, expected_forwards
from ddbench.evaluation.protocol import DistillOptions, Protocol
from ddbench.training.options import SGDOptions

BASE = "base"
CUTMIX = "cutmix"
MIXINGS = ("mixing", "mixing@2")  # as in training.plan, which needs torch
FACTORS = ("optimizer", "epochs", "batch", "augment", "labels")
"""What can be changed, in the order of a table."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},
}
"""An optimiser comes with the step size and weight decay that the field uses with it: dsa@1, ld@1, ncfm@1."""

LABELS: dict[str, dict[str, Any]] = {
    "hard": {"trainer": "sgd", "labels": "hard"},
    "soft": {"trainer": "sgd", "labels": "soft"},
    "fixed": {"trainer": "distill", "labels": "soft", "options": {"targets": "fixed"}},
    "teacher": {"trainer": "distill", "labels": "soft", "options": {"targets": "teacher"}},
}
"""Classes; the set's own labels; a teacher's, one for each image; a teacher's, on line."""

USUAL: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adam", "adamw"),
    "epochs": ("1/4", "4"),
    "batch": (32,),
    "augment": ("none", CUTMIX),
    "labels": ("soft", "teacher"),
}
"""What is changed where nobody says it."""

_BUDGET = ("epochs", "epochs_augmented", "steps", "forwards")
_OF_A_RECIPE = ("name", "trainer", "options", "augment", "labels")


@dataclass(frozen=True)
class GridRecipe:
    """A protocol of a grid: which factors have which value, and how many times the grid's budget it is given."""

    protocol: Protocol
    changes: tuple[tuple[str, str], ...] = ()
    times: Fraction = Fraction(1)

    @property
    def name(self) -> str:
        """As tables print it: base, optimizer=adam, or several of them."""
        return ", ".join(f"{factor}={value}" if factor else value for factor, value in self.changes) or BASE

    def forwards_of(self, forwards: int) -> int:
        """Images that a student trains on where the grid's budget is `forwards`: to the nearest one, at least one."""
        return max(1, round(self.times * forwards))

    def at(self, forwards: int, *, backbone: str, dataset: str, images: int) -> Protocol:
        """The protocol under which a student trains on this budget, of a set of so many images.

        It is the variant itself where that says so by its own epochs or steps, so that the cell is one of any other
        evaluation by it; else the variant with a budget of images, whose students have the same seeds.
        """
        wanted = self.forwards_of(forwards)
        if expected_forwards(self.protocol, backbone, dataset, images) == wanted:
            return self.protocol
        options = self.protocol.options.model_copy(update={"forwards": wanted})
        return self.protocol.model_copy(update={"options": options})


def recipes_of(
    base: Protocol,
    factors: Mapping[str, Sequence[Any]],
    own: Sequence[Mapping[str, Any]] = (),
    *,
    product: bool = False,
) -> list[GridRecipe]:
    """The base, then its variants with one factor changed each, or with `product` all combinations; then one's own.

    Values of a factor that the base has anyway make no variant. A recipe of one's own is a table with a name and any of
    trainer, options, augment and labels, laid over those of the base.
    Raises: ConfigError for a base that trains no network by minibatches, and for an unknown factor or value.
    """
    if base.trainer not in ("sgd", "distill") or not isinstance(base.options, SGDOptions):
        raise ConfigError(
            f"a grid changes how students are trained by minibatches, and protocol {base.id} has the trainer "
            f"{base.trainer!r}. Take one with the trainer sgd or distill, such as dsa."
        )
    for name in factors:
        if name not in FACTORS:
            raise ConfigError(f"there is no factor {name!r}. {closest(name, FACTORS)}There are {', '.join(FACTORS)}.")
    values = {name: _values(name, factors[name]) for name in FACTORS if name in factors}
    if product:
        choices = itertools.product(*([None, *values[name]] for name in values))
        changed = [{n: v for n, v in zip(values, one, strict=True) if v is not None} for one in choices]
    else:
        changed = [{}, *({name: value} for name in values for value in values[name])]
    first: dict[tuple[str, Fraction], GridRecipe] = {}
    for one in [*(_variant(base, change) for change in changed), *(_own(base, table) for table in own)]:
        recipe = GridRecipe(base) if _is_base(one, base) else one
        first.setdefault((recipe.protocol.digest, recipe.times), recipe)
    return list(first.values())


def parse_factors(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["optimizer=adam,adamw", "epochs=1/4"]` by factor. Raises: ConfigError where a text has another form."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not equals or not all(parts):
            raise ConfigError(
                f"{text!r} is no part of a grid: that is FACTOR=VALUE,VALUE, as in optimizer=adam,adamw, with a factor "
                f"of {', '.join(FACTORS)}; or a TOML file; or usual."
            )
        found.setdefault(name.strip(), []).extend(parts)
    return found


def base_forwards(base: Protocol, *, backbone: str, dataset: str, images: int) -> int:
    """Images that a student of the base trains on, of a set of so many. Raises: ConfigError where that is left open."""
    found = expected_forwards(base, backbone, dataset, images)
    if not found:
        raise ConfigError(
            f"protocol {base.id} leaves it to a set how long a student trains. Say how many images a student is to "
            "train on, as in --forwards 100000."
        )
    return found


def _values(factor: str, given: Sequence[Any]) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError(f"the factor {factor} needs a list of values; got {given!r}.")
    return list(dict.fromkeys(_value(factor, one) for one in given))


def _value(factor: str, given: Any) -> Any:
    match factor:
        case "optimizer" | "labels":
            known = OPTIMIZERS if factor == "optimizer" else LABELS
            if given not in known:
                hint = closest(str(given), list(known))
                raise ConfigError(f"the factor {factor} has no value {given!r}. {hint}There are {', '.join(known)}.")
            return given
        case "epochs":
            return _share(given)
        case "batch":
            if isinstance(given, bool) or not re.fullmatch("[1-9][0-9]{0,8}", str(given)):
                raise ConfigError(f"the factor batch is a number of images, from 1 to 999999999; got {given!r}.")
            return int(given)
        case _:
            return _augmentation(given)


def _augmentation(given: Any) -> str:
    from ddbench.engine.augment import one_after_another, parse_strategy, resolve_strategy

    if not isinstance(given, str) or not re.fullmatch("[a-z][a-z0-9_@+]*", given):
        raise ConfigError(f"the factor augment is none, {CUTMIX}, or what a protocol's augment can be; got {given!r}.")
    if given not in (CUTMIX, *MIXINGS, *LEGACY):
        for strategy in one_after_another(resolve_strategy(given, digits=False)):
            parse_strategy(strategy)
    return given


def _share(given: Any) -> Fraction:
    if not isinstance(given, bool) and len(str(given)) <= 12:
        try:
            share = Fraction(str(given))
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if 0 < share <= 1000:
            return share
    raise ConfigError(
        f"the factor epochs is a multiple of the base's training, such as 1/4 or 2, above 0 and at most 1000; got "
        f"{given!r}."
    )


def _variant(base: Protocol, change: Mapping[str, Any]) -> GridRecipe:
    """The base with some factors at other values."""
    fields: dict[str, Any] = {"trainer": base.trainer, "augment": base.augment, "labels": base.labels}
    options: dict[str, Any] = {}
    for factor, value in change.items():
        match factor:
            case "optimizer":
                # Of the base's own optimiser the base knows the step size.
                options |= OPTIMIZERS[value] if value != base.options.optimizer else {}
            case "batch":
                options["batch"] = value
            case "augment" if value == CUTMIX:
                options["cutmix"] = 0.5
            case "augment":
                fields["augment"] = value
                options |= {"cutmix": 0.0} if value == "none" else {}
            case "labels":
                table = LABELS[value]
                fields |= {"trainer": table["trainer"], "labels": table["labels"]}
                options |= table.get("options", {})
    name = "-".join([base.name, *(f"{factor}-{_in_a_name(value)}" for factor, value in change.items())])
    changes = tuple((factor, str(value)) for factor, value in change.items())
    return GridRecipe(_made(base, name, fields, options), changes, change.get("epochs", Fraction(1)))


def _own(base: Protocol, table: Mapping[str, Any]) -> GridRecipe:
    for key in table:
        if key not in _OF_A_RECIPE:
            option = any(key in kind.model_fields for kind in (SGDOptions, DistillOptions))
            hint = f"It is an option: options = {{ {key} = … }}. " if option else closest(key, _OF_A_RECIPE)
            raise ConfigError(f"a recipe has no {key!r}. {hint}It has {', '.join(_OF_A_RECIPE)}.")
    name, options = table.get("name"), table.get("options", {})
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9-]{0,60}", name) or name == BASE:
        raise ConfigError(
            f"a recipe needs a name of small letters, digits and dashes, other than {BASE}; got {name!r}."
        )
    if not isinstance(options, Mapping):
        raise ConfigError(f"the options of recipe {name} are a table; got {options!r}.")
    for key in _BUDGET:
        if key in options:
            raise ConfigError(f"recipe {name} sets {key}, and how long students train is the grid's. Leave it out.")
    fields = {key: table.get(key, getattr(base, key)) for key in ("trainer", "augment", "labels")}
    if fields["trainer"] not in ("sgd", "distill"):
        raise ConfigError(f"recipe {name} has the trainer {fields['trainer']!r}; in a grid it is sgd or distill.")
    return GridRecipe(_made(base, f"{base.name}-{name}", fields, options), (("", name),))


def _made(base: Protocol, name: str, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Protocol:
    """The protocol of a variant, with the options of its trainer."""
    kind = DistillOptions if fields["trainer"] == "distill" else SGDOptions
    kept = {key: getattr(base.options, key) for key in kind.model_fields if hasattr(base.options, key)}
    shown = f"the recipe {name}"
    try:
        trained = kind(**{**kept, **options})
        return Protocol(
            name=name, version=base.version, options=trained, backbones=base.backbones, students=base.students,
            source=f"a variant of {base.id}", **fields,
        )  # fmt: skip
    except ValidationError as error:
        raise ConfigError(explain(shown, error, [key for key in kind.model_fields if key not in _BUDGET])) from None


def _is_base(recipe: GridRecipe, base: Protocol) -> bool:
    """Whether a recipe differs from the base in its name alone. A multiple of its training is more than that."""
    same = recipe.protocol.model_copy(update={"name": base.name})
    return same.digest == base.digest and recipe.times == 1


def _in_a_name(value: Any) -> str:
    if isinstance(value, Fraction):
        below = f"-over-{value.denominator}" if value.denominator > 1 else ""
        return f"times-{value.numerator}{below}"
    return re.sub("[^a-z0-9]+", "-", str(value)).strip("-")


def full_step(protocol: Protocol, images: int, classes: int) -> int:
    """Images in a full step of a set of so many, of so many classes; those of the set where the protocol leaves the
    batch to it."""
    return min(protocol.options.batch_of(images, classes) or images, images)
