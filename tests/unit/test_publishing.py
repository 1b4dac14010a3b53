"""The set of a run becomes a small file beside the records, chosen by a rule that the index states."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ddbench.cli import root as program
from ddbench.errors import DataError, RunError
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.files import read_json, sha256_of, write_json
from ddbench.foreign.published_sets import RULE, SetEntry, SetIndex, read_index, take
from ddbench.leaderboard import publishing, set_files
from ddbench.leaderboard.boards import add, build, check
from ddbench.leaderboard.publishing import publish
from ddbench.leaderboard.set_files import wrong_sets
from ddbench.runs.record import read_record
from ddbench.runs.runner import RunOptions
from ddbench.synthetic import load

LEADERBOARDS = Path(__file__).resolve().parents[2] / "leaderboards"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return tmp_path / "leaderboards"


@pytest.fixture
def run(root: Path, board: Path) -> Path:
    """A finished run with its record on the board; the paper of its method is said to have the run's protocol."""
    (path,) = root.glob("digits/*/*/*/record.json")
    (place,) = add([path.parent], board, allow_dirty=True)
    # Afterwards: of a method of ours `add` knows the protocol of its paper.
    rewrite(place, lambda record: record["run"].update(native="tiny@1"))
    return path.parent


def tiny(folder: Path) -> Protocol:
    """The protocol that the run was judged by."""
    path = folder / "tiny.toml"
    path.write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n')
    return protocol(str(path))


def rewrite(path: Path, change: Change) -> None:
    value = read_json(path)
    change(value)
    write_json(path, value, sealed=True)


def record_of(run: Path, board: Path) -> Path:
    (found,) = board.rglob(f"*-{read_record(run / 'record.json').run.id}.json")
    return found


def sibling(run: Path, board: Path, id: str, *, accuracy: tuple[float, float], seed: int = 0, **config: Any) -> None:
    """The record of another run of the method."""
    here = record_of(run, board)
    value = read_json(here)
    value["run"] |= {"id": id, "seed": seed}
    value["synthetic"]["sha256"] = id * 8
    value["sheet"] = None
    value["config"]["values"] |= config
    value["evaluations"][0]["accuracy"] = accuracy
    write_json(here.with_name(f"dm-{id}.json"), value, sealed=True)


def test_a_set_becomes_a_file_and_an_entry(run: Path, board: Path, tmp_path: Path) -> None:
    entry = publish(run, board)
    record = read_record(run / "record.json")
    file = board / "sets" / "dm-digits-ipc1.safetensors"
    assert (entry.name, entry.file, entry.kept) == ("dm/digits/ipc1", file.name, "float16")
    assert (entry.sha256, entry.bytes) == (sha256_of(file), file.stat().st_size)
    assert (entry.run, entry.set) == (record.run.id, record.synthetic.sha256)
    assert board / entry.record == record_of(run, board)
    assert (entry.seed, entry.protocol, entry.judge) == (0, "tiny@1", "mlp")
    assert entry.accuracy == record.evaluations[0].accuracy
    assert (entry.accuracy_of_file, entry.why, entry.licence) == ((), "", "CC BY 4.0")
    index = read_index(str(board / "sets"), tmp_path)
    assert (index.sets, index.rule) == ((entry,), RULE)
    before, after = load(run / "synthetic.safetensors"), load(take(entry.name, str(board / "sets"), tmp_path))
    assert torch.equal(after.images, before.images.half().float())
    assert entry.rounding == pytest.approx(float((after.images - before.images).abs().max()))
    assert 0 < entry.rounding < 0.01
    assert torch.equal(after.labels, before.labels)
    build(board)
    assert check(board) == []
    # The same again is the same file.
    assert publish(run, board) == entry


def test_fewer_bytes_are_a_matter_of_choice(run: Path, board: Path) -> None:
    sizes = {kept: publish(run, board, kept=kept) for kept in ("float32", "float16", "uint8")}  # type: ignore[arg-type]
    assert [entry.kept for entry in sizes.values()] == ["float32", "float16", "uint8"]
    assert sizes["float32"].rounding == 0 < sizes["float16"].rounding < sizes["uint8"].rounding
    assert sizes["float32"].bytes - sizes["float16"].bytes == pytest.approx(640 * 2, abs=100)


def test_students_are_trained_again_on_the_file(run: Path, board: Path, tmp_path: Path) -> None:
    options = RunOptions(root=tmp_path / "none", data_root=tmp_path, device=torch.device("cpu"))
    entry = publish(run, board, protocol=tiny(tmp_path), kept="float32", judging=options)
    # Without rounding, the same students on the same images.
    assert entry.accuracy_of_file == entry.accuracy
    assert not (tmp_path / "none").exists()


def test_a_set_that_others_publish_meanwhile_stays(
    run: Path, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = publish(run, board)
    judge = publishing._judged_again

    def meanwhile(*values: Any) -> tuple[float, ...]:
        index = read_index(str(board / "sets"), tmp_path)
        other = entry.model_copy(update={"name": "dc/digits/ipc1", "file": "dc.safetensors"})
        write_json(board / "sets" / "index.json", index.with_entry(other).to_json(), sealed=True)
        return judge(*values)

    monkeypatch.setattr(publishing, "_judged_again", meanwhile)
    options = RunOptions(root=tmp_path / "none", data_root=tmp_path, device=torch.device("cpu"))
    publish(run, board, protocol=tiny(tmp_path), judging=options)
    names = [one.name for one in read_index(str(board / "sets"), tmp_path).sets]
    assert names == ["dc/digits/ipc1", "dm/digits/ipc1"]


def test_a_leaderboard_that_cannot_be_written_is_told_before_students_are_trained(
    run: Path, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: Callable[[Path], None]
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(publishing, "_judged_again", lambda *values: trained.append(values))
    options = RunOptions(root=tmp_path / "none", data_root=tmp_path, device=torch.device("cpu"))
    read_only(board)
    with pytest.raises(RunError, match=r"nothing can be written in .*leaderboards: .*could not be published there"):
        publish(run, board, protocol=tiny(tmp_path), judging=options)
    assert not trained


def test_two_names_do_not_share_a_file(run: Path, board: Path, tmp_path: Path) -> None:
    entry = publish(run, board)
    other = entry.model_copy(update={"name": "dm-digits/1/ipc1"})  # in the same file, by its name
    write_json(board / "sets" / "index.json", SetIndex(sets=(other,)).to_json(), sealed=True)
    before = (board / "sets" / "index.json").read_bytes()
    with pytest.raises(RunError, match="which is the file of dm-digits/1/ipc1"):
        publish(run, board)
    assert (board / "sets" / "index.json").read_bytes() == before


def test_what_is_no_index_is_not_written_over(run: Path, board: Path) -> None:
    (board / "sets" / "index.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"there is no .*index\.json"):
        publish(run, board)
    assert [path.name for path in (board / "sets").iterdir()] == ["index.json"]


def test_of_a_method_the_settings_with_the_highest_mean_stand(run: Path, board: Path) -> None:
    sibling(run, board, "000000aa", accuracy=(0.9, 0.99), iterations=7, seed=3)
    sibling(run, board, "000000bb", accuracy=(0.8, 0.89), iterations=7, seed=2)
    with pytest.raises(
        RunError,
        match=r"the set of run 000000bb stands for dm on digits, ipc 1: .* highest mean under tiny@1, 89\.5 %, over 2 "
        r"sets, and 2 is its lowest seed.*--why",
    ):
        publish(run, board)
    assert not (board / "sets").exists()
    assert publish(run, board, why="the only one that was kept").why == "the only one that was kept"


def test_of_those_settings_the_lowest_seed_stands_however_good_another_is(run: Path, board: Path) -> None:
    sibling(run, board, "000000aa", accuracy=(1.0, 1.0), seed=1)
    assert publish(run, board).seed == 0


def test_mosaics_are_another_control_and_stand_for_no_single_images(run: Path, board: Path) -> None:
    def a_control(record: dict[str, Any]) -> None:
        record["run"].update(kind="coreset")

    for path in (run / "record.json", record_of(run, board)):
        rewrite(path, a_control)
    sibling(run, board, "000000aa", accuracy=(1.0, 1.0), factor=2)
    rewrite(
        record_of(run, board).with_name("dm-000000aa.json"),
        lambda record: record["synthetic"].update(decode="tiles(factor=2)"),
    )
    assert publish(run, board).seed == 0
    rewrite(record_of(run, board), lambda record: record["synthetic"].update(decode="tiles(factor=2)"))
    with pytest.raises(RunError, match=r"mosaics of real images, which are another control.*--why"):
        publish(run, board)
    assert publish(run, board, why="a mosaic").why == "a mosaic"


def test_sets_of_others_and_of_other_budgets_are_no_rivals(run: Path, board: Path) -> None:
    sibling(run, board, "000000aa", accuracy=(1.0, 1.0), iterations=7)
    path = record_of(run, board).with_name("dm-000000aa.json")
    rewrite(path, lambda record: record["run"].update(method="dsa"))
    assert publish(run, board).seed == 0


def test_another_protocol_needs_a_reason(run: Path, board: Path, tmp_path: Path) -> None:
    for path in (run / "record.json", record_of(run, board)):
        rewrite(path, lambda record: record["run"].update(native="dsa@1"))
    with pytest.raises(RunError, match=r"has no accuracy under dsa@1, the protocol of its method.*ddbench evaluate"):
        publish(run, board)
    with pytest.raises(RunError, match=r"the rule of the index is about dsa@1.*--why"):
        publish(run, board, protocol=tiny(tmp_path))
    with pytest.raises(RunError, match="the rule of the index is about"):
        publish(run, board, protocol=tiny(tmp_path), why=" \n")  # which is none
    with pytest.raises(DataError, match="cannot be published: why: it should be text without control characters"):
        publish(run, board, protocol=tiny(tmp_path), why="to \x1b[31mtry it")
    assert not (board / "sets").exists()
    assert publish(run, board, protocol=tiny(tmp_path), why="to try it").protocol == "tiny@1"


def test_a_set_without_a_record_on_the_board_is_refused(root: Path, board: Path) -> None:
    (path,) = root.glob("digits/*/*/*/record.json")
    with pytest.raises(RunError, match=r"has no record in .*ddbench leaderboard add"):
        publish(path.parent, board)
    with pytest.raises(RunError, match="is not the folder of a run"):
        publish(path, board)


def test_a_set_of_another_record_is_refused(run: Path, board: Path) -> None:
    rewrite(record_of(run, board), lambda record: record["synthetic"].update(sha256="0" * 64))
    with pytest.raises(RunError, match="is the record of another set"):
        publish(run, board)


def test_a_set_that_was_replaced_is_refused(run: Path, board: Path) -> None:
    (run / "synthetic.safetensors").write_bytes(b"something else")
    with pytest.raises(RunError, match="is not the set of this run"):
        publish(run, board)


def test_all_sets_together_have_a_limit(run: Path, board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MOST_BYTES", 1000)
    with pytest.raises(RunError, match=r"would take 2\.\d kB; 1\.0 kB is the most.*--kept uint8"):
        publish(run, board)
    assert not (board / "sets").exists()
    monkeypatch.undo()
    publish(run, board)
    monkeypatch.setattr(set_files, "MOST_BYTES", 1000)
    assert wrong_sets(board) == [f"the published sets take {2.1} kB, and 1.0 kB is the most"]


def test_check_finds_files_that_are_not_what_the_index_says(run: Path, board: Path) -> None:
    entry = publish(run, board)
    file = board / "sets" / entry.file
    file.write_bytes(b"x" * entry.bytes)
    (board / "sets" / "stray.safetensors").write_bytes(b"x")
    assert wrong_sets(board) == [
        "sets/dm-digits-ipc1.safetensors is not the file that the index names",
        "sets/stray.safetensors is in no index",
    ]
    file.unlink()
    record_of(run, board).unlink()
    assert wrong_sets(board)[:2] == [
        "sets/dm-digits-ipc1.safetensors is missing",
        f"dm/digits/ipc1 is of no record: {entry.record} is not there, or of another set",
    ]
    (board / "sets" / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json"):
        wrong_sets(board)


def test_faults_that_a_build_cannot_mend_are_not_said_to_be_mended_by_it(run: Path, board: Path) -> None:
    def checked() -> tuple[int, list[str], str]:
        asked = ["leaderboard", "build", "--check", "--leaderboards", str(board)]
        done = CliRunner().invoke(program, asked)
        return done.exit_code, done.stdout.splitlines(), done.stderr

    entry = publish(run, board)
    build(board)
    assert checked() == (0, [], "")
    (board / "sets" / entry.file).unlink()
    wrong = ["sets/dm-digits-ipc1.safetensors is missing"]
    code, shown, noted = checked()
    assert (code, shown) == (1, wrong)
    assert "1 fault is of records, pictures, published sets or checks" in noted
    assert "again." not in noted.partition("Take those")[0]
    build(board)
    assert checked()[1] == wrong
    (board / "README.md").unlink()
    code, shown, noted = checked()
    assert (code, shown) == (1, [*wrong, "README.md is missing"])
    assert f"1 file is not what the records give. `ddbench leaderboard build --leaderboards {board}` makes it" in noted
    assert noted.count("Error:") == 2


def test_the_committed_sets_are_small_and_what_the_index_says() -> None:
    assert wrong_sets(LEADERBOARDS) == []
    assert set_files.MOST_BYTES == 25_000_000
    assert read_index(str(LEADERBOARDS / "sets"), Path()).rule == RULE


def test_the_command_publishes_and_says_what_came_of_it(run: Path, board: Path) -> None:
    def ask(*arguments: str) -> Any:
        return CliRunner().invoke(program, ["sets", "add", str(run), "--leaderboards", str(board), *arguments])

    shown = ask()
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("dm/digits/ipc1: dm-digits-ipc1.safetensors, 2.1 kB, of run ")
    assert " % under tiny@1 with mlp\n" in shown.stdout
    document = json.loads(ask("--json", "--kept", "uint8", "--why", "smaller").stdout)
    assert SetEntry.model_validate(document).kept == "uint8"
    refused = ask("--protocol", "dsa")
    assert (refused.exit_code, refused.stderr.startswith("Error: ")) == (1, True)
