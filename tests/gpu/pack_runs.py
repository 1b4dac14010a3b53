"""Runs into few files of limited size: records first, then what was interrupted, sets, and artefacts.

python tests/gpu/pack_runs.py runs out --files 6 --mebibytes 15
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click

# Of a finished run these say everything but the images; so they go first, for all runs together.
SMALL = 200_000


@click.command()
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--files", default=6, show_default=True, help="How many files may be written.")
@click.option("--mebibytes", default=15.0, show_default=True, help="How large each may be.")
def main(runs: Path, out: Path, files: int, mebibytes: float) -> None:
    """Write OUT/runs-1.tar.gz and so on; each can be unpacked by itself, into a runs folder."""
    out.mkdir(parents=True, exist_ok=True)
    limit = int(mebibytes * 2**20)
    packs: list[tuple[list[tuple[str, bytes]], int]] = [([], 0)]
    left_out = []
    for group in in_order(runs):
        content = [(str(path.relative_to(runs)), path.read_bytes()) for path in group]
        # Images and networks hardly shrink, and time on a machine with GPUs is dearer than room.
        size = sum(len(data) + 1024 for _, data in content)
        for index, (members, taken) in enumerate(packs):
            if taken + size <= limit:
                packs[index] = ([*members, *content], taken + size)
                break
        else:
            if len(packs) < files and size <= limit:
                packs.append((content, size))
            else:
                left_out.append(f"{content[0][0]} ({size / 2**20:.1f} MiB)")
    for number, (members, _) in enumerate(packs, start=1):
        with tarfile.open(out / f"runs-{number}.tar.gz", "w:gz", compresslevel=1) as archive:
            for name, data in members:
                about = tarfile.TarInfo(name)
                about.size = len(data)
                archive.addfile(about, io.BytesIO(data))
    click.echo(f"{sum(len(members) for members, _ in packs)} files in {len(packs)} packs")
    for line in left_out:
        click.echo(f"left out: {line}")


def in_order(runs: Path) -> Iterator[list[Path]]:
    """Files that belong together, the most wanted first."""
    folders = sorted(path.parent for path in runs.glob("*/*/*/*/spec.json"))
    finished = [folder for folder in folders if (folder / "record.json").is_file()]
    for folder in folders:
        if files := [path for path in files_of(folder) if path.stat().st_size < SMALL and not is_bulk(path, folder)]:
            yield files
    # A run's last checkpoint is worth all that it has cost; one that has its set needs no checkpoint.
    for folder in folders:
        if folder not in finished and not (folder / "synthetic.safetensors").is_file():
            checkpoints = sorted((folder / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)
            yield from ([path] for path in reversed(checkpoints[-1:]))
    sets = [folder / "synthetic.safetensors" for folder in folders if (folder / "synthetic.safetensors").is_file()]
    # Sets of coresets are chosen again within seconds.
    for path in sorted(sets, key=lambda path: (is_coreset(path), path.stat().st_size)):
        yield [path]
    artifacts = [path.parent for path in (runs / "artifacts").rglob("artifact.json")]
    for folder in sorted(artifacts, key=lambda folder: sum(path.stat().st_size for path in files_of(folder))):
        yield files_of(folder)


def is_bulk(path: Path, folder: Path) -> bool:
    """Whether a file of a run is taken up later, or not at all."""
    top = path.relative_to(folder).parts[0]
    return top in ("checkpoints", "snapshots", "synthetic.safetensors")


def is_coreset(path: Path) -> bool:
    return path.parts[-3] in ("random", "herding", "k-center", "k-means", "whole")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock"))


if __name__ == "__main__":
    main()
