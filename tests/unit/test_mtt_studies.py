"""The two studies of MTT's page: their sweeps resolve, and the plot is made from records."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from ddbench.runs.resolving import foresee
from ddbench.sweep.grid import read_sweep

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
RECORD = ROOT / "tests" / "golden" / "records" / "mtt-zca-s0.json"


@pytest.fixture(scope="module")
def plotting() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_option", EXAMPLES / "plot_option.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [("mtt-experts", "experts", [1, 2, 5, 10, 20]), ("mtt-start-epochs", "start_epochs", [1, 2, 4, 8, 16])],
)
def test_a_study_changes_one_option(name: str, option: str, values: list[int]) -> None:
    specs = [foresee(asked) for asked in read_sweep(EXAMPLES / f"{name}.toml")]
    assert len({spec.id for spec in specs}) == 3 * len(values)
    assert [spec.config[option] for spec in specs[::3]] == values
    others = [{key: value for key, value in spec.config.items() if key != option} for spec in specs]
    assert all(other == others[0] for other in others)


def record(folder: Path, seed: int, experts: int, **others: int) -> None:
    value = json.loads(RECORD.read_text(encoding="utf-8"))
    value["config"]["values"] = {"experts": experts, **others}
    value["run"] |= {"id": f"{seed}{experts:03d}{len(others):04d}", "seed": seed}
    place = folder / f"{seed}-{experts}-{len(others)}"
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps(value), encoding="utf-8")


def test_runs_that_differ_in_one_option_make_a_line(plotting: ModuleType, tmp_path: Path) -> None:
    for experts in (1, 10, 100):
        for seed in (0, 1):
            record(tmp_path / "runs", seed, experts)
    record(tmp_path / "runs", 0, 5, start_epochs=7)
    imported = tmp_path / "runs" / "0-imported"
    shutil.copytree(tmp_path / "runs" / "0-1-0", imported)
    value = json.loads((imported / "record.json").read_text())
    value["config"]["values"] = {}  # a set that somebody made elsewhere has no options
    value["run"]["id"] = "ffffffff"
    (imported / "record.json").write_text(json.dumps(value))
    plotting.plot("experts", tmp_path / "runs", tmp_path / "experts.png")
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot_is_a_sentence(plotting: ModuleType, tmp_path: Path) -> None:
    record(tmp_path / "runs", 0, 5)
    with pytest.raises(SystemExit, match=r"no two runs in .* differ in experts alone"):
        plotting.plot("experts", tmp_path / "runs", tmp_path / "experts.png")
    with pytest.raises(SystemExit, match="has an option 'speed'"):
        plotting.plot("speed", tmp_path / "runs", tmp_path / "experts.png")
    with pytest.raises(SystemExit, match="has an option 'experts'"):
        plotting.plot("experts", tmp_path / "nothing", tmp_path / "experts.png")
