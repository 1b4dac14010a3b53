"""What no public format records: the terms on which a foreign set is read. Flags and the file say them, or a guess.

Only what the numbers say beyond doubt is guessed; else the missing flag is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddbench.config import MOST_FLOAT
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import PixelSpace, canonical_name
from ddbench.decoders import NONE, canonical_decoder
from ddbench.errors import ConfigError, DataError
from ddbench.foreign.class_folders import imagefolder_order
from ddbench.foreign.diagnosis import Diagnosis, hard, known_kind
from ddbench.foreign.diagnosis import label_kind as kind_of
from ddbench.foreign.formats import Found
from ddbench.foreign.tiles import decoder_of
from ddbench.synthetic import Recipe, SyntheticSet
from ddbench.text import MOST_LINE, printable

LABELS = ("class", "probability", "logit", "regression", "hard", "sorted", "from-1", "imagefolder")
SCALES = ("unit", "raw")


@dataclass(frozen=True)
class Said:
    """What a person says of a set; None leaves it to the file, and to its numbers.

    `pixels` is a pixel space, or "unit" or "raw" for images from 0 to 1 or to 255 that are still to be normalised.
    `labels` is a kind of labels, or "hard" for the arg-max of rows, "sorted" for none and equally many images a class,
    "from-1" for classes counted from 1, "imagefolder" for classes in the order of sorted WordNet ids or class names.
    `decode` is a decoder, such as "tiles:2" for 2 x 2 smaller images in each. `size` is the width in pixels that images
    were resized to when they were read.
    """

    pixels: str | None = None
    labels: str | None = None
    lr: float | None = None
    augment: str | None = None
    decode: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.decode is not None:
            canonical_decoder(self.decode)
        if self.pixels is not None and self.pixels not in SCALES:
            canonical_name(self.pixels)
        if self.labels is not None and self.labels not in LABELS:
            raise ConfigError(f"there are no {self.labels!r} labels; choose one of {', '.join(LABELS)}.")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"a step size is above 0, and --lr is {self.lr}.")
        if self.lr is not None and self.lr > MOST_FLOAT:
            raise ConfigError(f"--lr is {self.lr:g}, larger than any number of single precision.")
        if self.augment is not None and printable(self.augment, MOST_LINE) != self.augment:
            raise ConfigError("--augment is one line of text without control characters.")


@dataclass(frozen=True)
class Terms:
    """The terms as they stand. `sources` says of each whether it came from a flag, the file, or was guessed."""

    pixels: str
    scale: str  # "none", or what the numbers were before they were normalised
    labels: str
    lr: float | tuple[float, ...] | None
    augment: str | None
    sources: Mapping[str, str]
    decode: str = NONE
    size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The terms as specs and records keep them."""
        # Only where it is said beside a set of ddbench, so that runs keep their ids.
        decode = {"decode": self.decode} if "decode" in self.sources else {}
        size = {"size": self.size} if self.size is not None else {}
        values = (
            decode | size | {"pixels": self.pixels, "scale": self.scale, "labels": self.labels, "augment": self.augment}
        )
        lr = list(self.lr) if isinstance(self.lr, tuple) else self.lr
        return {**values, "lr": lr}


def settle(found: Found, said: Said, diagnosis: Diagnosis) -> Terms:
    """The terms of a set. Raises: ConfigError where a flag is missing, or says what the file denies."""
    sources = {}
    own = found.ours
    if own is not None and said.pixels not in (None, own.pixels) and canonical_name(str(said.pixels)) != own.pixels:
        raise ConfigError(
            f"the file itself says that its pixel space is {own.pixels}, and --pixels says {said.pixels}."
        )
    if own is not None:
        pixels, scale, sources["pixels"] = own.pixels, "none", "file"
    elif found.images.dtype == torch.uint8:
        pixels, scale = (said.pixels if said.pixels not in (None, *SCALES) else "standard"), "none"
        sources["pixels"] = "guessed" if said.pixels is None else "flag"
    elif said.pixels is not None:
        scale = said.pixels if said.pixels in SCALES else "none"
        pixels, sources["pixels"] = ("standard" if scale != "none" else said.pixels), "flag"
    elif diagnosis.pixels in ("standard", *SCALES) and diagnosis.clear and not found.whitened:
        scale = diagnosis.pixels if diagnosis.pixels in SCALES else "none"
        pixels, sources["pixels"] = (diagnosis.normalised if scale == "none" else "standard"), "guessed"
    else:
        wishes = [f.flag for f in diagnosis.findings if f.flag.startswith("--pixels")] or ["--pixels standard"]
        raise ConfigError(
            "the file does not say in which pixel space its images are, and the numbers leave a doubt: they look most "
            f"like {diagnosis.pixels}. In a wrong one accuracy would be near chance. Say which, as in {wishes[0]}."
        )
    labels, sources["labels"] = _labels(found, said)
    lr: float | tuple[float, ...] | None
    if said.lr is not None:
        lr, sources["lr"] = said.lr, "flag"
    elif found.lr is not None:
        lr, sources["lr"] = (float(found.lr) if found.lr.numel() == 1 else tuple(found.lr.tolist())), "file"
    else:
        lr = None
    if said.augment is not None:
        sources["augment"] = "flag"
    augment = said.augment or (own.recipe.augment if own is not None else None)
    decode, how = decoder_of(found, said.decode)
    sources |= {"decode": how} if how else {}
    if said.size is not None:
        sources["size"] = "flag"
    return Terms(canonical_name(str(pixels)), scale, labels, lr, augment, sources, decode, said.size)


def complete(
    found: Found, terms: Terms, space: PixelSpace, classes: int, info: DatasetInfo | None = None
) -> SyntheticSet:
    """The set, in its pixel space, with all that students need; `info` knows the order of `--labels imagefolder`.

    Raises: DataError where its parts do not fit.
    """
    recipe = found.ours.recipe if found.ours is not None else Recipe(schedule=found.schedule)
    lr = None if terms.lr is None else torch.tensor(terms.lr, dtype=torch.float32)
    recipe = replace(recipe, lr=lr, augment=terms.augment)
    if found.ours is not None:
        ours = replace(found.ours, recipe=recipe, decode=terms.decode)
        if terms.labels == ours.label_kind:
            return ours
        return replace(ours, labels=ours.hard_labels, label_kind="class")
    images = found.images
    if terms.scale != "none":
        images = space.forward(images / 255 if terms.scale == "raw" else images)
    if terms.labels == "imagefolder" and info is not None:
        labels = in_imagefolder_order(found, info).labels
        assert labels is not None
        kind = kind_of(labels) if labels.ndim == 2 else "class"
    else:
        labels = _numbered(found, terms.labels, classes)
        kind = terms.labels if labels.ndim == 2 else "class"
    return SyntheticSet(images, labels, recipe, terms.pixels, kind, terms.decode)  # type: ignore[arg-type]


def in_imagefolder_order(found: Found, info: DatasetInfo) -> Found:
    """The set with its classes in the dataset's order, where its file has them as ImageFolder numbers them.

    Raises: DataError where it has no labels, or more classes than the dataset.
    """
    if found.labels is None:
        raise DataError("--labels imagefolder needs labels, and the file has none.")
    order = torch.tensor(imagefolder_order(info))
    if found.labels.ndim == 2:
        if found.labels.shape[1] != len(order):
            raise DataError(
                f"label rows have {found.labels.shape[1]} numbers and {info.name} has {len(order)} classes."
            )
        return replace(found, labels=found.labels[:, order.argsort()])
    if int(found.labels.min()) < 0 or int(found.labels.max()) >= len(order):
        raise DataError(f"there is a class {int(found.labels.max())} and {info.name} has 0 to {len(order) - 1}.")
    return replace(found, labels=order[found.labels])


def _labels(found: Found, said: Said) -> tuple[str, str]:
    known = known_kind(found)
    if said.labels is None:
        if known == "none":
            beside = f" ({'; '.join(found.notes)})" if found.notes else ""
            raise ConfigError(
                f"the file has no labels{beside}. If it has equally many images of each class, class by class, say "
                "--labels sorted."
            )
        return known, "file" if found.ours is not None else "guessed"
    rows = known not in ("class", "none") or (found.labels is not None and found.labels.ndim == 2)
    if said.labels in ("probability", "logit", "regression") and not rows:
        raise ConfigError(f"--labels {said.labels} needs one row of numbers an image, and the file has classes.")
    if found.ours is not None and said.labels not in (known, "hard"):
        raise ConfigError(f"the file itself says that its labels are {known}, and --labels says {said.labels}.")
    return said.labels, "flag"


def _numbered(found: Found, kind: str, classes: int) -> Tensor:
    if kind == "sorted":
        each, left = divmod(len(found.images), classes)
        if left or not each:
            raise DataError(
                f"{len(found.images)} images cannot be equally many of each of {classes} classes, so that --labels "
                "sorted says nothing. Give the labels in a file."
            )
        return torch.arange(classes).repeat_interleave(each)
    if found.labels is None:
        raise DataError(f"--labels {kind} needs labels, and the file has none.")
    if kind == "from-1":
        return hard(found.labels) - 1
    return hard(found.labels) if kind in ("class", "hard") else found.labels
