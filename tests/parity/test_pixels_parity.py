"""Whitenings against loops written from protocol.md section 7 and from the KIP card, and against kornia."""

import numpy as np
import pytest
import torch

from ddbench.data.catalogue import DatasetInfo
from ddbench.data.pixels import _fit_zca, _fit_zca_on_a_device, channel_statistics, fit_pixels
from ddbench.data.tensors import DatasetTensors
from ddbench.data.toy import toy

INFO = DatasetInfo("mine", "mine", (3, 4, 4), 2, "user")


def make(per_class: int) -> DatasetTensors:
    return toy(classes=2, shape=(3, 4, 4), per_class=per_class, seed=7).train


def mtt_zca_by_hand(images: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Whitened rows and the way back, image by image."""
    x = images.reshape(len(images), -1) / 255
    n, d = x.shape
    mu = sum(x) / n
    sigma = np.zeros((d, d))
    for row in x:
        sigma += np.outer(row - mu, row - mu) / (n - 1)
    u, s, _ = np.linalg.svd(sigma)
    w = u @ np.diag((s + eps) ** -0.5) @ u.T
    white = np.stack([(row - mu) @ w for row in x])
    back = np.stack([row @ u @ np.diag((s + eps) ** 0.5) @ u.T + mu for row in white])
    return white, back


def kip_zca_by_hand(images: np.ndarray, reg: float) -> np.ndarray:
    """Standardise by channel, centre and scale every image, whiten with the relative regulariser and the rank guard."""
    n, channels = images.shape[:2]
    x = np.empty(images.shape)
    for c in range(channels):
        level = images[:, c].astype(float)
        x[:, c] = (level - level.mean()) / level.std()
    rows = []
    for row in x.reshape(n, -1):
        centred = row - row.mean()
        rows.append(centred / np.sqrt(centred @ centred))
    d = len(rows[0])
    sigma = sum(np.outer(row, row) for row in rows) / n
    u, s, _ = np.linalg.svd(sigma + reg * np.trace(sigma) / d * np.eye(d))
    s[n:] = 1
    return np.stack(rows) @ u @ np.diag(s**-0.5) @ u.T


def relative_zca_by_hand(images: np.ndarray, reg: float, *, standardise: bool, unit: bool, centre: bool) -> np.ndarray:
    """The other whitenings of the field, one line a choice; the covariance has 1 / N in all of them."""
    x = images.astype(float)
    if standardise:
        for c in range(x.shape[1]):
            x[:, c] = (x[:, c] - images[:, c].mean()) / images[:, c].std()
    rows = x.reshape(len(x), -1)
    if unit:
        rows = np.stack([(row - row.mean()) / np.linalg.norm(row - row.mean()) for row in rows])
    if centre:
        rows = rows - sum(rows) / len(rows)
    sigma = sum(np.outer(row, row) for row in rows) / len(rows)
    values, vectors = np.linalg.eigh(sigma + reg * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    return rows @ vectors @ np.diag(values**-0.5) @ vectors.T


@pytest.mark.parametrize("reg", [0.1, 1e-3])
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("rat-zca", {"standardise": False, "unit": True, "centre": False}),
        ("frepo-zca", {"standardise": True, "unit": False, "centre": True}),
        ("rfad-zca", {"standardise": True, "unit": False, "centre": False}),
    ],
)
def test_the_whitenings_of_other_papers_are_their_formulas(name: str, choices: dict[str, bool], reg: float) -> None:
    data = make(100)
    space = fit_pixels(f"{name}(reg={reg})", data, INFO)
    ours = space.forward(data.images)
    assert np.allclose(ours.flatten(1), relative_zca_by_hand(data.images.numpy(), reg, **choices), atol=2e-5)
    back = space.back(ours)
    assert (back is None) == choices["unit"]
    assert back is None or torch.allclose(back, data.images / 255, atol=2e-5)


@pytest.mark.parametrize("eps", [0.1, 1e-3])
@pytest.mark.parametrize("per_class", [100, 12])
def test_zca_is_the_formula(eps: float, per_class: int) -> None:
    data = make(per_class)
    space = fit_pixels(f"zca(eps={eps})", data, INFO)
    white, back = mtt_zca_by_hand(data.images.numpy(), eps)
    ours = space.forward(data.images)
    assert np.allclose(ours.flatten(1), white, atol=2e-5)
    restored = space.back(ours)
    assert restored is not None
    assert np.allclose(restored.flatten(1), back, atol=2e-6)


@pytest.mark.parametrize("per_class", [100, 12])
def test_zca_by_eigenvectors_is_that_of_kornia(per_class: int) -> None:
    """What a GPU fits, which is another decomposition; also with fewer images than values in one."""
    data = make(per_class)
    theirs, ours = (fit(data, 0.1, torch.device("cpu")) for fit in (_fit_zca, _fit_zca_on_a_device))
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=2e-6), name


def test_zca_is_that_of_kornia() -> None:
    from kornia.enhance import ZCAWhitening

    data = make(100)
    unit = data.images.double() / 255
    theirs = ZCAWhitening(eps=0.1, unbiased=True).fit(unit)
    ours = fit_pixels("zca", data, INFO).forward(data.images)
    assert torch.allclose(ours.double(), theirs(unit), atol=2e-6)


@pytest.mark.parametrize("per_class", [100, 12])
def test_kip_zca_is_the_formula_also_with_fewer_images_than_pixels(per_class: int) -> None:
    data = make(per_class)
    ours = fit_pixels("kip-zca(reg=0.1)", data, INFO).forward(data.images)
    assert np.allclose(ours.flatten(1), kip_zca_by_hand(data.images.numpy(), 0.1), atol=1e-5)


def test_kip_zca_replaces_only_the_eigenvalues_beyond_the_number_of_images() -> None:
    data = make(12)
    unseen = toy(classes=2, shape=(3, 4, 4), per_class=5, seed=8).train.images
    rows = unseen.double().numpy()
    mean, std = (value.numpy()[:, None, None] for value in channel_statistics(data))
    rows = ((rows / 255 - mean) / std).reshape(len(rows), -1)
    rows -= rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fitted = kip_rows(data.images.numpy())
    _, _, directions = np.linalg.svd(fitted)
    outside = directions[len(fitted) :]  # no training image has any part of these
    ours = fit_pixels("kip-zca", data, INFO).forward(unseen).flatten(1).double().numpy()
    assert np.allclose(ours @ outside.T, rows @ outside.T, atol=1e-5)


def kip_rows(images: np.ndarray) -> np.ndarray:
    x = images.astype(float)
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    x = x.reshape(len(x), -1)
    x -= x.mean(1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_measured_statistics_are_those_of_all_pixels() -> None:
    data = make(50)
    mean, std = channel_statistics(data)
    x = data.images.numpy() / 255
    for c in range(3):
        assert np.isclose(mean[c], x[:, c].mean(), rtol=1e-12)
        assert np.isclose(std[c], x[:, c].std(), rtol=1e-12)


def test_standard_is_the_formula() -> None:
    data = make(20)
    info = DatasetInfo(
        "mine", "mine", (3, 4, 4), 2, "user", statistics={"standard": ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))}
    )
    ours = fit_pixels("standard", data, info).forward(data.images).numpy()
    for n, c, i, j in np.ndindex(*data.images.shape):
        expected = (data.images[n, c, i, j].item() / 255 - info.statistics["standard"][0][c]) / info.statistics[
            "standard"
        ][1][c]
        assert abs(ours[n, c, i, j] - expected) < 1e-6
