"""What architectures are called: "convnet-d3-w256-bn", "resnet18-ap", "torchvision:resnet18", "nets.py:factory".

A built-in name is a family and tokens in any order; its canonical form leaves out what is the default and keeps the
depth, and the initialiser of a family that does not begin as torch's layers do. Parsing and listing import no torch.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.backbones import libraries
from ddbench.errors import ConfigError, closest
from ddbench.files import file_called
from ddbench.text import printable

if TYPE_CHECKING:
    from torch import nn

    from ddbench.backbones.backbone import Backbone
    from ddbench.backbones.initialisers import Initialiser
    from ddbench.backbones.stack import Chain

Shape = tuple[int, int, int]

GROUP = "ddbench.backbones"
MOST = {"d": 64, "w": 16_384}  # depth and width of a ConvNet; a layer of that width has 2.4 billion weights

# Where the files are that this process was given, by what their factories are called.
_files: dict[str, str] = {}


@dataclass(frozen=True)
class Fields:
    """A name taken apart. `depth` is None where the size of the images decides it; it and `width` are ConvNet's."""

    family: str
    depth: int | None = None
    width: int = 128
    norm: str = "in"
    activation: str = "relu"
    pooling: str = "avg"
    initialiser: Initialiser = "torch"


# In the order of canonical names.
_TOKENS: dict[str, tuple[str, ...]] = {
    "norm": ("in", "bn", "gn", "ln", "nn"),
    "activation": ("relu", "sigmoid", "leaky", "swish"),
    "pooling": ("avg", "max", "np", "ap"),
    "initialiser": ("xavier", "kip", "he", "torch"),
}

_XAVIER = frozenset({"xavier"})
_CONVNET = frozenset(token for tokens in _TOKENS.values() for token in tokens) - {"ap", "he", "torch"}
_FAMILIES: dict[str, tuple[Fields, frozenset[str]]] = {
    "alexcifarnet": (Fields("alexcifarnet", norm="nn", pooling="max"), _XAVIER),
    "alexnet": (Fields("alexnet", norm="nn", pooling="max"), _XAVIER | {"nn", "bn"}),
    "convnet": (Fields("convnet"), _CONVNET),
    "lenet": (Fields("lenet", norm="nn", pooling="max"), _XAVIER),
    "mlp": (Fields("mlp", norm="nn", pooling="np"), _XAVIER),
    "resnet-16-32-64": (Fields("resnet-16-32-64", norm="bn", initialiser="he"), _XAVIER | {"he", "torch"}),
    "resnet18": (Fields("resnet18"), _XAVIER | {"he", "in", "bn", "ap"}),
    "vgg11": (Fields("vgg11", pooling="max"), _XAVIER | {"in", "bn"}),
}


def known() -> list[str]:
    """The architectures that come with ddbench, without other initialisers and without ConvNet's many variants."""
    variants = ["alexnet-bn", "resnet18-ap", "resnet18-bn", "resnet18-bn-ap", "vgg11-bn"]
    return sorted([*(_spell(default) for default, _ in _FAMILIES.values()), *variants])


def parse(name: str) -> Fields:
    """A built-in name taken apart.

    Raises: ConfigError for an unknown family or token, and for two tokens that contradict each other.
    """
    name = _cased(name)
    family = _family(name)
    if family is None:
        raise ConfigError(_unknown(name, known()))
    fields, allowed = _FAMILIES[family]
    changes: dict[str, Any] = {}
    for token in name.removeprefix(family).split("-")[1:]:
        field, value = _field(name, family, token, allowed)
        if field in changes:
            raise ConfigError(f"backbone {name!r} says two things about its {field}: {changes[field]} and {value}.")
        changes[field] = value
    return replace(fields, **changes)


def canonical(name: str, shape: Shape | None = None) -> str:
    """The one spelling of a name. The depth of a bare "convnet" is filled in when the images' shape is given.

    A file becomes its name, the factory and eight digits of its content, "nets.py:factory@1a2b3c4d": records and run
    folders hold no paths, and another content is another architecture. Built-in names are taken in any case, as papers
    write them; other names come back as they are.
    """
    name = _cased(name)
    if _family(name) is None:
        _check_provided(name)
        if libraries.is_of_library(name):
            return str(libraries.parse(name))
        return _label(name) if _is_file(name) else name
    return _spell(_resolved(parse(name), shape))


def spelled(name: str, *, like: str) -> str:
    """The canonical form of a built-in name, which has the depth of the network `like` where it says none.

    Raises: ConfigError for a name that is not built in.
    """
    fields, other = parse(name), _cased(like)
    if fields.depth is None and fields.family == _family(other):
        fields = replace(fields, depth=parse(other).depth)
    return _spell(fields)


def smallest(name: str, channels: int) -> int | None:
    """Pixels a side of the smallest square images that a built-in network takes; None of any other network, of which
    nobody knows it before it is tried.

    Raises: ConfigError for an unknown name.
    """
    return None if _family(name) is None else _smallest_size(parse(name), channels)


def variants(name: str) -> dict[str, tuple[str, ...]]:
    """What the name of a built-in network can say, by what it sets: "norm" by the tokens "in", "bn", …

    Depth and width are ranges, "d1 … d64". Empty for any other network.
    """
    family = _family(name)
    if family is None:
        return {}
    sized = {"depth": "d", "width": "w"} if family == "convnet" else {}
    ranges = {field: (f"{letter}1 … {letter}{MOST[letter]}",) for field, letter in sized.items()}
    allowed = _FAMILIES[family][1]
    given = {field: tuple(token for token in tokens if token in allowed) for field, tokens in _TOKENS.items()}
    return ranges | {field: tokens for field, tokens in given.items() if tokens}


def provider(name: str) -> str:
    """Who provides a network: "ddbench", a package and its version, or a file.

    Raises: ConfigError for a name that nobody provides.
    """
    from importlib.metadata import version

    from ddbench.plugins import named

    if _family(name) is not None:
        return "ddbench"
    _check_provided(name)
    if libraries.is_of_library(name):
        library = libraries.parse(name).library
        return f"{library} {version(library)}"
    found = named(GROUP, name)
    return found[0].provided_by if found else name.partition(":")[0]


def build(name: str, shape: Shape, classes: int) -> Backbone:
    """The architecture of that name for images of shape (C, H, W).

    Raises: ConfigError for an unknown name, and for images that the network cannot take; PluginError from plug-ins.
    """
    if min(*shape, classes) < 1:
        raise ConfigError(
            f"backbone {name!r} needs images with pixels and at least 1 class, not {shape} and {classes}."
        )
    name = _cased(name)
    if _family(name) is None:
        _check_provided(name)
        name = canonical(name)
        from ddbench.backbones.foreign import from_module

        return from_module(name, _factory(name, shape, classes), shape, classes, known=libraries.is_of_library(name))

    import torch

    from ddbench.backbones.backbone import Backbone
    from ddbench.backbones.stack import TooSmallError

    fields = _resolved(parse(name), shape)
    spelling = _spell(fields)
    with torch.device("meta"):
        try:
            chain = _chain(fields, shape, classes)
        except TooSmallError as error:
            size = f"{shape[1]}x{shape[2]}"
            raise ConfigError(
                f"backbone {spelling} cannot take {size} images: {error}. {_smallest(fields, shape[0])}"
            ) from error
    return Backbone(spelling, chain, shape, classes, fields.initialiser)


def _chain(fields: Fields, shape: Shape, classes: int) -> Chain:
    from ddbench.backbones import classic, convnet, resnet

    match fields.family:
        case "convnet":
            assert fields.depth is not None
            return convnet.convnet(
                shape,
                classes,
                depth=fields.depth,
                width=fields.width,
                norm=fields.norm,
                activation=fields.activation,
                pooling=fields.pooling,
            )
        case "resnet18":
            return resnet.resnet18(shape, classes, norm=fields.norm, flat=fields.pooling == "ap")
        case "resnet-16-32-64":
            return resnet.resnet_16_32_64(shape, classes)
        case "alexnet":
            return classic.alexnet(shape, classes, norm=fields.norm)
        case "vgg11":
            return classic.vgg11(shape, classes, norm=fields.norm)
        case "mlp":
            return classic.mlp(shape, classes)
        case "lenet":
            return classic.lenet(shape, classes)
    return classic.alexcifarnet(shape, classes)


def _smallest(fields: Fields, channels: int) -> str:
    size = _smallest_size(fields, channels)
    return f"The smallest size is {size}x{size}." if size else "Use a smaller depth."


def _smallest_size(fields: Fields, channels: int) -> int | None:
    """Pixels a side of the smallest square images that the network takes, up to 512."""
    import torch

    from ddbench.backbones.stack import TooSmallError

    for size in range(1, 513):
        shape = (channels, size, size)
        try:
            with torch.device("meta"):
                _chain(_resolved(fields, shape), shape, 1)
        except TooSmallError:
            continue
        return size
    return None


def _factory(name: str, shape: Shape, classes: int) -> Callable[[], nn.Module]:
    if libraries.is_of_library(name):
        return libraries.factory(name, shape, classes)

    from ddbench.plugins import load_object

    make: Any = load_object(GROUP, _files.get(name, name))
    if not callable(make):
        raise ConfigError(f"backbone {name!r} must be a function of (shape, classes), not a {type(make).__name__}.")
    return lambda: make(shape, classes)


def _check_provided(name: str) -> None:
    """Raises: ConfigError, with a suggestion among ours and the installed ones, for a name that nobody provides."""
    from ddbench.plugins import listing, names_code

    if name in _files or libraries.is_of_library(name) or _is_file(name):
        return
    if names_code(name):
        raise ConfigError(f"backbone {name!r} comes from a file; give its path, as in ./{name.partition('@')[0]}")
    plugins = [plugin.name for plugin in listing(GROUP)]
    if "/" not in name and name not in plugins:
        raise ConfigError(_unknown(name, [*known(), *plugins]))


def _is_file(name: str) -> bool:
    from ddbench.plugins import names_code

    return name not in _files and "@" not in name and names_code(name)


def _label(ref: str) -> str:
    """What a factory in a file is called, with a note of where it is for `build`. Raises: ConfigError without it."""
    file, _, factory = ref.partition(":")
    path = Path(file).expanduser()
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"backbone {ref!r}: {printable(str(path))} cannot be read: {why}.") from None
    # One network has one name, whether or not its factory was said: columns and the seeds of students go by it.
    factory = factory or _only_factory(ref, content)
    label = f"{path.name}:{factory}@{hashlib.sha256(content).hexdigest()[:8]}"
    _files[label] = f"{file}:{factory}"
    return label


def _only_factory(ref: str, content: bytes) -> str:
    """The one function or class that a file defines, found without running it. Raises: ConfigError otherwise."""
    try:
        body = ast.parse(content).body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"backbone {ref!r} is no file of Python: {error}.") from None
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    found = list(dict.fromkeys(name for name in defined if not name.startswith("_")))
    if len(found) == 1:
        return found[0]
    there = f"it defines {', '.join(found)}" if found else "it defines no function or class of its own"
    raise ConfigError(
        f"backbone {ref!r}: say which function of (shape, classes) makes the network, as in {ref.rstrip(':')}:"
        f"{found[0] if found else 'NAME'}; {there}."
    )


def _unknown(name: str, names: list[str]) -> str:
    near = file_called(name, ".py") or closest(name, names)
    return f"there is no backbone {name!r}. {near}`ddbench list backbones` shows what there is."


def _cased(name: str) -> str:
    """A built-in name in lower case, as ours are spelled, unless a plug-in is called just so."""
    lower = name.lower()
    if name == lower or _family(name) is not None or _family(lower) is None:
        return name if _family(name) is None else lower
    from ddbench.plugins import listing

    return name if name in {plugin.name for plugin in listing(GROUP)} else lower


def _family(name: str) -> str | None:
    # The longest first, should one family's name ever begin with another's and a dash.
    fitting = [family for family in _FAMILIES if name == family or name.startswith(f"{family}-")]
    return max(fitting, key=len, default=None)


def _field(name: str, family: str, token: str, allowed: frozenset[str]) -> tuple[str, str | int]:
    sized = re.fullmatch(r"([dw])([1-9]\d*)", token)
    if sized and family == "convnet":
        most = MOST[sized[1]]
        if len(sized[2]) > 9 or int(sized[2]) > most:
            raise ConfigError(f"backbone {name!r} has {sized[1]}{sized[2][:12]}, and {sized[1]}{most} is the most.")
        return {"d": "depth", "w": "width"}[sized[1]], int(sized[2])
    for field, tokens in _TOKENS.items():
        if token in tokens and token in allowed:
            return field, token
    choices = [token for tokens in _TOKENS.values() for token in tokens if token in allowed]
    sizes = "d<depth>, w<width>, " if family == "convnet" else ""
    raise ConfigError(
        f"backbone {name!r}: {family} has no variant {token!r}. {closest(token, choices)}"
        f"It has {sizes}{', '.join(choices)}."
    )


def _resolved(fields: Fields, shape: Shape | None) -> Fields:
    if fields.family != "convnet" or fields.depth is not None or shape is None:
        return fields
    # The depth that leaves a map of about 4x4: 2 blocks at 8 px, 3 at 28 and 32, 4 at 64, 5 at 128.
    return replace(fields, depth=max(2, round(math.log2(min(shape[1:]) / 4))))


def _spell(fields: Fields) -> str:
    default, _ = _FAMILIES[fields.family]
    parts = [fields.family]
    if fields.depth is not None:
        parts.append(f"d{fields.depth}")
    if fields.width != default.width:
        parts.append(f"w{fields.width}")
    # A network that is not drawn as torch draws its layers always says so: the one of LD once was drawn like that, and
    # what was measured then must not share a name with what is measured now.
    parts += [
        getattr(fields, field)
        for field in _TOKENS
        if getattr(fields, field) != getattr(default, field)
        or (field == "initialiser" and default.initialiser != "torch")
    ]
    return "-".join(parts)
