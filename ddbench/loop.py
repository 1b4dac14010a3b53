"""The one outer loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ddbench.engine.program import keep_memory
from ddbench.errors import PluginError
from ddbench.method import Method, Metrics, State
from ddbench.problem import Problem
from ddbench.synthetic import SyntheticSet

S = TypeVar("S", bound=State)


def drive(method: Method[S], problem: Problem, saved: Mapping[str, Any] | None = None) -> Iterator[tuple[S, Metrics]]:
    """Yield the state before the first step and after each one; start from `saved` when given."""
    keep_memory(problem.device)
    method.prepare(problem)
    state = method.start(problem)
    if saved is not None:
        state.load_state_dict(saved)
    yield state, {}
    while not over(method, problem, state):
        metrics = method.step(problem, state, problem.rng.fold("step", state.step))
        state.step += 1
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
    if synthetic.pixels:
        return synthetic
    if problem.whitened_apart:
        raise TypeError(f"{method.name} held images out, which changes the whitening; its export must name the pixels")
    return replace(synthetic, pixels=problem.pixels.name)


def condense(method: Method[S], problem: Problem) -> SyntheticSet:
    """Run a method from start to end in memory, without files."""
    with problem.precision.active(problem.device):
        for state, _ in drive(method, problem):
            last = state
        return export(method, problem, last)
