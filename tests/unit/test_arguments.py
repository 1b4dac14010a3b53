"""What is given to the functions of Python is looked at first: whatever cannot be meant is one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ddbench
from ddbench.arguments import MOST_IPC, MOST_STUDENTS, Whole, checked, flag, place, places, table, text, texts
from ddbench.cli import root as command_line
from ddbench.errors import ConfigError
from ddbench.text import MOST_COUNT

ODD: list[Any] = [None, -1, 2.5, float("nan"), 10**30, True, [], {}, [1], {1: 2}, b"x", "\0", "x" * 5000, object(), int]


def said(call: Any, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(**given)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [-1, 2.5, 10**30, True, "1", None, float("nan"), [1], np.float64(3)])
def test_a_whole_number_is_one_of_its_range(value: Any) -> None:
    assert said(lambda: Whole(0)("seed", value)).startswith("seed is ")


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    found = Whole(1, 5)("ipc", np.int64(3))
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    ("check", "value", "sentence"),
    [
        (text, 5, "dataset is a text, and 5 is a int."),
        (text, "", "dataset is an empty text."),
        (text, "dig\0its", "dataset is 'dig�its', which has a control character"),
        (texts, None, "dataset is one text or several, and None is a NoneType."),
        (texts, ["mlp", 1], "dataset is a text, and 1 is a int."),
        (texts, b"mlp", "dataset is one text or several"),
        (text, "x" * 5000, "dataset is a text of 5000 letters; 1000 are the most."),
        (place, 5, "dataset is a path, and 5 is a int."),
        (place, "a\0b", "dataset is 'a�b', which no path can be: embedded null byte."),
        (place, "x" * 5000, "which no path can be: File name too long."),
        (places, 5, "dataset is a path, or several, and 5 is a int."),
        (flag, "no", "dataset is True or False, and 'no' is a str."),
        (flag, 1, "dataset is True or False, and 1 is a int."),
        (table, {1: 2}, "dataset has values by name, and 1 is no text."),
    ],
)
def test_what_is_of_another_kind_is_said(check: Any, value: Any, sentence: str) -> None:
    assert sentence in said(lambda: check("dataset", value))


def test_what_is_left_out_is_not_looked_at() -> None:
    @checked
    def run(dataset: str, *, ipc: int = -7, judge: Any = ()) -> tuple[Any, ...]:
        return dataset, ipc, judge

    assert run("digits") == ("digits", -7, ())
    assert run(dataset="digits", judge=["a", "b"], ipc=2) == ("digits", 2, ("a", "b"))


@pytest.mark.parametrize("name", ["method", "dataset", "ipc", "seed", "protocol", "judge", "students", "options",
                                  "device", "runs", "fresh", "snapshots", "track"])  # fmt: skip
def test_no_argument_of_a_run_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    given = {"method": "random", "dataset": "digits", "ipc": 1, "runs": tmp_path / "runs", "data": tmp_path}
    right = {"seed": [None], "students": [None], "fresh": [True], "options": [{}, None], "runs": [None], "track": [[]]}
    for value in ODD:
        allowed = [*right.get(name, []), *([[]] if name in ("protocol", "judge", "track") else [])]
        is_right = any(type(value) is type(one) and value == one for one in allowed)
        if is_right or (value is int and name in ("method", "track")):
            continue
        said(ddbench.run, **{**given, name: value})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (ddbench.evaluate, {"path": "x", "students": 0}),
        (ddbench.evaluate, {"path": 5}),
        (ddbench.evaluate_grid, {"sets": "x", "students": 0}),
        (ddbench.evaluate_grid, {"sets": "x", "forwards": 0}),
        (ddbench.evaluate_grid, {"sets": "x", "factors": 5}),
        (ddbench.evaluate_grid, {"sets": "x", "recipes": [1]}),
        (ddbench.evaluate_grid, {"sets": "x", "output": "a\0b"}),
        (ddbench.recognise, {"run": None}),
        (ddbench.correlate, {"run": "x", "metric": None}),
        (ddbench.load, {"path": b"x"}),
        (ddbench.load_dataset, {"name": 5}),
        (ddbench.leaderboard, {"runs": 5}),
        (ddbench.leaderboard, {"track": 5}),
    ],
)
def test_none_of_the_other_functions_ends_in_one(call: Any, given: dict[str, Any]) -> None:
    said(call, **given)


def test_results_to_compare_are_places() -> None:
    with pytest.raises(ConfigError, match="results is a path, and 5 is a int"):
        ddbench.compare("dm", 5)  # type: ignore[arg-type]


RUN = ["run", "--method", "random", "--dataset", "digits"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--ipc", "1", "--seed", str(MOST_COUNT + 1)], f"a record holds whole numbers up to {MOST_COUNT}."),
        (["--ipc", str(MOST_IPC + 1)], f"{MOST_IPC} images per class are the most."),
        (["--students", str(MOST_STUDENTS + 1)], "is not in the range 1<=x<=10000."),
        (["--snapshots", str(10**12)], "is not in the range 2<=x<=10000."),
    ],
)
def test_a_number_that_no_run_can_have_is_refused_before_it(tmp_path: Path, more: list[str], sentence: str) -> None:
    result = CliRunner().invoke(command_line, [*RUN, *more, "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert result.stderr.rstrip().endswith(sentence)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("spec.json"))


@pytest.mark.parametrize(
    "line",
    ['dataset = "dig\\u0000its"', 'dataset = "./a\\u0000.py:x"', 'dataset = "digits"\nbackbone = "./a\\u0000.py:x"'],
)
def test_a_name_that_no_path_can_be_is_a_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / "s.toml").write_text(f'[grid]\nmethod = "random"\nipc = 1\n{line}\n')
    where = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path)]
    result = CliRunner().invoke(command_line, ["sweep", str(tmp_path / "s.toml"), *where])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")


def test_a_sweep_has_the_same_bounds(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('[grid]\nmethod = "random"\ndataset = "digits"\nstudents = 100000000000\n')
    result = CliRunner().invoke(command_line, ["sweep", str(tmp_path / "s.toml"), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"students is 100000000000; it is at most {MOST_STUDENTS}.\n")
