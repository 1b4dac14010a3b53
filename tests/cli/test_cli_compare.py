"""ddbench compare, as a person calls it."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    shutil.copytree(RECORDS, tmp_path / "boards" / "records")
    return ["--runs", str(tmp_path / "runs"), "--leaderboards", str(tmp_path / "boards")]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["compare", *arguments])


def test_pairs_are_printed_with_interval_and_verdict(where: list[str]) -> None:
    result = call("dm", "herding", "--judge", "convnet", "--protocol", "dsa", *where)
    assert result.exit_code == 0, result.output
    titles = [line for line in result.stdout.splitlines() if "protocol" in line]
    assert titles == ["CIFAR-10, JPEG copy, ipc 10, hard labels, protocol dsa@1, convnet-d3"]
    assert "corrected by Holm's method for 2 pairs" in result.stdout
    assert "† one set on a side" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("dm [iterations=20001]: 49.1  herd")]
    assert "better†" in line
    assert "+15.74" in line


def test_json_has_every_number_and_null_for_none(where: list[str]) -> None:
    rows = json.loads(call("dm", "herding", "--json", *where).stdout)
    assert {row["verdict"] for row in rows} <= {"better", "worse", "equal", "undecided"}
    assert all(row["difference"] == pytest.approx(row["first_mean"] - row["second_mean"]) for row in rows)


def test_one_result_is_a_usage_error_and_a_wrong_name_a_sentence(where: list[str]) -> None:
    assert call("dm", *where).exit_code == 2
    assert call("dm", "dm", *where).exit_code == 2
    wrong = call("dm", "nobody", *where)
    assert wrong.exit_code == 2
    assert "There are results of: dm, herding, idea, mtt, random, whole." in wrong.stderr
    assert "Traceback" not in wrong.output
