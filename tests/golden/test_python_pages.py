"""Pages with Python that a reader copies: their blocks are executed, and the notebook and the names are as they say."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import ddbench
from ddbench import synthetic
from ddbench.cli import root
from ddbench.data.transform import HOW
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.foreign import published_sets
from ddbench.plugins import GROUPS, TRAINERS
from ddbench.runs import recognising
from ddbench.runs.record import RunRecord
from ddbench.sensitivity.results import Results

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "pages"
TRAIN = PAGES / "guides" / "train-on-a-set.md"
STABLE = PAGES / "reference" / "stable.md"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_notebook", ROOT / "docs" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source(cell: dict[str, Any]) -> tuple[str, str]:
    return cell["cell_type"], "".join(cell["source"])


def kinds(cell: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", ()))) for output in cell.get("outputs", ())]


def test_the_loop_of_the_guide_reaches_our_accuracy(maker: ModuleType) -> None:
    """The cells of the notebook, in their order; the page says what it compares, and fails where it does not hold."""
    committed = json.loads(TRAIN.with_suffix(".ipynb").read_text(encoding="utf-8"))
    executed = maker.notebook(TRAIN)
    assert [source(cell) for cell in committed["cells"]] == [source(cell) for cell in executed["cells"]], (
        "Run: python docs/notebook.py docs/pages/guides/train-on-a-set.md"
    )
    for there, here in zip(committed["cells"], executed["cells"], strict=True):
        assert there.get("execution_count") == here.get("execution_count")
        kinds = [
            [(o["output_type"], sorted(o.get("data", ()))) for o in cell.get("outputs", ())] for cell in (there, here)
        ]
        assert kinds[0] == kinds[1]
    shown = [kind for cell in committed["cells"] for o in cell.get("outputs", ()) for kind in o.get("data", ())]
    assert "image/png" in shown


def test_a_cell_that_fails_stops_the_notebook(maker: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nassert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError):
        maker.notebook(page)


def test_outputs_are_what_was_printed_and_the_last_value(maker: ModuleType) -> None:
    names: dict[str, Any] = {}
    assert maker.execute("a = 2", names) == []
    printed, value = maker.execute("print(a)\na + 1", names)
    assert printed == {"output_type": "stream", "name": "stdout", "text": ["2\n"]}
    assert value["data"] == {"text/plain": ["3"]}


def test_the_page_has_the_words_of_the_file() -> None:
    assert HOW.partition("\n")[2] in TRAIN.read_text(encoding="utf-8")


def test_the_examples_of_the_python_page_run(maker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With students and a teacher that learn for a moment: how well they do is not what the page is about."""
    quick = PROTOCOLS["quick@1"]
    shortened = quick.model_copy(update={"options": quick.options.model_copy(update={"steps": 20})})
    monkeypatch.setitem(PROTOCOLS, "quick@1", shortened)  # type: ignore[misc]
    teacher = recognising._TEACHER.model_copy(update={"teacher_epochs": 2})
    monkeypatch.setattr(recognising, "_TEACHER", teacher)
    cells = maker.notebook(PAGES / "reference" / "api.md")["cells"]
    printed = ["".join(o["text"]) for cell in cells for o in cell.get("outputs", ()) if o["output_type"] == "stream"]
    assert re.match(
        r"dm on digits, ipc 1, seed 0: runs/digits/ipc1/dm/\S+\nquick@1, mlp: \S+ % of 2 students\n", printed[0]
    )
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    functions = ("run", "evaluate", "evaluate_grid", "recognise", "correlate", "load", "load_dataset", "leaderboard")
    for name in functions:
        assert f"ddbench.{name}(" in code, f"{name} has an example"


def section(title: str) -> str:
    parts = re.split(r"^## (.+)$", STABLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def quoted(text: str) -> Iterator[str]:
    yield from re.findall(r"`([^`]+)`", text)


def test_the_page_of_stable_names_is_what_ddbench_exports() -> None:
    rows = re.findall(r"^\| (`.+?) \|", section("Names of `ddbench`"), re.MULTILINE)
    named = [name for row in rows for name in quoted(row)]
    assert sorted(named) == sorted(set(ddbench.__all__) - {"__version__"})
    assert sorted(quoted(section("Groups of entry points"))) == sorted([*GROUPS.values(), TRAINERS])
    commands = [name for name in quoted(section("Commands")) if not name.startswith("--")]
    assert commands == list(root.homes)
    (schema,) = get_args(RunRecord.model_fields["record_schema"].annotation)
    (grid,) = get_args(Results.model_fields["file_schema"].annotation)
    assert list(quoted(section("Files"))) == [schema, synthetic.FORMAT, synthetic.PACKED, published_sets.SCHEMA, grid]
