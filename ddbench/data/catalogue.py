"""The shared datasets: shape, statistics, licence, where to get them.

Imports neither torch nor numpy, so that `ddbench list datasets` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ddbench.errors import ConfigError, closest

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, of pixels in [0, 1]


@dataclass(frozen=True)
class Copy:
    """Images of a dataset that somebody has had, by the fingerprints of training and test images together.

    `contents` is the fingerprint that does not depend on order. `title` is what boards add to the dataset's title;
    nothing for the original, whose images may come in another order than the authors'.
    """

    fingerprint: str
    contents: str
    about: str
    title: str = ""

    @property
    def original(self) -> bool:
        """Whether these are the images that the authors published, each of them and no other."""
        return not self.title


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a dataset before any of its files is read.

    `statistics` is empty where the mean and standard deviation are measured on the training images.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: int
    how: Literal["torchvision", "zip", "imagenet-folder", "embedded", "user"]
    class_names: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()  # class folders in class order
    statistics: Mapping[str, Statistics] = field(default_factory=dict, hash=False)
    licence: str = "yours"
    homepage: str = ""
    digits: bool = False  # a mirrored image would be another or no symbol: no horizontal flips
    train: int | None = None
    test: int | None = None
    download: str = ""
    url: str = ""
    md5: str = ""
    copies: tuple[Copy, ...] = ()
    aliases: tuple[str, ...] = ()


DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

MNIST_STATISTICS: Statistics = ((0.1307,), (0.3081,))
# The standard deviation is the mean of per-image deviations, not of pixels: an old slip that every published number
# since Dataset Condensation (Zhao et al., ICLR 2021) is built on.
CIFAR10_STATISTICS: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
LD_CIFAR_STATISTICS: Statistics = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)
IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_LICENCE = "ImageNet terms of access: non-commercial research and education"

# Ten ILSVRC 2012 classes each, in the class order of the MTT reference code (Cazenavette et al., CVPR 2022). An ILSVRC
# index is the rank of the WordNet id among the 1000 sorted ids.
SUBSETS: dict[str, tuple[str, dict[str, str]]] = {
    "imagenette": (
        "Imagenette",
        {
            "n01440764": "tench",
            "n02102040": "English springer",
            "n02979186": "cassette player",
            "n03000684": "chain saw",
            "n03028079": "church",
            "n03394916": "French horn",
            "n03417042": "garbage truck",
            "n03425413": "gas pump",
            "n03445777": "golf ball",
            "n03888257": "parachute",
        },
    ),
    "imagewoof": (
        "ImageWoof",
        {
            "n02096294": "Australian terrier",
            "n02093754": "Border terrier",
            "n02111889": "Samoyed",
            "n02088364": "beagle",
            "n02086240": "Shih-Tzu",
            "n02089973": "English foxhound",
            "n02087394": "Rhodesian ridgeback",
            "n02115641": "dingo",
            "n02099601": "golden retriever",
            "n02105641": "Old English sheepdog",
        },
    ),
    "imagefruit": (
        "ImageFruit",
        {
            "n07753275": "pineapple",
            "n07753592": "banana",
            "n07745940": "strawberry",
            "n07747607": "orange",
            "n07749582": "lemon",
            "n07768694": "pomegranate",
            "n07753113": "fig",
            "n07720875": "bell pepper",
            "n07718472": "cucumber",
            "n07742313": "Granny Smith",
        },
    ),
    "imagemeow": (
        "ImageMeow",
        {
            "n02123045": "tabby",
            "n02123159": "tiger cat",
            "n02123394": "Persian cat",
            "n02123597": "Siamese cat",
            "n02124075": "Egyptian cat",
            "n02129165": "lion",
            "n02129604": "tiger",
            "n02128925": "jaguar",
            "n02128757": "snow leopard",
            "n02127052": "lynx",
        },
    ),
    "imagesquawk": (
        "ImageSquawk",
        {
            "n01806143": "peacock",
            "n02007558": "flamingo",
            "n01818515": "macaw",
            "n02051845": "pelican",
            "n02056570": "king penguin",
            "n01614925": "bald eagle",
            "n01843383": "toucan",
            "n01518878": "ostrich",
            "n01860187": "black swan",
            "n01819313": "sulphur-crested cockatoo",
        },
    ),
    "imageyellow": (
        "ImageYellow",
        {
            "n02206856": "bee",
            "n12057211": "yellow lady's slipper",
            "n07753592": "banana",
            "n07749582": "lemon",
            "n12144580": "corn",
            "n04146614": "school bus",
            "n03530642": "honeycomb",
            "n02129165": "lion",
            "n01773157": "black and gold garden spider",
            "n01531178": "goldfinch",
        },
    ),
}


def _statistics(**named: Statistics) -> Mapping[str, Statistics]:
    return MappingProxyType(named)


# Made by others from the full-size files, and not with ddbench's resizing.
SUBSET_COPIES = {
    "imagenette": Copy(
        "b2:bd0b641dfbdee220",
        "b2:ff77b954e5b1ad8f",
        "the second split, resized to 128 px and re-encoded as WebP of quality 80",
        title="WebP copy, 9469 + 3925 images",
    ),
    "imagewoof": Copy(
        "b2:32d946ed55a483fd",
        "b2:1642f1f8e0828e08",
        "the second split, short side 128 px and centre crop, re-encoded as WebP of quality 75",
        title="WebP copy, 9025 + 3929 images",
    ),
}


def _imagenet_subset(name: str) -> DatasetInfo:
    title, classes = SUBSETS[name]
    return DatasetInfo(
        name=name,
        title=f"{title}, 128 px",
        shape=(3, 128, 128),
        classes=10,
        how="imagenet-folder",
        class_names=tuple(classes.values()),
        wnids=tuple(classes),
        statistics=_statistics(standard=IMAGENET_STATISTICS),
        licence=IMAGENET_LICENCE,
        homepage="https://www.image-net.org",
        test=500,
        download="no download: made from a folder of ImageNet classes",
        copies=tuple(copy for subset, copy in SUBSET_COPIES.items() if subset == name),
    )


CATALOGUE: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            title="Digits (UCI, 8x8)",
            shape=(1, 8, 8),
            classes=10,
            how="embedded",
            class_names=DIGITS,
            statistics=_statistics(standard=((0.3054,), (0.3760,))),
            licence="CC BY 4.0",
            homepage="https://archive.ics.uci.edu/dataset/80",
            digits=True,
            train=1438,
            test=359,
            download="nothing: comes with scikit-learn",
        ),
        DatasetInfo(
            name="mnist",
            title="MNIST",
            shape=(1, 28, 28),
            classes=10,
            how="torchvision",
            class_names=DIGITS,
            statistics=_statistics(standard=MNIST_STATISTICS, dd=MNIST_STATISTICS, ld=MNIST_STATISTICS),
            licence="CC BY-SA 3.0",
            homepage="http://yann.lecun.com/exdb/mnist",
            digits=True,
            train=60_000,
            test=10_000,
            download="12 MB",
            # Not from the gzipped files whose checksums torchvision has: the four files inside them.
            copies=(Copy("b2:2213507c978fad73", "b2:c7797d683de3d0fb", "the original"),),
        ),
        DatasetInfo(
            name="fashion-mnist",
            title="FashionMNIST",
            shape=(1, 28, 28),
            classes=10,
            how="torchvision",
            class_names=FASHION_CLASSES,
            statistics=_statistics(standard=((0.2861,), (0.3530,))),
            licence="MIT",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            train=60_000,
            test=10_000,
            download="31 MB",
            copies=(Copy("b2:b21a80da2c90aa3b", "b2:682f3dca75994be1", "the original"),),
            aliases=("fashionmnist", "fmnist"),
        ),
        DatasetInfo(
            name="svhn",
            title="SVHN",
            shape=(3, 32, 32),
            classes=10,
            how="torchvision",
            class_names=DIGITS,
            statistics=_statistics(standard=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
            licence="non-commercial use only",
            homepage="http://ufldl.stanford.edu/housenumbers",
            digits=True,
            train=73_257,
            test=26_032,
            download="246 MB",
        ),
        DatasetInfo(
            name="cifar10",
            title="CIFAR-10",
            shape=(3, 32, 32),
            classes=10,
            how="torchvision",
            class_names=CIFAR10_CLASSES,
            statistics=_statistics(
                standard=CIFAR10_STATISTICS,
                dd=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
                ld=LD_CIFAR_STATISTICS,
            ),
            licence="none stated by the authors",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            train=50_000,
            test=10_000,
            download="170 MB",
            copies=(
                Copy("b2:08b598556be91aaf", "b2:9838821f160f0825", "the original"),
                Copy(
                    "b2:a24a95f78f15a23b",
                    "b2:67d582b78d9125f9",
                    "re-encoded as JPEG of quality 75 with halved colour resolution",
                    title="JPEG copy",
                ),
            ),
            aliases=("cifar-10",),
        ),
        DatasetInfo(
            name="cifar100",
            title="CIFAR-100",
            shape=(3, 32, 32),
            classes=100,
            how="torchvision",
            class_names=CIFAR100_CLASSES,
            statistics=_statistics(
                standard=((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
                mtt=CIFAR10_STATISTICS,
                ld=LD_CIFAR_STATISTICS,
            ),
            licence="none stated by the authors",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            train=50_000,
            test=10_000,
            download="169 MB",
            # From PNG files of the authors' file names; mean and deviation of the channels are those published.
            copies=(
                Copy(
                    "b2:7a4d6ddedda99476", "b2:1b03edec096d4548", "lossless, class by class in the order of file names"
                ),
            ),
            aliases=("cifar-100",),
        ),
        DatasetInfo(
            name="tiny-imagenet",
            title="Tiny ImageNet",
            shape=(3, 64, 64),
            classes=200,
            how="zip",
            statistics=_statistics(standard=IMAGENET_STATISTICS),
            licence=IMAGENET_LICENCE,
            homepage="http://cs231n.stanford.edu",
            train=100_000,
            test=10_000,
            download="248 MB",
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
            copies=(
                Copy(
                    "b2:c34d1888803d62f0",
                    "b2:f90052e2d202342a",
                    "original files of 150 training and 25 validation images a class",
                    title="subset of 150 + 25 images a class",
                ),
            ),
            aliases=("tinyimagenet", "tiny", "tiny-imagenet-200"),
        ),
        *map(_imagenet_subset, SUBSETS),
    )
}


def known_copy(name: str, *, fingerprint: str = "", contents: str = "") -> Copy | None:
    """The copy of a dataset with this fingerprint, or else one of the same images in another order; None if none is."""
    entry = CATALOGUE.get(name)
    copies = entry.copies if entry is not None else ()
    same = (copy for copy in copies if copy.fingerprint == fingerprint)
    return next(same, None) or next((copy for copy in copies if contents and copy.contents == contents), None)


def find(name: str) -> DatasetInfo | None:
    """The catalogue's entry of a name or an alias, however it is spelled; None if there is none."""
    lowered = _lowered(name)
    return next((entry for entry in CATALOGUE.values() if lowered in (entry.name, *entry.aliases)), None)


def canonical(name: str) -> str:
    """The catalogue's spelling of `name`, or `name` in lower case where the catalogue has no such set."""
    entry = find(name)
    return _lowered(name) if entry is None else entry.name


def _lowered(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def info(name: str) -> DatasetInfo:
    """The catalogue's entry of a name or an alias.

    Raises: ConfigError, with the closest name, if there is none.
    """
    entry = find(name)
    if entry is None:
        raise ConfigError(
            f"the catalogue has no dataset {name!r}. {closest(canonical(name), list(CATALOGUE))}"
            f"It knows {', '.join(CATALOGUE)}. Your own images are added with `ddbench data add NAME PATH`."
        )
    return entry
