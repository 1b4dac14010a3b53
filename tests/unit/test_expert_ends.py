"""Pools of which the start and the end are kept: as the authors of DANCE and NCFM train their networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, optim

import ddbench.training.experts as module
from ddbench import ArtifactCache, Problem, Rng
from ddbench.backbones import build
from ddbench.engine.augment import draw_many
from ddbench.engine.mixing import Mix
from ddbench.errors import ConfigError, DivergedError
from ddbench.runs.resolving import Asked, foresee
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import ExpertEnds, ExpertTrajectories, Trajectories, flatten
from ddbench_methods.dance import DANCE, DANCEConfig
from ddbench_methods.ncfm import NCFM, NCFMConfig


def found(problem: Problem, root: Path, **changes: Any) -> Trajectories:
    asked: dict[str, Any] = {"experts": 1, "epochs": 6, "lr": 0.05, "batch": 64} | changes
    return ArtifactCache(root).get(ExpertEnds.of(problem, **asked), problem)


def ends(problem: Problem, root: Path, **changes: Any) -> Tensor:
    """[experts, 2, P]."""
    pool = found(problem, root, **changes)
    return torch.stack([torch.stack([pool.params(k, epoch) for epoch in pool.kept]) for k in range(len(pool))])


def logits(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Twice convolution, instance norm, ReLU, average pooling; then a linear map."""
    for block in ("block1", "block2"):
        x = F.conv2d(x, p[f"{block}.conv.weight"], p[f"{block}.conv.bias"], padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * p[f"{block}.norm.weight"][:, None, None] + p[f"{block}.norm.bias"][:, None, None]
        x = F.avg_pool2d(x.clamp(min=0), 2)
    return x.flatten(1) @ p["logits.weight"].T + p["logits.bias"]


@pytest.mark.parametrize("expert", [0, 1])
def test_a_network_is_trained_as_the_authors_do(expert: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As their code, in float64 by torch's own optimiser and schedule, batch by batch on what the pool draws: colour,
    then crop, then in half of the batches a box of another image, whose loss counts by its share of the area."""
    n, size, epochs, per_block = 100, 64, 6, 4
    monkeypatch.setattr("ddbench.training.plan.BLOCK_IMAGES", per_block * n)  # the second block is not full
    problem = problem_for_checks(tmp_path, per_class=(40, 35, 25))
    got = ends(problem, tmp_path, experts=2)[expert]
    rng, side = Rng(0, ("expert-trajectories",)), problem.shape[1]
    fresh = problem.backbone.init(rng.fold("network", expert))
    assert torch.equal(got[0], flatten(fresh.params))
    params = {name: value.double().requires_grad_() for name, value in fresh.params.items()}
    optimizer = optim.SGD(params.values(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    mixed = 0
    for epoch in range(epochs):
        block, within = divmod(epoch, per_block)
        own, shared = rng.fold("student", expert, "block", block), rng.fold("block", block)
        order = own.fold("order").numpy().permuted(torch.arange(n).expand(per_block, n).numpy(), axis=1)[within]
        colors = draw_many("color", 2 * per_block, size, own.fold("augment"))
        crops = draw_many("crop", 2 * per_block, size, own.fold("augment", 1))
        for t, rows in zip((2 * within, 2 * within + 1), torch.from_numpy(order).split(size), strict=True):
            x, y = problem.real.take(rows).double(), problem.real.labels[rows]
            x = crops[t](colors[t](x[None]))[0]
            at = shared.fold("step", t).fold("cutmix")
            if at.numpy().random() < 0.5:
                mixed += 1
                mix = Mix.draw(len(rows), side, side, at.fold("box"))
                top, bottom, left, right = mix.box.tolist()
                x = x.clone()
                x[:, :, top:bottom, left:right] = x[mix.partners, :, top:bottom, left:right]
                ratio = 1 - (bottom - top) * (right - left) / side**2
                scores = logits(params, x)
                loss = ratio * F.cross_entropy(scores, y) + (1 - ratio) * F.cross_entropy(scores, y[mix.partners])
            else:
                loss = F.cross_entropy(logits(params, x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    assert 0 < mixed < 2 * epochs
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.04)
    # Twelve steps in single precision; the network has moved by a thousand times as much.
    expected = flatten({name: value.detach() for name, value in params.items()})
    moved = (expected - got[0]).norm()
    assert moved > 0.1
    assert (got[1] - expected).norm() < 1e-3 * moved


def test_networks_side_by_side_are_those_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    alone = ends(problem, tmp_path / "alone", experts=5)
    monkeypatch.setattr(module, "students_together", lambda *_: 2)
    together = ends(problem, tmp_path / "together", experts=5)
    assert torch.allclose(together, alone, atol=1e-5)
    # A group that is trained after another one begins without its momentum.
    assert torch.equal(ends(problem, tmp_path / "alone", experts=2), alone[:2])


def test_a_pool_grows(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whole = ends(problem, tmp_path / "whole", experts=3)
    for experts in (1, 3):
        assert torch.equal(ends(problem, tmp_path / "grown", experts=experts), whole[:experts])
    assert len(list((tmp_path / "grown").glob("*/*"))) == 1


def test_they_start_as_plain_experts_and_keep_the_ends_alone(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    pool = found(problem, tmp_path, experts=2, epochs=3)
    plain = ArtifactCache(tmp_path).get(ExpertTrajectories.of(problem, experts=2, epochs=3, lr=0.05), problem)
    for k in range(2):
        assert torch.equal(pool.params(k, 0), plain.params(k, 0))
        assert not torch.allclose(pool.params(k, 3), plain.params(k, 3), atol=1e-2)
        assert len(pool.seconds(k)) == 2
    with pytest.raises(IndexError, match="not kept as it was after epoch 1"):
        pool.params(0, 1)


def test_how_long_and_in_which_batches_makes_another_pool_and_how_many_does_not(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)

    def key(**changes: Any) -> str:
        asked: dict[str, Any] = {"experts": 1, "epochs": 60, "lr": 0.01, "batch": 128} | changes
        return ExpertEnds.of(problem, **asked).key

    assert key() == key(experts=20)
    assert len({key(), key(epochs=80), key(batch=64), key(lr=0.1), key(seed=1)}) == 5


def test_keys_of_pools_are_what_they_were(tmp_path: Path) -> None:
    """Pools of earlier versions serve; a key that moves would have every network trained again."""
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8", (3, 8, 8), 3))
    known = {"dataset": "d", "pixels": "p", "backbone": "b", "precision": "fp32"}
    ends = replace(ExpertEnds.of(problem, experts=20, epochs=60, lr=0.01, batch=128), **known)
    plain = replace(ExpertTrajectories.of(problem, experts=20, epochs=60, lr=0.01), **known)
    flat = replace(ExpertTrajectories.of(problem, experts=20, epochs=60, lr=0.01, rho=0.01, alpha=0.3), **known)
    assert (ends.key, plain.key, flat.key) == ("3cfefcc2d953e297", "616bf7e13b27fc0f", "806bb3405f2ae0b0")


def test_one_epoch_has_the_first_step_size_throughout() -> None:
    assert module._mixed(0.01, 1, 128).milestones == (1, 1)
    assert module._mixed(0.01, 60, 128).milestones == (40, 50)
    assert module._mixed(0.01, 80, 128).milestones == (53, 66)


def test_a_network_with_running_statistics_is_refused(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    problem = replace(problem, backbone=build("convnet-d2-w8-bn", problem.shape, problem.classes))
    with pytest.raises(ConfigError, match="has batch norm, whose running"):
        ExpertEnds.of(problem, experts=1, epochs=1, lr=0.1, batch=8)


@pytest.mark.parametrize(("method", "config"), [(DANCE, DANCEConfig), (NCFM, NCFMConfig)])
def test_methods_follow_the_networks_that_are_asked_for(method: Any, config: Any, tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    small = {"networks": 2, "epochs": 3, "lr_networks": 0.05}
    for way, kind in (("plain", "expert-trajectories"), ("authors", "expert-ends")):
        networks = method(config(**small, networks_trained=way)).trained(problem)
        assert networks.folder.parent.name == kind
        assert networks.params(1, 3).isfinite().all()


@pytest.mark.parametrize("way", ["plain", "authors"])
def test_networks_that_diverge_name_the_option_of_the_method(way: str, tmp_path: Path) -> None:
    method = DANCE(DANCEConfig(networks=1, epochs=5, lr_networks=1e20, networks_trained=way))
    with pytest.raises(DivergedError, match=r"usually helps: --set lr_networks=0\.01"):
        method.trained(problem_for_checks(tmp_path))


@pytest.mark.parametrize(("name", "batch"), [("dance", 64), ("ncfm", 128)])
def test_the_authors_networks_are_a_preset_and_other_runs_keep_their_ids(name: str, batch: int) -> None:
    paper, authors = (foresee(Asked(name, "cifar10", 10, preset=preset)) for preset in ("paper", "authors"))
    assert "networks_trained" not in paper.config
    # What is at its default is left out, as from all options that came later.
    told = {"networks_trained": "authors"} | ({"batch_networks": batch} if batch != 128 else {})
    assert authors.config == {**paper.config, **told}
    assert (authors.pixels, authors.protocols) == (paper.pixels, paper.protocols)
    assert authors.id != paper.id
