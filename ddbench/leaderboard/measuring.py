"""Measures of published sets, which are kept in the committed records of the runs that the sets are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddbench.files import require_writable
from ddbench.foreign.meant import Tell
from ddbench.leaderboard.claims import Claim, published_claim
from ddbench.leaderboard.set_files import meant_on
from ddbench.runs.measures import Measures
from ddbench.runs.recognising import networks, recognised
from ddbench.runs.record import RunRecord, read_record, write_record
from ddbench.runs.runner import RunOptions, session


def asked(ref: str, leaderboards: Path, data_root: Path, tell: Tell) -> Path | Claim:
    """The folder of a run, or a published set whose record can keep what is measured: what `set_files.meant_on` says,
    which `tell` is for.

    Raises: DataError where neither is meant, or the dataset of a published set is another one here; RunError where the
    record that it is of is not there, or could not be written.
    """
    found = meant_on(leaderboards, ref, data_root, tell)
    if found.entry is None:
        return found.path
    claim = published_claim(found.entry, found.file(data_root), leaderboards, data_root)
    require_writable(
        [claim.place],
        f"The record of {ref} could not keep what is measured, so no network was trained. Check the owner and "
        "permissions of the folder, or measure in a copy of the leaderboard with --leaderboards.",
    )
    return claim


def recognise(claim: Claim, judges: Sequence[str], options: RunOptions) -> RunRecord:
    """Let networks that were trained on the real images say the classes of a published set; rewrites its record.

    As `runs.recognising.recognise`, for a set whose run's folder nobody has. What is kept names the file that was
    measured, since its images may have less precision than the run's own.
    Raises: ConfigError for a backbone that does not exist.
    """
    subject = claim.subject
    record, synthetic, dataset = subject.record, subject.synthetic, subject.dataset
    with session(options) as (stop, tell):
        for backbone in networks(judges, record.run.backbone, dataset.info.shape):
            with stop.at_once():
                problem = subject.problem(backbone, options, tell=tell.on_build)
                part = recognised(synthetic, problem).model_copy(update={"file": claim.file})
                there = read_record(claim.place)  # it may have grown meanwhile
                known = Measures(synthetic=there.synthetic.sha256, recognised=there.recognised).having(part)
                record = there.model_copy(update={"recognised": known.recognised})
                write_record(claim.place, record)
    return record
