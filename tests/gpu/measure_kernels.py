"""Time and memory of kernels of infinitely wide networks, and how they grow: the numbers behind the engine's page.

python tests/gpu/measure_kernels.py --output kernels.json
python tests/gpu/measure_kernels.py --device cpu --backend neural-tangents --output nt.json
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ddbench.costs.bench import this_machine
from ddbench.engine.capabilities import wait_for
from ddbench.engine.precision import Precision
from ddbench.ntk.architectures import architecture
from ddbench.ntk.gram import gram
from ddbench.ntk.kernel import kernel

NETWORKS = ("fc1", "convnet3", "convnet")
# Images on the first and on the second side, and their side in pixels.
CASES = {
    "cuda": [(10, 1000, 32), (100, 1000, 32), (100, 4000, 32), (100, 1000, 16), (20, 200, 64)],
    "cpu": [(2, 4, 32), (4, 8, 32), (4, 8, 16)],
}
# Without bands every pair of pixels is held: gigabytes for few images.
UNBANDED = [(4, 16, 32), (4, 16, 16)]

Step = Callable[[], Any]


def steps(network: str, backend: str, x: Tensor, y: Tensor) -> tuple[Step, Step]:
    """The kernel [n1, n2] without a gradient, and its gradient in the first images."""
    weights = torch.randn(len(x), len(y), device=x.device)
    if backend == "unbanded":

        def slope() -> Tensor:
            leaf = x.detach().requires_grad_()
            found = kernel(architecture(network), leaf, y, full=True).ntk
            return torch.autograd.grad(found, leaf, weights)[0]

        return torch.no_grad()(lambda: kernel(architecture(network), x, y, full=True).ntk), slope
    blocks = gram(network, x.shape[1:], x.device, backend=backend, calls=100)
    return lambda: blocks.value(x, y), lambda: blocks.slope(x, y, weights)


def seconds_of(step: Step, device: torch.device, budget: float) -> float:
    for _ in range(3):  # as it is, captured, replayed
        step()
    wait_for(device)
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < budget:
        step()
        wait_for(device)
        count += 1
    return (time.perf_counter() - started) / count


def measured(device: torch.device, backends: tuple[str, ...], budget: float) -> Iterator[dict[str, Any]]:
    for backend, network in itertools.product(backends, NETWORKS):
        for first, second, side in UNBANDED if backend == "unbanded" else CASES[device.type]:
            x, y = (torch.randn(n, 3, side, side, device=device) for n in (first, second))
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            value, slope = (seconds_of(step, device, budget) for step in steps(network, backend, x, y))
            row = {
                "kernel": network, "backend": backend, "first": first, "second": second, "side": side,
                "value_us_a_pair": 1e6 * value / (first * second), "slope_us_a_pair": 1e6 * slope / (first * second),
            }  # fmt: skip
            if device.type == "cuda":
                row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            yield row


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--backend", "backends", multiple=True, default=["torch", "unbanded"], show_default=True)
@click.option("--seconds", default=0.5, show_default=True, help="For each number.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(device: str, backends: tuple[str, ...], seconds: float, output: Path) -> None:
    """Time kernels and their gradients."""
    place, rows = torch.device(device), []
    with Precision("fp32").active(place):
        for row in measured(place, backends, seconds):
            rows.append(row)
            click.echo(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
            content = {"machine": this_machine(place).model_dump(), "rows": rows}
            output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
