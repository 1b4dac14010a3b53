"""Sets of strangers: any bytes end in a set or in one sentence, and small files stay small."""

import contextlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddbench.data import folders
from ddbench.errors import ConfigError, DataError, DdbenchError
from ddbench.foreign.diagnosis import diagnose
from ddbench.foreign.exporting import FORMATS, export
from ddbench.foreign.formats import read
from ddbench.foreign.importing import _claims as claims
from ddbench.foreign.importing import export_run
from ddbench.foreign.terms import Said
from ddbench.synthetic import Recipe, SyntheticSet, header_of, origin, save

IMAGES, LABELS = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
SET = SyntheticSet(IMAGES, LABELS, Recipe(lr=torch.tensor(0.1)), pixels="standard")
ABOUT = {"dataset": "digits", "method": "dm", "ipc": 2, "seed": 0, "classes": ["a", "b", "c"]}


def content(kind: Any, folder: Path) -> bytes:
    path = folder / f"set.{kind}"
    export(SET, path, kind, lambda: pytest.fail("the pixels fit already"), ABOUT)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sets")
    return {kind: content(kind, folder) for kind in FORMATS if kind != "png"}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), kind=st.sampled_from(["safetensors", "pt", "npz"]))
def test_any_damage_ends_in_a_set_or_a_sentence(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    bytes_ = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 3), label="faults")):
        at = data.draw(st.integers(0, len(bytes_) - 1), label="at")
        match data.draw(st.sampled_from(["flip", "cut", "zero", "swap"]), label="fault"):
            case "flip":
                bytes_[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
            case "cut":
                bytes_ = bytes_[: max(1, at)]
            case "zero":
                bytes_[at : at + 16] = bytes(len(bytes_[at : at + 16]))
            case "swap":
                bytes_[at:], bytes_[:at] = bytes_[:at], bytes_[at:]
                bytes_ = bytearray(bytes_) or bytearray(b"x")
    path = tmp_path_factory.getbasetemp() / f"hostile.{kind}"
    path.write_bytes(bytes_)
    with contextlib.suppress(DataError):
        for found in read(path):
            diagnose(found)


def odd_files() -> dict[str, Any]:
    loop: list[Any] = []
    loop.append(loop)
    part = {"images": IMAGES, "labels": LABELS}
    return {
        "sparse": part | {"images": IMAGES.to_sparse()},
        "meta": part | {"images": IMAGES.to("meta")},
        "quantised": part | {"images": torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.quint8)},
        "uint16": part | {"images": IMAGES.to(torch.uint16)},
        "complex": part | {"images": IMAGES.to(torch.complex64)},
        "float8-images": part | {"images": IMAGES.to(torch.float8_e4m3fn)},
        "float8-labels": part | {"labels": LABELS.float().to(torch.float8_e4m3fn)},
        "bool-labels": part | {"labels": LABELS > 1},
        "complex-labels": part | {"labels": LABELS.to(torch.complex64)},
        "large-labels": part | {"labels": LABELS + 10**8},
        "huge-labels": part | {"labels": LABELS + 2**62},
        "no-images": part | {"images": IMAGES[:0], "labels": LABELS[:0]},
        "one-number": part | {"images": torch.tensor(1.0), "labels": torch.tensor(1)},
        "list-in-itself": part | {"note": loop},
        "odd-claims": part | {"nan": float("nan"), "large": 10**400, "\x1b[2J": "\ud800", "sparse": IMAGES.to_sparse()},
        "nested": torch.nested.nested_tensor([IMAGES[0], IMAGES[1]]),
        "tensors-3": {
            "ddbench": '{"format": "ddbench.synthetic/1", "about": {}}',
            "data": [[IMAGES, LABELS]],
            "tensors": 3,
        },
        "data-5": {"ddbench": '{"format": "ddbench.synthetic/1", "about": {}}', "data": 5},
        "rate": part | {"lr": torch.tensor(1j)},
        "expanded": part | {"images": torch.zeros(1).expand(10**6, 3, 600, 600)},
        "expanded-labels": part | {"labels": torch.zeros(1).expand(6, 10**6)},
        "repeated": {"data": [[torch.zeros(64, 3, 64, 64), torch.arange(64)]] * 10_000},
    }


READ = {"float8-images", "float8-labels", "bool-labels", "list-in-itself", "odd-claims"}


@pytest.mark.filterwarnings("ignore")
def test_an_odd_tensor_ends_in_a_set_or_a_sentence(tmp_path: Path) -> None:
    for name, value in odd_files().items():
        path = tmp_path / f"{name}.pt"
        torch.save(value, path)
        if name not in READ:
            with pytest.raises(DataError, match=re.escape(path.name)):
                read(path)
            continue
        for found in read(path):
            json.dumps(dict(found.claims), allow_nan=False).encode()
            diagnose(found)


def test_an_archive_that_unpacks_to_gigabytes_is_left_alone(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**8, 1, 1, 1)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(10**8))
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    with pytest.raises(DataError, match="would unpack to 100000"):
        read(tmp_path / "bomb.npz")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.npz", "a.npy"])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / name)


def test_a_picture_is_a_file_of_a_size_that_can_be_decoded(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / label / "0.png")
    os.mkfifo(tmp_path / "b" / "1.png")
    with pytest.raises(DataError, match="no file"):
        folders.read_class_folders(tmp_path)
    (tmp_path / "b" / "1.png").unlink()
    (tmp_path / "b" / "1.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no file"):
        folders.read_class_folders(tmp_path)
    (tmp_path / "b" / "1.png").unlink()
    Image.new("1", (16_000, 11_000)).save(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match="more than 64 million"):
        folders.read_class_folders(tmp_path)


HEADER = header_of(SET, ABOUT)


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": ["a"]}, {"pixels": "a\nb"}, {"decode": [1]}, {"label_kind": 5}, {"recipe": []},
        {"recipe": {"steps": True}}, {"recipe": {"batch": 0}}, {"recipe": {"loss": "other"}},
        {"recipe": {"augment": {}}}, {"recipe": {"odd": 1}}, {"about": []}, {"about": "x"}, {"choice": {"step": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_of_other_kinds_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save(SET, tmp_path / "set.safetensors", ABOUT)
    raw = (tmp_path / "set.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    outer = json.loads(raw[8 : 8 + size])
    outer["__metadata__"]["ddbench"] = json.dumps({**HEADER, **change})
    head = json.dumps(outer).encode()
    (tmp_path / "set.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])
    with pytest.raises(DataError, match=r"set\.safetensors"):
        read(tmp_path / "set.safetensors")


@pytest.mark.parametrize("bad", ["/../x", "../x", True, -1, 1.5, [1], None, 10**30, "1", float("nan")])
def test_numbers_that_name_a_file_are_whole(bad: object) -> None:
    assert origin({"seed": bad, "ipc": bad, "dataset": "digits"}) == {"dataset": "digits"}


@pytest.mark.parametrize("bad", ["./x.py:y", "x.py", "..", "a/b", "", "a\n", 5, "x" * 101, ["digits"]])
def test_names_that_are_looked_up_are_names(bad: object) -> None:
    assert origin({"dataset": bad, "backbone": bad, "method": bad, "note": "kept"}) == {"note": "kept"}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_goes_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for number, about in enumerate([{"seed": "/../../out"}, {"ipc": "/../../out"}, {"method": "../../out"}]):
        save(SET, tmp_path / f"{number}.safetensors", {**ABOUT, **about})
    before = sorted(tmp_path.glob("*"))
    monkeypatch.chdir(here)
    for number in range(3):
        place, _ = export_run(Path(f"../{number}.safetensors"), kind, None, tmp_path)
        assert place.resolve().parent == here
    assert sorted(tmp_path.glob("*")) == before


@pytest.mark.parametrize("out", ["", ".", ".."])
def test_a_place_without_a_name_is_a_sentence(tmp_path: Path, out: str) -> None:
    save(SET, tmp_path / "a.safetensors", ABOUT)
    with pytest.raises(DdbenchError, match="names no file"):
        export_run(tmp_path / "a.safetensors", "npz", Path(out), tmp_path)


def png(folder: Path) -> None:
    export(SyntheticSet((255 * torch.rand(4, 1, 4, 4)).byte(), torch.arange(4) % 2), folder, "png", pytest.fail, ABOUT)


@pytest.mark.parametrize("mine", ["thesis.txt", "0/notes.txt", ".git/config", "0/extra/00000.png"])
def test_an_export_replaces_what_an_export_wrote_and_nothing_else(tmp_path: Path, mine: str) -> None:
    png(tmp_path / "pics")
    png(tmp_path / "pics")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pics"]
    path = tmp_path / "pics" / mine
    path.parent.mkdir(exist_ok=True)
    path.write_text("my only copy")
    with pytest.raises(DataError, match="left alone"):
        png(tmp_path / "pics")
    assert path.read_text() == "my only copy"


def test_an_export_takes_no_folder_for_its_own_that_another_program_made(tmp_path: Path) -> None:
    (tmp_path / "ddbench.json").write_text("{}")
    with pytest.raises(DataError, match="left alone"):
        png(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        png(tmp_path / "file")


def test_an_export_that_fails_in_the_middle_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(tmp_path / "pics")
    before = {path: path.read_bytes() for path in (tmp_path / "pics").rglob("*") if path.is_file()}

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddbench.foreign.exporting.put_folder", fail)
        with pytest.raises(KeyboardInterrupt):
            png(tmp_path / "pics")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_exports_of_a_set_are_equal_in_their_bytes(tmp_path: Path) -> None:
    for kind in ("pt", "npz", "safetensors"):
        (tmp_path / "b").mkdir(exist_ok=True)
        assert content(kind, tmp_path) == content(kind, tmp_path / "b")


def test_what_somebody_claims_is_kept_as_a_record_can_hold_it() -> None:
    values = {"accuracy": float("nan"), "more": 10**400, "a\x1b": "b\x1b", "fine": 0.5, "true": True}
    kept = claims(values)
    assert kept == {"accuracy": "nan", "more": str(10**400)[:20_000], "a�": "b�", "fine": 0.5, "true": True}


@pytest.mark.parametrize("said", [{"augment": "a\nb"}, {"augment": "\x1b"}, {"lr": 1e300}, {"lr": float("nan")}])
def test_what_a_person_says_of_a_set_is_what_a_record_can_hold(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Said(**said)
