"""Protocols: how a set is judged, as named, versioned, frozen values.

A protocol is fixed before anyone looks at test accuracy. The recipes are those of the field's papers; each preset
names its source. Two protocols never share a column of a leaderboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator, model_validator

from ddbench.arguments import MOST_STUDENTS
from ddbench.config import explain, read_toml
from ddbench.errors import ConfigError, closest
from ddbench.files import file_called
from ddbench.training.options import SGDOptions, TrainerOptions

Track = Literal["hard", "soft", "teacher"]
TRACKS: tuple[Track, ...] = get_args(Track)
OWN = "own"  # among backbones: the one that made the set


class ReplayOptions(TrainerOptions):
    """None: the set says which images make each step, and how long the step is."""


class RidgeHeadOptions(TrainerOptions):
    """Training of features under a head that ridge regression solves for, for as many steps as the set asks for.

    Source: Bohdal, Yang and Hospedales, 2020 (arXiv 2006.08572).
    """

    lr: float = Field(1e-3, gt=0, description="Adam step size on the features.")
    lr_scale: float = Field(0.01, gt=0, description="Adam step size on the factor of the head.")
    ridge: float = Field(1.0, gt=0, description="Regularisation of the head.")
    head_rate: float = Field(0.01, gt=0, le=1, description="Share of each step's solution in the running head.")
    through_head: bool = Field(
        False, description="Whether features also learn through the step's solution, as in the authors' code."
    )


class DistillOptions(SGDOptions):
    """Training on soft labels at a temperature, and on the class beside them: knowledge distillation.

    Source: Hinton, Vinyals and Dean, 2015 (arXiv 1503.02531).
    """

    targets: Literal["teacher", "given", "fixed"] = Field(
        "teacher",
        description="teacher: soft labels of a teacher, for each augmented image. fixed: of a teacher, one for each "
        "image as it is. given: those that the set has.",
    )
    temperature: float = Field(4.0, gt=0, description="Logits of teacher and student are divided by it.")
    scaled: bool = Field(
        True,
        description="Whether the soft part of the loss is multiplied by the temperature squared. Adam and AdamW take "
        "the same steps without, but for gradients near their epsilon.",
    )
    hard_weight: float = Field(0.1, ge=0, le=1, description="Share of the loss on the class; the rest is soft.")
    teacher: str = Field("convnet", description="Backbone of the teacher, which ddbench trains on the real images.")
    teacher_epochs: int = Field(60, ge=1, description="Epochs of the teacher.")
    teacher_lr: float = Field(0.05, gt=0, description="Largest step size of the teacher (cosine schedule).")


class KRROptions(TrainerOptions):
    """Kernel ridge regression on the set, with the NTK of an infinitely wide network."""

    kernel: str = Field("convnet", description="Network of the NTK, as KIP's option of that name.")
    ridge: float = Field(1e-6, gt=0, description="Ridge, as a share of the mean diagonal of the support's kernel.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Rounding of kernels; solved in float64.")

    def judge(self, backbone: str) -> str:
        return f"{self.kernel} kernel"


class FiniteWidthOptions(SGDOptions):
    """Minibatch training on half the mean squared error, as KIP's authors train finite networks on its sets."""

    epochs: int | None = Field(None, ge=0, description="E; E + 1 passes over the set are made. None: `steps` decides.")
    steps: int | None = Field(5000, ge=1, description="Train this many steps.")
    lr: float | None = Field(None, gt=0, description="Step size; none takes a share of the largest stable one.")
    lr_factors: tuple[PositiveFloat, ...] = Field(
        (1.0,),
        min_length=1,
        description="Shares of the largest step size that the tangent kernel allows. Of several the one is taken with "
        "which a network of validation does best.",
    )
    validation: int = Field(5000, ge=1, description="Training images by which the share is chosen.")
    weight_decay: float = Field(1e-3, ge=0, description="On the parameters that `decayed` says.")
    batch: int = Field(100, ge=1, description="Images per step; the last, smaller batch of an epoch is kept.")
    schedule: Literal["step", "cosine", "constant", "milestones"] = Field(
        "cosine", description="As for the trainer sgd."
    )

    @field_validator("lr", mode="before")
    @classmethod
    def _learned_by_name(cls, value: Any) -> Any:
        if value == "learned":
            raise ValueError("no step size is learned for it; a number, or none for a share of the largest stable one")
        return value

    @model_validator(mode="before")
    @classmethod
    def _epochs_instead(cls, values: Any) -> Any:
        """Epochs that somebody asks for take the place of the usual steps."""
        if isinstance(values, dict) and values.get("epochs") is not None:
            if values.get("steps") is not None:
                raise ValueError("give epochs or steps, not both")
            return {**values, "steps": None}
        return values


class Protocol(BaseModel):
    """One way of judging a set. `id` is what boards print; the digest says whether two protocols are the same.

    `augment`: "auto" is DiffAugment by the dataset's kind (no flip for digits), one operation a step; "idc" that of
    IDC, flip and colour in every step and then crop, scale or rotation; "dc@2" the legacy rule of DC ("dc" was an
    earlier reading of it, and is kept where both say the same), "mixing@2" that of RDED (flips, CutMix, and crops of
    mosaics; a teacher labels what comes of it; "mixing" was an earlier reading), "none", or a strategy. Backbone
    "convnet" is the ConvNet whose depth fits the dataset, "own" the one that made the set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Short name, as in dsa@1.")
    version: int = Field(1, ge=1, description="Raised whenever anything below changes.")
    trainer: str = Field("sgd", description="Entry point in the group ddbench.trainers.")
    options: Any = Field(default_factory=SGDOptions, description="The trainer's own options.")
    augment: str = Field("auto", description="Augmentation of training images.")
    labels: Literal["hard", "soft"] = Field(
        "hard", description="hard: arg-max of soft labels. soft: as the set has them."
    )
    backbones: tuple[str, ...] = Field(("convnet",), min_length=1, description="Architectures that a row needs.")
    students: int = Field(
        5, ge=1, le=MOST_STUDENTS, description="Fresh networks per set and backbone. Not part of the digest."
    )
    source: str = Field("", description="Where the recipe is from. Not part of the digest.")

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_trainer(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "options" not in values and "trainer" not in values:
            return values
        trainer, options = str(values.get("trainer", "sgd")), values.get("options", {})
        if ".py" in trainer:
            # A digest over a path would not see an edit of the file, and two recipes would share a column.
            raise ValueError("a trainer comes from a package's entry point, not from a file")
        # Options that are made already, as those of the presets below, are compared with the trainer when it is made:
        # it needs torch, which whoever only lists protocols does not wait for.
        if isinstance(options, TrainerOptions):
            return values
        model = trainer_options(trainer)
        if not isinstance(options, dict):
            raise ValueError(f"the options of trainer {trainer!r} are a {model.__name__} or a table")
        return {**values, "options": model(**options)}

    @property
    def takes_step_size(self) -> bool:
        """Whether students are trained with a step size that the set brings."""
        options = self.options
        return isinstance(options, SGDOptions) and options.lr is None and not isinstance(options, FiniteWidthOptions)

    @property
    def id(self) -> str:
        """As printed: dsa@1."""
        return f"{self.name}@{self.version}"

    @property
    def track(self) -> Track:
        """Which labels students see: classes; soft ones that are stored, one for each image; a teacher's, on line.

        Results of two tracks say nothing of each other's images (Qin et al., NeurIPS 2024, arXiv 2406.10485).
        """
        if isinstance(self.options, DistillOptions) and self.options.targets == "teacher":
            return "teacher"
        return self.labels

    @property
    def brings_labels(self) -> bool:
        """Whether soft labels that are stored are the protocol's own, a teacher's, whatever labels a set has."""
        return isinstance(self.options, DistillOptions) and self.options.targets == "fixed"

    def track_of(self, *, more_than_classes: bool) -> Track:
        """The track of a set: a protocol that takes labels as they are trains on classes where a set has only those.

        `more_than_classes` is `SyntheticSet.more_than_classes`.
        """
        if self.track == "soft" and not self.brings_labels and not more_than_classes:
            return "hard"
        return self.track

    @property
    def digest(self) -> str:
        """16 hex digits over every field that is not at its default, so that a new field keeps old digests."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude={"students", "source", "options"})
        digest: str = self.options.digest(**values)
        return digest

    @property
    def seeds(self) -> str:
        """What students are seeded by: the digest, without a budget of images, which differs with the size of a set."""
        if getattr(self.options, "forwards", None) is None:
            return self.digest
        return self.model_copy(update={"options": self.options.model_copy(update={"forwards": None})}).digest


def trainer_options(name: str) -> type[TrainerOptions]:
    """The options model of a trainer, by its entry point. Raises: PluginError where it is no trainer."""
    from ddbench.evaluation.trainer import trainer_class

    return trainer_class(name).Options


PROTOCOLS: dict[str, Protocol] = {
    p.id: p
    for p in (
        Protocol(name="dsa", source="Zhao and Bilen, ICML 2021 (arXiv 2102.08259); used by DSA, DM and later papers"),
        Protocol(
            name="dsa-soft", labels="soft", source="as dsa@1, with cross-entropy on the set's own soft labels"
        ),
        Protocol(
            name="dsa-unaugmented", augment="none",
            source="ddbench: dsa@1 without augmentation, for scores that need both",
        ),
        Protocol(
            name="dsa-soft-unaugmented", augment="none", labels="soft",
            source="ddbench: dsa-soft@1 without augmentation, for scores that need both",
        ),
        Protocol(
            name="dc",
            augment="dc",
            options=SGDOptions(epochs=300, epochs_augmented=1000),
            source="as dc@2; only where both are the same recipe, which leaves out MNIST",
        ),
        Protocol(
            name="dc", version=2, augment="dc@2", options=SGDOptions(epochs=300, epochs_augmented=1000),
            source="Zhao, Mopuri and Bilen, ICLR 2021 (arXiv 2006.05929)",
        ),
        Protocol(
            name="cafe", augment="dc", options=SGDOptions(epochs=600, epochs_augmented=1000),
            source="as cafe@2; only where both are the same recipe, which leaves out MNIST",
        ),
        Protocol(
            name="cafe", version=2, augment="dc@2", options=SGDOptions(epochs=600, epochs_augmented=1000),
            source="Wang et al., CVPR 2022 (arXiv 2203.01531)",
        ),
        Protocol(
            name="mtt",
            options=SGDOptions(lr=None, align_corners=True),
            source="Cazenavette et al., CVPR 2022 (arXiv 2203.11932), last iterate",
        ),
        Protocol(
            name="datm",
            labels="soft",
            options=SGDOptions(lr=None, batch=128, align_corners=True),
            source="Guo et al., ICLR 2024 (arXiv 2310.05773), last iterate: as mtt@1 with the set's own soft labels",
        ),
        Protocol(
            name="dd", trainer="replay", augment="none", backbones=(OWN,), students=20, options=ReplayOptions(),
            source="Wang et al., arXiv 1811.10959: the set's own steps, once; the paper has 200 students",
        ),
        Protocol(
            name="ld", augment="none", labels="soft", backbones=(OWN,), students=20,
            options=SGDOptions(
                epochs=None, batch=None, sampling="subset", schedule="constant", optimizer="adam", lr=1e-3,
                weight_decay=0.0,
            ),
            source="Bohdal, Yang and Hospedales, 2020 (arXiv 2006.08572), for as many steps as the set asks for",
        ),
        Protocol(
            name="ld-ridge", trainer="ridge-head", augment="none", labels="soft", backbones=(OWN,), students=20,
            options=RidgeHeadOptions(),
            source="as ld-ridge@2, with a head that is a constant to the features, unlike in the authors' code",
        ),
        Protocol(
            name="ld-ridge", version=2, trainer="ridge-head", augment="none", labels="soft", backbones=(OWN,),
            students=20, options=RidgeHeadOptions(through_head=True),
            source="as ld@1, with the ridge regression head of the paper's second variant",
        ),
        Protocol(
            name="full",
            options=SGDOptions(epochs=79, lr=0.05, schedule="cosine", warmup=0.05, nesterov=True),
            source="ddbench: training on the whole dataset",
        ),
        Protocol(
            name="distill",
            trainer="distill",
            options=DistillOptions(),
            labels="soft",
            source="ddbench: dsa@1 with a teacher's soft labels (Hinton et al., 2015, arXiv 1503.02531)",
        ),
        Protocol(
            name="distill-given",
            trainer="distill",
            options=DistillOptions(targets="given"),
            labels="soft",
            source="ddbench: dsa@1 with the set's soft labels at a temperature (Hinton et al., 2015, arXiv 1503.02531)",
        ),
        Protocol(
            name="soft-labels",
            labels="soft",
            options=SGDOptions(epochs=3000, schedule="milestones", milestones=(750, 1500, 2250, 3000), factor=0.3),
            source="Qin et al., NeurIPS 2024 (arXiv 2406.10485): the set's own soft labels, last epoch",
        ),
        Protocol(
            name="dance",
            augment="color_crop_flip_scale_rotate",
            options=SGDOptions(
                epochs=1499, batch=64, schedule="milestones", milestones=(1000, 1250), factor=0.2, cutmix=0.5
            ),
            source="as dance@2, with one operation of augmentation a step, unlike in the authors' code",
        ),
        Protocol(
            name="dance",
            version=2,
            augment="idc",
            options=SGDOptions(
                epochs=1499, batch=64, schedule="milestones", milestones=(1000, 1250), factor=0.2, cutmix=0.5
            ),
            source="Zhang et al., IJCAI 2024 (arXiv 2406.01063): CutMix in every second step, last epoch",
        ),
        Protocol(
            name="ncfm",
            augment="color_crop_flip_scale_rotate",
            options=SGDOptions(
                epochs=1999, batch=128, lr=1e-3, optimizer="adamw", weight_decay=0.01, schedule="milestones",
                milestones=(400, 800, 1200, 1600), factor=0.5, cutmix=0.5,
            ),
            source="as ncfm@2, with one operation of augmentation a step, unlike in the authors' code",
        ),
        Protocol(
            name="ncfm",
            version=2,
            augment="idc",
            options=SGDOptions(
                epochs=1999, batch=128, lr=1e-3, optimizer="adamw", weight_decay=0.01, schedule="milestones",
                milestones=(400, 800, 1200, 1600), factor=0.5, cutmix=0.5,
            ),
            source="Wang et al., CVPR 2025 (arXiv 2502.20653): CutMix in every second step, hard labels, last epoch",
        ),
        Protocol(
            name="hard-truths-hl",
            options=SGDOptions(epochs=300),
            source="Dey et al., CVPR 2026 (arXiv 2604.18811): hard labels",
        ),
        Protocol(
            name="hard-truths-sl",
            trainer="distill",
            labels="soft",
            options=DistillOptions(
                targets="fixed", temperature=20.0, hard_weight=0.0, epochs=299, optimizer="adamw", lr=1e-3,
                weight_decay=0.01, schedule="cosine",
            ),
            source="Dey et al., CVPR 2026 (arXiv 2604.18811): a teacher's labels, one for each image; weight decay "
            "that of AdamW as it comes, teacher that of distill@1",
        ),
        Protocol(
            name="rded",
            trainer="distill",
            labels="soft",
            augment="mixing",
            backbones=("resnet18-bn",),
            options=DistillOptions(
                temperature=20.0, hard_weight=0.0, teacher="resnet18-bn", epochs=299, batch=None, optimizer="adamw",
                lr=1e-3, weight_decay=0.01, schedule="cosine", stretch=2.0,
            ),
            source="as rded@2, as it was read before it was run beside the authors' code; with the batch of the set",
        ),
        Protocol(
            name="rd3",
            trainer="distill",
            labels="soft",
            augment="mixing",
            backbones=("resnet18-bn",),
            options=DistillOptions(
                temperature=20.0, hard_weight=0.0, teacher="resnet18-bn", epochs=399, batch=50, optimizer="adamw",
                lr=1e-3, weight_decay=0.01, schedule="cosine", stretch=2.0,
            ),
            source="as rd3@2, with the smoothed step size that RDED has",
        ),
        Protocol(
            name="rded",
            version=2,
            trainer="distill",
            labels="soft",
            augment="mixing@2",
            backbones=("resnet18-bn-he",),
            options=DistillOptions(
                temperature=20.0, scaled=False, hard_weight=0.0, teacher="resnet18-bn", epochs=299, batch=None,
                batch_by="rded", optimizer="adamw", lr=1e-3, weight_decay=0.01, decayed="weights", schedule="cosine",
                schedule_by="pass", stretch=2.0,
            ),
            source="Sun et al., CVPR 2024 (arXiv 2312.03526), the authors' code: a teacher on line, last epoch",
        ),
        Protocol(
            name="rd3",
            version=2,
            trainer="distill",
            labels="soft",
            augment="mixing@2",
            backbones=("resnet18-bn-he",),
            options=DistillOptions(
                temperature=20.0, scaled=False, hard_weight=0.0, teacher="resnet18-bn", epochs=399, batch=50,
                optimizer="adamw", lr=1e-3, weight_decay=0.01, decayed="weights", schedule="cosine", schedule_by="pass",
            ),
            source="Zhong et al., ICLR 2026 (arXiv 2509.19743), of whose smoothing ResNet18 has none; temperature, "
            "weight decay and a step size that stays within a pass are RDED's",
        ),
        Protocol(
            name="quick",
            options=SGDOptions(epochs=None, steps=300, batch=64, lr=0.02, schedule="cosine", warmup=0.1),
            backbones=("convnet-w32", "mlp"),
            students=5,
            source="ddbench: a short look, not comparable with published numbers",
        ),
        Protocol(
            name="quick-large",
            options=SGDOptions(
                epochs=None, steps=300, batch=64, lr=0.02, lr_pixels=64 * 64, schedule="cosine", warmup=0.1
            ),
            backbones=("convnet-w32", "mlp"),
            students=5,
            source="ddbench: as quick@1, with a step size for images larger than 64 x 64",
        ),
        Protocol(
            name="quick-slow",
            options=SGDOptions(
                epochs=None, steps=300, batch=64, lr=0.005, lr_pixels=32 * 32, schedule="cosine", warmup=0.1
            ),
            backbones=("convnet-w32", "mlp"),
            students=5,
            source="ddbench: as quick@1, with a step size for AlexNet",
        ),
        Protocol(
            name="krr",
            trainer="krr",
            options=KRROptions(),
            labels="soft",
            students=1,
            source="Nguyen et al., NeurIPS 2021 (arXiv 2107.13034): the infinite ConvNet predicts",
        ),
        Protocol(
            name="krr-fc1",
            trainer="krr",
            options=KRROptions(kernel="fc1"),
            labels="soft",
            students=1,
            source="Nguyen et al., ICLR 2021 (arXiv 2011.00050): an infinite network with one hidden layer predicts",
        ),
        Protocol(
            name="native-kip",
            trainer="finite-width",
            options=FiniteWidthOptions(lr_factors=(1.0, 0.25, 0.0625, 0.015625)),
            augment="none",
            labels="soft",
            backbones=("convnet-w1024-nn-kip",),
            source="Nguyen et al., NeurIPS 2021 (arXiv 2107.13034); decay of the authors' example, step size chosen "
            "as there, from a shorter list",
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """The built-in protocols, as printed: dsa@1."""
    return list(PROTOCOLS)


def protocol(ref: str) -> Protocol:
    """A protocol by name ("dsa", "dsa@1") or from a TOML file with its fields.

    Raises: ConfigError for an unknown name, and for a file that does not describe a protocol.
    """
    if ref.endswith(".toml"):
        return _from_file(Path(ref))
    name = ref.lower()  # papers write DSA
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    versions = [p for p in PROTOCOLS.values() if p.name == name]
    if versions:
        return max(versions, key=lambda p: p.version)
    known = [*PROTOCOLS, *(p.name for p in PROTOCOLS.values())]
    near = file_called(ref, ".toml") or closest(ref, known)
    raise ConfigError(f"there is no protocol {ref!r}. {near}`ddbench list protocols` shows what there is.")


def judged_by(ref: str, backbone: str) -> str:
    """What gives the accuracy: the backbone, or the kernel where a built-in protocol trains no network."""
    known = PROTOCOLS.get(ref)
    name: str = known.options.judge(backbone) if known else backbone
    return name


def _refuse_unknown(path: Path, values: Mapping[str, Any]) -> None:
    """Raises: ConfigError for a key that is neither a field of a protocol nor an option of its trainer."""
    trainer, options = str(values.get("trainer", "sgd")), values.get("options", {})
    if ".py" in trainer or not isinstance(options, dict):
        return  # said by the protocol itself
    fields, known = list(Protocol.model_fields), list(trainer_options(trainer).model_fields)
    for key in sorted(values.keys() - set(fields)):
        where = f"It is an option of the trainer {trainer}: write it below [options]." if key in known else ""
        raise ConfigError(
            f"{path}: there is no {key!r} in a protocol. "
            + (where or closest(key, fields).strip() or f"It has: {', '.join(fields)}.")
        )
    for key in sorted(options.keys() - set(known)):
        where = "It is a field of the protocol: write it above [options]." if key in fields else ""
        has = f"It has: {', '.join(known)}." if known else "It has none."
        raise ConfigError(
            f"{path}: there is no {key!r} among the options of the trainer {trainer}. "
            + (where or closest(key, known).strip() or has)
        )


def _from_file(path: Path) -> Protocol:
    values = read_toml(path)
    _refuse_unknown(path, values)
    try:
        own = Protocol(**values)
    except ValidationError as error:
        raise ConfigError(explain(str(path), error)) from None
    built_in = PROTOCOLS.get(own.id)
    taken = own.name in {p.name for p in PROTOCOLS.values()}
    if taken and (built_in is None or built_in.digest != own.digest):
        raise ConfigError(
            f"{path} calls itself {own.id!r}, and that name is taken by another recipe; a column is one recipe. "
            "Give it a name of its own."
        )
    return own
