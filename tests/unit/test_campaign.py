"""What carries the board's campaign: its sweeps can be resolved, and data and runs travel whole."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ddbench.data import catalogue, sources
from ddbench.evaluation.forwards import legacy_strategy
from ddbench.evaluation.protocol import protocol
from ddbench.runs.evaluating import cells
from ddbench.runs.resolving import foresee
from ddbench.sweep.grid import read_sweep

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "leaderboards" / "sweeps" / "board").glob("*.toml"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "gpu" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_every_run_of_the_campaign_can_be_resolved_and_says_its_precision(path: Path) -> None:
    requests = read_sweep(path)
    assert requests
    assert all(asked.precision for asked in requests)
    # Settings that no paper has would be resolved to defaults without a word; other presets are refused there.
    assert {foresee(asked).preset for asked in requests} <= {"paper", "ftd", "tesla", "authors", "minimax"}


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_no_run_of_the_campaign_asks_for_a_reading_that_its_dataset_refuses(path: Path) -> None:
    # Such a judge would say so when the set is made, which may have taken an hour of a GPU.
    for asked in read_sweep(path):
        spec = foresee(asked)
        judged = cells(
            map(protocol, spec.protocols), spec.judges, None, catalogue.info(spec.dataset).shape, own=spec.backbone
        )
        for cell in judged:
            if cell.protocol.augment == "dc":
                assert legacy_strategy(cell.backbone, spec.dataset) == "none", (cell.protocol.id, spec.dataset)


def test_a_precision_is_accepted_by_forty_pairs_whose_interval_lies_inside_the_bound() -> None:
    verdicts = script("measure_precision").verdicts
    rng = np.random.default_rng(0)
    tf32 = {f"set {k}": (0.5 + 0.01 * rng.normal(size=5)).tolist() for k in range(8)}

    def other(shift: float, spread: float, sets: int = 8) -> dict[str, list[float]]:
        names = list(tf32)[:sets]
        return {name: (np.array(tf32[name]) + shift + spread * rng.normal(size=5)).tolist() for name in names}

    def judge(bf16: dict[str, list[float]]) -> dict[str, Any]:
        found: dict[str, Any] = verdicts({"tf32": tf32, "bf16": bf16}, "tf32")["less_tf32"]["bf16"]
        return found

    exact = judge(other(0.001, 0.0))
    assert (exact["pairs"], exact["mean_points"], exact["ci95_points"]) == (40, 0.1, [0.1, 0.1])
    assert exact["accepted"]
    assert not judge(other(0.0029, 0.002))["accepted"]  # close by, and the interval reaches beyond 0.3 points
    assert not judge(other(-0.004, 0.0))["accepted"]
    assert not judge(other(0.0, 0.0, sets=7))["accepted"]


def test_strips_bring_a_dataset_over_whole(tmp_path: Path) -> None:
    strips, rng = script("strips"), np.random.default_rng(0)
    labels = {"train": np.repeat([1, 0, 2], [120, 101, 3])[rng.permutation(224)], "test": np.array([2, 0, 1, 1])}
    images = {part: rng.integers(0, 256, (len(y), 8, 8, 3), dtype=np.uint8) for part, y in labels.items()}
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    arrays = {f"x_{part}": images[part] for part in images} | {f"y_{part}": labels[part] for part in labels}
    np.savez(before, class_names=np.array(["ant", "bee", "cat"]), **arrays)
    for command in (["pack", str(before), str(tmp_path / "strips")], ["unpack", str(tmp_path / "strips"), str(after)]):
        result = CliRunner().invoke(strips.main, command)
        assert result.exit_code == 0, result.output
    prints = [sources.add("mine", path, tmp_path / path.stem)["fingerprint"] for path in (before, after)]
    assert prints[0] == prints[1]


def test_a_campaign_that_has_ended_is_not_waited_for_and_its_logs_come_back(tmp_path: Path) -> None:
    campaign, out = tmp_path / "campaign", tmp_path / "out"
    for folder in (campaign / "runs", campaign / "logs", out):
        folder.mkdir(parents=True)
    (campaign / "said").write_text("0 s: 1 workers on GPUs 0, 60 s left\n9 s: done\n")
    (campaign / "logs" / "worker-0.log").write_text("== sweep FILE: 0 after 8 s\n")
    given = os.environ | {"CAMPAIGN": str(campaign), "OUT": str(out), "PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "tests" / "gpu" / "follow.sh", "600"],
        env=given,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "9 s: done" in done.stdout
    assert "== sweep FILE: 0 after 8 s" in done.stdout
    assert "0 records" in done.stdout
    with tarfile.open(out / "logs.tar.xz") as logs:
        assert "logs/worker-0.log" in logs.getnames()


def test_a_dataset_that_comes_while_others_work_is_added_and_awaited(tmp_path: Path) -> None:
    campaign, parts = tmp_path / "campaign", tmp_path / "parts"
    parts.mkdir()
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.array([0, 1, 2] * 2) for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", class_names=np.array(["ant", "bee", "cat"]), **arrays)
    CliRunner().invoke(script("strips").main, ["pack", str(tmp_path / "mine.npz"), str(tmp_path / "strips")])
    for k in (1, 2):
        with tarfile.open(tmp_path / f"mine.strips.{k}of2.tar", "w") as tar:
            for path in sorted((tmp_path / "strips").iterdir())[k - 1 :: 2]:
                tar.add(path, path.name)
    tasks = tmp_path / "tasks"
    # The first task brings the parts, one after another: they are not there when the campaign begins.
    bring = f"mv {tmp_path}/mine.strips.1of2.tar {parts} && sleep 3 && mv {tmp_path}/mine.strips.2of2.tar {parts}"
    tasks.write_text(f"once {bring}\nawait mine\nonce cp $DDBENCH_DATA/mine/manifest.json $CAMPAIGN/came\n")
    given = os.environ | {"CAMPAIGN": str(campaign), "OUT": str(tmp_path / "out"), "PARTS": str(parts), "GPUS": "cpu"}
    given |= {"PYTHON": sys.executable, "LIMIT": "90", "WORKERS": "1"}
    done = subprocess.run(
        [ROOT / "tests" / "gpu" / "campaign.sh", tasks],
        env=given, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (campaign / "came").is_file(), (campaign / "logs" / "worker-0.log").read_text()


def test_what_runs_alone_begins_when_the_others_wait_and_ends_before_they_go_on(tmp_path: Path) -> None:
    campaign, tasks, heard = tmp_path / "campaign", tmp_path / "tasks", tmp_path / "heard"
    python = tmp_path / "python"
    # Stands for `python -m ddbench sweep FILE`: says when it begins and ends.
    python.write_text(f'#!/bin/sh\ncase "$3" in sweep) echo "begins $4"; sleep 2; echo "ends $4";; esac >>{heard}\n')
    python.chmod(0o755)
    tasks.write_text(f"once sleep 3; echo busy >>{heard}\nalone large.toml\nonce echo after >>{heard}\n")
    given = os.environ | {"CAMPAIGN": str(campaign), "OUT": str(tmp_path / "out"), "GPUS": "cpu"}
    given |= {"PYTHON": str(python), "LIMIT": "60", "WORKERS": "3"}
    campaign_sh = ROOT / "tests" / "gpu" / "campaign.sh"
    subprocess.run([campaign_sh, tasks], env=given, capture_output=True, timeout=90, check=True)
    assert heard.read_text().splitlines() == ["busy", "begins large.toml", "ends large.toml", "after"]


def test_packs_hold_records_first_and_the_last_checkpoint_of_what_was_interrupted(tmp_path: Path) -> None:
    packing = script("pack_runs")
    runs = tmp_path / "runs"
    sizes = {
        "cifar10/ipc1/dm/a/spec.json": 100,
        "cifar10/ipc1/dm/a/record.json": 100,
        "cifar10/ipc1/dm/a/synthetic.safetensors": 300_000,
        "cifar10/ipc1/dm/a/snapshots/step_000001.safetensors": 300_000,
        "cifar10/ipc1/random/b/spec.json": 100,
        "cifar10/ipc1/random/b/record.json": 100,
        "cifar10/ipc1/random/b/synthetic.safetensors": 300_000,
        "cifar10/ipc1/dc/c/spec.json": 100,
        "cifar10/ipc1/dc/c/checkpoints/step_000100.pt": 300_000,
        "cifar10/ipc1/dc/c/.lock": 0,
    }
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        path = runs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    result = CliRunner().invoke(
        packing.main, [str(runs), str(tmp_path / "out"), "--files", "2", "--mebibytes", "0.4"], catch_exceptions=False
    )
    # Room for two of the three large files: the checkpoint, then what a method has learned, before a coreset.
    assert "left out: cifar10/ipc1/random/b/synthetic.safetensors" in result.output
    names: set[str] = set()
    for pack in sorted((tmp_path / "out").iterdir()):
        assert pack.stat().st_size < 0.4 * 2**20
        with tarfile.open(pack) as archive:
            names |= set(archive.getnames())
    assert names == {
        name for name in sizes if "snapshots" not in name and "random/b/synthetic" not in name and ".lock" not in name
    }
