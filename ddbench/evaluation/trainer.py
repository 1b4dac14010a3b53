"""What a trainer is: it turns a set into students that can be asked for their predictions."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ddbench.errors import ConfigError, PluginError
from ddbench.evaluation.protocol import Protocol
from ddbench.plugins import TRAINERS, load_object
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import TrainerOptions

Predictor = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in the pixel space -> scores [S, B, K] of S students; the arg-max is the prediction."""

Progress = Callable[[int], None]
"""Told how many student-steps were taken since its last call."""

GUIDE = "The guide 'Add a trainer' has a complete example."
CHANGED = (
    "Since ddbench 0.2 a trainer is made for one set, Trainer(synthetic, protocol, problem), and has all three as "
    "attributes: no method is given a job. `train(students, progress)` and `choose(progress)` remain methods; `steps`, "
    "`together`, `trials`, `deterministic` (which was alike) and `extra_bytes` (stored_bytes) are properties; decided "
    f"is gone, because `choose` keeps what it chooses in `chosen`. {GUIDE}"
)


class Trainer(ABC):
    """Training of students on one set, under one protocol, for one problem, which holds no test data.

    Register a subclass in the entry point group `ddbench.trainers`. `students` is how many will be trained in all, in
    one call or in several. `chosen` is what trials have chosen, by the names of options.
    Making a trainer costs nothing; what takes time, or can fail, waits until somebody asks for it.
    """

    Options: ClassVar[type[TrainerOptions]] = TrainerOptions
    # False where no network is trained: then the set is judged once, whatever backbones are named.
    uses_backbone: ClassVar[bool] = True

    def __init__(
        self,
        synthetic: SyntheticSet,
        protocol: Protocol,
        problem: Problem,
        *,
        students: int = 1,
        chosen: Mapping[str, float] | None = None,
    ) -> None:
        self.synthetic, self.protocol, self.problem = synthetic, protocol, problem
        self.students = students
        self.chosen: dict[str, float] = dict(chosen or {})

    @property
    def rng(self) -> Rng:
        """Depends on protocol and backbone alone, so that student k is the same one for every set that it judges."""
        return Rng(0, ("students", self.protocol.seeds, self.problem.backbone.name))

    @abstractmethod
    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        """Train the numbered students, once `choose` has been called.

        Raises: ConfigError or DataError where the set cannot be judged like this.
        """

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of one student, for progress and estimates. Raises: as `train`."""

    @property
    def student_forwards(self) -> int | None:
        """Images that one student trains on, repeats counted, trials and teachers not; none where nobody counts them.

        Raises: as `train`.
        """
        return None

    @property
    def together(self) -> int:
        """How many students are worth training in one call."""
        return 1

    @property
    def deterministic(self) -> bool:
        """Whether all students are one and the same, because the set leaves nothing to chance. Then one is trained."""
        return False

    @property
    def extra_bytes(self) -> int:
        """Bytes that a receiver must store beside the set to train like this, such as a teacher."""
        return 0

    @property
    def trials(self) -> int:
        """How many networks `choose` will train."""
        return 0

    def choose(self, progress: Progress) -> Mapping[str, float]:
        """Choose by trials what the protocol leaves open, keep it in `chosen`, and return that.

        What is in `chosen` already stands. Raises: as `train`.
        """
        return self.chosen


def trainer_class(name: str) -> type[Trainer]:
    """The trainer of an entry point. Raises: PluginError for an unknown name, and for a class that is no trainer."""
    kind = load_object(TRAINERS, name)
    if not (isinstance(kind, type) and issubclass(kind, Trainer)):
        raise PluginError(
            f"trainer {name!r} is a {type(kind).__name__}, not a subclass of ddbench.evaluation.trainer.Trainer. "
            f"{GUIDE}"
        )
    if earlier := _of_version_0_1(kind):
        raise PluginError(
            f"trainer {name!r} ({kind.__name__}) is written for an earlier ddbench, by its {', '.join(earlier)}. "
            f"{CHANGED}"
        )
    if missing := sorted(kind.__abstractmethods__):
        raise PluginError(
            f"trainer {name!r}: the class {kind.__name__} does not answer {' and '.join(missing)}. {GUIDE}"
        )
    return kind


def trainer_of(
    synthetic: SyntheticSet,
    protocol: Protocol,
    problem: Problem,
    *,
    students: int = 1,
    chosen: Mapping[str, float] | None = None,
) -> Trainer:
    """The trainer that a protocol names, made for a set. Raises: PluginError, ConfigError where there is none."""
    kind = trainer_class(protocol.trainer)
    if not isinstance(protocol.options, kind.Options):
        raise ConfigError(
            f"protocol {protocol.id} has the options of another trainer: those of {protocol.trainer!r} are a "
            f"{kind.Options.__name__}, and these are a {type(protocol.options).__name__}."
        )
    return kind(synthetic, protocol, problem, students=students, chosen=chosen)


def _of_version_0_1(kind: type[Trainer]) -> list[str]:
    """What in a class belongs to the interface in which every method was given a job."""
    methods = dict(inspect.getmembers(kind, inspect.isfunction))
    changed = {"alike", "decided", "stored_bytes", "steps", "together", "trials"}
    return [name for name, m in methods.items() if name in changed or "job" in inspect.signature(m).parameters]


def __getattr__(name: str) -> Any:
    if name == "Job":
        # Without a full stop, because a package that does not import is said to in a longer sentence.
        raise PluginError(f"ddbench.evaluation.trainer.Job is gone. {CHANGED}".rstrip("."))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
