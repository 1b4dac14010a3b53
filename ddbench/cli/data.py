"""ddbench data: download, bring your own, what is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import Group
from ddbench.cli.common import (
    data_option,
    json_option,
    note,
    print_json,
    print_table,
    quiet_option,
    runs_option,
    stack,
)
from ddbench.cli.deleting import carry_out, dry_run_option, yes_option
from ddbench.cli.progress import Progress
from ddbench.text import number_of, some_of

if TYPE_CHECKING:
    from ddbench.data.manifests import Manifest
    from ddbench.runs.removal import Piece

SHOWN_RUNS = 10


@click.group(
    cls=Group,
    homes={
        "get": "ddbench.cli.data:get",
        "add": "ddbench.cli.data:add",
        "list": "ddbench.cli.data:list_",
        "rm": "ddbench.cli.data:rm",
    },
)
def data() -> None:
    """Datasets: download, bring your own, what is there, remove."""


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace a copy that is there under this name.")
@data_option
@quiet_option
@json_option
def get(name: str, force: bool, data_root: Path, quiet: bool, as_json: bool) -> None:
    """Download a dataset of the catalogue."""
    from ddbench.data import sources

    with Progress(quiet) as progress:
        manifest = sources.get(name, data_root, progress, force=force)
    _print_manifest(manifest, as_json)


@click.command(short_help="Add a folder, an archive or a .npz file.")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(min=1), metavar="N", help="Resize images to N x N pixels.")
@click.option(
    "--labels",
    "tables",
    multiple=True,
    metavar="FILE.csv",
    type=click.Path(path_type=Path),
    help="A table with a column of image files and one of their labels. Repeatable.",
)
@click.option(
    "--columns",
    default="",
    metavar="FILE,LABEL[,SPLIT]",
    help="Which columns of the table, by name or by number from 1; default: by their usual names.",
)
@click.option("--force", is_flag=True, help="Replace other data that has this name.")
@data_option
@quiet_option
@json_option
def add(
    name: str,
    path: Path,
    size: int | None,
    tables: Sequence[Path],
    columns: str,
    force: bool,
    data_root: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Add a folder, an archive or a .npz file under the name of a known dataset or one of your own.

    A folder has train/CLASS/IMAGE and test/CLASS/IMAGE, or a table says the classes with --labels. A .npz file has
    x_train, y_train, x_test and y_test.
    """
    if columns and not tables:
        raise click.UsageError("--columns says which columns of a table are meant; name the table with --labels.")
    from ddbench.data import archives, sources

    if archives.without_checksums(path) and path.is_file() and not quiet:
        note(
            "Note: a .tar without compression has no checksums of its content, so that damage inside a file may not be "
            "seen. Compare the fingerprint with that of another copy, or take a .tar.gz."
        )
    with Progress(quiet) as progress:
        manifest = sources.add(name, path, data_root, size, progress, labels=tables, columns=columns, force=force)
    if (unused := manifest.get("left_out")) and not quiet:
        note(f"Note: left out: {unused}.")
    _print_manifest(manifest, as_json)


@click.command("list")
@data_option
@json_option
def list_(data_root: Path, as_json: bool) -> None:
    """Which datasets are known, and which are there."""
    from ddbench.data.catalogue import CATALOGUE
    from ddbench.data.manifests import find_all

    there = {manifest["name"]: manifest for manifest in find_all(data_root)}
    rows = []
    for name in [*CATALOGUE, *sorted(there.keys() - CATALOGUE.keys())]:
        known, manifest = CATALOGUE.get(name), there.get(name)
        embedded = known is not None and known.how == "embedded"
        rows.append(
            {
                "name": name,
                "title": manifest["title"] if manifest else known.title if known else name,
                "here": manifest is not None or embedded,
                "origin": manifest["origin"] if manifest else known.download if known else "",
                "train": manifest["train"]["images"] if manifest else known.train if known else None,
                "test": manifest["test"]["images"] if manifest else known.test if known else None,
                "fingerprint": manifest["fingerprint"] if manifest else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        (
            (row["name"], row["title"], "yes" if row["here"] else "no", row["train"], row["test"], _origin(row))
            for row in rows
        ),
        ("name", "title", "here", "train", "test", "origin"),
        expendable=("test", "train", "title"),
        prose=True,
    )


@click.command(short_help="Remove a dataset from the data folder.")
@click.argument("name")
@stack(yes_option, dry_run_option, data_option, runs_option, json_option)
@click.pass_context
def rm(
    ctx: click.Context, name: str, yes: bool, dry_run: bool, data_root: Path, runs_root: Path, as_json: bool
) -> None:
    """Remove a dataset from the data folder. What would go is named first, with its size.

    Says which runs under the runs folder were made from it: without it they keep their sets and records, and cannot be
    judged again. What is built in cannot be removed.
    """
    from ddbench.data import cache, sources
    from ddbench.data.catalogue import CATALOGUE
    from ddbench.errors import DataError
    from ddbench.runs.listing import Wanted, list_runs, usage
    from ddbench.runs.removal import Piece, Removal

    known, paths, manifest = sources.removable(name, data_root)
    title = "damaged" if manifest is None else manifest["title"]
    whats = [
        "left by a process that was killed" if path.name.startswith(".")
        else f"only the link, which leads to {path.resolve()}" if path.is_symlink()
        else title
        for path in paths
    ]  # fmt: skip
    sizes = [0 if path.is_symlink() else usage(path)[0] for path in paths]
    plan = Removal(tuple(Piece(path, what, count) for path, what, count in zip(paths, whats, sizes, strict=True)))
    made = [
        run
        for run in list_runs(runs_root, Wanted(datasets=(known,)))
        if manifest is None or run.spec is None or run.spec.data_fingerprint == manifest["fingerprint"]
    ]
    for run in made:
        if run.state == "running":
            raise DataError(
                f"{known} is not removed: run {run.id} is being worked on {run.why}, and reads it. Wait for it, or "
                "stop that process."
            )
    if made:
        ids = some_of([run.id for run in made], SHOWN_RUNS)
        note(
            f"{number_of(len(made), 'run')} under {runs_root} made from it cannot be judged again "
            f"without it: {ids}. `ddbench runs --dataset {known}` lists them."
        )
    entry = CATALOGUE.get(known)
    if manifest is not None and manifest["original"] and entry is not None and entry.how != "imagenet-folder":
        note(f"`ddbench data get {known}` downloads it again.")

    def removing() -> Iterator[Piece | str]:
        try:
            cache.remove(data_root, known)
            yield from plan.pieces
        except DataError as error:
            yield str(error)

    fingerprint = None if manifest is None else manifest["fingerprint"]
    beside = {"name": known, "fingerprint": fingerprint, "runs": [run.to_json() for run in made]}
    carry_out(ctx, plan, removing(), yes=yes, dry_run=dry_run, as_json=as_json, beside=beside)


def _origin(row: dict[str, Any]) -> str:
    return str(row["origin"]) if row["here"] or not row["origin"][:1].isdigit() else f"download: {row['origin']}"


def _print_manifest(manifest: Manifest, as_json: bool) -> None:
    if as_json:
        print_json(manifest)
        return
    shape = "x".join(map(str, manifest["shape"]))
    print_table(
        [
            ("name", manifest["name"]),
            ("title", manifest["title"]),
            ("images", f"{manifest['train']['images']} train, {manifest['test']['images']} test, {shape}"),
            ("classes", len(manifest["classes"])),
            ("origin", manifest["origin"]),
            ("split", manifest["split"]),
            ("preprocessing", manifest["preprocessing"]),
            *([("left out", manifest["left_out"])] if "left_out" in manifest else []),
            ("fingerprint", manifest["fingerprint"]),
            ("in any order", manifest.get("contents", "")),
        ]
    )
