"""ddbench inspect: what is in a set, and what its file does not say."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli.common import (
    data_option,
    decode_option,
    json_option,
    note,
    print_json,
    print_table,
    remark,
    size_option,
)
from ddbench.text import percent

if TYPE_CHECKING:
    from ddbench.foreign.diagnosis import Diagnosis
    from ddbench.foreign.formats import Found


@click.command(short_help="What is in a set, and what its file does not say.")
@click.argument("ref", metavar="PATH|SET", type=click.Path())
@click.option("--dataset", metavar="NAME", help="The dataset that the set is for; with it, more can be told.")
@click.option("--pixels", metavar="NAME", help="The pixel space that the set is said to be in.")
@decode_option
@size_option
@click.option("--entry", metavar="NAME", help="Which set of a file that holds several; default: the first.")
@click.option(
    "--picture", metavar="FILE", type=click.Path(path_type=Path), help="Draw its images, one row a class, as PNG."
)
@data_option
@json_option
def inspect(
    ref: str,
    dataset: str | None,
    pixels: str | None,
    decode: str | None,
    size: int | None,
    entry: str | None,
    picture: Path | None,
    data_root: Path,
    as_json: bool,
) -> None:
    """Say what is in a set that somebody made, and which flag `ddbench evaluate` will probably need.

    PATH is a run, or a file or folder that was downloaded; SET the name of a published set, as in dance/cifar10/ipc10.
    Nothing in it is executed, nothing is trained.
    """
    from ddbench.data.sources import load
    from ddbench.errors import DataError
    from ddbench.files import unfinished, write_atomically
    from ddbench.foreign import importing
    from ddbench.foreign.diagnosis import Finding, Reference, diagnose
    from ddbench.foreign.formats import choose, read
    from ddbench.foreign.leaks import count_test_images, sentence
    from ddbench.foreign.meant import meant
    from ddbench.foreign.tiles import decoder_of
    from ddbench.runs.rundir import SPEC, RunDir

    path = meant(ref, data_root, remark).file(data_root)
    info = importing.known_classes(dataset, data_root)
    file = path
    if (path / SPEC).is_file():
        folder = RunDir.at(path)
        file = folder.synthetic
        if file.is_file():
            folder.set_sha256()
    sets = read(file, info, size)
    found = choose(sets, entry, path)[0] if entry else sets[0]
    name = dataset or str(found.about.get("dataset", ""))
    reference, leaked = None, 0
    if name:
        try:
            data = load(name, data_root)
            info, reference = importing.known_classes(name, data_root), Reference.of(data.train, data.info)
            leaked = count_test_images(found.images, data)
        except DataError as error:
            if info is None:
                raise
            note(f"Note: compared with an average image, not with {name}: {error}")
    diagnosis = diagnose(found, reference, info, pixels, decode)
    if leaked:
        finding = Finding("test-images", sentence(leaked, len(found.images), data))
        diagnosis = replace(diagnosis, findings=(finding, *diagnosis.findings))
    several = importing.decoded(found, *decoder_of(found, decode))
    if picture is not None:
        shown = reference or Reference.natural(diagnosis.shape)
        unfinished(picture)
        write_atomically(picture, importing.picture(found, diagnosis, shown, info, path.name))
    if as_json:
        print_json({**_json(found, diagnosis, [one.entry for one in sets]), "decode": several})
        return
    print_table(_rows(found, diagnosis, [one.entry for one in sets], several))
    click.echo("")
    for finding in diagnosis.findings:
        asked = f", say {finding.flag}." if finding.code == "class-order" else f". Say {finding.flag}."
        click.echo(f"! {finding.text}" + (asked if finding.flag else "."))
    if not diagnosis.findings:
        click.echo(
            "Nothing looks wrong." if reference is not None else "Nothing looks wrong; --dataset NAME tells more."
        )


def _rows(found: Found, diagnosis: Diagnosis, entries: list[str], several: str) -> list[tuple[str, str]]:
    least, most = diagnosis.per_class
    channels = zip(diagnosis.mean, diagnosis.std, strict=True)
    likely = "as stored, 0 to 255" if diagnosis.stored == "uint8" else diagnosis.pixels
    said = found.ours.pixels if found.ours is not None else ""
    choice = found.choice
    rows = [
        ("layout", found.layout),
        (
            "sets",
            f"{len(entries)}: {_listed(entries)}; shown is {found.entry}",
        ),
        ("images", f"{diagnosis.images} of {'x'.join(map(str, diagnosis.shape))}, {diagnosis.stored}"),
        ("classes", f"{diagnosis.classes}, with {least if least == most else f'{least} to {most}'} images each"),
        ("labels", diagnosis.label_kind),
        ("range", f"{diagnosis.low:.4g} to {diagnosis.high:.4g}"),
        ("mean, s.d.", "; ".join(f"{mean:.3f}, {std:.3f}" for mean, std in channels)),
        ("pixel space", f"{said}, as the file says" if said else likely + ("" if diagnosis.clear else ", not sure")),
        ("tiles", several),
        (
            "step size",
            "" if found.lr is None else f"{found.lr.flatten()[0]:.4g}" + (", …" if found.lr.numel() > 1 else ""),
        ),
        (
            "chosen",
            f"step {choice.step}: {percent(choice.accuracy)} % of {choice.images} held-out images, {choice.students} "
            f"students under {choice.protocol}"
            if choice is not None
            else "",
        ),
        ("steps", "" if found.schedule is None else f"{len(found.schedule)} of {found.schedule.shape[1]} images"),
        ("bytes", str(found.nbytes)),
        ("fits", ", ".join(diagnosis.fitting)),
        ("sha256", found.sha256),
        *((f"claims {name}", str(value)[:80]) for name, value in {**found.about, **found.claims}.items()),
        *(("note", text) for text in found.notes),
    ]
    return [row for row in rows if row[1]]


def _listed(entries: list[str]) -> str:
    """The first eight, and what was chosen on test images, which nobody should take for the result."""
    from ddbench.foreign.formats import entry_name, is_best

    best = [entry for entry in entries if is_best(entry)]
    first = [entry for entry in entries if entry not in best][: 8 - len(best)]
    left = len(entries) - len(first) - len(best)
    return ", ".join([*first, *(["…"] if left else []), *map(entry_name, best)])


def _json(found: Found, diagnosis: Diagnosis, entries: list[str]) -> dict[str, Any]:
    return {
        "layout": found.layout,
        "entries": entries,
        "entry": found.entry,
        "bytes": found.nbytes,
        "sha256": found.sha256,
        "lr": None if found.lr is None else found.lr.tolist(),
        "notes": list(found.notes),
        "steps": None if found.schedule is None else len(found.schedule),
        "claims": {**found.about, **found.claims},
        "choice": asdict(found.choice) if found.choice is not None else None,
        **asdict(diagnosis),
    }
