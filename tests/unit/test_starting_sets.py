"""A condensation can start from a saved set, which is read, checked, and part of the run's identity."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import ddbench
from ddbench import SyntheticSet
from ddbench import synthetic as sets
from ddbench.cli import root
from ddbench.data.sources import load
from ddbench.errors import ConfigError
from ddbench.foreign.starting import read_start
from ddbench.initial import StartingSet, keep, starting_images
from ddbench.rng import Rng
from ddbench.runs.resolving import Asked, find_method, foresee, resolve_spec
from ddbench.sweep.grid import asked_from_json, asked_to_json
from ddbench.sweep.tasks import tasks_of
from ddbench.testing.contract import problem_for_checks

# Options with which a method takes no step, so that its set is what it started from.
METHODS: dict[str, dict[str, Any]] = {
    "dm": {},
    "dc": {},
    "dsa": {},
    "cafe": {},
    "dd": {},
    "kip": {"labels": "fixed"},
    "mtt": {"experts": 1, "start_epochs": 1, "expert_span": 1},
}


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


def digits_set(**values: Any) -> SyntheticSet:
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = SyntheticSet(images, torch.arange(10).repeat(2), pixels="standard")
    return replace(whole, **values)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    place = tmp_path / "good.safetensors"
    sets.save(digits_set(), place, {"dataset": "digits", "method": "good", "ipc": 2})
    return place


def asked(method: str, start: Path | str, **values: Any) -> Asked:
    options = {"iterations": 0, **METHODS[method], "initial": str(start)}
    return Asked(method, "digits", values.pop("ipc", 2), options=options, **values)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_learns_images_starts_from_it(method: str, saved: Path, tmp_path: Path) -> None:
    result = ddbench.run(
        method, "digits", ipc=2, options={"iterations": 0, **METHODS[method], "initial": saved},
        protocol="quick", judge="mlp", students=1, device="cpu", runs=tmp_path / "runs",
    )  # fmt: skip
    by_class = digits_set().images[digits_set().labels.argsort(stable=True)]
    learned = result.set.images[result.set.hard_labels.argsort(stable=True)]
    assert torch.equal(learned, by_class)
    name = result.record.config.values["initial"]
    assert name.startswith("good@")
    assert str(tmp_path) not in json.dumps(result.record.to_json())


def test_the_set_of_a_run_is_a_start_and_its_content_an_identity(saved: Path, tmp_path: Path) -> None:
    cheap: dict[str, Any] = {"protocol": "quick", "judge": "mlp", "students": 1, "device": "cpu"}
    first = ddbench.run("random", "digits", ipc=2, **cheap, runs=tmp_path / "runs")
    second = ddbench.run(
        "dm", "digits", ipc=2, options={"iterations": 0, "initial": first}, **cheap, runs=tmp_path / "runs"
    )
    # Bytes of real images, brought into the run's pixel space.
    assert torch.allclose(second.set.images, first.set.space.forward(first.set.images))
    assert second.record.config.values["initial"].startswith("random-ipc2-s0@")
    ids = {resolve_spec(asked("dm", start), tmp_path, read=read_start).spec.id for start in (first.folder, saved)}
    sets.save(digits_set(images=digits_set().images + 1), saved, {"dataset": "digits", "method": "good"})
    ids.add(resolve_spec(asked("dm", saved), tmp_path, read=read_start).spec.id)
    assert len(ids) == 3


def test_a_file_of_others_is_a_start_where_its_numbers_say_enough(tmp_path: Path) -> None:
    train = load("digits", tmp_path).train
    rows = torch.cat([torch.arange(start, start + 2) for start in train.offsets.tolist()])
    torch.save([train.images[rows], train.labels[rows]], tmp_path / "theirs.pt")
    resolution = resolve_spec(asked("dm", tmp_path / "theirs.pt"), tmp_path, read=read_start)
    assert resolution.spec.config["initial"].startswith("theirs@")


@pytest.mark.parametrize("text", ["zeros", "no/such/file.pt", "x" * 5000])
def test_what_is_no_set_is_refused(text: str) -> None:
    asking = ["run", "--method", "dm", "--dataset", "digits", "--ipc", "2", "--set", f"initial={text}"]
    result = command(*asking)
    assert result.exit_code == 2
    assert "dm: initial: it is real, noise, or a saved set: the folder of a run, or a file" in result.stderr


def test_what_is_missing_in_a_file_of_others_is_said_by_making_it_a_run(tmp_path: Path) -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    torch.save(images, tmp_path / "bare.pt")
    with pytest.raises(
        ConfigError, match=r"bare\.pt: the file has no labels.*First make it a run by `ddbench evaluate"
    ):
        resolve_spec(asked("dm", tmp_path / "bare.pt"), tmp_path, read=read_start)
    torch.save({"data": [[images, torch.arange(10).repeat(2)]] * 2}, tmp_path / "two.pt")
    with pytest.raises(ConfigError, match=r"two\.pt: it holds 2 sets.*there --entry says which"):
        resolve_spec(asked("dm", tmp_path / "two.pt"), tmp_path, read=read_start)


@pytest.mark.parametrize(
    ("change", "about", "why"),
    [
        ({}, {"dataset": "mnist"}, "was made from mnist"),
        ({}, {"dataset": "digits", "data": "other"}, "was made from digits of other images"),
        ({"images": torch.zeros(20, 1, 9, 9)}, {}, r"has images of \(1, 9, 9\)"),
        ({"labels": torch.arange(20)}, {}, "has 1 images of each of 20 classes, and ipc 2 of 10 is asked for"),
        ({"labels": torch.zeros(20, dtype=torch.int64)}, {}, "has 0 to 20 images of each of 10 classes"),
        ({"pixels": "zca(eps=0.1)"}, {}, r"lives in zca\(eps=0.1\), and the run in standard; say --pixels 'zca"),
        ({"decode": "tiles(factor=2)"}, {}, "stores several images in one"),
        ({"images": torch.full((20, 1, 8, 8), torch.nan)}, {}, "holds numbers that are not finite"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], about: dict[str, Any], why: str
) -> None:
    place = tmp_path / "set.safetensors"
    sets.save(digits_set(**change), place, about)
    with pytest.raises(ConfigError, match=f"no condensation on digits can start from set@.*: it {why}"):
        resolve_spec(asked("dm", place), tmp_path, read=read_start)
    result = command(
        "run", "--method", "dm", "--dataset", "digits", "--ipc", 2, "--set", f"initial={place}", "--dry-run"
    )
    assert result.exit_code == 2
    assert "is missing" not in result.output


def test_another_ipc_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has 2 images of each of 10 classes, and ipc 3 of 10 is asked for"):
        resolve_spec(asked("dm", saved, ipc=3), tmp_path, read=read_start)


def test_a_run_that_selects_on_held_out_images_cannot_start_from_all_of_them(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may have been made from all of them"):
        resolve_spec(asked("dm", saved, select=True), tmp_path, read=read_start)


def test_a_damaged_set_is_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"initial=.*good\.safetensors: .*half-written"):
        resolve_spec(asked("dm", saved), tmp_path, read=read_start)


def test_whoever_is_handed_a_request_reads_the_set_again(saved: Path, tmp_path: Path) -> None:
    request = asked_from_json(json.loads(json.dumps(asked_to_json(asked("dm", saved)))))
    (task,) = tasks_of([request], tmp_path)
    assert task.resolution.spec.config["initial"].startswith("good@")
    # Where the data is not there, nobody can tell what is in the set.
    assert foresee(replace(request, dataset="mnist")).config["initial"] == "good.safetensors@unknown"


def test_a_preset_and_a_file_say_it_as_well_and_the_source_stays(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(f'initial = "{saved}"\niterations = 0\n')
    request = Asked("dm", "digits", 2, config_file=tmp_path / "options.toml")
    spec = resolve_spec(request, tmp_path, read=read_start).spec
    assert (spec.config["initial"].partition("@")[0], spec.sources["config.initial"]) == ("good", "file")


def test_soft_labels_put_images_into_their_likeliest_class(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=1)
    soft = torch.tensor([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3]])
    images = torch.randn(3, *problem.shape)
    keep(StartingSet("soft@0123456789ab", SyntheticSet(images, soft, label_kind="probability"), {}))
    assert torch.equal(starting_images("soft@0123456789ab", problem, Rng(0)), images[[1, 2, 0]])
    with pytest.raises(ConfigError, match="has not been read"):
        starting_images("gone@0123456789ab", problem, Rng(0))


def test_real_images_that_are_too_few_are_told_what_lifts_the_limit(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path, ipc=6, per_class=(40, 5, 40))
    with pytest.raises(ddbench.DdbenchError, match=r"at most 5\. Or start from noise.*--set initial=noise"):
        starting_images("real", problem, Rng(0))
    assert len(starting_images("noise", problem, Rng(0))) == 18
    # Random selection has no such option.
    method = find_method("random")[1]
    with pytest.raises(ddbench.DdbenchError, match=r"at most 5\.$"):
        method(method.Config()).start(problem)
