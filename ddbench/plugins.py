"""Finds methods, datasets, backbones and trainers: by entry point, by `package/name`, or by file.

Listing reads metadata and imports nothing; loading one imports one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import linecache
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ddbench.errors import PluginError, closest, mistyped
from ddbench.files import file_called
from ddbench.text import printable

GROUPS = {"method": "ddbench.methods", "dataset": "ddbench.datasets", "backbone": "ddbench.backbones"}
TRAINERS = "ddbench.trainers"
TRACKERS = "ddbench.trackers"


@dataclass(frozen=True)
class Plugin:
    """A name that a package provides, as its metadata says. Nothing of it has been imported."""

    name: str
    package: str
    version: str
    entry: EntryPoint

    @property
    def provided_by(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Loaded:
    """An imported plug-in. `sha256` is that of its file when it came from one, else None."""

    value: Any
    name: str
    provided_by: str
    sha256: str | None


@functools.cache
def listing(group: str) -> tuple[Plugin, ...]:
    """Everything that is registered under a group, sorted by name, without importing it."""
    found: dict[tuple[str, str], Plugin] = {}
    for entry in entry_points(group=group):
        # entry.dist is None only for entry points made by hand.
        package = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "0"
        # The same distribution can be on the path twice (a checkout and an install): the first one is what imports.
        found.setdefault((entry.name, package), Plugin(entry.name, package, version, entry))
    return tuple(sorted(found.values(), key=lambda plugin: (plugin.name, plugin.package)))


def kind_of(group: str) -> str:
    """The singular of a group: "method" for "ddbench.methods"."""
    return group.rsplit(".", 1)[-1].removesuffix("s")


def names_code(ref: str) -> bool:
    """Whether a reference is a file of Python, which `load` would run. Only a person may say one, never a file."""
    return ref.partition(":")[0].endswith(".py")


def named(group: str, ref: str) -> list[Plugin]:
    """The plug-ins that `dm` or `mypaper/dm` names, as it is spelled or else in any case: papers write MTT."""
    package, _, name = ref.rpartition("/")
    there = [plugin for plugin in listing(group) if package in ("", plugin.package)]
    exact = [plugin for plugin in there if plugin.name == name]
    return exact or [plugin for plugin in there if same_name(plugin.name, name)]


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same but for upper and lower case."""
    return one.lower() == other.lower()


def load(group: str, ref: str) -> Loaded:
    """Import what `ref` names: `dm`, `mypaper/dm`, or `./idea.py:MyMethod`.

    Raises: PluginError for an unknown or ambiguous name, and for a plug-in that does not import.
    """
    if names_code(ref):
        return _load_file(kind_of(group), ref)
    fitting = named(group, ref)
    if not fitting:
        raise mistyped(PluginError(_unknown(group, ref, [p.name for p in listing(group)])))
    if len(fitting) > 1:
        packages = " and ".join(p.package for p in fitting)
        choices = " or ".join(f"{p.package}/{p.name}" for p in fitting)
        raise mistyped(PluginError(f"{ref!r} is provided by {packages}. Say which: {choices}"))
    plugin = fitting[0]
    try:
        value = plugin.entry.load()
    except BaseException as error:
        raise_stop(error)
        raise PluginError(
            f"{kind_of(group)} {plugin.name!r} of {plugin.provided_by} does not import: {said(error)}. Repair or "
            f"uninstall {plugin.package}; others are not affected."
        ) from error
    return Loaded(value, plugin.name, plugin.provided_by, None)


def of_class(group: str, value: type) -> Loaded:
    """A class that somebody has imported or written, as `load` gives it.

    One that a package registers is that plug-in. Another one is named by the hash of its source: of the file, or of the
    notebook cell, that its functions are in. What the class uses from elsewhere is not in the hash; and a file that was
    edited after it was imported has to be imported again.
    Raises: PluginError where its source cannot be found: a changed class would then pass for the one before.
    """
    place = f"{value.__module__}:{value.__qualname__}"
    registered = [plugin for plugin in listing(group) if plugin.entry.value.replace(" ", "") == place]
    if registered and registered[0].entry.load() is value:
        return Loaded(value, registered[0].name, registered[0].provided_by, None)
    files = [part.__code__.co_filename for part in vars(value).values() if isinstance(part, FunctionType)]
    files.append(str(getattr(sys.modules.get(value.__module__), "__file__", None) or ""))
    head = f"class {value.__name__}"  # that of a function which the class has taken from elsewhere has none
    file = next((name for name in files if head in "".join(linecache.getlines(name))), None)
    if file is None:
        raise PluginError(
            f"{kind_of(group)} {value.__qualname__}: its source cannot be found, so that a record could not say what "
            "was run. Put the class into a file; in a notebook a class with a function of its own will do."
        )
    path = Path(file)
    there = path.is_file()
    source = path.read_bytes() if there else "".join(linecache.getlines(file)).encode()
    name = getattr(value, "name", None)
    return Loaded(
        value,
        name if isinstance(name, str) and name else value.__qualname__,
        printable(path.name) if there else "notebook",
        hashlib.sha256(source).hexdigest(),
    )


def raise_stop(error: BaseException) -> None:
    """Raise what a person or a scheduler asked for, Ctrl-C or SIGTERM; anything else is an error of the plug-in."""
    if isinstance(error, KeyboardInterrupt) or (
        not isinstance(error, Exception) and type(error).__module__.startswith("ddbench.")
    ):
        raise error


def said(error: BaseException) -> str:
    """What an error of a plug-in says: its kind, and its text if it has one."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {printable(text, lines=True)}" if text else type(error).__name__


def load_object(group: str, ref: str) -> Any:
    """The object alone, for those who need no provenance."""
    return load(group, ref).value


def _unknown(group: str, ref: str, names: list[str]) -> str:
    kind = kind_of(group)
    if not names and group == GROUPS["method"]:
        return "ddbench is not installed, so no method can be found. Run: pip install -e '.[dev]'"
    hint = "" if group == TRAINERS else f"`ddbench list {kind}s` shows what there is."
    near = (file_called(ref, ".py") if group in (GROUPS["method"], GROUPS["backbone"]) else "") or closest(ref, names)
    return f"there is no {kind} {ref!r}. {near}{hint or 'Known: ' + ', '.join(names) + '.'}"


def _load_file(kind: str, ref: str) -> Loaded:
    file, _, attribute = ref.partition(":")
    path = Path(file).expanduser()
    try:
        if not path.is_file():
            raise mistyped(PluginError(f"{kind} {ref!r}: there is no file {path}{_looked_in(path)}."))
        source = path.read_bytes()
    except (OSError, ValueError) as error:
        raise PluginError(f"{kind} {ref!r}: {path} cannot be read: {said(error)}.") from None
    module = _import_file(path, hashlib.sha256(source).hexdigest(), ref, kind)
    if not attribute:
        attribute = _only_candidate(module, kind, ref)
    if not hasattr(module, attribute):
        own = [name for name, part in vars(module).items() if callable(part) and not name.startswith("_")]
        raise mistyped(
            PluginError(f"{kind} {ref!r}: {path.name} has no {attribute!r}. {closest(attribute, own)}".rstrip())
        )
    value = getattr(module, attribute)
    name = getattr(value, "name", None)
    return Loaded(
        value,
        name if isinstance(name, str) and name else attribute,
        printable(path.name),
        hashlib.sha256(source).hexdigest(),
    )


def _looked_in(path: Path) -> str:
    # Paths in the file of a sweep are those of the folder where it is started, and not of the one that it lies in.
    return "" if path.is_absolute() else f" in {printable(str(Path.cwd()))}"


def _import_file(path: Path, digest: str, ref: str, kind: str) -> ModuleType:
    # Named by content and place: loading the same file twice gives the same classes, an edited one gives new ones.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"ddbench_file_{path.stem}_{place}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise_stop(error)
        raise PluginError(f"{kind} {ref!r} does not import: {said(error)}") from error
    return module


def _only_candidate(module: ModuleType, kind: str, ref: str) -> str:
    own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
    if kind == "method":
        from ddbench.method import Method

        own = [n for n in own if issubclass(getattr(module, n), Method)]
    if len(own) != 1:
        found = ", ".join(own) or "none"
        raise mistyped(
            PluginError(f"{kind} {ref!r}: say which of the file's {kind}s is meant ({found}), as in {ref}:NAME.")
        )
    return own[0]
