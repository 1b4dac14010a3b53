"""Which class a folder of images is: by the dataset's own names, by WordNet ids, or by numbers. Never by position.

By position, a class that is missing would shift all after it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddbench.data.catalogue import DatasetInfo
from ddbench.errors import DataError, closest
from ddbench.text import some_of

# 00000 (RDED), new000 (SRe2L, CDA, G-VBSM, EDC), 0 (D4M, and what ddbench exports), class_3.
NUMBERED = re.compile(r"(?:new|class|cls|label|c)?[ _-]?(\d{1,6})", re.IGNORECASE)
WORDNET_ID = re.compile(r"n\d{8}")
BEFORE_NAME = re.compile(r"\d+[ ._-]+(?=\D)")
SHOWN = 3  # names in a sentence
# Class numbers among the 1000 of ILSVRC 2012, the ranks of the WordNet ids, in the class order of the subsets.
ILSVRC = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}


@dataclass(frozen=True)
class Numbering:
    """The class of every folder that belongs to the dataset, and sentences about how it was found.

    `doubt` is said where numbers may be meant in another order, `gaps` where folders have names, of some classes only.
    """

    classes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    doubt: str = ""
    gaps: bool = False


def number(folders: Sequence[str], info: DatasetInfo | None, shown: str, *, ours: bool = False) -> Numbering:
    """The classes of folders, by what they are called. `ours` says that ddbench has written them, by number.

    Raises: DataError where a folder is no class of the dataset, or two are the same.
    """
    numbers = {name: int(match[1]) for name in folders if (match := NUMBERED.fullmatch(name))}
    all_numbers = len(numbers) == len(folders)
    if info is None or not info.class_names or ours:
        return Numbering(numbers) if all_numbers else _by_position(folders, info)
    known = _names(info)
    named = {name: known[key] for name in folders if (key := _key(name, known)) is not None}
    if len(named) == len(folders):
        classes = _once(named, info, shown)
        return Numbering(classes, gaps=len(classes) < info.classes)
    if all_numbers:
        values = {int(name): label for label, name in enumerate(info.class_names) if name.isdecimal()}
        if len(values) == info.classes and values.keys() >= set(numbers.values()):
            return Numbering(_once({name: values[value] for name, value in numbers.items()}, info, shown))
        return _by_number(numbers, info, shown)
    # A set of all of ImageNet has the classes of its subsets.
    foreign = [name for name in folders if name not in named]
    if named and info.wnids and all(WORDNET_ID.fullmatch(name) for name in foreign):
        classes = _once(named, info, shown)
        return Numbering(classes, (_left_out(foreign, info),), gaps=len(classes) < info.classes)
    raise DataError(_no_class(foreign, named, info, shown))


def imagefolder_order(info: DatasetInfo) -> list[int]:
    """The class of each number that torchvision's ImageFolder gives, which sorts the names of folders.

    Folders of ImageNet's classes are called by WordNet ids.
    """
    names = info.wnids or info.class_names
    return sorted(range(len(names)), key=lambda label: names[label])


def first_of(info: DatasetInfo, order: Sequence[int] | None = None) -> str:
    """The first classes of a dataset, in its own or another order, as "0 tench, 1 English springer, …"."""
    chosen = list(order if order is not None else range(len(info.class_names)))[:SHOWN]
    return ", ".join(f"{number} {info.class_names[label]}" for number, label in enumerate(chosen)) + ", …"


def _by_position(folders: Sequence[str], info: DatasetInfo | None) -> Numbering:
    ordered = sorted(folders)
    why = (
        "no dataset is said, so class folders are numbered in the order of their names; with --dataset they are matched"
        if info is None
        else f"class folders are numbered in the order of their names: those of {info.name} are known where its data is"
    )
    return Numbering({name: label for label, name in enumerate(ordered)}, (why,))


def _by_number(numbers: Mapping[str, int], info: DatasetInfo, shown: str) -> Numbering:
    places = {index: label for label, index in enumerate(ILSVRC.get(info.name, ()))}
    of_imagenet = {name: places[index] for name, index in numbers.items() if index in places}
    whole = len(numbers) > info.classes and len(of_imagenet) == len(places)
    if places and max(numbers.values()) >= info.classes and (whole or len(of_imagenet) == len(numbers)):
        left = [name for name in numbers if name not in of_imagenet]
        notes = [f"class numbers are read as those of ImageNet's 1000 classes, in which {_index_of(info)}"]
        notes += [_left_out(left, info)] if left else []
        return Numbering(_once(of_imagenet, info, shown), tuple(notes))
    classes, order = _once(numbers, info, shown), imagefolder_order(info)
    if not info.wnids:
        return Numbering(classes)
    if order == list(range(len(order))):
        note = f"class numbers are those of ddbench, {first_of(info)}, which is also the order of sorted WordNet ids"
        return Numbering(classes, (note,))
    doubt = (
        f"class numbers are read in the order of ddbench and MTT, {first_of(info)}; ImageFolder, which RDED and SRe2L "
        f"use, numbers sorted WordNet ids, {first_of(info, order)}: another order. If that is meant"
    )
    return Numbering(classes, doubt=doubt)


def _index_of(info: DatasetInfo) -> str:
    return f"{info.class_names[0]} is {ILSVRC[info.name][0]}"


def _names(info: DatasetInfo) -> dict[str, int]:
    """What classes may be called, as they are and in a plain form; a form that two classes share is none."""
    forms: dict[str, set[int]] = {}
    for label, name in enumerate(info.class_names):
        for form in {_plain(part) for part in (name, *re.split(r"[/,]", name))}:
            forms.setdefault(form, set()).add(label)
    plain = {form: labels.pop() for form, labels in forms.items() if len(labels) == 1}
    exact = {name: label for names in (info.class_names, info.wnids) for label, name in enumerate(names)}
    return plain | exact


def _key(name: str, known: Mapping[str, int]) -> str | None:
    """Which of the known names a folder has: alone, after a number, or beside a WordNet id."""
    wnid = WORDNET_ID.search(name)
    without = BEFORE_NAME.sub("", name, count=1)
    forms = (name, _plain(name), wnid[0] if wnid else "", without, _plain(without))
    return next((form for form in forms if form in known), None)


def _plain(name: str) -> str:
    """Letters and digits alone; systems write accents in more than one way."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name).casefold()) or name


def _once(classes: Mapping[str, int], info: DatasetInfo, shown: str) -> Mapping[str, int]:
    seen: dict[int, str] = {}
    for name, label in classes.items():
        if label in seen:
            called = info.class_names[label] if label < len(info.class_names) else str(label)
            raise DataError(
                f"{shown} has two folders of the class {called}, {seen[label]!r} and {name!r}. Put them together."
            )
        seen[label] = name
    return classes


def _left_out(names: Sequence[str], info: DatasetInfo) -> str:
    return f"{len(names)} folders are other classes of ImageNet than those of {info.name}, and are left out"


def _no_class(foreign: Sequence[str], named: Mapping[str, int], info: DatasetInfo, shown: str) -> str:
    some = some_of([repr(name) for name in foreign], SHOWN)
    is_no = "is no class" if len(foreign) == 1 else "are no classes"
    near = closest(foreign[0], info.class_names)
    return (
        f"{shown} has {len(named)} of the {info.classes} classes of {info.name}, and {some} {is_no} of it. {near}"
        f"Its classes are {first_of(info)}; folders are called by these names, by numbers from 0"
        f"{', or by WordNet ids' if info.wnids else ''}. Rename them, or give the folder that has them."
    )
