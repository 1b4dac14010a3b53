"""Equal budgets of images: counted, whatever the size of a set, the batch, the recipe and what the base counts."""

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench import Protocol, Rng
from ddbench.evaluation.forwards import expected_forwards
from ddbench.evaluation.plan import counted
from ddbench.evaluation.recipes import GridRecipe, base_forwards, recipes_of
from ddbench.training.options import SGDOptions
from ddbench.training.plan import TrainingPlan

FACTORS = {"optimizer": ["sgd", "adam", "adamw"], "epochs": ["1/3", 2], "batch": [1, 7, 64], "augment": ["none"]}
WHERE = {"backbone": "mlp", "dataset": "digits"}


def plan_of(n: int, options: SGDOptions) -> TrainingPlan:
    return TrainingPlan(
        torch.zeros(n, 1, 2, 2), torch.zeros(n), lambda x: x, options, "none", "none", rng=Rng(0),
        **counted(options.epochs or 0),
    )  # fmt: skip


def seen(training: TrainingPlan) -> int:
    """The images that a student is shown, one by one."""
    return sum(size for block in training.blocks([0]) for size in block.sizes)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 40), batch=st.integers(1, 50), forwards=st.integers(1, 600),
    sampling=st.sampled_from(["epochs", "subset"]), epochs=st.one_of(st.none(), st.integers(0, 9)),
)  # fmt: skip
def test_a_budget_is_kept_to_half_a_step(n: int, batch: int, forwards: int, sampling: str, epochs: int | None) -> None:
    options = SGDOptions(epochs=epochs, forwards=forwards, batch=batch, sampling=sampling, schedule="step")
    training = plan_of(n, options)
    assert seen(training) == training.student_forwards
    step = min(batch, n)
    assert abs(training.student_forwards - forwards) <= step / 2 or training.steps == 1
    if sampling == "epochs" and forwards % n == 0:
        assert training.student_forwards == forwards


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30), tiles=st.sampled_from([1, 4]), batch=st.integers(1, 40), base_batch=st.integers(1, 40),
    length=st.integers(1, 8), by_steps=st.booleans(),
)  # fmt: skip
def test_all_recipes_train_on_equally_many_images_of_sets_of_any_size(
    n: int, tiles: int, batch: int, base_batch: int, length: int, by_steps: bool
) -> None:
    length_of = {"epochs": None, "steps": length} if by_steps else {"epochs": length}
    base = Protocol(name="tiny", options=SGDOptions(batch=base_batch, **length_of), backbones=("mlp",))
    budget = base_forwards(base, images=n, **WHERE)
    for recipe in recipes_of(base, FACTORS | {"batch": [batch]}):
        for images in (n, n * tiles):
            protocol = recipe.at(budget, images=images, **WHERE)
            found = seen(plan_of(images, protocol.options))
            wanted = recipe.forwards_of(budget)
            step = min(protocol.options.batch, images)
            assert abs(found - wanted) <= step / 2 or plan_of(images, protocol.options).steps == 1
            assert found == expected_forwards(protocol, "mlp", "digits", images)
            if recipe.times == 1 and budget % images == 0:
                assert found == budget
            assert protocol.seeds == recipe.protocol.digest


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), batch=st.integers(1, 40), epochs=st.integers(1, 12), times=st.integers(1, 4))
def test_the_step_size_falls_as_far_into_a_budget_as_into_the_epochs(
    n: int, batch: int, epochs: int, times: int
) -> None:
    options = SGDOptions(epochs=epochs, batch=batch)
    plain = plan_of(n, options)
    same = plan_of(n, options.model_copy(update={"forwards": plain.student_forwards}))
    assert [same.lr(t) for t in range(same.steps)] == [plain.lr(t) for t in range(plain.steps)]
    longer = plan_of(n, options.model_copy(update={"forwards": times * plain.student_forwards}))
    assert longer.steps == times * plain.steps
    full, at_full = (sum(p.lr(t) == options.lr for t in range(p.steps)) for p in (plain, longer))
    assert at_full == times * full


def test_a_budget_is_a_multiple_to_the_nearest_image() -> None:
    recipe = GridRecipe(Protocol(name="tiny"), times=Fraction(1, 3))
    assert [recipe.forwards_of(n) for n in (1, 2, 300)] == [1, 1, 100]
