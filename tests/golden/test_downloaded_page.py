"""The commands of the page on downloaded sets, run as a reader would."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "pages" / "guides" / "downloaded.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "run_page.py"), str(PAGE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [
        line for line in PAGE.read_text().splitlines() if line.startswith(("range ", "mean, s.d. ", "pixel space "))
    ]
    assert len(said) == 3
    for line in said:
        assert line in done.stdout
    assert "! pixels look like 0 to 255, not normalised. Say --pixels raw." in done.stdout


def test_a_block_that_fails_stops_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntrue\n```\n\n```python\nraise SystemExit(3)\n```\n\n```sh\ntouch never\n```\n")
    run = [sys.executable, str(ROOT / "docs" / "run_page.py"), str(page)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed with exit code 3" in done.stderr
    assert "never" not in done.stderr
