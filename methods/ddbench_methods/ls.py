"""LS: keep random real images, and solve for the labels that make kernel regression best on the whole training set.

Nguyen, Chen and Lee, ICLR 2021, arXiv 2011.00050; Nguyen, Novak, Xiao and Lee, NeurIPS 2021, arXiv 2107.13034.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ddbench import Method, MethodInfo, Metrics, Problem, Recipe, Rng, State, SyntheticSet, transient
from ddbench.engine.capabilities import home_of_float64, in_float64
from ddbench.engine.regression import centred, least_squares, reduced, ridge_weights
from ddbench.initial import real_indices
from ddbench.ntk.gram import Gram
from ddbench_methods.kip import KIP, KernelConfig


class LSConfig(KernelConfig):
    """Options of LS."""

    batch_real: int = Field(1000, ge=1, description="Training images of a step; each is seen once.")


@dataclass
class LSState(State):
    """Shapes: indices [K * ipc], rows of the training set; labels [K * ipc, K], centred; triangle [K * ipc + K, ...],
    the least-squares problem of all training images seen so far."""

    indices: Tensor
    labels: Tensor
    triangle: Tensor
    kernel: Gram = transient()
    inverse: Tensor = transient()


class LS(Method[LSState]):
    """Label solve."""

    name = "ls"
    info = MethodInfo(
        title="Label Solve",
        venue="NeurIPS",
        year=2021,
        arxiv="2107.13034",
        learns=("labels",),
        native="native-kip@1",
        advice="Two images of the support may be equal; a larger ridge helps: --set ridge=1e-5",
        memory_advice=KIP.info.memory_advice,
    )
    Config = LSConfig
    uses_backbone = False
    config: LSConfig

    def total_steps(self, problem: Problem) -> int:
        return math.ceil(len(problem.train) / self.config.batch_real)

    def start(self, problem: Problem) -> LSState:
        indices = real_indices(problem, problem.rng.fold("start")).flatten()
        kernel = self.config.gram(self.config.kernel, problem, self.total_steps(problem))
        n, width = len(indices), len(indices) + problem.classes
        home = home_of_float64(problem.device)
        eye = torch.eye(n, dtype=torch.float64, device=home)
        return LSState(
            indices,
            centred(problem.class_labels(), problem.classes).to(problem.device),
            torch.zeros(width, width, dtype=torch.float64, device=home),
            kernel,
            ridge_weights(kernel(problem.real.take(indices)), eye, self.config.ridge),
        )

    def step(self, problem: Problem, state: LSState, rng: Rng) -> Metrics:
        first = state.step * self.config.batch_real
        rows = torch.arange(first, min(first + self.config.batch_real, len(problem.train)))
        y = centred(problem.real.labels[rows.to(problem.device)], problem.classes)
        k_ts = state.kernel(problem.real.take(state.indices), problem.real.take(rows)).T
        n = len(state.indices)
        state.triangle = reduced(in_float64(k_ts) @ state.inverse, y, state.triangle)
        state.labels = least_squares(state.triangle, n).float()  # the best for the images seen so far
        # What is left of the triangle below the unknowns is the residual of the best labels.
        return {"residual": state.triangle[n:, n:].square().sum().float() / (first + len(rows))}

    def export(self, problem: Problem, state: LSState) -> SyntheticSet:
        return SyntheticSet(
            problem.train.images[state.indices].clone(),
            state.labels.cpu().clone(),
            recipe=Recipe(loss="mse"),
            label_kind="regression",
            source_indices=problem.source_rows(state.indices).clone(),
        )
