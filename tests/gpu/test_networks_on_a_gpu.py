"""Networks of users on a GPU: what they draw is what they draw on a CPU, and a branch on numbers is no graph."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ddbench import Rng
from ddbench.backbones.foreign import from_module
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan
from ddbench.training.students import train_students

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers of torch warn about themselves; what is tested here is the numbers.
    pytest.mark.filterwarnings("default"),
]

RNG = Rng(0, ("networks",))
SHAPE, CLASSES = (1, 8, 8), 3
GPU = torch.device("cuda")


def dropout() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        # On a parameter: a branch on the images of a batch would mix them, which is refused.
        return self.o((x if self.o.bias.sum().item() > 0 else -x).flatten(1))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("make", [dropout, Branch])
def test_students_on_a_gpu_are_those_on_a_cpu(make, static):
    net = from_module("own", make, SHAPE, CLASSES)
    options = SGDOptions(epochs=None, steps=9, batch=4, lr=0.05, schedule="constant")
    images = torch.randn(10, *SHAPE, generator=RNG.torch())
    plan = TrainingPlan(images, torch.arange(10) % CLASSES, lambda x: x, options, "none", "none", rng=RNG, passes=3)
    fresh = net.init(RNG, copies=2)
    expected = train_students(net, fresh, plan, [3, 7], static=False)
    there = replace(plan, images=images.to(GPU), labels=plan.labels.to(GPU))
    found = train_students(net, fresh.to(GPU), there, [3, 7], together=2, static=static)
    for key, value in expected.params.items():
        torch.testing.assert_close(found.params[key].cpu(), value, rtol=1e-3, atol=1e-4)
