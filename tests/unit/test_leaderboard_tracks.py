"""Tracks of labels on boards: which a row is of, that none shares a table with another, and which rows are controls."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ddbench import SyntheticSet
from ddbench.cli import root as program
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard.chosen import Chosen
from ddbench.leaderboard.costs import costs
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.page.document import document
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import Table, board, csv_of
from ddbench.leaderboard.tracks import NAMES, asked_of_the_set, track_of
from ddbench.runs.record import read_record

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "tests" / "golden" / "records"
COMMITTED = sorted((ROOT / "leaderboards" / "records").rglob("*.json"))
Write = Callable[..., Path]


def judged(protocol: str, **more: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    digest = PROTOCOLS[protocol].digest if protocol in PROTOCOLS else "ab" * 8
    return lambda parts: [parts[0] | {"protocol": protocol, "digest": digest} | more]


def labelled(kind: str, *learned: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda part: part | {"labels": kind, "learned": ["images", *learned]}


@pytest.mark.parametrize(
    ("protocol", "kind", "learned", "more", "track"),
    [
        ("dsa@1", "class", (), {}, "hard"),
        ("dsa@1", "probability", ("labels",), {}, "hard"),  # the arg-max of them
        ("dsa-soft@1", "class", (), {}, "hard"),
        ("dsa-soft@1", "probability", ("labels",), {}, "soft"),
        ("dsa-soft@1", "probability", ("labels",), {"track": "hard"}, "hard"),  # probabilities of 0 and 1
        ("dsa-soft@1", "probability", ("labels",), {"track": "teacher"}, "hard"),  # nobody on line: not believed
        ("krr@1", "regression", ("labels",), {}, "soft"),
        ("krr@1", "regression", (), {}, "hard"),  # KIP with fixed labels: classes, centred
        ("distill@1", "class", (), {}, "teacher"),
        ("distill@1", "class", (), {"track": "hard"}, "teacher"),
        ("hard-truths-sl@1", "class", (), {"beside_bytes": 400}, "soft"),
        ("mine@1", "class", (), {}, "hard"),
        ("mine@1", "class", (), {"beside_bytes": 400}, "unknown"),
        ("mine@1", "probability", ("labels",), {}, "unknown"),
        ("mine@1", "probability", ("labels",), {"track": "soft"}, "soft"),
    ],
)
def test_the_track_of_a_row_is_that_of_what_its_students_saw(
    write: Write, protocol: str, kind: str, learned: tuple[str, ...], more: dict[str, Any], track: str
) -> None:
    path = write("r.json", evaluations=judged(protocol, **more), synthetic=labelled(kind, *learned))
    record = read_record(path)
    assert track_of(record, record.evaluations[0]) == track
    assert set(collect([path])["track"]) == {track}


def test_no_table_of_the_committed_records_has_two_tracks() -> None:
    """And none has sets whose students saw classes beside sets whose students saw more."""
    frame = collect(COMMITTED)
    assert {"hard", "soft"} <= set(frame["track"]) <= {"hard", "soft", "teacher"}
    for _, part in summarise(frame).groupby(["fingerprint", "ipc", "protocol", "digest", "track"]):
        assert part["track"].nunique() == 1
        if part["track"].iloc[0] == "soft" and not PROTOCOLS[part["protocol"].iloc[0]].brings_labels:
            assert "class" not in set(part["labels"])
    texts = [board(summarise(frame), read_published(), "cifar10", ipc) for ipc in (1, 10, 50)]
    for table in itertools.chain.from_iterable(made.tables for made in texts):
        assert sum(f", {name}, protocol" in table.title for name in NAMES.values()) == 1


def hard_and_soft(write: Write, more: Callable[..., Any] = lambda parts: parts) -> list[Path]:
    """A set with classes and one with soft labels, both judged by a protocol that takes labels as they are."""
    about = judged("dsa-soft@1")
    return [
        write("hard.json", evaluations=about),
        write(
            "soft.json", like="dm-s1.json", evaluations=lambda parts: more(about(parts)),
            synthetic=labelled("probability", "labels"),
        ),
    ]  # fmt: skip


def test_one_protocol_that_takes_either_labels_makes_two_tables(write: Write) -> None:
    paths = hard_and_soft(write)
    summary = summarise(collect(paths))
    tables = board(summary, read_published(), "cifar10", 10).tables
    assert [table.title.split(", ")[-2:] for table in tables] == [
        ["hard labels", "protocol dsa-soft@1"],
        ["stored soft labels", "protocol dsa-soft@1"],
    ]
    assert [len(table.rows) for table in tables] == [1, 1]
    assert list(summary["rank"]) == [1, 1]
    found = document(paths, read_published())
    assert [table["track"] for table in found["tables"]] == ["hard", "soft"]
    assert "track" in csv_of(summary).splitlines()[0].split(",")


def test_the_command_line_shows_one_track(write: Write, tmp_path: Path) -> None:
    for path in hard_and_soft(write):
        place = tmp_path / "runs" / "cifar10" / "ipc10" / "dm" / path.stem / "record.json"
        place.parent.mkdir(parents=True)
        place.write_text(path.read_text())

    def shown(*arguments: str) -> str:
        done = CliRunner().invoke(program, ["leaderboard", "--runs", str(tmp_path / "runs"), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert {row["track"] for row in json.loads(shown("--track", "soft", "--json"))} == {"soft"}
    assert "stored soft labels" not in shown("--track", "hard")
    assert "--track hard, soft" in shown("--track", "teacher")
    wrong = CliRunner().invoke(program, ["leaderboard", "--track", "kd"])
    assert wrong.exit_code == 2
    assert Chosen(tracks=("teacher",)).of(summarise(collect(hard_and_soft(write)))).empty


def control(write: Write, name: str, protocol: str, **changes: Any) -> Path:
    """A record of soft labels on real images."""
    run = {"method": "soft-labels", "id": f"0000000{name[0]}"}
    return write(
        name, like="random-s0.json", run=lambda part: part | run | {"kind": "condensation"},
        config=lambda part: {"values": {"initial": "real", "chosen": "random", **changes}, "sources": {}},
        evaluations=judged(protocol), synthetic=lambda part: part | {"labels": "probability", "learned": ["labels"]},
    )  # fmt: skip


def table_of(*paths: Path, place: int = 0) -> Table:
    return board(summarise(collect(paths)), read_published(), "cifar10", 10).tables[place]


def notes(table: Table) -> list[str]:
    return [note for note in table.notes if note.startswith("Missing") or "times as many" in note]


def test_the_control_of_soft_labels_is_real_images_with_a_networks_labels(write: Write) -> None:
    soft = hard_and_soft(write)[1]
    random = write("random.json", like="random-s1.json", evaluations=judged("dsa-soft@1"))
    summary = summarise(collect([soft, random, control(write, "c.json", "dsa-soft@1")]))
    rows = {(row["method"], row["track"]): row for row in summary.to_dict("records")}
    assert {key: row["control"] for key, row in rows.items()} == {
        ("dm", "soft"): "", ("random", "hard"): "random", ("soft-labels", "soft"): "random",
    }  # fmt: skip
    # The difference is that to the soft control, and not to random images with classes.
    gap = rows["dm", "soft"]["mean"] - rows["soft-labels", "soft"]["mean"]
    assert rows["dm", "soft"]["difference_random"] == pytest.approx(gap)


@pytest.mark.parametrize(
    ("values", "role"),
    [
        ({}, "random"),
        ({"chosen": "k-center"}, "coreset"),
        ({"initial": "runs/dm"}, ""),  # somebody's learned images
        ({"initial": "noise"}, ""),
    ],
)
def test_which_labelled_images_are_controls(write: Write, values: dict[str, Any], role: str) -> None:
    (row,) = summarise(collect([control(write, "c.json", "soft-labels@1", **values)])).to_dict("records")
    assert row["control"] == role


def test_where_the_protocol_brings_the_labels_real_images_are_their_own_control(write: Write) -> None:
    paths = [
        write("dm.json", evaluations=judged("hard-truths-sl@1", beside_bytes=4000)),
        write("random.json", like="random-s0.json", evaluations=judged("hard-truths-sl@1", beside_bytes=4000)),
        control(write, "c.json", "hard-truths-sl@1"),
    ]
    rows = {row["method"]: row for row in summarise(collect(paths)).to_dict("records")}
    assert {name: row["control"] for name, row in rows.items()} == {"dm": "", "random": "random", "soft-labels": ""}
    # The teacher's labels are labels, and not something beside the set.
    assert rows["dm"]["labels_bytes"] == 100 * 8 + 4000
    record = read_record(paths[0])
    assert costs(record, record.evaluations[0]).beside_bytes == 0


def test_what_is_missing_is_said_with_the_command_that_makes_it(write: Write) -> None:
    soft = hard_and_soft(write)[1]
    (said,) = notes(table_of(soft))
    assert said == (
        "Missing controls: random real images and a coreset with stored soft labels. To make them: "
        "ddbench run --method soft-labels --dataset cifar10 --ipc 10 --protocol dsa-soft@1; "
        "ddbench run --method soft-labels --dataset cifar10 --ipc 10 --set chosen=herding --protocol dsa-soft@1."
    )
    (said,) = notes(table_of(soft, control(write, "c.json", "dsa-soft@1")))
    assert said.startswith("Missing control: a coreset with stored soft labels. To make it: ddbench run")
    every = (control(write, "c.json", "dsa-soft@1"), control(write, "d.json", "dsa-soft@1", chosen="herding"))
    assert notes(table_of(soft, *every)) == []
    (said,) = notes(table_of(write("mtt.json", evaluations=judged("mtt@1"))))
    assert said.endswith("mtt@1 takes a step size from the set, and real images bring none.")


def test_a_control_that_the_protocol_refuses_is_not_asked_for_again(write: Write) -> None:
    refused = {"accuracy": [], "failed": "not defined: protocol dc@1 is kept for what was measured under it"}
    own = write("dc.json", evaluations=judged("dc@1"))
    random = write("random.json", like="random-s0.json", evaluations=judged("dc@1", **refused))
    tried, missing = notes(table_of(own, random))
    assert tried == (
        "Missing control: random real images with hard labels. Under dc@1 they are not defined, as is told of each."
    )
    assert missing.startswith("Missing control: a coreset with hard labels. To make it: ddbench run --method herding")


def test_random_images_alone_are_no_best_coreset(write: Write) -> None:
    own = write("dm.json", evaluations=judged("dsa@1"))
    random = write("random.json", like="random-s0.json", evaluations=judged("dsa@1"))
    rows = {row["method"]: row for row in summarise(collect([own, random])).to_dict("records")}
    assert rows["dm"]["best_coreset"] == ""
    assert math.isnan(rows["dm"]["difference_coreset"])
    assert not math.isnan(rows["dm"]["difference_random"])


def test_a_control_with_another_compute_is_said(write: Write) -> None:
    random = write("random.json", like="random-s0.json", evaluations=judged("dsa@1"))
    equal = write("equal.json", evaluations=judged("dsa@1"))
    # Four images in each stored one: a pass is four times as long.
    longer = write("longer.json", evaluations=judged("dsa@1", student_forwards=4 * 1001 * 100))
    assert not any("times as many" in note for note in notes(table_of(equal, random)))
    said = [note for note in notes(table_of(longer, random)) if "times as many" in note]
    assert said == [
        "dm, convnet-d3: a student trains on 4 times as many images, repeats counted, as one of random real images."
    ]
    (row,) = (r for r in summarise(collect([longer, random])).to_dict("records") if r["method"] == "dm")
    assert row["forwards_random"] == pytest.approx(4.0)


def tiled(write: Write, name: str, **about: Any) -> Path:
    """A record of a set that stores four images in one, of which a pass is four times as long."""
    return write(
        name, evaluations=judged("dsa@1", student_forwards=4 * 1001 * 100),
        synthetic=lambda part: part | {"decode": "tiles(factor=2)"}, **about,
    )  # fmt: skip


def test_mosaics_are_held_against_random_images_that_are_seen_as_often(write: Write) -> None:
    random = write("random.json", like="random-s0.json", evaluations=judged("dsa@1"))
    dm = write("dm.json", evaluations=judged("dsa@1"))
    dance = tiled(write, "dance.json", run=lambda part: part | {"method": "dance", "id": "da" * 4})
    (said,) = (note for note in notes(table_of(dance, random)) if "times as many" in note)
    made = "ddbench run --method random --dataset cifar10 --ipc 10 --set factor=2 --protocol dsa@1"
    assert said.endswith(f"as one of random real images. As many in as many bytes: {made}.")
    mosaics = tiled(
        write, "mosaics.json", like="random-s0.json", run=lambda part: part | {"id": "ab" * 4},
        config=lambda part: {"values": {"factor": 2}, "sources": {"factor": "--set"}},
    )  # fmt: skip
    paths = [random, dm, dance, mosaics]
    rows = {row["label"].split(" ")[0]: row for row in summarise(collect([*paths[:3]])).to_dict("records")}
    assert rows["dance"]["forwards_random"] == pytest.approx(4.0)
    summary = summarise(collect(paths)).to_dict("records")
    by_label = {row["label"]: row for row in summary}
    (plain,) = (row for label, row in by_label.items() if row["method"] == "random" and "factor" not in label)
    (other,) = (row for label, row in by_label.items() if label.endswith("[factor=2]"))
    (ours,) = (row for row in summary if row["method"] == "dance")
    (usual,) = (row for row in summary if row["method"] == "dm")
    assert (plain["control"], other["control"]) == ("random", "random")
    assert ours["forwards_random"] == usual["forwards_random"] == pytest.approx(1.0)
    assert ours["difference_random"] == pytest.approx(ours["mean"] - other["mean"])
    assert usual["difference_random"] == pytest.approx(usual["mean"] - plain["mean"])
    # Of controls themselves, the plain one is the reference.
    assert other["difference_random"] == pytest.approx(other["mean"] - plain["mean"])
    assert not any("times as many" in note for note in notes(table_of(*paths)))
    # On the page they are a control of their own, and not folded under single images.
    shown = {row["name"]: row for row in document(paths, read_published())["rows"]}
    assert {"random", "random mosaics", "dance", "dm"} <= shown.keys()
    assert all(shown[name]["alike"] is not None for name in ("random", "random mosaics"))
    assert shown["random mosaics"]["method"] == "random"
    assert shown["random mosaics"]["published"] == []
    assert shown["dance"]["gap"] == pytest.approx(ours["difference_random"])


def coreset(write: Write, accuracy: float, id: str, tiles: bool = False) -> Path:
    about: dict[str, Any] = {"run": lambda part: part | {"method": "k-means", "id": id * 8}}
    if tiles:
        about |= {
            "config": lambda part: {"values": {"factor": 2}, "sources": {"factor": "--set"}},
            "synthetic": lambda part: part | {"decode": "tiles(factor=2)", "sha256": id * 64},
        }
    students = {"accuracy": [accuracy, accuracy], "student_forwards": (4 if tiles else 1) * 1001 * 100}
    return write(f"{id}.json", like="random-s0.json", evaluations=judged("dsa@1", **students), **about)


def test_the_best_coreset_is_one_that_is_seen_as_often_and_is_called_by_its_label(write: Write) -> None:
    random = write("random.json", like="random-s0.json", evaluations=judged("dsa@1"))
    dm = write("dm.json", evaluations=judged("dsa@1"))
    dance = tiled(write, "dance.json", run=lambda part: part | {"method": "dance", "id": "da" * 4})
    paths = [random, dm, dance, coreset(write, 0.4, "a"), coreset(write, 0.6, "b", tiles=True)]
    summary = summarise(collect(paths)).to_dict("records")
    rows = {row["method"]: row for row in summary if row["method"] != "k-means"}
    singles, mosaics = sorted(row["label"] for row in summary if row["method"] == "k-means")
    assert mosaics == f"{singles} [factor=2]"
    assert [rows[name]["best_coreset"] for name in ("dm", "random", "dance")] == [singles, singles, mosaics]
    for name, best in (("dm", 0.4), ("random", 0.4), ("dance", 0.6)):
        assert rows[name]["difference_coreset"] == pytest.approx(rows[name]["mean"] - best)
        assert rows[name]["forwards_coreset"] == pytest.approx(1.0)
    (said,) = (note for note in table_of(*paths).notes if note.startswith("Differences"))
    assert f"Best coreset: {singles}; {mosaics} for dance." in said
    # Where a row has no such coreset, it is one of those that there are, and its compute is said.
    told = table_of(*paths[:4])
    assert any(note.startswith("dance") and "4 times as many" in note and "a coreset" in note for note in notes(told))


def test_single_images_are_asked_for_where_mosaics_are_the_only_random_ones(write: Write) -> None:
    dm = write("dm.json", evaluations=judged("dsa@1"))
    only = tiled(
        write, "mosaics.json", like="random-s0.json",
        config=lambda part: {"values": {"factor": 2}, "sources": {"factor": "--set"}},
    )  # fmt: skip
    (said,) = (note for note in notes(table_of(dm, only)) if "times as many" in note)
    made = "ddbench run --method random --dataset cifar10 --ipc 10 --protocol dsa@1"
    assert said.endswith(
        f"0.25 times as many images, repeats counted, as one of random real images. As many in as many bytes: {made}."
    )


def test_bytes_of_labels_stand_beside_those_of_images_in_every_form(write: Write) -> None:
    soft = write(
        "soft.json", evaluations=judged("dsa-soft@1"),
        synthetic=lambda part: labelled("probability", "labels")(part) | {"bytes": 100 * 3072 * 4 + 100 * 40 + 8},
    )  # fmt: skip
    made = board(summarise(collect([soft])), read_published(), "cifar10", 10)
    for text in (made.to_markdown(), made.to_text(), made.to_latex()):
        assert "1.2 MB + 4.0 kB + 8 B" in text
        assert "bytes: images + labels" in text
    (row,) = pd.read_csv(pd.io.common.StringIO(made.to_csv())).to_dict("records")
    assert (row["images_bytes"], row["labels_bytes"], row["bytes"]) == (1_228_800, 4000, 1_232_808)
    (shown,) = document([soft], read_published())["rows"]
    assert (shown["bytes"]["images"], shown["bytes"]["labels"], shown["bytes"]["other"]) == (1_228_800, 4000, 8)


def test_protocols_that_ask_the_set_are_known() -> None:
    asked = {name: asked_of_the_set(one) for name, one in PROTOCOLS.items()}
    assert {name for name, what in asked.items() if what} == {
        "mtt@1", "datm@1", "dd@1", "ld@1", "ld-ridge@1", "ld-ridge@2", "rded@1",
    }  # fmt: skip


def test_a_protocol_of_either_labels_is_hard_for_classes() -> None:
    for name, one in PROTOCOLS.items():
        either = one.track_of(more_than_classes=False), one.track_of(more_than_classes=True)
        assert either[1] == one.track, name
        assert either[0] in (one.track, "hard")
        if one.brings_labels or one.track != "soft":
            assert either[0] == one.track


@given(classes=st.lists(st.integers(0, 4), min_size=1, max_size=6), share=st.floats(0.01, 0.4))
def test_labels_that_are_classes_say_no_more(classes: list[int], share: float) -> None:
    images = torch.zeros(len(classes), 1, 2, 2)
    alone = torch.nn.functional.one_hot(torch.tensor(classes), 5).float()
    assert not SyntheticSet(images, torch.tensor(classes)).more_than_classes
    assert not SyntheticSet(images, alone, label_kind="probability").more_than_classes
    assert not SyntheticSet(images, alone - 0.2, label_kind="regression").more_than_classes
    smooth = (1 - share) * alone + share / 5
    assert SyntheticSet(images, smooth, label_kind="probability").more_than_classes
    assert SyntheticSet(images, smooth - 0.2, label_kind="regression").more_than_classes
    assert SyntheticSet(images, alone, label_kind="logit").more_than_classes


def test_rows_without_a_count_of_images_have_no_ratio(write: Write) -> None:
    (row,) = summarise(collect([write("dm.json", evaluations=judged("mine@1"))])).to_dict("records")
    assert math.isnan(row["forwards"])
    assert math.isnan(row["forwards_random"])
