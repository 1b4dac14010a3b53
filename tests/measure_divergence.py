"""Where an inner loop of MTT diverges, on the digits and a CPU: docs/measured/mtt-divergence.json.

python tests/measure_divergence.py --output docs/measured/mtt-divergence.json

Before any image has moved, one inner loop for each step size and start epoch: its loss, which is 1 for a student that
stays where it is, and the step size times the largest eigenvalue of the Hessian of the loss that the student descends,
at its largest along the loop. Plain gradient descent on a quadratic diverges where that product is above 2.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import ArtifactCache, Problem, Rng, Variables
from ddbench.backbones import build
from ddbench.data.pixels import fit_pixels
from ddbench.data.sources import load
from ddbench.files import write_json
from ddbench.training.experts import flatten, unflatten
from ddbench_methods.mtt import MTT, MTTConfig, seen

STEP_SIZES, EPOCHS = (0.03, 0.1, 0.2), (0, 4, 8, 16, 24, 31)
# Of the preset for digits: a step of the experts is 0.1, and so is the first one of the students.
OPTIONS: dict[str, Any] = {"inner_steps": 10, "expert_span": 2, "start_epochs": 32, "experts": 1, "lr_experts": 0.1}
POWERS = 8


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(output: Path) -> None:
    """Train an expert, and follow it from several epochs with several step sizes."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        data = load("digits", Path(folder))
        problem = Problem(
            info=data.info,
            train=data.train,
            pixels=fit_pixels("standard", data.train, data.info),
            backbone=build("convnet-d2-w16", data.info.shape, len(data.train.classes)),
            ipc=1,
            rng=Rng(0),
            device=torch.device("cpu"),
            artifacts=ArtifactCache(Path(folder)),
        )
        loops = [loop(problem, step_size, epoch) for step_size in STEP_SIZES for epoch in EPOCHS]
    about = {"dataset": "digits", "ipc": 1, "backbone": problem.backbone.name, "options": OPTIONS}
    write_json(output, about | {"loops": loops})


def loop(problem: Problem, step_size: float, epoch: int) -> dict[str, float]:
    """One inner loop, without augmentation."""
    method = MTT(MTTConfig(**OPTIONS))
    state = method.start(problem)
    start, target = (state.experts.params(0, at) for at in (epoch, epoch + OPTIONS["expert_span"]))
    rows = method.rows(len(state.images), problem.rng.fold("rows", epoch))
    images, params = seen(state.images.detach(), rows, None), dict(unflatten(start, state.like))
    products = []
    for x, y in zip(images, state.labels[rows], strict=True):
        params, largest = step(problem, params, x, y, step_size)
        products.append(step_size * largest)
    reached = flatten(params)
    loss = float((reached - target).square().sum() / (start - target).square().sum())
    return {"step_size": step_size, "epoch": epoch, "loss": round(loss, 3), "product": round(max(products), 3)}


def step(
    problem: Problem, params: Mapping[str, Tensor], x: Tensor, y: Tensor, step_size: float
) -> tuple[dict[str, Tensor], float]:
    """The parameters after a step, and the largest eigenvalue of the Hessian before it, by powers."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    loss = F.cross_entropy(problem.backbone(Variables(leaves, {}), x, train=True)[0], y)
    slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    direction, largest = [torch.randn_like(slope) for slope in slopes], 0.0
    for _ in range(POWERS):
        length = torch.stack([v.square().sum() for v in direction]).sum().sqrt()
        unit = [v / length for v in direction]
        turned = torch.autograd.grad(slopes, list(leaves.values()), unit, retain_graph=True)
        largest = float(torch.stack([(u * v).sum() for u, v in zip(unit, turned, strict=True)]).sum())
        direction = [v.detach() for v in turned]
    moved = zip(leaves.items(), slopes, strict=True)
    return {name: (value - step_size * slope).detach() for (name, value), slope in moved}, largest


if __name__ == "__main__":
    main()
