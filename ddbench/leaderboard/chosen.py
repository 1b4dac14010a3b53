"""The part of a board that somebody asks for. What is shown stays as it was compared with everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.data.catalogue import canonical
from ddbench.evaluation.meant import as_recorded, ids_of, is_any, is_protocol
from ddbench.files import sha256_of
from ddbench.leaderboard.published import called, read_published
from ddbench.leaderboard.tracks import name_of
from ddbench.plugins import names_code, same_name

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MARKS = " §‡✓†*"  # that boards print behind the label of a row, or behind what stands in it


@dataclass(frozen=True)
class Chosen:
    """Which rows of a summary are meant. An empty field leaves it open.

    Datasets, methods and judges are taken in any spelling, protocols with or without a version, and judges also by how
    their names begin: "convnet" is every ConvNet, "own" the backbone that made the set. Methods are also named as
    tables name their rows: "random mosaics", "cafe+dsa", "idea@0fb6bd4d" of a file. Methods, protocols and judges that
    are files are named by them too.
    """

    datasets: tuple[str, ...] = ()
    ipcs: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()

    def of(self, summary: DataFrame) -> DataFrame:
        """The rows that are meant, with ranks and differences as in the whole summary.

        The line of the whole dataset stands below the boards of all its budgets and protocols, and stays there.
        """

        def fits(name: str, wanted: Sequence[Any], alike: Callable[[Any, Any], bool]) -> Series[bool]:
            return (
                summary[name].map(lambda value: not wanted or any(alike(value, said) for said in wanted)).astype(bool)
            )

        named = fits("dataset", self.datasets, lambda name, said: canonical(name) == canonical(said))
        judges, ids = as_recorded(self.judges), ids_of(self.protocols)
        pairs = zip(summary["judge"], summary.get("train_backbone", summary["judge"]), strict=True)
        by = [is_any(judge, judges, own) for judge, own in pairs]
        named &= type(named)(by, index=named.index, dtype=bool)
        if self.methods:
            meant = [
                any(
                    is_method(row["method"], row["method_sha256"], said) or is_name(said, names)
                    for said in self.methods
                )
                for row, names in zip(summary.to_dict("records"), names_in(summary), strict=True)
            ]
            named &= type(named)(meant, index=named.index, dtype=bool)
        shown = named & fits("protocol", ids, is_protocol) & fits("ipc", self.ipcs, eq) & fits("track", self.tracks, eq)
        boards = set(summary.loc[shown & (summary["ipc"] > 0), "dataset"])
        return summary[shown | (named & (summary["ipc"] == 0) & summary["dataset"].isin(boards))]

    def says_what_there_is(self, summary: DataFrame) -> str:
        """The sentence for a choice that no row fits."""
        known = {name: set(summary[name]) for name in ("dataset", "ipc", "method", "protocol", "judge", "track")}
        known["method"] |= {name for names in names_in(summary) for name in names.of_tables}
        there = (f"--{name} {', '.join(map(str, sorted(values)))}" for name, values in known.items())
        return f"No row of the board fits. There are {'; '.join(there)}."


def is_method(method: str, sha256: str | None, said: str) -> bool:
    """Whether a method is meant: by its name, or where it came from a file, by "NAME@DIGITS" or as that file is now."""
    if names_code(said):
        path = Path(said.partition(":")[0]).expanduser()
        return bool(sha256) and path.is_file() and sha256_of(path) == sha256
    return same_name(method, said) or (bool(sha256) and same_name(f"{method}@{(sha256 or '')[:8]}", said))


@dataclass(frozen=True)
class Names:
    """What a row is called beside its method: by tables of one row a method, as "random mosaics" and "cafe+dsa", and by
    boards, whose `label` tells all settings of a method apart."""

    of_tables: tuple[str, ...]
    label: str


def names_in(summary: DataFrame) -> list[Names]:
    """The names of each row of a summary."""
    published = set(read_published()["method"])

    def names(row: dict[Any, Any]) -> Names:
        config = json.loads(row["config"])
        both = row["method"], called(row["method"], config, published)
        return Names(tuple(dict.fromkeys(name_of(one, row["control"], config) for one in both)), row["label"])

    return [names(row) for row in summary.to_dict("records")]


def is_name(said: str, names: Names) -> bool:
    """Whether a row is meant by one of its names, with the marks of a board or without."""
    bare = said.rstrip(MARKS)
    return any(same_name(bare, name) for name in (*names.of_tables, names.label))
