"""Cells of a grid: which are asked for, which are there, and the training of those that are missing.

Every cell is an evaluation file in a folder beside the results, written student by student, under a lock of its own. So
a grid that was stopped goes on, and processes that are given the same grid share its cells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout

from ddbench import synthetic as synthetic_sets
from ddbench.data.dataset import Dataset
from ddbench.engine.decode import decode
from ddbench.errors import ConfigError, DataError, RunError, mistyped
from ddbench.evaluation.protocol import OWN, Protocol
from ddbench.evaluation.recipes import GridRecipe, base_forwards, full_step
from ddbench.files import locked, require_locks
from ddbench.foreign.importing import Import, bring_in, found_in
from ddbench.foreign.importing import dataset_of as dataset_of_file
from ddbench.foreign.meant import Tell, meant
from ddbench.foreign.terms import Said
from ddbench.runs import provenance
from ddbench.runs.evaluating import Cell, Judging, cells, read_evaluation, require_judges
from ddbench.runs.resolving import protocols_of
from ddbench.runs.rundir import SPEC, RunDir
from ddbench.runs.runner import RunOptions, dataset_of, finished_record, problems, session
from ddbench.sensitivity.asked import AskedGrid
from ddbench.sensitivity.order import order_of
from ddbench.sensitivity.results import (
    CellPart,
    RecipePart,
    Results,
    SectionPart,
    SetPart,
    read_results,
    write_results,
)
from ddbench.synthetic import SyntheticSet
from ddbench.text import printable

if TYPE_CHECKING:
    from ddbench.runs.observers import Observer
    from ddbench.runs.runspec import RunSpec
    from ddbench.runs.signals import Stop

CELLS = ".cells"
_OPTION = "--output"
_AGAIN = "its own command makes them again from its cells, without training"


@dataclass(frozen=True)
class SaidOfFiles:
    """What a person says of sets that are files, beside `said`: their dataset, and which set of several."""

    said: Said = field(default_factory=Said)
    dataset: str | None = None
    entry: str | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """A set of a grid: its run's folder, its dataset, and its name among published sets if it was asked for by that."""

    folder: RunDir
    dataset: Dataset
    published: str = ""

    @cached_property
    def synthetic(self) -> SyntheticSet:
        """The set. Raises: RunError where it was damaged."""
        return synthetic_sets.load(self.folder.synthetic)

    @cached_property
    def sha256(self) -> str:
        """Of the set's file."""
        return self.folder.set_sha256()

    @cached_property
    def images(self) -> int:
        """Images that students are trained on, decoded."""
        whole = self.synthetic.images
        one, _ = decode(self.synthetic.decode, torch.empty(1, *whole.shape[1:]), torch.zeros(1))
        return len(whole) * len(one)

    @property
    def column(self) -> tuple[str, str, int]:
        """What it is compared within."""
        return self.folder.spec.dataset, self.dataset.fingerprint, self.folder.spec.ipc

    def part(self, row: str) -> SetPart:
        """As the results have it."""
        spec, own = self.folder.spec, self.synthetic
        return SetPart(
            row=row, method=spec.method, run=spec.id, seed=spec.seed, sha256=self.sha256, published=self.published,
            images=self.images, soft=own.more_than_classes, pixels=own.pixels or spec.pixels,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Section:
    """Sets of one budget, dataset and judge, and the recipes that say something of them, with those that do not."""

    members: tuple[Member, ...]
    judge: str
    students: int
    forwards: int
    recipes: tuple[GridRecipe, ...]
    left_out: dict[str, str]

    def protocol(self, recipe: GridRecipe, member: Member) -> Protocol:
        """What a set is judged by under a recipe."""
        dataset = member.folder.spec.dataset
        return recipe.at(self.forwards, backbone=self.judge, dataset=dataset, images=member.images)


@dataclass(frozen=True, eq=False)
class ResolvedGrid:
    """A grid with its sets found and its recipes made; `place` is the file of its results."""

    base: Protocol
    recipes: tuple[GridRecipe, ...]
    sections: tuple[Section, ...]
    place: Path

    def folder(self, member: Member, protocol: Protocol) -> RunDir:
        """Where a cell is kept: what the evaluation of a run would be in the run's folder."""
        cell = self.place.with_name(self.place.name + CELLS) / member.sha256[:16] / protocol.digest
        return replace(member.folder, path=cell)

    def cells(self) -> Iterator[tuple[Section, GridRecipe, Member]]:
        """All of them, section by section and recipe by recipe."""
        for section in self.sections:
            for recipe in section.recipes:
                for member in section.members:
                    yield section, recipe, member

    def file(self, section: Section, recipe: GridRecipe, member: Member) -> Path:
        """That of a cell."""
        protocol = section.protocol(recipe, member)
        return self.folder(member, protocol).evaluation(protocol, section.judge)

    def found(self, section: Section, recipe: GridRecipe, member: Member) -> CellPart | None:
        """A cell that came to an end, be it as a failure; None where it is not there, or has too few students."""
        protocol, path = section.protocol(recipe, member), self.file(section, recipe, member)
        if not path.is_file():
            return None
        done = read_evaluation(path)
        part = done.part
        there = part.failed or part.alike or len(part.accuracy) >= section.students
        if not there or (done.synthetic, part.digest) != (member.sha256, protocol.digest):
            return None
        return CellPart(
            recipe=recipe.name, sha256=member.sha256, digest=protocol.digest, forwards=part.student_forwards,
            accuracy=part.accuracy[: section.students], alike=part.alike, failed=part.failed,
            seconds=part.seconds, device=part.device, precision=part.precision,
        )  # fmt: skip

    def results(self, *, finished: bool) -> Results:
        """What is there so far; once it is `finished`, with what it says of the order of methods."""
        return Results(
            base=self.base.id,
            digest=self.base.digest,
            recipes=tuple(_recipe_part(recipe) for recipe in self.recipes),
            sections=tuple(self._section(section, finished) for section in self.sections),
            software={"ddbench": provenance.git() or {}, "packages": provenance.packages()},
        )

    def _section(self, section: Section, finished: bool) -> SectionPart:
        rows = row_names([member.folder.spec for member in section.members])
        sets = tuple(member.part(row) for member, row in zip(section.members, rows, strict=True))
        asked = [(recipe, member) for recipe in section.recipes for member in section.members]
        found = tuple(cell for recipe, member in asked if (cell := self.found(section, recipe, member)) is not None)
        whole = finished and len(found) == len(asked)
        first = section.members[0]
        return SectionPart(
            dataset=first.folder.spec.dataset, title=first.dataset.title, fingerprint=first.dataset.fingerprint,
            ipc=first.folder.spec.ipc, judge=section.judge, students=section.students, forwards=section.forwards,
            left_out=section.left_out, sets=sets, cells=found,
            order=order_of(sets, found, [recipe.name for recipe in section.recipes]) if whole else None,
        )  # fmt: skip


def evaluate_grid(
    asked: AskedGrid, files: SaidOfFiles, options: RunOptions, place: Path, remark: Tell = lambda text: None
) -> Results:
    """Judge every set under every recipe, write the results to `place`, and return them.

    What is in the folder of cells beside it is not trained again, but for what failed. A second process with the same
    grid takes other cells; whoever comes to the end waits for the cells of the others. `remark` hears what a person
    should read before anything is trained.
    Raises: ConfigError for what cannot be asked, before anything is done; DataError or RunError where a set is not
    there or is damaged; Interrupted after a signal, with everything kept.
    """
    grid = resolve_grid(asked, files, options, place, remark)
    if lost := _replaced(grid):
        remark(f"{place} has the results of another grid, with {lost}. They are replaced; {_AGAIN}.")
    folder = place.with_name(place.name + CELLS)
    _made(folder)
    require_locks(folder / ".lock", _OPTION)
    try:
        with session(options) as (stop, tell):
            tell.on_phase("evaluate")
            _judge_all(grid, options, stop, tell)
    finally:
        _write(grid, folder, finished=False)
    return _write(grid, folder, finished=True)


def resolve_grid(asked: AskedGrid, files: SaidOfFiles, options: RunOptions, place: Path, remark: Tell) -> ResolvedGrid:
    """The grid that is asked for, its sets found and its recipes made. Raises: as `evaluate_grid`."""
    if not asked.sets:
        raise ConfigError("a grid needs sets: runs, files, or names of published sets such as dance/cifar10/ipc10.")
    if asked.base is not None:
        asked.recipes(asked.base)  # what is wrong there is said before a set is fetched
    _before(place)
    members = list({member.sha256: member for member in _members(asked, files, options, remark)}.values())
    base = asked.base or protocols_of(members[0].folder.spec)[0]
    recipes = tuple(asked.recipes(base))
    columns: dict[tuple[str, str, int], list[Member]] = {}
    for member in members:
        columns.setdefault(member.column, []).append(member)
    sections = [
        _section_of(tuple(column), cell, recipes, asked.forwards)
        for column in columns.values()
        for cell in _judges(asked, base, column)
    ]
    return ResolvedGrid(base, recipes, tuple(sections), place)


def row_names(specs: Sequence[RunSpec]) -> list[str]:
    """What the methods of sets are called: sets that differ in their seed alone share a name, others do not."""
    keys = [json.dumps({k: v for k, v in spec.identity.items() if k != "seed"}, sort_keys=True) for spec in specs]
    kin: dict[str, set[str]] = {}
    for spec, key in zip(specs, keys, strict=True):
        kin.setdefault(spec.method, set()).add(key)
    first = {key: spec for spec, key in reversed(list(zip(specs, keys, strict=True)))}
    return [_row_name(first[key], kin[spec.method], first) for spec, key in zip(specs, keys, strict=True)]


def _row_name(spec: RunSpec, kin: set[str], first: dict[str, RunSpec]) -> str:
    if len(kin) == 1:
        return spec.method
    others = [first[key] for key in kin]
    config = [name for name in spec.config if any(o.config.get(name) != spec.config[name] for o in others)]
    told = ", ".join(f"{name}={spec.config[name]}" for name in config[:3])
    name = f"{spec.method} [{told}]" if told and len(config) <= 3 else f"{spec.method} ({spec.id})"
    alike = [o for o in others if [o.config.get(n) for n in config] == [spec.config[n] for n in config]]
    return printable(name if len(alike) == 1 else f"{spec.method} ({spec.id})", 200)


def _members(asked: AskedGrid, files: SaidOfFiles, options: RunOptions, remark: Tell) -> Iterator[Member]:
    for ref in asked.sets:
        one = meant(ref, options.data_root, remark)
        path = one.file(options.data_root)
        if (path / SPEC).is_file():
            folder = RunDir.at(path)
            finished_record(folder)
            yield Member(folder, dataset_of(folder, options.data_root, files.dataset))
            continue
        for found in found_in(path, files.entry, files.dataset, options.data_root, files.said.size):
            data = dataset_of_file(found, path, files.dataset, options.data_root)
            entered = bring_in(found, Import(files.said), data, options)
            for text in entered.warnings:
                remark(f"{ref}: {text}")
            yield Member(RunDir.at(entered.folder), data, one.entry.name if one.entry else "")


def _judges(asked: AskedGrid, base: Protocol, column: Sequence[Member]) -> list[Cell]:
    """The base with every judge of a column."""
    if OWN in (asked.judges or base.backbones):
        raise ConfigError(
            f"protocol {base.id} judges every set with the network that made it, and a grid compares sets under one. "
            "Say which with --judge."
        )
    info = column[0].dataset.info
    found = cells([base], asked.judges, asked.students, info.shape, own=OWN)
    require_judges(found, info)
    return found


def _section_of(
    members: tuple[Member, ...], cell: Cell, recipes: Sequence[GridRecipe], forwards: int | None
) -> Section:
    spec, base = members[0].folder.spec, recipes[0].protocol
    images = spec.ipc * len(members[0].dataset.train.classes) or members[0].images
    forwards = forwards or base_forwards(base, backbone=cell.backbone, dataset=spec.dataset, images=images)
    why = {recipe.name: _says_nothing(recipe, base, members) for recipe in recipes}
    return Section(
        members=members,
        judge=cell.backbone,
        students=cell.students,
        forwards=forwards,
        recipes=tuple(recipe for recipe in recipes if not why[recipe.name]),
        left_out={name: text for name, text in why.items() if text},
    )


def _says_nothing(recipe: GridRecipe, base: Protocol, members: Sequence[Member]) -> str:
    """Why a recipe would be another one once more, under other seeds; "" where it is one of its own."""
    changed = dict(recipe.changes)
    counts, classes = sorted({member.images for member in members}), len(members[0].dataset.train.classes)
    steps = [(full_step(recipe.protocol, n, classes), full_step(base, n, classes)) for n in counts]
    if "batch" in changed and all(one == other for one, other in steps):
        return f"sets of {' or '.join(map(str, counts))} images are trained on in the same steps either way"
    if changed.get("labels") == "soft" and not any(member.synthetic.more_than_classes for member in members):
        return "no set has soft labels of its own, so that hard ones would take their place"
    return ""


def _judge_all(grid: ResolvedGrid, options: RunOptions, stop: Stop, tell: Observer) -> None:
    """Train what is missing or has failed: first what nobody else is at, then, after waiting, what the others left."""
    judging = {m.sha256: _judging(m, options, stop, tell) for s in grid.sections for m in s.members}
    failed = {grid.file(*cell) for cell in grid.cells() if (done := grid.found(*cell)) is not None and done.failed}
    for section in grid.sections:
        for recipe in section.recipes:
            for member in section.members:
                _judge(grid, section, recipe, member, judging[member.sha256], failed, patient=False)
            _write(grid, grid.place.with_name(grid.place.name + CELLS), finished=False)
    for section, recipe, member in grid.cells():
        _judge(grid, section, recipe, member, judging[member.sha256], failed, patient=True)


def _judge(
    grid: ResolvedGrid,
    section: Section,
    recipe: GridRecipe,
    member: Member,
    judging: Judging,
    failed: set[Path],
    *,
    patient: bool,
) -> None:
    """Train a cell that is missing, or that is among the `failed` ones, which it leaves when it was tried again.

    One that another process is at is left to it, unless `patient`, which waits for what becomes of it there.
    """
    file = grid.file(section, recipe, member)
    if grid.found(section, recipe, member) is not None and file not in failed:
        return
    protocol = section.protocol(recipe, member)
    folder = grid.folder(member, protocol)
    _made(folder.path)
    lock = folder.path / ".lock"
    try:
        with locked(lock, _OPTION) if patient else FileLock(lock, timeout=0):
            cell = Cell(protocol, section.judge, section.students)
            replace(judging, folder=folder, retry=not patient).judge(cell)
            failed.discard(file)
    except Timeout:
        return  # another process is at it


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"the folder {folder} cannot be made: {error.strerror}"
        raise mistyped(RunError(f"{why}. Choose another place with {_OPTION}.")) from None


def _judging(member: Member, options: RunOptions, stop: Stop, tell: Observer) -> Judging:
    problem = problems(member.folder.spec, member.dataset, options, tell)
    return Judging(member.folder, member.synthetic, member.dataset, member.sha256, problem, stop, tell)


def _write(grid: ResolvedGrid, folder: Path, *, finished: bool) -> Results:
    # Alone, so that no process puts an earlier state in the place of a later one.
    with locked(folder / ".lock", _OPTION):
        results = grid.results(finished=finished)
        write_results(grid.place, results)
    return results


def _replaced(grid: ResolvedGrid) -> str:
    """What the results that are there have and the grid has not, in words; nothing where it has all of it."""
    before = _before(grid.place)
    if before is None:
        return ""
    recipes = {recipe.name for recipe in grid.recipes}
    sets = {member.sha256 for section in grid.sections for member in section.members}
    lost = [f"the recipe {recipe.name}" for recipe in before.recipes if recipe.name not in recipes]
    lost += [f"a set of {one.row}" for section in before.sections for one in section.sets if one.sha256 not in sets]
    return f"{lost[0]} and {len(lost) - 1} more" if len(lost) > 1 else "".join(lost)


def _recipe_part(recipe: GridRecipe) -> RecipePart:
    return RecipePart(
        name=recipe.name,
        protocol=recipe.protocol.id,
        changes=recipe.changes,
        times=str(recipe.times),
        track=recipe.protocol.track,
        fields=recipe.protocol.model_dump(mode="json"),
    )


def _before(place: Path) -> Results | None:
    """The results that are there. Raises: ConfigError where something else lies at their place, or no file can."""
    if place.is_dir() or place.name in ("", ".."):
        raise ConfigError(f"{place} is a folder. Say what the file of results should be called, with {_OPTION}.")
    if place.exists():
        try:
            return read_results(place)
        except (RunError, DataError) as error:
            cells = place.with_name(place.name + CELLS)
            kept = f" If it was one, remove it: {cells} has the accuracies that it was made from."
            raise ConfigError(
                f"{place} is there and is no file of a grid. Choose another one with {_OPTION}."
                f"{kept if cells.is_dir() else ''}"
            ) from error
    return None
