"""Letters of methods that the data does not tell apart."""

from itertools import combinations

import numpy as np

from ddbench.leaderboard.alike import letters
from ddbench.leaderboard.comparison import LEVEL, holm, p_value
from ddbench.leaderboard.statistics import Group


def group(*sets: list[float]) -> Group:
    """Accuracies by set and student, without the description that letters do not use."""
    accuracies = {f"set {k}": dict(enumerate(students)) for k, students in enumerate(sets)}
    return Group({"kind": "condensation"}, accuracies, {})


def around(mean: float, seed: int, spread: float = 0.002) -> Group:
    rng = np.random.default_rng(seed)
    return group(*(list(mean + spread * rng.standard_normal(5)) for _ in range(4)))


def test_methods_far_apart_share_no_letter_and_near_ones_do() -> None:
    near, best, worst = around(0.4005, 0), around(0.60, 1), around(0.30, 2)
    assert letters([around(0.40, 3), best, worst, near]) == ["b", "a", "c", "b"]


def test_a_method_that_little_is_known_of_shares_the_letters_of_both_sides() -> None:
    unsure = group([0.40, 0.41], [0.52, 0.50])
    said = letters([around(0.60, 0), unsure, around(0.30, 1)])
    assert said == ["a", "ab", "b"]


def test_two_share_a_letter_where_and_only_where_their_difference_may_be_chance() -> None:
    groups = [around(0.30 + 0.004 * k, k, spread=0.004) for k in range(6)]
    pairs = list(combinations(range(6), 2))
    differences = [groups[a].difference(groups[b]) for a, b in pairs]
    apart = [p < LEVEL for p in holm([p_value(interval, abs(gap)) for gap, interval in differences])]
    said = letters(groups)
    assert any(apart)
    assert not all(apart)
    for (a, b), differs in zip(pairs, apart, strict=True):
        assert differs == (not set(said[a]) & set(said[b]))


def test_letters_begin_with_the_best_and_a_method_without_accuracies_has_none() -> None:
    failed = Group({"kind": "condensation"}, {}, {"set 0": "nan"})
    assert letters([around(0.2, 0), failed, around(0.9, 1)]) == ["b", "", "a"]
    assert letters([failed]) == [""]
    assert letters([]) == []


def test_nothing_is_told_apart_by_single_accuracies() -> None:
    assert letters([group([0.9]), group([0.1])]) == ["a", "a"]
