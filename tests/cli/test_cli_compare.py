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


def test_two_names_of_one_result_are_told_so(where: list[str]) -> None:
    run = RECORDS / "dm-s0.json"
    said = call(str(run), json.loads(run.read_text())["run"]["id"], *where).stderr
    assert "are the same result, so there is nothing to compare" in said


def test_a_judge_that_nobody_had_is_told_those_there_are(where: list[str]) -> None:
    said = call("dm", "herding", "--judge", "nobody", *where).stderr
    assert "Leave out --protocol or --judge, or name what there is:" in said
    assert "dsa@1 with convnet-d3" in said


def test_names_are_taken_in_any_spelling_as_boards_take_them(where: list[str]) -> None:
    asked = ["--judge", "convnet", "--protocol", "dsa", *where]
    assert call("DM", "Herding", "--dataset", "CIFAR-10", *asked).stdout == call("dm", "herding", *asked).stdout


@pytest.mark.parametrize("judge", ["ConvNet-D3", "convnet-in", "own"])
def test_protocols_and_judges_are_taken_as_boards_take_them(where: list[str], judge: str) -> None:
    usual = call("dm", "herding", "--judge", "convnet-d3", "--protocol", "dsa", *where)
    assert usual.exit_code == 0
    assert call("dm", "herding", "--judge", judge, "--protocol", "DSA@1", *where).stdout == usual.stdout


def test_a_protocol_is_any_version_of_it_and_may_be_of_a_file(where: list[str]) -> None:
    place = Path(where[-1]) / "records"
    for file in place.rglob("*.json"):
        file.write_text(file.read_text().replace('"dsa@1"', '"mine@7"'))
    shown = call("dm", "herding", "--protocol", "mine", *where)
    assert shown.exit_code == 0, shown.output
    assert "protocol mine@7" in shown.stdout
    wrong = call("dm", "herding", "--protocol", "dsx", *where)
    assert wrong.exit_code == 2
    assert "there is no protocol 'dsx'. Did you mean 'dsa'?" in wrong.stderr


@pytest.mark.parametrize("chosen", [["--dataset", "mnist"], ["--ipc", "1"], ["--dataset", "cifar10", "--ipc", "50"]])
def test_a_choice_that_nothing_fits_says_what_there_is(where: list[str], chosen: list[str]) -> None:
    wrong = call("dm", "herding", *chosen, *where)
    assert wrong.exit_code == 2
    assert "There are results on cifar10, whole dataset; cifar10, ipc 10." in wrong.stderr


def test_where_there_is_no_result_at_all_a_first_run_is_told(tmp_path: Path) -> None:
    wrong = call("dm", "herding", "--runs", str(tmp_path), "--leaderboards", str(tmp_path))
    assert wrong.exit_code == 2
    assert "There are no results at all. A first one: ddbench run" in wrong.stderr
