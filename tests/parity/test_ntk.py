"""Infinite-width kernels: published values, a recursion pixel by pixel, derivatives, short cuts against long ways."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddbench.errors import ConfigError
from ddbench.ntk import blocks as ntk_blocks
from ddbench.ntk import kernel as kernels
from ddbench.ntk.architectures import architecture, resolutions
from ddbench.ntk.blocks import TorchBlocks
from ddbench.ntk.gram import Gram, gram
from ddbench.ntk.kernel import kernel, variances
from ddbench.ntk.layouts import Band, Full, all_is_less, layouts_of

CPU = torch.device("cpu")

# From neural-tangents 0.6.5 in float64: entries 00 01 02 11 12 22 for the images below.
GOLDEN = {
    "fc1": (
        (1.019370291, 0.819129803, 0.426801076, 1.020339595, 0.819969757, 1.020745149),
        (2.028740582, 1.422039942, 0.527255031, 2.030679190, 1.423720888, 2.031490297),
    ),
    "fc3": (
        (1.039370291, 0.887725393, 0.679280594, 1.040339595, 0.888496744, 1.040745149),
        (4.097481165, 2.503842723, 1.308583906, 4.101358379, 2.506778909, 4.102980595),
    ),
    "convvec3": (
        (0.861222838, 0.736013332, 0.563935755, 0.861386752, 0.736053306, 0.861293049),
        (3.385707323, 2.071694428, 1.085263056, 3.386362979, 2.071847688, 3.385988167),
    ),
    "convnet3": (
        (0.242845564, 0.242104188, 0.241032707, 0.242837279, 0.242090301, 0.242820484),
        (0.606127840, 0.590532061, 0.581146527, 0.606080781, 0.590483394, 0.606044336),
    ),
    "convnet": (
        (0.300682797, 0.300124883, 0.299419349, 0.300663402, 0.300099643, 0.300634221),
        (0.851536536, 0.832390445, 0.823198476, 0.851462191, 0.832312916, 0.851398684),
    ),
    "myrtle5": (
        (0.259469818, 0.259368537, 0.259266341, 0.259468724, 0.259354088, 0.259441113),
        (0.633254183, 0.628820041, 0.627272415, 0.633273317, 0.628805512, 0.633227607),
    ),
}
CONVOLUTIONAL = ["convvec2", "convnet3", "convnet", "myrtle5"]


def waves(dtype: torch.dtype = torch.float64) -> Tensor:
    n, h, w, c = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (3, 16, 16, 3)), indexing="ij")
    return torch.sin(0.7 * n + 0.3 * h + 0.5 * w + 1.1 * c + 0.1 * h * w).permute(0, 3, 1, 2).to(dtype)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_values_are_found(name: str) -> None:
    upper = torch.triu_indices(3, 3)
    for found, golden in zip(kernel(architecture(name), waves()), GOLDEN[name], strict=True):
        assert found[upper[0], upper[1]].tolist() == pytest.approx(golden, abs=2e-9)


@pytest.mark.parametrize("name", GOLDEN)
def test_single_precision_is_as_good_on_the_diagonal_as_elsewhere(name: str) -> None:
    exact, rounded = (kernel(architecture(name), waves(dtype)).ntk for dtype in (torch.float64, torch.float32))
    assert ((rounded.double() - exact) / exact).abs().max() < 3e-7


Pairs = dict[tuple[tuple[int, int], tuple[int, int]], float]


def pixel_by_pixel(name: str, images: list[np.ndarray]) -> tuple[float, float]:
    """NNGP and NTK of images 0 and 1, [C, H, W] each, by the recursions, every pair of pixels in dictionaries."""
    if name.startswith("fc"):
        return scalar(name, images)
    height, width = images[0].shape[1:]
    layers = list(architecture(name).layers)
    # The covariances of both images with themselves give the variances; the third is that of one with the other.
    which = [(0, 0), (1, 1), (0, 1)]
    s: list[Pairs] = []
    for a, b in which:
        pixels = list(product(range(height), range(width)))
        x, y = images[a], images[b]
        s.append({(p, q): float((x[:, *p] * y[:, *q]).mean()) for p in pixels for q in pixels})
    theta: list[Pairs] = [dict.fromkeys(pairs, 0.0) for pairs in s]
    for layer in layers:
        if layer == "conv":
            s = [{key: 2 / 9 * window(pairs, key) + 0.01 for key in pairs} for pairs in s]
            theta = [{key: 2 / 9 * window(t, key) + new[key] for key in t} for t, new in zip(theta, s, strict=True)]
        elif layer == "relu":
            q = [{p: s[k][p, p] for p, _ in s[k]} for k in (0, 1)]
            for k, (a, b) in enumerate(which):
                for p, partner in s[k]:
                    u, v, w = q[a][p], q[b][partner], s[k][p, partner]
                    cosine = max(-1.0, min(1.0, w / math.sqrt(u * v)))
                    angle = 0.0 if a == b and p == partner else math.acos(cosine)
                    theta[k][p, partner] *= (math.pi - angle) / (2 * math.pi)
                    s[k][p, partner] = (
                        math.sqrt(u * v) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
                    )
        elif layer == "pool":
            height, width = height // 2, width // 2
            s, theta = ([pooled(pairs, height, width) for pairs in some] for some in (s, theta))
        elif layer in ("flatten", "gap"):
            keep = [(p, q) for p, q in s[2] if layer == "gap" or p == q]
            return tuple(  # type: ignore[return-value]
                2 * sum(pairs[key] for key in keep) / len(keep) + add
                for pairs, add in (
                    (s[2], 0.01),
                    (theta[2], 2 * sum(s[2][key] for key in keep) / len(keep) + 0.01),
                )
            )
    raise AssertionError(name)


def window(pairs: Pairs, key: tuple[tuple[int, int], tuple[int, int]]) -> float:
    (y, x), (v, u) = key
    return sum(pairs.get(((y + i, x + j), (v + i, u + j)), 0.0) for i in (-1, 0, 1) for j in (-1, 0, 1))


def pooled(pairs: Pairs, height: int, width: int) -> Pairs:
    out = {}
    for p, q in product(product(range(height), range(width)), repeat=2):
        corners = product((0, 1), repeat=4)
        out[p, q] = (
            sum(pairs[(2 * p[0] + a, 2 * p[1] + b), (2 * q[0] + c, 2 * q[1] + d)] for a, b, c, d in corners) / 16
        )
    return out


def scalar(name: str, images: list[np.ndarray]) -> tuple[float, float]:
    a, b = (image.ravel() for image in images)
    s, u, v, theta = float(a @ b) / a.size, float(a @ a) / a.size, float(b @ b) / b.size, 0.0
    depth = int(name.removeprefix("fc"))
    for layer in range(depth + 1):
        s, u, v = (2 * value + 0.01 for value in (s, u, v))
        theta = 2 * theta + s
        if layer < depth:
            angle = math.acos(s / math.sqrt(u * v))
            s = math.sqrt(u * v) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
            theta *= (math.pi - angle) / (2 * math.pi)
            u, v = u / 2, v / 2
    return s, theta


@pytest.mark.parametrize(
    ("name", "shape"),
    [("fc1", (3, 2, 2)), ("fc4", (1, 3, 2)), ("convvec2", (2, 3, 4)), ("convnet3", (1, 8, 9)), ("myrtle5", (2, 5, 4))],
)
def test_it_is_the_recursion_pixel_by_pixel(name: str, shape: tuple[int, int, int]) -> None:
    x = noise(0, 2, *shape)
    found = kernel(architecture(name), x[:1], x[1:])
    expected = pixel_by_pixel(name, list(x.numpy()))
    assert (float(found.nngp), float(found.ntk)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["convvec3", "convnet3", "convnet"])
@pytest.mark.parametrize("size", [(8, 8), (9, 15), (16, 11)])
def test_a_band_of_offsets_is_exact(name: str, size: tuple[int, int]) -> None:
    x, y, network = noise(1, 2, 2, *size), noise(2, 3, 2, *size), architecture(name)
    for others in (None, y):
        for band, full in zip(
            kernel(network, x, others, full=False), kernel(network, x, others, full=True), strict=True
        ):
            assert ((band - full) / full).abs().max() < 1e-14


def test_all_pairs_are_taken_where_they_are_fewer_than_the_band() -> None:
    network = architecture("convnet")
    for size, less in (((8, 8), True), ((16, 16), False), ((32, 32), False)):
        assert all_is_less(network, resolutions(network, *size)) == less
    x, y = noise(3, 2, 1, 8, 8), noise(4, 3, 1, 8, 8)
    found, full = kernel(network, x, y), kernel(network, x, y, full=True)
    assert torch.equal(found.ntk, full.ntk)
    in_band = TorchBlocks(network, (1, 32, 32), CPU, torch.float32, 1).bytes_per_pair
    assert TorchBlocks(network, (1, 8, 8), CPU, torch.float32, 1).bytes_per_pair * 16 < in_band


def test_the_band_is_as_narrow_as_the_card_says() -> None:
    network = architecture("convnet")
    layouts = layouts_of(network, resolutions(network, 32, 32), False)
    assert [layout.partners for layout in layouts] == [(15, 15), (7, 7), (3, 3), (1, 1)]
    assert [layout.entries for layout in layouts] == [230_400, 12_544, 576, 16]
    assert [int(layout.mask(torch.zeros(())).sum()) for layout in layouts] == [179_776, 10_000, 484, 16]  # type: ignore[union-attr]


def test_pooling_adjusts_offsets_as_pixels() -> None:
    whole, s = Full(9, 8), noise(3, 9, 8, 9, 8, 2)
    band, after = Band(9, 8, 3, 3), Band(4, 4, 1, 1)
    rows = torch.stack([torch.stack([in_band(s, p, q, band) for q in range(8)]) for p in range(9)])
    pooled_band = band.pool(rows, after)
    pooled_full = whole.pool(s, Full(4, 4))
    for p, q in product(range(4), repeat=2):
        assert torch.allclose(pooled_band[p, q], in_band(pooled_full, p, q, after))


def in_band(s: Tensor, p: int, q: int, band: Band) -> Tensor:
    out = torch.zeros(*band.partners, s.shape[-1], dtype=s.dtype)
    for i, j in product(range(-band.up, band.up + 1), range(-band.along, band.along + 1)):
        if 0 <= p + i < s.shape[0] and 0 <= q + j < s.shape[1]:
            out[i + band.up, j + band.along] = s[p, q, p + i, q + j]
    return out


@pytest.mark.parametrize("name", ["fc1", "fc3", *CONVOLUTIONAL])
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    size = (4, 5) if name in ("convvec2", "myrtle5") else (8, 8)
    x, y, network = noise(4, 2, 2, *size).requires_grad_(), noise(5, 3, 2, *size), architecture(name)
    for weights, others in ((noise(6, 2, 2), None), (noise(7, 2, 3), y)):
        for part in (0, 1):

            def value(images: Tensor, others: Any = others, weights: Tensor = weights, part: int = part) -> Tensor:
                found = kernel(network, images, others, full=False)[part]
                return (found * weights).sum()

            assert torch.autograd.gradcheck(value, x, fast_mode=True)


def test_the_relus_explicit_derivatives_are_those_of_automatic_differentiation() -> None:
    q1, q2 = noise(8, 5, 1).abs() + 0.5, noise(9, 4).abs() + 0.5
    s = (q1 * q2).sqrt() * torch.tanh(noise(10, 5, 4))
    theta, leaves = noise(11, 5, 4), []
    for _ in range(2):
        leaves.append([t.clone().requires_grad_() for t in (s, theta, q1, q2)])
    ours = kernels._Relu.apply(*leaves[0], None)
    s, theta, q1, q2 = leaves[1]
    angle = torch.acos(s / (q1 * q2).sqrt())
    plain = (
        (q1 * q2).sqrt() * (angle.sin() + (pi := math.pi) * angle.cos() - angle * angle.cos()) / (2 * pi),
        theta * (pi - angle) / (2 * pi),
    )
    weights = noise(12, 2, 5, 4)
    grads = [
        torch.autograd.grad((out[0] * weights[0]).sum() + (out[1] * weights[1]).sum(), given)
        for out, given in ((ours, leaves[0]), (plain, leaves[1]))
    ]
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sine_is_exactly_zero_where_it_is_rounding_and_nowhere_else(dtype: torch.dtype) -> None:
    one, eps = torch.ones(1, dtype=dtype), torch.finfo(dtype).eps
    assert kernels._sine(one - eps / 2, one, one, None).tolist() == [0]  # the next number below 1
    for times in (2, 8, 200):
        found = float(kernels._sine(one - times * eps, one, one, None))
        assert found == pytest.approx(math.sqrt(2 * times * eps), rel=1e-3)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["fc1", *CONVOLUTIONAL])
def test_coincident_images_and_flat_patches_give_finite_derivatives(name: str, full: bool) -> None:
    x = torch.zeros(3, 1, 8, 8)
    x[1:] = noise(13, 1, 8, 8).float()
    x.requires_grad_()
    for others in (None, x.detach().clone()):
        found = kernel(architecture(name), x, others, full=full).ntk
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", ["fc2", *CONVOLUTIONAL])
def test_chunks_on_both_sides_change_nothing(name: str) -> None:
    x, y, network = noise(14, 3, 1, 8, 8).requires_grad_(), noise(15, 5, 1, 8, 8), architecture(name)
    one = TorchBlocks(network, (1, 8, 8), CPU, torch.float64, 1).bytes_per_pair
    for others in (None, y):
        weights = noise(16, 3, 3 if others is None else 5)
        found = []
        for memory in (1, 5 * one, 1 << 40):
            value = gram(name, (1, 8, 8), CPU, dtype=torch.float64, memory=memory)(x, others)
            found.append((value, *torch.autograd.grad((value * weights).sum(), x)))
        value = kernel(network, x, others).ntk
        expected = (value, *torch.autograd.grad((value * weights).sum(), x))
        for some in found:
            assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(some, expected, strict=True))


def test_no_chunk_is_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    value = TorchBlocks.value

    def watch(self: TorchBlocks, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        seen.append(len(x1) * len(x2) * self.bytes_per_pair)
        return value(self, x1, x2, same)

    monkeypatch.setattr(TorchBlocks, "value", watch)
    blocks = TorchBlocks(architecture("fc1"), (1, 2, 2), CPU, torch.float64, 1)
    for pairs in (1, 10, 77, 1000):
        for n, m in ((1, 100), (3, 40), (50, 2)):
            gram("fc1", (1, 2, 2), CPU, dtype=torch.float64, memory=pairs * blocks.bytes_per_pair)(
                noise(0, n, 1, 2, 2), noise(1, m, 1, 2, 2)
            )
            assert max(seen) <= pairs * blocks.bytes_per_pair
            seen.clear()


def test_variance_maps_are_the_diagonal_of_the_covariance() -> None:
    network, x = architecture("convnet"), noise(17, 3, 8, 8, 2)
    narrow, full = variances(network, x), variances(network, x, full=True)
    assert [q.shape[0] for q in narrow] == [8, 8, 4, 2]
    assert all(torch.allclose(a, b) for a, b in zip(narrow, full, strict=True))


def test_products_of_flat_images_are_exact_under_reduced_precision() -> None:
    x = noise(18, 4, 3, 8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        short = kernel(architecture("fc1"), x).ntk
    assert short.dtype == torch.float32
    assert torch.equal(short, kernel(architecture("fc1"), x).ntk)


@pytest.mark.parametrize("name", ["resnet", "fc", "fc0", "convnet4", "myrtle6", "convvec100"])
def test_an_unknown_network_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no kernel '{name}'.*myrtle10"):
        architecture(name)


def test_images_too_small_for_the_pooling_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"convnet halves images 3 times, and 6x9 leaves nothing\. .*8x8"):
        gram("convnet", (3, 6, 9), CPU)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="no kernel backend 'numpy'"):
        gram("fc1", (3, 8, 8), CPU, backend="numpy")


def test_without_the_library_its_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "ddbench.ntk.neural_tangents", raising=False)
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    with pytest.raises(ConfigError, match=r"cannot be used .*pip install 'ddbench\[ntk\]'"):
        gram("fc1", (3, 8, 8), CPU, backend="neural-tangents")


@pytest.mark.parametrize("name", ["fc1", "convvec2", "convnet"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_regression_in_one_pass_is_autograd_through_the_whole_kernel(name: str, dtype: torch.dtype) -> None:
    x, y, network = noise(19, 20, 1, 8, 8).to(dtype), noise(20, 7, 1, 8, 8).to(dtype), architecture(name)
    weights, targets = noise(21, 20, 3), noise(22, 7, 3)
    leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
    predicted = kernel(network, leaves[0].double(), y.double()).ntk.T @ leaves[1]
    loss = (predicted - targets).square().sum() / 42
    expected = (loss, predicted, *torch.autograd.grad(3 * loss, leaves))
    blocks = TorchBlocks(network, (1, 8, 8), CPU, dtype, 1)
    one, held = blocks.bytes_per_pair, blocks.held_per_pair
    seen = []
    for memory in (1, 20 * held + 16 * (one - held), 3 * (20 * held + 16 * (one - held)), 1 << 40):
        chunked = Gram(blocks, one, memory)
        seen.append(chunked._rows_at_once(x, len(y)))
        loss, predicted = chunked.regression(leaves[0], y, leaves[1], targets)
        found = (loss, predicted, *torch.autograd.grad(3 * loss, leaves))
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for ours, truth in zip(found, expected, strict=True):
            assert (ours - truth).abs().max() < tolerance * truth.abs().max()
    # Two passes, then chunks of one and of three images whose first side is cut in two, then one chunk.
    assert seen == [None, (16, 1), (16, 3), (20, 7)]


def test_a_regression_computes_no_kernel_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(ntk_blocks, "kernel", lambda *args, **more: calls.append(1) or kernel(*args, **more))
    for memory, expected in ((1 << 40, 1), (1, 2 * 4 * 3)):
        calls.clear()
        x, weights = noise(23, 4, 1, 2, 2).requires_grad_(), noise(24, 4, 2)
        chunked = gram("fc1", (1, 2, 2), CPU, dtype=torch.float64, memory=memory)
        loss, _ = chunked.regression(x, noise(25, 3, 1, 2, 2), weights, noise(26, 3, 2))
        loss.backward()
        assert len(calls) == expected
