"""Damage to what runs share and to checkpoints is noticed, said and made good; files without checksums are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddbench import ArtifactCache, Problem
from ddbench.data.pixels import fit_pixels
from ddbench.files import write_json
from ddbench.runs import checkpoint
from ddbench.runs.checkpoint import Checkpoint
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import ExpertTrajectories
from ddbench.training.networks import WEIGHTS, TrainedNetwork

Numbers = dict[str, torch.Tensor]


def network(problem: Problem, root: Path) -> Numbers:
    return ArtifactCache(root).get(TrainedNetwork.of(problem, epochs=0, lr=0.1, seed=0), problem).params


def experts(problem: Problem, root: Path) -> Numbers:
    found = ArtifactCache(root).get(ExpertTrajectories.of(problem, experts=2, epochs=1, lr=0.1), problem)
    return {f"{k} {t}": found.params(k, t) for k in range(2) for t in range(2)} | {
        f"{k} seconds": torch.tensor(len(found.seconds(k))) for k in range(2)
    }


def whitening(problem: Problem, root: Path) -> Numbers:
    space: Any = fit_pixels("zca", problem.train, problem.info, root)
    return {"mean": space.mean, "weight": space.weight, "inverse": space.inverse}


KINDS: dict[str, tuple[Callable[[Problem, Path], Numbers], str]] = {
    "network": (network, WEIGHTS),
    "experts": (experts, "expert_0001.safetensors"),
    "whitening": (whitening, "*.safetensors"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, dict[str, tuple[Path, Numbers]]]:
    root = tmp_path_factory.mktemp("made")
    problem = problem_for_checks(root / "problem")
    return problem, {kind: (root / kind, get(problem, root / kind)) for kind, (get, _) in KINDS.items()}


def equal(a: Numbers, b: Numbers) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("kind", list(KINDS))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_noticed_and_made_good(
    made: tuple[Problem, dict[str, tuple[Path, Numbers]]],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    data: st.DataObject,
) -> None:
    problem, places = made
    (root, before), (get, pattern) = places[kind], KINDS[kind]
    (path,) = root.rglob(pattern)
    whole = path.read_bytes()
    broken = bytearray(whole)
    # What is made again can have another length, which must not change what is drawn.
    at = data.draw(st.integers(0, 2**31 - 1)) % len(whole)
    match data.draw(st.sampled_from(["flip", "flip", "cut", "empty", "gone"])):
        case "flip":
            broken[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del broken[at:]
        case "empty":
            broken.clear()
        case "gone":
            path.unlink()
    caplog.clear()
    if path.exists():
        path.write_bytes(broken)
    assert equal(get(problem, root), before)
    if path.read_bytes() != bytes(broken) and kind != "experts":
        assert "damaged" in caplog.text or kind == "whitening"


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_earlier_versions_wrote_is_read(
    made: tuple[Problem, dict[str, tuple[Path, Numbers]]], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    problem, places = made
    (root, before), (get, pattern) = places[kind], KINDS[kind]
    get(problem, root)
    (path,) = root.rglob(pattern)
    save_file(load_file(path), path)  # without metadata
    if kind == "network":
        artifact = TrainedNetwork.of(problem, epochs=0, lr=0.1, seed=0)
        write_json(path.with_name("artifact.json"), {"kind": artifact.kind, "identity": artifact.identity})
        write_json(path.with_name("cost.json"), {"seconds": 1.0})
    caplog.clear()
    assert equal(get(problem, root), before)
    assert caplog.text == ""
    # And one of them that is cut is made again too.
    path.write_bytes(path.read_bytes()[:100])
    assert equal(get(problem, root), before)
    assert "damaged" in caplog.text


def test_a_pool_does_not_grow_from_a_damaged_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_for_checks(tmp_path / "problem")

    def pool(epochs: int, root: Path) -> torch.Tensor:
        found = ArtifactCache(root).get(ExpertTrajectories.of(problem, experts=2, epochs=epochs, lr=0.1), problem)
        return torch.stack([found.params(k, epochs) for k in range(2)])

    right = pool(2, tmp_path / "right")
    pool(1, tmp_path / "grown")
    (path,) = (tmp_path / "grown").rglob("expert_0000.safetensors")
    content = bytearray(path.read_bytes())
    content[-30] ^= 64
    path.write_bytes(content)
    assert torch.equal(pool(2, tmp_path / "grown"), right)
    assert "training this expert again" in caplog.text


STATE = {"images": torch.arange(60.0).reshape(6, 1, 2, 5), "rate": 0.1, "list": [1, None, "x"]}
CPU = torch.device("cpu")


def test_a_checkpoint_whose_directory_is_damaged_is_passed_over(tmp_path: Path) -> None:
    """One bit of the archive's directory calls the images a folder: torch then reads them from nowhere."""
    for step in (1, 2):
        checkpoint.save(tmp_path, Checkpoint("0123abcd", step, {**STATE, "step": step}, 1.0))
    path = tmp_path / "step_000002.pt"
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    while not content[entry + 46 :].startswith(b"archive/data/0"):
        entry = content.index(b"PK\x01\x02", entry + 1)
    content[entry + 38] ^= 16
    path.write_bytes(content)
    notes: list[str] = []
    found = checkpoint.load(tmp_path, "0123abcd", CPU, notes.append)
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.state["images"], STATE["images"])
    assert len(notes) == 1


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint("0123abcd", 2, STATE, 1.0))
    path = tmp_path / "step_000002.pt"
    path.write_bytes(path.read_bytes().rpartition(checkpoint.SEAL)[0])
    found = checkpoint.load(tmp_path, "0123abcd", CPU, pytest.fail)
    assert found is not None
    assert torch.equal(found.state["images"], STATE["images"])


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_checkpoint_is_passed_over(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    for step in (1, 2):
        checkpoint.save(folder, Checkpoint("0123abcd", step, {**STATE, "step": step}, 1.0))
    path = folder / "step_000002.pt"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, 2**31 - 1)) % len(content)
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    path.write_bytes(content)
    notes: list[str] = []
    found = checkpoint.load(folder, "0123abcd", CPU, notes.append)
    assert found is not None
    assert torch.equal(found.state["images"], STATE["images"])
    assert {**found.state, "images": 0} == {**STATE, "images": 0, "step": found.step}
    assert (found.step, len(notes)) in ((2, 0), (1, 1))
    assert all("going on from the one before" in note or "passed over" in note for note in notes)
    assert math.isclose(found.seconds, 1.0)
