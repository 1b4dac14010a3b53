"""Ledgers that somebody else wrote."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ddbench.errors import RunError
from ddbench.runs.ledger import Ledger


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"a": 1}]', "[", "3"])
def test_a_foreign_ledger_says_how_to_start_over(tmp_path: Path, content: str) -> None:
    folder = SimpleNamespace(cost=tmp_path / "cost.json", attempts=tmp_path / "attempts.json")
    ledger = Ledger(folder, torch.device("cpu"))  # type: ignore[arg-type]
    for path in (folder.cost, folder.attempts):
        path.write_text(content)
    with pytest.raises(RunError, match=r"cost\.json .*--fresh"):
        _ = ledger.costs
    with pytest.raises(RunError, match=r"attempts\.json .*--fresh"):
        _ = ledger.last_step
