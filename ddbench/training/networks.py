"""Networks trained on the real data, kept as artefacts: embedders for coresets, teachers, ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.artifacts import Artifact
from ddbench.backbones.variables import Variables
from ddbench.engine.augment import resolve_strategy
from ddbench.files import write_atomically
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.training.options import SGDOptions
from ddbench.training.plan import on_real_images
from ddbench.training.students import train_students

WEIGHTS = "network.safetensors"

# How many images a trained network sees at once.
TOGETHER = 500


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(Artifact[Variables]):
    """One network trained on the training images, with the common augmentation and a cosine schedule.

    Files: network.safetensors with parameters and buffers. `recipe` is the digest of how it is trained.
    """

    kind: ClassVar[str] = "trained-network"
    dataset: str  # fingerprint, not name
    pixels: str
    backbone: str
    precision: str
    epochs: int
    lr: float
    seed: int
    recipe: str

    @classmethod
    def of(cls, problem: Problem, *, epochs: int, lr: float, seed: int) -> TrainedNetwork:
        """The artefact for a problem."""
        recipe = _options(epochs, lr).digest(name="trained-network", augment=_augment(problem))
        return cls(**problem.identity, epochs=epochs, lr=lr, seed=seed, recipe=recipe)

    def build(self, folder: Path, problem: Problem) -> None:
        from safetensors.torch import save_file

        rng = Rng(self.seed, (self.kind,))
        fresh = problem.backbone.init(rng.fold("network"), problem.device)
        if self.epochs:
            options, augment = _options(self.epochs, self.lr), _augment(problem)
            schedule = on_real_images(problem, options, passes=self.epochs, augment=augment, rng=rng)
            tick = problem.artifacts.progress(f"a network of {self.backbone}", schedule.steps)
            fresh = train_students(problem.backbone, Variables.stack([fresh]), schedule, [0], tick=tick).copy(0)
        tensors = {f"params.{name}": value for name, value in fresh.params.items()}
        tensors |= {f"buffers.{name}": value for name, value in fresh.buffers.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))

    def open(self, folder: Path) -> Variables:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS)
        params = {k.removeprefix("params."): v for k, v in tensors.items() if k.startswith("params.")}
        buffers = {k.removeprefix("buffers."): v for k, v in tensors.items() if k.startswith("buffers.")}
        return Variables(params, buffers)


def as_seen(images: Tensor, problem: Problem) -> Iterator[Tensor]:
    """Images [N, C, H, W] as a trained network of the problem sees them, at most 500 at once: on the device, and those
    of bytes in the pixel space."""
    for part in images.split(TOGETHER):
        there = part.to(problem.device)
        yield problem.pixels.forward(there) if there.dtype == torch.uint8 else there


def _options(epochs: int, lr: float) -> SGDOptions:
    # Keys of artefacts have counted one epoch less than there are passes, as the papers' protocols do.
    return SGDOptions(epochs=max(0, epochs - 1), lr=lr, schedule="cosine", warmup=0.1)


def _augment(problem: Problem) -> str:
    return resolve_strategy("auto", problem.info.digits)
