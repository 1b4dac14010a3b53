"""The time left of a count: nothing until there is a pace, and no compiling in it."""

import pytest

from ddbench.runs.pace import Pace


def paced(*points: tuple[float, float]) -> Pace:
    pace = Pace()
    for done, seconds in points:
        pace.add(done, seconds)
    return pace


def test_a_steady_count_has_its_rate_from_the_second_interval_on() -> None:
    assert paced((0, 0.0), (10, 1.0)).rate is None
    steady = paced((0, 0.0), (10, 1.0), (20, 2.0))
    assert steady.rate == pytest.approx(10)
    assert steady.left(100) == pytest.approx(8)


def test_steps_that_compile_do_not_enter_the_pace() -> None:
    """One step in 19 s, then a hundred a second: 4 000 steps are 40 s, and not the 5 hours of the first two points."""
    compiled = [(0.0, 0.0), (1.0, 19.0), (101.0, 20.0)]
    assert paced(*compiled).left(4000) is None
    assert paced(*compiled, (201.0, 21.0)).left(4000) == pytest.approx(37.99)


def test_the_pace_follows_a_change() -> None:
    slower = paced(*((100.0 * k, float(k)) for k in range(9)), (810.0, 9.0), (820.0, 10.0))
    assert slower.rate == pytest.approx(10)


def test_a_count_that_begins_anew_has_no_pace() -> None:
    assert paced((0, 0.0), (10, 1.0), (20, 2.0), (0, 3.0)).rate is None


def test_standing_still_is_not_a_point() -> None:
    assert paced((0, 0.0), (10, 1.0), (10, 2.0), (20, 2.0)).rate == pytest.approx(10)


def test_nothing_is_left_of_a_count_that_is_done() -> None:
    assert paced((0, 0.0), (10, 1.0), (20, 2.0)).left(15) == 0
