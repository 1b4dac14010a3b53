"""Tracks of labels, and which rows of a table are its controls: real images under the same labels and recipe.

What students learn from explains more of an accuracy than the images do (Qin et al., NeurIPS 2024, arXiv 2406.10485;
Dey et al., CVPR 2026, arXiv 2604.18811). So a table has one track, and in it stand images that nobody condensed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ddbench import decoders
from ddbench.errors import DataError
from ddbench.evaluation.protocol import PROTOCOLS, Protocol, ReplayOptions, RidgeHeadOptions
from ddbench.runs.record import EvaluationPart, RunRecord
from ddbench.training.options import SGDOptions

UNKNOWN = "unknown"
# How the reason of a cell begins that has no meaning, as against one that went wrong.
NOT_DEFINED = "not defined"
# As boards print them.
NAMES = {
    "hard": "hard labels",
    "soft": "stored soft labels",
    "teacher": "labels of a teacher on line",
    UNKNOWN: "labels unknown",
}
# Real images with a network's labels: the controls of the tables in which sets bring soft labels of their own.
LABELLED = "soft-labels"
CORESET = "herding"

Control = Literal["", "random", "coreset"]


def track_of(record: RunRecord, evaluation: EvaluationPart) -> str:
    """Which labels students saw: "hard", "soft", "teacher"; "unknown" where an earlier record does not say.

    Of a built-in protocol it follows from the labels of the set; only of soft ones that may say no more than classes,
    and of a protocol of one's own, the record is asked.
    """
    known = PROTOCOLS.get(evaluation.protocol)
    if known is None:
        # Classes alone, and nothing beside the set: there is nothing else to see.
        plain = record.synthetic.labels == "class" and not evaluation.beside_bytes
        return evaluation.track or ("hard" if plain else UNKNOWN)
    if known.track_of(more_than_classes=True) == known.track_of(more_than_classes=False):
        return known.track
    if record.synthetic.labels == "class":
        return "hard"
    if evaluation.track is not None:
        return known.track_of(more_than_classes=evaluation.track == "soft")
    return known.track_of(more_than_classes=_learned(record))


def _learned(record: RunRecord) -> bool:
    """Whether soft labels were learned: KIP's targets are centred classes where they were not."""
    return record.synthetic.labels != "regression" or "labels" in record.synthetic.learned or bool(record.imported)


def control_of(row: Mapping[str, Any]) -> Control:
    """What a row of `statistics.summarise` is to its table: random real images, ones of a coreset method, or neither.

    Where sets bring soft labels of their own, real images are controls with those of a network (`soft-labels`).
    """
    if row["kind"] == "imported":  # whatever it calls itself
        return ""
    if row["method"] == "random":
        return "random"
    if row["kind"] == "coreset":
        return "coreset"
    config = json.loads(row["config"])
    if not _own_labels(row) or row["method"] != LABELLED or config.get("initial", "real") != "real":
        return ""
    return "random" if config.get("chosen", "random") == "random" else "coreset"


def name_of(method: str, control: str, config: Mapping[str, Any]) -> str:
    """What a method is called beside others, once a method: "random mosaics" are another control than "random", and not
    another setting of it."""
    return f"{method} mosaics" if control and config.get("factor", 1) != 1 else method


def _brings_labels(protocol: str) -> bool:
    known = PROTOCOLS.get(protocol)
    return known is not None and known.brings_labels


def asked_of_the_set(protocol: Protocol) -> list[str]:
    """What a protocol takes from a set and real images do not have: then no row of its table can be a control."""
    options = protocol.options
    if isinstance(options, ReplayOptions):
        return ["an order of steps"]
    if isinstance(options, RidgeHeadOptions):
        return ["a number of steps", "a batch size"]
    if not isinstance(options, SGDOptions):
        return []
    wanted = {
        "a step size": protocol.takes_step_size,
        "a number of steps": options.epochs is None and options.steps is None,
        "a batch size": options.batch is None and options.batch_by == "set",
    }
    return [name for name, asked in wanted.items() if asked]


def about_controls(rows: Sequence[Mapping[str, Any]], judges: Sequence[str]) -> Iterator[str]:
    """Sentences on the controls of a table: which are missing, and which rows had another compute than theirs.

    `rows` are those of `statistics.summarise` for one table, `judges` its columns. A control that is in the table and
    not among these rows is not missing.
    """
    if all(row["kind"] == "ceiling" for row in rows):  # the whole dataset alone: of all images nobody can choose some
        return
    missing: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for role in _ROLES:
        having = {row["judge"] for row in rows if role in row["controls"].split()}
        # Trying again what a protocol refuses would only be refused again.
        failed = [row for row in rows if row["control"] == role and row["failed"].startswith(NOT_DEFINED)]
        refused = {row["judge"] for row in failed} - having
        for tried in (True, False):
            lacking = tuple(judge for judge in judges if judge not in having and (judge in refused) == tried)
            if lacking:
                missing.setdefault((lacking, tried), []).append(role)
    for (lacking, tried), roles in missing.items():
        where = "" if len(lacking) == len(judges) else f", judged by {', '.join(lacking)}"
        yield _missing(rows[0], roles, where, tried=tried)
    for row in rows:
        if not row["control"] and row["kind"] != "ceiling":
            yield from _other_compute(row)


_ROLES = {"random": "random real images", "coreset": "a coreset"}


def _missing(row: Mapping[str, Any], roles: Sequence[str], where: str, *, tried: bool) -> str:
    protocol = row["protocol"]
    named = " and ".join(_ROLES[role] for role in roles)
    said = f"Missing {'control' if len(roles) == 1 else 'controls'}: {named} with {NAMES[row['track']]}{where}."
    if asked := asked_of_the_set(PROTOCOLS[protocol]) if protocol in PROTOCOLS else []:
        return f"{said} {protocol} takes {' and '.join(asked)} from the set, and real images bring none."
    if tried:
        return f"{said} Under {protocol} they are not defined, as is told of each."
    return f"{said} To make {'it' if len(roles) == 1 else 'them'}: {'; '.join(_command(row, role) for role in roles)}."


def _other_compute(row: Mapping[str, Any]) -> Iterator[str]:
    times = {role: row[f"forwards_{role}"] for role in _ROLES}
    told = {role: ratio for role, ratio in times.items() if not math.isnan(ratio) and round(ratio, 2) != 1}
    for ratio in dict.fromkeys(told.values()):
        controls = " and ".join(_ROLES[role] for role, other in told.items() if other == ratio)
        yield (
            f"{row['label']}, {row['judge']}: a student trains on {ratio:.3g} times as many images, repeats counted, "
            f"as one of {controls}.{_as_many(row, ratio) if 'random' in told else ''}"
        )


def factor_of(row: Mapping[str, Any]) -> int:
    """How many smaller images a side the sets of a row store in each; 1 of usual images."""
    try:
        return decoders.factor_of(str(json.loads(row["config"]).get("decode", decoders.NONE)))
    except DataError:  # an option that a method calls so, or a decoder of a later version
        return 1


def _as_many(row: Mapping[str, Any], ratio: float) -> str:
    """How random images are made that students train on as often, where either sets store several images in one."""
    factor = factor_of(row)
    other = factor / math.sqrt(ratio)  # of the random images that are there
    if _own_labels(row) or other == factor or round(other, 2) != max(1, round(other)):
        return ""
    return f" As many in as many bytes: {_command(row, 'random', f' --set factor={factor}' if factor > 1 else '')}."


def _own_labels(row: Mapping[str, Any]) -> bool:
    """Whether sets bring soft labels of their own, so that real images without any are no control."""
    return bool(row["track"] == "soft" and not _brings_labels(row["protocol"]))


def _command(row: Mapping[str, Any], role: str, options: str = "") -> str:
    """The command that makes a control of a table."""
    method = "random" if role == "random" else CORESET
    if _own_labels(row):
        method, options = LABELLED, "" if role == "random" else f" --set chosen={CORESET}"
    ref = row["protocol"] if row["protocol"] in PROTOCOLS else "FILE"
    return f"ddbench run --method {method} --dataset {row['dataset']} --ipc {row['ipc']}{options} --protocol {ref}"
