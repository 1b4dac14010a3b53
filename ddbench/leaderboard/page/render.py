"""The file of the page: its template, style and script from this folder, with the document inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.leaderboard.page.document import document, downloads_in, finite
from ddbench.leaderboard.published import read_published
from ddbench.text import number_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from ddbench.leaderboard.verification import Key, Standing

# In this order they are one script: what comes later uses what was said before.
SCRIPTS = ("parts.js", "table.js", "details.js", "pictures.js", "board.js")
TITLE = "Dataset distillation, measured"


def page_of(
    paths: Iterable[Path],
    *,
    title: str = TITLE,
    home: str = "",
    published: Path | None = None,
    sets: Path | None = None,
    lost: list[str] | None = None,
    chosen: Callable[[DataFrame], DataFrame] | None = None,
    checks: Mapping[Key, Standing] | None = None,
) -> str:
    """The page of these records or run folders, as HTML. The same records give the same bytes.

    `home` is the address of the documentation, where the page is part of some; `published` a file of published numbers,
    by default the one that ddbench comes with; `sets` a folder of sets to take away; `chosen` takes the rows of a
    summary that are shown; `checks` are of evaluations that somebody has checked.
    Raises: RunError for a damaged record, naming it; with `lost`, such sentences go there.
    """
    downloads = downloads_in(sets) if sets is not None else {}
    return render(document(paths, read_published(published), lost, downloads, chosen, checks), title, home)


def render(found: dict[str, Any], title: str, home: str = "") -> str:
    """The page of a document. Its content policy lets its own style and script through, and nothing from elsewhere."""
    import jinja2
    from markupsafe import Markup

    import ddbench

    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    # What stands in a style or a script element is not escaped there: it is ours, and its hash is in the policy.
    return environment.from_string(_read("page.html.jinja")).render(
        title=title,
        home=home,
        counts=_counts(found),
        version=ddbench.__version__,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        document=Markup(_embedded(found)),
    )


def _read(name: str) -> str:
    return (resources.files("ddbench.leaderboard.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(found: dict[str, Any]) -> str:
    """JSON that no text in it can end: every "<" is spelled as its number."""
    return json.dumps(finite(found), sort_keys=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _counts(found: dict[str, Any]) -> str:
    methods = len({row["method"] for row in found["rows"] if row["kind"] != "ceiling"})
    sets, students = len(found["runs"]), sum(len(run["accuracy"]) for row in found["rows"] for run in row["runs"])
    return f"{number_of(methods, 'method')}, {number_of(sets, 'set')}, {number_of(students, 'trained network')}."
