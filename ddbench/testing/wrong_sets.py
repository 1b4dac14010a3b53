"""Sets with a known fault, made from a dataset: what the diagnosis of foreign sets is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.sources import Dataset
from ddbench.foreign.readers import Found
from ddbench.rng import Rng

FAULTS = ("zca", "raw", "unit", "shuffled", "classes", "not-finite")
LOOKS = ("real", "mean", "contrast", "noise")


@dataclass(frozen=True, eq=False)
class Case:
    """A set, its fault ("" for none), what is said about its pixels, and the seed it was made from."""

    found: Found
    fault: str
    said: str | None
    look: str
    seed: int


def cases(dataset: Dataset, seeds: Sequence[int], ipcs: Sequence[int], store: Path) -> Iterator[Case]:
    """For each seed one set of each fault and as many without a fault; whitenings are kept in `store`."""
    spaces = {name: fit_pixels(name, dataset.train, dataset.info, store) for name in ("standard", "zca", "kip-zca")}
    for seed in seeds:
        for number, fault in enumerate(FAULTS):
            rng = Rng(seed, ("wrong set", fault))
            generator = rng.numpy()
            look = LOOKS[int(generator.integers(len(LOOKS)))]
            ipc = int(generator.choice(list(ipcs)))
            whitened = ("zca", "kip-zca")[seed // 2 % 2]
            space = spaces[whitened if fault == "zca" else "standard"]
            yield Case(_spoilt(_learned(dataset, space, ipc, look, rng), fault, space, rng), fault, None, look, seed)
            # Without a fault: mostly normalised sets of which nothing is said, and some whitened ones that say so.
            says_zca = number == 0
            space = spaces[whitened if says_zca else "standard"]
            clean = _learned(dataset, space, ipc, look, rng.fold("clean"))
            yield Case(clean, "", space.name if says_zca else None, look, seed)


def _learned(dataset: Dataset, space: PixelSpace, ipc: int, look: str, rng: Rng) -> Found:
    """A set that looks like one method's: real images, class means, raised contrast, or patterns in noise."""
    train, classes = dataset.train, len(dataset.train.classes)
    draws = rng.fold("rows").numpy()

    def real(count: int) -> Tensor:
        rows = [
            start + draws.choice(size, count, replace=size < count)
            for start, size in zip(train.offsets.tolist(), train.counts.tolist(), strict=True)
        ]
        chosen = torch.stack([torch.from_numpy(row) for row in rows])
        return space.forward(train.images[chosen])  # [K, count, C, H, W]

    generator = rng.fold("noise").torch()
    images = real(ipc)
    white = torch.randn(images.shape, generator=generator)
    spread = images.std()
    match look:
        case "mean":
            images = real(ipc * 8).unflatten(1, (ipc, 8)).mean(2) + 0.5 * (images - images.mean())
        case "contrast":
            images = (1.2 + draws.random()) * images + 0.3 * spread * white
        case "noise":
            centre = real(40).mean(1, keepdim=True)
            images = 0.8 * spread * white + 1.5 * centre
    labels = torch.arange(classes).repeat_interleave(ipc)
    return Found(images.flatten(0, 1).float(), labels, None, "made", "0", ())


def _spoilt(found: Found, fault: str, space: PixelSpace, rng: Rng) -> Found:
    draws = rng.fold("fault").numpy()
    images, labels = found.images, found.labels
    assert labels is not None
    classes = int(labels.max()) + 1
    match fault:
        case "unit" | "raw":
            back = space.back(images)
            assert back is not None
            # Half of the published sets are clipped to what a screen can show.
            shown = back.clamp(0, 1) if draws.random() < 0.5 else back
            return replace(found, images=shown if fault == "unit" else (255 * shown).round())
        case "shuffled":
            if draws.random() < 0.5:
                return replace(found, labels=labels[torch.from_numpy(draws.permutation(len(labels)))])
            order = torch.arange(classes).roll(int(draws.integers(1, classes)))
            return replace(found, labels=order[labels])
        case "classes":
            match int(draws.integers(3)):
                case 0:
                    kept = labels != int(draws.integers(classes - 1))
                    return replace(found, images=images[kept], labels=labels[kept])
                case 1:
                    return replace(found, labels=labels + 1)
                case _:
                    return replace(found, labels=torch.where(labels == classes - 1, classes + 2, labels))
        case "not-finite":
            broken = images.clone()
            rows = torch.from_numpy(draws.choice(len(images), 1 + len(images) // 10, replace=False))
            broken[rows, 0, 0, 0] = (torch.nan, torch.inf)[int(draws.integers(2))]
            return replace(found, images=broken)
        case _:
            return found
