"""Odd values, folders, encodings and plug-ins: one sentence each, and nothing is waited for without a word."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ddbench.files as files
from ddbench.backbones import names as backbones
from ddbench.cli import root
from ddbench.config import parse_assignments, parse_value
from ddbench.data.catalogue import CATALOGUE
from ddbench.data.pixels import fit_pixels
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import ConfigError, PluginError, RunError
from ddbench.files import locked
from ddbench.plugins import GROUPS, load
from ddbench.runs.resolving import Asked, find_method, resolve_spec


@pytest.mark.parametrize(
    ("method", "assignment"),
    [
        ("dm", "lr_images=1e300"), ("dm", "lr_images=1e39"), ("mtt", "lr_lr=1e300"), ("herding", "lr_network=1e300"),
        ("kip", "memory_gib=1e300"), ("dm", "iterations=9223372036854775808"), ("dm", "lr_images=1979-05-27"),
        ("dm", "iterations=1979-05-27"), ("dm", "iterations=" + "9" * 5000), ("dm", "iterations=" + "[" * 2000),
    ],
)  # fmt: skip
def test_numbers_that_no_network_can_use_are_refused(tmp_path: Path, method: str, assignment: str) -> None:
    with pytest.raises(ConfigError, match=assignment.partition("=")[0]):
        resolve_spec(Asked(method, "toy", options=parse_assignments([assignment])), tmp_path)


def test_a_seed_is_a_whole_number_that_is_not_below_0(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the seed is -1"):
        resolve_spec(Asked("random", "toy", seed=-1), tmp_path)


@pytest.mark.parametrize("name", ["convnet-w99999999999", "convnet-w16385", "convnet-d65", "convnet-w" + "9" * 5000])
def test_a_backbone_of_any_size_is_no_backbone(name: str) -> None:
    with pytest.raises(ConfigError, match="is the most"):
        backbones.build(name, (3, 32, 32), 10)


@pytest.mark.parametrize("text", ["lr = 1e300", "momentum = 1e-400\nlr = 1e39"])
def test_a_protocol_has_numbers_of_single_precision(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(f'name = "p"\n[options]\n{text}\n')
    result = CliRunner().invoke(root, ["show", "protocol", str(tmp_path / "p.toml")])
    assert result.exit_code == 2
    assert "single precision" in result.stderr


@pytest.mark.parametrize(
    "text", ["a = 1979-05-27", "a = 07:32:00", "a = " + "9" * 5000, "a = " + "[" * 5000, "a = 9999999999999999999"]
)
def test_what_no_setting_is_ends_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    result = CliRunner().invoke(root, ["show", "protocol", str(tmp_path / "p.toml")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {tmp_path / 'p.toml'}")


def test_a_date_is_kept_as_it_was_typed() -> None:
    assert parse_value("1979-05-27") == "1979-05-27"


@pytest.mark.parametrize("below", ["file/data", "x" * 300])
@pytest.mark.parametrize(
    "command", [["data", "list", "--data"], ["leaderboard", "--runs"], ["leaderboard", "build", "--leaderboards"]]
)
def test_a_folder_that_cannot_be_is_no_empty_list(tmp_path: Path, command: list[str], below: str) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(root, [*command, str(tmp_path / below)])
    assert result.exit_code == 2
    assert "cannot be made" in result.stderr


@pytest.mark.parametrize("kind", ["zca", "frepo-zca", "rfad-zca", "kip-zca", "rat-zca"])
def test_images_of_one_colour_have_a_whitening(kind: str) -> None:
    images = torch.full((8, 1, 4, 4), 7, dtype=torch.uint8)
    train = DatasetTensors(images, torch.arange(8) // 4, ("a", "b"))
    space = fit_pixels(kind, train, CATALOGUE["digits"])
    assert bool(torch.isfinite(space.forward(images)).all())


@pytest.mark.parametrize(
    "line",
    [
        "raise BaseException('no')", "raise GeneratorExit", "raise SystemExit(3)", "1 / 0",
        "class E(BaseException):\n    def __str__(self): return 5\nraise E", "raise type('É\\x1b', (Exception,), {})",
    ],
    ids=range(6),
)  # fmt: skip
@pytest.mark.parametrize("group", list(GROUPS.values()))
def test_a_plugin_that_raises_anything_is_a_sentence(tmp_path: Path, group: str, line: str) -> None:
    (tmp_path / "idea.py").write_text(line)
    with pytest.raises(PluginError, match="does not import"):
        load(group, f"{tmp_path / 'idea.py'}:Mine")


def test_ctrl_c_in_a_plugin_is_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(GROUPS["method"], f"{tmp_path / 'idea.py'}:Mine")


ANSWERS = "".join(f"    def {name}: ...\n" for name in ("start(s, p)", "step(s, p, state, rng)", "export(s, p, state)"))


@pytest.mark.parametrize("name", ["5", "b'x'", "None", "['x']", "''", "'a\\nb'", "'../x'", "type('T', (), {})"])
def test_a_method_that_is_named_by_no_name_is_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "idea.py").write_text(
        "from ddbench import Method, MethodInfo\nclass Mine(Method):\n"
        f"    name = {name}\n    info = MethodInfo(title='Mine')\n{ANSWERS}"
    )
    with pytest.raises(PluginError, match="cannot be called"):
        find_method(f"{tmp_path / 'idea.py'}:Mine")


@pytest.mark.parametrize(
    "info", ["5", "MethodInfo(title='a\\nb')", "MethodInfo(title=5)", "MethodInfo(title='a', kind='x')"]
)
def test_a_method_that_says_nothing_printable_of_itself_is_a_sentence(tmp_path: Path, info: str) -> None:
    (tmp_path / "idea.py").write_text(
        f"from ddbench import Method, MethodInfo\nclass Mine(Method):\n    name = 'mine'\n    info = {info}\n{ANSWERS}"
    )
    with pytest.raises(PluginError, match=r"should be a ddbench\.MethodInfo"):
        find_method(f"{tmp_path / 'idea.py'}:Mine")


def ran(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_character_that_an_encoding_lacks_is_replaced(encoding: str) -> None:
    program = "from ddbench.cli import _prepare_streams\n_prepare_streams()\nprint('\\u2212 \\u0416')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"?")


def test_a_closed_stdout_is_no_traceback() -> None:
    command = f"{sys.executable} -m ddbench list methods >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_the_command_line_is_imported_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(f"open({str(tmp_path / 'here')!r}, 'w')\nimport time\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "ddbench", "list", "methods"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        while not (tmp_path / "here").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "Error: stopped by Ctrl-C.\n")


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.01)
    said, taken = threading.Event(), threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.set()

    def hold() -> None:
        with locked(tmp_path / ".lock"):
            taken.set()
            said.wait(20)

    logging.getLogger("ddbench.files").addHandler(told := Told())
    other = threading.Thread(target=hold)
    other.start()
    taken.wait(20)
    try:
        with locked(tmp_path / ".lock"):
            pass
    finally:
        logging.getLogger("ddbench.files").removeHandler(told)
        other.join()
    assert f"works on {tmp_path}" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "_lockable", set())
    (tmp_path / ".lock").touch()
    with pytest.raises(RunError, match=r"has no locks.*--data"), locked(tmp_path / ".lock", "--data"):
        pass
