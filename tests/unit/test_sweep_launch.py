"""Devices, outcomes and workers."""

import pickle
from pathlib import Path

import pytest
import torch

from ddbench.errors import ConfigError
from ddbench.runs import spec
from ddbench.runs.batch import Outcome, resolve_all, settled
from ddbench.runs.devices import choose_device, visible_devices
from ddbench.runs.spec import Asked, resolve_spec
from ddbench.runs.states import RunState
from ddbench.sweep import launch
from ddbench.sweep.launch import Worker, merge


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_sweep_uses_every_visible_gpu_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_devices("auto") == visible_devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert visible_devices("cuda:1") == ["cuda:1"]
    assert visible_devices("cpu") == ["cpu"]
    with pytest.raises(ConfigError, match="this machine has cuda:0 to cuda:2"):
        choose_device("cuda:3")


def test_methods_without_a_budget_answer_every_ipc_with_one_run(tmp_path: Path) -> None:
    asked = [Asked(method, "digits", ipc=ipc) for method in ("whole", "random") for ipc in (1, 2)]
    specs = [resolution.spec for resolution in resolve_all(asked, tmp_path)]
    assert [(spec.method, spec.ipc) for spec in specs] == [("whole", 0), ("random", 1), ("random", 2)]


def test_workers_on_unlike_devices_make_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "usual", lambda device: "tf32" if device.index == 0 else "fp32")
    requests = [Asked("random", "digits"), Asked("random", "digits", precision="bf16")]
    there = settled(requests, tmp_path, torch.device("cuda:0"))
    assert [asked.precision for asked in there] == ["tf32", "bf16"]
    ids = [[r.spec.id for r in resolve_all(there, tmp_path, torch.device(f"cuda:{k}"))] for k in (0, 1)]
    assert ids[0] == ids[1]


def test_the_best_of_what_the_workers_say_about_a_run_counts(tmp_path: Path) -> None:
    resolved = resolve_spec(Asked("random", "digits"), tmp_path).spec

    def outcome(name: str, state: RunState) -> Outcome:
        return Outcome(resolved, tmp_path / name, state)

    said = [
        outcome("a", "running"),
        outcome("b", "failed"),
        outcome("a", "done"),
        outcome("b", "running"),
        outcome("c", "running"),
    ]
    assert [(o.folder.name, o.state) for o in merge(said)] == [("a", "done"), ("b", "failed"), ("c", "running")]


def test_workers_start_at_their_own_place_and_do_the_whole_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = tuple(Asked("random", "digits", ipc=1, seed=seed) for seed in range(4))
    orders: list[list[int]] = []
    monkeypatch.setattr(
        launch, "run_all", lambda resolutions, options: orders.append([r.spec.seed for r in resolutions])
    )
    for first in (0, 2):
        Worker(requests, tmp_path, tmp_path, "cpu", first=first, quiet=True)()
    assert orders == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_a_worker_can_be_sent_and_requeued(tmp_path: Path) -> None:
    worker = Worker((Asked("random", "digits", assignments=("a=1",)),), tmp_path, tmp_path, "cpu")
    assert pickle.loads(pickle.dumps(worker)) == worker
    delayed = worker.checkpoint()
    assert (delayed.function, delayed.args, delayed.kwargs) == (worker, (), {})
