"""Stored images become training images."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F

from ddbench.decoders import canonical_decoder, factor_of, tiles
from ddbench.engine.decode import decode
from ddbench.errors import DataError
from ddbench.leaderboard import tracks


def tiles_by_hand(image: torch.Tensor, factor: int) -> list[torch.Tensor]:
    """Cut, row by row, each tile blown up to full size: the multi-formation of Kim et al., ICML 2022."""
    height, width = image.shape[-2:]
    h, w = -(-height // factor), -(-width // factor)
    padded = torch.full((image.shape[0], h * factor, w * factor), 0.5, dtype=image.dtype)
    padded[:, :height, :width] = image
    cut = []
    for i in range(factor):
        for j in range(factor):
            tile = padded[:, i * h : (i + 1) * h, j * w : (j + 1) * w]
            cut.append(F.interpolate(tile[None], size=(height, width), mode="bilinear", align_corners=False)[0])
    return cut


@pytest.mark.parametrize(("factor", "size"), [(1, (8, 8)), (2, (8, 8)), (2, (7, 9)), (3, (8, 8)), (3, (9, 6))])
def test_tiles_are_cut_one_by_one(factor: int, size: tuple[int, int]) -> None:
    images = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded, labels = decode(f"tiles(factor={factor})", images, torch.tensor([4, 5, 6]))
    expected = torch.stack([tile for image in images for tile in tiles_by_hand(image, factor)])
    assert torch.allclose(decoded, expected, atol=1e-12)
    assert labels.tolist() == [label for label in (4, 5, 6) for _ in range(factor**2)]


@pytest.mark.parametrize(("size", "factor", "fits"), [((8, 8), 5, 4), ((9, 8), 5, 3), ((8, 9), 7, 3), ((4, 4), 3, 2)])
def test_tiles_of_padding_alone_are_refused(size: tuple[int, int], factor: int, fits: int) -> None:
    """A student would have trained on grey images with the labels of real ones."""
    with pytest.raises(DataError, match=f"some would have no pixel. Choose a factor of {fits}, or a smaller one"):
        decode(f"tiles(factor={factor})", torch.zeros(1, 1, *size), torch.zeros(1))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (32, 32)])
def test_tiles_that_are_taken_have_pixels(size: tuple[int, int]) -> None:
    taken = 0
    for factor in range(1, min(size) + 1):
        with contextlib.suppress(DataError):
            images, _ = decode(f"tiles(factor={factor})", torch.zeros(1, 1, *size, dtype=torch.float64), torch.zeros(1))
            assert (images == 0).flatten(1).any(dim=1).all(), factor  # padding is 0.5
            taken += 1
    assert taken >= 3


def test_soft_labels_are_repeated_with_their_tiles() -> None:
    soft = torch.tensor([[0.1, 0.9], [0.7, 0.3]])
    _, labels = decode("tiles(factor=2)", torch.zeros(2, 1, 4, 4), soft)
    assert torch.equal(labels, soft.repeat_interleave(4, dim=0))


def test_none_changes_nothing() -> None:
    images, labels = torch.zeros(2, 1, 4, 4), torch.arange(2)
    assert decode("none", images, labels) == (images, labels)


def test_gradients_reach_the_stored_images() -> None:
    images = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: decode("tiles(factor=2)", x, torch.arange(2))[0], images)


@pytest.mark.parametrize("name", ["", "tiles", "tiles(factor=0)", "tiles(factor=-1)", "tiles(factor=2) ", "jpeg"])
def test_an_unknown_decoder_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="there is no decoder"):
        decode(name, torch.zeros(1, 1, 4, 4), torch.zeros(1))


@pytest.mark.parametrize(("name", "factor"), [("none", 1), ("tiles(factor=2)", 2), ("tiles(factor=12)", 12)])
def test_a_decoders_name_says_how_many_tiles(name: str, factor: int) -> None:
    assert factor_of(name) == factor
    assert tiles(factor) == canonical_decoder(name) == name


@pytest.mark.parametrize("name", ["tiles", "tiles(factor=0)", "tiles(factor=2)x", "upsample"])
def test_other_names_are_no_decoders(name: str) -> None:
    with pytest.raises(DataError, match="known are 'none' and"):
        factor_of(name)


@pytest.mark.parametrize("config", [{}, {"decode": "upsample"}, {"decode": 3}, {"decode": "none"}])
def test_a_row_without_tiles_stores_usual_images(config: dict[str, object]) -> None:
    assert tracks.factor_of({"config": json.dumps(config)}) == 1
    assert tracks.factor_of({"config": json.dumps(config | {"decode": "tiles(factor=2)"})}) == 2
