"""ddbench reproduce, end to end on the digits: the same set and accuracies, and what is said where they are not."""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.data.dataset import Dataset
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.files import write_json
from ddbench.leaderboard import boards
from ddbench.leaderboard.reproduction import Again, _same_images, again_of
from ddbench.leaderboard.statistics import next_set
from ddbench.runs.record import read_record

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(root, [*arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module", autouse=True)
def _short_look() -> Iterator[None]:
    """quick@1 with few steps: what is made again here is equal or not, however well it does."""
    quick = PROTOCOLS["quick@1"]
    shortened = quick.model_copy(update={"options": quick.options.model_copy(update={"steps": 30})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "quick@1", shortened)  # type: ignore[misc]
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _short_look: None) -> Path:
    """A runs folder with one short run that was judged in two ways; to be copied, not changed."""
    place = tmp_path_factory.mktemp("made")
    where = ["--device", "cpu", "--data", str(place), "--quiet"]
    asked = ["--method", "dm", "--dataset", "digits", "--ipc", "1", "--set", "iterations=3", "--seed", "4"]
    judged = ["--protocol", "quick", "--judge", "mlp", "--students", "2"]
    assert call("run", *asked, *judged, "--runs", str(place / "runs"), *where).exit_code == 0
    (folder,) = (place / "runs").glob("digits/ipc1/dm/*")
    more = call("evaluate", str(folder), "--protocol", "quick", "--judge", "convnet-w8", "--students", "1", *where)
    assert more.exit_code == 0
    return place


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (folder,) = Path("runs").glob("digits/ipc1/dm/*")
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    del value["checksum"]
    change(value)
    write_json(path, value, sealed=True)


def test_the_same_machine_gives_the_same_set_and_accuracies(finished: Path) -> None:
    result = call("reproduce", str(finished), "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    first, second, _, *said = result.stdout.splitlines()
    assert shlex.split(first)[:6] == ["ddbench", "run", "--method", "dm", "--dataset", "digits"]
    assert "--set iterations=3 " in first
    assert second.startswith(f"ddbench evaluate reproduced/{finished.relative_to('runs')} ")
    assert said[0] == "The set is the same, bit for bit."
    assert [line.partition(":")[0] for line in said[1:]] == ["quick@1 with convnet-d2-w8", "quick@1 with mlp"]
    assert all(line.endswith("equal.") for line in said[1:])
    again = read_record(Path("reproduced") / finished.relative_to("runs") / "record.json")
    assert again.synthetic.sha256 == read_record(finished / "record.json").synthetic.sha256


def test_a_run_is_not_compared_with_itself(finished: Path, tmp_path: Path) -> None:
    (committed,) = boards.add([finished], Path("boards"), allow_dirty=True)
    shutil.copytree("runs", "moved")
    before = (finished / "record.json").read_bytes()
    for ref, into in ((str(finished), "runs"), (str(committed), "runs"), (str(finished), "moved")):
        for more in ([], ["--fresh"]):
            result = call("reproduce", ref, "--into", into, "--device", "cpu", "--quiet", *more)
            assert (result.exit_code, "would be compared with itself" in result.stderr) == (1, True), ref
    assert (finished / "record.json").read_bytes() == before
    # What was made again earlier is read the second time, as it is said.
    for _ in range(2):
        assert call("reproduce", str(finished), "--device", "cpu", "--quiet").exit_code == 0


def test_images_of_which_nobody_says_the_contents_are_not_taken_for_the_same(finished: Path) -> None:
    record = read_record(finished / "record.json")
    old = record.model_copy(update={"data": record.data.model_copy(update={"contents": ""})})
    for fingerprint, contents, same in ((record.data.fingerprint, "", True), ("b2:00", "", False)):
        assert _same_images(old, cast(Dataset, SimpleNamespace(fingerprint=fingerprint, contents=contents))) is same
    other_order = SimpleNamespace(fingerprint="b2:00", contents=record.data.contents)
    assert _same_images(record, cast(Dataset, other_order))


def test_a_folder_that_cannot_be_written_names_its_own_option(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    result = call("reproduce", str(finished), "--device", "cpu", "--quiet")
    assert result.exit_code == 1
    assert "reproduced cannot be written. Check its owner, or choose another one with --into." in result.stderr


def test_the_printed_commands_are_commands_and_make_that_run(finished: Path) -> None:
    result = call("reproduce", str(finished), "--device", "cpu", "--dry-run", "--json", "--quiet")
    (told,) = json.loads(result.stdout)
    assert told["becomes"] == told["run"] == read_record(finished / "record.json").run.id
    assert not Path("reproduced").exists()
    for words in told["commands"]:
        assert call(*words[1:], "--quiet").exit_code == 0
    record = read_record(Path("reproduced") / finished.relative_to("runs") / "record.json")
    assert {(e.backbone, len(e.accuracy)) for e in record.evaluations} == {("mlp", 2), ("convnet-d2-w8", 1)}


def test_an_accuracy_that_was_made_up_does_not_come_out_again(finished: Path) -> None:
    edit(finished / "record.json", lambda r: r["evaluations"][1].update(accuracy=[0.999, 0.998]))
    result = call("reproduce", finished.name[-8:], "--device", "cpu", "--quiet")
    assert result.exit_code == 1
    assert "quick@1 with mlp: recorded 99.8 %" in result.stdout
    assert "DIFFERS" in result.stdout
    assert "1 of 1 records was not reproduced" in result.stderr


def test_another_set_on_the_same_machine_differs_and_elsewhere_may(finished: Path) -> None:
    edit(finished / "record.json", lambda r: r["synthetic"].update(sha256="ab" * 32))
    here = call("reproduce", str(finished / "record.json"), "--device", "cpu", "--quiet", "--json")
    (found,) = json.loads(here.stdout)
    assert (found["same_set"], found["circumstances"], found["agrees"]) == (False, [], False)
    assert found["apart"] == 0.0
    for attempt in ({"threads": None}, {"device": "NVIDIA H200"}, {"cpu": "another"}):

        def change(record: dict[str, Any], attempt: dict[str, Any] = attempt) -> None:
            record["attempts"] = [a | attempt for a in record["attempts"]]

        edit(finished / "record.json", change)
    there = call("reproduce", str(finished / "record.json"), "--device", "cpu", "--quiet")
    assert there.exit_code == 0, there.output
    assert "That is no contradiction. What differs: device NVIDIA H200 then, cpu now; processor another" in there.stdout
    assert "threads unknown then" in there.stdout


def test_what_lies_apart_on_another_machine_is_judged_by_the_sets_of_its_row(finished: Path) -> None:
    """With one set nobody knows; with three the interval for one more set decides."""
    path = finished / "record.json"
    reached = read_record(path).evaluations[1].accuracy
    mean = sum(reached) / 2

    def elsewhere(record: dict[str, Any]) -> None:
        record["synthetic"]["sha256"] = "ab" * 32
        record["attempts"] = [a | {"device": "NVIDIA H200"} for a in record["attempts"]]
        record["evaluations"] = [record["evaluations"][1] | {"accuracy": [a - 0.01 for a in reached]}]

    edit(path, elsewhere)
    alone = call("reproduce", str(finished), "--device", "cpu", "--quiet")
    assert alone.exit_code == 1
    assert "+1.00 points; undecided, because its row has too few sets" in alone.stdout
    for number, gap in ((1, -0.012), (2, 0.004)):
        other = finished.parent / f"{finished.name[:-10]}{number}-0000000{number}"
        shutil.copytree(finished, other)

        def another(record: dict[str, Any], number: int = number, gap: float = gap) -> None:
            record["run"] |= {"seed": number, "id": f"0000000{number}"}
            record["synthetic"]["sha256"] = f"{number:02d}" * 32
            record["evaluations"][0]["accuracy"] = [mean + gap, mean + gap]

        edit(other / "record.json", another)
    (found,) = json.loads(call("reproduce", str(finished), "--device", "cpu", "--quiet", "--json").stdout)
    (mlp,) = found["evaluations"]
    assert mlp["by"] == "the 3 sets of its row"
    import numpy as np

    assert mlp["within"] == pytest.approx(next_set(np.array([mean - 0.01, mean - 0.012, mean + 0.004]), 0.995))
    assert mlp["agrees"]


def test_the_interval_for_one_more_set_holds_its_promise() -> None:
    import numpy as np

    rng, trials = np.random.default_rng(0), 4000
    drawn = rng.normal(size=(trials, 4))
    inside = sum(abs(row[3] - row[:3].mean()) <= next_set(row[:3], 0.975) for row in drawn)
    assert inside / trials == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / trials) ** 0.5)


def test_the_file_of_a_method_is_named_once(finished: Path) -> None:
    Path("mine.py").write_text('from ddbench_methods.dm import DM\n\n\nclass Mine(DM):\n    name = "mine"\n')
    made = ["--dataset", "digits", "--ipc", "1", "--preset", "quick", "--set", "iterations=1", "--judge", "mlp"]
    where = ["--device", "cpu", "--quiet"]
    ran = call("run", "--method", "./mine.py", *made, "--students", "1", *where)
    assert ran.exit_code == 0, ran.output
    for ref in ("./mine.py", "./mine.py:Mine"):
        result = call("reproduce", ref, *where)
        assert result.exit_code == 0, result.output
        assert f"ddbench run --method {ref} --dataset digits" in result.stdout
    # An id does not say where the file is.
    (folder,) = Path("runs").glob("digits/ipc1/mine/*")
    assert "Name that file with --method" in call("reproduce", str(folder), *where).stderr


def test_what_cannot_be_made_again_is_a_sentence(finished: Path) -> None:
    edit(finished / "record.json", lambda r: r["run"].update(method_sha256="cd" * 32, provided_by="idea.py"))
    assert "Name that file with --method ./FILE.py:CLASS" in call("reproduce", str(finished)).stderr
    result = call("reproduce", str(finished), "--method", "dm")
    assert result.exit_code == 1
    assert "is another file than that of the record" in result.stderr
    committed = ["--leaderboards", str(ROOT / "leaderboards"), "--dry-run"]
    several = call("reproduce", "random", *committed)
    assert several.exit_code == 1
    assert "has records on cifar10 ipc 1, cifar10 ipc 10, cifar10 ipc 50, " in several.stderr
    assert several.stderr.endswith("Say which with --dataset and --ipc.\n")
    # Of both copies of the data the same command, which is told once.
    copies = call("reproduce", "herding", "--dataset", "cifar10", "--ipc", "50", *committed)
    assert copies.exit_code == 0, copies.output
    assert copies.stdout.count("ddbench run --method herding --dataset cifar10 --ipc 50 --seed 0") == 1
    assert "the records are of CIFAR-10 (b2:08b598556be91aaf) and of CIFAR-10, JPEG copy" in copies.stderr
    # Without the images too, judges are added to the run of the record.
    whole = call("reproduce", "f05772ae", *committed)
    assert "ddbench evaluate reproduced/cifar10/whole/whole/convnet-d3-s0-f05772ae --protocol dsa@1" in whole.stdout
    assert "no method or row" in call("reproduce", "nobody").stderr


def test_a_name_means_the_records_of_the_images_that_are_here(finished: Path) -> None:
    other = finished.parent / "convnet-d2-w32-s0-00000001"
    shutil.copytree(finished, other)
    copy = {"title": "Digits, a copy", "fingerprint": "b2:00", "contents": "b2:01"}
    edit(other / "record.json", lambda r: (r["data"].update(copy), r["run"].update(id="00000001")))
    result = call("reproduce", "dm", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert "1 of 2 records are left out" in result.stderr
    assert "which are those of Digits, a copy (b2:00)" in result.stderr
    assert result.stdout.count("The set is the same, bit for bit.") == 1
    alone = call("reproduce", str(other), "--device", "cpu", "--quiet")
    assert alone.exit_code == 1
    assert "the record is of Digits, a copy with the fingerprint b2:00" in alone.stderr


def records() -> list[Path]:
    found = sorted((ROOT / "leaderboards" / "records").rglob("*.json"))
    kinds: dict[tuple[str, str, str], Path] = {}
    for path in found:
        run = read_record(path).run
        kinds.setdefault((run.method, path.parent.name, run.dataset), path)
    return list(kinds.values())


@pytest.mark.parametrize("path", records(), ids=lambda path: path.stem)
def test_committed_records_have_commands_with_their_settings(path: Path, tmp_path: Path) -> None:
    again: Again = again_of(path, data_root=tmp_path, device=CPU)
    # An option left at none is one that an older record does not have.
    given = {name: value for name, value in again.spec.config.items() if value is not None}
    assert given == {name: value for name, value in again.record.config.values.items() if value is not None}
    assert not any("mean something else" in text for text in again.left_out)
    judged = sum(len(group.protocols) * len(group.judges) for group in again.judged)
    assert judged == sum(bool(e.accuracy) for e in again.record.evaluations)
    root.make_context("ddbench", again.commands(tmp_path)[0][1:])
