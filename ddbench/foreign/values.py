"""Images, labels and step sizes of foreign files as tensors of the usual shapes and types."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.errors import DataError
from ddbench.foreign.pickles import EXPANDS, SMALL, PlainArray

READS = (
    "Read are: .safetensors; .pt of the DC layout {'data': [[images, labels], …]}; images_*.pt with labels_*.pt, in "
    "shards too; .npz with images and labels; .npy of uint8; a folder with one folder of images per class; "
    "labels.pt or labels.npy beside images."
)
MOST_CLASSES = 100_000  # five times those of the largest image dataset
MOST_NESTED = 5  # lists in a list: classes, images, channels, rows, values
MOST_LEAVES = 20_000_000  # numbers in lists; as many objects take gigabytes


def images_of(path: Path, value: Any) -> Tensor:
    """[N, C, H, W], float32 or uint8, from any common order of axes."""
    images = tensor_of(path, value)
    if images.ndim == 5:
        images = images.flatten(0, 1)
    if images.ndim == 3:
        images = images[:, None]
    shape = tuple(images.shape)
    if images.ndim != 4 or not images.numel():
        raise DataError(f"{path} has images of shape {shape}; expected are [N, C, H, W] or [N, H, W, C]. {READS}")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if not first and not last:
        raise DataError(f"{path} has images of shape {shape}, of which no axis is 1 or 3 channels. {READS}")
    if not first:
        images = images.permute(0, 3, 1, 2)
    if images.is_complex() or images.dtype == torch.bool:
        raise DataError(f"{path} has images of {images.dtype}; pixels are real numbers.")
    if images.is_floating_point():
        return images.detach().float().contiguous()
    if int(images.min()) < 0 or int(images.max()) > 255:
        raise DataError(
            f"{path} has whole-numbered images from {int(images.min())} to {int(images.max())}; bytes are 0 to 255."
        )
    return images.to(torch.uint8).contiguous()


def labels_of(path: Path, value: Any, count: int) -> Tensor:
    """[N] int64 or [N, K] float32, for `count` images."""
    labels = tensor_of(path, value)
    if labels.ndim > 1 and labels.shape[0] != count and labels.shape[:2].numel() == count:
        labels = labels.flatten(0, 1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise DataError(f"{path} has labels of shape {tuple(labels.shape)} for {count} images; one row each is needed.")
    if labels.is_complex():
        raise DataError(f"{path} has labels of {labels.dtype}; classes are whole numbers.")
    if labels.ndim == 2:
        return labels.detach().float().contiguous()
    whole = not labels.is_floating_point() or bool((torch.isfinite(labels) & (labels == labels.round())).all())
    if not whole:
        raise DataError(f"{path} has labels that are neither whole numbers nor one row of numbers an image.")
    if not len(labels) or abs(int(labels.min())) > MOST_CLASSES or int(labels.max()) > MOST_CLASSES:
        shown = f"from {int(labels.min())} to {int(labels.max())}" if len(labels) else "of no image"
        raise DataError(f"{path} has labels {shown}; classes are counted from 0, and no dataset has {MOST_CLASSES}.")
    return labels.detach().long().contiguous()


def rate_of(path: Path, value: Any) -> Tensor:
    """A step size: a scalar, or [T], one for each step; float32."""
    rate = tensor_of(path, value).detach()
    if rate.is_complex():
        raise DataError(f"{path} has a step size of {rate.dtype}; it is a real number.")
    rate = rate.float().squeeze()
    if rate.ndim > 1 or not rate.numel():
        raise DataError(f"{path} has a step size of shape {tuple(rate.shape)}; it is one number, or one for each step.")
    return rate


def is_array(value: Any) -> bool:
    """Whether a value of a file is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def may_be_numbers(value: Any) -> bool:
    """Whether a value of a file is meant as several numbers: a tensor, an array, or a list of any of them."""
    return is_array(value) or (isinstance(value, list | tuple) and len(value) > 0)


def tensor_of(path: Path, value: Any) -> Tensor:
    """Numbers of a kind that torch computes with, no more of them than the file has.

    A file can hold one number and a shape of millions, or a tensor that is a description and no numbers.
    """
    if isinstance(value, list | tuple) and any(map(is_array, _leaves(path, value))):
        return _stacked(path, value)
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            what = "nested" if value.is_nested else "quantised" if value.is_quantized else str(value.layout)
            raise DataError(
                f"{path} has a tensor that is no plain array of numbers on the CPU ({what}, {value.device.type}). Ask "
                "its maker for plain tensors."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise DataError(
                f"{path} has a tensor of shape {tuple(value.shape)} and numbers for a part of it only, which are "
                "repeated. Ask its maker for a file with all of them."
            )
        return _usual(value.detach())
    try:
        if isinstance(value, PlainArray) and not value.readable:
            raise TypeError("an array of objects, texts or records")
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind not in "biufc":
            raise TypeError(f"values of type {array.dtype}")
        native = np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("="))
        return _usual(torch.from_numpy(native))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} has something that is no array of numbers where one belongs ({error}).") from None


def refuse_repeats(path: Path, parts: Iterable[Any]) -> None:
    """Raise DataError where a file names the same numbers again and again, so that it becomes much more than it has."""
    whole = sum(_bytes(part) for part in parts if is_array(part))
    if whole > max(SMALL, EXPANDS * path.stat().st_size):
        raise DataError(f"{path} has {path.stat().st_size} bytes and would become {whole}, so it is left alone.")


def _bytes(value: Tensor | np.ndarray) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else value.nbytes


def _leaves(path: Path, value: Any) -> list[Any]:
    """What is in a list of lists that are no lists. A list can be in itself, or name another a thousand times."""
    level = [value]
    for _ in range(MOST_NESTED):
        if not any(isinstance(part, list | tuple) for part in level):
            return level
        parts = (part if isinstance(part, list | tuple) else [part] for part in level)
        level = list(itertools.islice(itertools.chain.from_iterable(parts), MOST_LEAVES + 1))
        if len(level) > MOST_LEAVES:
            break
    if len(level) > MOST_LEAVES or any(isinstance(part, list | tuple) for part in level):
        raise DataError(f"{path} has lists in lists where numbers belong, too many or too deep. Ask for a tensor.")
    return level


def _stacked(path: Path, value: list[Any] | tuple[Any, ...]) -> Tensor:
    """A list of tensors as one, its first axis being the list's."""
    refuse_repeats(path, _leaves(path, value))
    parts = [tensor_of(path, part) for part in value]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        shown = " and ".join(map(str, sorted(shapes)[:2]))
        raise DataError(f"{path} has a list of tensors of different shapes, such as {shown}; they make no array.")
    return torch.stack(parts)


def _usual(tensor: Tensor) -> Tensor:
    # Of these torch has a type, and hardly any function.
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return tensor.to(torch.int64)
    usual = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.float() if tensor.is_floating_point() and tensor.dtype not in usual else tensor
