"""What a run has cost and who worked on it, kept in its folder over all attempts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from ddbench.config import explain
from ddbench.engine.capabilities import forget_peak, peak_bytes, wait_for
from ddbench.errors import RunError
from ddbench.fields import Line, Number
from ddbench.files import read_json, write_json
from ddbench.runs import provenance
from ddbench.runs.record import Attempt, CostPart, Part, UsedArtifact
from ddbench.runs.rundir import RunDir

START_OVER = "The same command with --fresh starts the run over."


class Clock:
    """Seconds of work on a device; waits for the device before it is read."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._before = seconds
        self._since: float | None = None

    def start(self) -> None:
        self._settle()
        self._since = time.perf_counter()

    def read(self) -> float:
        """The seconds so far."""
        if self._since is None:
            return self._before
        self._settle()
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Time inside does not count. Yields the seconds so far."""
        self._before, self._since = self.read(), None
        try:
            yield self._before
        finally:
            self.start()

    def _settle(self) -> None:
        wait_for(self._device)


@dataclass
class Peaks:
    """Most memory that was in use since this was made."""

    device: torch.device
    before_device: int | None = None
    before_host: int | None = None

    def __post_init__(self) -> None:
        forget_peak(self.device)

    def device_bytes(self) -> int | None:
        return _most(self.before_device, peak_bytes(self.device))

    def host_bytes(self) -> int | None:
        return _most(self.before_host, provenance.peak_host_bytes())


@dataclass
class Ledger:
    """cost.json and attempts.json. Written at once whenever something is entered."""

    folder: RunDir
    device: torch.device
    _attempt: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def costs(self) -> dict[str, CostPart]:
        """What each phase has cost."""
        return {name: CostPart.model_validate(part) for name, part in self._cost()["cost"].items()}

    @property
    def artifacts(self) -> tuple[dict[str, Any], ...]:
        """What the run read, with what it cost to make, whoever made it."""
        return tuple(self._cost()["artifacts"].values())

    @property
    def counts(self) -> dict[str, float]:
        """What the method counted in all its steps."""
        return dict(self._cost().get("counts", {}))

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """One for each process that worked on the run."""
        return tuple(Attempt.model_validate(entry) for entry in self._attempts())

    @property
    def last_step(self) -> int:
        """The step that the last attempt reached."""
        attempts = self._attempts()
        return int(attempts[-1]["steps"][1]) if attempts else 0

    def check(self) -> None:
        """Raises: RunError if either file is damaged or not of ddbench: now, and not when the run is over."""
        _ = self.costs, self.attempts, self.last_step

    def begin(self, step: int) -> None:
        """A new attempt, from this step on."""
        self._attempt = {
            "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "steps": [step, step],
            "device": provenance.device_name(self.device),
            "cpu": provenance.cpu_name(),
            "git": provenance.git(),
            "python": provenance.python_version(),
            "packages": provenance.packages(),
            "threads": torch.get_num_threads(),
        }
        self._enter([*self._attempts(), self._attempt])

    def reached(self, step: int) -> None:
        """The attempt has got to this step."""
        assert self._attempt is not None
        self._attempt["steps"][1] = step
        self._enter([*self._attempts()[:-1], self._attempt])

    def set_cost(self, phase: str, part: CostPart) -> None:
        """What a phase has cost over all attempts."""
        value = self._cost()
        value["cost"][phase] = part.model_dump(mode="json")
        write_json(self.folder.cost, value, sealed=True)

    def set_artifacts(self, used: Mapping[str, dict[str, Any]]) -> None:
        """Enter what was read. What an earlier attempt had to build was not in the cache for this run."""
        value = self._cost()
        for key, entry in used.items():
            earlier = value["artifacts"].get(key, {}).get("from_cache", True)
            value["artifacts"][key] = {**entry, "from_cache": entry["from_cache"] and earlier}
        write_json(self.folder.cost, value, sealed=True)

    def set_counts(self, counts: Mapping[str, float]) -> None:
        """Enter what the method counted; nothing where it counts nothing."""
        if counts:
            write_json(self.folder.cost, {**self._cost(), "counts": dict(counts)}, sealed=True)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what happens inside to what the phase has cost so far."""
        clock, peaks = Clock(self.device), Peaks(self.device)
        clock.start()
        try:
            yield
        finally:
            before = self.costs.get(name, CostPart(seconds=0.0))
            self.set_cost(
                name,
                CostPart(
                    seconds=before.seconds + clock.read(),
                    peak_device_bytes=_most(before.peak_device_bytes, peaks.device_bytes()),
                    peak_host_bytes=_most(before.peak_host_bytes, peaks.host_bytes()),
                ),
            )

    def _cost(self) -> dict[str, Any]:
        if not self.folder.cost.is_file():
            return {"cost": {}, "artifacts": {}}
        value = _read(self.folder.cost)
        try:
            _CostFile.model_validate(value)
        except ValidationError as error:
            raise _foreign(self.folder.cost, error) from None
        return dict(value)

    def _attempts(self) -> list[dict[str, Any]]:
        if not self.folder.attempts.is_file():
            return []
        value = _read(self.folder.attempts)
        # Earlier versions wrote the list alone, which has no room for a checksum.
        value = {"attempts": value} if isinstance(value, list) else value
        try:
            _AttemptsFile.model_validate(value)
        except ValidationError as error:
            raise _foreign(self.folder.attempts, error) from None
        return list(value["attempts"])

    def _enter(self, attempts: Sequence[dict[str, Any]]) -> None:
        write_json(self.folder.attempts, {"attempts": attempts}, sealed=True)


class _CostFile(Part):
    cost: dict[Line, CostPart]
    artifacts: dict[Line, UsedArtifact]
    counts: dict[Line, Number] = Field(default={})


class _AttemptsFile(Part):
    attempts: tuple[Attempt, ...]


def _foreign(path: Path, error: ValidationError) -> RunError:
    return RunError(f"{path} was not written by ddbench, or is damaged ({explain(path.name, error)}). {START_OVER}")


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except RunError as error:
        raise RunError(f"{error} {START_OVER}") from None


def _most(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)
