"""Folders of images by their names: the training part, the test part, classes; and files that are nobody's images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddbench.data.decoding import IMAGE_SUFFIXES, looks_like_an_image
from ddbench.errors import DataError
from ddbench.text import number_of, printable

Role = Literal["train", "test", "val"]

ROLES: dict[str, Role] = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
}  # fmt: skip
# Words beside the role that say nothing: "train_images" and "TestSet" belong together.
FILLERS = {"set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "folder", "dir", "split"}
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
ROLE_WORD = re.compile(rf"({'|'.join(sorted(ROLES, key=len, reverse=True))})({'|'.join(FILLERS)})?")
LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
LITTER_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "lost+found"}
DOCUMENTS = {"README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CITATION", "CHANGELOG"}
SHOWN_KINDS = 6
FEW = 4  # more folders than this are taken for classes, whatever they have inside


@dataclass(frozen=True)
class Parts:
    """The folders of a split: `train` has class folders; `others` are its test and validation parts, by role."""

    train: Path
    others: tuple[tuple[Role, Path], ...]

    def tests(self, prefer: Role) -> list[Path]:
        """What can be the test part, those of the preferred role first."""
        # Beside test_blurred, test is the one.
        return [path for _, path in sorted(self.others, key=lambda o: (o[0] != prefer, o[1].name != o[0]))]


def visible(folder: Path) -> list[Path]:
    """What is in a folder, less hidden files and the litter of other systems, by name."""
    return sorted(entry for entry in folder.iterdir() if not _litter(entry.name))


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name."""
    return [entry for entry in visible(folder) if entry.is_dir()]


def base_folder(folder: Path) -> Path:
    """Where the content begins: one folder down as long as there is nothing beside it but a README or a licence."""
    while len(entries := [entry for entry in visible(folder) if not _is_document(entry)]) == 1 and entries[0].is_dir():
        if role_of(entries[0].name) == "train" and role_of(folder.name) != "train":
            break
        folder = entries[0]
    return folder


def role_of(name: str) -> Role | None:
    """The part of a split that a folder's name, or a cell of a table, says: "seg_train", "Testing", "val2017"."""
    named = _role_and_rest(name)
    return None if named is None else named[0]


def find_parts(folder: Path, shown: str) -> Parts | None:
    """The split that the folders in `folder` are, or those one level down; None where they are classes.

    A folder that is called train and holds images is a class, such as a railway train: a part has class folders.
    Raises: DataError where several folders could be the training part, where the parts have no class folders, and where
    folders look like parts that are called otherwise.
    """
    parts = _parts_in(folder, shown)
    if parts is None:
        _refuse_look_alikes(folder, shown)
        below = [found for child in folders_in(folder) if (found := _parts_in(child, shown)) is not None]
        parts = below[0] if len(below) == 1 and below[0].others else None
    return parts


def class_base(folder: Path) -> Path:
    """Where class folders without a split lie: here, or in the one folder beside which the others hold no images."""
    with_images = [entry for entry in folders_in(folder) if has_images(entry)]
    if len(with_images) == 1 and len(folders_in(with_images[0])) > 1:
        return with_images[0]
    return folder


def has_images(folder: Path) -> bool:
    """Whether there is an image file below a folder."""
    return any(map(is_image, _files(folder)))


def image_files(folder: Path) -> list[Path]:
    """The image files of a class: those below its folder whose suffix, or else whose content, is that of an image."""
    return sorted(path for path in _files(folder) if is_image(path))


def left_out(folder: Path, used: Collection[Path]) -> str:
    """What lies below `folder` and was not used: "12 files: 10 .dcm, 2 without suffix"; nothing where all was used.

    Hidden files and the litter of other systems are not worth a word.
    """
    taken = set(used)
    kinds = Counter(_kind(path, folder) for path in _files(folder) if path not in taken)
    if not kinds:
        return ""
    several = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0] != "without suffix", kind[0]))
    shown = [f"{count} {kind}" for kind, count in several[:SHOWN_KINDS]]
    if rest := sum(count for _, count in several[SHOWN_KINDS:]):
        shown.append(f"{rest} others")
    return f"{number_of(kinds.total(), 'file')}: {', '.join(shown)}"


def _parts_in(folder: Path, shown: str) -> Parts | None:
    families: dict[str, list[tuple[Role, Path]]] = {}
    named = [(entry, _role_and_rest(entry.name)) for entry in folders_in(folder)]
    # Where every folder is called like a part, they are of one split, whatever else their names say.
    all_parts = all(said is not None for _, said in named)
    for entry, said in named:
        if said is not None:
            families.setdefault("" if all_parts else said[1], []).append((said[0], entry))
    found: list[tuple[str, Parts]] = []
    for family in families.values():
        train = [path for role, path in family if role == "train"]
        others = tuple((role, _inner(path)) for role, path in family if role != "train")
        with_classes = [path for path in train if folders_in(_inner(path))]
        found += [(path.name, Parts(_inner(path), others)) for path in with_classes]
        if train and others and not with_classes and len(family) == len(named):
            raise DataError(
                f"the folders {train[0].name!r} and {others[0][1].name!r} of {shown} have no class folders. An image "
                "folder is train/CLASS/... with test/CLASS/...; where a table says the classes, name it with --labels."
            )
    # Beside train_small, or train_blurred, train is the one.
    meant = [parts for name, parts in found if name == "train"] or [parts for _, parts in found]
    if len(meant) > 1:
        names = ", ".join(name for name, _ in found)
        raise DataError(f"{shown} has several folders that could be the training part: {names}. Keep one of them.")
    return meant[0] if meant else None


def _refuse_look_alikes(folder: Path, shown: str) -> None:
    """Raise DataError where the folders in `folder` have the same folders inside: they look like parts, not classes."""
    found = folders_in(folder)
    inside = [[entry.name for entry in folders_in(entry)] for entry in found]
    alike = bool(inside) and len(inside[0]) > 1 and all(names == inside[0] for names in inside)
    if len(found) < 2 or not alike or not all(has_images(entry) for entry in found):
        return
    outer, inner = (", ".join(repr(name) for name in names[:FEW]) for names in ([f.name for f in found], inside[0]))
    if {role_of(name) for name in inside[0]} >= {"train", "test"}:
        raise DataError(
            f"in {shown} every folder ({outer}) has the parts of a split inside ({inner}). Put the parts above the "
            "classes: train/CLASS/... and test/CLASS/..."
        )
    if len(found) <= FEW:
        raise DataError(
            f"the folders of {shown} ({outer}) look like the parts of a split, not like classes: each has the same "
            f"folders inside ({inner}). Call them train and test; or add one of them alone."
        )


def _inner(part: Path) -> Path:
    """Where a part begins: archives often have it twice, seg_train/seg_train/CLASS."""
    while len(entries := visible(part)) == 1 and entries[0].is_dir() and folders_in(entries[0]):
        part = entries[0]
    return part


def _role_and_rest(name: str) -> tuple[Role, str] | None:
    """The role that a name says, and what else it says, less numbers; None where it says none, or several."""
    roles, rest = [], []
    for word in WORDS.findall(name):
        match = ROLE_WORD.fullmatch(word.lower())
        if match is not None:
            roles.append(ROLES[match[1]])
        elif word.lower() not in FILLERS and not word.isdecimal():
            rest.append(word.lower())
    return (roles[0], "-".join(rest)) if len(roles) == 1 else None


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _litter(name))
        yield from (Path(parent, name) for name in names if not _litter(name))


def _is_document(path: Path) -> bool:
    named = path.stem.upper() in DOCUMENTS and path.suffix.lower() in ("", ".md", ".txt", ".rst")
    return path.is_file() and (named or path.suffix.lower() in (".md", ".pdf", ".html", ".bib"))


def _litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER or name.lower() in LITTER_FOLDERS


def is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    # What is called "10026" or "img.0001" says nothing of its kind.
    return suffix in IMAGE_SUFFIXES or ((not suffix or suffix[1:].isdecimal()) and looks_like_an_image(path))


def _kind(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder).parts
    if is_image(path):
        return f"images in {printable(inside[0], 40)!r}" if len(inside) > 1 else "images beside the folders"
    return printable(path.suffix.lower(), 20) or "without suffix"
