"""Methods and trainers that cannot be used, each refused in a sentence."""

from pathlib import Path

import pytest

from ddbench.errors import PluginError
from ddbench.plugins import GROUPS, TRAINERS, load
from ddbench.runs.resolving import find_method

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


def test_a_file_that_exits_on_import_is_an_error_of_the_plugin(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(PluginError, match="does not import: SystemExit: 3"):
        load(GROUPS["method"], f"{path}:Mine")


def test_a_misspelled_class_of_a_file_is_answered_with_the_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text(METHOD.format(name="mine", config="MethodConfig", step="step"))
    with pytest.raises(PluginError, match=r"idea\.py has no 'Mien'\. Did you mean 'Mine'\?$"):
        load(GROUPS["method"], f"{path}:Mien")


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
