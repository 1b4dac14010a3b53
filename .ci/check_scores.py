"""Refuses a change in which a committed record says something else of the same run: scores come from runs alone.

python .ci/check_scores.py [BASE]

Compares leaderboards/records with what they were where this branch left BASE (origin/main, or main). A run is known by
its id, wherever its file lies. Needs git and nothing else, so that it can run before anything is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

RECORDS, CHECKS = "leaderboards/records", "leaderboards/verified"
Record = dict[str, Any]
Students = dict[tuple[str, str], list[float]]  # accuracies by the protocol's digest and the backbone


def main(arguments: list[str]) -> int:
    """The program: 0 where nothing is wrong, 1 where something is refused, 2 where nothing can be compared."""
    bases = arguments or ["origin/main", "main"]
    base = next((found for name in bases if (found := git("merge-base", name, "HEAD"))), None)
    if base is None:
        sys.stderr.write(
            f"There is no common commit with {' or '.join(bases)}, so no scores can be compared. Fetch the whole "
            "history (git fetch --unshallow origin), or name a base: python .ci/check_scores.py BASE\n"
        )
        return 2
    refused, notes = findings(base)
    sys.stdout.write("".join(f"Note: {text}\n" for text in notes))
    sys.stderr.write("".join(f"Refused: {text}\n" for text in refused))
    return 1 if refused else 0


def findings(base: str) -> tuple[list[str], list[str]]:
    """What is refused of the records that have changed since a commit, and what a reviewer should know."""
    # Beside a record lies the picture of its set.
    files = (git("diff", "--name-only", "--no-renames", base, "--", RECORDS) or "").splitlines()
    changed = [path for path in files if path.endswith(".json")]
    refused, notes = [], []
    before: dict[str, tuple[str, Record]] = {}
    after: dict[str, tuple[str, Record]] = {}
    for path in changed:
        for where, text in ((before, git("show", f"{base}:{path}")), (after, read(path))):
            try:
                if text:
                    record = json.loads(text)
                    where[record["run"]["id"]] = (path, record)
            except (ValueError, KeyError, TypeError):
                refused.append(f"{path} is not a record that can be read")
    for run, (path, old) in before.items():
        if run not in after:
            notes.append(f"{path} is removed: its commit should say why")
            continue
        place, new = after[run]
        refused += [f"{place}: {text}" for text in compare(old, new)]
    checks = set((git("diff", "--name-only", "--no-renames", base, "--", CHECKS) or "").splitlines())
    for run, (path, record) in after.items():
        # What was measured beside the students, such as what is recognised of a set, is not what a check is about.
        sent = run not in before or students(record) != students(before[run][1])
        if sent and path.replace(RECORDS, CHECKS, 1) in checks:
            refused.append(f"{path} comes with a check of itself: whoever sends a record does not verify it as well")
    for path in sorted(checks):
        lost = differing(git("show", f"{base}:{path}")) - differing(read(path))
        notes += [f"{path} has no check of {what} any more that differs: its commit should say why" for what in lost]
    return refused, notes


def differing(text: str | None) -> set[str]:
    """The evaluations of a file of checks of which one differs; none where it cannot be read."""
    try:
        return {
            f"{one['protocol']} with {one['backbone']}"
            for one in json.loads(text or "{}").get("checks", [])
            if abs(fmean(one["again"]) - fmean(one["recorded"])) > one["within"]
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def compare(old: Record, new: Record) -> list[str]:
    """What the new record of a run says against the old one, without a new run; empty where nothing does."""
    began, begun = starts(old), starts(new)
    again = bool(begun) and (not began or min(begun) > max(began))
    kept = new.get("attempts", [])[: len(old.get("attempts", []))]
    further = len(begun) > len(began) and [a["started"] for a in kept] == began
    scores, now = students(old), students(new)
    found = []
    for key, accuracy in scores.items():
        if now.get(key, [])[: len(accuracy)] != accuracy and not again:
            found.append(f"scores of {' with '.join(names(old)[key])} have changed, and its run has not")
    more = [key for key, accuracy in now.items() if len(accuracy) > len(scores.get(key, []))]
    if more and not (again or further):
        found.append(f"students of {' with '.join(names(new)[more[0]])} were added, and no attempt that trained them")
    for what, before, after in facts(old, new):
        if before != after and not again:
            found.append(f"another {what}, and not another run")
    return found


def facts(old: Record, new: Record) -> list[tuple[str, Any, Any]]:
    """What makes a run the run that it is, before and after."""
    run = [(name, old["run"].get(name), new["run"].get(name)) for name in ("method", "seed", "ipc", "dataset")]
    return [
        *run,
        ("set", old["synthetic"]["sha256"], new["synthetic"]["sha256"]),
        ("setting of its options", old["config"]["values"], new["config"]["values"]),
    ]


def students(record: Record) -> Students:
    """Accuracies by evaluation."""
    return {(e["digest"], e["backbone"]): list(e["accuracy"]) for e in record.get("evaluations", [])}


def names(record: Record) -> dict[tuple[str, str], tuple[str, str]]:
    """What evaluations are called."""
    return {(e["digest"], e["backbone"]): (e["protocol"], e["backbone"]) for e in record.get("evaluations", [])}


def starts(record: Record) -> list[str]:
    """When the attempts at a run began."""
    return [attempt["started"] for attempt in record.get("attempts", [])]


def read(path: str) -> str | None:
    """A file of the checkout; None where it is gone."""
    root = git("rev-parse", "--show-toplevel")
    file = Path(root or ".") / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def git(*arguments: str) -> str | None:
    """What git says, without the last line end; None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip("\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
