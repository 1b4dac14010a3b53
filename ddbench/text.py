"""How numbers and names are printed, and what is left of texts that come from elsewhere."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

MOST_COUNT = 2**53  # the largest whole number that every reader of JSON keeps
MOST_LINE = 1000
MOST_TEXT = 20_000
MOST_NAME = 100

PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def duration(seconds: float) -> str:
    """ "0.3 s", "42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes in decimal units: "512 B", "2.6 kB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def counted(count: float) -> str:
    """A large number in a narrow column: "360", "15k", "1.2M"."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f}".removesuffix(".0") + unit
    return f"{count:.0f}"


def number_of(count: int, what: str) -> str:
    """How many of what, as in "1 student", "2 students"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def percent(fraction: float) -> str:
    """A fraction as the field prints it: % with one decimal.

    A mean that lies in the middle between two of them is printed alike, however it was added up.
    """
    return f"{round(100 * fraction, 9):.1f}"


def budget(ipc: int) -> str:
    """Images per class, in words: "ipc 10", or "whole dataset" for 0."""
    return f"ipc {ipc}" if ipc else "whole dataset"


def budget_name(ipc: int) -> str:
    """Images per class, as folders are called: "ipc10", or "whole" for 0."""
    return f"ipc{ipc}" if ipc else "whole"


def some_of(names: Sequence[object], most: int) -> str:
    """The first `most` names, and "…" after them where there are more: "a, b, …"."""
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def of_board(command: str, leaderboards: Path, *words: object) -> str:
    """A command of ddbench on a leaderboard as a person types it, words quoted, with the folder where it is not the
    usual one: "ddbench leaderboard add 'my run' --leaderboards boards"."""
    where = [] if leaderboards == Path("leaderboards") else ["--leaderboards", str(leaderboards)]
    return shlex.join(["ddbench", *command.split(), *map(str, words), *where])


def safe_name(name: str) -> str:
    """A name as part of a path: whatever is no letter, digit or one of . _ @ + - becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._@+-]", "-", name)


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
