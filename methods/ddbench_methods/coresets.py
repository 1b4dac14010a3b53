"""Baselines that choose real images: random, herding, k-center, k-means; and the whole dataset, the ceiling.

Herding: Welling, "Herding dynamical weights to learn", ICML 2009. k-center: Sener and Savarese, "Active learning for
convolutional neural networks: a core-set approach", ICLR 2018, the greedy form. All three of herding, k-center and
k-means choose inside each class, in the embedding of a ConvNet that was trained on the training images.

With a `factor` above 1 each stored image is a mosaic of F x F real ones at a smaller size, which students see enlarged
(Kim et al., "Dataset condensation via efficient synthetic-data parameterization", ICML 2022): the controls of methods
that store their sets so, with as many bytes and as many training images.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ddbench import Method, MethodConfig, MethodInfo, Metrics, Problem, Rng, State, SyntheticSet
from ddbench.config import later
from ddbench.decoders import tiles
from ddbench.engine.decode import check_factor
from ddbench.initial import check_budget, mosaics
from ddbench.training.networks import TrainedNetwork


@dataclass
class Chosen(State):
    """Shapes: indices [N], rows of the training set, class by class."""

    indices: Tensor


class Coreset(Method[Chosen]):
    """A method that only chooses: everything happens in start, and there are no steps."""

    @abstractmethod
    def choose(self, problem: Problem, rng: Rng) -> Tensor:
        """Rows of the training set, class by class."""

    def start(self, problem: Problem) -> Chosen:
        return Chosen(self.choose(problem, problem.rng.fold("start")))

    def step(self, problem: Problem, state: Chosen, rng: Rng) -> Metrics:
        return {}

    def finished(self, state: Chosen) -> bool:
        return True

    def export(self, problem: Problem, state: Chosen) -> SyntheticSet:
        indices = state.indices.cpu()
        return SyntheticSet(
            problem.train.images[indices].clone(), problem.train.labels[indices].clone(), source_indices=indices.clone()
        )


class TiledConfig(MethodConfig):
    """Options of the methods that choose ipc images of each class, or what fills so many mosaics."""

    factor: int = later(1, ge=1, description="An image is a mosaic of F x F smaller ones, which students see enlarged.")


class Tiled(Coreset):
    """A method whose sets can be mosaics of what it has chosen."""

    Config = TiledConfig
    config: TiledConfig

    def chosen_of_a_class(self, problem: Problem) -> int:
        """How many images of a class are chosen. Raises: DataError when a class has fewer, or an image fewer pixels."""
        check_factor(self.config.factor, *problem.shape[1:])
        count = problem.ipc * self.config.factor**2
        check_budget(problem, count=count)
        return count

    def export(self, problem: Problem, state: Chosen) -> SyntheticSet:
        if self.config.factor == 1:
            return super().export(problem, state)
        images = mosaics(problem.train.images[state.indices.cpu()], self.config.factor)
        return SyntheticSet(images, problem.class_labels().cpu(), decode=tiles(self.config.factor))


class Random(Tiled):
    """Random training images, ipc of each class."""

    name = "random"
    info = MethodInfo(title="Random selection", kind="coreset")
    uses_backbone = False

    def choose(self, problem: Problem, rng: Rng) -> Tensor:
        return problem.real.class_indices(self.chosen_of_a_class(problem), rng).flatten()


class Whole(Coreset):
    """Every training image: the ceiling of all methods."""

    name = "whole"
    info = MethodInfo(title="Whole dataset", kind="ceiling", native="full@1")
    uses_backbone = False

    def choose(self, problem: Problem, rng: Rng) -> Tensor:
        return torch.arange(len(problem.train.labels))


class EmbeddedConfig(TiledConfig):
    """Options of the methods that choose in an embedding."""

    epochs: int = Field(20, ge=0, description="Epochs that the embedding ConvNet is trained on real data; 0: random.")
    lr_network: float = Field(0.02, gt=0, description="Largest step size of that training (cosine schedule).")


class Embedded(Tiled):
    """Chooses inside each class, in the embedding of a trained network."""

    Config = EmbeddedConfig
    config: EmbeddedConfig

    def _network(self, problem: Problem) -> TrainedNetwork:
        # The seed of the run, so that several sets differ, and herding, k-center and k-means share the network.
        return TrainedNetwork.of(problem, epochs=self.config.epochs, lr=self.config.lr_network, seed=problem.rng.seed)

    def prepare(self, problem: Problem) -> None:
        self.chosen_of_a_class(problem)  # before minutes of training
        problem.artifacts.get(self._network(problem), problem)

    def choose(self, problem: Problem, rng: Rng) -> Tensor:
        wanted = self.chosen_of_a_class(problem)
        network = problem.artifacts.get(self._network(problem), problem).to(problem.device)
        chosen = []
        for k, offset, count in zip(
            range(problem.classes), problem.train.offsets.tolist(), problem.train.counts.tolist(), strict=True
        ):
            rows = torch.arange(offset, offset + count)
            with torch.no_grad():
                points = torch.cat(
                    [problem.backbone.embed(network, problem.real.take(part), train=False) for part in rows.split(500)]
                )
            chosen.append(rows[self.among(points, wanted, rng.fold("class", k)).cpu()])
        return torch.cat(chosen)

    @abstractmethod
    def among(self, points: Tensor, count: int, rng: Rng) -> Tensor:
        """`count` distinct rows of points [N, D], the embedding of one class."""


class Herding(Embedded):
    """Each next image brings the mean of the chosen ones closest to the mean of the class."""

    name = "herding"
    info = MethodInfo(title="Herding", venue="ICML", year=2009, kind="coreset")

    def among(self, points: Tensor, count: int, rng: Rng) -> Tensor:
        return herding(points, count)


class KCenter(Embedded):
    """Each next image is the one farthest from the chosen ones."""

    name = "k-center"
    info = MethodInfo(title="k-center, greedy", venue="ICLR", year=2018, arxiv="1708.00489", kind="coreset")

    def among(self, points: Tensor, count: int, rng: Rng) -> Tensor:
        return k_center(points, count)


class KMeans(Embedded):
    """The image closest to each of ipc cluster centres."""

    name = "k-means"
    info = MethodInfo(title="k-means in an embedding", kind="coreset")

    def among(self, points: Tensor, count: int, rng: Rng) -> Tensor:
        return k_means(points, count, rng)


def herding(points: Tensor, count: int) -> Tensor:
    """Greedy mean matching: int64 [count] distinct rows of points [N, D].

    Source: Welling, ICML 2009; as a selection rule, Rebuffi et al., CVPR 2017 (iCaRL), algorithm 4.
    """
    mean = points.mean(dim=0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(points), dtype=torch.bool, device=points.device)
    chosen = []
    for n in range(1, count + 1):
        gap = (mean - (total + points) / n).square().sum(dim=1)
        best = int(gap.masked_fill(~free, torch.inf).argmin())
        free[best] = False
        total = total + points[best]
        chosen.append(best)
    return torch.tensor(chosen)


def k_center(points: Tensor, count: int) -> Tensor:
    """Farthest-first traversal from the point nearest to the mean: int64 [count] distinct rows of points [N, D].

    Source: Sener and Savarese, ICLR 2018, algorithm 1.
    """
    distance = (points - points.mean(dim=0)).norm(dim=1)
    chosen = [int(distance.argmin())]
    distance = (points - points[chosen[0]]).norm(dim=1)
    for _ in range(count - 1):
        # Chosen points lie at distance 0; -1 keeps them out where others coincide with them.
        distance[chosen[-1]] = -1
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def k_means(points: Tensor, count: int, rng: Rng) -> Tensor:
    """The distinct points nearest to the centres of `count` clusters: int64 [count] rows of points [N, D]."""
    from sklearn.cluster import KMeans as Clusters

    fitted = Clusters(count, n_init=3, random_state=rng.key % (1 << 32)).fit(points.cpu().double().numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    distance = torch.cdist(centres, points.cpu().double())
    chosen: list[int] = []
    for row in distance:
        row[chosen] = torch.inf  # two centres can share their nearest point
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)
