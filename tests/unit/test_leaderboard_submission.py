"""What a record has to stand before it becomes a row: edits, lost files, unknown code and impossible numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddbench import synthetic as sets
from ddbench.errors import RunError
from ddbench.files import write_json
from ddbench.leaderboard import submission
from ddbench.leaderboard.boards import add, build, check, place_of
from ddbench.runs.record import read_record
from ddbench.runs.rundir import RunDir

Write = Callable[..., Path]
Edit = Callable[[dict[str, Any]], Any]
TEST = 10000  # test images of the golden records


@pytest.fixture
def finished(root: Path) -> Path:
    (folder,) = root.glob("digits/ipc1/dm/*")
    return folder


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    return tmp_path / "boards"


def edit(path: Path, change: Edit) -> None:
    """Change a file and give it the checksum that fits, as a person may who knows how."""
    value = json.loads(path.read_text())
    del value["checksum"]
    change(value)
    write_json(path, value, sealed=True)


def test_a_run_as_it_was_made_is_taken(finished: Path, boards: Path) -> None:
    heard: list[str] = []
    (place,) = add([finished], boards, allow_dirty=True, notes=heard)
    assert read_record(place) == read_record(finished / "record.json")
    assert heard == []


def test_an_edited_accuracy_is_refused(finished: Path, boards: Path) -> None:
    edit(finished / "record.json", lambda r: r["evaluations"][0].update(accuracy=[0.999, 0.999]))
    with pytest.raises(
        RunError, match=r"says 99\.9 % \(2 students\) of tiny@1 with mlp, and the evaluation in the run"
    ):
        add([finished], boards, allow_dirty=True)
    assert not boards.exists()


def test_a_student_or_an_evaluation_that_is_left_out_is_noticed(finished: Path, boards: Path) -> None:
    edit(finished / "record.json", lambda r: r.update(evaluations=[r["evaluations"][0] | {"backbone": "lenet"}]))
    with pytest.raises(RunError, match=r"tiny@1 with lenet, and the run's folder has no such evaluation"):
        add([finished], boards, allow_dirty=True)
    edit(finished / "record.json", lambda r: r.update(evaluations=[]))
    with pytest.raises(RunError, match=r"leaves out what the run was judged by: tiny@1 with mlp"):
        add([finished], boards, allow_dirty=True)


def test_a_run_that_is_being_judged_further_is_taken_as_its_record_says(finished: Path, boards: Path) -> None:
    (path,) = (finished / "evaluations").glob("*/mlp.json")
    more = json.loads(path.read_text())["scores"][0] | {"student": 2}
    edit(path, lambda e: e["scores"].append(more))
    assert add([finished], boards, allow_dirty=True)


def test_a_run_without_its_set_is_refused(finished: Path, boards: Path) -> None:
    (finished / "synthetic.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no synthetic\.safetensors.*train a student of this run again"):
        add([finished], boards, allow_dirty=True)


def test_a_record_alone_in_a_folder_is_refused(finished: Path, boards: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("record.json", "synthetic.safetensors"):
        shutil.copy(finished / name, alone / name)
    with pytest.raises(RunError, match=r"has no spec\.json"):
        add([alone], boards, allow_dirty=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: r["run"].update(seed=1), "seed"),
        (lambda r: r["run"].update(precision="tf32"), "precision"),
        (lambda r: r["config"]["values"].update(iterations=20000), "the options"),
        (lambda r: r["data"].update(fingerprint="b2:00"), "the data"),
    ],
)
def test_a_record_of_another_run_than_its_folders_is_refused(
    finished: Path, boards: Path, change: Edit, what: str
) -> None:
    edit(finished / "record.json", change)
    with pytest.raises(RunError, match=rf"is not the record of the run in its folder\. Not as in spec\.json: {what}\."):
        add([finished], boards, allow_dirty=True)


@pytest.mark.parametrize("there", [True, False])
def test_an_edited_learning_curve_is_refused(finished: Path, boards: Path, there: bool) -> None:
    """Whether one was drawn in the folder or none."""
    value = json.loads((finished / "record.json").read_text())
    (evaluation,) = value["evaluations"]
    points = [{"step": 2, "seconds": 0.5, "accuracy": evaluation["accuracy"]}]
    curve = {name: evaluation[name] for name in ("protocol", "digest", "backbone")} | {"points": points}
    if there:
        (path,) = (finished / "evaluations").glob("*/mlp.json")
        beside = {"synthetic": value["synthetic"]["sha256"], "file_schema": "ddbench.curve/1"}
        write_json(path.with_name("mlp.curve.json"), curve | beside, sealed=True)
        edit(finished / "record.json", lambda r: r.update(curves=[curve]))
        assert add([finished], boards, allow_dirty=True)
    edit(
        finished / "record.json",
        lambda r: r.update(curves=[curve | {"points": [points[0] | {"accuracy": [1.0, 1.0]}]}]),
    )
    with pytest.raises(RunError, match=r"a learning curve of tiny@1 with mlp that was not drawn in .*: step 2\."):
        add([finished], boards, allow_dirty=True)


@pytest.mark.parametrize("left", [0, 1])
def test_attempts_that_made_the_set_cannot_be_left_out(finished: Path, boards: Path, left: int) -> None:
    """As those by code that nobody has: of a run that two of them made, or one."""
    two = [
        json.loads((finished / "record.json").read_text())["attempts"][0] | {"steps": steps}
        for steps in ([0, 1], [1, 2])
    ]
    edit(finished / "attempts.json", lambda a: a.update(attempts=two))
    edit(finished / "record.json", lambda r: r.update(attempts=two))
    assert add([finished], boards, allow_dirty=True)
    edit(finished / "record.json", lambda r: r.update(attempts=two[:left]))
    with pytest.raises(RunError, match=r"attempts\.json beside it say differently"):
        add([finished], boards, allow_dirty=True)


def test_an_edited_history_is_refused(finished: Path, boards: Path) -> None:
    edit(finished / "record.json", lambda r: r["attempts"][0].update(git={"commit": "ab" * 20, "dirty": False}))
    with pytest.raises(RunError, match=r"attempts\.json beside it say differently"):
        add([finished], boards)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["synthetic"].update(bytes=10), r"describes another set than synthetic\.safetensors beside it"),
        (lambda r: r["synthetic"].update(labels="probability"), r"describes another set"),
        (lambda r: r["cost"]["condense"].update(seconds=0.0), r"cost\.json beside it say differently what the set"),
        (lambda r: r.update(artifacts=[{"kind": "zca", "key": "a", "seconds": 1.0}]), r"say differently what the set"),
        (lambda r: r.update(counts={"loops": 3.0}), r"cost\.json beside it say differently what the set"),
        (lambda r: r["data"].update(pixels="mtt"), r"describes another set"),
        (
            lambda r: r["run"].update(title="Better"),
            "describes dm otherwise than its runs do: title 'Better' and 'Distribution Matching'",
        ),
        (lambda r: r["run"].update(native="mtt@1"), "otherwise than its runs do: native 'mtt' and 'dsa'"),
        (lambda r: r["synthetic"].update(learned=[]), r"otherwise than its runs do: learned \(\) and \('images',\)"),
        (lambda r: r["synthetic"].update(scale=0.5), r"that the scale of its pixels is 0\.5, and it is \d\.\d+\."),
        (lambda r: r["synthetic"].update(scale=99.0), r"that the scale of its pixels is 99, and it is \d\.\d+\."),
        (lambda r: r["data"].update(contents="b2:00"), "other images than those .*: contents 'b2:00' and"),
        (
            lambda r: r["data"].update(pixels_fingerprint="b2:00"),
            "other images than those .*: pixels_fingerprint 'b2:00'",
        ),
        (lambda r: r["run"].update(kind="coreset"), "dm is of the kind coreset, and it is of the kind condensation"),
        (lambda r: r["run"].update(kind="ceiling"), "dm is of the kind ceiling"),
        (lambda r: r["run"].update(kind="imported"), "dm is of the kind imported"),
        (lambda r: r["data"].update(test=2 * 359), "are the original with 1438 training and 718 test images"),
        (lambda r: r["data"].update(train=1000), "are the original with 1000 training"),
        (lambda r: r["evaluations"][0].update(protocol="dsa@1"), "than the evaluation in the run's folder: protocol"),
        *(
            (lambda r, name=name, value=value: r["evaluations"][0].update({name: value}), f"folder: {name}")
            for name, value in {
                "beside_bytes": 5,
                "seconds": 0.0,
                "device": "NVIDIA H100",
                "precision": "bf16",
                "alike": True,
                "student_forwards": 1,
                "track": "soft",
            }.items()
        ),
    ],
)
def test_what_a_table_prints_beside_accuracies_is_compared_too(
    finished: Path, boards: Path, change: Edit, said: str
) -> None:
    edit(finished / "record.json", change)
    with pytest.raises(RunError, match=said):
        add([finished], boards, allow_dirty=True)


def test_whether_a_paper_has_the_settings_is_what_the_run_was_told(finished: Path, boards: Path) -> None:
    edit(finished / "record.json", lambda r: r["config"].update(published=True))
    assert add([finished], boards, allow_dirty=True)  # its specification is of before that was said
    edit(finished / "spec.json", lambda s: s.update(published=True))
    assert add([finished], boards, allow_dirty=True)
    edit(finished / "spec.json", lambda s: s.update(published=False))
    with pytest.raises(RunError, match=r"Not as in spec\.json: published\."):
        add([finished], boards, allow_dirty=True)


def test_what_earlier_versions_said_otherwise_or_not_at_all_is_taken(finished: Path, boards: Path) -> None:
    """Another version of the protocol of the method's paper; no scale, and no fingerprint without the order."""

    def earlier(record: dict[str, Any]) -> None:
        record["run"]["native"] = "dsa@99"
        record["synthetic"]["scale"] = None
        record["data"]["contents"] = ""

    edit(finished / "record.json", earlier)
    assert add([finished], boards, allow_dirty=True)


def test_without_the_images_a_scale_is_compared_with_the_set(finished: Path, boards: Path) -> None:
    record, synthetic = read_record(finished / "record.json"), sets.load(RunDir.at(finished).synthetic)
    submission._compare_with_images(finished / "record.json", record, synthetic, None)
    assert record.synthetic.scale is not None
    larger = record.synthetic.model_copy(update={"scale": 2 * record.synthetic.scale})
    with pytest.raises(RunError, match="and it is at most"):
        submission._compare_with_images(
            finished / "record.json", record.model_copy(update={"synthetic": larger}), synthetic, None
        )


def test_no_record_of_a_leaderboard_is_refused_for_how_it_describes_its_method() -> None:
    """Of whichever version: an honest record is taken as long as nobody has measured it again."""
    paths = sorted((Path(__file__).resolve().parents[2] / "leaderboards" / "records").rglob("*.json"))
    records = {path: read_record(path) for path in paths}
    assert records
    for path, record in records.items():
        submission._compare_with_method(path, record)
    submission.refuse_other_data(records, ())


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["data"].update(title="CIFAR-10"),
        lambda r: r["data"].update(title="Digits"),
        lambda r: r["data"].update(original=False),
        lambda r: r["data"].update(title="Digits (UCI, 8x8), JPEG copy"),
        lambda r: r["data"].update(classes=9),
        lambda r: r["data"].update(shape=[3, 8, 8]),
    ],
)
def test_other_words_for_the_data_than_the_catalogues_are_refused(finished: Path, boards: Path, change: Edit) -> None:
    edit(finished / "record.json", change)
    with pytest.raises(RunError, match=r"no run writes that: the dataset is 'Digits \(UCI, 8x8\)'"):
        add([finished], boards, allow_dirty=True)


def test_a_known_copy_has_the_words_of_the_catalogue(write: Write, boards: Path) -> None:
    cifar = {"title": "CIFAR-10", "fingerprint": "b2:08b598556be91aaf", "original": True}

    def record(name: str, **changes: Any) -> Path:
        return write(name, data=lambda data: data | cifar | changes)

    assert add([record("original.json")], boards)
    for name, changes in (
        ("a", {"original": False}),
        ("b", {"title": "CIFAR-10, JPEG copy", "original": False}),
        ("c", {"fingerprint": "b2:00", "title": "CIFAR-10, JPEG copy"}),
    ):
        with pytest.raises(RunError, match=r"no run writes that"):
            add([record(f"{name}.json", **changes)], boards)
    assert add([record("copy.json", fingerprint="b2:00", title="CIFAR-10, JPEG copy", original=False)], boards)


def test_one_name_for_the_same_images_on_a_leaderboard(write: Write, boards: Path) -> None:
    def mine(name: str, number: int, **changes: Any) -> Path:
        about = another(number)
        return write(
            name,
            run=lambda run: about["run"](run) | {"dataset": "mine"},
            synthetic=about["synthetic"],
            data=lambda data: data | {"title": "mine"} | changes,
        )

    add([mine("0.json", 0)], boards)
    assert add([mine("1.json", 1)], boards)
    with pytest.raises(RunError, match=r"describe the same images .* differently: title 'other' and 'mine'"):
        add([mine("2.json", 2, title="other")], boards)
    with pytest.raises(RunError, match=r"differently: training images 9 and 50000"):
        add([mine("3.json", 3, train=9)], boards)
    # Earlier records do not say what the images are whatever their order.
    assert add([mine("4.json", 4, contents="b2:aa"), mine("5.json", 5, contents="")], boards, force=True)
    with pytest.raises(RunError, match=r"differently: contents 'b2:bb' and 'b2:aa'"):
        add([mine("6.json", 6, contents="b2:bb")], boards)
    assert add([mine("4.json", 4, title="other", fingerprint="b2:01")], boards)
    # Earlier records do not say what the images are whatever their order.
    assert add([mine("5.json", 5, contents="b2:aa"), mine("6.json", 6, contents="")], boards, force=True)
    with pytest.raises(RunError, match=r"differently: contents 'b2:bb' and 'b2:aa'"):
        add([mine("7.json", 7, contents="b2:bb")], boards)


def test_a_part_of_a_test_image_is_refused(write: Write, boards: Path) -> None:
    with pytest.raises(RunError, match=r"says 98\.3004 % of student 1 .*, which is 9830\.04 of 10000 test images"):
        add([write("a.json", evaluations=lambda e: [e[0] | {"accuracy": [0.98, 0.983004]}])], boards)


def test_an_imported_set_says_where_it_came_from(write: Write, boards: Path) -> None:
    with pytest.raises(RunError, match="its set is of the kind imported, and names no file that it came from"):
        add([write("a.json", run=lambda run: run | {"kind": "imported"})], boards)


def test_a_record_that_was_put_beside_the_others_by_hand_is_checked_too(write: Write, boards: Path) -> None:
    (place,) = add([write("a.json")], boards)
    build(boards)
    assert check(boards) == []
    edit(place, lambda r: r["evaluations"][0].update(accuracy=[0.98, 0.983004]))
    assert any("no run has written this one" in text for text in check(boards))
    edit(place, lambda r: (r["evaluations"][0].update(accuracy=[0.98]), r["data"].update(title="MNIST")))
    assert any("no run writes that" in text for text in check(boards))


def test_a_small_edit_is_named(finished: Path, boards: Path) -> None:
    path = finished / "record.json"
    was = read_record(path).evaluations[0].accuracy
    edit(path, lambda r: r["evaluations"][0].update(accuracy=[was[0], was[1] + 1e-5]))
    with pytest.raises(RunError, match=rf"; student 1: {was[1] + 1e-5:.6f} and {was[1]:.6f}\."):
        add([finished], boards, allow_dirty=True)


def code(git: dict[str, Any] | None, version: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda attempts: [attempts[0] | {"git": git, "packages": {"ddbench": version}}]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0rc1", "1.0.post1"])
def test_a_release_is_known_code(write: Write, boards: Path, version: str) -> None:
    assert add([write("a.json", attempts=code(None, version))], boards)


@pytest.mark.parametrize("version", ["0.2.0.dev3", "0.1.0+local", "0.1.0+g604c72f", "0+unknown", ""])
def test_code_that_nobody_has_is_refused(write: Write, boards: Path, version: str) -> None:
    path = write("a.json", attempts=code(None, version))
    with pytest.raises(RunError, match="neither a commit nor a release"):
        add([path], boards)
    assert add([path], boards, allow_dirty=True)


def test_every_attempt_counts(write: Write, boards: Path) -> None:
    both = write("a.json", attempts=lambda a: [*a, *code({"commit": "unknown", "dirty": True}, "0.1.0")(a)])
    with pytest.raises(RunError, match="uncommitted changes on top of unknown"):
        add([both], boards)


def better(by: float) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """By about so much, in whole test images."""
    return lambda e: [e[0] | {"accuracy": [min(TEST, round((a + by) * TEST)) / TEST for a in e[0]["accuracy"]]}]


def another(number: int) -> dict[str, Any]:
    return {
        "run": lambda run: run | {"id": f"000010{number:02d}", "seed": number},
        "synthetic": lambda s: s | {"sha256": f"{number:02d}" * 32},
    }


def test_more_than_the_whole_dataset_is_an_alarm(write: Write, boards: Path) -> None:
    add([write("whole.json", like="whole.json")], boards)
    good = write("good.json", evaluations=better(0.2))
    assert add([good], boards)
    odd = write("odd.json", evaluations=better(0.45), **another(7))
    heard: list[str] = []
    with pytest.raises(RunError, match=r"more than the 8\d\.\d % of students of the whole dataset.*--force"):
        add([odd], boards, notes=heard)
    assert not (boards / place_of(read_record(odd).run)).exists()
    assert add([odd], boards, force=True, notes=heard)
    assert any("standard errors" in text for text in heard)


def test_far_above_its_own_sets_is_an_alarm_once_there_are_three(write: Write, boards: Path) -> None:
    steps = (0.0, 0.004, -0.004)
    few = [write(f"{k}.json", evaluations=better(by), **another(k)) for k, by in enumerate(steps[:2])]
    add(few, boards)
    odd = write("odd.json", evaluations=better(0.2), **another(9))
    assert submission.alarms({odd: read_record(odd)}, few) == []
    third = write("2.json", evaluations=better(steps[2]), **another(2))
    add([third], boards)
    with pytest.raises(RunError, match=r"reaches once in 1000 times, by the 3 other sets"):
        add([odd], boards)
    assert add([write("fine.json", evaluations=better(0.01), **another(8))], boards)


def test_a_record_that_came_alone_is_said_to_and_one_of_the_leaderboard_is_not(write: Write, boards: Path) -> None:
    heard: list[str] = []
    (place,) = add([write("a.json")], boards, notes=heard)
    assert [text.rpartition("/")[2] for text in heard] == [
        "a.json came without its run, so nothing was there to compare it with."
    ]
    add([place], boards, notes=heard)
    assert len(heard) == 1


def test_a_run_that_is_being_judged_is_waited_for(finished: Path, boards: Path) -> None:
    with RunDir.at(finished).lock(), pytest.raises(RunError, match=r"is being worked on by .* Wait for it"):
        add([finished], boards, allow_dirty=True)
    assert add([finished], boards, allow_dirty=True)
