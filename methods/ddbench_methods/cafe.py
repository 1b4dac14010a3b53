"""CAFE: align the class means of features, and let the means of synthetic images classify the real ones.

Wang, Zhao, Peng, Zhu, Yang, Wang, Huang, Bilen, Wang and You, "CAFE: Learning to Condense Dataset by Aligning
Features", CVPR 2022, arXiv 2203.01531. The paper's text could not be read; what follows is its authors' code.
"""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddbench import (
    Backbone,
    Method,
    MethodConfig,
    MethodInfo,
    Metrics,
    Problem,
    Rng,
    State,
    SyntheticSet,
    Variables,
    transient,
)
from ddbench.engine.augment import Draw, resolve_strategy, siamese
from ddbench.engine.program import channels_last, fusible
from ddbench.errors import ConfigError
from ddbench.initial import Initial, starting_images
from ddbench.training.lockstep import Lockstep, one_at_a_time

# Ten classes of 256 CIFAR images are 2.6 million pixels, whose features take 9 GB with a ConvNet of width 128;
# synthetic images, which are differentiated, take three times as much.
PIXELS_PER_PASS = 4_000_000
# Nobody knows for how many epochs a network will train, so the orders of its images are drawn by the hundred.
EPOCHS_DRAWN = 100
# Updates and looks at the accuracy, a network, at ipc 10; only for deciding what is worth compiling.
USUAL_CALLS = 200
# What networks call the outputs of their blocks, after the activation and before the pooling, and the last pooling.
ALIGNED = re.compile(r"stem|(block|stage|layer)\d+|pool")


class CAFEConfig(MethodConfig):
    """Options of CAFE."""

    # One more than 2 000: the authors' loop counts from 0 up to and including it.
    iterations: int = Field(2001, ge=0, description="Random networks; images are updated and each is trained in turns.")
    dsa: bool = Field(False, description="CAFE+DSA: augment, in updates with one draw a class for real and synthetic.")
    augment: str = Field("auto", description="What dsa augments with; 'auto' fits the dataset.")
    loops: Literal["watched", "fixed"] = Field(
        "watched", description="watched: accuracy on real images ends the loops. fixed: outer_loop and inner_loop do."
    )
    window: int = Field(10, ge=2, description="How many of the last accuracies are compared (watched).")
    plateau: float = Field(
        0.04, gt=0, le=1, description="A network is left once accuracies lie closer together than this (watched)."
    )
    progress: float = Field(
        0.03, ge=0, lt=1, description="The images' turn comes once accuracies lie farther apart than this (watched)."
    )
    leaky_watch: bool = Field(
        True, description="Add to an accuracy the one before it, divided by the number of classes, as the code does."
    )
    batch_query: int = Field(
        1280, ge=1, description="Real images of one look at the accuracy, equally many of every class (watched)."
    )
    most_updates: int = Field(200, ge=1, description="Updates of the images, a network, at most (watched).")
    most_epochs: int = Field(200, ge=1, description="Epochs between two updates at most (watched).")
    outer_loop: int = Field(10, ge=1, description="Updates of the images, a network (fixed).")
    inner_loop: int = Field(10, ge=1, description="Epochs that the network trains between two updates (fixed).")
    lr_images: float = Field(0.1, gt=0, description="SGD step size on synthetic pixels.")
    lr_halvings: tuple[float, ...] = Field(
        (0.6, 0.8, 0.9), description="After which shares of the iterations lr_images is halved."
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum on synthetic pixels.")
    lr_network: float = Field(0.01, gt=0, description="SGD step size of the network.")
    batch_real: int = Field(256, ge=1, description="Real images per class and update.")
    batch_train: int = Field(256, ge=1, description="Synthetic images per step of the network.")
    feature_weights: tuple[float, ...] = Field(
        (0.1, 0.1, 1.0),
        min_length=1,
        description="Weights of the layers' distances; the last one holds for all others.",
    )
    discrimination: float = Field(0.01, ge=0, description="Weight of the summed cross-entropy of the real images.")
    classes_per_pass: int | None = Field(
        None,
        ge=1,
        description="Classes in one forward, for small memories; the result is the same. none: by image size.",
    )
    initial: Initial = Field("noise", description="What the synthetic images start from: real, noise, or a saved set.")


@dataclass
class CAFEState(State):
    """Shapes: images and velocity [K * ipc, C, H, W], class by class. The rest counts what all networks took."""

    images: Tensor
    velocity: Tensor
    training: Lockstep = transient()
    updates: int = 0
    epochs: int = 0
    capped: int = 0


class CAFE(Method[CAFEState]):
    """Feature alignment. One step is one random network with all its updates and epochs."""

    name = "cafe"
    info = MethodInfo(
        title="Aligning Features",
        venue="CVPR",
        year=2022,
        arxiv="2203.01531",
        learns=("images",),
        native="cafe@2",
        advice="A smaller step size usually helps: --set lr_images=0.01",
        memory_advice="--set classes_per_pass=1 takes one class at a time",
    )
    Config = CAFEConfig
    config: CAFEConfig

    def prepare(self, problem: Problem) -> None:
        aligned_taps(problem.backbone)  # a network that will not do is refused before anything is made

    def start(self, problem: Problem) -> CAFEState:
        images = starting_images(self.config.initial, problem, problem.rng.fold("start"))
        return CAFEState(images, torch.zeros_like(images), self._training(problem, images))

    def step(self, problem: Problem, state: CAFEState, rng: Rng) -> Metrics:
        config, losses, between = self.config, [], []
        network = problem.backbone.init(rng.fold("network"), problem.device, on_device=True)
        state.training.restart(Variables.stack([network]))
        epochs = endless_epochs(state.training, rng.fold("training"))
        answers = self.answers(problem, state, rng.fold("query"))

        outer = self._rounds(problem, answers, config.outer_loop, config.most_updates, self.settled)
        for t in outer:
            if t > 0:
                inner = self._rounds(problem, answers, config.inner_loop, config.most_epochs, self.moved)
                for _ in inner:
                    next(epochs)
                between.append(inner)
            losses.append(self.run_update(problem, state, "match", *self.draw(problem, state, rng.fold("match", t))))

        counts = {
            "updates": outer.taken,
            "epochs": sum(inner.taken for inner in between),
            "longest": max((inner.taken for inner in between), default=0),
            "capped": outer.capped + sum(inner.capped for inner in between),
        }
        state.updates += counts["updates"]
        state.epochs += counts["epochs"]
        state.capped += counts["capped"]
        seen = {"accuracy": outer.accuracy} if config.loops == "watched" else {}
        numbers = {name: torch.tensor(float(value)) for name, value in (counts | seen).items()}
        return {"loss": torch.stack(losses).mean(), **numbers}

    @property
    def native(self) -> str:
        return "dsa@1" if self.config.dsa else self.info.native

    def updates_per_step(self, problem: Problem) -> int:
        return self.config.outer_loop if self.config.loops == "fixed" else USUAL_CALLS

    def counts(self, state: CAFEState) -> dict[str, float]:
        return {"updates": state.updates, "epochs": state.epochs, "capped loops": state.capped}

    def settled(self, spread: float) -> bool:
        """Whether a network has no more to give: its accuracies hardly differ from update to update."""
        return spread < self.config.plateau

    def moved(self, spread: float) -> bool:
        """Whether training has changed a network enough for the images to be updated on it again."""
        return spread > self.config.progress

    def answers(self, problem: Problem, state: CAFEState, rng: Rng) -> Iterator[Tensor]:
        """The network's accuracy on real images, on other ones each time: scalars on the device."""
        each = max(1, round(self.config.batch_query / problem.classes))
        rows = problem.real.class_indices(each, rng.fold(0))
        for k in itertools.count(1):
            accuracy = self.run_update(problem, state, "query", rows)
            rows = problem.real.class_indices(each, rng.fold(k))  # while the device is busy
            yield accuracy

    def draw(self, problem: Problem, state: CAFEState, rng: Rng) -> tuple[Draw | None, Tensor, Tensor]:
        strategy = resolve_strategy(self.config.augment, problem.info.digits)
        view = siamese(strategy, problem.classes, rng.fold("view")) if self.config.dsa else None
        rows = problem.real.class_indices(self.config.batch_real, rng.fold("real"))
        return view, rows, torch.tensor(self.lr_images(state.step))

    def update(self, problem: Problem, state: CAFEState, part: str, *draws: Any) -> Tensor:
        """`match` or `query`, each a graph of its own on a GPU."""
        return self.match(problem, state, *draws) if part == "match" else self.query(problem, state, *draws)

    def match(self, problem: Problem, state: CAFEState, view: Draw | None, rows: Tensor, lr: Tensor) -> Tensor:
        """Update the images once, on the network as it stands; returns the loss before."""
        gradient, loss = image_gradient(
            problem.backbone,
            state.training.student(0),
            view,
            problem.by_class(state.images),
            lambda some: problem.real.take(rows[some]),
            weights=self.config.feature_weights,
            discrimination=self.config.discrimination,
            passes=self.passes(problem, max(rows.shape[1], 3 * problem.ipc)),
        )
        state.velocity.mul_(self.config.momentum).add_(gradient.flatten(0, 1))
        state.images.sub_(lr * state.velocity)
        return loss.total

    def query(self, problem: Problem, state: CAFEState, rows: Tensor) -> Tensor:
        """Which share of these real images the network has right. Shapes: rows [K, n]; returns a scalar."""
        network, right = state.training.student(0), []
        with torch.no_grad():
            for some in self.passes(problem, rows.shape[1]):
                logits, _ = problem.fast_backbone(
                    network, channels_last(problem.real.take(rows[some].flatten())), train=False
                )
                right.append(logits.argmax(dim=1) == problem.real.labels[rows[some].flatten()])
        return torch.cat(right).float().mean()

    def export(self, problem: Problem, state: CAFEState) -> SyntheticSet:
        return SyntheticSet(state.images.detach().cpu().clone(), problem.class_labels())

    def lr_images(self, step: int) -> float:
        """The step size of the images at a step: halved at 1 200, 1 600 and 1 800 of 2 001."""
        past = sum(step >= round(share * (self.config.iterations - 1)) for share in self.config.lr_halvings)
        return self.config.lr_images * 0.5**past

    def passes(self, problem: Problem, per_class: int) -> list[slice]:
        """Which classes share a forward. The result is the same however it is cut."""
        fitting = max(1, PIXELS_PER_PASS // (per_class * problem.pixel_count))
        return problem.class_runs(self.config.classes_per_pass or fitting)

    def _rounds(
        self, problem: Problem, answers: Iterator[Tensor], count: int, most: int, over: Callable[[float], bool]
    ) -> "Rounds":
        if self.config.loops == "fixed":
            return Rounds(count)
        leak = 1 / problem.classes if self.config.leaky_watch else 0.0
        return Rounds(most, Watch(answers, self.config.window, leak, over))

    def _training(self, problem: Problem, images: Tensor) -> Lockstep:
        """Trains a network on the images as they are at the moment."""
        strategy = resolve_strategy(self.config.augment, problem.info.digits)
        return one_at_a_time(
            problem,
            images,
            lr=self.config.lr_network,
            batch=self.config.batch_train,
            augment=strategy if self.config.dsa else "none",
            passes=EPOCHS_DRAWN,
            networks=self.config.iterations,
        )


@dataclass(frozen=True)
class Watch:
    """What ends a loop: the spread of the last `window` accuracies, each with `leak` times the one before it."""

    answers: Iterator[Tensor]
    window: int
    leak: float
    over: Callable[[float], bool]


@dataclass
class Rounds:
    """The rounds of a loop: `most`, or fewer where somebody watches. `capped` says that the watch did not end it."""

    most: int
    watch: Watch | None = None
    taken: int = 0
    accuracy: float = 0.0
    capped: bool = False

    def __iter__(self) -> Iterator[int]:
        watch = self.watch
        kept: deque[float] = deque(maxlen=watch.window if watch else 0)
        asked: list[Tensor] = []
        leaky = 0.0
        for t in range(self.most):
            yield t
            self.taken = t + 1
            if watch is None:
                continue
            asked.append(next(watch.answers))
            # Fewer accuracies than are compared end nothing. Here alone the host waits for the device.
            if self.taken < min(watch.window, self.most):
                continue
            for self.accuracy in torch.stack(asked).tolist():
                leaky = self.accuracy + watch.leak * leaky
                kept.append(leaky)
            asked.clear()
            if len(kept) == watch.window and watch.over(max(kept) - min(kept)):
                return
        self.capped = watch is not None


def endless_epochs(training: Lockstep, rng: Rng) -> Iterator[None]:
    """Train one network, an epoch whenever the next is asked for."""
    for part in itertools.count():
        plan = replace(training.plan, rng=rng.fold(part))
        steps = training.steps(plan.blocks([0]))
        for _ in range(plan.passes):
            for _ in itertools.islice(steps, plan.steps_per_epoch):
                pass
            yield


class Loss(NamedTuple):
    """The parts of the loss. Shapes: distances [L + 1], squared and unweighted, the embedding last; the rest scalars.

    `entropy` is the cross-entropy of the real images, summed. `total` is what the images descend.
    """

    distances: Tensor
    entropy: Tensor
    total: Tensor


def image_gradient(
    net: Backbone,
    network: Variables,
    view: Draw | None,
    images: Tensor,
    real: Callable[[slice], Tensor],
    *,
    weights: Sequence[float],
    discrimination: float,
    passes: Sequence[slice],
) -> tuple[Tensor, Loss]:
    """The gradient of the loss in the synthetic images, and the loss.

        Σ_l w_l Σ_c |s_lc - t_lc|² + Σ_c |s_c - t_c|² + discrimination Σ_i CE(⟨f(x_i), s_1⟩ … ⟨f(x_i), s_K⟩; y_i)

    with s_lc and t_lc the means over the synthetic and real images of class c of the features at layer l, s_c and t_c
    those of the embedding f, and i over all real images. The images enter by the means s alone, whose gradients are
    written down here: so no real image needs a graph, and the synthetic ones are gone through backward once.

    Shapes: images [K, ipc, C, H, W], and so is the gradient; `real` gives some classes, [k, n, C, H, W]; view has K
    groups, or is None; passes are the classes that share a forward.
    """
    taps = aligned_taps(net)
    factors = [*(weights[min(layer, len(weights) - 1)] for layer in range(len(taps))), 1.0]
    leaves = [images[some].detach().requires_grad_() for some in passes]
    views = [view if view is None else view[some] for some in passes]
    # Several passes are as many as fit a memory, so that their graphs are not kept but made again.
    once = len(passes) == 1
    with torch.set_grad_enabled(once):
        ours = [class_means(net, network, taps, *seen)[0] for seen in zip(views, leaves, strict=True)]
    centres = [torch.cat(means).detach() for means in zip(*ours, strict=True)]

    gaps, entropy, pull = [], centres[-1].new_zeros(()), torch.zeros_like(centres[-1])
    with torch.no_grad():
        for some, seen in zip(passes, views, strict=True):
            targets, embedded = class_means(net, network, taps, seen, real(some))
            gaps.append([centre[some] - target for centre, target in zip(centres, targets, strict=True)])
            here, towards = discrimination_loss(embedded, centres[-1], some)
            entropy, pull = entropy + here, pull + towards
        apart = [torch.cat(gap) for gap in zip(*gaps, strict=True)]
        slopes = [2 * factor * gap for factor, gap in zip(factors, apart, strict=True)]
        slopes[-1] = slopes[-1] + discrimination * pull
        distances = torch.stack([gap.square().sum() for gap in apart])
        total = sum(factor * distance for factor, distance in zip(factors, distances, strict=True))

    gradients: list[Tensor] = []
    for some, seen, leaf, means in zip(passes, views, leaves, ours, strict=True):
        again = means if once else class_means(net, network, taps, seen, leaf)[0]
        gradients += torch.autograd.grad(again, leaf, [slope[some] for slope in slopes])
    return torch.cat(gradients), Loss(distances, entropy, total + discrimination * entropy)


@fusible
def class_means(
    net: Backbone, network: Variables, taps: Sequence[str], view: Draw | None, images: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The mean features of each class, and the embedding of each image.

    Shapes: images [k, n, C, H, W]; means [k, ...] for each tap and, last, [k, D] of the embedding; embedding [k, n, D].
    """
    seen = images if view is None else view(images)
    outputs = net.features(network, channels_last(seen.flatten(0, 1)), (*taps, "embed"))
    exact = torch.promote_types(images.dtype, torch.float32)
    by_class = [output.unflatten(0, images.shape[:2]) for output in outputs.values()]
    return [features.mean(dim=1, dtype=exact) for features in by_class], by_class[-1].to(exact)


def discrimination_loss(embedded: Tensor, centres: Tensor, some: slice) -> tuple[Tensor, Tensor]:
    """The cross-entropy of real images under the centres as classifier, summed, and its gradient in the centres.

    Shapes: embedded [k, n, D], of the classes `some`; centres [K, D], and so is the gradient.
    """
    classes, flat = torch.arange(len(centres), device=centres.device), embedded.flatten(0, 1)
    labels = classes[some, None].expand(-1, embedded.shape[1]).flatten()
    # Products of hundreds, which bfloat16 would round to whole numbers.
    with torch.autocast(flat.device.type, enabled=False):
        logits = flat @ centres.mT
        errors = logits.softmax(dim=1) - (labels[:, None] == classes).to(flat.dtype)
        return F.cross_entropy(logits, labels, reduction="sum"), errors.mT @ flat


def aligned_taps(net: Backbone) -> list[str]:
    """Where a network's features are aligned, besides its embedding.

    Raises: ConfigError for a network that names no such places, or that mixes the images of a batch.
    """
    taps = [tap for tap in net.taps if ALIGNED.fullmatch(tap)]
    if not taps or "embed" not in net.taps:
        raise ConfigError(
            f"cafe aligns features inside a network, and {net.name} does not name them: it needs an embedding, and "
            "outputs that are called stem, block1, stage1, layer1 (and so on) or pool. Use a built-in backbone, such "
            "as convnet."
        )
    if not net.per_sample:
        raise ConfigError(
            f"cafe does not work on {net.name}: batch norm mixes the images of a batch, and the method does not say "
            "with which statistics. Use a backbone with another norm, such as convnet or resnet18-in."
        )
    return taps
