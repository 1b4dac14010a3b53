"""What was measured of a set beside the accuracy of students: kept in the run's folder, and copied into its record."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, ValidationError

from ddbench.config import explain
from ddbench.errors import RunError
from ddbench.fields import Line, Sha256
from ddbench.files import read_json, write_json
from ddbench.runs.record import CorrelationPart, Part, RecognisedPart
from ddbench.runs.rundir import RunDir


class Measures(Part):
    """measures.json. `synthetic` is the sha256 of the set's file: of another set, nothing in it counts."""

    synthetic: Sha256
    file_schema: Literal["ddbench.measures/1"] = "ddbench.measures/1"
    recognised: tuple[RecognisedPart, ...] = ()
    correlations: tuple[CorrelationPart, ...] = ()
    checksum: Line = ""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, folder: RunDir, sha256: str) -> Self:
        """What is known of the set with this hash. Raises: RunError where the file is damaged."""
        if not folder.measures.is_file():
            return cls(synthetic=sha256)
        try:
            found = cls.model_validate(read_json(folder.measures))
        except RunError as error:
            raise RunError(f"{error} Remove that file and measure again.") from None
        except ValidationError as error:
            raise RunError(f"{explain(str(folder.measures), error)}. Remove that file and measure again.") from None
        return found if found.synthetic == sha256 else cls(synthetic=sha256)

    def having(self, *found: RecognisedPart | CorrelationPart) -> Self:
        """With these in the place of what is known of the same network, or of the same protocol and judge."""
        recognised = {part.backbone: part for part in self.recognised}
        correlations = {(part.digest, part.backbone): part for part in self.correlations}
        for part in found:
            if isinstance(part, RecognisedPart):
                recognised[part.backbone] = part
            else:
                correlations[part.digest, part.backbone] = part
        return self.model_copy(
            update={
                "recognised": tuple(recognised[key] for key in sorted(recognised)),
                "correlations": tuple(correlations[key] for key in sorted(correlations)),
            }
        )

    def keep(self, folder: RunDir) -> None:
        """Write it, whole or not at all."""
        write_json(folder.measures, self.model_dump(mode="json", exclude={"checksum"}), sealed=True)
