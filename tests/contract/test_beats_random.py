"""A method that works beats random images by three points: the mean of five sets, after a fixed number of steps.

LD, which learns labels alone, is compared with the true labels of its own images.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from ddbench import ArtifactCache, Problem, Protocol, Rng, condense
from ddbench.backbones.names import build
from ddbench.data.dataset import Dataset
from ddbench.data.pixels import fit_pixels
from ddbench.data.sources import load
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.plugins import GROUPS, load_object

POINTS = 0.03
SEEDS = range(5)
STUDENTS = (0, 1)
OPTIONS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 30, "batch_real": 64},
    "dd": {"iterations": 12, "passes": 4, "batch_real": 128, "initial": "real", "lr_images": 0.05, "lr_network": 0.1},
    "ld": {"iterations": 5000},
    "mtt": {
        "iterations": 10,
        "inner_steps": 10,
        "start_epochs": 4,
        "experts": 1,
        "lr_experts": 0.1,
        "lr_network": 0.1,
        "lr_images": 30.0,
        "lr_lr": 1e-4,
    },
    "dc": {"iterations": 40, "batch_real": 16},
    "dsa": {"iterations": 10, "batch_real": 16},
    # Measured: 18.8 points more than random, with a standard error of 2.1 (five sets).
    "cafe": {"iterations": 8, "loops": "fixed", "outer_loop": 3, "inner_loop": 2, "batch_real": 16},
    # Measured (five sets), points more than random and their standard error: DANCE 18.9 and 2.4, NCFM 14.7 and 2.1,
    # DATM 11.1 and 3.0. An 8 x 8 image is too small to be a mosaic: with factor 2 DANCE is 8 points behind.
    "dance": {
        "iterations": 30,
        "networks": 2,
        "epochs": 3,
        "lr_networks": 0.1,
        "batch_real": 32,
        "lr_images": 0.02,
        "factor": 1,
    },
    "ncfm": {
        "iterations": 40,
        "networks": 1,
        "epochs": 3,
        "lr_networks": 0.1,
        "batch_real": 32,
        "frequencies": 256,
        "lr_images": 0.02,
        "factor": 1,
    },
    "datm": {
        "iterations": 10,
        "inner_steps": 10,
        "start_epochs": 4,
        "experts": 1,
        "lr_experts": 0.1,
        "lr_network": 0.1,
        "lr_images": 30.0,
        "lr_lr": 1e-4,
        "label_experts": 1,
        "label_epochs": 10,
        "threshold": None,
    },
    "kip": {"iterations": 60, "batch_real": 500, "kernel": "fc1"},
    "herding": {"epochs": 1},
    "k-means": {"epochs": 1},
    "k-center": {"epochs": 1},
}

# Forms that other papers have given methods. Measured (five sets), points more than random and their standard error:
# FTD 16.9 and 2.0, TESLA's gradient 16.7 and 2.3, DATM with FTD's experts 11.0 and 3.1, NCFM's minimax 15.3 and 2.3.
# TESLA's labels lose to random images here: nothing holds an image to its class (docs/pages/methods/mtt.md). So does
# NCFM where outputs of the network are the frequencies, -2.3 and 3.1 (docs/pages/methods/ncfm.md).
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FTD": ("mtt", {"rho_experts": 0.01, "alpha_experts": 0.3, "ema": 0.7}),
    "TESLA's gradient": ("mtt", {"grad": "tesla"}),
    "DATM with FTD's experts": ("datm", {"rho_experts": 0.01, "alpha_experts": 0.3}),
    "NCFM's minimax": ("ncfm", {"learned_frequencies": True}),
}


@cache
def digits() -> Dataset:
    return load("digits", Path("no-data-folder"))


def short_look() -> Protocol:
    quick = PROTOCOLS["quick@1"]
    return quick.model_copy(update={"options": quick.options.model_copy(update={"steps": 60})})


def label_look() -> Protocol:
    """ld@1 with a fixed number of steps, so that true labels can be judged by it too."""
    native = PROTOCOLS["ld@1"]
    return native.model_copy(update={"options": native.options.model_copy(update={"steps": 100, "batch": 10})})


def problem_of(seed: int, backbone: str, root: Path) -> Problem:
    """One image per class of the digits."""
    data = digits()
    return Problem(
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info),
        backbone=build(backbone, data.train.shape, len(data.train.classes)),
        ipc=1,
        rng=Rng(seed),
        device=torch.device("cpu"),
        artifacts=ArtifactCache(root),
    )


def accuracy(
    method: str,
    root: Path,
    protocol: Protocol | None = None,
    backbone: str = "convnet-w16",
    **more: Any,
) -> float:
    """Mean over five sets of one image per class; with `more` options than the usual ones."""
    kind, data = load_object(GROUPS["method"], method), digits()
    sets = []
    for seed in SEEDS:
        problem = problem_of(seed, backbone, root)
        synthetic = condense(kind(kind.Config(**OPTIONS.get(method, {}), **more)), problem)
        scores = evaluate(synthetic, protocol or short_look(), problem, SealedTest(data.test), students=STUDENTS)
        sets.append(mean(score.accuracy for score in scores))
    return mean(sets)


@pytest.fixture(scope="module")
def random_images(tmp_path_factory: pytest.TempPathFactory) -> float:
    return accuracy("random", tmp_path_factory.mktemp("artifacts"))


@pytest.mark.parametrize("method", sorted(OPTIONS.keys() - {"ld"}))
def test_it_beats_random_images_by_three_points(method: str, random_images: float, tmp_path: Path) -> None:
    assert accuracy(method, tmp_path) >= random_images + POINTS


@pytest.mark.parametrize("form", FORMS)
def test_a_form_beats_random_images_by_three_points(form: str, random_images: float, tmp_path: Path) -> None:
    method, options = FORMS[form]
    assert accuracy(method, tmp_path, **options) >= random_images + POINTS


@pytest.mark.slow
def test_learned_labels_beat_the_true_ones_on_the_same_images(tmp_path: Path) -> None:
    """On networks of the kind that they were learned with and by soft labels: the arg-max of learned labels is often no
    better than the true class.

    The images differ by more points from draw to draw than labels do, so each set is compared with itself. Measured:
    6.2 points with a standard error of 1.9 (four sets); the bound is two standard errors of these five.
    """
    kind, data = load_object(GROUPS["method"], "ld"), digits()
    gains = []
    for seed in SEEDS:
        problem = problem_of(seed, "mlp", tmp_path)
        rarely = kind.selection.model_copy(update={"every": "100p"})
        learned = condense(kind(kind.Config(**OPTIONS["ld"])), problem, rarely)
        true = replace(learned, labels=one_hot(problem.class_labels().long(), problem.classes).float())
        means = [
            mean(s.accuracy for s in evaluate(one, label_look(), problem, SealedTest(data.test), students=STUDENTS))
            for one in (learned, true)
        ]
        gains.append(means[0] - means[1])
    assert mean(gains) > 2 * stdev(gains) / len(gains) ** 0.5


@pytest.mark.slow
def test_soft_labels_beat_classes_on_the_same_images(tmp_path: Path) -> None:
    """After 400 steps; after 60 they do not yet. Measured: 4.3 points with a standard error of 1.2 (five sets)."""
    kind, data = load_object(GROUPS["method"], "soft-labels"), digits()
    quick = PROTOCOLS["quick@1"]
    hard = quick.model_copy(update={"options": quick.options.model_copy(update={"steps": 400})})
    gains = []
    for seed in SEEDS:
        problem = problem_of(seed, "convnet-w16", tmp_path)
        made = condense(kind(kind.Config(epoch=30, lr_experts=0.02)), problem)
        true = replace(made, labels=problem.class_labels().long(), label_kind="class")
        means = [
            mean(s.accuracy for s in evaluate(one, look, problem, SealedTest(data.test), students=STUDENTS))
            for one, look in ((made, hard.model_copy(update={"labels": "soft"})), (true, hard))
        ]
        gains.append(means[0] - means[1])
    assert mean(gains) > 2 * stdev(gains) / len(gains) ** 0.5


def test_random_images_are_better_than_guessing(random_images: float) -> None:
    assert random_images > 0.1 + POINTS
