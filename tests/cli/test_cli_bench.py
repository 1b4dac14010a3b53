"""ddbench bench, as a person calls it, on the CPU."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.costs.bench import read_bench


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["bench", "--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def first(place: Path) -> Result:
    """Every loop once, written to a file."""
    small = ("--seconds", "0.2", "--ipc", "1", "--backbone", "convnet-w8")
    return call(*small, "--runs", str(place / "runs"), "--output", str(place / "first.json"))


def test_every_loop_is_timed_printed_and_written(first: Result, place: Path) -> None:
    assert first.exit_code == 0, first.output
    names = [result.name for result in read_bench(place / "first.json").results]
    assert names == ["product of 1024x1024", "copy", "dm ipc1 convnet-d3-w8", "student convnet-d3-w8 ipc1"]
    assert all(name in first.stdout for name in names)
    assert "images/s" in first.stdout
    assert "extrapolated" in first.stdout
    assert first.stderr.splitlines() == ["ceiling", "dm ipc1 fp32", "students convnet-w8 ipc1 fp32"]


def test_a_document_names_no_place(first: Result, place: Path) -> None:
    assert str(place) not in (place / "first.json").read_text()


def test_times_of_students_are_kept_for_estimates(first: Result, place: Path) -> None:
    kept = place / "runs" / "artifacts" / "bench" / "cpu.json"
    assert kept.read_text() == (place / "first.json").read_text()
    assert call("--loop", "ceiling", "--seconds", "0.01", "--runs", str(place / "other")).exit_code == 0
    assert not (place / "other").exists()


def test_two_documents_are_compared_loop_by_loop(first: Result, place: Path) -> None:
    value = json.loads((place / "first.json").read_text())
    value["machine"]["torch"] = "1.0"
    value["results"][0]["ms"] *= 1000
    (place / "old.json").write_text(json.dumps(value))
    options = ("--loop", "ceiling", "--seconds", "0.01", "--quiet", "--against", str(place / "old.json"))
    told = call(*options)
    assert told.exit_code == 0, told.output
    assert "old ms" in told.stdout
    assert told.stderr.startswith("Not the same torch: 1.0 then,")
    rows = json.loads(call(*options, "--json").stdout)["against"]
    assert [row["name"] for row in rows] == ["product of 1024x1024", "copy"]
    assert rows[0]["faster"] > 100
    assert rows[0]["same"] is False


def test_json_is_the_document(first: Result) -> None:
    value = json.loads(call("--loop", "ceiling", "--seconds", "0.01", "--quiet", "--json").stdout)
    assert value["schema"] == "ddbench.bench/1"
    assert value["machine"]["device"] == "cpu"


def test_a_foreign_file_is_refused_before_anything_is_timed(place: Path) -> None:
    (place / "foreign.json").write_text('{"schema": "another/1"}')
    refused = call("--against", str(place / "foreign.json"))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert "was not written by `ddbench bench`" in refused.stderr
    assert "ceiling" not in refused.stderr


def test_loops_without_anything_in_common_are_said_to_be_so(first: Result, place: Path) -> None:
    value = json.loads((place / "first.json").read_text())
    value["results"] = value["results"][2:]
    (place / "few.json").write_text(json.dumps(value))
    told = call("--loop", "ceiling", "--seconds", "0.01", "--quiet", "--against", str(place / "few.json"))
    assert "no loop in common" in told.stdout
