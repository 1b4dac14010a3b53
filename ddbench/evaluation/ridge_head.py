"""The trainer of LD with ridge regression: features learn by gradient descent, their head is solved for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, optim

from ddbench.backbones.variables import Variables
from ddbench.engine.capabilities import in_float64
from ddbench.engine.regression import ridge_map, with_ones
from ddbench.errors import ConfigError
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import RidgeHeadOptions
from ddbench.evaluation.trainer import Predictor, Progress, Trainer
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan

# Which images make a step, and how many steps there are.
_DRAWN = SGDOptions(epochs=None, batch=None, sampling="subset", schedule="constant")


class RidgeHeadTrainer(Trainer):
    """Fresh networks, seeded by protocol, backbone and number, each with a running mean of solved heads.

    Source: Bohdal, Yang and Hospedales, 2020 (arXiv 2006.08572), the variant with ridge regression.
    """

    Options = RidgeHeadOptions

    @cached_property
    def plan(self) -> TrainingPlan:
        """Which images make each step, how they are augmented, and how many steps there are."""
        return plan(self.synthetic, self.protocol, self.problem, self.rng, options=_DRAWN)

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def student_forwards(self) -> int:
        return self.plan.student_forwards

    def train(self, students: Sequence[int], progress: Progress) -> Predictor:
        net = self.problem.backbone
        if not net.per_sample:
            raise ConfigError(
                f"protocol {self.protocol.id} solves for a head on embeddings, which the batch norm of {net.name} "
                "would change from batch to batch. Judge by a backbone without it."
            )
        trained = [self._student(k, progress) for k in students]

        @torch.inference_mode()
        def predict(images: Tensor) -> Tensor:
            return torch.stack([with_ones(net.embed(v, images, train=False)) @ head for v, head in trained])

        return predict

    def _student(self, student: int, progress: Progress) -> tuple[Variables, Tensor]:
        """A trained network, and its head [D + 1, K] without the factor, which leaves the arg-max alone."""
        options, net, device = self.protocol.options, self.problem.backbone, self.problem.device
        network = net.init(self.rng.fold("student", student, "network"), device).clone()
        params = [value.requires_grad_() for value in network.params.values()]
        scale = torch.ones((), device=device, requires_grad=True)
        optimizer = optim.Adam([{"params": params, "lr": options.lr}, {"params": [scale], "lr": options.lr_scale}])
        head: Tensor | None = None
        for block in self.plan.blocks([student]):
            for step in block.to(device).steps():
                x = step.transform(self.plan.take(step.indices))
                y = _probabilities(self.plan.targets(x, step.indices, step.rng)[0], self.problem.classes)
                embedded = with_ones(net.embed(network, x[0]))
                solving = embedded if options.through_head else embedded.detach()
                solved = (ridge_map(solving, options.ridge).T @ in_float64(y)).to(y)
                head = options.head_rate * solved if head is None else head.detach().lerp(solved, options.head_rate)
                optimizer.zero_grad()
                F.cross_entropy(embedded @ (scale * head), y).backward()
                optimizer.step()
                progress(1)
        assert head is not None
        return network.detach(), head.detach()


def _probabilities(targets: Tensor, classes: int) -> Tensor:
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).float()
