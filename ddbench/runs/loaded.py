"""A set that was read from a file, as a torch Dataset: for training loops that are not ddbench's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ddbench.data import catalogue
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import PixelSpace, decoded_in, fit_pixels, known_pixels
from ddbench.data.sources import load as load_dataset
from ddbench.data.transform import Transform
from ddbench.decoders import NONE
from ddbench.engine.decode import decode
from ddbench.errors import DataError
from ddbench.runs.preview import preview
from ddbench.synthetic import SyntheticSet

if TYPE_CHECKING:
    from PIL.Image import Image


def pixels_of(
    synthetic: SyntheticSet, about: Mapping[str, Any], data_root: Path, store: Path | None = None
) -> PixelSpace:
    """The pixel space of a set whose file says `about` where it comes from.

    The training images are read only where the catalogue's statistics do not say it. `store` has fitted whitenings.
    Raises: DataError where the file names no dataset, or that dataset is not there or is another copy.
    """
    if "dataset" not in about:
        raise DataError("the set does not say of which dataset it is, so its pixel space is not known. Say dataset=….")
    name = str(about["dataset"])
    info = catalogue.CATALOGUE.get(catalogue.canonical(name))
    known = known_pixels(synthetic.pixels, info) if info is not None else None
    if known is not None:
        return known
    dataset = load_dataset(name, data_root)
    if about.get("data") not in (None, dataset.fingerprint):
        raise DataError(
            f"the set was condensed from other images of {name} than those in {str(data_root)!r} (fingerprints "
            f"{about['data']} and {dataset.fingerprint}), so that its pixel space {synthetic.pixels} cannot be told."
        )
    return fit_pixels(synthetic.pixels, dataset.train, dataset.info, store)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedSet(SyntheticSet, TorchDataset[tuple[Tensor, Tensor]]):
    """A synthetic set that was read from a file: everything that `SyntheticSet` has, and a torch Dataset.

    An item is what a student trains on: an image [C, H, W] in float32 in the set's pixel space, decoded where the set
    stores several in one, and its target, an int64 class, or a float32 row [K]: probabilities where labels are
    probabilities or logits, the numbers as they are where they are for regression. `len` counts items.
    What was learned beside images and labels is in `recipe`: `recipe.lr` the step size, one number or one a step.
    `about` says where the set comes from: dataset, method, ipc, seed, …
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    data_root: Path = Path("data")
    store: Path | None = None

    @classmethod
    def of(cls, synthetic: SyntheticSet, about: Mapping[str, Any], data_root: Path, store: Path | None = None) -> Self:
        """The same set with what its file says of it, and where its dataset and fitted whitenings are."""
        values = {entry.name: getattr(synthetic, entry.name) for entry in fields(SyntheticSet)}
        return cls(**values, about=about, data_root=data_root, store=store)

    def __len__(self) -> int:
        return len(self._decoded[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, targets = self._decoded
        if not -len(images) <= index < len(images):
            raise IndexError(f"the set has {len(images)} images, and none is number {index}")
        return self._seen(images[index]), targets[index]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All items at once: images [M, C, H, W] and targets [M] or [M, K]."""
        images, targets = self._decoded
        return self._seen(images), targets

    def transform(self) -> Transform:
        """What a test image goes through before a network that was trained on this set sees it.

        It takes uint8 tensors, floats from 0 to 1 and PIL images, and gives float32 in the set's pixel space: mean and
        standard deviation, or a whitening.
        Raises: DataError where the dataset is needed for it and is not there.
        """
        channels, height, width = self.images.shape[1:]
        return Transform(self.space, (channels, height, width))

    @cached_property
    def space(self) -> PixelSpace:
        """The pixel space of the set. Raises: DataError where the dataset is needed for it and is not there."""
        return pixels_of(self, self.about, self.data_root, self.store)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, their numbers where nobody knows names."""
        if self.about.get("classes"):
            return tuple(str(name) for name in self.about["classes"])
        info = self._info
        if info is not None and info.class_names:
            return info.class_names
        return tuple(str(k) for k in range(self.labels.shape[1] if self.soft else int(self.labels.max()) + 1))

    def show(self) -> Image:
        """A picture of the set: a row a class, the first ten images of each. Notebooks display it.

        Raises: DataError where the pixel space is not known.
        """
        from PIL import Image

        picture = Image.open(io.BytesIO(preview(self, self.classes, self.space, self._title)))
        picture.load()
        return picture

    def __repr__(self) -> str:
        count, shape = len(self.images), "x".join(map(str, self.images.shape[1:]))
        stored = f", {len(self)} when decoded by {self.decode}" if self.decode != "none" else ""
        wishes = {
            "lr": _rate(self.recipe.lr),
            "steps": self.recipe.steps or (None if self.recipe.schedule is None else len(self.recipe.schedule)),
            "batch": self.recipe.batch,
            "augment": self.recipe.augment,
            "start": "stored" if self.start else None,
        }
        learned = ", ".join(f"{name} {value}" for name, value in wishes.items() if value is not None)
        return "\n".join(
            (
                f"{self._title}: {count} images of {shape}{stored}, {self.nbytes:,} bytes",
                f"pixels {self.pixels or 'not said'}, stored as {self.stored}; {len(self.classes)} classes, "
                f"labels {self.label_kind}",
                f"recipe: {learned or 'the choice of whoever trains'}",
            )
        )

    @property
    def _info(self) -> DatasetInfo | None:
        return catalogue.CATALOGUE.get(catalogue.canonical(str(self.about.get("dataset", ""))))

    @property
    def _title(self) -> str:
        dataset = self._info.title if self._info is not None else self.about.get("dataset", "an unnamed dataset")
        parts = [f"{self.about.get('method', 'a set')} of {dataset}"]
        parts += [f"{name} {self.about[name]}" for name in ("ipc", "seed") if self.about.get(name) is not None]
        return ", ".join(parts)

    @cached_property
    def _decoded(self) -> tuple[Tensor, Tensor]:
        targets = self.labels.softmax(dim=1) if self.label_kind == "logit" else self.labels
        if self.decode == NONE or self.images.dtype != torch.uint8:  # so that no dataset is needed
            return decode(self.decode, self.images, targets)
        return decoded_in(self.space, self.decode, self.images, targets)

    def _seen(self, images: Tensor) -> Tensor:
        return self.space.forward(images) if images.dtype == torch.uint8 else images


def _rate(lr: Tensor | None) -> str | None:
    if lr is None:
        return None
    return f"{float(lr):.4g}" if lr.numel() == 1 else f"{lr.numel()} step sizes"
