"""Import paths of version 0.1 go on working for one version, with a warning at the line that imports."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest

from ddbench.moved import MOVED

# Modules that are still there, and names that have left them.
LEFT = {
    "ddbench.data.sources": {"Dataset": "ddbench.data.dataset", "TestData": "ddbench.data.dataset"},
    "ddbench.evaluation.protocol": {
        "SGDOptions": "ddbench.training.options",
        "TrainerOptions": "ddbench.training.options",
    },
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_warns_and_has_the_names_of_the_new_ones(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match="has moved to") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    for place in MOVED[old]:
        there = importlib.import_module(place)
        own = [name for name, value in vars(there).items() if getattr(value, "__module__", "") == place]
        assert own
        assert all(getattr(module, name) is not None for name in own)
    first = importlib.import_module(MOVED[old][0])
    (name, *_) = [name for name, value in vars(first).items() if getattr(value, "__module__", "") == first.__name__]
    assert getattr(module, name) is getattr(first, name)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in LEFT.items() for name in names])
def test_a_name_that_left_its_module_is_still_found_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is getattr(importlib.import_module(LEFT[module][name]), name)


def test_the_warning_points_at_the_line_that_imports(tmp_path: Path) -> None:
    script = tmp_path / "old.py"
    script.write_text("from ddbench.driver import condense\n")
    sys.modules.pop("ddbench.driver", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(script.read_text(), str(script), "exec"), {})
    assert [warning.filename for warning in caught if issubclass(warning.category, DeprecationWarning)] == [str(script)]


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ddbench.engine.never_there")
    sys.modules.pop("ddbench.driver", None)
    with pytest.warns(DeprecationWarning, match=r"moved to ddbench\.loop"):
        driver = importlib.import_module("ddbench.driver")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = driver.nothing


def test_a_public_name_without_a_meaning_can_still_be_imported() -> None:
    with pytest.warns(DeprecationWarning, match=r"ddbench.Validation is no longer asked for"):
        from ddbench import Validation  # type: ignore[attr-defined]
    assert Validation("dsa@1", 3, 1).times == 3
