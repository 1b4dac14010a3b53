"""Names, statistics, caching and refusals of pixel spaces; the formulas are in tests/parity."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddbench.data import pixels
from ddbench.data.catalogue import CATALOGUE, DatasetInfo, info
from ddbench.data.pixels import canonical_name, fit_pixels
from ddbench.data.tensors import DatasetTensors
from ddbench.data.toy import toy
from ddbench.errors import ConfigError

USER = DatasetInfo("mine", "mine", (3, 4, 4), 2, "user")


def colour(per_class: int = 30) -> DatasetTensors:
    return toy(classes=2, shape=(3, 4, 4), per_class=per_class).train


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("standard", "standard"),
        ("standard(stats=standard)", "standard"),
        ("Standard( stats = DD )", "standard(stats=dd)"),
        ("zca", "zca(eps=0.1)"),
        ("ZCA(eps=.1)", "zca(eps=0.1)"),
        ("zca(eps=1e-5)", "zca(eps=1e-05)"),
        ("zca(eps=0.123456789)", "zca(eps=0.123456789)"),
        ("zca()", "zca(eps=0.1)"),
        ("kip_zca", "kip-zca(reg=0.1)"),
        ("kip-zca(reg=1)", "kip-zca(reg=1)"),
        ("zca(heldout=0.10, eps=0.2)", "zca(eps=0.2, heldout=0.1)"),
    ],
)
def test_every_spelling_has_one_name(text: str, name: str) -> None:
    assert canonical_name(text) == name
    assert canonical_name(name) == name


@given(eps=st.floats(1e-9, 1e3))
@settings(max_examples=30, deadline=None)
def test_a_name_keeps_the_number_it_was_given(eps: float) -> None:
    name = canonical_name(f"zca(eps={eps!r})")
    assert float(name.removeprefix("zca(eps=").removesuffix(")")) == eps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zcaa", r"no pixel space is called 'zcaa'. Did you mean 'zca'\?"),
        ("", "no pixel space"),
        ("zca(eps=0.1", "no pixel space"),
        ("zca(reg=0.1)", "not an option of 'zca'; it has eps and heldout"),
        ("zca(eps=0.1, eps=0.2)", "not an option"),
        ("zca(eps)", "not an option"),
        ("zca(eps=-1)", "between 0 and inf"),
        ("zca(eps=nan)", "between 0 and inf"),
        ("zca(eps=inf)", "between 0 and inf"),
        ("zca(eps=much)", "between 0 and inf"),
        ("zca(heldout=1)", "between 0 and 1"),
        ("standard(heldout=0.1)", "not an option of 'standard'"),
    ],
)
def test_a_name_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        canonical_name(text)


def test_the_fields_own_statistics_are_the_default() -> None:
    data = DatasetTensors(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    space = fit_pixels("standard", data, info("cifar10"))
    assert torch.allclose(
        space.forward(data.images)[0, :, 0, 0] * torch.tensor([0.2023, 0.1994, 0.2010]),
        -torch.tensor([0.4914, 0.4822, 0.4465]),
    )
    dd = fit_pixels("standard(stats=dd)", data, info("cifar10"))
    assert torch.allclose(
        dd.forward(data.images)[0, :, 0, 0] * torch.tensor([0.247, 0.243, 0.261]),
        -torch.tensor([0.4914, 0.4822, 0.4465]),
    )
    assert dd.fingerprint != space.fingerprint
    assert dd.name == "standard(stats=dd)"


def test_mtt_uses_the_statistics_of_cifar10_on_cifar100() -> None:
    data = DatasetTensors(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([0]), ("a",))
    mtt = fit_pixels("standard(stats=mtt)", data, info("cifar100"))
    assert mtt.fingerprint == fit_pixels("standard", data, info("cifar10")).fingerprint
    assert mtt.fingerprint != fit_pixels("standard", data, info("cifar100")).fingerprint


def test_statistics_that_a_dataset_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="mine has no pixel statistics called 'dd'; it has pixel, standard"):
        fit_pixels("standard(stats=dd)", colour(), USER)


def test_statistics_of_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 channels; the images have 3"):
        fit_pixels("standard", colour(), info("mnist"))


@pytest.mark.parametrize("name", ["standard", "standard(stats=pixel)"])
def test_a_users_set_is_measured(name: str) -> None:
    data = colour()
    x = fit_pixels(name, data, USER).forward(data.images)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_a_channel_of_one_colour_is_only_centred() -> None:
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    data = DatasetTensors(images, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    space = fit_pixels("standard", data, USER)
    assert space.forward(images).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["standard", "zca", "zca(eps=1e-3)"])
def test_back_undoes_forward_and_does_not_clip(name: str) -> None:
    data = colour()
    space = fit_pixels(name, data, USER)
    unit = data.images[:5].float() / 255
    back = space.back(space.forward(data.images[:5]))
    assert back is not None
    assert torch.allclose(back, unit, atol=1e-5)
    outside = space.back(space.forward(2 * unit.unflatten(0, (5, 1))))
    assert outside is not None
    assert torch.allclose(outside, 2 * unit.unflatten(0, (5, 1)), atol=1e-5)


@pytest.mark.parametrize("name", ["standard", "zca", "kip-zca"])
def test_bytes_and_unit_floats_mean_the_same(name: str) -> None:
    data = colour()
    space = fit_pixels(name, data, USER)
    floats = (data.images[:7] / 255).requires_grad_()
    x = space.forward(floats)
    assert x.dtype == torch.float32
    assert x.shape == floats.shape
    assert torch.allclose(x, space.forward(data.images[:7]), atol=2e-5)
    assert torch.equal(floats.detach(), data.images[:7] / 255)
    x.square().sum().backward()
    assert floats.grad is not None
    assert floats.grad.abs().sum() > 0


def test_only_kip_has_no_way_back_and_only_standard_is_cheap() -> None:
    spaces = {name: fit_pixels(name, colour(), USER) for name in ("standard", "zca", "kip-zca")}
    assert {name: space.cheap for name, space in spaces.items()} == {"standard": True, "zca": False, "kip-zca": False}
    assert spaces["kip-zca"].back(torch.zeros(1, 3, 4, 4)) is None
    moved = spaces["zca"].to("cpu")
    assert (moved.name, moved.fingerprint) == (spaces["zca"].name, spaces["zca"].fingerprint)


def test_an_image_of_one_colour_survives_kip_whitening() -> None:
    space = fit_pixels("kip-zca", colour(), USER)
    assert torch.isfinite(space.forward(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))).all()


def test_a_whitening_is_fitted_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = colour()
    fitted = fit_pixels("zca", data, USER, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(pixels, "_gram", None)
    again = fit_pixels("ZCA(eps=0.10)", data, USER, tmp_path)
    assert torch.equal(again.forward(data.images), fitted.forward(data.images))
    assert again.fingerprint == fitted.fingerprint


def test_a_damaged_fit_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = colour()
    fitted = fit_pixels("kip-zca", data, USER, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = fit_pixels("kip-zca", data, USER, tmp_path)
    assert torch.equal(again.forward(data.images), fitted.forward(data.images))
    assert "is damaged" in caplog.text
    assert path.stat().st_size > 100
    held = load_file(path)
    del held["weight"]
    save_file(held, path)
    again = fit_pixels("kip-zca", data, USER, tmp_path)
    assert torch.equal(again.forward(data.images), fitted.forward(data.images))


def test_other_data_and_other_strength_are_other_spaces() -> None:
    fingerprints = {
        fit_pixels(name, data, USER).fingerprint
        for data in (colour(), colour(29))
        for name in ("zca", "zca(eps=0.2)", "kip-zca")
    }
    assert len(fingerprints) == 6


def test_a_held_out_part_is_left_out_by_name_or_by_hand(tmp_path: Path) -> None:
    data = colour()
    rest, _ = data.split(1 / 3)
    by_hand = fit_pixels("zca", rest, USER, tmp_path, heldout=1 / 3)
    by_name = fit_pixels(by_hand.name, data, USER)
    assert by_hand.name == by_name.name == f"zca(eps=0.1, heldout={1 / 3!r})"
    assert by_hand.base == "zca(eps=0.1)"
    assert by_hand.fingerprint == by_name.fingerprint != fit_pixels("zca", data, USER).fingerprint
    assert torch.equal(by_hand.forward(data.images), by_name.forward(data.images))


def test_large_images_are_not_whitened() -> None:
    data = DatasetTensors(torch.zeros(2, 3, 128, 128, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ConfigError, match="49152 x 49152"):
        fit_pixels("zca", data, info("imagenette"))


def test_every_dataset_of_the_catalogue_has_standard_statistics_for_its_channels() -> None:
    for entry in CATALOGUE.values():
        assert "standard" in entry.statistics
        for mean, std in entry.statistics.values():
            assert len(mean) == len(std) == entry.shape[0]
