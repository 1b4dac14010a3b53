"""What results are called by: a record, a run, an id, a downloaded set, a method, or the name of a row of a board."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.data.catalogue import canonical
from ddbench.errors import ConfigError, DdbenchError, RunError, closest
from ddbench.files import sha256_of
from ddbench.foreign import published_sets
from ddbench.foreign.meant import Tell, holds_set
from ddbench.leaderboard.chosen import is_method, is_name, names_in
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.set_files import meant_on, require_record
from ddbench.leaderboard.statistics import TABLE, VARIANT, summarise
from ddbench.plugins import names_code, same_name
from ddbench.runs.record import RunRecord, read_record, readable
from ddbench.runs.rundir import RECORD, SPEC
from ddbench.text import budget, printable, some_of

if TYPE_CHECKING:
    from pandas import DataFrame

IDS = re.compile(r"[0-9a-f]{4,8}")
SHOWN = 5


@dataclass(frozen=True)
class Shelf:
    """The records among which names and ids are looked up: those of a runs folder, then those of a leaderboard.

    `dataset` and `ipc`, where they are given, are of the records that a name means. `tell` hears which of two things is
    meant, as `foreign.meant` says.
    """

    runs: Path
    leaderboards: Path
    dataset: str | None = None
    ipc: int | None = None
    tell: Tell = lambda text: None

    def find(self, ref: str) -> list[Path]:
        """The records that are meant, at least one.

        A path comes first: of a record, of a run, of a folder of runs, of a downloaded set that was judged here, or of
        the file of a method, which stands for what was made by it as it is now. Then the name of a published set, as
        `foreign.meant` says, which stands for the record that it is of.
        Then the beginning of an id, then a name. A name that the runs folder does not know is one of the leaderboard.
        Raises: RunError where nothing is found, an id is not enough, or a record is damaged; ConfigError for a name
        that nobody has.
        """
        path = Path(ref)
        if names_code(ref):
            return self._of_code(ref)
        if published_sets.is_name(ref):
            what = "run, record or set"
            one = meant_on(self.leaderboards, ref, Path(), self.tell, takes=_has_results, what=what)
            return self._at(path) if one.entry is None else [self._of_set(one.entry)]
        if path.exists():
            return self._at(path)
        if IDS.fullmatch(ref) and (found := self._with_id(ref)):
            return found
        for pool in (self._local, self._committed):
            if found := self._named(ref, pool):
                return found
        every = [record for pool in (self._local, self._committed) for record in pool.values()]
        known = sorted(self._table_names())
        asked = [] if self.dataset is None else [self.dataset]
        asked += [] if self.ipc is None else [budget(self.ipc)]
        there = f"on {', '.join(asked)} " if asked else ""
        cells = sorted({(record.run.dataset, record.run.ipc) for record in every})
        others = f"There are results on {'; '.join(f'{name}, {budget(ipc)}' for name, ipc in cells)}."
        if not cells:
            others = "There are no results at all. A first one: ddbench run --method dm --dataset digits"
        raise ConfigError(
            f"'{ref}' is no path, no id of a run, and no method or row of a board that has a result {there}in "
            f"{self.runs} or {self.leaderboards}. "
            + (f"{closest(ref, known)}There are results of: {', '.join(known)}." if known else others)
        )

    def one_budget(self, ref: str) -> list[Path]:
        """As `find`, where all records that are meant have to be on one dataset and of one budget.

        Raises: RunError in addition where they are not.
        """
        found = self.find(ref)
        cells = sorted({(record.run.dataset, record.run.ipc) for record in map(read_record, found)})
        if len(cells) > 1:
            told = ", ".join(f"{dataset} ipc {ipc}" for dataset, ipc in cells)
            raise RunError(f"'{ref}' has records on {told}. Say which with --dataset and --ipc.")
        return found

    def _at(self, path: Path) -> list[Path]:
        if path.is_file() and path.suffix == ".json":
            read_record(path)
            return [path]
        if (path / RECORD).is_file():
            read_record(path / RECORD)
            return [path / RECORD]
        if path.is_dir() and (below := sorted(path.rglob(RECORD))):
            return below
        if (path / SPEC).is_file():
            raise RunError(f"{path} is a run without a record. Run its command again, which goes on where it stopped.")
        return self._imported(path)

    def _of_set(self, entry: published_sets.SetEntry) -> Path:
        """The record that a published set is of. Raises: RunError where the leaderboard has none."""
        require_record(entry, self.leaderboards)
        return self.leaderboards / entry.record

    def _imported(self, path: Path) -> list[Path]:
        """The runs that a downloaded set has become."""
        hashes = _hashes(path)
        pools = (self._local, self._committed)
        found = [
            file
            for pool in pools
            for file, record in pool.items()
            if (record.imported is not None and record.imported.sha256 in hashes) or record.synthetic.sha256 in hashes
        ]
        if not found:
            raise RunError(
                f"{path} is no record, and no set that was judged here. `ddbench evaluate {path}` judges it."
            )
        return found

    def _of_code(self, ref: str) -> list[Path]:
        """The runs of a method that was given by its file."""
        every = {file: record for pool in (self._local, self._committed) for file, record in pool.items()}
        fitting = {file: record.run for file, record in every.items() if self._fits(record)}
        found = [file for file, run in fitting.items() if is_method(run.method, run.method_sha256, ref)]
        if not found:
            file = ref.partition(":")[0]
            name = printable(Path(file).name)
            others = sorted(
                {
                    f"{run.method}@{run.method_sha256[:8]}"
                    for run in fitting.values()
                    if run.method_sha256 and run.provided_by == name
                }
            )
            hint = f"Make one: ddbench run --method {ref}"
            if others:
                hint = f"Of it as it was there are: {some_of(others, SHOWN)}."
            raise RunError(f"no result here is of {file} as it is now. {hint}")
        return found

    def _with_id(self, ref: str) -> list[Path]:
        pools = (self._local, self._committed)
        found = [file for pool in pools for file, record in pool.items() if record.run.id.startswith(ref)]
        ids = sorted({read_record(file).run.id for file in found})
        if len(ids) > 1:
            shown = some_of(ids, SHOWN)
            raise RunError(f"{len(ids)} runs have an id that begins with {ref}: {shown}. Give more digits of it.")
        return found[:1]

    def _named(self, ref: str, pool: dict[Path, RunRecord]) -> list[Path]:
        fitting = {file: record for file, record in pool.items() if self._fits(record)}
        if found := [file for file, record in fitting.items() if same_name(record.run.method, ref)]:
            return found
        rows = labelled(collect(fitting))
        runs = set(rows.loc[[is_name(ref, names) for names in rows["names"]], "run"])
        return [file for file, record in fitting.items() if record.run.id in runs]

    def _table_names(self) -> set[str]:
        """What tables call the rows of all records that fit."""
        fitting = [file for pool in (self._local, self._committed) for file in pool if self._fits(pool[file])]
        rows = labelled(collect(fitting))
        return set(rows["method"]) | {name for names in rows["names"] for name in names.of_tables}

    def _fits(self, record: RunRecord) -> bool:
        same = self.dataset is None or canonical(self.dataset) == canonical(record.run.dataset)
        return same and self.ipc in (None, record.run.ipc)

    @cached_property
    def _local(self) -> dict[Path, RunRecord]:
        return dict(readable(sorted(self.runs.glob(f"*/*/*/*/{RECORD}"))))

    @cached_property
    def _committed(self) -> dict[Path, RunRecord]:
        return dict(readable(sorted((self.leaderboards / "records").rglob("*.json"))))


def labelled(frame: DataFrame) -> DataFrame:
    """The rows of `collect` with two columns more, what boards call the row that they are part of, its `label`, and all
    its `names`."""
    import pandas as pd

    key = [*TABLE, "judge", "method", *VARIANT]
    rows = summarise(frame)
    rows["names"] = pd.Series(names_in(rows), index=rows.index, dtype=object)
    return frame.merge(rows[[*key, "label", "names"]], on=key)


def _has_results(path: Path) -> bool:
    return holds_set(path) or any(path.rglob(RECORD))


def _hashes(path: Path) -> set[str]:
    if path.is_file():
        return {sha256_of(path)}
    from ddbench.foreign.formats import read

    with contextlib.suppress(DdbenchError):
        return {one.sha256 for one in read(path, None)}
    return set()
