"""Archives with a flipped bit: noticed wherever the format has a checksum, and no file is lost without a word."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddbench.cli import root as ddbench
from ddbench.data import archives
from ddbench.data.folders import read_class_folders
from ddbench.errors import DataError

NAMES = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz", "a.tar.bz2": "w:bz2", "a.zip": ""}
BLOCK = 512


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    rng = np.random.default_rng(0)
    for label in "ab":
        for index in range(3):
            path = folder / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype="uint8")).save(path)
    return folder


@pytest.fixture(scope="module")
def packed(source: Path) -> dict[str, Path]:
    found = {}
    for name, mode in NAMES.items():
        path = source.parent / name
        if mode:
            with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
                tar.add(source, arcname=".")
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(source.rglob("*.png")):
                    archive.write(file, file.relative_to(source))
        found[name] = path
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(sorted(NAMES)))
def test_a_flipped_bit_is_noticed_where_there_is_a_checksum(
    source: Path, packed: dict[str, Path], data: st.DataObject, name: str
) -> None:
    work = source.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    broken, whole = bytearray(packed[name].read_bytes()), content(source)
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (work / name).write_bytes(broken)
    try:
        archives.unpack(work / name, work / "out")
    except DataError:
        return
    found = content(work / "out")
    assert found.keys() == whole.keys()
    if found != whole:
        # Only here can it not be known; and what is a PNG has checksums of its own.
        assert archives.without_checksums(work / name)
        with pytest.raises(DataError, match="cannot be decoded"):
            read_class_folders(work / "out")


def test_a_damaged_header_does_not_end_an_archive(source: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    whole = packed["a.tar"].read_bytes()
    for at in [at for at in range(0, len(whole), BLOCK) if whole[at + 257 : at + 262] == b"ustar"][1:]:
        broken = bytearray(whole)
        broken[at] ^= 1
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(DataError, match="a header is damaged"):
            archives.unpack(tmp_path / "a.tar", tmp_path / "out")
        shutil.rmtree(tmp_path / "out")


def test_it_is_said_what_cannot_be_known(packed: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar.gz"):
        command = ["data", "add", f"mok-{name[2:].replace('.', '-')}", str(packed[name]), "--data", str(tmp_path)]
        result = CliRunner().invoke(ddbench, command)
        assert result.exit_code == 0, result.stderr
        assert ("has no checksums" in result.stderr) == (name == "a.tar")
