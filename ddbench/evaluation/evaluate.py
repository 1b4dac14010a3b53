"""Fresh students, one accuracy per student. Test data is read once per student, after its training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol as Interface

import torch
from torch import Tensor

from ddbench.data.pixels import PixelSpace
from ddbench.data.tensors import DatasetTensors
from ddbench.engine.capabilities import home_of_float64, in_float64
from ddbench.engine.precision import Precision
from ddbench.errors import DivergedError
from ddbench.evaluation.protocol import Protocol
from ddbench.evaluation.trainer import Predictor, Progress, Trainer, trainer_of
from ddbench.problem import Problem
from ddbench.synthetic import SyntheticSet
from ddbench.training.students import TESTED_IMAGES, fewer_if_larger


def tested_together(shape: Sequence[int]) -> int:
    """How many images [..., H, W] a trained network sees at once: fewer larger ones, so that testing takes no more
    memory than training."""
    return fewer_if_larger(TESTED_IMAGES, shape[-2] * shape[-1])


class Loadable(Interface):
    """Test data that is read when asked for."""

    def load(self) -> DatasetTensors: ...


@dataclass(eq=False)
class SealedTest:
    """The test set, which each student may read once, when it is trained.

    `reads` counts; a second reading by the same student is refused, because whoever reads twice can choose.
    """

    source: Loadable
    reads: dict[str, int] = field(default_factory=dict)
    _whitened: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def _data(self) -> DatasetTensors:
        return self.source.load()

    def measure(
        self,
        students: Sequence[str],
        predict: Predictor,
        pixels: PixelSpace,
        device: torch.device,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[list[float], list[float]]:
        """The fraction of test images that each of S students gets right, and the mean cross-entropy of each, with its
        scores as logits. `between` is called after every batch.

        Raises: RuntimeError on a second reading, DivergedError where a student's scores are not finite.
        """
        for student in students:
            if student in self.reads:
                raise RuntimeError(f"student {student} has read the test data already; it is read once, after training")
            self.reads[student] = 1
        right = torch.zeros(len(students), dtype=torch.int64, device=device)
        finite = torch.ones(len(students), dtype=torch.bool, device=device)
        loss = torch.zeros(len(students), dtype=torch.float64, device=home_of_float64(device))
        for x, y in self._batches(pixels, device):
            scores = predict(x)
            right += (scores.argmax(dim=-1) == y).sum(dim=-1)
            finite &= torch.isfinite(scores).flatten(1).all(dim=1)
            said = in_float64(scores).log_softmax(dim=-1)
            true = y.to(said.device).expand(len(students), -1)[..., None]
            loss -= said.gather(-1, true).flatten(1).sum(dim=1)
            between()
        if not bool(finite.all()):
            lost = [s for s, fine in zip(students, finite.tolist(), strict=True) if not fine]
            raise DivergedError(
                f"{', '.join(lost)}: the student's outputs are not finite after training. The numbers of the set "
                "are too large, which `ddbench inspect` shows, or the step size of its students is."
            )
        count = len(self._data.labels)
        return (right.cpu().double() / count).tolist(), (loss / count).tolist()

    def _batches(self, pixels: PixelSpace, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        data = self._data
        images: Tensor = data.images
        size = tested_together(images.shape)
        forward: Callable[[Tensor], Tensor] = pixels.forward
        if not pixels.cheap:
            # A whitening is a product with a large matrix: once for all students.
            if pixels.fingerprint not in self._whitened:
                parts = [pixels.forward(part.to(device)).cpu() for part in images.split(size)]
                self._whitened = {pixels.fingerprint: torch.cat(parts)}
            images, forward = self._whitened[pixels.fingerprint], lambda part: part
        for first in range(0, len(data.labels), size):
            rows = slice(first, first + size)
            yield forward(images[rows].to(device)), data.labels[rows].to(device)


@dataclass(frozen=True)
class Score:
    """What one student reached: accuracy is a fraction of the test set; seconds are its share of its group's time.

    `chose` is what trials before it have chosen; `loss` is its mean cross-entropy over the test set, with its outputs
    as logits.
    """

    student: int
    accuracy: float
    seconds: float
    chose: dict[str, float] = field(default_factory=dict)
    loss: float | None = None


def evaluate(
    synthetic: SyntheticSet,
    protocol: Protocol,
    problem: Problem,
    test: SealedTest,
    *,
    students: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[Score]:
    """Train fresh students on a set and yield the score of each as soon as it is known.

    `students` are their numbers, 0 to protocol.students - 1 unless given; see `scores`.
    """
    numbers = list(range(protocol.students) if students is None else students)
    return scores(trainer_of(synthetic, protocol, problem, students=len(numbers)), test, numbers, progress=progress)


def scores(
    trainer: Trainer,
    test: SealedTest,
    students: Sequence[int],
    *,
    label: str = "",
    progress: Progress | None = None,
    keep: Callable[[dict[str, float]], None] = lambda _: None,
) -> Iterator[Score]:
    """Train the numbered students and yield the score of each as soon as it is known.

    Of students that would all be one the first is trained. `label` tells sets apart that are judged with one
    SealedTest, such as the snapshots of a run. `progress` hears how many student-steps were taken since its last call:
    none while students are tested. `keep` hears of a new choice by trials, before any student is trained.
    Raises: DataError, ConfigError where the set does not fit; DivergedError where a student's outputs are not finite.
    """
    protocol, problem = trainer.protocol, trainer.problem
    say = progress or (lambda _: None)
    numbers = list(students[:1] if trainer.deterministic else students)
    size = max(1, trainer.together)
    before = dict(trainer.chosen)
    with problem.precision.active(problem.device):
        chosen = dict(trainer.choose(say))
    if chosen != before:
        keep(chosen)
    for first in range(0, len(numbers), size):
        group = numbers[first : first + size]
        started = time.perf_counter()
        with problem.precision.active(problem.device):
            predict = trainer.train(group, say)
        names = [f"{label}{protocol.id}/{problem.backbone.name}/{k}" for k in group]
        # Scores in full precision: short ones are often equal, and the arg-max of equal scores favours low classes.
        with Precision("fp32").active(problem.device):
            # Kernel regression takes minutes for its predictions, in which a signal should be heard.
            accuracies, losses = test.measure(names, predict, problem.pixels, problem.device, between=lambda: say(0))
        seconds = (time.perf_counter() - started) / len(group)
        for number, accuracy, loss in zip(group, accuracies, losses, strict=True):
            yield Score(number, accuracy, seconds, chosen, loss)
