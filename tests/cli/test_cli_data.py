"""ddbench data, with images made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ddbench.cli import root


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
