"""Tables on a terminal: cells wrap, and where that is not enough, columns are left out and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2  # between two columns
HEAD = 2  # characters that tabulate leaves beside a header
SHORT = 10  # such cells stay on one line where words are kept whole: "239.4 kB"
NARROW = 14  # no column has to be narrower, unless all that is in it is


@dataclass(frozen=True)
class Fitted:
    """Which columns are printed, by place, how wide each may be in characters, and which headers were left out."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    left_out: tuple[str, ...]


def for_tabulate(rows: Sequence[Sequence[str]]) -> list[list[str | bool]]:
    """Rows whose texts tabulate prints as they are, also where it wraps a column.

    There it makes a truth value of the texts "True" and "False", and both of them are true; a value stays what it is.
    """
    values = {"True": True, "False": False}
    return [[values.get(cell, cell) for cell in row] for row in rows]


def fit(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    expendable: Sequence[int],
    *,
    whole_words: bool = False,
) -> Fitted:
    """The columns that fit into so many characters; of those that are `expendable`, the first goes first.

    A column that is not expendable stays, even where that is too wide. With `whole_words` no column is narrower than
    its longest word, for names and paths that somebody copies, and columns are left out before cells take more than
    two lines.
    """
    natural = [max(len(head) + HEAD, *(len(row[k]) for row in rows)) for k, head in enumerate(headers)]
    least = [min(wide, NARROW) for wide in natural]
    if whole_words:
        words = [max(_longest(head) + HEAD, *(_longest(row[k]) for row in rows)) for k, head in enumerate(headers)]
        cells = [max(len(row[k]) for row in rows) for k in range(len(headers))]
        halves = [min(cell, max(SHORT, (cell + 1) // 2 + 1)) for cell in cells]
        least = [max(pair) for pair in zip(words, halves, strict=True)]
    kept, going = list(range(len(headers))), list(expendable)
    while going and _total(least, kept) > width:
        kept.remove(going.pop(0))
    widths = {k: natural[k] for k in kept}
    for floor in [least, words] if whole_words else [least]:
        _narrow(widths, floor, width)
    gone = tuple(headers[k] for k in range(len(headers)) if k not in kept)
    return Fitted(tuple(kept), tuple(widths[k] for k in kept), gone)


def _narrow(widths: dict[int, int], least: Sequence[int], width: int) -> None:
    """Take from the widest columns what is too much, in place, until each has its least."""
    while sum(widths.values()) + GAP * (len(widths) - 1) > width:
        spare = [k for k in widths if widths[k] > least[k]]
        if not spare:
            return
        widths[max(spare, key=lambda k: (widths[k], k))] -= 1


def _longest(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[k] for k in kept) + GAP * (len(kept) - 1)
