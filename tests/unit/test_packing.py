"""Files whose images take a half or a quarter of the bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ddbench
from ddbench import Recipe, SyntheticSet
from ddbench.errors import DataError
from ddbench.synthetic import FORMAT, PACKED, Kept, load, pack, read_header, save, unpack

IMAGES = 3 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SET = SyntheticSet(IMAGES, torch.full((6, 3), 1 / 3), Recipe(lr=torch.tensor(0.0123)), "standard", "probability")


@pytest.mark.parametrize(("kept", "bytes_each"), [("float32", 4), ("float16", 2), ("uint8", 1)])
def test_all_but_the_images_comes_back_as_it_was(tmp_path: Path, kept: Kept, bytes_each: int) -> None:
    path = tmp_path / "set.safetensors"
    save(SET, path, {"dataset": "digits"}, kept=kept)
    again = load(path)
    assert again.images.dtype == torch.float32
    assert torch.equal(again.labels, SET.labels)
    assert again.recipe.lr is not None
    assert float(again.recipe.lr) == float(torch.tensor(0.0123))
    assert (again.pixels, again.label_kind) == ("standard", "probability")
    assert read_header(path)["format"] == (FORMAT if kept == "float32" else PACKED)
    assert load_file(path)["images"].nbytes == bytes_each * IMAGES.numel()
    # The same door for files from anywhere, such as `ddbench inspect` and `evaluate`.
    assert torch.equal(ddbench.load(path).images, again.images)


def test_float16_rounds_to_eleven_binary_digits() -> None:
    error = (unpack(pack(IMAGES, "float16")) - IMAGES).abs()
    assert bool((error <= IMAGES.abs() * 2**-11).all())
    assert bool((error > 0).any())


def test_uint8_rounds_to_half_a_step_of_each_channel() -> None:
    images = IMAGES * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    packed = pack(images, "uint8")
    step = (images.amax((0, 2, 3)) - images.amin((0, 2, 3))) / 255
    assert torch.allclose(packed["images.step"], step)
    error = (unpack(packed) - images).abs().amax((0, 2, 3))
    assert bool((error <= 0.501 * step).all())
    assert bool((error > 0.4 * step).all())


def test_a_channel_of_one_value_keeps_it() -> None:
    images = torch.full((2, 1, 4, 4), -1.5)
    assert torch.equal(unpack(pack(images, "uint8")), images)


def test_pixels_of_real_images_stay_as_they_are(tmp_path: Path) -> None:
    real = SyntheticSet((IMAGES > 0).to(torch.uint8), LABELS)
    save(real, tmp_path / "packed", kept="float16")
    save(real, tmp_path / "plain")
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize(("value", "why"), [(1e5, "reach 100000, and float16 ends at 65504"), (float("nan"), "finite")])
def test_what_cannot_be_packed_is_not_written(tmp_path: Path, value: float, why: str) -> None:
    images = IMAGES.clone()
    images[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=why):
        save(SyntheticSet(images, LABELS), tmp_path / "set", kept="float16")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"images.low": None},
        {"images.step": torch.ones(2)},
        {"images": torch.zeros(6, 3, 8, 8)},
        {"images": torch.zeros(6, dtype=torch.uint8)},
    ],
)
def test_a_packed_file_with_other_parts_is_called_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    from safetensors import safe_open

    path = tmp_path / "set.safetensors"
    save(SET, path, kept="uint8")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: value for name, value in {**load_file(path), **change}.items() if value is not None}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DataError, match="damaged"):
        load(path)
