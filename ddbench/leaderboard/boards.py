"""The committed leaderboard: records come in, tables go out, and a check says whether the two agree."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.errors import RunError
from ddbench.files import require_writable, sweep_dead, write_atomically
from ddbench.foreign import published_sets
from ddbench.leaderboard import submission, verification
from ddbench.leaderboard.chosen import Chosen
from ddbench.leaderboard.observations import collect, record_file
from ddbench.leaderboard.page.render import page_of
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.scores import with_scores
from ddbench.leaderboard.set_files import wrong_sets
from ddbench.leaderboard.sheets import sheet_file, with_sheet, wrong_sheets
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import Board, board, csv_of, escaped
from ddbench.runs.record import CostPart, EvaluationPart, RunPart, RunRecord, json_schema, read_record, write_record
from ddbench.runs.rundir import EVALUATIONS, RECORD, RunDir
from ddbench.text import budget_name, safe_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from ddbench.runs.evaluating import Cell
    from ddbench.runs.runspec import RunSpec

EVERYTHING = Chosen()
SCHEMA = Path("schema") / "record.v1.json"
SETS_SCHEMA = Path("schema") / "sets.v1.json"
INDEX = Path("README.md")


def add(
    run_paths: Iterable[Path],
    leaderboards: Path,
    *,
    allow_dirty: bool = False,
    force: bool = False,
    data_root: Path = Path("data"),
    notes: list[str] | None = None,
) -> list[Path]:
    """Copy the records of finished runs into the leaderboard, with pictures of their sets; returns where they now lie.

    All are checked before the first is copied. A record that is there already may grow by students and evaluations of
    the same set, wherever they were made, and loses nothing: of an evaluation with other students those that are there
    stay. To a record of an earlier version are added the learning curves in its run's folder, and a picture that is
    drawn from the set there; `data_root` has the dataset, which a whitened set needs for that. Results that nothing
    here explains are refused unless `force` is given. `notes` have such results, students that stayed, pictures that
    could not be drawn and records that came without their run. See `submission`.
    Raises: RunError for a partial run, for a record that is not what the files of its run say, for one made by code
    that nobody has (unless `allow_dirty`), and for a record that would replace another result of the same run; where a
    record could not be written.
    """
    said = notes if notes is not None else []
    checked: dict[Path, tuple[Path, RunRecord]] = {}
    by_place: dict[Path, RunRecord] = {}
    for path in run_paths:
        file = record_file(path)
        record = read_record(file)
        submission.refuse(file, record, allow_dirty=allow_dirty, data_root=data_root)
        record = _with_curves(file, record)
        place = leaderboards / place_of(record.run)
        if place in by_place or place.is_file():
            record = _joined(file, record, by_place.get(place) or read_record(place), place, said)
        by_place[place] = record
        if submission.alone(file) and file.resolve() != place.resolve():
            said.append(f"{file} came without its run, so nothing was there to compare it with.")
        checked[file] = (place, record)
    records = {file: record for file, (_, record) in checked.items()}
    known = submission.committed_records(leaderboards, {record.run.dataset for record in records.values()})
    known = [path for path in known if path not in records]
    submission.refuse_other_data(records, [path for path in known if path not in by_place])
    too_good = submission.alarms(records, known)
    if too_good and not force:
        raise RunError(
            f"{' '.join(too_good)} Nothing was added. Where you have looked and it is right, add it with --force, and "
            "say in the pull request what you have looked at."
        )
    said += too_good
    # Before pictures are drawn, and before some records are there and others are not.
    require_writable(
        (place for place, _ in checked.values()),
        "Nothing was added. Check the owner and permissions of the folder, or choose another one with --leaderboards.",
    )
    for file, (place, record) in checked.items():
        record, picture = with_sheet(file, record, data_root, said)
        if picture is not None:
            write_atomically(sheet_file(place), picture)
        elif place.is_file():
            record = record.model_copy(update={"sheet": read_record(place).sheet})
        write_record(place, record)
    return [place for place, _ in checked.values()]


def has(leaderboards: Path, spec: RunSpec, cells: Sequence[Cell]) -> bool:
    """Whether a leaderboard has a record of this run with all of these evaluations. A damaged record is none."""
    try:
        record = read_record(leaderboards / place_of(spec))
    except RunError:
        return False
    return all(cell.in_record(record) for cell in cells)


def place_of(run: RunPart | RunSpec) -> Path:
    """Where the record of a run lies inside the leaderboard: records/cifar10/ipc10/dm-convnet-d3-s0-3f2a91c4.json."""
    name = f"{safe_name(run.method)}-{safe_name(run.backbone)}-s{run.seed}-{run.id}.json"
    return Path("records") / safe_name(run.dataset) / budget_name(run.ipc) / name


def build(leaderboards: Path, lost: list[str] | None = None) -> dict[Path, str]:
    """Write every generated file of the leaderboard, remove tables of records that are gone, return what was written.

    Paths are relative to the folder. The texts are a pure function of records/, verified/ and published.csv.
    Raises: RunError for a damaged record, naming it; with `lost` such sentences go there, and the record is left out.
    """
    files = _generated(leaderboards, lost)
    for place in (leaderboards, *(leaderboards / part for part in ("records", "tables", "schema"))):
        sweep_dead(place, deep=place != leaderboards)
    for path, text in files.items():
        write_atomically(leaderboards / path, text.encode())
    for path in _stale(leaderboards, files):
        (leaderboards / path).unlink(missing_ok=True)
    return files


def check(leaderboards: Path, lost: list[str] | None = None) -> list[str]:
    """All that is wrong with a leaderboard, a sentence or diff each: `faults`, then `differences`; empty if nothing is.

    Raises: RunError for a damaged record, naming it; with `lost` such sentences go there, and the record is left out.
    """
    return [*faults(leaderboards), *differences(leaderboards, lost)]


def faults(leaderboards: Path) -> list[str]:
    """What is wrong with the files that tables are made from, and with those beside them, a sentence each.

    Records that no run writes, pictures and published sets that are not what is said of them, checks of something else.
    `build` mends none of them. Damaged records are left out.
    Raises: RunError or DataError for a damaged file of checks or index of sets.
    """
    places = _committed(leaderboards)
    return [
        *submission.impossible(places),
        *wrong_sheets(leaderboards / "records"),
        *wrong_sets(leaderboards),
        *verification.out_of_date(leaderboards, places),
    ]


def differences(leaderboards: Path, lost: list[str] | None = None) -> list[str]:
    """How the generated files differ from what `build` would write, one sentence or diff a file.

    Raises: RunError for a damaged record, naming it; with `lost` such sentences go there, and the record is left out.
    """
    files = _generated(leaderboards, lost)
    found = [f"{path} belongs to no record" for path in _stale(leaderboards, files)]
    for path, expected in files.items():
        place = leaderboards / path
        if not place.is_file():
            found.append(f"{path} is missing")
            continue
        text = place.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                text.splitlines(),
                expected.splitlines(),
                f"{path} as it is",
                f"{path} as the records give it",
                "",
                "",
                1,
                "",
            )
            found.append("\n".join(lines) or f"{path} differs in its line ends")
    return found


def local_board(
    runs: Path,
    chosen: Chosen = EVERYTHING,
    lost: list[str] | None = None,
    *,
    form: str = "text",
    width: int | None = None,
    scores: bool = False,
) -> str:
    """The boards of all finished runs below a runs folder, as text, md, csv, latex or html; a sentence without one.

    A damaged record is left out, so that it hides no other, and `lost` hears of it; `runs.listing.off_the_board` counts
    what is not shown. Text fits a terminal of `width` characters, where one is given. `scores` adds the columns of
    `leaderboard.scores`; the page has what is known of them in any case, inside its rows.
    """
    lost = [] if lost is None else lost
    if form == "html":
        return page_of(finished(runs), chosen=chosen.of, lost=lost)
    whole = local_summary(runs, lost=lost, scores=scores)
    summary = chosen.of(whole)
    if summary.empty and form != "csv":
        none = f"There is no finished run under {runs} yet. `ddbench run --method dm --dataset digits` makes one."
        if not whole.empty:
            none = chosen.says_what_there_is(whole)
        return f"% {none}" if form == "latex" else none
    return _printed(summary, form, width)


def board_of(paths: Iterable[Path], width: int | None = None) -> str:
    """The boards of exactly these records or run folders, as text, for a terminal of `width` characters if it is one.

    Raises: RunError for a path without a record and for a damaged record, naming it.
    """
    return _printed(summarise(collect(paths)), "text", width)


def local_summary(
    runs: Path, chosen: Chosen = EVERYTHING, lost: list[str] | None = None, *, scores: bool = False
) -> DataFrame:
    """The rows behind `local_board`, as `statistics.summarise` gives them; none where there is no finished run."""
    whole = summarise(collect(finished(runs), lost=[] if lost is None else lost))
    return chosen.of(with_scores(whole) if scores else whole)


def committed_page(leaderboards: Path, *, home: str = "") -> str:
    """The page of the committed records, as HTML; a pure function of records/, verified/, sets/ and published.csv.

    `home` is the address of the documentation, for a page that is part of it.
    Raises: RunError for a damaged record, or a damaged file of checks, naming it.
    """
    own = leaderboards / "published.csv"
    sets, places = leaderboards / "sets", _committed(leaderboards)
    checks = verification.standings(leaderboards, places)
    return page_of(places, home=home, published=own if own.is_file() else None, sets=sets, checks=checks)


def _printed(summary: DataFrame, form: str, width: int | None) -> str:
    if form == "csv":
        return csv_of(summary).rstrip("\n")
    written: dict[str, Callable[[Board], str]] = {
        "text": lambda item: item.to_text(width),
        "md": Board.to_markdown,
        "latex": Board.to_latex,
    }
    return "\n".join(map(written[form], _boards(summary, read_published()))).rstrip("\n")


def _committed(leaderboards: Path) -> list[Path]:
    return sorted((leaderboards / "records").rglob("*.json"))


def finished(runs: Path) -> list[Path]:
    """The records of all finished runs below a runs folder."""
    return sorted(runs.glob("*/*/*/*/record.json"))


def _generated(leaderboards: Path, lost: list[str] | None) -> dict[Path, str]:
    own = leaderboards / "published.csv"
    numbers = read_published(own if own.is_file() else None)
    places = _committed(leaderboards)
    summary = summarise(collect(places, lost, verification.standings(leaderboards, places)))
    files = {SCHEMA: json_schema(), SETS_SCHEMA: published_sets.json_schema()}
    entries = []
    for (dataset, ipc), item in zip(_keys(summary), _boards(summary, numbers), strict=True):
        path = Path("tables") / safe_name(dataset) / budget_name(ipc)
        files[path.with_suffix(".md")] = item.to_markdown()
        files[path.with_suffix(".csv")] = item.to_csv()
        entries.append((item, path))
    files[INDEX] = _index(entries)
    return files


def _boards(summary: DataFrame, numbers: DataFrame) -> list[Board]:
    return [board(summary, numbers, dataset, ipc) for dataset, ipc in _keys(summary)]


def _keys(summary: DataFrame) -> list[tuple[str, int]]:
    """Dataset and ipc of every board. The whole dataset is a line of the others, and has a board only without them."""
    pairs = sorted({(str(d), int(k)) for d, k in zip(summary["dataset"], summary["ipc"], strict=True)})
    with_budget = {dataset for dataset, ipc in pairs if ipc}
    return [(dataset, ipc) for dataset, ipc in pairs if ipc or dataset not in with_budget]


def _stale(leaderboards: Path, files: Iterable[Path]) -> list[Path]:
    kept = set(files)
    found = sorted((leaderboards / "tables").rglob("*.md")) + sorted((leaderboards / "tables").rglob("*.csv"))
    return [path for path in (file.relative_to(leaderboards) for file in found) if path not in kept]


def _index(entries: Sequence[tuple[Board, Path]]) -> str:
    lines = [
        "# Leaderboards",
        "",
        "Written by `ddbench leaderboard build` from `records/` and `published.csv`. A change made by hand is lost,",
        "and `ddbench leaderboard build --check` reports it.",
        "",
        "| board | protocols | labels | methods | files |",
        "|---|---|---|---|---|",
    ]
    for item, path in entries:
        protocols = escaped(", ".join(dict.fromkeys(str(p) for p in item.rows["protocol"])))
        methods = escaped(", ".join(sorted(set(item.rows["method"]))))
        tracks = ", ".join(sorted(set(item.rows["track"])))
        table, numbers = path.with_suffix(".md").as_posix(), path.with_suffix(".csv").as_posix()
        title = escaped(item.title, link=True)
        lines.append(f"| [{title}]({table}) | {protocols} | {tracks} | {methods} | [md]({table}) [csv]({numbers}) |")
    if not entries:
        lines.append("| no records yet | | | | |")
    return "\n".join([*lines, "", *_EXPLANATION]) + "\n"


_EXPLANATION = """\
## How to read a table

- **One table is one protocol and one track of labels on one dataset.** Results under other recipes, with other
  labels, or on other copies of the data, never share a column. Data are told apart by a fingerprint over all images
  and labels, whatever their order.
- **Tracks** say what students learn from: *hard*, classes; *soft*, soft labels that are stored, one for each image;
  *teacher*, a network that labels every augmented image while they train. Under a protocol that takes labels as they
  are, sets with classes and sets with soft labels are two tables. `--track` shows one.
- **§** marks controls: random real images and coresets under the same labels and the same recipe. Where the sets of a
  table bring soft labels of their own, those are real images with the labels of a network (`soft-labels`). A table
  without one says so, and names the rows whose students train on more images than on the control.
- **Bytes** are those of the images, of the labels, and of what else a receiver stores. Soft labels that the protocol
  makes and stores for a set count as its labels.
- **Images seen** are those that one student trains on, repeats counted: what training on the set costs.
- **A cell** is the mean over synthetic sets of the mean over freshly trained students, ± the standard
  deviation over all students of all sets (the field's habit), and the 95 % interval of the mean in brackets.
- **The interval covers other sets and other students.** Student k starts from the same seed on every set, so
  sets and students are crossed, and the mean varies by both: the squares of the half widths for either (Student's
  t) are added, and what they have in common is taken off once. Simulated with variances like those of the records it
  holds 94 to 100 % of the time (`tests/measure_intervals.py`). It is wide with two sets, whose difference may be
  small by chance; a third halves it. A failed set is counted beside the mean, not hidden.
- **†** marks provisional results. **One set says nothing of other sets**: its interval covers other students alone, so
  two methods with one set each cannot be told apart by their intervals. **\\*** marks sets in a whitened pixel space.
- **‡** marks imported sets: others condensed them, ddbench only judged them. Their cost is not known; what
  their makers claim is in the record, apart from what was measured.
- **✓** marks verified results: a student of every set was trained again on the set, or on its published file, and
  agreed with the record, by `ddbench leaderboard verify`; `verified/` says what was run where. A check that differs
  takes the mark until a later one of more students agrees, and a note under the table says by how much. A row with
  neither ✓ nor ‡ nor such a note is claimed: it is what the records of its runs say. The CSV has the word, how many
  sets were verified, and how many students of them were trained again.
- **Differences** to random images and to the best coreset are of means, paired by student. Where a table has
  several such rows, they are to those that students train on as often; of controls, the difference to random images
  is to the usual ones. The best coreset is the one with the highest mean, random images among them where there is
  another one; choosing it favours it a little.
- **Ranks** follow the printed means and tie where those are equal. They say nothing about significance:
  intervals do.
- **Cost** is the condensation itself and everything made for it, such as expert networks, even where it came
  from a cache. Seconds are the clock's: runs that share a GPU take the longer for it.
- **The whole dataset** is the last line, apart from the others, under its own recipe, which it names.
- **Published** numbers are printed exactly as in their source, with the source's own protocol in parentheses.
  Only numbers that were seen in print or in released files appear; those marked M in `published.csv` were
  quoted from memory.

The CSV beside each table has every number with more digits: both standard deviations (between sets, and
within), counts, settings, bytes and seconds. A record is one JSON file in `records/`, described by
`schema/record.v1.json`.

## Add a result

```
ddbench leaderboard add RUN      # compares the record with its run; refuses unfinished runs and unknown code
ddbench leaderboard build
```""".splitlines()


def _with_curves(file: Path, record: RunRecord) -> RunRecord:
    """The record of a run's folder with the curves that were drawn there before records had any."""
    if record.curves or file.name != RECORD or not any(file.parent.glob(f"{EVALUATIONS}/*/*.curve.json")):
        return record
    from ddbench.runs.evaluating import recorded_curves

    curves = recorded_curves(RunDir.at(file.parent), record.synthetic.sha256)
    return record.model_copy(update={"curves": curves})


def _joined(file: Path, record: RunRecord, there: RunRecord, place: Path, said: list[str]) -> RunRecord:
    """The record with what the one in its place has and it has not, which is of the same set.

    A run whose set comes out equal everywhere, as those of coresets do, may be judged on several machines. Of an
    evaluation that both have with other students, those that came first stay, so that nobody can choose; `said` has it.
    Raises: RunError where it is of another set, or has other students and nothing that is new.
    """
    if there.synthetic.sha256 != record.synthetic.sha256:
        raise RunError(
            f"{file} and {place} are two results of the same run {record.run.id}: their sets differ. Choosing between "
            "them would be choosing on test data. Use another seed, or remove the old record in a commit that says why."
        )
    judged = {(e.digest, e.backbone): e for e in there.evaluations}
    others: dict[tuple[str, str], str] = {}
    grown = False
    for new in record.evaluations:
        key = (new.digest, new.backbone)
        old = judged.get(key)
        both = min(len(old.accuracy), len(new.accuracy)) if old else 0
        if old and old.accuracy[:both] != new.accuracy[:both]:
            others[key] = f"{old.protocol}, {old.backbone}"
        elif not old or len(new.accuracy) >= len(old.accuracy):
            grown = grown or not old or len(new.accuracy) > both
            judged[key] = new
    if others and not grown:
        raise RunError(
            f"{file} would change students that {place} has ({'; '.join(others.values())}). Choosing between them "
            "would be choosing on test data. Judge the run by what is not there yet, or use another seed."
        )
    if others:
        said.append(
            f"{place} has other students of this set already ({'; '.join(others.values())}): they came first, and "
            f"stay. The other judges of {file} were added."
        )
    if judged != {(e.digest, e.backbone): e for e in record.evaluations}:
        record = _of_both(there, record, tuple(judged.values()))
    new_curves = tuple(curve for curve in record.curves if (curve.digest, curve.backbone) not in others)
    drawn = {(curve.digest, curve.backbone) for curve in new_curves}
    kept = tuple(curve for curve in there.curves if (curve.digest, curve.backbone) not in drawn)
    measured = {name: getattr(record, name) or getattr(there, name) for name in ("recognised", "correlations")}
    return record.model_copy(update={"curves": (*new_curves, *kept), **measured})


def _of_both(there: RunRecord, record: RunRecord, evaluations: tuple[EvaluationPart, ...]) -> RunRecord:
    """The record with the evaluations and attempts of both. The set has cost what it did the first time."""
    attempts = {(one.started, one.device, one.cpu): one for one in (*there.attempts, *record.attempts)}
    costs = dict(there.cost)
    spent = [one.cost["evaluate"] for one in (there, record) if "evaluate" in one.cost]
    if spent:
        peaks = {
            name: max((peak for cost in spent if (peak := getattr(cost, name)) is not None), default=None)
            for name in ("peak_device_bytes", "peak_host_bytes")
        }
        costs["evaluate"] = CostPart(seconds=sum(e.seconds for e in evaluations), **peaks)
    return record.model_copy(
        update={
            "evaluations": evaluations,
            "attempts": tuple(attempts.values()),
            "cost": costs,
            "artifacts": there.artifacts,
            "counts": there.counts,
        }
    )
