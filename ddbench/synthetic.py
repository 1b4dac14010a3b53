"""What a method learned, as one value, and its file.

Never pickle: people load strangers' sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from torch import Tensor

from ddbench.config import explain
from ddbench.errors import DataError
from ddbench.fields import Count, Line, Plain, Positive, RunId
from ddbench.files import not_regular, write_atomically
from ddbench.text import MOST_NAME

FORMAT = "ddbench.synthetic/1"
# Of files whose images take fewer bytes than float32; earlier versions would take such bytes for pixels.
PACKED = "ddbench.synthetic/2"
READ = (FORMAT, PACKED)

Kept = Literal["float32", "float16", "uint8"]
LabelKind = Literal["class", "probability", "logit", "regression"]


class _RecipeHeader(BaseModel):
    """What a file says of a recipe, less its tensors."""

    model_config = ConfigDict(extra="forbid")

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: None = None
    schedule: None = None
    steps: Positive | None = None
    batch: Positive | None = None
    augment: Line | None = None


class _Header(BaseModel):
    """What a file says of a set, checked before any of it is used."""

    model_config = ConfigDict(extra="ignore")

    pixels: Line
    label_kind: LabelKind
    decode: Line
    recipe: _RecipeHeader
    about: dict[str, Any] = {}


# Of what a file says of its origin, these lead somewhere: names are looked up, numbers become parts of a file's name.
_LookedUp = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=MOST_NAME)]
_ORIGIN: dict[str, TypeAdapter[Any]] = {
    "dataset": TypeAdapter(_LookedUp),
    "backbone": TypeAdapter(_LookedUp),
    "method": TypeAdapter(_LookedUp),
    "ipc": TypeAdapter(Count),
    "seed": TypeAdapter(Count),
    "step": TypeAdapter(Count),
    "run": TypeAdapter(RunId),
    "data": TypeAdapter(Line),
    "provided_by": TypeAdapter(Line),
    "classes": TypeAdapter(list[Line]),
}
_OTHER: TypeAdapter[Any] = TypeAdapter(Plain)


def origin(about: object) -> dict[str, Any]:
    """What a file says of where it comes from, as far as it is names, numbers and texts; the rest is left out.

    A dataset or a backbone may be code, `./file.py:name`, and a stranger's set must not say whose code to run.
    """
    said = {}
    for name, value in about.items() if isinstance(about, Mapping) else ():
        try:
            _OTHER.validate_python({name: value})
            said[name] = _ORIGIN.get(name, _OTHER).validate_python(value)
        except ValidationError:
            continue
    return said


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the set asks to be trained on. None leaves the choice to the protocol.

    Which of these wishes is granted is the protocol's stated choice; only `evaluation` reads them.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Tensor | None = None  # scalar (MTT), or [T], one per step (DD)
    schedule: Tensor | None = None  # [T, B] indices into images: which images make step t (DD)
    steps: int | None = None  # how long to train (LD)
    batch: int | None = None  # images per step (LD)
    augment: str | None = None  # an augmentation that belongs to the set

    def __post_init__(self) -> None:
        lr, schedule = self.lr, self.schedule
        if lr is not None and not lr.is_floating_point():
            raise DataError(f"the recipe's step size is a number of floating point; got {lr.dtype}.")
        if lr is not None and lr.ndim > 1:
            raise DataError(f"the recipe's step size is one number or one for each step; got shape {tuple(lr.shape)}.")
        if schedule is not None and (schedule.ndim != 2 or schedule.dtype != torch.int64 or not schedule.numel()):
            raise DataError(f"a schedule is int64 of shape [T, B]; got {schedule.dtype} {tuple(schedule.shape)}.")
        if schedule is not None and lr is not None and lr.ndim == 1 and len(lr) != len(schedule):
            raise DataError(f"the recipe has {len(lr)} step sizes for {len(schedule)} steps; give one for each step.")
        if self.lr is not None and not bool(torch.isfinite(self.lr).all()):
            raise DataError("the recipe's step size is not finite; the run that learned it has diverged.")


@dataclass(frozen=True)
class Choice:
    """After which step a set was taken, where a method has chosen one by images held out of the training set.

    `accuracy` is a fraction of `images` held-out images: the mean of `students` networks trained under `protocol`.
    """

    step: int
    accuracy: float
    images: int
    students: int
    protocol: str

    def __post_init__(self) -> None:
        counts = all(isinstance(count, int) and count >= 0 for count in (self.step, self.images, self.students))
        share = isinstance(self.accuracy, int | float) and 0 <= self.accuracy <= 1
        if not (counts and share and isinstance(self.protocol, str)):
            raise DataError(
                "a choice says step, accuracy from 0 to 1, images, students and protocol, counts being whole; "
                f"got {asdict(self)}."
            )


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """What a method learned, and all that a student needs to train on it.

    Shapes: images [N, C, H, W], float32 in the pixel space that `pixels` names, unclipped, or uint8 raw pixels where
    the images are real ones; labels [N] int64 for label_kind "class", else [N, K] float32.
    `pixels` empty means the space of the problem it was made for; the driver fills it in.
    `decode` says how stored images become training images: "none", or "tiles(factor=F)" (Kim et al., ICML 2022).
    `start` holds the parameters that a fixed initialisation needs (DD); they count as bytes.
    `source_indices` [N] are rows of the training set that the images were taken from (coresets).
    `choice` says which step's set this is, where a method has chosen one.
    Raises: DataError when the parts do not fit together.
    """

    images: Tensor
    labels: Tensor
    recipe: Recipe = field(default_factory=Recipe)
    pixels: str = ""
    label_kind: LabelKind = "class"
    decode: str = "none"
    start: Mapping[str, Tensor] = field(default_factory=dict)
    source_indices: Tensor | None = None
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise DataError(f"a synthetic set needs images of shape [N, C, H, W], got {tuple(self.images.shape)}.")
        if self.images.dtype not in (torch.float32, torch.uint8):
            raise DataError(f"synthetic images are float32, or uint8 raw pixels; got {self.images.dtype}.")
        if self.labels.ndim == 0 or len(self.labels) != len(self.images):
            raise DataError(
                f"there are {len(self.images)} images and {len(self.labels) if self.labels.ndim else 0} label rows; "
                "give one for each."
            )
        if self.label_kind not in get_args(LabelKind):
            raise DataError(f"there are no {self.label_kind!r} labels; known are {', '.join(get_args(LabelKind))}.")
        if self.label_kind == "class":
            if self.labels.ndim != 1 or self.labels.dtype != torch.int64:
                raise DataError(
                    f"class labels are int64 of shape [N]; got {self.labels.dtype} {tuple(self.labels.shape)}."
                )
            if int(self.labels.min()) < 0:
                raise DataError(f"class labels start at 0; the smallest here is {int(self.labels.min())}.")
        elif self.labels.ndim != 2 or self.labels.dtype != torch.float32:
            raise DataError(
                f"{self.label_kind} labels are float32 of shape [N, K]; got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}."
            )
        schedule = self.recipe.schedule
        if schedule is not None and (int(schedule.min()) < 0 or int(schedule.max()) >= len(self.images)):
            raise DataError(
                f"the schedule names image {int(schedule.max())}, and there are {len(self.images)}; indices start at 0."
            )
        rows = self.source_indices
        if rows is not None and (rows.ndim != 1 or rows.dtype != torch.int64 or len(rows) != len(self.images)):
            raise DataError(
                f"source indices are int64, one for each of {len(self.images)} images; got {rows.dtype} "
                f"{tuple(rows.shape)}."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def soft(self) -> bool:
        """Whether labels are vectors."""
        return self.label_kind != "class"

    @property
    def more_than_classes(self) -> bool:
        """Whether labels say more of an image than its class. Probabilities of 0 and 1 do not, nor do such, centred.

        Centred ones are 1 - 1 / K for the class and -1 / K elsewhere, as KIP has them before it learns any.
        """
        if self.label_kind not in ("probability", "regression"):
            return self.soft
        classes = self.labels.shape[1]
        alone = torch.nn.functional.one_hot(self.hard_labels, classes).to(self.labels.dtype)
        if self.label_kind == "regression":
            alone -= 1 / classes
        # Centring rounds: of numbers of about one, to a few parts in 10^7.
        return not torch.allclose(self.labels, alone, rtol=0, atol=1e-6)

    @property
    def stored(self) -> str:
        """How the images are kept: "uint8" for real ones, else "float32"."""
        return "uint8" if self.images.dtype == torch.uint8 else "float32"

    @property
    def hard_labels(self) -> Tensor:
        """int64 [N]: the labels, or the arg-max of soft ones."""
        return self.labels.argmax(dim=1) if self.soft else self.labels

    @property
    def nbytes(self) -> int:
        """Bytes a receiver must store: images, labels, learned step sizes, a stored start. Reported beside accuracy."""
        return sum(
            tensor.numel() * tensor.element_size() for name, tensor in tensors_of(self).items() if name not in _FREE
        )

    def finite(self) -> bool:
        """Whether every number in it is one."""
        return all(bool(torch.isfinite(t).all()) for t in tensors_of(self).values() if t.is_floating_point())


# Where images come from says nothing that a receiver needs for training.
_FREE = ("source_indices",)


def save(
    synthetic: SyntheticSet, path: Path, about: Mapping[str, Any] | None = None, *, kept: Kept = "float32"
) -> None:
    """Write one safetensors file whose header holds everything that is not a tensor; `about` is kept beside it.

    `kept` says how images of floating point are written, see `pack`; a reader gets float32 again.
    Raises: RunError when the disk is full; the old file, if any, is then untouched. DataError as `pack`.
    """
    from safetensors.torch import save_file

    header = header_of(synthetic, about)
    # Cloned, because safetensors refuses tensors that share memory, such as a start that is cut from one vector.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of(synthetic).items()
    }
    if kept != "float32" and synthetic.stored == "float32":
        header["format"] = PACKED
        tensors |= pack(tensors["images"], kept)
    metadata = {"ddbench": json.dumps(header, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def pack(images: Tensor, kept: Literal["float16", "uint8"]) -> dict[str, Tensor]:
    """Images float32 [N, C, H, W] in a half or a quarter of the bytes, as the tensors of a file.

    float16 has eleven digits of a binary number. uint8 has 256 equal steps between the smallest and the largest value
    of each channel, and `images.low` and `images.step` [C] beside them: rounded by at most half a step.
    Raises: DataError for numbers that are not finite, and for those that are too large for float16.
    """
    if not bool(torch.isfinite(images).all()):
        raise DataError("the set holds numbers that are not finite; the run that made it has diverged.")
    if kept == "float16":
        half = images.half()
        if not bool(torch.isfinite(half).all()):
            raise DataError(f"the images reach {float(images.abs().max()):g}, and float16 ends at 65504. Keep float32.")
        return {"images": half}
    low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    levels = ((images - low[:, None, None]) / step[:, None, None]).round().clamp(0, 255)
    return {"images": levels.to(torch.uint8), "images.low": low, "images.step": step}


def unpack(tensors: Mapping[str, Tensor]) -> Tensor:
    """The images of a file whose tensors come from `pack`, float32 [N, C, H, W].

    Raises: KeyError or ValueError where they do not.
    """
    images = tensors["images"]
    if images.dtype == torch.float16:
        return images.float()
    low, step = tensors["images.low"], tensors["images.step"]
    if images.ndim != 4 or images.dtype != torch.uint8 or not low.shape == step.shape == images.shape[1:2]:
        raise ValueError("packed images are float16, or uint8 with a smallest value and a step for each channel")
    return images.float() * step.float()[:, None, None] + low.float()[:, None, None]


def header_of(synthetic: SyntheticSet, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything in a set that is not a tensor, as values that JSON can hold."""
    chosen = {} if synthetic.choice is None else {"choice": asdict(synthetic.choice)}
    return {
        "format": FORMAT,
        "pixels": synthetic.pixels,
        "label_kind": synthetic.label_kind,
        "decode": synthetic.decode,
        "recipe": {f.name: v for f in fields(Recipe) if not isinstance(v := getattr(synthetic.recipe, f.name), Tensor)},
        "about": dict(about or {}),
        **chosen,
    }


def load(path: Path) -> SyntheticSet:
    """Read what `save` wrote. Raises: DataError for a missing, damaged or foreign file."""
    header = read_header(path)
    from safetensors import SafetensorError

    try:
        with _opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, AttributeError, ValueError) as error:  # a kind of numbers that torch does not have
        raise DataError(f"{path} holds a tensor that cannot be read ({error}).") from None
    return assemble(header, tensors, str(path))


def read_header(path: Path) -> dict[str, Any]:
    """Everything in the file that is not a tensor. Raises: DataError for a missing, damaged or foreign file."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get("ddbench")
    try:
        header = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        header = {}
    found = header.get("format") if isinstance(header, dict) else None
    if found not in READ:
        raise DataError(f"{path} is not a ddbench synthetic set (format {found!r}, expected {FORMAT!r}).")
    return dict(header)


def assemble(header: Mapping[str, Any], tensors: Mapping[str, Tensor], shown: str) -> SyntheticSet:
    """The set that `header_of` and `tensors_of` took apart; `shown` is the file that messages name.

    Raises: DataError where the two do not make a set.
    """
    try:
        _Header.model_validate(header)
    except ValidationError as error:
        raise DataError(f"{explain(f'{shown} is damaged, or was made by a newer ddbench', error)}.") from None
    try:
        return _assemble(header, dict(tensors))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{shown} is damaged, or was made by a newer ddbench ({error}).") from None


def _assemble(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> SyntheticSet:
    if header.get("format") == PACKED:
        tensors["images"] = unpack(tensors)
    recipe = dict(header["recipe"])
    for name in ("lr", "schedule"):
        if f"recipe.{name}" in tensors:
            recipe[name] = tensors.pop(f"recipe.{name}")
    start = {name.removeprefix("start."): tensors.pop(name) for name in list(tensors) if name.startswith("start.")}
    return SyntheticSet(
        images=tensors["images"],
        labels=tensors["labels"],
        recipe=Recipe(**recipe),
        pixels=header["pixels"],
        label_kind=header["label_kind"],
        decode=header["decode"],
        start=start,
        source_indices=tensors.get("source_indices"),
        choice=Choice(**header["choice"]) if "choice" in header else None,
    )


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        if path.exists() and (why := not_regular(path)):
            raise OSError(why)
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a readable safetensors file ({error}); it may be half-written. If it is "
            "that of a run, --fresh starts the run over."
        ) from None


def tensors_of(synthetic: SyntheticSet) -> dict[str, Tensor]:
    """Every tensor of a set, by the name that it has in files."""
    tensors = {"images": synthetic.images, "labels": synthetic.labels}
    for name in ("lr", "schedule"):
        value = getattr(synthetic.recipe, name)
        if value is not None:
            tensors[f"recipe.{name}"] = value
    if synthetic.source_indices is not None:
        tensors["source_indices"] = synthetic.source_indices
    tensors.update({f"start.{name}": value for name, value in synthetic.start.items()})
    return tensors
