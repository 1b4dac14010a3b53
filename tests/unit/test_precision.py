"""Flags are set in one place, for as long as they are wanted."""

import dataclasses

import pytest
import torch

from ddbench.engine.precision import Precision, usual
from ddbench.errors import ConfigError
from ddbench.runs.resolving import Asked, foresee

CPU = torch.device("cpu")


def flags() -> tuple[bool, ...]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        (Precision(), (False, False, True, False, False)),
        (Precision("tf32"), (True, True, True, False, False)),
        (Precision("bf16"), (True, True, True, False, True)),
        (Precision(deterministic=True), (False, False, False, True, False)),
    ],
)
def test_flags_are_set_inside_and_restored_after(precision: Precision, inside: tuple[bool, ...]) -> None:
    before = flags()
    with precision.active(CPU):
        assert flags() == inside
    assert flags() == before


def test_flags_are_restored_after_an_error() -> None:
    before = flags()
    with pytest.raises(RuntimeError, match="inside"), Precision("bf16", deterministic=True).active(CPU):
        raise RuntimeError("inside")
    assert flags() == before


def test_precisions_nest() -> None:
    with Precision(deterministic=True).active(CPU):
        outer = flags()
        with Precision("tf32").active(CPU):
            assert flags()[:2] == (True, True)
        assert flags() == outer
    with Precision("bf16").active(CPU), Precision().active(CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_runs_products_short_and_keeps_parameters_long() -> None:
    weight = torch.ones(4, 4)
    with Precision("bf16").active(CPU):
        assert (weight @ weight).dtype == torch.bfloat16
    assert weight.dtype == torch.float32


def test_tf32_is_usual_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual(CPU) == "fp32"
    for capability, name in (((7, 5), "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert usual(torch.device("cuda")) == name
        assert foresee(Asked("random", "cifar10"), torch.device("cuda")).precision == name
    assert foresee(Asked("random", "cifar10", precision="bf16"), torch.device("cuda")).precision == "bf16"


def test_a_cpu_has_no_tf32() -> None:
    cuda = torch.device("cuda")
    assert [Precision(name).on(CPU) for name in ("fp32", "tf32", "bf16")] == ["fp32", "fp32", "bf16"]
    assert [Precision(name).on(cuda) for name in ("fp32", "tf32", "bf16")] == ["fp32", "tf32", "bf16"]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"there is no precision 'fp16'. Did you mean 'bf16'\? Choose one of fp32, tf32, bf16"
    ):
        Precision("fp16")  # type: ignore[arg-type]


def test_a_preset_can_ask_for_a_precision() -> None:
    asked = Asked("dd", "cifar10")
    found = foresee(asked)
    assert (found.precision, found.sources["precision"].startswith("preset")) == ("fp32", True)
    assert foresee(dataclasses.replace(asked, precision="tf32")).precision == "tf32"
