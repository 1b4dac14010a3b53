"""What is said before a run: settings that no paper has, a network that is not used, pixels that cannot be whitened."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.data.catalogue import CATALOGUE
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import board
from ddbench.runs.record import read_record
from ddbench.runs.resolving import Asked, find_method, foresee, unpublished
from ddbench.runs.runspec import RunSpec
from ddbench.runs.unread_presets import unread_presets

OWN = """
from ddbench_methods.dm import DM


class Mine(DM):
    name = "mine"
"""


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder with a dataset of one's own, of two classes."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, 8, 8), dtype=np.uint8), np.arange(24) % 2
    np.savez(tmp_path / "own.npz", x_train=x[:16], y_train=y[:16], x_test=x[16:], y_test=y[16:])
    added = command("data", "add", "own", tmp_path / "own.npz", "--data", tmp_path / "data")
    assert added.exit_code == 0, added.output
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "preset", "published"),
    [
        ("mtt", "cifar10", 10, None, True),
        ("mtt", "cifar10", 2, None, False),
        ("dm", "cifar10", 1250, "paper", True),
        ("dm", "digits", 10, "paper", False),
        ("dm", "digits", 10, None, None),  # quick
        ("dc", "imagenette", 10, None, False),  # what the authors say of any dataset is no setting for this one
        ("dd", "cifar10", 10, None, True),
        ("ld", "mnist", 2, None, True),
        ("random", "cifar10", 2, None, None),
        ("herding", "cifar10", 10, None, None),
        ("whole", "cifar10", 10, None, None),
    ],
)
def test_a_spec_knows_whether_a_paper_has_the_cell(
    method: str, dataset: str, ipc: int, preset: str | None, published: bool | None
) -> None:
    spec = foresee(Asked(method, dataset, ipc, preset=preset))
    assert spec.published is published
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert ("published" in spec.to_json()) is (published is not None)


def test_every_published_setting_counts_as_one() -> None:
    for method in ("cafe", "dc", "dd", "dm", "dsa", "kip", "ld", "ls", "mtt"):
        for setting in find_method(method)[1].settings():
            cells = [(d, i) for d in setting.datasets for i in setting.ipcs if d in CATALOGUE and isinstance(i, int)]
            for dataset, ipc in cells if setting.preset == "paper" else []:
                assert foresee(Asked(method, dataset, ipc)).published is True


def test_specs_are_told_of_together() -> None:
    asked = [Asked(method, "cifar10", ipc) for method in ("dm", "mtt") for ipc in (2, 3, 10)]
    assert unpublished(map(foresee, asked)) == [
        f"no published setting of dm, mtt for cifar10 at ipc {ipc}: the method's defaults are used." for ipc in (2, 3)
    ]


def test_run_dry_run_record_and_board_say_it(data: Path, tmp_path: Path) -> None:
    where = ["--dataset", "own", "--ipc", "2", "--data", data, "--runs", tmp_path / "runs", "--device", "cpu"]
    cheap = ["--protocol", "quick", "--judge", "mlp", "--students", "1", "--quiet"]
    told = "no published setting of dm for own at ipc 2: the method's defaults are used"
    dry = command("run", "--method", "dm", *where, "--set", "iterations=1", "--dry-run")
    assert "no published setting for own at ipc 2: the method's defaults are used" in dry.stdout
    result = command("run", "--method", "dm", *where, "--set", "iterations=1", *cheap)
    assert result.exit_code == 0, result.output
    assert f"Note: {told}." in result.stderr
    assert "No published settings for own, ipc 2: dm [iterations=1] with the method's defaults" in result.stdout
    (record,) = (tmp_path / "runs").glob("own/*/*/*/record.json")
    assert read_record(record).config.published is False
    # The preset quick is said in words of its own.
    quick = command("run", "--method", "random", *where, "--preset", "quick", *cheap)
    assert "ublished setting" not in quick.output
    assert "All settings are those of the preset quick" in quick.stdout


def test_a_method_of_ones_own_has_no_paper_to_miss(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    where = ["--dataset", "own", "--ipc", "2", "--data", data, "--runs", tmp_path / "runs", "--device", "cpu"]
    dry = command("run", "--method", tmp_path / "mine.py:Mine", *where, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "ublished" not in dry.output


def test_records_of_before_have_boards_as_before() -> None:
    records = sorted((Path(__file__).parents[1] / "golden" / "records").glob("*.json"))
    published = read_published(Path(__file__).parents[1] / "golden" / "boards" / "published.csv")
    text = board(summarise(collect(records)), published, "cifar10", 10).to_text()
    assert "No published settings" not in text


def test_a_network_that_is_not_used_is_said(data: Path, tmp_path: Path) -> None:
    where = ["--dataset", "own", "--ipc", "1", "--data", data, "--runs", tmp_path / "runs", "--device", "cpu"]
    asking = ["run", "--method", "kip", "--method", "dm", *where, "--preset", "quick", "--dry-run", "--backbone"]
    told = "Note: kip uses no backbone: resnet18-bn changes nothing in its set and is only part of the run's name."
    said = command(*asking, "resnet18-bn")
    assert said.exit_code == 0, said.output
    assert said.stderr.count(told) == 1
    assert "dm uses no backbone" not in said.stderr
    # Nobody has asked for the one that it is left with.
    assert "uses no backbone" not in command(*asking[:-1]).stderr


@pytest.mark.parametrize("method", ["dm", "mtt", "herding"])
def test_a_whitening_that_is_too_large_is_refused_before_a_run(method: str, tmp_path: Path) -> None:
    images = np.zeros((8, 72, 72, 3), dtype=np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "big.npz", x_train=images[:4], y_train=[0, 0, 1, 1], x_test=images[4:], y_test=[0, 0, 1, 1])
    where = ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    assert command("data", "add", "big", tmp_path / "big.npz", *where[:2]).exit_code == 0
    asking = ["run", "--method", method, "--dataset", "big", "--ipc", "1", *where, "--pixels", "zca"]
    dry, run = command(*asking, "--dry-run"), command(*asking)
    assert dry.exit_code == run.exit_code == 2
    assert "zca(eps=0.1) needs a 15552 x 15552 matrix for images of shape (3, 72, 72)" in dry.stderr
    assert dry.stderr.splitlines()[-1] == run.stderr.splitlines()[-1]
    # Before the folder of the run is there, and before experts are made.
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "protocol", "said"),
    [("dm", "mtt", True), ("random", "mtt", True), ("mtt", "mtt", False), ("dd", "mtt", False), ("dm", "dsa", False)],
)
def test_a_protocol_that_wants_a_step_size_of_sets_without_one_is_told_before_the_run(
    method: str, protocol: str, said: bool
) -> None:
    asked = ("run", "--method", method, "--dataset", "digits", "--ipc", "1", "--protocol", protocol, "--dry-run")
    found = command(*asked)
    assert found.exit_code == 0, found.output
    assert ("takes a step size from the set" in found.output) == said


def test_a_file_of_presets_that_no_method_reads_is_said_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "other.py").write_text(OWN.replace('"mine"', '"other"'))
    presets = tmp_path / "presets"
    presets.mkdir()
    for name in ("Mine.toml", "other.toml", "README.md", ".kept"):
        (presets / name).write_text('[[setting]]\ndataset = "*"\nsource = "mine"\niterations = 2\n')
    reference = tmp_path / "mine.py"
    where = ["--dataset", "own", "--ipc", "1", "--data", data, "--runs", tmp_path / "runs", "--device", "cpu"]
    said = command("run", "--method", reference, *where, "--seed", "0", "--seed", "1", "--dry-run")
    assert said.exit_code == 0, said.output
    told = (
        f"Note: {presets / 'Mine.toml'} is read by no method: a file of presets is called after one, as in mine.toml. "
        "Did you mean 'mine.toml'? Rename it, or move it away."
    )
    assert said.stderr.count(told) == 1
    assert said.stderr.count("read by no method") == 1
    assert command("show", "method", reference).stderr.strip() == told
    (presets / "Mine.toml").rename(presets / "mine.toml")
    assert "read by no method" not in command("show", "method", reference).stderr
    # A file of another kind is read by nobody either, whatever it is called.
    (presets / "mine.yaml").write_text("iterations: 2")
    assert f"{presets / 'mine.yaml'} is read by no method" in command("show", "method", reference).stderr


def test_each_of_our_files_of_presets_is_read() -> None:
    for method in ("dm", "herding", "soft-labels"):
        assert unread_presets(find_method(method)[1]) == []


def test_a_package_with_a_file_of_presets_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = find_method("dm")[1]
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "dmm.toml").touch()
    monkeypatch.setattr(methods, "presets_folder", lambda: presets)
    (said,) = unread_presets(methods)
    assert "dmm.toml is read by no method" in said
    assert "Did you mean 'dm.toml'? " in said
