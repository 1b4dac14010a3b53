"""Starting images: random real ones, or noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.errors import DataError
from ddbench.problem import Problem
from ddbench.rng import Rng


def check_budget(problem: Problem) -> None:
    """Raises: DataError when a class has fewer than ipc images to choose from."""
    smallest = int(problem.train.counts.min())
    if smallest < problem.ipc:
        name = problem.train.classes[int(problem.train.counts.argmin())]
        raise DataError(
            f"ipc is {problem.ipc}, and class {name!r} of {problem.info.name} has {smallest} training images. "
            f"Choose an ipc of at most {smallest}."
        )


def real_indices(problem: Problem, rng: Rng) -> Tensor:
    """int64 [K, ipc] on the host: random rows of the training set, none twice.

    Raises: DataError when a class has fewer than ipc images.
    """
    check_budget(problem)
    return problem.real.class_indices(problem.ipc, rng)


def real_images(problem: Problem, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] random real images in the pixel space, class by class."""
    return problem.real.take(real_indices(problem, rng)).flatten(0, 1)


def noise_images(problem: Problem, rng: Rng) -> Tensor:
    """[K * ipc, C, H, W] standard normal, drawn on the host so that it is the same on every device."""
    shape = (problem.classes * problem.ipc, *problem.shape)
    return torch.randn(shape, generator=rng.torch()).to(problem.device)


INITIALS = {"real": real_images, "noise": noise_images}
