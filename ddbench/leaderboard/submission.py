"""What a record has to stand before it becomes a row: it is compared with the files beside it, its code, and its peers.

A refusal is about the record itself: it says something that its own run does not say. An alarm is about its numbers:
they are better than what is known here can explain, which a mistake does more often than a method.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from ddbench.data.catalogue import CATALOGUE, known_copy
from ddbench.errors import DdbenchError, PluginError, RunError
from ddbench.leaderboard.observations import NO_STUDENT, collect
from ddbench.leaderboard.statistics import TABLE, VARIANT, next_set
from ddbench.plugins import names_code
from ddbench.runs.record import Attempt, EvaluationPart, RunRecord, SyntheticPart, readable
from ddbench.runs.rundir import RECORD, SET, SPEC, RunDir
from ddbench.text import percent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    from ddbench.data.dataset import Dataset
    from ddbench.data.pixels import PixelSpace
    from ddbench.method import Method
    from ddbench.synthetic import SyntheticSet

# As PEP 440 writes what is released: no .devN, which is on the way to a version, and no +local, which somebody built.
RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?")
SIGMAS = 3.0
PEERS = 3  # sets, below which nobody knows how far the sets of a method lie apart
ONCE_IN = 1000
LAST_DIGIT = 1e-9  # of means of fractions
ROUNDING = 1e-4  # of a scale, by which machines and versions may differ


def refuse(file: Path, record: RunRecord, *, allow_dirty: bool, data_root: Path | None = None) -> None:
    """Raise RunError for a record that cannot become a row, saying why and what to do.

    What a record says of its images and of the range of its pixels is compared where `data_root` has these images.
    """
    if record.status != "complete":
        raise RunError(f"{file} is the record of a partial run. Run the same command again to finish it.")
    synthetic = None if alone(file) else _compare_with_folder(file, record)
    for refused in _IMPOSSIBLE:
        refused(file, record)
    if synthetic is not None:
        _compare_with_images(file, record, synthetic, data_root)
    if not any(evaluation.accuracy for evaluation in record.evaluations):
        raise RunError(f"{file} has no accuracies. `ddbench evaluate` adds them.")
    if not allow_dirty:
        _refuse_unknown_code(file, record)


def refuse_other_data(records: Mapping[Path, RunRecord], committed: Iterable[Path]) -> None:
    """Raise RunError where records of the same images describe these images differently.

    A board tells data apart by their fingerprint and prints their title, so one of the two would be printed wrongly.
    """
    described: dict[tuple[str, str], tuple[Path, tuple[Any, ...]]] = {}
    for path, record in (*readable(committed), *records.items()):
        data = record.data
        said = (data.title, data.original, data.train, data.test, data.classes, data.shape, data.contents)
        first, theirs = described.setdefault((record.run.dataset, data.fingerprint), (path, said))
        if not (said[-1] and theirs[-1]):  # an earlier record does not say it
            contents = said[-1] or theirs[-1]
            said, theirs = (*said[:-1], contents), (*theirs[:-1], contents)
            described[record.run.dataset, data.fingerprint] = first, theirs
        if said != theirs:
            raise RunError(
                f"{path} and {first} describe the same images ({data.fingerprint}) differently: "
                f"{_differing(said, theirs)}. Give the run's command again with the dataset as it was added, or "
                "correct the record that is wrong."
            )


def impossible(committed: Iterable[Path]) -> list[str]:
    """What records of a leaderboard say that no run writes, a sentence each; damaged records are left out."""
    found, records = [], dict(readable(committed))
    for path, record in records.items():
        for refused in _IMPOSSIBLE:
            try:
                refused(path, record)
            except RunError as error:
                found.append(str(error))
    try:
        refuse_other_data(records, ())
    except RunError as error:
        found.append(str(error))
    return found


def _differing(said: Sequence[Any], theirs: Sequence[Any]) -> str:
    names = ("title", "original", "training images", "test images", "classes", "shape", "contents")
    return _differences(dict(zip(names, zip(said, theirs, strict=True), strict=True)))


def _differences(words: Mapping[str, tuple[Any, Any]]) -> str:
    """What is said in two ways, by what it is called; nothing where all agrees."""
    return "; ".join(f"{name} {ours!r} and {theirs!r}" for name, (ours, theirs) in words.items() if ours != theirs)


def alone(file: Path) -> bool:
    """Whether there is only the record, so that nothing says whether it is what its run has written."""
    return file.name != RECORD or not any((file.parent / name).exists() for name in (SPEC, SET))


def alarms(records: Mapping[Path, RunRecord], committed: Iterable[Path]) -> list[str]:
    """What of these records is better than the records of the leaderboard, and they themselves, can explain.

    Above the whole dataset: a mean that is more than three standard errors above that of students of the whole dataset
    with the same backbone, or the best backbone where that one was not trained on it. Above its own method: a mean that
    another set of the same row would reach once in a thousand times, by the row's other sets, where there are three.
    """
    frame = collect([*committed, *records])
    frame = frame[frame["student"] != NO_STUDENT]
    ids = {record.run.id for record in records.values()}
    return [
        f"{method}, seed {rows[0]['seed']} ({rows[0]['run']}), {rows[0]['protocol']}, {rows[0]['judge']}: {said}"
        for (run, _, _, method), part in frame.groupby(["run", "digest", "judge", "method"], sort=True)
        if run in ids
        for rows in [part.to_dict("records")]
        for said in (*_above_the_whole(rows, frame), *_above_its_own(part, frame))
    ]


def _compare_with_folder(file: Path, record: RunRecord) -> SyntheticSet:
    """The set of a run. Raises: RunError where the record says something else than the other files of the run."""
    from ddbench.runs.evaluating import evaluations
    from ddbench.runs.measures import Measures

    path = file.parent
    if not (path / SET).is_file():
        raise RunError(
            f"{path} has no {SET}: without its set nobody can train a student of this run again. Put the file back, or "
            "start the run over with --fresh."
        )
    if not (path / SPEC).is_file():
        raise RunError(f"{path} has no {SPEC}, so nothing says which run this record is of. Name the run's own folder.")
    folder = RunDir.at(path)
    if (holder := RunDir.holder(path)) is not None:
        raise RunError(
            f"run {folder.spec.id} is being worked on by {holder}, and its record says what there was before. Wait for "
            "it, or stop that process."
        )
    folder.set_sha256()
    differ = [name for name, (ours, theirs) in _facts(record, folder).items() if ours != theirs]
    if differ:
        raise RunError(
            f"{file} is not the record of the run in its folder. Not as in {SPEC}: {', '.join(differ)}. {_MADE_AGAIN}"
        )
    _compare_with_method(file, record)
    synthetic = _compare_description(file, record, folder)
    found = {(e.digest, e.backbone): e for e in evaluations(folder, record.synthetic.sha256)}
    for part in record.evaluations:
        _compare_evaluation(file, part, found.pop((part.digest, part.backbone), None))
    if found:
        hidden = ", ".join(f"{e.protocol} with {e.backbone}" for e in found.values())
        raise RunError(
            f"{file} leaves out what the run was judged by: {hidden}. All that was judged belongs in a record. "
            f"{_MADE_AGAIN}"
        )
    measures = Measures.of(folder, record.synthetic.sha256)
    for name in ("recognised", "correlations"):
        if not set(getattr(record, name)) <= set(getattr(measures, name)):
            raise RunError(
                f"{file} says something else of `{name}` than {folder.measures.name} beside it. {_MADE_AGAIN}"
            )
    _compare_curves(file, record, folder)
    _compare_attempts(file, record, folder)
    return synthetic


_MADE_AGAIN = (
    "A record is written by its run: remove record.json and give the run's command again, which makes it from the rest."
)


def _facts(record: RunRecord, folder: RunDir) -> dict[str, tuple[Any, Any]]:
    run, spec = record.run, folder.spec
    names = (
        "id", "method", "provided_by", "method_sha256", "dataset", "ipc", "backbone", "seed", "preset", "precision",
    )  # fmt: skip
    facts = {name: (getattr(run, name), getattr(spec, name)) for name in names}
    # A specification of before that was said does not say it.
    said = {} if spec.published is None else {"published": (record.config.published, spec.published)}
    return (
        facts
        | said
        | {
            "the options": (record.config.values, dict(spec.config)),
            "the data": (record.data.fingerprint, spec.data_fingerprint),
            "where the set came from": (
                record.imported and (record.imported.sha256, record.imported.entry),
                spec.imported and (spec.imported.get("sha256"), spec.imported.get("entry")),
            ),
        }
    )


def _refuse_other_names(file: Path, record: RunRecord) -> None:
    """Raise RunError where a record calls the images of a shared dataset otherwise than the catalogue does."""
    data, entry = record.data, CATALOGUE.get(record.run.dataset)
    if entry is None:
        return
    copy = known_copy(entry.name, fingerprint=data.fingerprint, contents=data.contents)
    if copy is not None:
        fits = data.title == ", ".join(filter(None, (entry.title, copy.title))) and data.original == copy.original
    else:
        # What copies are called has changed with versions; that they are copies of this dataset has not.
        says_copy = data.title.startswith(f"{entry.title}, ") and not data.original
        # Subsets of ImageNet are made from its files by ddbench, and such a copy may have no words of its own.
        fits = says_copy or (data.title == entry.title and (data.original or bool(entry.wnids)))
    if not fits or (data.shape, data.classes) != (entry.shape, entry.classes):
        kind = "the original" if data.original else "a copy"
        raise RunError(
            f"{file} says that its images of {entry.name} ({data.fingerprint}) are {kind} called '{data.title}' with "
            f"{data.classes} classes and shape {data.shape}, and no run writes that: the dataset is '{entry.title}' "
            f"with {entry.classes} classes and shape {entry.shape}, and a copy has words after that title. "
            f"{_MADE_AGAIN}"
        )
    if copy is not None and data.contents not in ("", copy.contents):
        raise RunError(
            f"{file} says that its images of {entry.name} ({data.fingerprint}) are {data.contents} in any order, and "
            f"those with that fingerprint are {copy.contents}. {_MADE_AGAIN}"
        )
    if data.original and None not in (entry.train, entry.test) and (data.train, data.test) != (entry.train, entry.test):
        raise RunError(
            f"{file} says that its images of {entry.name} are the original with {data.train} training and {data.test} "
            f"test images, and there are {entry.train} and {entry.test}. {_MADE_AGAIN}"
        )


def _refuse_parts_of_images(file: Path, record: RunRecord) -> None:
    """Raise RunError for an accuracy that no number of test images gives."""
    test = record.data.test
    for part in record.evaluations:
        for student, accuracy in enumerate(part.accuracy):
            right = accuracy * test
            if abs(right - round(right)) > 1e-6:  # far above the rounding of a quotient, far below an image
                raise RunError(
                    f"{file} says {100 * accuracy:.4f} % of student {student} under {part.protocol} with "
                    f"{part.backbone}, which is {right:.2f} of {test} test images. An accuracy is a whole number of "
                    f"them, so no run has written this one. {_MADE_AGAIN}"
                )


def _refuse_other_kind(file: Path, record: RunRecord) -> None:
    """Raise RunError where a record calls its set imported and does not say from where, or the other way round."""
    kind, imported = record.run.kind, record.imported is not None
    if (kind == "imported") != imported:
        origin = "names the file that it came from" if imported else "names no file that it came from"
        raise RunError(
            f"{file} says that its set is of the kind {kind}, and {origin}. No run writes that. {_MADE_AGAIN}"
        )


_IMPOSSIBLE = (_refuse_other_names, _refuse_parts_of_images, _refuse_other_kind)


def _compare_with_method(file: Path, record: RunRecord) -> None:
    """Raise RunError where a method of ddbench is described otherwise than it describes itself, or an imported set
    otherwise than all are. Other methods are not asked: a record is no reason to run code.

    Controls and ceilings are told by their kind, and a published set is chosen by the protocol of its method's paper.
    That has had several versions; records say which it was then. Another version may know other titles and options.
    """
    from ddbench.runs.resolving import find_method

    run, said = record.run, record.synthetic.learned
    if record.imported is not None:
        _refuse_other_words(file, record, {"title": (run.title, run.method), "native": (run.native, "")})
        return
    if run.method_sha256 is not None or run.provided_by.split(" ")[0] != "ddbench":
        return
    try:
        loaded, method = find_method(f"ddbench/{run.method}")
    except PluginError:  # a later version's
        return
    info = method.info
    if run.kind != info.kind:
        raise RunError(
            f"{file} says that {run.method} is of the kind {run.kind}, and it is of the kind {info.kind}. {_MADE_AGAIN}"
        )
    if loaded.provided_by == run.provided_by:
        names = (run.native.partition("@")[0], info.native.partition("@")[0])
        learned = _learned_by(method, record)
        words = {"title": (run.title, info.title), "native": names}
        _refuse_other_words(file, record, words | ({} if learned is None else {"learned": (said, learned)}))


def _refuse_other_words(file: Path, record: RunRecord, words: Mapping[str, tuple[Any, Any]]) -> None:
    if differ := _differences(words):
        raise RunError(f"{file} describes {record.run.method} otherwise than its runs do: {differ}. {_MADE_AGAIN}")


def _learned_by(method: type[Method[Any]], record: RunRecord) -> tuple[str, ...] | None:
    """What a method learns with the options of a record; None where these are not its options any more."""
    from ddbench.runs.selecting import told_by_config

    try:
        options = told_by_config(method, record.config.values)[0]
        return method(method.Config(**options)).learns
    except (DdbenchError, ValidationError):
        return None


def _compare_with_images(file: Path, record: RunRecord, synthetic: SyntheticSet, data_root: Path | None) -> None:
    """Raise RunError where a record describes its images, or pixels beside them, otherwise than they are.

    Images are asked where they are in the data folder. A fitted pixel space is not: its last digits are the machine's.
    """
    from ddbench.data.pixels import known_pixels

    said, real = record.data, None if data_root is None else _images_of(record, data_root)
    words: dict[str, tuple[Any, Any]] = {}
    if real is not None:
        words = {
            "train": (said.train, len(real.train)),
            "test": (said.test, real.manifest["test"]["images"]),
            "classes": (said.classes, len(real.train.classes)),
            "shape": (said.shape, real.train.shape),
        }
        words |= {"contents": (said.contents, real.contents)} if said.contents else {}
    info = real.info if real is not None else CATALOGUE.get(record.run.dataset)
    space = None if info is None else known_pixels(said.pixels, info)
    if space is not None:
        words["pixels_fingerprint"] = (said.pixels_fingerprint, space.fingerprint)
    if differ := _differences(words):
        raise RunError(f"{file} describes other images than those that its run was made from: {differ}. {_MADE_AGAIN}")
    _compare_scale(file, record, synthetic, None if real is None or space is None else (real, space))


def _compare_scale(
    file: Path, record: RunRecord, synthetic: SyntheticSet, real: tuple[Dataset, PixelSpace] | None
) -> None:
    """Raise RunError where a record says another scale of its set, by which sets that have diverged are told.

    Without the real images it is known that their scale is at least 1. Earlier records say none.
    """
    from ddbench.data.scale import real_scale, scale_of

    scale = record.synthetic.scale
    if scale is None:
        return
    largest = scale_of(synthetic.images, 1.0) if synthetic.images.is_floating_point() else None
    if largest is None:
        found = "real images have none"
    elif real is not None:
        known = largest / real_scale(real[0].train, real[1])
        found = "" if math.isclose(scale, known, rel_tol=ROUNDING) else f"it is {known:.6g}"
    else:
        found = "" if scale <= largest * (1 + ROUNDING) else f"it is at most {largest:.6g}"
    if found:
        raise RunError(f"{file} says that the scale of its pixels is {scale:.6g}, and {found}. {_MADE_AGAIN}")


def _images_of(record: RunRecord, data_root: Path) -> Dataset | None:
    """The images of a record, where the data folder has the same; None for a dataset that is code."""
    from ddbench.data.sources import load

    if names_code(record.run.dataset):
        return None
    try:
        found = load(record.run.dataset, data_root)
    except DdbenchError:
        return None
    return found if found.fingerprint == record.data.fingerprint else None


def _compare_description(file: Path, record: RunRecord, folder: RunDir) -> SyntheticSet:
    """The set of a run. Raises: RunError where the record describes it otherwise, or says another cost."""
    import torch

    from ddbench import synthetic as sets
    from ddbench.foreign.importing import learned_by_others
    from ddbench.runs.ledger import Ledger

    said, synthetic = record.synthetic, sets.load(folder.synthetic)
    learned = said.learned if record.imported is None else learned_by_others(synthetic)
    found = SyntheticPart.of(synthetic, said.sha256, learned)
    # Whether others chose a step without test images is their claim, and is not repeated in the record.
    known = found.model_copy(update={"choice": said.choice}) if record.imported is not None else found
    # How large pixels are beside real ones is compared with these, where they are at hand.
    known = known.model_copy(update={"scale": said.scale})
    if said != known or record.data.pixels != synthetic.pixels:
        raise RunError(f"{file} describes another set than {SET} beside it. {_MADE_AGAIN}")
    if record.imported is not None or not folder.cost.is_file():
        return synthetic
    ledger = Ledger(folder, torch.device("cpu"))
    phases = ("prepare", "condense")
    spent = [[costs.get(phase) for phase in phases] for costs in (record.cost, ledger.costs)]
    if spent[0] != spent[1] or record.artifacts != ledger.artifacts or record.counts != ledger.counts:
        raise RunError(f"{file} and {folder.cost.name} beside it say differently what the set has cost. {_MADE_AGAIN}")
    return synthetic


def _compare_evaluation(file: Path, recorded: EvaluationPart, beside: EvaluationPart | None) -> None:
    what = f"{recorded.protocol} with {recorded.backbone}"
    if beside is None:
        raise RunError(f"{file} has accuracies of {what}, and the run's folder has no such evaluation. {_MADE_AGAIN}")
    # A run that is judged further, and was interrupted, has more students in its folder than in its record.
    known = beside.accuracy[: len(recorded.accuracy)]
    if recorded.accuracy != known or bool(recorded.failed) != bool(beside.failed):
        said, found = _mean(recorded.accuracy), _mean(beside.accuracy)
        each = enumerate(zip(recorded.accuracy, known, strict=False))
        first = next((k for k, (ours, theirs) in each if ours != theirs), None)
        one = "" if first is None else f"; student {first}: {recorded.accuracy[first]:.6f} and {known[first]:.6f}"
        raise RunError(
            f"{file} says {said} of {what}, and the evaluation in the run's folder says {found}{one}. {_MADE_AGAIN}"
        )
    # A record may be older than evaluations that went on after it, and than what evaluations say today.
    always, of_students = ("protocol", "beside_bytes", "chose", "alike"), ("failed", "seconds", "device", "precision")
    names = {*always, *(of_students if recorded.accuracy == beside.accuracy else ())}
    names |= {name for name in ("track", "student_forwards") if getattr(recorded, name) is not None}
    differ = sorted(name for name in names if getattr(recorded, name) != getattr(beside, name))
    if differ:
        raise RunError(
            f"{file} says something else of {what} than the evaluation in the run's folder: {', '.join(differ)}. "
            f"{_MADE_AGAIN}"
        )


def _compare_curves(file: Path, record: RunRecord, folder: RunDir) -> None:
    """Raise RunError where a record has a learning curve, or a point of one, that was not drawn in its folder."""
    from ddbench.runs.evaluating import recorded_curves

    drawn = {(c.protocol, c.digest, c.backbone): c for c in recorded_curves(folder, record.synthetic.sha256)}
    for curve in record.curves:
        there = drawn.get((curve.protocol, curve.digest, curve.backbone))
        points = {point.step: point for point in there.points} if there is not None else {}
        for point in curve.points:
            # One that was drawn again since may have more students, or losses.
            same = points.get(point.step)
            if same is None or (len(same.accuracy) == len(point.accuracy) and same.accuracy != point.accuracy):
                raise RunError(
                    f"{file} has a learning curve of {curve.protocol} with {curve.backbone} that was not drawn in the "
                    f"run's folder, or not so: step {point.step}. {_MADE_AGAIN}"
                )


def _mean(accuracy: Sequence[float]) -> str:
    return f"{percent(float(np.mean(accuracy)))} % ({len(accuracy)} students)" if accuracy else "that it failed"


def _compare_attempts(file: Path, record: RunRecord, folder: RunDir) -> None:
    import torch

    from ddbench.runs.ledger import Ledger

    if not folder.attempts.is_file():
        return
    known = Ledger(folder, torch.device("cpu")).attempts
    # Attempts that came after a record may have judged further, and have not made its set.
    later = known[len(record.attempts) :]
    left_out = bool(known and not record.attempts) or any(one.steps[1] > one.steps[0] for one in later)
    if left_out or known[: len(record.attempts)] != record.attempts:
        raise RunError(
            f"{file} and {folder.attempts.name} beside it say differently what code has run where. {_MADE_AGAIN}"
        )


def _refuse_unknown_code(file: Path, record: RunRecord) -> None:
    for attempt in record.attempts:
        git = attempt.git or {}
        if git.get("dirty"):
            raise RunError(
                f"{file} was made by code with uncommitted changes on top of {str(git.get('commit'))[:12]}, so nobody "
                "can repeat it. Commit them and run again with --fresh."
            )
        if not git.get("commit") and not _released(attempt):
            version = attempt.packages.get("ddbench", "unknown")
            raise RunError(
                f"{file} was made by ddbench {version}, which is neither a commit nor a release, so nobody can repeat "
                "it. Run again with --fresh, from a clean checkout or with a released version."
            )


def _released(attempt: Attempt) -> bool:
    return RELEASE.fullmatch(attempt.packages.get("ddbench", "")) is not None


def _above_the_whole(rows: Sequence[Mapping[Any, Any]], frame: DataFrame) -> Iterator[str]:
    first = rows[0]
    if first["kind"] == "ceiling":
        return
    whole = frame[(frame["kind"] == "ceiling") & (frame["fingerprint"] == first["fingerprint"])]
    same = whole[whole["judge"] == first["judge"]]
    ceilings = (same if len(same) else whole).groupby(["judge", "digest"])["accuracy"].agg(["mean", "std", "count"])
    if not len(ceilings):
        return
    best = ceilings.sort_values("mean").iloc[-1]
    ours = np.array([row["accuracy"] for row in rows])
    error = math.hypot(_standard_error(ours, first["test"]), 0 if math.isnan(best["std"]) else best["std"])
    if ours.mean() - best["mean"] > SIGMAS * error:
        yield (
            f"{percent(ours.mean())} % is more than the {percent(best['mean'])} % of students of the whole dataset, by "
            f"more than {SIGMAS:.0f} standard errors. Look for test images in the set, or in what the method was given."
        )


def _standard_error(accuracies: Any, test_images: int) -> float:
    """Of a mean of students: from their spread, or of one student from the number of test images."""
    mean = float(accuracies.mean())
    if len(accuracies) > 1:
        return float(accuracies.std(ddof=1)) / math.sqrt(len(accuracies))
    return math.sqrt(mean * (1 - mean) / max(1, test_images))


def _above_its_own(part: DataFrame, frame: DataFrame) -> Iterator[str]:
    others = other_sets(part, frame)
    if len(others) < PEERS:
        return
    mean = float(part["accuracy"].mean())
    # Equal sets leave no room at all, and the mean of the same numbers may differ in its last digit.
    if mean > others.mean() + next_set(others, 1 - 1 / ONCE_IN) + LAST_DIGIT:
        yield (
            f"{percent(mean)} % is more than another set of this method reaches once in {ONCE_IN} times, by the "
            f"{len(others)} other sets of its row ({percent(float(others.min()))} to {percent(float(others.max()))} %)."
        )


def other_sets(part: DataFrame, frame: DataFrame) -> NDArray[np.float64]:
    """The mean of every other set of a row of a board; `part` has the students of one set, by one judge."""
    first = part.iloc[0]
    alike = frame
    for name in (*TABLE, "judge", "method", *VARIANT):
        alike = alike[alike[name] == first[name]]
    means = alike[alike["set"] != first["set"]].groupby("set")["accuracy"].mean()
    return np.asarray(means, dtype=np.float64)


def committed_records(leaderboards: Path, datasets: Iterable[str]) -> list[Path]:
    """The records of a leaderboard on some datasets, damaged ones left out."""
    wanted = set(datasets)
    paths = sorted((leaderboards / "records").rglob("*.json"))
    return [path for path, record in readable(paths) if record.run.dataset in wanted]
