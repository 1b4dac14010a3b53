"""State goes into a file and comes back; the driver goes on from it."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, optim

from ddbench import (
    Method,
    MethodConfig,
    MethodInfo,
    Metrics,
    Problem,
    Rng,
    State,
    SyntheticSet,
    Variables,
    drive,
    transient,
)
from ddbench.errors import RunError
from ddbench.loop import condense, export
from ddbench.testing.contract import problem_for_checks


@dataclass
class Everything(State):
    images: Tensor
    optimizer: optim.Optimizer
    cached: Tensor = transient()
    window: list[float] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    pair: tuple[Tensor, int] = (torch.zeros(2), 0)
    note: str = ""
    limit: float | None = None


def fresh() -> Everything:
    images = torch.zeros(2, 3, requires_grad=True)
    return Everything(images, optim.Adam([images], 0.1), torch.zeros(1), pair=(torch.zeros(2), 0))


def trained() -> Everything:
    state = fresh()
    for _ in range(3):
        state.images.sum().backward()
        state.optimizer.step()
        state.step += 1
    state.window, state.best, state.note, state.limit = [1.0, 2.5], {"loss": 0.5, "labels": torch.ones(3)}, "x", 2.0
    state.pair = (torch.full((2,), 3.0), 4)
    state.cached.fill_(9)
    return state


def through_a_file(state: State) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    saved: dict[str, Any] = torch.load(buffer, weights_only=True)
    return saved


def test_every_kind_of_field_comes_back_from_a_file() -> None:
    before, after = trained(), fresh()
    after.load_state_dict(through_a_file(before))
    assert torch.equal(after.images, before.images)
    assert (after.step, after.window, after.note, after.limit) == (3, [1.0, 2.5], "x", 2.0)
    assert after.best["loss"] == 0.5
    assert torch.equal(after.best["labels"], torch.ones(3))
    assert isinstance(after.pair, tuple)
    assert torch.equal(after.pair[0], torch.full((2,), 3.0))
    assert after.pair[1] == 4


def test_a_transient_field_is_neither_saved_nor_loaded() -> None:
    saved = trained().state_dict()
    assert "cached" not in saved
    after = fresh()
    after.load_state_dict(saved)
    assert torch.equal(after.cached, torch.zeros(1))


def test_an_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    whole, resumed = trained(), fresh()
    resumed.load_state_dict(through_a_file(whole))
    for state in (whole, resumed):
        state.images.grad = torch.full_like(state.images, 0.3)
        state.optimizer.step()
    assert torch.equal(whole.images, resumed.images)


def test_an_optimizer_steps_as_its_device_wants_whatever_the_other_one_did() -> None:
    saved = trained().state_dict()
    # As on a GPU, where Adam counts its steps there.
    saved["optimizer"]["param_groups"][0] |= {"capturable": True, "lr": 0.3}
    again = fresh()
    again.load_state_dict(saved)
    assert again.optimizer.param_groups[0]["capturable"] is False
    assert again.optimizer.param_groups[0]["lr"] == 0.3
    again.images.grad = torch.ones_like(again.images)
    again.optimizer.step()
    assert float(again.state_dict()["optimizer"]["state"][0]["step"]) == 4


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    saved = fresh().state_dict()
    saved["optimizer"]["param_groups"] *= 2
    with pytest.raises(RunError, match="2 groups of parameters and this run's 1"):
        fresh().load_state_dict(saved)


def test_tensors_are_filled_in_place_so_that_optimizers_keep_seeing_them() -> None:
    state = fresh()
    images = state.images
    state.load_state_dict(trained().state_dict())
    assert state.images is images
    assert state.optimizer.param_groups[0]["params"][0] is images
    assert images.requires_grad


def test_a_saved_state_shares_no_memory_with_the_state() -> None:
    state = trained()
    saved = state.state_dict()
    kept = saved["images"].clone(), saved["best"]["labels"].clone()
    state.images.grad = torch.ones_like(state.images)
    state.optimizer.step()
    state.best["labels"].zero_()
    assert torch.equal(saved["images"], kept[0])
    assert torch.equal(saved["best"]["labels"], kept[1])
    assert float(saved["optimizer"]["state"][0]["step"]) == 3


def test_fields_of_other_code_are_refused() -> None:
    saved = trained().state_dict()
    del saved["window"]
    with pytest.raises(RunError, match=r"it was made by other code. Start over with --fresh"):
        fresh().load_state_dict(saved)
    with pytest.raises(RunError, match=r"made by other code"):
        fresh().load_state_dict(trained().state_dict() | {"another": 1})


def test_a_tensor_of_another_shape_is_refused() -> None:
    saved = trained().state_dict() | {"images": torch.zeros(3, 3)}
    with pytest.raises(RunError, match=r"checkpoint's images has shape \(3, 3\) and this run's \(2, 3\)"):
        fresh().load_state_dict(saved)


def test_a_field_that_no_checkpoint_can_keep_is_named() -> None:
    state = fresh()
    state.best = {"network": torch.nn.Linear(1, 1)}
    with pytest.raises(TypeError, match=r"state field 'best' holds a Linear"):
        state.state_dict()


class CountingConfig(MethodConfig):
    iterations: int = Field(4, ge=0, description="Steps.")


@dataclass
class Total(State):
    total: Tensor


class Counting(Method[Total]):
    """Sums one random number a step."""

    name = "counting"
    info = MethodInfo(title="Counting")
    Config = CountingConfig

    def prepare(self, problem: Problem) -> None:
        self.calls = ["prepare"]

    def start(self, problem: Problem) -> Total:
        self.calls.append("start")
        return Total(torch.zeros(1))

    def step(self, problem: Problem, state: Total, rng: Rng) -> Metrics:
        self.calls.append(f"step {state.step} {'/'.join(map(str, rng.path))}")
        state.total += torch.rand(1, generator=rng.torch())
        return {"total": state.total.sum()}

    def export(self, problem: Problem, state: Total) -> SyntheticSet:
        return SyntheticSet(state.total.expand(3, *problem.shape).clone(), torch.arange(3))


def test_the_driver_yields_before_the_first_step_and_after_each(tmp_path: Path) -> None:
    method = Counting(CountingConfig(iterations=2))
    seen = [(state.step, list(metrics)) for state, metrics in drive(method, problem_for_checks(tmp_path))]
    assert seen == [(0, []), (1, ["total"]), (2, ["total"])]
    assert method.calls == ["prepare", "start", "step 0 step/0", "step 1 step/1"]


def test_the_driver_goes_on_where_it_was_left(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whole = condense(Counting(CountingConfig()), problem)
    for state, _ in drive(Counting(CountingConfig()), problem):
        if state.step == 2:
            break
    method = Counting(CountingConfig())
    for again, _ in drive(method, problem, state.state_dict()):
        last = again
    assert method.calls[2:] == ["step 2 step/2", "step 3 step/3"]
    assert torch.equal(method.export(problem, last).images, whole.images)


def test_no_iterations_are_no_steps(tmp_path: Path) -> None:
    steps = list(drive(Counting(CountingConfig(iterations=0)), problem_for_checks(tmp_path)))
    assert len(steps) == 1


def test_a_number_of_steps_that_is_a_property_still_counts(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"Old.total_steps is a property; it is a method now"):

        class Old(Counting):
            @property
            def total_steps(self) -> int:  # type: ignore[override]
                return 2

    method, problem = Old(CountingConfig(iterations=5)), problem_for_checks(tmp_path)
    assert method.total_steps(problem) == method.total_steps == 2  # type: ignore[comparison-overlap, operator]
    assert len(list(drive(method, problem))) == 3


def test_a_method_may_find_out_by_itself_that_it_is_over(tmp_path: Path) -> None:
    class Brief(Counting):
        def finished(self, state: Total) -> bool:
            return state.step >= 1

    assert len(list(drive(Brief(CountingConfig(iterations=5)), problem_for_checks(tmp_path)))) == 2


def test_an_export_is_told_its_pixel_space_unless_it_has_one(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)

    class Whitened(Counting):
        def export(self, problem: Problem, state: Total) -> SyntheticSet:
            return SyntheticSet(torch.zeros(3, *problem.shape), torch.arange(3), pixels="zca(eps=0.1)")

    assert export(Counting(CountingConfig()), problem, Total(torch.zeros(1))).pixels == "standard"
    assert export(Whitened(CountingConfig()), problem, Total(torch.zeros(1))).pixels == "zca(eps=0.1)"


def test_presets_lie_beside_the_class() -> None:
    from ddbench.plugins import GROUPS, load_object

    assert load_object(GROUPS["method"], "dm").settings()
    assert Counting.settings() == []


@dataclass
class Training(State):
    """A method that keeps a network, as LD does."""

    network: Variables
    window: tuple[int, ...] = ()


def test_a_state_may_keep_a_network(tmp_path: Path) -> None:
    net = problem_for_checks(tmp_path).backbone
    first, second = Training(net.init(Rng(0)), (1, 2)), Training(net.init(Rng(1)))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(second.network.params[k], v) for k, v in first.network.params.items())
    assert second.window == (1, 2)
