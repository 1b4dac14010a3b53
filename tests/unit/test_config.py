"""Options: layers, sources, sentences for what cannot be used."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ddbench import config
from ddbench.config import Layer, MethodConfig, Setting
from ddbench.errors import ConfigError


class Options(MethodConfig):
    iterations: int = Field(100, ge=0, description="Outer steps.")
    lr_images: float = Field(1.0, gt=0, lt=10, description="Step size.")
    batch: int | None = Field(None, ge=1, description="Images; none means all.")
    augment: str | None = Field("auto", description="A strategy.")
    initial: Literal["real", "noise"] = Field("real", description="Where from.")


def resolve(*layers: Layer) -> config.Resolved[Options]:
    return config.resolve("mtt", Options, layers)


def test_a_later_layer_wins_and_each_value_keeps_its_source() -> None:
    resolved = resolve(Layer("a paper", {"iterations": 5, "lr_images": 2.0}), Layer("--set", {"lr_images": 3.0}))
    assert resolved.config == Options.model_validate({"iterations": 5, "lr_images": 3.0})
    assert resolved.sources == {
        "iterations": "a paper",
        "lr_images": "--set",
        "batch": "default",
        "augment": "default",
        "initial": "default",
    }


class Grown(Options):
    share: float = config.later(0.0, ge=0, description="An option that earlier runs did not have.")
    name: str | None = config.later(None, description="Another one.")


def test_an_option_that_came_later_is_kept_where_it_is_not_at_its_default() -> None:
    earlier = Options().model_dump(mode="json")
    assert Grown().kept() == Options().kept() == earlier
    assert Grown(share=0.5).kept() == earlier | {"share": 0.5}
    assert Grown(**Grown(name="x").kept()) == Grown(name="x")


def test_an_unknown_option_names_its_neighbour() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Layer("--set", {"lr_image": 5}))
    assert str(caught.value) == (
        "mtt has no option 'lr_image'. Did you mean 'lr_images'? `ddbench show method mtt` lists them."
    )


def test_an_unknown_option_of_a_file_is_looked_up_by_the_file() -> None:
    with pytest.raises(ConfigError, match=r"idea has no option 'x'\. `ddbench show method \./idea\.py` lists them"):
        config.resolve("idea", Options, [Layer("--set", {"x": 5})], "./idea.py")


def test_options_below_a_table_are_told_where_they_stand() -> None:
    with pytest.raises(ConfigError, match=r"no option 'mtt'\. Options of mtt stand without a table"):
        resolve(Layer("file", {"mtt": {"iterations": 5}}))


def test_a_value_out_of_range_says_which_and_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"mtt: lr_images: input should be greater than 0 \(got -1\.0\)"):
        resolve(Layer("--set", {"lr_images": -1.0}))
    with pytest.raises(ConfigError, match=r"mtt: initial: input should be 'real' or 'noise'"):
        resolve(Layer("--set", {"initial": "zeros"}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fast"])
def test_a_number_is_a_finite_number(value: object) -> None:
    with pytest.raises(ConfigError, match=r"mtt: lr_images"):
        resolve(Layer("--set", {"lr_images": value}))


def test_none_by_name_stands_for_none_except_where_a_text_is_expected() -> None:
    options = resolve(Layer("file", {"batch": "none", "augment": "none"})).config
    assert options.batch is None
    assert options.augment == "none"


def test_options_cannot_be_changed_or_added() -> None:
    with pytest.raises(ValidationError):
        setattr(Options.model_validate({}), "iterations", 3)  # noqa: B010 - a plain assignment does not type-check
    with pytest.raises(ValidationError):
        Options.model_validate({"speed": 3})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("crop_flip", "crop_flip"),
        ("", ""),
        ("20_001", 20_001),
    ],
)
def test_a_typed_value_is_toml_or_else_a_text(text: str, value: object) -> None:
    parsed = config.parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_assignments_split_at_the_first_equals_sign() -> None:
    assert config.parse_assignments(["lr_images=0.1", "backbone=a=b"]) == {"lr_images": 0.1, "backbone": "a=b"}


@pytest.mark.parametrize("text", ["iterations", "=3", " = 3"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"KEY=VALUE"):
        config.parse_assignments([text])


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    missing, damaged, binary = tmp_path / "missing.toml", tmp_path / "damaged.toml", tmp_path / "binary.toml"
    damaged.write_text("iterations = ")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read: No such file"):
        config.read_toml(missing)
    for path in (damaged, binary):
        with pytest.raises(ConfigError, match=rf"{path.name} is not valid TOML"):
            config.read_toml(path)


PRESETS = """
[[setting]]
preset = "quick"
dataset = "*"
source = "a first look"
run = { backbone = "convnet-w32" }
iterations = 10

[[setting]]
dataset = ["cifar10", "svhn"]
ipc = [1, 10]
source = "a paper"
iterations = 20_000
lr_images = 0.1

[[setting]]
dataset = "cifar10"
ipc = 10
source = "its readme"
iterations = 10_000
"""


@pytest.fixture
def presets(tmp_path: Path) -> list[Setting]:
    path = tmp_path / "mtt.toml"
    path.write_text(PRESETS)
    return config.read_settings(path)


def test_settings_are_read_in_their_order(presets: list[Setting]) -> None:
    assert [s.source for s in presets] == ["a first look", "a paper", "its readme"]
    assert presets[1] == Setting(
        "paper", ("cifar10", "svhn"), (1, 10), "a paper", {"iterations": 20_000, "lr_images": 0.1}, {}
    )


@pytest.mark.parametrize(
    ("preset", "dataset", "ipc", "sources", "iterations"),
    [
        ("paper", "cifar10", 10, ["a paper", "its readme"], 10_000),
        ("paper", "cifar10", 1, ["a paper"], 20_000),
        ("paper", "svhn", 50, [], 100),
        ("paper", "mnist", 1, [], 100),
        ("quick", "cifar10", 10, ["a paper", "its readme", "a first look"], 10),
        ("quick", "mnist", 50, ["a first look"], 10),
        ("own", "cifar10", 10, ["a paper", "its readme"], 10_000),
        ("trial", "cifar10", 10, [], 100),
    ],
)
def test_quick_settings_lie_on_top_of_the_published_ones_that_fit(
    presets: list[Setting], preset: str, dataset: str, ipc: int, sources: list[str], iterations: int
) -> None:
    layers, run = config.preset_layers(presets, preset, dataset, ipc)
    assert [layer.source.partition(": ")[2] for layer in layers] == sources
    assert resolve(*layers).config.iterations == iterations
    assert [dict(layer.values) for layer in run] == ([{"backbone": "convnet-w32"}] if preset == "quick" else [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[setting]]\ndataset = "*"\n', "setting 1 has no 'source'.$"),
        ('[[setting]]\ndataset = "*"\nsorce = "x"\n', r"no 'source'\. It has 'sorce'\. Did you mean 'source'\?"),
        ('[[setting]]\nsource = "x"\n', "setting 1 has no 'dataset'"),
        ('[[setting]]\ndataset = "*"\nsource = "x"\nrun = { seed = 1 }\n', r"sets run\.seed\. A preset may set pixels"),
        ('[[setting]]\ndataset = "*"\nsource = "x"\nrun = { pixel = 1 }\n', r"run\.pixel\. Did you mean 'pixels'\? A"),
        ('[[setting]]\ndataset = "*"\nsource = "x"\nrun = "quick"\n', "run of setting 1 is a table"),
        ('[[settings]]\ndataset = "*"\nsource = "x"\n', r"'settings' is not known. Did you mean 'setting'\?"),
        ('[setting]\ndataset = "*"\nsource = "x"\n', r"write \[\[setting\]\] with two brackets"),
        ("setting = [1]\n", r"write \[\[setting\]\] with two brackets"),
    ],
)
def test_a_setting_that_is_not_one_says_why(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "dm.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        config.read_settings(path)


def test_the_option_table_has_types_defaults_ranges_and_sentences() -> None:
    rows = {row.name: row for row in config.option_table(Options)}
    assert list(rows) == list(Options.model_fields)
    assert rows["lr_images"] == config.Option("lr_images", "float", "1.0", "> 0, < 10", "Step size.")
    assert rows["batch"] == config.Option("batch", "int | None", "None", ">= 1", "Images; none means all.")
    assert rows["initial"].type == "Literal['real', 'noise']"


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["iterations", "batch"]), st.integers(1, 10**6)),
    st.dictionaries(st.sampled_from(["iterations", "batch"]), st.integers(1, 10**6)),
)
def test_layers_merge_value_by_value(low: dict[str, int], high: dict[str, int]) -> None:
    resolved = resolve(Layer("low", low), Layer("high", high))
    for name, value in (low | high).items():
        assert getattr(resolved.config, name) == value
        assert resolved.sources[name] == ("high" if name in high else "low")
