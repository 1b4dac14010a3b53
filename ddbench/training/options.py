"""Options of plain training, with the defaults of the field."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from ddbench.config import Options

# The code of RDED knows Tiny ImageNet by its name; its rule for batches has only numbers of classes here.
TINY_IMAGENET_CLASSES = 200


class TrainerOptions(Options):
    """Options of a trainer; each trainer has its own frozen subclass."""

    def digest(self, **beside: Any) -> str:
        """16 hex digits over the options that are not at their defaults, and named values beside them."""
        options = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps({**beside, "options": options}, sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def judge(self, backbone: str) -> str:
        """What gives the accuracy, as boards print it: the backbone, unless a trainer says otherwise."""
        return backbone


class SGDOptions(TrainerOptions):
    """Minibatch training of a student, as in the evaluation routine that DC, DSA, DM, CAFE and MTT share.

    Counted as the papers' code does: `epochs` E means E + 1 passes, and the step size falls after pass E // 2 + 1.
    """

    epochs: int | None = Field(1000, ge=0, description="E; E + 1 passes over the set are made. None: `steps` decides.")
    epochs_augmented: int | None = Field(None, ge=0, description="E where DC's augmentation is active.")
    steps: int | None = Field(None, ge=1, description="Instead of epochs. None where `epochs` is none: the set's own.")
    lr: float | None = Field(0.01, gt=0, description="Step size; learned takes that of the set.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="Which optimiser moves the student. adamw: Adam, whose weight decay is not in the gradient."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    nesterov: bool = Field(False, description="Nesterov momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="On the parameters that `decayed` says.")
    decayed: Literal["all", "weights"] = Field(
        "all",
        description="What weight decay moves. all: every parameter, norms and biases included. weights: those of more "
        "than one dimension with weight in their name.",
    )
    batch: int | None = Field(
        256, ge=1, description="Images per step; the last, smaller batch of an epoch is kept. none: the set's own."
    )
    batch_by: Literal["set", "rded"] = Field(
        "set",
        description="Where `batch` is none. set: the set's own. rded: 10, 50 or 100 images from 1, 10 or 50 of a class "
        "on, and twice as many from 100 classes on; 100 with 200 classes.",
    )
    sampling: Literal["epochs", "subset"] = Field(
        "epochs", description="epochs: every image once a pass, in a new order. subset: every step draws afresh."
    )
    schedule: Literal["step", "cosine", "constant", "milestones"] = Field(
        "step",
        description="step: a tenth after pass E // 2 + 1, momentum dropped. cosine: to zero, linear warm-up. "
        "milestones: times `factor` after each of those passes, momentum kept.",
    )
    cutmix: float = Field(
        0.0, ge=0, le=1, description="Share of the steps in which each image gets a box of another one, and its label."
    )
    milestones: tuple[PositiveInt, ...] = Field((), description="Passes after which the step size falls (milestones).")
    factor: float = Field(0.1, gt=0, le=1, description="What the step size is multiplied by (milestones).")
    stretch: float = Field(
        1.0, ge=1, description="The cosine falls as if training took so many times as long; 2 ends at half (cosine)."
    )
    schedule_by: Literal["step", "pass"] = Field(
        "step", description="pass: the step size of a pass is that of its first step (cosine)."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps with linearly rising step size (cosine).")
    align_corners: bool = Field(
        False, description="Which coordinates rotations take; square images come out the same either way."
    )
    forwards: int | None = Field(
        None,
        ge=1,
        description="Images that a student trains on, repeats counted, whatever the size of the set and of a step, to "
        "the nearest step. `epochs` and `steps` then say only when in the training the step size falls.",
    )
    lr_pixels: int | None = Field(
        None, ge=1, description="Pixels of an image up to which the step size holds; with more it falls in proportion."
    )

    @field_validator("lr", mode="before")
    @classmethod
    def _learned_by_name(cls, value: Any) -> Any:
        """As tables print it and TOML can say it; a digest knows it as None."""
        return None if value == "learned" else value

    def batch_of(self, images: int, classes: int) -> int | None:
        """Images per step on a set of so many, of so many classes, as far as the set's own wish has no part in it.

        Source of the rule "rded": the code of Sun et al., CVPR 2024 (arXiv 2312.03526), which knows 1, 10 and 50 images
        of a class; numbers between them are as the next smaller one.
        """
        if self.batch is not None or self.batch_by == "set":
            return self.batch
        if classes == TINY_IMAGENET_CLASSES:
            return 100
        each = images // classes
        usual = 100 if each >= 50 else 50 if each >= 10 else 10
        return 2 * usual if classes >= 100 else usual

    def decays(self, name: str, dimensions: int) -> bool:
        """Whether weight decay moves a parameter of that name, of so many dimensions in one network.

        Source of the rule "weights": the code of Sun et al., CVPR 2024 (arXiv 2312.03526). The name counts, so that
        tokens and tables of positions, which have two dimensions or three, are spared as well.
        """
        return self.decayed == "all" or ("weight" in name and dimensions > 1)

    def student_forwards(self, images: int, passes: int) -> int:
        """Images that one network trains on, repeats counted: `passes` over so many, unless the options count steps."""
        assert self.batch is not None
        batch = min(self.batch, images)
        steps = self.steps if self.forwards is None else self.steps_of_forwards(images)
        if self.sampling == "subset":
            return (steps or passes) * batch
        if steps is None:
            return passes * images
        whole, rest = divmod(steps, math.ceil(images / batch))
        return whole * images + rest * batch

    def steps_of_forwards(self, images: int) -> int:
        """Steps after which a student has trained on `forwards` images of a set of so many, or nearest to that.

        At least one. Of two that are equally near the first is taken, so that the count is off by half a batch at most;
        it is exact wherever the set fits into `forwards` without a rest.
        """
        assert self.forwards is not None
        assert self.batch is not None
        batch = min(self.batch, images)
        passes, rest = (0, self.forwards) if self.sampling == "subset" else divmod(self.forwards, images)
        steps = rest // batch
        below, above = steps * batch, (steps + 1) * batch
        if self.sampling == "epochs":
            above = min(above, images)  # the last batch of a pass is what is left
        steps += above - rest < rest - below
        return max(1, passes * math.ceil(images / batch) + steps)
