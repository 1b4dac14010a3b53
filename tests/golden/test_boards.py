"""Rendered tables and the committed leaderboard: whatever changes here changes what people read."""

import os
import shutil
from pathlib import Path

import pytest

from ddbench.leaderboard import boards
from ddbench.runs.record import json_schema, read_record

HERE = Path(__file__).parent
LEADERBOARDS = HERE.parents[1] / "leaderboards"
NAMES = (
    "dm-original-s0", "dm-s0", "dm-s1", "dm-short-s0", "herding-s0", "idea-failed-s0", "mtt-zca-s0", "random-quick-s0",
    "random-s0", "random-s1", "whole",
)  # fmt: skip


def looked_at(name: str, text: str) -> str:
    """The kept file; UPDATE_GOLDEN=1 writes it anew, to be looked at."""
    kept = HERE / "boards" / name
    if os.environ.get("UPDATE_GOLDEN"):
        kept.write_text(text, encoding="utf-8")
    return kept.read_text(encoding="utf-8")


@pytest.fixture
def leaderboard(tmp_path: Path) -> Path:
    root = tmp_path / "leaderboards"
    boards.add([HERE / "records" / f"{name}.json" for name in NAMES], root)
    shutil.copy(HERE / "boards" / "published.csv", root / "published.csv")
    return root


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ("tables/cifar10/ipc10.md", "cifar10-ipc10.md"),
        ("tables/cifar10/ipc10.csv", "cifar10-ipc10.csv"),
        ("README.md", "README.md"),
    ],
)
def test_tables_are_those_that_were_looked_at(leaderboard: Path, made: str, kept: str) -> None:
    assert boards.build(leaderboard)[Path(made)] == looked_at(kept, boards.build(leaderboard)[Path(made)])


def test_the_text_for_a_terminal_is_the_one_that_was_looked_at(
    leaderboard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddbench.leaderboard.published.published_file", lambda: leaderboard / "published.csv")
    text = boards.board_of(sorted((leaderboard / "records").rglob("*.json")))
    assert text + "\n" == looked_at("cifar10.txt", text + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_records_of_this_schema_are_read_and_written_alike(name: str) -> None:
    path = HERE / "records" / f"{name}.json"
    record = read_record(path)
    assert type(record).model_validate(record.to_json()) == record


def test_the_committed_schema_is_current() -> None:
    assert (LEADERBOARDS / "schema" / "record.v1.json").read_text(encoding="utf-8") == json_schema()


def test_the_committed_leaderboard_is_what_its_records_give() -> None:
    assert boards.check(LEADERBOARDS) == []
