"""Tables of a grid as rows of text: for a terminal, for pages and as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ddbench.sensitivity.results import AgreementPart, OrderPart, RecipePart, Results, ScorePart, SectionPart
from ddbench.text import budget, percent

if TYPE_CHECKING:
    from pandas import DataFrame


def title(section: SectionPart) -> str:
    """What a section is about: digits, ipc 10, convnet-d3-w32, 15 000 images a student."""
    images = f"{section.forwards:,}".replace(",", " ")
    return f"{section.title}, {budget(section.ipc)}, {section.judge}, {section.students} students, {images} images each"


def headers(section: SectionPart) -> list[str]:
    """Those of `rows`."""
    return ["recipe", "images", *_names(section), "tau"]


def rows(section: SectionPart) -> list[list[str]]:
    """A row a recipe: what a student trains on, accuracy ± half the interval (rank) of each method, tau to the base."""
    order = section.order
    if order is None:
        return []
    scores = {(row.row, score.recipe): score for row in order.rows for score in row.scores}
    agreement = {one.recipe: one for one in order.agreement}
    recipes = list(dict.fromkeys(cell.recipe for cell in section.cells))
    return [
        [
            recipe,
            _images(section, recipe),
            *(_score(scores.get((name, recipe))) for name in _names(section)),
            _agreement(agreement.get(recipe)),
        ]
        for recipe in recipes
    ]


def sentences(section: SectionPart, recipes: Sequence[RecipePart]) -> Iterator[str]:
    """What a section says in words: W, pairs that change places, two tracks of labels in one row, and what was left out
    or failed. `recipes` are those of all results."""
    order = section.order
    if order is None:
        yield "Not all of it is there yet; the same command goes on."
        return
    if order.w is not None:
        yield f"Kendall's W of all recipes: {order.w:.2f}{_interval(order.w_low, order.w_high)}."
    yield from _changes(order)
    soft, classes = _with_own_labels(section)
    own = [one.name for one in recipes if _takes_own_labels(one) and one.name not in section.left_out]
    if own and soft and classes:
        yield (
            f"Under {_listed(own)} students of {_listed(classes)} learn classes, as they have no other labels, and "
            f"those of {_listed(soft)} soft labels: two tracks in one row, of which boards make two tables."
        )
    for recipe, why in section.left_out.items():
        yield f"{recipe} is left out: {why}."
    if alone := [row.row for row in order.rows if row.sets == 1]:
        yield f"Of {_listed(alone)} there is one set: this is about that set, and says nothing of others of its method."
    trained = sorted({f"{cell.device} in {cell.precision}" for cell in section.cells if cell.accuracy})
    if len(trained) > 1:
        yield f"Not all students were trained alike: there are some of {_listed(trained)}."
    yield from dict.fromkeys(f"{cell.recipe}: {cell.failed}" for cell in section.cells if cell.failed)


def text(results: Results) -> str:
    """All sections, one after the other."""
    from tabulate import tabulate

    parts = []
    for section in results.sections:
        table = tabulate(rows(section), headers(section), tablefmt="simple", disable_numparse=True)
        parts.append("\n".join([title(section), table, *sentences(section, results.recipes)]))
    return "\n\n".join(parts)


def frame(results: Results) -> DataFrame:
    """A row for each section, recipe and method: `mean`, `ci95` (half the interval) as fractions, `rank`, `tau`."""
    import pandas as pd

    return pd.DataFrame(list(_records(results)), columns=list(COLUMNS))


COLUMNS = ("dataset", "ipc", "judge", "recipe", "protocol", "track", "forwards", "method", "sets", "students", "mean",
           "ci95", "rank", "tau", "tau_low", "tau_high")  # fmt: skip


def _records(results: Results) -> Iterator[dict[str, Any]]:
    known = {recipe.name: recipe for recipe in results.recipes}
    for section in results.sections:
        agreement = {} if section.order is None else {one.recipe: one for one in section.order.agreement}
        _, classes = _with_own_labels(section)
        for row in () if section.order is None else section.order.rows:
            for score in row.scores:
                recipe, one = known[score.recipe], agreement.get(score.recipe)
                low, high = (one.low, one.high) if one is not None else (None, None)
                yield {
                    "dataset": section.dataset, "ipc": section.ipc, "judge": section.judge, "recipe": recipe.name,
                    "protocol": recipe.protocol,
                    "track": "hard" if row.row in classes and _takes_own_labels(recipe) else recipe.track,
                    "forwards": max(1, round(Fraction(recipe.times) * section.forwards)), "method": row.row,
                    "sets": row.sets, "students": section.students, "mean": score.mean, "ci95": score.ci95,
                    "rank": score.rank, "tau": one and one.tau, "tau_low": low, "tau_high": high,
                }  # fmt: skip


def _names(section: SectionPart) -> list[str]:
    return list(dict.fromkeys(part.row for part in section.sets))


def _takes_own_labels(recipe: RecipePart) -> bool:
    """Whether students learn a set's own labels as they are, which are classes where it has no others."""
    return recipe.track == "soft" and recipe.fields["trainer"] == "sgd"


def _with_own_labels(section: SectionPart) -> tuple[list[str], list[str]]:
    """The methods whose sets have soft labels of their own, and those whose sets have classes alone."""
    soft = {part.row for part in section.sets if part.soft}
    names = _names(section)
    return [name for name in names if name in soft], [name for name in names if name not in soft]


def _images(section: SectionPart, recipe: str) -> str:
    counts = sorted({cell.forwards for cell in section.cells if cell.recipe == recipe and cell.forwards is not None})
    return " to ".join(f"{count:,}".replace(",", " ") for count in dict.fromkeys(counts[:1] + counts[-1:]))


def _score(score: ScorePart | None) -> str:
    if score is None:
        return "–"
    half = "" if score.ci95 is None else f" ± {percent(score.ci95)}"
    return f"{percent(score.mean)}{half} ({score.rank})"


def _agreement(one: AgreementPart | None) -> str:
    if one is None or one.tau is None:
        return ""
    return f"{one.tau:.2f}{_interval(one.low, one.high)}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _changes(order: OrderPart) -> Iterator[str]:
    for flip in order.flips:
        yield (
            f"{flip.first} is better than {flip.second} under {_listed(flip.better)}, and worse under "
            f"{_listed(flip.worse)}."
        )
    if not order.flips:
        yield "No two methods are shown to change places."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
