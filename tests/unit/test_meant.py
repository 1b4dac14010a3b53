"""Protocols and judges as people say them, to every command that chooses among results."""

from pathlib import Path

import pytest

from ddbench.backbones.names import canonical, parse
from ddbench.evaluation.meant import as_recorded, ids_of, is_any, is_judge, is_protocol
from ddbench.runs.record import read_record
from ddbench.runs.retraining import with_accuracies

RECORDS = Path(__file__).resolve().parents[1] / "golden" / "records"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ConvNet", "convnet"), ("ConvNet-D3-BN", "convnet-d3-bn"), ("ResNet18-AP-BN", "resnet18-bn-ap"),
        ("MLP", "mlp"), ("VGG11", "vgg11"), ("resnet-16-32-64", "resnet-16-32-64-he"),
    ],
)  # fmt: skip
def test_networks_are_named_as_papers_write_them(name: str, known: str) -> None:
    assert canonical(name) == canonical(name.lower()) == known
    assert parse(name) == parse(known)


@pytest.mark.parametrize(
    ("judge", "said", "meant"),
    [
        ("convnet-d3", "convnet", True), ("convnet-d3", "ConvNet-D3", True), ("convnet-d3", "convnet-in", True),
        ("convnet-d3", "convnet-d3-w128-relu", True), ("convnet-d3-bn", "ConvNet", True),
        ("convnet-d3-bn", "convnet-bn", True), ("convnet-d3-bn", "convnet-in", False),
        ("convnet-d4", "convnet-d3", False), ("convnet-d3-bn", "convnet-d3-in", False),
        ("resnet18-bn-ap", "ResNet18-AP-BN", True), ("resnet18-bn-ap", "resnet18-ap", False),
        ("resnet18", "resnet1", False), ("mlp", "nobody", False), ("nets.py:small@1a2b3c4d", "nets.py:small", True),
    ],
)  # fmt: skip
def test_a_judge_is_meant_in_any_spelling_or_by_how_it_begins(judge: str, said: str, meant: bool) -> None:
    assert is_judge(judge, said) is meant


def test_the_backbone_that_made_the_set_is_its_own() -> None:
    assert is_judge("mlp", "own", own="mlp")
    assert not is_judge("mlp", "Own", own="convnet-d3")
    assert is_any("mlp", [])


@pytest.mark.parametrize(("said", "meant"), [("NCFM", True), ("ncfm@1", True), ("ncfm@2", False), ("ncf", False)])
def test_a_protocol_without_a_version_is_all_of_them(said: str, meant: bool) -> None:
    assert is_protocol("ncfm@1", said) is meant


def test_files_stand_for_what_records_call_them(tmp_path: Path) -> None:
    (tmp_path / "look.toml").write_text('name = "quick-look"\n')
    (tmp_path / "nets.py").write_text("def small(shape, classes):\n    return None\n")
    assert ids_of([f"{tmp_path}/look.toml", "DSA"]) == ["quick-look@1", "DSA"]
    assert as_recorded([f"{tmp_path}/nets.py", "convnet"]) == [canonical(f"{tmp_path}/nets.py:small"), "convnet"]


def test_evaluations_of_a_record_are_chosen_as_rows_of_a_board_are() -> None:
    record = read_record(RECORDS / "dm-s0.json")
    found = [
        [(part.protocol, part.backbone) for part in with_accuracies(record, *said)]
        for said in ((["DSA"], ["ConvNet"]), (["dsa@1"], ["convnet-in-d3"]), (["dsa"], ["own"]))
    ]
    assert found == [[("dsa@1", "convnet-d3")]] * 3
