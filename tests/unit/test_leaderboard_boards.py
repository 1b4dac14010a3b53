from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddbench.errors import RunError
from ddbench.leaderboard import boards
from ddbench.leaderboard.boards import add, board_of, build, check, local_board, local_summary
from ddbench.runs.record import CurvePart, CurvePoint, read_record, write_record

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"
Write = Callable[..., Path]


@pytest.fixture
def leaderboard(tmp_path: Path) -> Path:
    return tmp_path / "leaderboards"


def dirty(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [attempts[0] | {"git": {"commit": "1a2b3c4d5e6f7a8b", "dirty": True}}]


def test_records_are_kept_by_dataset_and_budget(leaderboard: Path) -> None:
    placed = add([RECORDS / "dm-s1.json", RECORDS / "whole.json", RECORDS / "idea-failed-s0.json"], leaderboard)
    assert [path.relative_to(leaderboard).as_posix() for path in placed] == [
        "records/cifar10/ipc10/dm-convnet-d3-s1-00000d01.json",
        "records/cifar10/whole/whole-convnet-d3-s0-0000ff00.json",
        "records/cifar10/ipc10/idea-convnet-d3-s0-00000e00.json",
    ]
    assert read_record(placed[0]) == read_record(RECORDS / "dm-s1.json")


def test_a_factory_of_a_file_names_a_file(write: Write, leaderboard: Path) -> None:
    placed = add([write("odd.json", run=lambda run: run | {"backbone": "nets.py:tiny@1a2b3c4d"})], leaderboard)[0]
    assert placed.relative_to(leaderboard / "records" / "cifar10").as_posix() == (
        "ipc10/dm-nets.py-tiny@1a2b3c4d-s0-00000d00.json"
    )


@pytest.mark.parametrize("name", ["..", "my/../set", "a/b", "", ".hidden", "a\nb", "x" * 101, 5])
@pytest.mark.parametrize("key", ["dataset", "method", "id"])
def test_names_cannot_leave_the_folder(write: Write, leaderboard: Path, key: str, name: object) -> None:
    with pytest.raises(RunError, match=rf"run\.{key}"):
        add([write("odd.json", run=lambda run: run | {key: name})], leaderboard)
    assert not leaderboard.exists()


def test_partial_and_dirty_runs_are_refused_and_nothing_is_copied(write: Write, leaderboard: Path) -> None:
    good = RECORDS / "dm-s1.json"
    with pytest.raises(RunError, match="partial"):
        add([good, write("a.json", status=lambda _: "partial")], leaderboard)
    with pytest.raises(RunError, match="uncommitted changes on top of 1a2b3c4d5e6f"):
        add([good, write("b.json", attempts=dirty)], leaderboard)
    with pytest.raises(RunError, match="no accuracies"):
        add([good, write("c.json", evaluations=lambda _: [])], leaderboard)
    assert not leaderboard.exists()


def test_dirty_runs_and_installed_releases_can_be_allowed(write: Write, leaderboard: Path) -> None:
    assert add([write("a.json", attempts=dirty)], leaderboard, allow_dirty=True)
    released = write("b.json", attempts=lambda a: [a[0] | {"git": None}], run=lambda run: run | {"id": "00000d09"})
    assert add([released], leaderboard)


def test_nothing_is_added_where_not_all_can_be_written(
    write: Write, leaderboard: Path, read_only: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "with_sheet", lambda *_: pytest.fail("a picture was drawn"))
    files = [write("a.json"), write("b.json", like="whole.json")]
    places = [leaderboard / boards.place_of(read_record(file).run) for file in files]
    places[1].parent.mkdir(parents=True)
    read_only(places[1].parent)
    with pytest.raises(RunError, match=r"nothing can be written in .*: .*\. Nothing was added\."):
        add(files, leaderboard)
    assert not list(leaderboard.rglob("*.json"))


def test_a_record_may_grow_and_not_shrink_or_change(write: Write, leaderboard: Path) -> None:
    small = write("small.json", evaluations=lambda e: [e[0] | {"accuracy": e[0]["accuracy"][:2]}])
    place = add([small], leaderboard)[0]
    add([RECORDS / "dm-s0.json"], leaderboard)
    assert read_record(place) == read_record(RECORDS / "dm-s0.json")
    add([small], leaderboard)
    assert read_record(place).evaluations == read_record(RECORDS / "dm-s0.json").evaluations
    changed = write("changed.json", evaluations=lambda e: [e[0] | {"accuracy": [0.25, *e[0]["accuracy"][1:]]}])
    with pytest.raises(RunError, match="would change students"):
        add([changed], leaderboard)
    other = write("other.json", synthetic=lambda s: s | {"sha256": "beef" * 16})
    with pytest.raises(RunError, match="two results of the same run"):
        add([other], leaderboard)
    assert read_record(place).evaluations == read_record(RECORDS / "dm-s0.json").evaluations


def elsewhere(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [evaluations[0] | {"protocol": "other@1", "digest": "0" * 16, "seconds": 2.5}]


@pytest.mark.parametrize("at_once", [False, True])
def test_what_two_machines_say_of_one_set_is_joined(write: Write, leaderboard: Path, at_once: bool) -> None:
    first = RECORDS / "dm-s0.json"
    second = write(
        "second.json",
        evaluations=elsewhere,
        attempts=lambda a: [a[0] | {"started": "2031-01-01T00:00:00Z", "device": "another"}],
        cost=lambda c: c | {"condense": c["condense"] | {"seconds": 1e6}},
    )
    for group in [[first, second]] if at_once else [[first], [second]]:
        place = add(group, leaderboard)[0]
    one, two, both = read_record(first), read_record(second), read_record(place)
    assert both.evaluations == (*one.evaluations, *two.evaluations)
    assert both.attempts == (*one.attempts, *two.attempts)
    assert both.cost["condense"] == one.cost["condense"]
    assert both.cost["evaluate"].seconds == pytest.approx(sum(e.seconds for e in both.evaluations))
    assert both.devices == list(dict.fromkeys([*one.devices, "another"]))


def test_students_that_came_first_stay_where_others_bring_a_new_judge(write: Write, leaderboard: Path) -> None:
    first = RECORDS / "dm-s0.json"
    others = write(
        "others.json",
        evaluations=lambda e: [e[0] | {"accuracy": [0.25] * 7}, *elsewhere(e)],
        attempts=lambda a: [a[0] | {"started": "2031-01-01T00:00:00Z", "device": "another"}],
    )
    add([first], leaderboard)
    heard: list[str] = []
    place = add([others], leaderboard, notes=heard)[0]
    one, two, both = read_record(first), read_record(others), read_record(place)
    assert both.evaluations == (*one.evaluations, two.evaluations[-1])
    assert both.curves == one.curves
    assert both.attempts == (*one.attempts, *two.attempts)
    (note,) = [text for text in heard if "came first, and stay" in text]
    assert str(place) in note
    with pytest.raises(RunError, match="would change students"):
        add([others], leaderboard)


def test_a_curve_that_is_there_stays(tmp_path: Path, leaderboard: Path) -> None:
    plain = read_record(RECORDS / "dm-s0.json")
    judged = plain.evaluations[0]
    point = CurvePoint(step=5, seconds=1.0, accuracy=(0.25,))
    other = CurvePart(protocol="dsa@1", digest="0" * 16, backbone="mlp", points=(point,))
    curve = CurvePart(protocol=judged.protocol, digest=judged.digest, backbone=judged.backbone, points=(point,))
    longer = curve.model_copy(update={"points": (point, point.model_copy(update={"step": 9}))})

    def added(*curves: CurvePart) -> tuple[CurvePart, ...]:
        write_record(tmp_path / "record.json", plain.model_copy(update={"curves": curves}))
        return read_record(add([tmp_path / "record.json"], leaderboard)[0]).curves

    assert added(curve, other) == (curve, other)
    assert added() == (curve, other)
    assert added(longer) == (longer, other)


def test_building_twice_gives_the_same_and_check_agrees(leaderboard: Path) -> None:
    add([RECORDS / "dm-s0.json", RECORDS / "random-s0.json"], leaderboard)
    first = build(leaderboard)
    assert build(leaderboard) == first
    assert all((leaderboard / path).read_text(encoding="utf-8") == text for path, text in first.items())
    assert check(leaderboard) == []


def test_check_finds_edits_missing_and_orphaned_tables(leaderboard: Path) -> None:
    add([RECORDS / "dm-s0.json"], leaderboard)
    build(leaderboard)
    table = leaderboard / "tables" / "cifar10" / "ipc10.md"
    table.write_text(table.read_text().replace("48.8 ± 0.2", "58.8 ± 0.2"))
    (leaderboard / "tables" / "cifar10" / "ipc10.csv").unlink()
    (leaderboard / "tables" / "cifar10" / "ipc99.md").write_text("of a record that is gone")
    found = check(leaderboard)
    assert len(found) == 3
    assert "tables/cifar10/ipc99.md belongs to no record" in found
    assert "tables/cifar10/ipc10.csv is missing" in found
    assert any("-| 1   | dm" in text and "+| 1   | dm" in text for text in found)
    build(leaderboard)
    assert check(leaderboard) == []


def test_the_order_in_which_records_came_does_not_show(tmp_path: Path) -> None:
    names = ["dm-s0.json", "dm-s1.json", "random-s0.json", "herding-s0.json", "whole.json"]
    texts = []
    for number, order in enumerate([names, names[::-1]]):
        root = tmp_path / str(number)
        for name in order:
            add([RECORDS / name], root)
        texts.append(build(root))
    assert texts[0] == texts[1]


def test_the_whole_dataset_alone_has_a_board_of_its_own(leaderboard: Path) -> None:
    add([RECORDS / "whole.json"], leaderboard)
    assert Path("tables/cifar10/whole.md") in build(leaderboard)
    add([RECORDS / "dm-s0.json"], leaderboard)
    files = build(leaderboard)
    assert Path("tables/cifar10/whole.md") not in files
    assert not (leaderboard / "tables" / "cifar10" / "whole.md").exists()
    assert "whole, full@1" in files[Path("tables/cifar10/ipc10.md")]


def test_local_runs_are_found_by_their_records(write: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert "There is no finished run" in local_board(runs)
    assert local_summary(runs).empty
    folder = write("runs/cifar10/ipc10/dm/convnet-d3-s0-00000d00/record.json").parent
    (runs / "cifar10" / "ipc10" / "dm" / "convnet-d3-s1-00000d01").mkdir()
    assert "48.8 ± 0.2†" in local_board(runs)
    assert local_board(runs) == board_of([folder])
    assert len(local_summary(runs)) == 2
    torn = runs / "cifar10" / "ipc10" / "dm" / "convnet-d3-s2-00000d02" / "record.json"
    torn.parent.mkdir()
    torn.write_text("{")
    assert local_board(runs) == board_of([folder])
    (folder / "record.json").unlink()
    assert "There is no finished run" in local_board(runs)
