"""Files that are not what their place says: nothing of the user's is lost, and each ends in a sentence."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ddbench.data import folders, sources
from ddbench.errors import DataError, PluginError, RunError
from ddbench.plugins import GROUPS, TRAINERS, load
from ddbench.runs.condensing import in_budget
from ddbench.runs.evaluating import read_evaluation
from ddbench.runs.ledger import Ledger
from ddbench.runs.spec import find_method
from ddbench.synthetic import SyntheticSet

METHOD = """
from ddbench import Method, MethodConfig, MethodInfo, State

class Mine(Method[State]):
    name = {name!r}
    info = MethodInfo(title="Mine", learns=("images",))
    Config = {config}
    def start(self, problem): ...
    def {step}(self, problem, state, rng): ...
    def export(self, problem, state): ...
"""


def _images(folder: Path) -> Path:
    for part in ("train", "test"):
        for label in "ab":
            for index in range(2):
                path = folder / part / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), index).save(path)
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_adding_images_from_the_data_folder_itself_keeps_them(tmp_path: Path, force: bool) -> None:
    source = _images(tmp_path / "flowers")
    before = sorted(source.rglob("*"))
    with pytest.raises(DataError, match="left alone"):
        sources.add("flowers", source, tmp_path, force=force)
    assert sorted(source.rglob("*")) == before
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_file_in_the_place_of_a_dataset_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flowers").write_text("mine")
    with pytest.raises(DataError, match="left alone"):
        sources.add("flowers", _images(tmp_path / "images"), tmp_path / "data")
    assert (tmp_path / "data" / "flowers").read_text() == "mine"


def test_a_dataset_that_lost_its_manifest_can_be_added_again(tmp_path: Path) -> None:
    source, root = _images(tmp_path / "images"), tmp_path / "data"
    first = sources.add("flowers", source, root)
    (root / "flowers" / "manifest.json").unlink()
    assert sources.add("flowers", source, root) == first


def test_an_npz_whose_parts_differ_in_shape_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:, :4, :4], y_test=labels)
    with pytest.raises(DataError, match="3x8x8 and 3x4x4"):
        sources.add("mine", tmp_path / "a.npz", tmp_path / "data")


def test_flat_uint8_images_are_not_told_to_become_uint8(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 192), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"uint8 \[4, 192\]\. An npz file"):
        sources.add("mine", tmp_path / "a.npz", tmp_path / "data")


def test_a_size_beyond_the_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(folders.np, "empty", refuse)
    with pytest.raises(DataError, match=r"Choose a smaller --size"):
        sources.add("mine", _images(tmp_path / "images"), tmp_path / "data", size=100_000)


def test_a_file_that_exits_on_import_is_an_error_of_the_plugin(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(PluginError, match="does not import: SystemExit: 3"):
        load(GROUPS["method"], f"{path}:Mine")


def test_an_unknown_trainer_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(PluginError, match=r"Known: .*sgd"):
        load(TRAINERS, "sgdd")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"name": "../../mine"}, "cannot be called '../../mine'"),
        ({"step": "stp"}, "does not answer step"),
        ({"config": "int"}, "no subclass of ddbench.MethodConfig"),
    ],
)
def test_a_class_that_cannot_be_a_method_is_refused(tmp_path: Path, changed: dict[str, str], sentence: str) -> None:
    path = tmp_path / "idea.py"
    path.write_text(METHOD.format(**{"name": "mine", "step": "step", "config": "MethodConfig"} | changed))
    with pytest.raises(PluginError, match=sentence):
        find_method(f"{path}:Mine")


def _exported(value: object) -> SyntheticSet:
    method = SimpleNamespace(name="mine", info=SimpleNamespace(kind="condensation"), export=lambda *_: value)
    problem = SimpleNamespace(
        ipc=1, classes=2, train=range(9), whitened_apart=False, pixels=SimpleNamespace(name="standard")
    )
    return in_budget(method, problem, None)  # type: ignore[arg-type]


def test_an_export_over_the_budget_is_refused() -> None:
    def of(count: int) -> SyntheticSet:
        return SyntheticSet(torch.zeros(count, 1, 2, 2), torch.arange(count) % 2)

    assert len(_exported(of(2))) == 2
    with pytest.raises(PluginError, match="returned 4 images; 1 per class are 2"):
        _exported(of(4))


def test_an_export_of_something_else_is_refused() -> None:
    with pytest.raises(PluginError, match="returned a int"):
        _exported(3)


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"a": 1}]', "[", "3"])
def test_a_foreign_ledger_says_how_to_start_over(tmp_path: Path, content: str) -> None:
    folder = SimpleNamespace(cost=tmp_path / "cost.json", attempts=tmp_path / "attempts.json")
    ledger = Ledger(folder, torch.device("cpu"))  # type: ignore[arg-type]
    for path in (folder.cost, folder.attempts):
        path.write_text(content)
    with pytest.raises(RunError, match=r"cost\.json .*--fresh"):
        _ = ledger.costs
    with pytest.raises(RunError, match=r"attempts\.json .*--fresh"):
        _ = ledger.last_step


def test_a_damaged_evaluation_says_what_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "mlp.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"mlp\.json is damaged .* Remove that file"):
        read_evaluation(path)
