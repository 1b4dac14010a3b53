"""A process that is killed at any call that changes files leaves an export or a dataset whole or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import numpy as np, torch
from ddbench import files
from ddbench.data import sources
from ddbench.foreign.exporting import export
from ddbench.synthetic import SyntheticSet

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "ctypes.call_function"}
root, what, at_once = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
if not at_once:
    files.exchange = lambda *_: False
left = None

def hook(event, arguments):
    global left
    if left is None or event not in CHANGES or (event == "open" and not set("wxa") & set(str(arguments[1]))):
        return
    left -= 1
    if left < 0:
        os._exit(9)  # nothing is tidied up, as after SIGKILL

sys.addaudithook(hook)
SETS = [SyntheticSet((255 * torch.rand(4, 1, 4, 4)).byte(), torch.arange(4) % 2) for _ in range(2)]

def png(folder, number):
    export(SETS[number], folder / "set", "png", lambda: None, {"dataset": "digits"})

def data(folder, number):
    labels = np.arange(6) % 3
    images = np.random.default_rng(number).integers(0, 255, (6, 4, 4), dtype="uint8")
    np.savez(folder.with_suffix(".npz"), x_train=images, y_train=labels, x_test=images, y_test=labels)
    sources.add("set", folder.with_suffix(".npz"), folder, force=True)

def sound(folder):
    if what == "png":
        assert len(list((folder / "set").rglob("*.png"))) == 4
    else:
        sources.load("set", folder).test.load()

act, killed = {"png": png, "data": data}[what], 0
while True:
    folder = root / str(killed)
    folder.mkdir()
    act(folder, 0)
    child = os.fork()
    if child == 0:
        left = killed
        act(folder, 1)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sound(folder)
    act(folder, 1)  # goes on, and tidies up
    sound(folder)
    beside = sorted(path.name for path in folder.iterdir() if path.name not in ("set", ".set.lock"))
    assert not at_once or beside == [], beside
    if ended == 0:
        break
    killed += 1
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("what", "at_once"), [("png", True), ("data", True), ("data", False)])
def test_killed_anywhere_it_is_whole(tmp_path: Path, what: str, at_once: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), what, str(at_once)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
