"""Pairs of students, alike but for their precision: the accuracies behind the section "Precision" of the engine's page.

python tests/gpu/measure_precision.py runs/cifar10/ipc10/dm/…/synthetic.safetensors --output precision.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import torch

from ddbench.bench import this_machine
from ddbench.data.sources import load
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.protocol import protocol
from ddbench.runs.runner import build_problem
from ddbench.synthetic import load as load_set


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", default="cifar10", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--students", default=40, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(path: Path, dataset: str, data: Path, students: int, output: Path) -> None:
    """Train the same students on a set in fp32, TF32 and bf16."""
    synthetic, source = load_set(path), load(dataset, data)
    device = torch.device("cuda")
    accuracies: dict[str, list[float]] = {}
    for precision in ("fp32", "tf32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            problem = build_problem(
                source, backbone="convnet-d3", pixels=synthetic.pixels, ipc=10, seed=0, device=device,
                precision=precision, artifacts_root=Path(folder),
            )  # fmt: skip
            judged = evaluate(synthetic, protocol("dsa"), problem, SealedTest(source.test), students=range(students))
            accuracies[precision] = [student.accuracy for student in judged]
        output.write_text(
            json.dumps(
                {"machine": this_machine(device).model_dump(), "protocol": "dsa@1", "accuracies": accuracies}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
