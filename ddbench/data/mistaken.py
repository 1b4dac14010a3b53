"""Downloads that went wrong: what lies under the name of a file where it is not that file."""

from __future__ import annotations

from pathlib import Path

from ddbench.errors import DataError
from ddbench.files import open_regular

LOOKED_AT = 4096  # bytes at the beginning, in which each of these says what it is
PAGE = ("<!doctype html", "<html", "<head", "<body", "<script", "<error>")
POINTER = "version https://git-lfs.github.com/spec/"


def refuse_mistaken(path: Path) -> None:
    """Raise DataError for a web page or a pointer of Git LFS under the name of a file; all else passes, missing too."""
    if why := mistaken(path):
        raise DataError(f"{path} is {why}")


def mistaken(path: Path) -> str:
    """What a file is instead of what its name says, and what to do; nothing for whatever else it is.

    Servers answer with a page where a file is gone or needs a click, and downloaders keep it under the file's name.
    """
    try:
        with open_regular(path) as file:
            start = file.read(LOOKED_AT)
    except OSError:
        return ""
    # Of UTF-16, which some servers send, the zeros go.
    text = start.replace(b"\0", b"").decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n").lower()
    while text.startswith(("<!--", "<?xml")):
        text = text.partition("-->" if text.startswith("<!--") else "?>")[2].lstrip()
    if text.startswith(PAGE):
        return (
            "a web page, not the file that its name says: the server has sent a warning, a login or an error. Open it "
            "in a browser to see which, and download the file again."
        )
    if text.startswith(POINTER):
        return (
            "a pointer of Git LFS, which stands for the file in a repository. Fetch the file itself, with `git lfs "
            "pull` or by its download link."
        )
    return ""
