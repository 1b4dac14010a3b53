"""How many images a student trains on, told from its protocol and the size of the set. Needs no torch."""

from __future__ import annotations

from ddbench.evaluation.protocol import KRROptions, Protocol
from ddbench.training.options import SGDOptions

# What the network is called here that DC's code calls ConvNetBN, at whatever size of images.
CONVNET_BN = "convnet-d3-bn"
# The augmentations of protocols that follow DC's code, which asks for other epochs where it augments.
LEGACY = ("dc", "dc@2")


def expected_forwards(protocol: Protocol, backbone: str, dataset: str, images: int) -> int | None:
    """Images that one student trains on, repeats counted, of a set of so many; 0 where no network is trained.

    None where the protocol leaves steps or images per step to the set, or belongs to a trainer that is not known here.
    """
    options = protocol.options
    if isinstance(options, KRROptions):
        return 0
    if not isinstance(options, SGDOptions):
        return None
    if (options.epochs, options.steps, options.forwards) == (None, None, None):
        return None
    if options.batch is None:
        counted = (options.steps, options.forwards, options.sampling) == (None, None, "epochs")
        if options.batch_by == "set" or not counted:
            return None
        # Passes over a set see as many images whatever the size of their steps.
        options = options.model_copy(update={"batch": images})
    legacy = legacy_strategy(backbone, dataset) if protocol.augment in LEGACY else "none"
    return options.student_forwards(images, passes_of(epochs_of(options, legacy)))


def legacy_strategy(backbone: str, dataset: str) -> str:
    """How the code of DC and CAFE augments: students that are its ConvNetBN, and those on MNIST; nothing else."""
    return "crop_noise" if backbone == CONVNET_BN else "crop_scale_rotate" if dataset == "mnist" else "none"


def epochs_of(options: SGDOptions, legacy: str) -> int:
    """E of a recipe under a legacy strategy or "none"; 0 where steps decide."""
    if legacy != "none" and options.epochs_augmented is not None:
        return options.epochs_augmented
    return options.epochs or 0


def passes_of(epochs: int) -> int:
    """What the papers' code makes of E epochs: it counts from 0 up to and including E."""
    return epochs + 1
