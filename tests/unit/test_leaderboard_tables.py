import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.published import COLUMNS
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import Board, Table, board
from ddbench.text import size

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"
NUMBERS = pd.DataFrame(
    [
        ("dm", "cifar10", 10, "dsa", "convnet-d3", "convnet-d3", "48.9", "0.6", "V", "Paper D", ""),
        ("dm", "cifar10", 10, "other", "convnet-d3", "convnet-d3", "47.64", "", "V", "Paper E", ""),
        ("dm", "cifar10", 1, "dsa", "convnet-d3", "convnet-d3", "26.0", "0.8", "V", "Paper F", ""),
        ("mtt", "cifar10", 10, "mtt", "convnet-d3", "convnet-d3", "65.3", "0.7", "V", "Paper M", "ZCA"),
        ("random", "cifar10", 10, "dc", "", "convnet-d3", "99.9", "0.1", "M", "Memory", ""),
    ],
    columns=list(COLUMNS),
)


def boards(*names: str, ipc: int = 10) -> Board:
    frame = collect([RECORDS / f"{name}.json" for name in names])
    return board(summarise(frame), NUMBERS, "cifar10", ipc)


def cell(table: Table, method: str, header: str) -> str:
    lines = [line for line in (*table.rows, *table.ceiling) if line[1] == method]
    assert len(lines) == 1
    return lines[0][table.headers.index(header)]


def test_one_table_is_one_protocol_on_one_copy_of_the_data() -> None:
    tables = boards("dm-s0", "dm-original-s0", "random-quick-s0").tables
    assert [table.title for table in tables] == [
        "CIFAR-10, ipc 10, hard labels, protocol dsa@1",
        "CIFAR-10, JPEG copy, ipc 10, hard labels, protocol dsa@1",
        "CIFAR-10, JPEG copy, ipc 10, hard labels, protocol quick@1",
    ]
    assert [len(table.rows) for table in tables] == [1, 1, 1]
    assert tables[1].data == "Data b2:90ab5d3c11f02e77: 50000 training and 10000 test images."


def test_two_recipes_of_one_name_are_two_tables_that_say_so(tmp_path: Path) -> None:
    value = json.loads((RECORDS / "dm-s1.json").read_text())
    value["evaluations"][0]["digest"] = "beefbeefbeefbeef"
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value))
    summary = summarise(collect([RECORDS / "dm-s0.json", path]))
    titles = {table.title for table in board(summary, NUMBERS, "cifar10", 10).tables}
    assert {title.rpartition(" ")[2] for title in titles} == {"(d5a1d5a1)", "(beefbeef)"}


def test_a_cell_has_mean_spread_marks_and_interval() -> None:
    table = boards("dm-s0", "dm-s1", "mtt-zca-s0").tables[0]
    assert re.fullmatch(r"49\.1 ± 0\.3 \[\d\d\.\d, \d\d\.\d\]", cell(table, "dm", "convnet-d3"))
    assert cell(table, "mtt (tf32)", "convnet-d3").startswith("63.1 ± 0.2*† [")
    assert any(note.startswith("* the set lives in a ZCA") for note in table.notes)
    assert any(note.startswith("† provisional") for note in table.notes)


def test_an_empty_cell_says_why() -> None:
    table = boards("dm-s0", "random-s0", "mtt-zca-s0", "idea-failed-s0").tables[0]
    assert cell(table, "random§", "resnet18") == "not run"
    assert cell(table, "mtt (tf32)", "resnet18") == "not defined"
    assert cell(table, "idea@1a2b3c4d", "convnet-d3").startswith("failed: dsa@1/convnet-d3/3: the student's outputs")
    assert "mtt (tf32), resnet18: not defined: resnet18 has no ZCA recipe" in table.notes


def test_the_whole_dataset_is_the_last_line_under_its_own_protocol() -> None:
    table = boards("dm-s0", "whole").tables[0]
    assert [line[1] for line in table.rows] == ["dm"]
    assert [line[1] for line in table.ceiling] == ["whole, full@1"]
    assert cell(table, "whole, full@1", "convnet-d3").startswith("84.2 ± 0.1 [")
    assert cell(table, "whole, full@1", "− random") == "–"


def test_the_ceiling_belongs_to_the_same_data_and_judges() -> None:
    assert [len(table.ceiling) for table in boards("dm-original-s0", "dm-s0", "random-quick-s0", "whole").tables] == [
        0, 1, 0,
    ]  # fmt: skip


def test_a_ceiling_judged_under_the_same_protocol_is_preferred(tmp_path: Path) -> None:
    value: dict[str, Any] = json.loads((RECORDS / "whole.json").read_text())
    quick = json.loads((RECORDS / "random-quick-s0.json").read_text())["evaluations"]
    value["evaluations"] += quick
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value))
    summary = summarise(collect([RECORDS / "random-quick-s0.json", path]))
    ceiling = board(summary, NUMBERS, "cifar10", 10).tables[0].ceiling
    assert [line[1] for line in ceiling] == ["whole, quick@1"]


def test_published_numbers_stand_beside_as_printed_with_their_source() -> None:
    table = boards("dm-s0", "mtt-zca-s0", "random-s0").tables[0]
    sources = [note for note in table.notes if note.startswith("[")]
    assert cell(table, "mtt (tf32)", "published") == "65.3 ± 0.7* (mtt) [1]"
    assert cell(table, "dm", "published") == "48.9 ± 0.6 (dsa) [2]"
    assert sources == ["[1] Paper M", "[2] Paper D"]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("other@1", "47.64 (other) [1]"),
        ("own@1", "50.0 (native-own) [1]"),
        # Nobody published one: then the first, with the recipe that it is from.
        ("dc@1", "48.9 ± 0.6 (dsa) [1]"),
        # A kernel that predicts is no network, and the other way round.
        ("krr@1", "70.0 (krr-fc1) [1]"),
    ],
)
def test_published_numbers_of_the_same_recipe_come_alone(tmp_path: Path, protocol: str, expected: str) -> None:
    value = json.loads((RECORDS / "dm-s0.json").read_text())
    value["evaluations"] = [value["evaluations"][0] | {"protocol": protocol}]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value))
    own = ("dm", "cifar10", 10, "native-own", "convnet-d3", "convnet-d3", "50.0", "", "V", "Paper O", "")
    kernel = ("dm", "cifar10", 10, "krr-fc1", "fc1 kernel", "fc1 kernel", "70.0", "", "V", "Paper K", "")
    numbers = pd.concat(
        [pd.DataFrame([kernel], columns=list(COLUMNS)), NUMBERS, pd.DataFrame([own], columns=list(COLUMNS))]
    )
    table = board(summarise(collect([path])), numbers, "cifar10", 10).tables[0]
    assert cell(table, "dm", "published") == expected


def test_numbers_from_memory_are_never_printed() -> None:
    made = boards("random-s0")
    assert cell(made.tables[0], "random§", "published") == "–"
    assert all("99.9" not in text for text in (made.to_markdown(), made.to_text(), made.to_csv(), made.to_latex()))


def test_published_numbers_of_the_ipc_are_listed_once_at_the_end_of_the_page() -> None:
    text = boards("dm-s0").to_markdown()
    assert text.count("47.64") == 1
    assert "26.0 ± 0.8" not in text


def test_best_comes_first_and_what_failed_last() -> None:
    table = boards("random-s0", "idea-failed-s0", "dm-s0", "mtt-zca-s0", "herding-s0").tables[0]
    assert [line[:2] for line in table.rows] == [
        ("1", "mtt (tf32)"), ("2", "dm"), ("3", "herding§"), ("4", "random§"), ("", "idea@1a2b3c4d"),
    ]  # fmt: skip


def test_a_preset_that_all_share_is_said_once() -> None:
    table = boards("random-quick-s0").tables[0]
    assert table.rows[0][1] == "random§"
    assert "All settings are those of the preset quick, not of the papers." in table.notes


def test_markdown_keeps_stars_and_bars_of_texts_out_of_its_syntax() -> None:
    text = boards("mtt-zca-s0", "dm-s0").to_markdown()
    assert "63.1 ± 0.2\\*†" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:4]}) == 1


def test_csv_has_a_line_per_method_and_judge_in_percent() -> None:
    import io

    frame = pd.read_csv(io.StringIO(boards("dm-s0", "dm-s1").to_csv()), dtype=str, keep_default_na=False)
    assert frame["judge"].tolist() == ["convnet-d3", "resnet18"]
    assert frame["mean"].tolist() == ["49.05", "40.87"]
    assert frame["students_max"].tolist() == ["5", "2"]


def test_latex_spells_signs_that_fonts_lack() -> None:
    text = boards("dm-s0", "random-s0").to_latex()
    assert "$\\pm$" in text
    assert not set("±×†−–") & set(text)


def test_latex_has_a_rule_before_the_whole_dataset() -> None:
    lines = boards("dm-s0", "random-s0", "whole").to_latex().splitlines()
    rules = [place for place, line in enumerate(lines) if line == "\\midrule"]
    assert [lines[place + 1].split("&")[1].split(",")[0].strip() for place in rules] == ["dm", "whole"]
    assert not any("-----" in line for line in lines)


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1_228_880, "1.2 MB"), (614_800_000, "614.8 MB")])
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text
