"""Sets that go from hand to hand: imported ones become runs without a condensation, and runs become files.

What the maker of an imported set claims and what ddbench measured are kept apart, in the record as on a board.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddbench import synthetic as sets
from ddbench.backbones import names as backbones
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.dataset import Dataset
from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.sources import info_of, load
from ddbench.decoders import NONE, canonical_decoder
from ddbench.engine.decode import decode
from ddbench.engine.precision import usual
from ddbench.errors import ConfigError, DataError, RunError, closest, mistyped
from ddbench.evaluation.plan import fit
from ddbench.foreign.diagnosis import Diagnosis, Finding, Reference, diagnose, fitting_datasets, hard
from ddbench.foreign.exporting import FORMATS, Format, Loss, export
from ddbench.foreign.formats import MTT, Found, choose, entry_name, is_best, read
from ddbench.foreign.leaks import count_test_images, sentence
from ddbench.foreign.terms import Said, Terms, complete, in_imagefolder_order, settle
from ddbench.plugins import names_code
from ddbench.runs.finishing import describe, finish
from ddbench.runs.loaded import LoadedSet, pixels_of
from ddbench.runs.preview import preview
from ddbench.runs.record import ImportedPart, as_a_record, read_record
from ddbench.runs.resolving import NAME, RunSpec
from ddbench.runs.rundir import SPEC, RunDir
from ddbench.runs.runner import RunOptions, build_problem
from ddbench.synthetic import SyntheticSet, origin
from ddbench.text import MOST_COUNT, MOST_LINE, MOST_NAME, printable

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
IMPORTED = "imported"


@dataclass(frozen=True)
class Import:
    """What is said of a foreign set. `backbone` is the one it was condensed with, as far as anybody knows."""

    said: Said = field(default_factory=Said)
    name: str = ""
    ipc: int | None = None
    backbone: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    protocols: tuple[str, ...] = ()


def found_in(
    path: Path, entry: str | None, dataset: str | None, data_root: Path, size: int | None = None
) -> list[Found]:
    """The sets of a foreign file that are meant, resized to `size` pixels when given.

    Raises: DataError where there are none, or a choice is needed.
    """
    try:
        return choose(read(path, known_classes(dataset, data_root), size), entry, path)
    except DataError as error:
        if path.is_dir():
            raise DataError(
                f"{path} is not the folder of a run: it has no spec.json. Nor is it a set: {error}"
            ) from None
        raise


def known_classes(dataset: str | None, data_root: Path) -> DatasetInfo | None:
    """What is known of a dataset, with the names of its classes; of the catalogue, where its images are not there."""
    if not dataset:
        return None
    try:
        data = load(dataset, data_root)
    except DataError:
        return info_of(dataset, data_root)
    return with_class_names(data)


def with_class_names(dataset: Dataset) -> DatasetInfo:
    """What is known of a dataset that is there: the catalogue does not have the names of all classes."""
    return replace(dataset.info, class_names=tuple(dataset.train.classes))


def dataset_of(found: Found, path: Path, dataset: str | None, data_root: Path) -> Dataset:
    """The dataset of a foreign set: the one that is said, else the one that its file names.

    Raises: ConfigError where nobody says which it is, DataError where it is not there.
    """
    if dataset is None and "dataset" not in found.about:
        rows = found.labels
        classes = 0 if rows is None else rows.shape[1] if rows.ndim == 2 else int(hard(rows).max()) + 1
        shape = found.images.shape
        fits = fitting_datasets((shape[1], shape[2], shape[3]), classes)
        like = f" By shape and classes it could be for {' or '.join(fits)}." if fits else ""
        raise ConfigError(f"{path} does not say which dataset it was condensed from.{like} Say it with --dataset.")
    return load(dataset or str(found.about["dataset"]), data_root)


def terms_of(found: Found, said: Said, dataset: Dataset) -> tuple[Terms, Diagnosis]:
    """The terms on which a foreign set is read, and what its numbers say.

    Raises: DataError where the set is spoilt or of another dataset, ConfigError where a flag is missing.
    """
    info = with_class_names(dataset)
    meant = in_imagefolder_order(found, info) if said.labels == "imagefolder" else found
    diagnosis = diagnose(meant, Reference.of(dataset.train, dataset.info), info, said.pixels, said.decode)
    _refuse(diagnosis, said)
    return settle(found, said, diagnosis), diagnosis


class Entered(NamedTuple):
    """The run folder of a foreign set, what may be wrong with the set, and what else a person may want to read."""

    folder: Path
    warnings: list[str]
    notes: list[str]


def bring_in(found: Found, asked: Import, dataset: Dataset, options: RunOptions) -> Entered:
    """The run folder of a foreign set, made if it is not there.

    `runner.evaluate_run` judges it like any finished run.
    Raises: DataError where the set is spoilt or of another dataset, ConfigError where a flag is missing.
    """
    info = dataset.info
    terms, diagnosis = terms_of(found, asked.said, dataset)
    ipc, notes = _ipc(found, asked.ipc, len(dataset.train.classes))
    warnings = [text for finding in diagnosis.findings if (text := _warning(finding, asked.said))]
    notes += [f"{note}." for note in found.notes]
    notes += [f"{f.text}. If they are, say {f.flag}." for f in diagnosis.findings if f.code == "tiles"]
    if found.layout == MTT and is_best(found.entry):
        notes.append("its maker chose this state by accuracy on test images, so that its accuracy here is too high.")
    several = decoded(found, terms.decode, terms.sources.get("decode", ""))
    notes += [f"{several}."] if several else []
    guessed = [name for name, how in terms.sources.items() if how == "guessed" and name != "decode"]
    told = ", ".join(f"{name} {terms.to_json()[name]}" for name in guessed)
    notes += [f"guessed from the numbers: {told}."] if guessed else []
    spec = _spec(found, asked, dataset, terms, ipc, usual(options.device))
    problem = build_problem(
        dataset,
        backbone=backbones.canonical("mlp", info.shape),  # none is trained here
        pixels=terms.pixels,
        ipc=spec.ipc,
        seed=spec.seed,
        device=torch.device("cpu"),
        precision=spec.precision,
        artifacts_root=options.artifacts,
    )
    synthetic = complete(found, terms, problem.pixels, problem.classes, with_class_names(dataset))
    fit(synthetic, problem)
    if leaked := count_test_images(synthetic.images, dataset, [problem.pixels]):
        warnings.append(f"{sentence(leaked, len(synthetic.images), dataset)}.")
    # Only now, so that nothing is kept of a set that was refused.
    folder = RunDir.open(options.root, spec)
    with folder.lock(), as_a_record():
        if not _whole(folder):
            _fill(folder, synthetic, problem.pixels, dataset, _imported(found, asked, terms))
    return Entered(folder.path, warnings, notes)


def decoded(found: Found, decoder: str, how: str) -> str:
    """What a person should read of a set whose images are several in one each; "" of any other."""
    if decoder == NONE:
        return ""
    each, _ = decode(decoder, torch.empty(1, *found.images.shape[1:]), torch.zeros(1))
    why = {"guessed": ", by the name of its file or folder; --decode none denies it", "file": ", as the file says"}
    count = len(found.images)
    return f"decoded by {decoder}{why.get(how, '')}: {count} stored images are {count * len(each)} for training"


def own_set(path: Path) -> tuple[Path, SyntheticSet, dict[str, Any], Path | None]:
    """The set of a run, or of a file of ddbench: its file, itself, where it comes from, and the folder of whitenings.

    Raises: RunError or DataError where there is no such set, or it is damaged.
    """
    run = RunDir.at(path) if path.is_dir() else None
    file = path if run is None else run.synthetic
    if run is not None:
        if not file.is_file():
            raise RunError(f"{path} has no set yet: run its command again first, which goes on where it stopped.")
        run.set_sha256()
    synthetic = sets.load(file)
    about = origin(sets.read_header(file).get("about"))
    if run is None:
        return file, synthetic, about, None
    spec = run.spec
    about |= {"method": spec.method, "seed": spec.seed, "backbone": spec.backbone, "provided_by": spec.provided_by}
    return file, synthetic, about, run.root / "artifacts" / "pixels"


def load_set(path: Path, said: Said, dataset: str | None, entry: str | None, data_root: Path) -> LoadedSet:
    """The set of a run, of a file of ddbench, or of one that others wrote, as a torch Dataset.

    What is said is for files that do not say it themselves; see `settle`.
    Raises: RunError, DataError or ConfigError where there is no such set, it is spoilt, or something has to be said.
    """
    if (path / SPEC).is_file():
        _, synthetic, about, store = own_set(path)
        return LoadedSet.of(synthetic, about, data_root, store)
    several = found_in(path, entry, dataset, data_root, said.size)
    if len(several) > 1:
        names = ", ".join(entry_name(one.entry) for one in several)
        raise mistyped(
            DataError(
                f"{path} holds {len(several)} sets: {names}. Say which is meant, as in --entry {several[0].entry}."
            )
        )
    (found,) = several
    about = dict(found.about) | ({} if dataset is None else {"dataset": dataset})
    if found.ours is not None and said == Said():
        return LoadedSet.of(found.ours, about, data_root)
    data = dataset_of(found, path, dataset, data_root)
    terms, diagnosis = terms_of(found, said, data)
    for finding in diagnosis.findings:
        if finding.code == "tiles":
            logger.warning("%s: %s. If they are, say %s.", path, finding.text, finding.flag)
    space = fit_pixels(terms.pixels, data.train, data.info)
    synthetic = complete(found, terms, space, len(data.train.classes), with_class_names(data))
    return LoadedSet.of(synthetic, {**about, "dataset": data.info.name, "data": data.fingerprint}, data_root)


def export_transform(path: Path, place: Path, data_root: Path) -> Path:
    """Write what a test image goes through before a network sees it beside an exported set; returns where it lies.

    It is the one of the pixel space of the run, or of the file of ddbench, at `path`.
    Raises: DataError where the dataset is needed for it and is not there.
    """
    _, synthetic, about, store = own_set(path)
    beside = place.with_name(f"{place.name if place.is_dir() else place.stem}.transform.npz")
    LoadedSet.of(synthetic, about, data_root, store).transform().save(beside)
    return beside


def export_run(
    path: Path, kind: str, out: Path | None, data_root: Path, decoder: str | None = None
) -> tuple[Path, Loss | None]:
    """Write the set of a run, or of a file of ddbench, in a layout that others read; returns where it lies.

    `decoder` is said with the set where its file says none, as for an imported one of whose tiles nobody knew.
    Raises: RunError or DataError where there is no such set, or the layout cannot hold it; ConfigError where the set
    says another decoder.
    """
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(f"there is no format {kind!r}. {closest(kind, list(FORMATS))}Choose one of {known}.")
    file, synthetic, about, store = own_set(path)
    if decoder is not None:
        synthetic = _decoded_by(synthetic, canonical_decoder(decoder))

    def space() -> PixelSpace:
        if "dataset" not in about:
            raise DataError(f"{file} does not say of which dataset it is, so its pixels cannot be brought into {kind}.")
        return pixels_of(synthetic, about, data_root, store)

    name = f"{about.get('method', _plain(file.stem))}-{about.get('dataset', 'set')}-ipc{about.get('ipc', 0)}"
    name += f"-s{about['seed']}" if "seed" in about else ""
    if out is not None and out.name in ("", ".."):
        raise mistyped(
            RunError(f"--out {str(out)!r} names no file and no new folder. Say what the set should be called.")
        )
    place = out or Path(name if kind == "png" else f"{name}.{kind}")
    if place.resolve() == file.resolve():
        raise mistyped(RunError(f"{place} is the set itself. Choose another --out."))
    chosen: Format = kind  # type: ignore[assignment]
    return place, export(synthetic, place, chosen, space, about)


def _decoded_by(synthetic: SyntheticSet, decoder: str) -> SyntheticSet:
    if synthetic.decode not in (NONE, decoder):
        raise ConfigError(f"the set itself says that it is decoded by {synthetic.decode}, and --decode says {decoder}.")
    decode(decoder, synthetic.images[:1].float(), synthetic.labels[:1])
    return replace(synthetic, decode=decoder)


def picture(found: Found, diagnosis: Diagnosis, reference: Reference, info: DatasetInfo | None, title: str) -> bytes:
    """A PNG of a foreign set, one row a class, in the colours that its likely pixel space gives."""
    labels = torch.zeros(len(found.images), dtype=torch.int64) if found.labels is None else hard(found.labels)
    names = info.class_names if info is not None and info.class_names else ()
    classes = [names[k] if k < len(names) else str(k) for k in range(int(labels.max()) + 1)]
    shown = SyntheticSet(_bytes(found.images, diagnosis, reference), labels.clamp(min=0))
    return preview(shown, classes, _NoSpace("none", ""), title)


@dataclass(frozen=True, eq=False)
class _NoSpace(PixelSpace):
    """Of bytes, which need none."""

    def forward(self, images: Tensor) -> Tensor:
        return images

    def back(self, images: Tensor) -> Tensor:
        return images


def _bytes(images: Tensor, diagnosis: Diagnosis, reference: Reference) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    x = torch.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)
    match diagnosis.pixels:
        case "raw":
            x = x / 255
        case "standard":
            x = x * reference.std + reference.mean
        case "zca" | "kip-zca":
            low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
            x = (x - low) / (high - low).clamp(min=1e-8)
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def _refuse(diagnosis: Diagnosis, said: Said) -> None:
    """Stop at what no student could make sense of."""
    for finding in diagnosis.findings:
        if finding.code == "order" and said.labels is not None:
            continue  # whoever says what the labels are has looked
        if finding.fatal and finding.flag != f"--labels {said.labels}":
            hint = f" Say {finding.flag}." if finding.flag.startswith("--labels") else ""
            hint = f"{hint[:-1]}, or --labels class if they are right." if finding.code == "order" else hint
            raise DataError(f"{finding.text}; no student could learn from it as it is.{hint}")


def learned_by_others(synthetic: SyntheticSet) -> tuple[str, ...]:
    """What a record says that others have learned of a set, as far as the set shows it."""
    labels, lr = synthetic.soft, synthetic.recipe.lr is not None
    return ("images", *(("labels",) if labels else ()), *(("lr",) if lr else ()))


def _warning(finding: Finding, said: Said) -> str:
    """What to say of a finding that does not stop a set; nothing where it was answered."""
    if finding.code == "class-order":
        return f"{finding.text}, say {finding.flag}." if said.labels is None else ""
    return f"{finding.text}." if not finding.flag or finding.code == "pixels" else ""


def _ipc(found: Found, said: int | None, classes: int) -> tuple[int, list[str]]:
    if said is not None:
        return said, []
    count = len(found.images)
    ipc = max(1, round(count / classes))
    if count != ipc * classes:
        return ipc, [f"{count} images are not equally many for {classes} classes; the set is entered as ipc {ipc}."]
    return ipc, []


def _spec(found: Found, asked: Import, dataset: Dataset, terms: Terms, ipc: int, precision: str) -> RunSpec:
    shape = dataset.info.shape
    known = asked.backbone or found.about.get("backbone") or UNKNOWN
    seed = found.about.get("seed", found.entry)
    return RunSpec(
        method=_name(found, asked.name),
        provided_by=IMPORTED,
        method_sha256=None,
        dataset=dataset.info.name,
        data_fingerprint=dataset.fingerprint,
        ipc=ipc,
        backbone=known if known == UNKNOWN else backbones.canonical(known, shape),
        pixels=terms.pixels,
        seed=int(seed) if str(seed).isdecimal() else 0,
        precision=precision,
        config={},
        preset=IMPORTED,
        protocols=asked.protocols or (("quick@1",) if dataset.info.name == "digits" else ("dsa@1",)),
        imported={"sha256": found.sha256, "entry": found.entry, "terms": terms.to_json()},
    )


def _name(found: Found, said: str) -> str:
    if said and (not NAME.fullmatch(said) or names_code(said)):
        raise ConfigError(f"a set cannot be called {said!r}; use letters, digits, dots, dashes and underscores.")
    return (said or plain_name(found))[:MOST_NAME]


def plain_name(found: Found) -> str:
    """What a set is called where nobody says it: as its method, or as its file."""
    return str(found.about.get("method") or _plain(Path(found.source).stem))


def _plain(stem: str) -> str:
    """A file's name as the name of what is in it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).removesuffix(".py").strip("-._") or "set"


def _whole(folder: RunDir) -> bool:
    if not (folder.record.is_file() and folder.synthetic.is_file()):
        return False
    try:
        read_record(folder.record)
        folder.set_sha256()
    except RunError as error:
        logger.warning("%s The set is taken from its file again.", str(error).partition(" Remove the folder")[0])
        return False
    return True


def _claims(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a record can hold them: finite numbers, and texts that a board can print."""

    def kept(value: Any) -> Any:
        number = isinstance(value, int | float) and abs(value) <= MOST_COUNT
        return value if number or isinstance(value, bool) else printable(str(value))

    return {printable(name, 200): kept(value) for name, value in values.items()}


def _imported(found: Found, asked: Import, terms: Terms) -> ImportedPart:
    return ImportedPart(
        file=printable(found.source, MOST_LINE),
        sha256=found.sha256,
        bytes=found.nbytes,
        layout=found.layout,
        entry=printable(found.entry, MOST_LINE),
        terms=terms.to_json(),
        sources=dict(terms.sources),
        claims={**found.claims, **_claims(asked.claims)}
        | ({"choice": asdict(found.choice)} if found.choice is not None else {})
        | ({"about": dict(found.about)} if found.about else {}),
    )


def _fill(
    folder: RunDir, synthetic: SyntheticSet, pixels: PixelSpace, dataset: Dataset, imported: ImportedPart
) -> None:
    """The set with its terms, a picture, and a record that lacks only accuracies."""
    spec = folder.spec
    # Nothing about the file that it came in: one set in two files is one set, and tables count it once.
    about = {
        "dataset": spec.dataset,
        "data": dataset.fingerprint,
        "ipc": spec.ipc,
        "classes": list(dataset.train.classes),
        "step": 0,
    }
    sets.save(synthetic, folder.synthetic, about)
    title = f"{spec.method} (imported), {dataset.title}, ipc {spec.ipc}"
    describe(folder, synthetic, dataset, pixels, title, anew=True)
    finish(
        folder,
        spec,
        replace(synthetic, choice=None),  # that a step was chosen without test images is a claim of whoever says so
        dataset,
        pixels,
        title=spec.method,
        kind="imported",
        learned=learned_by_others(synthetic),
        imported=imported,
    )
