"""Moment matching: images whose mean and variance, pixel by pixel, are those of their class.

An example to copy. It sees pixels and no features, so expect little beyond the class means.
"""

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor, optim

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet
from ddbench.initial import real_images


class MyConfig(MethodConfig):
    """Options of moment matching."""

    iterations: int = Field(300, ge=0, description="Steps; each sees one batch of every class.")
    lr_images: float = Field(0.02, gt=0, description="Adam step size on synthetic pixels.")
    batch_real: int = Field(128, ge=1, description="Real images per class and step.")
    variance: float = Field(1.0, ge=0, description="Weight of the variances; 0 matches means alone.")


@dataclass
class MyState(State):
    """Shapes: images [K * ipc, C, H, W], class by class."""

    images: Tensor
    optimizer: optim.Optimizer


class MyMethod(Method[MyState]):
    """Matches the first two moments of pixels."""

    name = "my-method"
    info = MethodInfo(title="Moment matching", learns=("images",))
    Config = MyConfig
    config: MyConfig

    def start(self, problem: Problem) -> MyState:
        images = real_images(problem, problem.rng.fold("start")).requires_grad_()
        return MyState(images, optim.Adam([images], self.config.lr_images))

    def step(self, problem: Problem, state: MyState, rng: Rng) -> Metrics:
        real = problem.real.class_batches(self.config.batch_real, rng.fold("real"))  # [K, n, C, H, W]
        ours = problem.by_class(state.images)  # [K, ipc, C, H, W]
        means = (ours.mean(dim=1) - real.mean(dim=1)).square().sum()
        variances = (ours.var(dim=1, correction=0) - real.var(dim=1, correction=0)).square().sum()
        loss = means + self.config.variance * variances

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        return {"loss": loss.detach(), "means": means.detach()}

    def export(self, problem: Problem, state: MyState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().cpu().clone(), problem.class_labels())
