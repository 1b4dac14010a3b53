"""ddbench export: the set of a run as a file that others read."""

from __future__ import annotations

from pathlib import Path

import click

from ddbench.cli.common import data_option, decode_option, json_option, note, print_json, remark


@click.command(short_help="Write the set of a run as a file that others read.")
@click.argument("ref", metavar="RUN|FILE|SET", type=click.Path())
@click.option(
    "--format", "kind", type=click.Choice(["safetensors", "pt", "npz", "png"]), default="safetensors", show_default=True
)
@click.option(
    "--out", metavar="PATH", type=click.Path(path_type=Path), help="Where to; default: a name made from the run, here."
)
@decode_option
@data_option
@json_option
def export(ref: str, kind: str, out: Path | None, decode: str | None, data_root: Path, as_json: bool) -> None:
    """Write the set of a run as a file that others read: pt in the layout of DC, npz in that of KIP, png by class.

    SET is the name of a published set, as in dance/cifar10/ipc10. All but png keep every number, and what a layout has
    no place for lies beside it. NAME.transform.npz says how test images come into the set's pixel space, by mean and
    deviation or a whitening matrix, and needs no ddbench.
    """
    from dataclasses import asdict

    from ddbench.errors import DdbenchError
    from ddbench.foreign.importing import export_run, export_transform
    from ddbench.foreign.meant import meant

    path = meant(ref, data_root, remark).file(data_root)
    place, loss = export_run(path, kind, out, data_root, decode)
    if loss is not None:
        note(f"Note: {loss}.")
    transform = None
    try:
        transform = export_transform(path, place, data_root)
        note(f"Note: {transform} brings test images into its pixel space.")
    except DdbenchError as error:  # the set is there, and is worth more than this
        note(f"Note: there is no transform of test images beside it: {error}")
    if as_json:
        lost = None if loss is None else asdict(loss)
        print_json({"path": str(place), "loss": lost, "transform": transform and str(transform)})
    else:
        click.echo(str(place))
