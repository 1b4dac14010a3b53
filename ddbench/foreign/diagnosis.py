"""What the numbers of a foreign set say: its range, its likely pixel space, and which flag is probably missing.

Nothing is trained and no test image is read. A set is compared with training images, brought into each pixel space in
which sets are published; without training images, with an average natural image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.data.catalogue import CATALOGUE, DatasetInfo
from ddbench.data.pixels import canonical_name
from ddbench.data.scale import largeness, left_range, scale_of
from ddbench.data.tensors import DatasetTensors
from ddbench.decoders import tiles as cut_in
from ddbench.engine.decode import decode
from ddbench.foreign import tiles
from ddbench.foreign.class_folders import first_of, imagefolder_order
from ddbench.foreign.formats import Found
from ddbench.rng import Rng
from ddbench.text import some_of

Guess = Literal["standard", "unit", "raw", "zca", "kip-zca"]
SAMPLE = 2000  # training images that a set is compared with, and images of the set that are
POOLED = 8  # positions a side that the classifier sees: what survives in learned images is coarse
RIDGE = 0.03
# How far a set may differ from real images of its pixel space, in units that were tuned on generated cases: learned
# images gain contrast more often than they lose it.
LESS_CONTRAST, MORE_CONTRAST, SHIFT, SMOOTHNESS, COMMON = 0.35, 0.6, 0.4, 0.4, 0.15
CLEAR = 1.5  # difference of the squared distances from which on one pixel space is preferred to another
ENOUGH = 3.5  # standard deviations that right labels must be expected to reach before wrong ones can be told


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong; `flag` is what to say on the command line, or nothing where no flag helps.

    `fatal` sets make no sense to any student, unless the flag is given.
    """

    code: str
    text: str
    flag: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class Features:
    """Mean, standard deviation and the correlation of neighbouring pixels less noise, over all images of a set.

    `common` is the share of the standard deviation that all images have in common: nothing, after whitening.
    """

    mean: float
    std: float
    smoothness: float
    common: float

    @classmethod
    def of(cls, images: Tensor) -> Features:
        x = images.double()
        variance = max(float(x.var()), 1e-24)
        steps = [x.diff(dim=axis).square().mean() for axis in (-1, -2) if x.shape[axis] > 1]
        together = variance - float(torch.stack(steps).mean()) / 2 if steps else variance
        # Noise alone makes checkerboards of two by two pixels, which no image has; without it the image is left.
        checks = (x[..., 1:, 1:] - x[..., :-1, 1:] - x[..., 1:, :-1] + x[..., :-1, :-1]) / 2
        noise = float(checks.square().mean()) if checks.numel() else 0.0
        smoothness = together / max(variance - noise, 0.05 * variance)
        # A mean of n images varies by itself, the more the fewer they are.
        shared = float(x.mean(0).var()) / variance - 1 / len(x)
        return cls(float(x.mean()), math.sqrt(variance), min(1.0, max(-1.0, smoothness)), math.sqrt(max(0.0, shared)))

    def distance(self, real: Features) -> float:
        """Squared, from real images in some pixel space; small for sets that live there."""
        contrast = math.log(max(self.std, 1e-12) / max(real.std, 1e-12))
        terms = (
            contrast / (MORE_CONTRAST if contrast > 0 else LESS_CONTRAST),
            (self.mean - real.mean) / max(real.std, 1e-12) / SHIFT,
            (self.smoothness - real.smoothness) / SMOOTHNESS,
            (self.common - real.common) / COMMON,
        )
        return sum(term**2 for term in terms)


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images in every pixel space in which sets are published.

    Shapes: images [n, C, H, W] on the scale [0, 1]; labels [n]; mean and std [C, 1, 1], those of `standard`.
    Whitenings are done frequency by frequency, which needs no large matrix and is near enough for telling them apart.
    """

    images: Tensor
    labels: Tensor | None
    classes: int
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, train: DatasetTensors, info: DatasetInfo) -> Reference:
        """A fixed sample of the training images, class by class."""
        each = max(2, SAMPLE // len(train.classes))
        generator = Rng(0, ("reference", train.fingerprint)).torch()
        rows = [
            start + torch.randperm(count, generator=generator)[:each]
            for start, count in zip(train.offsets.tolist(), train.counts.tolist(), strict=True)
        ]
        chosen = torch.cat(rows)
        images = train.images[chosen].float() / 255
        statistics = info.statistics.get("standard")
        if statistics is None:
            mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
        else:
            mean, std = (torch.tensor(part) for part in statistics)
        return cls(images, train.labels[chosen], len(train.classes), mean[:, None, None], std[:, None, None])

    @classmethod
    def natural(cls, shape: tuple[int, int, int], classes: int = 0) -> Reference:
        """Noise with the spectrum of photographs, for a dataset that is not there."""
        channels, height, width = shape
        rows = torch.fft.fftfreq(height)[:, None]
        radius = (rows.square() + torch.fft.fftfreq(width).square()).sqrt()
        amplitude = 1 / radius.clamp(min=1 / max(height, width))
        white = torch.randn(256, 1, height, width, generator=Rng(0, ("natural",)).torch())
        images = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
        images = (0.47 + 0.25 * images / images.std()).expand(-1, channels, -1, -1).contiguous()
        mean, std = (torch.full((channels, 1, 1), value) for value in (0.47, 0.22))
        return cls(images, None, classes, mean, std)

    @cached_property
    def spaces(self) -> Mapping[Guess, Tensor]:
        """The sample in each pixel space."""
        standard = (self.images - self.mean) / self.std
        rows = standard - standard.mean((1, 2, 3), keepdim=True)
        rows = rows / rows.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        return {
            "standard": standard,
            "unit": self.images,
            "raw": 255 * self.images,
            "zca": _whitened(self.images - self.images.mean(0), 0.1),
            "kip-zca": _whitened(rows, 0.1 * float(rows.square().mean())),
        }

    @cached_property
    def _seen(self) -> dict[Guess, tuple[Tensor, float]]:
        return {}

    def classifier(self, space: Guess) -> tuple[Tensor, float]:
        """A linear classifier [d, K] of pooled images, and how well the labels of other images agree with it."""
        assert self.labels is not None
        if space not in self._seen:
            x, half = _pooled(self.spaces[space]), torch.arange(len(self.labels)) % 2 == 0
            weights = _ridge(x[half], self.labels[half], self.classes)
            self._seen[space] = weights, _agreement(x[~half] @ weights, self.labels[~half])
        return self._seen[space]

    @cached_property
    def features(self) -> Mapping[Guess, Features]:
        """Features of the sample in each pixel space."""
        return {name: Features.of(images) for name, images in self.spaces.items()}


@dataclass(frozen=True)
class Diagnosis:
    """What is known about a set, and what is probably wrong with it.

    `pixels` is the likely pixel space and `clear` whether no other comes near; `low` and `high` are over finite pixels.
    `normalised` is what normalised images are by the statistics of the layout's project.
    """

    shape: tuple[int, int, int]
    images: int
    classes: int
    per_class: tuple[int, int]
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored: str
    pixels: Guess
    clear: bool
    label_kind: str
    fitting: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())
    normalised: str = "standard"

    @property
    def codes(self) -> frozenset[str]:
        """Names of the findings."""
        return frozenset(finding.code for finding in self.findings)


def label_kind(labels: Tensor | None) -> str:
    """What labels are by their numbers: none, class, probability, logit or regression."""
    if labels is None:
        return "none"
    if labels.ndim == 1 or _one_hot(labels):
        return "class"
    sums = labels.sum(dim=1)
    if float(labels.min()) >= -1e-6 and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all()):
        return "probability"
    # Kernel methods learn centred one-hot rows: small, and of sum near zero. Logits are neither.
    small = float(labels.abs().max()) <= 2 and float(sums.abs().max()) <= 0.5
    return "regression" if small else "logit"


def known_kind(found: Found) -> str:
    """What the labels of a set are: as the file or its layout says, else by their numbers."""
    if found.ours is not None:
        return found.ours.label_kind
    by_layout = found.label_kind if found.labels is not None and found.labels.ndim == 2 else ""
    return by_layout or label_kind(found.labels)


def hard(labels: Tensor) -> Tensor:
    """[N] classes: the labels, or the arg-max of rows."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


def fitting_datasets(shape: tuple[int, int, int], classes: int) -> tuple[str, ...]:
    """Datasets of the catalogue that have images of this shape, and this many classes where any has."""
    same = [entry for entry in CATALOGUE.values() if entry.shape == shape]
    exact = [entry.name for entry in same if entry.classes == classes]
    return tuple(exact or [entry.name for entry in same])


def diagnose(
    found: Found,
    reference: Reference | None = None,
    info: DatasetInfo | None = None,
    pixels: str | None = None,
    decode: str | None = None,
) -> Diagnosis:
    """Look at a set; `reference` and `info` are of the dataset that it is for, `pixels` and `decode` what is said of it
    already."""
    images = found.images
    labels = found.labels
    shape = (images.shape[1], images.shape[2], images.shape[3])
    finite = torch.isfinite(images) if images.is_floating_point() else torch.ones_like(images, dtype=torch.bool)
    whole = images.float() if bool(finite.all()) else torch.where(finite, images.float(), 0.0)
    usable = whole[finite] if bool(finite.any()) else torch.zeros(1)
    known = reference is not None and reference.images.shape[1:] == images.shape[1:]
    real = reference if known and reference is not None else Reference.natural(shape)
    guess, clear = _guess(whole, real, stored_as_bytes=images.dtype == torch.uint8)
    given = None if labels is None else hard(labels)
    count = 0 if labels is None else labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    per_class = torch.bincount(given.clamp(min=0)) if given is not None else torch.zeros(1, dtype=torch.int64)
    factor = _seams(found, whole, real, decode)
    findings = [
        *_of_numbers(finite, labels),
        *_of_scale(found, whole, real, pixels, guess),
        *_of_shape(shape, info),
        *_of_pixels(guess, clear, pixels, images.dtype == torch.uint8, found),
        *_of_classes(labels, info),
        *_of_tiles(factor),
    ]
    codes = {finding.code for finding in findings}
    if known and given is not None and not codes & {"shape", "not-finite"}:
        assumed = _family(pixels) if pixels else guess
        shown = whole / 255 if images.dtype == torch.uint8 else whole
        # Smaller images in one are no image that a classifier of real ones could name.
        findings += _of_labels(*_decoded(found, shown, given, decode, factor), real, assumed, info)
    if found.doubt and not any(finding.code == "order" for finding in findings):
        findings.append(Finding("class-order", found.doubt, "--labels imagefolder"))
    return Diagnosis(
        shape=shape,
        images=len(images),
        classes=count,
        per_class=(int(per_class[per_class > 0].min()) if int(per_class.sum()) else 0, int(per_class.max())),
        low=float(usable.min()),
        high=float(usable.max()),
        mean=tuple(whole.mean((0, 2, 3)).tolist()),
        std=tuple(whole.std((0, 2, 3)).tolist()),
        stored="uint8" if images.dtype == torch.uint8 else "float32",
        pixels=guess,
        clear=clear,
        label_kind=known_kind(found),
        fitting=fitting_datasets(shape, count),
        findings=tuple(findings),
        normalised=_statistics(found, info),
    )


def _statistics(found: Found, info: DatasetInfo | None) -> str:
    """The name of the standard space with the statistics that a layout's project has, where the dataset has those."""
    named = re.fullmatch(r"standard\(stats=(\w+)\)", found.habit)
    return found.habit if named and info is not None and named[1] in info.statistics else "standard"


def _guess(images: Tensor, real: Reference, *, stored_as_bytes: bool) -> tuple[Guess, bool]:
    if stored_as_bytes:
        return "raw", True
    # Evenly spaced, so that all classes are in it.
    features = Features.of(images[:: -(-len(images) // SAMPLE)])
    distances = sorted((features.distance(other), name) for name, other in real.features.items())
    (best, name), (second, _) = distances[:2]
    return name, second - best > CLEAR


def _of_numbers(finite: Tensor, labels: Tensor | None) -> list[Finding]:
    lost = int((~finite).flatten(1).any(dim=1).sum())
    if lost:
        text = f"{lost} of {len(finite)} images hold nan or infinite pixels: the run that made them has diverged"
        return [Finding("not-finite", text, fatal=True)]
    if labels is not None and labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
        return [Finding("not-finite", "labels hold nan or infinite numbers", fatal=True)]
    return []


def _of_scale(found: Found, images: Tensor, real: Reference, said: str | None, guess: Guess) -> list[Finding]:
    """Pixels far from those of any image, in the space that is said, else the likeliest."""
    if not found.images.is_floating_point():
        return []
    said = found.ours.pixels if found.ours is not None else said
    # A whitening of another kind than these two scales alike.
    space = real.spaces.get(_family(said), real.spaces["zca"]) if said else real.spaces[guess]
    text = left_range(scale_of(images, largeness(space)))
    return [Finding("diverged", text)] if text else []


def _of_shape(shape: tuple[int, int, int], info: DatasetInfo | None) -> list[Finding]:
    if info is None or shape == info.shape:
        return []
    fits = [entry.name for entry in CATALOGUE.values() if entry.shape == shape]
    square = info.shape[0] == shape[0] and info.shape[1] == info.shape[2]
    resize = f"; --size {info.shape[1]} resizes them" if square and not fits else ""
    other = f"; {' and '.join(fits)} would fit" if fits else ""
    return [
        Finding(
            "shape", f"images are {shape} and those of {info.name} are {info.shape}{other}{resize}", "--dataset", True
        )
    ]


def _of_pixels(guess: Guess, clear: bool, said: str | None, stored_as_bytes: bool, found: Found) -> list[Finding]:
    if stored_as_bytes or found.ours is not None:
        return []
    if said is not None:
        # Whitenings differ by less than methods change their images.
        if clear and guess != _family(said) and not {guess, _family(said)} <= {"zca", "kip-zca"}:
            text = f"the numbers do not look like {said}, rather like {_NAMES[guess]}"
            return [Finding("pixels", text, f"--pixels {_FLAGS[guess]}")]
        return []
    match guess:
        case "standard" if found.whitened:
            return [Finding("zca", "the files beside it say that its images are whitened", f"--pixels '{found.habit}'")]
        case "standard":
            return []
        case "unit" | "raw":
            return [Finding(guess, f"pixels look like {_NAMES[guess]}, not normalised", f"--pixels {guess}")]
        case _:
            flag = how = found.habit
            if "zca" not in found.habit:
                flag, how = _FLAGS[guess], _NAMES[guess]
            text = f"pixels look whitened ({how}): judged as normalised images, accuracy would be near chance"
            return [Finding("zca", text, f"--pixels '{flag}'")]


def _seams(found: Found, images: Tensor, real: Reference, said: str | None) -> int | None:
    """How many smaller images a side the seams tell of, where nobody says what they are."""
    if found.ours is not None or said is not None or tiles.said_in(found) or tiles.named_by(found):
        return None
    return tiles.seen_in(images, real.images)


def _of_tiles(factor: int | None) -> list[Finding]:
    """A note: an image can have an edge in its middle."""
    if factor is None:
        return []
    count = f"{factor} x {factor}"
    text = f"the images have seams as of {count} smaller images in each, which IDC and others cut out and enlarge"
    return [Finding("tiles", text, f"--decode tiles:{factor}")]


def _decoded(
    found: Found, images: Tensor, given: Tensor, said: str | None, factor: int | None
) -> tuple[Tensor, Tensor]:
    """The images that labels are of: the smaller ones where it is said, or seen, that there are several in each."""
    decoder = tiles.decoder_of(found, said)[0] if factor is None else cut_in(factor)
    return decode(decoder, images, given)


def _of_classes(labels: Tensor | None, info: DatasetInfo | None) -> list[Finding]:
    if labels is None:
        return [Finding("labels", "there are no labels", "--labels sorted")]
    if labels.ndim == 2 and info is not None and labels.shape[1] != info.classes:
        text = f"label rows have {labels.shape[1]} numbers and {info.name} has {info.classes} classes"
        return [Finding("classes", text, "--dataset", True)]
    present = set(hard(labels).tolist())
    expected = info.classes if info is not None else max(present) + 1
    if min(present) < 0:
        return [Finding("classes", f"there is a class {min(present)}; classes start at 0", fatal=True)]
    if min(present) == 1 and max(present) == expected and info is not None:
        return [
            Finding(
                "classes", f"classes are 1 to {expected} and should be 0 to {expected - 1}", "--labels from-1", True
            )
        ]
    if max(present) >= expected:
        assert info is not None
        return [
            Finding("classes", f"there is a class {max(present)} and {info.name} has 0 to {expected - 1}", fatal=True)
        ]
    # Learned label rows can favour the same class twice; hard labels without a class mean a part is missing.
    if labels.ndim == 1 or _one_hot(labels):
        missing = sorted(set(range(expected)) - present)
        if missing:
            called = info.class_names if info is not None else ()
            names = some_of([_called(label, called) for label in missing], 5)
            return [Finding("classes", f"{len(missing)} of {expected} classes have no image: {names}")]
    return []


def _called(label: int, names: Sequence[str]) -> str:
    """A class by its name and number."""
    known = label < len(names) and names[label] != str(label)
    return f"{names[label]} ({label})" if known else str(label)


def _of_labels(images: Tensor, given: Tensor, real: Reference, space: Guess, info: DatasetInfo | None) -> list[Finding]:
    """Whether labels fit what a linear classifier of real images sees, where it could tell."""
    if int(given.min()) < 0 or int(given.max()) >= real.classes:
        return []
    weights, agreement = real.classifier("unit" if space == "raw" else space)
    scores = _pooled(images) @ weights
    expected, seen = agreement * math.sqrt(len(given)), _agreement(scores, given) * math.sqrt(len(given))
    if expected < ENOUGH or seen > min(expected / 2, max(2.5, expected / 4)):
        return []
    if info is not None and len(order := imagefolder_order(info)) == real.classes:
        elsewhere = _agreement(scores, torch.tensor(order)[given]) * math.sqrt(len(given))
        if elsewhere > max(ENOUGH, expected / 2):
            text = f"labels fit the images in the order in which ImageFolder numbers classes, {first_of(info, order)}"
            return [Finding("order", f"{text}, and not in that of {info.name}", "--labels imagefolder", fatal=True)]
    from scipy.optimize import linear_sum_assignment

    here = given.unique()
    means = torch.stack([scores[given == label].mean(0) for label in here])
    renamed = given.clone()
    for row, column in zip(*linear_sum_assignment(means.numpy(), maximize=True), strict=True):
        renamed[given == here[row]] = int(column)
    # With an image or two a class, some order of classes fits anything.
    told = len(given) > 2 * real.classes
    another = told and _agreement(scores, renamed) * math.sqrt(len(given)) > max(ENOUGH, expected / 2)
    how = "the classes seem to be in another order" if another else "they look shuffled"
    return [Finding("shuffled", f"labels do not fit the images: {how}")]


def _agreement(scores: Tensor, labels: Tensor) -> float:
    """How much higher the scores of the labels are than those of other labels; standard deviations for one image."""
    centred = scores - scores.mean(0)
    centred = centred - centred.mean(1, keepdim=True)
    share = torch.bincount(labels, minlength=scores.shape[1]).double() / len(labels)
    spread = float((centred.square() @ share).mean().sqrt())
    return float(centred.gather(1, labels[:, None]).mean()) / max(spread, 1e-12)


def _ridge(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    targets = F.one_hot(labels, classes).double() - 1 / classes
    gram = x.T @ x
    weight = RIDGE * float(gram.diagonal().mean())
    return torch.linalg.solve(gram + weight * torch.eye(len(gram)).double(), x.T @ targets)


def _pooled(images: Tensor) -> Tensor:
    """[n, d] float64, each image centred and of length 1, so that contrast says nothing."""
    height, width = (min(POOLED, side) for side in images.shape[-2:])
    rows = F.adaptive_avg_pool2d(images, (height, width)).flatten(1).double()
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def _whitened(images: Tensor, strength: float) -> Tensor:
    """ZCA if images were periodic: the channels of each frequency are decorrelated and scaled."""
    spectrum = torch.fft.fft2(images.double(), norm="ortho").permute(2, 3, 1, 0)  # [H, W, C, n]
    covariance = spectrum @ spectrum.mH / images.shape[0]
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp(min=0) + strength).rsqrt().to(vectors.dtype)
    mixed = (vectors * scale[..., None, :]) @ (vectors.mH @ spectrum)
    return torch.fft.ifft2(mixed.permute(3, 2, 0, 1), norm="ortho").real.float()


def _one_hot(labels: Tensor) -> bool:
    return labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all())


def _family(pixels: str) -> Guess:
    if pixels in ("unit", "raw"):
        return pixels  # type: ignore[return-value]
    kind = canonical_name(pixels).partition("(")[0]
    return kind  # type: ignore[return-value]


_FLAGS: Mapping[Guess, str] = {
    "standard": "standard",
    "unit": "unit",
    "raw": "raw",
    "zca": "zca(eps=0.1)",
    "kip-zca": "kip-zca(reg=0.1)",
}
_NAMES: Mapping[Guess, str] = {
    "standard": "normalised images",
    "unit": "0 to 1",
    "raw": "0 to 255",
    "zca": "ZCA as in MTT",
    "kip-zca": "ZCA as in KIP",
}
