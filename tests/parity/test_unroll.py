"""Differentiating through gradient descent: the recursion against autograd through the whole loop."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ddbench.engine.program as program
from ddbench import Rng, Variables
from ddbench.backbones import Backbone, build
from ddbench.engine.program import compiling
from ddbench.training.unroll import Descent, written_out

Params = dict[str, Tensor]
Loss = Callable[[Params, Tensor, Tensor], Tensor]


def through_the_whole_loop(loss: Loss, params: Params, x: Tensor, y: Tensor, lr: Tensor) -> Params:
    for t in range(len(lr)):
        slopes = torch.autograd.grad(loss(params, x[t], y[t]), list(params.values()), create_graph=True)
        params = {name: w - lr[t] * slope for (name, w), slope in zip(params.items(), slopes, strict=True)}
    return params


def loss_of(net: Backbone) -> Loss:
    return lambda params, x, y: F.cross_entropy(net(Variables(params), x)[0], y)


def drawn(
    net: Backbone, steps: int, batch: int, dtype: torch.dtype = torch.float64
) -> tuple[Params, Tensor, Tensor, Tensor]:
    generator = Rng(3).torch()
    params = {name: value.to(dtype).requires_grad_() for name, value in net.init(Rng(0)).params.items()}
    x = torch.randn(steps, batch, *net.shape, generator=generator, dtype=dtype).requires_grad_()
    y = torch.randint(net.classes, (steps, batch), generator=generator)
    lr = torch.linspace(0.05, 0.2, steps, dtype=dtype).requires_grad_()
    return params, x, y, lr


CHAINS = [
    ("mlp", (1, 8, 8)),
    ("lenet-xavier", (1, 12, 12)),
    ("alexcifarnet-xavier", (3, 8, 8)),
    ("convnet-d2-w8", (3, 8, 8)),
    ("convnet-d2-w8-nn-max", (3, 8, 8)),
    ("convnet-d2-w8-gn-swish", (1, 8, 8)),
    ("convnet-d2-w8-ln", (1, 8, 8)),
]


@pytest.mark.parametrize(("backbone", "shape"), CHAINS)
def test_the_derivative_is_that_of_the_whole_loop(backbone: str, shape: tuple[int, int, int]) -> None:
    net = build(backbone, shape, 3)
    loss = loss_of(net)
    params, x, y, lr = drawn(net, steps=4, batch=5)
    unseen, classes = torch.randn(7, *shape, generator=Rng(4).torch(), dtype=torch.float64), torch.arange(7) % 3
    ends, slopes = [], []
    for descend in (Descent(loss), lambda *all_of_it: through_the_whole_loop(loss, *all_of_it)):
        end = descend(params, x, y, lr)
        ends.append({name: value.detach() for name, value in end.items()})
        slopes.append(torch.autograd.grad(loss(end, unseen, classes), [x, lr, *params.values()]))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in params)
    for ours, theirs in zip(*slopes, strict=True):
        # A bias before a norm changes nothing, and its slope is rounding alone.
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14


@pytest.mark.parametrize(("backbone", "shape"), CHAINS)
@pytest.mark.parametrize("written", [False, True])
def test_soft_labels_have_the_derivative_of_the_whole_loop(
    backbone: str, shape: tuple[int, int, int], written: bool
) -> None:
    net = build(backbone, shape, 3)
    by_hand = written_out(net, torch.device("cpu")) if written else None
    if written and by_hand is None:
        pytest.skip("this network's tangents are not written out")
    loss, (params, x, _, lr) = loss_of(net), drawn(net, steps=4, batch=5)
    # Not probabilities: their sums are part of the derivative.
    y = torch.rand(4, 5, 3, generator=Rng(5).torch(), dtype=torch.float64).requires_grad_()
    unseen, classes = torch.randn(7, *shape, generator=Rng(4).torch(), dtype=torch.float64), torch.arange(7) % 3
    slopes = []
    for descend in (Descent(loss, written=by_hand), lambda *all_of_it: through_the_whole_loop(loss, *all_of_it)):
        slopes.append(torch.autograd.grad(loss(descend(params, x, y, lr), unseen, classes), [x, y, lr]))
    for ours, theirs in zip(*slopes, strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14


def test_certain_soft_labels_are_classes() -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    params, x, y, lr = drawn(net, steps=3, batch=5)
    slopes = []
    for targets in (y, F.one_hot(y, 3).double()):
        end = Descent(loss_of(net))(params, x, targets, lr, sizes=[2, 5, 5])
        slopes.append(torch.autograd.grad(sum(w.square().sum() for w in end.values()), [x, lr]))
    for classes, certain in zip(*slopes, strict=True):
        assert torch.allclose(classes, certain, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("backbone", "shape"), CHAINS)
def test_of_one_step_tesla_leaves_nothing_out(backbone: str, shape: tuple[int, int, int]) -> None:
    net = build(backbone, shape, 3)
    loss, (params, x, y, lr) = loss_of(net), drawn(net, steps=1, batch=5)
    soft, slopes = F.one_hot(y, 3).double().requires_grad_(), []
    for form in ("full", "tesla"):
        end = Descent(loss, form=form)(params, x, soft, lr)  # type: ignore[arg-type]
        slopes.append(torch.autograd.grad(sum(w.square().sum() for w in end.values()), [x, soft, lr]))
    for truth, ours in zip(*slopes, strict=True):
        assert (ours - truth).norm() <= 1e-10 * truth.norm()


@pytest.mark.parametrize("backbone", ["convnet-d2-w8", "convnet-d3-w8-max"])
def test_steps_that_are_written_out_have_the_derivative_of_the_whole_loop(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(backbone, (3, 16, 16), 3)
    # As on a GPU; the layers themselves fall back to torch's on a CPU.
    monkeypatch.setattr(Backbone, "first_order", lambda self, device: self._in_fused_layers)
    monkeypatch.setattr(Backbone, "second_order", lambda self, device: self.linearised)
    written = written_out(net, torch.device("cpu"))
    assert written is not None
    loss, (params, x, y, lr), sizes = loss_of(net), drawn(net, steps=4, batch=5), [3, 5, 5, 5]
    slopes = []
    for descend in (Descent(loss, form="full"), Descent(loss, written=written)):
        end = descend(params, x, y, lr, sizes)
        slopes.append(torch.autograd.grad(sum(w.square().sum() for w in end.values()), [x, lr, *params.values()]))
    for truth, ours in zip(*slopes, strict=True):
        assert (ours - truth).norm() <= 1e-10 * truth.norm() + 1e-14


@pytest.mark.parametrize(("backbone", "shape"), CHAINS)
def test_steps_out_of_tangents_have_the_derivative_of_the_whole_loop(
    backbone: str, shape: tuple[int, int, int]
) -> None:
    net = build(backbone, shape, 3)
    loss, (params, x, y, lr), sizes = loss_of(net), drawn(net, steps=4, batch=5), [3, 5, 5, 5]
    slopes = []
    for descend in (Descent(loss, form="full"), Descent(loss, written=written_out(net, torch.device("cpu")))):
        end = descend(params, x, y, lr, sizes)
        slopes.append(torch.autograd.grad(sum(w.square().sum() for w in end.values()), [x, lr, *params.values()]))
    for truth, ours in zip(*slopes, strict=True):
        assert (ours - truth).norm() <= 1e-10 * truth.norm() + 1e-14


@pytest.mark.parametrize("backbone", ["convnet-d2-w8-bn", "resnet18"])
def test_other_networks_have_no_steps_written_out(backbone: str) -> None:
    assert written_out(build(backbone, (3, 32, 32), 3), torch.device("cpu")) is None


def test_gradcheck_through_three_steps() -> None:
    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(x @ params["first"])
        return F.cross_entropy(hidden @ params["second"], y)

    generator = Rng(0).torch()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    y, target = torch.tensor([[0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 0])
    unseen = normal(3, 3).detach()
    descend = Descent(loss)

    def reached(x: Tensor, lr: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return loss(descend({"first": first, "second": second}, x, y, lr), unseen, target)

    lr = torch.tensor([0.3, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reached, (normal(3, 2, 3), lr, normal(3, 4), normal(4, 2)))


def test_parameters_are_kept_and_graphs_are_not() -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    steps = 6
    params, x, y, lr = drawn(net, steps=steps, batch=20, dtype=torch.float32)
    end = Descent(loss_of(net))(params, x, y, lr)
    node = end["logits.weight"].grad_fn
    assert node is not None
    kept = node.saved_tensors  # type: ignore[attr-defined]
    assert sum(tensor.numel() for tensor in kept) == steps * net.parameters + x.numel() + y.numel() + lr.numel()
    assert all(tensor.grad_fn is None for tensor in kept)


def test_compiled_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the compiler: the two parts are functions of tensors, called with nothing else."""
    net = build("mlp", (1, 8, 8), 3)
    calls: list[str] = []

    def fuse(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            assert all(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(arguments))
            calls.append(function.__name__)
            return function(*arguments)

        return call

    monkeypatch.setattr(program, "compiled", fuse)
    params, x, y, lr = drawn(net, steps=3, batch=4)
    slopes = []
    for on in (False, True):
        with compiling(on):
            end = Descent(loss_of(net))(params, x, y, lr)
            slopes.append(torch.autograd.grad(end["logits.weight"].square().sum(), [x, lr]))
    ours, theirs = slopes
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert calls == ["forth"] * 3 + ["back"] * 3


def test_autocast_around_it_changes_nothing() -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    params, x, y, lr = drawn(net, steps=2, batch=6, dtype=torch.float32)
    slopes: list[Tensor] = []
    for short in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=short, cache_enabled=False):
            end = Descent(loss_of(net))(params, x, y, lr)
            slopes += torch.autograd.grad(end["logits.weight"].square().sum(), [x])
    assert torch.equal(*slopes)


@pytest.mark.slow
def test_the_compiler_takes_both_parts(caplog: pytest.LogCaptureFixture) -> None:
    net = build("convnet-d2-w8", (1, 8, 8), 3)
    params, x, y, lr = drawn(net, steps=2, batch=3, dtype=torch.float32)
    with caplog.at_level("INFO", "ddbench.engine.program"):
        slopes = []
        for on in (False, True):
            with compiling(on):
                end = Descent(loss_of(net))(params, x, y, lr)
                slopes.append(torch.autograd.grad(end["logits.weight"].square().sum(), [x, lr]))
        ours, theirs = slopes
    assert not [record for record in caplog.records if record.name == "ddbench.engine.program"]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
