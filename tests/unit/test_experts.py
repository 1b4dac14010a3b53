"""Pools of experts: they grow, go on where they stopped, are read in parts, and cost what was read."""

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

import ddbench.training.experts as module
from ddbench import ArtifactCache, Problem, Rng, Variables
from ddbench.backbones import build
from ddbench.data.pixels import fit_pixels
from ddbench.engine.augment import ALL_OPS, draw_many
from ddbench.errors import ArtifactError, ConfigError, DivergedError
from ddbench.testing.contract import problem_for_checks
from ddbench.training.experts import ExpertEnds, ExpertTrajectories, Pool, Trajectories, flatten, unflatten


def pool(problem: Problem, experts: int = 2, epochs: int = 2, **changes: Any) -> ExpertTrajectories:
    return ExpertTrajectories.of(problem, experts=experts, epochs=epochs, **{"lr": 0.1} | changes)


def pool_of_ends(problem: Problem, experts: int) -> ExpertEnds:
    return ExpertEnds.of(problem, experts=experts, epochs=6, lr=0.05, batch=64)


def everything(found: Trajectories) -> Tensor:
    """[experts, kept, P]: of a pool that keeps all epochs, epochs + 1 of them."""
    return torch.stack([torch.stack([found.params(k, t) for t in found.kept]) for k in range(found.experts)])


def get(problem: Problem, root: Path, **asked: Any) -> Tensor:
    return everything(ArtifactCache(root).get(pool(problem, **asked), problem))


def test_parameters_become_a_vector_and_back() -> None:
    params = build("convnet-d2-w8", (3, 8, 8), 3).init(Rng(0)).params
    again = unflatten(flatten(params), params)
    assert all(torch.equal(again[name], value) for name, value in params.items())
    assert list(again) == list(params)


def test_an_expert_is_trained_as_the_paper_says(tmp_path: Path) -> None:
    """Plain SGD in float64, batch by batch, on the images that the pool's own generators name."""
    problem = problem_for_checks(tmp_path, per_class=100)
    found = get(problem, tmp_path, experts=1, epochs=2)[0]
    rng = Rng(0, ("expert-trajectories",))
    fresh = problem.backbone.init(rng.fold("network", 0))
    assert torch.equal(found[0], flatten(fresh.params))
    params = {name: value.double() for name, value in fresh.params.items()}
    own, real = rng.fold("student", 0, "block", 0), problem.real
    drawn = own.fold("order").numpy()
    n, per_block = 300, min(1024, 65_536 // 300)
    order = drawn.permuted(torch.arange(n).expand(per_block, n).numpy(), axis=1)
    views = draw_many(ALL_OPS, 2 * per_block, 256, own.fold("augment"), align_corners=True)
    for epoch in range(2):
        rows = torch.from_numpy(order[epoch])
        for part, batch in enumerate((rows[:256], rows[256:])):
            x = views[2 * epoch + part](real.take(batch)[None])[0].double()
            w = {name: value.requires_grad_() for name, value in params.items()}
            F.cross_entropy(problem.backbone(Variables(w), x)[0], real.labels[batch]).backward()
            params = {k: v.detach() - 0.1 * (v.grad if v.grad is not None else 0) for k, v in w.items()}
        assert torch.allclose(found[epoch + 1].double(), flatten(params), atol=2e-5)
    assert (found[2] - found[0]).norm() > 0.1


@pytest.mark.parametrize(("rho", "alpha"), [(0.5, 0.0), (0.5, 0.3), (0.2, 1.0)])
def test_a_flat_expert_takes_two_gradients_a_step(rho: float, alpha: float, tmp_path: Path) -> None:
    """As Du et al., CVPR 2023, train them, in float64 on one vector of all parameters, batch by batch:

    e = rho w^2 g / |w g|; g' the gradient at w + e; v = g - <g, g'> / |g'|^2 g'; w <- w - lr (g' - alpha v).
    """
    problem = problem_for_checks(tmp_path, per_class=100)
    found = get(problem, tmp_path, experts=1, epochs=2, rho=rho, alpha=alpha)[0]
    rng, real = Rng(0, ("expert-trajectories",)), problem.real
    fresh = problem.backbone.init(rng.fold("network", 0))
    own = rng.fold("student", 0, "block", 0)
    order = own.fold("order").numpy().permuted(torch.arange(300).expand(218, 300).numpy(), axis=1)
    views = draw_many(ALL_OPS, 2 * 218, 256, own.fold("augment"), align_corners=True)

    def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        leaf = w.clone().requires_grad_()
        loss = F.cross_entropy(problem.backbone(Variables(unflatten(leaf, fresh.params)), x)[0], y)
        return torch.autograd.grad(loss, leaf)[0]

    w = flatten(fresh.params).double()
    for epoch in range(2):
        rows = torch.from_numpy(order[epoch])
        for part, batch in enumerate((rows[:256], rows[256:])):
            x, y = views[2 * epoch + part](real.take(batch)[None])[0].double(), real.labels[batch]
            g = gradient(w, x, y)
            above = gradient(w + rho * w.square() * g / (w.abs() * g).norm(), x, y)
            across = g - g.dot(above) / above.dot(above) * above
            w = w - 0.1 * (above - alpha * across)
        assert torch.allclose(found[epoch + 1].double(), w, atol=2e-5)
    plain = get(problem, tmp_path, experts=1, epochs=2)[0]
    # What the second gradient changes is far above the rounding that is allowed.
    assert (found[2] - plain[2]).abs().max() > 1e-3
    assert torch.equal(found[0], plain[0])


def test_a_flat_pool_grows_as_a_plain_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, flat = problem_for_checks(tmp_path), {"rho": 0.3, "alpha": 0.5}
    whole = get(problem, tmp_path / "whole", experts=3, epochs=4, **flat)
    for experts, epochs in ((1, 2), (2, 3), (3, 4)):
        grown = get(problem, tmp_path / "grown", experts=experts, epochs=epochs, **flat)
        assert torch.equal(grown, whole[:experts, : epochs + 1])
    monkeypatch.setattr(module, "students_together", lambda *_: 2)
    together = get(problem, tmp_path / "together", experts=3, epochs=4, **flat)
    assert torch.allclose(together, whole, atol=1e-6)


def test_plain_pools_are_called_as_they_were_before_there_were_flat_ones(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    plain = pool(problem)
    assert set(plain.identity) == {
        "dataset", "pixels", "backbone", "precision", "lr", "augment", "seed", "recipe",
    }  # fmt: skip
    assert pool(problem, rho=0.0, alpha=0.3) == plain, "without rho, alpha changes nothing"
    flat = [pool(problem, rho=rho, alpha=alpha) for rho, alpha in ((0.01, 0.0), (0.01, 0.3), (0.02, 0.3))]
    assert len({plain.key, *(one.key for one in flat)}) == 4
    assert len({plain.recipe, *(one.recipe for one in flat)}) == 4
    assert flat[1].identity.items() >= {"rho": 0.01, "alpha": 0.3}.items()


def test_a_pool_of_few_is_part_of_one_of_many(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whole = get(problem, tmp_path / "whole", experts=3, epochs=4)
    grown = tmp_path / "grown"
    for experts, epochs in ((1, 2), (2, 1), (2, 3), (3, 4)):
        assert torch.equal(get(problem, grown, experts=experts, epochs=epochs), whole[:experts, : epochs + 1])
    assert len(list(grown.glob("*/*"))) == 1


def test_who_wants_a_pool_that_another_makes_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = get(problem_for_checks(tmp_path), tmp_path / "alone", experts=4, epochs=2)
    trained: list[tuple[int, list[int]]] = []
    both, train = threading.Barrier(2, timeout=30), module.Growth.train

    def noted(growth: Any, training: Any, schedule: Any, experts: list[int], *rest: Any) -> None:
        if all(thread != threading.get_ident() for thread, _ in trained):
            both.wait()  # neither is done before the other has begun
        trained.append((threading.get_ident(), experts))
        train(growth, training, schedule, experts, *rest)

    monkeypatch.setattr(module.Growth, "train", noted)
    monkeypatch.setattr(module, "students_together", lambda *_: 1)
    found: list[Tensor] = []
    problems = [problem_for_checks(tmp_path) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda p=p: found.append(get(p, tmp_path / "both", experts=4, epochs=2)))
        for p in problems
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [torch.equal(pool, whole) for pool in found] == [True, True]
    assert sorted(k for _, experts in trained for k in experts) == [0, 1, 2, 3]
    assert len({thread for thread, _ in trained}) == 2


def test_an_expert_that_another_process_gave_up_is_trained_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, trained, train = problem_for_checks(tmp_path), [], module.Growth.train
    folder = tmp_path / "pool" / "expert-trajectories" / pool(problem).key
    folder.mkdir(parents=True)
    claim = FileLock(folder / ".expert_0000.lock")
    claim.acquire()

    def noted(growth: Any, training: Any, schedule: Any, experts: list[int], *rest: Any) -> None:
        trained.append(experts)
        train(growth, training, schedule, experts, *rest)

    def tell(what: str, done: float, of: float) -> None:
        told.append(done / of)
        if told[-2:] == [0.5, 0.5]:  # said again while it waits
            claim.release()

    told: list[float] = []
    monkeypatch.setattr(module.Growth, "train", noted)
    monkeypatch.setattr(module, "TELL_SECONDS", 0.01)
    monkeypatch.setattr("ddbench.artifacts.TELL_SECONDS", 0.0)
    problem.artifacts.tell = tell
    get(problem, tmp_path / "pool", experts=2, epochs=2)
    assert trained == [[1], [0]]
    assert told[-1] == 1.0


def test_it_goes_on_inside_a_block_of_draws_and_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.training.plan.BLOCK_IMAGES", 3 * 120)  # three epochs a block
    problem = problem_for_checks(tmp_path)
    whole = get(problem, tmp_path / "whole", experts=1, epochs=7)
    for epochs in (2, 3, 5, 7):
        assert torch.equal(get(problem, tmp_path / "grown", experts=1, epochs=epochs), whole[:, : epochs + 1])


def test_experts_tell_how_far_they_are_counting_what_is_still_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddbench.artifacts.TELL_SECONDS", 0.0)
    heard: list[tuple[str, float, float]] = []
    cache = ArtifactCache(tmp_path / "pool", tell=lambda *told: heard.append(told))
    problem = replace(problem_for_checks(tmp_path), artifacts=cache)
    cache.get(pool(problem, experts=1, epochs=2), problem)
    cache.get(pool(problem, experts=2, epochs=3), problem)
    # An epoch is one step here: two of the first expert, then its third and three of the second.
    assert [(done, of) for _, done, of in heard] == [(1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert {what for what, _, _ in heard} == {"1 expert", "2 experts"}


def test_experts_side_by_side_are_those_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    alone = get(problem, tmp_path / "alone", experts=5, epochs=3)
    monkeypatch.setattr(module, "students_together", lambda *_: 2)
    assert torch.allclose(get(problem, tmp_path / "together", experts=5, epochs=3), alone, atol=1e-6)


@pytest.mark.parametrize("kind", [pool, pool_of_ends])
def test_a_stopped_build_keeps_the_experts_that_are_done(
    kind: Callable[[Problem, int], Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_for_checks(tmp_path)

    def build_in(name: str) -> Tensor:
        return everything(ArtifactCache(tmp_path / name).get(kind(problem, 3), problem))

    whole = build_in("whole")
    write, written = module._write, []

    def stop_at_the_third(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(module, "_write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_in("stopped")
    monkeypatch.setattr(module, "_write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    assert torch.equal(build_in("stopped"), whole)
    assert written == [f"expert_000{k}.safetensors" for k in range(3)]


@pytest.mark.parametrize("stop_at", [0, 1, 7, 11])
def test_an_interruption_keeps_all_epochs_but_the_one_it_comes_in(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_for_checks(tmp_path)
    monkeypatch.setattr(module, "students_together", lambda *_: 3)
    whole = get(problem, tmp_path / "whole", experts=3, epochs=4)
    student, calls = module.Lockstep.student, itertools.count()

    def stopped(self: Any, number: int) -> Any:  # of three experts, after each epoch
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        return student(self, number)

    monkeypatch.setattr(module.Lockstep, "student", stopped)
    with pytest.raises(KeyboardInterrupt):
        get(problem, tmp_path / "stopped", experts=3, epochs=4)
    files = sorted((tmp_path / "stopped").rglob("expert_*.safetensors"))
    there = [load_file(file) for file in files]
    full = stop_at // 3  # epochs that all three had reached
    assert [len(one["params"]) for one in there] == ([full + 1] * 3 if full else [])
    assert all(torch.equal(one["params"], whole[k, : full + 1]) for k, one in enumerate(there))
    assert all(len(one["seconds"]) == full + 1 for one in there)
    monkeypatch.setattr(module.Lockstep, "student", student)
    told: list[float] = []
    cache = ArtifactCache(tmp_path / "stopped", tell=lambda what, done, of: told.append(of))
    again = replace(problem, artifacts=cache)
    assert torch.equal(everything(cache.get(pool(again, experts=3, epochs=4), again)), whole)
    assert set(told) == {3 * (4 - full)}  # an epoch is one step here


def test_nothing_is_kept_of_experts_that_were_no_numbers_when_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_for_checks(tmp_path)
    student, calls = module.Lockstep.student, itertools.count()

    def broken(self: Any, number: int) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        found = student(self, number)
        return Variables({name: value * math.nan for name, value in found.params.items()}) if number else found

    monkeypatch.setattr(module, "students_together", lambda *_: 2)
    monkeypatch.setattr(module.Lockstep, "student", broken)
    with pytest.raises(KeyboardInterrupt):
        get(problem, tmp_path / "pool", experts=2, epochs=3)
    assert [file.name for file in (tmp_path / "pool").rglob("expert_*.safetensors")] == ["expert_0000.safetensors"]


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    before = get(problem, tmp_path)
    (file,) = tmp_path.glob("*/*/expert_0001.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(get(problem, tmp_path), before)
    held = load_file(file)
    params, seconds = held["params"], held["seconds"]
    for wrong in (
        {"params": params[:1].clone()},  # fewer epochs than times
        {"params": params[:, :100].clone()},  # another network
        {"params": params[:2, :100].clone(), "seconds": seconds[:2].clone()},  # another one, to be continued
        {"params": params.half()},
        {"params": params[None].clone()},
        {"seconds": seconds[0].clone()},
        {"seconds": seconds * math.nan},
    ):
        save_file(held | wrong, file)
        assert torch.equal(get(problem, tmp_path), before)


def test_an_expert_that_is_removed_while_a_run_reads_it_is_named(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    found = ArtifactCache(tmp_path).get(pool(problem), problem)
    (file,) = tmp_path.glob("*/*/expert_0001.safetensors")
    file.unlink()
    with pytest.raises(ArtifactError, match=r"expert_0001\.safetensors cannot be read: .* Run again, which trains"):
        found.params(1, 0)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    get(problem, tmp_path, experts=1)
    (file,) = tmp_path.glob("*/*/expert_0000.safetensors")
    left = [file.with_name(f".expert_000{k}.safetensors.9-9.tmp") for k in (1, 7)]
    for path in left:
        path.touch()
    get(problem, tmp_path, experts=2)
    # Of an expert that is nobody's work here another process may be writing.
    assert [path.exists() for path in left] == [False, True]


def test_numbers_that_are_none_are_never_followed(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    get(problem, tmp_path)
    (file,) = tmp_path.glob("*/*/expert_0001.safetensors")
    held = load_file(file)
    save_file(held | {"params": held["params"] * math.nan}, file)
    with pytest.raises(ArtifactError, match=r"expert_0001\.safetensors is damaged.*Remove the file and run again"):
        get(problem, tmp_path)


def test_its_cost_is_that_of_what_a_run_reads_also_from_the_cache(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)

    def cost(experts: int, epochs: int) -> float:
        problem.artifacts.get(pool(problem, experts, epochs), problem)
        (used,) = problem.artifacts.used.values()
        assert (used["wanted"]["experts"], used["wanted"]["epochs"]) == (experts, epochs)
        assert not {"experts", "epochs"} & used["identity"].keys()
        return float(used["seconds"])

    large = cost(4, 4)
    assert large > 0
    assert 0 < cost(2, 4) < large
    assert cost(1, 1) < cost(1, 3) < cost(2, 4)
    assert cost(4, 4) == large


def test_runs_share_a_pool_whatever_their_seed_and_budget(tmp_path: Path) -> None:
    def key(problem: Problem | None = None, **changes: Any) -> str:
        return pool(problem or problem_for_checks(tmp_path), **changes).key

    assert key() == key(problem_for_checks(tmp_path, seed=4)) == key(problem_for_checks(tmp_path, ipc=1))
    assert key() == key(experts=100, epochs=50) == key(augment=ALL_OPS)
    others = [key(lr=0.2), key(seed=1), key(augment="none"), key(problem_for_checks(tmp_path, per_class=39))]
    problem = problem_for_checks(tmp_path)
    others += [key(problem.heldout(0.2)[0]), key(replace(problem, backbone=build("mlp", (3, 8, 8), 3)))]
    whitened = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    assert len({key(), *others, key(whitened), key(whitened.heldout(0.2)[0])}) == len(others) + 3


def test_experts_see_whitened_images_where_the_problem_does(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    whitened = replace(problem, pixels=fit_pixels("zca", problem.train, problem.info))
    plain, white = get(problem, tmp_path / "plain"), get(whitened, tmp_path / "white")
    assert torch.equal(plain[:, 0], white[:, 0])
    assert (plain[:, 1] - white[:, 1]).norm() > 1e-3


def test_an_expert_that_diverges_is_named_and_not_kept(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    with pytest.raises(
        DivergedError, match=r"expert 0 has diverged. A smaller step size than 1e\+20 usually helps: .*lr_experts=0.01"
    ):
        get(problem, tmp_path, lr=1e20, epochs=5)
    assert not list(tmp_path.glob("*/*/expert*"))


def test_batch_norm_is_refused(tmp_path: Path) -> None:
    problem = replace(problem_for_checks(tmp_path), backbone=build("convnet-d2-w8-bn", (3, 8, 8), 3))
    with pytest.raises(ConfigError, match="convnet-d2-w8-bn has batch norm"):
        pool(problem)
