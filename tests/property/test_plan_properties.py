"""What every plan keeps, whatever the size of the set, the batch and the length."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench import Rng
from ddbench.evaluation.plan import counted
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan


def plan_of(n: int, strategy: str, options: SGDOptions, seed: int = 0) -> TrainingPlan:
    images = torch.zeros(n, 1, 2, 2)
    return TrainingPlan(
        images, torch.zeros(n), lambda x: x, options, strategy, "none", rng=Rng(seed), **counted(options.epochs or 0)
    )


STRATEGIES = st.sampled_from(["none", "flip", "color_crop_cutout_flip_scale_rotate"])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 70),
    epochs=st.integers(0, 12),
    students=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    strategy=STRATEGIES,
)
def test_every_student_sees_every_image_once_an_epoch(
    n: int, batch: int, epochs: int, students: list[int], strategy: str
) -> None:
    training = plan_of(n, strategy, SGDOptions(epochs=epochs, batch=batch))
    steps = [step for block in training.blocks(students) for step in block.steps()]
    assert len(steps) == training.steps == (epochs + 1) * -(-n // batch)
    seen = torch.cat([step.indices for step in steps], dim=1)
    per_epoch = seen.view(len(students), epochs + 1, n).sort(dim=2).values
    assert torch.equal(per_epoch, torch.arange(n).expand_as(per_epoch))
    assert all(step.indices.shape[1] == batch for step in steps if step.indices.shape[1] != n % batch)
    assert sum(step.restart for step in steps) == (epochs // 2 + 2 <= epochs)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 50),
    steps=st.integers(1, 30),
    company=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    strategy=STRATEGIES,
    data=st.data(),
)
def test_a_student_is_the_same_in_any_company_and_for_any_length(
    n: int, batch: int, steps: int, company: list[int], strategy: str, data: st.DataObject
) -> None:
    student = data.draw(st.sampled_from(company))
    longer = data.draw(st.integers(steps, 40))
    alone = plan_of(n, strategy, SGDOptions(epochs=None, steps=longer, batch=batch, schedule="constant"))
    among = plan_of(n, strategy, SGDOptions(epochs=None, steps=steps, batch=batch, schedule="constant"))
    s = company.index(student)
    images = torch.linspace(0, 1, 4).view(1, 1, 1, 2, 2)
    one = (step for block in alone.blocks([student]) for step in block.steps())
    many = [step for block in among.blocks(company) for step in block.steps()]
    assert len(many) == steps
    for single, joint in zip(one, many, strict=False):
        assert torch.equal(single.indices[0], joint.indices[s])
        batch_images = images.expand(len(company), joint.indices.shape[1], 1, 2, 2)
        assert torch.equal(single.transform(batch_images[:1])[0], joint.transform(batch_images)[s])


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99), lr=st.floats(1e-4, 1.0), n=st.integers(1, 30))
def test_a_cosine_rises_then_falls_and_never_leaves_its_range(steps: int, warmup: float, lr: float, n: int) -> None:
    options = SGDOptions(epochs=None, steps=steps, lr=lr, schedule="cosine", warmup=warmup)
    training = plan_of(n, "none", options)
    values = [training.lr(t) for t in range(steps)]
    rise = round(warmup * steps)
    assert all(0 < value <= lr * (1 + 1e-12) for value in values)
    assert values[:rise] == sorted(values[:rise])
    assert values[rise:] == sorted(values[rise:], reverse=True)
