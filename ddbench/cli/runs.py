"""ddbench runs: what is in the runs folder, why one failed, and what can go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddbench.cli import Group
from ddbench.cli.common import (
    json_option,
    note,
    print_json,
    print_table,
    runs_option,
    stack,
)
from ddbench.cli.deleting import carry_out, dry_run_option, yes_option
from ddbench.text import budget, number_of, percent, size

if TYPE_CHECKING:
    from ddbench.runs.listing import Listed

_WHY = 100  # letters of a reason in the list

_wanted_options = (
    click.option("--method", "methods", multiple=True, metavar="NAME", help="Only runs of this method. Repeatable."),
    click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only runs on this dataset. Repeatable."),
    click.option(
        "--ipc", "ipcs", multiple=True, type=click.IntRange(0), metavar="N",
        help="Only runs of this budget; 0 for those on the whole dataset. Repeatable.",
    ),
    click.option(
        "--state", "states", multiple=True,
        type=click.Choice(["done", "failed", "running", "interrupted", "damaged"]), help="Repeatable.",
    ),
)  # fmt: skip
_list_options = stack(*_wanted_options, runs_option, json_option)


@click.group(
    cls=Group,
    short_help="List runs, say why one failed, delete what is not needed.",
    invoke_without_command=True,
    homes={
        "list": "ddbench.cli.runs:list_",
        "show": "ddbench.cli.runs:show",
        "delete": "ddbench.cli.runs:delete",
        "clean": "ddbench.cli.runs:clean",
    },
)
@_list_options
@click.pass_context
def runs(ctx: click.Context, runs_root: Path, as_json: bool, **wanted: Sequence[Any]) -> None:
    """What is in the runs folder: `ddbench runs` lists it, as `ddbench runs list` does.

    States: done; failed (why is kept); running (a process works on it); interrupted (the same command goes on);
    damaged (something in the folder cannot be read).
    """
    if ctx.invoked_subcommand is None:
        _list(runs_root, as_json, wanted)
        return
    # What is said to the group, a command of it does not hear.
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"{given[0]} goes behind the command: ddbench runs {ctx.invoked_subcommand} {given[0]} …"
        )


@click.command("list", short_help="Method, dataset, budget, seed, state, accuracy, size, age.")
@_list_options
def list_(runs_root: Path, as_json: bool, **wanted: Sequence[Any]) -> None:
    """List the runs: method, dataset, budget, seed, state, accuracy, size, age.

    The accuracy is that of the run's first protocol and judge, the mean over its students; `+2` says that two more
    judges have one. Age is the time since something was last written in the folder.
    """
    _list(runs_root, as_json, wanted)


def _list(root: Path, as_json: bool, wanted: dict[str, Sequence[Any]]) -> None:
    from ddbench.runs.listing import LISTED_STATES, Wanted, list_runs

    asked = Wanted(**{name: tuple(values) for name, values in wanted.items()})
    found = list_runs(root, asked)
    if as_json:
        print_json([run.to_json() for run in found])
        return
    if not found:
        which = "" if asked.everything else " that fits"
        click.echo(f"There is no run{which} under {root}.")
        return
    now, reasons = time.time(), any(run.why for run in found)
    headers = ("run", "method", "dataset", "ipc", "seed", "state", "accuracy, %", "judge", "size", "age")
    print_table(
        (
            (
                run.id or run.folder.name,
                run.method,
                run.dataset,
                "whole" if run.ipc == 0 else run.ipc,
                run.seed,
                run.state,
                *_accuracy(run),
                size(run.bytes),
                age(now - run.changed),
                *([_short(run.why)] if reasons else []),
            )
            for run in found
        ),
        (*headers, "why") if reasons else headers,
        expendable=("size", "age", "judge", "seed"),
    )
    counts = Counter(run.state for run in found)
    shares = ", ".join(f"{counts[state]} {state}" for state in LISTED_STATES if counts[state])
    note(f"{number_of(len(found), 'run')}: {shares}; {size(sum(run.bytes for run in found))}")


@click.command(short_help="One run: why it failed, settings, costs, judges, files.")
@click.argument("ref", metavar="RUN")
@runs_option
@json_option
def show(ref: str, runs_root: Path, as_json: bool) -> None:
    """Say all about one run: state and why, settings with their sources, attempts, costs, judges, files.

    RUN is its folder, or its id: the eight hex digits at the end of the folder's name, or the first of them.
    """
    from ddbench.errors import RunError
    from ddbench.runs.listing import details, find_run, listed

    folder = find_run(runs_root, ref)
    run = listed(folder)
    if run is None:
        raise RunError(f"{folder} is empty: nothing of a run is in it.")
    found = details(run)
    if as_json:
        print_json(found)
        return
    _print_run(run, found)


@click.command(short_help="Delete runs, named by RUN or by what they are.")
@click.argument("refs", metavar="[RUN]...", nargs=-1)
@stack(*_wanted_options, yes_option, dry_run_option, runs_option, json_option)
@click.pass_context
def delete(
    ctx: click.Context,
    refs: Sequence[str],
    yes: bool,
    dry_run: bool,
    runs_root: Path,
    as_json: bool,
    **wanted: Sequence[Any],
) -> None:
    """Delete runs with all that is in their folders. What would go is named first, with its size.

    RUN is a folder or an id, as in `ddbench runs show`. Without RUN, all runs that fit the options, as in --state
    failed; with both, those named that fit. A run that a process works on is not deleted. Artefacts stay: see
    `ddbench runs clean --artifacts`.
    """
    from ddbench.runs import removal
    from ddbench.runs.listing import Wanted, find_run, list_runs, listed

    asked = Wanted(**{name: tuple(values) for name, values in wanted.items()})
    if not refs and asked.everything:
        raise click.UsageError("Say which runs: by RUN, or by an option such as --state failed.")
    if refs:
        found = [run for folder in dict.fromkeys(find_run(runs_root, ref) for ref in refs) if (run := listed(folder))]
        found = [run for run in found if asked.fits(run)]
    else:
        fitting = list_runs(runs_root, asked)
        for run in fitting:
            if run.state == "running":
                note(f"Run {run.id} is left alone, because it is being worked on {run.why}.")
        found = [run for run in fitting if run.state != "running"]
    plan = removal.plan_deletion(runs_root, found)
    carry_out(ctx, plan, removal.delete(runs_root, plan), yes=yes, dry_run=dry_run, as_json=as_json)


@click.command(short_help="Delete what finished runs no longer need.")
@click.option("--snapshots", is_flag=True, help="Also snapshots; `--curve` finds nothing to judge then.")
@click.option("--artifacts", is_flag=True, help="Also artefacts that no unfinished run needs, such as experts.")
@stack(yes_option, dry_run_option, runs_option, json_option)
@click.pass_context
def clean(
    ctx: click.Context, snapshots: bool, artifacts: bool, yes: bool, dry_run: bool, runs_root: Path, as_json: bool
) -> None:
    """Delete what finished runs no longer need. What would go is named first, with its size.

    That is: the checkpoints of finished runs, and half-written files of processes that were killed. A run is finished
    when its set and its record are there; it can be read, judged again and exported afterwards, as before.

    Kept without --snapshots: snapshots, because `ddbench evaluate RUN --curve` judges them whenever it is asked. Kept
    without --artifacts: artefacts, because making experts again may take hours. With it, those go that no unfinished
    run has read, whoever made them; all stay while an unfinished run has not said which it reads.

    Always kept: sets, records, evaluations, logs, whitenings and trained networks, which judging reads again, times of
    `ddbench bench`, and all that belongs to a run that is not finished.
    """
    from ddbench.runs import removal

    plan = removal.plan_cleaning(runs_root, snapshots=snapshots, artifacts=artifacts)
    carry_out(ctx, plan, removal.clean(runs_root, plan), yes=yes, dry_run=dry_run, as_json=as_json)


def _print_run(run: Listed, found: dict[str, Any]) -> None:
    from ddbench.text import duration

    print_table(_heading(run, found))
    if found["spec"]:
        click.echo()
        sources = found["spec"]["sources"]
        rows = [
            (name, _value(found["spec"][name]), sources.get(name.removesuffix("s"), sources.get(name, "")))
            for name in _SETTINGS
        ]
        rows += [(n, _value(v), sources.get(f"config.{n}", "")) for n, v in found["spec"]["config"].items()]
        print_table(((n, v, s) for n, v, s in rows if v), ("setting", "value", "source"))
    if found["evaluations"]:
        click.echo()
        print_table(map(_judge, found["evaluations"]), ("judge", "accuracy, %", "students", ""))
    if found["attempts"]:
        click.echo()
        print_table(map(_attempt, found["attempts"]), ("attempt", "steps", "device", "commit"))
    if found["cost"]:
        click.echo()
        print_table(
            (
                (
                    phase,
                    duration(part.get("seconds", 0)),
                    _bytes(part.get("peak_device_bytes")),
                    _bytes(part.get("peak_host_bytes")),
                )
                for phase, part in found["cost"].items()
            ),
            ("cost of", "time", "device memory", "host memory"),
        )
    if found["artifacts"]:
        click.echo()
        print_table(
            ((entry.get("kind"), entry.get("key"), duration(entry.get("seconds", 0))) for entry in found["artifacts"]),
            ("artefact", "key", "time to make"),
        )
    click.echo()
    print_table(((name, size(count)) for name, count in found["files"].items()), ("file", "size"))


_SETTINGS = ("backbone", "pixels", "precision", "preset", "protocols", "judges", "students")


def _heading(run: Listed, found: dict[str, Any]) -> list[tuple[str, Any]]:
    of = "unknown budget" if run.ipc is None else budget(run.ipc)
    rows: list[tuple[str, Any]] = [
        ("run", run.id),
        ("folder", run.folder),
        (
            "what",
            f"{run.method} on {run.dataset}, {of}, seed {run.seed}",
        ),
        ("state", run.state),
    ]
    # A message may have several lines, each of which stands for itself.
    rows += [("why" if not number else "", line) for number, line in enumerate(run.why.splitlines())]
    imported = found["imported"]
    if imported:
        rows.append(("imported from", f"{imported['file']} ({imported['layout']})"))
    rows += [
        ("provided by", found["spec"]["provided_by"] if found["spec"] else ""),
        ("data", found["spec"]["data_fingerprint"] if found["spec"] else ""),
        ("size", size(run.bytes)),
        ("age", age(time.time() - run.changed)),
    ]
    return [row for row in rows if row[1]]


def _judge(part: dict[str, Any]) -> tuple[str, str, str, str]:
    from ddbench.evaluation.protocol import judged_by

    scores = part["accuracy"]
    name = f"{part['protocol']}/{judged_by(part['protocol'], part['backbone'])}"
    mean = percent(fmean(scores)) if scores else "failed"
    return name, mean, " ".join(map(percent, scores)), part["failed"]


def _attempt(entry: dict[str, Any]) -> tuple[Any, ...]:
    git = entry.get("git")
    commit = f"{str(git.get('commit'))[:12]}{', with changes' if git.get('dirty') else ''}" if git else ""
    steps = entry.get("steps") or ("", "")
    return entry.get("started"), f"{steps[0]} to {steps[1]}", entry.get("device"), commit


def _accuracy(run: Listed) -> tuple[str, str]:
    first = run.accuracy
    if first is None:
        return "", ""
    more = f" +{first.others}" if first.others else ""
    return percent(first.mean), f"{first.protocol}/{first.judge}{more}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _bytes(count: int | None) -> str:
    return "" if count is None else size(count)


def _short(why: str) -> str:
    line = why.partition("\n")[0]
    return line if len(line) <= _WHY else f"{line[: _WHY - 2].rstrip()} …"


def age(seconds: float) -> str:
    """How long ago, in the unit that reads best; nothing is younger than now."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
