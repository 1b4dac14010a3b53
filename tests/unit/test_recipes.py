"""Recipes are the base with one thing changed; what cannot be one is refused in a sentence."""

from fractions import Fraction
from typing import Any

import pytest

from ddbench.errors import ConfigError
from ddbench.evaluation.protocol import PROTOCOLS, DistillOptions, protocol
from ddbench.evaluation.recipes import USUAL, base_forwards, full_step, parse_factors, recipes_of

DSA = PROTOCOLS["dsa@1"]


def test_the_usual_grid_changes_one_thing_at_a_time() -> None:
    found = {recipe.name: recipe for recipe in recipes_of(DSA, USUAL)}
    assert list(found) == [
        "base", "optimizer=adam", "optimizer=adamw", "epochs=1/4", "epochs=4", "batch=32", "augment=none",
        "augment=cutmix", "labels=soft", "labels=teacher",
    ]  # fmt: skip
    assert found["base"].protocol is DSA
    changed = {
        name: {k for k, v in recipe.protocol.options if getattr(DSA.options, k, None) != v}
        | {k for k in ("augment", "labels", "trainer") if getattr(recipe.protocol, k) != getattr(DSA, k)}
        for name, recipe in found.items()
    }
    assert changed["base"] == changed["epochs=4"] == set()
    assert changed["optimizer=adam"] == changed["optimizer=adamw"] == {"optimizer", "lr", "weight_decay"}
    assert changed["batch=32"] == {"batch"}
    assert changed["augment=none"] == {"augment"}
    assert changed["augment=cutmix"] == {"cutmix"}
    assert changed["labels=soft"] == {"labels"}
    assert changed["labels=teacher"] - set(DistillOptions.model_fields) == {"labels", "trainer"}
    assert found["epochs=1/4"].times == Fraction(1, 4)
    assert [recipe.protocol.track for recipe in found.values()] == ["hard"] * 8 + ["soft", "teacher"]


def test_every_variant_is_a_protocol_with_a_name_and_a_digest_of_its_own() -> None:
    found = recipes_of(DSA, USUAL, product=True)
    assert len(found) == 3 * 3 * 2 * 3 * 3
    assert len({recipe.protocol.id for recipe in found}) == len({recipe.protocol.digest for recipe in found}) == 162
    assert not {recipe.protocol.id for recipe in found[1:]} & set(PROTOCOLS)
    assert found[-1].name == "optimizer=adamw, epochs=4, batch=32, augment=cutmix, labels=teacher"


def test_what_the_base_has_anyway_makes_no_variant() -> None:
    factors = {"optimizer": ["sgd"], "epochs": [1], "batch": [256], "augment": ["auto"], "labels": ["hard"]}
    assert [recipe.name for recipe in recipes_of(DSA, factors)] == ["base"]
    assert [recipe.name for recipe in recipes_of(PROTOCOLS["distill@1"], {"labels": ["teacher"]})] == ["base"]
    # A base's own step size stays with its optimiser.
    assert [recipe.name for recipe in recipes_of(PROTOCOLS["quick@1"], {"optimizer": ["sgd"]})] == ["base"]


def test_a_recipe_of_ones_own_is_laid_over_the_base() -> None:
    own = {"name": "small-teacher", "trainer": "distill", "labels": "soft", "options": {"teacher": "mlp", "batch": 8}}
    _, recipe = recipes_of(DSA, {}, [own])
    assert (recipe.name, recipe.protocol.id) == ("small-teacher", "dsa-small-teacher@1")
    assert (recipe.protocol.options.teacher, recipe.protocol.options.batch) == ("mlp", 8)
    assert recipe.protocol.options.epochs == 1000


def test_a_set_of_the_usual_size_is_judged_by_the_variant_itself_and_another_one_with_the_same_seeds() -> None:
    where = {"backbone": "convnet-d3", "dataset": "cifar10"}
    budget = base_forwards(DSA, images=100, **where)
    assert budget == 1001 * 100
    for recipe in recipes_of(DSA, USUAL):
        usual, tiled = (recipe.at(budget, images=n, **where) for n in (100, 500))
        if recipe.times == 1:
            assert usual is recipe.protocol
        assert tiled.options.forwards == recipe.forwards_of(budget)
        assert tiled.digest != recipe.protocol.digest
        assert tiled.seeds == usual.seeds == recipe.protocol.digest


@pytest.mark.parametrize("augment", ["idc", "flip+color+crop_scale_rotate"])
def test_augmentations_one_after_another_are_a_value_too(augment: str) -> None:
    (_, changed) = recipes_of(DSA, {"augment": [augment]})
    assert changed.protocol.augment == augment
    assert recipes_of(protocol("dance@2"), {"augment": ["idc"]})[1:] == []  # as the base has it


def test_the_epochs_of_dcs_augmentation_are_a_budget_like_any_other() -> None:
    base = protocol("dc@2")
    where = {"backbone": "convnet-d3", "dataset": "mnist", "images": 10}
    budget = base_forwards(base, **where)
    assert budget == 1001 * 10
    (plain,) = [r for r in recipes_of(base, {"augment": ["none"]}) if r.name == "augment=none"]
    assert plain.at(budget, **where).options.forwards == budget  # by itself it would train 301 epochs


def test_a_step_is_no_larger_than_the_set() -> None:
    assert [full_step(DSA, n, 10) for n in (10, 500)] == [10, 256]
    assert full_step(PROTOCOLS["rded@1"], 10, 10) == 10
    assert [full_step(PROTOCOLS["rded@2"], n, 10) for n in (5, 100, 500)] == [5, 50, 100]


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ({"optimiser": ["adam"]}, "there is no factor 'optimiser'. Did you mean 'optimizer'?"),
        ({"optimizer": ["adamm"]}, "the factor optimizer has no value 'adamm'. Did you mean 'adam'?"),
        ({"optimizer": "adam"}, "the factor optimizer needs a list of values"),
        ({"labels": []}, "the factor labels needs a list of values"),
        ({"labels": ["teachers"]}, "Did you mean 'teacher'?"),
        ({"epochs": ["many"]}, "the factor epochs is a multiple of the base's training"),
        ({"epochs": ["1/0"]}, "the factor epochs is a multiple"),
        ({"epochs": [-2]}, "the factor epochs is a multiple"),
        ({"epochs": [True]}, "the factor epochs is a multiple"),
        ({"epochs": ["9" * 5000]}, "the factor epochs is a multiple"),
        ({"batch": [0]}, "the factor batch is a number of images, from 1 to 999999999; got 0"),
        ({"batch": [True]}, "the factor batch is a number of images"),
        ({"augment": [3]}, "the factor augment is none, cutmix"),
        ({"augment": ["A B"]}, "the factor augment is none, cutmix"),
        ({"augment": ["flip+colour"]}, "names 'colour', which is no operation. Did you mean 'color'?"),
        ({"augment": ["colour"]}, "names 'colour', which is no operation. Did you mean 'color'?"),
    ],
)
def test_what_is_no_factor_and_no_value_is_refused(factors: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes_of(DSA, factors)
    assert sentence in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": "x", "lr": 1}, "a recipe has no 'lr'. It is an option: options = { lr = … }. "),
        ({}, "a recipe needs a name"),
        ({"name": "base"}, "a recipe needs a name"),
        ({"name": "x", "options": 3}, "the options of recipe x are a table"),
        ({"name": "x", "options": {"epochs": 5}}, "recipe x sets epochs, and how long students train is the grid's"),
        ({"name": "x", "options": {"lr": -1}}, "lr: input should be greater than 0"),
        ({"name": "x", "options": {"lrr": 1}}, "the recipe dsa-x: there is no 'lrr'. Did you mean 'lr'?"),
        ({"name": "x", "options": {"zzz": 1}}, "there is no 'zzz'. There are lr, "),
        ({"name": "x", "augmnt": "none"}, "a recipe has no 'augmnt'. Did you mean 'augment'? "),
        ({"name": "x", "trainer": "krr"}, "in a grid it is sgd or distill"),
        ({"name": "x", "labels": "odd"}, "labels: input should be 'hard' or 'soft'"),
    ],
)
def test_what_is_no_recipe_is_refused(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes_of(DSA, {}, [table])
    assert sentence in str(error.value)


def test_a_base_that_trains_no_network_by_minibatches_is_refused() -> None:
    for name in ("krr@1", "dd@1", "ld-ridge@2", "native-kip@1"):
        with pytest.raises(ConfigError, match="changes how students are trained by minibatches"):
            recipes_of(PROTOCOLS[name], {})
    with pytest.raises(ConfigError, match="--forwards 100000"):
        base_forwards(PROTOCOLS["ld@1"], backbone="mlp", dataset="digits", images=10)


def test_words_of_the_command_line() -> None:
    assert parse_factors(["batch=8, 16", "labels=soft", "batch=32"]) == {"batch": ["8", "16", "32"], "labels": ["soft"]}
    for text in ("batch", "=3", "batch=", "batch=1,,2", "runs/a"):
        with pytest.raises(ConfigError):
            recipes_of(DSA, parse_factors([text]))
