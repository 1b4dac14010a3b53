"""The part of a board that somebody asks for. What is shown stays as it was compared with everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.data.catalogue import canonical
from ddbench.evaluation.meant import as_recorded, ids_of, is_any, is_protocol
from ddbench.files import sha256_of
from ddbench.plugins import names_code, same_name

if TYPE_CHECKING:
    from pandas import DataFrame, Series


@dataclass(frozen=True)
class Chosen:
    """Which rows of a summary are meant. An empty field leaves it open.

    Datasets, methods and judges are taken in any spelling, protocols with or without a version, and judges also by how
    their names begin: "convnet" is every ConvNet, "own" the backbone that made the set. Methods, protocols and judges
    that are files are named by them too, and the method of a file also as boards call it, "idea@0fb6bd4d".
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
            pairs = zip(summary["method"], summary["method_sha256"], strict=True)
            meant = [any(is_method(*pair, said) for said in self.methods) for pair in pairs]
            named &= type(named)(meant, index=named.index, dtype=bool)
        shown = named & fits("protocol", ids, is_protocol) & fits("ipc", self.ipcs, eq) & fits("track", self.tracks, eq)
        boards = set(summary.loc[shown & (summary["ipc"] > 0), "dataset"])
        return summary[shown | (named & (summary["ipc"] == 0) & summary["dataset"].isin(boards))]

    def says_what_there_is(self, summary: DataFrame) -> str:
        """The sentence for a choice that no row fits."""
        there = (
            f"--{name} {', '.join(map(str, sorted(set(summary[name]))))}"
            for name in ("dataset", "ipc", "method", "protocol", "judge", "track")
        )
        return f"No row of the board fits. There are {'; '.join(there)}."


def is_method(method: str, sha256: str | None, said: str) -> bool:
    """Whether a method is meant: by its name, or where it came from a file, by "NAME@DIGITS" or as that file is now."""
    if names_code(said):
        path = Path(said.partition(":")[0]).expanduser()
        return bool(sha256) and path.is_file() and sha256_of(path) == sha256
    return same_name(method, said) or (bool(sha256) and same_name(f"{method}@{(sha256 or '')[:8]}", said))
