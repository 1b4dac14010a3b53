"""A part of a board, and boards beside whose records one is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from click.testing import CliRunner, Result

from ddbench.backbones.names import canonical
from ddbench.cli import root as program
from ddbench.errors import RunError
from ddbench.files import sha256_of
from ddbench.leaderboard.boards import add, build, check, local_board, local_summary
from ddbench.leaderboard.chosen import Chosen
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.references import Shelf
from ddbench.leaderboard.statistics import summarise

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the golden records, as far as they are of different runs."""
    place = tmp_path_factory.mktemp("runs")
    for file in sorted(RECORDS.glob("*.json")):
        record = json.loads(file.read_text())
        folder = place / record["run"]["dataset"] / f"ipc{record['run']['ipc']}" / record["run"]["method"] / file.stem
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(file.read_text())
    return place


def ddbench(*arguments: object) -> Result:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


@pytest.fixture
def of_a_file(tmp_path: Path) -> Path:
    """A runs folder with two runs of idea.py, one of them of another content, and idea.py with tiny.toml beside it."""
    (tmp_path / "idea.py").write_text("# as it is now\n")
    (tmp_path / "tiny.toml").write_text('name = "tiny"\n')
    contents = {"0a1b2c3d": sha256_of(tmp_path / "idea.py"), "4e5f6a7b": "c" * 64}
    for run, sha256 in contents.items():
        record = json.loads((RECORDS / "dm-s0.json").read_text())
        record["run"] |= {"id": run, "method": "idea", "provided_by": "idea.py", "method_sha256": sha256}
        folder = tmp_path / "runs" / record["run"]["dataset"] / "ipc1" / "idea" / run
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
    return tmp_path


def test_the_method_of_a_file_is_found_by_name_by_row_and_by_file(of_a_file: Path) -> None:
    whole = summarise(collect(sorted((of_a_file / "runs").rglob("record.json"))))
    now = sha256_of(of_a_file / "idea.py")
    found = {
        said: set(Chosen(methods=(said,)).of(whole)["method_sha256"])
        for said in ("idea", f"idea@{now[:8]}", f"{of_a_file}/idea.py", f"{of_a_file}/idea.py:Idea", "gone.py")
    }
    assert list(found.values()) == [{now, "c" * 64}, {now}, {now}, {now}, set()]


def test_a_result_is_named_by_the_file_of_its_method(of_a_file: Path) -> None:
    shelf = Shelf(of_a_file / "runs", of_a_file)
    (found,) = shelf.find(f"{of_a_file}/idea.py:Idea")
    assert found.parent.name == "0a1b2c3d"
    (of_a_file / "idea.py").write_text("# changed\n")
    with pytest.raises(RunError, match=r"of .*idea\.py as it is now\. Of it as it was there are: .*idea@cccccccc"):
        shelf.find(f"{of_a_file}/idea.py")
    with pytest.raises(RunError, match=r"Make one: ddbench run --method other\.py"):
        shelf.find("other.py")


def test_a_protocol_and_a_judge_are_named_by_their_files(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text("def small(shape, classes):\n    return None\n")
    (tmp_path / "look.toml").write_text('name = "quick-look"\n')
    label = canonical(str(file))
    frame = pandas.DataFrame(
        {"dataset": "toy", "ipc": 1, "track": "hard", "method": "dm", "method_sha256": "",
         "judge": [label, "mlp", label], "protocol": ["quick-look@1", "quick-look@1", "dsa@1"]}
    )  # fmt: skip
    chosen = Chosen(judges=(f"{file}:small",), protocols=(str(tmp_path / "look.toml"),))
    assert list(chosen.of(frame).index) == [0]


@pytest.mark.parametrize(
    ("chosen", "column", "values"),
    [
        (Chosen(methods=("DM",)), "method", {"dm"}),
        (Chosen(methods=("dm", "random")), "method", {"dm", "random"}),
        (Chosen(datasets=("CIFAR-10",)), "dataset", {"cifar10"}),
        (Chosen(judges=("convnet",), methods=("dm",)), "judge", {"convnet-d3"}),
        (Chosen(judges=("resnet18",)), "judge", {"resnet18"}),
        (Chosen(protocols=("Quick",), methods=("random",)), "protocol", {"quick@1"}),
        (Chosen(protocols=("dsa@1",), methods=("dm",)), "protocol", {"dsa@1"}),
        (Chosen(ipcs=(0,)), "ipc", {0}),
    ],
)
def test_rows_are_chosen_by_what_they_are(runs: Path, chosen: Chosen, column: str, values: set[object]) -> None:
    rows = local_summary(runs, chosen)
    assert len(rows)
    assert set(rows[column]) == values


def test_rows_are_chosen_by_the_names_that_tables_print(tmp_path: Path) -> None:
    """As the README and the page name them, and by the label of a board."""
    told = {"cafe": {"dsa": True}, "random": {"factor": 2}, "herding": {}}
    for number, (method, options) in enumerate(told.items()):
        record = json.loads((RECORDS / "random-s0.json").read_text())
        record["run"] |= {
            "id": f"{number}" * 8,
            "method": method,
            "kind": "condensation" if method == "cafe" else "coreset",
        }
        record["config"] = {"values": options, "sources": dict.fromkeys(options, "command"), "published": False}
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
    whole = summarise(collect(sorted(tmp_path.glob("*.json"))))
    found = {
        said: set(Chosen(methods=(said,)).of(whole)["method"])
        for said in ("CAFE+DSA", "random mosaics", "random [factor=2]§", "cafe+other")
    }
    assert list(found.values()) == [{"cafe"}, {"random"}, {"random"}, set()]
    assert "--method cafe, cafe+dsa, herding, random, random mosaics;" in Chosen().says_what_there_is(whole)


@pytest.mark.parametrize("form", ["text", "md", "latex"])
def test_a_control_that_was_not_chosen_is_not_missing(runs: Path, form: str) -> None:
    def missing(chosen: Chosen) -> list[str]:
        lines = local_board(runs, chosen, form=form).splitlines()
        return [line for line in lines if "Missing control" in line]

    # Of two tables with a ConvNet as judge, one has both controls and one has none.
    part = missing(Chosen(methods=("dm",), protocols=("dsa",), judges=("convnet-d3",)))
    assert len(part) == 1
    assert part == missing(Chosen(protocols=("dsa",), judges=("convnet-d3",)))


def test_a_page_of_some_rows_names_the_controls_that_the_whole_table_lacks(runs: Path) -> None:
    def controls(chosen: Chosen) -> dict[str, dict[str, list[str]]]:
        page = local_board(runs, chosen, form="html")
        found = json.loads(page.partition('id="document">')[2].partition("</script>")[0])
        return {table["fingerprint"]: table["controls"] for table in found["tables"] if table["protocol"] == "dsa@1"}

    part = controls(Chosen(methods=("dm",)))
    assert sorted(len(said["convnet-d3"]) for said in part.values()) == [0, 1]
    assert part == controls(Chosen())


def test_a_chosen_row_says_what_it_says_on_the_whole_board(runs: Path) -> None:
    whole = local_summary(runs)
    rows = local_summary(runs, Chosen(methods=("dm",)))
    assert rows.equals(whole[whole["method"] == "dm"])
    assert rows["difference_random"].notna().any()
    assert local_summary(runs, Chosen()).equals(whole)


def test_the_line_of_the_whole_dataset_stays_below_the_boards_that_are_chosen(runs: Path) -> None:
    assert set(local_summary(runs, Chosen(ipcs=(10,), protocols=("dsa",)))["ipc"]) == {0, 10}
    assert local_summary(runs, Chosen(ipcs=(999,))).empty


def test_a_part_of_a_name_is_no_name() -> None:
    frame = summarise(collect(sorted(RECORDS.glob("*.json"))))
    assert Chosen(judges=("conv",)).of(frame).empty
    assert Chosen(judges=("resnet1",)).of(frame).empty
    assert Chosen(protocols=("ds",)).of(frame).empty


def test_the_command_line_chooses(runs: Path) -> None:
    shown = ddbench(
        "leaderboard", "--runs", runs, "--dataset", "Cifar-10", "--ipc", 10, "--method", "DM", "--judge", "convnet"
    )
    assert shown.exit_code == 0, shown.output
    assert {line.split()[1] for line in shown.stdout.splitlines() if line[:1].isdigit()} == {"dm"}
    rows = json.loads(ddbench("leaderboard", "--runs", runs, "--method", "random", "--json").stdout)
    assert {row["method"] for row in rows} == {"random"}
    nothing = ddbench("leaderboard", "--runs", runs, "--dataset", "mnist")
    assert nothing.exit_code == 0
    assert nothing.stdout.startswith("No row of the board fits. There are --dataset cifar10")


def test_one_damaged_record_is_named_and_stops_no_local_board(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c" / "d" / "record.json").write_text('{"schema": ')
    (tmp_path / "cifar10").symlink_to(runs / "cifar10")
    lost: list[str] = []
    assert local_board(tmp_path, lost=lost) == local_board(runs)
    assert len(lost) == 1
    assert "a/b/c/d/record.json" in lost[0]
    shown = ddbench("leaderboard", "--runs", tmp_path)
    assert shown.exit_code == 0
    assert f"Left out: {tmp_path}/a/b/c/d/record.json" in shown.stderr


def test_one_damaged_record_is_named_and_stops_no_committed_board(write: Callable[..., Path], tmp_path: Path) -> None:
    place = tmp_path / "leaderboards"
    add([RECORDS / "dm-s0.json"], place)
    before = build(place)
    damaged = add([write("x.json", like="random-s0.json")], place)[0]
    damaged.write_text(damaged.read_text()[:-50])
    assert ddbench("leaderboard", "build", "--check", "--leaderboards", place).exit_code == 1
    built = ddbench("leaderboard", "build", "--leaderboards", place)
    assert built.exit_code == 0, built.output
    assert f"Left out: {damaged}" in built.stderr
    lost: list[str] = []
    assert build(place, lost) == before
    assert check(place, lost) == []
    assert str(damaged) in lost[0]
    assert lost == lost[:1] * 2
    checked = ddbench("leaderboard", "build", "--check", "--leaderboards", place)
    assert checked.exit_code == 1
    assert f"Left out: {damaged}" in checked.stderr
    damaged.unlink()
    assert ddbench("leaderboard", "build", "--check", "--leaderboards", place).exit_code == 0
