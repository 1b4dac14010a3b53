"""What was asked, and how it is resolved into the spec of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel

from ddbench.arguments import MOST_IPC
from ddbench.backbones import names as backbones
from ddbench.config import (
    ANY,
    Layer,
    MethodConfig,
    Selection,
    Setting,
    preset_layers,
    read_toml,
    resolve,
    selection_layers,
)
from ddbench.data import catalogue
from ddbench.data.catalogue import DatasetInfo
from ddbench.data.dataset import Dataset
from ddbench.data.pixels import canonical_name, check_pixels
from ddbench.data.sources import load
from ddbench.engine.precision import Precision, usual
from ddbench.errors import ConfigError, PluginError, closest
from ddbench.evaluation.protocol import Protocol, protocol
from ddbench.initial import INITIALS, StartingSet, keep, kept, starts
from ddbench.method import Kind, Method, MethodInfo
from ddbench.plugins import GROUPS, Loaded, names_code, of_class
from ddbench.plugins import load as load_plugin
from ddbench.runs.evaluating import Cell, cells
from ddbench.runs.record import RunRecord
from ddbench.runs.runspec import RunSpec
from ddbench.runs.selecting import as_values, config_of, resolve_selection, split_off
from ddbench.runs.unread_presets import unread_presets
from ddbench.text import MOST_COUNT, MOST_NAME, budget, printable

PRESETS = ("paper", "quick")
"""Those of every method, which may have others of its own."""
# What nobody asks for: the checks of the contract take one, `ddbench bench` the other.
INTERNAL = ("trial", "timing")
UNKNOWN = "unknown"
CPU = torch.device("cpu")
DEFAULTS_USED = "the method's defaults are used"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# So that a method without presets of its own shares a board with the others that are given a first look.
QUICK = Setting(
    preset="quick",
    datasets=(ANY,),
    ipcs=(ANY,),
    source="ddbench: a first look, on small networks",
    options={},
    run={"backbone": "convnet-w32", "protocol": "quick@1"},
)
# With the step size of quick@1 students diverge that have no norms and see more pixels than this.
QUICK_PIXELS = 64 * 64


@dataclass(frozen=True)
class Asked:
    """What a person asked for; None leaves a value to the preset, then to the default.

    `method` is a reference, or in a call also the class itself. `options` are values of the method's options by name.
    `by` says whether they came as arguments of a call or through the command line, which records tell apart.
    Hashable where its sequences are tuples.
    """

    method: str | type[Method[Any]]
    dataset: str
    ipc: int = 10
    seed: int = 0
    preset: str | None = None
    backbone: str | None = None
    pixels: str | None = None
    protocols: Sequence[str] = ()
    judges: Sequence[str] = ()
    students: int | None = None
    precision: str | None = None
    config_file: Path | None = None
    # Equal options are compared; a mapping has no hash.
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    by: Literal["call", "command"] = "call"
    # Values of a Selection, whether to select as the method does, or None: what the preset says, then the method.
    select: Mapping[str, Any] | bool | None = field(default=None, hash=False)

    def source(self, name: str) -> str:
        """What a record says of where a value came from: "--backbone" or "argument", "--set" or "options"."""
        if self.by == "command":
            return "--set" if name == "options" else f"--{name}"
        return "options" if name == "options" else "argument"


@dataclass(frozen=True, eq=False)
class Resolution:
    """A spec together with the live objects that it names."""

    spec: RunSpec
    method: Method[Any]
    dataset: Dataset
    protocols: tuple[Protocol, ...]
    selection: Selection = field(default_factory=Selection)

    @cached_property
    def cells(self) -> list[Cell]:
        """The evaluations that the run asks for."""
        spec = self.spec
        return cells(self.protocols, spec.judges, spec.students, self.dataset.info.shape, own=spec.backbone)


Reader = Callable[[Path, Dataset], StartingSet]
"""Reads the set of a run folder or file, for a condensation on a dataset that starts from it."""


def resolve_spec(asked: Asked, data_root: Path, device: torch.device = CPU, read: Reader | None = None) -> Resolution:
    """Fill every value that was left open and say where it came from. `device` is that of the run, which an open
    precision follows; `read` is needed where images start from a saved set.

    Order for the method's options: default, preset, --config FILE, `options`. For backbone, pixels and protocol: the
    dataset's default, preset, what was asked; and so for precision, whose default is that of the device.
    Raises: PluginError, ConfigError, DataError for whatever cannot be used as asked.
    """
    loaded, kind = find_method(asked.method)
    dataset = load(asked.dataset, data_root)

    def named(path: Path) -> str:
        if read is None:
            raise ConfigError(f"nobody reads {path} here, so that no condensation can start from it.")
        start = read(path, dataset)
        keep(start)
        return start.name

    values = (dataset.info, dataset.fingerprint, device, named)
    spec, method, protocols, selection = _resolve(asked, loaded, kind, *values)
    for initial in _starts(method):
        kept(initial).check(
            dataset=spec.dataset,
            data=spec.data_fingerprint,
            shape=dataset.info.shape,
            classes=len(dataset.train.classes),
            ipc=spec.ipc,
            pixels=spec.pixels,
        )
        if selection.on:
            raise ConfigError(
                f"the run holds images out to select by, and {initial} may have been made from all of them. Say "
                "--select none, or start from something else."
            )
    return Resolution(spec, method, dataset, protocols, selection)


def _with_starts(kind: type[Method[Any]], layer: Layer, named: Callable[[Path], str]) -> Layer:
    """The layer with every saved set to start from by its name, where it gives a path."""
    given = {name: str(layer.values[name]) for name in starts(kind.Config) if name in layer.values}
    paths = {name: Path(text).expanduser() for name, text in given.items() if text not in INITIALS}
    there = {name: path for name, path in paths.items() if _is_there(path)}
    return Layer(layer.source, {**layer.values, **{name: named(path) for name, path in there.items()}})


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that no path can be
        return False


def _starts(method: Method[Any]) -> list[str]:
    values = [getattr(method.config, name) for name in starts(type(method.config))]
    return [value for value in values if value not in INITIALS]


def foresee(asked: Asked, device: torch.device = CPU) -> RunSpec:
    """The spec of a run on a dataset of the catalogue that is not there. Its fingerprint, and so the id, are not final.

    Raises: PluginError, ConfigError as `resolve_spec`.
    """
    loaded, kind = find_method(asked.method)

    def named(path: Path) -> str:
        return f"{printable(path.name)}@{UNKNOWN}"  # without the data nobody can tell what is in it

    return _resolve(asked, loaded, kind, catalogue.info(asked.dataset), UNKNOWN, device, named)[0]


def _resolve(
    asked: Asked,
    loaded: Loaded,
    kind: type[Method[Any]],
    info: DatasetInfo,
    fingerprint: str,
    device: torch.device,
    named: Callable[[Path], str],
) -> tuple[RunSpec, Method[Any], tuple[Protocol, ...], Selection]:
    preset = ("quick" if info.name == "digits" else "paper") if asked.preset is None else asked.preset
    if asked.ipc < 1:
        raise ConfigError(f"ipc is {asked.ipc}; it is a number of images per class, at least 1.")
    if asked.seed < 0:
        raise ConfigError(f"the seed is {asked.seed}; it is a whole number, at least 0.")
    if asked.ipc > MOST_IPC:
        raise ConfigError(f"ipc is {asked.ipc}; {MOST_IPC} images per class are the most.")
    if asked.seed > MOST_COUNT:  # found now, and not when all that is left to do is the record
        raise ConfigError(f"the seed is {asked.seed}; a record holds whole numbers up to {MOST_COUNT}.")
    settings = [QUICK, *map(_by_known_names, kind.settings())]
    _check_preset(preset, kind, settings, info, asked.ipc)
    layers, run_layers = preset_layers(settings, preset, info.name, asked.ipc)
    if asked.config_file is not None:
        layers.append(Layer("file", read_toml(asked.config_file)))
    layers.append(Layer(asked.source("options"), asked.options))
    layers, renamed = split_off(kind, [_with_starts(kind, layer, named) for layer in layers])
    ref = asked.method if isinstance(asked.method, str) and names_code(asked.method) else ""
    resolved = resolve(kind.name, kind.Config, layers, ref)
    asked_for = Layer(asked.source("select"), as_values(asked.select))
    chosen = [*selection_layers(settings, preset, info.name, asked.ipc), *renamed, asked_for]
    selection, selected_by = resolve_selection(kind, chosen)
    selected = config_of(kind, selection)

    run, sources = _run_settings(asked, run_layers, device)
    check_pixels(run["pixels"], info, info.shape)
    precision = Precision(run["precision"])
    precision.require(device)
    refs = run["protocol"] if isinstance(run["protocol"], list) else [run["protocol"]]
    if not asked.protocols:
        refs = [_stable(info, asked.judges) if ref == "quick@1" else ref for ref in refs]
    judged_by = tuple(_protocol(ref, kind) for ref in refs)
    config = resolved.config.kept()
    sources |= {f"config.{name}": source for name, source in resolved.sources.items() if name in config}
    sources |= {f"config.{name}": selected_by[value] for name, (value, _) in selected.items()}
    sources["preset"] = asked.source("preset") if asked.preset is not None else "default"
    spec = RunSpec(
        method=loaded.name,
        provided_by=loaded.provided_by,
        method_sha256=loaded.sha256,
        dataset=info.name,
        data_fingerprint=fingerprint,
        # The whole dataset has no budget: one run serves every ipc.
        ipc=0 if kind.info.kind == "ceiling" else asked.ipc,
        backbone=backbones.canonical(run["backbone"], info.shape),
        pixels=canonical_name(run["pixels"]),
        seed=asked.seed,
        precision=precision.name,
        config=config | {name: value for name, (_, value) in selected.items()},
        conventions=_conventions(info, canonical_name(run["pixels"])),
        preset=preset,
        protocols=tuple(asked_ref(p, ref) for p, ref in zip(judged_by, refs, strict=True)),
        judges=tuple(backbones.canonical(name, info.shape) for name in asked.judges),
        students=asked.students,
        sources=sources,
        published=_published(loaded, settings, info, asked.ipc) if preset == "paper" else None,
    )
    return spec, kind(resolved.config), judged_by, selection


def _run_settings(asked: Asked, layers: Iterable[Layer], device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """What belongs to a run and not to its method, by default, then by preset, then as asked; and what says so."""
    run: dict[str, Any] = {
        "pixels": "standard", "backbone": "convnet", "protocol": "dsa@1", "precision": usual(device),
    }  # fmt: skip
    sources = dict.fromkeys(run, "default")
    for layer in layers:
        run |= layer.values
        sources |= dict.fromkeys(layer.values, layer.source)
    given = {"pixels": asked.pixels, "backbone": asked.backbone, "precision": asked.precision}
    for name, value in {**given, "protocol": list(asked.protocols)}.items():
        if value is not None and value != []:  # an empty name is nobody's, and not that of the default
            run[name] = value
            sources[name] = asked.source(name)
    return run, sources


def presets(kind: type[Method[Any]]) -> tuple[str, ...]:
    """The names of the presets that runs of a method can ask for."""
    return tuple(dict.fromkeys([*PRESETS, *(s.preset for s in kind.settings() if s.preset not in INTERNAL)]))


def _check_preset(
    preset: str, kind: type[Method[Any]], settings: Sequence[Setting], info: DatasetInfo, ipc: int
) -> None:
    """Raises: ConfigError for a preset that the method lacks, or has for other datasets or budgets alone."""
    offered = presets(kind)
    if preset not in offered:
        raise ConfigError(
            f"there is no preset {preset!r} of {kind.name}. {closest(preset, offered)}"
            f"Choose {', '.join(offered[:-1])} or {offered[-1]}."
        )
    own = [setting for setting in settings if setting.preset == preset]
    if preset not in PRESETS and not any(setting.fits(preset, info.name, ipc) for setting in own):
        there: dict[str, dict[str, None]] = {}
        for setting in own:
            for dataset in setting.datasets:
                there.setdefault(dataset, {}).update(dict.fromkeys(map(str, setting.ipcs)))
        cells = ", ".join(f"{dataset} at ipc {' or '.join(ipcs)}" for dataset, ipcs in there.items())
        raise ConfigError(
            f"the preset {preset!r} of {kind.name} has no settings for {info.name} at {budget(ipc)}; it has some for "
            f"{cells}."
        )


def _by_known_names(setting: Setting) -> Setting:
    """A preset for datasets as the catalogue spells them: CIFAR-10 in somebody's file is cifar10."""
    known = {name: entry.name for name in setting.datasets if (entry := catalogue.find(name)) is not None}
    return replace(setting, datasets=tuple(known.get(name, name) for name in setting.datasets)) if known else setting


def _published(loaded: Loaded, settings: Sequence[Setting], info: DatasetInfo, ipc: int) -> bool | None:
    """Whether a paper has settings for a dataset and ipc; None of a method that has none at all, such as a baseline or
    an author's own, on a dataset that papers know."""
    if any(setting.publishes(info.name, ipc) for setting in settings):
        return True
    has_some = any(setting.preset == "paper" and set(setting.datasets) - {ANY} for setting in settings)
    ours = loaded.sha256 is None and info.name not in catalogue.CATALOGUE
    return False if has_some or ours else None


def unpublished(specs: Iterable[RunSpec]) -> list[str]:
    """A sentence for each dataset and ipc for which the preset paper has no settings, though they were asked for."""
    cells: dict[tuple[str, int], list[str]] = {}
    for spec in specs:
        if spec.published is False:
            cells.setdefault((spec.dataset, spec.ipc), []).append(spec.method)
    return [
        f"no published setting of {', '.join(dict.fromkeys(methods))} for {dataset} at {budget(ipc)}: {DEFAULTS_USED}."
        for (dataset, ipc), methods in cells.items()
    ]


def remarks(resolutions: Iterable[Resolution]) -> list[str]:
    """Sentences that a person should read before the runs: of settings that no paper has, of files of presets that
    nobody reads, of an unused network, and of protocols that want a step size of sets that will have none."""
    there = list(resolutions)
    unused = {
        (r.spec.method, r.spec.backbone): None
        for r in there
        if not r.method.uses_backbone and not r.spec.sources["backbone"].startswith(("default", "preset"))
    }
    stepless = {
        (r.spec.method, cell.protocol.id): None
        for r in there
        for cell in r.cells
        if cell.protocol.takes_step_size and not any("step size" in what for what in r.method.info.learns)
    }
    return [
        *unpublished(r.spec for r in there),
        *dict.fromkeys(text for kind in dict.fromkeys(type(r.method) for r in there) for text in unread_presets(kind)),
        *(
            f"{protocol} takes a step size from the set, and those of {method} bring none: under it there will be no "
            "accuracy. Use a protocol with a step size of its own, such as dsa."
            for method, protocol in stepless
        ),
        *(
            f"{method} uses no backbone: {backbone} changes nothing in its set and is only part of the run's name. "
            f"`ddbench show method {method}` lists what it has instead."
            for method, backbone in unused
        ),
    ]


def _stable(info: DatasetInfo, judges: Sequence[str]) -> str:
    """The protocol of the preset quick: one with whose step size none of the judges that we bring diverges."""
    kinds = [set(judge.split("-")) for judge in judges]
    # Five convolutions deep and without norms, AlexNet bears a quarter of the step size that the others do.
    if any("alexnet" in kind and "bn" not in kind for kind in kinds):
        return "quick-slow@1"
    return "quick-large@1" if math.prod(info.shape[1:]) > QUICK_PIXELS else "quick@1"


def _conventions(info: DatasetInfo, pixels: str) -> dict[str, Any]:
    statistics = info.statistics.get(pixels.removeprefix("standard").strip("()").removeprefix("stats=") or "standard")
    used = statistics is not None and pixels.startswith("standard")
    return {"digits": info.digits, "statistics": [list(part) for part in statistics] if used and statistics else None}


def asked_ref(chosen: Protocol, ref: str) -> str:
    """How a spec keeps a protocol: by name where it is built in, by file where it is the user's."""
    return ref if ref.endswith(".toml") else chosen.id


def protocols_of(spec: RunSpec) -> list[Protocol]:
    """The protocols that a run's folder names.

    Raises: ConfigError where one is a file that names code in its turn: the folder may be somebody else's.
    """
    found = [protocol(ref) for ref in spec.protocols]
    for ref, one in zip(spec.protocols, found, strict=True):
        _refuse_code(ref, one)
    return found


def _refuse_code(ref: str, named: Protocol) -> None:
    """Raises: ConfigError where a protocol that a run's folder names is a file that names code in its turn."""
    code = next((text for text in _texts(named.model_dump(mode="json", exclude={"source"})) if names_code(text)), None)
    if code is not None:
        raise ConfigError(
            f"the protocol {ref}, which the run's folder names, names code: {code!r}. ddbench runs code only where "
            f"you name it yourself. If you trust it, say --protocol {ref}."
        )


def judged_with(spec: RunSpec, refs: Sequence[str], record: RunRecord) -> list[Protocol]:
    """The protocols of these names for a finished run, "native" being that of its method; those of its folder without
    any. Of a method that no package registers, "native" is what the run's record says, and its code is not looked for.

    Raises: ConfigError for an unknown name, and for "native" of a set that others made.
    """
    if "native" in refs and spec.imported is not None:
        raise ConfigError("an imported set has no native protocol here; name one, such as mtt.")
    own = _native(spec, record) if "native" in refs else ""
    return [protocol(own if ref == "native" else ref) for ref in refs] or protocols_of(spec)


def _native(spec: RunSpec, record: RunRecord) -> str:
    """The protocol of a method's own paper, for a run of it that is finished.

    A method that came from a file or a notebook may have changed since, be gone, or be called like a registered one;
    and the folder that names it may be somebody else's, so that its code is not run. The record has what it said.
    """
    if spec.method_sha256 is None:
        return find_method(f"{spec.provided_by.split(' ')[0]}/{spec.method}")[1].info.native
    native = record.run.native
    try:
        found = protocol(native)
    except ConfigError as error:
        raise ConfigError(
            f"the native protocol of {spec.method} is {native!r}, as the run's record says, and cannot be used here: "
            f"{str(error).rstrip('.')}. Name a protocol instead of native, or its file, as in --protocol ./FILE.toml."
        ) from None
    _refuse_code(native, found)
    return native


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for part in value.values():
                yield from _texts(part)
        case list() | tuple():
            for part in value:
                yield from _texts(part)
        case BaseModel():
            yield from _texts(value.model_dump(mode="json"))


def _protocol(ref: str, kind: type[Method[Any]]) -> Protocol:
    return protocol(kind.info.native if ref == "native" else ref)


def find_method(ref: str | type) -> tuple[Loaded, type[Method[Any]]]:
    """The class of a method by its reference, or a class that is there already, and where it came from.

    Raises: PluginError for an unknown name, for something that is no method, and for a class without a source.
    """
    if isinstance(ref, type):
        loaded, ref = of_class(GROUPS["method"], ref), ref.__qualname__
    else:
        loaded = load_plugin(GROUPS["method"], ref)
    if not (isinstance(loaded.value, type) and issubclass(loaded.value, Method)):
        raise PluginError(
            f"{ref!r} is a {type(loaded.value).__name__}, not a subclass of ddbench.Method. "
            "The guide 'Add a method' has a complete example."
        )
    for needed in ("name", "info"):
        if not hasattr(loaded.value, needed):
            raise PluginError(f"{ref!r}: the class {loaded.value.__name__} lacks {needed!r}, which tables print.")
    info = loaded.value.info
    titled = isinstance(info, MethodInfo) and isinstance(info.title, str) and printable(info.title) == info.title
    if not titled or info.kind not in get_args(Kind):
        raise PluginError(
            f"{ref!r}: the info of {loaded.value.__name__} should be a ddbench.MethodInfo with a title of one line and "
            f"one of the kinds {', '.join(get_args(Kind))}."
        )
    name = loaded.value.name
    if not isinstance(name, str) or not NAME.fullmatch(name) or names_code(name) or len(name) > MOST_NAME:
        raise PluginError(
            f"{ref!r}: a method cannot be called {loaded.value.name!r}, which names its folders; use letters, digits, "
            "dots, dashes and underscores."
        )
    if missing := loaded.value.unanswered():
        raise PluginError(f"{ref!r}: the class {loaded.value.__name__} does not answer {' and '.join(missing)}.")
    if not (isinstance(loaded.value.Config, type) and issubclass(loaded.value.Config, MethodConfig)):
        raise PluginError(f"{ref!r}: Config of {loaded.value.__name__} is no subclass of ddbench.MethodConfig.")
    return loaded, loaded.value
