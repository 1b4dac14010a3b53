import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddbench.data.catalogue import CATALOGUE
from ddbench.errors import RunError
from ddbench.leaderboard.observations import COLUMNS, NO_STUDENT, collect

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"
Write = Callable[..., Path]


def only_first(count: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda evaluations: [e | {"accuracy": e["accuracy"][:count]} for e in evaluations[:1]]


def test_each_student_is_a_row_and_accuracies_stay_fractions() -> None:
    frame = collect([RECORDS / "dm-s0.json"])
    assert tuple(frame.columns) == COLUMNS
    convnet = frame[frame["judge"] == "convnet-d3"]
    assert convnet["student"].tolist() == [0, 1, 2, 3, 4]
    assert convnet["accuracy"].tolist() == [0.4871, 0.4902, 0.4855, 0.4893, 0.486]
    assert frame[frame["judge"] == "resnet18"]["student"].tolist() == [0, 1]


@pytest.mark.parametrize(("protocol", "judge"), [("krr@1", "convnet kernel"), ("krr-fc1@1", "fc1 kernel")])
def test_where_no_network_is_trained_the_kernel_is_the_judge(write: Write, protocol: str, judge: str) -> None:
    path = write("record.json", evaluations=lambda parts: [part | {"protocol": protocol} for part in parts[:1]])
    assert set(collect([path])["judge"]) == {judge}


def test_a_run_folder_stands_for_its_record(write: Write) -> None:
    path = write("run/record.json")
    assert collect([path.parent]).equals(collect([path]))


def test_artefacts_are_part_of_the_cost_even_from_the_cache() -> None:
    frame = collect([RECORDS / "mtt-zca-s0.json"])
    assert frame["seconds"].iloc[0] == pytest.approx(11821.0 + 9130.2 + 12.5)


def test_options_set_by_hand_are_known() -> None:
    assert json.loads(collect([RECORDS / "dm-short-s0.json"])["overridden"].iloc[0]) == ["iterations"]
    assert json.loads(collect([RECORDS / "dm-s0.json"])["overridden"].iloc[0]) == []


def test_an_option_left_at_none_is_one_that_an_older_record_does_not_have(write: Write) -> None:
    def with_option(value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda config: config | {"values": config["values"] | {"new": value}}

    older, same, other = (
        collect([path])["config"].iloc[0]
        for path in (
            RECORDS / "dm-s0.json",
            write("same.json", config=with_option(None)),
            write("other.json", config=with_option(0)),
        )
    )
    assert older == same != other


def test_a_failed_evaluation_is_a_row_with_its_reason() -> None:
    frame = collect([RECORDS / "idea-failed-s0.json"])
    failed = frame[frame["judge"] == "convnet-d3"].iloc[0]
    assert failed["student"] == NO_STUDENT
    assert math.isnan(failed["accuracy"])
    assert "not finite" in failed["failed"]


def test_of_two_records_of_a_run_the_one_with_more_students_counts_in_any_order(write: Write) -> None:
    few, many = write("few.json", evaluations=only_first(2)), write("many.json", evaluations=only_first(5))
    assert len(collect([few, many])) == 5
    assert collect([few, many]).equals(collect([many, few]))


def test_evaluations_of_one_run_in_two_records_complement_each_other(write: Write) -> None:
    convnet = write("a.json", evaluations=lambda e: e[:1])
    resnet = write("b.json", evaluations=lambda e: e[1:])
    assert collect([convnet, resnet]).equals(collect([RECORDS / "dm-s0.json"]))


def test_a_damaged_record_is_named(write: Write, tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_text((RECORDS / "dm-s0.json").read_text()[:200])
    with pytest.raises(RunError, match=r"torn\.json is damaged"):
        collect([RECORDS / "dm-s1.json", torn])
    wrong = write("wrong.json", run=lambda run: run | {"ipc": -1})
    with pytest.raises(RunError, match=r"wrong\.json: run\.ipc"):
        collect([wrong])
    lost: list[str] = []
    assert collect([wrong, RECORDS / "dm-s1.json", torn], lost).equals(collect([RECORDS / "dm-s1.json"]))
    assert [sentence.partition(" ")[0] for sentence in lost] == [f"{wrong}:", str(torn)]


def test_a_folder_without_a_record_is_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no record"):
        collect([tmp_path])


def test_no_records_give_an_empty_table() -> None:
    frame = collect([])
    assert frame.empty
    assert tuple(frame.columns) == COLUMNS


def data_of(fingerprint: str, contents: str = "", **more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"fingerprint": fingerprint, "contents": contents} | more


def test_data_that_differ_in_order_alone_share_a_column(write: Write) -> None:
    frame = collect(
        [
            write("a.json", data=data_of("b2:bbbb", "b2:same", title="In one order")),
            write("b.json", like="dm-s1.json", data=data_of("b2:aaaa", "b2:same", title="In another")),
            write("c.json", like="herding-s0.json", data=data_of("b2:cccc", "b2:others")),
        ]
    )
    assert set(frame[frame["method"] == "dm"]["fingerprint"]) == {"b2:aaaa"}
    assert set(frame[frame["method"] == "dm"]["data_title"]) == {"In another"}
    assert set(frame[frame["method"] == "herding"]["fingerprint"]) == {"b2:cccc"}


def test_the_column_is_that_of_the_original_where_the_catalogue_knows_it(write: Write) -> None:
    original = CATALOGUE["cifar10"].copies[0]
    frame = collect(
        [
            # A record from before, which says nothing of its data in any order.
            write("a.json", data=data_of(original.fingerprint, title="CIFAR-10", original=True)),
            write("b.json", like="dm-s1.json", data=data_of("b2:0000", original.contents, title="CIFAR-10, my copy")),
        ]
    )
    assert set(frame["fingerprint"]) == {original.fingerprint}
    assert set(frame["data_title"]) == {"CIFAR-10"}
    assert set(frame["original"]) == {True}


def test_an_old_record_of_unknown_data_joins_the_new_ones_of_the_same_fingerprint(write: Write) -> None:
    frame = collect(
        [
            write("a.json", data=data_of("b2:bbbb", title="Old")),
            write("b.json", like="dm-s1.json", data=data_of("b2:bbbb", "b2:same", title="New")),
            write("c.json", like="herding-s0.json", data=data_of("b2:aaaa", "b2:same", title="Another order")),
        ]
    )
    assert set(frame["fingerprint"]) == {"b2:aaaa"}
