"""Folders of `images_TAG.pt` with `labels_TAG.pt`, as MTT and its successors write them: which files make one set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddbench.errors import DataError
from ddbench.text import some_of

PAIR_FILE = re.compile(
    r"(?P<before>(?:[^.]*[_-])?)(?P<what>images?|labels?)(?P<after>(?:[_-]|\d|(?<=s)).*)?\.(?P<end>pth?)"
)
SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)?[_-]?(?P<number>\d+)[_-]of[_-](?P<count>\d+)")
NAMED_SHARD = re.compile(r"(?P<stem>.*?)[_-]?(?:shard|part)[_-]?(?P<number>\d+)")
UNWHITENED = re.compile(r"zca(?:[_-]|$)")  # after `images_`: the same pictures, brought back for people to look at
RATES = ("lr", "syn_lr", "lr_syn")
SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """A file of images by its name. `tag` is what tells it from others in its folder."""

    path: Path
    tag: str
    unwhitened: bool

    @classmethod
    def of(cls, path: Path) -> Pair | None:
        """The pair that a file of images belongs to; None for other files."""
        match = PAIR_FILE.fullmatch(path.name)
        if match is None or not match["what"].startswith("image"):
            return None
        before, after = match["before"].rstrip("_-"), (match["after"] or "").lstrip("_-")
        return cls(path, "_".join(part for part in (before, after) if part), bool(UNWHITENED.match(after)))

    @property
    def plain_tag(self) -> str:
        """The tag of the whitened pictures that these have been brought back from."""
        return re.sub(r"(^|[_-])zca(?:[_-]|$)", r"\1", self.tag).strip("_-") if self.unwhitened else self.tag

    @property
    def labels(self) -> Path | None:
        """The file of its labels; None where there is none."""
        return next((path for path in self._beside(("labels", "label")) if path.is_file()), None)

    @property
    def labels_name(self) -> str:
        """What the file of its labels is called, also where it is missing."""
        return next(self._beside(("labels",))).name

    @property
    def rate(self) -> Path | None:
        """The file of the step size that was learned with it; None where there is none."""
        folder = self.path.parent
        alone = (folder / f"{stem}{end}" for stem in RATES for end in (".pt", ".pth"))
        return next((path for path in (*self._beside(RATES), *alone) if path.is_file()), None)

    def _beside(self, words: Iterable[str]) -> Iterator[Path]:
        """Files that are called as this one, with another word for images; of un-whitened pictures, those of both."""
        match = PAIR_FILE.fullmatch(self.path.name)
        assert match is not None
        tags = [(match["after"] or "")]
        if self.unwhitened:
            rest = UNWHITENED.sub("", (match["after"] or "").lstrip("_-"), count=1)
            tags.append(f"_{rest}" if rest else "")
        words, ends = list(words), [match["end"], "pth" if match["end"] == "pt" else "pt"]
        for before in dict.fromkeys((match["before"], "")):
            names = (f"{before}{word}{tag}.{end}" for tag in tags for word in words for end in ends)
            yield from map(self.path.with_name, names)


@dataclass(frozen=True)
class Group:
    """The files of images that make one set, in their order. `notes` are sentences about files beside them."""

    name: str
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()
    whitened: bool = False

    @property
    def rate(self) -> Path | None:
        """The file of the step size that was learned with it; None where there is none."""
        folder = self.pairs[0].path.parent
        of_all = (folder / f"{stem}_{self.name}{end}" for stem in RATES for end in (".pt", ".pth"))
        return next((path for path in of_all if path.is_file()), self.pairs[0].rate)


def is_best(name: str) -> bool:
    """Whether a state is the one whose accuracy on test images was the highest on the way, as the family calls it."""
    return name.rpartition("_")[2] == "best"


def groups(folder: Path, only: Path | None = None) -> list[Group]:
    """The sets in a folder, shards of one together; `only` that of one file. None where there are no such files.

    Raises: DataError where a shard is missing.
    """
    found = [pair for entry in sorted(folder.iterdir()) if entry.is_file() and (pair := Pair.of(entry)) is not None]
    plain = {pair.tag for pair in found if not pair.unwhitened}
    copies = {pair.plain_tag: pair for pair in found if pair.unwhitened and pair.plain_tag in plain}
    chosen = [pair for pair in found if pair.path == only or pair not in copies.values()]
    tags = {pair.tag: pair for pair in chosen}
    names = _shards(folder, tags, _labelled(folder))
    made = [_group(name, tuple(pairs), copies) for name, pairs in names.items()]
    return made if only is None else [group for group in made if any(pair.path == only for pair in group.pairs)]


def _group(name: str, pairs: tuple[Pair, ...], copies: Mapping[str, Pair]) -> Group:
    if pairs[0].unwhitened:
        text = "has pictures that were brought back from a whitening, to be looked at; students see the whitened ones"
        return Group(name, pairs, (f"{pairs[0].path.name} {text}",))
    if not copies:
        return Group(name, pairs)
    # Not every step is written twice, and all steps of a run are whitened or none.
    copy = next((copies[pair.tag] for pair in pairs if pair.tag in copies), next(iter(copies.values())))
    note = f"{copy.path.name} has pictures without whitening and is left out: those that are read are whitened"
    return Group(name, pairs, (note,), whitened=True)


def _labelled(folder: Path) -> set[str]:
    """Tags of the files of labels in a folder."""
    matches = (PAIR_FILE.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_file())
    return {(match["after"] or "").lstrip("_-") for match in matches if match and match["what"].startswith("label")}


def _shards(folder: Path, tags: Mapping[str, Pair], labelled: set[str]) -> dict[str, list[Pair]]:
    """Which files make one set: those called i-of-n or shard i, and those numbered 0, 1, 2, …

    Other numbers are steps of condensation: each is a set of its own.
    """
    shards: dict[str, dict[int, Pair]] = {}
    wanted: dict[str, range] = {}
    alone = {}
    for tag, pair in tags.items():
        match = SHARD.fullmatch(tag) or NAMED_SHARD.fullmatch(tag)
        if match is None:
            alone[tag] = pair
            continue
        name = match["stem"] or "whole"
        parts = shards.setdefault(name, {})
        parts[int(match["number"])] = pair
        first = 0 if 0 in parts else 1
        last = first + int(match["count"]) - 1 if "count" in match.groupdict() else max(parts)
        wanted[name] = range(first, last + 1)
    numbers = {int(tag) for tag in alone if tag.isdigit()}
    known = numbers | {int(tag) for tag in labelled if tag.isdigit()}
    # Steps are hundreds apart; of shards, few are missing.
    if len(numbers) > 1 and min(known) == 0 and max(known) < 2 * len(numbers):
        name = "numbered" if "whole" in shards else "whole"
        shards[name] = {int(tag): alone.pop(tag) for tag in list(alone) if tag.isdigit()}
        wanted[name] = range(max(known) + 1)
    for name, parts in shards.items():
        _require_all(folder, name, set(parts), wanted[name])
    ordered = sorted(alone, key=lambda tag: (is_best(tag), not tag.isdigit(), int(tag) if tag.isdigit() else 0, tag))
    joined = {name: [parts[number] for number in sorted(parts)] for name, parts in sorted(shards.items())}
    return joined | {tag or "only": [alone[tag]] for tag in ordered}


def _require_all(folder: Path, name: str, there: set[int], wanted: range) -> None:
    missing = sorted(set(wanted) - there)
    if not missing:
        return
    some = some_of(missing, SHOWN)
    which = f"shard {some} is missing" if len(missing) == 1 else f"shards {some} are missing"
    raise DataError(
        f"{folder} has {len(there)} shards of the images of {name!r}, and {which}. A part of a set is another set; "
        "fetch the rest."
    )
