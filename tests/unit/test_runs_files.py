"""The parts of a run's folder one by one: its lock, checkpoints, log, picture, and what is said of its origin."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.toy import toy
from ddbench.errors import RunError
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.files import read_json, write_json
from ddbench.runs import checkpoint, provenance
from ddbench.runs.checkpoint import Checkpoint
from ddbench.runs.ledger import Clock
from ddbench.runs.observers import Console, MetricLog, Started, read_log
from ddbench.runs.preview import preview
from ddbench.runs.resolving import RunSpec
from ddbench.runs.rundir import RunDir
from ddbench.runs.signals import SAME_REQUEST, Interrupted, Stop
from ddbench.synthetic import SyntheticSet
from ddbench.text import duration

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SPEC = RunSpec(
    method="dm",
    provided_by="ddbench 0.1.0",
    method_sha256=None,
    dataset="toy",
    data_fingerprint="b2:00",
    ipc=1,
    backbone="torchvision:resnet18",
    pixels="standard",
    seed=0,
    precision="fp32",
    config={"iterations": 3, "lr_images": 1.0},
    protocols=("dsa@1",),
    sources={"config.iterations": "--set"},
)


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    assert folder.path == tmp_path / "toy" / "ipc1" / "dm" / f"torchvision-resnet18-s0-{SPEC.id}"
    assert RunDir.at(folder.path) == folder
    assert list(RunDir.find(tmp_path)) == [folder]


def test_protocols_and_students_do_not_change_the_folder(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    again = RunDir.open(tmp_path, replace(SPEC, protocols=("dc@1",), students=3, provided_by="ddbench 9.0"))
    assert again.path == folder.path
    assert again.spec.protocols == ("dc@1",)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / SPEC.folder
    path.mkdir(parents=True)
    (path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds thesis\.tex and no spec\.json"):
        RunDir.open(tmp_path, SPEC)
    assert [p.name for p in path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_was_killed_at_birth_is_taken(tmp_path: Path) -> None:
    path = tmp_path / SPEC.folder
    path.mkdir(parents=True)
    (path / ".spec.json.123-4.tmp").write_text("{")
    assert RunDir.open(tmp_path, SPEC).spec == SPEC


def test_a_file_where_the_runs_should_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match="could not be written"):
        RunDir.open(tmp_path / "runs", SPEC)


@pytest.mark.parametrize("change", [{"seed": 5}, {"schema": "other/1"}, {"colour": "red"}, {"ipc": None}])
def test_a_spec_that_was_edited_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    write_json(folder.path / "spec.json", {**SPEC.to_json(), **change})
    with pytest.raises(RunError, match=r"spec\.json"):
        RunDir.open(tmp_path, SPEC)


def test_a_damaged_run_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = RunDir.open(tmp_path, SPEC)
    broken = RunDir.open(tmp_path, replace(SPEC, seed=1))
    (broken.path / "spec.json").write_text("{")
    assert list(RunDir.find(tmp_path)) == [sound]
    assert "damaged" in caplog.text


def test_evaluations_have_a_file_each(tmp_path: Path) -> None:
    folder = RunDir(tmp_path, SPEC)
    names = [folder.evaluation(PROTOCOLS["dsa@1"], b).relative_to(tmp_path) for b in ("mlp", "torchvision:vgg11")]
    assert [str(n) for n in names] == ["evaluations/dsa@1/mlp.json", "evaluations/dsa@1/torchvision-vgg11.json"]


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    with folder.lock():
        assert read_json(folder.path / "lock")["pid"] == os.getpid()
        with pytest.raises(RunError, match=f"run {SPEC.id} is being worked on by pid {os.getpid()}"), folder.lock():
            pass
        (folder.path / "lock").write_text("half a li")
        with pytest.raises(RunError, match="by another process"), folder.lock():
            pass
    assert not (folder.path / "lock").exists()
    with folder.lock():
        pass


def test_what_killed_processes_left_is_swept_away(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".step_000002.pt.99-1.tmp").write_bytes(b"half")
    old, fresh = (folder.path / f".spec.json.{pid}-1.tmp" for pid in (98, 99))
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (0, 0))
    with folder.lock():
        assert list(folder.checkpoints.iterdir()) == []
        # Another process can be writing the spec at this moment.
        assert [path.exists() for path in (old, fresh)] == [False, True]


def test_a_lock_is_released_by_an_error(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock():
        pass


def test_clearing_leaves_the_spec_and_nothing_else(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, SPEC)
    (folder.path / "snapshots").mkdir()
    (folder.path / "snapshots" / "one").touch()
    folder.record.touch()
    with folder.lock():
        folder.clear()
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "spec.json"]


def saved(step: int, **state: Any) -> Checkpoint:
    return Checkpoint(run="abc", step=step, state={"step": step, **state}, seconds=1.5, peak_host_bytes=7)


def test_a_checkpoint_survives_its_file(tmp_path: Path) -> None:
    state = {"images": torch.randn(3), "nested": [{"a": torch.ones(2)}, None, "text"], "rate": 0.1}
    checkpoint.save(tmp_path, saved(3, **state))
    back = checkpoint.load(tmp_path, "abc", CPU, pytest.fail)
    assert back is not None
    assert (back.step, back.seconds, back.peak_host_bytes, back.peak_device_bytes) == (3, 1.5, 7, None)
    assert torch.equal(back.state["images"], state["images"])  # type: ignore[arg-type]
    assert torch.equal(back.state["nested"][0]["a"], torch.ones(2))
    assert back.state["nested"][1:] == [None, "text"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_every_kind_of_damage_falls_back(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint.save(tmp_path, saved(1))
    checkpoint.save(tmp_path, saved(2, images=torch.randn(100)))
    newest = tmp_path / "step_000002.pt"
    newest.write_bytes(newest.read_bytes()[:300] if damage is None else damage)
    notes: list[str] = []
    back = checkpoint.load(tmp_path, "abc", CPU, notes.append)
    assert back is not None
    assert back.step == 1
    assert len(notes) == 1


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, saved(1))
    notes: list[str] = []
    assert checkpoint.load(tmp_path, "other", CPU, notes.append) is None
    assert notes == ["step_000001.pt is not a checkpoint of this run; it is passed over."]


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"format": checkpoint.FORMAT, "run": "abc", "state": Evil()}, tmp_path / "step_000009.pt")
    notes: list[str] = []
    assert checkpoint.load(tmp_path, "abc", CPU, notes.append) is None
    assert not (tmp_path / "pwned").exists()


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, saved(step))
    assert checkpoint.last_step(tmp_path) == 1_000_001
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_1000000.pt", "step_1000001.pt"]


def test_a_number_that_is_none_is_found_wherever_it_hides() -> None:
    bad = torch.tensor([1.0, torch.nan])
    assert checkpoint.not_finite({"a": torch.ones(2), "b": [torch.arange(3), None, 0.5, float("inf")]}) is None
    assert checkpoint.not_finite({"optimizer": {"state": {0: {"momentum_buffer": bad}}}}) == (
        "optimizer.state.0.momentum_buffer"
    )
    assert checkpoint.not_finite({"labels": [torch.ones(1), bad]}) == "labels[1]"


def test_a_log_is_cut_back_to_a_step(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log.jsonl")
    log.cut(-1)
    for step in (1, 2, 3):
        log.add(step, step / 2, {"loss": 1 / step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "seco')
    assert [entry["step"] for entry in read_log(log.path)] == [1, 2, 3]
    log.cut(2)
    log.add(3, 9.0, {})
    assert [(e["step"], e["seconds"]) for e in read_log(log.path)] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_on_a_full_disk_is_a_sentence() -> None:
    with pytest.raises(RunError, match="the disk is full"):
        MetricLog(Path("/dev/full")).add(1, 0.0, {})


def test_the_console_says_where_a_run_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console = Console(every_seconds=0)
    console.on_start(Started(SPEC, tmp_path, 10, 100))
    console.on_build("2 experts", 0, 40)
    console.on_phase("condense")
    console.on_step(20, 100, {"loss": 0.5}, 10.0)
    console.on_step(40, 100, {"loss": 0.25}, 20.0)
    console.on_step(60, 100, {"loss": 0.25}, 30.0)
    console.on_student("dsa@1", "mlp", 1.5, 5, 200.0)
    console.on_student("dsa@1", "mlp", 5.0, 5, None)
    console.on_note("a [bracket] is no markup")
    console.on_end()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "dm on toy, ipc 1, torchvision:resnet18, seed 0, going on from step 10 of 100",
        "prepare  2 experts  0%",
        "condense  20/100  loss 0.5",
        "condense  40/100  loss 0.25",
        "condense  60/100  2 steps/s  20 s left  loss 0.25",
        "evaluate dsa@1 mlp  1.5/5 students  3 min 20 s left",
        "evaluate dsa@1 mlp  5.0/5 students, testing",
        "a [bracket] is no markup",
    ]


def test_the_console_says_how_long_a_build_still_takes_anew_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("ddbench.runs.observers.time.monotonic", lambda: next(clock))
    console = Console(every_seconds=0)
    for _ in range(2):
        console.on_phase("prepare")
        for done in (0, 10, 20):
            console.on_build("2 experts", done, 40)
    # The console reads the clock twice for each line: a quarter took 20 s.
    lines = capsys.readouterr().err.splitlines()
    assert lines[3:] == lines[:3]
    assert lines[:3] == ["prepare  2 experts  0%", "prepare  2 experts  25%", "prepare  2 experts  50%  40 s left"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
def test_a_console_that_nobody_hears_ends_no_run(kind: str) -> None:
    """stderr on a full disk, closed, or a pipe whose reader has left (`2>&1 | head -1`): the exit code stays."""
    code = """
import os, sys
from ddbench.runs.observers import Console
console = Console(every_seconds=0)
if sys.argv[1] == "full":
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
elif sys.argv[1] == "closed":
    os.close(2)
else:
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)
for step in range(5):
    console.on_step(step, 5, {"loss": 0.5}, float(step))
    console.on_note("a sentence, with a ± in it")
console.on_end()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_console_in_another_alphabet_replaces_what_it_lacks() -> None:
    code = "from ddbench.runs.observers import Console; Console().on_note('ddbench → 50 % ± 1')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stderr == "ddbench ? 50 % ? 1\n"


def test_the_console_does_not_flood_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for step in range(1, 51):
        console.on_step(step, 50, {}, float(step))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_console_moves_one_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    console.on_step(1, 2, {"loss": 0.5}, 1.0)
    console.on_step(2, 2, {"loss": 0.5}, 2.0)
    console.on_student("dsa@1", "mlp", 1.0, 2, 5.0)
    console.on_end()
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "1.0/2 students" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class NoWayBack(PixelSpace):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def back(self, images: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize(("classes", "ipc", "rows"), [(3, 2, 3), (12, 1, 12), (25, 12, 20)])
def test_a_preview_has_a_row_for_each_class(classes: int, ipc: int, rows: int) -> None:
    data = toy(classes)
    pixels = fit_pixels("standard", data.train, data.info)
    synthetic = SyntheticSet(torch.randn(classes * ipc, 1, 8, 8), torch.arange(classes).repeat_interleave(ipc))
    picture = preview(synthetic, data.train.classes, pixels, "A title")
    height, width = matplotlib.image.imread(io.BytesIO(picture)).shape[:2]
    assert height == 52 + rows * (64 + 4)
    assert width >= min(ipc, 10) * (64 + 4) + 60
    assert preview(synthetic, data.train.classes, pixels, "A title") == picture


def test_a_preview_shows_the_pixels_themselves() -> None:
    data = toy(2)
    pixels = fit_pixels("standard", data.train, data.info)
    real = data.train.images[[0, 40]]
    labels = torch.tensor([0, 1])
    raw = preview(SyntheticSet(real, labels), data.train.classes, pixels, "t")
    assert preview(SyntheticSet(pixels.forward(real), labels), data.train.classes, pixels, "t") == raw
    image = torch.from_numpy(matplotlib.image.imread(io.BytesIO(raw)))[..., 0]
    right = image[52 : 52 + 64, -(64 + 4) : -4] if image.shape[1] == 64 + 4 else None
    columns = [image[52 : 52 + 64, left : left + 64] for left in range(image.shape[1] - 64)]
    expected = (real[0, 0] / 255).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert right is not None or any(torch.allclose(c, expected, atol=1 / 255) for c in columns)


def test_a_preview_without_a_way_back_says_so() -> None:
    data = toy(2)
    images = torch.randn(2, 1, 8, 8)
    labels = torch.tensor([0, 1])
    nowhere = NoWayBack("nowhere", "b2:0")
    picture = preview(SyntheticSet(images, labels), data.train.classes, nowhere, "t")
    # Each image is stretched, so that neither scale nor offset is seen.
    assert preview(SyntheticSet(images * 3 + 5, labels), data.train.classes, nowhere, "t") == picture
    plain = preview(
        SyntheticSet(images, labels), data.train.classes, fit_pixels("standard", data.train, data.info), "t"
    )
    wide = matplotlib.image.imread(io.BytesIO(picture)).shape[1]
    assert wide > matplotlib.image.imread(io.BytesIO(plain)).shape[1]


def test_a_checkout_says_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ddbench"
    package.mkdir()
    (package / "errors.py").write_text("one")
    monkeypatch.setattr(provenance.ddbench, "__file__", str(package / "__init__.py"))
    unknown = {"commit": "unknown", "dirty": True}
    assert provenance.git() == unknown

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "x")
    # The package lies inside a checkout that does not know it, as in somebody's virtual environment.
    assert provenance.git() == unknown
    # Its own checkout, whose index is lost, is another matter.
    (tmp_path / "pyproject.toml").touch()
    assert provenance.git() == unknown
    (tmp_path / "pyproject.toml").unlink()
    git("add", "ddbench")
    git("commit", "-m", "y")
    state = provenance.git()
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    # A record that was added, or a page that was written, is no other code.
    (tmp_path / "other").write_text("changed")
    (tmp_path / "new").touch()
    assert provenance.git() == state
    changed = {"commit": state["commit"], "dirty": True}
    (package / "new.py").touch()
    assert provenance.git() == changed
    (package / "new.py").unlink()
    assert provenance.git() == state
    (package / "errors.py").write_text("two")
    assert provenance.git() == changed
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git() == unknown


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as an installer leaves it, with the hash of each module in RECORD; not inside a checkout."""
    package, about = tmp_path / "ddbench", tmp_path / "ddbench-0.1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ddbench\nVersion: 0.1.0\n")
    lines = []
    for name in ("__init__.py", "errors.py"):
        (package / name).write_text(f"# {name}")
        digest = hashlib.sha256((package / name).read_bytes()).digest()
        lines.append(f"ddbench/{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},1")
    (about / "RECORD").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(provenance.ddbench, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(provenance, "distribution", lambda _: PathDistribution(about))
    provenance._installed.cache_clear()
    return package


def test_a_release_of_an_index_needs_no_commit(wheel: Path) -> None:
    assert provenance.git() is None


@pytest.mark.parametrize("dirty", [True, False])
def test_a_wheel_says_what_it_was_built_from(wheel: Path, dirty: bool) -> None:
    (wheel / "built_from.json").write_text(json.dumps({"commit": "ab" * 20, "dirty": dirty}))
    assert provenance.git() == {"commit": "ab" * 20, "dirty": dirty}


def test_a_wheel_of_a_path_that_says_nothing_is_unknown_code(wheel: Path) -> None:
    (wheel.parent / "ddbench-0.1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///a.whl"}')
    assert provenance.git() == {"commit": "unknown", "dirty": True}


def test_a_module_that_was_changed_after_the_install_is_noticed(wheel: Path) -> None:
    (wheel / "built_from.json").write_text(json.dumps({"commit": "ab" * 20, "dirty": False}))
    (wheel / "errors.py").write_text("# changed")
    assert provenance.git() == {"commit": "ab" * 20, "dirty": True}


def test_a_wheel_is_built_with_its_commit(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert set(provenance.CODE) <= set(hook.SOURCES)
    assert hook.built_from(tmp_path) is None

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    (tmp_path / "ddbench").mkdir()
    (tmp_path / "ddbench" / "errors.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    assert hook.built_from(tmp_path)["dirty"] is False
    (tmp_path / "notes").touch()
    assert hook.built_from(tmp_path)["dirty"] is False
    (tmp_path / "ddbench" / "new.py").touch()
    assert hook.built_from(tmp_path)["dirty"] is True
    assert hook.built_from(tmp_path / "ddbench") is None


def test_hardware_has_names() -> None:
    assert provenance.device_name(CPU) == "cpu"
    assert provenance.cpu_name()
    peak = provenance.peak_host_bytes()
    assert peak is None or peak > 1 << 20


def test_a_clock_stands_still_while_paused() -> None:
    clock = Clock(CPU, 10.0)
    assert clock.read() == 10.0
    clock.start()
    time.sleep(0.02)
    with clock.paused() as seconds:
        assert seconds >= 10.02
        time.sleep(0.2)
        assert clock.read() == seconds
    assert clock.read() < seconds + 0.15


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        with Stop(1.0, lambda text: None).listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_before_the_work_stops_it_at_once() -> None:
    stop = Stop(60.0, lambda text: None)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), stop.at_once():
            pytest.fail("the work began")


def test_two_signals_in_a_moment_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `timeout` sends them, to the process and to its group; a later one means it."""
    said: list[str] = []

    class LeftError(Exception):
        pass

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr("ddbench.runs.signals.os._exit", leave)
    stop = Stop(60.0, said.append)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.asked, said) == (signal.SIGTERM, [])
        stop._since -= SAME_REQUEST + 0.1
        with pytest.raises(LeftError, match="75"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert said == ["stopped by a second signal; run the same command again to go on from the last checkpoint."]
