"""The one outer loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ddbench.config import Selection
from ddbench.engine.program import keep_memory
from ddbench.errors import PluginError
from ddbench.evaluation.selection import Selector
from ddbench.method import Method, Metrics, State
from ddbench.problem import Problem
from ddbench.synthetic import SyntheticSet

S = TypeVar("S", bound=State)


def drive(
    method: Method[S],
    problem: Problem,
    saved: Mapping[str, Any] | None = None,
    selector: Selector | None = None,
) -> Iterator[tuple[S, Metrics]]:
    """Yield the state before the first step and after each one; start from `saved` when given.

    A selector looks at the set after some steps, and its accuracy is a metric of theirs, `heldout`; the problem is then
    the selector's.
    """
    keep_memory(problem.device)
    method.prepare(problem)
    state = method.start(problem)
    if saved is not None:
        state.load_state_dict(saved)
    yield state, {}
    while not over(method, problem, state):
        metrics = method.step(problem, state, problem.rng.fold("step", state.step))
        state.step += 1
        if selector is not None and selector.due(state.step, last=over(method, problem, state)):
            found = selector.look(export(method, problem, state), state.step)
            metrics = {**metrics, "heldout": torch.tensor(found.accuracy)}
        yield state, metrics


def over(method: Method[S], problem: Problem, state: S) -> bool:
    """Whether the last step has been taken."""
    said = method.finished(state)
    return state.step >= method.total_steps(problem) if said is None else said


def export(method: Method[S], problem: Problem, state: S) -> SyntheticSet:
    """The method's set, told which pixel space it lives in where the method left that to the problem."""
    synthetic = method.export(problem, state)
    if not isinstance(synthetic, SyntheticSet):
        raise PluginError(f"export of {method.name} returned a {type(synthetic).__name__}, and not a SyntheticSet.")
    rows = synthetic.source_indices
    if rows is not None and problem.whole is not problem and synthetic.stored == "uint8":
        whole = problem.whole
        there = bool(rows.max() < len(whole.train)) and torch.equal(synthetic.images, whole.train.images[rows])
        if not there:
            raise PluginError(
                f"export of {method.name} returned images that are not those that its source_indices name. Where "
                "images are held out, these are rows of problem.whole.train; problem.source_rows turns rows of "
                "problem.train into them."
            )
    if synthetic.pixels:
        return synthetic
    if problem.whitened_apart:
        raise PluginError(
            f"{method.name} held images out itself, which changes the whitening, so that its export must name the "
            "pixels of its set. Or leave choosing to the loop: --select."
        )
    return replace(synthetic, pixels=problem.pixels.name)


def condense(method: Method[S], problem: Problem, select: Selection | None = None) -> SyntheticSet:
    """Run a method from start to end in memory, without files. Selects as the method does, or as asked."""
    with problem.precision.active(problem.device):
        selector = Selector.of(method.selection if select is None else select, method, problem)
        problem = problem if selector is None else selector.problem
        for state, _ in drive(method, problem, selector=selector):
            last = state
        chosen = None if selector is None else selector.best
        return export(method, problem, last) if chosen is None else chosen
