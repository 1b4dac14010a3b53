"""The catalogue names every shared dataset, and reading it costs nothing."""

import re
import subprocess
import sys

import pytest

from ddbench.data.catalogue import CATALOGUE, canonical, info, known_copy
from ddbench.errors import ConfigError

NAMES = """digits mnist fashion-mnist svhn cifar10 cifar100 tiny-imagenet imagenette imagewoof imagefruit imagemeow
imagesquawk imageyellow"""

# Positions of the subsets' classes among the 1000 ILSVRC classes, as printed in the MTT card.
ILSVRC = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}


def test_the_catalogue_imports_neither_torch_nor_numpy() -> None:
    program = "import sys, ddbench.data.catalogue; sys.exit(bool({'torch', 'numpy', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_catalogue_has_the_shared_datasets() -> None:
    assert set(CATALOGUE) == set(NAMES.split())
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.title
        assert entry.licence
        assert entry.homepage.startswith("http")
        assert len(entry.class_names or range(entry.classes)) == entry.classes


def test_numbers_are_those_of_the_protocol_page() -> None:
    assert info("cifar10").statistics["standard"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert info("cifar100").statistics["mtt"] == info("cifar10").statistics["standard"]
    assert info("cifar10").statistics["ld"][0][0] == pytest.approx(125.3 / 255)
    assert (info("svhn").train, info("svhn").test) == (73_257, 26_032)
    assert info("tiny-imagenet").shape == (3, 64, 64)
    assert {name for name in CATALOGUE if CATALOGUE[name].digits} == {"digits", "mnist", "svhn"}


def test_subset_classes_are_the_positions_of_the_mtt_card() -> None:
    torchvision_names = pytest.importorskip("torchvision.models._meta")._IMAGENET_CATEGORIES
    for name, positions in ILSVRC.items():
        assert CATALOGUE[name].class_names == tuple(torchvision_names[position] for position in positions)


def test_wordnet_ids_are_in_the_order_of_their_positions() -> None:
    wnids = {
        wnid: position for name in ILSVRC for wnid, position in zip(CATALOGUE[name].wnids, ILSVRC[name], strict=True)
    }
    assert len(wnids) == len(set(wnids.values())) == 57
    assert sorted(wnids) == sorted(wnids, key=lambda wnid: wnids[wnid])


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("CIFAR-10", "cifar10"),
        ("cifar_100", "cifar100"),
        ("FashionMNIST", "fashion-mnist"),
        ("tinyimagenet", "tiny-imagenet"),
    ],
)
def test_other_spellings_are_understood(alias: str, name: str) -> None:
    assert info(alias).name == canonical(alias) == name


def test_a_mistyped_name_gets_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"no dataset 'cifar1'. Did you mean 'cifar10'\?"):
        info("cifar1")


def test_every_known_copy_has_fingerprints_of_its_own_and_says_what_it_is() -> None:
    copies = [copy for entry in CATALOGUE.values() for copy in entry.copies]
    prints = [text for copy in copies for text in (copy.fingerprint, copy.contents)]
    assert len(set(prints)) == len(prints) >= 16
    assert all(re.fullmatch(r"b2:[0-9a-f]{16}", text) for text in prints)
    assert all(copy.about for copy in copies)
    assert known_copy("cifar10", fingerprint="b2:08b598556be91aaf", contents="") == CATALOGUE["cifar10"].copies[0]
    # In another order: known by what is in it.
    assert known_copy("cifar100", fingerprint="b2:0", contents="b2:1b03edec096d4548") == CATALOGUE["cifar100"].copies[0]
    assert known_copy("cifar10", fingerprint="b2:0") is None
    assert known_copy("flowers", fingerprint="b2:08b598556be91aaf") is None
