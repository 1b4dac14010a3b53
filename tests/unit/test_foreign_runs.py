"""Run folders of somebody else: nothing that their files name is executed, and nothing in them becomes a path."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ddbench.backbones import names as backbones
from ddbench.errors import ConfigError, DdbenchError, RunError
from ddbench.files import write_json
from ddbench.runs.resolving import protocols_of
from ddbench.runs.rundir import RunDir
from ddbench.runs.runspec import SCHEMA, RunSpec

SPEC = RunSpec(
    method="dm", provided_by="ddbench 0.1.0", method_sha256=None, dataset="toy", data_fingerprint="b2:00", ipc=1,
    backbone="mlp", pixels="standard", seed=0, precision="fp32", config={"iterations": 3}, protocols=("dsa@1",),
)  # fmt: skip


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that tells when it was run."""
    path = tmp_path / "trap.py"
    path.write_text("from pathlib import Path\nPath(__file__).with_name('EXECUTED').touch()\nnet = Trap = data = 1\n")
    return path


def kept(folder: Path, **changes: Any) -> Path:
    """spec.json with the id that its values give, as whoever wants to deceive would write it."""
    values = {**asdict(SPEC), **changes}
    del values["checksum"]
    spec = RunSpec(**{**values, "protocols": tuple(values["protocols"]), "judges": tuple(values["judges"])})
    write_json(folder / "spec.json", {"schema": SCHEMA, "id": spec.id, **values})
    return folder


@pytest.mark.parametrize("form", ["{}:net", "./{}:net", "{}", "{}:net/x", "a/{}:net"])
@pytest.mark.parametrize("key", ["dataset", "method", "backbone", "judges"])
def test_a_spec_that_names_code_is_refused(tmp_path: Path, trap: Path, key: str, form: str) -> None:
    ref = form.format(trap)
    with pytest.raises(RunError, match=r"spec\.json"):
        RunDir.at(kept(tmp_path, **{key: [ref] if key == "judges" else ref}))
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("key", ["dataset", "method", "backbone", "judges"])
def test_a_bare_name_of_a_file_is_code_too(
    tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"spec\.json"):
        RunDir.at(kept(tmp_path, **{key: [trap.name] if key == "judges" else trap.name}))
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("name", ["{}:net@1a2b3c4d", "{}:net@", "x/../{}:net@1a2b3c4d", "{}:net/@"])
def test_the_name_of_a_factory_does_not_lead_to_its_file(
    tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for ref in (name.format(trap), name.format(trap.name)):
        with pytest.raises(ConfigError):
            backbones.build(ref, (1, 8, 8), 2)
    assert not (tmp_path / "EXECUTED").exists()


def test_whoever_says_the_file_runs_it(tmp_path: Path, trap: Path) -> None:
    with pytest.raises(DdbenchError):
        backbones.build(f"{trap}:net", (1, 8, 8), 2)
    assert (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    "lines",
    ["backbones = ['{}:net']", "trainer = 'distill'\nlabels = 'soft'\noptions = {{ teacher = '{}:net' }}"],
)
def test_a_protocol_of_a_foreign_run_names_no_code(tmp_path: Path, trap: Path, lines: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"name = 'mine'\n{lines.format(trap)}\n")
    with pytest.raises(ConfigError, match="names code"):
        protocols_of(replace(SPEC, protocols=(str(path),)))
    assert not (tmp_path / "EXECUTED").exists()


def test_protocols_that_name_no_code_are_taken() -> None:
    assert [one.id for one in protocols_of(replace(SPEC, protocols=("dsa@1", "quick@1")))] == ["dsa@1", "quick@1"]


@pytest.mark.parametrize(
    "change",
    [
        {"ipc": True}, {"ipc": -1}, {"ipc": 1.5}, {"seed": -1}, {"seed": "../x"}, {"dataset": ".."}, {"method": "a/b"},
        {"backbone": "../x"}, {"config": {"a": float("nan")}}, {"students": 0}, {"sources": {"a": 1}},
        {"data_fingerprint": 5}, {"pixels": "a\nb"}, {"method_sha256": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_no_run_writes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"spec\.json"):
        RunDir.at(kept(tmp_path, **change))


def test_all_values_of_a_file_make_a_spec(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    values = json.loads((folder.path / "spec.json").read_text())
    assert values["checksum"].startswith("b2:")
    again = RunSpec(**{name: value for name, value in values.items() if name not in ("schema", "id")})
    assert again.id == SPEC.id
    assert "checksum" not in SPEC.to_json()
    write_json(folder.path / "spec.json", {**values, "preset": "quick"})
    with pytest.raises(RunError, match=r"spec\.json.*checksum"):
        RunDir.at(folder.path)
