"""Names as people spell them: one resolver of datasets for every command, and methods as papers write them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddbench.cli import root as program
from ddbench.config import ANY, Setting
from ddbench.data import sources
from ddbench.data.catalogue import CATALOGUE, canonical, find
from ddbench.errors import PluginError, closest
from ddbench.evaluation.protocol import protocol
from ddbench.foreign.importing import found_in
from ddbench.plugins import GROUPS, load
from ddbench.runs.listing import Wanted
from ddbench.runs.resolving import Asked, find_method, resolve_spec
from ddbench.sweep.grid import distribute

FASHION = ("fashion-mnist", "FashionMNIST", "fmnist", "Fashion-MNIST", "fashion_mnist", "Fashion MNIST", " FMNIST ")


@pytest.mark.parametrize("name", FASHION)
def test_every_spelling_is_the_same_dataset(name: str) -> None:
    assert canonical(name) == "fashion-mnist"
    assert find(name) is CATALOGUE["fashion-mnist"]


def class_folders(place: Path, names: tuple[str, ...]) -> Path:
    """One image a class, whose grey level is ten times its position in `names`."""
    for label, name in enumerate(names):
        folder = place / name.replace("/", "_")
        folder.mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 10 * label, dtype=np.uint8)).save(folder / "0.png")
    return place


@pytest.mark.parametrize("name", FASHION)
def test_no_spelling_changes_the_labels_of_a_foreign_set(tmp_path: Path, name: str) -> None:
    place = class_folders(tmp_path / "set", CATALOGUE["fashion-mnist"].class_names)
    (found,) = found_in(place, None, name, tmp_path / "data")
    assert found.labels is not None
    assert found.images[:, 0, 0, 0].tolist() == [10 * label for label in found.labels.tolist()]


def test_inspect_knows_a_dataset_by_any_spelling(tmp_path: Path) -> None:
    place = class_folders(tmp_path / "set", CATALOGUE["fashion-mnist"].class_names)
    shown = [
        CliRunner().invoke(program, ["inspect", str(place), "--dataset", name, "--data", str(tmp_path / "data")])
        for name in ("fashion-mnist", "FMNIST")
    ]
    assert [result.exit_code for result in shown] == [0, 0]
    assert shown[0].stdout == shown[1].stdout


def test_the_classes_of_own_data_are_known_too(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("test", 1)):
        for number, name in enumerate(("b", "a")):
            folder = tmp_path / "mine" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((4, 4), 50 * number + k, dtype=np.uint8)).save(folder / f"{k}.png")
    sources.add("my-data", tmp_path / "mine", tmp_path / "data")
    for name in ("my-data", "My_Data"):
        info = sources.info_of(name, tmp_path / "data")
        assert info is not None
        assert (info.name, info.class_names) == ("my-data", ("a", "b"))
    assert sources.info_of("others", tmp_path / "data") is None


def test_methods_and_protocols_are_found_as_papers_write_them() -> None:
    assert load(GROUPS["method"], "MTT").name == "mtt"
    assert load(GROUPS["method"], "ddbench/Dm").name == "dm"
    assert find_method("K-Center")[0].name == "k-center"
    assert protocol("DSA") is protocol("dsa")
    assert protocol("MTT@1").id == "mtt@1"
    assert distribute({"DM.iterations": 3, "mtt.iterations": 4}, ["dm", "MTT"]) == {
        "dm": {"iterations": 3}, "MTT": {"iterations": 4},
    }  # fmt: skip


def test_a_mistyped_name_in_capitals_has_its_suggestion() -> None:
    assert closest("CIFAR11", ["cifar10", "svhn"]) == "Did you mean 'cifar10'? "
    with pytest.raises(PluginError, match=r"there is no method 'MTTT'\. Did you mean 'mtt'\?"):
        load(GROUPS["method"], "MTTT")


def test_a_spelling_names_the_same_run(tmp_path: Path) -> None:
    specs = [
        resolve_spec(Asked(method, data, ipc=1), tmp_path).spec for method, data in (("dm", "digits"), ("DM", "Digits"))
    ]
    assert specs[0] == specs[1]


def test_a_preset_may_spell_its_dataset_as_papers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("paper", ("DIGITS",), (ANY,), "somebody", {"iterations": 7}, {})
    monkeypatch.setattr(find_method("dm")[1], "settings", classmethod(lambda cls: [setting]))
    assert resolve_spec(Asked("dm", "digits", preset="paper"), tmp_path).spec.config["iterations"] == 7


def test_lists_of_runs_are_filtered_by_any_spelling() -> None:
    wanted = Wanted(methods=("DM",), datasets=("FashionMNIST",))
    assert wanted.names_fit("dm", "fashion-mnist")
    assert not wanted.names_fit("dsa", "fashion-mnist")
    assert not wanted.names_fit("dm", "mnist")
    # Those of others keep the case that they were given.
    assert Wanted(datasets=("shapes",)).names_fit("MyMethod", "Shapes")


@pytest.mark.parametrize(
    "asked",
    [
        ["--method", "MTTT"],
        ["--dataset", "nowhere"],
        ["--backbone", "convnett"],
        ["--judge", "torchvision:resnet19"],
        ["--protocol", "dssa"],
        ["--pixels", "zac"],
        ["--set", "iteration=1"],
        ["--set", "iterations=abc"],
        ["--set", "iterations"],
        ["--select", "heldout"],
        ["--device", "tpu"],
        ["--config", "none.toml"],
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_wrong_command_line_exits_with_2(tmp_path: Path, asked: list[str], more: list[str]) -> None:
    usual = {"--method": "dm", "--dataset": "digits"}
    named = [part for option, value in usual.items() if option not in asked for part in (option, value)]
    where = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(program, ["run", *named, *asked, *more, *where])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert not (tmp_path / "runs").exists()


def test_what_is_only_missing_exits_with_1(tmp_path: Path) -> None:
    arguments = ["run", "--method", "DM", "--dataset", "FashionMNIST", "--data", str(tmp_path)]
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 1
    assert "ddbench data get fashion-mnist" in result.stderr
