"""What a wheel or an sdist was built from, written into it, so that a record can name the code that has run."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "ddbench/built_from.json"
# What changes a wheel.
SOURCES = (
    "ddbench",
    "methods",
    "leaderboards/published.csv",
    "docs/examples/idea.py",
    "pyproject.toml",
    "hatch_build.py",
)


class BuiltFrom(BuildHookInterface):
    """Adds ddbench/built_from.json: the commit, and whether the sources differed from it. None without git."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; an editable install is its checkout, and says so itself."""
        state = built_from(Path(self.root)) if version != "editable" else None
        if state is None:  # built from an sdist, which has the file already
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "built_from.json"
        file.write_text(json.dumps(state) + "\n")
        build_data["force_include"][str(file)] = PLACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after a build."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def built_from(root: Path) -> dict[str, Any] | None:
    """The commit of a checkout, and whether its sources differ from it, new files included; None without git."""
    top, commit = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", *SOURCES)
    if not top or not commit or changed is None or Path(top).resolve() != root.resolve():
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
