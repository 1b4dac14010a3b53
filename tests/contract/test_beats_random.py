"""A method that works beats random images by three points: the mean of five sets, after a fixed number of steps."""

from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from ddbench import ArtifactCache, Problem, Protocol, Rng, condense
from ddbench.backbones.names import build
from ddbench.data.pixels import fit_pixels
from ddbench.data.sources import Dataset, load
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.plugins import GROUPS, load_object

POINTS = 0.03
SEEDS = range(5)
STUDENTS = (0, 1)
OPTIONS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 30, "batch_real": 64},
    "herding": {"epochs": 1},
    "k-means": {"epochs": 1},
    "k-center": {"epochs": 1},
}


@cache
def digits() -> Dataset:
    return load("digits", Path("no-data-folder"))


def short_look() -> Protocol:
    quick = PROTOCOLS["quick@1"]
    return quick.model_copy(update={"options": quick.options.model_copy(update={"steps": 60})})


def accuracy(method: str, root: Path) -> float:
    """Mean over five sets of one image per class."""
    kind, data = load_object(GROUPS["method"], method), digits()
    sets = []
    for seed in SEEDS:
        problem = Problem(
            info=data.info,
            train=data.train,
            pixels=fit_pixels("standard", data.train, data.info),
            backbone=build("convnet-w16", data.train.shape, len(data.train.classes)),
            ipc=1,
            rng=Rng(seed),
            device=torch.device("cpu"),
            artifacts=ArtifactCache(root),
        )
        synthetic = condense(kind(kind.Config(**OPTIONS.get(method, {}))), problem)
        scores = evaluate(synthetic, short_look(), problem, SealedTest(data.test), students=STUDENTS)
        sets.append(mean(score.accuracy for score in scores))
    return mean(sets)


@pytest.fixture(scope="module")
def random_images(tmp_path_factory: pytest.TempPathFactory) -> float:
    return accuracy("random", tmp_path_factory.mktemp("artifacts"))


@pytest.mark.parametrize("method", OPTIONS)
def test_it_beats_random_images_by_three_points(method: str, random_images: float, tmp_path: Path) -> None:
    assert accuracy(method, tmp_path) >= random_images + POINTS


def test_random_images_are_better_than_guessing(random_images: float) -> None:
    assert random_images > 0.1 + POINTS
