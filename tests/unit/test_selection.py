"""Selection on held-out images: which set a run keeps, by whom, under which names, and after an interruption."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddbench.evaluation.selection as selection
from ddbench import Choice, MethodConfig, MethodInfo, Problem, Rng, State, SyntheticSet, condense, drive, export
from ddbench import Method as AnyMethod
from ddbench.config import Selection, parse_selection
from ddbench.errors import ConfigError, PluginError
from ddbench.evaluation.selection import VALIDATION, Selector
from ddbench.evaluation.sgd import SGDTrainer
from ddbench.plugins import GROUPS, load_object
from ddbench.runs.record import read_record
from ddbench.runs.resolving import Asked, Resolution, resolve_spec
from ddbench.runs.runner import RunOptions, prepare, run
from ddbench.runs.signals import Interrupted
from ddbench.sweep.grid import asked_from_json, asked_to_json, distribute
from ddbench.synthetic import load
from ddbench.testing.contract import problem_for_checks

DM, MTT, LD, LS = (load_object(GROUPS["method"], name) for name in ("dm", "mtt", "ld", "ls"))
CPU = torch.device("cpu")


def dm(**options: Any) -> Any:
    return DM(DM.Config(**{"iterations": 4, "batch_real": 8} | options))


def selector(rule: Selection, method: Any, problem: Problem) -> Selector:
    found = Selector.of(rule, method, problem)
    assert found is not None
    return found


class Scripted:
    """Students that get so many of the held-out images right, one share after the other."""

    def __init__(self, shares: Sequence[float], part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers: list[list[int]] = []
        self.sets: list[SyntheticSet] = []
        left, outer = list(shares), self

        class Trainer(SGDTrainer):
            def train(self, students: Sequence[int], progress: object) -> Callable[[Tensor], Tensor]:
                outer.numbers.append(list(students))
                outer.sets.append(self.synthetic)
                wrong = torch.arange(len(part)) >= int(left.pop(0) * len(part))
                scores = torch.nn.functional.one_hot((part.labels + wrong) % 3, 3)
                return lambda x: scores.expand(len(students), -1, -1)

        monkeypatch.setattr(selection, "trainer_of", Trainer)


def share(of: float, part: Any) -> float:
    return int(of * len(part)) / len(part)


@pytest.mark.parametrize(
    ("fresh", "kept", "numbers"),
    [
        # The same two networks look at every set, and the earlier of two equal ones stays.
        (False, 2, [[VALIDATION, VALIDATION + 1]] * 4),
        # New ones look each time, numbered by the step, and the later of two equal ones takes its place.
        (True, 3, [[VALIDATION + step, VALIDATION + step + 1] for step in (1, 2, 3, 4)]),
    ],
)
def test_the_best_set_is_kept(
    fresh: bool, kept: int, numbers: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_for_checks(tmp_path)
    looks = selector(Selection(on=True, heldout=0.25, every=1, fresh=fresh), dm(), problem)
    script = Scripted([0.5, 0.9, 0.9, 0.2], looks.part, monkeypatch)
    told = [metrics.get("heldout") for _, metrics in drive(dm(), looks.problem, selector=looks)]
    assert script.numbers == numbers
    assert looks.best is not None
    assert torch.equal(looks.best.images, script.sets[kept - 1].images)
    assert looks.best.choice == Choice(kept, share(0.9, looks.part), len(looks.part), 2, "dsa@1")
    assert [t if t is None else float(t) for t in told] == [
        None, *(pytest.approx(share(of, looks.part)) for of in (0.5, 0.9, 0.9, 0.2)),
    ]  # fmt: skip
    assert len({image.tobytes() for image in (s.images.numpy() for s in script.sets)}) == 4


@pytest.mark.parametrize(("iterations", "choices"), [(4, [2, 4]), (5, [2, 4, 5]), (1, [1]), (0, [])])
def test_the_last_step_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iterations: int, choices: list[int]
) -> None:
    looks = selector(Selection(on=True, every=2), dm(iterations=iterations), problem_for_checks(tmp_path))
    Scripted([0.5] * 9, looks.part, monkeypatch)
    steps = drive(dm(iterations=iterations), looks.problem, selector=looks)
    assert [state.step for state, metrics in steps if "heldout" in metrics] == choices
    assert (looks.best is None) == (not choices)


def test_a_pass_has_as_many_steps_as_the_method_says(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)  # 120 images, of which 108 are left
    assert selector(LD.selection, LD(LD.Config(batch_real=50)), problem).steps == 5 * 3
    with pytest.raises(ConfigError, match=r"every=5p counts passes over the real images, and dm does not go over"):
        Selector.of(Selection(on=True, every="5p"), dm(), problem)


def test_real_students_choose_on_images_that_the_set_has_not_seen(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    rest, part = problem.heldout(0.25)
    found = condense(dm(iterations=2), problem, Selection(on=True, heldout=0.25, every=1, students=1))
    assert found.choice is not None
    assert found.choice.images == len(part)
    seen = {image.numpy().tobytes() for image in rest.train.images}
    assert not seen & {image.numpy().tobytes() for image in part.data.images}
    first = condense(dm(iterations=0), problem, Selection(on=True, heldout=0.25))
    taken = rest.real.take(torch.arange(len(rest.train)))
    assert all(any(torch.equal(image, other) for other in taken) for image in first.images)


def test_the_best_set_survives_a_checkpoint_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for_checks(tmp_path)
    looks = selector(LD.selection, LD(LD.Config(iterations=5)), problem)
    Scripted([0.5] * 9, looks.part, monkeypatch)
    for _ in drive(LD(LD.Config(iterations=5)), looks.problem, selector=looks):
        pass
    buffer = io.BytesIO()
    torch.save(looks.state_dict(), buffer)
    buffer.seek(0)
    again = replace(looks, best=None)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert looks.best is not None
    assert again.best is not None
    assert again.best.choice == looks.best.choice
    for name in ("images", "labels", "source_indices"):
        assert torch.equal(getattr(again.best, name), getattr(looks.best, name))
    assert (again.best.recipe.steps, again.best.pixels) == (looks.best.recipe.steps, looks.best.pixels)


def resolved(method: str, folder: Path, **asked: Any) -> Resolution:
    tiny = 'name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 2\nbatch = 16\n'
    (folder / "tiny.toml").write_text(tiny)
    return resolve_spec(Asked(method, "digits", ipc=1, protocols=(str(folder / "tiny.toml"),), **asked), folder)


class Quick(DM):  # type: ignore[misc, valid-type]
    """Chooses by a short look, so that a test does not take minutes."""

    name = "quick"
    place = Path()

    @property
    def native(self) -> str:
        return str(self.place / "tiny.toml")


def test_an_interrupted_run_chooses_what_an_uninterrupted_one_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quick, "place", tmp_path)
    asked = resolved(Quick, tmp_path, options={"iterations": 6, "batch_real": 8}, select={"every": 1})  # type: ignore[arg-type]
    places = {name: RunOptions(root=tmp_path / name, data_root=tmp_path, device=CPU) for name in ("whole", "cut")}
    run(asked, places["whole"])
    look, looked = Selector.look, []

    def interrupted(self: Selector, synthetic: SyntheticSet, step: int) -> Choice:
        looked.append(step)
        if step == 4 and looked.count(4) == 1:
            raise Interrupted("test")
        return look(self, synthetic, step)

    monkeypatch.setattr(Selector, "look", interrupted)
    with pytest.raises(Interrupted):
        run(asked, replace(places["cut"], checkpoint_steps=1))
    run(asked, replace(places["cut"], checkpoint_steps=1))
    assert looked == [1, 2, 3, 4, 4, 5, 6]
    whole, cut = (places[name].root / asked.spec.folder for name in places)
    assert (whole / "synthetic.safetensors").read_bytes() == (cut / "synthetic.safetensors").read_bytes()
    record = read_record(cut / "record.json")
    assert record.synthetic.choice is not None
    assert record.synthetic.choice == read_record(whole / "record.json").synthetic.choice
    assert record.config.values["select.every"] == 1
    # Curves are of the iterate: none of the snapshots was chosen.
    assert all(load(path).choice is None for path in cut.rglob("snapshots/*.safetensors"))


def test_what_is_prepared_beforehand_is_without_the_held_out_images(tmp_path: Path) -> None:
    small = {"experts": 1, "start_epochs": 1, "expert_span": 1}
    asked = resolved("mtt", tmp_path, backbone="mlp", options=small, select=True)
    options = RunOptions(root=tmp_path / "runs", data_root=tmp_path, device=CPU)
    (used,) = prepare(asked, options)
    fingerprint = asked.dataset.train.split(0.1)[0].fingerprint
    assert used["identity"]["dataset"] == fingerprint != asked.dataset.fingerprint


class Sampler(AnyMethod[State]):
    """Exports the first images of each class, and says where they are."""

    name = "sampler"
    info = MethodInfo(title="Sampler", learns=("images",))
    Config = MethodConfig
    translated = True

    def start(self, problem: Problem) -> State:
        return State()

    def step(self, problem: Problem, state: State, rng: Rng) -> dict[str, Tensor]:
        return {}

    def export(self, problem: Problem, state: State) -> SyntheticSet:
        rows = problem.train.offsets + torch.arange(problem.ipc)[:, None]
        rows = rows.T.flatten()
        named = problem.source_rows(rows) if self.translated else rows
        return SyntheticSet(problem.train.images[rows], problem.train.labels[rows], source_indices=named)


def test_source_indices_are_rows_of_the_whole_training_set(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    rest, _ = problem.heldout(0.25)
    method = Sampler(MethodConfig())
    indices = export(method, rest, State()).source_indices
    assert indices is not None
    assert torch.equal(problem.train.images[indices], export(method, rest, State()).images)
    inner, _ = rest.heldout(0.25)
    assert inner.whole is problem
    indices = export(method, inner, State()).source_indices
    assert indices is not None
    assert torch.equal(problem.train.images[indices], export(method, inner, State()).images)
    method.translated = False
    with pytest.raises(PluginError, match=r"are not those that its source_indices name.*problem.source_rows"):
        export(method, rest, State())
    ls = LS(LS.Config(kernel="fc1"))
    state = ls.start(rest)
    synthetic = export(ls, rest, state)
    assert synthetic.source_indices is not None
    assert torch.equal(problem.train.images[synthetic.source_indices], synthetic.images)


def config(method: str, folder: Path, **asked: Any) -> tuple[Mapping[str, Any], Mapping[str, str], Selection]:
    found = resolved(method, folder, **asked)
    return found.spec.config, found.spec.sources, found.selection


def test_mtt_and_ld_keep_the_names_that_their_runs_have(tmp_path: Path) -> None:
    values, sources, rule = config("mtt", tmp_path)
    off = {"select": "last", "heldout": 0.1, "select_every": 500, "select_students": 2}
    assert {name: values[name] for name in off} == off
    assert {sources[f"config.{name}"] for name in off} == {"default"}
    assert not rule.on
    values, sources, rule = config("mtt", tmp_path, select={"heldout": 0.2})
    assert {name: values[name] for name in off} == off | {"select": "heldout", "heldout": 0.2}
    given = {name for name in off if sources[f"config.{name}"] == "argument"}
    assert (given, rule.on, rule.heldout) == ({"select", "heldout"}, True, 0.2)
    values, _, rule = config("ld", tmp_path)
    assert (values["heldout"], values["validate_every"]) == (0.1, 1000)  # of the preset quick
    assert rule == Selection(on=True, heldout=0.1, every="1000p", students=1, fresh=True)
    values, _, rule = config("ld", tmp_path, preset="paper")
    assert (values["heldout"], values["validate_every"], rule.every) == (0.1, 5, "5p")
    assert not [name for name in values if name.startswith("select")]


@pytest.mark.parametrize(
    ("method", "old", "select"),
    [
        ("mtt", {"select": "heldout", "select_every": 3, "select_students": 4}, {"every": 3, "students": 4}),
        ("mtt", {"select": "heldout"}, True),
        ("mtt", {"select": "last"}, None),
        ("ld", {"validate_every": 7, "heldout": 0.2}, {"every": "7p", "heldout": 0.2}),
    ],
)
def test_old_spellings_are_the_same_run(
    method: str, old: dict[str, Any], select: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = resolved(method, tmp_path, options=old), resolved(method, tmp_path, select=select)
    assert before.spec.id == after.spec.id
    assert before.selection == after.selection
    assert {before.spec.sources[f"config.{name}"] for name in old} == {"options"}


def test_an_old_spelling_says_the_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved("mtt", tmp_path, options={"select": "heldout", "select_every": 123})
    assert "mtt: select and select_every is --select every=123 now" in caplog.text
    assert distribute({"select": "heldout"}, ["mtt", "dm"]) == {"mtt": {"select": "heldout"}, "dm": {}}
    with pytest.raises(ConfigError, match="select is 'first'; it was last or heldout"):
        resolved("mtt", tmp_path, options={"select": "first"})


def test_another_method_has_keys_only_where_it_selects(tmp_path: Path) -> None:
    plain, _, rule = config("dm", tmp_path)
    assert not rule.on
    assert not [name for name in plain if "select" in name]
    assert config("dm", tmp_path, select=False)[0] == plain
    values, sources, rule = config("dm", tmp_path, select={"every": 10})
    added = {"select.heldout": 0.1, "select.every": 10, "select.students": 2}
    assert values == {**plain, **added}
    assert rule == Selection(on=True, every=10)
    assert [sources[f"config.{name}"] for name in added] == ["default", "argument", "default"]


def test_ld_can_do_without_and_count_steps(tmp_path: Path) -> None:
    values, _, rule = config("ld", tmp_path, select=False)
    assert (values["heldout"], values["validate_every"], rule.on) == (None, None, False)
    values, _, rule = config("ld", tmp_path, select={"every": 50, "students": 3})
    assert (values["validate_every"], values["select.every"], values["select.students"]) == (None, 50, 3)
    assert len({resolved("ld", tmp_path, select=how).spec.id for how in (None, False, {"every": 50})}) == 3


@pytest.mark.parametrize(
    ("method", "select", "message"),
    [
        ("dm", {"evry": 5}, r"--select has no 'evry'. Did you mean 'every'"),
        ("dm", {"every": "5p"}, "dm does not go over them in passes"),
        ("dm", {"every": "often"}, "it is a number of steps, at least 1, or of passes"),
        ("dm", {"heldout": 1.0}, "--select: heldout: input should be less than 1"),
        ("random", True, "random chooses real images once"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(method: str, select: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(method, tmp_path, select=select)


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    assert parse_selection("heldout=0.2,every=5p,students=3") == {"heldout": 0.2, "every": "5p", "students": 3}
    assert (parse_selection("on"), parse_selection("none")) == (True, False)
    with pytest.raises(ConfigError, match=r"Example: --select heldout=0.1,every=500,students=2"):
        parse_selection("often")
    asked = Asked("dm", "digits", select={"every": 5})
    assert asked_from_json(asked_to_json(asked)) == asked
