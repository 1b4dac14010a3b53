"""A saved set as the start of another condensation: the set of a run, or a file that `ddbench.load` reads."""

from __future__ import annotations

from pathlib import Path

from ddbench.data.dataset import Dataset
from ddbench.data.pixels import fit_pixels
from ddbench.errors import ConfigError, DataError, DdbenchError
from ddbench.files import sha256_of
from ddbench.foreign.importing import found_in, own_set, plain_name, terms_of
from ddbench.foreign.terms import Said, complete
from ddbench.initial import StartingSet
from ddbench.runs.rundir import SPEC

DIGITS = 12  # of a digest, as of a backbone's file


def read_start(path: Path, dataset: Dataset) -> StartingSet:
    """The set of a run folder or file, for a condensation on a dataset; nothing in it is executed.

    Raises: ConfigError where it cannot be read, or does not say enough of itself.
    """
    try:
        return _own(path) if (path / SPEC).is_file() else _file(path, dataset)
    except DdbenchError as error:
        raise ConfigError(f"initial={path}: {error}") from None


def _own(path: Path) -> StartingSet:
    file, synthetic, about, _ = own_set(path)
    name = f"{about['method']}-ipc{about['ipc']}-s{about['seed']}"
    return StartingSet(_named(name, sha256_of(file)), synthetic, about)


def _file(path: Path, dataset: Dataset) -> StartingSet:
    several = found_in(path, None, dataset.info.name)
    if len(several) > 1:
        raise DataError(f"it holds {len(several)} sets. {_first(path, '--entry')} says which.")
    (found,) = several
    name = _named(plain_name(found), found.sha256)
    if found.ours is not None:
        return StartingSet(name, found.ours, found.about)
    try:
        terms, _ = terms_of(found, Said(), dataset)
    except ConfigError as error:
        raise ConfigError(f"{error} {_first(path, 'that flag')} says it.") from None
    space = fit_pixels(terms.pixels, dataset.train, dataset.info)
    return StartingSet(name, complete(found, terms, space, len(dataset.train.classes)), {})


def _first(path: Path, flag: str) -> str:
    return f"First make it a run by `ddbench evaluate {path}`, and start from the run's folder; there {flag}"


def _named(name: str, sha256: str) -> str:
    return f"{name}@{sha256[:DIGITS]}"
