"""Boards on a terminal: nothing is wider than it, and what is left out is named."""

import re
from pathlib import Path

import pytest

from ddbench.cli import common
from ddbench.leaderboard.boards import board_of
from ddbench.leaderboard.fitting import fit

RECORDS = sorted((Path(__file__).resolve().parents[1] / "golden" / "records").glob("*.json"))
COMMITTED = Path(__file__).resolve().parents[2] / "leaderboards" / "records" / "cifar10" / "ipc10"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_no_line_of_a_board_is_wider_than_the_terminal(width: int) -> None:
    for records in (RECORDS, sorted(COMMITTED.glob("*.json"))[::3]):
        assert max(map(len, board_of(records, width).splitlines())) <= width


def test_a_board_names_the_columns_that_it_leaves_out() -> None:
    narrow = board_of(RECORDS, 60)
    assert "Left out, for the width of the terminal:" in narrow
    assert "published" in narrow.partition("Left out")[2]
    assert re.search(r"dm  +\d\d\.\d ± \d\.\d", narrow)
    assert "Left out" not in board_of(RECORDS, 1000)


def test_a_board_that_need_not_fit_is_as_wide_as_it_is() -> None:
    assert max(map(len, board_of(RECORDS).splitlines())) > 200


def test_wide_columns_are_wrapped_before_narrow_ones_and_expendable_ones_go_first() -> None:
    headers, rows = ["a", "bb", "c"], [["x" * 40, "y", "z" * 30]]
    assert fit(headers, rows, 100, [2]).widths == (40, 4, 30)
    assert fit(headers, rows, 60, [2]).widths == (26, 4, 26)
    narrow = fit(headers, rows, 30, [2])
    assert (narrow.columns, narrow.widths, narrow.left_out) == ((0, 1), (24, 4), ("c",))


def test_what_is_not_expendable_stays_though_it_is_too_wide() -> None:
    assert fit(["a", "b"], [["x" * 40, "y" * 40]], 10, []).widths == (14, 14)


ROWS = (
    ("soft-labels/cifar10/ipc10", "44.3", "312.9 kB", "none stated by the authors", 1),
    ("dance/cifar10/ipc10", "68.9", "616.0 kB", "none", 22),
)
HEADS = ("name", "accuracy, %", "size", "licence of the images", "seed")


@pytest.mark.parametrize("width", [48, 60, 70, 80, 100, 200])
def test_other_tables_fit_too_and_break_no_word(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "terminal_width", lambda: width)
    common.print_table(ROWS, HEADS, expendable=("seed", "licence of the images"))
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert max(map(len, lines)) <= width
    words = told.out.split()
    for row in ROWS:
        assert row[0] in words
        assert row[1] in words
    assert "312.9 kB" in told.out
    shown = {name for name in ("seed", "licence") if name in words}
    gone = {name for name in ("seed", "licence") if name in told.err}
    assert shown | gone == {"seed", "licence"}
    assert not shown & gone
    assert "licence" not in gone or "seed" in gone, "what is more expendable goes first"


def test_a_table_that_is_no_terminals_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "terminal_width", lambda: None)
    common.print_table(ROWS, HEADS, expendable=("seed",))
    told = capsys.readouterr()
    assert "none stated by the authors  1" in told.out
    assert told.err == ""
