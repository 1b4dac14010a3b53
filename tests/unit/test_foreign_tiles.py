"""Sets that store several smaller images in each: said by a flag, a file or a name, and seen in the images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor

import ddbench
from ddbench import SyntheticSet
from ddbench import synthetic as sets
from ddbench.cli import root
from ddbench.data.sources import load
from ddbench.errors import ConfigError, DataError
from ddbench.foreign.diagnosis import Reference, diagnose
from ddbench.foreign.formats import Found, read
from ddbench.foreign.importing import terms_of
from ddbench.foreign.terms import Said
from ddbench.foreign.tiles import decoder_of
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.statistics import summarise
from ddbench.runs.record import read_record

TILES = "tiles(factor=2)"


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Any:
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def tiled() -> tuple[Tensor, Tensor]:
    """Two stored images of each digit, in each of which are four real ones, normalised."""
    train, info = (data := load("digits", Path("data"))).train, data.info
    reference = Reference.of(train, info)
    assert reference.labels is not None
    x = (reference.images - reference.mean) / reference.std
    rows = [F.interpolate(x[reference.labels == label][:8], size=(4, 4), mode="bilinear") for label in range(10)]
    stored = torch.cat(rows).unflatten(0, (20, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(20, 1, 8, 8)
    return stored, torch.arange(10).repeat_interleave(2)


def file_of(folder: Path, tiled: tuple[Tensor, Tensor], **beside: Any) -> Path:
    path = folder / "set.pt"
    torch.save({"images": tiled[0], "labels": tiled[1], **beside}, path)
    return path


def judged(path: Path, runs: Path, *arguments: str) -> Any:
    cheap = ["--protocol", "quick", "--backbone", "mlp", "--students", "1", "--device", "cpu"]
    return done("evaluate", path, "--dataset", "digits", "--pixels", "standard", "--runs", runs, *cheap, *arguments)


def test_a_flag_says_that_images_are_tiles_and_the_record_says_so_too(
    tiled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    path = file_of(tmp_path, tiled)
    plain, decoded = (judged(path, tmp_path / "runs", *flag) for flag in ([], ["--decode", "tiles:2"]))
    assert plain["synthetic"]["decode"] == "none"
    assert "decode" not in plain["imported"]["terms"]
    assert (decoded["synthetic"]["decode"], decoded["imported"]["terms"]["decode"]) == (TILES, TILES)
    assert decoded["imported"]["sources"]["decode"] == "flag"
    assert (decoded["synthetic"]["images"], decoded["run"]["ipc"]) == (20, 2)
    # Students of tiles see whole digits, as the set was made for.
    assert decoded["evaluations"][0]["accuracy"][0] > plain["evaluations"][0]["accuracy"][0] + 0.1
    # Two sets that a board must not average.
    labels = summarise(collect((tmp_path / "runs").glob("digits/*/*/*")))["label"].tolist()
    assert sorted(labels) == ["set", f"set [decode={TILES}]"]


def test_a_decoded_set_keeps_its_decoder_in_every_file(tiled: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    judged(file_of(tmp_path, tiled), tmp_path / "runs", "--decode", "tiles:2")
    (run,) = (tmp_path / "runs").glob("digits/*/*/*")
    for kind in ("pt", "npz", "safetensors"):
        place = tmp_path / f"out.{kind}"
        done("export", run, "--format", kind, "--out", place)
        loaded = ddbench.load(place)
        assert loaded.decode == TILES
        assert len(loaded) == 80
    assert read_record(run / "record.json").synthetic.decode == TILES


def test_an_export_says_the_decoder_of_a_set_that_was_judged_without(
    tiled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    sets.save(SyntheticSet(*tiled, pixels="standard"), tmp_path / "set.safetensors", {"dataset": "digits", "ipc": 2})
    place = tmp_path / "out.safetensors"
    done("export", tmp_path / "set.safetensors", "--decode", "tiles:2", "--out", place)
    assert sets.load(place).decode == TILES
    refused = command("export", place, "--decode", "none", "--out", tmp_path / "other.safetensors")
    assert "the set itself says that it is decoded by tiles(factor=2)" in refused.stderr
    refused = command("export", tmp_path / "set.safetensors", "--decode", "tiles:9", "--out", place)
    assert "images of 8 x 8 cannot hold 9 x 9 smaller ones" in refused.stderr


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, ("none", "")),
        ({"factor": 2}, (TILES, "file")),
        ({"factor": 1}, ("none", "")),
        ({"args": {"factor": 3, "ipc": 10}}, ("tiles(factor=3)", "file")),
        ({"decode": "tiles(factor=2)"}, (TILES, "file")),
        ({"decode": "jpeg", "config": {"factor": 2}}, (TILES, "file")),
        ({"factor": "two"}, ("none", "")),
    ],
)
def test_a_file_can_say_it(
    tiled: tuple[Tensor, Tensor], tmp_path: Path, beside: dict[str, Any], expected: tuple[str, str]
) -> None:
    (found,) = read(file_of(tmp_path, tiled, **beside))
    assert decoder_of(found, None) == expected
    assert decoder_of(found, "none")[0] == "none"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_mix_ipc10", (TILES, "guessed")),
        ("resnet10apin_grad_l1_factor3_mix", ("tiles(factor=3)", "guessed")),
        ("conv3in_factor1_random", ("none", "")),
        ("benefactor2", ("none", "")),
        ("factor20", ("none", "")),
    ],
)
def test_the_folder_of_idc_says_it(
    tiled: tuple[Tensor, Tensor], tmp_path: Path, folder: str, expected: tuple[str, str]
) -> None:
    (tmp_path / folder).mkdir()
    torch.save(list(tiled), tmp_path / folder / "data.pt")
    (found,) = read(tmp_path / folder / "data.pt")
    assert decoder_of(found, None) == expected


def test_a_guess_by_name_is_said_and_can_be_denied(tiled: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    place = tmp_path / "idc_factor2" / "data.pt"
    place.parent.mkdir()
    torch.save(list(tiled), place)
    shown = command("inspect", place, "--dataset", "digits")
    assert "decoded by tiles(factor=2), by the name of its file or folder" in shown.stdout
    assert "20 stored images are 80 for training" in shown.stdout
    arguments = ["evaluate", place, "--dataset", "digits", "--pixels", "standard", "--runs", tmp_path / "runs"]
    result = command(*arguments, "--protocol", "quick", "--backbone", "mlp", "--students", "1")
    assert (
        "Note: decoded by tiles(factor=2), by the name of its file or folder; --decode none denies it" in result.stderr
    )
    assert judged(place, tmp_path / "runs", "--decode", "none")["synthetic"]["decode"] == "none"


def test_a_set_of_ddbench_says_itself_what_it_is(tiled: tuple[Tensor, Tensor]) -> None:
    ours = SyntheticSet(*tiled, pixels="standard", decode=TILES)
    found = Found(*tiled, None, "safetensors", "0", (Path("factor3.safetensors"),), {"factor": 3}, ours)
    assert decoder_of(found, None) == (TILES, "")
    assert decoder_of(found, "tiles:2") == (TILES, "")
    with pytest.raises(ConfigError, match="the file itself says that it is decoded by tiles"):
        decoder_of(found, "none")
    plain = replace(found, ours=replace(ours, decode="none"))
    assert decoder_of(plain, "tiles:2") == (TILES, "flag")


@pytest.mark.parametrize("text", ["", "tiles", "tiles:0", "tiles:-1", "tiles:1000", "jpeg", "tiles:2:2"])
def test_an_unknown_decoder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no decoder is called"):
        Said(decode=text)


def test_bytes_are_not_rounded_when_they_are_enlarged(tiled: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    raw = (40 * tiled[0] + 100).round().clamp(0, 255).to(torch.uint8)
    torch.save([raw, tiled[1]], tmp_path / "set.pt")
    loaded = ddbench.load(tmp_path / "set.pt", dataset="digits", decode="tiles:2")
    assert len(loaded) == 80
    levels = loaded.tensors()[0] * loaded.space.std * 255  # type: ignore[attr-defined]
    assert float((levels - levels.round()).abs().max()) > 0.1


def natural(count: int, factor: int, noise: float, seed: int) -> Tensor:
    """Images like photographs, each of which holds F x F smaller ones, under the noise that learning leaves."""
    generator = torch.Generator().manual_seed(seed)
    pool = Reference.natural((3, 32, 32)).images
    pool = (pool - pool.mean()) / pool.std()

    def draw() -> Tensor:
        return pool[torch.randperm(len(pool), generator=generator)[:count]]

    size = -(-32 // factor)
    rows = [
        torch.cat([F.interpolate(draw(), size=size, mode="nearest") for _ in range(factor)], -1) for _ in range(factor)
    ]
    images = torch.cat(rows, -2)[..., :32, :32]
    return images + noise * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_seams_are_seen_and_images_without_have_none(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def codes(factor: int, seed: int, said: str | None = None) -> frozenset[str]:
        images = natural(100, factor, noise, seed)
        found = Found(images, torch.arange(100) % 10, None, "pt", "0", (Path("set.pt"),))
        return diagnose(found, pixels="standard", decode=said).codes

    # What images are held against is the same each time, and takes longer to be whitened than all the rest.
    natural_images = Reference.natural((3, 32, 32))
    monkeypatch.setattr(Reference, "natural", lambda shape: {(3, 32, 32): natural_images}[shape])
    for factor in (2, 3):
        assert sum("tiles" in codes(factor, seed) for seed in range(10)) >= 9
    assert not any("tiles" in codes(1, seed) for seed in range(20))
    # Who has said it is told nothing.
    assert "tiles" not in codes(2, 0, "none")


def test_a_seam_is_a_note_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddbench.foreign import tiles

    monkeypatch.setattr(tiles, "seen_in", lambda images, real: 2)
    found = Found(torch.randn(20, 1, 8, 8), torch.arange(20) % 10, None, "pt", "0", (Path("set.pt"),))
    terms, diagnosis = terms_of(found, Said(pixels="standard"), load("digits", tmp_path))
    assert [finding.flag for finding in diagnosis.findings if finding.code == "tiles"] == ["--decode tiles:2"]
    assert terms.decode == "none"


def test_labels_are_held_against_the_images_that_students_see(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    reference = Reference.of(data.train, data.info)
    assert reference.labels is not None
    x = (reference.images - reference.mean) / reference.std
    rows = [F.interpolate(x[reference.labels == label][:40], size=(4, 4), mode="bilinear") for label in range(10)]
    mosaics = torch.cat(rows).unflatten(0, (100, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(100, 1, 8, 8)
    found = Found(mosaics, torch.arange(10).repeat_interleave(10), None, "pt", "0", (tmp_path / "set.pt",))

    def codes(found: Found, decode: str) -> set[str]:
        return {finding.code for finding in diagnose(found, reference, data.info, "standard", decode).findings}

    assert "shuffled" in codes(found, "none")
    assert "shuffled" not in codes(found, "tiles:2")
    assert "shuffled" in codes(replace(found, labels=found.labels.roll(10)), "tiles:2")


def test_more_tiles_than_pixels_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "set.safetensors"
    sets.save(SyntheticSet(torch.randn(2, 1, 8, 8), torch.arange(2), decode="tiles(factor=99999)"), place)
    with pytest.raises(DataError, match="cannot hold 99999 x 99999 smaller ones"):
        len(ddbench.load(place))
