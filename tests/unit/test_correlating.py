"""Rank correlation of a method's loss and the test loss along a run: by hand, its interval, and through the command."""

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ddbench import api
from ddbench.cli import root as program
from ddbench.data.toy import toy
from ddbench.errors import RunError
from ddbench.evaluation.evaluate import SealedTest
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.submission import refuse
from ddbench.runs.correlating import correlate, correlation, logged_before, spearman
from ddbench.runs.evaluating import Curve
from ddbench.runs.observers import MetricLog, read_log
from ddbench.runs.record import CurvePoint, read_record
from ddbench.runs.resolving import Asked, resolve_spec
from ddbench.runs.runner import RunOptions, run
from ddbench.testing.contract import problem_for_checks

Points = st.lists(st.integers(-50, 50), min_size=4, max_size=12, unique=True)


def test_rho_and_interval_by_hand() -> None:
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: squared differences 1 1 1 1 0, rho = 1 - 6 * 4 / (5 * 24) = .8
    rho, interval = spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50])
    assert rho == pytest.approx(0.8)
    # z = atanh(.8) = 1.098612; half = 1.959964 sqrt(1.32 / 2) = 1.592280; tanh of -.493668 and of 2.690892
    assert interval == pytest.approx((-0.4571, 0.9908), abs=2e-4)


def test_a_perfect_order_still_has_an_interval() -> None:
    rho, interval = spearman([1, 2, 3, 4], [1, 2, 3, 4])
    assert rho == 1
    assert interval is not None
    assert -1 < interval[0] < interval[1] == 1
    turned = spearman([1, 2, 3, 4], [4, 3, 2, 1])
    assert turned[0] == -1
    assert turned[1] == pytest.approx((-interval[1], -interval[0]))


def test_too_few_points_and_equal_ones_have_none() -> None:
    assert spearman([1, 2, 3], [1, 3, 2]) == (pytest.approx(0.5), None)
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4])[0])


@given(Points, st.randoms(use_true_random=False), st.floats(0.1, 9), st.floats(-5, 5))
def test_only_the_order_counts(ours: list[int], random: Any, scale: float, shift: float) -> None:
    theirs = ours[:]
    random.shuffle(theirs)
    rho, interval = spearman(ours, theirs)
    assert interval is not None
    assert -1 <= interval[0] <= rho <= interval[1] <= 1
    moved = [math.exp(value / 50) * scale + shift for value in ours]
    assert spearman(moved, theirs)[0] == pytest.approx(rho)
    assert spearman(theirs, ours)[0] == pytest.approx(rho)
    assert spearman([-value for value in ours], theirs)[0] == pytest.approx(-rho)
    assert rho == pytest.approx(stats.spearmanr(ours, theirs).statistic)


def test_the_interval_covers_what_it_promises() -> None:
    """Of pairs from a bivariate normal with a known rank correlation, ten at a time."""
    rng, trials, covered, r = np.random.default_rng(0), 2000, 0, 0.6
    truth = 6 / math.pi * math.asin(r / 2)  # Spearman's of a bivariate normal with Pearson's r
    for _ in range(trials):
        x = rng.normal(size=10)
        y = r * x + math.sqrt(1 - r * r) * rng.normal(size=10)
        _, interval = spearman(x.tolist(), y.tolist())
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # 95 % nominal. Three standard errors of a share of 2000 are 1.5 points; one more is left to the approximation.
    assert covered / trials > 0.95 - 0.015 - 0.01


def lines(*pairs: tuple[int, float], metric: str = "loss") -> list[dict[str, Any]]:
    return [{"step": step, "seconds": 0.0, "metrics": {metric: value}} for step, value in pairs]


def test_the_loss_before_a_snapshot_is_the_mean_over_its_window() -> None:
    log = lines((10, 8.0), (20, 6.0), (25, 3.0), (40, 1.0))
    assert logged_before(log, "loss", 25, 20) == pytest.approx((8 * 10 + 6 * 10 + 3 * 5) / 25)
    assert logged_before(log, "loss", 25, 6) == pytest.approx((6 * 10 + 3 * 5) / 15)
    assert logged_before(log, "loss", 25, 1) == 3.0
    assert logged_before(log, "loss", 0, 5) is None
    assert logged_before(log, "residual", 25, 5) is None


def curve_of(*losses: tuple[int, float]) -> Curve:
    points = tuple(CurvePoint(step=step, seconds=None, accuracy=(0.5,), loss=(loss,)) for step, loss in losses)
    return Curve(protocol="dsa@1", digest="ab", backbone="mlp", points=points, synthetic="0" * 64)


def test_a_curve_is_correlated_with_the_log_of_its_run() -> None:
    log = lines((100, 5.0), (200, 4.0), (300, 3.0), (400, 2.0))
    falling = curve_of((0, 9.0), (100, 2.0), (200, 1.5), (300, 1.6), (400, 1.1))
    found = correlation(falling, log, 400)
    # Step 0 has no loss yet. Ranks 4 3 2 1 and 4 2 3 1.
    assert (found.points, found.rho) == (4, pytest.approx(0.8))
    # A set that was chosen among the iterates is not that of the last loss.
    assert correlation(falling, log, 400, without_last=True).points == 3
    assert correlation(falling, log, 400, without_last=True).low is None
    with pytest.raises(RunError, match=r"only 2 snapshots have a test loss and a logged loss, and 3 are needed\."):
        correlation(curve_of((100, 2.0), (200, 1.0)), log, 400)
    with pytest.raises(RunError, match="the same at all 4 snapshots"):
        correlation(curve_of((100, 2.0), (200, 2.0), (300, 2.0), (400, 2.0)), log, 400)


def test_the_test_loss_is_the_mean_cross_entropy_and_accuracies_stay(tmp_path: Path) -> None:
    problem, source = problem_for_checks(tmp_path), toy(3, (3, 8, 8)).test
    labels = source.load().labels
    logits = torch.randn(2, len(labels), 3, generator=torch.Generator().manual_seed(0))
    seen = 0

    def predict(x: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(x)
        return logits[:, seen - len(x) : seen]

    accuracies, losses = SealedTest(source).measure(["a", "b"], predict, problem.pixels, torch.device("cpu"))
    for k in range(2):
        by_hand = sum(
            math.log(sum(math.exp(v) for v in row)) - row[y]
            for row, y in zip(logits[k].double().tolist(), labels.tolist(), strict=True)
        )
        assert losses[k] == pytest.approx(by_hand / len(labels))
        assert accuracies[k] == pytest.approx(float((logits[k].argmax(1) == labels).double().mean()))


PROTOCOL = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 20\nbatch = 16\nlr = 0.05\n'


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A short run of DM with snapshots, the first of them before its first step."""
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    asked = Asked("dm", "digits", ipc=1, protocols=[str(tmp_path / "tiny.toml")], options={"iterations": 60})
    record = run(resolve_spec(asked, tmp_path), options(tmp_path, snapshots=9))
    (file,) = (tmp_path / "runs").glob("*/*/*/*/record.json")
    assert record.correlations == ()
    return file.parent


def options(place: Path, **more: Any) -> RunOptions:
    return RunOptions(root=place / "runs", data_root=place, device=torch.device("cpu"), **more)


def test_a_run_is_measured_when_it_is_over(finished: Path, tmp_path: Path) -> None:
    before = read_record(finished / "record.json")
    after = correlate(finished, [], [], options(tmp_path))
    (found,) = after.correlations
    (curve,) = after.curves
    assert found.points == sum(point.step > 0 for point in curve.points) > 4
    losses = [np.mean(point.loss) for point in curve.points if point.step > 0]
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    logged = [logged_before(log, "loss", point.step, 3) for point in curve.points if point.step > 0]
    assert found.rho == pytest.approx(stats.spearmanr(logged, losses).statistic)
    # Nothing of the result has moved.
    assert after.evaluations == before.evaluations
    assert after.synthetic == before.synthetic
    again = correlate(finished, ["tiny@1"], ["mlp"], options(tmp_path))
    assert (again.correlations, again.curves) == (after.correlations, after.curves)
    in_python = api.correlate(finished, protocol=str(tmp_path / "tiny.toml"), judge="mlp", data=tmp_path, device="cpu")
    assert in_python.record.correlations == after.correlations
    refuse(finished / "record.json", read_record(finished / "record.json"), allow_dirty=True)
    (row,) = summarise(collect([finished])).to_dict("records")
    assert (row["correlation"], row["correlation_sets"]) == (pytest.approx(found.rho), 1)


def ddbench(*arguments: object) -> Any:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def test_the_command_line_says_rho_with_its_interval(finished: Path, tmp_path: Path) -> None:
    where = ("--data", tmp_path, "--device", "cpu", "--quiet")
    done = ddbench("measure", "correlation", finished, *where)
    assert done.exit_code == 0, done.output
    assert "Spearman's rho" in done.stdout
    (part,) = json.loads(ddbench("measure", "correlation", finished, *where, "--json").stdout)
    assert part["low"] <= part["rho"] <= part["high"]
    for arguments, code, said in (
        (["--metric", "residual"], 2, "has no 'residual'; it has loss. Say which with --metric."),
        (["--protocol", "dsa"], 2, "has no such evaluation with a test loss; it has tiny@1 with mlp."),
    ):
        wrong = ddbench("measure", "correlation", finished, *arguments, *where)
        assert wrong.exit_code == code
        assert said in wrong.output
        assert "Traceback" not in wrong.output


def test_a_method_without_steps_has_nothing_to_correlate(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    run(
        resolve_spec(Asked("random", "digits", ipc=1, protocols=[str(tmp_path / "tiny.toml")]), tmp_path),
        options(tmp_path),
    )
    (file,) = (tmp_path / "runs").glob("*/*/*/*/record.json")
    with pytest.raises(RunError, match="learns nothing in steps"):
        correlate(file.parent, [], [], options(tmp_path))


def test_every_order_of_four_lies_inside_its_interval() -> None:
    for order in permutations(range(4)):
        rho, interval = spearman([0, 1, 2, 3], list(order))
        assert interval is not None
        assert interval[0] <= rho <= interval[1]


def test_what_is_no_number_has_no_rank() -> None:
    falling = curve_of((100, 2.0), (200, 1.5), (300, 1.6), (400, 1.1))
    for odd in (math.nan, math.inf):
        with pytest.raises(RunError, match="only 0 snapshots have a test loss and a logged loss"):
            correlation(falling, lines((100, odd), (200, odd), (300, odd), (400, odd)), 400)
        assert correlation(falling, lines((100, odd), (200, 4.0), (300, 3.0), (400, 2.0)), 400).points == 3


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 20, "seconds": 1, "metrics": {"loss": "low"}}',
        '{"step": 20, "seconds": 1, "metrics": {"loss": 1%s}}' % ("0" * 400),
        '{"step": 20, "seconds": 1, "metrics": {"loss": true}}',
        '{"step": 20, "seconds": 1, "metrics": null}',
        '{"step": 20, "seconds": 1, "metrics": [1]}',
        '{"step": 20, "seconds": "late"}',
        '{"step": true, "metrics": {"loss": 1.0}}',
        '{"step": 1e9999, "metrics": {"loss": 1.0}}',
        '{"step": -5, "metrics": {"loss": 1.0}}',
        "[]",
        "\x00",
    ],
)
def test_a_damaged_line_of_a_log_has_no_number(tmp_path: Path, line: str) -> None:
    right = '{"step": 10, "seconds": 0.5, "metrics": {"loss": 2.0}}'
    (tmp_path / "log.jsonl").write_text(f"{right}\n{line}\n{right[:20]}")
    first, *others = read_log(tmp_path / "log.jsonl")
    assert first == {"step": 10, "seconds": 0.5, "metrics": {"loss": 2.0}}
    assert [entry["metrics"] for entry in others] in ([], [{}])
    assert [entry["seconds"] for entry in others] in ([], [1], [None])


def test_a_log_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(RunError, match=r"log\.jsonl cannot be read: Is a directory\. Move it away"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(RunError, match="cannot be read"):
        MetricLog(tmp_path / "log.jsonl").cut(5)
