import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddbench import Rng, plugins
from ddbench.backbones import build, names, probe
from ddbench.errors import ConfigError

# From protocol.md, section 2.
COUNTS = [
    ("convnet", (3, 32, 32), 10, 320_010),
    ("convnet-bn", (3, 32, 32), 10, 320_010),
    ("convnet-gn", (3, 32, 32), 10, 320_010),
    ("convnet-nn", (3, 32, 32), 10, 319_242),
    ("convnet-ln", (3, 32, 32), 10, 663_306),
    ("convnet-np", (3, 32, 32), 10, 1_610_250),
    ("convnet-max", (3, 32, 32), 10, 320_010),
    ("convnet", (1, 28, 28), 10, 317_706),
    ("convnet", (3, 32, 32), 100, 504_420),
    ("convnet", (3, 64, 64), 200, 857_160),
    ("convnet-d3", (3, 64, 64), 200, 1_938_120),
    ("convnet-d1", (3, 32, 32), 10, 331_530),
    ("convnet-d2", (3, 32, 32), 10, 233_610),
    ("convnet-d4", (3, 32, 32), 10, 452_490),
    ("convnet-w32", (3, 32, 32), 10, 24_714),
    ("convnet-w64", (3, 32, 32), 10, 86_282),
    ("convnet-w256", (3, 32, 32), 10, 1_229_834),
    ("mlp", (3, 32, 32), 10, 411_146),
    ("mlp", (1, 28, 28), 10, 118_282),
    ("lenet", (3, 32, 32), 10, 62_006),
    ("lenet", (1, 28, 28), 10, 61_706),
    ("alexnet", (3, 32, 32), 10, 1_872_202),
    ("alexnet", (1, 28, 28), 10, 1_865_802),
    ("alexnet-bn", (3, 32, 32), 10, 1_874_122),
    ("vgg11", (3, 32, 32), 10, 9_231_114),
    ("vgg11-bn", (3, 32, 32), 10, 9_231_114),
    ("resnet18", (3, 32, 32), 10, 11_173_962),
    ("resnet18-bn", (3, 32, 32), 10, 11_173_962),
    ("resnet18-ap", (3, 32, 32), 10, 11_250_762),
    ("resnet18-bn-ap", (3, 32, 32), 10, 11_250_762),
    ("alexcifarnet", (3, 32, 32), 10, 1_756_426),
    ("alexcifarnet", (3, 32, 32), 100, 1_773_796),
    ("resnet-16-32-64", (3, 32, 32), 10, 174_608 + 650),
]


@pytest.mark.parametrize(("name", "shape", "classes", "parameters"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, shape, classes, parameters):
    assert build(name, shape, classes).parameters == parameters


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("convnet", "convnet"),
        ("convnet-d3-w128-in-relu-avg", "convnet-d3"),
        ("convnet-bn-w256-d3", "convnet-d3-w256-bn"),
        ("convnet-kip-np-swish-ln-d2", "convnet-d2-ln-swish-np-kip"),
        ("vgg11-in", "vgg11"),
        ("alexnet-nn-xavier", "alexnet-xavier"),
        ("resnet18-ap-bn", "resnet18-bn-ap"),
        ("resnet18-he-bn", "resnet18-bn-he"),
        ("resnet-16-32-64-xavier", "resnet-16-32-64-xavier"),
        ("resnet-16-32-64", "resnet-16-32-64-he"),
        ("resnet-16-32-64-he", "resnet-16-32-64-he"),
        ("resnet-16-32-64-torch", "resnet-16-32-64-torch"),
    ],
)
def test_a_name_has_one_canonical_spelling(given_name, expected):
    assert names.canonical(given_name) == expected


@pytest.mark.parametrize(
    ("shape", "depth"),
    [((1, 8, 8), 2), ((1, 28, 28), 3), ((3, 32, 32), 3), ((3, 64, 64), 4), ((3, 128, 128), 5), ((3, 32, 64), 3)],
)
def test_the_images_decide_the_depth_of_a_bare_convnet(shape, depth):
    assert names.canonical("convnet-bn", shape) == build("convnet-bn", shape, 10).name == f"convnet-d{depth}-bn"


@given(
    depth=st.none() | st.integers(1, 9),
    width=st.integers(1, 4096),
    norm=st.sampled_from(["in", "bn", "gn", "ln", "nn"]),
    activation=st.sampled_from(["relu", "sigmoid", "leaky", "swish"]),
    pooling=st.sampled_from(["avg", "max", "np"]),
    initialiser=st.sampled_from(["", "xavier", "kip"]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_the_order_of_tokens_does_not_matter(depth, width, norm, activation, pooling, initialiser, order):
    tokens = [f"w{width}", norm, activation, pooling, *([f"d{depth}"] if depth else []), *filter(None, [initialiser])]
    order.shuffle(tokens)
    fields = names.parse("-".join(["convnet", *tokens]))
    assert fields == names.Fields("convnet", depth, width, norm, activation, pooling, initialiser or "torch")
    assert names.parse(names.canonical("-".join(["convnet", *tokens]))) == fields


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnt-d3", r"no backbone 'convnt-d3'. Did you mean 'convnet'\?"),
        ("resnet1", r"Did you mean 'resnet18'\?"),
        ("convnet-d3-sigmiod", r"no variant 'sigmiod'. Did you mean 'sigmoid'\?"),
        ("convnet-d0", "no variant 'd0'"),
        ("convnet-ap", "no variant 'ap'"),
        ("convnet-", "no variant ''"),
        ("mlp-bn", "mlp has no variant 'bn'"),
        ("mlp-d3", "mlp has no variant 'd3'"),
        ("convnet-he", "convnet has no variant 'he'"),
        ("resnet-16-32-64-he-torch", "two things about its initialiser: he and torch"),
        ("convnet-d3-bn-gn", "two things about its norm: bn and gn"),
        ("convnet-w6-gn", "Use a multiple of 4"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name, message):
    with pytest.raises(ConfigError, match=message):
        build(name, (3, 32, 32), 10)


@pytest.mark.parametrize(
    ("name", "shape", "smallest"),
    [
        ("lenet", (1, 8, 8), "12x12"),
        ("lenet", (3, 8, 8), "16x16"),
        ("vgg11", (1, 8, 8), "28x28"),
        ("vgg11-bn", (3, 8, 8), "28x28"),
        ("resnet18", (3, 8, 8), "9x9"),
        ("convnet-d4", (3, 8, 8), "16x16"),
        ("convnet-d3-bn", (3, 4, 4), "8x8"),
    ],
)
def test_images_that_are_too_small_are_refused_with_the_smallest_size(name, shape, smallest):
    with pytest.raises(ConfigError, match=f"The smallest size is {smallest}"):
        build(name, shape, 10)
    side = int(smallest.split("x")[0])
    assert build(name, (shape[0], side, side), 10).classes == 10


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_everything_known_builds_at_every_common_size(size, channels):
    for name in names.known():
        assert build(name, (channels, size, size), 200).classes == 200


@pytest.mark.parametrize("channels", [1, 3])
def test_small_digits_have_networks(channels):
    for name in ["convnet", "mlp", "alexnet", "alexnet-bn", "alexcifarnet", "resnet18-bn", "resnet-16-32-64"]:
        assert build(name, (channels, 8, 8), 10).classes == 10


def test_no_classes_is_an_error():
    with pytest.raises(ConfigError, match="at least 1 class"):
        build("mlp", (1, 8, 8), 0)


def test_names_are_parsed_and_listed_without_torch():
    code = (
        "import sys; from ddbench.backbones import canonical, known; known(); canonical('convnet', (3, 32, 32));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_known_names_are_canonical():
    assert [names.canonical(name) for name in names.known()] == names.known()


class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def test_a_plugin_is_called_with_shape_and_classes(monkeypatch):
    monkeypatch.setattr(plugins, "listing", lambda group: (SimpleNamespace(name="tiny"),))
    monkeypatch.setattr(plugins, "load_object", lambda group, ref: {("ddbench.backbones", "tiny"): Net}[group, ref])
    backbone = build("tiny", (1, 8, 8), 10)
    assert (backbone.name, backbone.parameters) == ("tiny", 650)
    assert names.canonical("tiny") == "tiny"
    with pytest.raises(ConfigError, match=r"Did you mean 'tiny'\?"):
        build("tinny", (1, 8, 8), 10)


def test_a_file_gives_a_backbone(tmp_path: Path):
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n\n"
        "def linear(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes))\n\n"
        "size = 3\n"
    )
    assert build(f"{file}:linear", (1, 8, 8), 10).parameters == 650
    with pytest.raises(ConfigError, match="must be a function of"):
        build(f"{file}:size", (1, 8, 8), 10)


def test_a_file_of_several_factories_asks_which(tmp_path: Path):
    file = tmp_path / "nets.py"
    code = (
        "from torch import nn\n\n\ndef {}(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    file.write_text(code.format("linear") + "\n\ndef _helper():\n    pass\n")
    assert build(str(file), (1, 8, 8), 10).parameters == 650
    assert names.canonical(str(file)) == names.canonical(f"{file}:linear")
    file.write_text(code.format("linear") + "\n" + code.format("wide"))
    with pytest.raises(ConfigError, match=r"say which function.*nets.py:linear; it defines linear, wide"):
        names.canonical(str(file))
    assert build(f"{file}:wide", (1, 8, 8), 10).parameters == 650
    file.write_text("from torch import nn\n")
    with pytest.raises(ConfigError, match=r"nets.py:NAME; it defines no function or class of its own"):
        names.canonical(str(file))
    file.write_text("def (:\n")
    with pytest.raises(ConfigError, match="is no file of Python"):
        names.canonical(str(file))


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("torchvision:vgg11", "torchvision:vgg11"),
        ("torchvision:vgg11()", "torchvision:vgg11"),
        ("torchvision:vgg11( dropout = 0.0 )", "torchvision:vgg11(dropout=0)"),
        ("torchvision:x(b=[1, 2.5], a='gelu',c=-1, d=(3,))", "torchvision:x(a='gelu',b=(1,2.5),c=-1,d=(3,))"),
        ("timm:vit_tiny_patch16_224(img_size=32, x=None)", "timm:vit_tiny_patch16_224(img_size=32,x=None)"),
    ],
)
def test_arguments_of_a_library_have_one_spelling(given_name, expected):
    assert names.canonical(given_name) == names.canonical(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:", "torchvision:a b", "torchvision:../x", "torchvision:vgg11(0.5)", "torchvision:vgg11(dropout)",
        "torchvision:vgg11(dropout=0", "torchvision:vgg11(**{})", "torchvision:vgg11(dropout=f())",
        "torchvision:vgg11(dropout=__import__('os'))", "torchvision:vgg11(x={1: 2})", "torchvision:vgg11(x='a/b')",
        "torchvision:vgg11(x='..')", "torchvision:vgg11(x=1e999)", "torchvision:vgg11(x=1)(y=2)", "timm:a.b_in1k",
        "torchvision:vgg11(x=1);print(1)", "torchvision:vgg11(x=((((1,),),),))",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_library_is_refused(name):
    with pytest.raises(ConfigError, match=r"should be"):
        names.canonical(name)


@pytest.mark.parametrize("argument", ["weights='DEFAULT'", "pretrained=True", "num_classes=3", "in_chans=3"])
def test_what_the_suite_decides_is_no_argument(argument):
    with pytest.raises(ConfigError, match="cannot be given, because"):
        names.canonical(f"timm:resnet18({argument})")


def test_torchvision_takes_arguments():
    judges = ("mobilenet_v3_small", "mobilenet_v3_small(dropout=0)")
    with_dropout, without = (build(f"torchvision:{name}", (3, 32, 32), 10) for name in judges)
    assert (with_dropout.stochastic, without.stochastic) == (True, False)
    assert with_dropout.parameters == without.parameters
    with pytest.raises(ConfigError, match=r"cannot be made: TypeError.*dropped"):
        build("torchvision:squeezenet1_1(dropped=0)", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match=r"not a GoogLeNetOutputs.*aux_logits=False"):
        build("torchvision:googlenet(init_weights=False)", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match=r"takes images of 224x224.*torchvision:vit_b_32\(image_size=32\) takes"):
        build("torchvision:vit_b_32", (3, 32, 32), 10)


def test_timm_is_asked_for_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm.*pip install 'ddbench\[timm\]'"):
        build("timm:linear", (1, 8, 8), 10)

    def create_model(model, **arguments):
        assert (model, arguments) == ("linear", {"pretrained": False, "num_classes": 10, "in_chans": 1, "depth": 2})
        return Net((1, 8, 8), 10)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(list_models=lambda: ["linear"], create_model=create_model))
    backbone = build("timm:linear(depth=2)", (1, 8, 8), 10)
    assert (backbone.name, backbone.parameters) == ("timm:linear(depth=2)", 650)
    with pytest.raises(ConfigError, match=r"timm has no image classifier 'linaer'. Did you mean 'linear'\?"):
        build("timm:linaer", (1, 8, 8), 10)


# Judges of the cross-architecture tables of SRe2L, RDED, D4M and DD-Ranking.
JUDGES = {
    "alexnet": 224, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "mobilenet_v2": 32,
    "mobilenet_v3_large": 32, "regnet_y_400mf": 32, "resnet18": 32, "resnet50": 32, "resnet101": 32,
    "shufflenet_v2_x0_5": 32, "squeezenet1_0": 32, "swin_t": 32, "vgg11": 32, "vgg16_bn": 32, "vit_b_16": 224,
    "vit_b_16(image_size=32)": 32,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), JUDGES.items())
def test_judges_of_published_tables_compute_what_they_compute_by_themselves(model, size):
    net = build(f"torchvision:{model}", (3, size, size), 10)
    # Nothing in torchvision mixes a batch but batch norm.
    assert probe.check_function(net.in_training(), net._make(Rng(2)), net._split) == net.per_sample


def test_torchvision_names_are_checked():
    with pytest.raises(ConfigError, match=r"no image classifier 'resnet19'. Did you mean 'resnet18'\?"):
        build("torchvision:resnet19", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match="does not take images of shape 1x32x32"):
        build("torchvision:shufflenet_v2_x0_5", (1, 32, 32), 10)
