"""A set that has test images in it is told from one that has training images."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import ddbench
from ddbench.cli import root as program
from ddbench.data.dataset import Dataset, TestData
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import DatasetTensors
from ddbench.data.toy import toy
from ddbench.foreign.leaks import count_test_images

DATA = toy()
TRAIN, TEST = DATA.train.images, DATA.test.load().images


@pytest.mark.parametrize("pixels", ["standard", "zca(eps=0.1)"])
def test_images_are_found_in_the_space_of_the_set(pixels: str) -> None:
    space = fit_pixels(pixels, DATA.train, DATA.info)
    mixed = torch.cat([TRAIN[:5], TEST[:3]])
    assert count_test_images(space.forward(mixed), DATA, [space]) == 3
    assert count_test_images(space.forward(TRAIN), DATA, [space]) == 0


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.float(), lambda x: x / 255])
def test_images_are_found_as_bytes_and_as_floats(form: type[Tensor]) -> None:
    assert count_test_images(form(TEST[:4]), DATA) == 4
    assert count_test_images(form(TRAIN[:4]), DATA) == 0


def test_learned_images_and_images_of_another_size_are_none() -> None:
    space = fit_pixels("standard", DATA.train, DATA.info)
    assert count_test_images(space.forward(TEST[:4]) + 0.3, DATA) == 0
    assert count_test_images(TEST[:4, :, :4], DATA) == 0
    assert count_test_images(torch.full((2, 1, 8, 8), float("nan")), DATA) == 0


def test_an_image_that_is_in_both_parts_counts_for_none() -> None:
    both = DatasetTensors(TRAIN.clone(), DATA.train.labels, DATA.train.classes)
    data = Dataset(DATA.info, DATA.train, TestData(lambda: both), DATA.manifest)
    assert count_test_images(TRAIN[:4], data) == 0


@pytest.fixture
def stolen(tmp_path: Path) -> Path:
    """Ten of the digits' test images, one a class."""
    from ddbench.data.sources import load

    test = load("digits", tmp_path).test.load()
    np.savez(tmp_path / "stolen.npz", images=test.images[test.offsets].numpy(), labels=np.arange(10))
    return tmp_path / "stolen.npz"


def test_inspect_and_evaluate_say_it(stolen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = "10 of 10 images are test images of digits, byte for byte"
    shown = CliRunner().invoke(program, ["inspect", str(stolen), "--dataset", "digits"])
    assert f"! {said}" in shown.stdout
    arguments = ["evaluate", str(stolen), "--dataset", "Digits", "--protocol", "quick", "--judge", "mlp"]
    with caplog.at_level(logging.WARNING):
        done = CliRunner().invoke(
            program, [*arguments, "--students", "1", "--quiet", "--device", "cpu", "--runs", str(tmp_path / "runs")]
        )
    assert done.exit_code == 0, done.output
    assert done.stderr.count(said) == 1
    assert said not in caplog.text


def test_a_call_from_python_hears_it_once(stolen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tiny.toml").write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 2\n')
    with caplog.at_level(logging.WARNING):
        ddbench.evaluate(
            stolen, dataset="digits", protocol=str(tmp_path / "tiny.toml"), device="cpu", runs=tmp_path / "runs"
        )
    assert caplog.text.count("test images of digits, byte for byte") == 1
