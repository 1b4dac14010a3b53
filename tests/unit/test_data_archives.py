"""Archives are unpacked whole or refused with a reason; hostile ones do no harm."""

import io
import random
import stat
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddbench.data import archives
from ddbench.data.archives import is_archive, unpack
from ddbench.errors import DataError

FILES = {"train/a/0.bin": b"zero", "train/b/1.bin": random.Random(0).randbytes(5000), "test/a/2.bin": b""}
SUFFIXES = [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"]
Pack = Callable[[str, dict[str, bytes]], Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    def write(suffix: str, files: dict[str, bytes]) -> Path:
        path = tmp_path / f"images{suffix}"
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            mode: Any = f"w:{suffix[5:]}"
            with tarfile.open(path, mode) as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return path

    return write


def one_member_tar(path: Path, **fields: object) -> Path:
    member = tarfile.TarInfo("train/a/evil")
    for name, value in fields.items():
        setattr(member, name, value)
    with tarfile.open(path, "w") as archive:
        archive.addfile(member)
    return path


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_gives_back_its_files(pack: Pack, tmp_path: Path, suffix: str) -> None:
    path = pack(suffix, FILES)
    assert is_archive(path)
    unpack(path, tmp_path / "out")
    assert everything_in(tmp_path / "out") == FILES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unpacking_tells_how_far_it_is(pack: Pack, tmp_path: Path, suffix: str) -> None:
    path = pack(suffix, {f"train/a/{k}": random.Random(k).randbytes(100_000) for k in range(30)})
    seen: list[tuple[int, int]] = []
    unpack(path, tmp_path / "out", lambda *step: seen.append(step))
    done = [far for far, _ in seen]
    assert {of for _, of in seen} == {path.stat().st_size}
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] <= path.stat().st_size


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_half_an_archive_is_noticed(pack: Pack, tmp_path: Path, suffix: str, kept: float) -> None:
    path = pack(suffix, FILES)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"images\S+ is (damaged|only half there)"):
        unpack(path, tmp_path / "out")


def test_a_tar_cut_between_two_members_is_noticed(pack: Pack, tmp_path: Path) -> None:
    path = pack(".tar", FILES)
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="the end marker is missing"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_no_archive_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(random.Random(1).randbytes(3000))
    with pytest.raises(DataError, match=r"images\S+ is (damaged|only half there)"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "\\evil", "C:\\evil"])
def test_no_member_leaves_the_folder(pack: Pack, tmp_path: Path, suffix: str, name: str) -> None:
    with pytest.raises(DataError, match="would land outside the folder"):
        unpack(pack(suffix, {name: b"x"}), tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]
    assert not Path("/evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = one_member_tar(tmp_path / "x.tar", type=kind, linkname="../../outside")
    with pytest.raises(DataError, match=r"'train/a/evil' is a (link|device)"):
        unpack(path, tmp_path / "out")
    assert everything_in(tmp_path / "out") == {}


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("train/a/evil")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="'train/a/evil' is a link"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a/0.png"))
    with pytest.raises(DataError, match=r"two members called 'a/0.png'"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_bomb_stops_before_the_disk_is_full(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = pack(suffix, {"small": b"x", "bomb": bytes(1 << 20)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(0, 0, archives.RESERVE + (1 << 19)))
    with pytest.raises(DataError, match=r"'bomb' of .* does not fit: it needs 1 MB"):
        unpack(path, tmp_path / "out")
    assert everything_in(tmp_path / "out") == {"small": b"x"}


def test_a_zip_that_lies_about_sizes_is_noticed(pack: Pack, tmp_path: Path) -> None:
    path = pack(".zip", {"a": bytes(100_000)})
    content = path.read_bytes()
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="is damaged"):
        unpack(path, tmp_path / "out")


def test_other_files_are_no_archives() -> None:
    assert is_archive(Path("A.TAR.XZ"))
    assert not is_archive(Path("images.npz"))
    assert not is_archive(Path("tar"))
