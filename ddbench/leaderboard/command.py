"""The commands that make a run again, from its record."""

from __future__ import annotations

import shlex
from pathlib import Path

from ddbench.config import spelled, spelled_selection
from ddbench.runs.record import RunRecord
from ddbench.runs.selecting import SELECT
from ddbench.text import budget_name, safe_name


def commands_of(record: RunRecord) -> list[str]:
    """One `ddbench run` with every setting that no preset gives, and one `ddbench evaluate` for each further group of
    protocols that were judged by other networks; none for a set that others made."""
    run = record.run
    if record.imported is not None:
        return []
    words = ["ddbench", "run", "--method", run.method if run.method_sha256 is None else run.provided_by]
    words += ["--dataset", run.dataset, *(["--ipc", str(run.ipc)] if run.ipc else []), "--seed", str(run.seed)]
    words += ["--preset", run.preset, "--backbone", run.backbone, "--pixels", record.data.pixels]
    words += ["--precision", run.precision]
    said = {
        name: record.config.values[name]
        for name, source in sorted(record.config.sources.items())
        if not source.startswith(("default", "preset"))
    }
    for name, value in said.items():
        words += [] if name.startswith(SELECT) else ["--set", f"{name}={spelled(value)}"]
    selection = {name.removeprefix(SELECT): value for name, value in said.items() if name.startswith(SELECT)}
    words += ["--select", spelled_selection(selection)] if selection else []
    first, *others = _judging(record) or [[]]
    name = f"{safe_name(run.backbone)}-s{run.seed}-{run.id}"
    folder = Path("runs") / run.dataset / budget_name(run.ipc) / run.method / name
    return [shlex.join([*words, *first]), *(shlex.join(["ddbench", "evaluate", str(folder), *each]) for each in others)]


def reproduction_of(record: RunRecord) -> str:
    """The command that runs all of that and says whether set and accuracies agree; "" for a set that others made.

    The file of a method that came with no package is named in it as it was given, and has to be there.
    """
    run = record.run
    if record.imported is not None:
        return ""
    by_path = ["--method", run.provided_by] if run.method_sha256 is not None else []
    return shlex.join(["ddbench", "reproduce", run.id, *by_path])


def _judging(record: RunRecord) -> list[list[str]]:
    """Options that judge as the record was, a list for each group of protocols that share their judges."""
    judges: dict[str, list[str]] = {}
    for part in record.evaluations:
        judges.setdefault(part.protocol, []).append(part.backbone)
    groups: dict[tuple[str, ...], list[str]] = {}
    for protocol, names in judges.items():
        groups.setdefault(tuple(names), []).append(protocol)
    return [
        [word for protocol in protocols for word in ("--protocol", protocol)]
        + [word for name in names for word in ("--judge", name)]
        for names, protocols in groups.items()
    ]
