"""Tables on a terminal: cells wrap, and where that is not enough, columns are left out and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2  # between two columns
HEAD = 2  # characters that tabulate leaves beside a header
NARROW = 14  # no column has to be narrower, unless all that is in it is


@dataclass(frozen=True)
class Fitted:
    """Which columns are printed, by place, how wide each may be in characters, and which headers were left out."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    left_out: tuple[str, ...]


def fit(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, expendable: Sequence[int]) -> Fitted:
    """The columns that fit into so many characters; of those that are `expendable`, the first goes first.

    A column that is not expendable stays, even where that is too wide.
    """
    natural = [max(len(head) + HEAD, *(len(row[k]) for row in rows)) for k, head in enumerate(headers)]
    least = [min(wide, NARROW) for wide in natural]
    kept, going = list(range(len(headers))), list(expendable)
    while going and _total(least, kept) > width:
        kept.remove(going.pop(0))
    widths = {k: natural[k] for k in kept}
    while sum(widths.values()) + GAP * (len(kept) - 1) > width:
        spare = {k: widths[k] - least[k] for k in kept if widths[k] > least[k]}
        if not spare:
            break
        widths[max(spare, key=lambda k: (widths[k], k))] -= 1
    gone = tuple(headers[k] for k in range(len(headers)) if k not in kept)
    return Fitted(tuple(kept), tuple(widths[k] for k in kept), gone)


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[k] for k in kept) + GAP * (len(kept) - 1)
