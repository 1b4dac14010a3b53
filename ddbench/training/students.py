"""Train many students: together where one cannot fill the device, one after another where it can."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.func import grad, vmap

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.variables import Variables
from ddbench.engine.capabilities import has_graphs
from ddbench.engine.program import keep_memory
from ddbench.training.lockstep import Lockstep
from ddbench.training.plan import Step, TrainingPlan

Tick = Callable[[int], None]
"""Told how many student-steps have been taken since the last call."""

# Measured on an H100 with ConvNet-D3: side by side, 20 students at 10 images a step train five times faster, eight at
# 100 images 1.6 times, and two at 250 images 1.2 times (docs/pages/concepts/engine.md). Larger images fill it sooner.
FILLING_IMAGES = 800
MOST_TOGETHER = 20
USUAL_PIXELS, USUAL_CHANNELS = 32 * 32, 128

# How many images of the usual size a trained network sees at once.
TESTED_IMAGES = 1000


def fewer_if_larger(images: int, pixels: int) -> int:
    """How many images of `pixels` pixels, at least one, are as much work and memory as so many of 32x32; never more."""
    return max(1, images * USUAL_PIXELS // max(pixels, USUAL_PIXELS))


def footprint(net: Backbone) -> int:
    """How large an image is to a network, in pixels: as many as would fill its widest layer at ConvNet's 128 channels,
    and at least its own."""
    return max(math.prod(net.shape[1:]), net.widest // USUAL_CHANNELS)


def students_together(batch: int, device: torch.device, pixels: int = USUAL_PIXELS) -> int:
    """How many students to train in lockstep on a device, at `batch` images of `pixels` pixels a step."""
    if not has_graphs(device):
        return 1  # one student keeps every core busy, and elsewhere nothing was measured
    return max(1, min(MOST_TOGETHER, fewer_if_larger(FILLING_IMAGES, pixels) // batch))


def train_students(
    net: Backbone,
    variables: Variables,
    plan: TrainingPlan,
    students: Sequence[int],
    *,
    together: int | None = None,
    static: bool | None = None,
    to_come: int = 0,
    tick: Tick | None = None,
) -> Variables:
    """Train S networks on one synthetic set.

    Shapes: variables and the result have a leading S on every tensor; students are the S numbers that seed the draws.
    `together` students train in lockstep (default: by batch, network and device). `static` chooses programs of static
    shape (default: on a GPU, where the plan allows it), else a plain loop. All ways are equal up to rounding. `to_come`
    is how many more students the caller will train like these, for deciding what is worth its preparation.
    """
    device = plan.images.device
    net = net.in_training()
    together = together or students_together(plan.batch, device, footprint(net))
    static = plan.static and (has_graphs(device) if static is None else static)
    if together > 1 and not static and not net.vmappable:
        together = 1
    tick = tick or (lambda _: None)
    keep_memory(device)
    groups = [range(first, min(first + together, len(students))) for first in range(0, len(students), together)]
    trained: list[Variables] = []
    for number, chosen in enumerate(groups):
        group = Variables.stack([variables.copy(s) for s in chosen])
        numbers = [students[s] for s in chosen]
        if static:
            left = len(groups) - number + math.ceil(to_come / together)
            trained += Lockstep(net, group, plan, groups=left).train(numbers, tick)
        else:
            trained += _train_group(net, group, plan, numbers, tick)
    return Variables.stack(trained)


def _train_group(
    net: Backbone, variables: Variables, plan: TrainingPlan, students: Sequence[int], tick: Tick
) -> Iterator[Variables]:
    """Train in lockstep; yields the students one by one."""
    alone = len(students) == 1
    if alone:
        variables = variables.copy(0)
    params = {name: value.clone().requires_grad_(alone) for name, value in variables.params.items()}
    buffers = {name: value.clone() for name, value in variables.buffers.items()}
    optimizer = _optimizer(plan, params, stacked=not alone)
    slope = _slope_of_one(net, plan) if alone else _slope_of_many(net, plan)
    for block in plan.blocks(students):
        block = block.to(plan.images.device)
        for step in block.steps():
            if step.restart:
                optimizer = _optimizer(plan, params, stacked=not alone)
            for group in optimizer.param_groups:
                group["lr"] = step.lr
            grads, buffers = slope(params, buffers, step)
            for name, value in params.items():
                value.grad = grads[name]
            optimizer.step()
            tick(len(students))
    done = Variables({name: value.detach() for name, value in params.items()}, buffers)
    if alone:
        yield done
    else:
        for s in range(len(students)):
            yield done.copy(s)


Slope = Callable[[dict[str, Tensor], dict[str, Tensor], Step], tuple[dict[str, Tensor], dict[str, Tensor]]]


def _slope_of_one(net: Backbone, plan: TrainingPlan) -> Slope:
    def slope(
        params: dict[str, Tensor], buffers: dict[str, Tensor], step: Step
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x, y = plan.seen(step, net.classes)
        logits, buffers = net(Variables(params, buffers), x[0], train=True)
        # A parameter that the forward pass leaves out has no slope; the other ways give it zero.
        grads = torch.autograd.grad(
            plan.criterion(logits, y[0]), list(params.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(params, grads, strict=True)), {k: b.detach() for k, b in buffers.items()}

    return slope


def _slope_of_many(net: Backbone, plan: TrainingPlan) -> Slope:
    def loss(
        params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, buffers = net(Variables(params, buffers), x, train=True)
        return plan.criterion(logits, y), buffers

    batched = vmap(grad(loss, has_aux=True))

    def slope(
        params: dict[str, Tensor], buffers: dict[str, Tensor], step: Step
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x, y = plan.seen(step, net.classes)
        grads, buffers = batched(params, buffers, x, y)
        return grads, buffers

    return slope


def _optimizer(plan: TrainingPlan, params: dict[str, Tensor], *, stacked: bool) -> optim.Optimizer:
    """A fresh optimiser. It is element-wise, so that stacked parameters [S, ...] move as separate ones would."""
    options = plan.options
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for name, value in params.items():
        (decayed if options.decays(name, value.ndim - stacked) else spared).append(value)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    lr = plan.lr(0)
    if options.optimizer != "sgd":
        kind = optim.Adam if options.optimizer == "adam" else optim.AdamW
        return kind(groups, lr, weight_decay=options.weight_decay, foreach=True)
    return optim.SGD(
        groups,
        lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        foreach=True,
    )


@torch.inference_mode()
def predict(net: Backbone, variables: Variables, images: Tensor) -> Tensor:
    """Logits [S, B, K] of S trained students on images [B, C, H, W]; wide networks see fewer of them at once."""
    students = [variables.copy(s) for s in range(len(next(iter(variables.params.values()))))]
    parts = images.split(fewer_if_larger(TESTED_IMAGES, footprint(net)))
    return torch.stack([torch.cat([net(student, part, train=False)[0] for part in parts]) for student in students])
