"""ddbench data, with images made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root
from ddbench.data.manifests import digest
from ddbench.files import read_json, write_json


@pytest.fixture
def own(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images[:6], y_test=labels[:6])
    return tmp_path / "own.npz"


def call(root_folder: Path, *arguments: str) -> Result:
    return CliRunner(env={"DDBENCH_DATA": str(root_folder)}).invoke(root, ["data", *arguments])


def test_own_images_can_be_added_listed_shown_and_used(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    added = call(data, "add", "mine", str(own))
    assert added.exit_code == 0, added.output
    rows = dict(line.split(maxsplit=1) for line in added.stdout.splitlines())
    assert (rows["name"], rows["classes"], rows["images"]) == ("mine", "3", "12 train, 6 test, 3x6x6")
    assert rows["fingerprint"].startswith("b2:")
    listed = call(data, "list", "--json")
    (mine,) = (row for row in json.loads(listed.stdout) if row["name"] == "mine")
    assert (mine["here"], mine["train"], mine["fingerprint"]) == (True, 12, rows["fingerprint"])
    arguments = ["run", "--method", "random", "--dataset", "mine", "--ipc", "1", "--backbone", "mlp", "--dry-run"]
    used = CliRunner(env={"DDBENCH_DATA": str(data)}).invoke(root, [*arguments, "--judge", "mlp", "--json"])
    assert json.loads(used.stdout)[0]["spec"]["data_fingerprint"] == rows["fingerprint"]
    shown = CliRunner().invoke(root, ["show", "dataset", "mine", "--data", str(data)])
    assert "12 train, 6 test" in shown.stdout


def test_other_data_under_the_same_name_needs_force(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own), "--json").exit_code == 0
    with np.load(own) as arrays:
        changed = dict(arrays)
    changed["x_train"] = 255 - changed["x_train"]
    np.savez(own, **changed)
    refused = call(data, "add", "mine", str(own))
    assert refused.exit_code == 1
    assert "replace it with --force" in refused.stderr
    assert call(data, "add", "mine", str(own), "--force").exit_code == 0


def test_list_says_what_is_there_and_how_to_get_the_rest(tmp_path: Path) -> None:
    lines = call(tmp_path / "none", "list").stdout.splitlines()
    rows = {line.split()[0]: line for line in lines[2:]}
    assert " yes " in rows["digits"]
    assert " no " in rows["cifar10"]
    assert rows["cifar10"].endswith("download: 170 MB")
    assert not (tmp_path / "none").exists()


def test_get_of_a_built_in_set_needs_no_network(tmp_path: Path) -> None:
    result = call(tmp_path, "get", "digits", "--json")
    assert json.loads(result.stdout)["origin"] == "embedded (scikit-learn)"


def test_progress_is_on_stderr_and_can_be_turned_off(own: Path, tmp_path: Path) -> None:
    import tarfile

    from PIL import Image

    for part in ("train", "test"):
        for kind in ("a", "b"):
            (tmp_path / "images" / part / kind).mkdir(parents=True)
            Image.new("L", (4, 4), 7).save(tmp_path / "images" / part / kind / "0.png")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "images", "images")
    loud = call(tmp_path / "data", "add", "loud", str(tmp_path / "images.tar.gz"))
    assert loud.exit_code == 0, loud.output
    assert "unpacking ..." in loud.stderr
    quiet = call(tmp_path / "data", "add", "quiet", str(tmp_path / "images.tar.gz"), "--quiet", "--json")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["shape"] == [1, 4, 4]


def rm(data: Path, *arguments: str) -> Result:
    return CliRunner(env={"DDBENCH_DATA": str(data), "DDBENCH_RUNS": str(data.parent / "runs")}).invoke(
        root, ["data", "rm", *arguments]
    )


def test_a_dataset_is_named_before_it_is_removed_and_not_removed_without_a_yes(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own)).exit_code == 0
    held = sum(path.stat().st_size for path in (data / "mine").iterdir())
    looked = rm(data, "mine")
    assert looked.exit_code == 1
    assert str(data / "mine") in looked.stdout
    assert "Nothing was deleted" in looked.stderr
    document = json.loads(rm(data, "mine", "--json", "--dry-run").stdout)
    assert [(piece["path"], piece["bytes"]) for piece in document["left"]] == [(str(data / "mine"), held)]
    assert (document["deleted"], document["name"], document["runs"]) == ([], "mine", [])
    gone = rm(data, "mine", "--yes")
    assert gone.exit_code == 0, gone.output
    assert not (data / "mine").exists()
    assert not list(data.glob(".mine.partial"))
    again = rm(data, "mine", "--yes")
    assert again.exit_code == 1
    assert "mine is not in the data folder" in again.stderr


def test_runs_that_were_made_from_a_dataset_are_told_before_it_goes(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own)).exit_code == 0
    (tmp_path / "tiny.toml").write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 1\n')
    arguments = ["run", "--method", "random", "--dataset", "mine", "--ipc", "1", "--backbone", "mlp", "--quiet"]
    done = CliRunner().invoke(
        root,
        [
            *(*arguments, "--protocol", str(tmp_path / "tiny.toml"), "--device", "cpu"),
            *("--data", str(data), "--runs", str(tmp_path / "runs")),
        ],
    )
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "runs").glob("*/*/*/*")
    looked = rm(data, "mine", "--dry-run")
    assert f"cannot be judged again without it: {path.name[-8:]}" in looked.stderr
    with monkeypatch.context() as patch:
        patch.setattr("ddbench.runs.rundir.RunDir.holder", staticmethod(lambda _: "pid 7 on host since now"))
        busy = rm(data, "mine", "--yes")
    assert busy.exit_code == 1
    assert "is being worked on by pid 7" in busy.stderr
    assert (data / "mine" / "manifest.json").is_file()
    # Other data of that name: those runs do not need it.
    spec = read_json(data / "mine" / "manifest.json")
    spec["train"]["fingerprint"] = "b2:other"
    spec["fingerprint"] = digest(f"b2:other {spec['test']['fingerprint']}".encode())
    write_json(data / "mine" / "manifest.json", spec, sealed=True)
    assert "cannot be judged" not in rm(data, "mine", "--dry-run").stderr
    # Whether they do cannot be told where the manifest is damaged, which does not keep it from being removed.
    (data / "mine" / "manifest.json").write_text("{")
    damaged = rm(data, "mine", "--yes")
    assert damaged.exit_code == 0, damaged.output
    assert "cannot be judged" in damaged.stderr
    assert path.is_dir()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("digits", "digits is built in"),
        ("toy", "toy is built in"),
        ("cifar10", "cifar10 is not in the data folder"),
        ("../precious", "is not in the data folder"),
        (".", "is not in the data folder"),
        ("miine", "Did you mean 'mine'?"),
        ("foreign", "was not made by ddbench, so it is left alone"),
    ],
)
def test_what_is_not_a_dataset_of_the_data_folder_is_not_removed(
    own: Path, tmp_path: Path, name: str, why: str
) -> None:
    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own)).exit_code == 0
    for folder in (tmp_path / "precious", data / "foreign"):
        folder.mkdir()
        (folder / "thesis.txt").write_text("keep me")
    result = rm(data, name, "--yes")
    assert result.exit_code == (2 if "built in" in why else 1)
    assert why in result.stderr
    assert (tmp_path / "precious" / "thesis.txt").is_file()
    assert (data / "foreign" / "thesis.txt").is_file()
    assert (data / "mine" / "manifest.json").is_file()


def test_of_a_dataset_behind_a_link_only_the_link_goes(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own)).exit_code == 0
    (data / "mine").rename(tmp_path / "shared")
    (data / "mine").symlink_to(tmp_path / "shared")
    result = rm(data, "mine", "--yes")
    assert result.exit_code == 0, result.output
    assert "only the link" in result.stdout
    assert not (data / "mine").is_symlink()
    assert (tmp_path / "shared" / "manifest.json").is_file()


def test_what_a_killed_process_left_of_a_dataset_can_be_removed(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / ".mine.partial" / "unpacked").mkdir(parents=True)
    (data / ".mine.partial" / "unpacked" / "0.png").write_bytes(bytes(100))
    result = rm(data, "mine", "--yes", "--json")
    assert result.exit_code == 0, result.output
    assert [piece["bytes"] for piece in json.loads(result.stdout)["deleted"]] == [100]
    assert not (data / ".mine.partial").exists()


def test_a_dataset_that_is_being_added_is_not_removed(own: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    data = tmp_path / "data"
    assert call(data, "add", "mine", str(own)).exit_code == 0
    with FileLock(data / ".mine.lock"):
        result = rm(data, "mine", "--yes")
    assert result.exit_code == 1
    assert "is being added by another process" in result.stderr
    assert (data / "mine" / "manifest.json").is_file()
