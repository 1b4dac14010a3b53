"""From a set and a protocol to the training plan of its students."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.backbones.backbone import Backbone
from ddbench.data.pixels import decoded_in
from ddbench.engine.augment import resolve_strategy
from ddbench.errors import ConfigError, DataError
from ddbench.evaluation.forwards import CONVNET_BN, LEGACY, epochs_of, legacy_strategy, passes_of
from ddbench.evaluation.protocol import PROTOCOLS, Protocol
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import SyntheticSet
from ddbench.training.options import SGDOptions
from ddbench.training.plan import MIXINGS, Criterion, Labeller, TrainingPlan, unchanged


class OnDevice(NamedTuple):
    """A set as students are trained on it.

    Shapes: images [N, C, H, W] on the device, in the pixel space or raw uint8, which `forward` brings there; labels [N]
    int64 or [N, K].
    """

    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]


def on_device(synthetic: SyntheticSet, problem: Problem, labels: Callable[[SyntheticSet], Tensor]) -> OnDevice:
    """Images of a set on the device, decoded, with what students learn of them. `labels` is asked only once it fits.

    Raises: DataError where the set does not fit the problem, and as `labels`.
    """
    fit(synthetic, problem)
    stored = synthetic.images.to(problem.device)
    images, targets = decoded_in(problem.pixels, synthetic.decode, stored, labels(synthetic))
    if images.dtype == torch.uint8 and not problem.pixels.cheap:
        images = problem.pixels.forward(images)  # once, and not at every step
    forward = problem.pixels.forward if images.dtype == torch.uint8 else unchanged
    return OnDevice(images, targets.to(problem.device), forward)


def plan(
    synthetic: SyntheticSet,
    protocol: Protocol,
    problem: Problem,
    rng: Rng,
    *,
    options: SGDOptions | None = None,
    labels: Callable[[SyntheticSet], Tensor] | None = None,
    criterion: Criterion = F.cross_entropy,
    labeller: Labeller | None = None,
) -> TrainingPlan:
    """The plan of minibatch training on a set: what a protocol leaves to the set is taken from there.

    `options` and `labels` take the place of the protocol's own options, and of the classes or probabilities that it
    asks for. `criterion` and `labeller` are those of the plan.
    Raises: ConfigError where the protocol asks for what the set does not have, DataError where the set does not fit
    the problem.
    """
    images, targets, forward = on_device(synthetic, problem, labels or partial(training_labels, protocol=protocol))
    options = options or protocol.options
    if options.lr is None:
        options = options.model_copy(update={"lr": _learned_lr(synthetic, protocol)})
    if (options.epochs, options.steps, options.forwards) == (None, None, None):
        options = options.model_copy(update={"steps": _own(synthetic, "steps", protocol)})
    if options.batch is None:
        ruled = options.batch_of(len(synthetic.images), problem.classes)
        options = options.model_copy(update={"batch": ruled or _own(synthetic, "batch", protocol)})
    if options.lr_pixels is not None:
        assert options.lr is not None
        share = options.lr_pixels / math.prod(problem.shape[1:])
        options = options.model_copy(update={"lr": options.lr * min(1.0, share)})
    strategy, legacy = _augment(protocol, problem)
    if legacy in MIXINGS and labeller is None:
        raise ConfigError(
            f"protocol {protocol.id} mixes images, and only a teacher can label what comes of that. Give it another "
            'augmentation, or the trainer "distill" with targets = "teacher".'
        )
    return TrainingPlan(
        images=images,
        labels=targets,
        forward=forward,
        options=options,
        strategy=strategy,
        legacy=legacy,
        rng=rng,
        **counted(epochs_of(options, legacy)),
        criterion=criterion,
        labeller=labeller,
    )


class Counted(TypedDict):
    """Passes over a set, and of them those before the step size falls, as a plan takes them."""

    passes: int
    passes_before_drop: int


def counted(epochs: int) -> Counted:
    """What the papers' code makes of E epochs: it counts from 0 up to and including E, and looks for E // 2 + 1."""
    return {"passes": passes_of(epochs), "passes_before_drop": epochs // 2 + 2}


def fit(synthetic: SyntheticSet, problem: Problem) -> None:
    """Check that a set belongs to a problem. Raises: DataError saying what differs."""
    if tuple(synthetic.images.shape[1:]) != problem.shape:
        raise DataError(
            f"the set's images are {tuple(synthetic.images.shape[1:])} and those of {problem.info.name} are "
            f"{problem.shape}; it was made for another dataset or resolution."
        )
    classes = synthetic.labels.shape[1] if synthetic.soft else int(synthetic.labels.max()) + 1
    if classes > problem.classes or (synthetic.soft and classes != problem.classes):
        raise DataError(f"the set has labels for {classes} classes and {problem.info.name} has {problem.classes}.")
    if not synthetic.finite():
        raise DataError("the set holds numbers that are not finite; the run that made it has diverged.")
    if synthetic.pixels and synthetic.pixels != problem.pixels.name:
        raise DataError(
            f"the set lives in pixel space {synthetic.pixels} and is judged in {problem.pixels.name}; accuracies would "
            "be near chance. Judge it in its own."
        )


def training_labels(synthetic: SyntheticSet, protocol: Protocol) -> Tensor:
    """The labels that a protocol trains on: classes [N], or probabilities [N, K] where it takes soft ones.

    Raises: ConfigError where it takes soft ones, and those of the set are no probabilities.
    """
    if protocol.labels == "hard" or not synthetic.soft:
        return synthetic.hard_labels
    match synthetic.label_kind:
        case "logit":
            return synthetic.labels.softmax(dim=1)
        case "probability":
            return synthetic.labels
        case _:
            raise ConfigError(
                f"protocol {protocol.id} trains on probabilities, and this set has {synthetic.label_kind} targets, "
                "which are none. Use a protocol with hard labels, such as dsa."
            )


def _learned_lr(synthetic: SyntheticSet, protocol: Protocol) -> float:
    lr = synthetic.recipe.lr
    if lr is None or lr.numel() != 1:
        raise ConfigError(
            f"protocol {protocol.id} trains with the set's own step size, and this set has "
            f"{'none' if lr is None else f'{lr.numel()} of them'}. Use a protocol with a fixed one, such as dsa."
        )
    if synthetic.recipe.optimizer != protocol.options.optimizer:
        raise ConfigError(
            f"the set's own step size is one of {synthetic.recipe.optimizer}, and protocol {protocol.id} trains with "
            f"{protocol.options.optimizer}. Use a protocol with a fixed step size, such as dsa."
        )
    if not float(lr) > 0:
        raise ConfigError(f"the set's learned step size is {float(lr)}; no student can train with it.")
    return float(lr)


def _own(synthetic: SyntheticSet, wish: Literal["steps", "batch"], protocol: Protocol) -> int:
    value: int | None = getattr(synthetic.recipe, wish)
    if value is None:
        missing = "neither epochs nor steps" if wish == "steps" else "no batch size"
        raise ConfigError(
            f"protocol {protocol.id} sets {missing} and takes the set's own number, and this set has none. Use a "
            f"protocol with a fixed one, such as {_for_any_set(protocol)}."
        )
    if value < 1:
        raise ConfigError(f"the set asks for {value} as its recipe's {wish}; no student can train with it.")
    return value


def _for_any_set(protocol: Protocol) -> str:
    """A protocol that asks nothing of the set: a later version of this one, else the common one."""
    later = [p for p in PROTOCOLS.values() if p.name == protocol.name and p.version > protocol.version]
    fitting = [p.id for p in later if getattr(p.options, "batch_by", "set") != "set"]
    return fitting[-1] if fitting else "dsa"


def _augment(protocol: Protocol, problem: Problem) -> tuple[str, str]:
    """DiffAugment strategy, and one of another kind; at most one of them is not "none"."""
    if protocol.augment in MIXINGS:
        return "none", protocol.augment
    if protocol.augment not in LEGACY:
        return resolve_strategy(protocol.augment, problem.info.digits), "none"
    refuse_what_was_mistaken(protocol, problem.backbone, problem.info.name)
    return "none", legacy_strategy(problem.backbone.name, problem.info.name)


def refuse_what_was_mistaken(protocol: Protocol, net: Backbone, dataset: str) -> None:
    """Rule "dc" took every ConvNet with batch norm for ConvNetBN, and put scaled images of MNIST beside their place.

    Raises: ConfigError where the protocol has that rule, and it would train otherwise than "dc@2".
    """
    if protocol.augment != "dc":
        return
    found, what = legacy_strategy(net.name, dataset), ""
    if net.name.startswith("convnet") and not net.per_sample and found != "crop_noise":
        what = f"{net.name} was augmented, and in DC's code only {CONVNET_BN} is"
    elif found == "crop_scale_rotate":
        what = "images of MNIST that it scaled were often one pixel beside their place"
    if what:
        instead = f"Use {protocol.name}@2" if protocol.id in PROTOCOLS else 'Use augment = "dc@2"'
        raise ConfigError(
            f"protocol {protocol.id} is kept for what was measured under it, where its augmentation is that of DC's "
            f"code. Here it is not: {what}. {instead} instead."
        )
