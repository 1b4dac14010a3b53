"""ddbench list, show and check."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ddbench.backbones.names import build, parse, variants
from ddbench.cli import check, common, root
from ddbench.errors import ConfigError
from ddbench.evaluation.protocol import PROTOCOLS, trainer_options
from ddbench.rng import Rng
from ddbench.runs.resolving import find_method
from ddbench.testing import contract

FORGETFUL = """
import torch
from ddbench import Method, MethodConfig, MethodInfo, State, SyntheticSet

class Forgetful(Method):
    name = "forgetful"
    info = MethodInfo(title="Forgetful", learns=("images",), advice="none")
    Config = MethodConfig

    def start(self, problem):
        return State()

    def step(self, problem, state, rng):
        return {}

    def finished(self, state):
        return state.step >= 2

    def export(self, problem, state):
        images = torch.rand(problem.classes * problem.ipc, *problem.shape)
        return SyntheticSet(images, problem.class_labels())
"""


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(root, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


@pytest.mark.parametrize(
    ("what", "some"),
    [
        ("methods", {"dm", "random", "herding", "k-center", "k-means", "whole"}),
        ("datasets", {"digits", "cifar10", "imagewoof"}),
        ("backbones", {"convnet", "mlp", "resnet18-ap"}),
        ("protocols", set(PROTOCOLS)),
        ("trainers", {"sgd", "distill", "krr"}),
    ],
)
def test_list_prints_one_line_each_and_the_same_as_json(what: str, some: set[str]) -> None:
    rows = json.loads(call("list", what, "--json").stdout)
    assert some <= {row["name"] for row in rows}
    lines = call("list", what).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [row["name"] for row in rows]


def test_show_method_has_options_with_ranges_and_presets_with_sources() -> None:
    text = call("show", "method", "dm").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("momentum"))
    assert line.split()[:3] == ["momentum", "float", "0.5"]
    assert ">= 0, < 1" in line
    assert "arXiv 2110.04181" in text
    assert "preset quick for any dataset, ipc any\n  source: ddbench: a first look" in text
    value = json.loads(call("show", "method", "dm", "--json").stdout)
    assert {"name", "type", "default", "range", "description"} == set(value["options"][0])
    assert all(preset["source"] for preset in value["presets"])


def test_show_method_says_when_there_are_no_options() -> None:
    assert "no options" in call("show", "method", "whole").stdout


def test_show_protocol_has_its_digest_and_every_option() -> None:
    text = call("show", "protocol", "dc").stdout
    protocol = PROTOCOLS["dc@2"]
    assert protocol.digest in text
    assert set(type(protocol.options).model_fields) <= {line.split()[0] for line in text.splitlines() if line}
    assert json.loads(call("show", "protocol", "dc@1", "--json").stdout)["options"]["epochs"] == 300


def test_show_dataset_says_what_is_known_and_whether_it_is_here(tmp_path: Path) -> None:
    text = call("show", "dataset", "cifar-10", "--data", str(tmp_path)).stdout
    assert "0.4914" in text
    assert text.splitlines()[-1].split() == ["here", "no"]
    assert call("show", "dataset", "digits", "--data", str(tmp_path)).stdout.splitlines()[-1].split()[0] == "here"
    value = json.loads(call("show", "dataset", "svhn", "--data", str(tmp_path), "--json").stdout)
    assert (value["digits"], value["here"]) == (True, None)


def test_show_backbone_says_what_a_method_can_count_on(tmp_path: Path) -> None:
    value = json.loads(call("show", "backbone", "convnet-bn-w8", "--dataset", "digits", "--json").stdout)
    network = build("convnet-bn-w8", (1, 8, 8), 10)
    outputs = network.features(network.init(Rng(0)), torch.zeros(2, 1, 8, 8), train=False)
    assert (value["name"], value["provided_by"], value["parameters"]) == (network.name, "ddbench", network.parameters)
    assert value["taps"] == {tap: list(output.shape[1:]) for tap, output in outputs.items()}
    assert value["embedding"] == outputs["embed"].shape[1]
    assert (value["norms"], value["batch_norm"], value["per_sample"]) == (["batch norm"], True, False)
    assert (value["dropout"], value["stochastic"]) == ([], False)
    assert value["variants"]["norm"] == ["in", "bn", "gn", "ln", "nn"]
    text = call("show", "backbone", "convnet-bn-w8", "--data", str(tmp_path)).stdout
    blocks = sum(channels * 9 * 8 + 8 + 2 * 8 for channels in (3, 8, 8))  # weights, biases, and those of the norm
    found = [line.split()[1] for line in text.splitlines() if line.startswith("parameters")]
    assert found == [str(blocks + 8 * 4 * 4 * 10 + 10)]
    assert "cifar10: images of 3x32x32, 10 classes" in text


@pytest.mark.parametrize("name", ["convnet", "vgg11", "lenet", "resnet18-ap", "alexcifarnet-xavier"])
def test_the_smallest_images_that_show_backbone_names_are_the_smallest(name: str) -> None:
    size = json.loads(call("show", "backbone", name, "--json").stdout)["smallest"]
    assert build(name, (3, size, size), 10).parameters > 0
    if size > 1:
        with pytest.raises(ConfigError, match="cannot take"):
            build(name, (3, size - 1, size - 1), 10)


def test_every_variant_that_show_backbone_names_is_one() -> None:
    for name in ("convnet", "resnet18", "vgg11", "alexnet", "mlp", "resnet-16-32-64"):
        found = variants(name)
        for field, tokens in found.items():
            for token in tokens if field not in ("depth", "width") else ():
                assert getattr(parse(f"{name}-{token}"), field) == token


def test_show_backbone_of_a_file_and_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef dropping(shape, classes):\n"
        "    layers = [nn.Conv2d(shape[0], 8, 3), nn.GroupNorm(2, 8), nn.Dropout(0.25), nn.Dropout(0.5)]\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))\n"
    )
    file = str(tmp_path / "nets.py")
    value = json.loads(call("show", "backbone", file, "--dataset", "digits", "--json").stdout)
    assert (value["norms"], value["batch_norm"]) == (["group norm of 2 groups"], False)
    assert (value["dropout"], value["stochastic"]) == (["Dropout of 0.25 to 0.5"], True)
    assert (value["embedding"], value["smallest"], value["variants"]) == (8, None, {})
    assert call("show", "backbone", file, "--dataset", "digits").stdout.endswith("Its name takes no options.\n")
    result = call("show", "backbone", "convnett")
    assert (result.exit_code, "Did you mean 'convnet'?" in result.stderr) == (2, True)


def test_show_trainer_has_its_options_and_the_protocols_that_have_it() -> None:
    value = json.loads(call("show", "trainer", "sgd", "--json").stdout)
    assert value["protocols"] == [p.id for p in PROTOCOLS.values() if p.trainer == "sgd"]
    assert {option["name"] for option in value["options"]} == set(trainer_options("sgd").model_fields)
    text = call("show", "trainer", "krr").stdout
    assert "no: a set is judged once, whatever the backbone" in text
    assert [line.split()[3] for line in text.splitlines() if line.startswith("ridge ")] == [">"]
    assert "Did you mean 'sgd'?" in call("show", "trainer", "sdg").stderr


def test_check_passes_a_method_that_keeps_the_contract() -> None:
    result = call("check", "--method", "random")
    assert result.exit_code == 0, result.output
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"pass"}
    assert len(result.stdout.splitlines()) > 10


def test_check_names_what_a_method_breaks_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(FORGETFUL)
    result = call("check", "--method", str(tmp_path / "idea.py"), "--json")
    assert result.exit_code == 1
    broken = {row["check"] for row in json.loads(result.stdout) if row["error"]}
    assert "global_generators_are_left_alone" in broken
    text = call("check", "--method", f"{tmp_path / 'idea.py'}:Forgetful")
    lines = text.stdout.splitlines()
    failed = lines.index("FAIL  global generators are left alone")
    assert lines[failed + 2] == f"      The check: {contract.global_generators_are_left_alone.__doc__}"
    assert f"forgetful breaks {len(broken)} of" in text.stderr


def test_check_names_the_line_that_raised(tmp_path: Path) -> None:
    broken = FORGETFUL.replace(
        "def export(self, problem, state):", "def export(self, problem, state):\n        nobody()"
    )
    assert broken != FORGETFUL
    (tmp_path / "idea.py").write_text(broken)
    number = broken.splitlines().index("        nobody()") + 1
    text = call("check", "--method", str(tmp_path / "idea.py")).stdout
    assert f"raised NameError: name 'nobody' is not defined (idea.py, line {number}: nobody())" in text


def test_check_looks_options_of_a_file_up_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(FORGETFUL)
    result = call("check", "--method", str(tmp_path / "idea.py"), "--set", "no=2")
    assert f"`ddbench show method {tmp_path / 'idea.py'}` lists them." in result.stderr


def test_check_takes_options_and_refuses_unknown_ones() -> None:
    result = call("check", "--method", "dm", "--set", "iteration=2")
    assert result.exit_code == 2
    assert "Did you mean 'iterations'?" in result.stderr


def test_check_says_how_to_be_quick_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(contract, "run", lambda *_, **__: calls.append("run") or [])
    told_of = check.note
    monkeypatch.setattr(check, "note", lambda text: (calls.append("note"), told_of(text)))
    idea = tmp_path / "idea.py"
    more = "class Many(MethodConfig):\n    networks: int = 200\n    few: int = 2\n\n\nclass Forgetful("
    idea.write_text(FORGETFUL.replace("class Forgetful(", more).replace("Config = MethodConfig", "Config = Many"))
    said = call("check", "--method", str(idea)).stderr
    assert calls == ["note", "run"]
    assert "its defaults (networks 200)" in said
    assert "presets/forgetful.toml beside its file" in said
    assert said.endswith("or give them to this command alone: --set networks=8.\n")
    # Who gives options knows; and what is told there is a preset that the checks take.
    assert call("check", "--method", str(idea), "--set", "networks=9").stderr == ""
    (tmp_path / "presets").mkdir()
    lines = [line[2:] for line in said.splitlines() if line.startswith("  ")]
    (tmp_path / "presets" / "forgetful.toml").write_text("\n".join(lines))
    assert contract.trial(find_method(str(idea))[1]) == {"networks": 8}
    assert call("check", "--method", str(idea)).stderr == ""


def test_each_of_our_methods_has_what_checks_should_take() -> None:
    for row in json.loads(call("list", "methods", "--json").stdout):
        if row["provided by"].startswith("ddbench "):
            assert check._without_trial(find_method(row["name"])[1]) == ""


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
@pytest.mark.parametrize(
    "words",
    [
        ["list", "protocols"],
        ["list", "trainers"],
        ["list", "datasets"],
        ["list", "backbones"],
        ["data", "list"],
        ["show", "method", "dm"],
        ["show", "method", "mtt"],
        ["show", "trainer", "distill"],
        ["show", "backbone", "convnet"],
    ],
)
def test_lists_fit_the_terminal(words: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [row["name"] for row in json.loads(call(*words, "--json").stdout)] if "list" in words else []
    monkeypatch.setattr(common, "terminal_width", lambda: width)
    result = call(*words)
    assert max(map(len, result.stdout.splitlines())) <= width
    assert set(names) <= set(result.stdout.split())


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("words", [["show", "method", "mtt"], ["show", "trainer", "distill"]])
def test_a_terminal_shows_the_defaults_that_json_has(
    words: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tabulate wraps a column it takes the text "False" for a truth value, and any text is true."""
    options = json.loads(call(*words, "--json").stdout)["options"]
    flags = {option["name"]: option["default"] for option in options if option["default"] in ("True", "False")}
    assert "False" in flags.values()
    monkeypatch.setattr(common, "terminal_width", lambda: width)
    lines = [line.split() for line in call(*words).stdout.splitlines() if line]
    shown = {line[0]: next(word for word in line if word in ("True", "False")) for line in lines if line[0] in flags}
    assert shown == flags


def test_a_list_leaves_out_no_more_than_its_last_column_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for width in (140, 100, 80, 60):
        monkeypatch.setattr(common, "terminal_width", lambda width=width: width)
        result = call("list", "protocols")
        shown[width] = result.stdout.splitlines()[0].split()
        said = " ".join(result.stderr.split()).partition(": ")[2].partition(". ")[0]
        left_out = {name for name in said.split(", ") if name}
        assert set(shown[width]) | left_out == set(shown[140])
        assert not set(shown[width]) & left_out
    assert shown[80] == ["name", "labels", "source"]
    assert shown[140] == ["name", "digest", "labels", "backbones", "students", "source"]
