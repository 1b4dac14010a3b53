"""The time left of a sweep, and where it is in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddbench.runs.batch import Outcome
from ddbench.sweep.progress import Board, Forecast, Reporter


def test_nothing_is_forecast_before_a_run_is_done() -> None:
    forecast = Forecast(["a", "a", "b"], workers=1)
    assert forecast.left([1, 2], {}) is None


def test_runs_take_as_long_as_others_of_their_kind_and_else_as_all() -> None:
    forecast = Forecast(["a", "a", "b", "b", "c"], workers=1)
    forecast.took(0, 10.0)
    forecast.took(2, 30.0)
    assert forecast.left([1], {}) == pytest.approx(10)
    assert forecast.left([1, 3, 4], {}) == pytest.approx(10 + 30 + 20)


def test_workers_share_what_is_left_but_not_the_longest_run() -> None:
    forecast = Forecast(["a"] * 6, workers=2)
    forecast.took(0, 10.0)
    assert forecast.left([2, 3, 4], {1: (4.0, None)}) == pytest.approx((30 + 6) / 2)
    # A run that says itself that it needs longer is believed, and nobody can be done before it.
    assert forecast.left([], {1: (4.0, 50.0)}) == pytest.approx(50)
    assert forecast.left([], {1: (40.0, None)}) == pytest.approx(0)


def outcome(state: Any, message: str = "", record: Any = None) -> Outcome:
    return Outcome(cast(Any, None), Path("runs/x"), state, record, message)


def test_a_board_counts_what_is_done_failed_and_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(["dm 0", "dm 1", "dm 2", "mtt 0"], ["dm", "dm", "dm", "mtt"], 2, already=3)
    board.begins(0, "cuda:0")
    board.begins(1, "cuda:1")
    board.hears(0, {"event": "at", "what": "condense", "count": "20/100", "left": 8.0})
    assert board.lines() == [
        "3 of 7 runs done",
        "  cuda:0: dm 0, condense 20/100, 8 s left",
        "  cuda:1: dm 1, starting",
    ]
    evaluation = SimpleNamespace(accuracy=(0.5, 0.52), protocol="dsa@1", backbone="mlp")
    board.ends(0, outcome("done", record=SimpleNamespace(evaluations=[evaluation])))
    board.ends(1, outcome("failed", "it diverged"))
    board.ends(2, outcome("running", "by pid 7"))
    first, *rest = board.lines()
    assert rest == []
    assert first.startswith("4 of 7 runs done, 1 failed, 1 left to other processes, about ")
    board.hears(0, {"event": "note", "text": "a sentence"})
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "done after 0 s: dm 0: 51.0 % under dsa@1 with mlp",
        "failed after 0 s: dm 1: it diverged",
        "running: dm 2: by pid 7",
        "dm 0: a sentence",
    ]


def test_a_quiet_board_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Board(["dm"], ["dm"], 1, quiet=True, every_seconds=0.0) as board:
        board.begins(0, "cpu")
        board.ends(0, outcome("failed", "it diverged"))
    assert capsys.readouterr().err == ""


def test_a_reporter_passes_on_values_that_json_knows() -> None:
    said: list[dict[str, Any]] = []
    reporter = Reporter(said.append)
    reporter.on_phase("prepare")
    reporter.on_build("2 experts", 1, 4)
    for step in (1, 2, 3):
        reporter.on_step(step, 10, {}, float(step))
    reporter.on_student("dsa@1", "mlp", 1.5, 5, 20.0)
    reporter.on_note("a sentence")
    assert said == [
        {"event": "at", "what": "prepare", "count": "", "left": None},
        {"event": "at", "what": "prepare", "count": "2 experts 25%", "left": None},
        {"event": "at", "what": "condense", "count": "1/10", "left": None},
        {"event": "at", "what": "condense", "count": "2/10", "left": None},
        {"event": "at", "what": "condense", "count": "3/10", "left": 7.0},
        {"event": "at", "what": "evaluate", "count": "dsa@1 mlp 1.5/5 students", "left": 20.0},
        {"event": "note", "text": "a sentence"},
    ]
