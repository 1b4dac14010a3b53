"""Sweep files and --set for several methods."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.config import parse_assignments
from ddbench.errors import ConfigError, PluginError
from ddbench.runs.resolving import Asked
from ddbench.sweep.grid import asked_from_json, asked_to_json, distribute, expand, read_sweep, shard


def sweep(folder: Path, text: str) -> list[Asked]:
    (folder / "sweep.toml").write_text(text)
    return read_sweep(folder / "sweep.toml")


def test_a_grid_is_every_combination_with_the_seed_fastest(tmp_path: Path) -> None:
    text = '[grid]\nseed = [0, 1]\nipc = [1, 10]\nmethod = ["random", "dm"]\ndataset = ["digits", "mnist"]\n'
    asked = [(a.dataset, a.method, a.ipc, a.seed) for a in sweep(tmp_path, text)]
    expected = [(d, m, k, s) for d in ("digits", "mnist") for m in ("random", "dm") for k in (1, 10) for s in (0, 1)]
    assert asked == expected


def test_runs_follow_the_grid_and_none_comes_twice(tmp_path: Path) -> None:
    grid = '[grid]\nmethod = "random"\ndataset = "digits"\nipc = [1, 2]\n'
    run = (
        '[[run]]\nmethod = "random"\ndataset = "digits"\nipc = 2\n[[run]]\nmethod = "dm"\ndataset = "digits"\nipc = 3\n'
    )
    assert [(a.method, a.ipc) for a in sweep(tmp_path, grid + run)] == [("random", 1), ("random", 2), ("dm", 3)]


def test_values_that_are_no_axes_are_shared(tmp_path: Path) -> None:
    (asked,) = sweep(
        tmp_path,
        '[grid]\nmethod = "dm"\ndataset = "digits"\nprotocol = ["dsa", "dc"]\njudge = "mlp"\nstudents = 3\n'
        'preset = "paper"\nset = { iterations = 7, lr_images = 1e-3, augment = "none" }\n',
    )
    assert (asked.protocols, asked.judges, asked.students, asked.preset) == (("dsa", "dc"), ("mlp",), 3, "paper")
    assert asked.options == {"iterations": 7, "lr_images": 1e-3, "augment": "none"}


def test_values_of_a_file_stay_what_they_are(tmp_path: Path) -> None:
    text = (
        '[grid]\nmethod = "kip"\ndataset = "digits"\nset = { "kip.kernel" = "3", augment = true, sizes = [1, 2.5] }\n'
    )
    with pytest.raises(ConfigError, match="none"):
        distribute({"sizes": 1}, ["dm", "kip"])
    (asked,) = sweep(tmp_path, text)
    assert asked.options == {"kernel": "3", "augment": True, "sizes": [1, 2.5]}
    assert hash(asked) == hash(replace(asked))
    assert {asked: "known"}[replace(asked, options=dict(asked.options))] == "known"
    assert replace(asked, options={}) not in {asked}


def test_a_request_of_a_job_that_was_queued_with_texts_is_read() -> None:
    old = asked_to_json(Asked("dm", "digits")) | {"assignments": ["iterations=5", "augment=none"]}
    del old["options"], old["by"]
    assert asked_from_json(old) == Asked("dm", "digits", options={"iterations": 5, "augment": "none"}, by="command")


def test_options_go_to_the_methods_that_have_them(tmp_path: Path) -> None:
    options = "set = { iterations = 5, herding.epochs = 0 }"
    text = f'[grid]\nmethod = ["random", "dm", "herding"]\ndataset = "digits"\n{options}\n'
    given = {a.method: a.options for a in sweep(tmp_path, text)}
    assert given == {"random": {}, "dm": {"iterations": 5}, "herding": {"epochs": 0}}


def test_set_for_one_method_and_for_all() -> None:
    given = distribute({"epochs": 3, "k-means.epochs": 0, "iterations": 1}, ["herding", "k-means", "dm"])
    assert given == {"herding": {"epochs": 3}, "k-means": {"epochs": 0}, "dm": {"iterations": 1}}


@pytest.mark.parametrize(("last", "epochs"), [("epochs=5", 5), ("k-means.epochs=5", 5), ("iterations=1", 0)])
def test_what_was_said_last_counts(last: str, epochs: int) -> None:
    said = parse_assignments(["epochs=3", "k-means.epochs=0", last])
    assert distribute(said, ["k-means", "dm"])["k-means"] == {"epochs": epochs}


def test_a_value_with_dots_and_signs_stays_whole() -> None:
    said = parse_assignments(["dm.augment=color=1.5"])
    assert distribute(said, ["dm", "random"]) == {"dm": {"augment": "color=1.5"}, "random": {}}


def test_a_method_of_a_file_is_named_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "idea.py"
    file.write_text("from ddbench_methods.dm import DM\nclass Own(DM):\n    name = 'own'\n")
    assert distribute({"own.iterations": 2}, [str(file), "dm"]) == {str(file): {"iterations": 2}, "dm": {}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "asks for nothing"),
        ("[gird]\n", "'gird' is not known. Did you mean 'grid'?"),
        ('[run]\nmethod = "dm"\n', "write [[run]] with two brackets"),
        ('[grid]\nmethod = "dm"\n', "grid does not say which dataset"),
        ('[[run]]\ndataset = "digits"\n', "run 1 does not say which method"),
        ('[grid]\nmethods = "dm"\ndataset = "digits"\n', "'methods' is not known. Did you mean 'method'?"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nipc = "1"\n', "ipc is a whole number, not '1'"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nipc = true\n', "ipc is a whole number, not True"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nipc = [1, 0]\n', "ipc is 0; it is at least 1"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nseed = -1\n', "seed is -1; it is at least 0"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nstudents = 0\n', "students is 0; it is at least 1"),
        ('[grid]\nmethod = "dm"\ndataset = 3\n', "dataset is a text, not 3"),
        ('[grid]\nmethod = []\ndataset = "digits"\n', "method needs at least one value"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nstudents = [1, 2]\n', "students needs one value"),
        ('[grid]\nmethod = "dm"\ndataset = "digits"\nset = ["a=1"]\n', "set is a table"),
        ("grid = 3\n", "grid must be a table"),
        (
            '[grid]\nmethod = ["dm", "random"]\ndataset = "digits"\nset = { iteration = 1 }\n',
            "Did you mean 'iterations'?",
        ),
        ('[grid]\nmethod = ["dm", "random"]\ndataset = "digits"\nset = { dmm.iterations = 1 }\n', "Did you mean 'dm'?"),
        ("[grid\n", "is not valid TOML"),
    ],
)
def test_a_bad_sweep_says_what_is_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, text)
    assert sentence in str(caught.value)


def test_an_unknown_method_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="Did you mean 'random'"):
        sweep(tmp_path, '[grid]\nmethod = ["dm", "randm"]\ndataset = "digits"\n')


@given(count=st.integers(0, 30), parts=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_shards_are_disjoint_and_complete(count: int, parts: int) -> None:
    items = list(range(count))
    shards = [shard(items, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(item for part in shards for item in part) == items
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a shard is i/n"):
        shard([1, 2, 3], text)


def test_expand_shares_what_is_common() -> None:
    asked = expand({"dataset": ["digits"], "method": ["dm"], "ipc": [1], "seed": [0, 1]}, {"iterations": 2}, students=4)
    assert [(a.seed, a.students, a.options) for a in asked] == [(s, 4, {"iterations": 2}) for s in (0, 1)]
