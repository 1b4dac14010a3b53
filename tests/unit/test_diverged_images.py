"""Images that a step size has thrown out of the range of images are told of: once, and no others."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import ddbench
from ddbench import Method, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet
from ddbench.cli import root
from ddbench.data.pixels import fit_pixels
from ddbench.data.scale import FAR, left_range, real_scale, scale_of
from ddbench.data.sources import load
from ddbench.foreign.diagnosis import Reference, diagnose
from ddbench.foreign.formats import Found
from ddbench.runs.record import read_record

# A few steps of each method; what starts from noise does so, where the pixels are farthest from real ones.
HEALTHY: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 30, "initial": "noise"},
    "dc": {"iterations": 4, "initial": "noise"},
    "dsa": {"iterations": 4},
    "cafe": {"iterations": 4, "initial": "noise"},
    "dd": {"iterations": 20, "initial": "noise"},
    "kip": {"iterations": 20, "initial": "noise", "kernel": "fc1"},
    "mtt": {"iterations": 8, "experts": 2, "start_epochs": 2, "expert_span": 1},
    "ls": {"kernel": "fc1"},
}
ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "leaderboards" / "records"
MEASURED = ROOT / "docs" / "measured"
CHEAP: dict[str, Any] = {"protocol": "quick", "judge": "mlp", "students": 1, "device": "cpu"}


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


@pytest.mark.parametrize("method", HEALTHY)
def test_healthy_sets_of_every_method_are_in_range(method: str, tmp_path: Path) -> None:
    run = ddbench.run(method, "digits", ipc=1, options=HEALTHY[method], **CHEAP, runs=tmp_path)
    scale = run.record.synthetic.scale
    assert scale is None or 0.1 < scale < FAR / 6
    assert (scale is None) is (run.set.stored == "uint8")


@pytest.mark.parametrize("pixels", ["standard", "zca", "kip-zca", "rat-zca", "frepo-zca"])
def test_real_images_and_noise_are_in_range_of_every_pixel_space(pixels: str, tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    space = fit_pixels(pixels, data.train, data.info)
    real = real_scale(data.train, space)
    images = space.forward(data.train.images[:50])
    assert scale_of(images, real) < 1.5
    assert scale_of(torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)), real) < 1.5
    assert left_range(scale_of(3 * images, real)) == ""
    assert "more than 20 times" in left_range(scale_of(40 * (images + 1), real))


def test_sets_that_were_measured_are_in_range() -> None:
    """The largest, of CAFE with a weight of 1 for its discrimination loss, trains the best students of its size."""
    documents = [json.loads(path.read_text()) for path in RECORDS.rglob("*.json")]
    scales = [document["synthetic"]["scale"] for document in documents if document["synthetic"].get("scale")]
    scales += [run["scale"] for run in json.loads((MEASURED / "cafe-factors.json").read_text())["runs"]]
    assert max(scales) > 10
    assert all(left_range(scale) == "" for scale in scales)


def test_a_run_says_it_once_and_its_end_too(tmp_path: Path) -> None:
    asking = ["run", "--method", "mtt", "--dataset", "digits", "--ipc", "1", "--device", "cpu", "--judge", "mlp"]
    options = ["experts=1", "start_epochs=1", "expert_span=1", "iterations=6", "lr_images=1e6"]
    settings = [part for option in options for part in ("--set", option)]
    result = command(*asking, *settings, "--students", "1", "--runs", tmp_path)
    assert result.stderr.count("the images have diverged") == 1
    assert "At step 1 the images have diverged" in result.stderr.replace("\n", " ")
    assert "--set lr_images=..." in result.stderr
    assert result.stderr.count("The images have diverged: their pixels are") == 1
    (record,) = tmp_path.glob("digits/*/*/*/record.json")
    scale = read_record(record).synthetic.scale
    assert scale is not None
    assert scale > 100
    # Nobody who comes later is left without a word.
    assert "! the images have diverged" in command("inspect", record.parent).stdout
    again = command(*asking, *settings, "--students", "1", "--quiet", "--runs", tmp_path)
    assert again.stderr.count("The images have diverged: their pixels are") == 1


@pytest.mark.parametrize("factor", [30.0, 7e6])
def test_inspect_finds_it_in_sets_of_all_kinds(factor: float, tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    reference = Reference.of(data.train, data.info)
    real = (reference.images[::20] - reference.mean) / reference.std
    found = Found(real, torch.arange(len(real)) % 10, None, "pt", "0", (Path("set.pt"),))
    far = replace(found, images=factor * real)
    assert "diverged" in diagnose(far, reference, data.info, "standard").codes
    assert "diverged" in diagnose(far, None, None, "zca").codes
    ours = SyntheticSet(far.images, torch.arange(len(real)) % 10, pixels="standard")
    assert "diverged" in diagnose(replace(far, ours=ours), None, None).codes
    assert "diverged" not in diagnose(found, reference, data.info, "standard").codes
    # Bytes and their scale are no divergence.
    assert "diverged" not in diagnose(replace(found, images=255 * reference.images[::20]), reference, data.info).codes


@dataclass
class Grown(State):
    """Shapes: images [K * ipc, C, H, W]."""

    images: Tensor


class Growing(Method[Grown]):
    """Images that double at every step."""

    name = "growing"
    info = MethodInfo(title="Growing", learns=("images",), advice="Do less.")

    def start(self, problem: Problem) -> Grown:
        return Grown(torch.ones(problem.ipc * problem.classes, *problem.shape))

    def step(self, problem: Problem, state: Grown, rng: Rng) -> Metrics:
        state.images *= 2
        return {"loss": state.images.mean()}

    def total_steps(self, problem: Problem) -> int:
        return 12

    def export(self, problem: Problem, state: Grown) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), problem.class_labels())


def test_a_method_of_ones_own_is_watched_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ddbench.run(Growing, "digits", ipc=1, **CHEAP, runs=tmp_path, progress=True)
    said = " ".join(capsys.readouterr().err.split())
    # 2 ** 6, at the last snapshot that the run takes on its way; those before are 1, 1 and 8.
    assert said.count("the images have diverged") == 1
    assert re.search(r"At step 6 the images have diverged: their pixels are 6\d(\.\d)? times", said)
    assert "Do less." in said
    assert re.search(r"the images have diverged: their pixels are (3\.9|4)[.\d]*e\+03 times", repr(run))
