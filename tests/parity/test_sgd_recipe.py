"""Students against a plain float64 loop, written down from the papers' description of their evaluation routine."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Rng, Variables
from ddbench.backbones.names import build
from ddbench.evaluation.plan import counted
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Step, TrainingPlan
from ddbench.training.students import train_students

RNG = Rng(0, ("recipe",))
N, CLASSES, SHAPE = 10, 3, (3, 8, 8)
BATCH = 4  # of ten images: the last of three batches has two
Tensors = dict[str, Tensor]


def images_and_labels(soft: bool) -> tuple[Tensor, Tensor]:
    generator = RNG.fold("data").torch()
    images = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    if soft:
        return images, torch.rand(N, CLASSES, generator=generator, dtype=torch.float64).softmax(dim=1)
    return images, torch.arange(N) % CLASSES


def convnet(p: Tensors, x: Tensor, buffers: Tensors | None) -> Tensor:
    """Two blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then a linear layer; training mode.

    Instance norm without buffers, else batch norm, whose running statistics are written.
    """
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        axes = (2, 3) if buffers is None else (0, 2, 3)
        mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
        if buffers is not None:
            count = x.numel() / x.shape[1]
            for name, value in (("mean", mean), ("var", var * count / (count - 1))):
                running = buffers[f"{block}.norm.running_{name}"]
                running.copy_(0.9 * running + 0.1 * value.detach().flatten())
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = x.clamp(min=0)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch, of classes or of probabilities."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, CLASSES).double()
    return -(targets * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def slopes(p: Tensors, buffers: Tensors | None, x: Tensor, y: Tensor, decay: float) -> Tensors:
    """The gradient of the loss and of decay / 2 times the squared length of every parameter, norms and biases too."""
    leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
    loss = cross_entropy(convnet(leaves, x, buffers), y)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: grad + decay * p[name] for name, grad in zip(p, grads, strict=True)}


def sgd_by_hand(
    p: Tensors, buffers: Tensors | None, training: TrainingPlan, steps: Iterator[Step], *, epochs: int, nesterov: bool
) -> None:
    """Epochs 0 to E inclusive; after epoch E // 2 + 1 a tenth of the step size, and the momentum starts anew."""
    lr, velocity = 0.01, {name: torch.zeros_like(value) for name, value in p.items()}
    for epoch in range(epochs + 1):
        for first in range(0, N, BATCH):
            step = next(steps)
            assert step.indices.shape[1] == min(BATCH, N - first)
            x = step.transform(training.images[step.indices])[0]
            grads = slopes(p, buffers, x, training.labels[step.indices[0]], decay=5e-4)
            for name, grad in grads.items():
                velocity[name] = 0.9 * velocity[name] + grad
                p[name] -= lr * (grad + 0.9 * velocity[name] if nesterov else velocity[name])
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            velocity = {name: torch.zeros_like(value) for name, value in p.items()}


def cosine_sgd_by_hand(p: Tensors, training: TrainingPlan, steps: Iterator[Step], *, total: int, rise: int) -> None:
    """`rise` steps up to 0.02, then half a cosine down to zero; Nesterov momentum throughout."""
    velocity = {name: torch.zeros_like(value) for name, value in p.items()}
    for t in range(total):
        step = next(steps)
        lr = 0.02 * (t + 1) / rise if t < rise else 0.01 * (1 + math.cos(math.pi * (t - rise) / (total - rise)))
        x = step.transform(training.images[step.indices])[0]
        for name, grad in slopes(p, None, x, training.labels[step.indices[0]], decay=5e-4).items():
            velocity[name] = 0.9 * velocity[name] + grad
            p[name] -= lr * (grad + 0.9 * velocity[name])


def adam_by_hand(p: Tensors, training: TrainingPlan, steps: Iterator[Step], *, total: int) -> None:
    """Kingma and Ba, ICLR 2015, algorithm 1, with the weight decay in the gradient."""
    m = {name: torch.zeros_like(value) for name, value in p.items()}
    v = {name: torch.zeros_like(value) for name, value in p.items()}
    for t in range(1, total + 1):
        step = next(steps)
        x = step.transform(training.images[step.indices])[0]
        for name, grad in slopes(p, None, x, training.labels[step.indices[0]], decay=5e-4).items():
            m[name] = 0.9 * m[name] + 0.1 * grad
            v[name] = 0.999 * v[name] + 0.001 * grad**2
            p[name] -= 0.01 * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)


def setup(
    backbone: str, *, strategy: str = "none", legacy: str = "none", soft: bool = False, **options: Any
) -> tuple[TrainingPlan, Any, Variables]:
    """A plan in float64, a backbone, and fresh weights of two students."""
    known = SGDOptions(batch=BATCH, **options)
    images, labels = images_and_labels(soft)
    training = TrainingPlan(
        images,
        labels,
        lambda x: x,
        known,
        strategy,
        legacy,
        rng=RNG,
        **counted(known.epochs or 0),
    )
    net = build(backbone, SHAPE, CLASSES)
    return training, net, net.init(RNG.fold("network"), copies=2).to(torch.float64)


def by_hand(fresh: Variables, k: int) -> tuple[Tensors, Tensors]:
    mine = fresh.copy(k).clone()
    return mine.params, mine.buffers


def steps_of(training: TrainingPlan, student: int) -> Iterator[Step]:
    return itertools.chain.from_iterable(block.steps() for block in training.blocks([student]))


def assert_same(found: Variables, params: Tensors, buffers: Tensors | None = None, rtol: float = 1e-9) -> None:
    for name, value in params.items():
        assert torch.allclose(found.params[name], value, rtol=rtol, atol=rtol), name
    for name, value in (buffers or {}).items():
        assert torch.allclose(found.buffers[name], value, rtol=rtol, atol=rtol), name


STUDENTS = [5, 2]
WAYS: list[dict[str, Any]] = [{"together": 1, "static": False}, {"together": 2, "static": False}]


@pytest.mark.parametrize("way", WAYS, ids=["alone", "together"])
@pytest.mark.parametrize(
    "case",
    [
        {"backbone": "convnet-d2-w4", "epochs": 6},
        {"backbone": "convnet-d2-w4", "epochs": 7},
        {"backbone": "convnet-d2-w4", "epochs": 1},
        {"backbone": "convnet-d2-w4-bn", "epochs": 4},
        {"backbone": "convnet-d2-w4", "epochs": 4, "soft": True},
        {"backbone": "convnet-d2-w4", "epochs": 4, "nesterov": True},
        {"backbone": "convnet-d2-w4", "epochs": 6, "strategy": "color_crop_cutout_flip_scale_rotate"},
        {"backbone": "convnet-d2-w4-bn", "epochs": 4, "legacy": "crop_noise"},
        {"backbone": "convnet-d2-w4", "epochs": 2, "legacy": "crop_scale_rotate"},
    ],
    ids=lambda case: "-".join(str(value) for value in case.values()),
)
def test_the_common_recipe(case: dict[str, Any], way: dict[str, Any]) -> None:
    training, net, fresh = setup(**case)
    trained = train_students(net, fresh, training, STUDENTS, **way)
    for k, student in enumerate(STUDENTS):
        params, buffers = by_hand(fresh, k)
        steps = steps_of(training, student)
        nesterov = case.get("nesterov", False)
        sgd_by_hand(params, buffers or None, training, steps, epochs=case["epochs"], nesterov=nesterov)
        assert next(steps, None) is None
        assert_same(trained.copy(k), params, buffers)


@pytest.mark.parametrize("way", WAYS, ids=["alone", "together"])
def test_a_cosine_with_nesterov_momentum(way: dict[str, Any]) -> None:
    options: dict[str, Any] = {"epochs": None, "steps": 20, "lr": 0.02, "schedule": "cosine", "warmup": 0.2}
    training, net, fresh = setup("convnet-d2-w4", nesterov=True, **options)
    trained = train_students(net, fresh, training, STUDENTS, **way)
    for k, student in enumerate(STUDENTS):
        params, _ = by_hand(fresh, k)
        cosine_sgd_by_hand(params, training, steps_of(training, student), total=20, rise=4)
        assert_same(trained.copy(k), params)


@pytest.mark.parametrize("way", WAYS, ids=["alone", "together"])
def test_adam(way: dict[str, Any]) -> None:
    training, net, fresh = setup("convnet-d2-w4", epochs=None, steps=15, optimizer="adam", schedule="constant")
    trained = train_students(net, fresh, training, STUDENTS, **way)
    for k, student in enumerate(STUDENTS):
        params, _ = by_hand(fresh, k)
        adam_by_hand(params, training, steps_of(training, student), total=15)
        # Where a gradient is zero but for rounding, Adam divides rounding by rounding.
        assert_same(trained.copy(k), params, rtol=1e-5)


def test_the_loop_by_hand_would_notice_another_epoch_of_the_drop() -> None:
    training, net, fresh = setup("convnet-d2-w4", epochs=6)
    trained = train_students(net, fresh, training, [5], together=1, static=False)
    params, _ = by_hand(fresh, 0)
    sgd_by_hand(params, None, training, steps_of(training, 5), epochs=6, nesterov=True)
    with pytest.raises(AssertionError):
        assert_same(trained.copy(0), params, rtol=1e-6)
