"""Programs of fixed shapes."""

import pytest
import torch

from ddbench.engine.program import _check_same


def test_a_program_refuses_arguments_of_another_shape() -> None:
    def check(a: list[object], b: list[object]) -> None:
        _check_same(a, b)

    check([torch.zeros(3), 0.1], [torch.ones(3), 0.1])
    for other in ([torch.ones(2), 0.1], [torch.ones(3), 0.2], [torch.ones(3, dtype=torch.int64), 0.1]):
        with pytest.raises(ValueError, match="keep their shapes"):
            check([torch.zeros(3), 0.1], other)
