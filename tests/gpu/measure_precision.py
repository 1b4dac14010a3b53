"""Pairs of students, alike but for their precision: the accuracies behind the section "Precision" of the engine's page.

python tests/gpu/measure_precision.py --judge resnet18 --judge vgg11 --output precision.json \
    runs/cifar10/ipc10/random/convnet-d3-s{2,3,4,5,6,7,8,9}-*

Every set is judged by the same students in each precision. Where a run has been judged in one of them already, those
students are taken from it. The file is written after every set, and one that is there is added to.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy import stats

from ddbench.backbones.names import canonical
from ddbench.costs.bench import this_machine
from ddbench.data.dataset import Dataset
from ddbench.data.sources import load
from ddbench.evaluation.evaluate import SealedTest, evaluate
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.files import read_json, write_json
from ddbench.runs.evaluating import read_evaluation
from ddbench.runs.runner import build_problem
from ddbench.synthetic import load as load_set

# A precision is accepted where the 95 % interval of the mean difference lies inside these points.
BOUND = 0.3
PAIRS = 40


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", default="cifar10", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="DDBENCH_DATA", default=Path("data"), show_default=True)
@click.option("--protocol", "recipe", default="dsa@1", show_default=True)
@click.option("--judge", "judges", multiple=True, default=("convnet",), show_default=True)
@click.option("--precision", "precisions", multiple=True, default=("tf32", "bf16"), show_default=True)
@click.option("--students", default=5, show_default=True, help="Of each set and judge.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    paths: tuple[Path, ...],
    dataset: str,
    data: Path,
    recipe: str,
    judges: tuple[str, ...],
    precisions: tuple[str, ...],
    students: int,
    device: str,
    output: Path,
) -> None:
    """Train the same students on sets in several precisions; PATHS are runs, or files of sets."""
    source, place = load(dataset, data), torch.device(device)
    found: dict[str, Any] = read_json(output) if output.is_file() else {}
    found |= {
        "machine": this_machine(place).model_dump(),
        "data": {"title": source.title, "fingerprint": source.fingerprint},
        "protocol": recipe,
        "bound_points": BOUND,
    }
    cells: dict[str, Any] = found.setdefault("cells", {})
    for judge in judges:
        backbone = canonical(judge, source.info.shape)
        for path in paths:
            synthetic = load_set(path / "synthetic.safetensors" if path.is_dir() else path)
            ipc = len(synthetic.images) // len(source.train.classes)
            cell = cells.setdefault(f"{backbone}, ipc {ipc}", {"accuracies": {}})
            for precision in precisions:
                accuracies = cell["accuracies"].setdefault(precision, {})
                name = "/".join(path.parts[-3:]) if path.is_dir() else path.name
                if len(accuracies.get(name, ())) < students:
                    known = judged(path, protocol(recipe), backbone, precision, students)
                    accuracies[name] = known or judge_now(
                        path, source, protocol(recipe), backbone, precision, students, ipc, place
                    )
            cell |= verdicts(cell["accuracies"], precisions[0])
            write_json(output, found)
    for name, cell in cells.items():
        for precision, verdict in cell["less_" + precisions[0]].items():
            click.echo(f"{name}: {precision} less {precisions[0]} {verdict}")


def judged(path: Path, recipe: Protocol, backbone: str, precision: str, students: int) -> list[float]:
    """Accuracies of a run's students, where they were trained in this precision; nothing where they were not."""
    file = path / "evaluations" / recipe.id / f"{backbone}.json"
    if not file.is_file():
        return []
    scores = sorted(read_evaluation(file).scores, key=lambda score: score.student)[:students]
    alike = len(scores) == students and {score.precision for score in scores} == {precision}
    return [score.accuracy for score in scores] if alike else []


def judge_now(
    path: Path, source: Dataset, recipe: Protocol, backbone: str, precision: str, students: int, ipc: int,
    device: torch.device,
) -> list[float]:  # fmt: skip
    """Train students on a set, as a run does."""
    synthetic = load_set(path / "synthetic.safetensors" if path.is_dir() else path)
    with tempfile.TemporaryDirectory() as folder:
        problem = build_problem(
            source, backbone=backbone, pixels=synthetic.pixels, ipc=ipc, seed=0, device=device, precision=precision,
            artifacts_root=Path(folder),
        )  # fmt: skip
        scores = evaluate(synthetic, recipe, problem, SealedTest(source.test), students=range(students))
        return [score.accuracy for score in scores]


def verdicts(accuracies: dict[str, dict[str, list[float]]], reference: str) -> dict[str, Any]:
    """By how many points each precision differs from the reference over pairs of students, and whether that is little.

    The interval is that of the mean of the paired differences (Student's t).
    """
    found = {}
    for precision, by_set in accuracies.items():
        if precision == reference:
            continue
        pairs = [
            100 * (ours - theirs)
            for name, row in by_set.items()
            for ours, theirs in zip(row, accuracies[reference].get(name, []), strict=False)
        ]
        if len(pairs) < 2:
            continue
        mean, half = float(np.mean(pairs)), float(stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs))
        inside = math.isfinite(half) and abs(mean) + half < BOUND
        found[precision] = {
            "pairs": len(pairs),
            "mean_points": round(mean, 3),
            "ci95_points": [round(mean - half, 3), round(mean + half, 3)],
            "accepted": inside and len(pairs) >= PAIRS,
        }
    return {f"less_{reference}": found}


if __name__ == "__main__":
    main()
