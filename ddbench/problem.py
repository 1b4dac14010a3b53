"""The problem that a method is given: real training data, a budget, a backbone, a pixel space, a device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddbench.artifacts import ArtifactCache, made, seconds_in
from ddbench.backbones import names as backbones
from ddbench.backbones.backbone import Backbone
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.tensors import DatasetTensors, RealImages
from ddbench.engine.precision import Precision
from ddbench.errors import DataError
from ddbench.files import locked, write_json
from ddbench.rng import Rng


def fitted(
    name: str,
    train: DatasetTensors,
    info: DatasetInfo,
    artifacts: ArtifactCache,
    device: torch.device,
    heldout: float | None = None,
) -> PixelSpace:
    """A pixel space of these images. A whitening is fitted once, kept beside the artefacts, and charged as one."""
    store = artifacts.root / "pixels"
    if name.startswith("standard"):
        return fit_pixels(name, train, info, store)
    key = hashlib.blake2b(f"{name} {train.fingerprint}".encode(), digest_size=8).hexdigest()
    mark = store / f"{key}.json"
    made(store)
    # Two runs that start together would otherwise both fit, and neither would know what one fit costs.
    with locked(store / f".{key}.lock"):
        cached = mark.is_file()
        started = time.perf_counter()
        space = fit_pixels(name, train, info, store, heldout=heldout, device=device)
        if not cached:
            write_json(mark, {"pixels": space.name, "seconds": time.perf_counter() - started}, sealed=True)
    artifacts.used[key] = {
        "kind": "pixel-space",
        "key": key,
        "identity": {"dataset": train.fingerprint, "pixels": space.name},
        "seconds": seconds_in(mark),
        "from_cache": cached,
    }
    return space


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Everything fixed while condensing. It holds no test data, so no method can look at any.

    `train` are raw pixels on the host; `real` the same images on the device, in the pixel space. Where a run holds
    images out, they are not among them; `whole` is the problem with all training images.
    """

    info: DatasetInfo
    train: DatasetTensors
    pixels: PixelSpace
    backbone: Backbone
    ipc: int
    rng: Rng
    device: torch.device
    artifacts: ArtifactCache
    precision: Precision = field(default_factory=Precision)
    _whole: Problem | None = field(default=None, repr=False)
    _splits: dict[float, tuple[Problem, RealImages]] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def real(self) -> RealImages:
        """The training images on the device. Made on first use: judging a set does not need them."""
        return RealImages(self.train, self.pixels, self.device)

    @functools.cached_property
    def fast_backbone(self) -> Backbone:
        """`backbone` in its fastest form on the device, for gradients of first order; inner taps may be missing."""
        return self.backbone.first_order(self.device)

    @property
    def whole(self) -> Problem:
        """The problem with the images that are held out, for what must come from all of them; else this one."""
        return self if self._whole is None else self._whole

    def source_rows(self, rows: Tensor) -> Tensor:
        """Rows of `train` as rows of `whole.train`, which a set's `source_indices` name. Shapes: int64 [...], both."""
        return rows if self._whole is None or self.train.rows is None else self.train.rows[rows]

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.train.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.shape

    @property
    def pixel_count(self) -> int:
        """H * W, the positions of one image."""
        return self.shape[1] * self.shape[2]

    @property
    def identity(self) -> dict[str, Any]:
        """What an artefact made from this problem depends on: data, pixel space, backbone."""
        return {
            "dataset": self.train.fingerprint,
            "pixels": f"{self.pixels.name} {self.pixels.fingerprint}",
            "backbone": self.backbone.name,
            "precision": self.precision.name,
        }

    @property
    def whitened_apart(self) -> bool:
        """Whether somebody held images out of this problem and the rest has a whitening of its own."""
        return any(rest.pixels.name != self.pixels.name for rest, _ in self._splits.values())

    def class_labels(self) -> Tensor:
        """int64 [K * ipc] on the host: every class ipc times, class by class."""
        return torch.arange(self.classes).repeat_interleave(self.ipc)

    def by_class(self, images: Tensor) -> Tensor:
        """[K * ipc, C, H, W] -> [K, ipc, C, H, W]."""
        return images.unflatten(0, (self.classes, self.ipc))

    def class_runs(self, most: int) -> list[slice]:
        """All classes, in runs of at most `most`, for work that is cut to fit a memory."""
        return [slice(first, min(first + most, self.classes)) for first in range(0, self.classes, most)]

    def with_backbone(self, name: str) -> Problem:
        """The same problem with the network of that name. Raises: as `backbones.build`."""
        return dataclasses.replace(self, backbone=backbones.build(name, self.shape, self.classes))

    def heldout(self, fraction: float) -> tuple[Problem, RealImages]:
        """The same problem without a part of the training set, and that part, for whoever must choose.

        Stratified, and the same for every run on this data. A whitening is fitted again without the part, so the
        returned problem has another identity: its artefacts are other artefacts.
        """
        if not 0 < fraction < 1:
            raise DataError(f"the held-out fraction is {fraction}; it must lie between 0 and 1.")
        if fraction not in self._splits:
            rest, part = self.train.split(fraction)
            if self._whole is not None and rest.rows is not None:
                rest = dataclasses.replace(rest, rows=self.source_rows(rest.rows))
            pixels = self.pixels
            if not pixels.cheap:
                name = self.pixels.base
                pixels = fitted(name, rest, self.info, self.artifacts, self.device, heldout=fraction).to(self.device)
            problem = dataclasses.replace(self, train=rest, pixels=pixels, _whole=self.whole)
            self._splits[fraction] = (problem, RealImages(part, pixels, self.device))
        return self._splits[fraction]
