"""What the system does to a command: paths that are too long, a full disk under stdout, SIGTERM before the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddbench.cli import root


def test_a_path_that_is_too_long_is_a_sentence() -> None:
    result = CliRunner().invoke(root, ["leaderboard", "add", "/".join(["a" * 200] * 30)])
    assert result.exit_code == 1
    assert result.stderr.endswith("File name too long.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_under_stdout_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ddbench", "list", "methods"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "Error: output could not be written: No space left on device.\n"


def test_sigterm_before_the_work_asks_to_try_again(tmp_path: Path) -> None:
    idea = tmp_path / "idea.py"
    idea.write_text("import time\nfrom pathlib import Path\nPath(__file__).with_name('here').touch()\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "ddbench", "check", "--method", f"{idea}:Mine"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "here").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    assert errors == "Error: stopped by SIGTERM. Run the same command again.\n"


def test_an_unknown_field_of_a_protocol_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[options]\nstep = 5\n')
    result = CliRunner().invoke(root, ["show", "protocol", str(path)])
    assert result.exit_code == 2
    assert "there is no 'step'" in result.stderr


def test_a_slurm_setting_without_a_value_is_not_called_an_option_of_a_method(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('[grid]\nmethod = ["random"]\ndataset = ["digits"]\n')
    result = CliRunner().invoke(root, ["sweep", str(path), "--cluster", "slurm", "--slurm", "partition"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --slurm takes KEY=VALUE, and 'partition' is not")
