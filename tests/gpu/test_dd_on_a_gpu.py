"""DD's iterations as CUDA graphs, compiled or not, against the same iterations called one by one."""

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
@pytest.mark.parametrize("initial_network", ["random", "fixed"])
def test_dd_takes_the_same_steps_in_a_graph(
    initial_network: str,
    fused: bool,
    tmp_path: Path,
    on_the_gpu: Callable[[Path], Problem],
    both_ways: Callable[..., Any],
) -> None:
    method_class = load_object(GROUPS["method"], "dd")
    # Two full batches and a smaller one: both programs are captured, and one after the other uses the optimiser.
    config = method_class.Config(iterations=18, batch_real=50, initial_network=initial_network, augment_real=True)
    plain, graphs = both_ways(method_class(config), partial(on_the_gpu, tmp_path), fused=fused)
    assert graphs.captured == [True, True]
    assert plain.losses == pytest.approx(graphs.losses, rel=1e-3)
    images, others = plain.state.images.detach(), graphs.state.images.detach()
    # Adam moves pixels of vanishing slope as far as others, in the direction of the rounding.
    assert (images - others).norm() < 0.02 * images.norm()
