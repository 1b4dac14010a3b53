"""A dataset as the suite hands it on: what the catalogue says of it, its training part, its test part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ddbench.data import cache
from ddbench.data.cache import Content
from ddbench.data.catalogue import DatasetInfo, known_copy
from ddbench.data.manifests import Manifest
from ddbench.data.tensors import DatasetTensors


@dataclass(frozen=True, eq=False)
class TestData:
    """The test images: read when `load` is called, and not before."""

    __test__: ClassVar[bool] = False  # the name would make pytest collect it

    read: Callable[[], DatasetTensors]

    def load(self) -> DatasetTensors:
        """The test images and labels."""
        return self.read()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that is there: its training images, its test images when asked, and where it came from."""

    info: DatasetInfo
    train: DatasetTensors
    test: TestData
    manifest: Manifest

    @classmethod
    def in_memory(
        cls, info: DatasetInfo, train: DatasetTensors, test: DatasetTensors, origin: str = "in memory"
    ) -> Dataset:
        """A dataset made from tensors, for tests and for plug-ins."""
        content = Content(train, test, origin=origin, kind="")
        return cls(info, train, TestData(lambda: test), cache.make_manifest(info.name, info.title, content, True))

    @property
    def title(self) -> str:
        """What tables call it; says when it is a copy."""
        return self.manifest["title"]

    @property
    def fingerprint(self) -> str:
        """What the training and test images together are."""
        return self.manifest["fingerprint"]

    @property
    def contents(self) -> str:
        """A digest of images and labels in any order; empty where nobody has looked."""
        known = known_copy(self.manifest["name"], fingerprint=self.fingerprint)
        return self.manifest.get("contents") or (known.contents if known else "")

    @property
    def original(self) -> bool:
        """Whether these are the images that its authors published."""
        return self.manifest["original"]
