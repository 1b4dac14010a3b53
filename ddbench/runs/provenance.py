"""Where numbers come from: the code's commit, packages, hardware. No paths, no host names, no user names."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import ddbench
from ddbench.engine.capabilities import name_of

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


BUILT_FROM = "built_from.json"  # written into a wheel by hatch_build.py
UNKNOWN_CODE = {"commit": "unknown", "dirty": True}
# What runs, of a checkout. Records, tables and pages beside it change no result: adding one must not spoil the next.
CODE = ("ddbench", "methods", "pyproject.toml")


def git() -> dict[str, Any] | None:
    """The commit that ddbench's code is of, and whether it differs from that, new files included.

    Of the checkout that it is imported from, where `CODE` counts and nothing beside it; of an installed wheel what it
    was built from. None for a release that came from a package index and does not say.
    """
    folder = Path(ddbench.__file__).parent
    # An installed package can lie inside somebody's checkout: it is that checkout's only if git tracks it.
    if _git(folder, "ls-files", "--error-unmatch", "errors.py") is None:
        # ddbench's own checkout, when git cannot read it, is no release: nobody knows what its code was.
        own = (folder.parent / ".git").exists() and (folder.parent / "pyproject.toml").exists()
        return dict(UNKNOWN_CODE) if own else _installed(folder)
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder.parent, "status", "--porcelain", "--", *CODE)
    if commit is None or changed is None:
        return dict(UNKNOWN_CODE)
    return {"commit": commit, "dirty": bool(changed)}


@functools.cache
def _installed(folder: Path) -> dict[str, Any] | None:
    """As `git`, for a package that is no checkout."""
    try:
        about = distribution("ddbench")
    except PackageNotFoundError:
        return dict(UNKNOWN_CODE)
    try:
        stamp = json.loads((folder / BUILT_FROM).read_text())
        said = {"commit": str(stamp["commit"]), "dirty": bool(stamp["dirty"])}
    except (OSError, ValueError, KeyError, TypeError):
        # Where a package came from by a path or an address, its installer says so (PEP 610).
        said = dict(UNKNOWN_CODE) if about.read_text("direct_url.json") else {}
    if not _as_installed(about, folder):
        return {"commit": "unknown", **said, "dirty": True}
    return said or None


def _as_installed(about: Distribution, folder: Path) -> bool:
    """Whether the modules in a folder are those that a wheel has brought there, byte by byte."""
    files = [file for file in about.files or () if file.suffix == ".py" and file.hash is not None]
    ours = [file for file in files if Path(str(about.locate_file(file))).is_relative_to(folder)]
    if not ours:
        return False
    try:
        return all(
            base64.urlsafe_b64encode(hashlib.new(file.hash.mode, file.read_binary()).digest()).rstrip(b"=")
            == file.hash.value.encode()
            for file in files
            if file.hash is not None
        )
    except (OSError, ValueError):
        return False


def device_name(device: torch.device) -> str:
    """What the device calls itself, or "cpu"."""
    return name_of(device)


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
