"""Image classifiers of other libraries: "torchvision:resnet18", "torchvision:vgg11(dropout=0)", "timm:resnet10t".

Names are parsed and spelled without importing a library, or torch.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddbench.errors import ConfigError, closest

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]

_NAME = re.compile(r"(torchvision|timm):([A-Za-z0-9][A-Za-z0-9_]*)(?:\((.*)\))?", re.DOTALL)
_TEXT = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
# What the data decide, and what would fetch weights or return no logits.
_TAKEN = {
    "num_classes": "the dataset has its classes",
    "in_chans": "the dataset has its channels",
    **dict.fromkeys(("weights", "weights_backbone", "pretrained", "checkpoint_path"), "students start untrained"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), "students start untrained"),
    "features_only": "students return logits",
    "progress": "nothing is downloaded",
}


@dataclass(frozen=True)
class LibraryName:
    """A name taken apart: the library, its model, and arguments of the function that builds it."""

    library: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ",".join(f"{key}={_spelled(value)}" for key, value in sorted(self.arguments.items()))
        return f"{self.library}:{self.model}" + (f"({inside})" if inside else "")


def is_of_library(name: str) -> bool:
    """Whether a name says a library before a colon."""
    return name.partition(":")[0] in ("torchvision", "timm") and ":" in name


def parse(name: str) -> LibraryName:
    """A name taken apart. Raises: ConfigError where it is none, or has arguments that nobody may give."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"backbone {name!r} should be LIBRARY:NAME, or LIBRARY:NAME(argument=value), as in "
            "torchvision:vgg11(dropout=0)."
        )
    arguments = _arguments(name, match[3] or "")
    for key in arguments:
        if key in _TAKEN:
            raise ConfigError(f"backbone {name!r}: {key} cannot be given, because {_TAKEN[key]}. Leave it out.")
    return LibraryName(match[1], match[2], arguments)


def factory(name: str, shape: Shape, classes: int) -> Callable[[], nn.Module]:
    """What builds a network of a library, untrained. Raises: ConfigError for an unknown one, or a missing library."""
    parts = parse(name)
    make = {"torchvision": _torchvision, "timm": _timm}[parts.library]
    return make(parts, shape, classes)


def _torchvision(parts: LibraryName, shape: Shape, classes: int) -> Callable[[], nn.Module]:
    from torchvision import models

    _check_listed(parts, models.list_models(module=models), "torchvision.models.list_models()")
    size = parts.arguments.get("image_size", 224)
    if parts.model.startswith("vit_") and shape[1:] != (size, size):
        fitting = str(LibraryName("torchvision", parts.model, {**parts.arguments, "image_size": shape[1]}))
        raise ConfigError(
            f"{parts} takes images of {size}x{size}, and these have {shape[1]}x{shape[2]}. "
            + (
                f"{fitting} takes them."
                if shape[1] == shape[2]
                else "A vision transformer of torchvision wants squares."
            )
        )

    def make() -> nn.Module:
        with warnings.catch_warnings():
            # GoogLeNet and Inception announce another initialisation, some day.
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = models.get_model(parts.model, weights=None, num_classes=classes, **parts.arguments)
            return network

    return make


def _timm(parts: LibraryName, shape: Shape, classes: int) -> Callable[[], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"backbone {str(parts)!r} needs timm, which does not import here ({error}). Install it: "
            "pip install 'ddbench[timm]'"
        ) from None
    _check_listed(parts, timm.list_models(), "timm.list_models()")

    def make() -> nn.Module:
        network: nn.Module = timm.create_model(
            parts.model, pretrained=False, num_classes=classes, in_chans=shape[0], **parts.arguments
        )
        return network

    return make


def _check_listed(parts: LibraryName, listed: list[str], where: str) -> None:
    if parts.model not in listed:
        raise ConfigError(
            f"{parts.library} has no image classifier {parts.model!r}. {closest(parts.model, listed)}"
            f"{where} names them all."
        )


def _arguments(name: str, text: str) -> dict[str, Any]:
    unclear = (
        f"backbone {name!r}: in the brackets there should be argument=value, with commas between them, and values that "
        "are numbers, True, False, None, names in quotes, or tuples of such."
    )
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(unclear) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ConfigError(unclear)
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ConfigError(unclear) from None
        if keyword.arg is None or keyword.arg in found or not _is_plain(value):
            raise ConfigError(unclear)
        found[keyword.arg] = _one_spelling(value)
    return found


def _is_plain(value: Any, depth: int = 3) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    if isinstance(value, float):
        return abs(value) < float("inf")
    return value is None or isinstance(value, bool | int)


def _one_spelling(value: Any) -> Any:
    """Lists are tuples, and 0.0 is 0, so that one network has one name."""
    if isinstance(value, list | tuple):
        return tuple(_one_spelling(part) for part in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ",".join(map(_spelled, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
