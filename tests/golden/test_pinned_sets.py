"""Sets, run ids and artefact keys stay what they were, bit for bit on one thread, however the code is arranged.

Bits depend on torch and on the processor's instructions too, so they are pinned for one pair of them; ids and keys are
pinned everywhere. UPDATE_GOLDEN=1 writes the file anew, where a change of results was meant.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

FILE = Path(__file__).parent / "pinned_sets.json"
HERE = {"torch": torch.__version__.split("+")[0], "capability": torch.backends.cpu.get_cpu_capability()}
QUICK = ("--protocol", "quick@1", "--judge", "mlp", "--students", "1")
RUNS: dict[str, tuple[str, ...]] = {
    "dm": ("--method", "dm", "--ipc", "2", "--set", "iterations=4"),
    "dm-batch-norm": ("--method", "dm", "--ipc", "1", "--backbone", "convnet-w32-bn", "--set", "iterations=2"),
    "dc": ("--method", "dc", "--ipc", "2", "--set", "iterations=2"),
    "dc-batch-norm": ("--method", "dc", "--ipc", "1", "--backbone", "convnet-w32-bn", "--set", "iterations=2"),
    "dsa": ("--method", "dsa", "--ipc", "2", "--set", "iterations=2"),
    "mtt": ("--method", "mtt", "--ipc", "2", "--set", "iterations=3", "--set", "experts=2", "--set", "start_epochs=2",
            "--set", "inner_steps=3", "--set", "batch_syn=6"),
    "mtt-heldout": ("--method", "mtt", "--ipc", "1", "--pixels", "zca", "--set", "iterations=4", "--set", "experts=1",
                    "--set", "start_epochs=1", "--set", "inner_steps=2", "--set", "select=heldout",
                    "--set", "select_every=2", "--set", "grad=full"),
    "ld": ("--method", "ld", "--ipc", "1", "--set", "iterations=12", "--set", "validate_every=2"),
    "ld-ridge": ("--method", "ld", "--ipc", "1", "--set", "iterations=6", "--set", "variant=ridge"),
    "dd": ("--method", "dd", "--ipc", "1", "--set", "iterations=3", "--set", "passes=2", "--set", "batch_real=64"),
    "kip": ("--method", "kip", "--ipc", "1", "--set", "iterations=3", "--set", "kernel=convvec2",
            "--set", "batch_real=100"),
    "ls": ("--method", "ls", "--ipc", "1", "--set", "kernel=convvec2", "--set", "batch_real=500"),
    "herding": ("--method", "herding", "--ipc", "2", "--set", "epochs=1"),
    "k-means": ("--method", "k-means", "--ipc", "2", "--set", "epochs=1"),
    "random": ("--method", "random", "--ipc", "2"),
}  # fmt: skip


SCRIPT = """
import sys
from ddbench.cli import root
for line in sys.stdin.read().splitlines():
    root(line.split(), standalone_mode=False)
"""


def test_sets_are_those_that_they_were(tmp_path: Path) -> None:
    found = all_runs(tmp_path)
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(json.dumps({"bits": HERE, "runs": found}, indent=1, sort_keys=True) + "\n")
    pinned = json.loads(FILE.read_text())
    assert {name: run["fixed"] for name, run in found.items()} == {
        name: run["fixed"] for name, run in pinned["runs"].items()
    }
    if pinned["bits"] != HERE:
        pytest.skip(f"bits are pinned for {pinned['bits']}, and this is {HERE}; ids and keys are as they were")
    assert {name: run["bits"] for name, run in found.items()} == {
        name: run["bits"] for name, run in pinned["runs"].items()
    }


def all_runs(root: Path) -> dict[str, Any]:
    """What each run leaves. One process on one thread for all of them: importing takes longer than most."""
    common = ["run", "--dataset", "digits", "--device", "cpu", "--quiet", "--json", *QUICK]
    lines = [" ".join([*common, "--runs", str(root / name), *options]) for name, options in RUNS.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {name: left(root / name) for name in RUNS}


def left(folder: Path) -> dict[str, Any]:
    """Ids, keys and shapes of a run, and apart from them digests of its tensors and accuracies."""
    (file,) = folder.rglob("synthetic.safetensors")
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key).numpy() for key in sorted(opened.keys())}
    record = json.loads((file.parent / "record.json").read_text())
    return {
        "fixed": {
            "run": file.parent.name,
            "tensors": {key: [str(value.dtype), *value.shape] for key, value in tensors.items()},
            "protocols": [part["digest"] for part in record["evaluations"]],
            "artifacts": sorted({f"{part['kind']} {part['key']}" for part in record["artifacts"]}),
            "choice": {k: v for k, v in (record["synthetic"]["choice"] or {}).items() if k != "accuracy"},
        },
        "bits": {
            "set": hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest(),
            "accuracy": [part["accuracy"] for part in record["evaluations"]],
        },
    }
