"""NCFM: match characteristic functions of embeddings, in the place of DANCE's class means.

Wang, Yang, Liu, Sun, Hu, He and Zhang, "Dataset Distillation with Neural Characteristic Function: A Minmax
Perspective", CVPR 2025, arXiv 2502.20653. In all configurations that the authors released, frequencies are drawn and
not learned, which is what this method does; the paper's maximisation over them is not run there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddbench import MethodInfo, Problem, Rng
from ddbench_methods.dance import DANCE, DANCEConfig, DANCEState

BETAS = (0.9, 0.999)
EPS = 1e-8

# Added inside the root, whose slope at 0 is infinite.
ROOT_EPS = 1e-12

# How much smaller than the best so far a loss has to be to count as an improvement.
IMPROVEMENT = 1e-4


class NCFMConfig(DANCEConfig):
    """Options of NCFM: those of DANCE, with other defaults, and its own."""

    iterations: int = Field(20_000, ge=0, description="Outer iterations; each draws one network.")
    lr_images: float | None = Field(1e-3, gt=0, description="AdamW step size on pixels in [0, 1].")
    weight_decay: float = Field(5e-4, ge=0, description="AdamW weight decay on these pixels.")
    batch_real: int = Field(1024, ge=1, description="Real images per class and iteration.")
    batch_syn: int | None = Field(None, ge=1, description="Enlarged synthetic images per class at most. none: all.")
    networks: int = Field(20, ge=1, description="Networks trained on the real data.")
    frequencies: int = Field(4096, ge=1, description="Frequencies of an iteration, standard normal.")
    scale: float = Field(300.0, gt=0, description="What the distance is multiplied by.")
    patience: int = Field(500, ge=1, description="Iterations without a smaller loss, after which the step size halves.")


class NCFM(DANCE):
    """Neural characteristic function matching."""

    name = "ncfm"
    info = MethodInfo(
        title="Neural Characteristic Function Matching",
        venue="CVPR",
        year=2025,
        arxiv="2502.20653",
        learns=("images",),
        native="ncfm@1",
        advice=DANCE.info.advice,
        memory_advice="--set classes_per_pass=1 takes one class at a time, and fewer frequencies a smaller share of it",
    )
    Config = NCFMConfig
    config: NCFMConfig

    def first_moments(self, images: Tensor) -> list[Tensor]:
        """AdamW's two moments and its count of steps; the best loss so far, and how many iterations ago it was."""
        nothing = torch.zeros((), device=images.device)
        largest = torch.full_like(nothing, torch.finfo(nothing.dtype).max)
        return [torch.zeros_like(images), torch.zeros_like(images), nothing, largest, nothing.clone()]

    def draw(self, problem: Problem, state: DANCEState, rng: Rng) -> tuple[Any, ...]:
        # Drawn on the device, where the embedding lies: on the host they would take longer than the iteration. All
        # classes share them, which is as good as other ones for each: a class's loss depends on no other class.
        generator = rng.fold("frequencies").torch(problem.device)
        frequencies = torch.randn(self.config.frequencies, state.width, generator=generator, device=problem.device)
        return *super().draw(problem, state, rng), frequencies

    def distance(self, synthetic: Tensor, real: Tensor, *extra: Tensor) -> Tensor:
        (frequencies,) = extra
        real, synthetic = (F.normalize(embedded, dim=-1) for embedded in (real, synthetic))
        return self.config.scale * characteristic_distance(synthetic, real, frequencies)

    def move(self, state: DANCEState, gradient: Tensor) -> None:
        """One step of the optimiser: AdamW."""
        first, second, steps, *_ = state.moments
        steps.add_(1)
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient.square(), 1 - BETAS[1])
        root = (second / (1 - BETAS[1] ** steps)).sqrt() + EPS
        state.images.mul_(1 - state.lr * self.config.weight_decay)
        state.images.sub_(state.lr * first / (1 - BETAS[0] ** steps) / root)

    def adapt(self, state: DANCEState, loss: Tensor) -> None:
        """Halve the step size where the loss has not become smaller for long, without the host waiting for it."""
        *_, best, waited = state.moments
        better = loss < best * (1 - IMPROVEMENT)
        best.copy_(torch.where(better, loss, best))
        waited.copy_(torch.where(better, torch.zeros_like(waited), waited + 1))
        late = waited > self.config.patience
        state.lr.mul_(torch.where(late, 0.5, 1.0))
        waited.mul_(~late)


def characteristic_distance(synthetic: Tensor, real: Tensor, frequencies: Tensor) -> Tensor:
    """|Φ_s(t) - Φ_r(t)| / √2, the mean over frequencies t, summed over classes; Φ(t) is the mean of exp(i <t, f>).

    Shapes: synthetic [K, n, D], real [K, m, D], frequencies [T, D]; returns a scalar.
    Source: Wang et al., CVPR 2025, equation 8 with amplitude and phase weighed alike, where it is this distance.
    """
    real_phase, phase = real @ frequencies.T, synthetic @ frequencies.T
    cosine = phase.cos().mean(dim=1) - real_phase.cos().mean(dim=1)
    sine = phase.sin().mean(dim=1) - real_phase.sin().mean(dim=1)
    return ((cosine.square() + sine.square() + ROOT_EPS) / 2).sqrt().mean(dim=1).sum()
