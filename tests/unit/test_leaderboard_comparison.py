"""Comparisons: what they say of records whose difference is known, and how often they are wrong."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import ddbench
from ddbench.errors import ConfigError, RunError
from ddbench.leaderboard.comparison import MARGIN, Cells, Entry, _judge, _pair, apart, compare, holm, verdict
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.references import Shelf, labelled
from ddbench.leaderboard.statistics import Group, half_width

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"
Write = Callable[..., Path]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shutil.copytree(RECORDS, tmp_path / "boards" / "records")
    return Shelf(tmp_path / "runs", tmp_path / "boards")


def entry(name: str, accuracies: list[list[float]]) -> Entry:
    table = {f"{name}{j}": dict(enumerate(row)) for j, row in enumerate(accuracies)}
    return Entry(name, name, frozenset(table), Group({}, table, {}))


def named(name: str, sets: list[str]) -> Entry:
    table = {one: {0: 0.5, 1: 0.6} for one in sets}
    runs = {one: (f"run {one}",) for one in sets}
    return Entry(name, name, frozenset(f"run {one}" for one in sets), Group({}, table, {}), runs)


@pytest.mark.parametrize(
    ("ours", "theirs", "left"),
    [
        ("abc", "b", ("ac", "b")), ("b", "abc", ("b", "ac")), ("abc", "bcd", ("a", "d")), ("ab", "cd", ("ab", "cd")),
        ("ab", "abc", ("ab", "c")),
    ],
)  # fmt: skip
def test_a_set_is_never_on_both_sides(ours: str, theirs: str, left: tuple[str, str]) -> None:
    first, second = apart(named("first", list(ours)), named("second", list(theirs)))
    assert ("".join(first.group.accuracies), "".join(second.group.accuracies)) == left
    assert not first.group.accuracies.keys() & second.group.accuracies.keys()
    gone = [one for one in ours if one not in left[0]]
    assert first.left_out == tuple(f"run {one}" for one in gone)
    assert first.name == "first" + (f" without {', '.join(first.left_out)}" if gone else "")


def test_two_sets_are_paired_by_student() -> None:
    """Against the paired t test, which this is with one set on either side."""
    ours, theirs = [0.50, 0.52, 0.49, 0.55, 0.51], [0.47, 0.50, 0.48, 0.51, 0.49]
    found = _pair(entry("a", [ours]), entry("b", [theirs]))
    known = stats.ttest_rel(ours, theirs)
    assert found["difference"] == pytest.approx(0.024)
    assert found["p"] == pytest.approx(known.pvalue, rel=1e-4)
    low, high = known.confidence_interval(0.95)
    assert (found["difference"] - found["ci95"], found["difference"] + found["ci95"]) == pytest.approx((low, high))
    assert found["paired"]
    assert found["provisional"]


def test_equality_is_the_larger_of_two_one_sided_tests() -> None:
    ours, theirs = [0.500, 0.502, 0.499, 0.505, 0.501], [0.4995, 0.501, 0.4990, 0.503, 0.500]
    found = _pair(entry("a", [ours]), entry("b", [theirs]))
    gaps = np.subtract(ours, theirs)
    one_sided = stats.ttest_1samp(gaps, MARGIN, alternative="less").pvalue
    assert found["p_equal"] == pytest.approx(one_sided, rel=1e-4)
    assert found["p_equal"] > stats.ttest_1samp(gaps, -MARGIN, alternative="greater").pvalue


def test_sets_widen_the_interval_and_are_those_of_the_board() -> None:
    a, b = [[0.5, 0.52], [0.55, 0.57], [0.45, 0.5]], [[0.4, 0.42], [0.41, 0.42]]
    found = _pair(entry("a", a), entry("b", b))
    assert found["ci95"] == pytest.approx(half_width(np.array(a), np.array(b)))
    assert not found["provisional"]


def test_one_student_of_one_set_says_nothing() -> None:
    found = _pair(entry("a", [[0.5]]), entry("b", [[0.4]]))
    assert math.isnan(found["p"])
    assert math.isnan(found["p_equal"])
    _judge([found])
    assert found["verdict"] == "undecided"


def test_the_same_accuracies_are_equal() -> None:
    found = _pair(entry("a", [[0.5, 0.6]]), entry("b", [[0.5, 0.6]]))
    _judge([found])
    assert (found["difference"], found["p"], found["verdict"]) == (0.0, 1.0, "equal")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("p", "p_equal", "difference", "said"),
    [
        (0.01, 1.0, 0.02, "better"), (0.01, 1.0, -0.02, "worse"), (0.2, 0.2, 0.02, "undecided"),
        (0.2, 0.01, 0.001, "equal"), (0.01, 0.01, 0.001, "equal"), (math.nan, math.nan, 0.1, "undecided"),
    ],
)  # fmt: skip
def test_what_is_said(p: float, p_equal: float, difference: float, said: str) -> None:
    assert verdict(p, p_equal, difference) == said


@pytest.mark.parametrize("of_sets", [0.0, 1.0, 5.0])
def test_three_equal_methods_are_rarely_told_apart(of_sets: float) -> None:
    """At 5 % in all for three pairs; 300 trials have a standard error of 1.3 %, three of which are the margin."""
    rng, trials, wrong = np.random.default_rng(0), 300, 0
    for _ in range(trials):
        students = 2 * rng.normal(size=(1, 5))
        tables = [of_sets * rng.normal(size=(3, 1)) + students + rng.normal(size=(3, 5)) for _ in range(3)]
        entries = [entry(name, (0.5 + table / 100).tolist()) for name, table in zip("abc", tables, strict=True)]
        pairs = [_pair(entries[i], entries[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        _judge(pairs)
        wrong += any(pair["verdict"] in ("better", "worse") for pair in pairs)
    assert wrong / trials < 0.05 + 3 * 0.0126


def test_methods_at_the_margin_are_rarely_called_equal_and_equal_ones_are_found() -> None:
    """A difference of just half a point may be called equal 5 % of the time; none at all should be seen to be none."""
    rng, trials = np.random.default_rng(1), 300
    called = {MARGIN: 0, 0.0: 0}
    for gap in called:
        for _ in range(trials):
            students = rng.normal(size=(1, 20)) / 100
            tables = [0.5 + students + rng.normal(size=(5, 20)) / 500 for _ in range(2)]
            pair = _pair(entry("a", (tables[0] + gap).tolist()), entry("b", tables[1].tolist()))
            _judge([pair])
            called[gap] += pair["verdict"] == "equal"
    assert called[MARGIN] / trials < 0.05 + 3 * 0.0126
    assert called[0.0] / trials > 0.9


def test_methods_are_compared_wherever_both_were_judged(shelf: Shelf) -> None:
    found = compare(["dm", "random"], shelf, Cells(protocols=("dsa@1",)))
    assert set(found["judge"]) == {"convnet-d3"}
    row = next(r for r in found.to_dict("records") if r["first"] == "dm [iterations=20001]" and r["first_sets"] == 2)
    assert row["second"] == "random"
    assert row["difference"] == pytest.approx(row["first_mean"] - row["second_mean"])
    assert row["p"] <= row["p_holm"]


def test_a_row_and_a_run_are_named_alone(shelf: Shelf) -> None:
    found = compare(["dm [iterations=100]", "00000d00"], shelf)
    assert set(found["provisional"]) == {True}
    assert {row["second"].rpartition(", ")[2] for row in found.to_dict("records")} == {"00000d00"}


def test_what_means_nothing_is_said(shelf: Shelf, write: Write) -> None:
    with pytest.raises(ConfigError, match=r"'randm' is no path, .*Did you mean 'random'"):
        compare(["randm", "dm"], shelf)
    with pytest.raises(RunError, match="runs have an id that begins with 0000"):
        compare(["0000", "dm"], shelf)
    with pytest.raises(RunError, match="were judged alike"):
        compare(["dm", "whole"], shelf)
    with pytest.raises(RunError, match="cells that were asked for"):
        compare(["dm", "random"], shelf, Cells(judges=("vgg11",)))
    with pytest.raises(ConfigError, match="two or more"):
        ddbench.compare("dm")


def test_a_record_by_its_path_and_two_methods_by_the_python_function(shelf: Shelf) -> None:
    where = {"runs": shelf.runs, "leaderboards": shelf.leaderboards}
    found = ddbench.compare(RECORDS / "dm-s0.json", "herding", ipc=10, judge="convnet", **where)
    assert set(found["judge"]) == {"convnet-d3"}
    assert (found["verdict"] == "better").all()


def test_an_imported_set_is_found_by_its_file(write: Write, tmp_path: Path) -> None:
    from ddbench.files import sha256_of

    file = tmp_path / "theirs.pt"
    file.write_bytes(b"a set that somebody published")
    part = {
        "file": "theirs.pt", "sha256": sha256_of(file), "bytes": 29, "layout": "pt", "entry": "0", "terms": {},
        "sources": {}, "claims": {},
    }  # fmt: skip
    write(
        "boards/records/a.json",
        imported=lambda _: part,
        run=lambda run: run | {"id": "0000abcd", "method": "theirs", "kind": "imported"},
        synthetic=lambda s: s | {"sha256": "ab" * 32},
    )
    write("boards/records/b.json", like="random-s0.json")
    shelf = Shelf(tmp_path / "runs", tmp_path / "boards")
    found = compare([str(file), "random"], shelf)
    assert set(found["first"].str.startswith("theirs")) == {True}
    other = tmp_path / "other.pt"
    other.write_bytes(b"never judged")
    with pytest.raises(RunError, match="no set that was judged here"):
        compare([str(other), "random"], shelf)


def test_a_downloaded_folder_is_found_by_all_its_files(write: Write, tmp_path: Path) -> None:
    import torch

    from ddbench.foreign.formats import read

    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(torch.zeros(10, 1, 8, 8), folder / "images_best.pt")
    torch.save(torch.arange(10), folder / "labels_best.pt")
    (found,) = read(folder, None)
    assert len(found.files) == 2
    part = {
        "file": "theirs", "sha256": found.sha256, "bytes": 29, "layout": "mtt", "entry": "best", "terms": {},
        "sources": {}, "claims": {},
    }  # fmt: skip
    write("boards/records/a.json", imported=lambda _: part)
    assert Shelf(tmp_path / "runs", tmp_path / "boards").find(str(folder)) == [tmp_path / "boards/records/a.json"]


def of_one_row(place: Path) -> dict[str, list[float]]:
    """Three runs of random images beside the golden ones, each with its own set and two students."""
    accuracies = {"aaaa1111": [0.30, 0.32], "bbbb2222": [0.36, 0.38], "cccc3333": [0.33, 0.35]}
    for number, (run, values) in enumerate(accuracies.items()):
        record = json.loads((RECORDS / "random-s0.json").read_text())
        record["run"] |= {"id": run, "seed": 10 + number}
        record["synthetic"] |= {"sha256": str(number) * 64}
        record["config"] = {"values": {"factor": 3}, "sources": {"factor": "command"}, "published": False}
        record["evaluations"] = [record["evaluations"][0] | {"accuracy": values}]
        (place / f"{run}.json").write_text(json.dumps(record))
    return accuracies


def test_a_run_is_compared_with_the_other_sets_of_its_row(shelf: Shelf) -> None:
    accuracies = of_one_row(shelf.leaderboards / "records")
    rows = compare(["random mosaics", "bbbb2222"], shelf).to_dict("records")
    assert len(rows) == 1
    others = [value for run, values in accuracies.items() if run != "bbbb2222" for value in values]
    assert rows[0]["first_mean"] == pytest.approx(np.mean(others))
    assert (rows[0]["first_sets"], rows[0]["second_sets"], rows[0]["left_out"]) == (2, 1, ["bbbb2222"])
    assert rows[0]["first"].endswith(" without bbbb2222")


def test_in_python_protocols_and_judges_are_said_as_to_the_command(shelf: Shelf) -> None:
    where = {"runs": shelf.runs, "leaderboards": shelf.leaderboards}
    usual = ddbench.compare("dm", "herding", protocol="dsa@1", judge="convnet-d3", **where)
    assert len(usual)
    assert ddbench.compare("dm", "herding", protocol="DSA", judge="ConvNet-D3", **where).equals(usual)


def test_rows_are_found_by_the_names_that_tables_print(shelf: Shelf) -> None:
    accuracies = of_one_row(shelf.leaderboards / "records")
    assert {path.stem for path in shelf.find("Random Mosaics")} == set(accuracies)
    (label,) = {str(name) for name in labelled(collect(shelf.find("random mosaics")))["label"]}
    for said in (label.upper(), f"{label}§", f"{label} ‡"):
        assert {path.stem for path in shelf.find(said)} == set(accuracies)
    with pytest.raises(ConfigError, match=r"There are results of: .*random, random mosaics, whole"):
        shelf.find("nobody")
    single = compare(["random", "random mosaics"], shelf)
    assert {tuple(row) for row in single[["second_sets", "second"]].to_numpy()} == {(3, label)}
