"""RDED: tile the crops of real images that a trained network finds easiest.

Sun, Shi, Yu and Lin, "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
CVPR 2024, arXiv 2312.03526. Nothing is optimised; students get labels of the same network, on line.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Recipe, Rng, State, SyntheticSet
from ddbench.backbones import names
from ddbench.engine.decode import assembled
from ddbench.engine.mixing import MOSAIC, MOSAIC_SIDE
from ddbench.errors import DataError
from ddbench.training.networks import TrainedNetwork, as_seen

# Share of an image's area that a crop has, as RandomResizedCrop draws it; crops are square.
SMALLEST, LARGEST = 0.08, 1.0


class RDEDConfig(MethodConfig):
    """Options of RDED."""

    pool: int = Field(300, ge=1, description="Random real images of a class that crops are taken from.")
    crops: int = Field(5, ge=1, description="Random crops of each of them, of which the easiest is kept.")
    factor: int | None = Field(None, ge=1, description="F x F crops make an image. none: 2 from 128 pixels on, else 1.")
    jpeg: bool = Field(True, description="Whether images pass through JPEG, as files of the authors' code do.")
    batch: int | None = Field(
        None, ge=1, description="Images in a student's step under rded@1. none: ipc, and 10 at least."
    )
    teacher: str = Field("resnet18-bn", description="Backbone of the network that finds crops easy or not.")
    teacher_epochs: int = Field(60, ge=1, description="Epochs that it is trained on the real images.")
    teacher_lr: float = Field(0.05, gt=0, description="Largest step size of that training (cosine schedule).")


@dataclass
class Tiled(State):
    """Shapes: images [K * ipc, C, H, W] uint8 on the host, class by class."""

    images: Tensor


class RDED(Method[Tiled]):
    """Realistic, diverse and efficient: everything happens in start."""

    name = "rded"
    info = MethodInfo(
        title="Realistic, Diverse and Efficient Dataset Distillation",
        venue="CVPR",
        year=2024,
        arxiv="2312.03526",
        learns=("images",),
        native="rded@2",
    )
    Config = RDEDConfig
    config: RDEDConfig

    def prepare(self, problem: Problem) -> None:
        factor, least = self.factor(problem), min(problem.shape[1:])
        if factor > least:  # before minutes of training
            raise DataError(
                f"images of {problem.shape[1]} x {problem.shape[2]} cannot hold {factor} x {factor} crops. Choose a "
                f"factor of at most {least}."
            )
        own = self.observed(problem)
        own.artifacts.get(self.network(own), own)

    def start(self, problem: Problem) -> Tiled:
        rng = problem.rng.fold("start")
        return Tiled(torch.cat([self.tiled(problem, k, rng.fold("class", k)) for k in range(problem.classes)]))

    def step(self, problem: Problem, state: Tiled, rng: Rng) -> Metrics:
        return {}

    def finished(self, state: Tiled) -> bool:
        return True

    def export(self, problem: Problem, state: Tiled) -> SyntheticSet:
        batch = self.config.batch or max(10, problem.ipc)
        return SyntheticSet(state.images.clone(), problem.class_labels(), Recipe(batch=batch))

    def tiled(self, problem: Problem, label: int, rng: Rng) -> Tensor:
        """[ipc, C, H, W] uint8: the images of one class, of F x F crops each, row by row. The ipc easiest crops are the
        first tiles of all images, the next ones their second tiles, and so on."""
        factor, first = self.factor(problem), int(problem.train.offsets[label])
        there = int(problem.train.counts[label])
        order = torch.randperm(there, generator=rng.fold("pool").torch())[: self.config.pool]
        images = problem.train.images[first + order]
        size = (problem.shape[1] // factor, problem.shape[2] // factor)
        crops = torch.stack(
            [random_crops(images, size, rng.fold("crop", number)) for number in range(self.config.crops)], dim=1
        )
        losses = self.losses(problem, crops.flatten(0, 1), label).unflatten(0, crops.shape[:2])
        easiest, which = losses.min(dim=1)
        kept = easiest.argsort()[: problem.ipc * factor**2]
        best = crops[kept, which[kept]]
        # Fewer images than tiles are wanted: the easiest come again.
        best = best[torch.arange(problem.ipc * factor**2) % len(best)]
        tiles = best.unflatten(0, (factor**2, problem.ipc)).transpose(0, 1).flatten(0, 1)
        whole = mosaic(tiles, factor, problem.shape[1:])
        return through_jpeg(whole) if self.config.jpeg else whole

    def losses(self, problem: Problem, crops: Tensor, label: int) -> Tensor:
        """[N]: the network's cross-entropy on uint8 crops [N, C, h, w], in the middle of an empty image."""
        own = self.observed(problem)
        network = own.artifacts.get(self.network(own), own).to(problem.device)
        height, width = problem.shape[1:]
        found = []
        for pixels in as_seen(crops, problem):
            above, left = (height - pixels.shape[2]) // 2, (width - pixels.shape[3]) // 2
            below, right = height - pixels.shape[2] - above, width - pixels.shape[3] - left
            with torch.no_grad():
                logits = own.backbone(network, F.pad(pixels, (left, right, above, below)), train=False)[0]
            found.append(-logits.float().log_softmax(dim=1)[:, label])
        return torch.cat(found).cpu()

    def factor(self, problem: Problem) -> int:
        """F, of F x F crops in an image."""
        return self.config.factor or (MOSAIC if min(problem.shape[1:]) >= MOSAIC_SIDE else 1)

    def observed(self, problem: Problem) -> Problem:
        """The problem with the network's backbone."""
        return problem.with_backbone(names.canonical(self.config.teacher, problem.shape))

    def network(self, own: Problem) -> TrainedNetwork:
        return TrainedNetwork.of(own, epochs=self.config.teacher_epochs, lr=self.config.teacher_lr, seed=0)


def random_crops(images: Tensor, size: tuple[int, int], rng: Rng) -> Tensor:
    """One random square of each image [N, C, H, W] uint8, between 8 % and all of its area, resized to `size`."""
    shares, across, down = torch.rand(3, len(images), generator=rng.torch()).tolist()
    height, width = images.shape[-2:]
    crops = []
    for image, share, x, y in zip(images, shares, across, down, strict=True):
        area = (SMALLEST + (LARGEST - SMALLEST) * share) * height * width
        side = min(round(area**0.5), height, width)
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        crops.append(resized_crop(image, top, left, side, side, list(size), InterpolationMode.BILINEAR, antialias=True))
    return torch.stack(crops)


def mosaic(crops: Tensor, factor: int, shape: tuple[int, int]) -> Tensor:
    """[N * F * F, C, h, w] -> [N, C, H, W]: F x F crops in an image, row by row. What they leave free is black."""
    whole = assembled(crops, factor)
    return F.pad(whole, (0, shape[1] - whole.shape[3], 0, shape[0] - whole.shape[2]))


def through_jpeg(images: Tensor) -> Tensor:
    """Images [N, C, H, W] uint8, grey or in colours, as they come back from JPEG of Pillow's usual quality."""
    back = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG")
        with Image.open(file) as opened:
            pixels = np.asarray(opened)
        back.append(torch.from_numpy(pixels.copy()).reshape(image.shape))
    return torch.stack(back).permute(0, 3, 1, 2).contiguous()
