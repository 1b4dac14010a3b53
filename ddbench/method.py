"""What a method is: how it starts, what one step is, what comes out.

The suite owns the loop, so a method holds nothing about files, logging, seeds, devices or evaluation.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, optim

from ddbench.backbones.variables import Variables
from ddbench.config import MethodConfig, Selection, Setting, read_settings
from ddbench.engine.program import Programs
from ddbench.errors import RunError
from ddbench.rng import Rng

if TYPE_CHECKING:
    from ddbench.problem import Problem
    from ddbench.synthetic import SyntheticSet

S = TypeVar("S", bound="State")
Metrics = dict[str, Tensor]
"""0-d tensors; whoever logs decides when to wait for the device."""

Kind = Literal["condensation", "coreset", "ceiling"]


@dataclass(frozen=True)
class MethodInfo:
    """What a table and a docs page say of a method.

    `native` names the protocol of the method's own paper. `advice` is printed when a run diverges, `memory_advice` when
    the device has no memory left. `timing` and `trial` are presets now, and go with ddbench 0.3.
    """

    title: str
    venue: str = ""
    year: int | None = None
    arxiv: str = ""
    learns: tuple[str, ...] = ()
    kind: Kind = "condensation"
    native: str = "dsa@1"
    advice: str = ""
    memory_advice: str = ""
    timing: Mapping[str, Any] = field(default_factory=dict)
    trial: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for preset in ("timing", "trial"):
            if getattr(self, preset):
                warnings.warn(
                    f"MethodInfo.{preset} of {self.title!r} is a preset now: write its options under preset = "
                    f'"{preset}" into presets/NAME.toml beside the method. The argument goes with ddbench 0.3.',
                    DeprecationWarning,
                    stacklevel=3,
                )


def transient() -> Any:
    """A field that start() can always find again, and that checkpoints leave out."""
    return field(metadata={"saved": False})


@dataclass
class State:
    """Everything that changes while condensing. Subclasses add fields; all of them are saved unless transient.

    A field may be a tensor, an optimiser, a network's Variables, a number, a string, None, or lists and dicts of these.
    """

    step: int = field(default=0, kw_only=True)
    _programs: Programs | None = field(default=None, init=False, repr=False, compare=False, metadata={"saved": False})

    def state_dict(self) -> dict[str, Any]:
        """A copy that shares no memory with the state."""
        return {f.name: _pack(getattr(self, f.name), f.name) for f in _saved(self)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Put saved values back. Tensors are filled in place, so that optimisers keep seeing them.

        Raises: RunError where the saved fields are not those of this state.
        """
        names = {f.name for f in _saved(self)}
        if names != set(saved):
            raise RunError(
                f"the checkpoint holds {sorted(saved)} and this version of the method saves {sorted(names)}: it was "
                "made by other code. Start over with --fresh."
            )
        for name, value in saved.items():
            setattr(self, name, _unpack(getattr(self, name), value, name))


class Method(ABC, Generic[S]):
    """One way of condensing a dataset. Subclass it, answer start, step and export, and register the class.

    Instead of `step` a method may answer `draw` and `update`, its random part and the rest: a GPU then captures the
    rest as a CUDA graph.
    """

    name: ClassVar[str]
    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    # False where no network of the problem is used, so that --backbone changes nothing.
    uses_backbone: ClassVar[bool] = True
    # How a run keeps its best set on held-out images unless it is asked to do it otherwise.
    selection: ClassVar[Selection] = Selection()
    config: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        old = vars(cls).get("total_steps")
        if isinstance(old, property):
            warnings.warn(
                f"{cls.__name__}.total_steps is a property; it is a method now, total_steps(problem). Properties go "
                "with ddbench 0.3.",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.total_steps = _as_it_was(old)  # type: ignore[method-assign, assignment]

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def prepare(self, problem: Problem) -> None:
        """Fill the artefact cache with what start() will ask for. Safe to repeat, and to run days before."""

    @abstractmethod
    def start(self, problem: Problem) -> S:
        """The state before the first step. Uses problem.rng.fold("start")."""

    def step(self, problem: Problem, state: S, rng: Rng) -> Metrics:
        """One outer iteration, in place. `rng` belongs to this step alone."""
        metrics: Metrics = self.run_update(problem, state, *self.draw(problem, state, rng))
        return metrics

    def draw(self, problem: Problem, state: S, rng: Rng) -> tuple[Any, ...]:
        """All that a step is given: what is random, or follows from its number, such as a step size.

        Tensors, on the host or the device, None, and values that never change.
        """
        raise NotImplementedError(f"{type(self).__name__} answers neither step nor draw and update")

    def update(self, problem: Problem, state: S, *draws: Any) -> Any:
        """One step given its draws, in place. Work on tensors of fixed shapes that never waits for the device.

        What is random belongs into `draw`. Functions of tensors alone that are marked
        `ddbench.engine.program.fusible` are compiled where that pays.
        """
        raise NotImplementedError(f"{type(self).__name__} answers neither step nor draw and update")

    def run_update(self, problem: Problem, state: S, *draws: Any) -> Any:
        """`update`, on a GPU as a CUDA graph for each shape of the draws. A `step` of one's own may call it too."""
        if state._programs is None:
            # By a weak reference, so that graphs and their memory go together with the state.
            update = functools.partial(self.update, problem, weakref.proxy(state))
            calls = (self.total_steps(problem) - state.step) * self.updates_per_step(problem)
            state._programs = Programs(update, problem.device, calls=calls)
        return state._programs(*draws)

    def updates_per_step(self, problem: Problem) -> int:
        """How often a `step` of one's own calls `run_update`, about, for deciding what is worth compiling."""
        return 1

    @classmethod
    def unanswered(cls) -> list[str]:
        """The names of what a subclass still has to define."""
        missing = sorted(cls.__abstractmethods__)
        if cls.step is Method.step:
            missing += [name for name in ("draw", "update") if getattr(cls, name) is getattr(Method, name)]
        return ["step"] if missing == ["draw", "update"] else missing

    @abstractmethod
    def export(self, problem: Problem, state: S) -> SyntheticSet:
        """A snapshot that shares no memory with the state. May be called after any step."""

    def total_steps(self, problem: Problem) -> int:
        """How many steps there will be, or at most, where a method finds out as it goes."""
        return int(getattr(self.config, "iterations", 0))

    def finished(self, state: S) -> bool | None:
        """Whether the last step has been taken, where a method finds that out as it goes; None: after `total_steps`."""
        return None

    @property
    def native(self) -> str:
        """The protocol by which a set that was made with these options is judged in the method's paper."""
        return self.info.native

    def steps_per_pass(self, problem: Problem) -> int | None:
        """How many steps see every real image once, for a method whose steps go over them in passes."""
        return None

    @property
    def learns(self) -> tuple[str, ...]:
        """What is learned with these options: as `info` says, unless a method can leave something out."""
        return self.info.learns

    def counts(self, state: S) -> Mapping[str, float]:
        """What the record says of the whole run in numbers, such as how many loops a cap has ended."""
        return {}

    @classmethod
    def settings(cls) -> list[Setting]:
        """The presets of `presets/<name>.toml` beside the class's file; none where there is no such file."""
        folder = cls.presets_folder()
        path = folder / f"{cls.name}.toml" if folder else None
        return read_settings(path) if path is not None and path.is_file() else []

    @classmethod
    def presets_folder(cls) -> Path | None:
        """The folder `presets` beside the class's file, whether or not it is there; None of a class without a file."""
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        return Path(file).parent / "presets" if file else None


class _Steps(int):
    """A number of steps that may be asked like the method of today."""

    def __call__(self, problem: Problem) -> int:
        return int(self)


def _as_it_was(old: property) -> property:
    return property(lambda method: _Steps(old.__get__(method)))


def _saved(state: State) -> list[dataclasses.Field[Any]]:
    return [f for f in fields(state) if f.metadata.get("saved", True)]


def _pack(value: Any, name: str) -> Any:
    match value:
        case Tensor():
            return value.detach().clone()
        case optim.Optimizer():
            return copy.deepcopy(value.state_dict())
        case None | bool() | int() | float() | str():
            return value
        case Variables():
            return {"params": _pack(value.params, name), "buffers": _pack(value.buffers, name)}
        case list() | tuple():
            return [_pack(item, name) for item in value]
        case dict():
            return {key: _pack(item, name) for key, item in value.items()}
        case _:
            raise TypeError(f"state field {name!r} holds a {type(value).__name__}, which a checkpoint cannot keep")


# How an optimiser does its step, which depends on the device and not on the run.
_MANNER = ("capturable", "foreach", "fused", "differentiable")


def _as_here(current: optim.Optimizer, saved: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Saved parameter groups, for a device that may be another one than they come from."""
    groups = current.param_groups
    if len(saved) != len(groups):
        raise RunError(
            f"the checkpoint's {name} has {len(saved)} groups of parameters and this run's {len(groups)}. "
            "Start over with --fresh."
        )
    return [
        {**group, **{key: here[key] for key in _MANNER if key in here}}
        for group, here in zip(saved, groups, strict=True)
    ]


def _unpack(current: Any, saved: Any, name: str) -> Any:
    match current:
        case Tensor() if isinstance(saved, Tensor):
            if current.shape != saved.shape:
                raise RunError(
                    f"the checkpoint's {name} has shape {tuple(saved.shape)} and this run's {tuple(current.shape)}. "
                    "Start over with --fresh."
                )
            with torch.no_grad():
                current.copy_(saved)
            return current
        case optim.Optimizer():
            current.load_state_dict({**saved, "param_groups": _as_here(current, saved["param_groups"], name)})
            return current
        case Variables():
            return Variables(*(_unpack(getattr(current, part), saved[part], name) for part in ("params", "buffers")))
        case list() | tuple() if len(current) == len(saved):
            return type(current)(_unpack(a, b, name) for a, b in zip(current, saved, strict=True))
        case tuple():
            return tuple(saved)
        case dict() if current.keys() == saved.keys():
            return {key: _unpack(current[key], saved[key], name) for key in saved}
        case _:
            return saved
