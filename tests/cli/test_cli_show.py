"""ddbench list, show and check."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import check, common, root
from ddbench.evaluation.protocol import PROTOCOLS
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
    [["list", "protocols"], ["list", "datasets"], ["list", "backbones"], ["data", "list"], ["show", "method", "dm"]],
)
def test_lists_fit_the_terminal(words: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [row["name"] for row in json.loads(call(*words, "--json").stdout)] if "list" in words else []
    monkeypatch.setattr(common, "terminal_width", lambda: width)
    result = call(*words)
    assert max(map(len, result.stdout.splitlines())) <= width
    assert set(names) <= set(result.stdout.split())


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
