"""A grid: its cells are those of any evaluation, it goes on where it stopped, and it says the order as it is."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock
from scipy import stats

import ddbench
from ddbench import synthetic
from ddbench.cli import root as command_line
from ddbench.errors import ConfigError, DivergedError, RunError
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.foreign import meant
from ddbench.foreign.meant import Meant
from ddbench.foreign.published_sets import SetEntry, read_index
from ddbench.leaderboard.comparison import holm
from ddbench.runs import evaluating
from ddbench.runs.evaluating import Judging
from ddbench.runs.rundir import RunDir
from ddbench.runs.runspec import RunSpec
from ddbench.sensitivity import judging
from ddbench.sensitivity.asked import read_grid
from ddbench.sensitivity.judging import row_names
from ddbench.sensitivity.order import flips, kendalls_w, order_of, tau
from ddbench.sensitivity.results import CellPart, PairPart, Results, SectionPart, SetPart, json_schema, read_results
from ddbench.sensitivity.tables import headers, rows, sentences
from ddbench.sweep.grid import read_sweep

ROOT = Path(__file__).resolve().parents[2]
FACTORS = {"optimizer": ["adam"], "epochs": ["1/2"], "batch": [4], "augment": ["none"], "labels": ["soft", "fixed"]}
TINY = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 2\n[options]\nepochs = 3\nbatch = 16\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of random digits and one of k-means, at ipc 1."""
    place = tmp_path_factory.mktemp("made")
    (place / "tiny.toml").write_text(TINY)
    for method, seed in (("random", 0), ("random", 1), ("k-means", 0)):
        ddbench.run(
            method, "digits", ipc=1, seed=seed, preset="quick", protocol=str(place / "tiny.toml"), device="cpu",
            data=place, runs=place / "runs",
        )  # fmt: skip
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def sets_in(place: Path) -> list[str]:
    return sorted(str(path.parent) for path in (place / "runs").glob("*/*/*/*/record.json"))


def grid(place: Path, **more: Any) -> ddbench.Grid:
    given = {
        "sets": sets_in(place), "base": str(place / "tiny.toml"), "factors": {"optimizer": ["adam"]}, "device": "cpu",
        "data": place, "runs": place / "runs", "output": place / "grid.json",
    }  # fmt: skip
    return ddbench.evaluate_grid(**given | more)


def teacher(name: str = "taught") -> dict[str, Any]:
    options = {"targets": "fixed", "teacher": "mlp", "teacher_epochs": 1}
    return {"name": name, "trainer": "distill", "labels": "soft", "options": options}


def accuracies(results: Results) -> list[tuple[str, tuple[float, ...]]]:
    return [(cell.recipe, cell.accuracy) for section in results.sections for cell in section.cells]


def as_protocol(fields: dict[str, Any]) -> Protocol:
    return Protocol(**fields)


def test_a_cell_is_bit_for_bit_a_plain_evaluation_under_the_same_protocol(place: Path) -> None:
    factors = {k: v for k, v in FACTORS.items() if k != "labels"}
    results = grid(place, factors=factors, recipes=[teacher()]).results
    (section,) = results.sections
    assert [recipe.name for recipe in results.recipes] == [
        "base", "optimizer=adam", "epochs=1/2", "batch=4", "augment=none", "taught"
    ]  # fmt: skip
    assert len(section.cells) == 3 * 6
    assert section.forwards == 4 * 10
    fields = {recipe.name: recipe.fields for recipe in results.recipes}
    run = RunDir.at(Path(sets_in(place)[0]))
    for cell in section.cells:
        assert not cell.failed
        assert cell.forwards == (20 if cell.recipe == "epochs=1/2" else 40)
        if cell.sha256 != run.set_sha256():
            continue
        told = json.loads(json.dumps(fields[cell.recipe]))
        if cell.digest != as_protocol(told).digest:
            told["options"] |= {"forwards": cell.forwards}
        file = place / f"{as_protocol(told).name}.toml"
        file.write_text(as_toml(told))
        assert protocol(str(file)).digest == cell.digest
        plain = ddbench.evaluate(run.path, protocol=str(file), device="cpu", data=place)
        assert plain.accuracies[protocol(str(file)).id, "mlp"] == cell.accuracy


def as_toml(fields: dict[str, Any]) -> str:
    """A protocol as a person would write it down."""
    options = fields.pop("options")
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    lines += ["[options]", *(f"{key} = {json.dumps('none' if v is None else v)}" for key, v in options.items())]
    return "\n".join(lines) + "\n"


def test_finished_cells_are_read_and_not_repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    judge = Judging.judge

    def counting(self: Judging, cell: Any) -> Any:
        judged.append(cell.protocol.id)
        return judge(self, cell)

    monkeypatch.setattr(Judging, "judge", counting)
    first = grid(place)
    assert sorted(judged) == ["tiny-optimizer-adam@1"] * 3 + ["tiny@1"] * 3
    judged.clear()
    assert grid(place).results == first.results
    assert judged == []
    # One cell that is gone, and one that was stopped after its first student.
    files = sorted((place / "grid.json.cells").rglob("mlp.json"))
    files[0].unlink()
    whole = json.loads(files[1].read_text())
    del whole["checksum"]
    files[1].write_text(json.dumps(whole | {"scores": whole["scores"][:1]}))
    again = grid(place)
    assert len(judged) == 2
    assert accuracies(again.results) == accuracies(first.results)
    judged.clear()
    grid(place, factors={"optimizer": ["adam"], "augment": ["none"]}, students=3)
    assert sorted(set(judged)) == ["tiny-augment-none@1", "tiny-optimizer-adam@1", "tiny@1"]


def test_a_second_process_takes_other_cells_and_waits_for_the_rest(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = grid(place).results
    cells = place / "grid.json.cells"
    busy = next(cells.rglob("mlp.json"))
    busy.unlink()
    lock = FileLock(busy.parents[2] / ".lock")
    lock.acquire()
    patient: list[bool] = []
    judge = judging._judge

    def letting_go(*values: Any, **named: Any) -> None:
        if not judging.ResolvedGrid.found(*values[:4]):
            patient.append(named["patient"])
        if named["patient"]:
            lock.release()
        judge(*values, **named)

    monkeypatch.setattr(judging, "_judge", letting_go)
    assert accuracies(grid(place).results) == accuracies(wanted)
    assert patient == [False, True]


def test_two_at_once_give_the_same_file(place: Path) -> None:
    found: list[list[tuple[str, tuple[float, ...]]]] = []
    # Signals are heard in the main thread alone; a grid works in any.
    threads = [Thread(target=lambda: found.append(accuracies(grid(place).results))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert read_results(place / "grid.json").complete


def test_recipes_that_would_be_another_one_once_more_are_left_out(place: Path) -> None:
    (section,) = grid(place, factors={"batch": [12, 4], "labels": ["soft"]}).results.sections
    assert section.left_out == {
        "batch=12": "sets of 10 images are trained on in the same steps either way",
        "labels=soft": "no set has soft labels of its own, so that hard ones would take their place",
    }
    assert {cell.recipe for cell in section.cells} == {"base", "batch=4"}


def test_a_set_that_stores_several_images_in_one_trains_as_long_as_the_others(place: Path) -> None:
    runs = sets_in(place)
    folder = RunDir.at(Path(runs[0]))
    found = synthetic.load(folder.synthetic)
    about = synthetic.read_header(folder.synthetic)["about"]
    tiled = place / "tiled.safetensors"
    synthetic.save(replace(found, decode="tiles(factor=2)", source_indices=None), tiled, about)
    (section,) = grid(place, sets=[*runs, tiled]).results.sections
    assert sorted({part.images for part in section.sets}) == [10, 40]
    assert {cell.forwards for cell in section.cells} == {40}
    # Its students are the same ones, under a protocol that says the budget.
    digests = {part.images: {c.digest for c in section.cells if c.sha256 == part.sha256} for part in section.sets}
    assert not digests[10] & digests[40]


def test_sets_of_other_budgets_are_in_a_section_of_their_own(place: Path) -> None:
    ddbench.run(
        "random", "digits", ipc=2, preset="quick", protocol=str(place / "tiny.toml"), device="cpu", data=place,
        runs=place / "runs",
    )  # fmt: skip
    sections = grid(place).results.sections
    assert [(s.ipc, s.forwards, len(s.sets)) for s in sections] == [(1, 40, 3), (2, 80, 1)]
    assert sections[1].order is not None
    assert (sections[1].order.w, sections[1].order.agreement[0].tau) == (None, None)


def test_a_recipe_that_does_not_fit_is_a_cell_that_says_why(place: Path) -> None:
    learned = {"name": "learned", "options": {"lr": "learned"}}
    results = grid(place, factors={}, recipes=[learned]).results
    (section,) = results.sections
    failed = [cell for cell in section.cells if cell.failed]
    assert len(failed) == 3
    assert all("this set has none" in cell.failed and not cell.accuracy for cell in failed)
    assert rows(section)[1][2:] == ["–", "–", ""]
    assert any("learned: not defined" in text for text in sentences(section, results.recipes))


def test_a_cell_that_failed_is_tried_once_by_every_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    trainer = evaluating.trainer_of

    def breaking(synthetic: Any, protocol: Protocol, *values: Any, **named: Any) -> Any:
        tried.append(protocol.id)
        if len(tried) <= 4 and protocol.id == "tiny@1":
            raise DivergedError("the loss became NaN")
        return trainer(synthetic, protocol, *values, **named)

    monkeypatch.setattr(evaluating, "trainer_of", breaking)
    first = grid(place, factors={}, recipes=[]).results
    assert [bool(cell.failed) for cell in first.sections[0].cells] == [True, True, True]
    assert len(tried) == 3
    again = grid(place, factors={}, recipes=[]).results
    assert sorted(bool(cell.failed) for cell in again.sections[0].cells) == [False, False, True]
    assert len(tried) == 6
    last = grid(place, factors={}, recipes=[]).results
    assert len(tried) == 7
    assert all(cell.accuracy for cell in last.sections[0].cells)


# What it says of the order.


def hand_made(table: dict[str, dict[str, list[list[float]]]]) -> tuple[list[SetPart], list[CellPart]]:
    """Accuracies by method, recipe, set and student."""
    sets, cells = [], []
    for number, (method, recipes) in enumerate(table.items()):
        count = len(next(iter(recipes.values())))
        hashes = [f"{number}{k}" * 32 for k in range(count)]
        sets += [
            SetPart(row=method, method=method, run="0" * 8, seed=k, sha256=sha, images=10, soft=False, pixels="zca")
            for k, sha in enumerate(hashes)
        ]  # fmt: skip
        cells += [
            CellPart(
                recipe=recipe, sha256=hashes[k], digest="ab", forwards=100, accuracy=tuple(students), seconds=0.0,
                device="cpu", precision="fp32",
            )
            for recipe, found in recipes.items()
            for k, students in enumerate(found)
        ]  # fmt: skip
    return sets, cells


def about(mean: float, seed: int = 0, sets: int = 1, noise: float = 0.001) -> list[list[float]]:
    rng = np.random.default_rng([seed, round(1000 * mean)])
    return [[float(v) for v in mean + noise * rng.normal(size=5)] for _ in range(sets)]


def test_ranks_and_tau_by_hand() -> None:
    """Under the base a > b > c > d; `other` exchanges b and c: one pair of six, so that tau is 1 - 2/6."""
    base, other = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}, {"a": 0.5, "b": 0.3, "c": 0.4, "d": 0.2}
    sets, cells = hand_made({m: {"base": about(base[m]), "other": about(other[m])} for m in base})
    order = order_of(sets, cells, ["base", "other"], resamples=50)
    ranks = {(row.row, score.recipe): score.rank for row in order.rows for score in row.scores}
    assert [ranks[m, "base"] for m in "abcd"] == [1, 2, 3, 4]
    assert [ranks[m, "other"] for m in "abcd"] == [1, 3, 2, 4]
    (one,) = order.agreement
    assert one.tau == pytest.approx(1 - 2 / 6)
    # Differences of ten points among students that differ by a tenth: no drawing changes them.
    assert (one.low, one.high) == (one.tau, one.tau)
    assert (one.pairs, one.swapped) == (6, 1)
    # W by its definition: 12 S / (m^2 (n^3 - n)), with S = sum of (rank sum - mean)^2 = 9 + 0 + 0 + 9.
    assert order.w == pytest.approx(12 * (3**2 + 0 + 0 + 3**2) / (2**2 * (4**3 - 4)))
    (flip,) = order.flips
    assert (flip.first, flip.second, flip.better, flip.worse) == ("b", "c", ("base",), ("other",))


def test_equal_printed_means_share_a_rank() -> None:
    sets, cells = hand_made({m: {"base": [[v, v + 0.01]]} for m, v in (("a", 0.5), ("b", 0.50004), ("c", 0.4))})
    order = order_of(sets, cells, ["base"], resamples=10)
    assert [row.scores[0].rank for row in order.rows] == [1, 1, 3]


def test_w_and_tau_are_those_of_their_definitions_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        means = rng.integers(0, 6, size=(4, 5)).astype(float)
        ranks = stats.rankdata(means, axis=1)
        s = ((ranks.sum(axis=0) - ranks.sum() / 5) ** 2).sum()
        ties = sum((count**3 - count) for row in means for count in np.unique(row, return_counts=True)[1])
        expected = 12 * s / (4**2 * (5**3 - 5) - 4 * ties)
        assert kendalls_w(means) == pytest.approx(expected)
    assert kendalls_w(np.array([[1.0, 2.0], [2.0, 1.0]])) is None
    assert kendalls_w(np.ones((3, 4))) is None
    assert tau([1, 2, 3], [1, 1, 1]) is None
    assert tau([1, 2, 3], [3, 2, 1]) == -1
    assert tau([1], [1]) is None


def test_noise_widens_the_interval_of_tau_and_makes_no_flip() -> None:
    table = {m: {r: about(0.5, seed, noise=0.05) for seed, r in enumerate(("base", "other"))} for m in "abcd"}
    for k, m in enumerate("abcd"):
        table[m] = {r: about(0.5 + 0.001 * k, 10 * k + j, noise=0.05) for j, r in enumerate(("base", "other"))}
    order = order_of(*hand_made(table), ["base", "other"], resamples=200)
    (one,) = order.agreement
    assert one.low is not None
    assert one.high is not None
    assert one.high - one.low > 0.5
    assert order.flips == ()
    assert {pair.verdict for pair in order.pairs} <= {"undecided", "equal"}


def test_holms_correction_is_over_all_pairs_and_recipes_of_a_section() -> None:
    base = {"a": 0.9, "b": 0.897, "c": 0.7}
    sets, cells = hand_made({m: {r: about(v, k, 2) for k, r in enumerate(("base", "x"))} for m, v in base.items()})
    order = order_of(sets, cells, ["base", "x"], resamples=10)
    assert len(order.pairs) == 6
    p = [math.nan if pair.p is None else pair.p for pair in order.pairs]
    assert [pair.p_holm for pair in order.pairs] == holm(p)
    assert order.rows[0].sets == 2


def test_one_set_and_unlike_devices_are_said() -> None:
    sets, cells = hand_made({m: {"base": about(v)} for m, v in (("a", 0.9), ("b", 0.8))})
    cells[1] = cells[1].model_copy(update={"device": "a GPU", "precision": "tf32"})
    section = SectionPart(
        dataset="digits", title="Digits", fingerprint="b2:0", ipc=1, judge="mlp", students=5, forwards=100,
        sets=tuple(sets), cells=tuple(cells), order=order_of(sets, cells, ["base"], resamples=10),
    )  # fmt: skip
    said = list(sentences(section, ()))
    assert "No two methods are shown to change places." in said
    assert any(text.startswith("Of a and b there is one set") for text in said)
    assert "Not all students were trained alike: there are some of a GPU in tf32 and cpu in fp32." in said
    waiting = section.model_copy(update={"order": None})
    assert rows(waiting) == []
    assert list(sentences(waiting, ())) == ["Not all of it is there yet; the same command goes on."]


def test_a_row_of_two_tracks_is_called_that(place: Path) -> None:
    """Sets with classes beside one with soft labels, under a recipe that takes the labels as they are."""
    soft = ddbench.run(
        "soft-labels", "digits", ipc=1, preset="quick", protocol=str(place / "tiny.toml"), device="cpu", data=place,
        runs=place / "runs", options={"epoch": 1}, backbone="mlp",
    )  # fmt: skip
    found = grid(place, sets=[*sorted((place / "runs" / "digits" / "ipc1").glob("*/*"))], factors={"labels": ["soft"]})
    (section,) = found.results.sections
    names = {part.row for part in section.sets}
    classes = names - {"soft-labels"}
    assert len(classes) == 2
    (said,) = [text for text in sentences(section, found.results.recipes) if "two tracks" in text]
    assert said.startswith("Under labels=soft students of ")
    assert all(name in said for name in names)
    tracks = found.frame.groupby(["recipe", "method"])["track"].first().to_dict()
    assert tracks == {
        (recipe, name): "soft" if (recipe, name) == ("labels=soft", "soft-labels") else "hard"
        for recipe in ("base", "labels=soft")
        for name in names
    }
    # With soft labels alone, or classes alone, a row has one track.
    alone = grid(place, sets=[soft.folder], factors={"labels": ["soft"]}, output=place / "alone.json").results
    assert not any("two tracks" in text for text in sentences(alone.sections[0], alone.recipes))


def test_a_flip_needs_both_sides_to_be_shown() -> None:
    def pair(recipe: str, said: Any) -> PairPart:
        return PairPart(
            recipe=recipe, first="a", second="b", difference=0.0, ci95=0.0, p=0.5, p_holm=0.5, p_equal=0.5,
            p_equal_holm=0.5, verdict=said,
        )  # fmt: skip

    assert flips([pair("x", "better"), pair("y", "undecided"), pair("z", "equal")]) == ()
    (found,) = flips([pair("x", "better"), pair("y", "worse"), pair("z", "worse")])
    assert (found.better, found.worse) == (("x",), ("y", "z"))


def test_sets_that_differ_in_their_seed_alone_share_a_row() -> None:
    def spec(**changed: Any) -> RunSpec:
        given = {
            "method": "dm", "provided_by": "ddbench 0", "method_sha256": None, "dataset": "digits", "ipc": 1,
            "seed": 0, "data_fingerprint": "b2:0", "backbone": "mlp", "pixels": "standard", "precision": "fp32",
            "config": {"k": 1},
        }  # fmt: skip
        return RunSpec(**given | changed)

    assert row_names([spec(), spec(seed=1), spec(method="dc")]) == ["dm", "dm", "dc"]
    assert row_names([spec(), spec(config={"k": 2}), spec(seed=3)]) == ["dm [k=1]", "dm [k=2]", "dm [k=1]"]
    other = spec(backbone="lenet")
    assert row_names([spec(), other]) == [f"dm ({spec().id})", f"dm ({other.id})"]


# The command and the file.


def command(place: Path, *words: str, quiet: bool = True) -> Any:
    where = ["--data", str(place), "--runs", str(place / "runs"), "--output", str(place / "grid.json")]
    return CliRunner().invoke(command_line, ["evaluate", *words, *where, "--device", "cpu", *["--quiet"] * quiet])


def test_the_command_prints_a_table_a_recipe_a_row(place: Path) -> None:
    base = ["--protocol", str(place / "tiny.toml"), "--grid", "optimizer=adam", "--grid", "epochs=2"]
    said = command(place, *sets_in(place), *base)
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert lines[0].endswith("ipc 1, mlp, 2 students, 40 images each")
    assert lines[1].split()[:3] == ["recipe", "images", "k-means"]
    assert [line.split()[0] for line in lines[3:6]] == ["base", "optimizer=adam", "epochs=2"]
    shown = command(place, *sets_in(place), *base, "--json")
    assert json.loads(shown.stdout)["schema"] == "ddbench.sensitivity/1"
    assert json.loads(shown.stdout) | {"checksum": ""} == json.loads((place / "grid.json").read_text()) | {
        "checksum": ""
    }


def test_a_file_says_all_of_a_grid(place: Path) -> None:
    file = place / "grid.toml"
    text = {"base": str(place / "tiny.toml"), "sets": sets_in(place), "students": 1, "forwards": 30}
    file.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in text.items())
        + '[factors]\nbatch = [4]\n[[recipe]]\nname = "slow"\noptions = { lr = 0.001 }\n'
    )
    said = command(place, "--grid", str(file))
    assert said.exit_code == 0, said.output
    results = read_results(place / "grid.json")
    assert [recipe.name for recipe in results.recipes] == ["base", "batch=4", "slow"]
    assert {cell.forwards for cell in results.sections[0].cells} == {30}
    assert {len(cell.accuracy) for cell in results.sections[0].cells} == {1}
    assert headers(results.sections[0]) == ["recipe", "images", "k-means", "random", "tau"]


def test_files_and_published_names_are_sets_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(sets_in(place)[0])
    name = "k-means/digits/ipc1"
    entry = SetEntry.model_construct(name=name)
    monkeypatch.setattr(judging, "meant", lambda ref, *_: Meant(Path(ref), entry if ref == name else None))
    monkeypatch.setattr(meant, "file_of", lambda entry, shelf, data: run / "synthetic.safetensors")
    found = grid(place, sets=[name, sets_in(place)[1]])
    (section,) = found.results.sections
    assert [part.published for part in section.sets] == [name, ""]
    assert found.frame["method"].unique().tolist() == ["k-means", "random"]
    assert "k-means" in repr(found)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grid", "optimiser=adam"], "there is no factor 'optimiser'"),
        (["--grid", "batch=none"], "the factor batch is a number of images"),
        (["--grid", "none.toml"], "none.toml cannot be read"),
        (["--grid", "somewhere"], "'somewhere' is no part of a grid"),
        (["--grid", "usual", "--protocol", "krr"], "by minibatches"),
        (["--grid", "usual", "--protocol", "dsa", "--protocol", "dc"], "A grid has one protocol as its base"),
        (["--grid", "usual", "--curve"], "--curve is not for --grid"),
        (["--grid", "usual", "--claim", "a=1"], "--claim is not for --grid"),
        (["--grid", "usual", "--forwards", "0"], "0 is not in the range"),
        (["--forwards", "10"], "--forwards is for --grid"),
    ],
)
def test_what_cannot_be_asked_ends_in_a_sentence_and_2(place: Path, words: list[str], sentence: str) -> None:
    before = {path for path in place.rglob("*")}
    refs = [] if "--protocol" in words else ["--protocol", str(place / "tiny.toml")]
    said = command(place, sets_in(place)[0], *words, *refs)
    assert said.exit_code == 2, said.output
    assert sentence in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr
    assert {path for path in place.rglob("*")} == before


@pytest.mark.parametrize(
    "text",
    [
        "factor = 3\n", "factors = 3\n", "recipe = 3\n", "sets = 3\n", "base = 3\n", 'base = "dsaa"\n',
        'product = "yes"\n', "students = 0\n",
        "forwards = 1.5\n", "[factors]\nbatch = 3\n", "[[recipe]]\nlr = 3\n", "judge = [1]\n",
    ],
)  # fmt: skip
def test_a_file_that_is_no_grid_ends_in_a_sentence_and_2(place: Path, text: str) -> None:
    (place / "grid.toml").write_text(text)
    said = command(place, sets_in(place)[0], "--grid", str(place / "grid.toml"))
    assert said.exit_code == 2, said.output
    assert said.stderr.startswith("Error: ")


def test_another_file_is_not_overwritten(place: Path) -> None:
    (place / "grid.json").write_text('{"mine": 1}')
    said = command(place, sets_in(place)[0], "--grid", "usual")
    assert said.exit_code == 2
    assert "is no file of a grid" in said.stderr
    assert (place / "grid.json").read_text() == '{"mine": 1}'
    with pytest.raises(RunError, match="cannot be made") as error:
        grid(place, output=place / "grid.json" / "below.json")
    assert error.value.exit_code == 2
    with pytest.raises(ConfigError, match="is a folder"):
        grid(place, output=place)
    with pytest.raises(ConfigError, match="needs sets"):
        grid(place, sets=[], output=place / "other.json")


def test_the_grids_of_the_campaigns_can_be_asked_for() -> None:
    for path in sorted((ROOT / "leaderboards" / "sweeps" / "sensitivity").glob("*.toml")):
        if path.stem.endswith("-sets"):
            assert read_sweep(path)
        else:
            found = read_grid(path)
            assert found.base is not None
            assert len(found.recipes(found.base)) > 8


def test_the_campaign_on_cifar10_judges_every_published_set() -> None:
    tasks = (ROOT / "leaderboards" / "sweeps" / "sensitivity" / "cifar10.tasks").read_text(encoding="utf-8")
    named = re.findall(r" evaluate .*?(\$\(.*\)) --grid", tasks)
    index = read_index(str(ROOT / "leaderboards" / "sets"), Path())
    published = {entry.name for entry in index.sets if "/cifar10/" in entry.name}
    assert len(named) == tasks.count(" evaluate ") > 0
    assert published
    for expression in set(named):
        done = subprocess.run(
            ["bash", "-c", f"echo {expression}"], cwd=ROOT, text=True, capture_output=True, check=True
        )
        assert set(done.stdout.split()) == published


def test_the_schema_is_committed() -> None:
    assert (ROOT / "leaderboards" / "schema" / "sensitivity.v1.json").read_text(encoding="utf-8") == json_schema()


@pytest.fixture
def measured() -> list[Path]:
    return sorted((ROOT / "docs" / "measured").glob("sensitivity-*.json"))


def test_what_is_committed_is_what_its_cells_say(measured: list[Path]) -> None:
    """All but the bootstrap, whose drawings take a while."""
    assert measured
    for path in measured:
        results = read_results(path)
        assert results.complete
        assert results.software["ddbench"]["dirty"] is False
        for section in results.sections:
            recipes = [recipe.name for recipe in results.recipes if recipe.name not in section.left_out]
            again = order_of(section.sets, section.cells, recipes, resamples=2)
            assert section.order is not None
            for name in ("rows", "taus", "w", "pairs", "flips"):
                assert getattr(again, name) == getattr(section.order, name), name
            assert [(a.tau, a.swapped) for a in again.agreement] == [
                (a.tau, a.swapped) for a in section.order.agreement
            ]
            for cell in section.cells:
                if cell.recipe == "base":
                    assert cell.forwards == section.forwards


def test_a_file_in_the_place_of_a_cell_is_a_sentence(place: Path) -> None:
    results = grid(place, factors={"batch": [4]}, sets=sets_in(place)[:1]).results
    (cell, *_) = sorted((place / "grid.json.cells").glob("[0-9a-f]*"))
    away = cell.rename(place / "away")
    cell.write_text("")
    with pytest.raises(RunError, match=r"made: (Not a directory|File exists)\. Choose another place") as error:
        grid(place, factors={"batch": [4]}, sets=sets_in(place)[:1])
    assert error.value.exit_code == 2
    cell.unlink()
    away.rename(cell)
    assert accuracies(grid(place, factors={"batch": [4]}, sets=sets_in(place)[:1]).results) == accuracies(results)


def test_damaged_results_are_refused_with_a_word_on_their_cells(place: Path) -> None:
    one = {"factors": {"batch": [4]}, "sets": sets_in(place)[:1]}
    results = grid(place, **one).results
    whole = (place / "grid.json").read_bytes()
    (place / "grid.json").write_bytes(whole[:99])
    with pytest.raises(ConfigError, match=r"If it was one, remove it: .*grid\.json\.cells has the accuracies"):
        grid(place, **one)
    (place / "grid.json").unlink()
    assert grid(place, **one).results == results
    assert (place / "grid.json").read_bytes() == whole


def test_results_of_another_grid_are_not_replaced_without_a_word(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = sets_in(place)[:2]
    base = ("--protocol", str(place / "tiny.toml"), "--students", "1")
    whole = (first, second, *base, "--grid", "batch=4")
    command(place, *whole, quiet=False)
    kept = (place / "grid.json").read_bytes()
    more = command(place, *whole, "--grid", "epochs=1/2", quiet=False)
    assert "another grid" not in more.stderr
    less = command(place, first, *base, "--grid", "batch=4")
    assert less.exit_code == 0
    lost = "grid.json has the results of another grid, with the recipe epochs=1/2 and 1 more."
    assert lost in less.stderr
    command(place, *whole, "--grid", "epochs=1/2")
    assert lost not in caplog.text
    grid(place, sets=[first], factors={"batch": [4]}, students=1)
    assert lost in caplog.text
    command(place, *whole, quiet=False)
    assert (place / "grid.json").read_bytes() == kept
