"""DANCE and NCFM against float64 loops written down from the papers, with torch's own optimisers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from ddbench import Problem, Rng, drive
from ddbench.data.pixels import fit_pixels
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, DataError, RunError
from ddbench.initial import real_mosaics
from ddbench.loop import condense
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import unflatten
from ddbench_methods.dance import DANCE, DANCEConfig, DANCEState
from ddbench_methods.ncfm import NCFM, LearnedState, NCFMConfig, characteristic_distance, first_sampler

SMALL: dict[str, Any] = {"networks": 2, "epochs": 3, "lr_networks": 0.3, "batch_real": 5}


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return problem_for_checks(tmp_path, seed=3)


def dance(**options: Any) -> DANCE:
    return DANCE(DANCEConfig(**(SMALL | {"lr_images": 0.5} | options)))


def ncfm(**options: Any) -> NCFM:
    return NCFM(NCFMConfig(**(SMALL | {"frequencies": 16, "lr_images": 0.01} | options)))


def minimax(**options: Any) -> NCFM:
    # Step sizes at which three iterations move the network far.
    return ncfm(
        **({"learned_frequencies": True, "frequencies": 32, "normals_per_scale": 4, "lr_frequencies": 0.1} | options)
    )


def direct(**options: Any) -> NCFM:
    return minimax(normals_per_scale=0, **options)


def embedded(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.clamp(min=0), 2)
    return x.flatten(1)


def mean_distance(synthetic: Tensor, real: Tensor, frequencies: Tensor | None) -> Tensor:
    return sum(((synthetic[:, d].mean() - real[:, d].mean()) ** 2 for d in range(real.shape[1])), torch.zeros(()))


def characteristic(
    synthetic: Tensor, real: Tensor, frequencies: Tensor | None, weights: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """300 times the mean over frequencies, from amplitudes and phases as the paper weighs them, both by one half."""
    assert frequencies is not None
    synthetic, real = (f / f.norm(dim=1, keepdim=True) for f in (synthetic, real))
    total = torch.zeros((), dtype=torch.float64)
    for t in frequencies:
        r, s = (torch.exp(1j * (f @ t)).mean() for f in (real, synthetic))
        amplitude = (r.abs() - s.abs()) ** 2
        phase = 2 * (r.abs() * s.abs() - (r * s.conj()).real)
        total = total + (weights[0] * amplitude + weights[1] * phase.clamp(min=1e-12)).sqrt()
    return 300 * total / len(frequencies)


def as_module(sampler: list[Tensor]) -> nn.Sequential:
    """The sampling network as layers of torch, in float64. Biases are what normalisation takes out, so any will do."""
    parts: list[nn.Module] = []
    for i in range(0, len(sampler), 3):
        linear, norm = nn.Linear(*sampler[i].shape).double(), nn.BatchNorm1d(len(sampler[i])).double()
        linear.weight.data.copy_(sampler[i])
        norm.weight.data.copy_(sampler[i + 1])
        norm.bias.data.copy_(sampler[i + 2])
        parts += [linear, norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts[:-1], nn.Tanh())


def weights_of(module: nn.Sequential) -> list[Tensor]:
    """Those of `as_module`, as it was given them."""
    held = module.state_dict()
    return [
        held[name] for i in range(0, len(module), 3) for name in (f"{i}.weight", f"{i + 1}.weight", f"{i + 1}.bias")
    ]


def scale_mixture(outputs: Tensor, normals: Any) -> Tensor:
    """Each output is the standard deviations of a normal, of which every N-th frequency is drawn."""
    return torch.stack([outputs[k % len(outputs)] * normal for k, normal in enumerate(normals)])


def by_sgd(**options: Any) -> NCFM:
    # A distance is some hundreds here, and its step size as of DANCE would leave the range of pixels at once.
    return ncfm(**({"optimizer": "sgd", "momentum": 0.7, "lr_images": 2e-3} | options))


@pytest.mark.parametrize(("per_class_steps", "in_turn"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("make", [dance, ncfm, by_sgd, minimax, direct])
def test_iterations_are_those_of_the_loop(problem: Problem, make: Any, per_class_steps: bool, in_turn: bool) -> None:
    method = make(iterations=3, per_class_steps=per_class_steps, in_turn=in_turn, batch_syn=6)
    first = method.start(problem)
    images = first.images.double().requires_grad_()
    distance = mean_distance if make is dance else characteristic
    optimizer: Any = optim.SGD([images], 0.5, momentum=0.5)
    if make is by_sgd:
        optimizer = optim.SGD([images], 2e-3, momentum=0.7)
    elif make is not dance:
        optimizer = optim.AdamW([images], 0.01, weight_decay=5e-4)
    as_it_began = first.sampler if isinstance(first, LearnedState) else []
    twin = as_module(as_it_began)
    weights = list(twin.parameters())
    upwards = optim.SGD(weights, 0.1, momentum=0.5, maximize=True) if weights else None
    losses, like = [], problem.backbone.init(Rng(0)).params
    own = torch.arange(len(images)) // problem.ipc
    for i in range(3):
        rng = problem.rng.fold("step", i)
        drawn = rng.fold("network").numpy()
        number, share = int(drawn.integers(2)), float(drawn.random())
        ends = [first.networks.params(number, epoch).double() for epoch in (0, 3)]
        network, judge = unflatten(share * ends[0] + (1 - share) * ends[1], like), unflatten(ends[1], like)
        rows = problem.real.class_indices(5, rng.fold("real"))
        chosen = method.chosen(problem, rng)
        frequencies = None
        if make is not dance:
            count = 16 if make in (ncfm, by_sgd) else 32
            frequencies = torch.randn(count, first.width, generator=rng.fold("frequencies").torch()).double()
        if make in (minimax, direct):
            noises = 8 if make is minimax else 32
            outputs = twin(torch.randn(noises, first.width, generator=rng.fold("noise").torch()).double())
            frequencies = scale_mixture(outputs, frequencies) if make is minimax else outputs
        with torch.no_grad():
            images.clamp_(0, 1)

        def seen(c: int, x: Tensor, name: str, rng: Rng = rng) -> Tensor:
            for view in method.views(problem, rng.fold(name)):
                x = view[c : c + 1](x[None])[0]
            return x

        def shown(c: int, chosen: Tensor = chosen) -> Tensor:
            full, _ = decode("tiles(factor=2)", images[own == c], torch.zeros(problem.ipc))
            mean, std = (value.double() for value in (problem.pixels.mean, problem.pixels.std))
            return (full[chosen[c]] - mean) / std

        def loss_of(
            c: int, part: str, network: Any = network, judge: Any = judge, rows: Any = rows, t: Any = frequencies
        ) -> Tensor:
            if part == "match":
                real = seen(c, problem.real.take(rows[c]).double(), "view")
                return distance(embedded(network, seen(c, shown(c), "view")), embedded(network, real), t)
            scores = embedded(judge, seen(c, shown(c), "calibration"))
            scores = scores @ judge["logits.weight"].T + judge["logits.bias"]
            return (scores.logsumexp(1) - scores[:, c]).mean()

        for part in ("match", "classify"):
            wanted = [images, *weights] if part == "match" else [images]
            if in_turn:
                # A class's gradient and its step, then the next class's.
                each, slopes = [], [torch.zeros_like(weight) for weight in wanted[1:]]
                for c in range(problem.classes):
                    each.append(loss_of(c, part))
                    images.grad, *more = torch.autograd.grad(each[c], wanted, retain_graph=True)
                    slopes = [a + b for a, b in zip(slopes, more, strict=True)]
                    optimizer.step()
            else:
                each = [loss_of(c, part) for c in range(problem.classes)]
                gradient, *slopes = torch.autograd.grad(torch.stack(each).sum(), wanted)
            if part == "match":
                losses.append(float(torch.stack(each).sum().detach()))
            if slopes and upwards is not None:
                for weight, slope in zip(weights, slopes, strict=True):
                    weight.grad = slope
                upwards.step()
            for c in [] if in_turn else range(problem.classes) if per_class_steps else [None]:
                images.grad = gradient if c is None else gradient * (own == c)[:, None, None, None]
                optimizer.step()
    told = [float(metrics["loss"]) for _, metrics in drive(method, problem) if metrics]
    *_, (state, _) = drive(method, problem)
    assert told == pytest.approx(losses, rel=2e-4)
    moved = images.detach() - first.images
    assert moved.norm() > 0.05
    assert (state.images - images.detach()).norm() < 5e-3 * moved.norm()
    if isinstance(state, LearnedState) and isinstance(first, LearnedState):
        ours, start, theirs = (
            torch.cat([w.double().flatten() for w in parts]) for parts in (state.sampler, as_it_began, weights_of(twin))
        )
        assert (theirs - start).norm() > 0.05
        assert (ours - theirs).norm() < 5e-3 * (theirs - start).norm()


def test_the_distance_of_equal_and_of_opposite_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    t = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    assert float(characteristic_distance(f, f.flip(1), t)) < 1e-5  # order says nothing
    assert float(characteristic_distance(f, f + 1, t)) > 0.1
    expected = sum(characteristic_distance(f[k : k + 1], (f + 1)[k : k + 1], t) for k in range(2))
    assert torch.allclose(characteristic_distance(f, f + 1, t), expected)


def test_ncfm_halves_its_step_size_as_torch_would(problem: Problem) -> None:
    method = ncfm(patience=3)
    state = method.start(problem)
    twin = optim.SGD([torch.zeros(1, requires_grad=True)], float(state.lr))
    plateau = optim.lr_scheduler.ReduceLROnPlateau(twin, factor=0.5, patience=3)
    generator = torch.Generator().manual_seed(1)
    for loss in [5.0, 4.0, *(4 + torch.rand(20, generator=generator)).tolist(), 3.9999, 3.0, *[3.5] * 9]:
        method.adapt(state, {"loss": torch.tensor(loss), "calibration": torch.tensor(-loss)})
        plateau.step(loss)
        assert float(state.lr) == pytest.approx(twin.param_groups[0]["lr"])
    assert float(state.lr) < 0.002


@pytest.mark.parametrize("calibration", [0.0, 0.5])
def test_ncfm_can_watch_the_calibration_too(problem: Problem, calibration: float) -> None:
    """The released code gives its scheduler the sum of both losses, each with its weight."""
    method = ncfm(patience=2, watched="both", calibration=calibration)
    state = method.start(problem)
    twin = optim.SGD([torch.zeros(1, requires_grad=True)], float(state.lr))
    plateau = optim.lr_scheduler.ReduceLROnPlateau(twin, factor=0.5, patience=2)
    for distance, other in [(5.0, 9.0), *[(5.5, 4.0)] * 3, (5.0, 7.0), *[(4.0, 9.0)] * 5]:
        metrics = {"loss": torch.tensor(distance)} | ({"calibration": torch.tensor(other)} if calibration else {})
        method.adapt(state, metrics)
        plateau.step(distance + calibration * other)
        assert float(state.lr) == pytest.approx(twin.param_groups[0]["lr"])
    assert float(state.lr) < 0.01


def test_ncfm_can_take_the_same_real_images_in_all_iterations(problem: Problem) -> None:
    """The released code always hands out the first images of a class, as many as a batch has."""
    method = ncfm(real_images="first", batch_real=7)
    for i in (0, 1):
        rows = method.draw(problem, method.start(problem), problem.rng.fold("step", i))[2]
        for c in range(problem.classes):
            assert rows[c].tolist() == torch.where(problem.train.labels == c)[0][:7].tolist()
    more = ncfm(real_images="first", batch_real=1000)
    assert more.rows(problem, Rng(0)).shape == (problem.classes, int(problem.train.counts.min()))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_mosaics_are_real_images_with_every_fth_pixel(problem: Problem, factor: int) -> None:
    made = real_mosaics(problem, factor, problem.rng)
    assert made.dtype == torch.uint8
    images = made.float() / 255
    assert images.shape == (problem.classes * problem.ipc, *problem.shape)
    rows = problem.real.class_indices(problem.ipc * factor**2, problem.rng)
    side = -(-problem.shape[1] // factor)
    for n, image in enumerate(images):
        label, within = divmod(n, problem.ipc)
        for tile in range(factor**2):
            of_class = rows[label]
            real = problem.train.images[of_class[(within * factor**2 + tile) % len(of_class)]].float() / 255
            small = F.interpolate(real[None], size=(side, side), mode="nearest")[0]
            top, left = tile // factor * side, tile % factor * side
            found = image[:, top : top + side, left : left + side]
            assert torch.equal(found, small[:, : found.shape[1], : found.shape[2]])


def test_a_set_says_how_its_mosaics_are_shown(problem: Problem) -> None:
    made = condense(dance(iterations=1), problem)
    assert made.decode == "tiles(factor=2)"
    assert condense(dance(iterations=1, factor=1), problem).decode == "none"
    back = problem.pixels.back(made.images)
    assert back is not None
    assert back.min() >= -1e-5
    assert back.max() <= 1 + 1e-5


def test_without_calibration_only_distances_count(problem: Problem) -> None:
    plain = [m for _, m in drive(dance(iterations=2, calibration=0.0), problem) if m]
    assert all("calibration" not in metrics for metrics in plain)


def test_classes_in_several_passes_are_the_same(problem: Problem) -> None:
    for make in (dance, ncfm, minimax, direct):
        whole = condense(make(iterations=2), problem).images
        cut = condense(make(iterations=2, classes_per_pass=1), problem).images
        assert torch.allclose(whole, cut, atol=1e-4)


def test_whitened_pixels_are_refused(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whitened = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info, tmp_path))
    with pytest.raises(ConfigError, match=r"dance keeps pixels between 0 and 1.*Use --pixels standard"):
        dance().prepare(whitened)


@pytest.mark.parametrize("make", [dance, ncfm])
def test_mosaics_that_lose_images_are_refused_before_networks_are_trained(problem: Problem, make: Any) -> None:
    with pytest.raises(DataError, match="cannot hold 5 x 5 smaller ones: some would have no pixel"):
        make(factor=5).prepare(problem)


def test_the_state_is_the_same_kind_for_both(problem: Problem) -> None:
    assert isinstance(ncfm().start(problem), DANCEState)
    assert len(dance().start(problem).moments) == 1


def test_the_state_of_the_minimax_has_the_sampling_network(problem: Problem) -> None:
    state = minimax().start(problem)
    assert isinstance(state, LearnedState)
    assert [tuple(w.shape) for w in state.sampler] == [(state.width,) * 2, (state.width,), (state.width,)] * 3
    assert {"sampler", "velocity"} <= state.state_dict().keys()
    plain = ncfm().start(problem)
    assert not plain.state_dict().keys() & {"sampler", "velocity"}  # so that checkpoints of earlier runs fit
    assert torch.equal(plain.images, state.images)


def test_options_at_their_default_leave_the_config_of_a_run_as_it_was() -> None:
    mine = {"amplitude", "learned_frequencies", "lr_frequencies", "normals_per_scale"}
    mine |= {"optimizer", "watched", "real_images"}
    assert not mine & NCFMConfig().kept().keys()
    assert mine & NCFMConfig(learned_frequencies=True).kept().keys() == {"learned_frequencies"}


@pytest.mark.parametrize("amplitude", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_amplitudes_and_phases_weigh_as_asked(amplitude: float) -> None:
    generator = torch.Generator().manual_seed(2)
    synthetic, real = (torch.randn(1, n, 5, generator=generator, dtype=torch.float64) for n in (4, 7))
    synthetic, real = (F.normalize(f, dim=-1) for f in (synthetic, real))
    t = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    expected = characteristic(synthetic[0], real[0], t, (amplitude, 1 - amplitude)) / 300
    assert float(characteristic_distance(synthetic, real, t, amplitude)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("amplitude", [0.0, 0.3, 0.5, 1.0])
def test_the_distance_has_the_gradients_of_its_differences(amplitude: float) -> None:
    """By images, which go down, and by frequencies, which go up."""
    generator = torch.Generator().manual_seed(3)
    synthetic, real = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64) for n in (4, 6))
    t = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, f: characteristic_distance(s, real, f, amplitude), [synthetic.requires_grad_(), t.requires_grad_()]
    )


@pytest.mark.parametrize("normals_per_scale", [0, 16])
def test_the_sampling_network_enlarges_the_distance_of_images_that_stay(
    problem: Problem, normals_per_scale: int
) -> None:
    """Images that do not move: the distance at given noise, network and views, before and after, has no error of
    sampling; the noise of training is other noise."""
    method = minimax(iterations=20, normals_per_scale=normals_per_scale, frequencies=128, lr_images=1e-30)
    distances = []
    for state, _ in drive(method, problem):
        if state.step not in (0, 20):
            continue
        assert isinstance(state, LearnedState)
        between, _, rows, chosen, _, _, *drawn = method.draw(problem, state, problem.rng.fold("other"))
        network = unflatten(between, state.like)
        images = method.enlarged(problem, problem.by_class(state.images), chosen)
        pairs = [(embedded(network, images[c]), embedded(network, problem.real.take(rows[c]))) for c in range(3)]
        ours, real = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
        distances.append(float(method.distance(ours, real, *drawn, *state.sampler)))
    assert distances[1] > 1.2 * distances[0]


def test_scales_of_one_are_the_frequencies_of_the_plain_method(problem: Problem) -> None:
    """tanh bounds them by it: learned scales can come near the standard normal, and not beyond."""
    plain, learned = ncfm(frequencies=32), minimax()
    state = learned.start(problem)
    assert isinstance(state, LearnedState)
    rng = problem.rng.fold("step", 0)
    normals, noise = learned.draw(problem, state, rng)[-2:]
    assert torch.equal(normals, plain.draw(problem, plain.start(problem), rng)[-1])
    saturated = [weight + 1e3 * (i % 3 == 2) for i, weight in enumerate(state.sampler)]
    assert torch.equal(learned.sampled(normals, noise, *saturated), normals)
    made = learned.sampled(normals, noise, *state.sampler)
    assert (made.abs() < normals.abs()).all()
    assert len(made.unique(dim=0)) == len(made)


@pytest.mark.parametrize(("frequencies", "normals_per_scale"), [(1, 16), (17, 16), (40, 16), (3, 0), (1, 0)])
def test_any_number_of_frequencies_works(problem: Problem, frequencies: int, normals_per_scale: int) -> None:
    method = minimax(iterations=2, frequencies=frequencies, normals_per_scale=normals_per_scale)
    *_, (state, metrics) = drive(method, problem)
    assert isinstance(state, LearnedState)
    assert torch.isfinite(metrics["loss"])
    assert all(torch.isfinite(weight).all() for weight in [*state.sampler, *state.velocity])
    assert len(method.sampled(*method.draw(problem, state, problem.rng)[-2:], *state.sampler)) == frequencies


def test_the_minimax_goes_on_from_a_checkpoint_to_the_same_bits(problem: Problem) -> None:
    method = minimax(iterations=6)
    saved = {state.step: state.state_dict() for state, _ in drive(method, problem)}
    *_, (resumed, _) = drive(method, problem, saved[2])
    again = resumed.state_dict()
    for name in ("images", "sampler", "velocity", "moments"):
        for one, other in zip(saved[6][name], again[name], strict=True):
            assert torch.equal(one, other), name
    with pytest.raises(RunError, match="made by other code"):
        list(drive(ncfm(iterations=6), problem, saved[2]))


def test_first_matrices_are_those_of_torch() -> None:
    matrix, gain, shift, *_ = first_sampler(64, Rng(5), torch.device("cpu"))
    assert len(first_sampler(64, Rng(5), torch.device("cpu"))) == 9
    theirs = nn.Linear(64, 64).weight.abs().max()
    assert 0.9 * theirs < matrix.abs().max() <= 64**-0.5
    assert torch.equal(gain, torch.ones(64))
    assert torch.equal(shift, torch.zeros(64))
