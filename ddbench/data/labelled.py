"""Images whose classes stand in a table: CSV files with a column of file names and one of labels."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ddbench.data.decoding import IMAGE_SUFFIXES
from ddbench.data.parts import Role, image_files, role_of
from ddbench.errors import ConfigError, DataError, closest
from ddbench.files import open_regular
from ddbench.text import MOST_LINE, number_of, printable

FILE_COLUMNS = (
    "file", "filename", "file_name", "image", "image_id", "imageid", "image_name", "image_path", "img", "img_path",
    "path", "filepath", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "class_name", "classname", "classid", "class_id", "category", "target", "y", "breed",
    "species", "dx", "diagnosis",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "part", "partition", "subset", "set", "data_set", "phase", "usage")
COLUMNS_HELP = "Say which with --columns FILE,LABEL or FILE,LABEL,SPLIT, by name or by number from 1."
NO_SPLIT = "With --columns FILE,LABEL no column says a part, and a tenth of every class is held out."
DELIMITERS = ",;\t|"
SHOWN = 3
MOST_CSV = 1 << 30  # bytes; a row of a table has a hundred, so that this is ten million images

csv.field_size_limit(1 << 20)


@dataclass(frozen=True)
class Row:
    """A line of a table that names an image."""

    file: str
    label: str
    split: str
    where: str  # "line 5 of labels.csv"


@dataclass(frozen=True)
class Labelled:
    """Image files by class, in class order. `test` is None where the tables say nothing of a split."""

    classes: tuple[str, ...]
    train: list[list[Path]]
    test: list[list[Path]] | None
    split: str


def read_tables(tables: Sequence[Path], folder: Path, columns: str, official: tuple[str, ...]) -> Labelled:
    """The images below `folder` by the classes that the tables give them.

    Names of files are taken with or without folders in front and suffixes behind. `columns` says which columns are
    meant, "FILE,LABEL" or "FILE,LABEL,SPLIT"; without it they are known by their names. `official` are the class names
    of a known dataset, in class order.
    Raises: DataError, with the line, for what is missing on either side, ambiguous, or named twice; ConfigError where
    the columns have to be said.
    """
    images = image_files(folder)
    if not images:
        raise DataError(f"there is no image below {folder}, and the labels are for images there.")
    find = _finder(images, folder)
    rows = [row for table in tables for row in _rows(table, columns, find)]
    named = _match(rows, find, folder)
    if nameless := [path for path in images if path not in named]:
        raise DataError(
            f"{number_of(len(nameless), 'image')} of {folder} {'is' if len(nameless) == 1 else 'are'} in no line of "
            f"{_called(tables)}, such as {nameless[0].relative_to(folder)}. Add the folder that holds the labelled "
            "images alone, or remove the others."
        )
    order = _class_order({row.label for row in named.values()})
    plain = {_plain(name): number for number, name in enumerate(official)}
    if order.keys() == set(map(str, range(len(official)))):
        return _by_class(named, folder, official, order)
    if len(order) == len(plain) and {_plain(label) for label in order} == plain.keys():
        return _by_class(named, folder, official, {label: plain[_plain(label)] for label in order})
    return _by_class(named, folder, tuple(order), order)


def _by_class(named: Mapping[Path, Row], folder: Path, classes: tuple[str, ...], order: Mapping[str, int]) -> Labelled:
    roles, split = _roles(named, folder)
    parts: dict[Role | None, list[list[Path]]] = defaultdict(lambda: [[] for _ in classes])
    for path in sorted(named):
        parts[roles[path]][order[named[path].label]].append(path)
    if None in parts:
        return Labelled(classes, parts[None], None, "")
    test: Role = "test" if "test" in parts else "val"
    for role in ("train", test):
        if empty := [name for name, files in zip(classes, parts[role], strict=True) if not files]:
            part = "training" if role == "train" else "test"
            raise DataError(
                f"class {empty[0]!r} has no {part} images by {split}. Every class needs some in both parts."
            )
    return Labelled(classes, parts["train"], parts[test], f"'train' and '{test}' by {split}")


def _roles(named: Mapping[Path, Row], folder: Path) -> tuple[dict[Path, Role | None], str]:
    """The part of each image: by the column of the split, else by the folder that it is in; None where none says."""
    if any(row.split for row in named.values()):
        said: dict[Path, Role | None] = {}
        for path, row in named.items():
            role = role_of(row.split)
            if role is None:
                raise DataError(f"{row.where} says the part {row.split!r}; it is train, test or val. {NO_SPLIT}")
            said[path] = role
        roles, split = said, "the table"
    else:
        roles, split = {path: _by_folder(path.relative_to(folder)) for path in named}, "the folders"
    there = set(roles.values())
    if "train" in there and there & {"test", "val"} and None not in there:
        return roles, split
    if split == "the table":
        raise DataError(
            f"the tables put every image into {' or '.join(sorted(map(repr, there)))}; training and test images are "
            f"both needed. {NO_SPLIT}"
        )
    return dict.fromkeys(named), ""


def _by_folder(path: Path) -> Role | None:
    """The part that the outermost of a file's folders says whose name says one."""
    return next((role for name in path.parts[:-1] if (role := role_of(name)) is not None), None)


def _match(rows: Sequence[Row], find: Callable[[str], list[Path]], folder: Path) -> dict[Path, Row]:
    """The row of every image that is named. Raises: DataError as `read_tables`."""
    named: dict[Path, Row] = {}
    missing = []
    for row in rows:
        found = find(row.file)
        if not found:
            missing.append(row)
            continue
        if len(found) > 1:
            both = " and ".join(str(path.relative_to(folder)) for path in found[:2])
            raise DataError(f"{row.where} names {row.file!r}, which could be {both}. Write its folder too.")
        before = named.setdefault(found[0], row)
        if (before.label, before.split) != (row.label, row.split):
            raise DataError(
                f"{row.where} and {before.where} say different things of {row.file!r}: {row.label!r} and "
                f"{before.label!r}. Keep one of the lines."
            )
    if missing:
        first = ", ".join(f"{row.file!r} ({row.where})" for row in missing[:SHOWN])
        raise DataError(
            f"{number_of(len(missing), 'line')} of the labels {'names' if len(missing) == 1 else 'name'} no image of "
            f"{folder}: {first}{', …' if len(missing) > SHOWN else ''}. Add the images, or remove the lines."
        )
    return named


def _finder(images: Iterable[Path], folder: Path) -> Callable[[str], list[Path]]:
    """A function from what a table calls an image to the images that may be meant."""
    known: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        inside = PurePosixPath(path.relative_to(folder).as_posix())
        # "a/b/1.png" is also called "b/1.png", "1.png", and each of them without the suffix.
        for start in range(len(inside.parts)):
            tail = PurePosixPath(*inside.parts[start:])
            for name in {str(tail), str(tail.with_suffix(""))}:
                known[name].append(path)

    above = folder.resolve().parts

    def find(name: str) -> list[Path]:
        parts = PurePosixPath(name.strip().replace("\\", "/").removeprefix("./").lstrip("/")).parts
        for start in range(len(parts)):
            # The table may have been written further up, with the folder's own name in front of every file.
            if parts[:start] == above[len(above) - start :] and (found := known.get("/".join(parts[start:]))):
                exact = [path for path in found if path.relative_to(folder).parts == parts[start:]]
                return exact or found
        return []

    return find


def _rows(table: Path, columns: str, find: Callable[[str], list[Path]]) -> list[Row]:
    lines = _cells(table)
    file, label, split, header = _columns(table, lines, columns, find)
    rows: list[Row] = []
    for number, cells in lines[1:] if header else lines:
        where = f"line {number} of {table.name}"
        if len(cells) <= max(file, label, split if split is not None else 0):
            raise DataError(f"{where} has {len(cells)} columns, fewer than the others. Mend the line.")
        row = Row(cells[file], cells[label], cells[split] if split is not None else "", where)
        if not row.file or not row.label or (split is not None and not row.split):
            raise DataError(f"{where} has an empty cell where a file, a label or a part belongs. Mend the line.")
        if printable(row.label, MOST_LINE) != row.label:
            raise DataError(f"{where} has a label with control characters, {row.label!r}. Rename that class.")
        rows.append(row)
    if not rows:
        raise DataError(f"{table} has no lines with labels.")
    return rows


def _cells(table: Path) -> list[tuple[int, list[str]]]:
    """The lines of a table with their numbers, in cells; the delimiter is the one that the first line has most of."""
    try:
        with open_regular(table) as file:
            text = file.read(MOST_CSV).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table} is no text in UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"{table} cannot be read: {error.strerror}.") from None
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DataError(f"{table} cannot be read as CSV: {error}.") from None
    if not lines:
        raise DataError(f"{table} is empty.")
    if len(lines[0][1]) < 2:
        raise DataError(f"{table} has one column; a table of labels has a file and its label in every line.")
    return lines


def _columns(
    table: Path, lines: Sequence[tuple[int, list[str]]], said: str, find: Callable[[str], list[Path]]
) -> tuple[int, int, int | None, bool]:
    """Which columns are file, label and split, and whether the first line is a header."""
    head = lines[0][1]
    header = not any(find(cell) or PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES for cell in head)
    if said:
        wanted = [part.strip() for part in said.split(",")]
        if len(wanted) not in (2, 3):
            raise ConfigError(f"--columns takes FILE,LABEL or FILE,LABEL,SPLIT, and {said!r} is neither.")
        places = [_place(table, head, name, header=header) for name in wanted]
        return places[0], places[1], places[2] if len(places) == 3 else None, header
    names = [_plain(cell) for cell in head] if header else []
    file = _first(FILE_COLUMNS, names)
    body = lines[1:] if header else lines
    if file is None or not _names_images(body, file, find):
        # By what the cells say: the column whose names are there.
        width = len(head)
        file = next((column for column in range(width) if _names_images(body, column, find)), file)
    if file is None:
        raise DataError(f"no column of {table} names images that are there. It has {_shown(head)}. {COLUMNS_HELP}")
    split = _first(SPLIT_COLUMNS, names)
    label = _first(LABEL_COLUMNS, names)
    others = [column for column in range(len(head)) if column not in (file, split)]
    if label is None and len(others) == 1:
        label = others[0]
    if label is None or label == file:
        raise ConfigError(f"{table} has the columns {_shown(head)}, and none is known as labels. {COLUMNS_HELP}")
    # Without a header, and with an image that is not there in the first line, its label is one of the others.
    header = header and not any(cells[label] == head[label] for _, cells in body if label < len(cells))
    return file, label, split, header


def _place(table: Path, head: Sequence[str], name: str, *, header: bool) -> int:
    if header and _plain(name) in (names := [_plain(cell) for cell in head]):
        return names.index(_plain(name))
    if name.isdecimal() and 1 <= int(name) <= len(head):
        return int(name) - 1
    raise ConfigError(f"{table} has no column {name!r}. {closest(name, list(head))}It has {_shown(head)}.")


def _names_images(body: Sequence[tuple[int, list[str]]], column: int, find: Callable[[str], list[Path]]) -> bool:
    """Whether one of the first cells of a column is the name of an image, so that one lost image misleads nobody."""
    return any(find(cells[column]) for _, cells in body[:100] if column < len(cells) and cells[column])


def _first(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _class_order(labels: Iterable[str]) -> dict[str, int]:
    """The class number of every label: in the order of numbers, or of names."""
    found = list(labels)
    if len(found) < 2:
        raise DataError(f"all images have the label {found[0]!r}, and at least two classes are needed.")
    numbered = all(label.isdecimal() for label in found)
    order = sorted(found, key=int) if numbered else sorted(found)
    return {label: number for number, label in enumerate(order)}


def _called(tables: Sequence[Path]) -> str:
    return " or ".join(table.name for table in tables)


def _shown(head: Sequence[str]) -> str:
    return printable(", ".join(map(repr, head)), 300)
