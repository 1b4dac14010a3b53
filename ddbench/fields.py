"""Kinds of values that come from files, each checked in one place before anything is done with them.

Names become parts of paths, counts become sizes, and texts are printed: whatever a model reads from a file is
of one of these kinds. No coercion: true is no number, and "5" is none either.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict

from ddbench.text import MOST_COUNT, MOST_LINE, MOST_NAME, MOST_TEXT, PLAIN_NAME, acts

MOST_DEPTH = 32  # of values inside values


def _line(text: str) -> str:
    if any(acts(sign, lines=False) for sign in text):
        raise ValueError("it should be one line without control characters")
    return text


def _text(text: str) -> str:
    if any(acts(sign, lines=True) for sign in text):
        raise ValueError("it should be text without control characters")
    return text


def _no_file(name: str) -> str:
    # A reference of this form is a file of Python, which would be run.
    if name.endswith(".py"):
        raise ValueError("it should be a name, and no file of Python")
    return name


def _architecture(name: str) -> str:
    _line(name)
    if name.startswith((".", "/", "~")) or ".." in name or "\\" in name or name.count("/") > 1 or not name:
        raise ValueError("it should be the name of an architecture, without a path")
    return name


def plain(value: Any) -> Any:
    """A value that JSON can hold, checked to the bottom: finite numbers, whole ones that fit, printable texts.

    Raises: ValueError for anything else, and for values that lie too deep.
    """
    _check_plain(value, MOST_DEPTH)
    return value


def _check_plain(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"its values lie more than {MOST_DEPTH} deep")
    match value:
        case None | bool():
            return
        case int():
            if abs(value) > MOST_COUNT:
                raise ValueError("it holds a whole number that is too large")
        case float():
            if not math.isfinite(value):
                raise ValueError("it holds a number that is not finite")
        case str():
            _text(value)
        case list() | tuple():
            for part in value:
                _check_plain(part, depth - 1)
        case dict():
            for name, part in value.items():
                if not isinstance(name, str):
                    raise ValueError("it holds a name that is no text")
                _line(name)
                _check_plain(part, depth - 1)
        case _:
            raise ValueError(f"it holds a {type(value).__name__}")


Name = Annotated[str, Strict(), Field(pattern=PLAIN_NAME, max_length=MOST_NAME), AfterValidator(_no_file)]
"""Becomes a part of a path, or is looked up: letters, digits, dots, dashes and underscores, no dot in front, no .py."""

Architecture = Annotated[str, Strict(), Field(max_length=200), AfterValidator(_architecture)]
"""A backbone, as `backbones.names.canonical` spells it: built in, of a package, or of a file by its name alone."""

Line = Annotated[str, Strict(), Field(max_length=MOST_LINE), AfterValidator(_line)]
Text = Annotated[str, Strict(), Field(max_length=MOST_TEXT), AfterValidator(_text)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=MOST_COUNT)]
Positive = Annotated[int, Strict(), Field(ge=1, le=MOST_COUNT)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
RunId = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{8}$")]
Sha256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]
Hex = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]+$", max_length=64)]
PROTOCOL_ID = r"^[a-z][a-z0-9-]*@[1-9][0-9]*$"
ProtocolId = Annotated[str, Strict(), Field(pattern=PROTOCOL_ID, max_length=MOST_NAME)]
Plain = Annotated[Any, AfterValidator(plain)]
PlainDict = Annotated[dict[str, Any], AfterValidator(plain)]
