"""What a method is given, and that nothing of it leaks from the held-out part."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddbench import Problem, Rng
from ddbench.data.pixels import fit_pixels
from ddbench.engine.precision import Precision
from ddbench.errors import DataError
from ddbench.initial import INITIALS, noise_images, real_images, real_indices
from ddbench.testing.contract import problem_for_checks


def rows_of(problem: Problem) -> set[bytes]:
    return {image.numpy().tobytes() for image in problem.train.images}


def test_classes_and_shape_are_those_of_the_images(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, shape=(1, 8, 8))
    assert (problem.classes, problem.shape) == (3, (1, 8, 8))
    assert problem.class_labels().tolist() == [0, 0, 1, 1, 2, 2]


def test_by_class_undoes_class_by_class(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=4)
    images = torch.arange(12.0)[:, None, None, None].expand(12, *problem.shape)
    assert problem.by_class(images)[:, :, 0, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_real_images_are_in_the_pixel_space(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    everything = problem.real.take(torch.arange(len(problem.train)))
    assert everything.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (everything.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_the_identity_names_data_pixels_backbone_and_precision(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    others = [
        problem_for_checks(tmp_path, per_class=39),
        replace(problem, pixels=fit_pixels("zca", problem.train, problem.info)),
        replace(problem, precision=Precision("tf32")),
        replace(problem, backbone=problem_for_checks(tmp_path, shape=(1, 8, 8)).backbone),
    ]
    differing = [{name for name in problem.identity if problem.identity[name] != o.identity[name]} for o in others]
    # The pixel statistics are measured on the images, so that other images are another pixel space too.
    assert differing == [{"dataset", "pixels"}, {"pixels"}, {"precision"}, set()]
    assert problem.identity == problem_for_checks(tmp_path, seed=3, ipc=9).identity


def test_the_held_out_part_is_stratified_and_taken_out(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, per_class=(40, 20, 10))
    rest, part = problem.heldout(0.1)
    assert part.counts.tolist() == [4, 2, 1]
    assert rest.train.counts.tolist() == [36, 18, 9]
    held = {image.numpy().tobytes() for image in part.data.images}
    assert not held & rows_of(rest)
    assert held | rows_of(rest) == rows_of(problem)


def test_the_held_out_part_is_the_same_for_every_run(tmp_path: Path) -> None:
    first, second = (problem_for_checks(tmp_path, seed=seed, ipc=seed + 1).heldout(0.1)[1] for seed in (0, 1))
    assert torch.equal(first.data.images, second.data.images)


def test_a_split_is_made_once(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    assert problem.heldout(0.1)[0] is problem.heldout(0.1)[0]
    assert problem.heldout(0.2)[0] is not problem.heldout(0.1)[0]


def test_without_the_held_out_part_it_is_another_problem_to_artefacts(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    assert problem.heldout(0.1)[0].identity["dataset"] != problem.identity["dataset"]


def test_a_whitening_never_sees_the_held_out_part(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    rest, part = problem.heldout(0.25)
    assert rest.pixels.name == "zca(eps=0.1, heldout=0.25)"
    assert rest.pixels.fingerprint != problem.pixels.fingerprint
    alone = fit_pixels("zca", rest.train, problem.info)
    rows = torch.arange(len(part))
    assert torch.equal(part.take(rows), alone.forward(part.data.images))
    # A judge who has only the name and all training images finds the same whitening.
    again = fit_pixels(rest.pixels.name, problem.train, problem.info)
    assert again.fingerprint == rest.pixels.fingerprint


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_fraction_is_between_nothing_and_everything(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match="held-out fraction is"):
        problem_for_checks(tmp_path).heldout(fraction)


def test_real_initial_images_are_distinct_and_of_their_class(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=5, per_class=(5, 40, 6))
    rows = real_indices(problem, Rng(3))
    assert rows.shape == (3, 5)
    assert len(rows.unique()) == 15
    assert torch.equal(problem.train.labels[rows], torch.arange(3)[:, None].expand(3, 5))
    assert torch.equal(real_images(problem, Rng(3)), problem.real.take(rows.flatten()))


def test_an_ipc_larger_than_a_class_is_refused_by_name(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=6, per_class=(40, 5, 40))
    with pytest.raises(DataError, match=r"ipc is 6, and class 'class 1' of toy has 5 .* Choose an ipc of at most 5"):
        real_images(problem, Rng(0))


def test_noise_is_standard_normal_and_follows_its_generator(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=50)
    noise = noise_images(problem, Rng(3))
    assert noise.shape == (150, 3, 8, 8)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(noise, noise_images(problem, Rng(3)))
    assert not torch.equal(noise, noise_images(problem, Rng(4)))


def test_every_initial_fits_the_problem(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=2)
    assert {name: tuple(make(problem, Rng(0)).shape) for name, make in INITIALS.items()} == {
        "real": (6, 3, 8, 8),
        "noise": (6, 3, 8, 8),
    }
