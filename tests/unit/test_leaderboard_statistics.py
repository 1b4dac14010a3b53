import itertools
import json
import math
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddbench.leaderboard.observations import COLUMNS, NO_STUDENT
from ddbench.leaderboard.statistics import half_width, summarise, to_records
from ddbench.leaderboard.verification import trust
from ddbench.text import percent

DEFAULTS: dict[str, Any] = {
    "run": "0", "status": "complete", "method": "dm", "title": "Distribution Matching", "kind": "condensation",
    "package": "ddbench", "method_sha256": "", "dataset": "cifar10", "data_title": "CIFAR-10",
    "fingerprint": "b2:1", "original": True, "train": 50000, "test": 10000, "ipc": 10, "seed": 0, "preset": "paper",
    "precision": "fp32", "train_backbone": "convnet-d3", "pixels": "standard", "labels": "class",
    "config": "{}", "overridden": "[]", "set": "s0", "bytes": 100, "images_bytes": 90, "labels_bytes": 10,
    "forwards": 1000.0, "seconds": 10.0, "device": "cpu",
    "protocol": "dsa@1", "digest": "d1", "track": "hard", "judge": "convnet-d3", "failed": "",
    "recognised": math.nan, "correlation": math.nan, "verified": False, "again": 0, "differs": "",
}  # fmt: skip


def rows(accuracies: list[list[float]], **changes: Any) -> list[dict[str, Any]]:
    """Rows of one method: accuracies by set, then by student."""
    method = changes.get("method", "dm")
    return [
        DEFAULTS | {"set": f"{method}-{j}", "run": f"{method}-{j}", "seed": j, "student": k, "accuracy": a} | changes
        for j, students in enumerate(accuracies)
        for k, a in enumerate(students)
    ]


def failed(reason: str, **changes: Any) -> list[dict[str, Any]]:
    return [DEFAULTS | {"student": NO_STUDENT, "accuracy": math.nan, "failed": reason} | changes]


def summary(*groups: list[dict[str, Any]]) -> pd.DataFrame:
    return summarise(pd.DataFrame(list(itertools.chain(*groups)), columns=list(COLUMNS)))


def by_method(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["method"]): row for row in frame.to_dict("records")}  # type: ignore[misc]


def two_way_by_hand(y: list[list[float]]) -> tuple[float, float, float]:
    """What sets, students and the rest bring to the variance of the grand mean, sum by sum."""
    sets, students = len(y), len(y[0])
    grand = sum(sum(row) for row in y) / (sets * students)
    row_means = [sum(row) / students for row in y]
    column_means = [sum(row[k] for row in y) / sets for k in range(students)]
    ms_sets = students * sum((m - grand) ** 2 for m in row_means) / (sets - 1)
    ms_students = sets * sum((m - grand) ** 2 for m in column_means) / (students - 1)
    ms_rest = 0.0
    for j in range(sets):
        for k in range(students):
            ms_rest += (y[j][k] - row_means[j] - column_means[k] + grand) ** 2
    ms_rest /= (sets - 1) * (students - 1)
    return ms_sets / (sets * students), ms_students / (sets * students), ms_rest / (sets * students)


def t(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))


def test_a_set_is_verified_where_all_that_is_shown_of_it_is() -> None:
    """Two runs can have made one set, and say other students of it."""
    checked, other = rows([[0.5, 0.6]], verified=True, set="s", run="b"), {"set": "s", "verified": False}
    for beside, verified in (
        ([], 1),
        (rows([[0.9, 0.9]], run="a", **other), 0),  # which comes first, and is shown
        (rows([[0.9, 0.9]], run="c", **other), 1),  # which is not
        (rows([[0.9, 0.9, 0.9]], run="c", **other), 0),  # of whom the third is
    ):
        (row,) = summary(checked, beside).to_dict("records")
        assert row["verified_sets"] == verified


def test_students_that_were_trained_again_are_counted_over_verified_sets() -> None:
    first = rows([[0.5, 0.6, 0.7]], verified=True, again=1, set="a", run="a")
    second = rows([[0.5, 0.6, 0.7]], verified=True, again=3, set="b", run="b")
    third = rows([[0.5, 0.6, 0.7]], verified=False, again=2, differs="run c, …", set="c", run="c")
    (row,) = summary(first, second, third).to_dict("records")
    assert (row["verified_sets"], row["verified_students"], row["differs"]) == (2, 4, "run c, …")
    assert trust(row) == "differs"
    (row,) = summary(first, second).to_dict("records")
    assert (trust(row), row["differs"]) == ("verified", "")
    (row,) = summary(first, rows([[0.5]], set="d", run="d")).to_dict("records")
    assert (trust(row), row["verified_students"]) == ("claimed", 1)


def test_the_mean_is_over_sets_of_the_mean_over_students() -> None:
    row = summary(rows([[0.2, 0.4], [0.6, 0.6, 0.6, 0.6]])).iloc[0]
    assert row["mean"] == pytest.approx((0.3 + 0.6) / 2)
    assert (row["sets"], row["students_min"], row["students_max"]) == (2, 2, 4)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), sets=st.integers(1, 4), students=st.integers(1, 6)
)  # fmt: skip
def test_the_spread_over_all_students_is_that_between_sets_and_within_them(seed: int, sets: int, students: int) -> None:
    accuracies = np.random.default_rng(seed).uniform(0.1, 0.9, (sets, students))
    row = summary(rows(accuracies.tolist())).iloc[0]
    assert row["sd"] == pytest.approx(accuracies.std())
    assert row["sd"] ** 2 == pytest.approx(row["sd_between"] ** 2 + row["sd_within"] ** 2)


def test_the_interval_adds_the_squares_for_sets_and_students_and_takes_the_rest_off_once() -> None:
    y = [[0.41, 0.45, 0.44, 0.40], [0.47, 0.52, 0.50, 0.48], [0.38, 0.43, 0.42, 0.36]]
    of_sets, of_students, rest = two_way_by_hand(y)
    expected = math.sqrt(t(2) ** 2 * of_sets + t(3) ** 2 * of_students - t(3) ** 2 * rest)
    assert expected > t(2) * math.sqrt(of_sets)
    assert half_width(np.array(y)) == pytest.approx(expected, rel=1e-10)


def test_a_share_of_students_that_comes_out_negative_is_taken_as_none() -> None:
    y = [[0.41, 0.45, 0.41, 0.45], [0.48, 0.44, 0.48, 0.44], [0.38, 0.39, 0.38, 0.39]]
    of_sets, of_students, rest = two_way_by_hand(y)
    assert of_students < rest
    assert half_width(np.array(y)) == pytest.approx(t(2) * math.sqrt(of_sets), rel=1e-10)


@pytest.mark.parametrize(("of_sets", "of_students"), [(7.0, 0.0), (7.0, 0.5), (0.5, 4.0), (0.1, 0.0)])
@pytest.mark.parametrize(("sets", "students"), [(2, 5), (2, 20), (3, 10)])
def test_the_interval_holds_its_promise_with_few_sets(
    sets: int, students: int, of_sets: float, of_students: float
) -> None:
    rng = np.random.default_rng(0)
    trials, covered = 1000, 0
    for _ in range(trials):
        y = of_sets * rng.normal(size=(sets, 1)) + of_students * rng.normal(size=students)
        y = y + rng.normal(size=(sets, students))
        covered += abs(y.mean()) <= half_width(y)
    # Nominal 95 %; three standard errors of the count below 94 %. Satterthwaite's has 88 % in two of these cases.
    assert covered / trials > 0.94 - 3 * math.sqrt(0.94 * 0.06 / trials)


def test_one_set_gives_the_interval_over_students() -> None:
    y = np.array([0.41, 0.45, 0.44, 0.40, 0.46])
    expected = stats.ttest_1samp(y, 0).confidence_interval(0.95)
    assert half_width(y[None]) == pytest.approx((expected.high - expected.low) / 2)


def test_one_student_gives_the_interval_over_sets() -> None:
    y = np.array([0.41, 0.45, 0.44])
    expected = stats.ttest_1samp(y, 0).confidence_interval(0.95)
    assert half_width(y[:, None]) == pytest.approx((expected.high - expected.low) / 2)


def test_a_single_accuracy_has_no_interval() -> None:
    assert math.isnan(half_width(np.array([[0.4]])))


def test_one_set_each_gives_the_paired_interval() -> None:
    ours, reference = np.array([0.41, 0.45, 0.44, 0.40]), np.array([0.31, 0.36, 0.33, 0.31])
    expected = stats.ttest_rel(ours, reference).confidence_interval(0.95)
    assert half_width(ours[None], reference[None]) == pytest.approx((expected.high - expected.low) / 2)


def test_the_interval_holds_its_promise_also_where_students_matter_more_than_sets() -> None:
    rng = np.random.default_rng(0)
    covered = set_means_only = pairs = 0
    trials = 400
    for _ in range(trials):
        student = rng.normal(size=5)
        ours = 0.3 * rng.normal(size=(3, 1)) + student + 0.3 * rng.normal(size=(3, 5))
        other = 0.3 * rng.normal(size=(3, 1)) + 0.8 * student + 0.3 * rng.normal(size=(3, 5))
        covered += abs(ours.mean()) <= half_width(ours)
        pairs += abs(ours.mean() - other.mean()) <= half_width(ours, other)
        means = ours.mean(axis=1)
        set_means_only += abs(means.mean()) <= stats.t.ppf(0.975, 2) * means.std(ddof=1) / math.sqrt(3)
    assert covered / trials > 0.92
    assert pairs / trials > 0.92
    assert set_means_only / trials < 0.85


def test_what_a_student_brings_to_both_methods_cancels_in_the_difference() -> None:
    student = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    ours = 0.5 + student + np.array([[0.001], [-0.001], [0.0]])
    reference = 0.4 + student + np.array([[0.001], [-0.001], [0.0]])
    assert half_width(ours, reference) < 0.01 < half_width(ours)


def test_differences_are_to_random_and_to_the_best_coreset() -> None:
    found = by_method(
        summary(
            rows([[0.50, 0.52], [0.54, 0.53]]),
            rows([[0.30, 0.31], [0.29, 0.30]], method="random", kind="coreset"),
            rows([[0.35, 0.36], [0.33, 0.34]], method="herding", kind="coreset"),
        )
    )
    assert found["dm"]["difference_random"] == pytest.approx(0.5225 - 0.30)
    assert found["dm"]["difference_coreset"] == pytest.approx(0.5225 - 0.345)
    assert found["dm"]["best_coreset"] == "herding"
    assert found["random"]["difference_coreset"] == pytest.approx(0.30 - 0.345)
    assert math.isnan(found["random"]["difference_random"])
    assert math.isnan(found["herding"]["difference_coreset"])


def test_the_interval_of_a_difference_counts_the_sets_of_both_methods() -> None:
    ours = [[0.61, 0.66, 0.62], [0.70, 0.72, 0.69]]
    reference = [[0.31, 0.30, 0.35], [0.38, 0.33, 0.37], [0.29, 0.31, 0.28], [0.41, 0.36, 0.42]]

    def set_share(y: list[list[float]]) -> float:
        means = [sum(row) / 3 for row in y]
        return sum((m - sum(means) / len(y)) ** 2 for m in means) / (len(y) - 1) / len(y)

    def rest_share(y: list[list[float]]) -> float:
        sets = len(y)
        columns = [sum(row[k] for row in y) / sets for k in range(3)]
        grand = sum(columns) / 3
        squares = sum((row[k] - sum(row) / 3 - columns[k] + grand) ** 2 for row in y for k in range(3))
        return squares / ((sets - 1) * 2) / (3 * sets)

    gaps = [sum(row[k] for row in ours) / 2 - sum(row[k] for row in reference) / 4 for k in range(3)]
    student_share = sum((g - sum(gaps) / 3) ** 2 for g in gaps) / 2 / 3
    terms = [(set_share(ours), 1), (set_share(reference), 3), (student_share, 2)]
    rest = [rest_share(ours), rest_share(reference)]
    expected = math.sqrt(sum(t(f) ** 2 * v for v, f in terms) - t(3) ** 2 * sum(rest))
    assert half_width(np.array(ours), np.array(reference)) == pytest.approx(expected, rel=1e-10)


def test_methods_are_compared_on_the_students_that_they_share() -> None:
    ours, reference = [0.50, 0.60, 0.55, 0.99], [0.30, 0.41, 0.34]
    found = by_method(summary(rows([ours]), rows([reference], method="random", kind="coreset")))["dm"]
    expected = stats.ttest_rel(ours[:3], reference).confidence_interval(0.95)
    assert found["difference_random_ci95"] == pytest.approx((expected.high - expected.low) / 2)


def test_methods_without_common_students_are_compared_unpaired() -> None:
    other = [
        row | {"student": row["student"] + 10} for row in rows([[0.30, 0.32, 0.31]], method="random", kind="coreset")
    ]
    found = by_method(summary(rows([[0.50, 0.53, 0.52]]), other))["dm"]
    expected = t(2) * math.sqrt((np.var([0.50, 0.53, 0.52], ddof=1) + np.var([0.30, 0.32, 0.31], ddof=1)) / 3)
    assert found["difference_random_ci95"] == pytest.approx(expected)


def test_a_difference_to_one_set_is_provisional_too() -> None:
    found = by_method(summary(rows([[0.5, 0.6], [0.5, 0.7]]), rows([[0.3, 0.4]], method="random", kind="coreset")))
    assert not found["dm"]["provisional"]
    assert found["dm"]["difference_random_provisional"]


def test_one_set_or_one_student_is_provisional_and_the_whole_dataset_is_not() -> None:
    assert summary(rows([[0.5, 0.6]])).iloc[0]["provisional"]
    assert summary(rows([[0.5], [0.6]])).iloc[0]["provisional"]
    assert not summary(rows([[0.5, 0.6], [0.4, 0.6]])).iloc[0]["provisional"]
    assert not summary(rows([[0.8, 0.81]], method="whole", kind="ceiling", ipc=0)).iloc[0]["provisional"]


def test_the_same_set_from_two_runs_counts_once() -> None:
    row = summary(rows([[0.5, 0.6, 0.7]]), rows([[0.5, 0.6, 0.7]], run="another", seed=1)).iloc[0]
    assert row["sets"] == 1
    assert row["provisional"]


@pytest.mark.parametrize(
    "change",
    [
        {"config": '{"iterations": 100}'},
        {"preset": "quick"},
        {"precision": "tf32"},
        {"train_backbone": "resnet18"},
        {"pixels": "zca(eps=0.1)"},
        {"labels": "probability"},
        {"package": "mypaper"},
        {"method_sha256": "1a2b3c4d5e"},
    ],
)
def test_variants_of_a_method_stay_apart_and_are_called_differently(change: dict[str, str]) -> None:
    frame = summary(rows([[0.5, 0.6]]), rows([[0.3, 0.4]], set="other", run="other", **change))
    assert len(frame) == 2
    assert frame["label"].nunique() == 2
    assert frame["variant"].nunique() == 2


@pytest.mark.parametrize("change", [{"digest": "d2"}, {"protocol": "dc@1"}, {"fingerprint": "b2:2"}, {"ipc": 1}])
def test_other_protocols_data_and_budgets_never_meet(change: dict[str, Any]) -> None:
    frame = summary(
        rows([[0.5, 0.6]]), rows([[0.3, 0.4]], set="other", run="other", method="random", kind="coreset", **change)
    )
    assert frame["rank"].tolist() == [1, 1]
    assert frame["difference_random"].isna().all()


def test_an_overridden_option_is_named_even_when_alone() -> None:
    config = json.dumps({"iterations": 100, "lr_images": 1.0})
    frame = summary(rows([[0.5, 0.6]], config=config, overridden='["iterations"]'))
    assert frame["label"].tolist() == ["dm [iterations=100]"]


def test_an_option_that_was_set_to_none_is_named_though_rows_do_not_keep_it() -> None:
    frame = summary(rows([[0.5, 0.6]], config='{"lr_images": 1.0}', overridden='["classes_per_pass"]'))
    assert frame["label"].tolist() == ["dm [classes_per_pass=null]"]


def test_labels_say_the_preset_where_two_meet() -> None:
    quick = rows([[0.3, 0.4]], preset="quick", set="q", run="q")
    assert set(summary(rows([[0.5, 0.6]]), quick)["label"]) == {"dm", "dm (quick)"}
    assert set(summary(quick)["label"]) == {"dm"}


def test_equal_printed_means_share_a_rank() -> None:
    frame = summary(
        rows([[0.5001]], method="a"), rows([[0.4999]], method="b"), rows([[0.4]], method="c"), failed("nan", method="d")
    )
    assert {r["method"]: r["rank"] for r in frame.to_dict("records")} == {"a": 1, "b": 1, "c": 3, "d": 0}


def test_failed_sets_are_counted_and_not_averaged() -> None:
    row = summary(rows([[0.5, 0.6]]), failed("loss became nan", set="other", run="other")).iloc[0]
    assert row["mean"] == pytest.approx(0.55)
    assert (row["sets"], row["failed_sets"], row["failed"]) == (1, 1, "loss became nan")


def test_cost_is_per_set_and_by_device() -> None:
    slow = rows([[0.5, 0.6]], device="cpu", seconds=90.0)
    fast = rows([[0.5, 0.6]], device="gpu", seconds=10.0, set="g", run="g")
    row = summary(slow, fast).iloc[0]
    assert json.loads(row["cost"]) == {"cpu": 90.0, "gpu": 10.0}
    assert row["seconds"] == 50.0


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(random: Any) -> None:
    everything = [
        *rows([[0.50, 0.52], [0.54, 0.53]]),
        *rows([[0.30, 0.31]], method="random", kind="coreset"),
        *rows([[0.31, 0.30]], method="herding", kind="coreset"),
        *failed("nan", method="idea"),
    ]
    expected = summary(everything)
    shuffled = list(everything)
    random.shuffle(shuffled)
    pd.testing.assert_frame_equal(summary(shuffled), expected)


def test_nothing_in_gives_nothing_out_with_all_columns() -> None:
    empty = summary()
    assert empty.empty
    assert list(empty.columns) == list(summary(rows([[0.5]])).columns)


def test_rows_for_json_hold_null_instead_of_nan() -> None:
    record = to_records(summary(rows([[0.5]], config='{"a": 1}')))[0]
    assert record["ci95"] is None
    assert record["config"] == {"a": 1}
    assert json.loads(json.dumps(record, allow_nan=False))["mean"] == 0.5


def test_percentages_have_one_decimal() -> None:
    assert percent(0.48949) == "48.9"


@given(st.integers(0, 999))
def test_a_mean_in_the_middle_is_printed_alike_however_it_was_added_up(tenths: int) -> None:
    """Five accuracies of 10 000 images whose mean ends in 5: sums in either order, exact ones, and of percent."""
    middle = 10 * tenths + 5
    spread = min(middle, 10_000 - middle, 97)
    counts = [middle - spread, middle + spread, middle, middle - spread // 2, middle + spread // 2]
    students = [count / 10_000 for count in counts]
    means = [sum(students) / 5, sum(reversed(students)) / 5, fmean(students), fmean(100 * s for s in students) / 100]
    assert len({percent(mean) for mean in means}) == 1
