"""What every method must keep, as checks that anybody's tests can run:

    @pytest.mark.parametrize("check", contract.checks, ids=lambda check: check.__name__)
    def test_contract(check):
        check(MyMethod, options={"iterations": 5})

A check runs the method on a tiny problem, on the CPU, with no test data anywhere, and raises ContractError.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.artifacts import ArtifactCache
from ddbench.backbones.names import build
from ddbench.config import ANY, Layer, MethodConfig, preset_layers, resolve
from ddbench.data.pixels import fit_pixels
from ddbench.data.toy import toy
from ddbench.errors import ConfigError, DataError, DdbenchError
from ddbench.evaluation.plan import fit
from ddbench.evaluation.protocol import protocol
from ddbench.loop import drive, export
from ddbench.method import Method, MethodInfo, Metrics, State
from ddbench.problem import Problem
from ddbench.rng import Rng
from ddbench.synthetic import Recipe, SyntheticSet, load, save

MethodClass = type[Method[Any]]
Options = Mapping[str, Any]
Check = Callable[[MethodClass, Options], None]

CLASSES = 3
FEW_STEPS = 3
HELD_OUT = 0.1
# Some choices from a few images coincide by chance, so one other seed would not do.
OTHER_SEEDS = (1, 2, 3)


class ContractError(AssertionError):
    """A promise that the method does not keep, in words for its author."""


def problem_for_checks(
    root: Path,
    *,
    seed: int = 0,
    ipc: int = 2,
    shape: tuple[int, int, int] = (3, 8, 8),
    per_class: int | Sequence[int] = 40,
) -> Problem:
    """A tiny problem without test data: three classes, a ConvNet of width 8, artefacts in the folder `root`."""
    data = toy(CLASSES, shape, per_class)
    return Problem(
        info=data.info,
        train=data.train,
        pixels=fit_pixels("standard", data.train, data.info),
        backbone=build("convnet-d2-w8", shape, CLASSES),
        ipc=ipc,
        rng=Rng(seed),
        device=torch.device("cpu"),
        artifacts=ArtifactCache(root),
    )


def run(
    method_class: MethodClass,
    options: Options,
    *,
    ref: str = "",
    told: Callable[[Check, str | None], None] | None = None,
) -> list[tuple[str, str | None]]:
    """The name of each check with what is wrong, or None where the method keeps it.

    `told` hears of each as soon as it is done. `ref` is what a person named the method by, for messages.
    Raises: ConfigError when the options are not the method's.
    """
    _configured(method_class, options, ref)
    results: list[tuple[str, str | None]] = []
    for check in checks:
        wrong: str | None = None
        try:
            check(method_class, options)
        except ContractError as error:
            wrong = str(error)
        except DdbenchError as error:
            wrong = f"{error}{_place(error, method_class)}"
        except Exception as error:  # a stranger's method can raise anything, and the other checks still tell something
            wrong = f"raised {type(error).__name__}: {error}{_place(error, method_class)}"
        results.append((check.__name__, wrong))
        if told is not None:
            told(check, wrong)
    return results


def trial(method_class: MethodClass) -> Options:
    """The options of the preset `trial` of a method, or of the one that it is derived from; none where there is none.

    Checks take them in the place of the defaults, which may be too much for a tiny problem.
    """
    for kind in method_class.__mro__:
        if issubclass(kind, Method) and "name" in vars(kind):
            found = preset_layers(kind.settings(), "trial", ANY, ANY)[0]
            if found:
                return {name: value for layer in found for name, value in layer.values.items()}
    return getattr(getattr(method_class, "info", None), "trial", {})


def _place(error: Exception, method_class: MethodClass) -> str:
    """The last line of the method's own file on the way to an error, as " (idea.py, line 41: ...)"; else nothing."""
    module = sys.modules.get(method_class.__module__)
    file = getattr(module, "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def name_and_info_are_complete(method_class: MethodClass, options: Options) -> None:
    """Folders, tables and docs pages have all that they print."""
    name, info = getattr(method_class, "name", None), getattr(method_class, "info", None)
    _require(
        isinstance(name, str) and re.fullmatch("[a-z][a-z0-9-]*", name) is not None,
        f"name is {name!r}; folders and tables need lower-case letters, digits and dashes.",
    )
    if not isinstance(info, MethodInfo):
        raise ContractError(f"info is {info!r}; tables need a MethodInfo.")
    _require(bool(info.title), "info.title is empty; tables print it.")
    _require(bool(info.learns) or info.kind != "condensation", "info.learns is empty; say what the method learns.")
    try:
        protocol(info.native)
    except ConfigError as error:
        raise ContractError(f"info.native: {error}") from None


def options_survive_json(method_class: MethodClass, options: Options) -> None:
    """Every option has a default and a sentence, and a record keeps its value."""
    _require(issubclass(method_class.Config, MethodConfig), "Config is not a subclass of ddbench.MethodConfig.")
    for name, field in method_class.Config.model_fields.items():
        _require(not field.is_required(), f"option {name!r} has no default.")
        _require(bool(field.description), f"option {name!r} has no description; `--set` and the docs print it.")
    config = _configured(method_class, options)
    again = method_class.Config(**json.loads(json.dumps(config.model_dump(mode="json"))))
    changed = [name for name in type(config).model_fields if getattr(again, name) != getattr(config, name)]
    _require(not changed, f"written to JSON and read back, {_list(changed)} changed; records could not be trusted.")


def presets_fit_the_options(method_class: MethodClass, options: Options) -> None:
    """Each setting of the presets names options that exist, with values in range."""
    try:
        for setting in method_class.settings():
            resolve(method_class.name, method_class.Config, [Layer(setting.source, setting.options)])
    except ConfigError as error:
        raise ContractError(f"the presets do not fit the options: {error}") from None


def prepare_may_be_repeated(method_class: MethodClass, options: Options) -> None:
    """Prepared twice is prepared once; start() then finds all it asks for; whoever prepares, the set is the same."""
    with _folder() as first, _folder() as second:
        _method(method_class, options).prepare(problem_for_checks(first))
        made = _files(first)
        _method(method_class, options).prepare(problem_for_checks(first))
        _require(_files(first) == made, "prepare() made or changed artefacts when it was called again.")

        problem = problem_for_checks(first)
        _method(method_class, options).start(problem)
        missing = [used["kind"] for used in problem.artifacts.used.values() if not used["from_cache"]]
        _require(not missing, f"start() had to make {_list(missing)}; prepare() is there to make it before.")

        one, other = (_final(method_class, options, problem_for_checks(root)) for root in (first, second))
        _require_same(method_class, options, one, other, "prepared in two folders, the method gave two sets")


def same_seed_same_set(method_class: MethodClass, options: Options) -> None:
    """Two runs with one seed give one set, bit for bit."""
    first, second = (_final(method_class, options) for _ in range(2))
    _require(
        first == second,
        f"two runs with the same seed differ in {_differences(first, second)}. Draw from problem.rng in start() and "
        "from rng in step(), never from the clock.",
    )


def another_seed_another_set(method_class: MethodClass, options: Options) -> None:
    """The seed matters, unless the method is a ceiling, which has nothing to draw."""
    if method_class.info.kind == "ceiling":
        return
    usual = _final(method_class, options)
    _require(
        any(_final(method_class, options, _problem(method_class, seed=seed)) != usual for seed in OTHER_SEEDS),
        f"seeds 0, {', '.join(map(str, OTHER_SEEDS))} give one and the same set, so a spread over seeds would be zero. "
        "Draw from problem.rng and rng.",
    )


def a_resumed_run_equals_an_uninterrupted_one(method_class: MethodClass, options: Options) -> None:
    """Stopped after any step and started again from its file, a run ends with the same set, bit for bit."""
    files: list[bytes] = []
    whole = _final(method_class, options, visit=lambda moment: files.append(_as_file(moment.state)))
    for step, file in enumerate(files):
        saved = torch.load(io.BytesIO(file), weights_only=True)
        resumed = _final(method_class, options, saved=saved)
        sentence = f"stopped after step {step} of {len(files) - 1} and resumed, the run ended with another set"
        advice = "Everything that changes belongs to the state, not to self; start() must find transient fields again"
        _require_same(method_class, options, whole, resumed, f"{sentence}. {advice}")


def an_export_shares_no_memory_with_the_state(method_class: MethodClass, options: Options) -> None:
    """A snapshot stays as it was while the run goes on, and writing into it changes nothing."""
    kept: list[tuple[SyntheticSet, Frozen]] = []

    def keep(moment: Moment) -> None:
        synthetic = moment.export()
        kept.append((synthetic, _freeze(synthetic)))

    _final(method_class, options, visit=keep)
    for step, (synthetic, then) in enumerate(kept):
        changed = _differences(then, _freeze(synthetic))
        _require(
            not changed, f"the set exported after step {step} changed later on, in {changed}. Clone what you export."
        )

    written_to = _final(method_class, options, visit=lambda moment: _overwrite(moment.export()))
    looked_at = _final(method_class, options, visit=lambda moment: _freeze(moment.export()))
    _require_same(
        method_class,
        options,
        looked_at,
        written_to,
        "writing into an exported set changed the run. Clone what you export",
    )


def exporting_changes_nothing(method_class: MethodClass, options: Options) -> None:
    """Looking at the set after every step, twice, gives the same set in the end."""

    def look(moment: Moment) -> None:
        moment.export()
        moment.export()

    looked_at = _final(method_class, options, visit=look)
    _require_same(
        method_class, options, _final(method_class, options), looked_at, "exporting after every step changed the set"
    )


def save_and_load_give_the_same_set(method_class: MethodClass, options: Options) -> None:
    """The file holds everything."""
    with _folder() as folder:
        path = folder / "synthetic.safetensors"

        def write_and_read(moment: Moment) -> None:
            synthetic = moment.export()
            save(synthetic, path)
            changed = _differences(_freeze(synthetic), _freeze(load(path)))
            _require(
                not changed, f"{changed} of the set after step {moment.state.step} came back from its file changed."
            )

        _final(method_class, options, visit=write_and_read)


def global_generators_are_left_alone(method_class: MethodClass, options: Options) -> None:
    """The global generators of torch, numpy and random are neither changed nor read, also while preparing."""

    def look(moment: Moment) -> None:
        before = _generators()
        moment.export()
        touched = moment.touched + _differing(before, _generators())
        _require(
            not touched,
            f"the global generators of {_list(sorted(set(touched)))} were used or seeded by step {moment.state.step}. "
            "Draw from rng.fold(...).torch() or .numpy() instead.",
        )

    with _folder() as first, _folder() as second:
        one = _final(method_class, options, problem_for_checks(first), salt=1, visit=look)
        other = _final(method_class, options, problem_for_checks(second), salt=2, visit=look)
    _require_same(method_class, options, one, other, "the set depends on the state of a global generator")


def torch_settings_are_left_alone(method_class: MethodClass, options: Options) -> None:
    """The default dtype, the grad mode and the backend flags are those of the run, which names them in its record."""
    before = _settings()

    def look(moment: Moment) -> None:
        moment.export()
        changed = _differing(before, _settings())
        _require(
            not changed, f"{_list(changed)} of torch changed by step {moment.state.step}. Precision sets such flags."
        )

    _final(method_class, options, visit=look)


def the_real_data_is_left_alone(method_class: MethodClass, options: Options) -> None:
    """No training image or label is written to."""
    problem = _problem(method_class)
    before = _real_data(problem)

    def look(moment: Moment) -> None:
        moment.export()
        changed = _differing(before, _real_data(problem))
        _require(
            not changed, f"the training set's {_list(changed)} changed by step {moment.state.step}. Clone them first."
        )

    _final(method_class, options, problem, visit=look)


def the_set_fits_the_problem(method_class: MethodClass, options: Options) -> None:
    """After every step: the classes, the shape and the budget of the problem, and finite numbers."""
    _final(method_class, options, visit=_require_fit)


def metrics_are_scalar_tensors(method_class: MethodClass, options: Options) -> None:
    """Metrics are 0-d tensors without history, so that nothing waits for the device and no graph is kept."""

    def look(moment: Moment) -> None:
        for name, value in moment.metrics.items():
            where = f"metric {name!r} of step {moment.state.step}"
            _require(
                isinstance(value, Tensor), f"{where} is a {type(value).__name__}; return a 0-d tensor, without .item()."
            )
            _require(value.ndim == 0, f"{where} has shape {tuple(value.shape)}; return a 0-d tensor.")
            _require(not value.requires_grad, f"{where} still has its graph; return it with .detach().")

    _final(method_class, options, visit=look)


def held_out_images_are_not_missed(method_class: MethodClass, options: Options) -> None:
    """Without the images by which a run selects; what the set was taken from is still named in all training images."""
    if method_class.info.kind == "condensation":
        rest, _ = _problem(method_class).heldout(HELD_OUT)
        _final(method_class, options, rest, visit=_require_fit)


def grey_images_work(method_class: MethodClass, options: Options) -> None:
    """One channel."""
    _final(method_class, options, _problem(method_class, shape=(1, 8, 8)), visit=_require_fit)


def unbalanced_classes_work(method_class: MethodClass, options: Options) -> None:
    """Classes of 40, 13 and 5 images."""
    _final(method_class, options, _problem(method_class, per_class=(40, 13, 5)), visit=_require_fit)


def one_image_per_class_works(method_class: MethodClass, options: Options) -> None:
    """The smallest budget."""
    _final(method_class, options, _problem(method_class, ipc=1), visit=_require_fit)


checks: list[Check] = [
    name_and_info_are_complete,
    options_survive_json,
    presets_fit_the_options,
    prepare_may_be_repeated,
    same_seed_same_set,
    another_seed_another_set,
    a_resumed_run_equals_an_uninterrupted_one,
    an_export_shares_no_memory_with_the_state,
    exporting_changes_nothing,
    save_and_load_give_the_same_set,
    global_generators_are_left_alone,
    torch_settings_are_left_alone,
    the_real_data_is_left_alone,
    the_set_fits_the_problem,
    metrics_are_scalar_tensors,
    grey_images_work,
    unbalanced_classes_work,
    one_image_per_class_works,
    held_out_images_are_not_missed,
]


Frozen = dict[str, Any]
"""Names and values that can be compared; tensors as dtype, shape and bytes."""


@dataclass(frozen=True, eq=False)
class Moment:
    """A run between two steps. `touched` are the global generators that moved since the last moment."""

    method: Method[Any]
    problem: Problem
    state: State
    metrics: Metrics
    touched: list[str]

    def export(self) -> SyntheticSet:
        """The set as the driver exports it."""
        return export(self.method, self.problem, self.state)


def _final(
    method_class: MethodClass,
    options: Options,
    problem: Problem | None = None,
    *,
    saved: Mapping[str, Any] | None = None,
    salt: int = 0,
    visit: Callable[[Moment], object] | None = None,
) -> Frozen:
    """Run a fresh method to its end, with a visit between steps, and freeze its set.

    Before every step the global generators are seeded with its number and `salt`, so that a method that reads them
    fails the check that is about them and no other.
    """
    problem = problem or _problem(method_class)
    method = _method(method_class, options)
    with _settings_and_generators_put_back():
        before = _seed_generators(salt, "start")
        for state, metrics in drive(method, problem, saved):
            moment = Moment(method, problem, state, metrics, _differing(before, _generators()))
            if visit is not None:
                visit(moment)
            before = _seed_generators(salt, state.step)
        return _freeze(moment.export())


def _problem(method_class: MethodClass, **changes: Any) -> Problem:
    return problem_for_checks(_artifacts_of(method_class), **changes)


@functools.cache
def _artifacts_of(method_class: MethodClass) -> Path:
    """A folder that the checks of one method share, so that what it prepares is made once; gone with the process."""
    root = Path(tempfile.mkdtemp(prefix="ddbench-contract-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _configured(method_class: MethodClass, options: Options, ref: str = "") -> MethodConfig:
    # A subclass may have inherited the settings and not the options.
    known = method_class.Config.model_fields
    values = {name: value for name, value in trial(method_class).items() if name in known} | dict(options)
    if "iterations" in method_class.Config.model_fields:
        values.setdefault("iterations", FEW_STEPS)
    return resolve(method_class.name, method_class.Config, [Layer("options", values)], ref).config


def _method(method_class: MethodClass, options: Options) -> Method[Any]:
    return method_class(_configured(method_class, options))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def _require_same(method_class: MethodClass, options: Options, first: Frozen, second: Frozen, otherwise: str) -> None:
    """Raises: ContractError for other sets; a method that never repeats itself is left to `same_seed_same_set`."""
    if first != second and _final(method_class, options) == _final(method_class, options):
        raise ContractError(f"{otherwise} (different: {_differences(first, second)}).")


def _require_fit(moment: Moment) -> None:
    problem, synthetic = moment.problem, moment.export()
    when = f"the set after step {moment.state.step}"
    try:
        fit(synthetic, problem)
    except DataError as error:
        raise ContractError(f"{when} does not fit the problem: {error}") from None
    history = [name for name, value in _parts(synthetic).items() if isinstance(value, Tensor) and value.requires_grad]
    _require(not history, f"{when}: {_list(history)} still has its graph; export it with .detach().")

    kind, budget = moment.method.info.kind, problem.ipc * problem.classes
    if kind == "ceiling":
        _require(len(synthetic) == len(problem.train), f"{when} has {len(synthetic)} of {len(problem.train)} images.")
    elif synthetic.soft:
        _require(len(synthetic) == budget, f"{when} has {len(synthetic)} images; {problem.ipc} per class are {budget}.")
    else:
        counts = synthetic.labels.bincount(minlength=problem.classes).tolist()
        _require(
            counts == [problem.ipc] * problem.classes,
            f"{when} has {counts} images by class; ipc is {problem.ipc} for each.",
        )
    if kind != "condensation":
        _require(synthetic.source_indices is not None, f"{when} has no source_indices; a {kind} says what it took.")
    if synthetic.source_indices is not None:
        _require_taken(problem, synthetic, synthetic.source_indices, when)


def _require_taken(problem: Problem, synthetic: SyntheticSet, rows: Tensor, when: str) -> None:
    train = problem.whole.train
    inside = int(rows.min()) >= 0 and int(rows.max()) < len(train)
    _require(inside, f"{when}: source_indices leave the training set, which has {len(train)} images.")
    _require(len(rows.unique()) == len(rows), f"{when} has an image twice.")
    images = train.images[rows] if synthetic.stored == "uint8" else problem.pixels.forward(train.images[rows])
    _require(torch.equal(synthetic.images, images), f"{when}: the images are not those that source_indices name.")
    if not synthetic.soft:
        labels = train.labels[rows]
        _require(torch.equal(synthetic.labels, labels), f"{when}: the labels are not those that source_indices name.")


def _parts(synthetic: SyntheticSet) -> dict[str, Any]:
    parts = {f.name: getattr(synthetic, f.name) for f in fields(SyntheticSet) if f.name not in ("recipe", "start")}
    parts |= {f"recipe.{f.name}": getattr(synthetic.recipe, f.name) for f in fields(Recipe)}
    return parts | {f"start.{name}": value for name, value in synthetic.start.items()}


def _freeze(synthetic: SyntheticSet) -> Frozen:
    return {name: _frozen(value) if isinstance(value, Tensor) else value for name, value in _parts(synthetic).items()}


def _frozen(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.detach().cpu().contiguous().flatten()
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def _overwrite(synthetic: SyntheticSet) -> None:
    for value in _parts(synthetic).values():
        if isinstance(value, Tensor):
            # By storage, because a tensor that repeats one number by its strides refuses to be written to.
            torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).fill_(0x3F)


def _real_data(problem: Problem) -> Frozen:
    everything = torch.arange(len(problem.train))
    tensors = {
        "raw images": problem.train.images,
        "labels": problem.train.labels,
        "images on the device": problem.real.take(everything),
        "labels on the device": problem.real.labels,
    }
    return {name: _frozen(tensor) for name, tensor in tensors.items()}


def _as_file(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    return buffer.getvalue()


def _differing(before: Frozen, after: Frozen) -> list[str]:
    return [name for name in before | after if before.get(name) != after.get(name)]


def _differences(before: Frozen, after: Frozen) -> str:
    return _list(_differing(before, after))


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ddbench-contract-") as name:
        yield Path(name)


def _files(root: Path) -> dict[str, int]:
    """When each file was last written."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in found}


def _generators() -> Frozen:
    numpy_state = np.random.get_state(legacy=True)
    return {
        "torch": bytes(torch.get_rng_state().numpy()),
        "numpy": tuple(bytes(part) if isinstance(part, np.ndarray) else part for part in numpy_state),
        "random": random.getstate(),
    }


def _seed_generators(salt: int, when: str | int) -> Frozen:
    """Seed the global generators and return their state."""
    key = Rng(salt, ("global generators", when)).key
    # torch.manual_seed would also seed the generators of all GPUs, which are not put back.
    torch.default_generator.manual_seed(key)
    np.random.seed(key % (1 << 32))
    random.seed(key)
    return _generators()


def _flag(module: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return functools.partial(getattr, module, name), functools.partial(setattr, module, name)


# How each setting is read and set.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the precision of float32 products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cuda.matmul.allow_tf32": _flag(torch.backends.cuda.matmul, "allow_tf32"),
    "cudnn.allow_tf32": _flag(torch.backends.cudnn, "allow_tf32"),
    "cudnn.benchmark": _flag(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _flag(torch.backends.cudnn, "deterministic"),
    "cudnn.enabled": _flag(torch.backends.cudnn, "enabled"),
}


def _settings() -> Frozen:
    return {name: read() for name, (read, _) in _SETTINGS.items()}


@contextmanager
def _settings_and_generators_put_back() -> Iterator[None]:
    """Also a method that breaks its promises must not disturb the next check, or the tests of whoever runs them."""
    settings = _settings()
    torch_state, numpy_state, random_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(random_state)
        for name, (read, write) in _SETTINGS.items():
            if read() != settings[name]:
                write(settings[name])
