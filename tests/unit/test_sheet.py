"""The small picture of a set that lies beside its record."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddbench import SyntheticSet
from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.toy import toy
from ddbench.errors import DataError
from ddbench.files import write_json
from ddbench.leaderboard import sheets
from ddbench.leaderboard.boards import add, build, check
from ddbench.leaderboard.sheets import read_sheet, sheet_file
from ddbench.runs import sheet as drawing
from ddbench.runs.record import CurvePoint, SheetPart, read_record
from ddbench.runs.sheet import MOST_BYTES, sheet


class NoWayBack(PixelSpace):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def back(self, images: torch.Tensor) -> None:
        return None


NOWHERE = NoWayBack("nowhere", "b2:0")


def noise(classes: int, ipc: int, *shape: int) -> SyntheticSet:
    images = torch.randint(0, 256, (classes * ipc, *shape), generator=torch.Generator().manual_seed(0))
    return SyntheticSet(images.to(torch.uint8), torch.arange(classes).repeat_interleave(ipc))


def drawn(synthetic: SyntheticSet, space: PixelSpace = NOWHERE) -> tuple[bytes, SheetPart, np.ndarray]:
    found = sheet(synthetic, space)
    assert found is not None
    return *found, np.asarray(Image.open(io.BytesIO(found[0])))


def test_a_class_is_a_column_and_its_images_come_from_the_top() -> None:
    data = toy(3)
    space = fit_pixels("standard", data.train, data.info)
    images, labels = data.train.images[[0, 80, 40, 1, 81, 41]], data.train.labels[[0, 80, 40, 1, 81, 41]]
    assert labels.tolist() == [0, 2, 1, 0, 2, 1]
    _, part, picture = drawn(SyntheticSet(space.forward(images), labels), space)
    assert (part.classes, part.rows, part.stretched) == (3, 2, False)
    assert picture.shape == (2 * 9, 3 * 9, 3)
    for place, (row, column) in enumerate([(0, 0), (0, 2), (0, 1), (1, 0), (1, 2), (1, 1)]):
        shown = picture[9 * row : 9 * row + 8, 9 * column : 9 * column + 8, 0]
        assert (shown == images[place, 0].numpy()).all()
    assert (picture[8::9] == 255).all()


@pytest.mark.parametrize(
    ("synthetic", "classes", "rows"),
    [
        (noise(10, 1, 3, 32, 32), 10, 1),
        (noise(10, 10, 3, 32, 32), 10, 5),
        (noise(12, 12, 1, 8, 8), 10, 10),
        (noise(10, 2, 3, 96, 64), 10, 2),
    ],
)
def test_a_sheet_is_small_and_the_same_every_time(synthetic: SyntheticSet, classes: int, rows: int) -> None:
    data, part, picture = drawn(synthetic)
    assert len(data) == part.bytes <= MOST_BYTES
    assert hashlib.sha256(data).hexdigest() == part.sha256
    assert part.classes == classes
    # How well noise is compressed is a matter of the version of WebP.
    assert abs(part.rows - rows) <= (1 if rows == 5 else 0)
    height, width = synthetic.images.shape[-2:]
    side = max(1, max(height, width) / 64)
    assert picture.shape == (part.rows * (round(height / side) + 1), classes * (round(width / side) + 1), 3)
    assert sheet(synthetic, NOWHERE) == (data, part)


def test_classes_without_images_take_no_room() -> None:
    part = drawn(SyntheticSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([7, 2, 7])))[1]
    assert (part.classes, part.rows) == (2, 2)


def test_images_without_a_way_back_are_stretched() -> None:
    images = torch.randn(2, 1, 8, 8)
    data, part, _ = drawn(SyntheticSet(images, torch.tensor([0, 1])))
    assert part.stretched
    assert drawn(SyntheticSet(images * 3 + 5, torch.tensor([0, 1])))[0] == data


def test_where_pictures_cannot_be_written_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing.features, "check", lambda feature: False)
    assert sheet(noise(2, 1, 1, 8, 8), NOWHERE) is None


def finished(root: Path) -> Path:
    (path,) = root.glob("digits/*/*/*/record.json")
    return path


def unsheeted(path: Path) -> None:
    """The run as an earlier version left it."""
    value: dict[str, Any] = json.loads(path.read_text())
    del value["sheet"]
    write_json(path, value, sealed=True)
    sheet_file(path).unlink()


def test_a_run_ends_with_a_sheet_that_its_record_names(root: Path) -> None:
    path = finished(root)
    record = read_record(path)
    assert record.sheet is not None
    assert (record.sheet.classes, record.sheet.rows) == (10, 1)
    assert read_sheet(path, record) == (path.parent / "sheet.webp").read_bytes()


def test_a_record_takes_its_sheet_along(root: Path, tmp_path: Path) -> None:
    path, board = finished(root), tmp_path / "leaderboards"
    (place,) = add([path.parent], board, allow_dirty=True)
    assert read_sheet(place, read_record(place)) == read_sheet(path, read_record(path))
    build(board)
    assert check(board) == []
    # Added again without the picture, and without its run, the record keeps the one that is there.
    unsheeted(path)
    alone = tmp_path / "alone" / "record.json"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    assert add([alone], board, allow_dirty=True) == [place]
    assert read_sheet(place, read_record(place)) is not None


def test_a_run_of_an_earlier_version_gets_a_sheet_on_its_way(root: Path, tmp_path: Path) -> None:
    path = finished(root)
    before = read_record(path).sheet
    unsheeted(path)
    assert read_sheet(path, read_record(path)) is None
    notes: list[str] = []
    (place,) = add([path.parent], tmp_path / "leaderboards", allow_dirty=True, notes=notes)
    assert read_record(place).sheet == before
    assert read_sheet(place, read_record(place)) is not None
    assert notes == []


def test_a_run_of_an_earlier_version_takes_its_curves_along(root: Path, tmp_path: Path) -> None:
    path = finished(root)
    record = read_record(path)
    (judged,) = record.evaluations
    curve = {
        "protocol": judged.protocol, "digest": judged.digest, "backbone": judged.backbone,
        "synthetic": record.synthetic.sha256, "file_schema": "ddbench.curve/1",
        "points": [{"step": 2, "seconds": None, "accuracy": list(judged.accuracy), "failed": ""}],
    }  # fmt: skip
    write_json(path.parent / "evaluations" / judged.protocol / "mlp.curve.json", curve, sealed=True)
    (place,) = add([path.parent], tmp_path / "leaderboards", allow_dirty=True)
    (found,) = read_record(place).curves
    assert found.points == (CurvePoint(step=2, seconds=None, accuracy=judged.accuracy),)


def test_a_record_without_a_picture_is_worth_adding(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished(root)
    sheet_file(path).write_bytes(b"another picture")

    def fails(*_: object) -> None:
        raise DataError("its dataset is not there.")

    monkeypatch.setattr(sheets, "_drawn", fails)
    notes: list[str] = []
    (place,) = add([path.parent], tmp_path / "leaderboards", allow_dirty=True, notes=notes)
    assert (read_record(place).sheet, sheet_file(place).exists()) == (None, False)
    assert notes == [f"{path} is added without a picture of its set: its dataset is not there."]


def test_check_finds_sheets_that_are_not_what_records_name(root: Path, tmp_path: Path) -> None:
    board = tmp_path / "leaderboards"
    (place,) = add([finished(root)], board, allow_dirty=True)
    build(board)
    picture, name = sheet_file(place), sheet_file(place).relative_to(board).as_posix()
    picture.rename(picture.with_name("other.webp"))
    lost = f"{picture.parent.relative_to(board).as_posix()}/other.webp belongs to no record"
    assert check(board) == [f"{name} is missing: the record beside it names a picture", lost]
    picture.with_name("other.webp").unlink()
    picture.write_bytes(b"another picture")
    assert check(board) == [f"{name} is not the picture that the record beside it names"]


def test_earlier_records_have_no_sheet(write: Callable[..., Path]) -> None:
    path = write("record.json")
    assert read_record(path).sheet is None
    assert read_sheet(path, read_record(path)) is None
