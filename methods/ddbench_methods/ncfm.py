"""NCFM: match characteristic functions of embeddings, in the place of DANCE's class means.

Wang, Yang, Liu, Sun, Hu, He and Zhang, "Dataset Distillation with Neural Characteristic Function: A Minmax
Perspective", CVPR 2025, arXiv 2502.20653. Frequencies are drawn and not learned, as in all configurations that the
authors released with the paper. With `learned_frequencies` a sampling network makes them, and is trained to enlarge the
distance that the images are to make small.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddbench import MethodInfo, Metrics, Problem, Rng
from ddbench.config import later
from ddbench.engine.program import fusible
from ddbench_methods.dance import DANCE, DANCEConfig, DANCEState

BETAS = (0.9, 0.999)
EPS = 1e-8

# Added inside the root, whose slope at 0 is infinite.
ROOT_EPS = 1e-12

# How much smaller than the best so far a loss has to be to count as an improvement.
IMPROVEMENT = 1e-4

# The sampling network as in the authors' code: layers as wide as embeddings, each with batch normalisation, LeakyReLU
# between them and tanh behind the last; and the momentum of its SGD.
LAYERS = 3
SLOPE = 0.2
MOMENTUM = 0.5

# Batch normalisation makes zeros of a single row.
FEWEST_ROWS = 2


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
    optimizer: Literal["adamw", "sgd"] = later(
        "adamw", description="What moves the images. sgd: as in DANCE, with `momentum` and without weight decay."
    )
    watched: Literal["distance", "both"] = later(
        "distance",
        description="Which loss has to become smaller: the distance, or its sum with that of the calibration, as in "
        "the authors' code.",
    )
    real_images: Literal["drawn", "first"] = later(
        "drawn",
        description="drawn: other real images in every iteration. first: the first `batch_real` of each class in all "
        "of them, as in the authors' code.",
    )
    amplitude: float = later(
        0.5,
        ge=0,
        le=1,
        description="Weight of differences of amplitude in the distance; differences of phase have the rest.",
    )
    learned_frequencies: bool = later(
        False,
        description="Whether a sampling network makes the frequencies, trained to enlarge the distance: the paper's "
        "minimax.",
    )
    lr_frequencies: float = later(
        1e-3, gt=0, description="Step size of the sampling network, by SGD with momentum 0.5 on the distance."
    )
    normals_per_scale: int = later(
        16,
        ge=0,
        description="How many standard normal frequencies one output of the sampling network scales. 0: its outputs "
        "are the frequencies.",
    )


@dataclass
class LearnedState(DANCEState):
    """The sampling network is, layer by layer, a matrix [D, D], gains [D] and shifts [D]; its velocity is alike."""

    sampler: list[Tensor] = field(default_factory=list)
    velocity: list[Tensor] = field(default_factory=list)


class NCFM(DANCE):
    """Neural characteristic function matching."""

    name = "ncfm"
    info = MethodInfo(
        title="Neural Characteristic Function Matching",
        venue="CVPR",
        year=2025,
        arxiv="2502.20653",
        learns=("images",),
        native="ncfm@2",
        advice=DANCE.info.advice,
        memory_advice="--set classes_per_pass=1 takes one class at a time, and fewer frequencies a smaller share of it",
    )
    Config = NCFMConfig
    config: NCFMConfig

    def start(self, problem: Problem) -> DANCEState:
        state = super().start(problem)
        if not self.config.learned_frequencies:
            return state
        sampler = first_sampler(state.width, problem.rng.fold("start", "sampler"), problem.device)
        velocity = [torch.zeros_like(weight) for weight in sampler]
        return LearnedState(
            state.images, state.moments, state.lr, state.width, state.networks, state.like, sampler, velocity
        )

    def first_moments(self, images: Tensor) -> list[Tensor]:
        """AdamW's two moments and its count of steps, the first of them SGD's velocity; the best loss so far, and how
        many iterations ago it was."""
        nothing = torch.zeros((), device=images.device)
        largest = torch.full_like(nothing, torch.finfo(nothing.dtype).max)
        return [torch.zeros_like(images), torch.zeros_like(images), nothing, largest, nothing.clone()]

    def draw(self, problem: Problem, state: DANCEState, rng: Rng) -> tuple[Any, ...]:
        # Drawn on the device, where the embedding lies: on the host they would take longer than the iteration. All
        # classes share them, which is as good as other ones for each: a class's loss depends on no other class.
        generator = rng.fold("frequencies").torch(problem.device)
        frequencies = torch.randn(self.config.frequencies, state.width, generator=generator, device=problem.device)
        drawn = (*super().draw(problem, state, rng), frequencies)
        if not self.config.learned_frequencies:
            return drawn
        rows = max(FEWEST_ROWS, self.config.frequencies // max(1, self.config.normals_per_scale))
        generator = rng.fold("noise").torch(problem.device)
        return *drawn, torch.randn(rows, state.width, generator=generator, device=problem.device)

    def rows(self, problem: Problem, rng: Rng) -> Tensor:
        if self.config.real_images == "drawn":
            return super().rows(problem, rng)
        count = min(self.config.batch_real, int(problem.train.counts.min()))
        return problem.train.offsets[:, None] + torch.arange(count)

    def update(self, problem: Problem, state: DANCEState, *draws: Any) -> Metrics:
        if not self.config.learned_frequencies:
            return super().update(problem, state, *draws)
        # Both gradients from one backward: images and sampling network are where they were when the iteration began.
        assert isinstance(state, LearnedState)
        leaves = [weight.clone().requires_grad_() for weight in state.sampler]
        metrics = super().update(problem, state, *draws, *leaves)
        for weight, velocity, leaf in zip(state.sampler, state.velocity, leaves, strict=True):
            assert leaf.grad is not None
            velocity.mul_(MOMENTUM).add_(leaf.grad)
            weight.add_(velocity, alpha=self.config.lr_frequencies)  # upwards
        return metrics

    def distance(self, synthetic: Tensor, real: Tensor, *extra: Tensor) -> Tensor:
        frequencies, *learned = extra
        if learned:
            # In each pass over classes anew, so that each has a backward of its own; the network sees a few rows.
            frequencies = self.sampled(frequencies, *learned)
        real, synthetic = (F.normalize(embedded, dim=-1) for embedded in (real, synthetic))
        return self.config.scale * characteristic_distance(synthetic, real, frequencies, self.config.amplitude)

    def sampled(self, normals: Tensor, noise: Tensor, *sampler: Tensor) -> Tensor:
        """[T, D]: frequencies that the sampling network makes of noise [N, D], and of standard normal ones [T, D]."""
        outputs = sampler_outputs(noise, *sampler)
        outputs = outputs.repeat(-(-len(normals) // len(outputs)), 1)[: len(normals)]
        return normals * outputs if self.config.normals_per_scale else outputs

    def move(self, state: DANCEState, gradient: Tensor) -> None:
        """One step of the optimiser: AdamW, or SGD with momentum."""
        first, second, steps, *_ = state.moments
        if self.config.optimizer == "sgd":
            first.mul_(self.config.momentum).add_(gradient)
            state.images.sub_(state.lr * first)
            return
        steps.add_(1)
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient.square(), 1 - BETAS[1])
        root = (second / (1 - BETAS[1] ** steps)).sqrt() + EPS
        state.images.mul_(1 - state.lr * self.config.weight_decay)
        state.images.sub_(state.lr * first / (1 - BETAS[0] ** steps) / root)

    def adapt(self, state: DANCEState, metrics: Metrics) -> None:
        """Halve the step size where the loss has not become smaller for long, without the host waiting for it."""
        *_, best, waited = state.moments
        loss = metrics["loss"]
        if self.config.watched == "both" and "calibration" in metrics:
            loss = loss + self.config.calibration * metrics["calibration"]
        better = loss < best * (1 - IMPROVEMENT)
        best.copy_(torch.where(better, loss, best))
        waited.copy_(torch.where(better, torch.zeros_like(waited), waited + 1))
        late = waited > self.config.patience
        state.lr.mul_(torch.where(late, 0.5, 1.0))
        waited.mul_(~late)


def characteristic_distance(synthetic: Tensor, real: Tensor, frequencies: Tensor, amplitude: float = 0.5) -> Tensor:
    """The root of `amplitude` (|Φ_r(t)| - |Φ_s(t)|)² + (1 - `amplitude`) 2 (|Φ_r(t) Φ_s(t)| - Re Φ_r(t) Φ_s(t)*), the
    mean over frequencies t, summed over classes; Φ(t) is the mean of exp(i <t, f>).

    Shapes: synthetic [K, n, D], real [K, m, D], frequencies [T, D]; returns a scalar.
    Source: Wang et al., CVPR 2025, equation 8. Where both weigh one half it is |Φ_s(t) - Φ_r(t)| / √2.
    """
    real_phase, phase = real @ frequencies.T, synthetic @ frequencies.T
    cosine = phase.cos().mean(dim=1) - real_phase.cos().mean(dim=1)
    sine = phase.sin().mean(dim=1) - real_phase.sin().mean(dim=1)
    whole = cosine.square() + sine.square()
    if amplitude == 0.5:
        return ((whole + ROOT_EPS) / 2).sqrt().mean(dim=1).sum()
    lengths = [
        (p.cos().mean(dim=1).square() + p.sin().mean(dim=1).square() + ROOT_EPS).sqrt() for p in (real_phase, phase)
    ]
    amplitudes = (lengths[0] - lengths[1]).square()
    # The two parts add up to the whole, and neither is negative but by rounding.
    phases = (whole - amplitudes).clamp(min=0)
    return (amplitude * amplitudes + (1 - amplitude) * phases + ROOT_EPS / 2).sqrt().mean(dim=1).sum()


def first_sampler(width: int, rng: Rng, device: torch.device) -> list[Tensor]:
    """The sampling network at its start: matrices as torch starts linear layers, gains 1, shifts 0.

    Layers have no bias of their own: batch normalisation behind them takes it out.
    """
    generator, bound = rng.torch(), width**-0.5
    sampler = []
    for _ in range(LAYERS):
        matrix = torch.empty(width, width).uniform_(-bound, bound, generator=generator)
        sampler += [matrix.to(device), torch.ones(width, device=device), torch.zeros(width, device=device)]
    return sampler


@fusible
def sampler_outputs(noise: Tensor, *sampler: Tensor) -> Tensor:
    """[N, D] -> [N, D] between -1 and 1: what the sampling network makes of noise, normalised over its rows."""
    x = noise
    for layer in range(LAYERS):
        matrix, gain, shift = sampler[3 * layer : 3 * layer + 3]
        x = F.batch_norm(x @ matrix.T, None, None, gain, shift, training=True)
        x = x.tanh() if layer == LAYERS - 1 else F.leaky_relu(x, SLOPE)
    return x
