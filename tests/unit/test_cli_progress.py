"""What a long operation on files says on stderr: never nothing for long, never too much, and never worth an error."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddbench.cli.common import note
from ddbench.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """The reader of the pipe has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def on(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Progress, Clock]:
    clock = Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    return Progress(options.pop("quiet", False), clock=clock, **options), clock


def test_off_a_terminal_there_is_a_line_for_each_thing_and_one_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    progress, clock = on(stream, monkeypatch)
    progress("unpacking", 0, 1)
    for done in range(250):
        clock.now = done / 10
        progress("decoding images", done, 250)
    assert stream.getvalue().splitlines() == [
        "unpacking ...", "decoding images ...", "decoding images 40 %", "decoding images 80 %"
    ]  # fmt: skip


def test_what_reports_nothing_is_said_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress, clock = on(stream, monkeypatch)
    progress.show()
    assert stream.getvalue() == ""
    progress("storing", 0, 1)
    for clock.now in (5.0, 9.9, 10.0, 15.0, 75.0):
        progress.show()
    assert stream.getvalue().splitlines() == ["storing ...", "storing ... 10 s", "storing ... 1 min 15 s"]


def test_of_what_is_over_soon_nothing_need_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress, clock = on(stream, monkeypatch, at_once=False)
    for clock.now in (1.0, 9.0):
        progress("deleting", int(clock.now), 20)
    assert stream.getvalue() == ""
    clock.now = 11.0
    progress("deleting", 11, 20)
    assert stream.getvalue() == "deleting 55 %\n"


def test_while_it_is_entered_somebody_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress, clock = on(stream, monkeypatch, every_seconds=0.01)
    with progress:
        progress("storing", 0, 1)
        clock.now = 61.0
        while len(stream.getvalue().splitlines()) < 2:
            pass
    assert stream.getvalue().splitlines()[1] == "storing ... 1 min 01 s"


def test_a_share_is_never_more_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress, _ = on(stream, monkeypatch)
    progress("downloading", 7, 5)
    assert stream.getvalue() == "downloading 100 %\n"


def test_on_a_terminal_a_line_moves_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    progress, clock = on(stream, monkeypatch)
    with progress:
        for done in range(4):
            clock.now = float(done)
            progress("decoding images", done, 4)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().split("\x1b[K") == [
        "\rdecoding images ...", "\rdecoding images 25 %", "\rdecoding images 50 %", "\rdecoding images 75 %", "\r", ""
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [Gone(), None])
def test_a_stderr_that_is_gone_ends_nothing(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, clock = on(stream, monkeypatch)
    with progress:
        progress("storing", 0, 1)
        clock.now = 20.0
        progress.show()
    note("nobody hears this")


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress, _ = on(stream, monkeypatch, quiet=True)
    with progress:
        progress("storing", 0, 1)
    assert stream.getvalue() == ""


def test_an_error_is_not_hidden_by_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, _ = on(io.StringIO(), monkeypatch)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt


@pytest.mark.parametrize("stderr", ["full", "closed", "left"])
def test_a_dataset_is_added_whatever_became_of_stderr(tmp_path: Path, stderr: str) -> None:
    images, labels = np.zeros((4, 3, 3), dtype=np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    command = [sys.executable, "-m", "ddbench", "data", "add", "own", "own.npz", "--data", "data", "--json"]
    read, left = os.pipe()
    os.close(read)
    where = left
    if stderr == "full":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        where = os.open("/dev/full", os.O_WRONLY)
    if stderr == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=where, text=True, check=False)
    assert done.returncode == 0
    assert '"name": "own"' in done.stdout
    assert (tmp_path / "data" / "own" / "manifest.json").is_file()
    for descriptor in {left, where}:
        os.close(descriptor)
