"""What a method may export."""

from types import SimpleNamespace

import pytest
import torch

from ddbench.errors import PluginError
from ddbench.runs.condensing import in_budget
from ddbench.synthetic import SyntheticSet


def _exported(value: object) -> SyntheticSet:
    method = SimpleNamespace(name="mine", info=SimpleNamespace(kind="condensation"), export=lambda *_: value)
    problem = SimpleNamespace(
        ipc=1, classes=2, train=range(9), whitened_apart=False, pixels=SimpleNamespace(name="standard")
    )
    return in_budget(method, problem, None)  # type: ignore[arg-type]


def test_an_export_over_the_budget_is_refused() -> None:
    def of(count: int) -> SyntheticSet:
        return SyntheticSet(torch.zeros(count, 1, 2, 2), torch.arange(count) % 2)

    assert len(_exported(of(2))) == 2
    with pytest.raises(PluginError, match="returned 4 images; 1 per class are 2"):
        _exported(of(4))


def test_an_export_of_something_else_is_refused() -> None:
    with pytest.raises(PluginError, match="returned a int"):
        _exported(3)
