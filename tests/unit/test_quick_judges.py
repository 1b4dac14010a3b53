"""Preset quick must not choose a step size at which a judge that comes with ddbench diverges.

The data are random, of the shape and number of classes of each dataset, one image a class, and differ in brightness as
photographs do: plain networks feel the mean of an image most.
"""

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ddbench import Problem, Rng, SyntheticSet, Variables
from ddbench.artifacts import ArtifactCache
from ddbench.backbones.names import build, known
from ddbench.data.catalogue import CATALOGUE, DatasetInfo
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import ConfigError
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.evaluation.trainer import Trainer, trainer_of
from ddbench.runs.resolving import Asked, foresee
from ddbench.training.lockstep import Lockstep

# The step size is at its highest after 30 steps; photographs of Imagenette made an MLP infinite by step 65 of 300.
STEPS = 100
# Datasets of one shape and number of classes are one to a network.
DATASETS = list({(info.shape, info.classes): name for name, info in reversed(CATALOGUE.items())}.values())[::-1]


def photographs(info: DatasetInfo, rng: Rng) -> torch.Tensor:
    """[K, C, H, W] uint8: noise on smooth colours on a tone. In their first principal direction the ten drawn here have
    1.3 of a pixel's variance; ten images of Imagenette have 0.5 to 0.9."""
    count, channels, *size = info.classes, *info.shape
    generator = rng.torch()
    tone = 40 * torch.randn(count, 1, 1, 1, generator=generator)
    colours = F.interpolate(torch.randn(count, channels, 4, 4, generator=generator), size=size, mode="bilinear")
    images = 128 + tone + 55 * colours + 25 * torch.randn(count, *info.shape, generator=generator)
    return images.round().clamp(0, 255).to(torch.uint8)


@functools.cache
def trainer_for(dataset: str, judge: str, protocol: str) -> Trainer:
    info = CATALOGUE[dataset]
    names = tuple(f"class {number}" for number in range(info.classes))
    train = DatasetTensors(photographs(info, Rng(0)), torch.arange(info.classes), names)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = Problem(
        info=info,
        train=train,
        pixels=fit_pixels("standard", train, info).to(device),
        backbone=build(judge, info.shape, info.classes),
        ipc=1,
        rng=Rng(0),
        device=device,
        artifacts=ArtifactCache(Path("none")),
    )
    return trainer_of(SyntheticSet(train.images, train.labels), PROTOCOLS[protocol], problem)


def chosen(dataset: str, *judges: str) -> str:
    """The protocol of the preset."""
    return foresee(Asked("random", dataset, ipc=1, preset="quick", judges=judges)).protocols[0]


def trained(trainer: Trainer, steps: int, student: int = 0) -> tuple[float, float]:
    """The largest number in a student after some steps, not finite where it has diverged, and its mean loss on its
    set as a share of that of a guess."""
    net, device = trainer.problem.backbone, trainer.problem.device
    training = plan(trainer.synthetic, trainer.protocol, trainer.problem, trainer.rng)
    fresh = net.init(trainer.rng.fold("student", student, "network"), device)
    lockstep = Lockstep(net, Variables.stack([fresh]), training)
    for done, _ in enumerate(lockstep.steps(training.blocks([student])), start=1):
        if done == steps:
            break
    after = lockstep.student(0)
    largest = max(float(value.abs().max()) for value in after.params.values())
    rows = torch.arange(min(64, len(training.images)), device=device)
    with torch.no_grad():
        loss = F.cross_entropy(net(after, training.take(rows))[0], training.labels[rows])
    return largest, float(loss) / float(torch.tensor(trainer.problem.classes).log())


def test_large_images_have_a_protocol_of_their_own() -> None:
    large = {name for name, info in CATALOGUE.items() if info.shape[1] > 64}
    assert {"imagenette", "imagewoof"} < large
    assert {name: chosen(name) for name in CATALOGUE} == {
        name: "quick-large@1" if name in large else "quick@1" for name in CATALOGUE
    }
    assert foresee(Asked("ld", "imagenette", preset="quick")).protocols == ("quick-large@1", "ld@1")
    # Nobody's own choice is changed.
    assert foresee(Asked("ld", "imagenette", preset="quick", protocols=("quick",))).protocols == ("quick@1",)


def test_alexnet_has_a_protocol_of_its_own() -> None:
    for dataset in CATALOGUE:
        assert chosen(dataset, "alexnet") == chosen(dataset, "convnet", "alexnet-xavier") == "quick-slow@1"
        for judge in sorted({"convnet-w32", *known()} - {"alexnet"}):
            assert chosen(dataset, judge) == chosen(dataset), judge


@pytest.mark.slow
def test_alexnet_diverges_with_the_step_size_of_the_others_and_not_with_its_own() -> None:
    largest, _ = trained(trainer_for("svhn", "alexnet", "quick@1"), STEPS)
    assert not largest < 10
    largest, share = trained(trainer_for("svhn", "alexnet", chosen("svhn", "alexnet")), STEPS)
    assert largest < 0.5
    assert share < 0.2


def test_the_step_size_falls_with_the_pixels_beyond_those_of_tiny_imagenet() -> None:
    def highest(dataset: str, protocol: str) -> float:
        trainer = trainer_for(dataset, "convnet-w32", protocol)
        training = plan(trainer.synthetic, trainer.protocol, trainer.problem, trainer.rng)
        return max(training.lr(step) for step in range(training.steps))

    assert highest("tiny-imagenet", "quick-large@1") == highest("tiny-imagenet", "quick@1") == pytest.approx(0.02)
    assert highest("imagenette", "quick@1") == pytest.approx(0.02)
    assert highest("imagenette", "quick-large@1") == pytest.approx(0.02 / 4)


def test_an_mlp_on_large_images_diverges_with_the_step_size_of_small_ones_and_not_with_its_own() -> None:
    largest, share = trained(trainer_for("imagenette", "mlp", "quick@1"), 45)
    assert not (largest < 10 and share < 1)
    largest, share = trained(trainer_for("imagenette", "mlp", chosen("imagenette")), 45)
    assert largest < 1
    assert share < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["convnet-w32", *known()])
@pytest.mark.parametrize("dataset", DATASETS)
def test_no_judge_diverges_on_any_dataset(dataset: str, judge: str) -> None:
    try:
        trainer = trainer_for(dataset, judge, chosen(dataset, judge))
    except ConfigError as error:
        pytest.skip(str(error))
    largest, share = trained(trainer, STEPS)
    assert largest < 10
    # One that has learned nothing yet has the loss of a guess; one that diverges many times as much.
    assert share < 2
