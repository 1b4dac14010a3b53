"""The same sweep on one GPU and on all GPUs of a machine: seconds, and how far the sets agree.

python tests/gpu/measure_sweep.py --data data --output docs/measured/sweep-two-gpus.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from ddbench.costs.bench import this_machine
from ddbench.synthetic import load

SWEEP = """[grid]
method = "dm"
dataset = "{dataset}"
ipc = 10
seed = {seeds}
precision = "tf32"
protocol = "dsa@1"
students = {students}
set = {{ iterations = {iterations} }}
"""


@click.command()
@click.option("--dataset", default="cifar10", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--runs", "count", default=8, show_default=True)
@click.option("--iterations", default=5000, show_default=True)
@click.option("--students", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(dataset: str, data: Path, count: int, iterations: int, students: int, output: Path) -> None:
    """Time both, after a short sweep on all GPUs that compiles what is kept on disk."""
    gpus = torch.cuda.device_count()
    measured: dict[str, Any] = {
        "machine": this_machine(torch.device("cuda")).model_dump(),
        "gpus": gpus,
        "runs": f"{count} of DM, {dataset}, ipc 10, {iterations} steps, {students} students under dsa@1, TF32",
    }
    with tempfile.TemporaryDirectory() as place:

        def sweep(name: str, seeds: list[int], steps: int, *options: str) -> float:
            file = Path(place) / f"{name}.toml"
            file.write_text(SWEEP.format(dataset=dataset, seeds=seeds, iterations=steps, students=students))
            command = [sys.executable, "-m", "ddbench", "sweep", str(file), "--data", str(data)]
            started = time.perf_counter()
            subprocess.run([*command, "--runs", f"{place}/{name}", *options], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        sweep("warm", list(range(100, 100 + gpus)), 50)
        one = sweep("one", list(range(count)), iterations, "--device", "cuda:0")
        measured["seconds on one"] = round(one, 1)
        every = sweep("all", list(range(count)), iterations)
        measured["seconds on all"] = round(every, 1)
        measured["times faster"] = round(one / every, 2)
        measured["each run"] = {name: _each(Path(place) / name) for name in ("one", "all")}
        apart = [_apart(path, Path(place) / "all") for path in sorted(Path(place, "one").glob("*/*/*/*"))]
        measured["sets equal in every bit"] = sum(difference == 0.0 for difference in apart)
        measured["largest difference of a pixel"] = max(apart)
        # What a GPU adds in another order, training amplifies: how far that goes where nothing else has changed.
        sweep("again", [0], iterations, "--device", "cuda:0")
        (again,) = Path(place, "again").glob("*/*/*/*")
        measured["largest difference of a pixel, one GPU twice"] = _apart(again, Path(place) / "one")
    output.write_text(json.dumps(measured, indent=1) + "\n")
    click.echo(output.read_text())


def _each(root: Path) -> list[dict[str, Any]]:
    """Seconds of the phases of each run, and the mean accuracy."""
    found = []
    for path in sorted(root.glob("*/*/*/*/record.json")):
        record = json.loads(path.read_text())
        accuracy = record["evaluations"][0]["accuracy"]
        seconds = {phase: round(part["seconds"], 1) for phase, part in record["cost"].items()}
        found.append({"seed": record["run"]["seed"], **seconds, "accuracy": round(sum(accuracy) / len(accuracy), 4)})
    return found


def _apart(run: Path, other: Path) -> float:
    first, second = (load(folder / "synthetic.safetensors").images for folder in (run, other / Path(*run.parts[-4:])))
    return float((first - second).abs().max())


if __name__ == "__main__":
    main()
