"""The commands that make a run again, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.config import spelled, spelled_selection
from ddbench.errors import DdbenchError
from ddbench.method import Method
from ddbench.runs.record import EvaluationPart, RunRecord
from ddbench.runs.selecting import SELECT, old_names, told_by_config
from ddbench.text import budget_name, safe_name


@dataclass(frozen=True)
class Judged:
    """Evaluations of a record that one command makes: protocols, each with all of these backbones and students."""

    protocols: tuple[str, ...]
    judges: tuple[str, ...]
    students: int

    def words(self) -> list[str]:
        """The options of the command."""
        words = [word for ref in self.protocols for word in ("--protocol", ref)]
        words += [word for judge in self.judges for word in ("--judge", judge)]
        return [*words, "--students", str(self.students)]


def judged_together(parts: Iterable[tuple[str, EvaluationPart]]) -> list[Judged]:
    """Evaluations, each with the name of its protocol, in groups that share judges and students. Those that failed,
    and have no students, are left out."""
    by_protocol: dict[str, list[EvaluationPart]] = {}
    for ref, part in parts:
        if part.accuracy:
            by_protocol.setdefault(ref, []).append(part)
    groups: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for ref, found in by_protocol.items():
        for students in sorted({len(part.accuracy) for part in found}, reverse=True):
            judges = tuple(part.backbone for part in found if len(part.accuracy) == students)
            groups.setdefault((judges, students), []).append(ref)
    return [Judged(tuple(refs), judges, students) for (judges, students), refs in groups.items()]


def commands_of(record: RunRecord) -> list[str]:
    """One `ddbench run` with every setting that no preset gives, and one `ddbench evaluate` for each further group of
    protocols that were judged by other networks, or by another number of students; none for a set that others made."""
    run = record.run
    if record.imported is not None:
        return []
    words = ["ddbench", "run", "--method", run.method if run.method_sha256 is None else run.provided_by]
    words += ["--dataset", run.dataset, *(["--ipc", str(run.ipc)] if run.ipc else []), "--seed", str(run.seed)]
    words += ["--preset", run.preset, "--backbone", run.backbone, "--pixels", record.data.pixels]
    words += ["--precision", run.precision]
    kind = _kind(record)
    selects = {} if kind is None else {name: field for field, name in old_names(kind).items()}
    said = _said(record)
    for name, value in said.items():
        words += [] if name.startswith(SELECT) or name in selects else ["--set", f"{name}={spelled(value)}"]
    words += _selection(record, kind, {selects.get(name, name.removeprefix(SELECT)) for name in said})
    groups = judged_together((part.protocol, part) for part in record.evaluations)
    name = f"{safe_name(run.backbone)}-s{run.seed}-{run.id}"
    folder = Path("runs") / run.dataset / budget_name(run.ipc) / run.method / name
    return [
        shlex.join([*words, *(word for first in groups[:1] for word in first.words())]),
        *(shlex.join(["ddbench", "evaluate", str(folder), *each.words()]) for each in groups[1:]),
    ]


def reproduction_of(record: RunRecord) -> str:
    """The command that runs all of that and says whether set and accuracies agree; "" for a set that others made.

    The file of a method that came with no package is named in it as it was given, and has to be there.
    """
    run = record.run
    if record.imported is not None:
        return ""
    by_path = ["--method", run.provided_by] if run.method_sha256 is not None else []
    return shlex.join(["ddbench", "reproduce", run.id, *by_path])


def _said(record: RunRecord) -> dict[str, Any]:
    """The values of the config that neither a preset nor a default gives, in the order of their names."""
    given = ("default", "preset")
    names = sorted(name for name, source in record.config.sources.items() if not source.startswith(given))
    return {name: record.config.values[name] for name in names}


def _selection(record: RunRecord, kind: type[Method[Any]] | None, said: set[str]) -> list[str]:
    """--select with what was said of it, or with "on" or "none" where that is not what the method does unasked."""
    if kind is None:
        on = any(name.startswith(SELECT) for name in record.config.values)
        values = {k.removeprefix(SELECT): v for k, v in record.config.values.items() if k.startswith(SELECT)}
    else:
        values = told_by_config(kind, record.config.values)[1]
        on = bool(values.pop("on"))
    told = {name: value for name, value in values.items() if name in said} if on else {}
    if not told and on == (kind is not None and kind.selection.on):
        return []
    return ["--select", spelled_selection(told or on)]


def _kind(record: RunRecord) -> type[Method[Any]] | None:
    """The record's method; None for one that is not here, or was given by its file."""
    from ddbench.runs.resolving import find_method

    if record.run.method_sha256 is not None:
        return None
    try:
        return find_method(f"{record.run.provided_by.split(' ')[0]}/{record.run.method}")[1]
    except DdbenchError:
        return None
