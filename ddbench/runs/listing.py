"""The runs under a runs folder: what each is, what became of it, what it takes on the disk. Opens no set."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ddbench.data.catalogue import canonical
from ddbench.errors import RunError
from ddbench.evaluation.protocol import judged_by
from ddbench.files import read_json
from ddbench.plugins import same_name
from ddbench.runs.record import EvaluationPart, RunRecord, read_record
from ddbench.runs.rundir import ATTEMPTS, COST, FAILURE, LOCKS, RECORD, SET, SPEC, RunDir
from ddbench.runs.runspec import RunSpec
from ddbench.runs.states import RunState, status_from
from ddbench.text import budget_name, some_of

ListedState = Literal[RunState, "damaged"]
LISTED_STATES: tuple[ListedState, ...] = ("done", "failed", "running", "interrupted", "damaged")

_DEPTH = 4  # DATASET/BUDGET/METHOD/FOLDER
_NAMED = re.compile(r"(?P<backbone>.+)-s(?P<seed>\d+)-(?P<id>[0-9a-f]{8})")
_LAST = 10**6
_SHOWN = 5  # of the runs that a prefix fits


@dataclass(frozen=True)
class Accuracy:
    """The mean over the students of one judge, a fraction. `others` counts the other judges with an accuracy."""

    mean: float
    protocol: str
    judge: str
    others: int = 0


@dataclass(frozen=True)
class Listed:
    """One run. Of a damaged one `spec` and `record` may be missing, and the names are those of its folders.

    `bytes` is what its files hold and `changed` the time at which the last of them was written, as seconds since 1970.
    """

    folder: Path
    id: str
    method: str
    dataset: str
    ipc: int | None
    seed: int | None
    state: ListedState
    why: str
    bytes: int
    changed: float
    spec: RunSpec | None = field(default=None, repr=False)
    record: RunRecord | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> Accuracy | None:
        """Accuracy by the first judge of the run's first protocol, where there is one."""
        return first_accuracy(self.record, self.spec) if self.record is not None else None

    @property
    def condensed(self) -> bool:
        """Whether the set is there and a record describes it, so that nothing is left to condense."""
        return self.record is not None and (self.folder / SET).is_file()

    def to_json(self) -> dict[str, Any]:
        """The entry that `ddbench runs list --json` prints."""
        first = self.accuracy
        shown = None if first is None else {"mean": first.mean, "protocol": first.protocol, "judge": first.judge}
        return {
            "folder": str(self.folder),
            "id": self.id,
            "method": self.method,
            "dataset": self.dataset,
            "ipc": self.ipc,
            "seed": self.seed,
            "state": self.state,
            "why": self.why,
            "accuracy": shown,
            "bytes": self.bytes,
            "changed": datetime.fromtimestamp(self.changed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


@dataclass(frozen=True)
class Wanted:
    """Which runs are meant. An empty field leaves it open."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    ipcs: tuple[int, ...] = ()
    states: tuple[str, ...] = ()

    def fits(self, run: Listed) -> bool:
        """Whether a run is one of them."""
        return (
            self.names_fit(run.method, run.dataset)
            and (not self.ipcs or run.ipc in self.ipcs)
            and (not self.states or run.state in self.states)
        )

    def names_fit(self, method: str, dataset: str) -> bool:
        """Whether method and dataset are among those that are meant, however they were spelled."""
        return (not self.methods or any(same_name(name, method) for name in self.methods)) and (
            not self.datasets or canonical(dataset) in map(canonical, self.datasets)
        )

    @property
    def everything(self) -> bool:
        """Whether nothing is said, so that all runs are meant."""
        return not (self.methods or self.datasets or self.ipcs or self.states)


def folders(root: Path) -> Iterator[Path]:
    """The folders of runs under a runs folder by path, damaged ones too: what has a spec, or the name of a run."""
    level = [root]
    for _ in range(_DEPTH):
        level = [path for folder in level for path in _inside(folder)]
    yield from (path for path in level if _is_run(path))


def list_runs(root: Path, wanted: Wanted | None = None) -> list[Listed]:
    """The runs under a runs folder by path; folders that hold nothing of a run are left out."""
    # By the name of the folder first: what is not asked for need not be read.
    found = (listed(path) for path in folders(root) if wanted is None or _may_fit(path, wanted))
    return [run for run in found if run is not None and (wanted is None or wanted.fits(run))]


def listed(path: Path) -> Listed | None:
    """The run in a folder; None where there is nothing of one."""
    if not path.is_dir():
        return None
    try:
        return _listed(path)
    except OSError as error:
        why = f"The folder cannot be read: {error.strerror}. Check its owner and permissions."
        return Listed(path, *_names(path, None), "damaged", why, *usage(path))


def _listed(path: Path) -> Listed | None:
    spec, record, broken = None, None, ""
    try:
        spec = RunDir.at(path).spec
    except RunError as error:
        broken = str(error)
    if (path / RECORD).exists():
        try:
            record = read_record(path / RECORD)
        except RunError as error:
            broken = broken or f"{error} {_again(spec)}"
    status = status_from(path, record)
    # A run may fail before it has a spec; then the folder holds why, and nothing else.
    whole = spec is not None or not _anything_in(path)
    state: ListedState = "interrupted"
    why = status.why
    if status.state == "running" or (whole and status.state in ("done", "failed")):
        state = status.state
    elif spec is None and whole:
        return None
    elif broken:
        state, why = "damaged", broken.replace(f"{path}/", "")
    elif record is not None and not (path / SET).is_file():
        state, why = "damaged", f"{SET} is missing, and the record is there. {_again(spec)}"
    elif record is not None:
        why = "No judge has come to a result yet."
    return Listed(path, *_names(path, spec), state, why, *usage(path), spec, record)


def first_accuracy(record: RunRecord, spec: RunSpec | None) -> Accuracy | None:
    """The accuracy that one cell of a list has room for; None where no judge has come to a result."""
    protocols = list(spec.protocols) if spec is not None else []
    judges = [*(spec.judges if spec is not None else ()), record.run.backbone]

    def place(entry: tuple[int, EvaluationPart]) -> tuple[int, int, int]:
        number, part = entry
        return _position(protocols, part.protocol), _position(judges, part.backbone), number

    scored = sorted(((k, e) for k, e in enumerate(record.evaluations) if e.accuracy), key=place)
    if not scored:
        return None
    first = scored[0][1]
    judge = judged_by(first.protocol, first.backbone)
    return Accuracy(fmean(first.accuracy), first.protocol, judge, len(scored) - 1)


def find_run(root: Path, ref: str) -> Path:
    """The folder of a run that somebody names: by its path, or by its id or the beginning of it.

    Raises: RunError where there is none, or several.
    """
    path = Path(ref)
    if path.name == RECORD:
        path = path.parent
    if path.is_dir() and _is_run(path):
        return path
    if not re.fullmatch(r"[0-9a-f]{1,8}", ref):
        what = "has no spec.json" if path.is_dir() else "does not exist"
        raise RunError(
            f"'{ref}' is not the folder of a run: it {what}. Name a run by its folder or by its id, the eight hex "
            "digits or the first of them; `ddbench runs` lists both."
        )
    found = [p for p in folders(root) if (named := _NAMED.fullmatch(p.name)) and named["id"].startswith(ref)]
    if not found:
        raise RunError(f"no run under {root} has an id that begins with {ref}. `ddbench runs` lists them.")
    if len(found) > 1:
        shown = some_of(found, _SHOWN)
        raise RunError(f"{len(found)} runs have an id that begins with {ref}: {shown}. Give more digits of it.")
    return found[0]


def off_the_board(root: Path) -> dict[ListedState, int]:
    """How many runs have no record that a board could show, by state and in the order of the states."""
    counts = Counter(run.state for path in folders(root) if not _on_boards(path) and (run := listed(path)) is not None)
    return {state: counts[state] for state in LISTED_STATES if counts[state]}


def usage(path: Path) -> tuple[int, float]:
    """What the files in a folder hold, in bytes, and when the last was written. Links are not followed."""
    total, changed = 0, 0.0
    todo = [path]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
                    elif entry.name not in LOCKS:
                        about = entry.stat(follow_symlinks=False)
                        total, changed = total + about.st_size, max(changed, about.st_mtime)
        except OSError:
            continue  # somebody removes it meanwhile, or does not let us look
    if not changed:
        try:
            changed = path.stat().st_mtime
        except OSError:
            changed = 0.0
    return total, changed


def details(run: Listed) -> dict[str, Any]:
    """Everything that a person asks about one run, as JSON: `ddbench runs show`."""
    record, folder = run.record, run.folder
    spec = run.spec.to_json() if run.spec is not None else None
    return {
        **run.to_json(),
        "spec": spec,
        "attempts": _attempts(run),
        "cost": _costs(run),
        "artifacts": artifacts_of(run),
        "evaluations": [] if record is None else [e.model_dump(mode="json") for e in record.evaluations],
        "imported": None if record is None or record.imported is None else record.imported.model_dump(mode="json"),
        "files": {name: size for name, size in _files(folder)},
    }


def artifacts_of(run: Listed) -> list[dict[str, Any]] | None:
    """The artefacts that a run has read; None where it has not come so far as to say."""
    if run.record is not None:
        return list(run.record.artifacts)
    cost = _read(run.folder / COST)
    entries = cost.get("artifacts") if isinstance(cost, Mapping) else None
    if not isinstance(entries, Mapping):
        return None
    # An empty table is also that of a run that was stopped before its first attempt at a step.
    return [e for e in entries.values() if isinstance(e, dict)] if entries or _attempts(run) else None


def _attempts(run: Listed) -> list[Any]:
    if run.record is not None:
        return [attempt.model_dump(mode="json") for attempt in run.record.attempts]
    found = _read(run.folder / ATTEMPTS)
    found = found.get("attempts") if isinstance(found, Mapping) else found  # earlier versions wrote the list alone
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _costs(run: Listed) -> dict[str, Any]:
    if run.record is not None:
        return {name: part.model_dump(mode="json") for name, part in run.record.cost.items()}
    found = _read(run.folder / COST)
    costs = found.get("cost") if isinstance(found, Mapping) else None
    return {k: v for k, v in costs.items() if isinstance(v, dict)} if isinstance(costs, Mapping) else {}


def _files(folder: Path) -> list[tuple[str, int]]:
    """The files of a run by name, and its folders with all that is in them."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name in LOCKS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            found.append((f"{entry.name}/", usage(entry)[0]))
        else:
            found.append((entry.name, entry.lstat().st_size))
    return found


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except RunError:
        return None


def _on_boards(path: Path) -> bool:
    try:
        return bool(read_record(path / RECORD).evaluations)
    except RunError:
        return False


def _inside(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return _NAMED.fullmatch(path.name) is not None or (path / SPEC).is_file()
    return False


def _may_fit(path: Path, wanted: Wanted) -> bool:
    if not _NAMED.fullmatch(path.name):
        return True
    method, budget, dataset = (path.parents[level].name for level in range(3))
    budgets = {budget_name(ipc) for ipc in wanted.ipcs}
    return wanted.names_fit(method, dataset) and (not budgets or budget in budgets)


def _names(path: Path, spec: RunSpec | None) -> tuple[str, str, str, int | None, int | None]:
    if spec is not None:
        return spec.id, spec.method, spec.dataset, spec.ipc, spec.seed
    named = _NAMED.fullmatch(path.name)
    method, budget, dataset = (path.absolute().parents[level].name for level in range(3))
    digits = budget.removeprefix("ipc")
    ipc = 0 if budget == "whole" else int(digits) if digits.isdecimal() else None
    return named["id"] if named else "", method, dataset, ipc, int(named["seed"]) if named else None


def _anything_in(path: Path) -> bool:
    """Whether more is there than locks and the reason of a failure."""
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError:
        return True
    return any(name not in (*LOCKS, FAILURE) and not name.endswith(".tmp") for name in names)


def _again(spec: RunSpec | None) -> str:
    if spec is not None and spec.imported is not None:
        return "Importing the set again with `ddbench evaluate FILE` mends it."
    return "The command of the run mends it."


def _position(values: Iterable[str], value: str) -> int:
    return next((k for k, known in enumerate(values) if known == value), _LAST)
