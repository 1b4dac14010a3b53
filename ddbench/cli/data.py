"""ddbench data: download, bring your own, what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import Group
from ddbench.cli.common import Progress, data_option, json_option, print_json, print_table, quiet_option

if TYPE_CHECKING:
    from ddbench.data.cache import Manifest


@click.group(
    cls=Group,
    homes={"get": "ddbench.cli.data:get", "add": "ddbench.cli.data:add", "list": "ddbench.cli.data:list_"},
)
def data() -> None:
    """Datasets: download, bring your own, what is there."""


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace a copy that is there under this name.")
@data_option
@quiet_option
@json_option
def get(name: str, force: bool, data_root: Path, quiet: bool, as_json: bool) -> None:
    """Download a dataset of the catalogue."""
    from ddbench.data import sources

    _print_manifest(sources.get(name, data_root, Progress(quiet), force=force), as_json)


@click.command(short_help="Add a folder, an archive or a .npz file.")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(min=1), metavar="N", help="Resize images to N x N pixels.")
@click.option("--force", is_flag=True, help="Replace other data that has this name.")
@data_option
@quiet_option
@json_option
def add(name: str, path: Path, size: int | None, force: bool, data_root: Path, quiet: bool, as_json: bool) -> None:
    """Add a folder, an archive or a .npz file under the name of a known dataset or one of your own.

    A folder has train/CLASS/IMAGE and test/CLASS/IMAGE. A .npz file has x_train, y_train, x_test and y_test.
    """
    from ddbench.data import sources

    _print_manifest(sources.add(name, path, data_root, size, Progress(quiet), force=force), as_json)


@click.command("list")
@data_option
@json_option
def list_(data_root: Path, as_json: bool) -> None:
    """Which datasets are known, and which are there."""
    from ddbench.data import sources
    from ddbench.data.catalogue import CATALOGUE

    there = {manifest["name"]: manifest for manifest in sources.installed(data_root)}
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
    )


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
            ("fingerprint", manifest["fingerprint"]),
            ("in any order", manifest.get("contents", "")),
        ]
    )
