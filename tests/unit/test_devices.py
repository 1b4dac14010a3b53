"""Devices by what they can do. Apple's GPUs are not on any machine of the tests: what torch says of them is replaced,
and whole methods run on a device of shapes alone (`meta`) that refuses what they refuse."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ddbench
from ddbench import drive
from ddbench.cli import root
from ddbench.costs.bench import kind_of
from ddbench.data.toy import toy
from ddbench.engine import capabilities
from ddbench.engine.precision import Precision, names_on, usual
from ddbench.engine.program import Program, worth_compiling
from ddbench.errors import ConfigError
from ddbench.evaluation.evaluate import SealedTest, scores
from ddbench.evaluation.protocol import protocol
from ddbench.evaluation.trainer import trainer_of
from ddbench.ntk.gram import gram
from ddbench.plugins import GROUPS, load_object
from ddbench.rng import Rng
from ddbench.runs.devices import choose_device, visible_devices
from ddbench.runs.places import likely_devices, place_of
from ddbench.runs.resolving import Asked, foresee
from ddbench.synthetic import Recipe, SyntheticSet
from ddbench.testing.contract import problem_for_checks
from ddbench.training.students import students_together

CPU, MPS, META = (torch.device(name) for name in ("cpu", "mps", "meta"))


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is an Apple GPU, with macOS 14."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (14, 0))


@pytest.mark.usefixtures("mac")
def test_an_apple_gpu_is_taken_where_it_is_named() -> None:
    assert choose_device("mps") == MPS
    assert visible_devices("mps") == ["mps"]
    assert choose_device("auto").type != "mps"
    with pytest.raises(ConfigError, match="a Mac has one"):
        choose_device("mps:1")


def test_a_worker_on_an_apple_gpu_keeps_its_name_and_environment() -> None:
    place = place_of("mps", {"CUDA_VISIBLE_DEVICES": "3"})
    assert (place.device, place.environment) == ("mps", {"CUDA_VISIBLE_DEVICES": "3"})
    assert likely_devices("mps") == []


@pytest.mark.parametrize("built", [False, True])
def test_without_an_apple_gpu_a_sentence_says_why(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    with pytest.raises(ConfigError, match="sees no Apple GPU" if built else "built without Metal") as found:
        choose_device("mps")
    assert found.value.exit_code == 2
    with pytest.raises(ConfigError, match="device 'mps' was asked for"):
        ddbench.run("random", "digits", device="mps")


@pytest.mark.usefixtures("mac")
def test_precisions_of_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (usual(MPS), names_on(MPS), Precision("tf32").on(MPS)) == ("fp32", ("fp32", "bf16"), "fp32")
    assert foresee(Asked("random", "cifar10"), MPS).precision == "fp32"
    Precision("bf16").require(MPS)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    assert names_on(MPS) == ("fp32",)
    with pytest.raises(ConfigError, match="cannot run networks in bfloat16 here; choose one of the precisions fp32"):
        foresee(Asked("random", "cifar10", precision="bf16"), MPS)


def test_precisions_of_the_other_devices() -> None:
    assert names_on(CPU) == ("fp32", "bf16")
    assert names_on(torch.device("cuda")) == ("fp32", "tf32", "bf16")


def test_flags_are_set_for_an_apple_gpu_and_restored() -> None:
    with Precision("bf16").active(MPS):
        assert torch.is_autocast_enabled("mps")
    assert not torch.is_autocast_enabled("mps")


def test_an_apple_gpu_takes_the_plain_paths() -> None:
    program = Program(lambda value: 2 * value, MPS, calls=100)
    assert [program(k) for k in range(4)] == [0, 2, 4, 6]
    assert not program.captured
    assert not worth_compiling(1e9, MPS)
    assert students_together(10, MPS) == 1
    assert not capabilities.pins(MPS)
    assert not capabilities.runs_triton(MPS)
    assert kind_of(MPS) == "gpu"
    assert capabilities.home_of_float64(MPS) == CPU


def test_what_torch_counts_of_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(True))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1 << 33)
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M2", raising=False)
    capabilities.wait_for(MPS)
    capabilities.forget_peak(MPS)
    assert waited == [True]
    assert capabilities.total_bytes(MPS) == 1 << 33
    assert capabilities.peak_bytes(MPS) is None
    assert capabilities.name_of(MPS) == "Apple M2 (mps)"


def test_a_cpu_has_none_of_that() -> None:
    capabilities.wait_for(CPU)
    capabilities.forget_peak(CPU)
    assert capabilities.total_bytes(CPU) is None
    assert capabilities.peak_bytes(CPU) is None
    assert capabilities.name_of(CPU) == "cpu"
    x = torch.rand(3)
    assert capabilities.sent(x, CPU) is x
    assert capabilities.in_float64(x).dtype == torch.float64


def test_kernels_in_double_precision_are_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="has no double precision"):
        gram("fc3", (1, 8, 8), MPS, dtype=torch.float64)


class LikeAnAppleGPU(TorchDispatchMode):
    """The device of shapes alone as one that holds nothing in double precision and mixes with nothing on the host.

    What is copied from it to the host is all ones, since there are no numbers.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            return 1.0 if args[0].is_floating_point() else 1
        # In inference mode a copy arrives as it was asked for, and not as the operation that torch makes of it.
        copying = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_)
        if copying and args[0].device == META and kwargs.get("device") == CPU:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        sizes = {tensor.device for tensor in given if tensor.ndim}
        # torch mixes numbers of the host with anything.
        if len(sizes) > 1 and not copying:
            raise RuntimeError(f"{func} mixes the device with the host")
        result = func(*args, **kwargs)
        if func is torch.ops.aten._efficientzerotensor.default:
            return result  # torch's placeholder for a derivative that is zero, which has no memory
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == META and leaf.dtype == torch.float64:
                raise RuntimeError(f"{func} makes a tensor in double precision, which the device does not have")
        return result


@pytest.fixture
def apple_like(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(capabilities, "has_float64", lambda device: device.type != "meta")
    # A generator has numbers, so this device has none.
    monkeypatch.setattr(Rng, "torch", lambda self, device="cpu": torch.Generator().manual_seed(self.key))
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    with LikeAnAppleGPU():
        yield


QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "dm": ("dm", {"iterations": 2, "batch_real": 8}),
    "dd": ("dd", {"iterations": 2, "batch_real": 8}),
    "ld": ("ld", {"iterations": 2, "batch_real": 8}),
    "ld by ridge regression": ("ld", {"iterations": 2, "batch_real": 8, "variant": "ridge"}),
    "kip": ("kip", {"iterations": 2, "batch_real": 9, "kernel": "fc3", "augment": True}),
    "ls": ("ls", {"batch_real": 60, "kernel": "fc3"}),
}


@pytest.mark.usefixtures("apple_like")
def test_the_device_of_the_test_refuses_what_it_should() -> None:
    with pytest.raises(RuntimeError, match="double precision"):
        torch.zeros(3, device=META).double()
    with pytest.raises(RuntimeError, match="mixes"):
        torch.zeros(3, device=META) + torch.zeros(3)
    assert capabilities.in_float64(torch.zeros(3, device=META)).tolist() == [1.0, 1.0, 1.0]
    assert capabilities.back_on(torch.zeros(3, dtype=torch.float64), META).dtype == torch.float32


@pytest.mark.usefixtures("apple_like")
@pytest.mark.parametrize(("name", "options"), QUICK.values(), ids=list(QUICK))
def test_methods_need_no_double_precision_of_the_device(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    kind = load_object(GROUPS["method"], name)
    problem = problem_for_checks(tmp_path)
    problem = dataclasses.replace(problem, device=META, pixels=problem.pixels.to(META))
    states = [state for state, _ in drive(kind(kind.Config(**options)), problem)]
    assert states


@pytest.mark.usefixtures("apple_like")
@pytest.mark.parametrize("name", ["dsa@1", "krr-fc1@1", "ld-ridge@2"])
def test_students_need_no_double_precision_of_the_device(name: str, tmp_path: Path) -> None:
    data, problem = toy(shape=(3, 8, 8)), problem_for_checks(tmp_path)
    problem = dataclasses.replace(problem, device=META, pixels=problem.pixels.to(META))
    soft = torch.full((6, 3), 1 / 3)
    recipe = Recipe(optimizer="adam", lr=torch.tensor(0.001), steps=2, batch=6)
    synthetic = SyntheticSet(torch.rand(6, 3, 8, 8), soft, recipe, label_kind="probability", pixels=problem.pixels.name)
    judged = protocol(name)
    short = {"steps": 2, "epochs": None} if name == "dsa@1" else {}
    judged = judged.model_copy(update={"options": judged.options.model_copy(update=short)})
    trainer = trainer_of(synthetic, judged, problem, students=1)
    (score,) = scores(trainer, SealedTest(data.test), [0])
    assert 0 <= score.accuracy <= 1


@pytest.mark.parametrize(
    "command",
    [
        "run --method random --dataset digits",
        "prepare --method random --dataset digits",
        "evaluate set.pt",
        "sweep sweep.toml",
        "bench --loop ceiling",
    ],
)
def test_every_command_refuses_an_apple_gpu_that_is_not_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text('[grid]\nmethod = "random"\ndataset = "digits"\n')
    result = CliRunner().invoke(root, [*command.split(), "--device", "mps"])
    assert result.exit_code == 2
    assert result.output.startswith("Error: device 'mps' was asked for, and torch ")
    assert result.output.count("\n") == 1
