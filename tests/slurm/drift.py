"""A method for tests of interruptions: each step moves the images at random and sleeps as long as DRIFT_SLEEP says."""

import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet
from ddbench.initial import noise_images


class DriftConfig(MethodConfig):
    """How long it is."""

    iterations: int = 100


@dataclass
class DriftState(State):
    """Shapes: images [K * ipc, C, H, W], class by class."""

    images: Tensor


class Drift(Method[DriftState]):
    """Images that a random walk moves: what comes out depends on every step."""

    name = "drift"
    info = MethodInfo(title="Drift", learns=("images",))
    Config = DriftConfig
    config: DriftConfig

    def start(self, problem: Problem) -> DriftState:
        return DriftState(noise_images(problem, problem.rng.fold("start")))

    def step(self, problem: Problem, state: DriftState, rng: Rng) -> Metrics:
        time.sleep(float(os.environ.get("DRIFT_SLEEP", "0")))
        moved = torch.randn(state.images.shape, generator=rng.fold("walk").torch()).to(state.images.device)
        state.images.mul_(0.99).add_(moved, alpha=0.1)
        return {"size": state.images.abs().mean()}

    def export(self, problem: Problem, state: DriftState) -> SyntheticSet:
        return SyntheticSet(state.images.cpu().clone(), problem.class_labels())
