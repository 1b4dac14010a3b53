"""MTT against float64 loops written down from the paper, its gradient in three forms, and its exact properties."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench import Problem, Rng, Variables, drive
from ddbench.backbones import Backbone, build
from ddbench.engine.augment import Draw, draw_many
from ddbench.engine.program import compiling
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import flatten
from ddbench.training.unroll import Descent, Form, graph_bytes
from ddbench_methods.mtt import MTTState, mismatch

MTT = load_object(GROUPS["method"], "mtt")
SIX = "color_crop_cutout_flip_scale_rotate"


def logits(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling; then a linear layer."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.relu(), 2)
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


def cross_entropy(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    scores = logits(p, x)
    if y.is_floating_point():
        return -(y * (scores - scores.exp().sum(1, keepdim=True).log())).sum(1).mean()
    return -torch.stack([scores[i, y[i]] - scores[i].exp().sum().log() for i in range(len(y))]).mean()


def named(net: Backbone, flat: Tensor) -> dict[str, Tensor]:
    """A vector cut into parameters, layer by layer, weight before bias."""
    found, first = {}, 0
    for name, value in net.init(Rng(0)).params.items():
        found[name] = flat[first : first + value.numel()].view(value.shape)
        first += value.numel()
    assert first == len(flat)
    return found


def student(
    net: Backbone, start: Tensor, images: Tensor, labels: Tensor, lr: Tensor, batches: list[list[int]], views: list[Any]
) -> Tensor:
    """Where the student ends, as a vector with its whole history."""
    w = {name: value.detach().requires_grad_() for name, value in named(net, start).items()}
    for batch, view in zip(batches, views, strict=True):
        inner = cross_entropy(w, view(images[batch]), labels[batch])
        slopes = torch.autograd.grad(inner, list(w.values()), create_graph=True)
        w = {name: value - lr * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
    return torch.cat([value.flatten() for value in w.values()])


def one_step(draw: Draw, t: int) -> Callable[[Tensor], Tensor]:
    return lambda x: draw[t](x[None])[0]


def by_hand(problem: Problem, config: Any, experts: Any, start: Tensor) -> tuple[Tensor, float, list[float]]:
    """Images, step size and losses after all iterations.

    With `teacher_labels` each begins with the labels that the expert's last parameters give images as they are.
    """
    net, labels = problem.backbone, torch.tensor([c for c in range(3) for _ in range(problem.ipc)])
    images, lr, losses = start.double(), config.lr_network, []
    moving, moving_lr = torch.zeros_like(images), 0.0
    for i in range(config.iterations):
        rng = problem.rng.fold("step", i)
        draws = rng.fold("expert").numpy()
        expert, epoch = int(draws.integers(config.experts)), int(draws.integers(config.start_epochs))
        origin = experts.params(expert, epoch).double()
        target = experts.params(expert, epoch + config.expert_span).double()
        n, b = len(images), config.batch_syn or len(images)
        generator, queue, batches = rng.fold("rows").torch(), [], []
        for _ in range(config.inner_steps):
            if not queue:
                order = torch.randperm(n, generator=generator).tolist()
                small = n % b
                queue = ([order[:small]] if small else []) + [order[k : k + b] for k in range(small, n, b)]
            batches.append(queue.pop(0))
        draw = draw_many(SIX, config.inner_steps, b, rng.fold("views"), align_corners=True)
        views = [one_step(draw, t) for t in range(config.inner_steps)]
        if config.teacher_labels:
            powers = logits(named(net, target), images).exp()
            labels = powers / powers.sum(1, keepdim=True)
        u, a = images.clone().requires_grad_(), torch.tensor(lr, dtype=torch.float64, requires_grad=True)
        end = student(net, origin, u, labels, a, batches, views)
        loss = (end - target).square().sum() / (origin - target).square().sum()
        by_images, by_lr = torch.autograd.grad(loss, (u, a))
        moving = config.momentum * moving + by_images
        moving_lr = config.momentum * moving_lr + by_lr.item()
        images, lr = images - config.lr_images * moving, lr - config.lr_lr * moving_lr
        losses.append(loss.item())
    return images, lr, losses


@pytest.mark.parametrize(
    ("grad", "batch_syn", "options"),
    [
        ("adjoint", None, {}),
        ("adjoint", 4, {}),  # of 6: a batch of two comes first
        ("full", None, {}),
        ("full", 4, {}),
        ("adjoint", 4, {"teacher_labels": True}),
        ("full", None, {"teacher_labels": True}),
        ("adjoint", None, {"rho_experts": 0.3, "alpha_experts": 0.3}),
    ],
)
def test_iterations_are_those_of_the_loop(
    tmp_path: Path, grad: str, batch_syn: int | None, options: dict[str, Any]
) -> None:
    problem = problem_for_checks(tmp_path, seed=3)
    config = MTT.Config(
        iterations=4, experts=2, start_epochs=2, inner_steps=5, lr_experts=0.3, lr_network=0.05, lr_images=0.5,
        lr_lr=1e-4, batch_syn=batch_syn, grad=grad, **options,
    )  # fmt: skip
    method = MTT(config)
    start = method.start(problem)
    images, lr, losses = by_hand(problem, config, start.experts, start.images.detach().clone())
    found = [float(metrics["loss"]) for _, metrics in drive(method, problem) if metrics]
    *_, (state, _) = drive(method, problem)
    assert found == pytest.approx(losses, rel=1e-4)
    moved = images - start.images.detach()
    assert moved.norm() > 0.02  # ten thousand times the rounding of float32 in these images
    assert (state.images.detach() - images).norm() < 1e-3 * moved.norm()
    assert abs(lr - 0.05) > 1e-5
    assert state.lr.item() - 0.05 == pytest.approx(lr - 0.05, rel=1e-2)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_set_is_the_moving_average_of_the_images(tmp_path: Path, decay: float) -> None:
    """FTD: from the first images on, average <- decay average + (1 - decay) images, after each iteration. The images
    themselves go their usual way, to the bit."""
    options = {"iterations": 4, "experts": 1, "start_epochs": 1, "inner_steps": 3, "lr_experts": 0.3, "lr_images": 0.5}
    problem = problem_for_checks(tmp_path, seed=3)
    method, usual = MTT(MTT.Config(ema=decay, **options)), MTT(MTT.Config(**options))
    plain = [state.images.detach().clone() for state, _ in drive(usual, problem)]
    average = plain[0].double()
    for k, (state, _) in enumerate(drive(method, problem)):
        average = average if k == 0 else decay * average + (1 - decay) * plain[k].double()
        assert torch.equal(state.images, plain[k])
        made = method.export(problem, state)
        assert torch.allclose(made.images.double(), average, atol=1e-6)
        assert torch.equal(made.recipe.lr, state.lr.detach())
    assert (average - plain[-1]).abs().max() > 1e-3, "the average is the last images, so nothing was compared"


N, B, SIZES = 3, 4, (2, 4, 4)


def matching(student: Any, labels: Tensor, sizes: tuple[int, ...], like: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The mismatch as a function of images, step size, both ends of the expert, rows and augmentation."""

    def matched(
        images: Tensor, lr: Tensor, start: Tensor, target: Tensor, rows: Tensor, view: Draw | None = None
    ) -> Tensor:
        state = MTTState(images, lr, torch.optim.SGD([torch.zeros(1)]), None, student, like, labels)
        return mismatch(state, start, target, rows, view, sizes)

    return matched


def exact(form: Form, sizes: tuple[int, ...] = (B,) * N, backbone: str = "convnet-d2-w8", soft: bool = False) -> Any:
    """A loss in float64 on a small network, and its arguments; with classes, or with labels that an expert assigned."""
    net = build(backbone, (3, 8, 8), 3)

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(Variables(params), x)[0], y)

    like = net.init(Rng(0)).params
    generator = Rng(1).torch()
    images = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = flatten(like).double()
    target = start + 0.05 * torch.randn(len(start), generator=generator, dtype=torch.float64)
    rows = torch.randint(6, (N, B), generator=generator)
    labels = torch.arange(3).repeat_interleave(2)
    if soft:
        labels = net(Variables(named(net, target)), images.detach())[0].softmax(1)
    return matching(Descent(loss, form=form), labels, sizes, like), (images, lr, start, target, rows)


def gradient(form: Form, view: Draw | None, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mismatch, arguments = exact(form, sizes)
    by_images, by_lr = torch.autograd.grad(mismatch(*arguments, view), arguments[:2])
    return by_images, by_lr


@pytest.mark.parametrize("augment", ["none", SIX])
@pytest.mark.parametrize("sizes", [(B,) * N, SIZES])
def test_the_adjoint_form_is_the_full_graph_to_ten_digits(augment: str, sizes: tuple[int, ...]) -> None:
    view = None if augment == "none" else draw_many(augment, N, B, Rng(5), align_corners=True)
    for ours, theirs in zip(gradient("adjoint", view, sizes), gradient("full", view, sizes), strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_finite_differences(soft: bool) -> None:
    # Without norms, whose second derivatives along nothing are zero only up to rounding; gradcheck insists on zero.
    mismatch, (images, lr, *rest) = exact("adjoint", SIZES, "convnet-d2-w8-nn", soft)
    view = draw_many(SIX, N, B, Rng(6), align_corners=True)
    direction = torch.randn(images.shape, generator=Rng(7).torch(), dtype=torch.float64)

    def along(t: Tensor, lr: Tensor) -> Tensor:
        value: Tensor = mismatch(images.detach() + t * direction, lr, *rest, view)
        return value

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (zero, lr), eps=1e-5, atol=1e-6)


def test_tesla_is_what_is_left_where_each_steps_parameters_are_constants() -> None:
    """Cui et al., ICML 2023, step by step: w = 2 (alpha (target - start) + alpha^2 G) / D, then <w, g_i> by images."""
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    mismatch, (images, lr, start, target, rows) = exact("tesla")
    labels, alpha = torch.arange(3).repeat_interleave(2), lr.item()
    passed, total = [start], torch.zeros_like(start)
    slopes = []
    for row in rows.tolist():
        w = {name: value.clone().requires_grad_() for name, value in named(net, passed[-1]).items()}
        inner = cross_entropy(w, images[row], labels[row])
        g = torch.cat([s.flatten() for s in torch.autograd.grad(inner, list(w.values()), create_graph=True)])
        slopes.append(g)
        total = total + g.detach()
        passed.append(passed[-1] - alpha * g.detach())
    size = (start - target).square().sum()
    constant = 2 / size * (alpha * (target - start) + alpha**2 * total)
    by_images = sum(torch.autograd.grad(constant @ g, images)[0] for g in slopes)
    free = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    (by_lr,) = torch.autograd.grad((start - free * total - target).square().sum() / size, free)
    loss = mismatch(images, lr, start, target, rows)
    found = torch.autograd.grad(loss, (images, lr))
    assert torch.allclose(found[0], by_images, rtol=1e-10, atol=1e-14)
    assert torch.allclose(found[1], by_lr, rtol=1e-10)
    true = gradient("full", None, (B,) * N)
    cosine = F.cosine_similarity(found[0].flatten(), true[0].flatten(), dim=0)
    assert 0.5 < cosine < 1 - 1e-4


def test_a_student_that_takes_no_step_misses_by_one() -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    _, (images, lr, start, target, rows) = exact("adjoint")
    like = net.init(Rng(0)).params
    standing = matching(lambda params, *_: params, torch.arange(6) % 3, (), like)
    assert standing(images, lr, start, target, rows).item() == 1.0


@pytest.mark.parametrize("form", ["adjoint", "full", "tesla"])
def test_there_is_no_gradient_where_the_student_ends_on_its_target(form: Form) -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    mismatch, (images, lr, start, _, rows) = exact(form)
    labels, same = torch.arange(3).repeat_interleave(2), [lambda x: x] * N
    target = student(net, start, images, labels, lr, rows.tolist(), same).detach()
    loss = mismatch(images, lr, start, target, rows)
    assert loss.item() < 1e-25
    assert all(float(slope.norm()) < 1e-10 for slope in torch.autograd.grad(loss, (images, lr)))


def test_permuted_images_have_a_permuted_gradient() -> None:
    mismatch, (images, lr, start, target, rows) = exact("adjoint")
    order = torch.tensor([1, 0, 3, 2, 5, 4])  # inside the classes, so that labels stay where they are
    (usual,) = torch.autograd.grad(mismatch(images, lr, start, target, rows), images)
    swapped = images.detach()[order].requires_grad_()
    (other,) = torch.autograd.grad(mismatch(swapped, lr, start, target, order[rows]), swapped)
    assert torch.allclose(other, usual[order], rtol=1e-12, atol=1e-16)


def test_the_order_of_a_whole_set_does_not_matter_without_augmentation(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    options = {"experts": 1, "start_epochs": 1, "inner_steps": 3, "augment": "none", "iterations": 1}
    losses = []
    for seed in (0, 1):
        method = MTT(MTT.Config(**options))
        state = method.start(problem)
        # Each step has its own generator; the expert and its epoch are the only ones there are.
        losses.append(float(method.step(problem, state, Rng(seed))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_estimate_of_a_graph_is_what_it_keeps() -> None:
    """Against the count for a linear model: x and the derivative by its output, beside what is made of them."""
    generator = Rng(0).torch()

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (x @ params["w"]).square().sum()

    def needed(batch: int, width: int) -> int:
        params = {"w": torch.randn(width, 1, generator=generator)}
        return graph_bytes(loss, params, torch.randn(batch, width, generator=generator), torch.zeros(batch))

    assert needed(8, 100) == 2 * needed(4, 100)
    assert 8 * 100 * 4 <= needed(8, 100) < 3 * 8 * 100 * 4


@pytest.mark.slow
# Compilers of torch warn about themselves; what is tested here is the numbers.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", ["adjoint", "tesla"])
def test_the_compiler_takes_an_iteration(form: Form, caplog: pytest.LogCaptureFixture) -> None:
    net = build("convnet-d2-w8", (3, 8, 8), 3)
    like = net.init(Rng(0)).params
    _, (images, lr, start, target, rows) = exact(form)
    view = draw_many(SIX, N, B, Rng(5), align_corners=True)
    static = Draw(view.ops, view.numbers, view.align_corners, static=True)

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(Variables(params), x)[0], y)

    found = []
    with caplog.at_level("INFO", "ddbench.engine.program"):
        for fuse in (False, True):
            match = matching(Descent(loss, form=form), torch.arange(3).repeat_interleave(2), SIZES, like)
            u, a = (value.detach().float().requires_grad_() for value in (images, lr))
            with compiling(fuse):
                found.append(torch.autograd.grad(match(u, a, start.float(), target.float(), rows, static), (u, a)))
    assert not [record for record in caplog.records if record.name.startswith("ddbench")]
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()
