"""What the loop makes of a method's export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddbench import SyntheticSet
from ddbench.data.pixels import fit_pixels
from ddbench.errors import PluginError
from ddbench.loop import export
from ddbench.plugins import GROUPS, load_object
from ddbench.testing.contract import problem_for_checks


def test_a_set_lives_in_the_pixel_space_of_the_problem_that_its_method_was_given(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    rest, _ = problem.heldout(0.2)
    random = load_object(GROUPS["method"], "random")

    class Silent(random):  # type: ignore[misc, valid-type]
        def export(self, problem: object, state: object) -> SyntheticSet:
            return SyntheticSet(torch.zeros(6, 3, 8, 8), torch.arange(3).repeat_interleave(2))

    method = Silent(random.Config())
    assert export(method, rest, method.start(rest)).pixels == "zca(eps=0.1, heldout=0.2)"
    # Images were held out of the whole problem, and so it is not known which of the two spaces is meant.
    with pytest.raises(PluginError, match="must name the pixels"):
        export(method, problem, method.start(problem))
    fresh = replace(problem)
    assert export(method, fresh, method.start(fresh)).pixels == "zca(eps=0.1)"
