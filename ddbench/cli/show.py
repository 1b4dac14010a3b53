"""ddbench list and ddbench show: what there is, and what one of it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import Group
from ddbench.cli.common import data_option, json_option, note, print_json, print_table, wrapped
from ddbench.text import some_of

if TYPE_CHECKING:
    from ddbench.config import Option, Selection
    from ddbench.evaluation.protocol import Protocol


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "datasets", "backbones", "protocols", "trainers"]))
@json_option
def list_(what: str, as_json: bool) -> None:
    """What there is: methods, datasets, backbones, protocols or trainers."""
    listed = {
        "methods": _methods, "datasets": _datasets, "backbones": _backbones, "protocols": _protocols,
        "trainers": _trainers,
    }  # fmt: skip
    rows = listed[what]()
    if as_json:
        print_json(rows)
    elif rows:
        names = list(rows[0])
        print_table((list(row.values()) for row in rows), names, expendable=_EXPENDABLE.get(what, ()), prose=True)
    else:
        from ddbench.errors import PluginError

        raise PluginError(f"no {what} can be found: ddbench is not installed. Run: pip install -e '.[dev]'")


_EXPENDABLE = {"datasets": ("classes", "title", "licence"), "protocols": ("digest", "students", "backbones", "labels")}


def _methods() -> list[dict[str, Any]]:
    from ddbench.plugins import GROUPS, listing

    return [{"name": p.name, "provided by": p.provided_by} for p in listing(GROUPS["method"])]


def _datasets() -> list[dict[str, Any]]:
    from ddbench.data.catalogue import CATALOGUE
    from ddbench.plugins import GROUPS, listing

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "title": entry.title,
            "shape": "x".join(map(str, entry.shape)),
            "classes": entry.classes,
            "licence": entry.licence,
            "where from": entry.download,
        }
        for entry in CATALOGUE.values()
    ]
    blank = dict.fromkeys(rows[0], "")
    return rows + [{**blank, "name": p.name, "where from": p.provided_by} for p in listing(GROUPS["dataset"])]


def _backbones() -> list[dict[str, Any]]:
    from ddbench.backbones.names import known
    from ddbench.plugins import GROUPS, listing

    plugins = [{"name": p.name, "provided by": p.provided_by} for p in listing(GROUPS["backbone"])]
    others = {
        "convnet-d3-w128-in-relu-avg": "ddbench: depth, width, norm, activation and pooling of a ConvNet",
        "torchvision:NAME": "an image classifier of torchvision, for RGB; torchvision:vgg11(dropout=0) gives arguments",
        "timm:NAME": "an image classifier of timm, which pip install 'ddbench[timm]' installs; takes arguments too",
        "./FILE.py:FUNCTION": "your own function of (shape, classes)",
    }
    return [
        *({"name": name, "provided by": "ddbench"} for name in known()),
        *plugins,
        *({"name": name, "provided by": text} for name, text in others.items()),
    ]


def _protocols() -> list[dict[str, Any]]:
    from ddbench.evaluation.protocol import PROTOCOLS

    return [
        {
            "name": p.id,
            "digest": p.digest,
            "labels": p.labels,
            "backbones": ", ".join(p.backbones),
            "students": p.students,
            "source": p.source,
        }
        for p in PROTOCOLS.values()
    ]


def _trainers() -> list[dict[str, Any]]:
    from ddbench.plugins import TRAINERS, listing

    return [
        {"name": p.name, "provided by": p.provided_by, "protocols": ", ".join(_with_trainer(p.name))}
        for p in listing(TRAINERS)
    ]


def _with_trainer(name: str) -> list[str]:
    """The built-in protocols with a trainer."""
    from ddbench.evaluation.protocol import PROTOCOLS

    return [p.id for p in PROTOCOLS.values() if p.trainer == name]


@click.group(
    cls=Group,
    homes={
        "method": "ddbench.cli.show:method",
        "protocol": "ddbench.cli.show:protocol",
        "dataset": "ddbench.cli.show:dataset",
        "backbone": "ddbench.cli.show:backbone",
        "trainer": "ddbench.cli.show:trainer",
    },
)
def show() -> None:
    """One method, protocol, dataset, backbone or trainer in full."""


@click.command(short_help="What it learns, its options and presets.")
@click.argument("ref")
@json_option
def method(ref: str, as_json: bool) -> None:
    """A method: what it learns, its options with types, defaults and ranges, its presets with their sources."""
    from ddbench.config import option_table
    from ddbench.runs.resolving import find_method, presets
    from ddbench.runs.unread_presets import unread_presets

    loaded, kind = find_method(ref)
    for sentence in unread_presets(kind):
        note(f"Note: {sentence}")
    info, options = kind.info, option_table(kind.Config)
    settings = [setting for setting in kind.settings() if setting.preset in presets(kind)]
    if as_json:
        value = {"name": loaded.name, "provided_by": loaded.provided_by, **asdict(info)}
        value |= {"options": [asdict(o) for o in options], "presets": [asdict(s) for s in settings]}
        value |= {"selection": kind.selection.model_dump()}
        print_json(value)
        return
    paper = ", ".join(str(part) for part in (info.venue, info.year, info.arxiv and f"arXiv {info.arxiv}") if part)
    print_table(
        [
            ("method", f"{loaded.name}: {info.title}"),
            ("provided by", loaded.provided_by),
            ("paper", paper or "none"),
            ("kind", info.kind),
            ("learns", ", ".join(info.learns) or "nothing: it chooses real images"),
            ("native protocol", info.native),
            *([("result", _result(kind.selection))] if info.kind == "condensation" else []),
        ]
    )
    click.echo()
    _print_options(options)
    for setting in settings:
        click.echo()
        ipc = ", ".join("any" if i == "*" else str(i) for i in setting.ipcs)
        datasets = ", ".join("any dataset" if d == "*" else d for d in setting.datasets)
        click.echo(wrapped(f"preset {setting.preset} for {datasets}, ipc {ipc}", "    "))
        click.echo(wrapped(f"  source: {setting.source}", "    "))
        for name, value in setting.values.items():
            click.echo(f"  {name} = {value!r}")


@click.command(short_help="Every value of the recipe.")
@click.argument("ref")
@json_option
def protocol(ref: str, as_json: bool) -> None:
    """A protocol: every value of the recipe, its digest and its source. REF is a name or a TOML file."""
    from ddbench.evaluation.protocol import protocol as find

    found = find(ref)
    if as_json:
        print_json({"id": found.id, "digest": found.digest, **found.model_dump(mode="json")})
        return
    fields = found.model_dump(mode="json", exclude={"options", "name", "version", "source"})
    rows = [("protocol", found.id), ("digest", found.digest), ("source", found.source or "none stated")]
    rows += [(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in fields.items()]
    print_table(rows)
    click.echo()
    table = type(found.options).model_fields
    print_table(
        (
            (name, _option(found, name, value), table[name].description or "")
            for name, value in found.options.model_dump(mode="json").items()
        ),
        (f"option of {found.trainer}", "value", "meaning"),
    )


def _option(protocol: Protocol, name: str, value: Any) -> Any:
    if value is not None:
        return value
    return "learned" if name == "lr" and protocol.trainer in ("sgd", "distill") else "none"


@click.command(short_help="Shape, classes, licence, and what is there.")
@click.argument("name")
@data_option
@json_option
def dataset(name: str, data_root: Path, as_json: bool) -> None:
    """A dataset: shape, classes, statistics, licence, and what is in the data folder."""
    from ddbench.data.catalogue import CATALOGUE, canonical, info, known_copy
    from ddbench.data.manifests import find

    known = canonical(name)
    manifest = find(data_root, known)
    entry = CATALOGUE.get(known)
    if entry is None and manifest is None:
        entry = info(name)
    described: dict[str, Any] = {}
    if entry is not None:
        copies = [asdict(copy) | {"original": copy.original} for copy in entry.copies]
        described = vars(entry) | {"statistics": dict(entry.statistics), "copies": copies}
    if as_json:
        print_json({"name": known, **described, "here": manifest})
        return
    rows: list[tuple[str, Any]] = [("dataset", known)]
    if entry is not None:
        rows += [
            ("title", entry.title),
            ("shape", "x".join(map(str, entry.shape))),
            ("images", f"{entry.train} train, {entry.test} test" if entry.train else "depends on the source"),
            ("classes", _classes(entry.classes, entry.class_names)),
            ("licence", entry.licence),
            ("homepage", entry.homepage),
            ("where from", entry.download),
        ]
        rows += [(f"statistics {key}", f"mean {mean}, std {std}") for key, (mean, std) in entry.statistics.items()]
    if manifest is not None:
        if entry is None:
            rows.append(("shape", "x".join(map(str, manifest["shape"]))))
            rows.append(("classes", _classes(len(manifest["classes"]), tuple(manifest["classes"]))))
        counts = f"{manifest['train']['images']} train, {manifest['test']['images']} test"
        rows += [
            ("here", f"{manifest['title']}: {counts}, {manifest['origin']}"),
            ("split", manifest["split"]),
            ("preprocessing", manifest["preprocessing"]),
            *([("left out", manifest["left_out"])] if "left_out" in manifest else []),
            ("fingerprint", manifest["fingerprint"]),
            ("in any order", manifest.get("contents", "not computed; adding the dataset again does")),
        ]
        copy = known_copy(manifest["name"], fingerprint=manifest["fingerprint"], contents=manifest.get("contents", ""))
        if copy is not None:
            rows.append(("what it is", copy.about))
    elif entry is not None:
        rows.append(("here", "built in" if entry.how == "embedded" else "no"))
    print_table(rows)


@click.command(short_help="Parameters, norms, embedding, taps, what its name takes.")
@click.argument("name")
@click.option(
    "--dataset", "dataset_name", default="cifar10", show_default=True, metavar="NAME", help="For images as its own are."
)
@data_option
@json_option
def backbone(name: str, dataset_name: str, data_root: Path, as_json: bool) -> None:
    """A backbone: the images it takes, its parameters, norms and dropout, its embedding, and the taps inside it.

    NAME is as for --backbone. Depth, parameters and embedding depend on the images and classes of a dataset, of which
    only the description is read.
    """
    from ddbench.backbones import names
    from ddbench.backbones.describe import dropouts, norms

    known, shape, classes = _images_of(dataset_name, data_root)
    network = names.build(name, shape, classes)
    smallest, variants = names.smallest(name, shape[0]), names.variants(name)
    taps = network.tap_shapes
    told: dict[str, Any] = {
        "name": network.name,
        "provided_by": names.provider(name),
        "dataset": known,
        "shape": list(shape),
        "classes": classes,
        "parameters": network.parameters,
        "smallest": smallest,
        "norms": norms(network),
        "batch_norm": "batch norm" in norms(network),
        "per_sample": network.per_sample,
        "dropout": dropouts(network),
        "stochastic": network.stochastic,
        "embedding": taps["embed"][-1] if "embed" in taps else None,
        "taps": {tap: list(taps[tap]) if tap in taps else None for tap in network.taps},
        "variants": {field: list(tokens) for field, tokens in variants.items()},
    }
    if as_json:
        print_json(told)
        return
    drawn = ", ".join(told["dropout"]) or ("drawn by its own code" if network.stochastic else "none")
    embedding = f"{told['embedding']} numbers, which its last linear layer reads"
    if told["embedding"] is None:
        embedding = "of unknown size" if "embed" in network.taps else "none: its logits come from no linear layer"
    print_table(
        [
            ("backbone", network.name),
            ("provided by", told["provided_by"]),
            ("on", f"{known}: images of {'x'.join(map(str, shape))}, {classes} classes"),
            ("parameters", network.parameters),
            ("images", f"of {smallest}x{smallest} or more" if smallest else "these; of others it is not known"),
            ("norms", ", ".join(told["norms"]) or "none"),
            ("dropout", drawn),
            ("a batch", "each image alone" if network.per_sample else "together: one image changes what others give"),
            ("embedding", embedding),
        ]
    )
    click.echo()
    shapes = [(tap, "x".join(map(str, taps[tap])) if tap in taps else "unknown") for tap in network.taps]
    print_table(shapes, ("tap", "shape of one image"))
    click.echo()
    if variants:
        fields = names.parse(network.name)
        rows = [(field, ", ".join(tokens), getattr(fields, field)) for field, tokens in variants.items()]
        print_table(rows, ("its name sets", "by", "here"))
    elif ":" in name and not name.partition(":")[0].endswith(".py"):
        click.echo(wrapped("Its name takes arguments of the function that builds it: LIBRARY:NAME(argument=value)."))
    else:
        click.echo("Its name takes no options.")


def _images_of(dataset: str, data_root: Path) -> tuple[str, tuple[int, int, int], int]:
    """What a dataset is called, and the shape and the number of classes of its images, without reading them."""
    from ddbench.data.catalogue import CATALOGUE, canonical, info
    from ddbench.data.manifests import find

    known = canonical(dataset)
    if known not in CATALOGUE and (manifest := find(data_root, known)) is not None:
        channels, height, width = manifest["shape"]
        return known, (channels, height, width), len(manifest["classes"])
    entry = info(dataset)
    return entry.name, entry.shape, entry.classes


@click.command(short_help="Its options, and the protocols that have it.")
@click.argument("name")
@json_option
def trainer(name: str, as_json: bool) -> None:
    """A trainer of students: the options of a protocol that has it, with types, defaults and ranges."""
    from ddbench.config import option_table
    from ddbench.evaluation.trainer import trainer_class
    from ddbench.plugins import TRAINERS, named

    kind = trainer_class(name)
    (plugin,) = named(TRAINERS, name)
    options, protocols = option_table(kind.Options), _with_trainer(plugin.name)
    about = (kind.__doc__ or "").strip().partition("\n\n")[0]
    about = " ".join(about.split())
    if as_json:
        value = {"name": plugin.name, "provided_by": plugin.provided_by, "about": about, "protocols": protocols}
        print_json(value | {"uses_backbone": kind.uses_backbone, "options": [asdict(o) for o in options]})
        return
    print_table(
        [
            ("trainer", plugin.name),
            ("provided by", plugin.provided_by),
            ("about", about),
            ("trains networks", "yes" if kind.uses_backbone else "no: a set is judged once, whatever the backbone"),
            ("protocols", ", ".join(protocols) or "none that is built in"),
        ]
    )
    click.echo()
    _print_options(options)


def _print_options(options: Sequence[Option]) -> None:
    if options:
        print_table(
            ((o.name, o.type, o.default, o.range, o.description) for o in options),
            ("option", "type", "default", "range", "meaning"),
            expendable=("range", "type"),
        )
    else:
        click.echo("no options")


def _classes(count: int, names: tuple[str, ...]) -> str:
    if not names:
        return str(count)
    return f"{count}: {some_of(names, 10)}"


def _result(by: Selection) -> str:
    if not by.on:
        return "the last iterate, unless --select is given"
    return f"the best iterate, by --select heldout={by.heldout},every={by.every},students={by.students}"
