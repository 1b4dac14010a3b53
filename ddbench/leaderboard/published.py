"""Numbers as printed in papers, with their source. They stand beside ours and are never mixed with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddbench.data.catalogue import canonical
from ddbench.errors import RunError

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    "method", "dataset", "ipc", "protocol", "train_backbone", "test_backbone", "accuracy", "spread", "mark", "source",
    "note",
)  # fmt: skip
Number = TypeVar("Number", bound=Mapping[str, Any])
PRINTED_MARKS = ("V", "C")
# What papers count as one more method and is one here with options at these values; True is any that turns it on.
# Records leave out options that came later and are at their default, so that one that is missing is off.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ftd": ("mtt", {"rho_experts": True, "ema": True}),
    "tesla": ("mtt", {"grad": "tesla"}),
    "ncfm minimax": ("ncfm", {"learned_frequencies": True}),
    "ncfm minimax table 1": ("ncfm", {"learned_frequencies": True}),
}
ZCA = "ZCA"
KERNEL = "krr"


def published_file() -> Path:
    """The checkout's leaderboards/published.csv, or the copy inside an installed package.

    Raises: RunError where neither is there.
    """
    root = Path(__file__).resolve().parents[2]
    checkout = root / "leaderboards" / "published.csv"
    # An editable install may hold an older copy, so the checkout's own file comes first.
    if (root / "pyproject.toml").is_file() and checkout.is_file():
        return checkout
    packaged = Path(str(resources.files("ddbench.leaderboard") / "published.csv"))
    if packaged.is_file():
        return packaged
    raise RunError(f"the published numbers are missing: neither {checkout} nor {packaged} is there. Reinstall ddbench.")


def read_published(path: Path | None = None) -> DataFrame:
    """All published numbers, in the order of the file; the first of several for one method is the one boards show.

    `accuracy` and `spread` are texts in %, exactly as printed; `ipc` is 0 for the whole dataset. `mark` says how a
    number was checked: V seen in print, C read from released code or files, M quoted from memory and never printed.
    Raises: RunError for a file with other columns, and for a row that cannot be read, naming its line.
    """
    import pandas as pd

    file = published_file() if path is None else path
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read as CSV: {error}") from None
    if tuple(frame.columns) != COLUMNS:
        raise RunError(f"{file} has the columns {', '.join(frame.columns)}; it needs {', '.join(COLUMNS)}.")
    for line, row in enumerate(frame.to_dict("records"), start=2):
        wrong = _wrong({str(name): str(value) for name, value in row.items()})
        if wrong:
            raise RunError(f"{file}, line {line}: {wrong}.")
    return frame.assign(ipc=frame["ipc"].astype("int64"), dataset=frame["dataset"].map(canonical))


def printed(frame: DataFrame) -> DataFrame:
    """The rows that boards may print: those that somebody has seen."""
    return frame[frame["mark"].isin(PRINTED_MARKS)]


def belongs(label: str, method: str) -> bool:
    """Whether a published label is the method or a form of it: "kip-fc1 krr" is kip's, "cafe+dsa" is cafe's."""
    if label in FORMS:
        return FORMS[label][0] == method
    rest = label.removeprefix(method)
    return label.startswith(method) and not rest[:1].isalnum()


def under(protocol: str, numbers: Iterable[Number]) -> list[Number]:
    """The numbers that were measured with a protocol's recipe: "dd" and "native-dd" are that of dd@1."""
    name = protocol.partition("@")[0]
    return [row for row in numbers if row["protocol"] in (name, f"native-{name}")]


def of_options(method: str, config: Mapping[str, Any], numbers: Iterable[Number]) -> list[Number]:
    """The numbers of a method and its variants that were published of these options.

    Papers count a method with an option on as one more method: "cafe+dsa" is cafe with `dsa`, "ftd" is mtt with `ema`
    and `rho_experts`. Beside a run with `dsa` stands that number and not cafe's, and beside one without it cafe's
    alone; beside one with `ema` alone stands none. Other variants stay. Nobody has published real images in mosaics.
    """
    if method in CORESETS and config.get("factor", 1) != 1:
        return []
    known = [(row, _options_of(row["method"], method, config)) for row in numbers if belongs(row["method"], method)]
    on = _turned_on(config, (options for _, options in known))
    return [row for row, options in known if options == on]


def called(method: str, config: Mapping[str, Any], labels: Iterable[str]) -> str:
    """What papers call a method with these options, by their labels of it: "cafe+dsa" is cafe with `dsa`."""
    kin = {label: _options_of(label, method, config) for label in sorted(labels) if belongs(label, method)}
    on = _turned_on(config, kin.values())
    form = next((label for label, options in kin.items() if label in FORMS and options == on), "")
    return form or "+".join([method, *sorted(option for option, _ in on)])


CORESETS = frozenset({"random", "herding", "k-center", "k-means"})

Options = frozenset[tuple[str, Any]]
"""Options and their values; True is any that turns one on."""


def _turned_on(config: Mapping[str, Any], counted: Iterable[Options]) -> Options:
    """The options that are on, of those by which papers count one more method."""
    every = {one for options in counted for one in options}
    return frozenset((name, value) for name, value in every if _is(config.get(name), value))


def _is(found: Any, value: Any) -> bool:
    return bool(found) if value is True else bool(found == value)


def _options_of(label: str, method: str, config: Mapping[str, Any]) -> Options:
    if label in FORMS:
        return frozenset(FORMS[label][1].items())
    named = set(label.removeprefix(method).split("+")[1:]) & config.keys()
    return frozenset((name, True) for name in named)


def beside(
    method: str, protocol: str, config: Mapping[str, Any], numbers: Iterable[Number], judge: str = ""
) -> list[Number]:
    """The first number of a method and of each of its variants, the method's own first, from numbers of one ipc.

    `config` are the method's options, by which some of them are told apart. Of the network `judge` where one was
    published of it, else of the one that comes first.

    Numbers under other recipes where nobody published one under this; but a kernel that predicts is no network.
    """
    known = of_options(method, config, numbers)
    kin = [row for row in known if row["protocol"].startswith(KERNEL) == protocol.startswith(KERNEL)]
    first: dict[str, Number] = {}
    for row in sorted(under(protocol, known) or kin, key=lambda row: row.get("test_backbone") != judge):
        first.setdefault(row["method"], row)
    return [first[label] for label in sorted(first, key=lambda name: (name != method, name))]


def as_printed(row: Mapping[str, Any]) -> str:
    """A number with its spread, in %, exactly as its source prints it."""
    return str(row["accuracy"]) + (f" ± {row['spread']}" if row["spread"] else "")


def _wrong(row: dict[str, str]) -> str:
    for name in ("method", "dataset", "protocol", "test_backbone", "source"):
        if not row[name]:
            return f"{name} is empty"
    if not row["ipc"].isdecimal():
        return f"ipc is {row['ipc']!r}, not a number of images per class"
    if row["mark"] not in (*PRINTED_MARKS, "M"):
        return f"mark is {row['mark']!r}; it is V, C or M"
    for name in ("accuracy", "spread"):
        if not (name == "spread" and row[name] == "") and not _percentage(row[name]):
            return f"{name} is {row[name]!r}, not a number from 0 to 100"
    return ""


def _percentage(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100
    except ValueError:
        return False
