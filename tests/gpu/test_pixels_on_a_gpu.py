"""Whitenings that are fitted on a GPU."""

import pytest
import torch

from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["zca", "kip-zca", "rat-zca", "frepo-zca", "rfad-zca"])
def test_a_whitening_is_the_same_on_a_gpu(name: str) -> None:
    data = toy(3, (3, 16, 16), 400)
    theirs, ours = (fit_pixels(name, data.train, data.info, device=device) for device in ("cpu", "cuda"))
    assert ours.fingerprint == theirs.fingerprint
    images = data.train.images[::40]
    expected = theirs.forward(images)
    assert (ours.forward(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    back = ours.back(expected)
    assert back is None or torch.allclose(back, images / 255, atol=1e-5)
