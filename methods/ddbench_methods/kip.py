"""KIP: learn the support images of a kernel regression with the kernel of an infinitely wide network.

Nguyen, Chen and Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021, arXiv 2011.00050; Nguyen, Novak,
Xiao and Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021, arXiv 2107.13034.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, optim

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Recipe, Rng, State, SyntheticSet, transient
from ddbench.engine.capabilities import back_on, sent
from ddbench.engine.regression import RIDGE, centred, ridge_weights
from ddbench.initial import Initial, starting_images
from ddbench.ntk.architectures import architecture
from ddbench.ntk.gram import Gram, gram

# The share of target images that is moved, the farthest turn in degrees, and the farthest shift in image sizes.
MOVED, DEGREES, SHIFT = 0.5, 10.0, 0.1


class KernelConfig(MethodConfig):
    """Options of methods that regress with kernels."""

    kernel: str = Field(
        "convnet", description="Network of the NTK: fcN, convvecN (N layers), convnet3, convnet, myrtle5, 7 or 10."
    )
    ridge: float = Field(RIDGE, gt=0, description="Ridge, as a share of the mean diagonal of the support's kernel.")
    kernel_backend: Literal["torch", "neural-tangents"] = Field(
        "torch", description="What computes kernels; neural-tangents needs the extra ntk."
    )
    kernel_dtype: Literal["float32", "float64"] = Field(
        "float32", description="Rounding of kernels; the solve is always in float64."
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Memory for one chunk of kernels; none: up to 3/8 of a GPU, a quarter GiB on a CPU.",
    )

    @field_validator("kernel")
    @classmethod
    def _known(cls, value: str) -> str:
        return architecture(value).name

    def gram(self, name: str, problem: Problem, calls: int) -> Gram:
        """The kernel of a network for the problem's images; `calls` is how often it will be asked for."""
        return gram(
            name,
            problem.shape,
            problem.device,
            backend=self.kernel_backend,
            dtype=getattr(torch, self.kernel_dtype),
            memory=None if self.memory_gib is None else int(self.memory_gib * 2**30),
            calls=calls,
        )


class KIPConfig(KernelConfig):
    """Options of KIP. Several kernels joined by + are a family, from which each step draws one."""

    iterations: int = Field(1000, ge=0, description="Adam steps on the support images.")
    lr_images: float = Field(0.04, gt=0, description="Adam step size on the support images, and on learned labels.")
    batch_real: int = Field(5000, ge=1, description="Target images of a step, equally many of every class.")
    batch_support: int | None = Field(
        None, ge=1, description="Support images of a step, equally many of every class; none: all of them."
    )
    labels: Literal["learned", "fixed"] = Field("learned", description="Whether the support labels are learned too.")
    augment: bool = Field(
        False, description="Turn, shift and flip half of the targets; no digits or grey images are flipped."
    )
    initial: Initial = Field("real", description="What the support images start from: real, noise, or a saved set.")

    @field_validator("kernel")
    @classmethod
    def _known(cls, value: str) -> str:
        return "+".join(architecture(name).name for name in value.split("+"))


@dataclass
class KIPState(State):
    """Shapes: images [K * ipc, C, H, W], class by class; labels [K * ipc, K], centred."""

    images: Tensor
    labels: Tensor
    optimizer: optim.Optimizer
    kernels: list[Gram] = transient()


class KIP(Method[KIPState]):
    """Kernel inducing points."""

    name = "kip"
    info = MethodInfo(
        title="Kernel Inducing Points",
        venue="NeurIPS",
        year=2021,
        arxiv="2107.13034",
        learns=("images", "labels"),
        native="native-kip@1",
        advice="A smaller step size or a larger ridge usually helps: --set lr_images=0.01 or --set ridge=1e-5",
        memory_advice="--set memory_gib=1 computes kernels in smaller chunks",
    )
    Config = KIPConfig
    uses_backbone = False
    config: KIPConfig

    @property
    def learns(self) -> tuple[str, ...]:
        return ("images", "labels") if self.config.labels == "learned" else ("images",)

    def start(self, problem: Problem) -> KIPState:
        images = starting_images(self.config.initial, problem, problem.rng.fold("start")).requires_grad_()
        labels = centred(problem.class_labels(), problem.classes).to(problem.device)
        learned = [images]
        if self.config.labels == "learned":
            learned.append(labels.requires_grad_())
        kernels = [self.config.gram(name, problem, self.config.iterations) for name in self.config.kernel.split("+")]
        return KIPState(images, labels, optim.Adam(learned, self.config.lr_images), kernels)

    def step(self, problem: Problem, state: KIPState, rng: Rng) -> Metrics:
        rows = problem.real.class_indices(max(1, self.config.batch_real // problem.classes), rng.fold("real")).flatten()
        targets, y = self.targets(problem, rows, rng.fold("augment")), problem.real.labels[rows.to(problem.device)]
        # One kernel, or one of a family at random, so that the images suit more than one network (NeurIPS 2021, 3.2).
        kernel = state.kernels[int(rng.fold("kernel").numpy().integers(len(state.kernels)))]

        images, labels = self.support(problem, state, rng.fold("support"))
        weights = back_on(ridge_weights(kernel(images), labels, self.config.ridge), problem.device)
        loss, predicted = kernel.regression(images, targets, weights, centred(y, problem.classes))

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        return {"loss": loss.detach().float(), "accuracy": (predicted.argmax(dim=1) == y).float().mean()}

    def support(self, problem: Problem, state: KIPState, rng: Rng) -> tuple[Tensor, Tensor]:
        """Images and labels to regress on: all, or a batch drawn without replacement (ICLR 2021, algorithm 1)."""
        n = max(1, (self.config.batch_support or len(state.images)) // problem.classes)
        if n >= problem.ipc:
            return state.images, state.labels
        drawn = torch.rand(problem.classes, problem.ipc, generator=rng.torch()).argsort(dim=1)[:, :n]
        rows = (drawn + problem.ipc * torch.arange(problem.classes)[:, None]).flatten().to(problem.device)
        return state.images[rows], state.labels[rows]

    def targets(self, problem: Problem, rows: Tensor, rng: Rng) -> Tensor:
        """The target images [m, C, H, W] of these rows of the training set, in the pixel space."""
        if not self.config.augment:
            return problem.real.take(rows)
        raw = problem.real.raw(rows).float() / 255
        return problem.pixels.forward(moved(raw, rng, flip=raw.shape[1] == 3 and not problem.info.digits))

    def export(self, problem: Problem, state: KIPState) -> SyntheticSet:
        return SyntheticSet(
            state.images.detach().cpu().clone(),
            state.labels.detach().cpu().clone(),
            recipe=Recipe(loss="mse"),
            label_kind="regression",
        )


def moved(images: Tensor, rng: Rng, flip: bool) -> Tensor:
    """Some of the images [n, C, H, W], each turned, shifted and perhaps flipped in its own way; edges are repeated."""
    n, (height, width) = len(images), images.shape[-2:]
    u = sent(torch.rand(n, 5, generator=rng.torch()), images.device)
    angle, down, right = ((2 * u[:, k] - 1) * most for k, most in enumerate((DEGREES * torch.pi / 180, SHIFT, SHIFT)))
    mirror = torch.where(u[:, 3] < 0.5, -1.0, 1.0) if flip else torch.ones_like(angle)
    # In grid_sample's coordinates an image reaches from -1 to 1 on both axes.
    first = torch.stack([mirror * angle.cos(), angle.sin() * height / width, 2 * right], dim=1)
    second = torch.stack([-mirror * angle.sin() * width / height, angle.cos(), 2 * down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    new = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.where(u[:, 4, None, None, None] < MOVED, new, images)
