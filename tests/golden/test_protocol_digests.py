"""A column of a board is one recipe: what was measured under a name must never change its meaning."""

import json
from typing import Any

import pytest

from ddbench.evaluation import protocol as module
from ddbench.evaluation.protocol import PROTOCOLS, Protocol
from ddbench.training.options import SGDOptions

DIGESTS = {
    "dsa@1": "24d99e9675d43a25",
    "dsa-soft@1": "7d0caba4bf706028",
    "dsa-unaugmented@1": "620a13728157390b",
    "dsa-soft-unaugmented@1": "a8f4764bce245634",
    "dc@1": "ab355232fad50cdd",
    "dc@2": "635de1091f447352",
    "cafe@1": "dac245574f2716e0",
    "cafe@2": "28689b55d8bb883c",
    "mtt@1": "d203fa39c594ebf2",
    "datm@1": "14248fb9e1212f7d",
    "dd@1": "acab75830cc7405c",
    "ld@1": "030cfdb5685986f3",
    "ld-ridge@1": "bda81ef9e3be36c6",
    "ld-ridge@2": "6c2c26e5056a5330",
    "full@1": "10ffa8670e6cfd22",
    "distill@1": "31f71bd1dab2bb34",
    "distill-given@1": "fceb6763e5d33e7b",
    "soft-labels@1": "5fedae11b7a278bc",
    "dance@1": "5178963833c5dfe4",
    "dance@2": "408baf70c8e93fa5",
    "ncfm@1": "a8263073249f4b63",
    "ncfm@2": "313f199fe7506e27",
    "hard-truths-hl@1": "c57e91c4d2f9dd9f",
    "hard-truths-sl@1": "486a8b72dbae674e",
    "rded@1": "4f3579de44bafad1",
    "rd3@1": "f89447644de1a092",
    "rded@2": "ae469a296f6491f3",
    "rd3@2": "900e5d09f812a1e6",
    "quick@1": "383b3eb967c29315",
    "quick-large@1": "035ff63f8e6c6023",
    "quick-slow@1": "217f58f08dbe242e",
    "krr@1": "6802c059565f7bee",
    "krr-fc1@1": "17746601b748d268",
    "native-kip@1": "1efe8d95b464aebc",
}

# What a recipe is, written out from the description of the papers' common routine. E + 1 epochs, of which the first
# E // 2 + 2 have the full step size.
COMMON: dict[str, Any] = {
    "epochs": 1000,
    "epochs_augmented": None,
    "steps": None,
    "lr": 0.01,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "decayed": "all",
    "batch": 256,
    "sampling": "epochs",
    "schedule": "step",
    "schedule_by": "step",
    "warmup": 0.0,
    "align_corners": False,
    "batch_by": "set",
    "forwards": None,
    "lr_pixels": None,
    "cutmix": 0.0,
    "milestones": [],
    "factor": 0.1,
    "stretch": 1.0,
}
DISTILL: dict[str, Any] = {
    "trainer": "distill",
    "labels": "soft",
    "targets": "teacher",
    "temperature": 4.0,
    "scaled": True,
    "hard_weight": 0.1,
    "teacher": "convnet",
    "teacher_epochs": 60,
    "teacher_lr": 0.05,
}
MIXED: dict[str, Any] = DISTILL | {
    "augment": "mixing",
    "backbones": ["resnet18-bn"],
    "temperature": 20.0,
    "hard_weight": 0.0,
    "teacher": "resnet18-bn",
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "stretch": 2.0,
}
MIXED_AS_THERE: dict[str, Any] = MIXED | {
    "augment": "mixing@2",
    "backbones": ["resnet18-bn-he"],
    "scaled": False,
    "decayed": "weights",
    "schedule_by": "pass",
}
DANCE: dict[str, Any] = {
    "augment": "color_crop_flip_scale_rotate",
    "epochs": 1499,
    "batch": 64,
    "schedule": "milestones",
    "milestones": [1000, 1250],
    "factor": 0.2,
    "cutmix": 0.5,
}
NCFM: dict[str, Any] = {
    "augment": "color_crop_flip_scale_rotate",
    "epochs": 1999,
    "batch": 128,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "milestones",
    "milestones": [400, 800, 1200, 1600],
    "factor": 0.5,
    "cutmix": 0.5,
}
RECIPES: dict[str, dict[str, Any]] = {
    "dsa@1": {},
    "dsa-soft@1": {"labels": "soft"},
    "dsa-unaugmented@1": {"augment": "none"},
    "dsa-soft-unaugmented@1": {"augment": "none", "labels": "soft"},
    "dc@1": {"augment": "dc", "epochs": 300, "epochs_augmented": 1000},
    "dc@2": {"augment": "dc@2", "epochs": 300, "epochs_augmented": 1000},
    "cafe@1": {"augment": "dc", "epochs": 600, "epochs_augmented": 1000},
    "cafe@2": {"augment": "dc@2", "epochs": 600, "epochs_augmented": 1000},
    "mtt@1": {"lr": None, "align_corners": True},
    "datm@1": {"lr": None, "batch": 128, "align_corners": True, "labels": "soft"},
    "dd@1": {"trainer": "replay", "augment": "none", "backbones": ["own"], "students": 20},
    "ld@1": {
        "augment": "none",
        "labels": "soft",
        "backbones": ["own"],
        "students": 20,
        "epochs": None,
        "batch": None,
        "sampling": "subset",
        "schedule": "constant",
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
    },
    "ld-ridge@1": {
        "trainer": "ridge-head",
        "augment": "none",
        "labels": "soft",
        "backbones": ["own"],
        "students": 20,
        "lr": 1e-3,
        "lr_scale": 0.01,
        "ridge": 1.0,
        "head_rate": 0.01,
        "through_head": False,
    },
    "ld-ridge@2": {
        "trainer": "ridge-head",
        "augment": "none",
        "labels": "soft",
        "backbones": ["own"],
        "students": 20,
        "lr": 1e-3,
        "lr_scale": 0.01,
        "ridge": 1.0,
        "head_rate": 0.01,
        "through_head": True,
    },
    "full@1": {"epochs": 79, "lr": 0.05, "schedule": "cosine", "warmup": 0.05, "nesterov": True},
    "distill@1": DISTILL,
    "distill-given@1": DISTILL | {"targets": "given"},
    "soft-labels@1": {
        "labels": "soft",
        "epochs": 3000,
        "schedule": "milestones",
        "milestones": [750, 1500, 2250, 3000],
        "factor": 0.3,
    },
    "dance@1": DANCE,
    "dance@2": DANCE | {"augment": "idc"},
    "ncfm@1": NCFM,
    "ncfm@2": NCFM | {"augment": "idc"},
    "hard-truths-hl@1": {"epochs": 300},
    "hard-truths-sl@1": DISTILL
    | {
        "targets": "fixed",
        "temperature": 20.0,
        "hard_weight": 0.0,
        "epochs": 299,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
    },
    "rded@1": MIXED | {"epochs": 299, "batch": None},
    "rd3@1": MIXED | {"epochs": 399, "batch": 50},
    "rded@2": MIXED_AS_THERE | {"epochs": 299, "batch": None, "batch_by": "rded"},
    "rd3@2": MIXED_AS_THERE | {"epochs": 399, "batch": 50, "stretch": 1.0},
    "quick@1": {
        "epochs": None,
        "steps": 300,
        "batch": 64,
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 0.1,
        "backbones": ["convnet-w32", "mlp"],
    },
    "quick-large@1": {
        "epochs": None,
        "steps": 300,
        "batch": 64,
        "lr": 0.02,
        "lr_pixels": 4096,
        "schedule": "cosine",
        "warmup": 0.1,
        "backbones": ["convnet-w32", "mlp"],
    },
    "quick-slow@1": {
        "epochs": None,
        "steps": 300,
        "batch": 64,
        "lr": 0.005,
        "lr_pixels": 1024,
        "schedule": "cosine",
        "warmup": 0.1,
        "backbones": ["convnet-w32", "mlp"],
    },
}
KERNEL: dict[str, Any] = {"kernel": "convnet", "ridge": 1e-6, "dtype": "float32"}
# With a trainer of their own: all options are here.
OTHERS: dict[str, dict[str, Any]] = {
    "krr@1": {"trainer": "krr", "labels": "soft", "students": 1} | KERNEL,
    "krr-fc1@1": {"trainer": "krr", "labels": "soft", "students": 1} | KERNEL | {"kernel": "fc1"},
    "native-kip@1": {
        "trainer": "finite-width",
        "labels": "soft",
        "augment": "none",
        "backbones": ["convnet-w1024-nn-kip"],
    }
    | COMMON
    | {"epochs": None, "steps": 5000, "lr": None, "weight_decay": 1e-3, "batch": 100}
    | {"schedule": "cosine", "lr_factors": [1.0, 0.25, 0.0625, 0.015625], "validation": 5000},
}


def test_every_protocol_has_a_digest_and_a_recipe_here() -> None:
    assert list(PROTOCOLS) == list(DIGESTS) == [*RECIPES, *OTHERS]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_digest_is_what_it_was(name: str) -> None:
    assert PROTOCOLS[name].digest == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_recipe_is_what_it_was(name: str) -> None:
    outer = {"augment": "auto", "labels": "hard", "backbones": ["convnet"], "trainer": "sgd", "students": 5}
    if name in OTHERS:
        expected = outer | OTHERS[name]
    else:
        trained = COMMON if RECIPES[name].get("trainer", "sgd") in ("sgd", "distill") else {}
        expected = outer | trained | RECIPES[name]
    values = PROTOCOLS[name].model_dump(mode="json")
    found = {key: values[key] for key in outer} | values["options"]
    assert found == expected


def test_no_two_protocols_are_one_recipe() -> None:
    assert len(set(DIGESTS.values())) == len(DIGESTS)


def test_a_new_field_keeps_old_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Options(SGDOptions):
        temperature: float = 1.0

    class Newer(Protocol):
        teacher: str = "none"

    old = PROTOCOLS["mtt@1"]
    monkeypatch.setattr(module, "trainer_options", lambda _: Options)
    newer = Newer(**json.loads(old.model_dump_json()))
    assert isinstance(newer.options, Options)
    assert newer.digest == old.digest
