"""What the site has that no page of the repository is: the leaderboard, pictures, plots, and formulas as MathML.

A page of a method says where: `<!-- pictures: dm -->`, `<!-- plots: dm -->` and `<!-- links: dm -->`, with several
names where it is of several methods. Formulas are LaTeX: `$…$` in a sentence, a block ```math of their own.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from figures import links_of, picture_of, pictured, plot_of, plots_of, source_of
from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
LEADERBOARDS = ROOT / "leaderboards"
BOARD = "board.html"
REPOSITORY = "DDBENCH_REPOSITORY"
MARKER = re.compile(r"^<!-- (?P<what>pictures|plots|links): (?P<methods>[^\n]+?) -->$", re.MULTILINE)
# As pymdownx.arithmatex leaves them: `\(…\)` in a sentence, `\[…\]` alone.
FORMULA = re.compile(
    r'(<(?P<tag>span|div) class="arithmatex">)\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]](</(?P=tag)>)', re.S
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A link to the repository at the foot of every page, where whoever builds the site says its address.

    Not by `repo_url`, for which the theme asks the host of the repository about it, from every page.
    """
    if address := os.environ.get(REPOSITORY):
        link = {"icon": "fontawesome/brands/git-alt", "link": address, "name": "Repository"}
        config.extra["social"] = [*config.extra.get("social", []), link]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, and the leaderboard among them."""
    from ddbench.leaderboard.boards import committed_page

    files.append(File.generated(config, BOARD, content=committed_page(LEADERBOARDS, home="index.html")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page with what its markers ask for. Raises: PluginError for a method without a picture, naming it."""
    site = _Site(page, config, files)

    def shown(match: re.Match[str]) -> str:
        figures = [figure for method in match["methods"].split() for figure in getattr(site, match["what"])(method)]
        kind = "links" if match["what"] == "links" else "figures"
        return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""

    return MARKER.sub(shown, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's HTML with its formulas in MathML. Raises: PluginError for one that is not LaTeX, naming the page."""
    return FORMULA.sub(lambda match: _formula(match, page.file.src_uri), content)


def _formula(match: re.Match[str], where: str) -> str:
    latex = html.unescape(match["latex"]).strip()
    try:
        made = LatexToMathML(fancy_error=False).convert_with_local_state(latex, displaystyle=match["open"] == "[")
    except LatexError as error:
        raise PluginError(f"{where}: a formula cannot be set: {latex}: {error}") from error
    return f"{match[1]}{made}{match[5]}"


class _Site:
    """What markers ask for, for one page; files that this takes become files of the site."""

    def __init__(self, page: Page, config: MkDocsConfig, files: Files) -> None:
        self.page, self.config, self.files = page, config, files

    def pictures(self, method: str) -> list[str]:
        try:
            file, record = pictured(method)
        except ValueError as error:
            raise PluginError(f"{self.page.file.src_uri}: {error}") from error
        address = self._added(f"methods/figures/{method}{file.suffix}", file.read_bytes())
        return [picture_of(method, address, file, record)]

    def plots(self, method: str) -> list[str]:
        found = []
        for place, plot in enumerate(plots_of(method), 1):
            names = {theme: f"methods/figures/{method}-{place}-{theme}.svg" for theme in plot.files}
            found.append(plot_of(plot, {t: self._added(name, plot.files[t].encode()) for t, name in names.items()}))
        return found

    def links(self, method: str) -> list[str]:
        path = source_of(method)
        # As text, which browsers show; what ends in .py they would save.
        source = self._added(f"source/{path.name}.txt", (ROOT / path).read_bytes())
        return [f"<p>{links_of(method, get_relative_url(BOARD, self.page.url), source)}</p>"]

    def _added(self, name: str, content: bytes) -> str:
        """The address of a file, relative to the page; it is added to the site where it is not there yet."""
        if self.files.get_file_from_path(name) is None:
            self.files.append(File.generated(self.config, name, content=content))
        return get_relative_url(name, self.page.url)
