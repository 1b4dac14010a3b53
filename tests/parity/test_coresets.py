"""Selections against naive float64 loops, written down from their papers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ddbench import Problem, Rng, Variables
from ddbench.errors import DataError
from ddbench.initial import mosaics
from ddbench.loop import condense
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks
from ddbench_methods.coresets import KCenter, Random, herding, k_center, k_means

Points = np.ndarray[Any, np.dtype[np.float64]]


def distance(a: Points, b: Points) -> float:
    return float(np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))))


def herding_by_hand(points: Points, count: int) -> list[int]:
    """Rebuffi et al., CVPR 2017, algorithm 4: the next one brings the mean of all chosen closest to the class mean."""
    mean = points.mean(axis=0)
    chosen: list[int] = []
    for _ in range(count):
        gaps = {k: distance(mean, points[[*chosen, k]].mean(axis=0)) for k in range(len(points)) if k not in chosen}
        chosen.append(min(gaps, key=lambda k: gaps[k]))
    return chosen


def k_center_by_hand(points: Points, count: int) -> list[int]:
    """Sener and Savarese, ICLR 2018, algorithm 1: the next one is farthest from its nearest chosen one."""
    mean = points.mean(axis=0)
    chosen = [min(range(len(points)), key=lambda k: distance(mean, points[k]))]
    while len(chosen) < count:
        free = [k for k in range(len(points)) if k not in chosen]
        chosen.append(max(free, key=lambda k: min(distance(points[k], points[c]) for c in chosen)))
    return chosen


def points_of(seed: int, n: int, width: int) -> Points:
    return np.random.default_rng(seed).normal(size=(n, width))


@pytest.mark.parametrize(("ours", "naive"), [(herding, herding_by_hand), (k_center, k_center_by_hand)])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 15), width=st.integers(1, 5), share=st.floats(0, 1))
def test_the_greedy_choice_is_that_of_the_loop(
    ours: Callable[[torch.Tensor, int], torch.Tensor],
    naive: Callable[[Points, int], list[int]],
    seed: int,
    n: int,
    width: int,
    share: float,
) -> None:
    points, count = points_of(seed, n, width), max(1, round(share * n))
    # The last of all points is chosen whatever the rule says, and among few points ties are likely.
    assume(n != 2)
    assert ours(torch.from_numpy(points), count).tolist() == naive(points, count)


def centres_by_hand(points: Points, start: Points) -> Points:
    """Lloyd's iteration until nothing moves."""
    centres = start.copy()
    while True:
        nearest = [min(range(len(centres)), key=lambda c: distance(p, centres[c])) for p in points]
        moved = np.stack([points[[n == c for n in nearest]].mean(axis=0) for c in range(len(centres))])
        if np.allclose(moved, centres, atol=1e-12):
            return moved
        centres = moved


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 5))
def test_k_means_takes_the_point_nearest_to_each_centre(seed: int, count: int) -> None:
    """Clusters so far apart that every start finds them."""
    rng = np.random.default_rng(seed)
    homes = 100.0 * np.eye(count, 6)
    points = np.concatenate([home + rng.normal(size=(8, 6)) for home in homes])
    points = points[rng.permutation(len(points))]
    centres = centres_by_hand(points, homes)
    expected = {min(range(len(points)), key=lambda k: distance(points[k], c)) for c in centres}
    assert set(k_means(torch.from_numpy(points), count, Rng(seed)).tolist()) == expected


SELECTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "herding": herding,
    "k-center": k_center,
    "k-means": lambda points, count: k_means(points, count, Rng(0)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_are_distinct_even_where_points_are_not(name: str) -> None:
    """Twelve points in four places, three in each."""
    points = torch.from_numpy(points_of(0, 4, 3)).repeat(3, 1)
    few = SELECTIONS[name](points, 4)
    assert len(few.unique()) == 4
    if name != "k-means":  # it finds no more clusters than there are places, and says so
        assert sorted(SELECTIONS[name](points, 12).tolist()) == list(range(12))


def test_two_centres_that_share_their_nearest_point_take_two_points() -> None:
    # Two hollow clusters, farther from their own centres than these are from one point between them.
    hollow = torch.cat([torch.eye(7), -torch.eye(7)]).double()
    left, right = (torch.nn.functional.pad(hollow, (1, 0), value=x) for x in (-0.8, 0.8))
    points = torch.cat([left, right, torch.zeros(1, 8)])
    for seed in range(5):
        chosen = k_means(points, 2, Rng(seed)).tolist()
        assert len(set(chosen)) == 2
        assert 28 in chosen


@pytest.mark.parametrize("name", SELECTIONS)
def test_everything_can_be_chosen(name: str) -> None:
    points = torch.from_numpy(points_of(1, 7, 3))
    assert sorted(SELECTIONS[name](points, 7).tolist()) == list(range(7))


def chosen_by(name: str, problem: Problem, **options: Any) -> torch.Tensor:
    method = load_object(GROUPS["method"], name)
    rows = condense(method(method.Config(**options)), problem).source_indices
    assert rows is not None
    return rows


@pytest.mark.parametrize(("name", "naive"), [("herding", herding_by_hand), ("k-center", k_center_by_hand)])
def test_methods_choose_inside_each_class_in_the_embedding_of_a_trained_network(
    tmp_path: Path, name: str, naive: Callable[[Points, int], list[int]]
) -> None:
    problem = problem_for_checks(tmp_path, ipc=4, per_class=(20, 9, 12))
    rows = chosen_by(name, problem, epochs=3)
    (used,) = problem.artifacts.used.values()
    assert used["kind"] == "trained-network"
    network = next(tmp_path.rglob("network.safetensors"))
    params = {key.removeprefix("params."): value for key, value in load_file(network).items()}
    embedded = problem.backbone.embed(Variables(params), problem.real.take(torch.arange(41)), train=False)
    expected: list[int] = []
    for first, count in ((0, 20), (20, 9), (29, 12)):
        points = embedded[first : first + count].double().numpy()
        expected += [first + k for k in naive(points, 4)]
    assert rows.tolist() == expected


def test_herding_k_center_and_k_means_share_their_network(tmp_path: Path) -> None:
    for name in SELECTIONS:
        chosen_by(name, problem_for_checks(tmp_path), epochs=2)
    assert len(list(tmp_path.rglob("network.safetensors"))) == 1


def test_another_seed_is_another_network(tmp_path: Path) -> None:
    for seed in (0, 1):
        chosen_by("herding", problem_for_checks(tmp_path, seed=seed), epochs=2)
    assert len(list(tmp_path.rglob("network.safetensors"))) == 2


@pytest.mark.parametrize("name", ["random", *SELECTIONS])
def test_an_ipc_larger_than_a_class_is_refused(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {} if name == "random" else {"epochs": 0}
    with pytest.raises(DataError, match=r"ipc is 6, and class 'class 1' .* has 5 .* Choose an ipc of at most 5"):
        chosen_by(name, problem_for_checks(tmp_path, ipc=6, per_class=(40, 5, 40)), **options)
    assert not list(tmp_path.rglob("network.safetensors")), "a network was trained before the budget was looked at"


@pytest.mark.parametrize("name", ["random", *SELECTIONS])
def test_a_whole_class_can_be_chosen(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {} if name == "random" else {"epochs": 0}
    rows = chosen_by(name, problem_for_checks(tmp_path, ipc=5, per_class=(9, 5, 9)), **options)
    assert sorted(rows[5:10].tolist()) == [9, 10, 11, 12, 13]


def test_random_rows_are_uniform_inside_their_class(tmp_path: Path) -> None:
    counts = torch.zeros(30)
    for seed in range(300):
        counts[chosen_by("random", problem_for_checks(tmp_path, seed=seed, ipc=2, per_class=10))] += 1
    # 300 draws of 2 of 10: 60 each, with a deviation of 7.
    assert counts.min() > 60 - 5 * 7
    assert counts.max() < 60 + 5 * 7


def test_the_whole_dataset_is_everything_in_its_order(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, per_class=(9, 5, 7))
    assert chosen_by("whole", problem).tolist() == list(range(21))


@pytest.mark.parametrize("factor", [2, 3])
def test_a_mosaic_is_of_images_that_were_chosen_with_every_fth_pixel(tmp_path: Path, factor: int) -> None:
    problem = problem_for_checks(tmp_path, ipc=2)
    plain, made = Random(Random.Config()), Random(Random.Config(factor=factor))
    state = made.start(problem)
    found = made.export(problem, state)
    assert found.decode == f"tiles(factor={factor})"
    assert (found.images.dtype, found.images.shape) == (torch.uint8, (problem.classes * 2, *problem.shape))
    assert found.labels.tolist() == [k for k in range(problem.classes) for _ in range(2)]
    height, width = problem.shape[1:]
    side = -(-height // factor)
    for n, image in enumerate(found.images):
        for row in range(height):
            for column in range(width):
                tile = n * factor**2 + row // side * factor + column // side
                source = state.indices[tile]
                assert problem.train.labels[source] == found.labels[n]
                real = problem.train.images[source]
                top, left = (min(place % side * height // side, height - 1) for place in (row, column))
                assert image[:, row, column].tolist() == real[:, top, left].tolist()
    assert len(set(state.indices.tolist())) == len(state.indices)
    # Nothing of it is in the name of runs without.
    assert plain.config.kept() == {}
    assert plain.export(problem, plain.start(problem)).decode == "none"


@pytest.mark.parametrize("method", [Random, KCenter])
def test_a_mosaic_needs_so_many_images_and_pixels(tmp_path: Path, method: type[Random | KCenter]) -> None:
    problem = problem_for_checks(tmp_path, ipc=2, per_class=(60, 20, 40))
    for factor, least in ((4, "Choose an ipc of at most 1"), (8, "Choose a smaller factor")):
        with pytest.raises(DataError, match=f"ipc is 2 with {factor**2} real images in each.* 20 training .*{least}"):
            method(method.Config(factor=factor)).start(problem)
    with pytest.raises(DataError, match="images of 8 x 8 cannot hold 9 x 9"):
        method(method.Config(factor=9)).start(problem)


@given(n=st.integers(1, 3), factor=st.integers(1, 3), height=st.integers(3, 9), width=st.integers(3, 9))
def test_mosaics_of_one_image_are_that_image_and_keep_its_type(n: int, factor: int, height: int, width: int) -> None:
    images = torch.arange(n * factor**2 * height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    made = mosaics(images, factor)
    assert (made.shape, made.dtype) == ((n, 1, height, width), torch.float64)
    assert torch.equal(made[:, :, 0, 0], images[:: factor**2, :, 0, 0])
    if factor == 1:
        assert torch.equal(made, images)
