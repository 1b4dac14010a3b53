"""NCFM's iterations as CUDA graphs, compiled or not, against the same iterations called one by one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.plugins import GROUPS, load_object
from ddbench.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learned_frequencies": True, "normals_per_scale": 4},
        {"in_turn": True, "real_images": "first", "watched": "both"},
        {"optimizer": "sgd", "lr_images": 1e-4},
    ],
)
def test_ncfm_takes_the_same_steps_in_a_graph(
    options: dict[str, Any],
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    both_ways: Callable[..., Any],
) -> None:
    kind = load_object(GROUPS["method"], "ncfm")
    # SGD at a large step, so that a network that stood still in the graph would be seen.
    config = kind.Config(
        iterations=8, networks=2, epochs=2, batch_real=8, frequencies=64, lr_frequencies=0.1, **options
    )
    plain, graphs = both_ways(kind(config), partial(on_the_gpu, tmp_path), fused=fused)
    assert graphs.captured == [True]
    assert plain.losses == pytest.approx(graphs.losses, rel=1e-3)
    ends = ([end.state.images.detach(), *getattr(end.state, "sampler", [])] for end in (plain, graphs))
    for one, other in zip(*ends, strict=True):
        assert (one - other).norm() <= 1e-3 * one.norm()
