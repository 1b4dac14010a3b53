"""What a device can do: graphs, double precision, copies that nobody waits for, memory figures. Whoever needs one of
them asks here, and not for the device's name.

CPUs, NVIDIA GPUs ("cuda") and Apple's GPUs ("mps") are known. Nothing of ddbench has been run on the last kind yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOST = torch.device("cpu")


def has_graphs(device: torch.device) -> bool:
    """Whether a step can be captured as a CUDA graph and replayed, on streams of its own, and compiling it can pay."""
    return device.type == "cuda"


def runs_triton(device: torch.device) -> bool:
    """Whether ddbench's own GPU kernels can run there, where Triton is installed."""
    return device.type == "cuda"


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in double precision; Apple's GPUs refuse such a tensor."""
    return device.type != "mps"


def has_tf32(device: torch.device) -> bool:
    """Whether products can round their inputs to TF32, by torch's switches for CUDA."""
    return device.type == "cuda"


def has_bfloat16(device: torch.device) -> bool:
    """Whether networks can run under bfloat16 autocast. On Apple's GPUs that needs macOS 14."""
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return torch.amp.autocast_mode.is_autocast_available(device.type)


def pins(device: torch.device) -> bool:
    """Whether copies from pinned memory of the host run beside the work of the device."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for the copy where that is safe."""
    if tensor.device.type == "cpu" and pins(device):
        # A copy from memory that is not pinned makes the host wait for everything queued on the device.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def home_of_float64(device: torch.device) -> torch.device:
    """Where double precision of work on a device is computed: there, or on the host where the device has none."""
    return device if has_float64(device) else HOST


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in double precision, differentiable; on the host where its device has none.

    What is computed with it goes back by `.to(other)` for a tensor of the device, or by `back_on`.
    """
    home = home_of_float64(tensor.device)
    # The copy first: a device without double precision cannot even hold the result.
    return tensor.to(home).double()


def back_on(result: Tensor, device: torch.device) -> Tensor:
    """A result in double precision on the device that it is for: as it is, or in single where that has no double."""
    return result if has_float64(device) else result.float().to(device)


def wait_for(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def total_bytes(device: torch.device) -> int | None:
    """Memory of a GPU, for Apple's what the system recommends as the most; None for the host."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(torch.mps.recommended_max_memory()) if device.type == "mps" else None


def forget_peak(device: torch.device) -> None:
    """Count the most memory in use from now on, where that is counted."""
    if device.type == "cuda":
        torch.cuda.init()  # without it, torch knows no device by its number yet
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most memory of the device that was in use since `forget_peak`; None where nobody counts it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def name_of(device: torch.device) -> str:
    """What the device calls itself, or its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # The name came with torch 2.8.
    named = getattr(torch.backends.mps, "get_name", None) if device.type == "mps" else None
    return f"{named()} (mps)" if named is not None else device.type
