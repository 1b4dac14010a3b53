"""What the pages of methods show: pictures of condensed sets, learning curves as plots, links to boards and code.

All of it comes from records: those of the leaderboard, and where none of them has a picture or a curve, those of quick
runs on the digits in docs/measured/digits, which docs/digits.py makes.
"""

from __future__ import annotations

import html
import inspect
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from generate import DOCS, RECORDS, ROOT, curves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddbench.runs.record import CurvePart, EvaluationPart, RunRecord, SheetPart

DIGITS = DOCS / "measured" / "digits"
SCALE = 4  # a pixel of the digits is this many on the page, one of a larger image a single one
SIZE = (4.0, 2.7)  # inches


@dataclass(frozen=True)
class Theme:
    """The colours of a plot, on the background that the site has under the theme."""

    name: str
    text: str
    grid: str
    lines: tuple[str, ...]


# After Okabe and Ito, whose colours the colour-blind tell apart; on each background those that stand out from it.
THEMES = (
    Theme("light", "#3b3b3b", "#d9d9d9", ("#0072b2", "#d55e00", "#007a5a", "#a3477f", "#6d5a00", "#000000")),
    Theme("dark", "#c9cbd1", "#454b5a", ("#56b4e9", "#e69f00", "#2fc79a", "#e39ac6", "#f0e442", "#ffffff")),
)
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Plot:
    """One plot: its files by theme, as SVG, and what is said under it and in its place."""

    files: dict[str, str]
    caption: str
    words: str


def pictured(method: str, records: Path = RECORDS, digits: Path = DIGITS) -> tuple[Path, RunRecord]:
    """The record whose picture stands for a method, and the picture's file.

    Of the leaderboard's records with a picture the one with the fewest options set by hand, then the lowest seed; it is
    never chosen by its accuracy. Else that of the digits. Raises: ValueError where there is neither.
    """
    from ddbench.leaderboard.sheets import sheet_file
    from ddbench.runs.record import read_record

    for folder in (records, digits):
        found = [(path, read_record(path)) for path in sorted(folder.rglob(f"{method}-*.json"))]
        shown = [(path, record) for path, record in found if record.run.method == method and record.sheet is not None]
        if shown:
            path, record = min(shown, key=lambda pair: (_by_hand(pair[1]), pair[1].run.seed, pair[0]))
            return sheet_file(path), record
    raise ValueError(f"no record of {method} has a picture. Make one: python docs/digits.py {method}")


def picture_of(method: str, address: str, file: Path, record: RunRecord) -> str:
    """The picture of a record as a figure in HTML; the image's address is relative to the page."""
    from PIL import Image

    sheet = record.sheet
    assert sheet is not None  # else there would be no picture
    with Image.open(file) as image:
        width, height = image.size
    times = SCALE if max(record.data.shape[1:]) < 16 else 1
    what = _sheet_in_words(record, sheet)
    alt = f"Images of the set of {method} on {record.data.title}, a column a class."
    said = f"<strong>{_text(method)}</strong> on {_text(run_of(record))}: {accuracy_of(record)}. {what}"
    if command := made_by(file, record):
        said += f" <code>{_text(command)}</code>"
    size = f'width="{times * width}" height="{times * height}"'
    return _figure(f'<img src="{_text(address)}" alt="{_text(alt)}" {size} loading="lazy">', said)


def plots_of(method: str, records: Path = RECORDS, digits: Path = DIGITS) -> list[Plot]:
    """The learning curves of a method as plots: one for each dataset, ipc, protocol and judge. Empty without curves."""
    found = curves_of(method, records) or curves_of(method, digits)
    return [_plot(*key, drawn) for key, drawn in found.items()]


def plot_of(plot: Plot, addresses: dict[str, str]) -> str:
    """A plot as a figure in HTML, which shows the image of the theme that is on."""
    alt = _text(plot.words)
    images = [f'<img src="{_text(addresses[t.name])}#only-{t.name}" alt="{alt}" loading="lazy">' for t in THEMES]
    return _figure("".join(images), plot.caption)


def _plot(title: str, protocol: str, judge: str, drawn: Sequence[tuple[list[str], CurvePart, RunRecord]]) -> Plot:
    lines = [(", ".join(told), curve) for told, curve, _ in drawn]
    students = max(len(point.accuracy) for _, curve in lines for point in curve.points)
    bars = f" Bars: standard deviation over {students} networks." if students > 1 else ""
    told = f"{_text(title)}, <code>{_text(protocol)}</code> with {_text(judge)}"
    one = drawn[0][2]
    told += f", seed {one.run.seed}, preset {_text(one.run.preset)}" if len(drawn) == 1 else ""
    failed = [f"step {p.step}: {p.failed}" for _, curve in lines for p in curve.points if p.failed]
    lost = f" Without a result: {_text('; '.join(failed))}" if failed else ""
    said = [f"{name}: {_in_words(curve)}".removeprefix(": ") for name, curve in lines]
    return Plot(
        {theme.name: _svg(f"{title}, {protocol}", lines, theme) for theme in THEMES},
        f"{told}. Every snapshot, none chosen; the last is the result.{bars}{lost}",
        f"Test accuracy against the step, {title}, {protocol}. {'. '.join(said)}.",
    )


def _svg(title: str, lines: Sequence[tuple[str, CurvePart]], theme: Theme) -> str:
    """The drawing. The same curves give the same bytes under the same version of matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    # Letters as shapes: an image in a page has no fonts but those of the reader's system.
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "path", "font.size": 9}):
        legend = [name for name, _ in lines] if len(lines) > 1 else []
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.17 * len(legend)), layout="constrained")
        axes: Axes = figure.subplots()
        for place, (name, curve) in enumerate(lines):
            points = [point for point in curve.points if point.accuracy]
            axes.errorbar(
                [point.step for point in points],
                [100 * statistics.fmean(point.accuracy) for point in points],
                [100 * statistics.pstdev(point.accuracy) for point in points],
                color=theme.lines[place % len(theme.lines)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4.5,
                linewidth=1.5,
                capsize=2.5,
                label=name,
            )
        axes.set_xlabel("step", color=theme.text)
        axes.set_ylabel("test accuracy, %", color=theme.text)
        axes.tick_params(colors=theme.text)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(theme.text)
        if legend:
            figure.legend(loc="outside lower left", frameon=False, labelcolor=theme.text, fontsize=8)
        with io.StringIO() as file:
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            return file.getvalue()


def run_of(record: RunRecord) -> str:
    """Which run a record is of, in words: dataset, images per class, seed, preset, options set by hand."""
    from ddbench.text import budget

    run, sources = record.run, record.config.sources
    own = [f"{name}={record.config.values[name]}" for name, source in sources.items() if _is_own(source)]
    words = [record.data.title, budget(run.ipc), f"seed {run.seed}", f"preset {run.preset}", *own]
    return ", ".join(words)


def accuracy_of(record: RunRecord) -> str:
    """What students of a record's set reach: under the method's own protocol if the record has it, else its first."""
    from ddbench.evaluation.protocol import judged_by

    judged = [part for part in record.evaluations if part.accuracy]
    if not judged:
        return "no accuracy"

    def far(part: EvaluationPart) -> tuple[bool, bool]:
        return part.protocol != record.run.native, part.backbone != record.run.backbone

    part = min(judged, key=far)
    mean, several = 100 * statistics.fmean(part.accuracy), len(part.accuracy) > 1
    spread = f" ± {100 * statistics.pstdev(part.accuracy):.1f}" if several else ""
    networks = f", {len(part.accuracy)} networks" if several else ""
    judge = judged_by(part.protocol, part.backbone)
    return f"{mean:.1f}{spread} % under <code>{_text(part.protocol)}</code> with {_text(judge)}{networks}"


def made_by(file: Path, record: RunRecord) -> str:
    """The command that makes the run of a picture again, by its id if it is on the board; "" if others made the set."""
    run = record.run
    if record.imported is not None:
        return ""
    if file.parent != DIGITS:
        return f"ddbench reproduce {run.id}"
    where = f"--dataset {run.dataset} --ipc {run.ipc} --seed {run.seed} --preset {run.preset} --device cpu"
    return f"ddbench run --method {run.method} {where}"


def links_of(method: str, board: str, source: str, records: Path = RECORDS) -> str:
    """A line of links: to the method's rows on the board, and to its code. Addresses are relative to the page."""
    from ddbench.runs.record import read_record
    from ddbench.text import budget

    cells: dict[str, dict[int, list[RunRecord]]] = {}
    for record in map(read_record, sorted(records.rglob(f"{method}-*.json"))):
        if record.run.method == method:
            cells.setdefault(record.data.title, {}).setdefault(record.run.ipc, []).append(record)
    told = []
    for title, budgets in sorted(cells.items()):
        links = []
        for ipc, found in sorted(budgets.items()):
            known = {part.protocol for record in found for part in record.evaluations}
            protocol = "dsa@1" if "dsa@1" in known else min(known, default="")
            place = urlencode({"dataset": title, "ipc": ipc, "protocol": protocol, "q": method})
            links.append(f'<a href="{_text(board)}#{_text(place)}">{_text(budget(ipc))}</a>')
        told.append(f"{_text(title)} {', '.join(links)}")
    name = _text(source.rpartition("/")[2].removesuffix(".txt"))
    code = f'code: <a href="{_text(source)}"><code>{name}</code></a>'
    return f"<strong>{_text(method)}</strong> on the leaderboard: {'; '.join(told) or 'not yet'}; {code}"


def source_of(method: str) -> Path:
    """The file that a method which comes with ddbench is written in."""
    from ddbench.runs.resolving import find_method

    file = inspect.getsourcefile(find_method(f"ddbench/{method}")[1])
    assert file is not None  # it was imported from one
    return Path(file).resolve().relative_to(ROOT)


def _sheet_in_words(record: RunRecord, sheet: SheetPart) -> str:
    """What a picture shows of a set: which images, and what was done to them."""
    synthetic, images = record.synthetic, "image" if sheet.rows == 1 else "images"
    what = f"A column a class, {sheet.rows} {images} of each"
    if synthetic.labels != "class":
        what = f"A column for the images whose labels are largest for a class, {sheet.rows} of them at most"
    what += ", each from its darkest to its brightest value" if sheet.stretched else ""
    what += "" if "images" in synthetic.learned else "; the images are real"
    # Students see what the decoder makes of an image, here the smaller images in it enlarged.
    what += "" if synthetic.decode == "none" else f"; as stored, before <code>{_text(synthetic.decode)}</code>"
    return f"{what}."


def _by_hand(record: RunRecord) -> int:
    return sum(map(_is_own, record.config.sources.values()))


def _is_own(source: str) -> bool:
    return not source.startswith(("default", "preset"))


def _in_words(curve: CurvePart) -> str:
    points = [(p.step, f"{100 * statistics.fmean(p.accuracy):.1f} %" if p.accuracy else "failed") for p in curve.points]
    return ", ".join(f"{value} at {step}" for step, value in points)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _text(value: Any) -> str:
    return html.escape(str(value))
