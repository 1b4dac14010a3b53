"""Every registered method is a method; and the contract notices where one is not."""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Recipe, Rng, State, SyntheticSet, transient
from ddbench.config import Setting
from ddbench.errors import ConfigError
from ddbench.initial import real_images, real_indices
from ddbench.plugins import GROUPS, listing, load_object
from ddbench.testing import contract
from ddbench.training.networks import TrainedNetwork

METHODS = [plugin.name for plugin in listing(GROUPS["method"]) if plugin.package == "ddbench"]
# Options that make more happen in few steps, or less, beside those that a method names itself.
SMALL: dict[str, dict[str, Any]] = {name: {"epochs": 2} for name in ("herding", "k-center", "k-means")}
SMALL |= {name: {"iterations": 2} for name in ("dc", "dsa", "cafe")}
SMALL["ld"] = {"iterations": 5, "window": 1, "batch_real": 50}
SMALL["dd"] = {"passes": 1, "batch_real": 50}
SMALL["kip"] = {"augment": True}


@pytest.mark.parametrize("check", contract.checks, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name: str, check: contract.Check) -> None:
    check(load_object(GROUPS["method"], name), SMALL.get(name, {}))


# Forms of methods that other papers have given them.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FTD": ("mtt", {"rho_experts": 0.01, "alpha_experts": 0.3, "ema": 0.9}),
    "TESLA": ("mtt", {"grad": "tesla", "teacher_labels": True}),
    "DATM with FTD": ("datm", {"rho_experts": 0.01, "alpha_experts": 0.3, "ema": 0.9}),
    "DANCE with its authors' networks": ("dance", {"networks_trained": "authors"}),
    "DANCE's gradients in turn": ("dance", {"in_turn": True}),
    "NCFM with its authors' networks": ("ncfm", {"networks_trained": "authors"}),
    "NCFM as released": ("ncfm", {"networks_trained": "authors", "real_images": "first", "watched": "both"}),
    "NCFM by SGD": ("ncfm", {"optimizer": "sgd"}),
    "NCFM's minimax": ("ncfm", {"learned_frequencies": True, "normals_per_scale": 2, "amplitude": 0.9}),
    "NCFM's network as frequencies": ("ncfm", {"learned_frequencies": True, "normals_per_scale": 0}),
}


@pytest.mark.parametrize("check", contract.checks, ids=lambda check: check.__name__)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_method_keep_the_contract(form: str, check: contract.Check) -> None:
    name, options = FORMS[form]
    check(load_object(GROUPS["method"], name), options)


class DriftConfig(MethodConfig):
    iterations: int = Field(1000, ge=0, description="Steps.")


@dataclass
class DriftState(State):
    images: Tensor
    drift: Tensor
    transient_drift: Tensor = transient()
    shift: Tensor = field(default_factory=lambda: torch.zeros(()))


class Drift(Method[DriftState]):
    """Real images that drift at random, with momentum: sound in every respect."""

    name = "drift"
    info = MethodInfo(title="Drift", learns=("images",))
    Config = DriftConfig

    def start(self, problem: Problem) -> DriftState:
        images = real_images(problem, problem.rng.fold("start"))
        return DriftState(images, torch.zeros_like(images), torch.zeros_like(images))

    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        state.drift.mul_(0.9).add_(self.noise(state, rng))
        state.images.add_(state.drift)
        return {"length": state.drift.norm()}

    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.randn(state.images.shape, generator=rng.fold("noise").torch())

    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images + state.shift, problem.class_labels())


class TorchNoise(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.randn(state.images.shape)


class NumpyNoise(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.full((), np.random.rand())


class RandomNoise(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.full((), random.random())


class Reseeds(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        torch.manual_seed(rng.key)
        return torch.randn(state.images.shape)


class PeeksAtTheGlobalState(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.full((), float(torch.get_rng_state()[:64].sum()) / 1e4) + super().noise(state, rng)


class ReadsTheClock(Drift):
    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return torch.randn((), generator=torch.Generator().manual_seed(time.perf_counter_ns()))


class IgnoresTheSeed(Drift):
    def start(self, problem: Problem) -> DriftState:
        return super().start(replace(problem, rng=Rng(0)))

    def noise(self, state: DriftState, rng: Rng) -> Tensor:
        return super().noise(state, Rng(0, (state.step,)))


class ExportsItsOwnMemory(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images, problem.class_labels())


class ExportsOneLabelTensor(Drift):
    def start(self, problem: Problem) -> DriftState:
        self.labels = problem.class_labels()
        return super().start(problem)

    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), self.labels)


class RemembersOnItself(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        self.drift = 0.9 * getattr(self, "drift", 0) + self.noise(state, rng)
        state.images.add_(self.drift)
        return {}


class ForgetsAField(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        state.transient_drift.mul_(0.9).add_(self.noise(state, rng))
        state.images.add_(state.transient_drift)
        return {}


class ChangesWhenExported(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        state.shift.add_(1)
        return super().export(problem, state)


class LosesInTheFile(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        # A tuple comes back from JSON as a list.
        return replace(super().export(problem, state), recipe=Recipe(augment=("flip",)))


class FloatMetrics(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        return {name: value.item() for name, value in super().step(problem, state, rng).items()}


class VectorMetrics(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        return {"length": super().step(problem, state, rng)["length"][None]}


class MetricsWithTheirGraph(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        return {"length": super().step(problem, state, rng)["length"].requires_grad_()}


class WritesToTheRealData(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        problem.train.images[0] += 1
        return super().step(problem, state, rng)


class TurnsGradientsOff(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        torch.set_grad_enabled(False)
        return super().step(problem, state, rng)


class SetsAFlag(Drift):
    def start(self, problem: Problem) -> DriftState:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        return super().start(problem)


class SetsTheDtype(Drift):
    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        torch.set_default_dtype(torch.float64)
        return super().step(problem, state, rng)


class PreparesAfresh(Drift):
    def prepare(self, problem: Problem) -> None:
        problem.artifacts.root.mkdir(exist_ok=True)
        (problem.artifacts.root / f"{time.perf_counter_ns()}").touch()


class PreparesNothing(Drift):
    def start(self, problem: Problem) -> DriftState:
        problem.artifacts.get(TrainedNetwork.of(problem, epochs=0, lr=0.01, seed=0), problem)
        return super().start(problem)


class BadName(Drift):
    name = "My Drift"


class NoTitle(Drift):
    info = MethodInfo(title="", learns=("images",))


class NoSuchProtocol(Drift):
    info = MethodInfo(title="Drift", learns=("images",), native="dsa@99")


class NoInfo(Drift):
    info = None


class UnexplainedOption(Drift):
    class Config(DriftConfig):
        speed: float = 1.0


class OptionThatJsonChanges(Drift):
    class Config(DriftConfig):
        speeds: Any = Field((1.0, 2.0), description="Speeds.")


class PresetForAnotherMethod(Drift):
    @classmethod
    def settings(cls) -> list[Setting]:
        return [Setting("paper", ("*",), ("*",), "a paper", {"speed": 2}, {})]


class NotFinite(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        images = state.images.clone()
        images[0, 0, 0, 0] = torch.inf
        return SyntheticSet(images, problem.class_labels())


class OneImageTooMany(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        images, labels = state.images, problem.class_labels()
        return SyntheticSet(torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]]))


class OneClassForAnother(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), torch.zeros_like(problem.class_labels()))


class KeepsTheGraph(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images.clone().requires_grad_(), problem.class_labels())


class SmallerImages(Drift):
    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images[..., 1:].clone(), problem.class_labels())


class ColourOnly(Drift):
    def start(self, problem: Problem) -> DriftState:
        if problem.shape[0] != 3:
            raise ValueError("three channels, please")
        return super().start(problem)


class BalancedOnly(Drift):
    def start(self, problem: Problem) -> DriftState:
        problem.train.images.unflatten(0, (problem.classes, -1))
        return super().start(problem)


class SeveralImagesOnly(Drift):
    def start(self, problem: Problem) -> DriftState:
        state = super().start(problem)
        if problem.by_class(state.images).std(dim=1, correction=0).max() == 0:
            raise ValueError("images of one class are all alike")
        return state


@dataclass
class Rows(State):
    rows: Tensor


class Chooses(Method[Rows]):
    """Random rows: a sound coreset."""

    name = "chooses"
    info = MethodInfo(title="Chooses", kind="coreset")

    def start(self, problem: Problem) -> Rows:
        return Rows(real_indices(problem, problem.rng.fold("start")).flatten())

    def step(self, problem: Problem, state: Rows, rng: Rng) -> Metrics:
        return {}

    def export(self, problem: Problem, state: Rows) -> SyntheticSet:
        images, labels = problem.train.images[state.rows], problem.train.labels[state.rows]
        return SyntheticSet(images, labels, source_indices=self.sources(problem, state))

    def sources(self, problem: Problem, state: Rows) -> Tensor | None:
        return state.rows.clone()


class HidesItsSources(Chooses):
    def sources(self, problem: Problem, state: Rows) -> Tensor | None:
        return None


class NamesOtherSources(Chooses):
    def sources(self, problem: Problem, state: Rows) -> Tensor | None:
        return (state.rows + 1) % len(problem.train)


class NamesRowsThatAreNotThere(Chooses):
    def sources(self, problem: Problem, state: Rows) -> Tensor | None:
        return state.rows + len(problem.train)


class ChoosesTwice(Chooses):
    def start(self, problem: Problem) -> Rows:
        rows = super().start(problem).rows
        return Rows(rows.unflatten(0, (problem.classes, problem.ipc))[:, :1].repeat(1, problem.ipc).flatten())


class ExportsTheRealImages(Chooses):
    info = MethodInfo(title="Everything", kind="ceiling")

    def export(self, problem: Problem, state: Rows) -> SyntheticSet:
        return SyntheticSet(
            problem.train.images, problem.train.labels.clone(), source_indices=torch.arange(len(problem.train))
        )


class HalfACeiling(Chooses):
    info = MethodInfo(title="Half of it", kind="ceiling")


class NamesRowsOfThePart(Chooses):
    """Where images are held out, rows are those of all images."""

    info = MethodInfo(title="Learns labels", learns=("labels",))


FIT = ("the_set_fits_the_problem", "grey_images_work", "unbalanced_classes_work", "one_image_per_class_works")
# What learns can be given the problem without held-out images.
LEARNS = (*FIT, "held_out_images_are_not_missed")
# Twice the same image cannot be seen where one is chosen.
FIT_OF_SEVERAL = FIT[:3]

BROKEN: list[tuple[type[Method[Any]], tuple[str, ...]]] = [
    (TorchNoise, ("global_generators_are_left_alone",)),
    (NumpyNoise, ("global_generators_are_left_alone",)),
    (RandomNoise, ("global_generators_are_left_alone",)),
    (Reseeds, ("global_generators_are_left_alone",)),
    (PeeksAtTheGlobalState, ("global_generators_are_left_alone",)),
    (ReadsTheClock, ("same_seed_same_set",)),
    (IgnoresTheSeed, ("another_seed_another_set",)),
    (ExportsItsOwnMemory, ("an_export_shares_no_memory_with_the_state",)),
    (ExportsOneLabelTensor, ("an_export_shares_no_memory_with_the_state",)),
    (ExportsTheRealImages, ("an_export_shares_no_memory_with_the_state",)),
    (RemembersOnItself, ("a_resumed_run_equals_an_uninterrupted_one",)),
    (ForgetsAField, ("a_resumed_run_equals_an_uninterrupted_one",)),
    (ChangesWhenExported, ("exporting_changes_nothing",)),
    (LosesInTheFile, ("save_and_load_give_the_same_set",)),
    (FloatMetrics, ("metrics_are_scalar_tensors",)),
    (VectorMetrics, ("metrics_are_scalar_tensors",)),
    (MetricsWithTheirGraph, ("metrics_are_scalar_tensors",)),
    (WritesToTheRealData, ("the_real_data_is_left_alone",)),
    (TurnsGradientsOff, ("torch_settings_are_left_alone",)),
    (SetsAFlag, ("torch_settings_are_left_alone",)),
    (PreparesAfresh, ("prepare_may_be_repeated",)),
    (PreparesNothing, ("prepare_may_be_repeated",)),
    (BadName, ("name_and_info_are_complete",)),
    (NoTitle, ("name_and_info_are_complete",)),
    (NoSuchProtocol, ("name_and_info_are_complete",)),
    (UnexplainedOption, ("options_survive_json",)),
    (OptionThatJsonChanges, ("options_survive_json",)),
    (PresetForAnotherMethod, ("presets_fit_the_options",)),
    (ColourOnly, ("grey_images_work",)),
    (BalancedOnly, ("unbalanced_classes_work",)),
    (SeveralImagesOnly, ("one_image_per_class_works",)),
    (NamesRowsOfThePart, ("held_out_images_are_not_missed",)),
    (NotFinite, LEARNS),
    (OneImageTooMany, LEARNS),
    (OneClassForAnother, LEARNS),
    (KeepsTheGraph, LEARNS),
    (SmallerImages, LEARNS),
    (HidesItsSources, FIT),
    (NamesOtherSources, FIT),
    (NamesRowsThatAreNotThere, FIT),
    (HalfACeiling, FIT),
    (ChoosesTwice, FIT_OF_SEVERAL),
]


@pytest.mark.parametrize("sound", [Drift, Chooses])
def test_a_sound_method_passes_every_check(sound: type[Method[Any]]) -> None:
    assert contract.run(sound, {}) == [(check.__name__, None) for check in contract.checks]


@pytest.mark.parametrize(("broken", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_fails_exactly_its_check(broken: type[Method[Any]], expected: tuple[str, ...]) -> None:
    failed = {name: reason for name, reason in contract.run(broken, {}) if reason is not None}
    assert sorted(failed) == sorted(expected), failed


def test_every_check_can_fail() -> None:
    assert {name for _, names in BROKEN for name in names} == {check.__name__ for check in contract.checks}


def test_a_method_that_changes_the_dtype_does_not_disturb_the_tests_around_it() -> None:
    failed = [name for name, reason in contract.run(SetsTheDtype, {}) if reason is not None]
    assert "torch_settings_are_left_alone" in failed
    assert torch.get_default_dtype() == torch.float32


def test_the_checks_leave_the_global_generators_as_they_are() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    contract.run(TorchNoise, {})
    contract.run(RandomNoise, {})
    contract.run(NumpyNoise, {})
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_method_without_info_is_told_so() -> None:
    failed = dict(contract.run(NoInfo, {}))
    assert failed["name_and_info_are_complete"] == "info is None; tables need a MethodInfo."


class Tried(Drift):
    """Brings what it is tried with, as a preset file would."""

    name = "tried"
    seen: ClassVar[list[int]] = []

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.seen.append(self.config.iterations)

    @classmethod
    def settings(cls) -> list[Setting]:
        return [Setting("trial", ("*",), ("*",), "test", {"iterations": 2, "batch": 4}, {})]


def test_what_a_method_is_tried_with_yields_to_what_is_given_and_to_other_options() -> None:
    class Derived(Tried):
        name = "derived"
        seen: ClassVar[list[int]] = []

        @classmethod
        def settings(cls) -> list[Setting]:
            return []

    for kind in (Tried, Derived):
        contract.exporting_changes_nothing(kind, {})
        contract.exporting_changes_nothing(kind, {"iterations": 1})
        assert set(kind.seen) == {1, 2}


def test_what_a_method_is_tried_with_was_part_of_its_info() -> None:
    with pytest.warns(DeprecationWarning, match=r'preset = "trial" into presets/NAME\.toml'):
        info = MethodInfo(title="Tried", learns=("images",), trial={"iterations": 2})

    class Old(Drift):
        pass

    Old.info = info
    assert steps_taken({}, Old) == 2


def test_options_of_another_method_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"drift has no option 'iteration'. Did you mean 'iterations'"):
        contract.run(Drift, {"iteration": 5})


def test_iterations_are_few_unless_they_are_given() -> None:
    assert steps_taken({}) == contract.FEW_STEPS
    assert steps_taken({"iterations": 5}) == 5


def steps_taken(options: dict[str, Any], kind: Any = None) -> int:
    class Counts(kind or Drift):  # type: ignore[misc]
        most: ClassVar[int] = 0

        def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
            Counts.most = max(Counts.most, state.step + 1)
            return super().step(problem, state, rng)

    contract.same_seed_same_set(Counts, options)
    return Counts.most


def test_the_problem_for_checks_holds_no_test_data(tmp_path: Any) -> None:
    problem = contract.problem_for_checks(tmp_path)

    def held(value: object) -> Iterable[object]:
        yield value
        for part in vars(value).values() if hasattr(value, "__dict__") else ():
            if type(part).__module__.startswith("ddbench"):
                yield from held(part)

    assert not [value for value in held(problem) if type(value).__name__ in ("TestData", "Dataset", "SealedTest")]
