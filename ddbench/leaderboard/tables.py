"""Boards as Markdown, CSV, LaTeX and plain text: a pure function of the summary and the published numbers."""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard import verification
from ddbench.leaderboard.fitting import HEAD, fit, for_tabulate
from ddbench.leaderboard.published import ZCA, as_printed, beside, printed
from ddbench.leaderboard.scores import COLUMNS as SCORE_COLUMNS
from ddbench.leaderboard.scores import MEASURED, SCORES, about_scores
from ddbench.leaderboard.tracks import NAMES, NOT_DEFINED, about_controls
from ddbench.text import budget, counted, duration, percent, printable, size

if TYPE_CHECKING:
    from pandas import DataFrame

WHITENED = "*"
PROVISIONAL = "†"
IMPORTED = "‡"
VERIFIED = "✓"
CONTROL = "§"
CEILING_PROTOCOL = "full@1"
RULE = "-----"
_COUNTS = "sets × students"
_BYTES = "bytes: images + labels"
_SEEN = "images seen"
# What a narrow terminal does without, first to last; then other judges.
_EXPENDABLE = ("published", _SEEN, _BYTES, "cost", "− best coreset", _COUNTS, "− random")
REASON_LENGTH = 48

_MARKS = {
    WHITENED: "the set lives in a ZCA-whitened pixel space",
    PROVISIONAL: "provisional: from one set, which says nothing of others and whose interval covers other students "
    "alone; or from one student a set",
    IMPORTED: "imported: condensed by others, and here only judged; what its maker claims is in the record",
    CONTROL: "control: real images, under the same labels and recipe; what a method adds is its distance to them",
    VERIFIED: "verified: a student of every set of the row was trained again on the set, and agrees with the record",
}
_TRUST = ("trust", "verified_sets", "verified_students", "differs")
_SIZES = ("bytes", "images_bytes", "labels_bytes")
_PERCENTAGES = (
    "mean", "ci95", "sd", "sd_between", "sd_within", "difference_random", "difference_random_ci95",
    "difference_coreset", "difference_coreset_ci95",
)  # fmt: skip
_EXACT = (
    "data_title", "fingerprint", "protocol", "digest", "track", "ipc", "judge", "label", "method", "control", "preset",
    "precision", "train_backbone", "pixels", "labels", "config", "rank", "sets", "students_min", "students_max",
    "failed_sets",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Methods under one protocol, with one kind of labels, on one dataset. Nothing else shares its columns.

    `rows` and `ceiling` are texts in the order of `headers`; the ceiling is printed last and apart.
    """

    title: str
    data: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ceiling: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Board:
    """All tables of a dataset and an ipc, one per data, protocol and track of labels."""

    title: str
    tables: tuple[Table, ...]
    published: tuple[tuple[str, ...], ...]
    rows: DataFrame

    def to_markdown(self) -> str:
        """For GitHub, with every printed published number of the dataset and ipc in a table of its own at the end."""
        parts = [f"# {escaped(self.title)}"]
        parts += self._claims()
        for table in self.tables:
            parts += [f"## {escaped(table.title)}", escaped(table.data, block=True), _grid(table, "github", escaped)]
            parts += ["\n".join(f"- {escaped(note, block=True)}" for note in table.notes)] if table.notes else []
        if self.published:
            rows = [[escaped(cell) for cell in row] for row in self.published]
            parts += ["## Published numbers", _PUBLISHED_INTRODUCTION, _tabulate(rows, _PUBLISHED_HEADERS, "github")]
        return "\n\n".join(parts) + "\n"

    def _claims(self) -> list[str]:
        """What accuracies without a mark are, where there are some that nobody has checked."""
        found = {verification.trust(row) for row in _records(self.rows)}
        if verification.CLAIMED not in found:
            return []
        return [_CLAIMED + (_UNLESS_CHECKED if verification.DIFFERS in found else "")]

    def to_text(self, width: int | None = None) -> str:
        """For a terminal of so many characters, if it is one: what is too wide is wrapped, then left out and named."""
        parts = []
        for table in self.tables:
            head = f"{_wrapped(_one_line(table.title), width)}\n{_wrapped(_one_line(table.data), width)}"
            shown, notes = _fitted(table, width)
            parts += [head, shown]
            notes = [_wrapped(printable(note, lines=True), width) for note in (*table.notes, *notes)]
            parts += ["\n".join(notes)] if notes else []
        return "\n\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """One booktabs table per protocol; needs no package beside booktabs."""
        parts = []
        for table in self.tables:
            lines = [f"% {_one_line(table.title)}", f"% {_one_line(table.data)}"]
            # Cells and headers are escaped by tabulate.
            lines += [_ruled(_grid(table, "latex_booktabs", _one_line))]
            lines += [f"% {_one_line(note)}" for note in table.notes]
            text = "\n".join(lines)
            for sign, command in (
                ("±", "$\\pm$"),
                ("×", "$\\times$"),
                (PROVISIONAL, "$^\\dagger$"),
                (IMPORTED, "$^\\ddagger$"),
                (CONTROL, "$^\\S$"),
                (VERIFIED, "$^\\surd$"),
                ("−", "$-$"),
                ("–", "--"),
            ):
                text = text.replace(sign, command)
            parts.append(text)
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """One line per method and judge: accuracies and their spreads in % with two decimals, seconds with one."""
        return csv_of(self.rows)


def csv_of(summary: DataFrame) -> str:
    """One line per row of `statistics.summarise`: accuracies and their spreads in % with two decimals."""
    import pandas as pd

    lines = [_csv_line(row) for row in _records(summary)]
    text = io.StringIO()
    asked = (*SCORE_COLUMNS, *MEASURED, *(f"{name}_sets" for name in MEASURED)) if SCORES[0] in summary else ()
    rest = ("student_forwards", "seconds", "cost", "failed", *_TRUST, *asked)
    names = (*_EXACT, *_PERCENTAGES, "best_coreset", "provisional", *_SIZES, *rest)
    pd.DataFrame(lines, columns=list(names)).to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def board(summary: DataFrame, published: DataFrame, dataset: str, ipc: int) -> Board:
    """The board of a dataset and an ipc (0: the whole dataset) from what `summarise` and `read_published` give."""
    here = _records(summary[summary["dataset"] == dataset])
    chosen = [row for row in here if row["ipc"] == ipc]
    whole = [row for row in here if row["ipc"] == 0] if ipc else []
    numbers = [row for row in _records(printed(published)) if row["dataset"] == dataset and row["ipc"] in (ipc, 0)]
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in chosen:
        tables.setdefault(tuple(row[name] for name in ("fingerprint", "protocol", "digest", "track")), []).append(row)
    recipes = {key[:3] for key in tables}
    titles = {row["data_title"] for row in chosen} or {dataset}
    name = titles.pop() if len(titles) == 1 else min(titles).partition(", ")[0]  # what the copies have in common
    title = f"{name}, {budget(ipc)}"
    return Board(
        title,
        tuple(
            _table(rows, _ceiling(rows, whole), numbers, say_digest=sum(other[:2] == key[:2] for other in recipes) > 1)
            for key, rows in sorted(tables.items())
        ),
        tuple(_published_row(row) for row in numbers if row["ipc"] == ipc),
        summary[(summary["dataset"] == dataset) & (summary["ipc"] == ipc)],
    )


_CLAIMED = (
    f"Accuracies without {VERIFIED}, of rows without {IMPORTED}, are claimed: they are what the records of their runs "
    "say, and on some of their sets, or on all, no student was trained a second time."
)
_UNLESS_CHECKED = " Where a check differs from a record, a note under the table says so."
_PUBLISHED_HEADERS = ("method", "accuracy, %", "protocol of the source", "learned on", "tested on", "source", "note")
_PUBLISHED_INTRODUCTION = (
    "As printed in their sources, each under its own training recipe; not comparable with each other or with the "
    "tables above. Numbers that nobody has re-checked against their source are left out."
)


def _table(
    rows: Sequence[dict[str, Any]],
    whole: Sequence[dict[str, Any]],
    numbers: Sequence[dict[str, Any]],
    *,
    say_digest: bool,
) -> Table:
    first = rows[0]
    judges = _in_order({row["judge"] for row in rows}, first["protocol"])
    lines = sorted(_lines(rows), key=lambda line: (_order(line, judges), line[0]["label"]))
    device = _usual_device(rows)
    scores = [name for name in SCORES if name in first]
    sources: list[str] = []

    def cells(line: Sequence[dict[str, Any]], rank: str, name: str, ipc: int) -> tuple[str, ...]:
        by_judge = {row["judge"]: row for row in line}
        judged = [by_judge.get(judge) for judge in judges]
        return (
            rank,
            name,
            *(_accuracy(row) for row in judged),
            _counts(judged),
            _difference(judged[0], "random"),
            _difference(judged[0], "coreset"),
            *(_score(judged[0], name) for name in scores),
            *(_measured(judged[0], name) for name in (MEASURED if scores else ())),
            _sizes(line[0]),
            _seen(judged),
            "–" if line[0]["kind"] in ("ceiling", "imported") else _cost(line[0], device),
            _published_cell(line[0], ipc, judges[0], numbers, sources),
        )

    body = tuple(cells(line, _rank_cell(line, lines, judges), _said_name(line[0]), first["ipc"]) for line in lines)
    last = tuple(cells(line, "", f"{line[0]['label']}, {line[0]['protocol']}", 0) for line in _lines(whole))
    return Table(
        title=f"{first['data_title']}, {budget(first['ipc'])}, {NAMES[first['track']]}, protocol {first['protocol']}"
        + (f" ({first['digest'][:8]})" if say_digest else ""),
        data=f"Data {first['fingerprint']}: {first['train']} training and {first['test']} test images.",
        headers=(
            "#", "method", *judges, _COUNTS, "− random", "− best coreset", *map(str.upper, scores),
            *(MEASURED.values() if scores else ()), _BYTES, _SEEN, "cost", "published",
        ),
        rows=body,
        ceiling=last,
        notes=(
            *_reading(judges[0], device, rows),
            *about_controls(rows, judges),
            *(about_scores([row for row in rows if row["judge"] == judges[0]]) if scores else []),
            *_unpublished(rows),
            *_marks_used([*body, *last]),
            *_differing([*rows, *whole]),
            *_failures(rows),
            *_sources(sources, original=first["original"]),
        ),
    )  # fmt: skip


def _in_order(judges: Iterable[str], protocol: str) -> list[str]:
    """The judges that a protocol itself names come first, since rows are ordered by the first; then ConvNets."""
    known = PROTOCOLS.get(protocol)
    own = known.backbones if known else ()

    def place(name: str) -> tuple[bool, bool, str]:
        return re.sub(r"-d\d+(?=-|$)", "", name) not in own, not name.startswith("convnet"), name

    return sorted(judges, key=place)


def _said_name(row: Mapping[str, Any]) -> str:
    return row["label"] + (IMPORTED if row["kind"] == "imported" else CONTROL if row["control"] else "")


def _sizes(row: Mapping[str, Any]) -> str:
    """Bytes of images and of labels, and of what else a receiver has to store."""
    rest = row["bytes"] - row["images_bytes"] - row["labels_bytes"]
    return " + ".join(size(part) for part in (row["images_bytes"], row["labels_bytes"], *([rest] if rest > 0 else [])))


def _seen(rows: Sequence[Mapping[str, Any] | None]) -> str:
    """How many images a student trains on, repeats counted, as one number where that of all judges is the same."""
    texts = ["–" if row is None or math.isnan(row["forwards"]) else counted(row["forwards"]) for row in rows]
    known = {text for text in texts if text != "–"}
    return next(iter(known), "–") if len(known) < 2 else " / ".join(texts)


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of one variant of a method under one protocol, together."""
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["label"], row["variant"], row["digest"]), []).append(row)
    return [lines[key] for key in sorted(lines)]


def _ceiling(rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole dataset with the judges of a table: under its protocol where it was judged so, else under its own."""
    judges = {row["judge"] for row in rows}
    fitting = [row for row in whole if row["fingerprint"] == rows[0]["fingerprint"] and row["judge"] in judges]
    same = [row for row in fitting if (row["digest"], row["track"]) == (rows[0]["digest"], rows[0]["track"])]
    return same or [row for row in fitting if row["protocol"] == CEILING_PROTOCOL]


def _order(line: Sequence[Mapping[str, Any]], judges: Sequence[str]) -> list[float]:
    means = {row["judge"]: row["mean"] for row in line}
    return [-float(percent(means[j])) if j in means and not math.isnan(means[j]) else math.inf for j in judges]


def _rank_cell(
    line: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[Mapping[str, Any]]], judges: Sequence[str]
) -> str:
    ranks = [next((row["rank"] for row in other if row["judge"] == judges[0]), 0) for other in lines]
    own = next((row["rank"] for row in line if row["judge"] == judges[0]), 0)
    return "" if own == 0 else f"{own}=" if ranks.count(own) > 1 else str(own)


def _accuracy(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if math.isnan(row["mean"]):
        if row["failed"].startswith(NOT_DEFINED):
            return NOT_DEFINED
        return f"failed: {textwrap.shorten(row['failed'], REASON_LENGTH, placeholder=' …')}"
    text = percent(row["mean"])
    text += f" ± {percent(row['sd'])}" if row["sets"] * row["students_max"] > 1 else ""
    text += (WHITENED if _whitened(row) else "") + (PROVISIONAL if row["provisional"] else "")
    text += VERIFIED if verification.trust(row) == verification.VERIFIED else ""
    if not math.isnan(row["ci95"]):
        low, high = max(0.0, row["mean"] - row["ci95"]), min(1.0, row["mean"] + row["ci95"])
        text += f" [{percent(low)}, {percent(high)}]"
    if row["failed_sets"]:
        text += f", {row['failed_sets']} of {row['sets'] + row['failed_sets']} sets failed"
    return text


def _counts(rows: Sequence[Mapping[str, Any] | None]) -> str:
    texts = []
    for row in rows:
        if row is None or not row["sets"]:
            texts.append("–")
            continue
        least, most = row["students_min"], row["students_max"]
        texts.append(f"{row['sets']} × {least}" + (f"–{most}" if most > least else ""))
    known = {text for text in texts if text != "–"}
    return next(iter(known)) if len(known) == 1 else " / ".join(texts)


def _difference(row: Mapping[str, Any] | None, name: str) -> str:
    gap = math.nan if row is None else row[f"difference_{name}"]
    if row is None or math.isnan(gap):
        return "–"
    half = row[f"difference_{name}_ci95"]
    text = f"{'−' if gap < 0 else '+'}{percent(abs(gap))}" + ("" if math.isnan(half) else f" ± {percent(half)}")
    return text + (PROVISIONAL if row[f"difference_{name}_provisional"] else "")


def _score(row: Mapping[str, Any] | None, name: str) -> str:
    return "–" if row is None or math.isnan(row[name]) else f"{row[name]:.1f}"


def _measured(row: Mapping[str, Any] | None, name: str) -> str:
    if row is None or math.isnan(row[name]):
        return "–"
    return percent(row[name]) if MEASURED[name].endswith("%") else f"{row[name]:+.2f}".replace("-", "−")


def _usual_device(rows: Sequence[Mapping[str, Any]]) -> str:
    devices = [device for row in rows for device in json.loads(row["cost"]) if row["kind"] != "imported"]
    return min(devices, key=lambda device: (-devices.count(device), device), default="")


def _cost(row: Mapping[str, Any], usual: str) -> str:
    cost = json.loads(row["cost"])
    return "; ".join(
        duration(seconds) + ("" if device == usual else f" on {device}") for device, seconds in cost.items()
    )


def _published_cell(
    ours: Mapping[str, Any], ipc: int, judge: str, numbers: Sequence[Mapping[str, Any]], sources: list[str]
) -> str:
    """The published numbers beside ours, of the network `judge` where there are some; `sources` grows by what is
    cited."""
    texts = []
    there = [row for row in numbers if row["ipc"] == ipc]
    for row in beside(ours["method"], ours["protocol"], json.loads(ours["config"]), there, judge):
        if row["source"] not in sources:
            sources.append(row["source"])
        variant = "" if row["method"] == ours["method"] else f"{row['method']}: "
        texts.append(f"{variant}{_as_printed(row)} ({row['protocol']}) [{sources.index(row['source']) + 1}]")
    return "; ".join(texts) if texts else "–"


def _as_printed(row: Mapping[str, Any]) -> str:
    return as_printed(row) + (WHITENED if row["note"].startswith(ZCA) else "")


def _published_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    rest = [str(row[name]) for name in ("protocol", "train_backbone", "test_backbone", "source", "note")]
    return (row["method"], _as_printed(row), *rest)


def _reading(judge: str, device: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    preset = _same_preset(rows)
    notes = [
        "Test accuracy in %: mean over sets of the mean over students ± s.d. over all students "
        "[95 % interval over sets and students].",
        f"Differences: {judge}, paired by student, ± half their 95 % interval."
        + _references([row for row in rows if row["judge"] == judge]),
        "Bytes: of images and of labels, then of what else a receiver stores, such as step sizes or a teacher.",
        "Images seen: by one student while it trains, repeats counted.",
        # Of imported sets alone, no cost is known.
        *(
            [f"Cost: of condensing one set and of all that it needs, on {device} unless said otherwise."]
            if device
            else []
        ),
    ]
    return (
        notes if preset == "paper" else [*notes, f"All settings are those of the preset {preset}, not of the papers."]
    )


def _references(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the differences of rows of one judge are to."""
    said = ""
    if sum(row["control"] == "random" and not math.isnan(row["mean"]) for row in rows) > 1:
        said += " Random images: those that students train on as often, where there are such; of controls, the usual."
    of: dict[str, list[str]] = {}
    for row in rows:
        if row["best_coreset"]:
            of.setdefault(row["best_coreset"], []).extend({row["label"]} - {row["best_coreset"]})
    if of:
        usual = max(of, key=lambda name: len(of[name]))
        others = [f"; {name} for {', '.join(labels)}" for name, labels in of.items() if labels and name != usual]
        said += f" Best coreset: {usual}{''.join(others)}."
    return said


def _unpublished(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    labels = sorted({str(row["label"]) for row in rows if row["published"] is False})
    if not labels:
        return []
    where = f"{rows[0]['data_title']}, {budget(rows[0]['ipc'])}"
    return [f"No published settings for {where}: {', '.join(labels)} with the method's defaults, not a paper's."]


def _marks_used(cells: Sequence[Sequence[str]]) -> list[str]:
    text = " ".join(cell for line in cells for cell in line)
    return [f"{mark} {meaning}" for mark, meaning in _MARKS.items() if mark in text]


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{row['label']}, {row['judge']}: a check differs, so it is not verified: {row['differs']}"
        for row in rows
        if row["differs"]
    ]


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{row['label']}, {row['judge']}: {row['failed']}" for row in rows if row["failed"]]


def _sources(sources: Sequence[str], *, original: bool) -> list[str]:
    if not sources:
        return []
    copy = "" if original else " They are for the original data, not for this copy."
    return [
        "Published: as printed, under the source's own protocol, which is in parentheses, and with its own network."
        + copy,
        *(f"[{number}] {source}" for number, source in enumerate(sources, start=1)),
    ]


def _same_preset(rows: Sequence[Mapping[str, Any]]) -> str:
    presets = {row["preset"] for row in rows} - {"imported"}
    return next(iter(presets)) if len(presets) == 1 else "paper"


def _whitened(row: Mapping[str, Any]) -> bool:
    return "zca" in row["pixels"]


def _csv_line(row: Mapping[str, Any]) -> dict[str, Any]:
    exact = {name: row[name] for name in (*_EXACT, "best_coreset", *_SIZES)}
    percentages = {name: "" if math.isnan(row[name]) else f"{100 * row[name]:.2f}" for name in _PERCENTAGES}
    cost = {device: round(seconds, 1) for device, seconds in json.loads(row["cost"]).items()}
    return {
        **exact,
        **percentages,
        "provisional": "yes" if row["provisional"] else "no",
        "student_forwards": "" if math.isnan(row["forwards"]) else f"{row['forwards']:.0f}",
        "seconds": f"{row['seconds']:.1f}",
        "cost": json.dumps(cost),
        "failed": row["failed"],
        "trust": verification.trust(row),
        **{name: row[name] for name in _TRUST[1:]},
        **{name: _csv_score(row[name]) for name in SCORE_COLUMNS if name in row},
        "recognised": _csv_score(100 * row["recognised"]),
        "correlation": _csv_score(row["correlation"]),
        **{f"{name}_sets": row[f"{name}_sets"] for name in MEASURED},
    }


def _csv_score(value: float | str) -> str:
    return value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.2f}"


def _grid(table: Table, form: str, spell: Callable[[str], str]) -> str:
    rows = _spelled(table, "" if form == "github" else RULE, spell)
    return _tabulate(rows, [spell(header) for header in table.headers], form)


def _ruled(latex: str) -> str:
    """With booktabs' rule where a terminal has a line of dashes."""
    lines = latex.splitlines()
    return "\n".join("\\midrule" if set(line) <= set("&- \\") and RULE in line else line for line in lines)


def _spelled(table: Table, rule: str, spell: Callable[[str], str]) -> list[list[str]]:
    """All cells, with a rule between the methods and the whole dataset."""
    rows = [[spell(cell) for cell in row] for row in table.rows]
    apart = [rule if i == 1 else "" for i in range(len(table.headers))]
    return rows + ([apart] if rows and table.ceiling else []) + [[spell(cell) for cell in row] for row in table.ceiling]


def _fitted(table: Table, width: int | None) -> tuple[str, list[str]]:
    """A table as it fits, and a note on what it leaves out."""
    if width is None:
        return _grid(table, "simple", _one_line), []
    rows, headers = _spelled(table, RULE, _one_line), [_one_line(header) for header in table.headers]
    judges = range(3, headers.index(_COUNTS))  # the first judge stays, by which the rows are ordered
    last = [headers.index(name) for name in _EXPENDABLE if name in headers]
    # Asked for with --scores, so that they go last.
    asked = [headers.index(name) for name in (*MEASURED.values(), *map(str.upper, SCORES)) if name in headers]
    fitted = fit(headers, rows, width, [*last, *reversed(judges), *reversed(asked)])
    shown = [[row[k] for k in fitted.columns] for row in (headers, *rows)]
    text = _tabulate(shown[1:], shown[0], "simple", fitted.widths)
    left_out = ", ".join(fitted.left_out)
    return text, [f"Left out, for the width of the terminal: {left_out}. --format csv has all."] if left_out else []


def _wrapped(text: str, width: int | None) -> str:
    return text if width is None else textwrap.fill(text, max(width, 20))


def _tabulate(
    rows: Sequence[Sequence[str]], headers: Sequence[str], form: str, widths: Sequence[int] | None = None
) -> str:
    from tabulate import tabulate

    if widths is None:
        return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True)
    return tabulate(
        for_tabulate(rows),
        headers=headers,
        tablefmt=form,
        disable_numparse=True,
        maxcolwidths=list(widths),
        maxheadercolwidths=[width - HEAD for width in widths],
    )


def escaped(text: str, *, link: bool = False, block: bool = False) -> str:
    """The text on one line of Markdown or HTML, where it is text and nothing else.

    `link` for the inside of a link, `block` where it begins a paragraph or an item.
    """
    text = _one_line(text)
    for sign in ("\\", "*", "|", "_", "`", "~"):
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    if link:
        return text.replace("[", "\\[").replace("]", "\\]")
    # Intervals keep their brackets: alone these mean nothing. What makes a link, an image or a note of them is taken.
    text = re.sub(r"\]([(\[:])", r"\\]\1", text).replace("![", "!\\[").replace("[^", "\\[^").replace("[ ]", "\\[ ]")
    text = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp)(?=:)", r"\1\\", text)
    text = re.sub(r"(?i)\bwww\.", r"www\.", text)
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", text) if block else text


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _records(frame: DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
