"""Pixel spaces: the normalisation or whitening in which images are learned and evaluated, forward and back."""

from __future__ import annotations

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddbench.data.catalogue import DatasetInfo
from ddbench.data.manifests import digest
from ddbench.data.tensors import HASH_CHUNK, DatasetTensors
from ddbench.decoders import NONE
from ddbench.engine.capabilities import home_of_float64, in_float64
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, closest
from ddbench.files import SEAL, checksum, once, sweep, write_atomically

logger = logging.getLogger(__name__)

KNOWN = {
    "standard": ("stats", "standard"),
    "zca": ("eps", "0.1"),
    "kip-zca": ("reg", "0.1"),
    "rat-zca": ("reg", "0.1"),
    "frepo-zca": ("reg", "0.1"),
    "rfad-zca": ("reg", "0.1"),
}
EXAMPLES = (
    "standard, standard(stats=pixel), standard(stats=dd), zca(eps=0.1), kip-zca(reg=0.1), rat-zca, frepo-zca, rfad-zca"
)
# Whitened after every image has been centred and scaled to length 1.
UNIT_LENGTH = ("kip-zca", "rat-zca")
# Colour images of 64 x 64; one float64 matrix of that width takes 1.2 GB and minutes to decompose.
LARGEST_WHITENING = 12_288
# A second of one core. Of 3072 values, colour images of 32 x 32, it is a minute, which nothing can interrupt.
SMALL_WHITENING = 1024

# No file of these takes longer to write; one that has not grown since is of a process that was killed.
HALF_WRITTEN_SECONDS = 3600.0

P = TypeVar("P", bound="PixelSpace")


@dataclass(frozen=True, eq=False)
class PixelSpace(ABC):
    """A fixed map between stored pixels and what networks see.

    `cheap` says that applying it to every batch costs next to nothing.
    """

    name: str
    fingerprint: str
    cheap = False

    @property
    def base(self) -> str:
        """The name without a held-out fraction."""
        return _Spec.parse(self.name).base

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """From uint8, or floats in [0, 1], to float32 in this space. Shapes: [..., C, H, W] both."""

    @abstractmethod
    def back(self, images: Tensor) -> Tensor | None:
        """From this space to floats on the scale [0, 1], unclipped; None where the map has no inverse."""

    def to(self: P, device: torch.device | str) -> P:
        """The space with its tensors on `device`."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if torch.is_tensor(value)}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Standard(PixelSpace):
    """(x - mean) / std, per channel. Shapes: mean and std [C, 1, 1]."""

    mean: Tensor
    std: Tensor
    cheap = True

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        return 255 * self.mean, 255 * self.std

    def forward(self, images: Tensor) -> Tensor:
        # Bytes are promoted inside the subtraction, which saves two passes over the batch.
        mean, std = self._levels if images.dtype == torch.uint8 else (self.mean, self.std)
        return torch.sub(images, mean).div_(std).float()

    def back(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean


@dataclass(frozen=True, eq=False)
class Whitening(PixelSpace):
    """ZCA: x' = (x - mean) W on flattened pixels in [0, 1], with its inverse. Shapes: mean [d]; W and inverse [d, d].

    Variants: `zca`, of pixels in [0, 1] (MTT, Cazenavette et al., CVPR 2022); `frepo-zca`, of standardised pixels (Zhou
    et al., NeurIPS 2022); `rfad-zca`, the same without removing the mean image (Loo et al., NeurIPS 2022).
    """

    mean: Tensor
    weight: Tensor
    inverse: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return _times(_unit(images).flatten(-3) - self.mean, self.weight).reshape(images.shape)

    def back(self, images: Tensor) -> Tensor:
        return (_times(images.flatten(-3), self.inverse) + self.mean).reshape(images.shape)


@dataclass(frozen=True, eq=False)
class KipWhitening(PixelSpace):
    """ZCA of standardised images that are first centred and scaled to length 1 one by one, so that nothing leads back.

    Shapes: mean and std [C, 1, 1]; W [d, d].
    Variants: `kip-zca` (Nguyen et al., NeurIPS 2021); `rat-zca`, which does not standardise (Feng et al., ICLR 2024).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return _times(_unit_rows(images, self.mean, self.std), self.weight).reshape(images.shape)

    def back(self, images: Tensor) -> None:
        return None


def decoded_in(pixels: PixelSpace, decoder: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`engine.decode.decode` of a set's images, of floats in a pixel space or of bytes, which come out in that space
    where they are cut up, and otherwise stay bytes.

    Raises: DataError as there.
    """
    if decoder == NONE or images.dtype != torch.uint8:
        return decode(decoder, images, labels)
    if pixels.cheap:
        return decode(decoder, pixels.forward(images), labels)  # bytes would be rounded when they are enlarged
    # A whitening is of images, and a mosaic is none.
    cut, labels = decode(decoder, images / 255, labels)
    return pixels.forward(cut), labels


def canonical_name(text: str) -> str:
    """The one spelling of a pixel space: "zca", "ZCA(eps=.1)" and "zca(eps=0.1)" are all "zca(eps=0.1)".

    Raises: ConfigError if there is no such pixel space.
    """
    return str(_Spec.parse(text))


def fit_pixels(
    name: str,
    train: DatasetTensors,
    info: DatasetInfo,
    store: Path | None = None,
    *,
    heldout: float | None = None,
    device: torch.device | str = "cpu",
) -> PixelSpace:
    """The pixel space of that name for these training images, with its tensors on the CPU.

    A whitening is fitted on `device` where that computes in double precision.

    A name with `heldout=F` means a whitening fitted without the part that `train.split(F)` holds out. Who has split
    already passes the rest as `train`, and F as the argument `heldout`.
    A fitted whitening is kept in the folder `store` under the training images' fingerprint, and read back from there.
    Raises: ConfigError if the dataset has no statistics of that name, or is too large to whiten.
    """
    spec = _Spec.parse(name)
    check_pixels(name, info, train.shape)
    if spec.kind == "standard":
        return _standard(spec, train, info)
    if heldout is not None:
        spec = replace(spec, heldout=_digits(heldout))
    elif spec.heldout is not None:
        train, _ = train.split(float(spec.heldout))
    space = KipWhitening if spec.kind in UNIT_LENGTH else Whitening
    needed = {entry.name for entry in fields(space)} - {entry.name for entry in fields(PixelSpace)}
    fitted = _fit_once(spec, train, store, torch.device(device), needed)
    return space(str(spec), digest(f"{spec.base} {train.fingerprint}".encode()), **fitted)


def check_pixels(name: str, info: DatasetInfo, shape: tuple[int, int, int]) -> None:
    """Raise what `fit_pixels` would of what can be told without images: a ConfigError.

    `shape` is (C, H, W) of an image.
    """
    spec = _Spec.parse(name)
    if spec.kind == "standard":
        known = {"standard", "pixel", *info.statistics}
        if spec.value not in known:
            there = ", ".join(sorted(known))
            raise ConfigError(f"{info.name} has no pixel statistics called {spec.value!r}; it has {there}.")
        return
    width = math.prod(shape)
    if width > LARGEST_WHITENING:
        raise ConfigError(
            f"{spec} needs a {width} x {width} matrix for images of shape {shape}; whitening is for up to "
            f"{LARGEST_WHITENING} values an image. Use --pixels standard."
        )


def known_pixels(name: str, info: DatasetInfo) -> PixelSpace | None:
    """The pixel space of that name where the catalogue's statistics alone say it; None where images are needed."""
    spec = _Spec.parse(name)
    if spec.kind != "standard" or spec.value not in info.statistics:
        return None
    mean, std = map(torch.tensor, info.statistics[spec.value])
    return _of_statistics(spec, mean, std)


def is_quick(name: str, train: DatasetTensors, store: Path, device: torch.device) -> bool:
    """Whether `fit_pixels` has next to nothing to do: no whitening, one that is kept or small, or one for a GPU."""
    spec = _Spec.parse(name)
    small = train.images[0].numel() <= SMALL_WHITENING
    # Without its held-out part, whose images are not known here, a whitening takes as long.
    on_gpu = home_of_float64(device).type != "cpu"
    return spec.kind == "standard" or small or on_gpu or _kept(spec, train, store).exists()


def channel_statistics(train: DatasetTensors) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all pixels of each channel, on the scale [0, 1], exact in float64. Shapes: [C]."""
    histogram = torch.zeros(train.shape[0], 256, dtype=torch.float64)
    for images in train.images.split(HASH_CHUNK):
        for channel, counts in enumerate(histogram):
            counts += torch.bincount(images[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = histogram / histogram.sum(1, keepdim=True)
    mean = weights @ levels
    return mean, ((levels - mean[:, None]).square() * weights).sum(1).sqrt()


@dataclass(frozen=True)
class _Spec:
    """The name of a pixel space, read."""

    kind: str
    value: str
    heldout: str | None = None

    @property
    def base(self) -> str:
        option, default = KNOWN[self.kind]
        return self.kind if self.kind == "standard" and self.value == default else f"{self.kind}({option}={self.value})"

    def __str__(self) -> str:
        return self.base if self.heldout is None else f"{self.base[:-1]}, heldout={self.heldout})"

    @classmethod
    def parse(cls, text: str) -> _Spec:
        parts = re.fullmatch(r"([a-z-]+)(?:\(([^()]*)\))?", text.strip().lower().replace("_", "-"))
        if parts is None or parts[1] not in KNOWN:
            name = parts[1] if parts else text
            raise ConfigError(f"no pixel space is called {text!r}. {closest(name, list(KNOWN))}Known: {EXAMPLES}.")
        kind, (option, default) = parts[1], KNOWN[parts[1]]
        known = (option,) if kind == "standard" else (option, "heldout")
        given: dict[str, str] = {}
        for item in parts[2].split(",") if parts[2] else []:
            key, _, value = (part.strip() for part in item.partition("="))
            if key not in known or key in given or not value:
                raise ConfigError(f"{item.strip()!r} is not an option of {kind!r}; it has {' and '.join(known)}.")
            given[key] = value if kind == "standard" else _number(key, value, below=1 if key == "heldout" else math.inf)
        return cls(kind, given.get(option, default), given.get("heldout"))


def _number(key: str, text: str, below: float) -> str:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < below:
        raise ConfigError(f"{key} of a pixel space must be a number between 0 and {below:g}, not {text!r}.")
    return _digits(number)


def _digits(number: float) -> str:
    """All digits that the number has, and no more."""
    return repr(float(number)).removesuffix(".0")


def _standard(spec: _Spec, train: DatasetTensors, info: DatasetInfo) -> Standard:
    stats = spec.value
    measured = stats == "pixel" or (stats == "standard" and not info.statistics)
    mean, std = channel_statistics(train) if measured else map(torch.tensor, info.statistics[stats])
    if len(mean) != train.shape[0]:
        raise ConfigError(f"{spec} of {info.name} is for {len(mean)} channels; the images have {train.shape[0]}.")
    return _of_statistics(spec, mean, std)


def _of_statistics(spec: _Spec, mean: Tensor, std: Tensor) -> Standard:
    # A channel without any contrast is only centred.
    std = torch.where(std > 0, std, 1)
    text = f"{[round(value, 6) for value in mean.tolist()]} {[round(value, 6) for value in std.tolist()]}"
    return Standard(str(spec), digest(text.encode()), mean.float()[:, None, None], std.float()[:, None, None])


def _fit_once(
    spec: _Spec, train: DatasetTensors, store: Path | None, device: torch.device, needed: set[str]
) -> dict[str, Tensor]:
    fit = partial(_FITS[spec.kind], train, float(spec.value), home_of_float64(device))
    if store is None:
        return fit()
    path = _kept(spec, train, store)
    if path.exists():
        try:
            kept = load_file(path)
            if kept.keys() != needed:
                raise SafetensorError(f"it holds {', '.join(sorted(kept))} and should hold {', '.join(sorted(needed))}")
            with safe_open(path, "pt") as file:
                known = (file.metadata() or {}).get(SEAL)
            # Earlier versions wrote none.
            if known is not None and once(path, SEAL, lambda: _checksum(kept)) != known:
                raise SafetensorError("its numbers do not have the checksum that it names")
            return kept
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged (%s); fitting %s again.", path, error, spec)
    sweep(store, path.name, idle_seconds=HALF_WRITTEN_SECONDS)
    fitted = fit()
    write_atomically(path, lambda beside: save_file(fitted, beside, metadata={SEAL: _checksum(fitted)}))
    return fitted


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes and float32 numbers on the CPU."""
    parts = [(f"{name} {tuple(value.shape)} ".encode(), value.numpy().data) for name, value in sorted(tensors.items())]
    return checksum(*(part for pair in parts for part in pair))


def _kept(spec: _Spec, train: DatasetTensors, store: Path) -> Path:
    parts = (re.sub(r"[^a-z0-9.]+", "-", part).strip("-") for part in (train.fingerprint, spec.base))
    return store / f"{'-'.join(parts)}.safetensors"


def _fit_zca(train: DatasetTensors, eps: float, device: torch.device) -> dict[str, Tensor]:
    if device.type != "cpu":
        return _fit_zca_on_a_device(train, eps, device)
    from kornia.enhance import ZCAWhitening  # slow to import, needed by few runs

    # In float64 the fit of 50 000 colour images of 32 x 32 takes about a minute on two cores; it is stored afterwards.
    rows = _unit(train.images).flatten(1)
    fitted = ZCAWhitening(dim=0, eps=eps, unbiased=True, compute_inv=True).fit(rows)
    return _stored_form(mean=fitted.mean_vector[0], weight=fitted.transform_matrix, inverse=fitted.transform_inv)


def _fit_zca_on_a_device(train: DatasetTensors, eps: float, device: torch.device) -> dict[str, Tensor]:
    # kornia takes the singular vectors of the covariance, which torch finds by Jacobi's sweeps on a GPU. A symmetric
    # matrix has eigenvectors, which are the same and sooner there.
    mean, std = (value.to(device) for value in _no_moments(train))
    return _affine(train, mean, std, lambda covariance: eps, centre=True, unbiased=True)


def _fit_kip(train: DatasetTensors, reg: float, device: torch.device, *, standardise: bool = True) -> dict[str, Tensor]:
    mean, std = (value.to(device) for value in (_moments if standardise else _no_moments)(train))
    covariance = _gram(train, lambda images: _unit_rows(images, mean, std), device) / len(train)
    values, vectors = _spectrum(covariance, _relative(reg)(covariance))
    # Ascending order: with fewer images than values an image, the first ones belong to directions no image has.
    values[: max(0, len(values) - len(train))] = 1
    return _stored_form(mean=mean, std=std, weight=(vectors * values.rsqrt()) @ vectors.T)


def _fit_standardised(train: DatasetTensors, reg: float, device: torch.device, *, centre: bool) -> dict[str, Tensor]:
    mean, std = (value.to(device) for value in _moments(train))
    return _affine(train, mean, std, _relative(reg), centre=centre, unbiased=False)


def _affine(
    train: DatasetTensors,
    mean: Tensor,
    std: Tensor,
    shift: Callable[[Tensor], float],
    *,
    centre: bool,
    unbiased: bool,
) -> dict[str, Tensor]:
    """Standardising and whitening in one map. `shift` of the covariance is added to its eigenvalues."""

    def rows(images: Tensor) -> Tensor:
        return ((_unit(images) - mean) / std).flatten(-3)

    middle = torch.zeros(train.images[0].numel(), dtype=torch.float64, device=mean.device)
    if centre:
        chunks = train.images.split(HASH_CHUNK)
        middle = torch.stack([rows(images.to(mean.device)).sum(0) for images in chunks]).sum(0) / len(train)
    covariance = _gram(train, lambda images: rows(images) - middle, mean.device) / (len(train) - unbiased)
    values, vectors = _spectrum(covariance, shift(covariance))
    mean, std = (value.expand(train.shape).flatten() for value in (mean, std))
    weight = (vectors * values.rsqrt()) @ vectors.T / std[:, None]
    return _stored_form(mean=mean + std * middle, weight=weight, inverse=(vectors * values.sqrt()) @ vectors.T * std)


_FITS: dict[str, Callable[[DatasetTensors, float, torch.device], dict[str, Tensor]]] = {
    "zca": _fit_zca,
    "kip-zca": _fit_kip,
    "rat-zca": partial(_fit_kip, standardise=False),
    "frepo-zca": partial(_fit_standardised, centre=True),
    "rfad-zca": partial(_fit_standardised, centre=False),
}


def _moments(train: DatasetTensors) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, float64 [C, 1, 1]; a channel without any contrast is only centred."""
    mean, std = (value[:, None, None] for value in channel_statistics(train))
    return mean, torch.where(std > 0, std, 1)


def _no_moments(train: DatasetTensors) -> tuple[Tensor, Tensor]:
    return torch.zeros(train.shape[0], 1, 1, dtype=torch.float64), torch.ones(train.shape[0], 1, 1, dtype=torch.float64)


def _relative(reg: float) -> Callable[[Tensor], float]:
    """A share of the mean eigenvalue."""
    return lambda covariance: reg * float(covariance.trace()) / len(covariance)


def _spectrum(covariance: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending and larger by `shift`, and eigenvectors."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values + shift
    # Where no image has any contrast a share of it is nothing too; such directions are left as they are.
    return torch.where(values > 0, values, 1), vectors


def _stored_form(**values: Tensor) -> dict[str, Tensor]:
    return {name: value.float().cpu().contiguous() for name, value in values.items()}


def _gram(train: DatasetTensors, rows: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    width = train.images[0].numel()
    total = torch.zeros(width, width, dtype=torch.float64, device=device)
    for images in train.images.split(HASH_CHUNK):
        x = rows(images.to(device))
        total.addmm_(x.T, x)
    return total


def _unit(images: Tensor) -> Tensor:
    """float64 on the scale [0, 1]."""
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()


def _unit_rows(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardised images as rows of mean 0 and length 1, or 0 for an image of one colour. Returns [..., d] float64."""
    rows = ((_unit(images) - mean) / std).flatten(-3)
    return torch.nn.functional.normalize(rows - rows.mean(-1, keepdim=True), dim=-1)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    # In float64, so that no setting for float32 products on a device (TF32) changes what a whitened set means.
    return (in_float64(rows) @ in_float64(matrix)).float().to(rows.device)
