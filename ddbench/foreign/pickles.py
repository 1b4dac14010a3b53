"""Files of torch, opened without calling anything that they name; and what is said of those that cannot be so opened.

Pickles are opened by torch's restricted loader, which makes tensors and plain values. For numpy's arrays and numbers it
calls what stands here in numpy's place, and that makes numbers of plain types alone.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddbench.data.mistaken import refuse_mistaken
from ddbench.errors import DataError
from ddbench.files import not_regular, open_regular

# What a file may become in memory for each of its bytes: half precision doubles, deflate shrinks one colour a lot.
EXPANDS, EXPANDS_PACKED, SMALL = 16, 250, 64 << 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in files of torch before version 1.6
PLAIN_TYPE = re.compile(r"[biufc]\d{1,2}")


class PlainType:
    """Stands for numpy.dtype in a pickle; its state can change the order of bytes, and nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    @property
    def plain(self) -> np.dtype[Any] | None:
        """The type, where it is one of numbers."""
        if not PLAIN_TYPE.fullmatch(self.code) or self.order not in ("<", ">", "=", "|"):
            return None
        return np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]


class PlainArray(np.ndarray):
    """Stands for numpy.ndarray in a pickle. Of another kind than numbers it stays empty, and `readable` is False.

    numpy's own would believe a file that describes pointers or overlapping fields.
    """

    readable = False

    def __new__(cls, *_: object) -> PlainArray:
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: Any) -> None:
        shape, kind, fortran, raw = state[-4:]
        plain = kind.plain if isinstance(kind, PlainType) else None
        if plain is None or not isinstance(raw, bytes):
            return
        sizes = tuple(int(size) for size in shape)
        if min(sizes, default=0) < 0 or math.prod(sizes) * plain.itemsize != len(raw):
            raise pickle.UnpicklingError("an array has another size than its shape")
        super().__setstate__((1, sizes, plain, bool(fortran), raw))  # type: ignore[arg-type]
        self.readable = True


def reconstruct(*_: object) -> PlainArray:
    """Stands for the function of numpy that makes an array, which its state then fills."""
    return PlainArray()


def number(kind: Any, raw: Any = b"") -> Any:
    """Stands for the function of numpy that makes a single number; None of another kind."""
    plain = kind.plain if isinstance(kind, PlainType) else None
    if plain is None or not isinstance(raw, bytes) or len(raw) != plain.itemsize:
        return None
    return np.frombuffer(raw, plain)[0]


# numpy 1 and 2 write different names.
CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
STANDING_IN: list[Any] = [
    (PlainType, "numpy.dtype"),
    (PlainArray, "numpy.ndarray"),
    *((reconstruct, f"{core}._reconstruct") for core in CORES),
    *((number, f"{core}.scalar") for core in CORES),
]


def require_file(path: Path) -> None:
    """Raise DataError for what is no regular file, or is a web page or a pointer under its name."""
    if why := not_regular(path):
        raise DataError(f"{path} cannot be read: {why}.")
    refuse_mistaken(path)


def refuse_bomb(path: Path, file: Any) -> None:
    """Raise DataError for an archive that would unpack to far more than its size; the file is rewound."""
    size = path.stat().st_size
    with zipfile.ZipFile(file) as archive:
        whole = sum(member.file_size for member in archive.infolist())
    file.seek(0)
    if whole > max(SMALL, EXPANDS_PACKED * size):
        raise DataError(f"{path} has {size} bytes and would unpack to {whole}, so it is left alone.")


def unpickle(path: Path) -> Any:
    """What a torch file holds: tensors, arrays of numbers, and plain values.

    Raises: DataError for a damaged file, and one that names anything else, with the lines that convert it.
    """
    from torch.serialization import safe_globals

    require_file(path)
    try:
        if zipfile.is_zipfile(path):
            with open_regular(path) as file:
                refuse_bomb(path, file)
        # What an old torch wrote is warned about, and the reader cannot change it.
        with warnings.catch_warnings(), safe_globals(STANDING_IN):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # whatever a stranger's bytes make of torch's reader
        words = _words(path)
        if words is not None:
            load = "pickle.loads(pathlib.Path(%s).read_bytes())"
            raise DataError(
                f"{path} is a plain pickle, not a file of torch, and cannot be opened without running whatever it "
                f"names. {trusting(path, 'pathlib, pickle, torch', load, words)}"
            ) from None
        text = " ".join(str(error).split()) if isinstance(error, pickle.UnpicklingError) else ""
        named = re.search(r"(?:GLOBAL|global|class|function)\s+`?([\w.]+\.[\w.]+)", text)
        if named is None:
            raise DataError(f"{path} cannot be opened: it is damaged, half there, or no file of torch.") from None
        raise DataError(
            f"{path} is refused: opening it would call {named[1]}. ddbench runs nothing that a foreign file names; "
            f"ask its maker for tensors only. {trusting(path, 'torch', 'torch.load(%s, weights_only=False)')}"
        ) from None


def _words(path: Path) -> set[str] | None:
    """The texts in a plain pickle, one that was not written by torch; None where the file is none, or half of one."""
    words = set()
    try:
        with open_regular(path) as file:
            for _, value, _ in pickletools.genops(file):
                if value == LEGACY_MAGIC:
                    return None
                if isinstance(value, str) and len(value) < 100:
                    words.add(value)
            return words if not file.read(1) else None
    except Exception:  # not a pickle
        return None


def trusting(path: Path, modules: str, load: str, words: Collection[str] = ()) -> str:
    """How somebody who trusts the maker of a file makes one of tensors from it; `words` are texts in the file."""
    images = next((word for word in sorted(words) if "image" in word.lower()), None)
    labels = next((word for word in sorted(words) if "label" in word.lower()), None)
    parts = f"value[{images!r}], value[{labels!r}]" if images and labels else "value  # or value['images'], …"
    new = f"{path.stem}-tensors.pt"
    return (
        "If you trust its maker, make a file of tensors from it, once:\n\n"
        f"    import {modules}\n"
        f"    value = {load % repr(path.name)}\n"
        f"    images, labels = {parts}\n"
        f"    torch.save({{'images': torch.as_tensor(images), 'labels': torch.as_tensor(labels)}}, {new!r})"
    )
