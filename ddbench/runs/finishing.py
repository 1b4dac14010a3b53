"""The end of a run, whether it has condensed its set or took it from a file: the set is described, and recorded."""

from __future__ import annotations

from collections.abc import Mapping

from ddbench import synthetic as sets
from ddbench.data.dataset import Dataset
from ddbench.data.pixels import PixelSpace
from ddbench.data.scale import real_scale, scale_of
from ddbench.files import sha256_of, write_atomically, write_json
from ddbench.runs.evaluating import evaluations, recorded_curves
from ddbench.runs.ledger import Ledger
from ddbench.runs.measures import Measures
from ddbench.runs.preview import preview
from ddbench.runs.record import (
    ConfigPart,
    DataPart,
    ImportedPart,
    RunPart,
    RunRecord,
    SheetPart,
    SyntheticPart,
    as_a_record,
    write_record,
)
from ddbench.runs.rundir import RunDir
from ddbench.runs.runspec import RunSpec
from ddbench.runs.sheet import sheet
from ddbench.synthetic import SyntheticSet


def describe(
    folder: RunDir, synthetic: SyntheticSet, dataset: Dataset, space: PixelSpace, title: str, *, anew: bool = False
) -> None:
    """Write what a person looks at first: the header of the set in a folder as JSON, and a picture under a title.

    What is there already is kept, unless it is to be made anew.
    """
    if anew or not folder.describes_its_set():
        described = {**sets.read_header(folder.synthetic), "sha256": sha256_of(folder.synthetic)}
        write_json(folder.about, described, sealed=True)
    if anew or not folder.preview.is_file():
        write_atomically(folder.preview, preview(synthetic, dataset.train.classes, space, title))


def finish(
    folder: RunDir,
    spec: RunSpec,
    synthetic: SyntheticSet,
    dataset: Dataset,
    space: PixelSpace,
    *,
    title: str,
    kind: str,
    native: str = "",
    learned: tuple[str, ...],
    ledger: Ledger | None = None,
    imported: ImportedPart | None = None,
) -> RunRecord:
    """Write the record of a folder whose set is there, with the evaluations that are, and return it.

    `title`, `kind`, `native` and `learned` are what its method says of itself; no ledger: it has cost nothing yet.
    Raises: RunError where a record cannot hold what is said.
    """
    sha256 = sha256_of(folder.synthetic)
    measures = Measures.of(folder, sha256)
    with as_a_record():
        record = RunRecord(
            status="complete",
            run=RunPart(
                id=spec.id,
                method=spec.method,
                title=title,
                kind=kind,
                provided_by=spec.provided_by,
                method_sha256=spec.method_sha256,
                dataset=spec.dataset,
                ipc=spec.ipc,
                backbone=spec.backbone,
                seed=spec.seed,
                preset=spec.preset,
                precision=spec.precision,
                native=native,
            ),
            config=ConfigPart(
                values=dict(spec.config), sources=_option_sources(spec.sources), published=spec.published
            ),
            data=_data(dataset, synthetic.pixels, space),
            synthetic=SyntheticPart.of(synthetic, sha256, learned, _scale(synthetic, dataset, space)),
            imported=imported,
            artifacts=ledger.artifacts if ledger is not None else (),
            evaluations=tuple(evaluations(folder, sha256)),
            sheet=_sheet(folder, synthetic, space),
            curves=recorded_curves(folder, sha256),
            recognised=measures.recognised,
            correlations=measures.correlations,
            cost=ledger.costs if ledger is not None else {},
            counts=ledger.counts if ledger is not None else {},
            attempts=ledger.attempts if ledger is not None else (),
        )
    write_record(folder.record, record)
    return record


def _sheet(folder: RunDir, synthetic: SyntheticSet, space: PixelSpace) -> SheetPart | None:
    """Write a small picture of the set; what a record says of it, or none where it cannot be drawn here."""
    drawn = sheet(synthetic, space)
    if drawn is None:
        return None
    write_atomically(folder.sheet, drawn[0])
    return drawn[1]


def _option_sources(sources: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix("config."): v for k, v in sources.items() if k.startswith("config.")}


def _scale(synthetic: SyntheticSet, dataset: Dataset, space: PixelSpace) -> float | None:
    if not synthetic.images.is_floating_point():
        return None
    return scale_of(synthetic.images, real_scale(dataset.train, space))


def _data(dataset: Dataset, name: str, space: PixelSpace) -> DataPart:
    """What a record says of its data; `name` is the pixel space as the set has it."""
    return DataPart(
        title=dataset.title,
        fingerprint=dataset.fingerprint,
        contents=dataset.contents,
        original=dataset.original,
        train=len(dataset.train),
        test=dataset.manifest["test"]["images"],
        classes=len(dataset.train.classes),
        shape=dataset.train.shape,
        pixels=name,
        pixels_fingerprint=space.fingerprint,
    )
