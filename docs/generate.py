"""Writes into the pages what comes from the code: option tables, presets, help, recipes, the record, the examples.

A page says where: `<!-- generated: options dm -->` to `<!-- end -->`. Whatever stands between the two is replaced.
"""

from __future__ import annotations

import ast
import inspect
import re
import statistics as statistics_of
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

if TYPE_CHECKING:
    from ddbench.runs.record import CurvePart, RunRecord

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BLOCK = re.compile(r"<!-- generated: (?P<name>\S+)(?P<arguments>[^\n]*?) -->\n(?P<content>.*?)<!-- end -->", re.DOTALL)
OPENING = "<!-- generated:"
RECORDS = ROOT / "leaderboards" / "records"
LANGUAGES = {".py": "python", ".toml": "toml"}
SIZES = (((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 64, 64), 200))

# The package's files are the examples', so that a stranger can copy either.
COPIES = {
    DOCS / "examples" / "package" / "mypaper" / "method.py": DOCS / "examples" / "idea.py",
    DOCS / "examples" / "package" / "mypaper" / "trainer.py": DOCS / "examples" / "trainer.py",
}


def current() -> dict[Path, str]:
    """Every file that is generated in part or in whole, as it should be."""
    pages = {page: render(page) for page in [ROOT / "README.md", *sorted((DOCS / "pages").rglob("*.md"))]}
    return pages | {copy: original.read_text(encoding="utf-8") for copy, original in COPIES.items()}


def behind() -> list[Path]:
    """The files that are not what the code gives, relative to the repository."""
    return [
        path.relative_to(ROOT)
        for path, text in current().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def render(page: Path) -> str:
    """A page with its generated blocks made anew. Raises: ValueError for a block that nobody knows or closes."""
    text = page.read_text(encoding="utf-8")
    if len(BLOCK.findall(text)) != text.count(OPENING):
        raise ValueError(f"{page}: a generated block has no <!-- end -->")

    def block(match: re.Match[str]) -> str:
        name, arguments = match["name"], match["arguments"].split()
        if name not in BLOCKS:
            raise ValueError(f"{page}: no generated block is called {name!r}; there are {', '.join(BLOCKS)}")
        opening = match[0].partition("\n")[0]
        return f"{opening}\n\n{BLOCKS[name](*arguments).strip()}\n\n<!-- end -->"

    return BLOCK.sub(block, text)


def options(name: str) -> str:
    """The options of a method."""
    from ddbench.config import option_table
    from ddbench.runs.resolving import find_method

    rows = option_table(find_method(name)[1].Config)
    if not rows:
        return f"`{name}` has no options."
    fields = find_method(name)[1].Config.model_fields
    return _table(
        ("option", "type", "default", "range", "meaning"),
        ((_code(o.name), _type(fields[o.name].annotation), _code(o.default), o.range, o.description) for o in rows),
    )


def presets(name: str) -> str:
    """The presets of a method, each with its source."""
    from ddbench.runs.resolving import find_method
    from ddbench.runs.resolving import presets as presets_of

    def everything(values: Sequence[Any], word: str) -> str:
        return ", ".join(word if value == "*" else str(value) for value in values)

    return _table(
        ("preset", "datasets", "ipc", "values", "source"),
        (
            (
                setting.preset,
                everything(setting.datasets, "any"),
                everything(setting.ipcs, "any"),
                ", ".join(_code(f"{key}={value}") for key, value in setting.values.items()),
                setting.source,
            )
            for setting in find_method(name)[1].settings()
            if setting.preset in presets_of(find_method(name)[1])
        ),
    )


def methods() -> str:
    """The methods that come with ddbench, with links from the folder of the pages to theirs."""
    from ddbench.plugins import GROUPS, listing
    from ddbench.runs.resolving import find_method

    rows, pages = [], sorted((DOCS / "pages" / "methods").glob("*.md"))
    for plugin in listing(GROUPS["method"]):
        if plugin.package != "ddbench":
            continue
        info = find_method(f"ddbench/{plugin.name}")[1].info
        arxiv = info.arxiv and f"[arXiv {info.arxiv}](https://arxiv.org/abs/{info.arxiv})"
        paper = ", ".join(str(part) for part in (info.venue, info.year, arxiv) if part)
        page = next((f"methods/{path.name}" for path in pages if plugin.name in _linked(path)), "")
        name = f"[{_code(plugin.name)}]({page})" if page else _code(plugin.name)
        rows.append((name, info.title, info.kind, paper or "–", _code(info.native)))
    return _table(("method", "title", "kind", "paper", "native protocol"), rows)


def _linked(page: Path) -> list[str]:
    """The methods that a page says it is of: those whose links it asks for."""
    names = re.findall(r"^<!-- links: (.+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [name for each in names for name in each.split()]


def recipes() -> str:
    """The built-in protocols, a row each. Of `dsa@1` all values are told, of the others those that differ from it."""
    from ddbench.evaluation.protocol import PROTOCOLS

    common = PROTOCOLS["dsa@1"]
    rows = []
    for p in PROTOCOLS.values():
        fields = [f for f in type(p.options).model_fields if p is common or _option(p, f) != _option(common, f)]
        told = [f"{_code(f)} {_option(p, f)}" for f in fields if p is not common or _option(p, f) not in ("–", "")]
        judges = ", ".join(map(_code, p.backbones))
        rows.append((_code(p.id), p.track, p.trainer, p.augment, judges, str(p.students), ", ".join(told)))
    return _table(("protocol", "labels", "trainer", "augment", "judges", "students", "training"), rows)


def protocols() -> str:
    """The built-in protocols by digest and source."""
    from ddbench.evaluation.protocol import PROTOCOLS

    return _table(
        ("protocol", "digest", "labels", "judges", "students", "source"),
        (
            (_code(p.id), _code(p.digest), p.labels, ", ".join(map(_code, p.backbones)), str(p.students), p.source)
            for p in PROTOCOLS.values()
        ),
    )


def _measured(dataset: str, records: Path) -> list[dict[str, Any]]:
    """The summary of our records on a dataset, a row per variant, protocol and judge, without failed evaluations."""
    from ddbench.leaderboard.observations import collect
    from ddbench.leaderboard.statistics import summarise, to_records

    files = sorted((records / dataset).rglob("*.json"))
    if not files:
        return []
    summary = summarise(collect(files)).sort_values(["method", "ipc", "protocol", "judge"])
    return to_records(summary.dropna(subset=["mean"]))


def results(dataset: str, title: str, protocol: str, judge: str, records: Path = RECORDS) -> str:
    """What methods reach on one copy of a dataset under one protocol and judge, a column for each ipc.

    Best first at the ipc that most methods have. The title's spaces are written as underscores.
    """
    rows = _column(dataset, title, protocol, judge, records)
    by_label: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], {})[row["ipc"]] = row
    return _by_budget({_code(label): of for label, of in by_label.items()})


def side_by_side(dataset: str, title: str, protocol: str, judge: str, records: Path = RECORDS) -> str:
    """As `results`, with one row a method, and the options that were set by hand beside an accuracy.

    Of several settings of a method the one with the fewest such options is taken, then the one with the most sets, and
    never one by its accuracy.
    """
    from ddbench.leaderboard.published import called, read_published
    from ddbench.leaderboard.tracks import name_of

    labels = set(read_published()["method"])
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(
        _column(dataset, title, protocol, judge, records),
        key=lambda row: (len(row["overridden"]), -row["sets"], row["variant"]),
    ):
        name = name_of(called(row["method"], row["config"], labels), row["control"], row["config"])
        by_method.setdefault(name, {}).setdefault(row["ipc"], row)
    return _by_budget({_code(method): of for method, of in by_method.items()}, say_options=True)


def _column(dataset: str, title: str, protocol: str, judge: str, records: Path) -> list[dict[str, Any]]:
    """The rows of one copy of a dataset, one protocol and one judge."""
    wanted = (title.replace("_", " "), protocol, judge)
    return [row for row in _measured(dataset, records) if (row["data_title"], row["protocol"], row["judge"]) == wanted]


def _by_budget(named: dict[str, dict[int, dict[str, Any]]], *, say_options: bool = False) -> str:
    """A row a name, a column an ipc; best first at the ipc that most rows have, then at the next. The whole dataset,
    which has none, comes last and stands in every column."""
    budgets = sorted({ipc for of in named.values() for ipc in of if ipc})
    whole = {name: dict.fromkeys(budgets, of[0]) for name, of in named.items() if 0 in of}
    named = {name: of for name, of in named.items() if name not in whole}
    usual = sorted(budgets, key=lambda ipc: -sum(ipc in of for of in named.values()))

    def text(row: dict[str, Any]) -> str:
        options = [f"{key}={row['config'].get(key)}" for key in row["overridden"]] if say_options else []
        note = f" ({', '.join(map(_code, options))})" if options else ""
        return f"{100 * row['mean']:.1f} ± {100 * row['sd']:.1f}{note}"

    order = sorted(named, key=lambda name: [-named[name].get(ipc, {"mean": 0.0})["mean"] for ipc in usual])
    lines = [(name, named[name]) for name in order] + sorted(whole.items())
    return _table(
        ("method", *(f"ipc {ipc}" for ipc in budgets)),
        ((name, *(text(of[ipc]) if ipc in of else "–" for ipc in budgets)) for name, of in lines),
    )


def fidelity(dataset: str, records: Path = RECORDS) -> str:
    """Our records on a dataset beside what was published under the same recipe, or else under another one."""
    from ddbench.leaderboard.published import of_options, printed, read_published, under

    measured = _measured(dataset, records)
    if not measured:
        return "There are no records yet."
    published = printed(read_published()).to_dict("records")
    rows = []
    for ours in measured:
        known = [p for p in published if (p["ipc"], p["dataset"]) == (ours["ipc"], dataset)]
        known = of_options(ours["method"], ours["config"], known)
        # KIP's paper says of its network how wide it is and not how deep.
        judges = (ours["judge"], re.sub(r"-d\d+(?=-)", "", ours["judge"]))
        known = [p for p in known if p["test_backbone"] in judges]
        kernel = ours["config"].get("kernel")
        learned_on = f"{kernel} kernel" if kernel else ours["train_backbone"]
        known = [p for p in known if p["train_backbone"] in ("", learned_on)]
        known.sort(key=lambda p: p["method"] != ours["method"])  # the method itself before its variants
        same = under(ours["protocol"], known)
        beside = next(iter(same or known), None)
        mean, spread = 100 * ours["mean"], beside and beside["spread"]
        several = ours["sets"] * ours["students_max"] > 1
        gap = mean - float(beside["accuracy"]) if beside else None
        deviations = abs(gap) / float(spread) if same and spread and gap is not None else None
        rows.append(
            (
                _code(ours["label"]), str(ours["ipc"] or "all"), _code(ours["protocol"]), _code(ours["judge"]),
                "original" if ours["original"] else ours["data_title"].partition(", ")[2],
                f"{mean:.1f}" + (f" ± {100 * ours['sd']:.1f}" if several else ""),
                f"{ours['sets']} × {ours['students_max']}",
                "–" if beside is None else beside["accuracy"] + (f" ± {spread}" if spread else ""),
                "–" if beside is None else _code(beside["protocol"]),
                "–" if gap is None else f"{gap:+.1f}",
                "–" if deviations is None else f"{deviations:.1f}",
            )
        )  # fmt: skip
    head = (
        "method",
        "ipc",
        "protocol",
        "judge",
        "data",
        "ours",
        "sets × students",
        "published",
        "under",
        "difference",
        "in its s.d.",
    )
    return _table(head, rows)


def fields(place: str) -> str:
    """The fields of a pydantic model, named as module:class."""
    model = _find(place)
    return _table(
        ("field", "type", "default", "meaning"),
        (
            (_code(name), _type(field.annotation), _default(field), field.description or "")
            for name, field in model.model_fields.items()
        ),
    )


def record() -> str:
    """The parts of a record, outermost first."""
    from ddbench.runs.record import RunRecord

    parts = []
    for model in _models(RunRecord):
        rows = (
            (_code(field.alias or name), _type(field.annotation), field.description or "")
            for name, field in model.model_fields.items()
        )
        parts.append(f"### {model.__name__}\n\n{inspect.getdoc(model)}\n\n{_table(('key', 'type', 'meaning'), rows)}")
    return "\n\n".join(parts)


def datasets() -> str:
    """The catalogue."""
    from ddbench.data.catalogue import CATALOGUE

    return _table(
        ("name", "title", "shape", "classes", "training / test images", "licence", "where from"),
        (
            (
                _code(d.name),
                f"[{d.title}]({d.homepage})",
                "×".join(map(str, d.shape)),
                str(d.classes),
                f"{d.train or 'as in the source'} / {d.test or 'as in the source'}",
                d.licence,
                d.download,
            )
            for d in CATALOGUE.values()
        ),
    )


def published_sets() -> str:
    """The sets of `leaderboards/sets`, with accuracies of the record and the file, and what a network recognises."""
    from ddbench.foreign.published_sets import read_index

    return _table(
        ("set", "images are kept as", "kB", "protocol", "judge", "accuracy", "of the file", "recognised"),
        (
            (
                _code(entry.name),
                entry.kept + ("" if entry.rounding else ", exactly"),
                f"{entry.bytes / 1000:,.0f}".replace(",", " "),
                _code(entry.protocol),
                _code(entry.judge),
                _accuracy(entry.accuracy),
                _accuracy(entry.accuracy_of_file) if entry.accuracy_of_file else "–",
                _recognised(ROOT / "leaderboards" / entry.record),
            )
            for entry in read_index(str(ROOT / "leaderboards" / "sets"), ROOT).sets
        ),
    )


def _recognised(record: Path) -> str:
    """What the ConvNet recognises of a record's set, in %."""
    from ddbench.runs.record import read_record
    from ddbench.text import percent

    found = [part.accuracy for part in read_record(record).recognised if part.backbone.startswith("convnet")]
    return percent(found[0]) if found else "–"


def copies() -> str:
    """Copies of datasets that are known by their images."""
    from ddbench.data.catalogue import CATALOGUE

    return _table(
        ("dataset", "on boards", "what it is", "fingerprint", "in any order"),
        (
            (_code(d.name), copy.title or "the original", copy.about, _code(copy.fingerprint), _code(copy.contents))
            for d in CATALOGUE.values()
            for copy in d.copies
        ),
    )


def statistics() -> str:
    """Means and standard deviations by dataset and name."""
    from ddbench.data.catalogue import CATALOGUE

    def numbers(values: Iterable[float]) -> str:
        return " ".join(f"{value:.4f}" for value in values)

    return _table(
        ("dataset", "name", "mean", "standard deviation"),
        (
            (_code(d.name), _code(name), numbers(mean), numbers(std))
            for d in CATALOGUE.values()
            for name, (mean, std) in d.statistics.items()
        ),
    )


def backbones(*names: str) -> str:
    """Numbers of parameters; of all architectures unless some are named."""
    from ddbench.backbones.names import build, known

    headers = ["name", *(f"{'×'.join(map(str, shape))}, {classes} classes" for shape, classes in SIZES)]
    return _table(
        headers,
        (
            (
                _code(name),
                *(f"{build(name, shape, classes).parameters:,}".replace(",", " ") for shape, classes in SIZES),
            )
            for name in names or known()
        ),
    )


def command_line() -> str:
    """The help of every command."""
    from ddbench.cli import root

    top = click.Context(root, info_name="ddbench", terminal_width=100, **root.context_settings)
    parts = []
    for context in _contexts(top):
        parts.append(f"## {context.command_path}\n\n```text\n{context.command.get_help(context)}\n```")
    return "\n\n".join(parts)


def public_names() -> str:
    """What `from ddbench import ...` gives, for mkdocstrings."""
    from ddbench import _HOMES

    return "\n\n".join(f"::: {home}.{name}" for name, home in sorted(_HOMES.items()))


def curves(method: str, records: Path = RECORDS) -> str:
    """The learning curves of a method, from the records that have them."""
    tables = []
    for (title, protocol, _), drawn in curves_of(method, records).items():
        for told, curve, record in drawn:
            shown = ["failed" if point.failed else _accuracy(point.accuracy) for point in curve.points]
            minutes = ("–" if p.seconds is None else f"{p.seconds / 60:.1f}" for p in curve.points)
            head = ", ".join([title, _code(protocol), *map(_code, told)])
            heads = (head, *(str(point.step) for point in curve.points))
            tables.append(_table(heads, [(f"minutes, {' and '.join(record.devices)}", *minutes), ("accuracy", *shown)]))
    return "\n\n".join(tables) or "There are no curves yet."


def curves_of(method: str, records: Path) -> dict[tuple[str, str, str], list[tuple[list[str], CurvePart, RunRecord]]]:
    """The curves of a method in a folder of records, by dataset with ipc, protocol, and judge.

    With each are the settings in which it differs from those beside it: `["iterations=1200", "seed=0"]`.
    """
    from ddbench.evaluation.protocol import judged_by
    from ddbench.runs.record import read_record
    from ddbench.text import budget

    found: dict[tuple[str, str, str], list[tuple[CurvePart, RunRecord]]] = {}
    read = [record for record in map(read_record, records.rglob(f"{method}-*.json")) if record.run.method == method]
    for record in sorted(read, key=lambda r: (r.run.dataset, r.run.ipc, r.run.seed, r.run.id)):
        for curve in record.curves:
            title = f"{record.data.title}, {budget(record.run.ipc)}"
            judge = judged_by(curve.protocol, curve.backbone)
            found.setdefault((title, curve.protocol, judge), []).append((curve, record))
    told = {}
    for key, alike in found.items():
        settings = [{**record.config.values, "seed": record.run.seed} for _, record in alike]
        told[key] = [
            ([f"{name}={value}" for name, value in own.items() if any(value != o.get(name) for o in settings)], *pair)
            for own, pair in zip(settings, alike, strict=True)
        ]
    return told


def sensitivity(name: str) -> str:
    """The tables of a measured grid, a section each, from docs/measured."""
    from ddbench.sensitivity.tables import headers, rows, sentences, title

    parts, found = [], _grid(name)
    for section in found.sections:
        parts.append(f"### {title(section)}\n\n{_table(headers(section), rows(section))}")
        parts.append("\n".join(f"- {text}" for text in sentences(section, found.recipes)))
    return "\n\n".join(parts)


def sensitivity_summary(name: str) -> str:
    """A row a section: Kendall's W, the recipe whose order is furthest from the base's, pairs that change places."""
    from ddbench.text import budget

    table = []
    for section in _grid(name).sections:
        order = section.order
        assert order is not None, f"{name} is not complete"
        known = [one for one in order.agreement if one.tau is not None]
        least = min(known, key=lambda one: one.tau, default=None)
        pairs = max((one.pairs for one in order.agreement), default=0)
        table.append(
            (
                f"{section.title}, {budget(section.ipc)}",
                str(len(order.rows)),
                str(len(order.agreement) + 1),
                "–" if order.w is None else f"{order.w:.2f} [{order.w_low:.2f}, {order.w_high:.2f}]",
                "–" if least is None else f"{least.tau:.2f}, {least.recipe}",
                f"{sum(one.swapped for one in order.agreement)} of {pairs * len(order.agreement)}",
                str(len(order.flips)),
            )
        )
    heads = ("sets", "methods", "recipes", "Kendall's W", "least tau to the base", "swapped pairs", "shown to flip")
    return _table(heads, table)


def recipe_table(name: str) -> str:
    """The recipes of a measured grid: which protocol each is, and what it changes."""
    results = _grid(name)
    base = results.recipes[0].fields
    rows = []
    for recipe in results.recipes:
        beside = {k: recipe.fields[k] for k in ("trainer", "augment", "labels")}
        changed = {k: v for k, v in beside.items() if v != base[k]}
        changed |= {k: v for k, v in recipe.fields["options"].items() if v != base["options"].get(k)}
        told = ", ".join(_code(f"{k}={_value(v)}") for k, v in changed.items()) or "nothing"
        rows.append((recipe.name, _code(recipe.protocol), recipe.track, recipe.times, told))
    return _table(("recipe", "protocol", "labels", "budgets", "changed"), rows)


def _grid(name: str) -> Any:
    from ddbench.sensitivity.results import read_results

    return read_results(DOCS / "measured" / f"sensitivity-{name}.json")


def rooms() -> str:
    """The folders and modules of the package, from the highest storey to the lowest, with what each says of itself."""
    guard = ast.parse((ROOT / "tests" / "unit" / "test_import_directions.py").read_text(encoding="utf-8"))
    (rows,) = (
        ast.literal_eval(node.value)
        for node in guard.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS"
    )
    lines = []
    for row in rows:
        for unit in sorted(row):
            place = ROOT / "ddbench" / unit
            if place.is_dir():
                lines.append(f"{unit + '/':<30}{_said_of(place / '__init__.py')}")
                inside = [path for path in sorted(place.rglob("*.py")) if path.name != "__init__.py"]
                lines += [f"  {path.relative_to(place).as_posix():<28}{_said_of(path)}" for path in inside]
            else:
                lines.append(f"{unit + '.py':<30}{_said_of(place.with_suffix('.py'))}")
        lines.append("")
    return "\n".join(["```text", *lines[:-1], "```"])


def _said_of(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def file(path: str) -> str:
    """A file of the repository, in full."""
    content = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"```{LANGUAGES[Path(path).suffix]}\n{content}\n```"


BLOCKS: dict[str, Callable[..., str]] = {
    "options": options,
    "presets": presets,
    "methods": methods,
    "recipes": recipes,
    "protocols": protocols,
    "fields": fields,
    "record": record,
    "datasets": datasets,
    "fidelity": fidelity,
    "results": results,
    "side-by-side": side_by_side,
    "curves": curves,
    "copies": copies,
    "published-sets": published_sets,
    "statistics": statistics,
    "backbones": backbones,
    "command-line": command_line,
    "public-names": public_names,
    "file": file,
    "rooms": rooms,
    "sensitivity": sensitivity,
    "sensitivity-summary": sensitivity_summary,
    "sensitivity-recipes": recipe_table,
}


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _accuracy(students: Sequence[float]) -> str:
    """Mean ± standard deviation of fractions, in %; of one student its value."""
    from ddbench.text import percent

    mean = percent(statistics_of.fmean(students))
    return f"{mean} ± {percent(statistics_of.pstdev(students))}" if len(students) > 1 else mean


def _code(text: str) -> str:
    return f"`{text}`"


def _option(protocol: Any, field: str) -> str:
    value = getattr(protocol.options, field, None)
    # Kernels have no step size, and finite networks take a share of the largest stable one.
    learned = field == "lr" and value is None and protocol.trainer in ("sgd", "distill", "replay")
    return "learned" if learned else _value(value)


def _value(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case tuple():
            return ", ".join(map(_code, value))
        case _:
            return str(value)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "its defaults"
    return "none" if field.default is None else _code(str(_value(field.default)).replace("`", "") or '""')


def _type(kind: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(inside[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in inside)
    if origin is Literal:
        return " or ".join(_code(str(value)) for value in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"[{', '.join(_type(part) for part in inside)}]"
    if origin in (tuple, list):
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return "table" if inside[1] is Any else f"table of {_type(inside[1])}"
    if kind in (None, type(None)):
        return "none"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "table", Any: "table"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it is made of, each once."""
    found = [model]
    for one in found:
        for field in one.model_fields.values():
            nested = [*_leaves(field.annotation)]
            found += [leaf for leaf in nested if leaf not in found]
    yield from found


def _leaves(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and not get_args(kind) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _leaves(part)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from _contexts(click.Context(command, parent=context, info_name=name))


def _find(place: str) -> type[BaseModel]:
    import importlib

    module, _, name = place.partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a page is behind the code.")
@click.pass_context
def main(ctx: click.Context, check: bool) -> None:
    """Write the generated parts of the documentation."""
    paths = behind()
    if check:
        for path in paths:
            click.echo(f"{path} is behind the code. Run: python docs/generate.py", err=True)
        ctx.exit(1 if paths else 0)
    texts = current()
    for path in paths:
        (ROOT / path).write_text(texts[ROOT / path], encoding="utf-8")
        click.echo(path)


if __name__ == "__main__":
    main()
