"""Where numbers come from: the code's commit, packages, hardware. No paths, no host names, no user names."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ddbench

PACKAGES = ("ddbench", "torch", "torchvision", "numpy", "kornia", "scipy", "scikit-learn", "safetensors", "pydantic")


@functools.cache
def packages() -> dict[str, str]:
    """The versions of the installed packages that can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    # The metadata leaves out which CUDA the build is for.
    return found | {"torch": str(torch.__version__)}


def git() -> dict[str, Any] | None:
    """Commit of the checkout that ddbench is imported from, and whether its files differ; None for an installed one."""
    folder = Path(ddbench.__file__).parent
    # An installed package can lie inside somebody's checkout: it is that checkout's only if git tracks it.
    if _git(folder, "ls-files", "--error-unmatch", "errors.py") is None:
        # ddbench's own checkout, when git cannot read it, is no release: nobody knows what its code was.
        own = (folder.parent / ".git").exists() and (folder.parent / "pyproject.toml").exists()
        return {"commit": "unknown", "dirty": True} if own else None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit, "dirty": bool(changed)}


def device_name(device: torch.device) -> str:
    """What the device calls itself, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def cpu_name() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def python_version() -> str:
    return platform.python_version()


def peak_host_bytes() -> int | None:
    """Most resident memory of this process so far; the system never lowers it. None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
