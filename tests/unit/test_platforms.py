"""What only POSIX has is never needed to import ddbench or to run it on one machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddbench
from ddbench import host

SUITE = Path(str(ddbench.__file__)).parent
# Of Python's library on Linux, not on Windows.
POSIX = ["fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"]
# A Python without them, as far as it can be had here: other libraries have found what they need before.
ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
import filelock, numpy, pandas, submitit, torch, torchvision, PIL.Image, sklearn.datasets
for name in {posix!r}:
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL"):
    delattr(signal, name)
for name in ("sysconf", "getuid", "geteuid", "killpg", "mkfifo", "fork"):
    delattr(os, name)
"""
IMPORTS_AND_RUN = """
import ddbench
from ddbench.cli import main
rare = (".gpu", "__main__", "neural_tangents")  # for a GPU, a program, and of an extra
for module in pkgutil.walk_packages(ddbench.__path__, "ddbench."):
    if not any(part in module.name for part in rare):
        importlib.import_module(module.name)
sys.argv = ["ddbench", "run", "--method", "random", "--dataset", "digits", "--ipc", "1", "--judge", "mlp",
            "--students", "1", "--quiet", "--runs", sys.argv[1], "--data", sys.argv[1]]
main()
"""


def test_every_module_is_imported_and_a_run_done_without_what_only_posix_has(tmp_path: Path) -> None:
    program = ELSEWHERE.format(posix=POSIX) + IMPORTS_AND_RUN
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("digits/ipc1/random/*/record.json"))


def test_no_module_imports_at_its_top_what_only_posix_has() -> None:
    for path in SUITE.rglob("*.py"):
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in tops if isinstance(node, ast.ImportFrom)}
        assert not names & set(POSIX), path


def test_memory_is_not_known_where_nobody_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(host, "CGROUPS", (tmp_path / "missing",))
    assert host.memory() is None
