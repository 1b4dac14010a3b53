"""Boards on a terminal: nothing is wider than it, and what is left out is named."""

import re
from pathlib import Path

import pytest

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
