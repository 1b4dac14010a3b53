"""The page as a file: its bytes, its size, and what it knows. How it behaves is in tests/browser."""

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root as root_command
from ddbench.cli.run import _requests, _what_to_run
from ddbench.cli.run import run as run_command
from ddbench.errors import DdbenchError
from ddbench.leaderboard.boards import add, committed_page, local_board
from ddbench.leaderboard.command import commands_of, reproduction_of
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.page.document import document, downloads_in
from ddbench.leaderboard.page.render import page_of, render
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.statistics import summarise
from ddbench.runs.record import read_record
from ddbench.runs.resolving import foresee
from ddbench.runs.runspec import RunSpec
from ddbench.text import percent

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "tests" / "golden" / "records"
COMMITTED = ROOT / "leaderboards"
MOST_BYTES = 3_000_000
PICTURE = re.compile(r'"data:image/[^"]*"')


def records(*names: str) -> list[Path]:
    return [RECORDS / f"{name}.json" for name in names]


def known(*names: str) -> dict[str, Any]:
    return document(records(*names), read_published())


@pytest.fixture(scope="module")
def committed() -> str:
    return committed_page(COMMITTED)


def test_the_page_of_the_committed_records_is_small_without_its_pictures(committed: str) -> None:
    assert len(PICTURE.sub('""', committed).encode()) < MOST_BYTES


def test_the_same_records_give_the_same_bytes(committed: str) -> None:
    program = (
        "import hashlib, pathlib; from ddbench.leaderboard.boards import committed_page;"
        f"print(hashlib.sha256(committed_page(pathlib.Path({str(COMMITTED)!r})).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert done.stdout.strip() == hashlib.sha256(committed.encode()).hexdigest()


def test_the_order_of_the_records_does_not_matter() -> None:
    paths = records("dm-s0", "dm-s1", "random-s0", "random-s1", "herding-s0", "mtt-zca-s0", "whole")
    assert page_of(paths) == page_of(paths[::-1])


def test_the_policy_lets_only_its_own_script_and_style_through(committed: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', committed)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "http" not in policy
    for kind, text in (
        ("style", re.findall(r"<style>(.*?)</style>", committed, re.DOTALL)),
        ("script", re.findall(r"<script>(.*?)</script>", committed, re.DOTALL)),
    ):
        (inside,) = text
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_the_page_loads_nothing(committed: str) -> None:
    head, _, rest = committed.partition('<script type="application/json"')
    assert re.findall(r"""(?:src|href)=["'](?!data:,")""", head) == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", head + rest[-60_000:])


def test_a_text_of_a_record_cannot_end_the_script(write: Callable[..., Path]) -> None:
    evil = "</script><script>alert(1)</script>&<b>"
    path = write("record.json", run=lambda run: run | {"title": evil})
    page = render(document([path], read_published()), evil)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "alert(1)" in page
    assert "<title>&lt;/script&gt;" in page


def test_rows_say_what_boards_print() -> None:
    paths = records("dm-s0", "dm-s1", "random-s0", "herding-s0")
    found = document(paths, read_published())
    summary = summarise(collect(paths)).set_index(["method", "judge"])
    assert len(found["rows"]) == len(summary)
    for row in found["rows"]:
        ours = summary.loc[(row["method"], row["judge"])]
        assert row["said"]["mean"] == percent(ours["mean"])
        assert row["ci95"] == ours["ci95"]
        assert row["sets"] == ours["sets"] == len(row["runs"])


def test_a_method_is_shown_by_its_setting_of_fewest_options_whatever_its_accuracy(write: Callable[..., Path]) -> None:
    def better(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [part | {"accuracy": [value + 0.2 for value in part["accuracy"]]} for part in evaluations]

    tuned = write(
        "tuned.json",
        run=lambda run: run | {"id": "0000beef"},
        config=lambda config: {
            "values": config["values"] | {"lr_images": 5.0},
            "sources": config["sources"] | {"lr_images": "--set"},
        },
        synthetic=lambda synthetic: synthetic | {"sha256": "e" * 64},
        evaluations=better,
    )
    found = document([*records("dm-s0"), tuned], read_published())
    rows = [row for row in found["rows"] if row["judge"] == "convnet-d3"]
    by_setting = {row["setting"]: row for row in rows}
    assert set(by_setting) == {"lr_images=1.0", "lr_images=5.0"}
    assert by_setting["lr_images=1.0"]["alike"] == "a"
    assert by_setting["lr_images=5.0"]["alike"] is None
    assert by_setting["lr_images=5.0"]["mean"] > by_setting["lr_images=1.0"]["mean"]


def test_published_numbers_stand_apart_from_measured_ones() -> None:
    (row,) = [row for row in known("dm-s0")["rows"] if row["judge"] == "convnet-d3"]
    assert row["published"][0]["text"] == "48.9 ± 0.6"
    assert row["published"][0]["source"]
    assert row["mean"] == pytest.approx(0.48762)


def test_images_and_labels_are_counted_apart() -> None:
    row = known("dm-s0")["rows"][0]
    assert row["bytes"]["images"] == 100 * 3 * 32 * 32 * 4
    assert row["bytes"]["labels"] == 100 * 8
    assert sum(row["bytes"].values()) == 1_228_880


def test_a_failed_evaluation_has_its_reason_and_no_number() -> None:
    rows = known("dm-s0", "idea-failed-s0")["rows"]
    failed = [row for row in rows if row["failed"]]
    assert failed
    assert all(row["mean"] is None and row["said"] == {} and row["alike"] == "" for row in failed)


def test_a_run_has_its_picture_its_curve_and_its_download(write: Callable[..., Path], tmp_path: Path) -> None:
    picture = b"RIFF....WEBPVP8L"
    sheet = {"sha256": hashlib.sha256(picture).hexdigest(), "bytes": 16, "classes": 10, "rows": 1, "stretched": False}
    value = json.loads((RECORDS / "dm-s0.json").read_text())
    point = {"step": 7, "seconds": 1.0, "accuracy": [0.25, 0.5]}
    curve = {"protocol": "dsa@1", "digest": "d5a1d5a1d5a1d5a1", "backbone": "convnet-d3", "points": [point]}
    path = tmp_path / "dm.json"
    path.write_text(json.dumps(value | {"sheet": sheet, "curves": [curve]}))
    path.with_suffix(".webp").write_bytes(picture)
    run = document([path], read_published(), downloads={"00000d00": {"command": "get it"}})["runs"]["00000d00"]
    assert run["sheet"]["data"] == "data:image/webp;base64," + base64.b64encode(picture).decode()
    assert run["curves"] == [{"protocol": "dsa@1", "judge": "convnet-d3", "points": [[7, [0.25, 0.5]]]}]
    assert run["download"] == {"command": "get it"}
    path.with_suffix(".webp").write_bytes(b"another picture")
    assert document([path], read_published())["runs"]["00000d00"]["sheet"] is None


def test_published_sets_say_how_they_are_taken_away(tmp_path: Path) -> None:
    index = json.loads((COMMITTED / "sets" / "index.json").read_text())
    found = downloads_in(COMMITTED / "sets")
    assert found
    for entry in index["sets"]:
        command = f"ddbench sets get {entry['name']}"
        assert found[entry["run"]] == {"command": command, "sha256": entry["sha256"], "bytes": entry["bytes"]}
    assert downloads_in(tmp_path) == {}
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DdbenchError, match=r"index\.json"):
        downloads_in(tmp_path)


def test_the_command_says_what_no_preset_gives(write: Callable[..., Path]) -> None:
    values = {"labels": "fixed x", "keep": False, "batch": None, "name": "1", "select.heldout": 0.1, "select.every": 9}
    sources = dict.fromkeys(values, "options") | {"labels": "--set", "select.every": "default"}
    path = write("record.json", config=lambda _: {"values": values, "sources": sources})
    command, *others = commands_of(read_record(path))
    assert command.startswith("ddbench run --method dm --dataset cifar10 --ipc 10 --seed 0 --preset paper")
    assert "--set batch=none --set keep=false --set 'labels=fixed x' --set 'name=\"1\"'" in command
    assert "--select heldout=0.1 --protocol" in command
    assert command.endswith("--protocol dsa@1 --judge convnet-d3 --students 5")
    (other,) = others
    assert other.endswith(" --protocol dsa@1 --judge resnet18 --students 2")


def test_a_record_is_reproduced_by_its_id(write: Callable[..., Path]) -> None:
    command = reproduction_of(read_record(write("record.json")))
    assert command == "ddbench reproduce 00000d00"
    # Below the outermost command, which says what options of help are called: click keeps what it sees first.
    above = root_command.make_context("ddbench", ["reproduce"])
    known = root_command.get_command(above, "reproduce")
    assert known.make_context("reproduce", shlex.split(command)[2:], parent=above).params["ref"] == "00000d00"


def test_a_record_of_a_file_is_reproduced_with_that_file(write: Callable[..., Path]) -> None:
    of_file = {"method_sha256": "ab" * 32, "provided_by": "./my method.py:Mine"}
    record = read_record(write("record.json", run=lambda run: run | of_file))
    assert reproduction_of(record) == "ddbench reproduce 00000d00 --method './my method.py:Mine'"


def test_protocols_with_other_judges_are_commands_of_their_own(write: Callable[..., Path]) -> None:
    other = {"protocol": "krr@1", "digest": "ab" * 8, "backbone": "convnet-d3", "accuracy": [0.5], "seconds": 1.0}
    path = write("record.json", evaluations=lambda evaluations: [*evaluations, other | {"device": "cpu"}])
    *_, command = commands_of(read_record(path))
    folder = "runs/cifar10/ipc10/dm/convnet-d3-s0-00000d00"
    assert command == f"ddbench evaluate {folder} --protocol krr@1 --judge convnet-d3 --students 1"


def test_other_numbers_of_students_are_commands_of_their_own_and_failed_judges_are_left_out(
    write: Callable[..., Path],
) -> None:
    def judged(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        more, none = ({**evaluations[0], "backbone": name} for name in ("mlp", "lenet"))
        return [*evaluations, more | {"accuracy": [0.5] * 7}, none | {"accuracy": []}]

    commands = commands_of(read_record(write("record.json", evaluations=judged)))
    ends = [command.partition(" --protocol ")[2] for command in commands]
    assert ends == [
        "dsa@1 --judge mlp --students 7", "dsa@1 --judge convnet-d3 --students 5", "dsa@1 --judge resnet18 --students 2"
    ]  # fmt: skip


@pytest.mark.parametrize("select", [None, "on", "none", "heldout=0.2", "heldout=0.2,every=7,students=3"])
@pytest.mark.parametrize("method", ["dm", "mtt", "ld", "soft-labels"])
def test_the_command_selects_as_the_record_did(write: Callable[..., Path], method: str, select: str | None) -> None:
    def asked(words: list[str]) -> RunSpec:
        known = run_command.make_context("run", words)
        names = {option.name for option in _what_to_run(lambda: None).__click_params__}  # type: ignore[attr-defined]
        judging = {"protocols": (), "judges": (), "students": None}
        (one,) = _requests(**{name: value for name, value in known.params.items() if name in names}, **judging)
        return foresee(one)

    chosen = [] if select is None else ["--select", select]
    spec = asked(["--method", method, "--dataset", "cifar10", "--ipc", "1", *chosen])
    sources = {name: spec.sources[f"config.{name}"] for name in spec.config}
    own = {"method": method, "provided_by": spec.provided_by, "ipc": 1, "backbone": spec.backbone}
    record = read_record(
        write(
            "record.json",
            run=lambda run: run | own,
            config=lambda _: {"values": dict(spec.config), "sources": sources},
        )
    )
    command, *_ = commands_of(record)
    words = shlex.split(command.partition(" --protocol ")[0])[2:]
    assert "--set" not in words
    assert asked(words).config == spec.config


def test_the_command_of_a_run_means_that_run(made: Path) -> None:
    (file,) = made.rglob("record.json")
    record = read_record(file)
    (command,) = commands_of(record)
    words = shlex.split(command.replace("--protocol tiny@1", "--protocol quick@1"))[1:]
    done = CliRunner().invoke(root_command, [*words, "--dry-run", "--json", "--data", str(made.parent)])
    assert json.loads(done.stdout)[0]["spec"]["id"] == record.run.id


def test_two_records_of_a_run_are_one_with_all_its_judges(write: Callable[..., Path]) -> None:
    other = {"protocol": "krr@1", "digest": "ab" * 8, "backbone": "convnet-d3", "seconds": 1.0, "device": "cpu"}
    path = write("record.json", evaluations=lambda evaluations: [other | {"accuracy": [0.5] * 9}])
    for paths in ([path, *records("dm-s0")], [*records("dm-s0"), path]):
        found = document(paths, read_published())
        assert {row["judge"] for row in found["rows"]} == {"convnet-d3", "resnet18", "convnet kernel"}
        assert len(found["runs"]["00000d00"]["evaluations"]) == 3


def test_a_damaged_record_is_left_out_of_the_page_of_local_runs(made: Path, root: Path) -> None:
    whole = local_board(root, form="html")
    other = root / "digits" / "ipc1" / "dm" / "another" / "record.json"
    other.parent.mkdir()
    other.write_text("{")
    assert local_board(root, form="html") == whole
    assert "Distribution Matching" in whole


def test_what_is_chosen_is_shown_as_it_was_compared_with_everything() -> None:
    paths = records("dm-s0", "dm-s1", "random-s0", "random-s1", "herding-s0", "mtt-zca-s0")
    whole = document(paths, read_published())
    part = document(paths, read_published(), chosen=lambda rows: rows[rows["method"] == "dm"])
    assert {row["method"] for row in part["rows"]} == {"dm"}
    assert len(part["rows"]) < len(whole["rows"])
    assert sorted(part["runs"]) == ["00000d00", "00000d01"]
    letters = [{row["judge"]: row["alike"] for row in each["rows"] if row["method"] == "dm"} for each in (whole, part)]
    assert letters[0] == letters[1]
    assert all(row["gap"] is not None for row in part["rows"] if row["judge"] == "convnet-d3")


def leaderboard(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root_command, ["leaderboard", *map(str, arguments)])


def test_the_command_line_writes_the_page_and_says_where(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "board.html"
    done = leaderboard("--runs", root, "--html", page)
    assert (done.exit_code, done.stdout.strip()) == (0, str(page))
    assert page.read_text(encoding="utf-8") == local_board(root, form="html")
    assert page.read_text(encoding="utf-8") == leaderboard("--runs", root, "--format", "html").stdout.removesuffix("\n")


def test_a_page_that_cannot_be_written_is_a_sentence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = leaderboard("--runs", root, "--html", tmp_path / "file" / "board.html")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "board.html" in done.stderr
    assert leaderboard("--runs", root, "--html", tmp_path).exit_code == 2
    assert leaderboard("build", "--check", "--html", tmp_path / "x.html").exit_code == 2


def test_every_form_has_the_accuracy(root: Path) -> None:
    (row,) = document(sorted(root.rglob("record.json")), read_published())["rows"]
    for form, beginning in (("text", "Digits"), ("md", "# Digits"), ("csv", "data_title,"), ("latex", "% Digits")):
        mean = f"{100 * row['mean']:.2f}" if form == "csv" else row["said"]["mean"]
        done = leaderboard("--runs", root, "--format", form)
        assert done.exit_code == 0
        assert done.stdout.startswith(beginning)
        assert mean in done.stdout


def test_no_form_needs_a_run(tmp_path: Path) -> None:
    assert leaderboard("--runs", tmp_path, "--format", "csv").stdout.startswith("data_title,")
    assert leaderboard("--runs", tmp_path, "--format", "latex").stdout.startswith("% There is no finished run")
    assert "There is no finished run" in leaderboard("--runs", tmp_path, "--format", "md").stdout


def test_the_page_of_committed_records_comes_with_the_tables(tmp_path: Path) -> None:
    add(records("dm-s0", "random-s0"), tmp_path / "boards")
    done = leaderboard("build", "--leaderboards", tmp_path / "boards", "--html", tmp_path / "board.html")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "board.html")
    assert (tmp_path / "board.html").read_text(encoding="utf-8") == committed_page(tmp_path / "boards")
