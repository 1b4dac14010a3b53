"""Labels of an early-stopped network against a plain float64 loop: training by the book, then what it says."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, Rng, SyntheticSet, condense
from ddbench.config import Selection
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.initial import StartingSet, keep, real_indices
from ddbench.loop import drive
from ddbench.testing.contract import problem_for_checks
from ddbench_methods.coresets import EmbeddedConfig, Herding
from ddbench_methods.soft_labels import SoftLabels, SoftLabelsConfig

LR, EPOCHS = 0.1, 3


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path)


def method(**options: object) -> SoftLabels:
    return SoftLabels(SoftLabelsConfig(**({"epoch": EPOCHS, "lr_experts": LR, "augment": "none"} | options)))


def convnet(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Two blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling, then a linear layer."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = x.clamp(min=0)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


def trained_by_hand(problem: Problem) -> list[dict[str, Tensor]]:
    """Parameters after each epoch of plain gradient descent on the cross-entropy of all training images, which are
    fewer than a batch, so that their order does not matter."""
    assert len(problem.train) <= 256
    fresh = problem.backbone.init(Rng(0, ("expert-trajectories",)).fold("network", 0), problem.device)
    x, y = problem.real.take(torch.arange(len(problem.train))).double(), problem.train.labels
    path = [{name: value.double() for name, value in fresh.params.items()}]
    for _ in range(EPOCHS):
        leaves = {name: value.requires_grad_() for name, value in path[-1].items()}
        logits = convnet(leaves, x)
        loss = -(logits - logits.logsumexp(dim=1, keepdim=True))[torch.arange(len(y)), y].mean()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        path.append({name: (w - LR * g).detach() for (name, w), g in zip(leaves.items(), grads, strict=True)})
    return path


def test_labels_are_what_the_network_of_that_epoch_says(problem: Problem) -> None:
    path = trained_by_hand(problem)
    for step, (state, _) in enumerate(drive(method(), problem)):
        logits = convnet(path[step], state.images.double())
        expected = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        assert torch.allclose(state.labels.double(), expected.detach(), atol=1e-5)
    assert step == EPOCHS


def test_the_set_is_real_images_with_those_labels(problem: Problem) -> None:
    made = condense(method(), problem)
    rows = real_indices(problem, problem.rng.fold("start")).flatten()
    assert torch.equal(made.source_indices, rows)
    assert torch.equal(made.images, problem.train.images[rows])
    assert (made.label_kind, made.stored) == ("probability", "uint8")
    assert torch.allclose(made.labels.sum(1), torch.ones(len(rows)), atol=1e-6)
    # Bytes of labels are four a class and image, beside one for each value of a pixel.
    assert made.nbytes == made.images.numel() + 4 * len(rows) * problem.classes


def test_images_can_be_those_of_a_coreset(problem: Problem) -> None:
    chosen = condense(method(chosen="herding"), problem)
    herding = condense(Herding(EmbeddedConfig()), problem)
    assert torch.equal(chosen.source_indices, herding.source_indices)
    assert chosen.soft


def test_images_can_be_those_of_a_saved_set(problem: Problem) -> None:
    learned = SyntheticSet(torch.randn(len(problem.class_labels()), *problem.shape), problem.class_labels().flip(0))
    keep(StartingSet("learned.pt@unknown", learned, {"dataset": problem.info.name}))
    made = condense(method(initial="learned.pt@unknown"), problem)
    assert made.source_indices is None
    assert torch.equal(made.images.flip(0).unflatten(0, (-1, problem.ipc)).flip(1).flatten(0, 1), learned.images)
    network = trained_by_hand(problem)[-1]
    scores = convnet(network, made.images.double()).detach()
    assert torch.allclose(made.labels.double(), scores.softmax(1), atol=1e-5)


def test_an_epoch_is_selected_on_held_out_images(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    native = PROTOCOLS["soft-labels@1"]
    short = native.options.model_copy(update={"epochs": 30})
    monkeypatch.setitem(PROTOCOLS, "soft-labels@1", native.model_copy(update={"options": short}))  # type: ignore[misc]
    looked = method(epoch=4)
    made = condense(looked, problem, Selection(on=True, heldout=0.2, every=2, students=1))
    assert made.choice is not None
    assert made.choice.step in (2, 4)
    assert made.choice.protocol == "soft-labels@1"
