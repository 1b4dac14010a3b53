"""Whether a word is a path or the name of a published set: one rule, and every command keeps it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ddbench
from ddbench.cli import root as program
from ddbench.errors import DataError
from ddbench.evaluation.protocol import protocol
from ddbench.foreign import meant as rule
from ddbench.foreign import published_sets
from ddbench.foreign.meant import as_word, holds_set, is_run, meant
from ddbench.foreign.published_sets import SETS
from ddbench.leaderboard import boards
from ddbench.leaderboard.publishing import publish

NAME = "dm/digits/ipc1"


@pytest.fixture
def run(root: Path) -> Path:
    (folder,) = root.glob("digits/ipc1/dm/*")
    return folder


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with leaderboards in which the run's set is published."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n')
    boards.add([run], tmp_path / "leaderboards", allow_dirty=True)
    publish(run, tmp_path / "leaderboards", protocol=protocol(str(recipe)), why="a test")
    monkeypatch.delenv(SETS, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing(path: Path, run: Path) -> None:
    assert not path.exists()


def empty_folder(path: Path, run: Path) -> None:
    path.mkdir(parents=True)


def other_folder(path: Path, run: Path) -> None:
    path.mkdir(parents=True)
    (path / "notes.md").write_text("Nothing to see.")


def finished_run(path: Path, run: Path) -> None:
    shutil.copytree(run, path)


def unfinished_run(path: Path, run: Path) -> None:
    path.mkdir(parents=True)
    shutil.copy(run / "spec.json", path)


def file_of_a_set(path: Path, run: Path) -> None:
    path.parent.mkdir(parents=True)
    shutil.copy(run / "synthetic.safetensors", path)


def folder_of_a_set(path: Path, run: Path) -> None:
    path.mkdir(parents=True)
    shutil.copy(run / "synthetic.safetensors", path)


Make = Callable[[Path, Path], None]


@pytest.mark.parametrize(
    ("make", "for_runs", "for_sets"),
    [
        (nothing, "name", "name"), (empty_folder, "name", "name"), (other_folder, "name", "name"),
        (finished_run, "path", "path"), (unfinished_run, "path", "path"),
        (file_of_a_set, "name", "path"), (folder_of_a_set, "name", "path"),
    ],
)  # fmt: skip
def test_what_is_there_wins_where_the_command_takes_it(
    here: Path, run: Path, make: Make, for_runs: str, for_sets: str
) -> None:
    make(Path(NAME), run)
    for takes, what, wins in ((is_run, "run", for_runs), (holds_set, "run or set", for_sets)):
        said: list[str] = []
        found = meant(NAME, here, said.append, takes=takes, what=what)
        assert ("path" if found.entry is None else "name") == wins
        assert found.file(here).exists()
        # Never silently, where both are there.
        if make is nothing:
            assert said == []
        elif wins == "name":
            assert said == [
                f"{NAME} is the published set of that name. What is at that path is no {what}; say ./{NAME} to mean it."
            ]
        else:
            assert said == [
                f"{NAME} is the {what} of that path here. A published set is called so too: `ddbench sets get {NAME}` "
                "says where its file is."
            ]


def test_a_path_that_is_written_as_one_is_one(here: Path) -> None:
    for ref in (Path(NAME), f"./{NAME}", str(here / NAME), as_word(Path(NAME))):
        assert meant(ref, here, pytest.fail).path == Path(ref)
    assert as_word(Path("set.pt")) == "set.pt"
    Path(NAME).mkdir(parents=True)
    assert meant(f"{NAME}/", here, pytest.fail).path == Path(NAME)


@pytest.mark.parametrize(
    ("ref", "make", "said"),
    [
        ("dm/digits/ipc7", nothing, r"there is no run or set at dm/digits/ipc7, and no published set is called so"),
        ("dm/digits/ipc7", empty_folder, r"what is at dm/digits/ipc7 is no run or set, and no published set is called"),
        ("dm/digit/ip1", nothing, r"there is no run or set at dm/digit/ip1, and no published set is called so"),
    ],
)
def test_a_word_that_is_neither_is_told_of_both(here: Path, run: Path, ref: str, make: Make, said: str) -> None:
    make(Path(ref), run)
    with pytest.raises(DataError, match=f"{said}.*Did you mean 'dm/digits/ipc1'") as caught:
        meant(ref, here, pytest.fail)
    assert caught.value.exit_code == 2


def test_other_words_are_paths_and_need_no_published_sets(here: Path) -> None:
    shutil.rmtree(here / "leaderboards")
    for ref in ("set.pt", "elsewhere/set.pt", "../dm/digits/ipc1"):
        assert meant(ref, here, pytest.fail, place=lambda: str(here / "none")).path == Path(ref)


def test_a_remark_asks_no_network(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(Path(NAME), run)
    monkeypatch.setattr(rule, "read_index", lambda *_: pytest.fail("asked"))
    assert meant(NAME, here, pytest.fail, place=lambda: "https://example.org/sets").path == Path(NAME)


def test_python_and_commands_that_read_sets_keep_it(here: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty_folder(Path(NAME), run)
    remark = f"{NAME} is the published set of that name. What is at that path is no run or set"
    assert ddbench.load(NAME, data=here).about["method"] == "dm"
    assert remark in caplog.text
    with pytest.raises(DataError, match="Nor is it a set"):
        ddbench.load(Path(NAME), data=here)
    own = ["--protocol", "tiny.toml", "--judge", "mlp", "--students", "1", "--runs", "judged", "--device", "cpu"]
    for words in (
        ["inspect", NAME], ["export", NAME, "--out", "out.safetensors"], ["evaluate", NAME, *own, "--quiet"],
        ["evaluate", NAME, "--grid", "batch=4", *own, "--quiet"],
    ):  # fmt: skip
        done = command(*words, "--data", here)
        assert (done.exit_code, f"Note: {remark}" in done.stderr) == (0, True), (words, done.output)


def test_the_commands_that_read_records_keep_it(here: Path, run: Path) -> None:
    empty_folder(Path(NAME), run)
    remark = f"Note: {NAME} is the published set of that name. What is at that path is no run"
    for words in (
        ["leaderboard", "verify", NAME, "--protocol", "tiny.toml", "--device", "cpu", "--data", here],
        ["measure", "recognised", NAME, "--judge", "mlp", "--device", "cpu", "--data", here, "--runs", "other"],
        ["reproduce", NAME, "--dry-run", "--protocol", "tiny.toml", "--device", "cpu", "--data", here],
    ):
        done = command(*words)
        assert (done.exit_code, remark in done.stderr) == (0, True), (words, done.output)
    # The record of a published set is that of its run: nothing is left to compare, and so it was found.
    done = command("compare", NAME, run)
    assert remark in done.stderr
    assert "no result" not in done.output
    assert "called so" not in done.output


def command(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


def test_the_index_is_read_once_for_a_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = published_sets.read_index

    def counted(place: str, data_root: Path) -> published_sets.SetIndex:
        read.append(place)
        return real(place, data_root)

    for module in (published_sets, rule):
        monkeypatch.setattr(module, "read_index", counted)
    assert meant(NAME, here, pytest.fail).file(here).is_file()
    assert len(read) == 1  # of an address each would be a request
