"""Starting images: random real ones, also several in one, noise, or those of a saved set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor

from ddbench.config import MethodConfig
from ddbench.data.pixels import canonical_name
from ddbench.decoders import NONE
from ddbench.engine.decode import assembled, check_factor
from ddbench.errors import ConfigError, DataError
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet

# How records name a set that a condensation started from: by its name, and the digest of its file.
SAVED = re.compile(r"[^/\\]+@(?:[0-9a-f]{12}|unknown)")
NO_LIMIT = "Or start from noise, which needs no real images, where the method has that: --set initial=noise."


def check_budget(problem: Problem, instead: str = "", *, count: int | None = None) -> None:
    """Raises: DataError when a class has fewer images to choose from than `count`, a multiple of ipc and by default ipc
    itself; `instead` is what else can be done."""
    smallest, wanted = int(problem.train.counts.min()), count or problem.ipc
    if smallest < wanted:
        each, name = wanted // problem.ipc, problem.train.classes[int(problem.train.counts.argmin())]
        most = f"Choose an ipc of at most {smallest // each}" if smallest >= each else "Choose a smaller factor"
        raise DataError(
            f"ipc is {problem.ipc}{f' with {each} real images in each' if each > 1 else ''}, and class {name!r} of "
            f"{problem.info.name} has {smallest} training images. {most}.{' ' if instead else ''}{instead}"
        )


def real_indices(problem: Problem, rng: Rng) -> Tensor:
    """int64 [K, ipc] on the host: random rows of the training set, none twice.

    Raises: DataError when a class has fewer than ipc images.
    """
    check_budget(problem)
    return problem.real.class_indices(problem.ipc, rng)


def real_images(problem: Problem, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] random real images in the pixel space, class by class."""
    return problem.real.take(real_indices(problem, rng)).flatten(0, 1)


def mosaics(images: Tensor, factor: int) -> Tensor:
    """[N * F * F, C, H, W] -> [N, C, H, W] of the same type: F x F smaller images in one, row by row, of whose pixels
    every F-th is left.

    Source: the starting images of Kim et al., ICML 2022 (arXiv 2205.14959), as their released code has them.
    """
    height, width = images.shape[2:]
    size = (-(-height // factor), -(-width // factor))
    return assembled(F.interpolate(images, size=size, mode="nearest"), factor)[..., :height, :width].contiguous()


def real_mosaics(problem: Problem, factor: int, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] mosaics of random real images as stored, uint8 on the host, class by class.

    `problem.pixels.forward` takes them into the pixel space. Classes with fewer images than parts show some again, the
    smallest class deciding how many there are of each. Raises: DataError where parts of images would have no pixel.
    """
    check_factor(factor, *problem.shape[1:])
    wanted = problem.ipc * factor**2
    rows = problem.real.class_indices(wanted, rng)
    rows = rows[:, torch.arange(wanted) % rows.shape[1]]
    return mosaics(problem.train.images[rows.flatten()], factor)


def noise_images(problem: Problem, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] standard normal, drawn on the host so that it is the same on every device."""
    shape = (problem.classes * problem.ipc, *problem.shape)
    return torch.randn(shape, generator=rng.torch()).to(problem.device)


INITIALS = {"real": real_images, "noise": noise_images}


def _known(value: str) -> str:
    if value not in INITIALS and not SAVED.fullmatch(value):
        raise ValueError("it is real, noise, or a saved set: the folder of a run, or a file")
    return value


Initial = Annotated[str, AfterValidator(_known)]
"""What images start from: real, noise, or a saved set, which a run names by NAME@DIGEST."""


@dataclass(frozen=True, eq=False)
class StartingSet:
    """A saved set whose images a condensation starts from. `name` is NAME@DIGEST, `about` says where it comes from."""

    name: str
    synthetic: SyntheticSet
    about: Mapping[str, Any]

    def check(
        self, *, dataset: str, data: str = "", shape: tuple[int, ...], classes: int, ipc: int, pixels: str
    ) -> None:
        """Raises: ConfigError saying in what the set differs from what it should be the start of.

        `data` is the fingerprint of the dataset, where it is known, and `shape` (C, H, W).
        """
        one, about = self.synthetic, self.about
        counts = torch.bincount(one.hard_labels, minlength=classes).tolist()
        wanted = {"dataset": dataset} | ({"data": data} if data else {})
        other = next((name for name, value in wanted.items() if about.get(name, value) != value), None)
        why = ""
        if other is not None:
            why = f"was made from {about.get('dataset', dataset)}" + (" of other images" if other == "data" else "")
        elif tuple(one.images.shape[1:]) != tuple(shape):
            why = f"has images of {tuple(one.images.shape[1:])}, and those of {dataset} are {tuple(shape)}"
        elif one.decode != NONE:
            why = f"stores several images in one (decode {one.decode}), from which no method starts; name one without"
        elif counts != [ipc] * classes:
            each = f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])
            why = f"has {each} images of each of {len(counts)} classes, and ipc {ipc} of {classes} is asked for"
        elif one.images.dtype != torch.uint8 and one.pixels and _base(one.pixels) != _base(pixels):
            why = f"lives in {one.pixels}, and the run in {pixels}; say --pixels '{_base(one.pixels)}'"
        elif not one.finite():
            why = "holds numbers that are not finite"
        if why:
            raise ConfigError(f"no condensation on {dataset} can start from {self.name}: it {why}.")


def _base(pixels: str) -> str:
    return re.sub(r", heldout=[^,)]*", "", canonical_name(pixels))


def starts(config: type[MethodConfig]) -> list[str]:
    """The options of a method that say what images start from, and so can name a saved set."""
    fields = config.model_fields.items()
    return [name for name, field in fields if any(getattr(part, "func", None) is _known for part in field.metadata)]


_kept: dict[str, StartingSet] = {}


def keep(start: StartingSet) -> None:
    """Have a set ready in this process under its name, for methods that are asked to start from it."""
    _kept[start.name] = start


def kept(name: str) -> StartingSet:
    """The set of that name. Raises: ConfigError where nobody has read it in this process."""
    if name not in _kept:
        raise ConfigError(f"the set {name} has not been read: name its run or file, as in --set initial=FILE.")
    return _kept[name]


def check_start(initial: str, problem: Problem) -> None:
    """Raise what `starting_images` would, before anything is made: DataError or ConfigError."""
    if initial == "real":
        check_budget(problem, NO_LIMIT)
    elif initial not in INITIALS:
        kept(initial).check(
            dataset=problem.info.name,
            shape=problem.shape,
            classes=problem.classes,
            ipc=problem.ipc,
            pixels=problem.pixels.name,
        )


def starting_images(initial: str, problem: Problem, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] on the device, in the pixel space, class by class: real ones, noise, or those of a saved set.

    Raises: DataError where there are too few real images, ConfigError where the set does not fit or was not read.
    """
    check_start(initial, problem)
    if initial in INITIALS:
        return INITIALS[initial](problem, rng)
    saved = kept(initial).synthetic
    images = saved.images[saved.hard_labels.argsort(stable=True)].to(problem.device)
    # Bytes are images of any pixel space.
    return problem.pixels.forward(images) if images.dtype == torch.uint8 else images.clone()
