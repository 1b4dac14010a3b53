"""Students trained a second time: the same on the same machine, and what happens to a record that says otherwise."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from ddbench import synthetic as sets
from ddbench.cli import root as program
from ddbench.errors import RunError
from ddbench.evaluation.protocol import protocol
from ddbench.files import sha256_of, write_json
from ddbench.leaderboard import boards, claims, verification
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.publishing import publish
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import board
from ddbench.runs import retraining
from ddbench.runs.agreement import tolerance
from ddbench.runs.record import read_record
from ddbench.runs.retraining import Retrained, of_run, retrain
from ddbench.runs.rundir import RunDir
from ddbench.runs.runner import RunOptions
from ddbench.runs.signals import Interrupted


@pytest.fixture
def finished(root: Path) -> Path:
    (folder,) = root.glob("digits/ipc1/dm/*")
    return folder


@pytest.fixture
def leaderboards(finished: Path, tmp_path: Path) -> Path:
    boards.add([finished], tmp_path / "boards", allow_dirty=True)
    return tmp_path / "boards"


def options(finished: Path) -> RunOptions:
    return RunOptions(root=RunDir.at(finished).root, data_root=finished, device=torch.device("cpu"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The protocol that the run was judged by, in a file."""
    path = tmp_path / "tiny.toml"
    path.write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nsteps = 2\nbatch = 16\n')
    return path


def call(finished: Path | str, leaderboards: Path, *more: str) -> tuple[int, str, str]:
    where = ["--leaderboards", str(leaderboards), "--data", str(leaderboards), "--device", "cpu"]
    done = CliRunner().invoke(program, ["leaderboard", "verify", str(finished), *where, *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def marked(leaderboards: Path, place: Path) -> set[tuple[str, ...]]:
    """The evaluations of a committed record that are verified."""
    return {key for key, one in verification.standings(leaderboards, [place]).items() if one.verified}


TEST = 359  # test images of the digits


def forge(finished: Path, by: float) -> None:
    """Edit a run so that its record and the evaluation beside it agree, checksums and whole test images and all."""

    def more(accuracy: float) -> float:
        return min(TEST, round((accuracy + by) * TEST)) / TEST

    (evaluation,) = (finished / "evaluations").glob("*/mlp.json")
    for path in (finished / "record.json", evaluation):
        value = json.loads(path.read_text())
        del value["checksum"]
        if path.name == "record.json":
            part = value["evaluations"][0]
            part["accuracy"] = [more(a) for a in part["accuracy"]]
        else:
            for score in value["scores"]:
                score["accuracy"] = more(score["accuracy"])
        write_json(path, value, sealed=True)


def test_students_come_out_equal_here_and_nothing_is_written(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.json")}
    (one,) = retrain(of_run(finished, finished), options(finished), students=None)
    assert one.students == (0, 1)
    assert one.accuracy == read_record(finished / "record.json").evaluations[0].accuracy
    assert (one.equal, one.agrees, one.failed) == (True, True, "")
    assert {path: path.read_bytes() for path in finished.rglob("*.json")} == before


def test_a_checked_row_is_marked_and_counted(finished: Path, leaderboards: Path) -> None:
    table = Path("tables/digits/ipc1.md")
    assert "are claimed: they are what the records" in boards.build(leaderboards)[table]
    assert '"verified":false' in boards.committed_page(leaderboards)
    code, said, noted = call(finished, leaderboards)
    assert code == 0, noted
    assert "tiny@1 with mlp, 1 student: recorded" in said
    assert said.rstrip().endswith("equal.")
    assert f"`ddbench leaderboard build --leaderboards {leaderboards}` marks the row, once all its sets" in noted
    built = boards.build(leaderboards)
    assert "✓ verified: a student of every set" in built[table]
    assert "are claimed" not in built[table]
    assert '"verified":true' in boards.committed_page(leaderboards)
    header, row = built[table.with_suffix(".csv")].splitlines()
    assert header.endswith("trust,verified_sets,verified_students,differs")
    assert row.endswith(",verified,1,1,")
    assert boards.check(leaderboards) == []


def test_numbers_that_were_made_up_with_care_are_found(finished: Path, tmp_path: Path) -> None:
    forge(finished, 0.4)
    boards.add([finished], tmp_path / "boards", allow_dirty=True)
    code, said, noted = call(finished, tmp_path / "boards", "--all")
    assert code == 1
    assert "DIFFERS" in said
    assert "1 of 1 evaluations are not what their records say" in noted
    assert "Not verified: a check of tiny@1 with mlp differs (2 students: recorded" in noted
    assert "says so in the tables" in noted
    (path,) = (tmp_path / "boards" / "verified").rglob("*.json")
    assert [one["students"] for one in json.loads(path.read_text())["checks"]] == [[0, 1]]


STUDENTS, ALLOWED = 5, 0.03


class Checked:
    """A leaderboard with one record of five students, which differ so much that three points are allowed."""

    def __init__(self, leaderboards: Path) -> None:
        self.leaderboards = leaderboards
        (self.place,) = (leaderboards / "records").rglob("*.json")
        reseal(self.place, lambda value: value["evaluations"][0].update(accuracy=[0.4, 0.5, 0.6, 0.5, 0.5]))
        self.record = read_record(self.place)

    def check(self, students: int, by: float) -> verification.Kept:
        """Enter a check by the first students, each of which came out so much above its record."""
        (part,) = self.record.evaluations
        again = tuple(accuracy + by for accuracy in part.accuracy[:students])
        one = Retrained(part, tuple(range(students)), again, tolerance(part.accuracy, students, TEST), "cpu")
        assert one.within == ALLOWED
        kept = verification.keep(self.leaderboards, self.place, self.record, [one])
        assert kept is not None
        return kept

    def after(self, *checks: tuple[int, float]) -> bool:
        """Whether the evaluation is verified after these checks, each so many students and so much above."""
        verification.file_of(self.leaderboards, self.place).unlink(missing_ok=True)
        for students, by in checks:
            self.check(students, by)
        return bool(marked(self.leaderboards, self.place))

    def kept(self) -> list[tuple[int, bool]]:
        """The checks in the file: how many students, and whether they agree."""
        found = json.loads(verification.file_of(self.leaderboards, self.place).read_text())["checks"]
        return [(len(one["students"]), abs(one["again"][0] - one["recorded"][0]) < ALLOWED) for one in found]


@pytest.fixture
def checked(leaderboards: Path) -> Checked:
    return Checked(leaderboards)


AGREES, DIFFERS = 0.01, -0.2


@pytest.mark.parametrize(
    ("checks", "verified", "kept"),
    [
        ([(1, AGREES)], True, [(1, True)]),
        ([(1, DIFFERS)], False, [(1, False)]),
        # Whatever agreed before, by however many students.
        ([(1, AGREES), (1, DIFFERS)], False, [(1, True), (1, False)]),
        ([(5, AGREES), (1, DIFFERS)], False, [(5, True), (1, False)]),
        # The same students once more would be choosing.
        ([(1, DIFFERS), (1, AGREES)], False, [(1, False), (1, True)]),
        ([(1, DIFFERS), (1, AGREES), (1, AGREES)], False, [(1, False), (1, True)]),
        ([(5, DIFFERS), (5, AGREES)], False, [(5, False), (5, True)]),
        ([(3, DIFFERS), (2, AGREES)], False, [(3, False), (2, True)]),
        # More students say more, and what they put right is kept.
        ([(1, DIFFERS), (2, AGREES)], True, [(1, False), (2, True)]),
        ([(5, AGREES), (1, DIFFERS), (2, AGREES)], True, [(5, True), (1, False), (2, True)]),
        ([(5, AGREES), (1, DIFFERS), (5, AGREES)], True, [(1, False), (5, True)]),
        ([(1, DIFFERS), (2, AGREES), (1, DIFFERS)], False, [(2, True), (1, False)]),
        # Of what differs too, more students take the place of fewer, and fewer add nothing.
        ([(1, DIFFERS), (3, DIFFERS)], False, [(3, False)]),
        ([(3, DIFFERS), (1, DIFFERS)], False, [(3, False)]),
        ([(1, DIFFERS), (3, DIFFERS), (2, AGREES)], False, [(3, False), (2, True)]),
    ],
    ids=str,
)
def test_checks_of_all_times_count_together(
    checked: Checked, checks: list[tuple[int, float]], verified: bool, kept: list[tuple[int, bool]]
) -> None:
    assert checked.after(*checks) == verified
    assert checked.kept() == kept


def test_a_check_that_differs_takes_the_mark_and_is_told_everywhere(checked: Checked) -> None:
    table, leaderboards = Path("tables/digits/ipc1.md"), checked.leaderboards
    checked.check(1, AGREES)
    assert "✓" in boards.build(leaderboards)[table]
    (difference,) = checked.check(2, DIFFERS).differing
    assert str(difference).endswith("recorded 45.0 %, again 25.0 %: DIFFERS (-20.00 points, where 3.00 are allowed)")
    said = f"run {checked.record.run.id}, {difference}"
    assert ", 2 students: recorded" in said
    built = boards.build(leaderboards)
    assert "✓" not in built[table].replace("without ✓", "")
    assert f", mlp: a check differs, so it is not verified: {said}" in built[table]
    _, row = built[table.with_suffix(".csv")].splitlines()
    assert f',differs,0,0,"{said}' in row
    page = boards.committed_page(leaderboards)
    assert '"verified":false' in page
    assert f'"differs":"{said}' in page
    assert '"1 student: recorded 40.0 %, again 41.0 %: agrees (+1.00 points, where 3.00 are allowed); on cpu, 2' in page
    # A record is not at fault because somebody has found that it is not so.
    assert verification.out_of_date(leaderboards, [checked.place]) == []
    # More students take nothing from what was found, and give the mark back.
    checked.check(4, AGREES)
    built = boards.build(leaderboards)
    assert "a check differs" not in built[table]
    assert built[table.with_suffix(".csv")].splitlines()[1].endswith(",verified,1,4,")
    assert "again 25.0 %: DIFFERS" in boards.committed_page(leaderboards)


def test_other_forms_of_a_board_say_that_a_check_differs(checked: Checked) -> None:
    checked.check(1, DIFFERS)
    found = summarise(collect([checked.place], checks=verification.standings(checked.leaderboards, [checked.place])))
    one = board(found, read_published(), "digits", 1)
    assert ", mlp: a check differs" in one.to_text()
    (line,) = [line for line in one.to_latex().splitlines() if ", mlp: a check differs" in line]
    assert line.startswith("% ")
    assert "surd" not in one.to_latex()


def test_verify_says_what_stands(finished: Path, leaderboards: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    call(finished, leaderboards)
    # As if it had come out otherwise on another machine.
    reseal(verification.file_of(leaderboards, place), lambda value: value["checks"][0].update(again=[1.0]))
    code, said, noted = call(finished, leaderboards)
    assert (code, said.rstrip().endswith("equal.")) == (0, True)
    assert "Entered in" in noted
    assert "Not verified: a check of tiny@1 with mlp differs (1 student: recorded" in noted
    assert "It stands until a later one of more than 1 student agrees." in noted
    assert marked(leaderboards, place) == set()
    code, _, noted = call(finished, leaderboards, "--all")
    assert (code, "Not verified" in noted, "marks the row" in noted) == (0, False, True)
    assert len(marked(leaderboards, place)) == 1


def test_a_check_is_of_the_accuracies_that_were_checked(finished: Path, leaderboards: Path) -> None:
    call(finished, leaderboards)
    (place,) = (leaderboards / "records").rglob("*.json")
    record = read_record(place)
    changed = record.evaluations[0].model_copy(update={"accuracy": (0.9, 0.9)})
    value = record.model_copy(update={"evaluations": (changed,)}).to_json()
    write_json(place, value, sealed=True)
    assert marked(leaderboards, place) == set()
    assert "checks another tiny@1 with mlp than its record has" in " ".join(boards.check(leaderboards))
    place.unlink()
    assert any(text.endswith("belongs to no record") and "verified" in text for text in boards.check(leaderboards))


def edit_accuracy(value: dict[str, Any], student: int) -> None:
    value["evaluations"][0]["accuracy"][student] = 1.0


def test_no_student_of_a_checked_record_can_be_changed(finished: Path, leaderboards: Path) -> None:
    call(finished, leaderboards)  # student 0 alone
    (place,) = (leaderboards / "records").rglob("*.json")
    assert len(marked(leaderboards, place)) == 1
    reseal(place, lambda value: edit_accuracy(value, 1))
    assert marked(leaderboards, place) == set()
    assert "checks another tiny@1 with mlp than its record has" in " ".join(boards.check(leaderboards))
    # The check says that something is wrong, and is not written over.
    before = verification.file_of(leaderboards, place).read_bytes()
    code, said, noted = call(finished, leaderboards)
    assert (code, said, "one of the two was changed since" in noted) == (1, "", True)
    assert verification.file_of(leaderboards, place).read_bytes() == before


def test_a_record_that_grows_stays_checked(finished: Path, leaderboards: Path) -> None:
    call(finished, leaderboards)
    (place,) = (leaderboards / "records").rglob("*.json")
    reseal(place, lambda value: value["evaluations"][0]["accuracy"].append(0.5))
    assert len(marked(leaderboards, place)) == 1
    # As checks of before they said all accuracies: how far means may lie apart still tells of what they are.
    reseal(verification.file_of(leaderboards, place), lambda value: value["checks"][0].pop("claimed"))
    assert len(marked(leaderboards, place)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"within": 1.0, "again": [0.9]},
        {"within": 1.0, "again": [0.9], "claimed": []},
        {"students": [0, 0], "recorded": 2, "again": 2},
        {"protocol": "dsa@1"},
    ],
    ids=str,
)
def test_a_check_that_was_changed_is_none(finished: Path, leaderboards: Path, change: dict[str, Any]) -> None:
    call(finished, leaderboards)
    (place,) = (leaderboards / "records").rglob("*.json")
    path = verification.file_of(leaderboards, place)

    def edit(value: dict[str, Any]) -> None:
        (check,) = value["checks"]
        check |= {name: check[name] * new if isinstance(new, int) else new for name, new in change.items()}

    reseal(path, edit)
    assert marked(leaderboards, place) == set()
    assert "checks another" in " ".join(boards.check(leaderboards))


@pytest.mark.parametrize("wrong", ["no checksum", "folder"])
def test_a_file_of_checks_that_is_none_is_named(finished: Path, leaderboards: Path, wrong: str) -> None:
    call(finished, leaderboards)
    (place,) = (leaderboards / "records").rglob("*.json")
    path = verification.file_of(leaderboards, place)
    value = json.loads(path.read_text())
    path.unlink()
    if wrong == "folder":
        path.mkdir()
    else:
        del value["checksum"]
        write_json(path, value)
    with pytest.raises(RunError, match=path.name):
        verification.standings(leaderboards, [place])
    code, said, noted = call(finished, leaderboards)  # before a student is trained
    assert (code, said, path.name in noted) == (1, "", True)


def test_two_that_check_one_record_at_once_lose_nothing(
    finished: Path, leaderboards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    reseal(place, lambda value: value["evaluations"].append({**value["evaluations"][0], "backbone": "lenet"}))
    record, write = read_record(place), write_json
    first, second = (Retrained(part, (0,), part.accuracy[:1], 0.03, "cpu") for part in record.evaluations)
    assert first.within == tolerance(first.evaluation.accuracy, 1, TEST)
    other = threading.Thread(target=verification.keep, args=(leaderboards, place, record, [second]))

    def meanwhile(*values: Any, **named: Any) -> None:
        if other.ident is None:
            other.start()
            other.join(0.2)  # which would be enough for it, if it did not have to wait
        write(*values, **named)

    monkeypatch.setattr(verification, "write_json", meanwhile)
    verification.keep(leaderboards, place, record, [first])
    other.join()
    assert len(marked(leaderboards, place)) == 2


def test_a_record_that_was_changed_meanwhile_gets_no_check(finished: Path, leaderboards: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    claim = claims.claim_of(str(finished), leaderboards, finished)
    reseal(place, lambda value: edit_accuracy(value, 1))
    with pytest.raises(RunError, match="was changed while students were trained"):
        claims.verify(claim, leaderboards, options(finished))
    assert not (leaderboards / "verified").exists()


def test_what_the_leaderboard_does_not_have_is_not_entered(finished: Path, tmp_path: Path) -> None:
    code, _, noted = call(finished, tmp_path / "boards")
    assert code == 0
    assert "nothing was entered; `ddbench leaderboard add" in noted
    assert not (tmp_path / "boards").exists()


def test_more_students_take_the_place_of_fewer(finished: Path, leaderboards: Path) -> None:
    def students(*more: str) -> list[list[int]]:
        return [
            check["students"]
            for check in json.loads(verified_file(finished, leaderboards, *more).read_text())["checks"]
        ]

    assert students() == [[0]]
    assert students("--all") == [[0, 1]]
    assert students() == [[0, 1]]


def test_a_check_that_stays_is_not_said_to_be_entered(finished: Path, leaderboards: Path) -> None:
    assert "Entered in" in call(finished, leaderboards, "--all")[2]
    (path,) = (leaderboards / "verified").rglob("*.json")
    before = path.read_bytes()
    code, _, noted = call(finished, leaderboards)
    assert code == 0
    assert "Entered in" not in noted
    assert "has no record of this" not in noted
    assert "Not entered: the check of tiny@1 with mlp that is there is of 2 students, and stays." in noted
    assert path.read_bytes() == before
    assert "Entered in" in call(finished, leaderboards, "--all")[2]


def verified_file(finished: Path, leaderboards: Path, *more: str) -> Path:
    assert call(finished, leaderboards, *more)[0] == 0
    (path,) = (leaderboards / "verified").rglob("*.json")
    return path


def test_a_protocol_that_is_gone_is_said_and_not_checked(finished: Path, leaderboards: Path, tmp_path: Path) -> None:
    spec = json.loads((finished / "spec.json").read_text())
    del spec["checksum"]
    write_json(finished / "spec.json", spec | {"protocols": [str(tmp_path / "gone.toml")]}, sealed=True)
    code, said, _ = call(finished, leaderboards)
    assert code == 1
    assert "could not be trained again: the recipe of tiny@1" in said


def test_a_run_without_its_set_is_refused(finished: Path, leaderboards: Path) -> None:
    (finished / "synthetic.safetensors").unlink()
    with pytest.raises(RunError, match="no student of it can be trained again"):
        retrain(of_run(finished, finished), options(finished))
    code, _, noted = call(finished, leaderboards)
    assert (code, "Traceback" in noted) == (1, False)


def test_an_evaluation_that_is_not_there_is_a_sentence(finished: Path) -> None:
    with pytest.raises(RunError, match="no such evaluation; it has tiny@1 with mlp"):
        retrain(of_run(finished, finished), options(finished), judges=["resnet18"])
    with pytest.raises(RunError, match=r"with mlp\. Did you mean 'tiny@1'"):
        retrain(of_run(finished, finished), options(finished), protocols=["tine@1"])


@pytest.mark.parametrize("said", [("--judge", "MLP"), ("--protocol", "Tiny")])
def test_an_evaluation_is_said_as_boards_take_it(finished: Path, leaderboards: Path, said: tuple[str, str]) -> None:
    code, shown, noted = call(finished, leaderboards, *said)
    assert (code, "tiny@1 with mlp" in shown) == (0, True), noted


def test_a_set_that_was_made_again_verifies_the_committed_record(finished: Path, leaderboards: Path) -> None:
    forge(finished, 0.2)  # as if students on another machine had come out otherwise
    (place,) = (leaderboards / "records").rglob("*.json")
    committed = place.read_bytes()
    code, said, _ = call(finished, leaderboards)
    assert (code, said.rstrip().endswith("equal.")) == (0, True)
    assert place.read_bytes() == committed
    assert len(marked(leaderboards, place)) == 1


def test_another_set_of_the_same_run_verifies_nothing(finished: Path, leaderboards: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    reseal(place, lambda value: value["synthetic"].update(sha256="0" * 64))
    code, _, noted = call(finished, leaderboards)
    assert code == 1
    assert "their sets differ" in noted
    assert not (leaderboards / "verified").exists()


def test_a_record_without_a_picture_gets_that_of_the_set(finished: Path, leaderboards: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    picture, drawn = place.with_suffix(".webp"), read_record(place).sheet
    assert drawn is not None
    picture.unlink()
    reseal(place, lambda value: value.update(sheet=None))
    _, _, noted = call(finished, leaderboards)
    assert "had no picture of its set, and has one now" in noted
    assert read_record(place).sheet == drawn
    boards.build(leaderboards)
    assert boards.check(leaderboards) == []
    assert "picture" not in call(finished, leaderboards)[2]


def test_a_published_set_needs_no_folder(finished: Path, leaderboards: Path, recipe: Path) -> None:
    publish(finished, leaderboards, protocol=protocol(str(recipe)), why="a test")
    shutil.rmtree(finished)
    code, said, noted = call("dm/digits/ipc1", leaderboards, "--protocol", str(recipe), "--all")
    assert code == 0, noted
    assert "dm/digits/ipc1: tiny@1 with mlp, 2 students: recorded" in said
    (path,) = (leaderboards / "verified").rglob("*.json")
    (check,) = json.loads(path.read_text())["checks"]
    assert check["file"] == sha256_of(leaderboards / "sets" / "dm-digits-ipc1.safetensors")
    boards.build(leaderboards)
    assert boards.check(leaderboards) == []
    assert call("dm/digits/ipc10", leaderboards)[0] == 2
    # Without the file of the recipe nobody knows it.
    code, said, noted = call("dm/digits/ipc1", leaderboards)
    assert (code, said.rstrip().endswith("Name its file with --protocol.")) == (1, True)
    # Which says nothing against the record.
    assert noted.rstrip().endswith("1 of 1 evaluations could not be trained again.")


@pytest.mark.parametrize("lost", ["record", "another set", "another run", "elsewhere", "damaged"])
def test_a_published_set_of_no_record_is_refused(
    finished: Path, leaderboards: Path, recipe: Path, tmp_path: Path, lost: str
) -> None:
    publish(finished, leaderboards, protocol=protocol(str(recipe)), why="a test")
    (place,) = (leaderboards / "records").rglob("*.json")
    if lost == "record":
        place.unlink()
    elif lost == "another set":
        reseal(place, lambda value: value["synthetic"].update(sha256="0" * 64))
    elif lost == "another run":
        reseal(place, lambda value: value["run"].update(id="0" * 8))
    elif lost == "damaged":
        place.write_text("{")
    else:
        shutil.copytree(leaderboards, tmp_path / "others")
        said = f"../others/{place.relative_to(leaderboards).as_posix()}"
        reseal(leaderboards / "sets" / "index.json", lambda value: value["sets"][0].update(record=said))
    code, _, noted = call("dm/digits/ipc1", leaderboards)
    assert code == 1
    assert "is of no record" in noted
    assert any("is of no record" in text for text in boards.check(leaderboards, []))


def test_a_published_file_of_another_set_is_refused(finished: Path, leaderboards: Path, recipe: Path) -> None:
    publish(finished, leaderboards, protocol=protocol(str(recipe)), why="a test")
    file = leaderboards / "sets" / "dm-digits-ipc1.safetensors"
    own = sets.load(file)
    # More images than the record speaks of, under its hash and that of the file.
    sets.save(replace(own, images=own.images.repeat(2, 1, 1, 1), labels=own.labels.repeat(2)), file)
    entry = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    reseal(leaderboards / "sets" / "index.json", lambda value: value["sets"][0].update(entry))
    code, said, noted = call("dm/digits/ipc1", leaderboards, "--protocol", str(recipe))
    assert (code, said, "is not the set of its record: they say images 20 and 10" in noted) == (1, "", True)
    assert not (leaderboards / "verified").exists()


def test_all_that_is_named_is_looked_at_before_anything_is_trained(
    finished: Path, leaderboards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_accuracies", lambda *_: pytest.fail("a student was trained"))
    for wrong in ("nowhere", "dm/digits/ipc9", str(finished.parent)):
        code, said, noted = call(finished, leaderboards, wrong, "--json")
        assert (code > 0, said) == (True, ""), wrong
        assert wrong in noted
    assert call(finished, leaderboards, "--judge", "resnet18")[0] == 2
    assert call(finished, leaderboards, "--protocol", "other@1")[0] == 2
    # The checks beside a record are read too: they could not be added to.
    (place,) = (leaderboards / "records").rglob("*.json")
    checks = verification.file_of(leaderboards, place)
    checks.parent.mkdir(parents=True)
    checks.write_text("{")
    code, _, noted = call(finished, leaderboards)
    assert code == 1
    assert checks.name in noted


@pytest.mark.parametrize("place", ["", "verified"])
def test_a_leaderboard_that_cannot_be_written_is_told_before_students_are_trained(
    finished: Path,
    leaderboards: Path,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    (leaderboards / place).mkdir(exist_ok=True)
    trained: list[Any] = []
    monkeypatch.setattr(claims, "verify", lambda *values, **_: trained.append(values))
    read_only(leaderboards / place)
    code, said, noted = call(finished, leaderboards)
    assert (code, said, trained) == (1, "", [])
    assert f"nothing can be written in {leaderboards / place}".rstrip("/") in noted
    assert "no student was trained" in noted


def test_where_nothing_is_entered_nothing_need_be_written(
    finished: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    (tmp_path / "boards").mkdir()
    read_only(tmp_path / "boards")
    code, said, _ = call(finished, tmp_path / "boards")
    assert (code, said.rstrip().endswith("equal.")) == (0, True)


def test_what_came_out_before_a_stop_is_told_and_entered(
    finished: Path, leaderboards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "sent" / "digits" / "ipc1" / "dm" / finished.name
    shutil.copytree(finished, other)
    trained, train = [], retraining._accuracies

    def once(*values: Any) -> tuple[float, ...]:
        trained.append(1)
        if len(trained) % 2 == 0:
            raise Interrupted("stopped by Ctrl-C", signal.SIGINT)
        return train(*values)

    monkeypatch.setattr(retraining, "_accuracies", once)
    code, said, _ = call(finished, leaderboards, str(other), "--json")
    assert code == 130
    assert [(row["folder"], row["agrees"]) for row in json.loads(said)] == [(str(finished), True)]
    (place,) = (leaderboards / "records").rglob("*.json")
    assert len(marked(leaderboards, place)) == 1
    # One of several evaluations is entered before the next is trained.
    record = read_record(finished / "record.json")
    two = record.model_copy(update={"evaluations": record.evaluations * 2})
    claim = claims.claim_of(str(finished), leaderboards, finished)
    claim = replace(claim, subject=replace(claim.subject, record=two))
    verification.file_of(leaderboards, place).unlink()
    with pytest.raises(Interrupted):
        claims.verify(claim, leaderboards, options(finished))
    assert len(marked(leaderboards, place)) == 1


def test_what_could_not_be_entered_is_told_first(
    finished: Path, leaderboards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise RunError("the disk is full")

    monkeypatch.setattr(verification, "keep", full)
    code, said, noted = call(finished, leaderboards)
    assert (code, said.rstrip().endswith("equal."), "the disk is full" in noted) == (1, True, True)
    rows = json.loads(call(finished, leaderboards, "--json")[1])
    assert [row["equal"] for row in rows] == [True]


def test_a_name_is_no_folder_that_has_no_run(
    finished: Path, leaderboards: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, noted = call("dm/digits/ipc1", leaderboards)
    assert code == 2
    assert "has no published sets" in noted
    assert "--leaderboards" in noted
    assert "--sets" not in noted
    publish(finished, leaderboards, protocol=protocol(str(recipe)), why="a test")
    monkeypatch.chdir(tmp_path)
    Path("dm/digits/ipc1").mkdir(parents=True)
    code, said, _ = call("dm/digits/ipc1", leaderboards, "--protocol", str(recipe))
    assert (code, said.startswith("dm/digits/ipc1: tiny@1")) == (0, True)


def test_a_record_alone_is_no_run(finished: Path, leaderboards: Path) -> None:
    (place,) = (leaderboards / "records").rglob("*.json")
    code, _, noted = call(place, leaderboards)
    assert code == 2
    assert "is a record without its run" in noted


def test_a_recipe_of_a_file_may_be_called_as_the_record_calls_it(finished: Path, leaderboards: Path) -> None:
    code, said, _ = call(finished, leaderboards, "--protocol", "tiny@1")
    assert (code, said.rstrip().endswith("equal.")) == (0, True)
    assert call(finished, leaderboards, "--protocol", "tine")[0] == 2


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    del value["checksum"]
    change(value)
    write_json(path, value, sealed=True)


def test_the_tolerance_by_hand() -> None:
    accuracy = [0.500, 0.502, 0.499, 0.505, 0.501]
    expected = stats.t.ppf(0.995, 4) * stats.tstd(accuracy) * (2 / 3) ** 0.5
    assert tolerance(accuracy, 3, 10_000) == pytest.approx(expected)
    assert tolerance([0.5], 1, 10_000) == pytest.approx(stats.norm.ppf(0.995) * 0.005 * 2**0.5)
    assert tolerance([0.5, 0.5], 2, 100) == 0.02
    assert tolerance([0.5, 0.6], 1, 100) == 0.03


def test_a_difference_is_judged_by_its_mean(finished: Path) -> None:
    part = read_record(finished / "record.json").evaluations[0].model_copy(update={"accuracy": (0.5, 0.6)})
    one = Retrained(part, (0, 1), (0.51, 0.58), 0.01, "cpu")
    assert one.agrees
    assert not one.equal
    assert "agrees (-0.50 points, where 1.00 are allowed)" in str(one)
    assert not replace(one, within=0.004).agrees
    assert not replace(one, accuracy=(), failed="why").agrees


def test_a_copy_of_the_run_elsewhere_is_checked_as_well(finished: Path, leaderboards: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sent" / finished.name)
    assert call(tmp_path / "sent" / finished.name, leaderboards)[0] == 0
