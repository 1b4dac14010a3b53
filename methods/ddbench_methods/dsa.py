"""DSA: gradient matching under differentiable siamese augmentation.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259.

DC, but real and synthetic images of a class get the same augmentation draw in each match, networks train on augmented
images, and the images start from real ones.
"""

from pydantic import Field

from ddbench import MethodInfo, Problem
from ddbench.engine.augment import resolve_strategy
from ddbench.initial import Initial
from ddbench_methods.dc import DC, DCConfig


class DSAConfig(DCConfig):
    """Options of DSA."""

    initial: Initial = Field("real", description="What the synthetic images start from: real, noise, or a saved set.")
    augment: str = Field("auto", description="Siamese augmentation; 'auto' fits the dataset, 'none' turns it off.")


class DSA(DC):
    """Gradient matching under siamese augmentation. One step is one random network with all its matches."""

    name = "dsa"
    info = MethodInfo(
        title="Differentiable Siamese Augmentation",
        venue="ICML",
        year=2021,
        arxiv="2102.08259",
        learns=("images",),
        native="dsa@1",
        advice=DC.info.advice,
    )
    Config = DSAConfig
    config: DSAConfig

    def strategy(self, problem: Problem) -> str:
        return resolve_strategy(self.config.augment, problem.info.digits)
