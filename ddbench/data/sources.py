"""Getting datasets: download, bring your own, what is there; and loading what is there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from ddbench import plugins
from ddbench.data import cache
from ddbench.data.archives import ensure_space, is_archive, unpack
from ddbench.data.arrays import find_idx, read_idx, read_npz
from ddbench.data.cache import Content, Progress
from ddbench.data.catalogue import CATALOGUE, DatasetInfo, canonical, info, known_copy
from ddbench.data.dataset import Dataset, TestData
from ddbench.data.folders import read_image_folder, read_labelled_folder
from ddbench.data.manifests import Manifest, find, find_all
from ddbench.data.mistaken import refuse_mistaken
from ddbench.data.parts import base_folder
from ddbench.data.tensors import DatasetTensors
from ddbench.errors import ConfigError, DataError, DdbenchError, PluginError, closest, mistyped
from ddbench.files import open_regular, state_of
from ddbench.text import MOST_NAME, PLAIN_NAME

GROUP = plugins.GROUPS["dataset"]
CHECKSUMMED = "torchvision (checksummed original files)"
DIGITS_HELD_OUT = 0.2
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
DOWNLOAD_CHUNK = 1 << 18
DOWNLOAD_SECONDS = 1.0  # between two looks at what is there

# The class of torchvision.datasets, and a file or folder that marks its original files.
TORCHVISION = {
    "mnist": ("MNIST", None),
    "fashion-mnist": ("FashionMNIST", None),
    "svhn": ("SVHN", "train_32x32.mat"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


def load(name: str, root: Path) -> Dataset:
    """A dataset from the data folder, built in, or from a plug-in of the group `ddbench.datasets`.

    Raises: DataError if it is not there or damaged; PluginError if its plug-in does not work.
    """
    known = canonical(name)
    if known == "digits":
        return _digits()
    if known == "toy":
        from ddbench.data.toy import toy

        return toy()
    # A sweep of thousands of runs asks for the same one each time.
    files = [root / known / name for name in ("manifest.json", "train.safetensors", "test.safetensors")]
    state, (before, kept) = state_of(*files), _loaded.get((str(root), known), (None, None))
    if kept is not None and state == before:
        return kept
    cache.put_back(root, known)
    manifest = find(root, known)
    if manifest is None:
        return _from_plugin(name, root)
    found = CATALOGUE.get(known) or _user_info(manifest)
    test = TestData(lambda: cache.read_part(root, manifest, "test"))
    dataset = Dataset(found, cache.read_part(root, manifest, "train"), test, manifest)
    if state is not None:
        _loaded[str(root), known] = (state, dataset)
    return dataset


def info_of(name: str, root: Path) -> DatasetInfo | None:
    """What is known of a dataset without its images: from the catalogue, from the data folder, or from its plug-in.

    None if there is no such dataset. Raises: DataError if its manifest is damaged, PluginError if its plug-in does not
    work.
    """
    known = canonical(name)
    entry = CATALOGUE.get(known)
    if entry is not None:
        return entry
    if known != "toy" and not plugins.names_code(name):
        cache.put_back(root, known)
        manifest = cache.find(root, known)
        if manifest is not None:
            return _user_info(manifest)
        if not plugins.named(GROUP, name):
            return None
    return load(name, root).info


_loaded: dict[tuple[str, str], tuple[tuple[int, ...] | None, Dataset | None]] = {}


def installed(root: Path) -> list[Manifest]:
    """The manifests of the datasets in the data folder, by name."""
    return find_all(root)


def get(name: str, root: Path, progress: Progress | None = None, *, force: bool = False) -> Manifest:
    """Download a dataset of the catalogue into the data folder; nothing happens if its original is there.

    Raises: ConfigError if the catalogue has no such set; DataError if it cannot be downloaded, or if a copy of it is
    there and `force` is not given.
    """
    entry = info(name)
    if entry.how == "embedded":
        return _digits().manifest
    if entry.how == "imagenet-folder":
        raise DataError(
            f"{entry.name} cannot be downloaded by ddbench: the terms of ImageNet do not allow it. Get ImageNet from "
            f"{entry.homepage}, then `ddbench data add {entry.name} FOLDER`; the folder has train/WNID and val/WNID."
        )
    with cache.building(root, entry.name, progress) as work:
        there = None if force else find(root, entry.name)
        if there is not None and there["original"]:
            return there
        if there is not None:
            raise DataError(
                f"the data folder '{root}' has {entry.name} already, as {there['title']!r} ({there['origin']}). "
                "Use another --data folder, or replace it with --force."
            )
        downloads = work / "downloads"
        downloads.mkdir()
        if entry.how == "torchvision":
            with _watched(downloads, entry, progress or _silent):
                content = _from_torchvision(entry, downloads, download=True)
        else:
            archive = downloads / entry.url.rpartition("/")[2]
            _download(entry, archive, progress)
            content = _read(archive, entry, None, work, progress)
        (progress or _silent)("storing", 0, 1)
        return _install(entry.name, entry, content, root, work, force=force)


def add(
    name: str,
    path: Path,
    root: Path,
    size: int | None = None,
    progress: Progress | None = None,
    *,
    labels: Sequence[Path] = (),
    columns: str = "",
    force: bool = False,
) -> Manifest:
    """Add a folder, an archive or a `.npz` file to the data folder, as a set of the catalogue or under your own name.

    `labels` are CSV files that say the classes of images, and `columns` which columns of them are meant: see
    `labelled.read_tables`.
    Raises: ConfigError if the name cannot be used; DataError if the files are damaged or not what the name says, or if
    other data has that name and `force` is not given. Nothing is half-written then.
    """
    known = canonical(name)
    entry = CATALOGUE.get(known)
    if entry is None:
        known = _own_name(name)
    elif entry.how == "embedded":
        raise ConfigError(f"{known} is built in; use another name for your own images.")
    if size is not None and size < 1:
        raise ConfigError(f"the size of images must be at least 1 pixel, not {size}.")
    if entry is not None and size not in (None, entry.shape[1]):
        raise ConfigError(f"{known} has images of {entry.shape[1]} pixels, not {size}. Choose a name of your own.")
    if not path.exists():
        raise DataError(f"'{path}' does not exist, so it cannot be added as {known}.")
    with cache.building(root, known, progress) as work:
        (progress or _silent)("reading", 0, 1)
        content = _read(path, entry, size, work, progress, _Tables(tuple(labels), columns))
        (progress or _silent)("storing", 0, 1)
        return _install(known, entry, content, root, work, force=force)


def removable(name: str, root: Path) -> tuple[str, list[Path], Manifest | None]:
    """What can be removed of a dataset: its canonical name, its paths, and its manifest where that can be read.

    Raises: ConfigError if it is not a dataset of the data folder; DataError if it is not there, or something else is.
    """
    known = canonical(name)
    entry = CATALOGUE.get(known)
    if known == "toy" or (entry is not None and entry.how == "embedded"):
        raise ConfigError(f"{known} is built in: it takes no room in the data folder, and cannot be removed.")
    paths = cache.remains(root, known) if NAME.fullmatch(known) else []
    if not paths:
        for plugin in plugins.named(GROUP, name):
            raise ConfigError(f"{name} comes with {plugin.provided_by}, and is not in the data folder '{root}'.")
        there = [manifest["name"] for manifest in installed(root)]
        raise DataError(
            f"{known} is not in the data folder '{root}'. {closest(known, there)}`ddbench data list` shows what is "
            "there."
        )
    try:
        return known, paths, find(root, known)
    except DataError:
        return known, paths, None


def _install(
    name: str, entry: DatasetInfo | None, content: Content, root: Path, work: Path, *, force: bool
) -> Manifest:
    _refuse_empty_classes(content)
    if entry is not None:
        _check(entry, content)
    fingerprint = cache.whole_fingerprint(content.train, content.test)
    copy = known_copy(name, fingerprint=fingerprint, contents=cache.whole_contents(content.train, content.test))
    original = content.original or (copy is not None and copy.original)
    title = f"{entry.title}, {copy.title}" if entry and copy and copy.title else _title(name, entry, content, original)
    manifest = cache.make_manifest(name, title, content, original)
    return cache.install(root, work, content, manifest, force=force)


def _refuse_empty_classes(content: Content) -> None:
    for part, data in (("training", content.train), ("test", content.test)):
        empty = [name for name, count in zip(data.classes, data.counts.tolist(), strict=True) if not count]
        if empty:
            raise DataError(f"class {empty[0]!r} has no {part} images. Every class needs some in both parts.")


def _check(entry: DatasetInfo, content: Content) -> None:
    for part, data in (("training", content.train), ("test", content.test)):
        if data.shape != entry.shape or len(data.classes) != entry.classes:
            raise DataError(
                f"this is not {entry.title}: its {part} images have shape {data.shape} and "
                f"{len(data.classes)} classes; {entry.name} has shape {entry.shape} and {entry.classes} classes. "
                "Choose a name of your own for another dataset."
            )


def _title(name: str, entry: DatasetInfo | None, content: Content, original: bool) -> str:
    if entry is None:
        return name
    parts = [entry.title]
    # ImageNet subsets are made from JPEG files by ddbench itself; there is no other original to copy.
    if not original and not (entry.wnids and content.kind == "JPEG"):
        parts.append(f"{content.kind} copy")
    counts = (len(content.train), len(content.test))
    if any(known not in (None, count) for known, count in zip((entry.train, entry.test), counts, strict=True)):
        parts.append(f"{counts[0]} + {counts[1]} images")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Tables:
    """What was said of tables that hold the classes of images."""

    files: tuple[Path, ...] = ()
    columns: str = ""

    def refuse(self, what: str) -> None:
        """Raise ConfigError where tables were named for something that says its classes itself."""
        if self.files:
            raise ConfigError(f"--labels is for images in a folder or an archive, and {what} has its own labels.")

    def found(self, folder: Path) -> list[Path]:
        """Where the tables lie: as they are named, or in the folder or archive of the images."""
        return [path if path.exists() or not (folder / path).is_file() else folder / path for path in self.files]


NO_TABLES = _Tables()


def _read(
    path: Path, entry: DatasetInfo | None, size: int | None, work: Path, progress: Progress | None,
    tables: _Tables = NO_TABLES,
) -> Content:  # fmt: skip
    """Whatever is at `path`: a folder, an archive, a `.npz` file."""
    shown = str(path)
    if path.is_dir():
        return _read_folder(path, shown, entry, size, work, progress, tables)
    refuse_mistaken(path)
    if path.suffix.lower() == ".npz":
        _refuse_size(size)
        tables.refuse(shown)
        return read_npz(path, work, _class_names(entry))
    if not is_archive(path):
        raise DataError(
            f"'{path}' is neither a folder, nor an archive (.tar, .tar.gz, .tar.xz, .tar.bz2, .zip), nor a .npz file."
        )
    folder = work / "unpacked"
    tell = partial(progress or _silent, "unpacking")
    tell(0, 1)
    unpack(path, folder, tell)
    content = _read_folder(folder, shown, entry, size, work, progress, tables)
    if entry is not None and entry.md5 and _md5(path) == entry.md5:
        return replace(content, origin="zip (checksummed original file)", original=True)
    return content


def _silent(what: str, done: int, of: int) -> None:
    """Whoever asked for no progress hears none."""


def _read_folder(
    folder: Path, shown: str, entry: DatasetInfo | None, size: int | None, work: Path, progress: Progress | None,
    tables: _Tables,
) -> Content:  # fmt: skip
    base = base_folder(folder)
    if tables.files:
        found = tables.found(base)
        return read_labelled_folder(base, shown, found, tables.columns, entry, size, progress)
    if (files := find_idx(base)) is not None:
        _refuse_size(size)
        if entry is None or entry.how != "torchvision":
            return read_idx(files, (), {})
        return read_idx(files, entry.class_names, dict(getattr(_torchvision(entry), "resources", [])))
    if entry is not None and (holder := _original_files(base, entry)) is not None:
        _refuse_size(size)
        return _from_torchvision(entry, holder, download=False)
    arrays = sorted(base.glob("*.npz"))
    if len(arrays) == 1:
        _refuse_size(size)
        return read_npz(arrays[0], work, _class_names(entry))
    return read_image_folder(base, shown, entry, size, progress)


def _class_names(entry: DatasetInfo | None) -> tuple[str, ...]:
    return () if entry is None else entry.class_names


def _refuse_size(size: int | None) -> None:
    if size is not None:
        raise ConfigError("--size resizes folders of image files only; resize arrays before adding them.")


def _original_files(base: Path, entry: DatasetInfo) -> Path | None:
    """The folder that torchvision would call root, if the original files of this dataset are here."""
    marker = TORCHVISION[entry.name][1] if entry.how == "torchvision" else None
    if marker is None:
        return None
    if base.name == marker:
        return base.parent
    return base if (base / marker).exists() else None


def _torchvision(entry: DatasetInfo) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"torchvision does not work here ({error}), and {entry.name} is read with it. "
            "Install torch and torchvision together, from the same package index."
        ) from error
    return getattr(datasets, TORCHVISION[entry.name][0])


def _from_torchvision(entry: DatasetInfo, folder: Path, *, download: bool) -> Content:
    source = _torchvision(entry)
    try:
        if entry.name == "svhn":
            parts = [source(folder, split=split, download=download) for split in ("train", "test")]
        else:
            parts = [source(folder, train=train, download=download) for train in (True, False)]
    except (RuntimeError, ValueError, EOFError, urllib.error.URLError, ConnectionError, TimeoutError) as error:
        what = "downloaded" if download else f"read from '{folder}'"
        why = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{entry.name} could not be {what}: {why}. Nothing of it was kept. Try again, or get the files from "
            f"{entry.homepage} and add them with `ddbench data add {entry.name} PATH`."
        ) from error
    train, test = (_torchvision_part(entry, part) for part in parts)
    return Content(train, test, origin=CHECKSUMMED, kind="", original=True)


def _torchvision_part(entry: DatasetInfo, part: Any) -> DatasetTensors:
    images = torch.as_tensor(part.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(part.labels if entry.name == "svhn" else part.targets)
    return DatasetTensors.sort(images, labels, entry.class_names)


@contextlib.contextmanager
def _watched(folder: Path, entry: DatasetInfo, progress: Progress) -> Iterator[None]:
    """Tell how much of a download is there while torchvision fetches it, whose own bar minds neither --quiet nor a
    stderr that is gone."""
    number, unit = entry.download.split()
    total = int(float(number) * {"kB": 10**3, "MB": 10**6, "GB": 10**9}[unit])
    over = threading.Event()

    def watch() -> None:
        while not over.wait(DOWNLOAD_SECONDS):
            with contextlib.suppress(OSError):  # a file may go between being found and being looked at
                there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                # The size in the catalogue is a round number, and what is unpacked lies beside the download.
                progress("downloading", min(there, total - 1), total)

    progress("downloading", 0, total)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        over.set()
        thread.join()


def _download(entry: DatasetInfo, target: Path, progress: Progress | None) -> None:
    hasher = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(entry.url, timeout=60) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            ensure_space(target.parent, total, entry.url)
            while chunk := answer.read(DOWNLOAD_CHUNK):
                hasher.update(chunk)
                file.write(chunk)
                if progress is not None:
                    progress("downloading", file.tell(), total)
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise DataError(
            f"{entry.url} could not be downloaded: {error}. Try again later, or fetch it otherwise and add it with "
            f"`ddbench data add {entry.name} PATH`."
        ) from error
    if hasher.hexdigest() != entry.md5:
        raise DataError(
            f"{entry.url} arrived damaged: {target.stat().st_size} of {total or 'unknown'} bytes, md5 "
            f"{hasher.hexdigest()} instead of {entry.md5}. Nothing of it was kept; try again."
        )


def _md5(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _own_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"a dataset cannot be called {name!r}: use lower-case letters, digits and dashes.")
    if name == "toy" or plugins.named(GROUP, name):
        raise ConfigError(f"{name!r} is the name of a built-in dataset or of a plug-in. Choose another one.")
    return name


def _user_info(manifest: Manifest) -> DatasetInfo:
    channels, height, width = manifest["shape"]
    return DatasetInfo(
        name=manifest["name"],
        title=manifest["title"],
        shape=(channels, height, width),
        classes=len(manifest["classes"]),
        how="user",
        class_names=tuple(manifest["classes"]),
        train=manifest["train"]["images"],
        test=manifest["test"]["images"],
    )


def _from_plugin(name: str, root: Path) -> Dataset:
    if not plugins.names_code(name) and not plugins.named(GROUP, name.rpartition("/")[2]):
        raise _absent(canonical(name), root)
    loaded = plugins.load(GROUP, name)
    try:
        dataset = loaded.value(root)
    except DdbenchError:
        raise
    except BaseException as error:
        plugins.raise_stop(error)
        raise PluginError(f"dataset {name!r} of {loaded.provided_by} does not load: {plugins.said(error)}.") from error
    if not isinstance(dataset, Dataset):
        raise PluginError(f"dataset {name!r} of {loaded.provided_by} is {type(dataset).__name__}, not Dataset.")
    own = dataset.info.name
    if not re.fullmatch(PLAIN_NAME, own) or plugins.names_code(own) or len(own) > MOST_NAME:
        raise PluginError(
            f"dataset {name!r} of {loaded.provided_by} calls itself {dataset.info.name!r}, which names its folders; "
            "use letters, digits, dots, dashes and underscores."
        )
    return dataset


def _absent(name: str, root: Path) -> DataError:
    looked = f"is not in the data folder '{root}': looked for {root / name / 'manifest.json'}.\n"
    entry = CATALOGUE.get(name)
    if entry is None:
        there = [manifest["name"] for manifest in installed(root)]
        return mistyped(
            DataError(
                f"{name} {looked}{closest(name, [*CATALOGUE, *there])}Your own images are added with "
                f"`ddbench data add {name} PATH`; `ddbench data list` shows what is known and what is there."
            )
        )
    if entry.how == "imagenet-folder":
        return DataError(
            f"{name} {looked}Add it from a folder of ImageNet classes with `ddbench data add {name} PATH`, "
            "or point --data at a folder that has it."
        )
    return DataError(
        f"{name} {looked}Download it with `ddbench data get {name}`, or add a copy with "
        f"`ddbench data add {name} PATH`, or point --data at a folder that has it."
    )


@lru_cache(maxsize=1)
def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(scans.images * (255 / 16)).round().to(torch.uint8)[:, None]
    whole = DatasetTensors.sort(images, torch.from_numpy(scans.target).long(), CATALOGUE["digits"].class_names)
    return Dataset.in_memory(CATALOGUE["digits"], *whole.split(DIGITS_HELD_OUT), origin="embedded (scikit-learn)")
