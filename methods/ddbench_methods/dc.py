"""DC: match the gradients that real and synthetic images of a class cause, while networks train on the synthetic ones.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929.
"""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, optim
from torch.func import grad_and_value

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet, Variables, transient
from ddbench.engine.augment import Draw, siamese
from ddbench.engine.distance import GRADIENT_DISTANCES
from ddbench.engine.program import fusible
from ddbench.initial import Initial, starting_images
from ddbench.training.class_gradients import class_gradients
from ddbench.training.lockstep import Lockstep, one_at_a_time

# Ten classes of 256 CIFAR images are 2.6 million pixels, whose gradients take 11 GB with a ConvNet of width 128; the
# slopes of synthetic images take three times as much an image.
PIXELS_PER_PASS = 3_000_000
# Real images of each class that the statistics of batch norm come from.
BATCH_STATISTICS = 16
# Beyond the published settings: as many matches as images, with 500 epochs on them in all.
MOST_MATCHES, EPOCHS = 50, 500

Tensors = dict[str, Tensor]


class DCConfig(MethodConfig):
    """Options of DC."""

    # One more than the paper's 1 000: the reference loop counts from 0 up to and including it.
    iterations: int = Field(1001, ge=0, description="Random networks; each is matched and trained in turns.")
    outer_loop: int | None = Field(
        None, ge=1, description="Matches, and so updates of the images, a network. none: ipc, at most 50."
    )
    inner_loop: int | None = Field(
        None, ge=1, description="Epochs that the network trains between two matches. none: 500 / outer_loop."
    )
    lr_images: float = Field(0.1, gt=0, description="SGD step size on synthetic pixels.")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on synthetic pixels.")
    lr_network: float = Field(0.01, gt=0, description="SGD step size of the network.")
    batch_real: int = Field(256, ge=1, description="Real images per class and match.")
    batch_train: int = Field(256, ge=1, description="Synthetic images per step of the network.")
    distance: Literal["ours", "mse", "cos"] = Field(
        "ours",
        description="Of gradients. ours: cosines of output units, without biases. mse, cos: of the whole gradient.",
    )
    classes_per_pass: int | None = Field(
        None,
        ge=1,
        description="Classes in one forward, for small memories; the result is the same. none: by image size.",
    )
    initial: Initial = Field("noise", description="What the synthetic images start from: real, noise, or a saved set.")


@dataclass
class DCState(State):
    """Shapes: images [K * ipc, C, H, W], class by class. `training` is None where networks are matched once."""

    images: Tensor
    optimizer: optim.Optimizer
    training: Lockstep | None = transient()


class DC(Method[DCState]):
    """Gradient matching. One step is one random network with all its matches."""

    name = "dc"
    info = MethodInfo(
        title="Gradient Matching",
        venue="ICLR",
        year=2021,
        arxiv="2006.05929",
        learns=("images",),
        native="dc@2",
        advice="A smaller step size usually helps: --set lr_images=0.01",
    )
    Config = DCConfig
    config: DCConfig

    def start(self, problem: Problem) -> DCState:
        images = starting_images(self.config.initial, problem, problem.rng.fold("start")).requires_grad_()
        optimizer = optim.SGD([images], self.config.lr_images, momentum=self.config.momentum)
        return DCState(images, optimizer, self.training(problem, images))

    def step(self, problem: Problem, state: DCState, rng: Rng) -> Metrics:
        network = problem.backbone.init(rng.fold("network"), problem.device, on_device=True)
        matches, epochs = self.loops(problem)
        training = state.training
        if training is not None:
            training.restart(Variables.stack([network]))
            network = training.student(0)
            steps = training.steps(replace(training.plan, rng=rng.fold("training")).blocks([0]))
        losses = []
        for t in range(matches):
            if training is not None and t > 0:
                for _ in islice(steps, epochs * training.plan.steps_per_epoch):
                    pass
            loss, buffers = self.run_update(problem, state, network, *self.draw(problem, state, rng.fold("match", t)))
            for name, value in buffers.items():
                network.buffers[name].copy_(value)
            losses.append(loss)
        return {"loss": torch.stack(losses).mean()}

    def draw(self, problem: Problem, state: DCState, rng: Rng) -> tuple[Draw, Tensor, Tensor | None]:
        """What a match draws: augmentation, real images, and those for the statistics of batch norm."""
        view = siamese(self.strategy(problem), problem.classes, rng.fold("view"))
        rows = problem.real.class_indices(self.config.batch_real, rng.fold("real"))
        if problem.backbone.per_sample:
            return view, rows, None
        return view, rows, problem.real.class_indices(BATCH_STATISTICS, rng.fold("statistics"))

    def update(
        self, problem: Problem, state: DCState, network: Variables, view: Draw, rows: Tensor, statistics: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """One match. Returns the loss, and the network's buffers as the statistics have left them."""
        distance, buffers = GRADIENT_DISTANCES[self.config.distance], Tensors()
        gradients = class_gradients(problem.backbone, everything=self.config.distance != "ours")
        labels = torch.arange(problem.classes, device=problem.device)
        if statistics is not None:
            with torch.no_grad():
                _, buffers = problem.backbone(network, problem.real.take(statistics).flatten(0, 1), train=True)
            network = Variables(network.params, buffers)

        losses = []
        state.optimizer.zero_grad()
        for some in self.passes(problem):
            seen = self.seen(problem, view[some], problem.by_class(state.images)[some])
            of_real = gradients.of(network, self.seen(problem, view[some], problem.real.take(rows[some])), labels[some])
            of_synthetic = gradients.of(network, seen.detach(), labels[some])
            # How the distance changes with the gradients of synthetic images, and these with the images.
            directions, loss = grad_and_value(distance)(of_synthetic, of_real)
            seen.backward(gradients.slopes(network, seen.detach(), labels[some], directions))
            losses.append(loss)
        state.optimizer.step()
        return torch.stack(losses).sum(), buffers

    def export(self, problem: Problem, state: DCState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().cpu().clone(), problem.class_labels())

    def strategy(self, problem: Problem) -> str:
        """The augmentation of matches and of training; DC has none."""
        return "none"

    def seen(self, problem: Problem, view: Draw, images: Tensor) -> Tensor:
        """Images [K, n, C, H, W] as a network sees them."""
        return images if self.strategy(problem) == "none" else augmented(view, images)

    def loops(self, problem: Problem) -> tuple[int, int]:
        """Matches of a network, and epochs between two of them."""
        matches = self.config.outer_loop or min(problem.ipc, MOST_MATCHES)
        return matches, self.config.inner_loop or max(1, EPOCHS // matches)

    def updates_per_step(self, problem: Problem) -> int:
        return self.loops(problem)[0]

    def passes(self, problem: Problem) -> list[slice]:
        """Which classes share a forward. One step on the sum is the same however it is cut."""
        pixels = max(self.config.batch_real, 3 * problem.ipc) * problem.pixel_count
        return problem.class_runs(self.config.classes_per_pass or max(1, PIXELS_PER_PASS // pixels))

    def training(self, problem: Problem, images: Tensor) -> Lockstep | None:
        """Trains a network on the images as they are at the moment; all epochs of one network are one plan."""
        matches, epochs = self.loops(problem)
        if matches == 1:
            return None
        return one_at_a_time(
            problem,
            images.detach(),
            lr=self.config.lr_network,
            batch=self.config.batch_train,
            augment=self.strategy(problem),
            passes=(matches - 1) * epochs,
            networks=self.config.iterations,
        )


@fusible
def augmented(view: Draw, images: Tensor) -> Tensor:
    """The images under their class's draw."""
    return view(images)
