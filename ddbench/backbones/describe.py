"""What a person wants to know of a network: its norms, its dropout, and what its outputs look like inside."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.classic import ResponseNorm


def norms(backbone: Backbone) -> list[str]:
    """The kinds of norm layers in it, each once, in their order: "instance norm", "batch norm", …"""
    found = [_norm(layer) for layer in backbone.layers()]
    return list(dict.fromkeys(name for name in found if name))


def dropouts(backbone: Backbone) -> list[str]:
    """Its layers that drop something at random when it trains, each kind once: "Dropout of 0.5"."""
    found: dict[str, list[float]] = {}
    for layer in backbone.layers():
        kind = type(layer).__name__
        # Other libraries have layers of their own, of which whole branches are dropped: DropPath, StochasticDepth.
        if isinstance(layer, _DropoutNd) or "Drop" in kind or kind == "StochasticDepth":
            share = getattr(layer, "p", getattr(layer, "drop_prob", None))
            if share != 0:
                found.setdefault(kind, []).extend([] if share is None else [float(share)])
    return [f"{kind}{_between(shares)}" for kind, shares in found.items()]


def _between(shares: list[float]) -> str:
    if not shares:
        return ""
    least, most = min(shares), max(shares)
    return f" of {least:.2g}" if least == most else f" of {least:.2g} to {most:.2g}"


def _norm(layer: nn.Module) -> str:
    match layer:
        case _BatchNorm():
            return "batch norm"
        case _InstanceNorm():
            return "instance norm"
        case nn.GroupNorm() if layer.num_groups == layer.num_channels:
            return "instance norm"
        case nn.GroupNorm():
            return f"group norm of {layer.num_groups} groups"
        case nn.LayerNorm():
            return "layer norm"
        case nn.RMSNorm():
            return "RMS norm"
        case nn.LocalResponseNorm() | ResponseNorm():
            return "local response norm"
    own = type(layer).__name__
    return own if "norm" in own.lower() and next(layer.children(), None) is None else ""
