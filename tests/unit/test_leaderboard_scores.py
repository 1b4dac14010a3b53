"""The scores of DD-Ranking: the formula by hand, its range, and where its accuracies are found."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import ddbench
from ddbench.cli import root as program
from ddbench.errors import ConfigError
from ddbench.evaluation.protocol import PROTOCOLS
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.page.document import document
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.scores import augmentation_robust_score, label_robust_score, with_scores
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import board, csv_of

Write = Callable[..., Path]
SHARE = st.floats(0, 1)


def test_the_label_robust_score_by_hand() -> None:
    # a = .5 (.7 - .5) - .5 (.9 - .6) = -.05; (e^-.05 - e^-1) / (e - e^-1) = (.951229 - .367879) / 2.350402
    assert label_robust_score(0.7, 0.5, 0.9, 0.6) == pytest.approx(24.8191, abs=1e-3)
    # All the weight on being above random images: a = .2, (1.221403 - .367879) / 2.350402
    assert label_robust_score(0.7, 0.5, 0.9, 0.6, weight=1.0) == pytest.approx(36.3139, abs=1e-3)


def test_the_augmentation_robust_score_by_hand() -> None:
    # b = .5 (.7 - .5) + .5 (.4 - .3) = .15; (1.161834 - .367879) / 2.350402
    assert augmentation_robust_score(0.7, 0.5, 0.4, 0.3) == pytest.approx(33.7795, abs=1e-3)


def test_the_ends_of_the_scale() -> None:
    assert label_robust_score(1, 0, 0, 1) == pytest.approx(100)
    assert label_robust_score(0, 1, 1, 0) == pytest.approx(0)
    assert augmentation_robust_score(1, 0, 1, 0) == pytest.approx(100)
    assert augmentation_robust_score(0, 1, 0, 1) == pytest.approx(0)
    nothing = 100 * (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.3, 0.3, 0.8, 0.8) == pytest.approx(nothing) == pytest.approx(26.894, abs=1e-3)


@given(SHARE, SHARE, SHARE, SHARE, SHARE)
def test_scores_lie_on_their_scale_and_rise_with_the_set(a: float, b: float, c: float, d: float, w: float) -> None:
    lrs, ars = label_robust_score(a, b, c, d, w), augmentation_robust_score(a, b, c, d, w)
    assert -1e-9 <= lrs <= 100 + 1e-9
    assert -1e-9 <= ars <= 100 + 1e-9
    assert label_robust_score(1, b, c, d, w) >= lrs - 1e-9
    assert label_robust_score(a, b, c, 1, w) >= lrs - 1e-9
    assert augmentation_robust_score(a, 0, c, d, w) >= ars - 1e-9


@given(SHARE, SHARE, SHARE, SHARE, st.floats(-0.5, 0.5))
def test_only_differences_count(a: float, b: float, c: float, d: float, shift: float) -> None:
    def moved(value: float) -> float:
        return min(1.0, max(0.0, value + shift))

    kept = [moved(value) - value for value in (a, b, c, d)]
    if max(kept) - min(kept) < 1e-12:  # nothing was cut at an end
        moves = (moved(a), moved(b), moved(c), moved(d))
        assert label_robust_score(*moves) == pytest.approx(label_robust_score(a, b, c, d))
        assert augmentation_robust_score(*moves) == pytest.approx(augmentation_robust_score(a, b, c, d))


@pytest.mark.parametrize("wrong", [48.9, -0.1, math.nan, math.inf])
def test_percent_are_no_fractions(wrong: float) -> None:
    with pytest.raises(ValueError, match="fractions from 0 to 1"):
        label_robust_score(wrong, 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="fractions from 0 to 1"):
        augmentation_robust_score(0.5, 0.5, wrong, 0.5)


def judged(**accuracies: float) -> Callable[[Any], list[dict[str, Any]]]:
    """Evaluations with one accuracy for all students, by protocol; "dsa-soft" means dsa-soft@1."""

    def parts(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for name, value in accuracies.items():
            known = PROTOCOLS[f"{name.replace('_', '-')}@1"]
            found.append(old[0] | {"protocol": known.id, "digest": known.digest, "accuracy": [value, value]})
        return found

    return parts


def records(write: Write, *without: str) -> list[Path]:
    """A set with soft labels, the control with such, random images, and the whole dataset; accuracies made up."""

    def soft(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"labels": "probability", "learned": ["images", "labels"]}

    def write_without(name: str, like: str, accuracies: dict[str, float], **changes: Any) -> Path:
        kept = {key: value for key, value in accuracies.items() if f"{name}:{key}" not in without}
        return write(f"{name}.json", like=f"{like}.json", evaluations=judged(**kept), **changes)

    control = {"method": "soft-labels", "kind": "condensation", "id": "0000cafe"}
    return [
        write_without("dm", "dm-s0", {"dsa_soft": 0.7, "dsa": 0.6, "dsa_soft_unaugmented": 0.4}, synthetic=soft),
        write_without(
            "control", "random-s0", {"dsa_soft": 0.5, "dsa": 0.2, "dsa_soft_unaugmented": 0.3}, synthetic=soft,
            run=lambda run: run | control,
            config=lambda _: {"values": {"initial": "real", "chosen": "random"}, "sources": {}},
        ),
        write_without("random", "random-s1", {"dsa_soft": 0.45, "dsa": 0.35}),
        write_without("whole", "whole", {"full": 0.9}),
    ]  # fmt: skip


def scored(paths: list[Path]) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = with_scores(summarise(collect(paths))).to_dict("records")
    return {(row["method"], row["protocol"], row["track"]): row for row in rows}  # type: ignore[misc]


def test_scores_take_their_accuracies_from_the_right_rows(write: Write) -> None:
    rows = scored(records(write))
    dm = rows["dm", "dsa-soft@1", "soft"]
    # Against the control with soft labels (.5), and not against random images with classes (.45).
    assert dm["lrs"] == pytest.approx(label_robust_score(0.7, 0.5, 0.9, 0.6)) == pytest.approx(24.8191, abs=1e-3)
    assert dm["ars"] == pytest.approx(augmentation_robust_score(0.7, 0.5, 0.4, 0.3))
    # With hard labels it is compared with random images, and both differences are of one recipe.
    assert rows["dm", "dsa@1", "hard"]["lrs"] == pytest.approx(label_robust_score(0.6, 0.35, 0.9, 0.6))
    # Random images are no better than themselves.
    assert rows["random", "dsa@1", "hard"]["lrs"] == pytest.approx(label_robust_score(0.35, 0.35, 0.9, 0.35))
    whole = rows["whole", "full@1", "hard"]
    assert math.isnan(whole["lrs"])
    assert "compared with" in whole["lrs_missing"]


@pytest.mark.parametrize(
    ("gone", "score", "said"),
    [
        ("control:dsa_soft", "lrs", "single random images with stored soft labels under dsa-soft@1"),
        ("whole:full", "lrs", "the whole dataset with hard labels, under dsa@1 or full@1"),
        ("dm:dsa", "lrs", "the same sets with hard labels, under dsa@1"),
        ("control:dsa_soft_unaugmented", "ars", "single random images under dsa-soft-unaugmented@1"),
        ("dm:dsa_soft_unaugmented", "ars", "the same sets under dsa-soft-unaugmented@1"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_put_in_its_place(
    write: Write, gone: str, score: str, said: str
) -> None:
    row = scored(records(write, gone))["dm", "dsa-soft@1", "soft"]
    assert math.isnan(row[score])
    assert row[f"{score}_missing"] == f"not judged by convnet-d3: {said}"
    other = "ars" if score == "lrs" else "lrs"
    assert math.isnan(row[other]) == (gone == "control:dsa_soft")


def mosaics(write: Write, name: str, like: str, method: str, **accuracies: float) -> Path:
    """A set that stores four images in one, on which students train four times as often."""
    usual = judged(**accuracies)
    return write(
        f"{name}.json", like=f"{like}.json",
        run=lambda run: run | {"method": method, "id": f"{sum(name.encode()):08x}"},
        evaluations=lambda old: [one | {"student_forwards": 4 * 1001 * 100} for one in usual(old)],
        synthetic=lambda part: part | {"decode": "tiles(factor=2)", "sha256": f"{sum(name.encode()):064x}"},
        config=lambda _: {"values": {"factor": 2}, "sources": {"factor": "--set"}},
    )  # fmt: skip


def test_scores_take_single_random_images_also_of_mosaics_and_say_so(write: Write) -> None:
    """The difference of the board is to those that students train on as often; DD-Ranking knows single ones alone."""
    few = records(write)
    many = [
        mosaics(write, "tiled-random", "random-s0", "random", dsa=0.5, dsa_unaugmented=0.44),
        mosaics(write, "dance", "dm-s0", "dance", dsa=0.8, dsa_unaugmented=0.66),
    ]
    plain = write("plain.json", like="random-s1.json", evaluations=judged(dsa=0.35, dsa_unaugmented=0.22))
    before = scored(few)["dm", "dsa@1", "hard"]["lrs"]
    for paths in ([*few, *many, plain], [plain, *reversed(many), *few]):
        summary = with_scores(summarise(collect(paths)))
        rows = {(row["label"].split(" ")[0], row["protocol"]): row for row in summary.to_dict("records")
                if not (row["method"] == "random" and "factor" in row["label"])}  # fmt: skip
        dance, dm = rows["dance", "dsa@1"], rows["dm", "dsa@1"]
        assert dance["difference_random"] == pytest.approx(0.8 - 0.5)
        assert dance["lrs"] == pytest.approx(label_robust_score(0.8, 0.35, 0.9, 0.8))
        assert dance["ars"] == pytest.approx(augmentation_robust_score(0.8, 0.35, 0.66, 0.22))
        assert dm["lrs"] == pytest.approx(before)
    shown = board(summary, read_published(), "cifar10", 10)
    (table,) = [table for table in shown.tables if "hard labels, protocol dsa@1" in table.title]
    assert any(note.startswith("Scores take single random images") for note in table.notes)
    # Mosaics alone are not taken for single ones.
    alone = scored([path for path in [*few, *many] if path.name != "random.json"])["dance", "dsa@1", "hard"]
    assert math.isnan(alone["lrs"])
    assert "single random images with hard labels under dsa@1" in alone["lrs_missing"]
    assert alone["difference_random"] == pytest.approx(0.8 - 0.5)


def test_the_order_of_rows_changes_no_score(write: Write) -> None:
    summary = summarise(collect(records(write)))
    ours = with_scores(summary)
    turned = with_scores(summary.iloc[::-1])
    pd.testing.assert_frame_equal(ours, turned.iloc[::-1])


def test_boards_have_scores_where_they_are_asked_for(write: Write) -> None:
    summary = summarise(collect(records(write, "whole:full")))
    without, having = (board(frame, read_published(), "cifar10", 10) for frame in (summary, with_scores(summary)))
    assert not any("LRS" in table.headers for table in without.tables)
    assert "lrs" not in csv_of(summary).splitlines()[0].split(",")
    (table,) = [table for table in having.tables if "stored soft labels, protocol dsa-soft@1" in table.title]
    row = next(row for row in table.rows if row[1].startswith("dm"))
    assert row[table.headers.index("LRS")] == "–"
    assert row[table.headers.index("ARS")] == "33.8"
    (why,) = [note for note in table.notes if note.startswith("No LRS")]
    assert why.endswith("not judged by convnet-d3: the whole dataset with hard labels, under dsa@1 or full@1.")
    for text in (having.to_markdown(), having.to_text(), having.to_latex()):
        assert "33.8" in text
    line = next(line for line in having.to_csv().splitlines() if ",dsa-soft@1," in line and ",dm," in line)
    assert line.split(",")[-4:-1] != ["", "", ""]
    found = document(records(write), read_published())
    (shown,) = [r for r in found["rows"] if r["method"] == "dm" and found["tables"][r["table"]]["track"] == "soft"
                and found["tables"][r["table"]]["protocol"] == "dsa-soft@1"]  # fmt: skip
    assert set(shown["scores"]) == {"lrs", "ars"}


def test_the_command_line_and_python_have_scores(write: Write, tmp_path: Path) -> None:
    for path in records(write):
        ipc = json.loads(path.read_text())["run"]["ipc"]
        place = tmp_path / "runs" / "cifar10" / f"ipc{ipc}" / "x" / path.stem / "record.json"
        place.parent.mkdir(parents=True)
        place.write_text(path.read_text())
    runs = tmp_path / "runs"
    asked = ["leaderboard", "--runs", str(runs), "--scores", "--track", "soft", "--method", "dm"]
    text = CliRunner().invoke(program, asked)
    assert text.exit_code == 0, text.output
    assert "24.8" in text.stdout
    rows = json.loads(CliRunner().invoke(program, [*asked, "--json"]).stdout)
    frame = ddbench.leaderboard(runs, track="soft", scores=True)
    dm = frame[(frame["method"] == "dm") & (frame["protocol"] == "dsa-soft@1")].iloc[0]
    # JSON has ten digits of a number.
    assert dm["lrs"] == pytest.approx(next(row["lrs"] for row in rows if row["protocol"] == "dsa-soft@1"), rel=1e-9)
    assert set(frame.loc[frame["ipc"] > 0, "track"]) == {"soft"}
    assert "lrs" not in ddbench.leaderboard(runs)
    with pytest.raises(ConfigError, match="no track 'kd' of labels"):
        ddbench.leaderboard(runs, track="kd")


def test_no_runs_have_no_scores(tmp_path: Path) -> None:
    assert with_scores(summarise(collect([]))).empty
    assert ddbench.leaderboard(tmp_path, scores=True).empty
