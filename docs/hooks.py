"""What the site has that no page of the repository is: the leaderboard, made from the committed records."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LEADERBOARDS = Path(__file__).resolve().parents[1] / "leaderboards"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, and board.html among them."""
    from ddbench.leaderboard.boards import committed_page

    files.append(File.generated(config, "board.html", content=committed_page(LEADERBOARDS)))
    return files
