"""The results of a grid as a file: which sets, which recipes, every accuracy, and what they say of the order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddbench.config import explain
from ddbench.errors import RunError
from ddbench.fields import (
    Architecture,
    Count,
    Flag,
    Hex,
    Line,
    Name,
    Number,
    PlainDict,
    Positive,
    ProtocolId,
    RunId,
    Seconds,
    Sha256,
    Share,
    Text,
)
from ddbench.files import read_json, write_json

Tau = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """A part of the file. Frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipePart(Part):
    """A recipe: the base, or a variant of it."""

    name: Line = Field(description="base, factor=value, or the name of a recipe of one's own.")
    protocol: ProtocolId
    changes: tuple[tuple[Line, Line], ...] = Field(description="Factors and their values; no factor: one's own.")
    times: Line = Field(description="Its budget, in budgets of the section.")
    track: Literal["hard", "soft", "teacher"] = Field(description="Which labels students see.")
    fields: PlainDict = Field(description="The protocol in full, without a budget of images.")


class SetPart(Part):
    """A set of a section."""

    row: Line = Field(description="What its method is called in the tables; sets of one method share it.")
    method: Name
    run: RunId
    seed: Count
    sha256: Sha256
    published: Line = Field(default="", description="Its name among published sets, if it was asked for by that.")
    images: Positive = Field(description="Images that students are trained on, decoded.")
    soft: Flag = Field(description="Whether its own labels are soft.")
    pixels: Line


class CellPart(Part):
    """What one set gives under one recipe."""

    recipe: Line
    sha256: Sha256 = Field(description="Of the set.")
    digest: Hex = Field(description="Of the protocol with its budget of images.")
    forwards: Count | None = Field(description="Images that a student was trained on, repeats counted.")
    accuracy: tuple[Share, ...] = Field(description="Of each student, from 0 to 1; none after a failure.")
    alike: Flag = Field(default=False, description="All students would be one and the same; there is one.")
    failed: Text = Field(default="", description="Why there is no accuracy.")
    seconds: Seconds
    device: Line
    precision: Line


class ScorePart(Part):
    """A method under a recipe: mean over its sets of the mean over students, half its 95 % interval, its rank."""

    recipe: Line
    mean: Share
    ci95: Number | None
    rank: Positive = Field(description="By the mean as it is printed, to a tenth of a point; 1 is best.")


class RowPart(Part):
    """A method of a section."""

    row: Line
    sets: Positive
    scores: tuple[ScorePart, ...]


class AgreementPart(Part):
    """How far the order under a recipe is that under the base: Kendall's tau-b of the means, and pairs that differ."""

    recipe: Line
    tau: Tau | None = Field(description="None where methods are all equal, or fewer than two.")
    low: Tau | None = Field(description="Lower end of the 95 % bootstrap interval.")
    high: Tau | None
    pairs: Count = Field(description="Pairs of methods that both recipes have.")
    swapped: Count = Field(description="Pairs whose means stand the other way round.")


class PairPart(Part):
    """Two methods under a recipe, compared as `ddbench compare` does it."""

    recipe: Line
    first: Line
    second: Line
    difference: Number
    ci95: Number | None
    p: Share | None
    p_holm: Share | None
    p_equal: Share | None
    p_equal_holm: Share | None
    verdict: Literal["equal", "better", "worse", "undecided"] = Field(description="Of the first.")


class FlipPart(Part):
    """Two methods whose order is shown under some recipes, and the other way round under others."""

    first: Line
    second: Line
    better: tuple[Line, ...] = Field(description="Recipes under which the first is better.")
    worse: tuple[Line, ...] = Field(description="Recipes under which the second is better.")


class OrderPart(Part):
    """What a section says of the order of its methods. Only methods with an accuracy under every recipe are in W."""

    rows: tuple[RowPart, ...]
    agreement: tuple[AgreementPart, ...]
    taus: tuple[tuple[Line, Line, Tau | None], ...] = Field(description="Kendall's tau-b of every two recipes.")
    w: Share | None = Field(description="Kendall's W of all recipes, corrected for ties; needs three methods.")
    w_low: Share | None
    w_high: Share | None
    pairs: tuple[PairPart, ...]
    flips: tuple[FlipPart, ...]
    resamples: Count


class SectionPart(Part):
    """What is compared with one another: sets of one budget, condensed from the same data, under one judge."""

    dataset: Name
    title: Line
    fingerprint: Line
    ipc: Count
    judge: Architecture
    students: Positive
    forwards: Positive = Field(description="The budget: images that a student of the base trains on.")
    left_out: dict[Line, Line] = Field(default={}, description="Recipes that say nothing here, and why.")
    sets: tuple[SetPart, ...]
    cells: tuple[CellPart, ...]
    order: OrderPart | None = Field(default=None, description="None until every cell is there.")


class Results(Part):
    """A grid: the base, the recipes, and a section for each dataset, ipc and judge."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    file_schema: Literal["ddbench.sensitivity/1"] = Field(default="ddbench.sensitivity/1", alias="schema")
    base: ProtocolId
    digest: Hex
    recipes: tuple[RecipePart, ...]
    sections: tuple[SectionPart, ...]
    software: PlainDict = Field(description="Commit and packages of the process that wrote the file.")

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return all(section.order is not None for section in self.sections)


def read_results(path: Path) -> Results:
    """A file of results. Raises: RunError where it is none, or is damaged."""
    try:
        return Results.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(f"{explain(str(path), error)}. It is no file of a grid, or is damaged.") from None


def write_results(path: Path, results: Results) -> None:
    """Write the file, whole or not at all."""
    write_json(path, results.model_dump(mode="json", by_alias=True), sealed=True)


def json_schema() -> str:
    """The JSON schema of the file, as committed under leaderboards/schema."""
    return json.dumps(Results.model_json_schema(by_alias=True), indent=2, sort_keys=True) + "\n"
