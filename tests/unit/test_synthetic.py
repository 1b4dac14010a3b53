"""A set is checked once, on creation, and comes back from its file as it was."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddbench import Choice, Recipe, SyntheticSet
from ddbench.errors import DataError, RunError
from ddbench.synthetic import FORMAT, load, read_header, save

IMAGES = torch.zeros(4, 1, 8, 8)
LABELS = torch.tensor([0, 0, 1, 1])
SOFT = torch.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"images": torch.zeros(4, 64)}, r"images of shape \[N, C, H, W\], got \(4, 64\)"),
        ({"images": torch.zeros(0, 1, 8, 8)}, r"images of shape \[N, C, H, W\], got \(0, 1, 8, 8\)"),
        ({"images": IMAGES.double()}, r"float32, or uint8 raw pixels; got torch\.float64"),
        ({"labels": LABELS[:3]}, "there are 4 images and 3 label rows; give one for each"),
        ({"labels": LABELS.float()}, r"class labels are int64 of shape \[N\]; got torch\.float32"),
        ({"labels": LABELS[:, None]}, r"class labels are int64 of shape \[N\]; got torch\.int64 \(4, 1\)"),
        ({"labels": LABELS - 1}, "class labels start at 0; the smallest here is -1"),
        ({"labels": SOFT, "label_kind": "probabilities"}, "no 'probabilities' labels; known are class, probability"),
        ({"label_kind": "logit"}, r"logit labels are float32 of shape \[N, K\]; got torch\.int64 \(4,\)"),
        ({"labels": SOFT.double(), "label_kind": "logit"}, r"logit labels are float32.*got torch\.float64"),
        (
            {"source_indices": torch.arange(3)},
            r"source indices are int64, one for each of 4 images; got torch\.int64 \(3,\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        SyntheticSet(**{"images": IMAGES, "labels": LABELS} | parts)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"lr": torch.ones(2), "schedule": torch.tensor([[0], [1], [2]])}, "2 step sizes for 3 steps"),
        ({"lr": torch.tensor(float("nan"))}, "step size is not finite"),
        ({"lr": torch.tensor([0.1, float("inf")])}, "step size is not finite"),
        ({"lr": torch.ones(2, 2)}, r"one number or one for each step; got shape \(2, 2\)"),
        ({"schedule": torch.tensor([0, 1])}, r"int64 of shape \[T, B\]; got torch\.int64 \(2,\)"),
        ({"schedule": torch.zeros(0, 2, dtype=torch.int64)}, r"\[T, B\]; got torch\.int64 \(0, 2\)"),
        ({"schedule": torch.zeros(1, 2)}, r"\[T, B\]; got torch\.float32"),
        ({"schedule": torch.tensor([[0, 4]])}, "the schedule names image 4, and there are 4; indices start at 0"),
        ({"schedule": torch.tensor([[-1, 0]])}, "indices start at 0"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        SyntheticSet(IMAGES, LABELS, Recipe(**parts))


def test_soft_labels_have_hard_ones() -> None:
    soft = SyntheticSet(IMAGES, torch.tensor([[0.1, 0.9], [0.8, 0.2], [3.0, 4.0], [0.0, -1.0]]), label_kind="logit")
    assert soft.soft
    assert soft.hard_labels.tolist() == [1, 0, 1, 0]
    hard = SyntheticSet(IMAGES, LABELS)
    assert not hard.soft
    assert hard.hard_labels is hard.labels


def test_bytes_are_those_that_a_receiver_stores() -> None:
    assert SyntheticSet(IMAGES, LABELS).nbytes == 4 * 64 * 4 + 4 * 8
    chosen = SyntheticSet(IMAGES.to(torch.uint8), LABELS, source_indices=torch.arange(4))
    assert chosen.stored == "uint8"
    assert chosen.nbytes == 4 * 64 + 4 * 8
    learned = SyntheticSet(
        IMAGES,
        SOFT,
        Recipe(lr=torch.ones(3), schedule=torch.zeros(3, 2, dtype=torch.int64)),
        label_kind="probability",
        start={"linear.weight": torch.zeros(2, 5)},
    )
    assert learned.nbytes == 4 * 64 * 4 + 4 * 2 * 4 + 3 * 4 + 6 * 8 + 10 * 4


def test_finite_looks_at_every_number() -> None:
    inf = torch.full((1,), torch.inf)
    assert SyntheticSet(IMAGES, LABELS, start={"bias": torch.zeros(1)}).finite()
    assert not SyntheticSet(IMAGES, LABELS, start={"bias": inf}).finite()
    assert not SyntheticSet(IMAGES + inf, LABELS).finite()
    assert not SyntheticSet(IMAGES, SOFT * inf, label_kind="regression").finite()


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    vector = torch.arange(6.0)
    synthetic = SyntheticSet(
        IMAGES.expand(4, 3, 8, 8),
        torch.arange(4),
        start={"weight": vector[:4].view(2, 2), "bias": vector[4:], "all": vector},
    )
    save(synthetic, tmp_path / "set.safetensors")
    back = load(tmp_path / "set.safetensors")
    assert torch.equal(back.start["weight"], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(back.start["bias"], torch.tensor([4.0, 5.0]))
    assert back.images.shape == (4, 3, 8, 8)


def test_the_file_is_one_and_says_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set.safetensors"
    save(SyntheticSet(IMAGES, LABELS, pixels="zca(eps=0.1)"), path, {"dataset": "cifar10", "ipc": 2})
    assert [p.name for p in path.parent.iterdir()] == ["set.safetensors"]
    header = read_header(path)
    assert header["about"] == {"dataset": "cifar10", "ipc": 2}
    assert header["pixels"] == "zca(eps=0.1)"
    assert load(path).pixels == "zca(eps=0.1)"


def test_the_same_set_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(SyntheticSet(IMAGES, LABELS, start={"w": torch.ones(2), "b": torch.ones(1)}), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.safetensors"):
        load(tmp_path / "gone.safetensors")


def test_a_file_cut_anywhere_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save(SyntheticSet(IMAGES, LABELS), path)
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"not a readable safetensors file.*it may be half-written"):
            load(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "set.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load(path)
    torch.save({"images": IMAGES}, path)
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"ddbench": "not json"}, {"ddbench": "[1]"}])
def test_a_foreign_safetensors_file_is_told_apart(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"images": IMAGES}, path, metadata=metadata)
    with pytest.raises(DataError, match=r"weights\.safetensors is not a ddbench synthetic set \(format None"):
        load(path)


def rewrite(path: Path, *, header: dict[str, Any] | None = None, without: str = "") -> None:
    """Change a set's file: other header entries, or one tensor or header entry less."""
    values = read_header(path) | (header or {})
    values.pop(without, None)
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != without}
    save_file(tensors, path, metadata={"ddbench": json.dumps(values)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"header": {"format": "ddbench.synthetic/9"}}, r"not a ddbench synthetic set \(format 'ddbench.synthetic/9'"),
        ({"without": "labels"}, "damaged, or was made by a newer ddbench"),
        ({"without": "recipe"}, "damaged, or was made by a newer ddbench"),
        ({"header": {"recipe": {"teacher": "resnet18"}}}, "made by a newer ddbench.*teacher"),
        ({"header": {"recipe": None}}, "damaged, or was made by a newer ddbench"),
        ({"header": {"label_kind": "logit"}}, "logit labels are float32"),
    ],
)
def test_a_file_with_other_parts_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "set.safetensors"
    save(SyntheticSet(IMAGES, LABELS), path)
    rewrite(path, **change)
    with pytest.raises(DataError, match=why):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"accuracy": None},
        {"accuracy": "0.5"},
        {"accuracy": 50.0},
        {"images": 0.5},
        {"students": -1},
        {"protocol": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_choice_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "set.safetensors"
    choice = {"step": 1, "accuracy": 0.5, "images": 40, "students": 2, "protocol": "mtt@1"}
    save(SyntheticSet(IMAGES, LABELS, choice=Choice(**choice)), path)  # type: ignore[arg-type]
    assert load(path).choice == Choice(**choice)  # type: ignore[arg-type]
    rewrite(path, header={"choice": choice | change})
    with pytest.raises(DataError, match=r"a choice says step, accuracy|damaged, or was made by a newer ddbench"):
        load(path)


def test_the_format_is_in_the_header(tmp_path: Path) -> None:
    save(SyntheticSet(IMAGES, LABELS), tmp_path / "set")
    assert read_header(tmp_path / "set")["format"] == FORMAT == "ddbench.synthetic/1"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.safetensors"
    save(SyntheticSet(IMAGES, LABELS), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunError, match="the disk is full"):
        save(SyntheticSet(IMAGES + 1, LABELS), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["set.safetensors"]
