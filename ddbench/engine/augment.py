"""Differentiable siamese augmentation: drawn once, applied anywhere.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259.

Images are [G, n, C, H, W]: G groups (classes, students or steps) of n images, in normalised pixels, so that the zeros
that come in at the border are the mean colour of the dataset. Each group gets one operation. Sizes of boxes and shifts
come from H for rows and from W for columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi

import torch
from torch import Tensor
from torch.utils import _pytree

from ddbench.engine.capabilities import sent
from ddbench.engine.program import gpu_kernels
from ddbench.errors import ConfigError, closest
from ddbench.rng import Rng

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
ALL_OPS = "color_crop_cutout_flip_scale_rotate"
# Mirrored digits are other signs or none, so MNIST and SVHN are never flipped.
DIGIT_OPS = "color_crop_cutout_scale_rotate"

CROP_SHARE = 0.125
CUTOUT_SHARE = 0.5
SCALE_MOST = 1.2
ROTATE_DEGREES = 15.0
# Radians from the farthest turn to one side to that to the other.
MOST_TURN = 2 * ROTATE_DEGREES * pi / 180

_IDENTITY = -1


def parse_strategy(text: str, known: tuple[str, ...] = OPS) -> tuple[str, ...]:
    """The operations that a strategy names: "crop_flip" is ("crop", "flip"), "none" is ().

    Raises: ConfigError for an unknown, repeated or missing operation.
    """
    if text == "none":
        return ()
    ops = tuple(text.split("_"))
    for op in ops:
        if op not in known:
            raise ConfigError(
                f"Augmentation {text!r} names {op!r}, which is no operation. {closest(op, known)}"
                f"Join some of {', '.join(known)} with underscores, or say 'none'."
            )
    if len(set(ops)) < len(ops):
        raise ConfigError(f"Augmentation {text!r} names an operation twice. Each is drawn equally often: name it once.")
    return ops


def resolve_strategy(text: str, digits: bool) -> str:
    """The strategy that a name stands for; any other text stays as it is.

    "auto" is one of all operations a step. "idc" is flip and colour in every step, then one of crop, scale and rotate,
    as in the code of Kim et al., ICML 2022 (arXiv 2205.14959), which DANCE and NCFM took over. Neither flips digits.
    """
    match text:
        case "auto":
            return DIGIT_OPS if digits else ALL_OPS
        case "idc":
            return "color+crop_scale_rotate" if digits else "flip+color+crop_scale_rotate"
        case _:
            return text


def one_after_another(text: str) -> tuple[str, ...]:
    """The strategies that all apply, in their order: "color+crop" is ("color", "crop"), "none" is ()."""
    return () if text == "none" else tuple(text.split("+"))


@dataclass(frozen=True, eq=False)
class Draw:
    """One operation a group and the numbers it uses; calling it applies it, as often as wanted.

    Shapes: ops [G], int64, an index into OPS, or -1 to leave the group alone; on the CPU, so that nothing waits for the
    device, or on the device in a program of static shape, where the operation is not known beforehand. numbers
    [G, 1, 3] (siamese) or [G, B, 3] (one row an image), float32, uniform in [0, 1).
    A siamese draw fits batches of any size; another one batches of up to B images, which use the first rows.
    `static` applies all operations as one formula, whichever was drawn; draws whose ops are on a device always do.
    `align_corners` is the coordinate convention of scale and rotate. It changes only rotations of images that are not
    square, where it decides which aspect ratio they are turned in.
    """

    ops: Tensor
    numbers: Tensor
    align_corners: bool = False
    static: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        return apply(self, images)

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, groups: int | slice) -> Draw:
        """Some groups. An integer gives a draw of one group; `draw[t::T]` is step t of S students drawn as [S * T]."""
        if isinstance(groups, int):
            groups = range(len(self))[groups]
            groups = slice(groups, groups + 1)
        return replace(self, ops=self.ops[groups], numbers=self.numbers[groups])

    def to(self, device: torch.device | str) -> Draw:
        """The draw with its numbers on `device`, without waiting for the copy."""
        return replace(self, numbers=sent(self.numbers, torch.device(device)))


_pytree.register_pytree_node(
    Draw,
    lambda draw: ([draw.ops, draw.numbers], (draw.align_corners, draw.static)),
    lambda tensors, rest: Draw(*tensors, *rest),
    serialized_type_name="ddbench.Draw",
)


def join(draws: Sequence[Draw]) -> Draw:
    """The groups of several draws of one kind, one after another."""
    return replace(
        draws[0],
        ops=torch.cat([draw.ops for draw in draws]),
        numbers=torch.cat([draw.numbers for draw in draws]),
    )


def siamese(strategy: str, groups: int, rng: Rng, *, align_corners: bool = False) -> Draw:
    """One operation and one set of numbers a group, shared by all its images, in every batch it is applied to."""
    return _draw(strategy, groups, 1, rng, align_corners)


def independent(strategy: str, groups: int, batch: int, rng: Rng, *, align_corners: bool = False) -> Draw:
    """One operation a group and other numbers for each of its `batch` images: the augmentation of network training."""
    return _draw(strategy, groups, batch, rng, align_corners)


def draw_many(strategy: str, steps: int, batch: int, rng: Rng, *, align_corners: bool = False) -> Draw:
    """The independent draws of `steps` training steps at once; `draw[t]` is step t."""
    return independent(strategy, steps, batch, rng, align_corners=align_corners)


def apply(draw: Draw, images: Tensor) -> Tensor:
    """Augment images [G, n, C, H, W], differentiably to any order, forward and backward; nothing waits for the device.

    Raises: ValueError if groups or batch do not fit the draw.
    """
    rows = draw.numbers.shape[1]
    if images.dim() != 5 or len(images) != len(draw) or 1 < rows < images.shape[1]:
        raise ValueError(
            f"This draw augments [{len(draw)}, {'n' if rows == 1 else rows}, C, H, W], not {tuple(images.shape)}."
        )
    numbers = sent(draw.numbers[:, : images.shape[1]], images.device)
    if draw.static or draw.ops.device.type != "cpu":
        if _in_one_kernel(images):
            from ddbench.engine.gpu.augment import augment

            return augment(images, draw.ops, numbers, draw.align_corners)
        return _apply_static(draw.ops, images, numbers, draw.align_corners)
    kinds, counts = draw.ops.unique(return_counts=True)
    if len(kinds) == 1:
        return _apply_one(int(kinds), images, numbers, draw.align_corners)
    order = draw.ops.argsort(stable=True)
    there, back = sent(torch.stack([order, order.argsort()]), images.device)
    sizes = counts.tolist()
    pieces = zip(kinds.tolist(), images.index_select(0, there).split(sizes), numbers[there].split(sizes), strict=True)
    return torch.cat([_apply_one(*piece, draw.align_corners) for piece in pieces]).index_select(0, back)


def _in_one_kernel(images: Tensor) -> bool:
    """Whether the GPU kernel of augmentation can be used, which has no gradient."""
    if not images.is_cuda or images.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return not (images.requires_grad and torch.is_grad_enabled()) and gpu_kernels() is not None


def _draw(strategy: str, groups: int, rows: int, rng: Rng, align_corners: bool) -> Draw:
    allowed = torch.tensor([OPS.index(op) for op in parse_strategy(strategy)] or [_IDENTITY])
    choice = torch.randint(len(allowed), (groups,), generator=rng.fold("op").torch())
    return Draw(allowed[choice], torch.rand(groups, rows, 3, generator=rng.fold("numbers").torch()), align_corners)


def _apply_one(op: int, images: Tensor, numbers: Tensor, align_corners: bool) -> Tensor:
    if op == _IDENTITY:
        return images
    u = numbers[..., None, None, None].unbind(2)
    match OPS[op]:
        case "color":
            return _color(images, *u)
        case "crop":
            return _crop(images, *u[:2])
        case "cutout":
            return _cutout(images, *u[:2])
        case "flip":
            return torch.where(u[0] < 0.5, images.flip(-1), images)
        case "scale":
            return _scale(images, *u[:2])
        case _:
            return _rotate(images, u[0], align_corners)


def _apply_static(ops: Tensor, images: Tensor, numbers: Tensor, align_corners: bool) -> Tensor:
    """Every operation at once, those that were not drawn with numbers that change nothing: one program for all draws.

    Equal to the operations one by one within rounding. More arithmetic, but one fused pass over the images.
    """
    kind = ops[:, None, None, None, None]
    drawn = numbers[..., None, None, None].unbind(2)
    u = [number.to(images.dtype) for number in drawn]

    def where(op: str, value: Tensor, otherwise: float) -> Tensor:
        return torch.where(kind == OPS.index(op), value, otherwise)

    x = _colored(
        images, where("color", u[0] - 0.5, 0.0), where("color", 2 * u[1], 1.0), where("color", u[2] + 0.5, 1.0)
    )

    height, width = images.shape[-2:]
    (rows, columns), tall = _centred(images), tallness(height, width, align_corners)
    angle = where("rotate", _angle(u[0]), 0.0)
    grow = [torch.where(kind == OPS.index("scale"), _factor(v), angle.cos()) for v in (u[1], u[0])]
    mirror = torch.where((kind == OPS.index("flip")) & (drawn[0] < 0.5), -1.0, 1.0)
    down, right = reach(height), reach(width)
    shift = [
        where("crop", (_integer(v, 2 * most + 1) - most).to(x.dtype), 0.0)
        for v, most in zip(drawn, (down, right), strict=False)
    ]
    x = _bilinear(
        x,
        grow[0] * rows + angle.sin() / tall * columns + (height - 1) / 2 + shift[0],
        mirror * grow[1] * columns - angle.sin() * tall * rows + (width - 1) / 2 + shift[1],
    )
    return x.masked_fill(_box(x, drawn[0], drawn[1]) & (kind == OPS.index("cutout")), 0)


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    brightness, saturation, contrast = (u.to(x.dtype) for u in (brightness, saturation, contrast))
    return _colored(x, brightness - 0.5, 2 * saturation, contrast + 0.5)


def _colored(x: Tensor, add: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + add
    grey = x.mean(-3, keepdim=True)
    x = (x - grey) * saturation + grey
    mean = x.mean((-3, -2, -1), keepdim=True)
    return (x - mean) * contrast + mean


def _crop(images: Tensor, u_rows: Tensor, u_columns: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    down, right = reach(height), reach(width)
    rows, columns = _pixels(images, torch.int64)
    rows = rows + _integer(u_rows, 2 * down + 1) - down
    columns = columns + _integer(u_columns, 2 * right + 1) - right
    pixels, inside = _pick(images, rows, columns)
    return pixels.masked_fill(~inside, 0)


def _cutout(images: Tensor, u_rows: Tensor, u_columns: Tensor) -> Tensor:
    return images.masked_fill(_box(images, u_rows, u_columns), 0)


def _box(images: Tensor, u_rows: Tensor, u_columns: Tensor) -> Tensor:
    rows, columns = _pixels(images, torch.int64)
    return _in_box(rows, u_rows) & _in_box(columns, u_columns)


def _in_box(pixels: Tensor, u: Tensor) -> Tensor:
    length = pixels.numel()
    side = box_side(length)
    # A box with an even side has one more centre than the image has pixels.
    start = _integer(u, length + 1 - side % 2) - side // 2
    return (pixels >= start) & (pixels < start + side)


def _scale(images: Tensor, u_columns: Tensor, u_rows: Tensor) -> Tensor:
    (rows, columns), (height, width) = _centred(images), images.shape[-2:]
    factors = [_factor(u.to(rows.dtype)) for u in (u_rows, u_columns)]
    return _bilinear(images, factors[0] * rows + (height - 1) / 2, factors[1] * columns + (width - 1) / 2)


def _rotate(images: Tensor, u: Tensor, align_corners: bool) -> Tensor:
    (rows, columns), (height, width) = _centred(images), images.shape[-2:]
    angle, tall = _angle(u.to(rows.dtype)), tallness(height, width, align_corners)
    return _bilinear(
        images,
        angle.sin() / tall * columns + angle.cos() * rows + (height - 1) / 2,
        angle.cos() * columns - angle.sin() * tall * rows + (width - 1) / 2,
    )


def reach(length: int) -> int:
    """The farthest that a crop moves the image."""
    return int(CROP_SHARE * length + 0.5)


def box_side(length: int) -> int:
    """Rows or columns of the box that cutout blanks."""
    return int(CUTOUT_SHARE * length + 0.5)


def _factor(u: Tensor) -> Tensor:
    return 1 / SCALE_MOST + u * (SCALE_MOST - 1 / SCALE_MOST)


def _angle(u: Tensor) -> Tensor:
    return (u - 0.5) * MOST_TURN


def tallness(height: int, width: int, align_corners: bool) -> float:
    """How many columns are as long as one row in normalised coordinates, in which images are turned."""
    return max(width - 1, 1) / max(height - 1, 1) if align_corners else width / height


def _pixels(images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=dtype, device=images.device)
    return rows[:, None], torch.arange(width, dtype=dtype, device=images.device)


def _centred(images: Tensor) -> tuple[Tensor, Tensor]:
    # Half precision cannot hold pixel positions.
    rows, columns = _pixels(images, torch.promote_types(images.dtype, torch.float32))
    return rows - (images.shape[-2] - 1) / 2, columns - (images.shape[-1] - 1) / 2


def _integer(u: Tensor, count: int) -> Tensor:
    # Never `count` itself: the largest float32 below 1, times any count, rounds to a number below the count.
    return (u * count).long()


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels at integer rows and columns, and which of them are inside; those outside hold some other pixel."""
    height, width = images.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = index.flatten(-2).expand(*images.shape[:3], -1)
    return images.flatten(-2).gather(-1, index).unflatten(-1, (height, width)), inside


def _bilinear(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images at fractional rows and columns, zero outside."""
    # Not grid_sample: in most versions of torch its gradient cannot be differentiated, which bi-level methods need.
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    out = torch.zeros_like(images)
    for i, from_row in ((0, 1 - down), (1, down)):
        for j, from_column in ((0, 1 - right), (1, right)):
            pixels, inside = _pick(images, top.long() + i, left.long() + j)
            out = out + pixels * (from_row * from_column * inside)
    return out.to(images.dtype)
