"""Files of evaluations that are damaged."""

from pathlib import Path

import pytest

from ddbench.errors import RunError
from ddbench.runs.evaluating import read_evaluation


def test_a_damaged_evaluation_says_what_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "mlp.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"mlp\.json is damaged .* Remove that file"):
        read_evaluation(path)
