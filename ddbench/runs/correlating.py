"""Whether what a method lowers goes down together with the test loss of students, told when a run is over.

The rank correlation of both along a run is the DCS of Dey et al., "Rethinking Dataset Distillation: Hard Truths about
Soft Labels", CVPR 2026, arXiv 2604.18811. Test images are read as for a learning curve: once by each student, after its
training, of all snapshots, with nothing chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ddbench import synthetic as sets
from ddbench.errors import RunError, mistyped
from ddbench.evaluation.protocol import FiniteWidthOptions, Protocol, ReplayOptions
from ddbench.runs.evaluating import Cell, Curve, Judging, recorded_curves
from ddbench.runs.ledger import Ledger
from ddbench.runs.measures import Measures
from ddbench.runs.observers import read_log
from ddbench.runs.record import CorrelationPart, CostPart, EvaluationPart, RunRecord, write_record
from ddbench.runs.retraining import protocol_of, recipes_of, with_accuracies
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, dataset_of, finished_record, problems, session
from ddbench.training.options import SGDOptions

WINDOW = 20  # a loss is the mean over this part of all steps, up to the snapshot: of one step it is mostly noise
LEAST = 3  # points, of which a rank correlation says anything
LEAST_WITH_INTERVAL = 4
_NORMAL = 1.959963984540054  # the upper 2.5 % of a standard normal


def correlate(
    path: Path,
    protocols: Sequence[str],
    judges: Sequence[str],
    options: RunOptions,
    *,
    metric: str = "loss",
) -> RunRecord:
    """Judge the snapshots of a finished run and correlate their test loss with what the method logged.

    For each evaluation of the record, or those of these `protocols` and `judges`, said as `retraining.with_accuracies`
    takes them. `metric` is the logged number.
    Rewrites the record, whose curves have the snapshots' accuracies and losses.
    Raises: RunError if the run is not finished, has no such evaluation, or too few snapshots with both numbers;
    DataError if the dataset is not the one it was made from.
    """
    folder = RunDir.at(path)
    record = finished_record(folder)
    wanted = _wanted(path, record, protocols, judges)
    log = read_log(folder.log)
    if not any(metric in entry.get("metrics", {}) for entry in log):
        raise _no_metric(folder, metric, log)
    dataset = dataset_of(folder, options.data_root)
    with session(options) as (stop, tell), folder.lock():
        sha256 = folder.set_sha256()
        ledger = Ledger(folder, options.device)
        ledger.check()
        ledger.begin(ledger.last_step)
        made = problems(folder.spec, dataset, options, tell)
        judging = Judging(folder, sets.load(folder.synthetic), dataset, sha256, made, stop, tell)
        last = int(sets.read_header(folder.synthetic)["about"]["step"])
        seconds = ledger.costs.get("condense", CostPart(seconds=0.0)).seconds
        measures = Measures.of(folder, sha256)
        for part, recipe in wanted:
            cell = Cell(recipe, part.backbone, len(part.accuracy))
            curve = judging.draw_curve(cell, judging.judge(cell), last, seconds, losses=True)
            assert curve is not None  # only evaluations with accuracies are wanted
            # A set that was chosen among the iterates is not what the last loss is of.
            chosen = record.synthetic.choice is not None
            measures = measures.having(correlation(curve, log, last, metric, without_last=chosen))
            measures.keep(folder)
        record = record.model_copy(
            update={
                "curves": recorded_curves(folder, sha256),
                "correlations": measures.correlations,
                "attempts": ledger.attempts,
            }
        )
        write_record(folder.record, record)
        return record


def correlation(
    curve: Curve, log: Sequence[Mapping[str, Any]], last: int, metric: str = "loss", *, without_last: bool = False
) -> CorrelationPart:
    """Spearman's rank correlation over the points of a curve; `log` is that of the run, and `last` its last step.

    Raises: RunError where fewer than three points have both numbers, or one of the two is the same in all of them.
    """
    pairs = [
        (logged, fmean(point.loss))
        for point in curve.points
        if point.loss
        and not (without_last and point.step == last)
        and (logged := logged_before(log, metric, point.step, max(1, last // WINDOW))) is not None
        # What is no number has no rank.
        and math.isfinite(logged)
    ]
    if len(pairs) < LEAST:
        raise RunError(
            f"{curve.protocol} with {curve.backbone}: only {len(pairs)} snapshots have a test loss and a logged "
            f"{metric}, and {LEAST} are needed. `ddbench run --snapshots 20` "
            "takes more, in a run that starts over (--fresh)."
        )
    rho, interval = spearman([a for a, _ in pairs], [b for _, b in pairs])
    if math.isnan(rho):
        raise RunError(
            f"{curve.protocol} with {curve.backbone}: {metric} or test loss is the same at all {len(pairs)} snapshots, "
            "so there is no order to compare."
        )
    low, high = (None, None) if interval is None else interval
    return CorrelationPart(
        protocol=curve.protocol, digest=curve.digest, backbone=curve.backbone, metric=metric, points=len(pairs),
        rho=rho, low=low, high=high,
    )  # fmt: skip


def logged_before(log: Sequence[Mapping[str, Any]], metric: str, step: int, window: int) -> float | None:
    """The mean of a metric over the last `window` steps up to a step; of its nearest line where a line is longer.

    A line of a log has the mean over the steps since the line before. None where nothing was logged there.
    """
    before, total, steps = 0, 0.0, 0
    for entry in log:
        at, metrics = int(entry["step"]), entry.get("metrics", {})
        if step - window < at <= step and metric in metrics:
            total += (at - before) * float(metrics[metric])
            steps += at - before
        before = at
    return total / steps if steps else None


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Spearman's rho, nan where one side is constant, and its 95 % interval, none below four points.

    The interval is that of Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65, 2000: Fisher's z, with variance (1 + rho^2 / 2) / (n - 3). A rho of 1 or -1, where
    z is not finite, is first drawn in by half of the step between 1 and the next value that n ranks can have.
    """
    from scipy import stats

    n = len(ours)
    if len(set(ours)) < 2 or len(set(theirs)) < 2:
        return math.nan, None
    rho = max(-1.0, min(1.0, float(stats.spearmanr(ours, theirs).statistic)))
    if n < LEAST_WITH_INTERVAL:
        return rho, None
    most = 1 - 6 / (n * (n * n - 1))
    inside = max(-most, min(most, rho))
    half = _NORMAL * math.sqrt((1 + inside**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)
    return rho, (min(low, rho), max(high, rho))


def _wanted(
    path: Path, record: RunRecord, protocols: Sequence[str], judges: Sequence[str]
) -> list[tuple[EvaluationPart, Protocol]]:
    """The evaluations that are meant, with their recipes."""
    having = with_accuracies(record)
    meant = with_accuracies(record, protocols, judges)
    recipes = recipes_of(RunDir.at(path))
    found = [(part, protocol_of(part, recipes)) for part in meant]
    logits = [(part, recipe) for part, recipe in found if _has_logits(recipe)]
    if not logits:
        there = ", ".join(f"{part.protocol} with {part.backbone}" for part in having) or "none"
        why = "Students on regression targets have no cross-entropy. " if found else ""
        error = RunError(f"{path} has no such evaluation with a test loss; it has {there}. {why}".rstrip())
        raise error if found else mistyped(error)
    return logits


def _has_logits(protocol: Protocol) -> bool:
    options = protocol.options
    return isinstance(options, SGDOptions | ReplayOptions) and not isinstance(options, FiniteWidthOptions)


def _no_metric(folder: RunDir, metric: str, log: Sequence[Mapping[str, Any]]) -> RunError:
    names = sorted({name for entry in log for name in entry.get("metrics", {})})
    if not names:
        why = "this method learns nothing in steps, so there is nothing to correlate"
        return RunError(f"{folder.log} has no numbers: {why}.")
    return mistyped(RunError(f"{folder.log} has no {metric!r}; it has {', '.join(names)}. Say which with --metric."))
