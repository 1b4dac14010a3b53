"""Experts: networks trained on the real data, as artefacts that keep all of their epochs, or the first and the last."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ddbench.artifacts import TELL_SECONDS, Artifact, outside_identity
from ddbench.backbones.variables import Variables
from ddbench.engine.augment import resolve_strategy
from ddbench.engine.capabilities import wait_for
from ddbench.errors import ArtifactError, ConfigError, DivergedError
from ddbench.files import SEAL, checksum, once, require_locks, sweep, write_atomically
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.training.lockstep import Lockstep
from ddbench.training.networks import as_seen
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Block, TrainingPlan, on_real_images
from ddbench.training.sharpness import Sharpness
from ddbench.training.students import footprint, students_together

logger = logging.getLogger(__name__)

EXPERT_BATCH = 256
COLOR_AND_CROP = "color+crop"

# Where experts draw from, however they are trained.
STREAM = "expert-trajectories"
HASH_THREADS = 4


def flatten(params: dict[str, Tensor]) -> Tensor:
    """[P], parameter after parameter in the backbone's order."""
    return torch.cat([value.flatten() for value in params.values()])


def unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a vector [P], named and shaped as the parameters that are given."""
    pieces = flat.split([value.numel() for value in like.values()])
    return {name: piece.view(value.shape) for (name, value), piece in zip(like.items(), pieces, strict=True)}


def expert_of(problem: Problem, experts: Trajectories, expert: int, epoch: int) -> Variables:
    """An expert as a network on the device, after so many epochs. Raises: as `Trajectories.params`."""
    like = problem.backbone.init(Rng(0), problem.device)
    return Variables(unflatten(experts.params(expert, epoch).to(problem.device), like.params), like.buffers)


@torch.no_grad()
def logits_of(problem: Problem, network: Variables, images: Tensor) -> Tensor:
    """float32 [N, K]: what a network says of images [N, C, H, W] in the pixel space, as they are."""
    parts = [problem.backbone(network, some, train=False)[0] for some in as_seen(images, problem)]
    return torch.cat(parts).float()


@dataclass(frozen=True)
class Trajectories:
    """Some experts, read from their files epoch by epoch. `kept` says after which epochs there are parameters."""

    folder: Path
    experts: int
    epochs: int
    parameters: int
    kept: Sequence[int]

    def __len__(self) -> int:
        return self.experts

    def seconds(self, expert: int) -> list[float]:
        """When an expert reached each epoch that is kept, beginning with 0.0 at its initialisation."""
        return _seconds(_file(self.folder, expert), self.parameters)

    def params(self, expert: int, epoch: int) -> Tensor:
        """[P] float32 on the host: the parameters of an expert after so many epochs; 0 is its initialisation.

        Raises: ArtifactError for a damaged file, and for one that somebody has removed; IndexError for an epoch that
        is not kept.
        """
        from safetensors import SafetensorError, safe_open

        if epoch not in self.kept:
            raise IndexError(f"an expert is not kept as it was after epoch {epoch}")
        path = _file(self.folder, expert)
        try:
            with safe_open(path, "pt") as file:
                params: Tensor = file.get_slice("params")[self.kept.index(epoch)]
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}. Run again, which trains this expert anew where it is gone or damaged."
            ) from error
        # Not torch's, whose threads wait for each other at every one of its parts: 70 ms a step beside another process.
        if not np.isfinite(params.numpy()).all():
            raise ArtifactError(
                f"{path} is damaged: epoch {epoch} holds NaN or infinite values. Remove the file and run again, which "
                "trains this expert anew."
            )
        return params


@dataclass(frozen=True, kw_only=True)
class Pool(Artifact[Trajectories]):
    """Networks trained on the real data side by side, of which the parameters after some epochs are kept.

    Files: expert_0000.safetensors and so on, each with params [kept, P] float32, the seconds [kept] that it took to get
    there, and a checksum over both. Expert k is the same in every pool that it is part of. Processes that want a pool
    at the same time train different experts of it. `recipe` is the digest of how experts are trained, and `lr_option`
    what the method that asks calls their step size.
    """

    shared: ClassVar[bool] = True
    dataset: str  # fingerprint, not name
    pixels: str
    backbone: str
    precision: str
    lr: float
    augment: str
    seed: int
    recipe: str
    experts: int = outside_identity()
    parameters: int = outside_identity()  # P, of which there is one for each backbone and dataset
    lr_option: str = outside_identity("lr_experts")

    @property
    @abstractmethod
    def kept(self) -> Sequence[int]:
        """The epochs after which parameters are kept, in order. The first is 0; training ends with the last."""

    @property
    @abstractmethod
    def options(self) -> SGDOptions:
        """How experts are trained, but for their augmentation and length."""

    @property
    def sharpness(self) -> Sharpness | None:
        """What makes their steps sharpness-aware ones."""
        return None

    def build(self, folder: Path, problem: Problem) -> None:
        for path in self._damaged(folder):  # before any of them goes on from there
            logger.warning("%s is damaged (it is not what was written); training this expert again.", path)
            path.unlink(missing_ok=True)
        rng, options = Rng(self.seed, (STREAM,)), self.options
        schedule = on_real_images(problem, options, passes=self.kept[-1], augment=self.augment, rng=rng)
        assert options.batch is not None
        together = students_together(options.batch, problem.device, footprint(problem.backbone))
        per_epoch = schedule.steps_per_epoch
        left = {k: (self.kept[-1] - self.kept[max(reached, 0)]) * per_epoch for reached, k in self._short(folder)}
        tick = problem.artifacts.progress(f"{len(left)} expert{'s' * (len(left) > 1)}", sum(left.values()))
        training: Lockstep | None = None
        alike = 0
        while short := self._short(folder):
            for k in left.keys() - {k for _, k in short}:
                tick(left.pop(k))  # another process made it
            with _claim(folder, short, together) as claimed:
                # Whoever held one before may have brought it further.
                here = [(reached, k) for reached, k in self._short(folder) if k in claimed]
                group = [k for reached, k in here if reached == here[0][0]]
                for k in group:
                    sweep(folder, _file(folder, k).name)
                if not group:
                    tick(0)  # says how far it is while it waits
                    continue
                variables, paths, seconds = self._so_far(folder, group, problem, rng)
                if training is None or len(group) != alike:
                    groups = math.ceil(len(short) / together)
                    training = Lockstep(problem.backbone, variables, schedule, groups=groups, sharpness=self.sharpness)
                else:
                    training.restart(variables)
                alike = len(group)
                growth = Growth(paths, seconds)
                try:
                    growth.train(training, schedule, group, tick, self.kept)
                except BaseException:
                    # What is lost is an epoch, and not all of them: whoever builds next goes on from there.
                    with contextlib.suppress(Exception):
                        for k, params, times in growth.longer(group):
                            if bool(torch.isfinite(params).all()):
                                _write(_file(folder, k), params, times)
                    raise
                for k, params, times in growth.longer(group):
                    if not bool(torch.isfinite(params).all()):
                        raise DivergedError(
                            f"expert {k} has diverged. A smaller step size than {self.lr:g} usually helps: "
                            f"--set {self.lr_option}={min(self.lr / 2, 0.01):g}"
                        )
                    _write(_file(folder, k), params, times)
                    left.pop(k, None)
            logger.info("experts %s trained to epoch %d", ", ".join(map(str, group)), self.kept[-1])

    def open(self, folder: Path) -> Trajectories:
        return Trajectories(folder, self.experts, self.kept[-1], self.parameters, self.kept)

    def missing(self, folder: Path) -> str:
        short = sum(len(times) < len(self.kept) for times in self._times(folder))
        return f"{short} of {self.experts} experts with {self.kept[-1]} epochs" if short else ""

    def damage(self, folder: Path) -> str:
        """Which experts are not what was written; a file is hashed once in a process."""
        damaged = [path.name for path in self._damaged(folder)]
        return f"{', '.join(damaged)} not as written" if damaged else ""

    def discard(self, folder: Path) -> None:
        for path in self._damaged(folder):
            path.unlink(missing_ok=True)

    def _damaged(self, folder: Path) -> list[Path]:
        files = [path for k in range(self.experts) if (path := _file(folder, k)).is_file()]
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return [path for path, sound in zip(files, pool.map(_sound, files), strict=True) if not sound]

    def seconds(self, folder: Path) -> float:
        """Seconds of the experts and epochs that this run can read, whoever trained more of them."""
        return sum(times[: len(self.kept)][-1] for times in self._times(folder) if times)

    def _short(self, folder: Path) -> list[tuple[int, int]]:
        """The last index of `kept` that unfinished experts have reached, and which, in order; -1 of one not begun."""
        return sorted((len(times) - 1, k) for k, times in enumerate(self._times(folder)) if len(times) < len(self.kept))

    def _times(self, folder: Path) -> list[list[float]]:
        return [_seconds(_file(folder, k), self.parameters) for k in range(self.experts)]

    def _so_far(
        self, folder: Path, experts: Sequence[int], problem: Problem, rng: Rng
    ) -> tuple[Variables, list[Tensor], list[list[float]]]:
        """Where experts stand, with a leading S, and what there is of each; of one not begun, its initialisation."""
        from safetensors.torch import load_file

        starts, paths, seconds = [], [], []
        for k in experts:
            fresh = problem.backbone.init(rng.fold("network", k), problem.device)
            times = _seconds(_file(folder, k), self.parameters)
            paths.append(load_file(_file(folder, k))["params"] if times else flatten(fresh.params)[None].cpu())
            seconds.append(times or [0.0])
            starts.append(Variables(unflatten(paths[-1][-1].to(problem.device), fresh.params)))
        return Variables.stack(starts), paths, seconds


@dataclass(frozen=True, kw_only=True)
class ExpertTrajectories(Pool):
    """A pool of networks trained by SGD with a constant step size and the common augmentation.

    With `rho` their steps are sharpness-aware, with that ρ and α = `alpha` (`ddbench.training.sharpness`), as Du et al.
    train them (CVPR 2023, arXiv 2211.11004); with 0 they are plain ones.

    All epochs are kept, and an expert goes on where it stopped when more are wanted.
    Source: Cazenavette et al., CVPR 2022, arXiv 2203.11932.
    """

    kind: ClassVar[str] = "expert-trajectories"
    rho: float = 0.0
    alpha: float = 0.0
    epochs: int = outside_identity()

    @classmethod
    def of(
        cls,
        problem: Problem,
        *,
        experts: int,
        epochs: int,
        lr: float,
        augment: str = "auto",
        seed: int = 0,
        rho: float = 0.0,
        alpha: float = 0.0,
        lr_option: str = "lr_experts",
    ) -> ExpertTrajectories:
        """The artefact for a problem. Raises: ConfigError for a network whose state is more than its parameters."""
        _check_backbone(problem)
        augment = resolve_strategy(augment, problem.info.digits)
        alpha = alpha if rho else 0.0  # without rho it changes nothing
        sharp = {"rho": rho, "alpha": alpha} if rho else {}
        recipe = _plain(lr).digest(name="expert", augment=augment, **sharp)
        return cls(
            **problem.identity,
            lr=lr,
            augment=augment,
            seed=seed,
            recipe=recipe,
            experts=experts,
            epochs=epochs,
            parameters=problem.backbone.parameters,
            rho=rho,
            alpha=alpha,
            lr_option=lr_option,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that name it; pools of plain SGD are called as they were before there were others."""
        sharp = ("rho", "alpha") if not self.rho else ()
        return {name: value for name, value in super().identity.items() if name not in sharp}

    @property
    def kept(self) -> Sequence[int]:
        return range(self.epochs + 1)

    @property
    def options(self) -> SGDOptions:
        return _plain(self.lr)

    @property
    def sharpness(self) -> Sharpness | None:
        return Sharpness(self.rho, self.alpha) if self.rho else None


@dataclass(frozen=True, kw_only=True)
class ExpertEnds(Pool):
    """A pool of networks of which the start and the end are kept, trained to be good classifiers.

    By SGD with momentum and weight decay, whose step size falls to a fifth after two thirds and five sixths of the
    epochs, on images with other colours and shifts, half of whose batches are mixed by CutMix. An expert starts
    as that of `ExpertTrajectories` with its seed, so that the two differ in nothing but their training; in a step all
    experts mix by one box.
    Source: the code of Zhang et al., IJCAI 2024, arXiv 2406.01063, and of Wang et al., CVPR 2025, arXiv 2502.20653.
    """

    kind: ClassVar[str] = "expert-ends"
    lr_option: str = outside_identity("lr_networks")
    epochs: int
    batch: int

    @classmethod
    def of(cls, problem: Problem, *, experts: int, epochs: int, lr: float, batch: int, seed: int = 0) -> ExpertEnds:
        """The artefact for a problem. Raises: ConfigError for a network whose state is more than its parameters."""
        _check_backbone(problem)
        return cls(
            **problem.identity,
            lr=lr,
            augment=COLOR_AND_CROP,
            seed=seed,
            recipe=_mixed(lr, epochs, batch).digest(name="expert-ends", augment=COLOR_AND_CROP),
            experts=experts,
            epochs=epochs,
            batch=batch,
            parameters=problem.backbone.parameters,
        )

    @property
    def kept(self) -> Sequence[int]:
        return (0, self.epochs)

    @property
    def options(self) -> SGDOptions:
        return _mixed(self.lr, self.epochs, self.batch)


def _check_backbone(problem: Problem) -> None:
    """Raises: ConfigError for a network whose state is more than its parameters, or that draws."""
    if not problem.backbone.per_sample:
        raise ConfigError(
            f"expert trajectories hold parameters, and {problem.backbone.name} has batch norm, whose running "
            "statistics they would miss. Use a backbone without, such as convnet."
        )
    if problem.backbone.stochastic:
        raise ConfigError(
            f"expert trajectories are followed by networks that draw nothing, and {problem.backbone.name} has "
            "dropout or stochastic depth. Use one without, such as convnet or torchvision:vgg11(dropout=0)."
        )


@contextlib.contextmanager
def _claim(folder: Path, short: Sequence[tuple[int, int]], together: int) -> Iterator[set[int]]:
    """Some experts that have come equally far and that no other process is training, which leaves them alone meanwhile.

    Where others train all of them, waits a moment for one and claims nothing. From pairs of how far and which, sorted.
    The claims of a process that dies end with it.
    """
    require_locks(folder / "lock")
    with contextlib.ExitStack() as held:
        claimed: set[int] = set()
        far: int | None = None
        for reached, k in short:
            if len(claimed) == together or far not in (None, reached):
                break
            lock = FileLock(folder / f".expert_{k:04d}.lock", blocking=False)
            with contextlib.suppress(Timeout):
                held.enter_context(lock)
                claimed.add(k)
                far = reached
        if not claimed:
            with (
                contextlib.suppress(Timeout),
                FileLock(folder / f".expert_{short[0][1]:04d}.lock", timeout=TELL_SECONDS),
            ):
                pass
        yield claimed


class Growth:
    """Experts while they train: parameters after the epochs that are kept, and the seconds until then.

    Shapes: `paths` are what there was of each, [kept so far, P] on the host, with as many `seconds`.
    """

    def __init__(self, paths: Sequence[Tensor], seconds: Sequence[Sequence[float]]) -> None:
        self._paths, self._seconds = paths, [list(times) for times in seconds]
        self._after: list[list[Tensor]] = [[] for _ in paths]

    def train(
        self,
        training: Lockstep,
        schedule: TrainingPlan,
        experts: Sequence[int],
        tick: Callable[[float], None],
        kept: Sequence[int],
    ) -> None:
        """Train them for the epochs that are still to come."""
        done, device = kept[len(self._paths[0]) - 1], schedule.images.device
        started = time.perf_counter()
        for epoch, block in enumerate(itertools.islice(_epochs(schedule, experts), done, None), done + 1):
            for _ in training.steps([block]):
                tick(len(experts))
            if epoch not in kept:
                continue
            for s, snapshots in enumerate(self._after):
                snapshots.append(flatten(training.student(s).params))
            wait_for(device)
            now = time.perf_counter()
            for times in self._seconds:
                times.append(times[-1] + (now - started) / len(experts))
            started = now

    def longer(self, experts: Sequence[int]) -> Iterator[tuple[int, Tensor, list[float]]]:
        """The experts that have come further than they were, with parameters [kept, P] on the host, and seconds."""
        # Of whoever is stopped in the middle some may be an epoch ahead.
        more = min(len(times) - len(path) for path, times in zip(self._paths, self._seconds, strict=True))
        if more > 0:
            for k, path, times, after in zip(experts, self._paths, self._seconds, self._after, strict=True):
                grown = torch.cat([path, torch.stack(after[:more]).float().cpu()])
                yield k, grown, times[: len(grown)]


def _epochs(schedule: TrainingPlan, experts: Sequence[int]) -> Iterator[Block]:
    """Blocks of one epoch each, so that training can begin at any of them."""
    for block in schedule.blocks(experts):
        yield from block.epochs(schedule.steps_per_epoch)


def _plain(lr: float) -> SGDOptions:
    """How MTT's experts are trained, but for their augmentation and length."""
    return SGDOptions(
        lr=lr, batch=EXPERT_BATCH, momentum=0.0, weight_decay=0.0, schedule="constant", align_corners=True
    )


def _mixed(lr: float, epochs: int, batch: int) -> SGDOptions:
    """How networks are trained of which the ends are kept, but for their augmentation."""
    return SGDOptions(
        epochs=epochs - 1,  # as the papers' protocols count: one less than passes
        lr=lr,
        batch=batch,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="milestones",
        milestones=tuple(max(1, epochs * share // 6) for share in (4, 5)),
        factor=0.2,
        cutmix=0.5,
    )


def _file(folder: Path, expert: int) -> Path:
    return folder / f"expert_{expert:04d}.safetensors"


def _seconds(path: Path, parameters: int) -> list[float]:
    """When each epoch of a file was reached, without reading its parameters; nothing where there is no sound file of
    networks with so many of them."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            times, params = file.get_tensor("seconds"), file.get_slice("params")
            if times.dim() != 1 or not bool(torch.isfinite(times).all()):
                raise SafetensorError("its times are none")
            if params.get_dtype() != "F32" or params.get_shape() != [len(times), parameters]:
                raise SafetensorError(
                    f"it holds {params.get_dtype()} {params.get_shape()} and should hold F32 {[len(times), parameters]}"
                )
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); training this expert again.", path, error)
        return []
    return list(map(float, times))


def _write(path: Path, params: Tensor, seconds: Sequence[float]) -> None:
    from safetensors.torch import save_file

    tensors = {"params": params.contiguous(), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    write_atomically(path, lambda beside: save_file(tensors, beside, metadata={SEAL: _checksum(tensors)}))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return checksum(tensors["params"].numpy().data, tensors["seconds"].numpy().data)


def _sound(path: Path) -> bool:
    """Whether a file of an expert has the checksum that it names; those of earlier versions name none."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            known = (file.metadata() or {}).get(SEAL)
        return known is None or known == once(path, SEAL, lambda: _checksum(load_file(path)))
    except FileNotFoundError:
        return True  # another process is about to make it anew
    except (SafetensorError, OSError, KeyError):
        return False
