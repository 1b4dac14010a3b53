"""Texts that come from elsewhere: how long they may be, and what is left of them where they are printed."""

from __future__ import annotations

import unicodedata

MOST_LINE = 1000
MOST_TEXT = 20_000
MOST_NAME = 100

PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def printable(text: str, most: int = MOST_TEXT, *, lines: bool = False) -> str:
    """The text without what a terminal or a table would act on; such characters become "�".

    Control characters, marks that turn the direction of writing, halves of surrogate pairs, and line ends unless
    `lines`; longer texts are cut.
    """
    if len(text) <= most and text.isprintable():
        return text
    shown = "".join("�" if acts(sign, lines) else sign for sign in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 2]} …"


# Marks that turn the direction of writing, so that a text can look like another one.
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def acts(sign: str, lines: bool) -> bool:
    """Whether a terminal or a table would act on a character; line ends and tabs only where they are not `lines`."""
    if sign in _TURNING:
        return True
    # Zl and Zp are line ends of Unicode's own.
    return unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") and not (lines and sign in "\n\t")
