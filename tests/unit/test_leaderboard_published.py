from pathlib import Path

import pytest

from ddbench.data.catalogue import CATALOGUE
from ddbench.errors import RunError
from ddbench.leaderboard.published import (
    COLUMNS,
    belongs,
    beside,
    called,
    of_options,
    printed,
    published_file,
    read_published,
)
from ddbench.leaderboard.published import (
    FORMS as FORMS_OF_METHODS,
)
from ddbench.runs.resolving import find_method

CHECKOUT = Path(__file__).resolve().parents[2] / "leaderboards" / "published.csv"
ELSEWHERE = {"imagenet-1k", "imagenet-10"}


def number(method: str, dataset: str, ipc: int, protocol: str) -> tuple[str, str, str]:
    frame = read_published()
    fitting = frame[
        (frame["method"] == method)
        & (frame["dataset"] == dataset)
        & (frame["ipc"] == ipc)
        & (frame["protocol"] == protocol)
    ]
    first = fitting.iloc[0]
    return first["accuracy"], first["spread"], first["mark"]


def write(folder: Path, *rows: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_a_checkout_reads_its_own_file() -> None:
    assert published_file() == CHECKOUT


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "protocol", "expected"),
    [
        ("dm", "cifar10", 10, "dsa", ("48.9", "0.6", "V")),
        ("dsa", "cifar100", 50, "dsa", ("42.8", "0.4", "V")),
        ("dc", "svhn", 1, "dc", ("31.2", "1.4", "V")),
        ("cafe+dsa", "cifar10", 50, "dsa", ("62.3", "0.4", "V")),
        ("mtt", "tiny-imagenet", 50, "mtt", ("28.0", "0.3", "V")),
        ("mtt", "imagemeow", 10, "mtt", ("40.4", "2.2", "V")),
        ("whole", "imagesquawk", 0, "full", ("87.5", "0.3", "V")),
        ("ld", "cifar100", 1, "native-ld", ("11.5", "0.4", "V")),
        ("ld", "cifar10", 2, "native-ld", ("30.0", "0.9", "M")),
        ("kip-fc1 krr", "cifar10", 10, "krr-fc1", ("53.1", "0.5", "V")),
        ("random", "cifar10", 50, "dcbench-best", ("50.55", "", "V")),
        ("random", "mnist", 1, "dc", ("64.9", "3.5", "M")),
        ("datm", "cifar10", 1000, "native-datm", ("85.5", "0.4", "V")),
    ],
)
def test_numbers_are_those_of_the_sources(
    method: str, dataset: str, ipc: int, protocol: str, expected: tuple[str, str, str]
) -> None:
    assert number(method, dataset, ipc, protocol) == expected


def test_numbers_from_memory_are_kept_and_not_printed() -> None:
    frame = read_published()
    assert set(frame["mark"]) == {"V", "C", "M"}
    assert set(printed(frame)["mark"]) == {"V", "C"}


def test_every_number_says_where_it_is_from_and_on_which_known_data() -> None:
    frame = read_published()
    assert set(frame["dataset"]) <= set(CATALOGUE) | ELSEWHERE
    assert not frame.duplicated([name for name in COLUMNS if name not in ("accuracy", "spread", "mark")]).any()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("dm,cifar10,10,dsa,convnet-d3,convnet-d3,489,0.6,V,paper,", "line 2: accuracy is '489'"),
        ("dm,cifar10,10,dsa,convnet-d3,convnet-d3,48.9,x,V,paper,", "line 2: spread is 'x'"),
        ("dm,cifar10,10,dsa,convnet-d3,convnet-d3,48.9,0.6,S,paper,", "line 2: mark is 'S'"),
        ("dm,cifar10,-1,dsa,convnet-d3,convnet-d3,48.9,0.6,V,paper,", "line 2: ipc is '-1'"),
        ("dm,cifar10,10,dsa,convnet-d3,convnet-d3,48.9,0.6,V,,", "line 2: source is empty"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_published(write(tmp_path, row))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="has the columns a, b"):
        read_published(path)
    with pytest.raises(RunError, match="cannot be read"):
        read_published(tmp_path / "absent.csv")


def test_a_label_belongs_to_its_method_and_to_no_longer_name() -> None:
    assert belongs("dm", "dm")
    assert belongs("kip->nn width1024", "kip")
    assert belongs("cafe+dsa", "cafe")
    assert not belongs("dsa", "ds")
    assert not belongs("ls-convnet krr", "kip")
    assert not belongs("datm", "dm")


def test_a_number_stands_beside_the_options_that_it_was_published_of() -> None:
    numbers = [
        {"method": method, "protocol": protocol}
        for method, protocol in (("cafe", "cafe"), ("cafe+dsa", "dsa"), ("cafe+others", "cafe"), ("dm", "dsa"))
    ]
    names = lambda config: [row["method"] for row in of_options("cafe", config, numbers)]  # noqa: E731
    assert names({"dsa": False}) == ["cafe", "cafe+others"]
    assert names({"dsa": True}) == ["cafe+dsa"]
    labels = [row["method"] for row in numbers]
    assert [called("cafe", config, labels) for config in ({"dsa": True}, {"dsa": False}, {})] == [
        "cafe+dsa", "cafe", "cafe"
    ]  # fmt: skip
    assert called("dm", {"dsa": True}, labels) == "dm"
    # A method that has no such option is not told apart by it.
    assert names({}) == ["cafe", "cafe+dsa", "cafe+others"]
    # Under the recipe of its other variant too, cafe has its own number.
    assert [row["method"] for row in beside("cafe", "dsa@1", {"dsa": False}, numbers)] == ["cafe", "cafe+others"]
    assert [row["method"] for row in beside("cafe", "cafe@1", {"dsa": True}, numbers)] == ["cafe+dsa"]


MTT = {"grad": "auto", "experts": 100}  # as records have it: what came later and is at its default is left out
FORMS = ("mtt", "ftd", "tesla", "ncfm", "ncfm minimax", "ncfm minimax table 1")


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("mtt", MTT, ["mtt"]),
        ("mtt", MTT | {"rho_experts": 0.01, "ema": 0.9995}, ["ftd"]),
        # One of FTD's two factors was published by nobody.
        ("mtt", MTT | {"rho_experts": 0.01}, []),
        ("mtt", MTT | {"ema": 0.9995}, []),
        ("mtt", MTT | {"grad": "tesla"}, ["tesla"]),
        ("ncfm", {}, ["ncfm"]),
        ("ncfm", {"learned_frequencies": True}, ["ncfm minimax", "ncfm minimax table 1"]),
    ],
)
def test_what_papers_count_as_a_method_stands_beside_the_options_that_make_it(
    method: str, config: dict[str, object], expected: list[str]
) -> None:
    numbers = [{"method": label, "protocol": "own"} for label in FORMS]
    assert [row["method"] for row in of_options(method, config, numbers)] == expected
    if expected:
        assert called(method, config, FORMS) == expected[0]


def test_nobody_has_published_mosaics_of_real_images() -> None:
    numbers = printed(read_published()).to_dict("records")
    assert of_options("random", {}, numbers)
    assert of_options("random", {"factor": 2, "decode": "tiles(factor=2)"}, numbers) == []
    assert of_options("dance", {"factor": 2, "decode": "tiles(factor=2)"}, numbers)


def test_each_form_is_told_by_options_that_its_method_has() -> None:
    labels = set(read_published()["method"])
    for label, (method, options) in FORMS_OF_METHODS.items():
        assert label in labels
        fields = find_method(method)[1].Config.model_fields
        assert options.keys() <= fields.keys()
        # A run with the method's defaults is none of them.
        assert not any(bool(fields[name].default) for name, value in options.items() if value is True)


def test_of_several_networks_the_number_of_the_judge_stands_beside_it() -> None:
    of = read_published()
    numbers = of[(of["dataset"] == "cifar10") & (of["ipc"] == 10)].to_dict("records")
    found = {
        judge: [row["accuracy"] for row in beside("rded", "rded@2", {}, numbers, judge)]
        for judge in ("resnet18-bn-he", "convnet-d3-bn", "mlp")
    }
    assert found == {"resnet18-bn-he": ["37.1"], "convnet-d3-bn": ["50.2"], "mlp": ["37.1"]}


def test_hard_labels_of_hard_truths_are_the_numbers_of_dc_bench() -> None:
    # As both print them: a column of maxima over augmentations, beside one of soft labels under a recipe of its own.
    of = read_published()
    for method, there in (("random", "random"), ("k-center", "k-means"), ("dc", "dc"), ("dm", "dm"), ("mtt", "mtt")):
        for ipc in (10, 50):
            cell = of[(of["dataset"] == "cifar100") & (of["ipc"] == ipc)]
            printed_by = [
                cell[(cell["method"] == name) & (cell["protocol"] == protocol)]["accuracy"].item()
                for name, protocol in ((method, "hard-truths-hl"), (there, "dcbench-best"))
            ]
            assert printed_by[0] == printed_by[1]
