"""What the methods to come need of the core, each in a few lines."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench import State, SyntheticSet, Variables
from ddbench.data.tensors import RealImages
from ddbench.engine.program import _check_same
from ddbench.evaluation.protocol import Protocol
from ddbench.loop import export
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks
from ddbench.training.options import SGDOptions, TrainerOptions


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


@pytest.mark.parametrize("n", [7, 30, 200])
def test_epoch_batches_visit_every_image_once_a_pass_and_depend_on_the_step_alone(tmp_path: Path, n: int) -> None:
    real: RealImages = problem_for_checks(tmp_path).real
    per_pass = -(-len(real) // n)
    seen = [real.epoch_batch(n, step, Rng(3)) for step in range(2 * per_pass)]
    for some in (seen[:per_pass], seen[per_pass:]):
        labels = torch.cat([y for _, y in some])
        assert torch.equal(torch.bincount(labels), real.counts)
        images = torch.cat([x for x, _ in some]).flatten(1)
        assert len(images.unique(dim=0)) == len(real.take(torch.arange(len(real))).flatten(1).unique(dim=0))
    if per_pass > 1:
        assert not torch.equal(seen[0][0], seen[per_pass][0])
    assert torch.equal(real.epoch_batch(n, per_pass, Rng(3))[0], seen[per_pass][0])


def test_a_generators_path_takes_any_integer() -> None:
    assert Rng(0).fold("class", np.int64(3)).key == Rng(0).fold("class", 3).key  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Rng(0).fold(0.5)  # type: ignore[arg-type]


def test_a_protocol_without_options_takes_those_of_its_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ridge(TrainerOptions):
        ridge: float = 1e-6

    monkeypatch.setattr("ddbench.evaluation.protocol.trainer_options", lambda name: Ridge)
    assert Protocol(name="krr", trainer="krr").options == Ridge()
    with pytest.raises(ValueError, match="are a Ridge or a table"):
        Protocol(name="krr", trainer="krr", options=[1])


def test_a_trainer_from_a_file_is_refused_because_a_digest_would_not_see_its_edits() -> None:
    with pytest.raises(ValueError, match="not from a file"):
        Protocol(name="own", trainer="./mine.py:Mine")


def test_a_protocols_file_can_ask_for_the_learned_step_size() -> None:
    assert SGDOptions(lr="none").lr is None  # type: ignore[arg-type]


def test_a_method_that_held_images_out_must_name_its_whitening(tmp_path: Path) -> None:
    from dataclasses import replace

    from ddbench.data.pixels import fit_pixels
    from ddbench.plugins import GROUPS, load_object

    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    random = load_object(GROUPS["method"], "random")

    class HoldingOut(random):  # type: ignore[misc, valid-type]
        def export(self, problem: object, state: object) -> SyntheticSet:
            return SyntheticSet(torch.zeros(6, 3, 8, 8), torch.arange(3).repeat_interleave(2))

    method = HoldingOut(random.Config())
    state = method.start(problem)
    assert export(method, problem, state).pixels == "zca(eps=0.1)"
    problem.heldout(0.2)
    with pytest.raises(TypeError, match="must name the pixels"):
        export(method, problem, state)


def test_a_program_refuses_arguments_of_another_shape() -> None:
    def check(a: list[object], b: list[object]) -> None:
        _check_same(a, b)

    check([torch.zeros(3), 0.1], [torch.ones(3), 0.1])
    for other in ([torch.ones(2), 0.1], [torch.ones(3), 0.2], [torch.ones(3, dtype=torch.int64), 0.1]):
        with pytest.raises(ValueError, match="keep their shapes"):
            check([torch.zeros(3), 0.1], other)
