"""Save, then load, is the identity for every set there can be."""

from dataclasses import fields
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench import Recipe, SyntheticSet
from ddbench.synthetic import load, save


@st.composite
def sets(draw: st.DrawFn) -> SyntheticSet:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, classes = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shape = (n, draw(st.sampled_from([1, 3])), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    if draw(st.booleans()):
        images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    else:
        images = 10 * torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["class", "probability", "logit", "regression"]))
    hard = torch.randint(0, classes, (n,), generator=generator)
    labels = hard if kind == "class" else torch.randn(n, classes, generator=generator)
    steps = draw(st.integers(1, 3))
    schedule = torch.randint(0, n, (steps, 2), generator=generator) if draw(st.booleans()) else None
    lrs = [None, torch.rand((), generator=generator)] + ([torch.rand(steps, generator=generator)] if steps else [])
    recipe = Recipe(
        loss=draw(st.sampled_from(["cross_entropy", "mse"])),
        optimizer=draw(st.sampled_from(["sgd", "adam"])),
        lr=draw(st.sampled_from(lrs)),
        schedule=schedule,
        steps=draw(st.none() | st.integers(1, 10**6)),
        batch=draw(st.none() | st.integers(1, 512)),
        augment=draw(st.sampled_from([None, "none", "color_crop", "ü"])),
    )
    names = draw(st.lists(st.sampled_from(["weight", "block1.bias", "images", "start.x"]), unique=True))
    return SyntheticSet(
        images,
        labels,
        recipe,
        pixels=draw(st.sampled_from(["", "standard", "zca(eps=0.1)"])),
        label_kind=kind,
        decode=draw(st.sampled_from(["none", "tiles(factor=2)"])),
        start={name: torch.randn(draw(st.integers(0, 3)), 2, generator=generator) for name in names},
        source_indices=torch.randperm(n, generator=generator) if draw(st.booleans()) else None,
    )


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b


@settings(max_examples=40, deadline=None)
@given(sets())
def test_save_then_load_is_the_identity(tmp_path_factory: object, synthetic: SyntheticSet) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "roundtrip.safetensors"  # type: ignore[attr-defined]
    save(synthetic, path)
    back = load(path)
    for f in fields(SyntheticSet):
        if f.name not in ("recipe", "start"):
            assert same(getattr(back, f.name), getattr(synthetic, f.name)), f.name
    for f in fields(Recipe):
        assert same(getattr(back.recipe, f.name), getattr(synthetic.recipe, f.name)), f.name
    assert back.start.keys() == synthetic.start.keys()
    assert all(same(back.start[name], value) for name, value in synthetic.start.items())
    assert back.nbytes == synthetic.nbytes
