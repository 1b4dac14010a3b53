"""ddbench evaluate: judges for a finished run, or for a set that somebody else made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.arguments import PRECISIONS
from ddbench.cli.common import (
    data_option,
    decode_option,
    device_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    remark,
    run_options,
    runs_option,
    size_option,
    stack,
    students_option,
    track_option,
    writable,
)

if TYPE_CHECKING:
    from ddbench.runs.record import RunRecord
    from ddbench.runs.runner import RunOptions

_said = stack(
    click.option(
        "--dataset",
        metavar="NAME",
        help="Of a file: the dataset that it was condensed from. Of a run: where it is code.",
    ),
    click.option(
        "--pixels", metavar="NAME", help="Of a file: standard, zca, kip-zca, …; unit (0 to 1) or raw (0 to 255)."
    ),
    click.option(
        "--labels",
        metavar="KIND",
        help="Of a file: class, probability, logit, regression; hard, sorted, from-1, imagefolder.",
    ),
    click.option("--lr", type=float, metavar="X", help="Of a file: the step size that was learned with it."),
    click.option("--augment", metavar="OPS", help="Of a file: the augmentation that belongs to it; kept, not used."),
    decode_option,
    size_option,
    click.option("--entry", metavar="NAME", help="Of a file with several sets: which one, or all."),
    click.option("--name", metavar="NAME", help="Of a file: what boards call it."),
    click.option("--ipc", type=click.IntRange(min=1), metavar="N", help="Of a file: its budget, if not as counted."),
    click.option("--made-with", metavar="NAME", help="Of a file: the backbone that it was condensed with."),
    click.option(
        "--claim", "claims", multiple=True, metavar="KEY=VALUE", help="Of a file: what its maker says. Repeatable."
    ),
)


@click.command(short_help="Judge a finished run, or a set that somebody else made.")
@click.argument("words", metavar="RUN|FILE|SET...", nargs=-1, type=click.Path())
@click.option(
    "--protocol",
    "refs",
    multiple=True,
    metavar="NAME|FILE",
    help="A name, native, or a TOML file; default: those of the run. Repeatable.",
)
@click.option(
    "--judge", "--backbone", "judges", multiple=True, metavar="NAME",
    help="Backbone of students; default: as the protocol says. Repeatable.",
)  # fmt: skip
@students_option
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="In which students are trained; default: that of the run.",
)
@click.option("--curve", is_flag=True, help="Judge the snapshots of a run too; in JSON they are `curves`.")
@click.option(
    "--forget",
    "forgotten",
    multiple=True,
    metavar="PROTOCOL[/JUDGE]",
    help="Judge nothing, but take off a judge that failed; `failed` for all such. Repeatable.",
)
@click.option(
    "--grid",
    "grid",
    multiple=True,
    is_flag=False,
    flag_value="usual",
    metavar="FACTOR=VALUES|FILE|usual",
    help="Judge sets under several recipes: optimizer=adam,adamw, epochs=1/4,4, batch=32, augment=none,cutmix, "
    "labels=soft,teacher; a TOML file; usual for all of these. Repeatable.",
)
@click.option("--product", is_flag=True, help="Of a grid: all combinations, and not one factor at a time.")
@click.option(
    "--forwards",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a grid: images that each student trains on; default: as many as under the protocol.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a grid: where its results go; cells lie beside it.  [default: sensitivity.json]",
)
@_said
@device_option
@data_option
@runs_option
@track_option
@json_option
@quiet_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    words: Sequence[str],
    refs: Sequence[str],
    judges: Sequence[str],
    students: int | None,
    precision: str | None,
    curve: bool,
    forgotten: Sequence[str],
    grid: Sequence[str],
    product: bool,
    forwards: int | None,
    output: Path | None,
    device: str,
    data_root: Path,
    runs_root: Path,
    track: Sequence[str],
    as_json: bool,
    quiet: bool,
    **said: Any,
) -> None:
    """Judge finished runs again: by another protocol, other backbones or more students.

    Or judge a set that somebody else made: FILE is then what was downloaded, SET the name of a published set, as in
    dance/cifar10/ipc10. It becomes a run without a condensation, and the options marked "of a file" say what the file
    does not.

    --forget takes judges off a run that came to no result, so that boards have no column for them. One that has
    accuracies stays: choosing which results to show would be choosing on test data. A judge that was forgotten and is
    asked for again, also by the command of the run, is tried again.

    --grid judges any number of runs, files and published sets (such as dance/cifar10/ipc10) under --protocol and
    variants of it, one thing changed at a time, at equal training, and says whether the order of methods survives.
    The same command goes on where it was stopped; several processes share the work.
    """
    of_a_file = {"claim" if name == "claims" else name.replace("_", "-"): value for name, value in said.items()}
    of_a_grid = {"product": product, "forwards": forwards, "output": output}
    of_one_run = {"precision": precision, "curve": curve, "forget": forgotten, "track": track}
    if grid:
        others = of_one_run | {name: of_a_file[name] for name in _NOT_IN_A_GRID}
        _refuse(others, "OPTION is not for --grid; leave it out.")
        from ddbench.cli.grid import judge

        judge(
            ctx, words, grid, of_a_grid | {"protocols": refs, "judges": judges, "students": students}, said,
            device=device, data_root=data_root, runs_root=runs_root, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    if not words:
        raise click.UsageError("Name a RUN, a FILE or a SET.")
    _refuse(of_a_grid, "OPTION is for --grid.")
    from ddbench.foreign.meant import meant
    from ddbench.runs.rundir import SPEC, RunDir

    paths = [meant(word, data_root, remark).file(data_root) for word in words]
    path, *more = paths
    no_run = next((word for word, one in zip(words, paths, strict=True) if not (one / SPEC).is_file()), None)
    if more and no_run is not None:
        raise click.UsageError(f"Of several, each is a RUN, and {no_run} is none. Files are judged one at a time.")
    if more and forgotten:
        raise click.UsageError("--forget is for one RUN.")
    if forgotten:
        others = {
            "protocol": refs, "judge": judges, "students": students, "precision": precision, "curve": curve,
            "track": track,
        }  # fmt: skip
        _refuse(others | of_a_file, "--forget judges nothing; leave out OPTION, or say it in a second command.")
        _forget(path, forgotten, as_json)
        return
    imported = no_run is not None
    if imported:
        options = run_options(writable(runs_root), data_root, device, quiet=quiet, track=track)
        folders, own_data = [(one, options) for one in _bring_in(path, refs, options, quiet, **said)], None
    else:
        own_data = of_a_file.pop("dataset")
        _refuse(of_a_file, f"OPTION is for a file, and {path} is a run.")
        folders = [
            (one, run_options(RunDir.at(one).root, data_root, device, quiet=quiet, track=track)) for one in paths
        ]
    judged = []
    for folder, options in folders:
        judged.append(_judge(folder, refs, judges, students, options, curve, own_data, precision))
        if not as_json:
            if more:
                click.echo(str(folder))
            _show(judged[-1], curve, imported)
    if as_json:
        from ddbench.cli.curves import with_curves

        shown = [with_curves(one.record, one.folder) if curve else one.record.to_json() for one in judged]
        print_json(shown[0] if len(shown) == 1 else shown)
    nothing = all(one.nothing for one in judged)
    # One judge without a result is said beside the others.
    for message in [message for one in judged for message in one.lost]:
        note(f"{'Error' if nothing else 'Note'}: {message}")
    if nothing:
        ctx.exit(1)


_NOT_IN_A_GRID = ("name", "ipc", "made-with", "claim")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Raises: UsageError where one of these options is given; `why` calls it OPTION."""
    for name, value in options.items():
        if value:
            raise click.UsageError(why.replace("OPTION", f"--{name}", 1))


@dataclass(frozen=True)
class _JudgedRun:
    """A run that was judged: its folder and record, judges without a result, and whether there is no other."""

    folder: Path
    record: RunRecord
    lost: list[str]
    nothing: bool


def _judge(
    folder: Path,
    refs: Sequence[str],
    judges: Sequence[str],
    students: int | None,
    options: RunOptions,
    curve: bool,
    dataset: str | None,
    precision: str | None,
) -> _JudgedRun:
    from ddbench.runs.evaluating import cells
    from ddbench.runs.resolving import judged_with
    from ddbench.runs.rundir import RunDir
    from ddbench.runs.runner import evaluate_run, finished_record
    from ddbench.runs.states import lost_cells, nothing_judged

    there = RunDir.at(folder)
    if "native" in refs and there.spec.imported is not None:
        raise click.UsageError("an imported set has no native protocol here; name one, such as mtt.")
    protocols = judged_with(there.spec, refs, finished_record(there))
    record = evaluate_run(folder, protocols, judges, students, options, curve, dataset, precision)
    wanted = cells(protocols, judges, students, record.data.shape, own=record.run.backbone)
    return _JudgedRun(folder, record, lost_cells(record, wanted), nothing_judged(record, wanted))


def _show(judged: _JudgedRun, curve: bool, imported: bool) -> None:
    _print(judged.record)
    if curve:
        from ddbench.cli.curves import print_curves

        print_curves(judged.record, judged.folder)
    if imported:
        click.echo(f"{judged.folder / 'record.json'}  {judged.folder / 'preview.png'}")


def _forget(path: Path, refs: Sequence[str], as_json: bool) -> None:
    from ddbench.runs.forgetting import choose, forget, name
    from ddbench.runs.record import read_record
    from ddbench.runs.rundir import RECORD

    chosen = choose(path, refs)
    for part in chosen.kept:
        note(f"{name(part)} stays, because it has accuracies.")
    for part in chosen.failed:
        note(f"Forgotten: {name(part)}, which failed: {part.failed}")
    if not chosen.failed:
        note("No judge of this run has failed.")
    record = forget(path, chosen.failed) if chosen.failed else read_record(path / RECORD)
    if not record.evaluations:
        note(f"No judge is left; `ddbench evaluate {path} --protocol NAME` adds one.")
    if as_json:
        print_json(record.to_json())
    else:
        _print(record)


def _bring_in(
    path: Path,
    refs: Sequence[str],
    options: RunOptions,
    quiet: bool,
    *,
    dataset: str | None,
    pixels: str | None,
    labels: str | None,
    lr: float | None,
    augment: str | None,
    decode: str | None,
    size: int | None,
    entry: str | None,
    name: str | None,
    ipc: int | None,
    made_with: str | None,
    claims: Sequence[str],
) -> list[Path]:
    """The run folders of the sets in a file."""
    from ddbench.config import parse_assignments
    from ddbench.evaluation.protocol import protocol
    from ddbench.foreign.importing import Import, bring_in, dataset_of, found_in
    from ddbench.foreign.terms import Said
    from ddbench.runs.resolving import asked_ref

    said = Said(pixels, labels, lr, augment, decode, size)
    protocols = tuple(asked_ref(protocol(ref), ref) for ref in refs if ref != "native")
    found = found_in(path, entry, dataset, options.data_root, size)
    data = dataset_of(found[0], path, dataset, options.data_root)
    claimed = parse_assignments(claims, "--claim accuracy=0.5")
    asked = Import(said, name or "", ipc, made_with or "", claimed, protocols)
    folders = []
    for one in found:
        entered = bring_in(one, asked, data, options)
        folders.append(entered.folder)
        # What may make a number wrong is no talk that --quiet turns off.
        for text in entered.warnings if quiet else [*entered.notes, *entered.warnings]:
            note(f"Note: {text}")
    return folders


def _print(record: RunRecord) -> None:
    from ddbench.cli.curves import accuracy_cells
    from ddbench.evaluation.protocol import judged_by

    rows = [
        (part.protocol, judged_by(part.protocol, part.backbone), *accuracy_cells(part.accuracy))
        for part in record.evaluations
    ]
    print_table(rows, ("protocol", "judge", "accuracy, %", "students"))
