"""Generators as a seed and a path of names."""

import numpy as np
import pytest

from ddbench.rng import Rng


def test_a_generators_path_takes_any_integer() -> None:
    assert Rng(0).fold("class", np.int64(3)).key == Rng(0).fold("class", 3).key  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Rng(0).fold(0.5)  # type: ignore[arg-type]
