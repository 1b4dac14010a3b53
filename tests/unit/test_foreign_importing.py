"""A set goes out in every format and comes back with the same accuracy per student; strangers' sets become records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from ddbench import Choice, SyntheticSet
from ddbench import synthetic as sets
from ddbench.cli import root
from ddbench.data.pixels import fit_pixels
from ddbench.data.sources import load
from ddbench.errors import ConfigError, DataError, RunError
from ddbench.foreign.diagnosis import Reference, diagnose
from ddbench.foreign.formats import Found, read
from ddbench.foreign.importing import export_run, terms_of
from ddbench.foreign.terms import Said, complete, settle
from ddbench.leaderboard import boards
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import board
from ddbench.runs.record import read_record
from ddbench.synthetic import Recipe, header_of, tensors_of

LOOK = """
name = "look"
augment = "none"

[options]
epochs = "none"
steps = 25
batch = 20
"""


def ddbench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Any:
    result = ddbench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of DM and of random images, on the digits."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "look.toml").write_text(LOOK)
    arguments = ["run", "--dataset", "digits", "--ipc", "2", "--runs", folder / "runs", *cheap(folder)]
    done(*arguments, "--method", "dm", "--set", "iterations=5")
    done(*arguments, "--method", "random")
    return folder


def cheap(workplace: Path) -> list[str]:
    """Few steps of small students."""
    judges = ["--protocol", str(workplace / "look.toml"), "--judge", "mlp", "--students", "2"]
    return [*judges, "--device", "cpu", "--quiet"]


def run_of(workplace: Path, method: str) -> Path:
    (path,) = (workplace / "runs" / "digits" / "ipc2" / method).iterdir()
    return path


def accuracies(record: Any) -> Any:
    return record["evaluations"][0]["accuracy"]


@pytest.mark.parametrize("method", ["dm", "random"])
@pytest.mark.parametrize("kind", ["pt", "npz", "safetensors"])
def test_export_then_evaluate_is_equal_per_student(workplace: Path, tmp_path: Path, method: str, kind: str) -> None:
    run = run_of(workplace, method)
    place, loss = export_run(run, kind, tmp_path / f"set.{kind}", tmp_path)
    assert loss is None
    record = done("evaluate", place, "--runs", tmp_path / "runs", *cheap(workplace))
    original = read_record(run / "record.json").to_json()
    assert accuracies(record) == accuracies(original)
    assert record["run"]["provided_by"] == "imported"
    assert record["imported"]["sources"]["pixels"] == "file"


def test_export_as_png_says_what_is_lost(workplace: Path, tmp_path: Path) -> None:
    result = ddbench("export", run_of(workplace, "dm"), "--format", "png", "--out", tmp_path / "set")
    assert result.exit_code == 0, result.output
    assert "png holds bytes: pixels changed by" in result.stderr
    record = done("evaluate", tmp_path / "set", "--runs", tmp_path / "runs", *cheap(workplace))
    assert len(accuracies(record)) == 2
    assert record["synthetic"]["stored"] == "uint8"
    # Real images are bytes already.
    result = ddbench("export", run_of(workplace, "random"), "--format", "png", "--out", tmp_path / "real")
    assert "png holds bytes" not in result.stderr
    equal = done("evaluate", tmp_path / "real", "--runs", tmp_path / "runs", *cheap(workplace))
    assert accuracies(equal) == accuracies(read_record(run_of(workplace, "random") / "record.json").to_json())


@pytest.mark.parametrize(("kind", "out"), [("pt", "set.pt"), ("safetensors", "set.safetensors"), ("png", "set")])
def test_the_transform_of_test_images_lies_beside_an_export(
    workplace: Path, tmp_path: Path, digits: Any, kind: str, out: str
) -> None:
    said = done("export", run_of(workplace, "dm"), "--format", kind, "--out", tmp_path / out)
    assert said["transform"] == str(tmp_path / "set.transform.npz")
    space = fit_pixels("standard", digits.train, digits.info)
    with np.load(said["transform"], allow_pickle=False) as stored:
        assert np.array_equal(stored["mean"], space.mean)  # type: ignore[attr-defined]
        assert np.array_equal(stored["std"], space.std)  # type: ignore[attr-defined]


def test_a_transform_of_a_whitened_set_has_its_matrix(workplace: Path, tmp_path: Path, digits: Any) -> None:
    space = fit_pixels("zca(eps=0.1)", digits.train, digits.info)
    whole = SyntheticSet(torch.rand(10, 1, 8, 8), torch.arange(10), pixels=space.name)
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "digits", "ipc": 1})
    said = done("export", tmp_path / "set.safetensors", "--format", "pt", "--out", tmp_path / "out.pt")
    with np.load(said["transform"], allow_pickle=False) as stored:
        assert np.array_equal(stored["weight"], space.weight)  # type: ignore[attr-defined]


def test_an_export_without_its_dataset_lacks_the_transform_alone(tmp_path: Path) -> None:
    whole = SyntheticSet(torch.rand(10, 3, 32, 32), torch.arange(10), pixels="zca(eps=0.1)")
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "cifar10", "ipc": 1})
    command = ["export", tmp_path / "set.safetensors", "--format", "pt", "--out", tmp_path / "out.pt"]
    result = ddbench(*command, "--data", tmp_path / "nothing")
    assert result.exit_code == 0, result.output
    assert "Note: there is no transform of test images beside it: cifar10 is not in the data folder" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pt", "set.safetensors"]


def test_what_a_layout_has_no_place_for_comes_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = SyntheticSet(
        torch.randn(4, 1, 8, 8, generator=generator),
        torch.randn(4, 10, generator=generator),
        Recipe(lr=torch.tensor([0.1, 0.2]), schedule=torch.tensor([[0, 1], [2, 3]]), loss="mse", augment="flip"),
        pixels="standard",
        label_kind="regression",
        decode="tiles(factor=2)",
        start={"w": torch.ones(3)},
        source_indices=torch.arange(4),
        choice=Choice(step=20, accuracy=0.325, images=40, students=2, protocol="mtt@1"),
    )
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "digits", "ipc": 1})
    for kind in ("pt", "npz", "safetensors"):
        place, _ = export_run(tmp_path / "set.safetensors", kind, tmp_path / f"out.{kind}", tmp_path)
        (found,) = read(place)
        assert found.ours is not None
        assert header_of(found.ours) == header_of(whole)
        back = tensors_of(found.ours)
        assert back.keys() == tensors_of(whole).keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in tensors_of(whole).items())
    told = "step 20: 32.5 % of 40 held-out images, 2 students under mtt@1"
    assert told in ddbench("inspect", tmp_path / "out.npz").stdout
    assert done("inspect", tmp_path / "out.npz")["choice"]["step"] == 20
    with pytest.raises(DataError, match="png cannot keep it"):
        export_run(tmp_path / "set.safetensors", "png", tmp_path / "out", tmp_path)


def test_how_a_set_was_chosen_is_a_claim_of_who_made_it(workplace: Path, tmp_path: Path) -> None:
    choice = Choice(step=20, accuracy=0.325, images=40, students=2, protocol="mtt@1")
    whole = SyntheticSet(torch.rand(10, 1, 8, 8), torch.arange(10), pixels="standard", choice=choice)
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "digits", "ipc": 1})
    record = done("evaluate", tmp_path / "set.safetensors", "--runs", tmp_path / "runs", *cheap(workplace))
    assert record["synthetic"]["choice"] is None
    assert record["imported"]["claims"]["choice"] == {
        "step": 20, "accuracy": 0.325, "images": 40, "students": 2, "protocol": "mtt@1",
    }  # fmt: skip


def test_a_step_size_that_lies_beside_images_comes_back(tmp_path: Path, digits: Any) -> None:
    pixels = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = SyntheticSet(pixels, torch.arange(10), Recipe(lr=torch.tensor(0.07)), pixels="standard")
    sets.save(whole, tmp_path / "set.safetensors", {"dataset": "digits", "ipc": 1})
    place, _ = export_run(tmp_path / "set.safetensors", "png", tmp_path / "out", tmp_path)
    (found,) = read(place, digits.info)
    assert settled(found, digits).recipe.lr == pytest.approx(0.07)


def test_others_read_what_is_exported(workplace: Path, tmp_path: Path) -> None:
    run = run_of(workplace, "dm")
    whole = sets.load(run / "synthetic.safetensors")
    export_run(run, "pt", tmp_path / "set.pt", tmp_path)
    images, labels = torch.load(tmp_path / "set.pt", weights_only=True)["data"][0]
    assert torch.equal(images, whole.images)
    assert torch.equal(labels, whole.labels)
    export_run(run, "npz", tmp_path / "set.npz", tmp_path)
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], whole.images.permute(0, 2, 3, 1).numpy())


def test_export_leaves_other_peoples_folders_alone(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="was not made by ddbench, so it is left alone"):
        export_run(run_of(workplace, "dm"), "png", tmp_path, tmp_path)
    run = run_of(workplace, "dm")
    with pytest.raises(RunError, match="is the set itself"):
        export_run(run, "safetensors", run / "synthetic.safetensors", tmp_path)


@pytest.fixture
def downloaded(workplace: Path, tmp_path: Path) -> Path:
    """Two sets of the DC layout, without anything that ddbench would write."""
    whole = sets.load(run_of(workplace, "dm") / "synthetic.safetensors")
    pairs = [[whole.images, whole.labels], [whole.images.flip(3), whole.labels]]
    torch.save({"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.99)]}}, tmp_path / "res_DM.pt")
    return tmp_path / "res_DM.pt"


def test_a_downloaded_file_stands_on_a_board_beside_our_runs(workplace: Path, downloaded: Path, tmp_path: Path) -> None:
    said = ["--dataset", "digits", "--pixels", "standard", "--name", "dm", "--made-with", "convnet-d2-w32"]
    claim = ["--claim", "paper=Zhao and Bilen", "--claim", "accuracy=0.979"]
    records = done("evaluate", downloaded, *said, *claim, "--runs", tmp_path / "runs", *cheap(workplace))
    assert [record["run"]["seed"] for record in records] == [0, 1]
    ours = accuracies(read_record(run_of(workplace, "dm") / "record.json").to_json())
    assert accuracies(records[0]) == ours
    imported = records[0]["imported"]
    assert imported["file"] == "res_DM.pt"
    assert len(imported["sha256"]) == 64
    assert imported["claims"] == {
        "accs_all_exps": {"ConvNet": [0.99]}, "paper": "Zhao and Bilen", "accuracy": 0.979,
    }  # fmt: skip
    paths = [run_of(workplace, "dm"), *sorted((tmp_path / "runs" / "digits" / "ipc2" / "dm").iterdir())]
    added = boards.add(paths, tmp_path / "leaderboards", allow_dirty=True)
    assert len(added) == 3
    boards.build(tmp_path / "leaderboards")
    assert boards.check(tmp_path / "leaderboards") == []
    table = (tmp_path / "leaderboards" / "tables" / "digits" / "ipc2.md").read_text()
    (line,) = [line for line in table.splitlines() if "imported/dm‡" in line]
    assert "2 × 2" in line
    assert "99" not in line
    assert "‡ imported: condensed by others" in table


def test_one_set_in_two_files_counts_once(workplace: Path, tmp_path: Path) -> None:
    for kind in ("pt", "npz"):
        place, _ = export_run(run_of(workplace, "dm"), kind, tmp_path / f"set.{kind}", tmp_path)
        done("evaluate", place, "--runs", tmp_path / "runs", *cheap(workplace))
    paths = sorted((tmp_path / "runs").glob("*/*/*/*/record.json"))
    assert len(paths) == 2
    summary = summarise(collect(paths))
    assert summary["sets"].tolist() == [1]
    assert board(summary, _nothing_published(), "digits", 2).tables[0].rows[0][1] == "dm‡"


def _nothing_published() -> Any:
    from ddbench.leaderboard.published import read_published

    return read_published()


def test_an_import_goes_on_and_grows_like_a_run(workplace: Path, downloaded: Path, tmp_path: Path) -> None:
    said = ["--dataset", "digits", "--pixels", "standard", "--entry", "0", "--runs", tmp_path / "runs"]
    first = done("evaluate", downloaded, *said, *cheap(workplace))
    (folder,) = (tmp_path / "runs").glob("*/*/*/*")
    more = done("evaluate", folder, *cheap(workplace), "--students", "3")
    assert accuracies(more)[:2] == accuracies(first)
    again = done("evaluate", downloaded, *said, *cheap(workplace))
    assert accuracies(again) == accuracies(more)
    # Interrupted before the record was whole: what was trained is kept.
    (folder / "record.json").unlink()
    assert accuracies(done("evaluate", downloaded, *said, *cheap(workplace))) == accuracies(more)


def test_a_file_is_judged_in_the_precision_that_runs_have_on_the_device(
    workplace: Path, downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a set of ours, exported on a GPU, would not come back with the accuracies that it had.
    monkeypatch.setattr("ddbench.foreign.importing.usual", lambda device: "tf32")
    said = ["--dataset", "digits", "--pixels", "standard", "--entry", "0", "--runs", tmp_path / "runs"]
    record = done("evaluate", downloaded, *said, *cheap(workplace))
    assert record["run"]["precision"] == "tf32"


def test_terms_that_are_unknown_are_asked_for(downloaded: Path, tmp_path: Path) -> None:
    result = ddbench("evaluate", downloaded, "--runs", tmp_path / "runs")
    assert result.exit_code == 2
    assert (
        "does not say which dataset it was condensed from. By shape and classes it could be for digits" in result.stderr
    )
    named = ddbench(
        "evaluate", downloaded, "--dataset", "digits", "--protocol", "native", "--entry", "0", "--runs", tmp_path
    )
    assert (named.exit_code, "has no native protocol" in named.stderr) == (2, True)


def test_options_for_files_are_refused_for_runs(workplace: Path) -> None:
    result = ddbench("evaluate", run_of(workplace, "dm"), "--pixels", "zca")
    assert result.exit_code == 2
    assert "--pixels is for a file" in result.stderr


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "another dataset": ({"images": torch.randn(20, 3, 32, 32)}, [], "cifar10 and"),
    "nan": ({"images": torch.full((20, 1, 8, 8), torch.nan)}, [], "20 of 20 images hold nan"),
    "class out of range": ({"labels": torch.full((20,), 12)}, [], "there is a class 12 and digits has 0 to 9"),
    "negative class": ({"labels": torch.arange(20) % 10 - 1}, [], "there is a class -1; classes start at 0"),
    "classes from 1": ({"labels": torch.arange(20) % 10 + 1}, [], "Say --labels from-1"),
    "rows of another length": ({"labels": torch.randn(20, 7)}, [], "label rows have 7 numbers and digits has 10"),
    "unknown kind of labels": ({}, ["--labels", "fuzzy"], "there are no 'fuzzy' labels; choose one of"),
    "rows that are none": ({}, ["--labels", "logit"], "--labels logit needs one row of numbers an image"),
    "unknown pixels": ({}, ["--pixels", "zac"], "Did you mean 'zca'?"),
    "a step size below 0": ({}, ["--lr", "-1"], "a step size is above 0"),
    "a name with slashes": ({}, ["--name", "../x"], "a set cannot be called '../x'"),
    "a claim without =": ({}, ["--claim", "x"], "--claim takes KEY=VALUE"),
    "an unknown entry": ({}, ["--entry", "7"], "no entry '7'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_end_in_a_sentence(case: str, tmp_path: Path) -> None:
    changes, flags, sentence = BAD[case]
    generator = torch.Generator().manual_seed(0)
    parts = {"images": torch.randn(20, 1, 8, 8, generator=generator), "labels": torch.arange(20) % 10} | changes
    torch.save(parts, tmp_path / "set.pt")
    pixels = [] if "--pixels" in flags else ["--pixels", "standard"]
    arguments = ["evaluate", tmp_path / "set.pt", "--dataset", "digits", *pixels, *flags, "--runs", tmp_path / "runs"]
    result = ddbench(*arguments)
    # The file is wrong, or what was said of it.
    assert result.exit_code == (2 if flags else 1), result.output
    assert sentence in result.stderr
    assert not list((tmp_path / "runs").glob("*/*/*/*"))


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("digits", Path("unused"))


def standard(digits: Any) -> Found:
    rows = torch.cat([start + torch.arange(5) for start in digits.train.offsets.tolist()])
    mean, std = (torch.tensor(part)[:, None, None] for part in digits.info.statistics["standard"])
    images = (digits.train.images[rows].float() / 255 - mean) / std
    return Found(images, digits.train.labels[rows], None, "made", "0", ())


def settled(found: Found, digits: Any, **said: Any) -> SyntheticSet:

    asked = Said(**said)
    diagnosis = diagnose(found, Reference.of(digits.train, digits.info), digits.info, asked.pixels)
    terms = settle(found, asked, diagnosis)
    return complete(found, terms, fit_pixels(terms.pixels, digits.train, digits.info), 10)


def test_scales_are_guessed_and_normalised(digits: Any) -> None:
    real = standard(digits)
    mean, std = (torch.tensor(part)[:, None, None] for part in digits.info.statistics["standard"])
    for factor in (1, 255):
        made = settled(replace(real, images=factor * (real.images * std + mean)), digits)
        assert made.pixels == "standard"
        torch.testing.assert_close(made.images, real.images, atol=1e-4, rtol=0)


def test_a_whitened_set_asks_for_its_variant(digits: Any) -> None:
    reference = Reference.of(digits.train, digits.info)
    whitened = replace(standard(digits), images=reference.spaces["kip-zca"][::25][:50])
    with pytest.raises(ConfigError, match=r"most like kip-zca.*Say which, as in --pixels 'kip-zca\(reg=0\.1\)'"):
        settled(whitened, digits)
    assert settled(whitened, digits, pixels="kip-zca").pixels == "kip-zca(reg=0.1)"


def test_labels_are_read_as_they_are_said_to_be(digits: Any) -> None:
    real = standard(digits)
    assert real.labels is not None
    unlabelled = replace(real, labels=None)
    with pytest.raises(ConfigError, match="--labels sorted"):
        settled(unlabelled, digits)
    assert torch.equal(settled(unlabelled, digits, labels="sorted").labels, real.labels)
    assert torch.equal(settled(replace(real, labels=real.labels + 1), digits, labels="from-1").labels, real.labels)
    rows = replace(real, labels=5 * torch.eye(10)[real.labels] + 0.1)
    assert settled(rows, digits).label_kind == "logit"
    assert settled(rows, digits, labels="regression").label_kind == "regression"
    assert torch.equal(settled(rows, digits, labels="hard").labels, real.labels)
    assert settled(replace(real, lr=torch.tensor(0.3)), digits).recipe.lr == pytest.approx(0.3)
    assert settled(real, digits, lr=0.2, augment="flip").recipe.augment == "flip"


def test_inspect_shows_a_picture_and_the_flag_that_is_missing(downloaded: Path, tmp_path: Path) -> None:
    images, labels = torch.load(downloaded, weights_only=False)["data"][0]
    np.savez(tmp_path / "bytes.npz", images=127 + 90 * images.numpy(), labels=labels.numpy())
    told = done("inspect", tmp_path / "bytes.npz", "--dataset", "digits", "--picture", tmp_path / "p.png")
    assert [finding["flag"] for finding in told["findings"]] == ["--pixels raw"]
    assert (told["shape"], told["classes"], told["label_kind"]) == ([1, 8, 8], 10, "class")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    text = ddbench("inspect", downloaded).stdout
    assert "2: 0, 1; shown is 0" in text
    assert "claims accs_all_exps" in text


def test_inspect_of_a_run_and_of_a_dataset_that_is_not_there(workplace: Path, tmp_path: Path) -> None:
    told = done("inspect", run_of(workplace, "random"))
    assert (told["stored"], told["findings"]) == ("uint8", [])
    torch.save({"data": [[torch.randn(10, 3, 32, 32), torch.arange(10)]]}, tmp_path / "a.pt")
    result = ddbench("inspect", tmp_path / "a.pt", "--dataset", "cifar10", "--data", tmp_path)
    assert result.exit_code == 0
    assert "compared with an average image, not with cifar10" in result.stderr


TEACHER = """
name = "look-at-a-teacher"
trainer = "distill"
labels = "soft"
augment = "none"

[options]
epochs = "none"
steps = 25
batch = 20
teacher = "mlp"
teacher_epochs = 1
"""


def test_the_bytes_of_a_teacher_are_counted_and_its_column_is_its_own(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.toml").write_text(TEACHER)
    place, _ = export_run(run_of(workplace, "dm"), "npz", tmp_path / "set.npz", tmp_path)
    judges = ["--protocol", tmp_path / "teacher.toml", *cheap(workplace)]
    record = done("evaluate", place, "--runs", tmp_path / "runs", *judges)
    by_protocol = {part["protocol"]: part for part in record["evaluations"]}
    teacher = 4 * (64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10)
    assert by_protocol["look-at-a-teacher@1"]["beside_bytes"] == teacher
    assert by_protocol["look@1"]["beside_bytes"] == 0
    frame = collect(sorted((tmp_path / "runs").glob("*/*/*/*/record.json")))
    own = record["synthetic"]["bytes"]
    assert dict(zip(frame["protocol"], frame["bytes"], strict=True)) == {
        "look-at-a-teacher@1": own + teacher, "look@1": own,
    }  # fmt: skip
    assert len(board(summarise(frame), _nothing_published(), "digits", 2).tables) == 2


def test_an_imported_set_is_no_reference_whatever_it_calls_itself(workplace: Path, tmp_path: Path) -> None:
    place, _ = export_run(run_of(workplace, "dm"), "npz", tmp_path / "set.npz", tmp_path)
    done("evaluate", place, "--name", "random", "--runs", tmp_path / "runs", *cheap(workplace))
    ours = run_of(workplace, "dm") / "record.json"
    summary = summarise(collect([ours, *(tmp_path / "runs").glob("*/*/*/*/record.json")]))
    assert summary["difference_random"].isna().all()


def test_a_set_that_was_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    torch.save({"data": [[torch.randn(21, 1, 8, 8), torch.zeros(21)]]}, tmp_path / "set.pt")
    flags = ["--dataset", "digits", "--pixels", "standard", "--labels", "sorted"]
    result = ddbench("evaluate", tmp_path / "set.pt", *flags, "--runs", tmp_path / "runs")
    assert result.exit_code == 1
    assert "21 images cannot be equally many of each of 10 classes" in result.stderr
    assert not (tmp_path / "runs" / "digits").exists()


HOSTILE = """
from pathlib import Path
Path("executed").touch()
"""


@pytest.mark.parametrize("key", ["dataset", "backbone", "method"])
def test_a_file_cannot_name_code_to_run_or_folders_to_write(
    key: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(HOSTILE)
    whole = sets.load(run_of(workplace, "dm") / "synthetic.safetensors")
    value = "../../outside" if key == "method" else "./evil.py:make"
    sets.save(whole, Path("set.safetensors"), {"dataset": "digits", "seed": "many", key: value})
    ddbench("evaluate", "set.safetensors", "--runs", "runs", *cheap(workplace))
    ddbench("inspect", "set.safetensors")
    ddbench("export", "set.safetensors", "--format", "png")
    ddbench("export", "set.safetensors", "--format", "pt")
    assert not Path("executed").exists()
    assert not (tmp_path.parent / "outside").exists()
    assert not list(tmp_path.parent.glob("outside*"))


def test_a_run_that_was_moved_is_exported(workplace: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_of(workplace, "random"), tmp_path / "moved")
    place, _ = export_run(tmp_path / "moved", "pt", tmp_path / "set.pt", tmp_path)
    assert place.is_file()


def test_a_board_of_imported_sets_alone_speaks_of_no_cost(workplace: Path, tmp_path: Path) -> None:
    place, _ = export_run(run_of(workplace, "dm"), "npz", tmp_path / "set.npz", tmp_path)
    done("evaluate", place, "--runs", tmp_path / "runs", *cheap(workplace))
    text = boards.local_board(tmp_path / "runs")
    assert "dm‡" in text
    assert "Cost:" not in text


def spelt(digits: Any) -> tuple[Any, torch.Tensor]:
    """The digits under names whose order is not that of the classes, and the class of each number by that order."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    train = replace(digits.train, classes=names)
    info = replace(digits.info, class_names=names)
    order = torch.tensor(sorted(range(10), key=lambda label: names[label]))
    return replace(digits, train=train, info=info), order


def test_labels_in_the_order_of_imagefolder_are_told_and_put_right(digits: Any) -> None:
    dataset, order = spelt(digits)
    real = standard(digits)
    assert real.labels is not None
    found = replace(real, labels=order.argsort()[real.labels])
    with pytest.raises(DataError, match=r"ImageFolder numbers classes, 0 eight, .* Say --labels imagefolder, or"):
        terms_of(found, Said(), dataset)
    terms_of(found, Said(labels="class"), dataset)
    for rows in (False, True):
        given = replace(found, labels=torch.eye(10)[found.labels] * 0.9 + 0.01) if rows else found
        terms, diagnosis = terms_of(given, Said(labels="imagefolder"), dataset)
        assert diagnosis.findings == ()
        space = fit_pixels(terms.pixels, digits.train, digits.info)
        whole = complete(given, terms, space, 10, dataset.info)
        assert torch.equal(whole.hard_labels, real.labels)
        assert whole.label_kind == ("probability" if rows else "class")


def test_steps_of_dataset_distillation_are_taken_as_they_are(workplace: Path, tmp_path: Path, digits: Any) -> None:
    real = standard(digits)
    assert real.labels is not None
    batches = [torch.arange(k, 50, 5) for k in range(2)]
    steps = [(real.images[rows], real.labels[rows], torch.tensor(0.1 + k)) for k, rows in enumerate(batches)]
    torch.save(steps * 2, tmp_path / "results.pth")
    schedule = torch.arange(20).unflatten(0, (2, 10)).repeat(2, 1)
    recipe = Recipe(lr=torch.tensor([0.1, 1.1, 0.1, 1.1]), schedule=schedule)
    whole = SyntheticSet(real.images[torch.cat(batches)], real.labels[torch.cat(batches)], recipe, pixels="standard")
    sets.save(whole, tmp_path / "ours.safetensors", {"dataset": "digits", "ipc": 2})
    rest = ["--protocol", "dd", "--judge", "mlp", "--students", "2", "--runs", tmp_path / "runs", "--quiet"]
    ours = done("evaluate", tmp_path / "ours.safetensors", *rest)
    theirs = done("evaluate", tmp_path / "results.pth", "--dataset", "digits", "--pixels", "standard", *rest)
    assert accuracies(theirs) == accuracies(ours)
    assert max(accuracies(theirs)) > 0.3
    assert theirs["imported"]["sources"]["lr"] == "file"
    told = done("inspect", tmp_path / "results.pth", "--dataset", "digits")
    assert (told["steps"], told["layout"]) == (4, "steps of Dataset Distillation")


def test_a_class_that_is_missing_is_said_also_with_quiet(workplace: Path, tmp_path: Path, digits: Any) -> None:
    for label in (0, 1, 3, 4, 5, 6, 7, 8, 9):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        row = int(digits.train.offsets[label])
        Image.fromarray(digits.train.images[row, 0].numpy()).save(tmp_path / "set" / str(label) / "0.png")
    result = ddbench(
        "evaluate", tmp_path / "set", "--dataset", "digits", "--runs", tmp_path / "runs", *cheap(workplace)
    )
    assert result.exit_code == 0, result.output
    assert "Note: 1 of 10 classes have no image: 2." in result.stderr
    assert "1 of 10 classes have no image: 2." in ddbench("inspect", tmp_path / "set", "--dataset", "digits").stdout
    (tmp_path / "set" / "two").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "set" / "two" / "0.png")
    refused = ddbench("evaluate", tmp_path / "set", "--dataset", "digits", "--runs", tmp_path / "r", *cheap(workplace))
    assert refused.exit_code == 1
    assert "'two' is no class of it" in refused.stderr


def test_images_alone_are_judged_by_their_order(workplace: Path, tmp_path: Path, digits: Any) -> None:
    real = standard(digits)
    torch.save(real.images, tmp_path / "images.pt")
    rest = ["--dataset", "digits", "--pixels", "standard", "--runs", tmp_path / "runs", *cheap(workplace)]
    result = ddbench("evaluate", tmp_path / "images.pt", *rest)
    assert "no labels (labels.pt is not beside images.pt; if it was published, fetch it too)" in result.stderr
    torch.save({"images": real.images, "labels": real.labels.tolist()}, tmp_path / "set.pt")
    by_order = done("evaluate", tmp_path / "images.pt", "--labels", "sorted", *rest)
    assert accuracies(by_order) == accuracies(done("evaluate", tmp_path / "set.pt", *rest))


def test_a_set_whose_files_say_that_it_is_whitened_is_not_taken_for_normalised(tmp_path: Path, digits: Any) -> None:
    real = standard(digits)
    for tag in ("10", "zca_10"):
        torch.save(real.images, tmp_path / f"images_{tag}.pt")
    torch.save(real.labels, tmp_path / "labels_10.pt")
    with pytest.raises(ConfigError, match=r"Say which, as in --pixels 'zca\(eps=0\.1\)'"):
        settled(read(tmp_path)[0], digits)
