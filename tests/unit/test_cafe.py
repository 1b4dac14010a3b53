"""CAFE as its card describes it, around the loss (which tests/parity compares with the formula)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, pairwise, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench import Problem, Rng, drive
from ddbench.backbones.foreign import from_module
from ddbench.backbones.names import build
from ddbench.config import preset_layers, resolve
from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy
from ddbench.errors import ConfigError
from ddbench.loop import condense
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.observers import read_log
from ddbench.runs.record import read_record
from ddbench.runs.resolving import QUICK, Asked, resolve_spec
from ddbench.runs.runner import RunOptions, run
from ddbench.testing.contract import problem_for_checks
from ddbench_methods.cafe import Rounds, Watch, aligned_taps

CAFE = load_object(GROUPS["method"], "cafe")
DATASETS = ["mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet"]
SMALL = {"iterations": 2, "batch_real": 8, "batch_query": 12, "window": 2, "most_updates": 3, "most_epochs": 2}


def cafe(**options: Any) -> Any:
    return CAFE(CAFE.Config(**(SMALL | options)))


def fixed(**options: Any) -> Any:
    return cafe(**({"loops": "fixed", "outer_loop": 2, "inner_loop": 1} | options))


def published(dataset: str, ipc: int, preset: str = "paper") -> dict[str, Any]:
    layers, _ = preset_layers([QUICK, *CAFE.settings()], preset, dataset, ipc)
    assert layers, "no published setting"
    values: dict[str, Any] = resolve("cafe", CAFE.Config, layers).config.model_dump()
    return values


# Settings


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("dataset", DATASETS)
def test_all_datasets_and_budgets_have_the_settings_of_the_code(dataset: str, ipc: int) -> None:
    assert published(dataset, ipc) == {
        "iterations": 2001,  # the authors' loop runs from 0 to 2 000 inclusive
        "dsa": False,
        "augment": "auto",
        "loops": "watched",
        "window": 10,
        "plateau": 0.04,
        "progress": 0.03,
        "leaky_watch": True,
        "batch_query": 1280,
        "most_updates": 200,
        "most_epochs": 200,
        "outer_loop": 10,
        "inner_loop": 10,
        "lr_images": 0.1,
        "lr_halvings": (0.6, 0.8, 0.9),
        "momentum": 0.5,
        "lr_network": 0.01,
        "batch_real": 256,
        "batch_train": 256,
        "feature_weights": (0.1, 0.1, 1.0),
        "discrimination": 0.01,
        "classes_per_pass": None,
        "initial": "noise",
    }


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_preset_says_what_is_the_authors_and_what_is_ours(dataset: str) -> None:
    sources = {s.source for s in CAFE.settings() if s.fits("paper", dataset, 10) and "lr_images" in s.options}
    assert len(sources) == 1
    assert sources.pop().startswith("the defaults of the authors' code" if dataset == "cifar10" else "ddbench: ")


@pytest.mark.parametrize(("dataset", "own"), [("cifar10", "cafe@1"), ("cifar100", "cafe@1"), ("mnist", "cafe@2")])
def test_sets_are_judged_as_the_authors_do_and_by_the_common_protocol(dataset: str, own: str) -> None:
    _, run = preset_layers(CAFE.settings(), "paper", dataset, 10)
    assert run[-1].values["protocol"] == [own, "dsa@1"]


def test_a_first_look_is_short() -> None:
    values = published("digits", 10, "quick")
    assert values["loops"] == "fixed"
    assert values["iterations"] * values["outer_loop"] <= 100


def test_the_step_size_is_halved_at_1200_1600_and_1800() -> None:
    method = CAFE(CAFE.Config())
    rates = [method.lr_images(step) for step in range(2001)]
    changes = [step for step in range(1, 2001) if rates[step] != rates[step - 1]]
    assert changes == [1200, 1600, 1800]
    assert (rates[0], rates[-1]) == (0.1, 0.0125)


def test_halvings_are_shares_of_a_longer_run() -> None:
    method = CAFE(CAFE.Config(iterations=4001, lr_halvings=(0.5,)))
    assert [method.lr_images(step) for step in (1999, 2000, 4000)] == [0.1, 0.05, 0.05]
    assert CAFE(CAFE.Config(lr_halvings=())).lr_images(2000) == 0.1


def test_the_step_size_moves_the_images_at_its_step(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    never = [s.images.clone() for s, _ in drive(fixed(iterations=3, lr_halvings=()), problem)]
    halved = [s.images.clone() for s, _ in drive(fixed(iterations=3, lr_halvings=(0.5,)), problem)]
    assert torch.equal(never[1], halved[1])
    assert not torch.allclose(never[2], halved[2])


# Loops, by scripted accuracies


def on_device(accuracies: Iterable[float]) -> Iterator[Tensor]:
    return (torch.tensor(accuracy, dtype=torch.float64) for accuracy in accuracies)


def outer_rounds(accuracies: Iterator[float], *, most: int = 200, leak: float = 0.0) -> Rounds:
    rounds = Rounds(most, Watch(on_device(accuracies), 10, leak, CAFE(CAFE.Config()).settled))
    list(rounds)
    return rounds


def inner_rounds(accuracies: Iterator[float], *, most: int = 200, leak: float = 0.0) -> Rounds:
    rounds = Rounds(most, Watch(on_device(accuracies), 10, leak, CAFE(CAFE.Config()).moved))
    list(rounds)
    return rounds


def test_a_network_is_left_when_ten_accuracies_lie_within_four_points() -> None:
    assert outer_rounds(repeat(0.3)).taken == 10
    # The first look, at an untrained network, has to leave the window first.
    assert outer_rounds(iter([0.1, *[0.3] * 20])).taken == 11
    rising = [0.1 + 0.012 * t for t in range(40)]
    assert outer_rounds(iter([*rising, *[0.58] * 20])).taken == 47  # from the 38th on: 0.544 to 0.58


def test_the_images_turn_comes_when_ten_accuracies_lie_apart_by_more_than_three_points() -> None:
    assert inner_rounds(iter([0.3, 0.34, *[0.3] * 20])).taken == 10
    assert inner_rounds(iter([*[0.3] * 14, 0.34])).taken == 15
    assert inner_rounds(iter([0.1 + 0.003 * t for t in range(100)]), most=50).capped


def test_a_cap_ends_a_loop_and_is_told() -> None:
    endless = inner_rounds(repeat(0.3), most=25)
    assert (endless.taken, endless.capped) == (25, True)
    unsettled = outer_rounds(iter([0.1, 0.5] * 50), most=30)
    assert (unsettled.taken, unsettled.capped) == (30, True)
    just_in_time = outer_rounds(repeat(0.3), most=10)
    assert (just_in_time.taken, just_in_time.capped) == (10, False)


def test_the_watch_leaks_one_accuracy_into_the_next() -> None:
    """a = accuracy + a / C: with 10 classes 0.3, 0.33, 0.333, so the first entry is 3.3 points below the rest."""
    assert inner_rounds(repeat(0.3), leak=0.1, most=20).taken == 10
    assert inner_rounds(repeat(0.3), leak=0.01, most=20).capped
    assert outer_rounds(repeat(0.5), leak=0.1).taken == 11  # 0.5 and 0.5555
    assert outer_rounds(repeat(0.5), leak=0.0).taken == 10


def test_the_last_accuracy_is_kept_without_its_leak() -> None:
    assert outer_rounds(repeat(0.5), leak=0.1).accuracy == 0.5


def test_nobody_waits_for_accuracies_that_can_end_nothing() -> None:
    rounds = Rounds(200, Watch(on_device(repeat(0.3)), 10, 0.0, lambda spread: False))
    known = [rounds.accuracy for _ in islice(rounds, 13)]
    # Asked after each round, and known when the next begins: from the tenth round on.
    assert known == [0.0] * 10 + [0.3] * 3
    short = Rounds(4, Watch(on_device(repeat(0.3)), 10, 0.0, lambda spread: True))
    assert list(short) == [0, 1, 2, 3]
    assert (short.capped, short.accuracy) == (True, 0.3)


def test_fixed_rounds_ask_nobody() -> None:
    rounds = Rounds(7)
    assert list(rounds) == list(range(7))
    assert (rounds.taken, rounds.capped) == (7, False)


def counted(method: Any, problem: Problem) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in m.items()} for _, m in drive(method, problem) if m]


def test_fixed_loops_take_their_counts_and_no_training_after_the_last_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CAFE, "query", None)  # nobody asks
    problem = problem_for_checks(tmp_path)
    for step in counted(fixed(outer_loop=4, inner_loop=3), problem):
        assert (step["updates"], step["epochs"], step["longest"], step["capped"]) == (4, 9, 3, 0)
        assert "accuracy" not in step


def test_scripted_accuracies_rule_a_whole_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Window 3, plateau 4 points, progress 3 points, no leak, in the order in which the network is asked."""
    script = [
        0.10,  # after update 1
        0.10, 0.10, 0.20,  # three epochs, and it has moved
        0.20,  # after update 2
        0.20, 0.21, 0.22, 0.25,  # four epochs: 0.21 to 0.25
        0.21,  # after update 3: 0.10 to 0.21
        0.30, 0.31, 0.34,  # three epochs: 0.30 to 0.34
        0.22,  # after update 4: 0.20 to 0.22, settled
    ]  # fmt: skip
    answers = on_device(script)
    monkeypatch.setattr(CAFE, "answers", lambda *_: answers)
    method = cafe(iterations=1, window=3, most_updates=50, most_epochs=50, leaky_watch=False)
    (step,) = counted(method, problem_for_checks(tmp_path))
    assert (step["updates"], step["epochs"], step["longest"], step["capped"]) == (4, 10, 4, 0)
    assert step["accuracy"] == pytest.approx(0.22)
    assert next(answers, None) is None


def test_caps_are_counted_over_the_run_and_reach_the_record(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    # 12 images cannot be told apart by a hundredth of a point, and 1 is never exceeded.
    method = cafe(plateau=1e-6, progress=0.99, most_updates=3, most_epochs=4)
    (*_, (state, metrics)) = drive(method, problem)
    assert float(metrics["capped"]) >= 2  # both inner loops, and the outer one unless three looks were equal
    assert method.counts(state)["updates"] == state.updates >= 4
    assert method.counts(state)["capped loops"] == state.capped >= 4


def test_a_record_says_how_many_loops_a_cap_has_ended(tmp_path: Path) -> None:
    judge = tmp_path / "tiny.toml"
    judge.write_text(
        'name = "tiny"\naugment = "none"\nbackbones = ["mlp"]\nstudents = 1\noptions = { epochs = 0, batch = 4 }\n'
    )
    options = {**SMALL, "loops": "watched", "iterations": 1, "plateau": 1e-6, "progress": 0.99}
    asked = Asked("cafe", "digits", ipc=1, backbone="convnet-w8", protocols=[str(judge)], options=options)
    record = run(
        resolve_spec(asked, tmp_path),
        RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=torch.device("cpu")),
    )
    (log,) = (tmp_path / "runs").rglob("log.jsonl")
    (line,) = read_log(log)
    assert record.counts == {name: line["metrics"][key] for name, key in COUNTED.items()}
    assert record.counts["capped loops"] >= 1
    (file,) = (tmp_path / "runs").rglob("record.json")
    assert read_record(file).counts == record.counts


COUNTED = {"updates": "updates", "epochs": "epochs", "capped loops": "capped"}


# Queries


@pytest.mark.parametrize(("classes", "each"), [(10, 128), (100, 13), (200, 6), (2000, 1)])
def test_a_query_has_about_1280_images_whatever_the_number_of_classes(
    classes: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = SimpleNamespace(class_indices=lambda n, rng: asked.append(n))
    method = CAFE(CAFE.Config())
    monkeypatch.setattr(method, "run_update", lambda *_: 0.5)
    next(method.answers(SimpleNamespace(classes=classes, real=real), None, Rng(0)))
    assert set(asked) == {each}


def test_every_query_is_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = problem_for_checks(tmp_path), []
    query = CAFE.query

    def watch(self: Any, problem: Problem, state: Any, rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        found: Tensor = query(self, problem, state, rows)
        return found

    monkeypatch.setattr(CAFE, "query", watch)
    condense(cafe(), problem)
    assert len(seen) > 8
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert all(len(row.unique()) == 4 for rows in seen for row in rows)


def test_a_query_is_the_share_of_images_that_the_network_has_right(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    method = cafe()
    state = method.start(problem)
    rows = problem.real.class_indices(12, problem.rng)
    logits, _ = problem.backbone(state.training.student(0), problem.real.take(rows).flatten(0, 1), train=False)
    right = (logits.argmax(1).view(3, 12) == torch.arange(3)[:, None]).float().mean()
    assert float(method.query(problem, state, rows)) == pytest.approx(float(right))


# Draws


def matched(method: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Tensor, Tensor]]:
    """View, real images and the network's head of every update."""
    seen: list[tuple[Any, Tensor, Tensor]] = []
    match = CAFE.match

    def watch(self: Any, problem: Problem, state: Any, view: Any, rows: Tensor, lr: Tensor) -> Tensor:
        seen.append((view, rows, state.training.student(0).params["logits.weight"].clone()))
        found: Tensor = match(self, problem, state, view, rows, lr)
        return found

    monkeypatch.setattr(CAFE, "match", watch)
    condense(method, problem)
    return seen


def test_a_network_is_drawn_anew_for_each_iteration_and_trained_between_its_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [head for _, _, head in matched(fixed(outer_loop=3), problem_for_checks(tmp_path), monkeypatch)]
    assert len(heads) == 6
    assert not any(torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])
    jumps = [float((a - b).norm()) for a, b in pairwise(heads)]
    assert jumps[2] > 10 * max(jumps[:2] + jumps[3:])


def test_dsa_draws_once_a_class_and_update_and_cafe_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    seen = matched(fixed(dsa=True, outer_loop=3), problem, monkeypatch)
    assert all(len(view) == 3 and view.numbers.shape[1] == 1 for view, _, _ in seen)
    assert not any(torch.equal(a[0].numbers, b[0].numbers) for i, a in enumerate(seen) for b in seen[:i])
    assert not any(torch.equal(a[1], b[1]) for i, a in enumerate(seen) for b in seen[:i])
    monkeypatch.undo()
    assert all(view is None for view, _, _ in matched(fixed(), problem, monkeypatch))


def test_training_is_augmented_with_dsa_alone_and_image_by_image(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    digits = replace(problem, info=replace(problem.info, digits=True))
    assert fixed().start(problem).training.plan.strategy == "none"
    plan = fixed(dsa=True).start(problem).training.plan
    block = next(iter(plan.blocks([0])))
    assert [draw.numbers.shape[1] for draw in block.draws] == [len(plan.images)]
    assert "flip" in plan.strategy
    assert "flip" not in fixed(dsa=True).start(digits).training.plan.strategy


@pytest.mark.parametrize("dsa", [False, True])
def test_images_start_from_noise_unless_asked(dsa: bool, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=20)
    noise = fixed(dsa=dsa).start(problem).images
    assert abs(float(noise.std()) - 1) < 0.05
    real = fixed(dsa=dsa, initial="real").start(problem).images
    everything = problem.real.take(torch.arange(len(problem.train)))
    assert bool((real[:, None] == everything[None]).flatten(2).all(dim=2).any(dim=1).all())


# Sizes and networks


def check_it_learns(problem: Problem, **options: Any) -> None:
    start = fixed(**options).start(problem).images
    images = condense(fixed(iterations=1, **options), problem).images
    assert images.shape == start.shape
    assert bool(images.isfinite().all())
    assert not torch.equal(images, start)


@pytest.mark.parametrize(
    ("shape", "backbone"),
    [((1, 28, 28), "convnet-w8"), ((3, 64, 64), "convnet-w8"), ((1, 28, 28), "lenet"), ((3, 32, 32), "resnet18-in")],
)
def test_grey_and_large_images_and_other_networks(shape: tuple[int, int, int], backbone: str, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, shape=shape, per_class=8, ipc=1)
    check_it_learns(replace(problem, backbone=build(backbone, shape, 3)), batch_real=4, dsa=True)


def test_a_hundred_classes_in_some_passes(tmp_path: Path) -> None:
    data = toy(100, (3, 8, 8), 6)
    problem = replace(
        problem_for_checks(tmp_path, ipc=1),
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info),
        backbone=build("convnet-d2-w8", (3, 8, 8), 100),
    )
    whole = condense(cafe(iterations=1), problem).images
    cut = condense(cafe(iterations=1, classes_per_pass=30), problem).images
    assert torch.allclose(whole, cut, atol=1e-3)
    assert len(cafe(classes_per_pass=30).passes(problem, 8)) == 4


def test_large_images_and_many_of_them_are_cut_by_themselves(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, shape=(3, 64, 64))
    assert len(cafe().passes(problem, 256)) == 1
    assert len(cafe().passes(problem, 600)) == 3


@pytest.mark.parametrize(
    ("backbone", "taps"),
    [
        ("convnet-d3-w8", ["block1", "block2", "block3", "pool"]),
        ("convnet-d4-w8", ["block1", "block2", "block3", "block4", "pool"]),
        ("alexnet", ["block1", "block2", "block3", "block4", "block5", "pool"]),
        ("vgg11-in", ["block1", "block2", "block3", "block4", "block5", "pool"]),
        ("lenet", ["block1", "block2", "pool", "layer1"]),
        ("resnet18-in", ["stem", "stage1", "stage2", "stage3", "stage4", "pool"]),
        ("mlp", ["layer1"]),
    ],
)
def test_features_are_aligned_where_blocks_end(backbone: str, taps: list[str]) -> None:
    assert aligned_taps(build(backbone, (3, 32, 32), 10)) == taps


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block1(x).flatten(1))  # type: ignore[no-any-return]


def test_a_network_without_named_blocks_is_refused_in_one_sentence(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=from_module("unnamed", Unnamed, (3, 8, 8), 3))
    with pytest.raises(ConfigError, match="cafe aligns features inside a network, and unnamed does not name them"):
        condense(cafe(), problem)


def test_a_network_of_ones_own_that_names_its_blocks_will_do(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=from_module("named", Named, (3, 8, 8), 3))
    assert aligned_taps(problem.backbone) == ["block1"]
    check_it_learns(problem)


def test_batch_norm_is_refused_in_one_sentence(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    with pytest.raises(ConfigError, match="cafe does not work on convnet-d2-w8-bn: batch norm mixes the images"):
        condense(cafe(), problem)


# State


def test_sets_of_cafe_and_of_dsa_have_protocols_of_their_own() -> None:
    assert (cafe().native, cafe(dsa=True).native) == ("cafe@2", "dsa@1")


def test_a_checkpoint_holds_images_velocity_and_counts_and_nothing_of_a_network(tmp_path: Path) -> None:
    (*_, (state, _)) = drive(fixed(), problem_for_checks(tmp_path))
    assert state.state_dict().keys() == {"step", "images", "velocity", "updates", "epochs", "capped"}


def test_no_iterations_export_the_start(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    synthetic = condense(cafe(iterations=0), problem)
    assert torch.equal(synthetic.images, cafe().start(problem).images)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_loss_falls(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    losses = [step["loss"] for step in counted(fixed(iterations=40, batch_real=40), problem)]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_the_weights_are_those_of_the_layers(tmp_path: Path) -> None:
    """With no weight on the layers and no discrimination, the embedding alone is aligned, and that is DM's loss."""
    problem = problem_for_checks(tmp_path)
    options = {"iterations": 1, "outer_loop": 1, "feature_weights": (0.0,), "discrimination": 0.0}
    (bare,) = counted(fixed(**options), problem)
    (layered,) = counted(fixed(**options | {"feature_weights": (0.0, 0.0, 1.0)}), problem)
    assert layered["loss"] == pytest.approx(2 * bare["loss"], rel=1e-5)  # the last pooling is the embedding again
