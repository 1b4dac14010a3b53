"""Randomness as an argument: a seed and a path of names."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Rng:
    """A seed and a path. The same path gives the same numbers, whatever ran before.

    Name every use, `rng.fold("network")`, so that adding a draw never shifts another one.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def fold(self, *names: str | int) -> Rng:
        """The generator one level down."""
        # Integers of numpy and torch print otherwise than Python's, and the key is made from what is printed.
        return Rng(self.seed, self.path + tuple(n if isinstance(n, str) else operator.index(n) for n in names))

    @property
    def key(self) -> int:
        """63 bits that depend on the seed and the whole path."""
        text = repr((self.seed, self.path)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator on `device`. torch draws other numbers on a GPU than on a CPU."""
        import torch

        return torch.Generator(device).manual_seed(self.key)

    def numpy(self) -> np.random.Generator:
        """A fresh numpy generator."""
        import numpy as np

        return np.random.default_rng(self.key)
