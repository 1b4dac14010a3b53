"""The part of a board that somebody asks for. What is shown stays as it was compared with everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from typing import TYPE_CHECKING, Any

from ddbench.data.catalogue import canonical
from ddbench.plugins import same_name

if TYPE_CHECKING:
    from pandas import DataFrame, Series


@dataclass(frozen=True)
class Chosen:
    """Which rows of a summary are meant. An empty field leaves it open.

    Datasets and methods are taken in any spelling, protocols with or without a version, and judges also by how their
    names begin: "convnet" is every ConvNet.
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
        named &= fits("method", self.methods, same_name) & fits("judge", self.judges, _begins)
        shown = (
            named
            & fits("protocol", self.protocols, _is_version)
            & fits("ipc", self.ipcs, eq)
            & fits("track", self.tracks, eq)
        )
        boards = set(summary.loc[shown & (summary["ipc"] > 0), "dataset"])
        return summary[shown | (named & (summary["ipc"] == 0) & summary["dataset"].isin(boards))]

    def says_what_there_is(self, summary: DataFrame) -> str:
        """The sentence for a choice that no row fits."""
        there = (
            f"--{name} {', '.join(map(str, sorted(set(summary[name]))))}"
            for name in ("dataset", "ipc", "method", "protocol", "judge", "track")
        )
        return f"No row of the board fits. There are {'; '.join(there)}."


def _begins(judge: str, said: str) -> bool:
    judge, said = judge.lower(), said.lower()
    return judge == said or (judge.startswith(said) and not judge[len(said)].isalnum())


def _is_version(protocol: str, said: str) -> bool:
    return same_name(said, protocol) or same_name(said, protocol.partition("@")[0])
