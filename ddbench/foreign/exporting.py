"""Sets as files that others read. What a layout has no place for lies beside it, so that ddbench loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ddbench import synthetic as sets
from ddbench.data.pixels import PixelSpace
from ddbench.decoders import NONE
from ddbench.errors import DataError, RunError
from ddbench.files import disk_is_full, put_folder, read_json, unfinished, write_atomically, write_json
from ddbench.foreign.formats import HEADER_FILE
from ddbench.synthetic import SyntheticSet, header_of, tensors_of

Format = Literal["safetensors", "pt", "npz", "png"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class Loss:
    """What an export has lost: mean and largest change of a pixel, in grey levels of 255, and the share cut off.

    `labels` says that soft labels became classes.
    """

    mean: float
    most: float
    cut: float
    labels: bool

    def __str__(self) -> str:
        text = (
            f"png holds bytes: pixels changed by {self.mean:.2f} of 255 levels on average and by {self.most:.0f} at "
            f"most, and {100 * self.cut:.1f} % were outside what a byte can hold"
        )
        return text + ("; soft labels became classes" if self.labels else "")


def export(
    synthetic: SyntheticSet,
    path: Path,
    kind: Format,
    pixels: Callable[[], PixelSpace],
    about: Mapping[str, Any] | None = None,
) -> Loss | None:
    """Write a set to `path`, for png a folder; returns what was lost, None where nothing was.

    `pixels` gives its pixel space, and is asked only where the layout needs pixels in another form.

    Raises: DataError where the layout cannot hold the set; RunError where the place cannot be written.
    """
    unfinished(path)
    match kind:
        case "safetensors":
            sets.save(synthetic, path, about)
        case "pt":
            # Through memory: writing to a path, torch keeps that path in the file, and takes a full disk for a fault.
            content = io.BytesIO()
            torch.save(_as_pt(synthetic, pixels, about), content)
            write_atomically(path, content.getvalue())
        case "npz":
            arrays = _as_npz(synthetic, about)
            content = io.BytesIO()
            np.savez(content, **arrays)
            write_atomically(path, content.getvalue())
        case "png":
            return _write_png(synthetic, path, pixels, about)
    return None


def _as_pt(
    synthetic: SyntheticSet, pixels: Callable[[], PixelSpace], about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The DC layout: others read `data`, ddbench the rest too."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors_of(synthetic).items()}
    images, labels = tensors.pop("images"), tensors.pop("labels")
    if images.dtype == torch.uint8:
        # Everybody else expects pixels as networks see them.
        space = pixels().to("cpu")
        if synthetic.decode != NONE and not space.cheap:
            raise DataError(
                f"the pixel space {space.name} whitens the images that a mosaic holds, and not the mosaic, so that pt "
                "cannot keep a set of mosaics of bytes in it. Use --format safetensors or npz."
            )
        images = space.forward(images)
    header = json.dumps(header_of(synthetic, about), sort_keys=True)
    value: dict[str, Any] = {"data": [[images, labels]], "ddbench": header, "tensors": tensors}
    if synthetic.recipe.lr is not None:
        value["lr"] = tensors["recipe.lr"]
    return value


def _as_npz(synthetic: SyntheticSet, about: Mapping[str, Any] | None) -> dict[str, Any]:
    arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors_of(synthetic).items()}
    # KIP's archives, the only public ones, have channels last.
    arrays["images"] = np.ascontiguousarray(arrays["images"].transpose(0, 2, 3, 1))
    return arrays | {"ddbench": np.array(json.dumps(header_of(synthetic, about), sort_keys=True))}


def _write_png(
    synthetic: SyntheticSet, folder: Path, pixels: Callable[[], PixelSpace], about: Mapping[str, Any] | None
) -> Loss | None:
    """CLASS/NUMBER.png: classes by number, images of each in their order."""
    from PIL import Image

    if synthetic.decode != "none" or synthetic.start or synthetic.recipe.schedule is not None:
        raise DataError("the set holds more than one image a picture, such as tiles or a schedule; png cannot keep it.")
    if synthetic.images.shape[1] not in (1, 3):
        raise DataError(f"png holds 1 or 3 channels, and these images have {synthetic.images.shape[1]}.")
    shown, loss = _as_bytes(synthetic, pixels)
    folder = folder.resolve()
    _refuse_foreign(folder)
    # Beside its place and then there by one rename, so that a folder of a part of the classes is never seen.
    ready = unfinished(folder)
    try:
        ready.mkdir(parents=True)
        numbers: dict[int, int] = {}
        for image, label in zip(shown, synthetic.hard_labels.tolist(), strict=True):
            numbers[label] = numbers.get(label, -1) + 1
            picture = Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
            content = io.BytesIO()
            picture.save(content, "PNG")
            write_atomically(ready / str(label) / f"{numbers[label]:05d}.png", content.getvalue())
        kept = header_of(synthetic, about)
        if synthetic.recipe.lr is not None:
            kept["lr"] = synthetic.recipe.lr.tolist()
        write_json(ready / HEADER_FILE, kept)
        put_folder(ready, folder)
    except OSError as error:
        why = "the disk is full" if disk_is_full(error) else error.strerror or error
        raise RunError(f"{folder} could not be written: {why}. Choose another --out, or make room.") from error
    finally:
        shutil.rmtree(ready, ignore_errors=True)
    return loss


def _refuse_foreign(folder: Path) -> None:
    """Raise DataError where something else is in the place of an export, or beside what an earlier one has written."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, and png becomes a folder. Choose another --out.")
    inside = sorted(folder.rglob("*"))
    if not inside:
        return
    header: Any = None
    with contextlib.suppress(RunError):
        header = read_json(folder / HEADER_FILE)
    if not (isinstance(header, dict) and header.get("format") == sets.FORMAT):
        raise DataError(
            f"{folder} is not empty and was not made by ddbench, so it is left alone. Choose another --out."
        )
    for path in inside:
        name = path.relative_to(folder).as_posix()
        folder_of_ours = path.is_dir() and not path.is_symlink() and name.isdecimal()
        if not (name == HEADER_FILE or folder_of_ours or re.fullmatch(r"\d+/\d{5,}\.png", name)):
            raise DataError(
                f"{folder} holds {name}, which an export does not write, so it is left alone. Choose another --out, or "
                "move that away."
            )


def _as_bytes(synthetic: SyntheticSet, pixels: Callable[[], PixelSpace]) -> tuple[Tensor, Loss | None]:
    if synthetic.images.dtype == torch.uint8:
        return synthetic.images, Loss(0.0, 0.0, 0.0, True) if synthetic.soft else None
    back = pixels().to("cpu").back(synthetic.images.cpu())
    if back is None:
        raise DataError(
            f"nothing leads from the pixel space {synthetic.pixels} back to pixels, so the set cannot be pictures. "
            "Use --format pt or npz."
        )
    levels = 255 * back
    shown = levels.round().clamp(0, 255).to(torch.uint8)
    change = (levels - shown).abs()
    outside = ((levels < -0.5) | (levels > 255.5)).double().mean()
    return shown, Loss(float(change.mean()), float(change.max()), float(outside), synthetic.soft)
