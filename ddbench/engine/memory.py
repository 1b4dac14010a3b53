"""The memory of work on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys

import torch

# Names of the C library: above which size a piece of memory is mapped for itself, and how much that is free at the end
# the process keeps.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MAPPED_APART = 1 << 30
KEPT = (1 << 31) - 1


def keep_memory(device: torch.device) -> None:
    """Before work on a CPU: let this process use freed memory again instead of returning it. Only glibc needs it."""
    if device.type == "cpu":
        _adjust()


@functools.cache
def _adjust() -> None:
    # Otherwise every activation is mapped anew, page by page, and filled with zeros by the system: 120 000 page faults
    # a step of ConvNet-D3 on 100 images, a third of its time.
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, MAPPED_APART)
        adjust(M_TRIM_THRESHOLD, KEPT)
