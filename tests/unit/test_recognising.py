"""The set as a test set of a network of real images, by hand and through the command."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ddbench import Problem, SyntheticSet, api
from ddbench.backbones.variables import Variables
from ddbench.cli import root as program
from ddbench.errors import RunError
from ddbench.evaluation.protocol import protocol
from ddbench.files import read_json, sha256_of, write_json
from ddbench.leaderboard import boards
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.publishing import publish
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.submission import refuse
from ddbench.runs import recognising
from ddbench.runs.measures import Measures
from ddbench.runs.recognising import recognise, recognised
from ddbench.runs.record import read_record
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions, evaluate_run
from ddbench.testing.contract import problem_for_checks


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """A problem whose trained network says 0 for a dark image and 1 for a bright one, whatever was learned."""
    return problem_for_checks(tmp_path)


class Brightness:
    """A network by hand: class 1 where the mean pixel is above 0."""

    def __init__(self, backbone: Any) -> None:
        self.name, self.classes = backbone.name, 3

    def __call__(self, weights: Variables, x: torch.Tensor, *, train: bool) -> tuple[torch.Tensor, None]:
        assert not train
        scores = torch.zeros(len(x), self.classes)
        scores[:, 1] = x.flatten(1).mean(dim=1)
        return scores - torch.tensor([0.0, 0.0, 1e6]), None


def by_brightness(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> Problem:
    monkeypatch.setattr(type(problem.artifacts), "get", lambda *_: Variables({}, {}))
    return replace(problem, backbone=Brightness(problem.backbone))  # type: ignore[arg-type]


def test_images_are_counted_whose_class_the_network_says(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack([torch.full(problem.shape, value) for value in (-1.0, 2.0, 3.0, -4.0, 5.0)])
    ours = by_brightness(problem, monkeypatch)
    found = recognised(SyntheticSet(images, torch.tensor([0, 1, 0, 0, 1])), ours)
    assert (found.images, found.accuracy) == (5, 4 / 5)
    soft = torch.tensor([[0.6, 0.4, 0], [0.4, 0.6, 0], [0.4, 0.6, 0], [0.4, 0.6, 0], [0.6, 0.4, 0]])
    found = recognised(SyntheticSet(images, soft, label_kind="probability"), ours)
    assert found.accuracy == 3 / 5


def test_images_count_as_students_see_them(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    c, h, w = problem.shape
    image = torch.ones(1, c, h, w)
    image[:, :, : h // 2, : w // 2] = -1  # one dark tile of four
    stored = SyntheticSet(image, torch.tensor([1]), decode="tiles(factor=2)")
    found = recognised(stored, by_brightness(problem, monkeypatch))
    assert (found.images, found.accuracy) == (4, 3 / 4)


def test_the_order_of_images_does_not_matter(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = by_brightness(problem, monkeypatch)
    images = torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1).expand(4, *problem.shape).contiguous()
    classes = torch.tensor([1, 0, 1, 0])
    orders = [list(order) for order in itertools.permutations(range(4))]
    assert {recognised(SyntheticSet(images[o], classes[o]), ours).accuracy for o in orders} == {2 / 4}


def options(root: Path) -> RunOptions:
    return RunOptions(root=root, data_root=root.parent, device=torch.device("cpu"))


def run_of(root: Path) -> Path:
    (record,) = root.glob("*/*/*/*/record.json")
    return record.parent


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network after one epoch: these tests are not about how good it is."""
    monkeypatch.setattr(recognising, "_TEACHER", recognising._TEACHER.model_copy(update={"teacher_epochs": 1}))


def test_a_record_keeps_what_was_measured(root: Path) -> None:
    run = run_of(root)
    before = read_record(run / "record.json")
    after = recognise(run, ["mlp"], options(root))
    assert api.recognise(run, judge="mlp", data=root.parent, device="cpu").record.recognised == after.recognised
    assert [part.backbone for part in after.recognised] == ["mlp"]
    assert after.model_copy(update={"recognised": (), "checksum": ""}) == before.model_copy(update={"checksum": ""})
    again = recognise(run, ["mlp"], options(root))
    assert again.recognised == after.recognised
    # What judges it further, or writes the record anew, keeps it.
    judged = evaluate_run(run, [protocol("quick")], ["mlp"], 1, options(root))
    assert judged.recognised == after.recognised
    refuse(run / "record.json", read_record(run / "record.json"), allow_dirty=True)


def test_a_record_that_says_otherwise_than_its_folder_is_refused(root: Path) -> None:
    run = run_of(root)
    recognise(run, ["mlp"], options(root))
    value = read_json(run / "record.json")
    value["recognised"][0]["accuracy"] = 1.0 if value["recognised"][0]["accuracy"] < 1 else 0.0
    write_json(run / "record.json", {k: v for k, v in value.items() if k != "checksum"}, sealed=True)
    with pytest.raises(RunError, match=r"something else of `recognised` than measures\.json"):
        refuse(run / "record.json", read_record(run / "record.json"), allow_dirty=True)


def test_what_is_known_of_another_set_does_not_count(root: Path) -> None:
    run = run_of(root)
    recognise(run, ["mlp"], options(root))
    folder = RunDir.at(run)
    assert Measures.of(folder, "0" * 64).recognised == ()
    folder.measures.write_text("{")
    with pytest.raises(RunError, match="Remove that file and measure again"):
        recognise(run, ["mlp"], options(root))


def test_boards_have_it_where_the_judge_is_that_network(root: Path) -> None:
    run = run_of(root)
    found = recognise(run, ["mlp"], options(root)).recognised[0]
    rows = summarise(collect([run])).to_dict("records")
    assert [(row["recognised"], row["recognised_sets"]) for row in rows if row["judge"] == "mlp"] == [
        (found.accuracy, 1)
    ]


def ddbench(*arguments: object) -> Any:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def test_the_command_line_measures_and_shows(root: Path) -> None:
    run = run_of(root)
    done = ddbench(
        "measure", "recognised", run, "--judge", "mlp", "--data", root.parent, "--device", "cpu", "--json", "--quiet"
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["backbone"] == "mlp"
    shown = ddbench("leaderboard", "--runs", root, "--scores", "--format", "md")
    assert shown.exit_code == 0, shown.output
    assert "recognised, %" in shown.stdout
    assert "Not measured of dm" in shown.stdout  # the correlation


def test_what_is_recognised_of_real_images_comes_with_a_remark(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = read_record(run_of(root) / "record.json")
    monkeypatch.setattr(api.recognising, "recognise", lambda *_: record)
    monkeypatch.setattr(recognising, "recognise", lambda *_: record)
    remark, asked = "because the network has learned these very images", ["--data", root, "--device", "cpu"]
    for kind, so in (("method", False), ("coreset", True)):
        record = record.model_copy(update={"run": record.run.model_copy(update={"kind": kind})})
        api.recognise(run_of(root), device="cpu")
        assert (remark in caplog.text) is so
        assert (remark in ddbench("measure", "recognised", run_of(root), *asked).stderr) is so


@pytest.fixture
def leaderboards(root: Path, tmp_path: Path) -> Path:
    """A leaderboard with the run's record, and its set to take away."""
    boards.add([run_of(root)], tmp_path / "boards", allow_dirty=True)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n')
    publish(run_of(root), tmp_path / "boards", protocol=protocol(str(recipe)), why="a test")
    return tmp_path / "boards"


def test_a_published_set_is_measured_without_its_run(root: Path, leaderboards: Path, tmp_path: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    before = read_record(place)
    kept = recognise(run_of(root), ["mlp"], options(root)).recognised[0]
    shutil.rmtree(run_of(root))
    asked = ["dm/digits/ipc1", "--judge", "mlp", "--leaderboards", leaderboards, "--runs", tmp_path / "other"]
    done = ddbench("measure", "recognised", *asked, "--data", root.parent, "--device", "cpu", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    after = read_record(place)
    (part,) = after.recognised
    assert (row["backbone"], row["accuracy"], row["file"]) == (part.backbone, part.accuracy, part.file)
    # The network is the same one, and these images are kept as they are.
    assert part.model_copy(update={"file": None}) == kept
    assert part.file == sha256_of(leaderboards / "sets" / "dm-digits-ipc1.safetensors")
    assert after.model_copy(update={"recognised": (), "checksum": ""}) == before.model_copy(update={"checksum": ""})
    rows = summarise(collect([place])).to_dict("records")
    assert [row["recognised"] for row in rows if row["judge"] == "mlp"] == [part.accuracy]


def test_a_record_that_cannot_be_written_is_told_before_a_network_is_trained(
    root: Path, leaderboards: Path, read_only: Callable[[Path], None]
) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    before = place.read_bytes()
    read_only(place.parent)
    asked = ["dm/digits/ipc1", "--judge", "mlp", "--leaderboards", leaderboards, "--runs", root]
    done = ddbench("measure", "recognised", *asked, "--data", root.parent, "--device", "cpu")
    assert done.exit_code == 1
    assert f"nothing can be written in {place.parent}" in done.output
    assert "no network was trained" in done.output
    assert place.read_bytes() == before


def test_a_published_set_of_another_leaderboard_is_not_found(root: Path, leaderboards: Path) -> None:
    for name, said in (("dc/digits/ipc1", "Did you mean 'dm/digits/ipc1'"), ("dm/digits/ipc2", "there is no set")):
        done = ddbench(
            "measure", "recognised", name, "--leaderboards", leaderboards, "--data", root.parent, "--runs", root,
            "--device", "cpu",
        )  # fmt: skip
        assert done.exit_code == 2
        assert said in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "is not the folder of a run"),
        (["RUN", "--judge", "nobody"], 2, "nobody"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input_ends_in_a_sentence(root: Path, arguments: list[str], code: int, said: str) -> None:
    real = [str(run_of(root)) if word == "RUN" else word for word in arguments]
    done = ddbench("measure", "recognised", *real, "--data", root.parent, "--device", "cpu", "--quiet")
    assert done.exit_code == code
    assert said in done.output
    assert "Traceback" not in done.output
