"""Makes the records in docs/measured/digits: a quick run of each method, whose picture and curve its page shows.

Usage: python docs/digits.py [METHOD …]; without names, all that come with ddbench and have no record there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click
from figures import DIGITS


def missing() -> list[str]:
    """The methods that come with ddbench, condense or choose, and have no record among those of the digits."""
    from ddbench.plugins import GROUPS, listing
    from ddbench.runs.record import read_record
    from ddbench.runs.resolving import find_method

    there = {read_record(path).run.method for path in DIGITS.glob("*.json")}
    ours = [plugin.name for plugin in listing(GROUPS["method"]) if plugin.package == "ddbench"]
    kinds = {name: find_method(f"ddbench/{name}")[1].info.kind for name in ours}
    return [name for name in ours if kinds[name] != "ceiling" and name not in there]


def make(method: str, runs: Path, curve: bool = True) -> Path:
    """The record of a method's quick run, beside its picture. On a CPU, where the set is the same every time."""
    import ddbench
    from ddbench.leaderboard.sheets import sheet_file

    made = ddbench.run(
        method, "digits", ipc=10, seed=0, preset="quick", device="cpu", data=runs / "data", runs=runs, curve=curve
    )
    record = made.folder / "record.json"
    DIGITS.mkdir(parents=True, exist_ok=True)
    for old in DIGITS.glob(f"{method}-{made.record.run.backbone}-s0-*"):
        old.unlink()
    target = DIGITS / f"{method}-{made.folder.name}.json"
    shutil.copyfile(record, target)
    shutil.copyfile(sheet_file(record), sheet_file(target))
    return target


@click.command()
@click.argument("methods", nargs=-1)
@click.option(
    "--runs", type=click.Path(path_type=Path), help="Where to run, or where the runs are; else nothing stays."
)
@click.option("--no-curve", is_flag=True, help="Judge the result alone, which takes a fifth of the time.")
def main(methods: tuple[str, ...], runs: Path | None, no_curve: bool) -> None:
    """Run METHODS on the digits, and keep their records and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for method in methods or missing():
            click.echo(str(make(method, runs or Path(folder), not no_curve)))


if __name__ == "__main__":
    main()
