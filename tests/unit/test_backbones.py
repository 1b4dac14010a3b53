import hashlib

import pytest
import torch
import torchvision
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils import _pytree

from ddbench.backbones import Variables, build, from_module
from ddbench.errors import ConfigError
from ddbench.rng import Rng

RNG = Rng(7)
# torch's own forward-mode rules use torch.jit, which newer versions of torch announce to be on its way out.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RNG.fold("images", *shape).torch(), dtype=torch.float64)


def same(a: Variables, b: Variables) -> bool:
    return all(
        left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        for left, right in [(a.params, b.params), (a.buffers, b.buffers)]
    )


def scrambled(v: Variables) -> Variables:
    """Affine norms start at one and zero, where mistakes would not show."""
    shaken = {
        key: tensor + 0.2 * torch.randn(tensor.shape, generator=RNG.fold(key).torch(), dtype=tensor.dtype)
        for key, tensor in v.params.items()
    }
    return Variables(shaken, v.buffers)


@pytest.mark.parametrize(
    "name", ["convnet-d2-w8-bn", "convnet-d2-w8-kip", "mlp-xavier", "lenet", "resnet-16-32-64", "alexcifarnet-xavier"]
)
def test_copies_equal_single_draws(name):
    backbone = build(name, (3, 16, 16), 10)
    together = backbone.init(RNG, copies=3)
    for k in range(3):
        assert same(together.copy(k), backbone.init(RNG.fold("copy", k)))
    assert not torch.equal(*(together.copy(k).params["logits.weight"] for k in (0, 1)))
    assert backbone.init(RNG).numel == backbone.parameters == together.numel // 3


def test_the_device_draw_on_the_cpu_is_the_same_draw():
    backbone = build("convnet-w8", (3, 8, 8), 10)
    assert same(backbone.init(RNG), backbone.init(RNG, on_device=True))


def test_torch_initialisation_has_the_distribution_of_torchs_own_layers():
    v = build("convnet-w64", (3, 32, 32), 10).init(RNG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = {
            "block1.conv": nn.Conv2d(3, 64, 3),
            "block2.conv": nn.Conv2d(64, 64, 3),
            "logits": nn.Linear(1024, 10),
        }
    for name, layer in own.items():
        for leaf, bound in [("weight", layer.weight[0].numel() ** -0.5), ("bias", layer.weight[0].numel() ** -0.5)]:
            ours, theirs = v.params[f"{name}.{leaf}"], getattr(layer, leaf).detach()
            assert ours.shape == theirs.shape
            assert ours.abs().max() <= bound
            assert stats.ks_2samp(ours.flatten(), theirs.flatten()).pvalue > 0.001
    assert torch.equal(v.params["block1.norm.weight"], torch.ones(64))
    assert torch.equal(v.params["block1.norm.bias"], torch.zeros(64))


@pytest.mark.parametrize(
    ("name", "weight_std", "bias_std"),
    # Fan-in 32 * 9 and 288 * 9 for the middle convolution of width 32.
    [("convnet-w32-xavier", (2 / 576) ** 0.5, 0.0), ("convnet-w32-kip", (2 / 288) ** 0.5, 0.1)],
)
def test_other_initialisers_have_their_moments(name, weight_std, bias_std):
    v = build(name, (3, 32, 32), 10).init(RNG, copies=20)
    weight, bias = v.params["block2.conv.weight"], v.params["block2.conv.bias"]
    assert weight.std().item() == pytest.approx(weight_std, rel=0.01)
    assert stats.kstest((weight / weight_std).flatten()[:20_000], "norm").pvalue > 0.001
    assert bias.std().item() == pytest.approx(bias_std, rel=0.1)


def test_the_residual_network_of_ld_begins_he_normal_by_fan_out():
    v = build("resnet-16-32-64", (3, 32, 32), 10).init(RNG, copies=40)
    convolutions = {key: weight for key, weight in v.params.items() if weight.ndim == 5}
    # Stem, six blocks of two, two shortcuts of 1x1.
    assert len(convolutions) == 15
    for key, weight in convolutions.items():
        out, _, height, width = weight.shape[1:]
        std = (2 / (height * width * out)) ** 0.5
        assert weight.std().item() == pytest.approx(std, rel=0.02), key
        assert stats.kstest((weight / std).flatten()[:20_000], "norm").pvalue > 0.001
    # 2.4 times torch's 1 / sqrt(3 * fan-in) where channels in and out are as many.
    other = build("resnet-16-32-64-torch", (3, 32, 32), 10).init(RNG, copies=40)
    inside = "stage3.1.main.0.weight"
    assert (v.params[inside].std() / other.params[inside].std()).item() == pytest.approx(6**0.5, rel=0.02)
    for leaf in ("weight", "bias"):
        assert v.params[f"logits.{leaf}"].abs().max() <= 64**-0.5
        assert v.params[f"logits.{leaf}"].std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
    assert v.params["stem.1.weight"].unique().tolist() == [1.0]
    assert v.params["stem.1.bias"].unique().tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("alexcifarnet", "912b70d07677afbe"),
        ("convnet-d3-kip", "4453283ff98e15ac"),
        ("convnet-d3-w32-bn", "6c732d4847dd4af3"),
        ("mlp", "925aef4078aa3ff2"),
        ("resnet-16-32-64-torch", "c095db912cfc5689"),
        ("resnet-16-32-64-xavier", "8f7b43694ea74e93"),
        ("resnet18", "8b73195668761ebe"),
    ],
)
def test_no_other_network_was_drawn_anew(name, hashed):
    values = build(name, (3, 32, 32), 10).init(Rng(7)).params.values()
    assert hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()[:16] == hashed


def test_the_numbers_of_a_seed_do_not_move():
    v = build("convnet-w4", (3, 8, 8), 2).init(Rng(0))
    assert v.params["block1.conv.weight"].flatten()[:3].tolist() == pytest.approx(
        [0.044651538, -0.065762207, 0.007665121], abs=1e-7
    )


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    convnet = build("convnet-w4-bn", (3, 8, 8), 10)
    foreign = from_module("foreign", Foreign, (3, 8, 8), 10)
    for backbone in (convnet, foreign):
        v = backbone.init(RNG, copies=2)
        backbone(v.copy(0), torch.zeros(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


SMALL = {
    "convnet-d2-w4": (3, 8, 8),
    "convnet-d1-w4-bn-swish": (3, 8, 8),
    "convnet-d2-w4-gn-leaky-max": (1, 8, 8),
    "convnet-d1-w2-ln-sigmoid-np": (3, 8, 6),
    "convnet-d2-w4-nn-kip": (3, 9, 14),
    "mlp": (1, 8, 8),
    "lenet": (1, 12, 12),
    "alexnet": (3, 8, 8),
    "alexnet-bn": (3, 8, 8),
    "vgg11": (1, 28, 28),
    "vgg11-bn": (1, 28, 28),
    "resnet18": (3, 9, 9),
    "resnet18-bn": (3, 8, 8),
    "resnet18-ap": (3, 16, 16),
    "resnet18-bn-ap": (3, 8, 8),
    "alexcifarnet": (3, 8, 8),
    "resnet-16-32-64": (3, 8, 8),
}


@pytest.mark.parametrize("name", SMALL)
def test_stacked_networks_equal_one_by_one(name):
    backbone = build(name, SMALL[name], 3)
    v = scrambled(backbone.init(RNG, copies=2).to(torch.float64))
    x = images(2, 2, *backbone.shape)
    logits, buffers = vmap(backbone)(v, x)
    for k in range(2):
        one, one_buffers = backbone(v.copy(k), x[k])
        torch.testing.assert_close(logits[k], one, rtol=1e-9, atol=1e-9)
        for key, tensor in one_buffers.items():
            torch.testing.assert_close(buffers[key][k], tensor, rtol=1e-9, atol=1e-9)
    assert logits.std(dim=0).min() > 0


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("vgg11", "resnet18-ap", "resnet18-bn-ap")])
def test_only_networks_with_batch_norm_mix_a_batch(name):
    backbone = build(name, SMALL[name], 3)
    v = scrambled(backbone.init(RNG).to(torch.float64))
    x = images(4, *backbone.shape)
    together = backbone(v, x)[0][:2]
    alone = backbone(v, x[:2])[0]
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-9) == backbone.per_sample
    assert backbone.per_sample == ("bn" not in name and name != "resnet-16-32-64")


@pytest.mark.parametrize("name", ["convnet-d2-w4", "lenet", "resnet18-bn-ap", "resnet-16-32-64", "vgg11"])
def test_the_last_layer_makes_logits_of_the_embedding(name):
    backbone = build(name, SMALL[name], 3)
    v = backbone.init(RNG).to(torch.float64)
    x = images(2, *backbone.shape)
    features = backbone.features(v, x)
    embedding = backbone.embed(v, x)
    assert tuple(features) == backbone.taps
    assert torch.equal(features["embed"], embedding)
    assert torch.equal(features["logits"], backbone(v, x)[0])
    linear = embedding @ v.params["logits.weight"].T + v.params["logits.bias"]
    torch.testing.assert_close(features["logits"], linear)


def test_convnet_taps_are_before_the_pooling():
    backbone = build("convnet-w8", (3, 32, 32), 10)
    assert backbone.taps == ("block1", "block2", "block3", "pool", "embed", "logits")
    v, x = backbone.init(RNG), images(2, 3, 32, 32).float()
    taps = backbone.features(v, x, ["embed", "block3", "block1", "pool", "block2"])
    shapes = [tuple(taps[name].shape[1:]) for name in ("block1", "block2", "block3", "pool", "embed")]
    assert shapes == [(8, 32, 32), (8, 16, 16), (8, 8, 8), (8, 4, 4), (128,)]
    assert torch.equal(taps["pool"].flatten(1), taps["embed"])
    with pytest.raises(ConfigError, match=r"no tap 'block4'. Did you mean 'block3'\?"):
        backbone.features(v, x, ["block4"])


@pytest.mark.parametrize(
    ("name", "size", "width"), [("convnet", 32, 2048), ("resnet18-ap", 32, 8192), ("lenet", 28, 84)]
)
def test_embeddings_have_the_published_width(name, size, width):
    backbone = build(name, (1 if size == 28 else 3, size, size), 10)
    assert backbone.init(RNG).params["logits.weight"].shape == (10, width)


def test_layer_norm_has_weights_for_every_pixel():
    v = build("convnet-w8-ln", (3, 32, 32), 10).init(RNG)
    assert [tuple(v.params[f"block{k}.norm.weight"].shape) for k in (1, 2, 3)] == [(8, 32, 32), (8, 16, 16), (8, 8, 8)]


def test_batch_norm_returns_its_statistics_and_changes_nothing():
    backbone = build("convnet-d1-w4-bn-np", (3, 8, 8), 3)
    v = backbone.init(RNG).to(torch.float64)
    before, x = v.clone(), images(5, 3, 8, 8)
    logits, buffers = backbone(v, x)
    assert same(v, before)
    pixels = torch.nn.functional.conv2d(x, v.params["block1.conv.weight"], v.params["block1.conv.bias"], padding=1)
    mean, var = pixels.mean((0, 2, 3)), pixels.var((0, 2, 3))
    torch.testing.assert_close(buffers["block1.norm.running_mean"], 0.1 * mean)
    torch.testing.assert_close(buffers["block1.norm.running_var"], 0.9 + 0.1 * var)

    after = Variables(v.params, buffers)
    evaluated, unchanged = backbone(after, x, train=False)
    assert same(Variables(v.params, unchanged), after)
    assert not torch.allclose(evaluated, logits)
    torch.testing.assert_close(backbone(after, x[:1], train=False)[0], evaluated[:1])
    assert torch.equal(backbone(v, x)[0], logits)


@forward_mode
@pytest.mark.parametrize("name", ["convnet-d2-w4", "convnet-d1-w4-bn-swish", "alexcifarnet"])
def test_forward_over_reverse_equals_reverse_over_reverse(name):
    backbone = build(name, (3, 8, 8), 3)
    v = scrambled(backbone.init(RNG).to(torch.float64))
    x = images(4, 3, 8, 8)
    direction = {key: torch.ones_like(tensor) for key, tensor in v.params.items()}

    def slope(params: dict[str, Tensor]) -> dict[str, Tensor]:
        return grad(lambda p: backbone(Variables(p, v.buffers), x)[0].logsumexp(1).sum())(params)

    _, forward = jvp(slope, (v.params,), (direction,))
    reverse = grad(lambda p: sum(tensor.sum() for tensor in slope(p).values()))(v.params)
    for key in forward:
        torch.testing.assert_close(forward[key], reverse[key], rtol=1e-7, atol=1e-9)
    assert forward["logits.weight"].abs().max() > 0


def test_gradients_of_a_tiny_convnet_are_right():
    backbone = build("convnet-d1-w2-swish", (2, 4, 4), 2)
    v = scrambled(backbone.init(RNG).to(torch.float64))
    tensors = [tensor.requires_grad_() for tensor in v.params.values()]

    def logits(x: Tensor, *values: Tensor) -> Tensor:
        return backbone(Variables(dict(zip(v.params, values, strict=True))), x)[0]

    assert torch.autograd.gradcheck(logits, (images(2, 2, 4, 4).requires_grad_(), *tensors))


def test_variables_are_a_pytree():
    v = build("convnet-d1-w4-bn", (3, 8, 8), 3).init(RNG, copies=2)
    leaves, spec = _pytree.tree_flatten(v)
    assert len(leaves) == len(v.params) + len(v.buffers)
    assert same(_pytree.tree_unflatten(leaves, spec), v)
    assert same(Variables.stack([v.copy(0), v.copy(1)]), v)


def test_networks_are_taken_and_put_back_by_an_index_tensor() -> None:
    v = build("convnet-d2-w8-bn", (3, 8, 8), 3).init(Rng(0), copies=3)
    assert same(v.index_select(torch.tensor(2)), v.copy(2))
    some = v.index_select(torch.tensor([2, 0]))
    assert same(some, Variables.stack([v.copy(2), v.copy(0)]))
    turned = v.clone()
    assert turned.index_copy_(torch.tensor([0, 2]), some) is turned
    assert same(turned, Variables.stack([v.copy(2), v.copy(1), v.copy(0)]))
    # What is put back brings no history, and what is taken has one.
    leaves = Variables({name: tensor.clone().requires_grad_() for name, tensor in v.params.items()}, v.buffers)
    taken = leaves.index_select(torch.tensor(1))
    v.index_copy_(torch.tensor(0), taken)
    assert all(tensor.requires_grad for tensor in taken.params.values())
    assert not any(tensor.requires_grad for tensor in v.params.values())
    assert same(v.copy(0).detach(), v.copy(1))


def test_an_index_tensor_is_not_read_on_the_host() -> None:
    nowhere = build("convnet-d2-w8-bn", (3, 8, 8), 3).init(Rng(0), copies=3).to("meta")  # where no number can be read
    for index in (torch.tensor(1, device="meta"), torch.tensor([1, 0], device="meta")):
        nowhere.index_copy_(index, nowhere.index_select(index))
    with pytest.raises(RuntimeError):
        nowhere.copy(torch.tensor(1, device="meta"))  # type: ignore[arg-type]


def test_clones_share_no_memory_and_copies_are_views():
    v = build("mlp", (1, 4, 4), 3).init(RNG, copies=2)
    clone, view = v.clone(), v.copy(1)
    v.params["logits.bias"].zero_()
    assert clone.params["logits.bias"].abs().min() > 0
    assert view.params["logits.bias"].abs().max() == 0


class Foreign(nn.Module):
    """Works in place, keeps an integer buffer, and initialises in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 10)
        self.scale = nn.Parameter(torch.rand(1) + 5)
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]), persistent=False)
        nn.init.constant_(self.head.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3))[:, self.order] * self.scale)


def test_a_foreign_module_computes_what_it_computes():
    backbone = from_module("foreign", Foreign, (3, 8, 8), 10)
    v = backbone.init(RNG)
    x = images(3, 3, 8, 8).float()
    module = Foreign()
    module.load_state_dict({**v.params, **{key: b for key, b in v.buffers.items() if key != "order"}})
    expected = module(x)
    logits, buffers = backbone(v, x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(buffers["norm.running_mean"], module.norm.running_mean)
    assert v.buffers["norm.running_mean"].abs().max() == 0
    assert buffers["norm.num_batches_tracked"] == 1
    torch.testing.assert_close(backbone.embed(v, x) @ module.head.weight.T + module.head.bias, expected)
    assert not backbone.per_sample
    evaluated = backbone(Variables(v.params, buffers), x, train=False)[0]
    torch.testing.assert_close(evaluated, module.eval()(x))


def test_a_foreign_module_keeps_its_own_initialisation():
    backbone = from_module("foreign", Foreign, (3, 8, 8), 10)
    v = backbone.init(RNG, copies=2)
    assert torch.equal(v.params["head.bias"], torch.full((2, 10), 0.5))
    assert v.params["scale"].min() >= 5
    assert same(v.copy(1), backbone.init(RNG.fold("copy", 1)))
    assert not torch.equal(v.params["conv.weight"][0], v.params["conv.weight"][1])
    assert backbone.parameters == v.copy(0).numel


def test_known_layers_of_a_foreign_module_can_be_drawn_by_ours():
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.BatchNorm1d(100), nn.Linear(100, 10))

    backbone = from_module("linear", make, (1, 8, 8), 10, initialiser="xavier")
    v = backbone.init(RNG, copies=2)
    assert v.params["1.weight"].std().item() == pytest.approx((2 / 164) ** 0.5, rel=0.05)
    assert v.params["1.bias"].abs().max() == 0
    assert torch.equal(v.buffers["2.running_var"], torch.ones(2, 100))
    with pytest.raises(ConfigError, match="does not know how to draw 'scale' of a Foreign"):
        from_module("foreign", Foreign, (3, 8, 8), 10, initialiser="torch")


def test_taps_of_a_foreign_module_are_its_submodules():
    backbone = from_module("foreign", Foreign, (3, 8, 8), 10)
    assert backbone.taps == ("conv", "norm", "act", "head", "embed", "logits")
    v, x = backbone.init(RNG), images(3, 3, 8, 8).float()
    taps = backbone.features(v, x)
    # The activation works in place on the output of the norm.
    assert taps["norm"].min() < 0
    assert torch.equal(taps["act"], taps["norm"].relu())
    assert torch.equal(taps["logits"], taps["head"])


@forward_mode
def test_foreign_modules_work_under_transforms():
    backbone = from_module("foreign", Foreign, (3, 8, 8), 10)
    v = backbone.init(RNG, copies=2)
    x = images(2, 3, 3, 8, 8).float()

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, buffers = backbone(Variables(params, buffers), x)
        return logits.square().mean() + backbone.embed(Variables(params, buffers), x).sum(), buffers

    slopes, buffers = vmap(grad(loss, has_aux=True))(v.params, v.buffers, x)
    one, _ = grad(loss, has_aux=True)(v.copy(1).params, v.copy(1).buffers, x[1])
    for key in one:
        torch.testing.assert_close(slopes[key][1], one[key], rtol=1e-4, atol=1e-5)
    assert buffers["norm.num_batches_tracked"].tolist() == [1, 1]
    single = v.copy(0)
    jvp(lambda p: grad(loss, has_aux=True)(p, single.buffers, x[0])[0], (single.params,), (single.params,))


def test_a_module_without_a_last_linear_layer_has_no_embedding():
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    backbone = from_module("all-conv", make, (1, 8, 8), 10)
    assert "embed" not in backbone.taps
    with pytest.raises(ConfigError, match="all-conv has no embedding"):
        backbone.embed(backbone.init(RNG), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), r"must return logits of shape \(2, 10\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), "does not take images of shape 1x8x8"),
        (lambda: nn.LSTM(8, 10), "does not take|not a tuple"),
        (lambda: 3, "must make a torch.nn.Module"),
        (lambda: nn.Linear(-1, 10), "cannot be made: RuntimeError"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        from_module("bad", make, (1, 8, 8), 10)


def test_a_torchvision_network_equals_the_original():
    from torchvision import models

    backbone = build("torchvision:resnet18", (3, 32, 32), 10)
    v = backbone.init(RNG)
    assert backbone.parameters == 11_181_642
    with torch.device("meta"):
        module = models.resnet18(num_classes=10)
    # He et al.'s initialisation by fan-out is torchvision's own choice for this network.
    assert v.params["layer1.0.conv1.weight"].std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    x = images(2, 3, 32, 32).float()
    expected = functional_call(module, {**v.params, **v.clone().buffers}, (x,))
    torch.testing.assert_close(backbone(v, x)[0], expected)
    assert backbone.embed(v, x).shape == (2, 512)


def test_resnet18_he_is_torchvisions_with_a_stem_for_small_images() -> None:
    """The network of RDED: the same function of the same parameters, which begin as there but for the stem, which is
    He-normal too. The deviations of two times n normal draws differ by 1 / sqrt(n) of themselves; four times that
    is allowed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18(weights=None, num_classes=10)
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    ours = build("resnet18-bn-he", (3, 32, 32), 10)
    drawn = ours.init(Rng(0), torch.device("cpu"))
    for (name, there), here in zip(theirs.named_parameters(), drawn.params.values(), strict=True):
        if there.ndim > 1 and name != "conv1.weight":
            assert here.std().item() == pytest.approx(there.std().item(), rel=4 / here.numel() ** 0.5), name
        there.data.copy_(here)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(drawn, x, train=True)[0], theirs.train()(x), atol=1e-5, rtol=1e-4)
