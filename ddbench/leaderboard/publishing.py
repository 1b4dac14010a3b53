"""Sets of runs, published beside the records: a small file, and an entry of the index that says which rule chose it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ddbench.backbones import names as backbones
from ddbench.config import explain
from ddbench.data.catalogue import CATALOGUE, canonical
from ddbench.decoders import NONE
from ddbench.errors import DataError, RunError
from ddbench.evaluation.protocol import OWN, PROTOCOLS, Protocol, judged_by
from ddbench.files import locked, require_writable, sha256_of, write_atomically, write_json
from ddbench.foreign.published_sets import FOLDER, INDEX, SetEntry, SetIndex, name_of, read_index
from ddbench.leaderboard.boards import place_of
from ddbench.leaderboard.observations import collect, record_file
from ddbench.leaderboard.set_files import MOST_BYTES
from ddbench.leaderboard.statistics import VARIANT, summarise
from ddbench.leaderboard.tracks import factor_of
from ddbench.leaderboard.verification import LOCK
from ddbench.runs.record import EvaluationPart, RunRecord, read_record
from ddbench.text import budget, of_board, percent, size

if TYPE_CHECKING:
    from pandas import DataFrame

    from ddbench.runs.runner import RunOptions
    from ddbench.synthetic import Kept, SyntheticSet


def publish(
    path: Path,
    leaderboards: Path,
    *,
    protocol: Protocol | None = None,
    kept: Kept = "float16",
    why: str = "",
    judging: RunOptions | None = None,
) -> SetEntry:
    """Write the set of a run, whose record is in the leaderboard, as a small file with an entry of the index.

    `protocol` is the one by which it stands on the board, by default that of the method's own paper. `kept` says how
    the file keeps images of floating point. `why` is the reason for a set, or a protocol, that the index's rule would
    not take. With `judging`, students train on the set as the file has it, as the record's did on the run's own.
    Raises: RunError or DataError where the set cannot be published; nothing is written then.
    """
    from ddbench import synthetic as sets
    from ddbench.foreign.importing import own_set

    why = why.strip()
    place, record = _recorded(path, leaderboards)
    synthetic, about = own_set(path)[1:3]
    judged = _evaluation(record, protocol, path, leaderboards)
    _follow_the_rule(record, judged, leaderboards, why)
    name = name_of(record.run.method, record.run.dataset, record.run.ipc)
    target = leaderboards / FOLDER.name / f"{name.replace('/', '-')}.safetensors"
    index = _index(target.parent)
    require_writable(
        [leaderboards / LOCK, target],
        "The set could not be published there, so nothing was done. Check the owner and permissions of the folder, or "
        "publish in a copy of the leaderboard with --leaderboards.",
    )
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / target.name
        sets.save(synthetic, small, about, kept=kept)
        entry = _entry(
            path,
            name=name,
            file=target.name,
            sha256=sha256_of(small),
            bytes=small.stat().st_size,
            kept=kept if synthetic.stored == "float32" else "uint8",
            rounding=_rounding(synthetic, sets.load(small)),
            set=record.synthetic.sha256,
            run=record.run.id,
            record=place.relative_to(leaderboards).as_posix(),
            title=record.run.title,
            seed=record.run.seed,
            backbone=record.run.backbone,
            pixels=synthetic.pixels,
            images=len(synthetic),
            labels=synthetic.label_kind,
            licence=_licence(record.run.dataset),
            protocol=judged.protocol,
            judge=judged.backbone,
            accuracy=judged.accuracy,
            why=why,
        )
        _require_place(index.with_entry(entry), entry)
        if judging is not None:
            measured = _judged_again(small, record, judged, protocol, judging)
            entry = entry.model_copy(update={"accuracy_of_file": measured})
        with locked(leaderboards / LOCK, "--leaderboards"):
            index = _index(target.parent).with_entry(entry)  # it may have grown while students were trained
            _require_place(index, entry)
            write_atomically(target, small.read_bytes())
            write_json(target.parent / INDEX, index.to_json(), sealed=True)
    return entry


def _index(folder: Path) -> SetIndex:
    """The index of a folder, or an empty one of a folder that has none."""
    return read_index(str(folder), Path()) if os.path.lexists(folder / INDEX) else SetIndex()


def _entry(path: Path, **values: Any) -> SetEntry:
    """An entry of the index. Raises: DataError for what none can hold; `path` is the run that the message names."""
    try:
        return SetEntry(**values)
    except ValidationError as error:
        raise DataError(f"{explain(f'{path} cannot be published', error)}.") from None


def _recorded(path: Path, leaderboards: Path) -> tuple[Path, RunRecord]:
    """The record that the leaderboard has of a run's folder, and its place."""
    if not path.is_dir():
        raise RunError(f"{path} is not the folder of a run, and only those have a set to publish.")
    own = read_record(record_file(path))
    if own.imported is not None or own.run.kind == "imported":
        raise RunError(f"{path} is an imported set. Others made it, and it is theirs to publish.")
    place = leaderboards / place_of(own.run)
    if not place.is_file():
        raise RunError(
            f"{path} has no record in {leaderboards}, so nobody could tell where its set comes from. "
            f"`{of_board('leaderboard add', leaderboards, path)}` puts it there."
        )
    record = read_record(place)
    if record.synthetic.sha256 != own.synthetic.sha256:
        raise RunError(f"{place} is the record of another set of the run {own.run.id}, so this one is not published.")
    return place, record


def _evaluation(record: RunRecord, protocol: Protocol | None, shown: Path, leaderboards: Path) -> EvaluationPart:
    """The evaluation of a record under a protocol, else under that of its method's own paper.

    By the judge that the protocol names first, where the record has it, else by the first that it has.
    Raises: RunError where there is none; `shown` is the run that the message names.
    """
    run = record.run
    wanted = protocol or PROTOCOLS.get(run.native)
    ref = wanted.id if wanted is not None else run.native
    parts = [part for part in record.evaluations if part.protocol == ref and part.accuracy]
    parts = [part for part in parts if wanted is None or part.digest == wanted.digest]
    if not parts:
        raise RunError(
            f"{shown} has no accuracy under {ref}{'' if protocol else ', the protocol of its method'}. `ddbench "
            f"evaluate {shlex.quote(str(shown))} --protocol {ref}` measures it, and "
            f"`{of_board('leaderboard add', leaderboards, shown)}` adds it."
        )
    first = wanted.backbones[0] if wanted is not None else OWN
    judge = run.backbone if first == OWN else backbones.canonical(first, record.data.shape)
    return next((part for part in parts if part.backbone == judge), parts[0])


@dataclass(frozen=True)
class _Best:
    """The settings of a method with the highest mean under one judge, and the run of theirs with the lowest seed."""

    label: str
    mean: float
    sets: int
    run: str
    seed: int


def _follow_the_rule(record: RunRecord, judged: EvaluationPart, leaderboards: Path, why: str) -> None:
    """Raises: RunError where the rule of the index takes another set, or another protocol, and nobody says why."""
    if why:
        return
    run = record.run
    if judged.protocol != run.native:
        raise RunError(
            f"the rule of the index is about {run.native}, the protocol of the method's own paper. Say with --why what "
            f"speaks for {judged.protocol}; the index keeps it."
        )
    if run.kind == "coreset" and record.synthetic.decode != NONE:
        raise RunError(
            f"run {run.id} has mosaics of real images, which are another control than the images of {run.method} that "
            "its name stands for. Say with --why what speaks for them; the index keeps it."
        )
    best = _best(record, judged, leaderboards)
    if best.run != run.id:
        raise RunError(
            f"by the rule of the index the set of run {best.run} stands for {run.method} on {run.dataset}, "
            f"{budget(run.ipc)}: {best.label} has the highest mean under {judged.protocol}, {percent(best.mean)} %, "
            f"over {best.sets} sets, and {best.seed} is its lowest seed. Publish that set, or say with --why what "
            f"speaks for run {run.id}; the index keeps it."
        )


def _best(record: RunRecord, judged: EvaluationPart, leaderboards: Path) -> _Best:
    run = record.run
    frame = collect(sorted((leaderboards / place_of(record.run)).parent.glob("*.json")))
    fingerprint = frame[frame["run"] == run.id]["fingerprint"].iloc[0]
    same = {
        "method": run.method, "dataset": run.dataset, "ipc": run.ipc, "fingerprint": fingerprint,
        "digest": judged.digest, "judge": judged_by(judged.protocol, judged.backbone), "kind": run.kind,
    }  # fmt: skip
    measured = _where(frame[frame["student"] >= 0], same)
    rows: list[dict[Any, Any]] = summarise(measured).to_dict("records")
    if run.kind == "coreset":  # mosaics are another control, and no setting of this one
        rows = [row for row in rows if factor_of(row) == 1]
    row = max(rows, key=lambda row: float(row["mean"]))
    first = _where(measured, {name: row[name] for name in VARIANT}).sort_values(["seed", "run"]).iloc[0]
    return _Best(str(row["label"]), float(row["mean"]), int(row["sets"]), str(first["run"]), int(first["seed"]))


def _where(frame: DataFrame, values: Mapping[str, Any]) -> DataFrame:
    """The rows of a table that have these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def _judged_again(
    file: Path, record: RunRecord, judged: EvaluationPart, protocol: Protocol | None, options: RunOptions
) -> tuple[float, ...]:
    """Accuracies of the record's students, trained on the set as a file has it."""
    from ddbench.foreign.importing import Import, bring_in, dataset_of, found_in
    from ddbench.runs.runner import evaluate_run

    run = record.run
    (found,) = found_in(file, None, None, options.data_root)
    real = dataset_of(found, file, None, options.data_root)
    asked = Import(name=run.method, ipc=run.ipc, backbone=run.backbone, protocols=(judged.protocol,))
    with tempfile.TemporaryDirectory() as folder:
        there = replace(options, root=Path(folder))
        place = bring_in(found, asked, real, there).folder
        by = [protocol or PROTOCOLS[judged.protocol]]
        (part,) = evaluate_run(place, by, [judged.backbone], len(judged.accuracy), there).evaluations
    if part.failed:
        raise DataError(f"no student could be trained on the set as the file has it: {part.failed}")
    return part.accuracy


def _rounding(before: SyntheticSet, after: SyntheticSet) -> float:
    """The largest change of a number of an image."""
    return float((after.images.double() - before.images.double()).abs().max())


def _licence(dataset: str) -> str:
    known = CATALOGUE.get(canonical(dataset))
    return known.licence if known is not None else "that of the dataset, which ddbench does not know"


def _require_place(index: SetIndex, entry: SetEntry) -> None:
    """Raise RunError where a set cannot lie beside the others of an index, which has its entry already."""
    for other in index.sets:
        if other.file == entry.file and other.name != entry.name:
            raise RunError(
                f"{entry.name} would lie in {entry.file}, which is the file of {other.name}. Both cannot be published "
                "in one folder; give the method, or the dataset, another name."
            )
    total = sum(one.bytes for one in index.sets)
    if total > MOST_BYTES:
        raise RunError(
            f"{entry.file} takes {size(entry.bytes)}, and all published sets would take {size(total)}; "
            f"{size(MOST_BYTES)} is the most. Keep its images as uint8 (--kept uint8), or take another set away."
        )
