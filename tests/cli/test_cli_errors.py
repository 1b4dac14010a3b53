"""Whatever is mistyped or missing ends in a sentence and an exit code, not in a traceback."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ddbench.cli import root

DM = ["run", "--method", "dm", "--dataset", "digits"]

SENTENCES = {
    "no method": (["run"], 2, "A first run, which needs no download: ddbench run --method"),
    "no dataset": (["run", "--method", "dm"], 2, "Missing option '--dataset'"),
    "command": (["rnu"], 2, "There is no command 'rnu'. Did you mean 'run'?"),
    "subcommand": (["data", "ad"], 2, "Did you mean 'add'?"),
    "option": ([*DM, "--precison", "fp32"], 2, "No such option"),
    "ipc 0": ([*DM, "--ipc", "0"], 2, "0 is not in the range x>=1"),
    "ipc negative": ([*DM, "--ipc", "-3"], 2, "-3 is not in the range x>=1"),
    "ipc fraction": ([*DM, "--ipc", "1.5"], 2, "'1.5' is not a valid integer"),
    "students 0": ([*DM, "--students", "0"], 2, "0 is not in the range 1<=x<=10000"),
    "data is a file": ([*DM, "--data", "file"], 2, "Directory 'file' is a file"),
    "method": (["run", "--method", "dmm", "--dataset", "digits"], 2, "there is no method 'dmm'. Did you mean 'dm'?"),
    "method file": (["check", "--method", "./none.py:A"], 2, "there is no file none.py"),
    "foreign method": (["check", "--method", "./other.py:A"], 1, "not a subclass of ddbench.Method"),
    "broken method": (["check", "--method", "./broken.py:A"], 1, "does not import: ZeroDivisionError"),
    "dataset": (["run", "--method", "dm", "--dataset", "cifar-1O"], 2, "Did you mean 'cifar10'?"),
    "missing data": (
        ["run", "--method", "dm", "--dataset", "cifar10"],
        1,
        "Download it with `ddbench data get",
    ),
    "backbone": ([*DM, "--backbone", "convnt"], 2, "there is no backbone 'convnt'. Did you mean 'convnet'?"),
    "judge": ([*DM, "--judge", "resnet81"], 2, "Did you mean 'resnet18'?"),
    "protocol": ([*DM, "--protocol", "dssa"], 2, "there is no protocol 'dssa'. Did you mean 'dsa'?"),
    "protocol file": ([*DM, "--protocol", "none.toml"], 2, "none.toml cannot be read"),
    "set": ([*DM, "--set", "lr_image=5"], 2, "dm has no option 'lr_image'. Did you mean 'lr_images'?"),
    "set without =": ([*DM, "--set", "lr_images"], 2, "--set takes KEY=VALUE"),
    "set range": ([*DM, "--set", "lr_images=-1"], 2, "lr_images: input should be greater than 0 (got -1)"),
    "set several": (
        [*DM, "--method", "random", "--set", "lr_image=5"],
        2,
        "none of dm, random has an option 'lr_image'. Did you mean 'lr_images'?",
    ),
    "set stranger": ([*DM, "--set", "mtt.lr=5"], 2, "'mtt' is none of the methods here: dm"),
    "config": ([*DM, "--config", "none.toml"], 2, "none.toml cannot be read"),
    "config of several": ([*DM, "--method", "random", "--config", "x.toml"], 2, "--config holds the options of one"),
    "not toml": ([*DM, "--config", "file"], 2, "file is not valid TOML"),
    "pixels": ([*DM, "--pixels", "zac"], 2, "Did you mean 'zca'?"),
    "device": ([*DM, "--device", "cuba"], 2, "there is no device 'cuba'"),
    "unsupported device": ([*DM, "--device", "meta"], 2, "choose auto, cpu, cuda, cuda:N or mps"),
    "runs below a file": ([*DM, "--runs", "file/runs"], 2, "cannot be made: Not a directory"),
    "large ipc": ([*DM, "--ipc", "500", "--quiet"], 1, "class '8' of digits has 139 training images"),
    "show method": (["show", "method", "dmm"], 2, "Did you mean 'dm'?"),
    "show protocol": (["show", "protocol", "das"], 2, "Did you mean 'dsa'?"),
    "show dataset": (["show", "dataset", "mnits"], 2, "Did you mean 'mnist'?"),
    "list": (["list", "method"], 2, "is not one of"),
    "evaluate nothing": (["evaluate", "."], 1, "is not the folder of a run: it has no spec.json"),
    "evaluate a file": (["evaluate", "file"], 1, "file is no set that ddbench reads"),
    "evaluate none": (["evaluate", "none.pt"], 1, "there is no file none.pt"),
    "inspect none": (["inspect", "none.pt"], 1, "there is no file none.pt"),
    "inspect half": (["inspect", "half.pt"], 1, "half.pt cannot be opened: it is damaged"),
    "inspect dataset": (["inspect", "half.pt", "--dataset", "cifr10"], 1, "half.pt cannot be opened"),
    "export none": (["export", "."], 1, "is not the folder of a run: it has no spec.json"),
    "export format": (["export", ".", "--format", "zip"], 2, "'zip' is not one of"),
    "add nothing": (["data", "add", "mine", "none.tar.xz"], 1, "'none.tar.xz' does not exist"),
    "add foreign": (["data", "add", "mine", "file"], 1, "is neither a folder, nor an archive"),
    "add truncated": (["data", "add", "mine", "half.tar.xz"], 1, "half.tar.xz"),
    "get unknown": (["data", "get", "cifr10"], 2, "Did you mean 'cifar10'?"),
    "get imagenet": (["data", "get", "imagewoof"], 1, "the terms of ImageNet do not allow it"),
    "board nothing": (["leaderboard", "add", "."], 1, "holds no record"),
    "board foreign": (["leaderboard", "add", "other.json"], 1, "is not a ddbench record"),
    "publish protocol": (["sets", "add", ".", "--protocol", "dssa"], 2, "Did you mean 'dsa'?"),
    "sweep nothing": (["sweep", "none.toml"], 2, "none.toml cannot be read"),
    "slurm without cluster": (["sweep", "s.toml", "--slurm", "partition=gpu"], 2, "--slurm needs --cluster slurm"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder, no archive, no TOML")
    (tmp_path / "other.py").write_text("class A: pass")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "half.pt").write_bytes(b"PK")
    (tmp_path / "half.tar.xz").write_bytes(b"\xfd7zXZ\x00\x00\x04")
    return tmp_path


@pytest.mark.parametrize("case", SENTENCES)
@pytest.mark.usefixtures("folder")
def test_bad_input_ends_in_a_sentence(case: str) -> None:
    arguments, code, sentence = SENTENCES[case]
    result = CliRunner().invoke(root, arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_a_sentence() -> None:
    result = CliRunner().invoke(root, [*DM, "--device", "cuda"])
    assert result.exit_code == 2
    assert "sees no CUDA device. Use --device cpu" in result.stderr


@pytest.mark.usefixtures("folder")
def test_the_traceback_can_be_asked_for() -> None:
    result = CliRunner(env={"DDBENCH_TRACEBACK": "1"}).invoke(root, ["show", "method", "dmm"])
    assert type(result.exception).__name__ == "PluginError"


def test_an_error_nobody_meant_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("ddbench.plugins.listing", lambda group: broken())
    assert isinstance(CliRunner().invoke(root, ["list", "methods"]).exception, KeyError)


def test_ctrl_c_outside_a_run_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(group: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddbench.plugins.listing", stopped)
    result = CliRunner().invoke(root, ["list", "methods"])
    assert (result.exit_code, result.stderr) == (130, "Error: stopped by Ctrl-C.\n")


def test_an_environment_without_plugins_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddbench.plugins.listing", lambda group: ())
    result = CliRunner().invoke(root, ["list", "methods"])
    assert result.exit_code == 1
    assert "pip install -e" in result.stderr
