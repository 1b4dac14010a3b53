"""Which evaluations somebody means: protocols and judges in any spelling, as every command that chooses takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddbench.backbones import names as backbones
from ddbench.errors import ConfigError
from ddbench.evaluation.protocol import OWN, protocol
from ddbench.plugins import names_code, same_name


def ids_of(refs: Iterable[str]) -> list[str]:
    """References to protocols without files: a file stands for the id of the protocol in it.

    Raises: ConfigError for a file that describes no protocol.
    """
    return [protocol(ref).id if ref.endswith(".toml") else ref for ref in refs]


def as_recorded(judges: Iterable[str]) -> list[str]:
    """Judges without files: a file stands for the name that records have.

    Raises: ConfigError for a file that is no network.
    """
    return [backbones.canonical(name) if names_code(name) and "@" not in name else name for name in judges]


def is_protocol(ref: str, said: str) -> bool:
    """Whether a protocol, by its id, is the one that is said; without a version every one of that name is."""
    return same_name(said, ref) or same_name(said, ref.partition("@")[0])


def is_judge(judge: str, said: str, own: str = "") -> bool:
    """Whether a judge, as records or boards name it, is the one that is said: in any spelling that names it, or by how
    its name begins, so that "convnet" is every ConvNet. "own" is the backbone `own`, which made the set."""
    if same_name(said, OWN):
        return judge == own
    return begins(judge, said) or _spelled(said, judge) == judge


def is_any(judge: str, said: Sequence[str], own: str = "") -> bool:
    """Whether a judge is one of those that are said; without any, all are."""
    return not said or any(is_judge(judge, one, own) for one in said)


def begins(judge: str, said: str) -> bool:
    """Whether a judge is the one that is said, or a variant of it, whose name goes on after a dash or such."""
    judge, said = judge.lower(), said.lower()
    return judge == said or (judge.startswith(said) and not judge[len(said)].isalnum())


def _spelled(said: str, judge: str) -> str:
    """The canonical form of what is said, of the depth of a judge where none is said; "" for no name of ours."""
    try:
        return backbones.spelled(said, like=judge)
    except ConfigError:
        return ""
