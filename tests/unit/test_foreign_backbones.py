"""Networks of users: what they compute by themselves is what students compute, or a sentence says why not."""

import copy
import itertools
import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.utils import parametrizations

from ddbench import Rng, Variables
from ddbench.backbones.dropout import DRAWS, SeededDraws, fresh_draws
from ddbench.backbones.foreign import derivatives_explained, from_module
from ddbench.errors import ConfigError
from ddbench.training.class_gradients import class_gradients
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import train_students
from ddbench.training.unroll import descent

RNG = Rng(0, ("foreign",))
SHAPE, CLASSES = (1, 4, 4), 3


def images(*size: int) -> Tensor:
    return torch.randn(*size, *SHAPE, generator=Rng(1).torch())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(self.b(self.a(x.flatten(1)).tanh()).tanh()))


class SameLayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.c = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(self.b(self.a(x.flatten(1)).tanh()).tanh()))


class TiedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(16, 6), nn.Linear(6, CLASSES)
        self.one, self.two = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.two.running_mean = self.one.running_mean
        self.two.running_var = self.one.running_var

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.two(self.one(self.a(x.flatten(1))).tanh()))


class Normalised(nn.Module):
    """Weight norm, spectral norm and an orthogonal weight, as torch parametrizes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(16, 6))
        self.b = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.c = parametrizations.orthogonal(nn.Linear(6, 6))
        self.o = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(self.b(self.a(x.flatten(1)).tanh()).tanh()))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(16, 6), nn.Linear(6, CLASSES)
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(x.flatten(1)).tanh())


class PlainTensor(nn.Module):
    """A random projection and a running mean in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.randn(16, 6)
        self.centre = torch.zeros(6)
        self.o = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) @ self.projection
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return self.o((x - self.centre).tanh())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.o = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x.squeeze(1))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.o(F.scaled_dot_product_attention(x, x, self.norm(x)).mean(1))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(16, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(1))
        return self.o(x.tanh() if x.sum().item() > 0 else x.sigmoid())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(16, 6), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(x.flatten(1))


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(CLASSES))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Dropout(0.5, inplace=True), nn.Linear(40, CLASSES))


class Everywhere(nn.Module):
    """Draws in all the ways that are seeded: functions, attention, stochastic depth, noise by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.o = nn.Linear(4, 8), nn.Linear(8, CLASSES)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import stochastic_depth

        x = self.layer(self.into(x.squeeze(1)))
        x = x + stochastic_depth(x.tanh(), 0.3, "row", self.training)
        x = F.alpha_dropout(F.dropout2d(x[..., None], 0.2, self.training)[..., 0], 0.1, self.training)
        if self.training:
            x = x * (torch.rand_like(x) > 0.1)
        return self.o(x.mean(1))


EXACT = [Tied, SameLayerTwice, TiedBuffers, Normalised, Frozen, PlainTensor, Attention, Branch, Unused, lazy]


def trained_by_itself(module: nn.Module, plan: TrainingPlan, student: int) -> nn.Module:
    """Plain torch: an optimiser over the module's parameters."""
    options = plan.options
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad],
        lr=1.0, momentum=options.momentum, weight_decay=options.weight_decay,
    )  # fmt: skip
    for block in plan.blocks([student]):
        for step in block.steps():
            for group in optimizer.param_groups:
                group["lr"] = step.lr
            optimizer.zero_grad()
            F.cross_entropy(module(plan.images[step.indices[0]]), plan.labels[step.indices[0]]).backward()
            optimizer.step()
    return module


def training(passes: int = 3) -> TrainingPlan:
    options = SGDOptions(epochs=None, steps=3 * passes, batch=4, lr=0.05, weight_decay=0.0, schedule="constant")
    return TrainingPlan(
        images(10), torch.arange(10) % CLASSES, lambda x: x, options, "none", "none", rng=RNG, passes=passes
    )


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("make", EXACT)
def test_students_train_as_the_module_does_by_itself(make, static):
    net = from_module("own", make, SHAPE, CLASSES)
    fresh = net.init(RNG, copies=2)
    plan = training()
    together = train_students(net, fresh, plan, [3, 7], together=2, static=static)
    for k, student in enumerate([3, 7]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RNG.fold("copy", k).key)
            module = make()
            module.eval()(images(2))  # lazy layers
        module = trained_by_itself(module.train(), plan, student)
        expected = module.eval()(images(5))
        found = net(together.copy(k), images(5), train=False)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        own = dict(module.named_parameters())
        for key, value in together.copy(k).params.items():
            torch.testing.assert_close(value, own[key], rtol=1e-4, atol=1e-5)


def test_a_tie_is_one_parameter_and_the_same_at_every_call():
    net = from_module("tied", Tied, SHAPE, CLASSES)
    v = net.init(RNG)
    assert "c.weight" not in v.params
    first = net(v, images(3))[0]
    moved = Variables({**v.params, "b.weight": v.params["b.weight"] + 1}, v.buffers)
    assert torch.equal(net(v, images(3))[0], first)
    x = images(3).flatten(1) @ v.params["a.weight"].T + v.params["a.bias"]
    shared = v.params["b.weight"] + 1
    x = (x.tanh() @ shared.T + v.params["b.bias"]).tanh() @ shared.T + v.params["c.bias"]
    torch.testing.assert_close(net(moved, images(3))[0], x @ v.params["o.weight"].T + v.params["o.bias"])


def test_frozen_parameters_are_kept_and_not_trained():
    net = from_module("frozen", Frozen, SHAPE, CLASSES)
    v = net.init(RNG, copies=2)
    assert set(v.params) == {"o.weight", "o.bias"}
    assert net.parameters == 6 * CLASSES + CLASSES == v.copy(0).numel
    # Each network has a draw of its own.
    assert not torch.equal(v.buffers["a.weight"][0], v.buffers["a.weight"][1])
    ours = from_module("frozen", Frozen, SHAPE, CLASSES, initialiser="xavier").init(RNG, copies=2)
    assert set(ours.params) == set(v.params)
    assert not torch.equal(ours.buffers["a.weight"][0], ours.buffers["a.weight"][1])


def test_plain_tensors_follow_their_network():
    net = from_module("plain", PlainTensor, SHAPE, CLASSES)
    v = net.init(RNG, copies=2)
    assert not torch.equal(v.buffers["projection"][0], v.buffers["projection"][1])
    _, buffers = net(v.copy(0), images(4))
    assert buffers["centre"].abs().min() > 0
    assert v.buffers["centre"].abs().max() == 0
    assert net(v.copy(0).to("meta"), images(4).to("meta"))[0].is_meta


def test_batch_statistics_are_found_whoever_computes_them():
    class Centred(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.flatten(1))
            return self.o(x - x.mean(0) if self.training else x)

    assert not from_module("centred", Centred, SHAPE, CLASSES).per_sample
    assert from_module("frozen", Frozen, SHAPE, CLASSES).per_sample
    assert not from_module("lazy", lazy, SHAPE, CLASSES).per_sample
    assert from_module("dropout", dropout, SHAPE, CLASSES).per_sample


def second_derivative(net, v: Variables, x: Tensor) -> Tensor:
    """The slope in the images of the squared gradient, by reverse over reverse."""

    def squared(x: Tensor) -> Tensor:
        def loss(params: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(net(Variables(params, v.buffers), x)[0], torch.arange(len(x)) % CLASSES)

        return sum(slope.square().sum() for slope in grad(loss)(v.params).values()) / 2

    return grad(squared)(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("make", [Attention, Tied, Branch])
def test_gradients_of_classes_and_what_turns_them_are_exact(make):
    net = from_module("own", make, SHAPE, CLASSES)
    v, x = net.init(RNG).to(torch.float64), images(CLASSES, 2).double()
    labels = torch.arange(CLASSES)
    found = class_gradients(net, everything=True)
    gradients = found.of(v, x, labels)
    slopes = found.slopes(v, x, labels, gradients)
    for k in range(CLASSES):
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in v.params.items()}
        one = x[k].clone().requires_grad_()
        loss = F.cross_entropy(net(Variables(leaves, v.buffers), one)[0], labels[k].expand(2))
        expected = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for key, value in zip(leaves, expected, strict=True):
            torch.testing.assert_close(gradients[key][k], value.detach())
        squared = sum(value.square().sum() for value in expected) / 2
        torch.testing.assert_close(slopes[k], torch.autograd.grad(squared, one)[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("form", ["adjoint", "full"])
@pytest.mark.parametrize("make", [Attention, Tied, Branch])
def test_unrolled_training_is_differentiated_exactly(make, form):
    net = from_module("own", make, SHAPE, CLASSES)
    v, x = net.init(RNG).to(torch.float64), images(2, 3).double()
    y, lr = torch.arange(6).view(2, 3) % CLASSES, torch.tensor([0.3, 0.2], dtype=torch.float64)

    def by_hand(x: Tensor) -> Tensor:
        params = {key: tensor.clone().requires_grad_() for key, tensor in v.params.items()}
        for t in range(2):
            loss = F.cross_entropy(net(Variables(params, v.buffers), x[t])[0], y[t])
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {key: p - lr[t] * s for (key, p), s in zip(params.items(), slopes, strict=True)}
        return sum(p.square().sum() for p in params.values())

    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    reached = descent(net, v, form)(v.params, one, y, lr)
    sum(p.square().sum() for p in reached.values()).backward()
    by_hand(other).backward()
    assert one.grad.abs().max() > 0
    torch.testing.assert_close(one.grad, other.grad)


def test_attention_is_attention_under_every_transform():
    net = from_module("attention", Attention, SHAPE, CLASSES)
    assert net.vmappable
    assert net.capturable
    v, x = net.init(RNG, copies=2), images(2, 3)
    logits, _ = vmap(net)(v, x)
    torch.testing.assert_close(logits[1], net(v.copy(1), x[1])[0])
    one = v.copy(0).params
    change = jvp(lambda p: net(Variables(p), x[0])[0], (one,), (one,))[1]
    step = 1e-3
    ahead, behind = ({key: p * (1 + sign * step) for key, p in one.items()} for sign in (1, -1))
    differences = (net(Variables(ahead), x[0])[0] - net(Variables(behind), x[0])[0]) / (2 * step)
    torch.testing.assert_close(change, differences, rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
def test_a_compiler_sees_through_the_function():
    net = from_module("attention", Attention, SHAPE, CLASSES)
    v, x = net.init(RNG), images(3)

    def slopes(params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return grad(lambda p: net(Variables(p), x)[0].square().sum())(params)

    found = torch.compile(slopes, backend="eager", fullgraph=True)(v.params, x)
    torch.testing.assert_close(found, slopes(v.params, x))


def test_a_branch_on_numbers_is_computed_class_by_class():
    net = from_module("branch", Branch, SHAPE, CLASSES)
    assert not net.vmappable
    assert not net.capturable


def counts(make) -> nn.Module:
    class Counting(Frozen):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    return Counting()


class LayersInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(16, 16)]
        self.o = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.hidden[0](x.flatten(1)))


class TensorsInAList(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.rand(6)]


class OneMemory(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(6, 16)
        self.b.weight = nn.Parameter(self.a.weight.detach().t())


class Closure(nn.Module):
    """A hook that uses the module that it was made with, and so not the tensors of a student."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.a.register_forward_hook(lambda *_: torch.ones(()) * self.o.weight.sum())

    def forward(self, x: Tensor) -> Tensor:
        return self.o(x.flatten(1) + self.a(x.flatten(1)))


class Probabilities(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class AlwaysDrops(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Noise(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn_like(x[:, 0, 0, :1])


class PythonsDice(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random())


class Auxiliary(Frozen):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Detached(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def drawn_by_numpy() -> nn.Module:
    module = Frozen()
    module.o.weight.data = torch.tensor(np.random.default_rng().normal(size=(CLASSES, 6)), dtype=torch.float32)
    return module


WIDTHS = itertools.count(5)


def of_any_width() -> nn.Module:
    width = next(WIDTHS)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, CLASSES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: counts(None), "it changes calls, which all students would share"),
        (LayersInAList, "keeps layers in hidden.*ModuleList"),
        (TensorsInAList, "keeps tensors in scales.*ParameterList"),
        (OneMemory, "b.weight and a.weight in one memory"),
        (Closure, "is no function of its parameters, buffers and images"),
        (Probabilities, "returns probabilities"),
        (AlwaysDrops, r"evaluation mode too.*F.dropout\(x, p, self.training\)"),
        (Noise, "draws random numbers in its forward pass by aten.randn_like"),
        (PythonsDice, "global generator of Python, numpy or torch"),
        (Auxiliary, "not a tuple, in training mode. Make it return the logits alone"),
        (Detached, "cannot take a training step"),
        (drawn_by_numpy, "begins with other numbers in o.weight whenever it is made"),
        (of_any_width, "not the same network at every call"),
        (lambda: Frozen().requires_grad_(False), "has no parameters to train"),
        (lambda: Frozen().half(), "a.weight in float16. Make it in float32"),
        (lambda: Frozen().to("meta"), "on the meta device"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        from_module("own", make, SHAPE, CLASSES)


class NoRunningStatistics(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.norm(self.a(x.flatten(1))))


class Checkpointing(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(lambda x: self.o(self.a(x.flatten(1))).tanh(), x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoRunningStatistics, "mixes the images of a batch in evaluation mode"),
        (Checkpointing, "as activation checkpointing does: leave that out"),
        (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(16, 3))), "compiled by torch.jit"),
        (lambda: nn.DataParallel(Tied()), "cannot take a training step.*DataParallel"),
    ],
)
def test_what_cannot_be_a_function_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        from_module("own", make, SHAPE, CLASSES)


class Sign(torch.autograd.Function):
    """Written as most are, without the rules that torch.func asks for."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        return slope


class Binary(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(Sign.apply(self.a(x.flatten(1))))


def test_an_operation_without_the_derivatives_of_a_method_is_a_sentence():
    net = from_module("binary", Binary, SHAPE, CLASSES)
    assert not net.vmappable
    v, x = net.init(RNG), images(CLASSES, 2)
    with (
        pytest.raises(ConfigError, match="binary has an operation without the derivatives that this method takes"),
        derivatives_explained(net),
    ):
        class_gradients(net).of(v, x, torch.arange(CLASSES))
    with pytest.raises(RuntimeError, match="something else"), derivatives_explained(net):
        raise RuntimeError("something else")
    # It trains all the same.
    train_students(net, net.init(RNG, copies=1), training(), [0])


def test_a_batch_of_one_image_under_batch_norm_is_a_sentence():
    net = from_module("lazy", lazy, SHAPE, CLASSES)
    with pytest.raises(ConfigError, match="lazy has batch norm that cannot train on one image alone"):
        net(net.init(RNG), images(1))


def test_networks_that_begin_alike_are_said_to(caplog):
    module = Tied()
    kept = copy.deepcopy(module.state_dict())
    with caplog.at_level(logging.WARNING):
        net = from_module("one", lambda: module, SHAPE, CLASSES)
    assert "begins with the same numbers whatever the seed" in caplog.text
    v = net.init(RNG, copies=2)
    assert torch.equal(v.params["o.weight"][0], v.params["o.weight"][1])
    # The module itself is left alone.
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())
    caplog.clear()
    from_module("tied", Tied, SHAPE, CLASSES)
    assert not caplog.text


@pytest.mark.parametrize("make", [dropout, Everywhere])
def test_draws_belong_to_the_student_alone(make):
    net = from_module("drops", make, SHAPE, CLASSES)
    assert net.stochastic
    fresh, plan = net.init(RNG, copies=3), training()
    assert len(set(fresh.buffers[DRAWS][:, 0].tolist())) == 3
    before = torch.get_rng_state()
    plain = train_students(net, fresh, plan, [0, 1, 2], together=1, static=False)
    # Alone or in company, as a loop or as a program, and whatever else has drawn.
    torch.rand(3)
    for together, static in ((3, False), (3, True), (1, True)):
        again = train_students(net, fresh, plan, [0, 1, 2], together=together, static=static)
        for key, value in plain.params.items():
            torch.testing.assert_close(again.params[key], value, rtol=1e-4, atol=1e-6)
    alone = train_students(net, Variables.stack([fresh.copy(1)]), plan, [1])
    torch.testing.assert_close(alone.copy(0).params, plain.copy(1).params)
    assert plain.buffers[DRAWS][:, 1].tolist() == [plan.steps] * 3
    torch.set_rng_state(before)


def test_every_network_and_every_step_draws_anew_and_testing_draws_nothing():
    net = from_module("drops", dropout, SHAPE, CLASSES).in_training()
    v, x = net.init(RNG, copies=2), images(4)
    shared = Variables(v.copy(0).params, v.copy(0).buffers)
    logits, buffers = net(shared, x)
    assert torch.equal(net(shared, x)[0], logits)
    assert not torch.allclose(net(Variables(shared.params, buffers), x)[0], logits)
    assert not torch.allclose(net(Variables(shared.params, v.copy(1).buffers), x)[0], logits)
    evaluated, unchanged = net(shared, x, train=False)
    assert torch.equal(unchanged[DRAWS], shared.buffers[DRAWS])
    p = shared.params
    plain = (x.flatten(1) @ p["1.weight"].T + p["1.bias"]) @ p["3.weight"].T + p["3.bias"]
    torch.testing.assert_close(evaluated, plain)


def test_dropout_keeps_the_share_that_it_should():
    x = torch.ones(200_000)
    with SeededDraws("any", fresh_draws(RNG)):
        dropped, again = F.dropout(x, 0.3), F.dropout(x, 0.3)
        numbers = torch.rand_like(x)
    # The standard error of a share of 200 000 draws is 0.001; of the variance of uniform numbers, 0.0002.
    for found in (dropped, again):
        assert found.count_nonzero().item() / len(x) == pytest.approx(0.7, abs=0.005)
        assert found.max().item() == pytest.approx(1 / 0.7)
    assert ((dropped > 0) & (again > 0)).float().mean().item() == pytest.approx(0.49, abs=0.006)
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.004)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert (numbers[1:] * numbers[:-1]).mean().item() == pytest.approx(0.25, abs=0.004)
    assert 0 <= numbers.min() < numbers.max() < 1


def test_a_network_that_draws_is_a_judge_and_no_function():
    net = from_module("drops", dropout, SHAPE, CLASSES)
    v = net.init(RNG)
    net.embed(v, images(2), train=False)
    y = torch.zeros(1, 3, dtype=torch.int64)
    for use in (
        lambda: net(v, images(2)),
        lambda: net.embed(v, images(2)),
        lambda: descent(net, v, "full")(v.params, images(1, 3), y, torch.ones(1)),
    ):
        with pytest.raises(ConfigError, match=r"draws random numbers when it trains.*torchvision:vgg11\(dropout=0\)"):
            use()


def test_hidden_state_of_a_spectral_norm_is_handed_on():
    net = from_module("normalised", Normalised, SHAPE, CLASSES)
    v = net.init(RNG)
    _, buffers = net(v, images(3))
    moved = [key for key, value in buffers.items() if not torch.equal(value, v.buffers[key])]
    assert moved == ["b.parametrizations.weight.0._u", "b.parametrizations.weight.0._v"]
