"""How much of a set a network recognises that was trained on the real images: the set as a test set. No test image is
read, and nothing is trained on the set.

For generative models this is the GAN-test of Shmelkov, Schmid and Alahari, "How good is my GAN?", ECCV 2018,
arXiv 1807.09499; for condensed sets see Yang et al., "What is Dataset Distillation Learning?", ICML 2024,
arXiv 2406.04284.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ddbench import synthetic as sets
from ddbench.backbones import names as backbones
from ddbench.engine.precision import Precision
from ddbench.evaluation.evaluate import tested_together
from ddbench.evaluation.plan import on_device
from ddbench.evaluation.protocol import OWN, DistillOptions
from ddbench.problem import Problem
from ddbench.runs import provenance
from ddbench.runs.measures import Measures
from ddbench.runs.record import RecognisedPart, RunRecord, write_record
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, dataset_of, finished_record, problems, session
from ddbench.synthetic import SyntheticSet
from ddbench.training.networks import TrainedNetwork

# Those of the teacher of distill@1, so that one artefact serves both.
_TEACHER = DistillOptions()
SEED = 0


def recognise(path: Path, judges: Sequence[str], options: RunOptions) -> RunRecord:
    """Let networks that were trained on the real images say the classes of a finished run's set; rewrites its record.

    `judges` are their backbones; none: the ConvNet that fits the images. A network is trained once for each dataset and
    pixel space, and shared with protocols that have a teacher.
    Raises: RunError if the run is not finished; DataError if the dataset is not the one it was made from; ConfigError
    for a backbone that does not exist.
    """
    folder = RunDir.at(path)
    record = finished_record(folder)
    dataset = dataset_of(folder, options.data_root)
    names = networks(judges, folder.spec.backbone, dataset.info.shape)
    with session(options) as (stop, tell), folder.lock():
        sha256 = folder.set_sha256()
        synthetic = sets.load(folder.synthetic)
        measures = Measures.of(folder, sha256)
        for name in names:
            with stop.at_once():
                problem = problems(folder.spec, dataset, options, tell)(synthetic.pixels, name)
                measures = measures.having(recognised(synthetic, problem))
                measures.keep(folder)
        record = record.model_copy(update={"recognised": measures.recognised})
        write_record(folder.record, record)
        return record


def reservation(record: RunRecord) -> str:
    """What a person should know who reads how much of a set is recognised; "" of most sets."""
    # Mosaics are of smaller images, which no network has seen.
    if record.run.kind in ("coreset", "ceiling") and record.synthetic.decode == "none":
        return "a set of training images is recognised because the network has learned these very images."
    return ""


def networks(judges: Sequence[str], own: str, shape: tuple[int, int, int]) -> list[str]:
    """The backbones of the networks that are asked, each once; `own` is the run's. Without any, the ConvNet.

    Raises: ConfigError for one that does not exist.
    """
    asked = (own if name == OWN else backbones.canonical(name, shape) for name in judges or ("convnet",))
    return list(dict.fromkeys(asked))


def recognised(synthetic: SyntheticSet, problem: Problem) -> RecognisedPart:
    """The share of a set's images whose class a network of the problem's backbone says, trained on the real ones.

    Images count as students see them: decoded, so an image of four tiles is four. The largest of soft labels counts.
    """
    network = TrainedNetwork.of(problem, epochs=_TEACHER.teacher_epochs, lr=_TEACHER.teacher_lr, seed=SEED)
    weights = problem.artifacts.get(network, problem).to(problem.device)
    images, classes, forward = on_device(synthetic, problem, lambda one: one.hard_labels)
    size = tested_together(images.shape)
    right = 0
    # As students are tested: in full precision, because short numbers are often equal.
    with Precision("fp32").active(problem.device), torch.no_grad():
        for part, truth in zip(images.split(size), classes.split(size), strict=True):
            scores = problem.backbone(weights, forward(part), train=False)[0]
            right += int((scores.argmax(dim=-1) == truth).sum())
    return RecognisedPart(
        backbone=problem.backbone.name,
        network=network.key,
        epochs=network.epochs,
        lr=network.lr,
        images=len(images),
        accuracy=right / len(images),
        device=provenance.device_name(problem.device),
    )
